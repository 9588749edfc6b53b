"""The manifest: what a backup holds, written last, so that a backup without one is litter.

A backup is a folder `<id>` in its target, of files that are never changed:

    <id>/000001.chunk …    rows, then history, see `chunk`
    <id>/manifest.json     one line of JSON (`Manifest`), and one with its SHA-256

A manifest names every file with its bytes and its BLAKE3 (SHA-256 in format 1), and the manifest that it
continues with its SHA-256: so who trusts the last one of a chain can check all the rest. One that comes from a
stranger is held to the bounds below before anything else is looked at.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import re
import secrets

import msgspec

from ..backup_types import BackupCollection, BackupInfo
from ..collection_info import check_info, check_name, from_json
from ..errors import BackupDamaged, FormatMismatch, VecdbError
from ..layout import TOKEN
from ..types import CollectionInfo
from .digests import sha256_of
from .files import File
from .ids import is_id

FORMAT = 3
"""Since 3 parts may name an epoch, since 2 files have BLAKE3."""
_SHA256_FORMAT = 1
"""The earliest, with SHA-256 of files: half of a backup's processor time where there are no instructions for it."""
MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 256 << 20
MAX_FILE_BYTES = 256 << 20
"""A chunk has some 16 MiB, of earlier versions 32; it is larger by the last of its rows, of 53 MiB at most."""
MAX_NUMBER = 1 << 53
"""Of rows, commits and records. No collection gets so far, and one that a stranger's backup says is there can still be
written to: numbers are kept in 64 bits."""
END_US = 253_370_764_800_000_000
"""The year 9999, which no time reaches: whoever adds to one, or tells it in local time, has room."""

