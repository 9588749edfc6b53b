"""Copying one collection: its rows, then its history, from the store into files of a backup.

Done in this process for what is small, else in one of its own (`child`): see there why.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import Corrupted, Unavailable
from ..store import LogPiece, Reader, copy_deaths, copy_log, copy_rows, log_faults
from ..store.tables import Rows
from . import chunk
from .files import File
from .sink import Sink

_GROUP_BYTES = 5 << 18
"""Copied in one transaction, about 2 ms."""
_ENTRIES = 16_384
_MASK_ROWS = 1 << 22

Read = Callable[[], AbstractContextManager[Reader]]
Share = tuple[int, int]
"""Rows [begin, end), to be copied by one process."""


class Job(msgspec.Struct, frozen=True):
    """What of a collection is to be copied: commits (since, sequence], rows [first_row, next_row)."""

    name: str
    since: int
    sequence: int
    first_row: int
    next_row: int


class Copied(msgspec.Struct, frozen=True):
    """The files made, and what the store said at the end; see `manifest.Part`."""

    rows: list[File]
    history: list[File]
    base_sequence: int
    base_row: int
    time_us: int


def copy(
    read: Read,
    job: Job,
    shares: Iterable[Share],
    sink: Sink,
    copied: Callable[[int], None],
    *,
    history: bool,
) -> Copied:
    """Copies by transactions that `read` gives the rows of `shares`, one after the other, a file of rows of each at
    least, then history if it is wanted. `copied` is told how many rows have been.

    Raises Corrupted when a row fails its checksum, Unavailable when another process has compacted what
    was to be copied. Who copies history must begin after all rows are copied: rows that are purged meanwhile are told by it.
    """
    count = 0
    for row, stop in shares:
        while row < stop:
            end = min(row + chunk.MAX_GROUP_ROWS, stop)
            with read() as reader:
                piece = copy_rows(reader, row, end, _GROUP_BYTES)
                damaged, group = piece.damaged(), chunk.pack_rows(piece)
            if len(damaged):
                raise Corrupted(
                    f"row {damaged[0]} of collection {job.name!r} fails its checksum, and so do "
                    f"{len(damaged) - 1} more near it; run check. No backup was written: it would hide the loss",
                    row=int(damaged[0]),
                )
            count += piece.end - row
            row = piece.end
            copied(count)
            sink.add(group, piece.first, row)
        sink.end_file(row)
    rows = sink.take()
    time_us = _copy_history(read, job, sink) if history else 0
    with read() as reader:
        horizon = reader.horizon()
        base = max(job.since, horizon)
        base_row = job.first_row if base == job.since else job.next_row
        if job.since < base < job.sequence:
            base_row = next(reader.log(base)).first_row
    if horizon > job.sequence:
        raise Unavailable(
            f"collection {job.name!r} was compacted by another process behind commit {job.sequence}, which "
            "the backup was of; repeat it, or let that process take it"
        )
    return Copied(rows, sink.take(), base, base_row, time_us)


def _copy_history(read: Read, job: Job, sink: Sink) -> int:
    """Deaths, commits and purged rows, in this order: a row that is purged meanwhile is in the last if it
    is not in the first. The time of the newest commit, 0 where the log has none."""
    if job.sequence == job.since:
        return 0
    past, row = _Past(job), 0
    with read() as reader:
        past.must_hold(next(log_faults(reader, after=job.since), None))
    while row >= 0:
        with read() as reader:
            rows, sequences, row = copy_deaths(reader, row, _ENTRIES)
            newest = reader.state().sequence
        if (sequences > newest).any():
            past.must_hold(f"a row died in commit {sequences.max()}, the newest is {newest}")
        fresh = (sequences > job.since) & (sequences <= job.sequence) & (rows < job.next_row)
        past.died(rows[fresh], sequences[fresh])
        if fresh.any():
            sections = {
                "dead_rows": rows[fresh].astype("<u8"),
                "dead_sequences": sequences[fresh].astype("<u8"),
            }
            sink.add(chunk.pack(0, job.next_row, sections), 0, 0)
    time_us, at = 0, job.since
    while at < job.sequence:
        with read() as reader:
            log = copy_log(reader, at, job.sequence, _ENTRIES)
        if log is None:
            break
        past.logged(log)
        at = log.sequence + len(log.times_us) - 1
        time_us = int(log.times_us[-1]) if at == job.sequence else 0
        sections = {"times_us": log.times_us, "end_rows": log.end_rows.astype("<u8")}
        sink.add(chunk.pack(log.sequence, at + 1, sections), 0, 0)
    edges = [*range(0, job.next_row, _MASK_ROWS), job.next_row]
    for start, stop in itertools.pairwise(edges):
        with read() as reader:
            purged = reader.purged_mask(start, stop)
        past.purged(start, purged)
        if purged.any():
            bits = np.packbits(purged, bitorder="little")
            sink.add(chunk.pack(start, stop, {"purged": bits}), 0, 0)
    past.must_agree()
    return time_us


class _Past:
    """What is copied of the past of a collection, to be compared when all of it is known: it may be damaged where no row
    is, and a backup of it would restore another moment than it says, or none. 16 bytes a row that died."""

    def __init__(self, job: Job) -> None:
        self._job = job
        none: Rows = np.empty(0, np.int64)
        self._dead: list[tuple[Rows, Rows]] = [(none, none)]
        self._told: list[tuple[Rows, Rows]] = [(none, none)]
        self._gone: list[Rows] = [none]
        self._first = self._next = job.since + 1
        self._end_row = job.first_row

    def must_hold(self, fault: str | None) -> None:
        """Corrupted for a fault."""
        if fault is not None:
            raise Corrupted(
                f"collection {self._job.name!r}: {fault}; run check. No backup was written: it would hide the loss"
            )

    def died(self, rows: Rows, sequences: Rows) -> None:
        """Rows that died in the commits of the job, which are not purged."""
        if len(rows):
            self._dead.append((rows, sequences))

    def logged(self, log: LogPiece) -> None:
        """What the log says next; what is missing before it was cut off meanwhile."""
        if log.sequence != self._next:
            del self._told[1:]
            self._first, self._end_row = log.sequence, log.first_row
        if log.first_row != self._end_row:
            self.must_hold(
                f"commit {log.sequence} starts at row {log.first_row}, the one before it ended at {self._end_row}"
            )
        self._next = log.sequence + len(log.times_us)
        self._end_row = int(log.end_rows[-1])
        if len(log.died):
            self._told.append((log.died, log.died_in))

    def purged(self, start: int, mask: NDArray[np.bool_]) -> None:
        """Which rows from `start` on are purged."""
        told = np.concatenate([rows for rows, _ in self._told])
        inside = told[(told >= start) & (told < start + len(mask))]
        self._gone.append(inside[mask[inside - start]])

    def must_agree(self) -> None:
        """Corrupted where log, dead rows and numbers of rows do not."""
        job = self._job
        if self._next == job.since + 1:
            return  # all of the log was cut off
        if self._next == job.sequence + 1 and self._end_row != job.next_row:
            self.must_hold(f"the log ends at row {self._end_row}, there are {job.next_row}")
        dead, died_in = (np.concatenate(part) for part in zip(*self._dead, strict=True))
        told, told_in = (np.concatenate(part) for part in zip(*self._told, strict=True))
        known = died_in >= self._first
        dead, died_in = dead[known], died_in[known]
        kept = np.isin(told, dead) | ~np.isin(told, np.concatenate(self._gone))
        told, told_in = told[kept], told_in[kept]
        one, other = np.lexsort((died_in, dead)), np.lexsort((told_in, told))
        same = np.array_equal(dead[one], told[other])
        if not same or not np.array_equal(died_in[one], told_in[other]):
            self.must_hold("the dead rows of the log and of the table differ")
