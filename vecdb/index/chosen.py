"""Which vectors a filter leaves, kept for the next query with the same filter."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..selection import Selection
from . import desks
from .blocks import Allowed
from .distance import LARGE_SQUARE, SMALL_SQUARE, Floats, Rows, squares, to_distances
from .door import (
    compare_few,
    compare_one,
    faiss_metric,
    knn,
    pointer,
    through_blas,
    use_threads,
    use_threads_for,
)
from .live import Bits, unpack
from .main import Main
from .rough import Rough

_KEPT_FILTERS = 8
FEW_BYTES, FEW_ROWS = 4 << 20, 2_048
"""Selected vectors are copied to one place and compared there up to these bounds; those of the last few
filters are kept. 1,265 rows of 384, by one thread: 31 us, picked out by FAISS each time 41 us."""
_SMALL_BYTES = 256 << 10
_HEAPED = 64
"""Up to so many answers a heap finds them while FAISS compares."""


class MainMask:
    """Which positions of the main index may answer, computed when first needed.

    Views share it as long as no kill touches the main index, so that steady writing does not cost
    one look at every row a commit. The last few filters' positions are kept beside it.
    """

    def __init__(self) -> None:
        self._live: Allowed | None = None
        self._filters: OrderedDict[int, tuple[Selection, Allowed]] = OrderedDict()

    def live(self, main: Main, bits: Bits) -> Allowed:
        # Two threads may both compute it; either result is right.
        if self._live is None:
            mask = unpack(bits, 0, main.high_water)[main.rows]
            few = 2 * int(np.count_nonzero(mask)) > main.n
            self._live = Allowed(main.n, mask=mask, deaths=few)
        return self._live

    def chosen(self, main: Main, bits: Bits, live: int, selection: Selection) -> Allowed:
        """Live positions of the selected rows."""
        kept = self._filters.get(id(selection))
        if kept is not None and kept[0] is selection:
            return kept[1]
        if selection.is_list:
            picked = main.positions_of(selection.rows())
            if live < main.n:
                picked = picked[self.live(main, bits).mask()[picked]]
            made = Allowed(main.n, picked=picked)
        else:
            mask = selection.mask()[main.rows]
            if live < main.n:
                mask &= self.live(main, bits).mask()
            made = Allowed(main.n, mask=mask)
        # The selection is kept too, so that its id stays its own.
        self._filters[id(selection)] = (selection, made)
        while len(self._filters) > _KEPT_FILTERS:
            try:
                self._filters.popitem(last=False)
            except KeyError:  # another thread was faster
                break
        return made


class Few:
    """The vectors of a few selected rows, side by side. Any thread may search."""

    __slots__ = ("_alive", "_metric", "_n", "_pointer", "_rough", "_vectors", "is_small", "names", "rows")  # fmt: skip

    def __init__(
        self,
        rows: Rows,
        vectors: Floats,
        metric: str,
        alive: NDArray[np.bool_] | None = None,
        rough: Rough | None = None,
    ) -> None:
        """`rows` ascending, `vectors` (n, width) theirs in the index's space. Only those that are `alive` answer (None:
        all). `rough`: what finds candidates among these vectors, or among more that begin with them."""
        self.rows = rows
        self._alive = alive
        self._n = len(rows) if alive is None else int(np.count_nonzero(alive))
        self._vectors = vectors
        self._metric = metric
        self._rough = rough if metric in ("cosine", "ip") else None
        self.is_small = metric != "hamming" and are_small(vectors.nbytes) and self._n == len(rows)
        """Compared sooner than a search gets its turn; see `nearest`."""
        self._pointer = pointer(vectors) if self.is_small else None
        self.names: list[str] | None = None
        """What the rows are called, kept by who asks."""

    def nearest(self, query: Floats, square: float, k: int) -> tuple[Floats, list[int]] | None:
        """Distances (1, k), nearest first, and which of the rows, for a query (d,) as it came, finite, with its
        squared length. None where there are fewer rows, equal distances or a length that needs a closer look,
        and unless `is_small`. Some 6 us for 82 rows of 384."""
        if not self.is_small or len(self.rows) <= k or k > _HEAPED:
            return None
        dimension = len(query)
        desk = desks.take(dimension, k + 1)
        if self._metric != "cosine":
            desk.query[:] = query
        elif SMALL_SQUARE < square < LARGE_SQUARE:
            np.divide(query, np.float32(math.sqrt(square)), out=desk.query)
        else:
            return None
        use_threads(1)
        compare_few(
            desk.query_at, self._pointer, dimension, len(self.rows), k + 1,
            desk.scores_at, desk.places_at, faiss_metric(self._metric),
        )  # fmt: skip
        scores, places = desk.scores[0, : k + 1].copy(), desk.places[0, :k].tolist()
        desks.give_back(desk)
        if len(set(scores.tolist())) <= k:
            return None
        near = scores[:k] if self._metric == "l2" else 1.0 - scores[:k]
        return near.reshape(1, k), places

    def search(self, queries: Floats, k: int) -> tuple[Floats, Rows]:
        """Distances and rows (q, k), nearest first, ties by row; NaN and -1 where there are fewer.

        One call of FAISS, 6 us for one query and 82 rows of 384. Its heap does not say which of equally near
        rows it kept: a query that meets such is answered by a sort.
        """
        if k > _HEAPED or self._n <= k or self._metric == "hamming":
            return self._one_by_one(queries, k)
        if self._metric == "l2" and through_blas(*queries.shape):
            return self._one_by_one(queries, k)  # by expansion, which loses digits
        use_threads_for(len(queries))
        width = k + 1 + len(self.rows) - self._n
        found = None
        if self._rough is not None and len(queries) == 1:
            found = self._rough.search(queries, self._vectors, width, None)
        scores, at = found or knn(queries, self._vectors, width, faiss_metric(self._metric))
        if self._alive is not None:
            first = np.argsort(~self._alive[at], axis=1, kind="stable")[:, : k + 1]
            scores, at = np.take_along_axis(scores, first, 1), np.take_along_axis(at, first, 1)
        near = scores if self._metric == "l2" else 1.0 - scores
        out = near[:, :k], self.rows[at[:, :k]]
        if len(queries) == 1:
            tied = [0] if len(set(near[0].tolist())) <= k else []
        else:
            tied = np.flatnonzero((near[:, 1:] <= near[:, :-1]).any(axis=1)).tolist()
        for i in tied:
            out[0][i : i + 1], out[1][i : i + 1] = self._one_by_one(queries[i : i + 1], k)
        return out

    def _one_by_one(self, queries: Floats, k: int) -> tuple[Floats, Rows]:
        near, rows = to_distances(self._keys(queries), self._metric), self.rows
        if self._alive is not None:
            near, rows = near[:, self._alive], rows[self._alive]
        out = (
            np.full((len(queries), k), np.nan, np.float32),
            np.full((len(queries), k), -1, np.int64),
        )
        for i, one in enumerate(near):
            best = nearest(one, k)
            out[0][i, : best.size], out[1][i, : best.size] = one[best], rows[best]
        return out

    def _keys(self, queries: Any) -> Floats:
        keys: Floats
        if self._metric == "hamming":
            differing = [np.bitwise_count(self._vectors ^ q).sum(axis=1) for q in queries]
            keys = np.asarray(differing, np.float32).reshape(len(queries), len(self.rows))
        elif len(queries) == 1 and self.rows.size:
            scores = compare_one(queries[0], self._vectors, faiss_metric(self._metric))[None]
            keys = scores if self._metric == "l2" else -scores
        elif self._metric == "l2":
            keys = squares(queries, self._vectors)
        else:
            keys = -(queries @ self._vectors.T)
        return keys


def are_small(size_bytes: int) -> bool:
    """Whether vectors of so many bytes are gathered and compared in no time."""
    return size_bytes <= _SMALL_BYTES


def nearest(near: Floats, k: int) -> Rows:
    """Where the k smallest of `near` (n,) stand, ascending; ties by place. Some 5 us."""
    if near.size <= 4 * k:
        return near.argsort(kind="stable")[:k]
    best = near.argpartition(k - 1)[:k]
    last = near[best].max()
    within = near <= last
    if np.count_nonzero(within) > k:  # more than one at the k-th place
        best = within.nonzero()[0]
    else:
        best.sort()
    ordered: Rows = best[near[best].argsort(kind="stable")[:k]]
    return ordered


def is_few(selection: Selection, dimension: int) -> bool:
    """Whether the vectors of a selection are to be put side by side."""
    count = selection.count()
    return count <= FEW_ROWS and count * 4 * dimension <= FEW_BYTES
