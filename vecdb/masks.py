"""Small derived structures over rows: when each died, and which matched recent filters."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .ids import Ids
from .store import CollectionStore

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Deaths:
    """Which rows died, ordered by the commit they died in; 16 bytes a dead row.

    One thread extends (the lane); any thread asks.
    """

    def __init__(self, rows: Rows, sequences: Rows) -> None:
        order = np.argsort(sequences, kind="stable")
        self._rows = rows[order]
        self._sequences = sequences[order]
        self._n = len(rows)

    def extend(self, rows: Rows, sequence: int) -> None:
        n = self._n + len(rows)
        if n > len(self._rows):
            spare = np.zeros(max(1_024, n), np.int64)
            self._rows = np.concatenate([self._rows[: self._n], spare])
            self._sequences = np.concatenate([self._sequences[: self._n], spare])
        self._rows[self._n : n] = rows
        self._sequences[self._n : n] = sequence
        self._n = n

    def after(self, sequence: int, n_rows: int) -> Rows:
        """Rows below `n_rows` that died in a commit later than `sequence`."""
        n = self._n
        first = int(np.searchsorted(self._sequences[:n], sequence, side="right"))
        rows = self._rows[first:n]
        return rows[rows < n_rows]


class FilterMasks:
    """Results of recent filters, least recently used out first. Any thread may call.

    A mask computed for n rows stays right for those rows for ever, and is extended for new ones.
    """

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._lock = threading.Lock()
        self._masks: OrderedDict[str, Mask] = OrderedDict()

    def get(self, text: str, n_rows: int, compute: Callable[[int], Mask]) -> Mask:
        """Mask of `n_rows` rows; `compute(start)` gives the part from row `start` on. Read only."""
        with self._lock:
            held = self._masks.get(text)
            if held is not None:
                self._masks.move_to_end(text)
        if held is not None and len(held) >= n_rows:
            return held[:n_rows]
        mask = compute(0) if held is None else np.concatenate([held, compute(len(held))])
        if self._entries:
            with self._lock:
                self._masks[text] = mask
                self._masks.move_to_end(text)
                while len(self._masks) > self._entries:
                    self._masks.popitem(last=False)
        return mask

    def clear(self) -> None:
        with self._lock:
            self._masks.clear()


@dataclass(frozen=True, slots=True)
class Moment:
    """What a read sees: the rows below `n_rows` that were live right after commit `sequence`."""

    sequence: int
    n_rows: int
    live: Mask


class StoredTexts:
    """Ids and documents of rows for a filter; documents in read transactions of their own."""

    def __init__(self, store: CollectionStore, ids: Ids, moment: Moment) -> None:
        self._store = store
        self._ids = ids
        self._moment = moment

    def rows_of_ids(self, ids: Sequence[str]) -> Rows:
        """The rows that bore these ids at the moment; about 1 us an id.

        The store points an id to its newest row only. A record replaced or deleted since the moment
        is found among the rows that have died since.
        """
        moment = self._moment
        with self._store.read() as reader:
            rows = reader.rows_of_ids([i.encode() for i in ids])
            inside = (rows >= 0) & (rows < moment.n_rows)
            if inside.all():
                return rows
            wanted = {i for i, found in zip(ids, inside.tolist(), strict=True) if not found}
            since = [commit.died for commit in reader.log(moment.sequence)]
            died = np.concatenate([*since, np.empty(0, np.int64)])
            died = died[died < moment.n_rows]
        older = [r for r, i in zip(died.tolist(), self._ids.take(died), strict=True) if i in wanted]
        return np.concatenate([rows[inside], np.asarray(older, np.int64)])

    def ids(self, rows: Rows) -> list[str]:
        return self._ids.take(rows)

    def documents(self, rows: Rows) -> list[str | None]:
        with self._store.read() as reader:
            return reader.documents(rows)
