"""Blocks: vectors by position 0..n, searched exactly by what stands for them. What the tail and the
main index are made of.

A block never changes once it is made. Its vectors live in float32 (`FloatBlock`), as codes inside
a FAISS index (`CodeBlock`), in the lists of an IVF index (`ListBlock`), or as bits (`BitBlock`). Searches
may come from any number of threads.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .codes import decoded, like, new_codes
from .distance import Floats, Rows, squares
from .door import L2, bitmap_selector, faiss, knn, through_blas, use_threads_for
from .rough import Rough

Mask = NDArray[np.bool_]

# Share of allowed positions below which picking them out beats a bitmap over the whole block.
# Measured on 16,384 x 384, one thread, AMD EPYC (Zen 4), one query. float32, list of positions
# against bitmap: 13 / 36 us at 1 %, 86 / 101 us at 10 %, 597 / 674 us at 50 %, 1,039 / 939 us at
# 90 %. float16, copied codes against bitmap: 27 / 44 us at 1 %, 160 / 96 us at 10 %.
_PICK_FLOATS = 0.25
_PICK_CODES = 0.04
_COPIED_BYTES = 16 << 20
"""Allowed vectors up to this size are copied for a batch, however many of all they are: BLAS takes no selector.
896 queries to 1,000,000 x 384 in slices of 8,192, of which some are held out: 11.0 s before and 4.9 s after."""
_LOOKED_AT = 4_096
NEAR_COST_A_ROW, FAR_COST_A_ROW = 0.7, 2.4
"""Of a row picked out by a filter, where the one before it is picked too, and where it lies alone, in exact distances to contiguous
vectors: 116,659 rows, 11,400 of them in a run: 35 ns each; 19,900 scattered ones: 145 ns."""


class Allowed:
    """Positions of a block that may answer: a bool mask of length n, or an ascending list, or both."""

    __slots__ = ("_mask", "_near", "_picked", "asked", "count", "deaths", "n", "ways")

    def __init__(
        self,
        n: int,
        *,
        mask: Mask | None = None,
        picked: Rows | None = None,
        deaths: bool = False,
    ) -> None:
        """`deaths`: what is left out are dead rows and nothing else, and less than half of all."""
        self.n = n
        self.deaths = deaths
        self._mask = mask
        self._picked = picked
        self._near: float | None = None
        self.asked = 0
        """How often all of them were compared; kept by `rough_guide.GuideBytes`."""
        self.ways: dict[tuple[int, float], Any] = {}
        """How single queries are answered, by k and target recall; kept by `one.nearest_allowed`."""
        if picked is not None:
            self.count = int(picked.size)
        else:
            assert mask is not None
            self.count = int(np.count_nonzero(mask))

    def mask(self) -> Mask:
        if self._mask is None:
            assert self._picked is not None
            mask = np.zeros(self.n, np.bool_)
            mask[self._picked] = True
            self._mask = mask
        return self._mask

    def picked(self) -> Rows:
        if self._picked is None:
            assert self._mask is not None
            self._picked = np.flatnonzero(self._mask)
        return self._picked

    def cost(self) -> float:
        """Of comparing a query with each of them, picked out of float32 vectors."""
        near = self._near
        if near is None:
            some = self._picked
            if some is None and self._mask is not None:
                some = np.flatnonzero(self._mask[: 16 * _LOOKED_AT])  # to list all may take long
            if some is None or not len(some):
                some = self.picked()
            near = self._near = nearness(some) if len(some) else 0.0
        return self.count * (near * NEAR_COST_A_ROW + (1.0 - near) * FAR_COST_A_ROW)

    def holds(self, positions: Rows) -> Mask:
        """Whether each of these positions, -1 among them, is allowed."""
        found: Mask
        if self._mask is None and self._picked is not None and positions.size * 16 < self.n:
            at = np.searchsorted(self._picked, positions)
            found = (
                self._picked.take(at, mode="clip") == positions if self.count else positions < -1
            )
            return found
        found = self.mask()[positions] & (positions >= 0)
        return found


def nearness(positions: Rows) -> float:
    """Share of these ascending positions, at least one, that lie next to the one before, by the first of them.

    A processor reads ahead in a run. Where every other row is left out it does not: 11,500 float32 rows of 384 dimensions
    took 0.41 ms in a run, 1.65 ms with gaps of one, and as much with gaps of three.
    """
    some = positions[:_LOOKED_AT]
    return float(np.count_nonzero(some[1:] - some[:-1] == 1) / some.size)


class Block(Protocol):
    """Vectors by position, searched exactly."""

    n: int

    @property
    def nbytes(self) -> int: ...

    def search(self, queries: Any, k: int, allowed: Allowed | None = None) -> tuple[Floats, Rows]:
        """Keys and positions (q, min(k, allowed)), each row ascending by key.

        `queries` is float32 (q, d), C-contiguous (bits: uint8). Missing answers have key inf and
        position -1.
        """

    def take(self, positions: Rows) -> Any:
        """A float32 (bits: uint8) copy (len(positions), d) of these vectors as they are stored."""


def as_keys(scores: Floats, positions: Rows, metric: int) -> tuple[Floats, Rows]:
    """FAISS's scores as keys; key inf where the position is -1."""
    keys = scores if metric == L2 else -scores
    missing = positions < 0
    if missing.any():
        keys[missing] = np.inf
    return keys, positions


