"""Ids of the newest rows in memory: those that the table `keys` does not hold yet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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
        """Takes the ids of the rows from `stop` on. Those who look meanwhile find what was there."""
        first, stop = self.stop, self.stop + len(ids)
        if self.rows.keys().isdisjoint(ids) and len(set(ids)) == len(ids):
            self.rows.update(zip(ids, range(first, stop), strict=True))
        else:
            for row, record_id in enumerate(ids, first):
                earlier = self.rows.get(record_id)
                if earlier is not None:
                    self.before[row] = earlier
                self.rows[record_id] = row
        self.stop = stop

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


class FreshIds:
    """Committed rows only; any thread may ask, for any moment.

    Follows the commits of this process (`follow`), and reads what it has not been told. Takes some
    170 bytes a row.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._span = _Span(0)
        self._round = _Round(0, 0, [], np.empty(0, np.int64))

    @property
    def is_small(self) -> bool:
        """Whether they are few, so that reading them again takes some milliseconds at most."""
        return len(self._span.rows) <= LEAST_FRESH_ROWS

    def rows(self, ids: Sequence[bytes], first: int, stop: int, read: ReadIds) -> list[int]:
        """The newest of the rows [first, stop) with each id, -1 where there is none; 0.1 us an id.

        `read` gives the ids of rows as the caller's moment sees them.
        """
        span = self._covering(first, stop, read)
        found = list(map(span.rows.get, ids, repeat(-1)))
        if max(found, default=-1) >= stop:
            found = [span.newest(i, stop) for i in ids]
        if span.first < first:
            found = [row if row >= first else -1 for row in found]
        return found

    def follow(self, first: int, start: int, ids: Sequence[bytes]) -> None:
        """After a commit: the rows from `start` on have these ids, those below `first` are keyed."""
        with self._lock:
            span = self._span
            if first > span.first:
                span = self._span = span.cut(first)
                self._round = _Round(0, 0, [], np.empty(0, np.int64))
            known = span.stop - start
            if 0 <= known < len(ids):
                span.extend(ids[known:] if known else ids)

    def in_order(
        self, first: int, end: int, read: ReadIds
    ) -> tuple[list[bytes], NDArray[np.int64]]:
        """The ids whose newest row is one of the rows [first, end), ascending, and these rows; for the
        lane only.

        Kept until the round is over. An id that is written again meanwhile stays in it.
        """
        if (self._round.first, self._round.end) != (first, end):
            span = self._covering(first, end, read)
            with self._lock:
                ids = sorted(i for i, row in span.rows.items() if first <= row < end)
                rows = np.fromiter(map(span.rows.__getitem__, ids), np.int64, len(ids))
            self._round = _Round(first, end, ids, rows)
        return self._round.ids, self._round.rows

    def _covering(self, first: int, stop: int, read: ReadIds) -> _Span:
        span = self._span
        if span.first <= first and stop <= span.stop:
            return span
        if first < span.first:
            # A moment from before the last round ended: seldom, and gone when it has been read.
            span = _Span(first)
            span.extend(read(first, stop))
            return span
        with self._lock:
            span = self._span
            if first > span.first:
                span = self._span = span.cut(first)
            if stop > span.stop:
                span.extend(read(span.stop, stop))
            return span
