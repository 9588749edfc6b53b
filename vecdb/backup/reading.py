"""Reading the chunks of a collection: its history up to a moment, then the rows that are live then.

What is read is not believed: sizes, order, checksums of files and of rows are compared on the way.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import BackupDamaged, BackupNotFound
from ..store import Shape, StoredRows
from . import chunk
from .chains import Step
from .files import File, read_ahead, read_file
from .target import Target

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]

_FEW_ROWS = 65_536
_ROW_BYTES = 16
"""Hardly a row takes less: a file of more rows is looked through before memory is asked for them, as it costs nobody
anything to claim rows in a file that takes no room on the disk."""
_HISTORY = frozenset(("purged", "dead_rows", "dead_sequences", "times_us", "end_rows"))


class History:
    """What the last of some steps says of the commits in (base_sequence, sequence], and what all say of
    deaths. Takes 16 bytes a dead row and a commit, and a byte a row."""

    def __init__(
        self, target: Target, steps: Sequence[Step], before: History | None = None
    ) -> None:
        """Reads the history of all steps, or of the last where `before` is that of those before it."""
        new = steps if before is None else steps[-1:]
        for step in new:
            _must_hold_its_rows(target, step)
        self._last = steps[-1].part
        self._dead: list[tuple[Rows, Rows]] = []
        self._purged = np.zeros(self._last.next_row, np.bool_)
        self.times_us = self._end_rows = np.empty(0, np.int64)
        if before is not None:
            # What died before the last step is not live at any moment of it.
            live = before.live_at(before._last.sequence)
            self._purged[: len(live)] = ~live
        for step in new:
            self._read(target, step)
        self._check_log(steps[-1].backup)

    def _read(self, target: Target, step: Step) -> None:
        part, last = step.part, step.part is self._last
        log: list[tuple[int, Rows, Rows]] = []
        for file in part.history:
            for group in chunk.groups(read_file(target, step.backup, file)):
                group.must_have_only(_HISTORY)
                rows, sequences = _numbers(group, "dead_rows"), _numbers(group, "dead_sequences")
                if len(rows) != len(sequences) or not _within(rows, 0, part.next_row):
                    raise _damaged(step, "names dead rows that it does not have")
                if not _within(sequences, part.since + 1, part.sequence + 1):
                    raise _damaged(step, "has rows die in commits that it does not have")
                self._dead.append((rows, sequences))
                if group.has("purged"):
                    # Those of earlier backups too: one without commits of its own names none.
                    if group.end > part.next_row:
                        raise _damaged(step, "has purged rows that were never given out")
                    self._purged[group.first : group.end] |= group.bits(
                        "purged", group.end - group.first
                    )
                if group.has("times_us") and last:
                    times, ends = group.array("times_us", "<i8"), _numbers(group, "end_rows")
                    if len(times) != len(ends) or len(times) != group.end - group.first:
                        raise _damaged(step, "has a log whose columns differ in length")
                    log.append((group.first, times.astype(np.int64), ends))
        if last and log:
            self._join(log, step)

    def _join(self, log: list[tuple[int, Rows, Rows]], step: Step) -> None:
        """Puts the pieces of the log together, from the commit after the base on."""
        base, expected = step.part.base_sequence, 0
        times: list[Rows] = []
        ends: list[Rows] = []
        for first, some_times, some_ends in log:
            if expected and first != expected:
                # What lies before was compacted away while the backup was taken.
                times, ends = [], []
            expected = first + len(some_times)
            skip = max(0, base + 1 - first)
            times.append(some_times[skip:])
            ends.append(some_ends[skip:])
        self.times_us, self._end_rows = np.concatenate(times), np.concatenate(ends)

    def _check_log(self, backup: str) -> None:
        part = self._last
        edges = np.concatenate(([part.base_row], self._end_rows))
        whole = len(self._end_rows) == part.sequence - part.base_sequence
        if not whole or (np.diff(edges) < 0).any() or edges[-1] != part.next_row:
            raise BackupDamaged(
                f"backup {backup}: the log of collection {part.name!r} does not lead from commit "
                f"{part.base_sequence} to {part.sequence}",
                backup=backup,
            )

    def sequence_at(self, time_us: int) -> int:
        """The last commit at or before a time. BackupNotFound when it was compacted away."""
        part = self._last
        # The clock may have been set back: a commit counts as no earlier than those before it.
        times = np.maximum.accumulate(self.times_us) if len(self.times_us) else self.times_us
        found = part.base_sequence + int(np.searchsorted(times, time_us, side="right"))
        if found == part.base_sequence > part.since:
            raise BackupNotFound(
                f"collection {part.name!r}: what it was at that time had been compacted away when it was "
                f"backed up; it can be restored from commit {part.base_sequence} on. Back up more "
                "often, or keep more history with the setting history_s",
                sequence=part.base_sequence,
            )
        return found

    def rows_at(self, sequence: int) -> int:
        """Rows that had been given out after a commit of the last step, from its base on."""
        n = sequence - self._last.base_sequence
        return int(self._end_rows[n - 1]) if n else self._last.base_row

    def live_at(self, sequence: int) -> Mask:
        """Which of the rows given out by then were live after a commit, from the base of the last step on."""
        n_rows = self.rows_at(sequence)
        live: Mask = ~self._purged[:n_rows]
        for rows, sequences in self._dead:
            dead = rows[sequences <= sequence]
            live[dead[dead < n_rows]] = False
        return live


def rows_of(
    target: Target, step: Step, shape: Shape, n_rows: int
) -> Generator[tuple[StoredRows, int]]:
    """The rows below `n_rows` that a step holds, in order, each group with the bytes read so far.

    Files are read ahead by a thread, which ends with this generator: whoever may stop early closes it.
    """
    done = 0
    wanted = list(itertools.takewhile(lambda file: file.first < n_rows, step.part.rows))
    for file, data in read_ahead(target, step.backup, wanted):
        done += len(data)
        for group in _groups_of(step, file, data):
            yield chunk.unpack_rows(group, shape), done


def _groups_of(step: Step, file: File, data: bytes) -> Iterator[chunk.Group]:
    """The groups of a file, which must be of its rows, one behind the other."""
    row = file.first
    for group in chunk.groups(data):
        if group.first != row or group.end > file.end:
            raise _damaged(step, f"has rows {group.first} to {group.end} where {row} comes next")
        row = group.end
        yield group
    if row != file.end:
        raise _damaged(step, f"has rows up to {row} in a file that should end at {file.end}")


def _must_hold_its_rows(target: Target, step: Step) -> None:
    """BackupDamaged unless files of strikingly many rows have them."""
    for file in step.part.rows:
        rows = file.end - file.first
        if rows > _FEW_ROWS and rows * _ROW_BYTES > file.bytes:
            for group in _groups_of(step, file, read_file(target, step.backup, file)):
                chunk.held_in(group)


def _numbers(group: chunk.Group, name: str) -> Rows:
    return group.array(name, "<u8").astype(np.int64)


def _within(numbers: Rows, low: int, high: int) -> bool:
    return not len(numbers) or bool(numbers.min() >= low and numbers.max() < high)


def _damaged(step: Step, what: str) -> BackupDamaged:
    return BackupDamaged(
        f"backup {step.backup}: collection {step.part.name!r} {what}", backup=step.backup
    )
