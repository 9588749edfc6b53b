"""The bytes that a graph is walked over, used to compare its vectors one by one: many that a filter allows, or all.

`rough.py` says how few have to be compared by their vectors, and how that is proven. Here the bytes are there already; how
wrong they are at most is not, and is measured by the first queries that want them, some rows each.

What a filter allows lies scattered among all bytes, and to ask a mask for each row takes longer than to compare a tenth of
them. So those of a filter that is asked again are put side by side, and kept for as long as there is room.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import Allowed
from .distance import Floats, Rows
from .door import faiss
from .rough import LEAST_ROWS, SHORTEST, Rough
from .signed import LANES, look_at

_MEASURED_SCALARS = 786_432
"""By one query, in 1.5 ms."""
_KEPT_SHARE, _KEPT_BYTES = 2, 64 << 20
"""Of bytes that are kept side by side: half of all, and so many."""
_KEPT, _AWAY = 8, 8
"""Filters whose bytes are kept, as many as `chosen.MainMask` keeps; and how often one that had to go is compared without."""
BYTES_COST = 1_800.0
"""Of a query beside its rows, in exact distances to contiguous vectors of 60 ns; so are the others. 116,659 x 384, one thread of
an Intel Xeon: 11,662 scattered rows 1,020 us, 420 side by side; 58,147 scattered 2,050, all 2,140."""
_SIDE_BY_SIDE, _SCATTERED, _MASKED = 0.38, 0.9, 0.045
"""A row among those that lie side by side, or of which half or more are allowed; one of a few; one of all, whose bit is asked."""
_IP = int(faiss.METRIC_INNER_PRODUCT)


class GuideBytes(Rough):
    """Of all vectors of a graph. Any thread may search."""

    def __init__(self, guide: Any) -> None:
        """`guide` are the flat codes that the graph is walked over, signed bytes."""
        n, dimension = int(guide.ntotal), int(guide.d)
        super().__init__(dimension, n)
        self._look = (n, guide)
        self._scale = float(guide.sq.rangestat_arg)
        self._keeping = threading.Lock()
        self._kept: OrderedDict[int, tuple[Allowed, Any]] = OrderedDict()
        """By the id of what is allowed, which is kept too, so that its id stays its own."""
        self._kept_bytes = 0
        self._most_rows = min(n // _KEPT_SHARE, _KEPT_BYTES // max(dimension, 1))

    @property
    def nbytes(self) -> int:
        """Beside the codes of the graph."""
        return self._kept_bytes

    @property
    def measured(self) -> bool:
        return self.n > 0 and self.n == self._look[0]

    def cost(self, allowed: Allowed | None, rows: int) -> float:
        """Of comparing a query with these of the rows (None: all), in exact distances to contiguous vectors."""
        if allowed is None:
            return BYTES_COST + _SIDE_BY_SIDE * rows
        count = allowed.count
        if self._is_gathered(allowed):
            return BYTES_COST + _SIDE_BY_SIDE * count
        apart = max(0.0, 1.0 - 2.0 * count / rows)
        a_row = _SIDE_BY_SIDE + apart * (_SCATTERED - _SIDE_BY_SIDE)
        return BYTES_COST + _MASKED * rows + a_row * count

    def pays(self, allowed: Allowed | None, rows: int) -> bool:
        if allowed is None:
            return rows >= LEAST_ROWS and self.cost(None, rows) < rows
        return allowed.count >= LEAST_ROWS and self.cost(allowed, rows) < allowed.cost()

    def passed_over(self, allowed: Allowed | None) -> None:
        """Says that these were compared, but not by bytes, as that would not have paid. If they come again it may."""
        if allowed is not None and allowed.count >= LEAST_ROWS and self.measured:
            allowed.asked += 1

    def among(
        self, queries: Floats, vectors: Floats, k: int, allowed: Allowed | None
    ) -> tuple[Floats, Rows] | None:
        if not self.measured:
            self._extend(vectors)
            return None
        if allowed is not None:
            look = self._gathered(allowed) if self._is_gathered(allowed) else None
            allowed.asked += 1
            if look is not None:
                return self._among_gathered(look, queries, vectors, k, allowed)
        return super().among(queries, vectors, k, allowed)

    def _is_gathered(self, allowed: Allowed) -> bool:
        """Whether the bytes of what is allowed lie side by side for the next query, or will."""
        return allowed.asked > 0 and allowed.count <= self._most_rows

    def _among_gathered(
        self, look: Any, queries: Floats, vectors: Floats, k: int, allowed: Allowed
    ) -> tuple[Floats, Rows] | None:
        width, picked = self.width(k), allowed.picked()
        if width >= len(picked):
            return None
        scores, positions, proven = self._best(look, queries, vectors, k, width, None, picked)
        if not proven.all():
            self._compare_all(queries, vectors, k, allowed.mask(), ~proven, scores, positions)
        return scores, positions

    def _gathered(self, allowed: Allowed) -> Any:
        """The bytes of what is allowed, side by side: a FAISS index; None where bytes were given up, or there is no memory."""
        with self._keeping:
            kept = self._kept.get(id(allowed))
            if kept is not None:
                self._kept.move_to_end(id(allowed))
                return kept[1]
        codes = self._codes
        if codes is None:
            return None
        try:
            look = look_at(codes[allowed.picked()], self._scale, _IP)
        except MemoryError:
            allowed.asked = -_AWAY
            return None
        with self._keeping:
            if not self._refused:
                self._kept[id(allowed)] = (allowed, look)
                self._let_go()
        return look

    def _let_go(self) -> None:
        """Of those that nobody asked for longest, where all together are too many. With the lock."""
        kept = self._kept
        rows = sum(one.count for one, _ in kept.values())
        while rows > self._most_rows or len(kept) > _KEPT:
            gone = kept.popitem(last=False)[1][0]
            rows -= gone.count
            # Else those of filters that take turns would be gathered for each query.
            gone.asked = -_AWAY
        listed = sum(self._look[0] + 8 * one.count for one, _ in kept.values())
        self._kept_bytes = rows * self._dimension + listed

    def _begin(self, vectors: Floats) -> None:
        rows, guide = self._look
        if self._scale * SHORTEST > 1.0 or self._dimension % LANES:
            self._refuse()
        elif rows:
            data = faiss.rev_swig_ptr(guide.codes.data(), rows * self._dimension)
            self._codes = data.reshape(rows, self._dimension).view(np.int8)

    def _code(self, vectors: Floats, codes: NDArray[np.int8]) -> None:
        stop = min(self.n + max(16, _MEASURED_SCALARS // self._dimension), len(vectors))
        part = slice(self.n, stop)
        # FAISS keeps a signed byte with 128 added.
        self._measure((codes[part] ^ np.int8(-128)).astype(np.float32), vectors[part])
        self.n = stop

    def _refuse(self) -> None:
        super()._refuse()
        with self._keeping:
            self._kept, self._kept_bytes = OrderedDict(), 0
