"""Taking a backup of open collections while others read and write.

What is copied is fixed at the start: of each collection the rows and the deaths up to one commit. Rows
never change, so they are copied in many short transactions, and a pin keeps compaction from what is
still to come. Writers and readers wait for none of it.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from ..backup_types import BackupInfo, BackupKind, BackupProgress, Progress
from ..core import Core
from ..errors import BackupNotFound, Closed, Corrupted, InvalidArgument, Unavailable
from ..store import Reader, copy_deaths, copy_log, copy_rows
from . import chunk, manifest
from .chains import complete, newest_of, part_before
from .manifest import Manifest, Parent, Part
from .sink import Sink
from .target import Target

_GROUP_BYTES = 2 << 20
"""Copied in one transaction, about 2 ms."""
_ENTRIES = 16_384
_MASK_ROWS = 1 << 22


@dataclass(frozen=True, slots=True)
class Source:
    """A collection to back up. `token` names it through renames, and no other ever; `gone` says whether it
    was dropped meanwhile."""

    name: str
    token: str
    core: Core
    gone: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class _Begun:
    """What of a collection is to be copied: commits (since, sequence], rows [first_row, next_row)."""

    source: Source
    since: int
    sequence: int
    first_row: int
    next_row: int
    live: int
    time_us: int


def take(
    target: Target,
    sources: Sequence[Source],
    aliases: Mapping[str, str],
    *,
    kind: BackupKind = "auto",
    verify: bool = True,
    limit_bytes_s: float | None = None,
    progress: Progress = lambda _: None,
) -> BackupInfo:
    """Backs up the sources as of now. See `Database.backup`."""
    if kind not in ("auto", "full", "incremental"):
        raise InvalidArgument(f"kind must be auto, full or incremental, given {kind!r:.80}")
    if limit_bytes_s is not None and not limit_bytes_s > 0:
        raise InvalidArgument(f"limit_bytes_s must be above 0, given {limit_bytes_s!r:.80}")
    before = None
    if kind != "full":
        before = newest_of(target, {source.token for source in sources})
    if before is None and kind == "incremental":
        raise BackupNotFound(
            f"{target.name} holds no backup of these collections that could be continued; take a full one"
        )
    now = dt.datetime.now(dt.UTC)
    # Backups are ordered by their times, whatever happens to the clock.
    older = [manifest.begun_at(one) for one in complete(target)]
    now = max([now, *(time + dt.timedelta(microseconds=1) for time in older)])
    backup = manifest.new_id(now)
    doing = _Doing(progress)
    with ExitStack() as pins:
        begun = [_begin(target, source, before, pins) for source in sources]
        taken_us = int(now.timestamp() * 1e6)
        sink = Sink(target, backup, verify=verify, limit_bytes_s=limit_bytes_s, done=doing.wrote)
        try:
            parts = [part for one in begun if (part := _copied(one, sink, doing)) is not None]
            sink.close()
            held = {part.name for part in parts}
            whole = Manifest(
                manifest.FORMAT,
                backup,
                backup if before is None else before[0].chain,
                None if before is None else Parent(before[0].id, before[1]),
                taken_us,
                parts,
                {alias: name for alias, name in aliases.items() if name in held},
            )
            _finish(target, whole, verify=verify)
        except BaseException:
            sink.close()
            target.delete_folder(backup)
            raise
    return manifest.describe(whole)


class _Doing:
    """Tells how far it has come."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.name = ""
        self.rows = self.total_rows = 0

    def wrote(self, size: int) -> None:
        self._progress(BackupProgress("copy", self.name, self.rows, self.total_rows, size))


def _finish(target: Target, whole: Manifest, *, verify: bool) -> None:
    """Writes the manifest, once all that it names is durable."""
    data, _ = manifest.encode(whole)
    path = f"{whole.id}/{manifest.MANIFEST_FILE}"
    if any(manifest.files_of(part) for part in whole.collections):
        target.sync(whole.id)
    target.write(path, [data])
    target.sync(whole.id)
    if verify:
        manifest.decode(target.read(path, len(data), fresh=True), whole.id)


def _begin(
    target: Target, source: Source, before: tuple[Manifest, str] | None, pins: ExitStack
) -> _Begun:
    pin = pins.enter_context(source.core.pins.hold())
    part = None if before is None else part_before(target, before[0], source.token)
    with source.core.read() as reader:
        sequence, next_row, live = reader.state()
        if part is not None and not _continues(reader, part):
            part = None
    since, first_row = (0, 0) if part is None else (part.sequence, part.next_row)
    time_us = part.time_us if part is not None and part.sequence == sequence else 0
    pin.sequence = since
    return _Begun(source, since, sequence, first_row, next_row, live, time_us)


