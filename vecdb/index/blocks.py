"""Blocks: vectors by position 0..n, searched exactly. What the tail and the main index are made of.

A block never changes once it is made. Its vectors live in float32 (`FloatBlock`), in float16 inside
a FAISS index (`HalfBlock`), or in the lists of an IVF index (`ListBlock`). Searches may come from
any number of threads. A mask is a bool array of length n, True for positions that may answer.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .distance import Floats, Rows, squares
from .door import L2, bitmap_selector, faiss, knn, through_blas, use_threads_for

Mask = NDArray[np.bool_]

# Share of allowed positions below which picking them out beats a bitmap over the whole block.
# Measured on 16,384 x 384, one thread, AMD EPYC (Zen 4), one query. float32, list of positions
# against bitmap: 13 / 36 us at 1 %, 86 / 101 us at 10 %, 597 / 674 us at 50 %, 1,039 / 939 us at
# 90 %. float16, copied codes against bitmap: 27 / 44 us at 1 %, 160 / 96 us at 10 %.
_PICK_FLOATS = 0.25
_PICK_HALVES = 0.04


class Block(Protocol):
    """Vectors by position, searched exactly."""

    n: int
    metric: int

    @property
    def nbytes(self) -> int: ...

    def search(
        self, queries: Floats, k: int, mask: Mask | None = None, count: int | None = None
    ) -> tuple[Floats, Rows]:
        """Keys and positions (q, min(k, allowed)), each row ascending by key.

        `queries` is float32 (q, d), C-contiguous; `count` is the number of True in `mask`.
        Missing answers have key inf and position -1.
        """

    def take(self, positions: Rows) -> Floats:
        """A float32 copy (len(positions), d) of these vectors as they are stored."""


def as_keys(scores: Floats, positions: Rows, metric: int) -> tuple[Floats, Rows]:
    """FAISS's scores as keys; key inf where the position is -1."""
    keys = scores if metric == L2 else -scores
    missing = positions < 0
    if missing.any():
        keys[missing] = np.inf
    return keys, positions


def _nothing(queries: Floats) -> tuple[Floats, Rows]:
    return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)


def _search(index: Any, queries: Floats, k: int, params: Any = None) -> tuple[Floats, Rows]:
    scores, positions = index.search(queries, k, params=params)
    return scores, positions


def half_index(dimension: int, metric: int) -> Any:
    """An empty FAISS index of float16 codes; its search computes in float32, pair by pair."""
    index = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, metric)
    index.is_trained = True  # float16 has nothing to train
    return index