_ID_TIME = "%Y%m%dT%H%M%S.%fZ"
_FILE = re.compile(r"[0-9]{6,9}\.chunk")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a backup holds of one collection: rows [first_row, next_row), and what happened in commits
    (base_sequence, sequence], to be put behind what an earlier backup holds up to `since`.

    `since` is 0 for all of it. Moments between `since` and `base_sequence` were compacted away before
    the backup came. `base_row` rows had been given out at `base_sequence`, `live` counts the records at
    `sequence`, which was committed at `time_us` (0: unknown, no commit left in the log) in `epoch`
    (`vecdb.store.epochs`; empty: unknown).
    """

    name: str
    token: str
    settings: str
    since: int
    base_sequence: int
    sequence: int
    first_row: int
    base_row: int
    next_row: int
    live: int
    time_us: int
    rows: list[File]
    history: list[File]
    epoch: str = ""


class Parent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The backup that this one continues, and the SHA-256 of its manifest."""

    id: str
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole backup. `chain` is the id of the full backup that it goes back to. It shows all collections
    at `taken_us`."""

    format: int
    id: str
    chain: str
    parent: Parent | None
    taken_us: int
    collections: list[Part]
    aliases: dict[str, str]


def new_id(now: dt.datetime) -> str:
    """Ids sort by their time, in UTC. BackupDamaged for a time that none has."""
    made = f"{now.strftime(_ID_TIME)}-{secrets.token_hex(4)}"
    if not is_id(made):
        raise BackupDamaged(
            f"a new backup would be called {made}, which is no id: the newest in the target says by its name that it "
            "was taken at the end of the year 9998, or the clock of this machine does; remove that one, or set "
            "the clock"
        )
    return made


def begun_at(backup: str) -> dt.datetime:
    """When a backup was begun, by its id; for one whose time is none, such as a 13th month, 1970."""
    try:
        return dt.datetime.strptime(backup.partition("-")[0], _ID_TIME).replace(tzinfo=dt.UTC)
    except ValueError:
        return moment(0)


def encode(manifest: Manifest) -> tuple[bytes, str]:
    """(the file, the SHA-256 of its first line). BackupDamaged for one that `decode` would refuse: a target that
    holds it would tell of no other."""
    try:
        _check(manifest, manifest.id)
    except BackupDamaged as error:
        raise BackupDamaged(
            f"nothing was backed up, because nobody could read it ({error.message}); leave that collection out"
        ) from None
    line = msgspec.json.encode(manifest)
    digest = sha256_of(line)
    return line + b"\n" + digest.encode() + b"\n", digest


def decode(data: bytes, backup: str) -> tuple[Manifest, str]:
    """The manifest of the backup `backup`, checked, and its SHA-256. BackupDamaged, FormatMismatch."""
    line, _, rest = data.partition(b"\n")
    digest = sha256_of(line)
    if rest != digest.encode() + b"\n":
        raise _damaged(backup, "its manifest does not have the SHA-256 that stands under it")
    try:
        found = msgspec.json.decode(line, type=_Format).format
        if not _SHA256_FORMAT <= found <= FORMAT:
            raise FormatMismatch(
                f"backup {backup} has format {found}, this version reads {_SHA256_FORMAT} to {FORMAT}; restore it with the "
                "version of vecdb that wrote it",
                given=found,
                expected=FORMAT,
            )
        manifest = msgspec.json.decode(line, type=Manifest)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _damaged(backup, f"its manifest cannot be read: {error}") from None
    _check(manifest, backup)
    return manifest, digest


class _Format(msgspec.Struct):
    format: int


def settings_of(part: Part) -> CollectionInfo:
    """The settings of a collection, under the same rules as those of a new one."""
    read = _settings_again if len(part.settings) <= _REMEMBERED_CHARS else _settings
    return read(part.name, part.settings)


def _settings(name: str, settings: str) -> CollectionInfo:
    info = from_json(name, settings.encode())
    checked = check_info(
        info.name, info.dimension, info.metric, info.storage, info.index, info.target_recall,
        info.schema, info.description, info.quantization, info.vectors, info.device,
    )  # fmt: skip
    if not _is_time(info.created_at):
        raise BackupDamaged(
            f"collection {name!r:.80} was made at {info.created_at}, which is no time in UTC between 1970 and 9999"
        )
    return dataclasses.replace(checked, created_at=info.created_at)


_REMEMBERED_CHARS = 4_096
"""Longer ones of a stranger are not kept."""
_settings_again = functools.lru_cache(4_096)(_settings)
"""Each manifest of a chain has the settings once more, and to judge them takes half of the time of reading it."""


def _is_time(time: dt.datetime) -> bool:
    """Whether it is a moment, and one that every reader can tell in its own time zone."""
    return time.tzinfo is not None and 0 <= microseconds(time) < END_US


def size_of(manifest: Manifest) -> int:
    """Bytes of all files that it names."""
    return sum(file.bytes for part in manifest.collections for file in files_of(part))


def files_of(part: Part) -> list[File]:
    return [*part.rows, *part.history]


def describe(manifest: Manifest) -> BackupInfo:
    """The same for users."""
    return BackupInfo(
        manifest.id,
        "full" if manifest.parent is None else "incremental",
        manifest.chain,
        "" if manifest.parent is None else manifest.parent.id,
        moment(manifest.taken_us),
        size_of(manifest),
        sum(len(files_of(part)) for part in manifest.collections) + 1,
        [
            BackupCollection(
                part.name, part.sequence, part.since, part.base_sequence, part.live,
                part.next_row - part.first_row, sum(file.bytes for file in files_of(part)),
            )
            for part in manifest.collections
        ],
    )  # fmt: skip


def moment(time_us: int) -> dt.datetime:
    return _EPOCH + time_us * _MICROSECOND


def microseconds(time: dt.datetime) -> int:
    """The inverse, of an aware time."""
    return (time - _EPOCH) // _MICROSECOND


def _check(manifest: Manifest, backup: str) -> None:
    if manifest.id != backup or not is_id(backup) or not is_id(manifest.chain):
        raise _damaged(backup, f"its manifest is that of {manifest.id!r:.80}")
    parent = manifest.parent
    if (parent is None) != (manifest.chain == backup):
        raise _damaged(backup, "a full backup begins its own chain, others continue one")
    if parent is not None and not (is_id(parent.id) and _DIGEST.fullmatch(parent.sha256)):
        raise _damaged(backup, f"the backup before it is {parent.id!r:.80}")
    if not 0 <= manifest.taken_us < END_US:
        raise _damaged(backup, f"it was taken at {manifest.taken_us} us, which is no time")
    names, tokens = set(), set()
    files: set[str] = set()
    for part in manifest.collections:
        try:
            _check_part(part, parent is None, files)
            _check_digests(part, manifest.format)
            settings_of(part)
        except BackupDamaged as error:
            raise _damaged(backup, error.message) from None
        except VecdbError as error:
            text = f"the settings of {part.name!r:.80} are not valid: {error.message}"
            raise _damaged(backup, text) from None
        names.add(part.name)
        tokens.add(part.token)
    if len(names) != len(manifest.collections) or len(tokens) != len(manifest.collections):
        raise _damaged(backup, "it holds a collection twice")
    for alias, name in manifest.aliases.items():
        try:
            check_name(alias)
        except VecdbError as error:
            raise _damaged(backup, error.message) from None
        if name not in names or alias in names:
            raise _damaged(backup, f"alias {alias} points to {name!r:.80}, which it does not hold")


def _check_part(part: Part, full: bool, files: set[str]) -> None:
    name = f"collection {part.name!r:.80}"
    if not TOKEN.fullmatch(part.token) or (full and part.since):
        raise BackupDamaged(f"{name} does not begin where a full backup does")
    if part.epoch and not TOKEN.fullmatch(part.epoch):  # as random, and as long
        raise BackupDamaged(f"{name} names the epoch {part.epoch!r:.80}, which cannot be")
    in_order = (
        0 <= part.since <= part.base_sequence <= part.sequence <= MAX_NUMBER
        and 0 <= part.first_row <= part.base_row <= part.next_row <= MAX_NUMBER
        and 0 <= part.live <= part.next_row
        and (part.since > 0 or part.first_row == 0)
        and abs(part.time_us) < END_US
    )
    if not in_order:
        raise BackupDamaged(f"{name} has rows or commits that are not in order, or beyond all")
    row = part.first_row
    for file in part.rows:
        if file.first != row or not row < file.end <= part.next_row:
            raise BackupDamaged(f"{name} jumps from row {row} to {file.first} in its files")
        row = file.end
        # Each row takes a bit at least, so this also bounds what memory a restore asks for.
        if file.end - file.first > 8 * file.bytes:
            raise BackupDamaged(f"{name} has more rows in file {file.name!r:.80} than fit into it")
    if row != part.next_row:
        raise BackupDamaged(f"{name} has rows up to {part.next_row}, its files up to {row}")
    for file in files_of(part):
        if not _FILE.fullmatch(file.name) or file.name in files:
            raise BackupDamaged(f"{name} names the file {file.name!r:.80}, which cannot be")
        files.add(file.name)
        if not 0 < file.bytes <= MAX_FILE_BYTES:
            raise BackupDamaged(f"{name}: file {file.name} has no possible size")


def _check_digests(part: Part, form: int) -> None:
    """Each file has the digest of the manifest's format, and no other."""
    for file in files_of(part):
        digest, other = file.blake3, file.sha256
        if form == _SHA256_FORMAT:
            digest, other = other, digest
        if other or not _DIGEST.fullmatch(digest):
            raise BackupDamaged(
                f"collection {part.name!r:.80}: file {file.name} has no possible digest"
            )


def _damaged(backup: str, what: str) -> BackupDamaged:
    return BackupDamaged(
        f"backup {backup:.80} is damaged or was not written by vecdb: {what}", backup=backup[:80]
    )
