"""Ids of all rows in memory, so that an answer of ids and distances needs no transaction."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import Corrupted
from .memory import Growing, anonymous, words

_FIRST_ROWS = 1_024
_FIRST_BYTES = 1 << 14
_MANY_ROWS = 64
"""Fewer ids than this are made in the time that looking for them takes."""
_KEPT_TEXTS, _KEPT_SHARE = 1 << 17, 8
"""Texts that are kept at most, some 80 bytes each: so many, or those of an eighth of the rows."""


class _Texts:
    """Ids as texts, of those rows that large answers have named; any thread."""

    def __init__(self, capacity: int) -> None:
        self.texts: NDArray[np.object_] = np.empty(capacity, object)
        self.there = np.zeros(capacity, np.bool_)
        self.n = 0
        """About how many are there: two threads may count at once."""

    def keep(self, rows: NDArray[np.int64], texts: list[str]) -> None:
        self.texts[rows] = np.array(texts, object)
        self.there[rows] = True  # only now: whoever sees it finds the text
        self.n += len(rows)


class Ids:
    """Row to id; the bytes of the ids and 8 bytes a row, and 9 more and 80 an id for those that are kept
    as texts.

    Ten reads of LMDB a query would take about 10 us, and each gives up the interpreter lock: beside
    other threads that costs a hundred times as much.

    One thread appends, rows in order. Any thread takes rows that were published after they had been
    appended: values are written behind what is published, and full memory is replaced by a copy.
    """

    def __init__(self, expected_rows: int = 0) -> None:
        """`expected_rows`: how many will be appended at least; spares them being moved."""
        self.n_rows = 0
        self._expected = expected_rows
        self._kept: _Texts | None
        """Made when they are first asked for: even empty they take 8 bytes a row, 8 MB of new memory at each doubling
        around a million rows."""
        self._replacing = threading.Lock()
        """Held to put other kept texts in place: they must stay as long as the ends."""
        # Its slices are `bytes`: the quickest way to a text.
        self._texts = anonymous(_FIRST_BYTES)
        self._more_texts, self._more_ends = Growing(anonymous), Growing(words)
        self._hold_ends(words(max(_FIRST_ROWS, _with_spare(expected_rows)) + 1))

    def append(self, ids: Sequence[bytes]) -> None:
        """Takes the ids of the next rows, as UTF-8."""
        self.append_packed(np.fromiter(map(len, ids), np.int64, len(ids)), b"".join(ids))

    def append_packed(self, lengths: NDArray[Any], texts: bytes | memoryview) -> None:
        """Takes the ids of the next rows, one behind the other in `texts`; some ns a row."""
        first, last = self.n_rows, self.n_rows + len(lengths)
        start = int(self._ends[first])
        stop = start + len(texts)
        ahead = last > self._expected
        # As if those that are expected were as long as the ones so far.
        least = _with_spare(stop * self._expected // max(last, 1))
        room = max(least, 2 * len(self._texts))
        self._texts = self._more_texts.reserve(self._texts, start, stop, room, ahead=ahead)
        self._texts[start:stop] = texts
        room = 2 * len(self._ends)
        ends = self._more_ends.reserve(self._ends, first + 1, last + 1, room, ahead=ahead)
        if ends is not self._ends:
            self._hold_ends(ends)
        np.cumsum(lengths, out=self._ends[first + 1 : last + 1])
        self._ends[first + 1 : last + 1] += start
        self.n_rows = last

    def take(self, rows: NDArray[np.int64]) -> list[str]:
        """Ids of rows, in their order; 1 us and about 0.1 us each, 0.2 to 0.3 where they lie far apart and
        the processor's caches hold other things. Of many rows those that were asked for before take a third.

        Corrupted for bytes that are no text.
        """
        if len(rows) < _MANY_ROWS:
            return self._made(rows)
        texts: list[str] = self._texts_of(rows)[rows].tolist()
        return texts

    def take_each(self, rows: NDArray[np.int64]) -> list[list[str]]:
        """The same of rows (q, k), a list for each q."""
        texts: list[list[str]] = self._texts_of(rows.reshape(-1))[rows].tolist()
        return texts

    def _texts_of(self, rows: NDArray[np.int64]) -> NDArray[np.object_]:
        """Texts by row, of which those of `rows` are there."""
        kept = self._kept
        there = np.zeros(len(rows), np.bool_) if kept is None else kept.there[rows]
        if kept is None or not there.all():
            if kept is None or kept.n > max(_KEPT_TEXTS, self.n_rows // _KEPT_SHARE):
                with self._replacing:
                    kept = self._kept = _Texts(len(self._starts))
                there = np.zeros(len(rows), np.bool_)
            new = rows[~there]
            kept.keep(new, self._made(new))
        return kept.texts

    def _made(self, rows: NDArray[np.int64]) -> list[str]:
        # Ends first: texts that are read after them hold all that they point to.
        starts, stops = self._starts[rows].tolist(), self._stops[rows].tolist()
        texts = self._texts
        try:
            return [texts[a:b].decode() for a, b in zip(starts, stops, strict=True)]
        except UnicodeDecodeError as error:
            raise Corrupted(
                f"a stored id is not what was written ({error}); `check` names its row, restore a backup"
            ) from error

    def raw(self, start: int, stop: int) -> list[bytes]:
        """Ids of rows [start, stop) as they are held; 0.2 us each."""
        starts, stops = self._starts[start:stop].tolist(), self._stops[start:stop].tolist()
        texts = self._texts
        return [texts[a:b] for a, b in zip(starts, stops, strict=True)]

    def kept(self, start: int, stop: int) -> tuple[NDArray[np.int64], list[str]]:
        """Those of the rows [start, stop) of which a text is kept, and these texts."""
        kept = self._kept
        if kept is None:
            return np.empty(0, np.int64), []
        rows = np.flatnonzero(kept.there[start:stop]) + start
        return rows, kept.texts[rows].tolist()

    @property
    def nbytes(self) -> int:
        kept = self._kept
        more = 8 * self._more_ends.room + self._more_texts.room
        made = 0 if kept is None else 9 * len(kept.texts) + 80 * kept.n
        return self._ends.nbytes + len(self._texts) + more + made

    def _hold_ends(self, ends: NDArray[np.int64]) -> None:
        """Two views, since making one of them at each call would take a tenth of it."""
        with self._replacing:
            self._ends = ends
            self._starts, self._stops = ends[:-1], ends[1:]
            # They must be as long as the ends before rows beyond these are published.
            self._kept = None


def _with_spare(expected: int) -> int:
    """Room for an eighth more than is expected: what is not touched takes no space."""
    return expected + expected // 8