def _search(index: Any, queries: Floats, k: int, params: Any = None) -> tuple[Floats, Rows]:
    scores, positions = index.search(queries, k, params=params)
    return scores, positions


def _nothing(queries: Any) -> tuple[Floats, Rows]:
    return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)


def _of_picked(keys: Floats, positions: Rows, picked: Rows) -> tuple[Floats, Rows]:
    """Answers among picked vectors as answers of the block."""
    return keys, np.where(positions < 0, -1, picked[positions])


class FloatBlock:
    """float32 vectors in an array that nobody writes to any more. `owner` keeps it alive."""

    def __init__(
        self, vectors: Floats, metric: int, owner: Any = None, rough: Rough | None = None
    ) -> None:
        """`rough`: what finds candidates among these vectors, or among more that begin with them."""
        self.rough = rough if metric != L2 else None
        self.n = len(vectors)
        self.vectors = vectors
        self.metric = metric
        self._owner = owner

    @property
    def nbytes(self) -> int:
        return self.vectors.nbytes + (0 if self.rough is None else self.rough.nbytes)

    def search(
        self, queries: Floats, k: int, allowed: Allowed | None = None
    ) -> tuple[Floats, Rows]:
        count = self.n if allowed is None else allowed.count
        if count == 0:
            return _nothing(queries)
        use_threads_for(len(queries))
        k = min(k, count)
        if count == self.n:
            allowed = None
        if self.rough is not None and not through_blas(*queries.shape):
            if self.rough.pays(allowed, self.n):
                near = self.rough.among(queries, self.vectors, k, allowed)
                if near is not None:
                    return as_keys(*near, self.metric)
            else:
                self.rough.passed_over(allowed)
        if allowed is None:
            return self._all(queries, self.vectors, k)
        copied = self.copies(len(queries), queries.shape[1], count)
        if count > _PICK_FLOATS * self.n and not copied:
            selector, kept = bitmap_selector(allowed.mask())
            found = knn(queries, self.vectors, k, self.metric, selector)
            del kept
            return as_keys(*found, self.metric)
        picked = allowed.picked()
        if not copied:
            selector = faiss.IDSelectorArray(count, faiss.swig_ptr(picked))
            return as_keys(*knn(queries, self.vectors, k, self.metric, selector), self.metric)
        return _of_picked(*self._all(queries, self.vectors[picked], k), picked)

    def by_bytes(self, queries: int, allowed: Allowed | None) -> bool:
        """Whether so many queries are compared by bytes with most of the `allowed` vectors (None: all)."""
        rough = self.rough
        if rough is None or not rough.measured or through_blas(queries, self.vectors.shape[1]):
            return False
        return rough.pays(allowed, self.n)

    def copies(self, queries: int, dimension: int, count: int) -> bool:
        """Whether a search copies the `count` allowed vectors, to multiply all queries with them at once."""
        few = count <= _PICK_FLOATS * self.n or 4 * count * dimension <= _COPIED_BYTES
        return few and through_blas(queries, dimension)

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


