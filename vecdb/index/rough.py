"""Which few of many float32 vectors have to be compared: found by signed bytes of them, and proven.

A query to rows that no index holds yet reads all of their vectors, and most of its time is that reading: of 384 dimensions 60 ns a
row from caches, and 88 to 182 from memory. Bytes of them (`signed.py`) are a quarter, and compared in 22 ns. How far a score by bytes is from the true one at
most is known: the length of the query times the largest error of a row, and the error of the rounded query times the
largest length of a row (Cauchy-Schwarz). So where the k-th of some candidates, compared by the vectors, is nearer than
the last of them by bytes by more than that, nothing outside belongs to the answer. Queries without that proof read all.

Bytes are made by the queries that want them, some rows each, so nobody who only writes pays for them. For inner products
and cosine; under l2 there are none.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..memory import anonymous
from .distance import Floats, Rows
from .door import address, best_products, bitmap_selector, faiss, knn, products_at, search_one
from .signed import LANES, asked, look_at, numbers_of, shared_scale

LEAST_ROWS = 1_536
"""Fewer are read in the time that all around it takes."""
_STEP_ROWS = 256
"""Coded by one query, in 0.15 ms at 384 dimensions."""
_BEYOND, _MORE_OF_K = 54, 3
"""Candidates beyond k, and as a multiple of it: among many the last lies nearer to the k-th. Among 2,333, 16,384 and 20,000 rows of WordNet one query in 3,700 lacked its proof."""
_SHARE = 8
"""Where more than one row in so many would be a candidate, all are compared."""
_TRIED, _MOST_FAILED = 64, 0.25
"""After so many queries bytes are not asked any more where more than this share of them lacked the proof."""
_REMEMBERED = 1_024
SHORTEST = 1e-15
"""Of shorter queries, and of rows with such a step, squares of errors may be lost to float32."""
_LOST = 0.1 * SHORTEST
"""Length of what may have no square in float32, of any dimension."""
_ROUNDING = 1e-5
"""Of float32, as a share of the product of both lengths."""


class Rough:
    """Bytes of the vectors at the front of an array that may grow behind them, or be moved as a whole. Any thread may search."""

    def __init__(self, dimension: int, most_rows: int, least_rows: int | None = None) -> None:
        """`least_rows`: fewer have no bytes; `LEAST_ROWS` where none is said."""
        self.n = 0
        """Rows that have bytes."""
        self._dimension, self._most_rows = dimension, most_rows
        self._least = LEAST_ROWS if least_rows is None else least_rows
        self._one_codes = threading.Lock()
        self._codes: NDArray[np.int8] | None = None
        self._scale = 0.0
        self._error = self._length = 0.0
        self._refused = False
        self._tried = self._failed = 0
        self._look: tuple[int, Any] = (0, None)

    @property
    def nbytes(self) -> int:
        return 0 if self._codes is None else self.n * self._dimension

    @property
    def measured(self) -> bool:
        """Whether searches go by bytes, of most rows at least."""
        return self.n > 0 and not self._refused

    def pays(self, allowed: Any, rows: int) -> bool:
        """Whether bytes may be quicker where these of the rows may answer, an `Allowed` or all (None): of 2,000 30 % took
        126 us by bytes and 75 without, of 8,000 the same."""
        count = rows if allowed is None else allowed.count
        return count >= self._least and 2 * count >= rows

    def passed_over(self, allowed: Any) -> None:
        """Told of what was compared where bytes do not pay."""

    def among(
        self, queries: Floats, vectors: Floats, k: int, allowed: Any
    ) -> tuple[Floats, Rows] | None:
        """`search` among those `allowed`."""
        return self.search(queries, vectors, k, None if allowed is None else allowed.mask())

    @staticmethod
    def width(k: int) -> int:
        """Candidates for k answers."""
        return k + max(_BEYOND, _MORE_OF_K * k)

    def search(
        self, queries: Floats, vectors: Floats, k: int, mask: NDArray[np.bool_] | None
    ) -> tuple[Floats, Rows] | None:
        """Inner products and positions (q, k), best first, of the best (allowed) of `vectors` (n, d) for queries (q, d), as
        comparing all gives them; -inf and -1 where there are fewer. None where that is no dearer."""
        self._extend(vectors)
        rows = min(self.n, len(vectors))
        width = self.width(k)
        if rows < self._least or width * _SHARE > rows or self._refused:
            return None
        codes = self._codes_of(rows)
        if codes is None:
            return None
        scores, positions, proven = self._best(codes, queries, vectors, k, width, mask)
        if rows < len(vectors):
            rest, others = None, None
            if mask is not None:
                rest, others = bitmap_selector(mask[rows:])
            fresh, at = knn(queries, vectors[rows:], min(k, len(vectors) - rows), _IP, rest)
            del others
            scores = np.concatenate([scores, np.where(at < 0, -np.inf, fresh)], axis=1)
            positions = np.concatenate([positions, np.where(at < 0, -1, at + rows)], axis=1)
            scores, positions = _sorted(scores, positions, k)
        if not proven.all():
            self._compare_all(queries, vectors, k, mask, ~proven, scores, positions)
        return scores, positions

    def _best(
        self,
        look: Any,
        queries: Floats,
        vectors: Floats,
        k: int,
        width: int,
        mask: NDArray[np.bool_] | None,
        picked: Rows | None = None,
    ) -> tuple[Floats, Rows, NDArray[np.bool_]]:
        """The k best of the rows in `look`, and of which queries that is proven. `picked`: which of the vectors these rows are."""
        params, kept = None, None
        if mask is not None:
            selector, kept = bitmap_selector(mask[: int(look.ntotal)])
            params = faiss.SearchParameters(sel=selector)
        if len(queries) == 1:
            return self._best_one(look, queries, vectors, k, width, params, picked)
        rounded, step = asked(queries)
        coded, positions = look.search(rounded, width, params=params)
        del kept
        few = positions[:, -1] < 0
        if picked is not None:
            positions = np.where(positions < 0, -1, picked[positions])
        scores = products_at(queries, address(vectors), np.maximum(positions, 0))
        scores[positions < 0] = -np.inf
        scores, positions = _sorted(scores, positions, k)
        last = np.where(few, 0, coded[:, -1]) * (step[:, 0] / np.float32(self._scale))
        rounded *= step
        rounded -= queries
        lengths = _lengths(queries)
        reach = lengths * (self._error + _ROUNDING * (self._length + self._error))
        reach += _lengths(rounded) * self._length
        short = lengths < SHORTEST
        # Few: there are no others than these.
        proven = few | (~short & (scores[:, -1] > last + reach))
        self._count(int(np.count_nonzero(~short)), int(np.count_nonzero(~(proven | short))))
        return scores, positions, proven

    def _best_one(
        self,
        look: Any,
        query: Floats,
        vectors: Floats,
        k: int,
        width: int,
        params: Any,
        picked: Rows | None,
    ) -> tuple[Floats, Rows, NDArray[np.bool_]]:
        """The same for one query, by numbers of Python's where numpy would be asked for arrays of one: half the time around the
        comparison."""
        rounded, steps = asked(query)
        step = float(steps[0, 0])
        coded, positions = search_one(look, rounded, width, params)
        if int(positions[0, -1]) < 0:
            if picked is not None:
                positions = np.where(positions < 0, -1, picked[positions])
            return *best_products(query, vectors, positions, k), _PROVEN
        if picked is not None:
            positions = picked[positions]
        scores, found = best_products(query, vectors, positions, k)
        np.multiply(rounded, steps, rounded)
        np.subtract(rounded, query, rounded)
        length = math.sqrt(float(query[0].dot(query[0])))
        off = math.sqrt(float(rounded[0].dot(rounded[0])))
        last = float(coded[0, -1]) * step / self._scale
        reach = length * (self._error + _ROUNDING * (self._length + self._error))
        reach += off * self._length
        if length < SHORTEST:
            return scores, found, _NOT_PROVEN
        if float(scores[0, -1]) > last + reach:
            self._count(1, 0)
            return scores, found, _PROVEN
        self._count(1, 1)
        return scores, found, _NOT_PROVEN

    def _compare_all(
        self,
        queries: Floats,
        vectors: Floats,
        k: int,
        mask: NDArray[np.bool_] | None,
        these: NDArray[np.bool_],
        scores: Floats,
        positions: Rows,
    ) -> None:
        """Puts the answers of `these` queries where they belong, by all vectors."""
        selector, kept = None, None
        if mask is not None:
            selector, kept = bitmap_selector(mask)
        some = np.ascontiguousarray(queries[these])
        scores[these], positions[these] = knn(some, vectors, k, _IP, selector)
        del kept

    def _count(self, tried: int, failed: int) -> None:
        """How proofs went lately decides whether there will be more."""
        if self._tried >= _REMEMBERED:
            self._tried, self._failed = self._tried // 2, self._failed // 2
        self._tried += tried
        self._failed += failed
        if self._tried >= _TRIED and self._failed > _MOST_FAILED * self._tried:
            self._refuse()

    def _refuse(self) -> None:
        # Who searches by them holds them.
        self._refused = True
        self._codes, self._look = None, (0, None)

    def _extend(self, vectors: Floats) -> None:
        """Codes some of the vectors that have no bytes yet, unless another thread does, or they are too few to begin."""
        if self._refused or self.n >= len(vectors) or len(vectors) < self._least:
            return
        if not self._one_codes.acquire(blocking=False):
            return
        try:
            if self._codes is None:
                self._begin(vectors)
            if self._codes is not None:
                self._code(vectors, self._codes)
        except MemoryError:
            self._refuse()
        finally:
            self._one_codes.release()

    def _begin(self, vectors: Floats) -> None:
        scale = shared_scale(vectors[:LEAST_ROWS], "ip") if self._dimension % LANES == 0 else None
        if scale is None or scale * SHORTEST > 1.0:
            self._refuse()
            return
        self._scale = scale
        size = self._most_rows * self._dimension
        self._codes = np.frombuffer(anonymous(size), np.int8).reshape(-1, self._dimension)

    def _code(self, vectors: Floats, codes: NDArray[np.int8]) -> None:
        start = self.n
        stop = min(start + _STEP_ROWS, len(vectors), len(codes))
        part = vectors[start:stop]
        numbers = numbers_of(part, self._scale)
        # FAISS keeps a signed byte with 128 added.
        codes[start:stop] = numbers.astype(np.int8) ^ np.int8(-128)
        self._measure(numbers, part)
        self.n = stop

    def _measure(self, numbers: Floats, vectors: Floats) -> None:
        """How wrong bytes with these `numbers` (n, d), which are overwritten, are of `vectors`. Before they count in `n`: who reads
        that has to know it."""
        numbers /= np.float32(self._scale)
        lengths = np.einsum("nd,nd->n", numbers, numbers).max()
        numbers -= vectors
        errors = np.einsum("nd,nd->n", numbers, numbers).max()
        self._length = max(self._length, float(np.sqrt(lengths)) + _LOST)
        self._error = max(self._error, float(np.sqrt(errors)) + _LOST)

    def _codes_of(self, rows: int) -> Any:
        """A FAISS index of the first `rows`; None where bytes were given up meanwhile."""
        held, look = self._look
        if held == rows:
            return look
        codes = self._codes
        if codes is None:
            return None
        look = look_at(codes[:rows], self._scale, _IP)
        self._look = rows, look  # another thread may put that of a later view there meanwhile
        return look


_IP = int(faiss.METRIC_INNER_PRODUCT)
_PROVEN, _NOT_PROVEN = np.array([True]), np.array([False])


def _lengths(vectors: Floats) -> Floats:
    """(n,) of (n, d)."""
    lengths: Floats = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    return lengths


def _sorted(scores: Floats, positions: Rows, k: int) -> tuple[Floats, Rows]:
    if len(scores) == 1:
        best = (-scores[0]).argsort(kind="stable")[:k]
        return scores[:, best], positions[:, best]
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1)
