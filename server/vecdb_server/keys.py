"""API keys: what one is, and the file that keeps their hashes.

A key is `vecdb_<id>_<secret>`. The id is public: it stands in the file, in the audit log and in
messages. The secret is 32 random bytes, of which the file has the SHA-256 only. A slow hash, as for
passwords, would buy nothing: nobody can try 2^256 secrets, and it would cost each call milliseconds.

The file is JSON, readable for its owner only. Changes are written aside and renamed, under a lock, so
that a server never reads half of one.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vecdb import disk
from vecdb.errors import InvalidArgument, InvalidSetting, NotFound

FORMAT = 1
ROLES = ("read", "write", "admin")
"""Each may do what those before it may."""
MAX_KEYS = 10_000

_KEY = re.compile(r"vecdb_([a-z0-9]{8})_([A-Za-z0-9_-]{43})")
_PATTERN = re.compile(r"[A-Za-z0-9_.*-]{1,128}")
_ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"


@dataclass(frozen=True, slots=True)
class Grant:
    """A role on the collections whose names match `pattern`, in which `*` stands for any characters."""

    role: str
    pattern: str

    def covers(self, collection: str) -> bool:
        """Whether a name matches. Linear in its length, whatever the pattern."""
        first, *rest = self.pattern.split("*")
        if not rest:
            return collection == first
        if not collection.startswith(first):
            return False
        at = len(first)
        for part in rest[:-1]:
            found = collection.find(part, at)
            if found < 0:
                return False
            at = found + len(part)
        return len(collection) - at >= len(rest[-1]) and collection.endswith(rest[-1])


@dataclass(frozen=True, slots=True)
class Secret:
    """Hash of a secret, and when it ends (seconds since 1970; None: never)."""

    sha256: bytes
    expires_s: float | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """One API key. During a rotation it has two secrets, of which the older one soon expires."""

    id: str
    grants: tuple[Grant, ...]
    secrets: tuple[Secret, ...]
    note: str = ""
    created_s: float = 0.0
    revoked_s: float | None = None

    def accepts(self, secret: str, now_s: float) -> bool:
        """Whether `secret` is one of this key's and in force. Takes the same time for every wrong one."""
        digest = hashlib.sha256(secret.encode()).digest()
        known = False
        for one in self.secrets:
            same = hmac.compare_digest(one.sha256, digest)
            known |= same and (one.expires_s is None or now_s < one.expires_s)
        return known and self.revoked_s is None

    def state(self, now_s: float) -> str:
        """active, expired or revoked."""
        if self.revoked_s is not None:
            return "revoked"
        live = any(one.expires_s is None or now_s < one.expires_s for one in self.secrets)
        return "active" if live else "expired"

    def expires_s(self) -> float | None:
        """When the last of its secrets ends; None: never."""
        ends = [one.expires_s for one in self.secrets]
        return None if None in ends else max((end for end in ends if end is not None), default=0.0)


def parsed(text: str) -> tuple[str, str] | None:
    """(id, secret) of the text of a key; None if it is none."""
    found = _KEY.fullmatch(text)
    return None if found is None else (found[1], found[2])


def parse_grant(text: str) -> Grant:
    """A grant from `role` (all collections) or `role:pattern`. InvalidArgument."""
    role, _, pattern = text.partition(":")
    pattern = pattern if ":" in text else "*"
    if role not in ROLES or not _PATTERN.fullmatch(pattern):
        raise InvalidArgument(
            f"a grant is {', '.join(ROLES)} alone or with a pattern of names behind it, such as "
            f"read:docs-*; given {text!r}"
        )
    return Grant(role, pattern)


def _new_secret() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")


def _hashed(secret: str, expires_s: float | None) -> Secret:
    return Secret(hashlib.sha256(secret.encode()).digest(), expires_s)


def differences(
    before: Mapping[str, Key], now: Mapping[str, Key], now_s: float
) -> dict[str, list[str]]:
    """What has become of keys: sorted ids of those that `came` into force and `went` out of it, that were
    `rotated` (have a secret they did not have) and `changed` in any other way, such as their grants."""
    old = {i for i, key in before.items() if key.state(now_s) == "active"}
    new = {i for i, key in now.items() if key.state(now_s) == "active"}
    found = {"came": new - old, "went": old - new, "rotated": set(), "changed": set()}
    for i in before.keys() & now.keys():
        secret_before = {secret.sha256 for secret in before[i].secrets}
        if any(secret.sha256 not in secret_before for secret in now[i].secrets):
            found["rotated"].add(i)
        named = any(i in found[what] for what in ("came", "went", "rotated"))
        if before[i] != now[i] and (not named or _meaning(before[i]) != _meaning(now[i])):
            found["changed"].add(i)
    return {what: sorted(ids) for what, ids in found.items()}


def _meaning(key: Key) -> Key:
    """A key but for what comes, goes and is rotated."""
    return replace(key, secrets=(), revoked_s=None)


# --- the file -------------------------------------------------------------------------------------


