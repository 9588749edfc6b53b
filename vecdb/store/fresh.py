"""Ids of the newest rows in memory: those that the table `keys` does not hold yet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..stopping import Interrupt

ReadIds = Callable[[int, int], list[bytes]]
"""(start, stop) -> ids of these rows."""

LEAST_FRESH_ROWS = 4_096
MOST_FRESH_ROWS = 262_144
"""Bounds of `fresh_limit`: below the first the table is small, at the second they take 45 MB."""


def fresh_limit(n_rows: int) -> int:
    """Rows that may wait for a round of the table `keys`, by the rows of the collection.

    The more wait, the more of them fall on one page of the table: with a sixteenth, one page is
    written for about five rows at any size.
    """
    return min(max(LEAST_FRESH_ROWS, n_rows // 16), MOST_FRESH_ROWS)


class _Span:
    """The newest row of each id among rows [first, stop), and the one before it."""

    def __init__(self, first: int) -> None:
        self.first = self.stop = first
        self.rows: dict[bytes, int] = {}
        self.before: dict[int, int] = {}
        """Row to the earlier row of the span with the same id."""

    def extend(self, ids: Sequence[bytes]) -> None:
        """Takes the ids of the rows from `stop` on. Those who look meanwhile find what was there. One that broke in the
        middle may be repeated."""
        first, stop = self.stop, self.stop + len(ids)
        if self.lacks(ids) and len(set(ids)) == len(ids):
            self.rows.update(zip(ids, range(first, stop), strict=True))
        else:
            for row, record_id in enumerate(ids, first):
                earlier = self.rows.get(record_id)
                if earlier is not None and earlier < row:
                    self.before[row] = earlier
                self.rows[record_id] = row
        self.stop = stop

    def lacks(self, ids: Sequence[bytes]) -> bool:
        """Whether none of the ids is here."""
        return self.rows.keys().isdisjoint(ids)

    def newest(self, record_id: bytes, stop: int) -> int:
        """The newest row below `stop` with this id, -1 without one."""
        row = self.rows.get(record_id, -1)
        while row >= stop:
            row = self.before.get(row, -1)
        return row

    def cut(self, first: int) -> _Span:
        """The part from row `first` on."""
        part = _Span(first)
        part.stop = max(first, self.stop)
        part.rows = {i: row for i, row in self.rows.items() if row >= first}
        part.before = {row: b for row, b in self.before.items() if b >= first}
        return part


class _Round(NamedTuple):
    """A round of the table `keys`: the rows [first, end), in the order of their ids."""

    first: int
    end: int
    ids: list[bytes]
    rows: NDArray[np.int64]


class _Spans(NamedTuple):
    """What covers all fresh rows; readers take it whole."""

    older: _Span | None
    """The rows of the round that is under way, where there is one: they are let go of as a whole."""
    newer: _Span
    """Those behind it."""

    @property
    def first(self) -> int:
        return self.newer.first if self.older is None else self.older.first

    def without(self, first: int) -> _Spans:
        """Those that cover the rows from `first` on, and as few others as costs little."""
        older, newer = self
        if older is not None and first >= older.stop:
            older = None
        return _Spans(older, newer.cut(first) if first > newer.first else newer)


class FreshIds:
    """Committed rows only; any thread may ask, for any moment.

    Follows the commits of this process (`follow`), and reads what it has not been told. Takes some
    170 bytes a row.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans = _Spans(None, _Span(0))
        self._round = _Round(0, 0, [], np.empty(0, np.int64))

    @property
    def is_small(self) -> bool:
        """Whether they are few, so that reading them again takes some milliseconds at most."""
        older, newer = self._spans
        return len(newer.rows) + (0 if older is None else len(older.rows)) <= LEAST_FRESH_ROWS

    def rows(self, ids: Sequence[bytes], first: int, stop: int, read: ReadIds) -> list[int]:
        """The newest of the rows [first, stop) with each id, -1 where there is none; 0.1 us an id, and as much again
        during a round.

        `read` gives the ids of rows as the caller's moment sees them.
        """
        spans = self._covering(first, stop, read)
        if spans.newer.lacks(ids) and (spans.older is None or spans.older.lacks(ids)):
            return [-1] * len(ids)  # as on inserts: half the time
        found = _newest(spans.newer, ids, stop)
        if spans.older is not None:
            # Rows behind others are newer.
            found = list(map(max, found, _newest(spans.older, ids, stop)))
        if spans.first < first:
            found = [row if row >= first else -1 for row in found]
        return found

    def follow(self, first: int, start: int, ids: Sequence[bytes]) -> None:
        """After a commit: the rows from `start` on have these ids, those below `first` are keyed."""
        with self._lock:
            spans = self._spans
            if first > spans.first:
                spans = self._spans = spans.without(first)
                self._round = _Round(0, 0, [], np.empty(0, np.int64))
            known = spans.newer.stop - start
            if 0 <= known < len(ids):
                spans.newer.extend(ids[known:] if known else ids)

    def in_order(
        self, first: int, end: int, read: ReadIds
    ) -> tuple[list[bytes], NDArray[np.int64]]:
        """The ids whose newest row is one of the rows [first, end), ascending, and these rows; for the
        lane only.

        Kept until the round is over. An id that is written again meanwhile stays in it.
        """
        if (self._round.first, self._round.end) != (first, end):
            spans = self._covering(first, end, read)
            with self._lock:
                older, newer = spans
                if older is None and (newer.first, newer.stop) == (first, end):
                    held = newer.rows
                    if spans is self._spans:
                        # What comes now is kept apart: to part the two when the round is over took 11 ms of a commit
                        # with 62,500 ids in each.
                        self._spans = _Spans(newer, _Span(end))
                else:
                    held = newer.rows if older is None else {**older.rows, **newer.rows}
                    held = {i: row for i, row in held.items() if first <= row < end}
                ids = sorted(held)
                rows = np.fromiter(map(held.__getitem__, ids), np.int64, len(ids))
            self._round = _Round(first, end, ids, rows)
        return self._round.ids, self._round.rows

    def faults(self, first: int, stop: int, read: ReadIds, interrupt: Interrupt) -> Iterator[str]:
        """What is held of the rows [first, stop) that is not as `read` has it; what is not held yet is no fault."""
        spans = self._spans
        first, stop = max(first, spans.first), min(stop, spans.newer.stop)
        both = [span for span in (spans.older, spans.newer) if span is not None]
        # At once, since writers go on: nobody adds to a list of a dict's keys.
        held = [list(span.rows) for span in both]
        if first >= stop:
            return
        newest: dict[bytes, int] = {}
        for start in range(first, stop, LEAST_FRESH_ROWS):
            interrupt()
            end = min(start + LEAST_FRESH_ROWS, stop)
            newest.update(zip(read(start, end), range(start, end), strict=True))
        newest.pop(b"", None)  # purged
        ids = list(newest)
        found = map(max, *[_newest(span, ids, stop) for span in both], repeat(-1))
        wrong = [i for i, row in zip(ids, found, strict=False) if row != newest[i]]
        for span, names in zip(both, held, strict=True):
            wrong += [i for i in names if span.newest(i, stop) >= first and i not in newest]
        if wrong:
            yield f"id {wrong[0]!r} is held with another row than it is stored with, {len(wrong)} such ids"

    def _covering(self, first: int, stop: int, read: ReadIds) -> _Spans:
        spans = self._spans
        if spans.first <= first and stop <= spans.newer.stop:
            return spans
        if first < spans.first:
            # A moment from before the last round ended: seldom, and gone when it has been read.
            span = _Span(first)
            span.extend(read(first, stop))
            return _Spans(None, span)
        with self._lock:
            spans = self._spans
            if first > spans.first:
                spans = self._spans = spans.without(first)
            if stop > spans.newer.stop:
                spans.newer.extend(read(spans.newer.stop, stop))
            return spans


def _newest(span: _Span, ids: Sequence[bytes], stop: int) -> list[int]:
    """The newest row below `stop` with each id in a span, -1 without one."""
    found = list(map(span.rows.get, ids, repeat(-1)))
    if max(found, default=-1) >= stop:
        found = [span.newest(i, stop) for i in ids]
    return found
