"""Signed bytes: the form in which walks read 8-bit codes whose bounds all dimensions share.

Such a code says `scale` x number, rounded. FAISS compares codes between bounds of each dimension by taking every number
out of them first; two vectors of signed bytes it compares as integers. 384 dimensions take 20 ns instead of 46, a graph
over them is built in 0.6 of the time, and a walk takes 0.65 of it (2 cores of an Intel Xeon with AVX-512). The bytes are
the same, so lists and graphs have both looks at them: one between bounds, which is saved, knows no rounding of queries
and goes to GPUs, and this one. A query is rounded to 8 bits here, by a scale of its own, so what is found is
compared again by more exact codes or vectors, as all answers of lossy codes are.

Under l2 none of this is done: queries and centroids would need the scale of the vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .distance import Floats, Rows
from .door import address, best_products, faiss, products_at, search_one, view_of

_BYTES = faiss.ScalarQuantizer.QT_8bit_direct_signed
_BOUNDS = faiss.ScalarQuantizer.QT_8bit
_LARGEST = 127
_LOWEST, _REACH = -128.5, 255.0
"""Bounds, as multiples of 1 / scale, between which FAISS decodes a byte to what the signed byte of the same bits says."""
_LEAST_DIMENSION = 65
"""Up to 64 dimensions FAISS is quicker with bounds: 10 ns against 19."""
LANES = 8
"""Where it does not divide the dimension FAISS compares scalar codes of any kind number by number: 100 dimensions of 8 bits take
91 ns, 104 take 14; signed bytes 54 and 8, float32 21. (One thread of an Intel Xeon with AVX-512.)"""
_ROOM = 0.05
"""The shared bounds reach so far beyond the sample's largest number, as a share of it: later vectors fit too."""
_MOST_COARSE = 2.0
"""Shared bounds may be so many times as coarse as bounds of each dimension: a bit is lost then. WordNet: 1.4; a graph
over these codes finds as much there: recall@10 at efSearch 32 and 128 0.963 and 0.994, with bounds of each 0.961 and
0.994."""
LEAST_STEP = np.float32(_LARGEST * np.finfo(np.float32).tiny)
"""Of the largest number of a query: a step below the least normal number has no digits."""
STEP_OF_LARGEST = np.float32(1.0 / _LARGEST)


def shared_scale(sample: Floats, metric: str) -> float | None:
    """The scale for vectors like `sample` (n, d); None where bounds of each dimension serve better, as where a few
    dimensions reach much farther than others."""
    if metric not in ("cosine", "ip") or not len(sample) or sample.shape[1] < _LEAST_DIMENSION:
        return None
    low, high = sample.min(axis=0).astype(np.float64), sample.max(axis=0).astype(np.float64)
    reach = (1.0 + _ROOM) * float(np.maximum(-low, high).max())
    largest = float(np.finfo(np.float32).max)
    if not _LARGEST / largest < reach < largest:
        return None  # some number of float32 would be infinite
    steps = (1.0 + 2.0 * _ROOM) * (high - low) / _REACH
    if reach / _LARGEST > _MOST_COARSE * float(np.sqrt(np.mean(steps * steps))):
        return None
    return float(np.float32(_LARGEST / reach))


def set_bounds(quantizer: Any, scale: float) -> None:
    """Gives a scalar quantizer of 8 bits the same bounds for all dimensions."""
    bounds = np.array([_LOWEST, _REACH]) / scale
    trained = np.repeat(bounds.astype(np.float32), int(quantizer.d))
    faiss.copy_array_to_vector(trained, quantizer.trained)


def scale_between(quantizer: Any) -> float | None:
    """The scale of a scalar quantizer whose bounds were set by `set_bounds`; None for all others."""
    if int(quantizer.qtype) != _BOUNDS:
        return None
    trained = faiss.vector_to_array(quantizer.trained)
    d = int(quantizer.d)
    if trained.size != 2 * d or not trained[d] > 0.0:
        return None
    scale = _REACH / float(trained[d])
    low = np.float32(_LOWEST / scale)
    same = bool((trained[d:] == trained[d]).all() and (trained[:d] == trained[0]).all())
    return scale if same and np.isclose(trained[0], low, rtol=1e-6, atol=0.0) else None


def signed_quantizer(dimension: int, scale: float) -> Any:
    """The quantizer of signed bytes."""
    quantizer = faiss.ScalarQuantizer(dimension, _BYTES)
    # FAISS has a use for it only where it trains; here it says what the bytes stand for.
    quantizer.rangestat_arg = scale
    return quantizer