def load(path: Path) -> dict[str, Key]:
    """Keys by id. InvalidSetting, which names the fault, for a file that is missing or damaged."""
    try:
        held = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidSetting(f"cannot read keys file {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidSetting(f"keys file {path} is not JSON: {error}") from None
    try:
        if held["format"] != FORMAT:
            raise InvalidSetting(
                f"keys file {path} has format {held['format']!r}, this version reads {FORMAT}"
            )
        return {key.id: key for key in map(_from_json, held["keys"])}
    except InvalidSetting:
        raise
    except (LookupError, TypeError, ValueError) as error:
        raise InvalidSetting(
            f"keys file {path} is damaged ({type(error).__name__}: {error}); make it by `vecdb keys`"
        ) from None


def _from_json(held: Mapping[str, Any]) -> Key:
    grants = tuple(parse_grant(f"{one['role']}:{one['collections']}") for one in held["grants"])
    found = tuple(
        Secret(bytes.fromhex(one["sha256"]), _seconds(one["expires_at"])) for one in held["secrets"]
    )
    if any(len(one.sha256) != 32 for one in found):
        raise ValueError(f"a hash of key {held['id']} has not 32 bytes")
    created_s = _seconds(held["created_at"]) or 0.0
    return Key(held["id"], grants, found, held["note"], created_s, _seconds(held["revoked_at"]))


def _to_json(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "note": key.note,
        "grants": [{"role": one.role, "collections": one.pattern} for one in key.grants],
        "created_at": moment(key.created_s),
        "revoked_at": moment(key.revoked_s),
        "secrets": [
            {"sha256": one.sha256.hex(), "expires_at": moment(one.expires_s)} for one in key.secrets
        ],
    }


def moment(seconds: float | None) -> str | None:
    """A time as ISO 8601 in UTC; None stays None."""
    if seconds is None:
        return None
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")


def _seconds(text: str | None) -> float | None:
    return None if text is None else dt.datetime.fromisoformat(text).timestamp()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One change of the file at a time, whichever process makes it."""
    with open(f"{path}.lock", "w", opener=_private) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _changed(path: Path, change: Callable[[dict[str, Key]], None]) -> None:
    with _locked(path):
        held = load(path) if path.exists() else {}
        change(held)
        aside = Path(f"{path}.new")
        text = json.dumps(
            {"format": FORMAT, "keys": [_to_json(k) for k in held.values()]}, indent=1
        )
        with open(aside, "wb", opener=_private) as stream:
            stream.write(text.encode() + b"\n")
            disk.sync_file(stream, aside, "keys")
        disk.rename(aside, path, "keys")
        disk.sync_folder(path.parent, "keys")


def _held(keys: Mapping[str, Key], key_id: str) -> Key:
    if key_id not in keys:
        raise NotFound(f"no key has the id {key_id!r}; `vecdb keys list` shows them")
    return keys[key_id]


def add(
    path: Path, grants: tuple[Grant, ...], note: str, now_s: float, expires_s: float | None
) -> tuple[Key, str]:
    """Adds a key, making the file if there is none; the key and its text, which is kept nowhere."""
    secret = _new_secret()
    made: list[Key] = []

    def change(held: dict[str, Key]) -> None:
        if len(held) >= MAX_KEYS:
            raise InvalidArgument(f"{path} holds {MAX_KEYS:,} keys, which is all it takes")
        key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(8))
        while key_id in held:
            key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(8))
        made.append(Key(key_id, grants, (_hashed(secret, expires_s),), note, now_s))
        held[key_id] = made[0]

    _changed(path, change)
    return made[0], f"vecdb_{made[0].id}_{secret}"


def rotate(
    path: Path, key_id: str, now_s: float, overlap_s: float, expires_s: float | None
) -> tuple[Key, str]:
    """Gives a key a new secret; the old one is good for `overlap_s` more seconds. The key and its text."""
    secret = _new_secret()
    made: list[Key] = []

    def change(held: dict[str, Key]) -> None:
        key = _held(held, key_id)
        if key.revoked_s is not None:
            raise InvalidArgument(f"key {key_id} was revoked; add a new one")
        end_s = now_s + overlap_s
        old = [replace(s, expires_s=min(end_s, s.expires_s or end_s)) for s in key.secrets]
        kept = [one for one in old if one.expires_s is not None and one.expires_s > now_s]
        made.append(replace(key, secrets=(*kept, _hashed(secret, expires_s))))
        held[key_id] = made[0]

    _changed(path, change)
    return made[0], f"vecdb_{key_id}_{secret}"


def revoke(path: Path, key_id: str, now_s: float) -> Key:
    """Ends a key for good. It stays in the file, so that its id in logs goes on meaning something."""
    made: list[Key] = []

    def change(held: dict[str, Key]) -> None:
        key = _held(held, key_id)
        made.append(key if key.revoked_s is not None else replace(key, revoked_s=now_s))
        held[key_id] = made[0]

    _changed(path, change)
    return made[0]