class CodeBlock:
    """Codes inside `index`, an IndexScalarQuantizer that nobody adds to any more.

    Its search computes in float32, pair by pair, with what the codes say.
    """

    def __init__(self, index: Any, owner: Any = None) -> None:
        self.n = int(index.ntotal)
        self.metric = int(index.metric_type)
        self.index = index
        self._owner = owner
        width = int(index.code_size)
        if self.n:
            codes = faiss.rev_swig_ptr(index.codes.data(), self.n * width)
            self.codes: NDArray[np.uint8] = codes.reshape(self.n, width)
        else:
            self.codes = np.empty((0, width), np.uint8)

    @classmethod
    def of(cls, vectors: NDArray[np.floating], code: str, metric: str) -> CodeBlock:
        """A block of copies of `vectors` (n, d) in a code that needs no training."""
        index = new_codes(code, vectors.shape[1], metric)
        index.add(np.ascontiguousarray(vectors, np.float32))
        return cls(index)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes

    def search(
        self, queries: Floats, k: int, allowed: Allowed | None = None
    ) -> tuple[Floats, Rows]:
        count = self.n if allowed is None else allowed.count
        if count == 0:
            return _nothing(queries)
        use_threads_for(len(queries))
        k = min(k, count)
        if allowed is None or count == self.n:
            return as_keys(*_search(self.index, queries, k), self.metric)
        if count > _PICK_CODES * self.n:
            selector, kept = bitmap_selector(allowed.mask())
            found = _search(self.index, queries, k, faiss.SearchParameters(sel=selector))
            del kept
            return as_keys(*found, self.metric)
        picked = allowed.picked()
        return _of_picked(*self.pick(picked).search(queries, k), picked)

    def pick(self, positions: Rows) -> CodeBlock:
        """A block of a copy of these vectors."""
        index = like(self.index)
        index.add_sa_codes(np.ascontiguousarray(self.codes[positions]))
        return CodeBlock(index)

    def take(self, positions: Rows) -> Floats:
        return decoded(self.index, self.codes[positions])


class ListBlock:
    """The vectors of an IVF index: all its lists are visited, so the answer is exact by its codes.

    `index` must have ids 0..n and a direct map.
    """

    def __init__(self, index: Any) -> None:
        self.n = int(index.ntotal)
        self.metric = int(index.metric_type)
        self._index = index

    @property
    def nbytes(self) -> int:
        size: int = self.n * (16 + int(self._index.code_size))
        return size

    def search(
        self, queries: Floats, k: int, allowed: Allowed | None = None
    ) -> tuple[Floats, Rows]:
        count = self.n if allowed is None else allowed.count
        if count == 0:
            return _nothing(queries)
        k = min(k, count)
        if allowed is not None and count <= _PICK_CODES * self.n:
            picked = allowed.picked()
            found = FloatBlock(self.take(picked), self.metric).search(queries, k)
            return _of_picked(*found, picked)
        use_threads_for(len(queries))
        selector, kept = None, None
        if allowed is not None and count < self.n:
            selector, kept = bitmap_selector(allowed.mask())
        params = faiss.SearchParametersIVF(nprobe=self._index.nlist, sel=selector)
        found = _search(self._index, queries, k, params)
        del kept
        return as_keys(*found, self.metric)

    def take(self, positions: Rows) -> Floats:
        return np.asarray(self._index.reconstruct_batch(positions), np.float32)


class BitBlock:
    """Packed bits, uint8 (n, bits / 8), compared by the number of bits that differ."""

    def __init__(self, vectors: NDArray[np.uint8], owner: Any = None) -> None:
        self.n = len(vectors)
        self.vectors = vectors
        self._owner = owner

    @property
    def nbytes(self) -> int:
        return self.vectors.nbytes

    def search(
        self, queries: NDArray[np.uint8], k: int, allowed: Allowed | None = None
    ) -> tuple[Floats, Rows]:
        count = self.n if allowed is None else allowed.count
        if count == 0:
            return _nothing(queries)
        use_threads_for(len(queries))
        k = min(k, count)
        if allowed is None or count == self.n:
            return self._all(queries, self.vectors, k)
        picked = allowed.picked()
        return _of_picked(*self._all(queries, self.vectors[picked], k), picked)

    @staticmethod
    def _all(queries: NDArray[np.uint8], vectors: NDArray[np.uint8], k: int) -> tuple[Floats, Rows]:
        found, positions = faiss.knn_hamming(queries, np.ascontiguousarray(vectors), k)
        return found.astype(np.float32), positions

    def take(self, positions: Rows) -> NDArray[np.uint8]:
        return self.vectors[positions]
