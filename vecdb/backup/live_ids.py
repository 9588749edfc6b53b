"""Whether an id is live in two rows of a collection, which come from several files and backups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]

_MOST_PAIRS = 16
_ROWS_TOGETHER = 1 << 20


class LiveIds:
    """Ids of the rows that are live, as hashes in order. Takes 16 bytes a row, and up to 40 while it grows.

    Python hashes by a key of each process, so nobody can make ids that meet.
    """

    def __init__(self) -> None:
        self._hashes = self._rows = np.empty(0, np.int64)
        self._new: list[tuple[NDArray[np.int64], Rows]] = []
        self._n_new = 0
        self._pairs: list[tuple[int, int]] = []

    def keep(self, live: NDArray[np.bool_]) -> None:
        """Of the rows that are there only those that are live."""
        self._merge()
        kept = live[self._rows]
        if not kept.all():
            self._hashes, self._rows = self._hashes[kept], self._rows[kept]

    def add(self, ids: Sequence[bytes], rows: Rows) -> None:
        """Live rows beside those that are there; 0.5 us an id."""
        self._new.append((np.fromiter(map(hash, ids), np.int64, len(ids)), rows))
        self._n_new += len(rows)
        # Each time all that is there is copied, so that many are added to much.
        if self._n_new >= max(_ROWS_TOGETHER, len(self._rows) // 4):
            self._merge()

    def met(self) -> list[tuple[int, int]]:
        """Pairs of rows whose ids have one hash, the first of those that were added since the last call: as good as always
        that is one id."""
        self._merge()
        pairs, self._pairs = self._pairs, []
        return pairs

    def _merge(self) -> None:
        if not self._n_new:
            return
        hashes = np.concatenate([some for some, _ in self._new])
        rows = np.concatenate([some for _, some in self._new])
        self._new, self._n_new = [], 0
        order = np.argsort(hashes)
        hashes, rows = hashes[order], rows[order]
        twice = np.flatnonzero(hashes[1:] == hashes[:-1])[:_MOST_PAIRS]
        self._note(rows[twice], rows[twice + 1])
        at = np.searchsorted(self._hashes, hashes)
        if len(self._hashes):
            there = self._hashes[np.minimum(at, len(self._hashes) - 1)] == hashes
            met = np.flatnonzero(there)[:_MOST_PAIRS]
            self._note(self._rows[at[met]], rows[met])
        self._hashes = np.insert(self._hashes, at, hashes)
        self._rows = np.insert(self._rows, at, rows)

    def _note(self, rows: Rows, others: Rows) -> None:
        room = _MOST_PAIRS - len(self._pairs)
        self._pairs += [*zip(rows.tolist(), others.tolist(), strict=True)][:room]
