# A copy of vecdb/backup_types.py, made by tools/generate.py: change it there.
"""The dataclasses of backups: what their calls take and return, the same embedded and over the wire.

The file stands alone on purpose: the client ships a copy of it, and `make check` compares the two.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

BackupTarget = str | os.PathLike[str] | Any
"""A folder, a URL such as `s3://bucket/path`, or a store of obstore."""

BackupKind = Literal["auto", "full", "incremental"]


@dataclass(frozen=True, slots=True)
class BackupCollection:
    """What a backup holds of one collection."""

    name: str
    sequence: int
    """Commit that it shows the collection at."""
    since: int
    """Commit that the backup before it shows it at; 0 where this one holds everything."""
    oldest_sequence: int
    """It can be restored as of any commit from this one to `sequence`."""
    count: int
    """Live records at `sequence`."""
    rows: int
    """Rows that this backup holds; those of the backups before it come on top."""
    bytes: int


@dataclass(frozen=True, slots=True)
class BackupInfo:
    """A complete backup in a target."""

    id: str
    """Begins with its time in UTC, so that ids sort by age."""
    kind: Literal["full", "incremental"]
    chain: str
    """Id of the full backup that it goes back to; its own where it is one."""
    parent: str
    """Id of the backup that it continues; empty for a full one."""
    taken_at: dt.datetime
    """The moment it shows: every commit acknowledged before its call is in it."""
    bytes: int
    files: int
    collections: Sequence[BackupCollection] = ()


@dataclass(frozen=True, slots=True)
class BackupProgress:
    """How far a backup, a verification or a restore has come."""

    stage: Literal["copy", "verify", "restore"]
    collection: str
    """The one at work; for `verify` the id of the backup."""
    rows: int
    """Rows done of this collection; 0 for `verify`."""
    total_rows: int
    bytes: int
    """Bytes written or read so far, of everything; for `restore` of this collection."""


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What a verification of backups found. `ok` means that each can be restored."""

    ok: bool
    backups: int
    """Complete backups that were looked at."""
    files: int
    bytes: int
    problems: Sequence[str] = ()
    """One sentence a fault, at most 100."""
    incomplete: Sequence[str] = ()
    """Ids of those without a manifest, which nobody can restore and `ok` says nothing of: under way, interrupted, or
    complete until their manifest was lost, which nothing else tells where none continues them. `prune_backups` removes old ones."""


@dataclass(frozen=True, slots=True)
class RestoredCollection:
    """A collection that a restore has made."""

    name: str
    source: str
    """Its name in the backup."""
    sequence: int
    """Commit that it was restored at; ids and row numbers are those of then."""
    count: int
    """Live records."""


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """What a restore has made."""

    backup: str
    """Id of the newest backup that was read."""
    collections: Sequence[RestoredCollection]
    aliases: Mapping[str, str] = field(default_factory=dict)


Progress = Callable[[BackupProgress], None]
"""Called after each file, from the thread of the call; what it raises ends the call."""


def unwatched(_: BackupProgress) -> None:
    """The progress of a call that nobody watches."""
