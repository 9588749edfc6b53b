"""Reading stored vectors into the memory of a main index: before it serves, or behind while it does already."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from .blocks import Allowed, FloatBlock
from .codes import to_space
from .distance import Floats, Merger, Rows
from .door import L2, products_at, squares_at
from .source import READ_ROWS, VectorSource

BEHIND_BYTES = 20 << 20
"""Vectors up to this size are read before a graph serves: some 10 ms, which nobody notices."""
_GATHERED_SCALARS = 4 << 20
_BEHIND_ROWS = 2_048
"""Read at once behind queries; 3 MB of 384 numbers."""


def fill(
    source: VectorSource,
    metric: str,
    storage: str,
    look: Any,
    rows: Rows,
    high_water: int,
    threads: int,
    stop: threading.Event | None = None,
    through: Callable[[int], None] = lambda row: None,
) -> bool:
    """Reads the vectors of `rows` in row order and puts each where it belongs in `look`, by so many threads; False when
    stopped before the end. One thread calls `through(row)` when those below a row are there. An error of the source is
    raised here."""
    position = np.full(high_water, -1, np.int64)
    position[rows] = np.arange(rows.size)
    step = READ_ROWS if stop is None else _BEHIND_ROWS
    starts = iter(range(0, high_water, step))
    lock = threading.Lock()
    failure: list[BaseException] = []

    def work() -> None:
        try:
            while not failure and not (stop is not None and stop.is_set()):
                with lock:
                    start = next(starts, None)
                if start is None:
                    return
                target = position[start : min(high_water, start + step)]
                through(start)
                wanted = np.flatnonzero(target >= 0)
                if not wanted.size:
                    continue
                stored = source.range(start, start + len(target))
                target = target[wanted]
                vectors = to_space(
                    stored if wanted.size == len(stored) else stored[wanted], metric, storage
                )
                if (
                    int(target[-1]) - int(target[0]) == target.size - 1
                    and (np.diff(target) == 1).all()
                ):
                    look[target[0] : target[-1] + 1] = vectors
                else:
                    look[target] = vectors
        except BaseException as error:  # raised again in the caller's thread
            failure.append(error)

    others = [threading.Thread(target=work, name="vecdb-load") for _ in range(threads - 1)]
    for thread in others:
        thread.start()
    work()
    for thread in others:
        thread.join()
    if failure:
        raise failure[0]
    return stop is None or not stop.is_set()


class LateBlock(FloatBlock):
    """float32 vectors that are read from the store where they are asked for, until all of them are in memory.

    Answers are those of the vectors in memory, before and after. Any thread may call.
    """

    def __init__(
        self,
        vectors: Floats,
        metric: int,
        source: VectorSource,
        space: tuple[str, str],
        rows: Rows,
        high_water: int,
    ) -> None:
        """`vectors` (n, d) are yet to be written, those of `rows` (n,), all below `high_water`. `space`: metric and
        storage of the collection."""
        super().__init__(vectors, metric)
        self.there = False
        """All vectors are in memory. Never false again."""
        self._source, self._space = source, space
        self._rows, self._high_water = rows, high_water
        self._filling = threading.Lock()
        self._through = 0
        """The vectors of rows below this one are in memory."""

    def fill(self, stop: threading.Event) -> bool:
        """Reads all vectors, or waits for the thread that does; False when stopped before. Nobody who searches waits.

        Errors of the source, MemoryError: all stays as it was, and it may be called again.
        """
        with self._filling:
            if not self.there:
                self.there = fill(
                    self._source, *self._space, self.vectors, self._rows, self._high_water, 1, stop,
                    self._reached,
                )  # fmt: skip
        return self.there

    def _reached(self, row: int) -> None:
        self._through = row

    def search(
        self, queries: Floats, k: int, allowed: Allowed | None = None
    ) -> tuple[Floats, Rows]:
        count = self.n if allowed is None else allowed.count
        if self.there or not count:
            return super().search(queries, k, allowed)
        chosen = np.arange(self.n) if allowed is None else allowed.picked()
        merger = Merger(min(k, count))
        for start in range(0, count, READ_ROWS):
            part = chosen[start : start + READ_ROWS]
            keys, at = FloatBlock(self.take(part), self.metric).search(queries, k)
            merger.add(keys, part[at])
        keys, positions = merger.best(len(queries))
        order = np.lexsort((positions, keys), axis=1)
        return np.take_along_axis(keys, order, axis=1), np.take_along_axis(positions, order, axis=1)

    def take(self, positions: Rows) -> Floats:
        if self.there:
            return super().take(positions)
        rows = self._rows[positions]
        lacking = rows >= self._through
        vectors = super().take(positions)
        if lacking.any():
            vectors[lacking] = to_space(self._source.rows(rows[lacking]), *self._space)
        return vectors

    def nearest_of(self, queries: Floats, positions: Rows, k: int) -> tuple[Floats, Rows]:
        """Keys and positions (q, k), ascending, of the nearest of these candidates (q, w), where -1 stands for none."""
        keys = np.empty(positions.shape, np.float32)
        step = max(1, _GATHERED_SCALARS // (positions.shape[1] * queries.shape[1]))
        for start in range(0, len(queries), step):
            some = positions[start : start + step]
            vectors = self.take(np.maximum(some, 0).ravel())
            places = np.arange(some.size).reshape(some.shape)
            part, origin = queries[start : start + step], int(vectors.ctypes.data)
            if self.metric == L2:
                keys[start : start + step] = squares_at(part, origin, places)
            else:
                keys[start : start + step] = -products_at(part, origin, places)
        keys[positions < 0] = np.inf
        order = np.argsort(keys, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(keys, order, axis=1), np.take_along_axis(positions, order, axis=1)
