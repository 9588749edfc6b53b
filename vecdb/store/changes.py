"""Changes of names that were done lately, by the id that their caller gave them: a repetition is answered, not done again.

They stand in the catalog's `meta`, written in the very commit of a change, so that after a crash both are there or
both not. A record that is damaged or of a version to come counts as none; `check` names a damaged one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

from ..errors import InvalidArgument
from ..layout import META_CHANGES
from .meta_sums import sealed, unsealed

KEPT = 512
"""Entries kept: 20 KB, written again with each change."""
KEPT_US = 3_600 * 1_000_000
"""And an hour, whichever ends sooner."""
_ENTRY = struct.Struct("<16s8sQ16s")


class Change(NamedTuple):
    """A change with an id of its caller: what tells it from every other, and what from another with the same id."""

    request_id: bytes
    what: bytes

    @property
    def digests(self) -> tuple[bytes, bytes]:
        return (
            blake2b(self.request_id, digest_size=16).digest(),
            blake2b(self.what, digest_size=8).digest(),
        )


class Done(NamedTuple):
    """A change that was done: the token of the collection that it made, empty where it made none."""

    token: str


def find(raw: Any, change: Change, now_us: int) -> Done | None:
    """What the record `raw`, None where there is none, knows of a change. InvalidArgument where its id came with another
    one."""
    request, what = change.digests
    for known, known_what, time_us, token in _entries(raw):
        if known == request and time_us > now_us - KEPT_US:
            if known_what != what:
                raise InvalidArgument(
                    f"request id {change.request_id.decode()!r} came with another change before; give each change "
                    "an id of its own"
                )
            return Done(token.rstrip(b"\0").decode())
    return None


def record(raw: Any, change: Change, token: str, now_us: int) -> bytes:
    """The record with one more change, and without those that are too old or too many."""
    kept = [one for one in _entries(raw) if one[2] > now_us - KEPT_US][-(KEPT - 1) :]
    added = (*change.digests, now_us, token.encode())
    return sealed(META_CHANGES, b"".join(_ENTRY.pack(*one) for one in [*kept, added]))


def is_whole(raw: Any) -> bool:
    """Whether a record has its checksum, whatever it says."""
    try:
        unsealed(META_CHANGES, raw)
    except ValueError:
        return False
    return True


def _entries(raw: Any) -> Iterator[tuple[bytes, bytes, int, bytes]]:
    if raw is None:
        return iter(())
    try:
        return _ENTRY.iter_unpack(unsealed(META_CHANGES, raw))
    except (ValueError, struct.error):
        return iter(())