class FloatBlock:
    """float32 vectors in an array that nobody writes to any more. `owner` keeps it alive."""

    def __init__(self, vectors: Floats, metric: int, owner: Any = None) -> None:
        self.n = len(vectors)
        self.vectors = vectors
        self.metric = metric
        self._owner = owner

    @property
    def nbytes(self) -> int:
        return self.vectors.nbytes

    def search(
        self, queries: Floats, k: int, mask: Mask | None = None, count: int | None = None
    ) -> tuple[Floats, Rows]:
        allowed = (
            self.n if mask is None else int(np.count_nonzero(mask)) if count is None else count
        )
        if allowed == 0:
            return _nothing(queries)
        use_threads_for(len(queries))
        k = min(k, allowed)
        if mask is None or allowed == self.n:
            return self._all(queries, self.vectors, k)
        if allowed > _PICK_FLOATS * self.n:
            selector, kept = bitmap_selector(mask)
            found = knn(queries, self.vectors, k, self.metric, selector)
            del kept
            return as_keys(*found, self.metric)
        picked = np.flatnonzero(mask)
        if not through_blas(*queries.shape):
            selector = faiss.IDSelectorArray(picked.size, faiss.swig_ptr(picked))
            return as_keys(*knn(queries, self.vectors, k, self.metric, selector), self.metric)
        keys, positions = self._all(queries, self.vectors[picked], k)
        return keys, np.where(positions < 0, -1, picked[positions])

    def _all(self, queries: Floats, vectors: Floats, k: int) -> tuple[Floats, Rows]:
        """Search without a mask. l2 batches are proven against the rounding of BLAS.

        Through BLAS a squared distance is |x|^2 - 2xy + |y|^2, off by about e = c * 2^-24 *
        (|x|^2 + |y|^2). So more candidates are taken than asked for and computed again by
        differences; when the last candidate is farther than the k-th answer by more than e, nothing
        outside can belong to the answer. Queries without that proof are searched one by one, which
        is by differences.
        """
        if self.metric != L2 or not through_blas(*queries.shape):
            return as_keys(*knn(queries, vectors, k, self.metric), self.metric)
        width = min(k + 16 + k // 8, len(vectors))
        rough, positions = knn(queries, vectors, width, L2)
        keys = np.empty((len(queries), k), np.float32)
        out = np.empty((len(queries), k), np.int64)
        lengths = np.einsum("qd,qd->q", queries, queries)
        scale = np.float32(2.0**-24 * (16.0 + 2.0 * np.sqrt(queries.shape[1])))
        open_queries = []
        for i in range(len(queries)):
            if positions[i, -1] < 0:
                open_queries.append(i)
                continue
            exact = squares(queries[i : i + 1], vectors[positions[i]])[0]
            order = np.lexsort((positions[i], exact))[:k]
            keys[i], out[i] = exact[order], positions[i][order]
            reach = np.sqrt(lengths[i]) + np.sqrt(keys[i, -1])
            slack = scale * (lengths[i] + reach * reach)
            if width < len(vectors) and not rough[i, -1] - slack > keys[i, -1]:
                open_queries.append(i)
        for i in open_queries:
            one = as_keys(*knn(queries[i : i + 1], vectors, k, L2), L2)
            keys[i], out[i] = one[0][0], one[1][0]
        return keys, out

    def take(self, positions: Rows) -> Floats:
        return self.vectors[positions]


class HalfBlock:
    """float16 vectors inside `index`, an IndexScalarQuantizer that nobody adds to any more."""

    def __init__(self, index: Any, owner: Any = None) -> None:
        self.n = int(index.ntotal)
        self.metric = int(index.metric_type)
        self.dimension = int(index.d)
        self._index = index
        self._owner = owner
        if self.n:
            codes = faiss.rev_swig_ptr(index.codes.data(), self.n * self.dimension * 2)
            self.codes = codes.reshape(self.n, self.dimension * 2)
        else:
            self.codes = np.empty((0, self.dimension * 2), np.uint8)

    @classmethod
    def of(cls, vectors: NDArray[np.floating], metric: int) -> HalfBlock:
        """A block of a float16 copy of `vectors` (n, d)."""
        index = half_index(vectors.shape[1], metric)
        codes = np.ascontiguousarray(vectors, np.float16).view(np.uint8)
        index.add_sa_codes(codes)
        return cls(index)

    @property
    def nbytes(self) -> int:
        return self.n * self.dimension * 2

    def search(
        self, queries: Floats, k: int, mask: Mask | None = None, count: int | None = None
    ) -> tuple[Floats, Rows]:
        allowed = (
            self.n if mask is None else int(np.count_nonzero(mask)) if count is None else count
        )
        if allowed == 0:
            return _nothing(queries)
        use_threads_for(len(queries))
        k = min(k, allowed)
        if mask is None or allowed == self.n:
            return as_keys(*_search(self._index, queries, k), self.metric)
        if allowed > _PICK_HALVES * self.n:
            selector, kept = bitmap_selector(mask)
            found = _search(self._index, queries, k, faiss.SearchParameters(sel=selector))
            del kept
            return as_keys(*found, self.metric)
        picked = np.flatnonzero(mask)
        keys, positions = self.pick(picked).search(queries, k)
        return keys, np.where(positions < 0, -1, picked[positions])

    def pick(self, positions: Rows) -> HalfBlock:
        """A block of a copy of these vectors."""
        index = half_index(self.dimension, self.metric)
        index.add_sa_codes(np.ascontiguousarray(self.codes[positions]))
        return HalfBlock(index)

    def take(self, positions: Rows) -> Floats:
        halves: NDArray[np.float16] = self.codes[positions].view(np.float16)
        return halves.astype(np.float32)


class ListBlock:
    """The vectors of an IVF index: all its lists are visited, so the answer is exact.

    `index` must have ids 0..n and a direct map.
    """

    def __init__(self, index: Any) -> None:
        self.n = int(index.ntotal)
        self.metric = int(index.metric_type)
        self._index = index

    @property
    def nbytes(self) -> int:
        return int(self.n * (self._index.code_size + 16))

    def search(
        self, queries: Floats, k: int, mask: Mask | None = None, count: int | None = None
    ) -> tuple[Floats, Rows]:
        allowed = (
            self.n if mask is None else int(np.count_nonzero(mask)) if count is None else count
        )
        if allowed == 0:
            return _nothing(queries)
        k = min(k, allowed)
        if mask is not None and allowed <= _PICK_HALVES * self.n:
            picked = np.flatnonzero(mask)
            keys, positions = FloatBlock(self.take(picked), self.metric).search(queries, k)
            return keys, np.where(positions < 0, -1, picked[positions])
        use_threads_for(len(queries))
        selector, kept = None, None
        if mask is not None and allowed < self.n:
            selector, kept = bitmap_selector(mask)
        params = faiss.SearchParametersIVF(nprobe=self._index.nlist, sel=selector)
        found = _search(self._index, queries, k, params)
        del kept
        return as_keys(*found, self.metric)

    def take(self, positions: Rows) -> Floats:
        return np.asarray(self._index.reconstruct_batch(positions), np.float32)