def for_walks(codes: Any) -> Any:
    """Flat codes as walks compare them: signed bytes where they can be that, in the same memory; else `codes`."""
    if not isinstance(codes, faiss.IndexScalarQuantizer):
        return codes
    scale = scale_between(codes.sq)
    return codes if scale is None else _view(codes, signed_quantizer(int(codes.d), scale))


def between_bounds(codes: Any) -> Any:
    """The other way: codes that know no rounding of queries, in the same memory."""
    if not has_bytes(codes):
        return codes
    quantizer = faiss.ScalarQuantizer(int(codes.d), _BOUNDS)
    set_bounds(quantizer, float(codes.sq.rangestat_arg))
    return _view(codes, quantizer)


def emptied(codes: Any) -> Any:
    """Codes that walks compare, with the bounds of these empty ones, to be added to by `as_added`."""
    if not isinstance(codes, faiss.IndexScalarQuantizer):
        return codes
    scale = scale_between(codes.sq)
    if scale is None:
        return codes
    return _empty(signed_quantizer(int(codes.d), scale), int(codes.metric_type))


def look_at(codes: NDArray[np.int8], scale: float, metric: int) -> Any:
    """Flat codes over (n, d) bytes as FAISS keeps them, signed ones with 128 added, without a copy of them."""
    n, d = codes.shape
    look = _empty(signed_quantizer(d, scale), metric)
    return _filled(look, faiss.swig_ptr(codes.reshape(-1).view(np.uint8)), n, codes)


def _view(codes: Any, quantizer: Any) -> Any:
    look = _empty(quantizer, int(codes.metric_type))
    return _filled(look, codes.codes.data(), int(codes.ntotal), codes)


def _empty(quantizer: Any, metric: int) -> Any:
    made = faiss.IndexScalarQuantizer(int(quantizer.d), int(quantizer.qtype), metric)
    made.sq = quantizer
    made.is_trained = True
    return made


def _filled(look: Any, data: Any, n: int, owner: Any) -> Any:
    """Empty codes as a look at those of n vectors, which `owner` keeps alive."""
    if n:
        look.codes = view_of(data, n * int(look.code_size))
    look.ntotal = n
    look.referenced_objects = [owner]
    return look


def has_bytes(index: Any) -> bool:
    """Whether `index`, flat or lists, has signed bytes."""
    quantizer = getattr(index, "sq", None)
    return quantizer is not None and int(quantizer.qtype) == _BYTES


def as_added(codes: Any, vectors: Any) -> Any:
    """Vectors (n, d) float32 (bits: uint8) as `codes.add` takes them, C-contiguous. FAISS cuts numbers off to bytes,
    whatever they are, so they are rounded here, and kept within."""
    if not has_bytes(codes):
        return np.ascontiguousarray(vectors)
    return numbers_of(vectors, float(codes.sq.rangestat_arg))


def numbers_of(vectors: Floats, scale: float) -> Floats:
    """What the bytes of vectors (n, d) say, -128 to 127, as float32 (n, d), C-contiguous."""
    with np.errstate(over="ignore"):  # which is kept within like others
        scaled: Floats = np.multiply(vectors, np.float32(scale), dtype=np.float32, order="C")
    np.rint(scaled, out=scaled)
    return np.clip(scaled, -_LARGEST - 1, _LARGEST, out=scaled)


def asked(queries: Floats) -> tuple[Floats, Floats]:
    """Queries (q, d) rounded to numbers of -127 to 127, and what each was divided by for it (q, 1). 5 us for one of 384."""
    step = np.abs(queries).max(axis=1, keepdims=True)
    np.maximum(step, LEAST_STEP, out=step)
    step *= STEP_OF_LARGEST
    rounded = queries / step
    return np.rint(rounded, out=rounded), step


class Walked:
    """A graph over signed bytes, whose candidates are compared by float32 vectors. Any thread may ask."""

    def __init__(self, graph: Any, vectors: Floats) -> None:
        """`vectors` (n, d), by position of the graph; neither is copied."""
        self.graph, self.vectors = graph, vectors
        self._origin = address(vectors)

    def search(self, queries: Floats, k: int, width: int, params: Any) -> tuple[Floats, Rows]:
        """Inner products and positions (q, k), best first, of the best of `width` candidates for each of the queries (q, d);
        -inf and -1 where there are fewer."""
        found, _ = asked(queries)
        if len(queries) == 1:
            positions = search_one(self.graph, found, width, params)[1]
            return best_products(queries, self.vectors, positions, k)
        positions = self.graph.search(found, width, params=params)[1]
        missing = positions < 0 if positions[:, -1].min() < 0 else None
        if missing is None:
            scores = products_at(queries, self._origin, positions)
        else:
            scores = products_at(queries, self._origin, np.maximum(positions, 0))
            scores[missing] = -np.inf
        order = np.argsort(-scores, axis=1)[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1)