def _continues(reader: Reader, part: Part) -> bool:
    """Whether the collection is still that of the backup, and has not been set back since, by a copy of
    its files, and gone another way."""
    sequence, next_row, _ = reader.state()
    if sequence < part.sequence or next_row < part.next_row:
        return False
    commit = next(reader.log(part.sequence - 1), None) if part.sequence else None
    if commit is None or commit.sequence != part.sequence or not part.time_us:
        return True
    return (commit.time_us, commit.end_row) == (part.time_us, part.next_row)


def _copied(begun: _Begun, sink: Sink, doing: _Doing) -> Part | None:
    """The files of one collection; None when it has been dropped meanwhile."""
    doing.name = begun.source.name
    doing.rows, doing.total_rows = 0, begun.next_row - begun.first_row
    try:
        return _copy(begun, sink, doing)
    except Closed:
        if not begun.source.gone():
            raise
        sink.take(0)
        return None


def _copy(begun: _Begun, sink: Sink, doing: _Doing) -> Part:
    core, settings = begun.source.core, begun.source.core.store.settings
    row = begun.first_row
    while row < begun.next_row:
        end = min(row + chunk.MAX_GROUP_ROWS, begun.next_row)
        with core.read() as reader:
            piece = copy_rows(reader, row, end, _GROUP_BYTES)
        damaged = piece.damaged()
        if len(damaged):
            raise Corrupted(
                f"row {damaged[0]} of collection {begun.source.name!r} fails its checksum, and so do "
                f"{len(damaged) - 1} more near it; run check. No backup was written: it would hide the loss",
                row=int(damaged[0]),
            )
        row = piece.end
        doing.rows = row - begun.first_row
        sink.add(chunk.pack_rows(piece), piece.first, row)
    rows = sink.take(row)
    time_us = _copy_history(begun, sink)
    with core.read() as reader:
        horizon = reader.horizon()
        base = max(begun.since, horizon)
        base_row = begun.first_row if base == begun.since else begun.next_row
        if begun.since < base < begun.sequence:
            base_row = next(reader.log(base)).first_row
    if horizon > begun.sequence:
        raise Unavailable(
            f"collection {begun.source.name!r} was compacted by another process behind commit "
            f"{begun.sequence}, which the backup was of; repeat it, or let that process take it"
        )
    return Part(
        begun.source.name, begun.source.token, settings.decode(), begun.since, base, begun.sequence,
        begun.first_row, base_row, begun.next_row, begun.live, time_us or begun.time_us,
        rows, sink.take(0),
    )  # fmt: skip


def _copy_history(begun: _Begun, sink: Sink) -> int:
    """Deaths, commits and purged rows, in this order: a row that is purged meanwhile is in the last if it
    is not in the first. The time of the newest commit, 0 where the log has none."""
    core = begun.source.core
    if begun.sequence == begun.since:
        return 0
    row = 0
    while row >= 0:
        with core.read() as reader:
            rows, sequences, row = copy_deaths(reader, row, _ENTRIES)
        fresh = (sequences > begun.since) & (sequences <= begun.sequence) & (rows < begun.next_row)
        if fresh.any():
            sections = {
                "dead_rows": rows[fresh].astype("<u8"),
                "dead_sequences": sequences[fresh].astype("<u8"),
            }
            sink.add(chunk.pack(0, begun.next_row, sections), 0, 0)
    time_us, at = 0, begun.since
    while at < begun.sequence:
        with core.read() as reader:
            log = copy_log(reader, at, begun.sequence, _ENTRIES)
        if log is None:
            break
        at = log.sequence + len(log.times_us) - 1
        time_us = int(log.times_us[-1]) if at == begun.sequence else 0
        sections = {"times_us": log.times_us, "end_rows": log.end_rows.astype("<u8")}
        sink.add(chunk.pack(log.sequence, at + 1, sections), 0, 0)
    edges = [*range(0, begun.next_row, _MASK_ROWS), begun.next_row]
    for start, stop in itertools.pairwise(edges):
        with core.read() as reader:
            purged = reader.purged_mask(start, stop)
        if purged.any():
            bits = np.packbits(purged, bitorder="little")
            sink.add(chunk.pack(start, stop, {"purged": bits}), 0, 0)
    return time_us
