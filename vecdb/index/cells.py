"""Which lists a query probes: those with the nearest centroids, found by small codes of these.

To compare a query with every centroid takes about as long as to search the lists that are probed then: 4,000 x 384 in
float32 are 6 MB, more than the caches of a core hold. So many centroids have codes of two bits a dimension beside
them, which FAISS's fast scan compares at 32 a step; what is best by the codes is compared again in float32. One
query, 4,000 x 384, the ten nearest: 63 us instead of 285, and 99.5 % of them are the ten that are nearest in
truth. What that costs in recall the calibration sees: it searches this way too.

The codes follow from the centroids and are made where an index is built or opened, in 45 ms; no file has them.
"""

from __future__ import annotations

import atexit
from functools import lru_cache
from typing import Any

import numpy as np

from .distance import Floats, at_a_line
from .door import faiss, flat_over
from .signed import scale_between, signed_quantizer

LEAST_SCALARS = 400_000
"""Of centroids that have codes. 1,000 x 384: 39 us by codes and 69 without, 500 x 384: 34 and 27."""
_CANDIDATES, _CANDIDATES_A_LIST = 40, 4
"""Centroids that are compared again, for each list to be probed and beside. Of 4,000 x 384 98 % of the nearest were
among four times as many, 99.5 % among eight times."""
_MOST_QUERIES = 32
"""For more at once FAISS multiplies matrices. 4,000 x 384, one thread, us a query by codes and without: 32 queries 53 and
71, 100 queries 50 and 44, 256 queries 48 and 36; 1,400 x 384: 16 queries 35 and 31, 32 queries 34 and 23."""
_MOST_SHARE = 4
"""Where more than one in so many is to be compared again, codes spare nothing any more."""
_SCAN_COST = 6
"""Codes that cost as much as a comparison in float32, with all that is around them."""
_NOTHING = (None, None, None)
_LEVELS = np.array([-1.510, -0.4528, 0.4528, 1.510], np.float32)
"""The best four values for a normal distribution: J. Max, Quantizing for minimum distortion, IRE Transactions on
Information Theory 6 (1960), table I."""


def align_centroids(lists: Any) -> None:
    """Moves the centroids of an IVF index to memory of its own that begins at a cache line, since all of them may be
    compared with each query; gives them codes where they are many. To be called whenever vectors have been added."""
    if not lists.own_fields:
        # They are there; vectors may have come since.
        for twin in lists.referenced_objects[1:]:
            if twin is not None:
                twin.ntotal = lists.ntotal
        return
    old = lists.quantizer
    centroids = at_a_line(old.reconstruct_n(0, int(lists.nlist)))
    flat = flat_over(centroids, int(lists.metric_type))
    lists.own_fields = False
    type(old).__swig_destroy__(old)
    lists.quantizer = flat
    flat.thisown = True  # see `main.attach`
    many = centroids.size >= LEAST_SCALARS and centroids.shape[1] % 2 == 0
    # The wrappers of FAISS take no other name. A twin is searched for the lists that it shares with `lists`: as signed
    # bytes where they can be that, and by codes of the centroids.
    scale = None
    if isinstance(lists, faiss.IndexIVFScalarQuantizer):
        scale = scale_between(lists.sq)
    lists.referenced_objects = [
        flat,
        None if scale is None else _twin(lists, flat, scale),
        _twin(lists, _coded(flat, centroids), scale) if many else None,
    ]


def probing(lists: Any, nprobe: int, queries: int) -> tuple[Any, Any]:
    """The index to search for the `nprobe` nearest lists of an IVF index by so many queries at once, and the
    parameters of its search. `lists` has to outlive it. 2 us.
    """
    nprobe = min(nprobe, int(lists.nlist))
    twin = _by_codes(lists, nprobe) if queries <= _MOST_QUERIES else None
    if twin is not None:
        return twin, _probe_by_codes(nprobe)
    signed = _held(lists)[1]
    return (lists if signed is None else signed), _probe(nprobe)


def rows_probed(lists: Any, queries: Floats, nprobe: int) -> int:
    """Rows, dead ones among them, in the `nprobe` lists nearest to a query, mean over the `queries` (q, d): for who asks
    what a search has read. The lists are found once more, which takes as long as it took the search."""
    index, params = probing(lists, nprobe, len(queries))
    count = min(nprobe, int(lists.nlist))
    nearest = index.quantizer.search(queries, count, params=params.quantizer_params)[1]
    probed, times = np.unique(nearest[nearest >= 0], return_counts=True)
    held = [index.invlists.list_size(int(one)) for one in probed]
    return round(float(np.dot(held, times)) / len(queries))


def cost(lists: Any, nprobe: int) -> float:
    """Of finding the nearest lists for a query, in comparisons with a vector."""
    count = int(lists.nlist)
    if _by_codes(lists, nprobe) is None:
        return float(count)
    return count / _SCAN_COST + _compared_again(nprobe)


def _by_codes(lists: Any, nprobe: int) -> Any:
    """The twin of lists that finds so many of them by codes; None where there is none, or it spares nothing."""
    twin = _held(lists)[2]
    if twin is None or _MOST_SHARE * _compared_again(nprobe) > lists.nlist:
        return None
    return twin


def _held(lists: Any) -> Any:
    """What `align_centroids` has put beside lists: their centroids, and two twins or None."""
    held: Any = getattr(lists, "referenced_objects", _NOTHING)
    return held if len(held) == len(_NOTHING) else _NOTHING


def _compared_again(nprobe: int) -> int:
    return _CANDIDATES + _CANDIDATES_A_LIST * nprobe


@lru_cache(maxsize=4_096)
def _probe(nprobe: int) -> Any:
    """A search only reads its parameters, so threads may share them."""
    return faiss.SearchParametersIVF(nprobe=nprobe)


@lru_cache(maxsize=4_096)
def _probe_by_codes(nprobe: int) -> Any:
    # FAISS cuts the product off to an integer.
    factor = (_compared_again(nprobe) + 0.5) / nprobe
    again = faiss.IndexRefineSearchParameters(k_factor=factor)
    return faiss.SearchParametersIVF(nprobe=nprobe, quantizer_params=again)


# Before the interpreter takes FAISS apart: its wrappers would complain that they cannot free them.
atexit.register(_probe.cache_clear)
atexit.register(_probe_by_codes.cache_clear)


def _coded(flat: Any, centroids: Floats) -> Any:
    """An index that searches `centroids` by codes and compares what it finds by `flat`, which holds them.

    Two dimensions share a code of four bits: it says which of four values each of them is next to. These are the
    product quantizer that training would find for independent normal values, and take no training.
    """
    dimension = centroids.shape[1]
    # Squares of the largest numbers that are allowed have sums beyond float32.
    mean = centroids.mean(axis=0, dtype=np.float64)
    deviation = centroids.std(axis=0, dtype=np.float64)
    values = mean[:, None] + np.maximum(deviation, 1e-30)[:, None] * _LEVELS
    pairs = np.empty((dimension // 2, 4, 4, 2), np.float32)
    pairs[..., 0] = values[0::2, :, None]
    pairs[..., 1] = values[1::2, None, :]
    codes = faiss.IndexPQFastScan(dimension, dimension // 2, 4, int(flat.metric_type))
    faiss.copy_array_to_vector(pairs.ravel(), codes.pq.centroids)
    codes.is_trained = True
    codes.add(centroids)
    both = faiss.IndexRefine(codes, flat)
    both.referenced_objects = [codes, flat]
    return both


def empty_like(lists: Any, quantizer: Any) -> Any:
    """An IVF index with the codes of another, lists that are empty, and `quantizer`, which it keeps."""
    dimension, count, metric = int(lists.d), int(lists.nlist), int(lists.metric_type)
    if isinstance(lists, faiss.IndexIVFFlat):
        twin = faiss.IndexIVFFlat(quantizer, dimension, count, metric)
    elif isinstance(lists, faiss.IndexIVFScalarQuantizer):
        kind, by_residual = int(lists.sq.qtype), bool(lists.by_residual)
        twin = faiss.IndexIVFScalarQuantizer(quantizer, dimension, count, kind, metric, by_residual)
        twin.sq = lists.sq
    else:
        fast = isinstance(lists, faiss.IndexIVFPQFastScan)
        make = faiss.IndexIVFPQFastScan if fast else faiss.IndexIVFPQ
        pq = lists.pq
        twin = make(quantizer, dimension, count, int(pq.M), int(pq.nbits), metric)
        twin.pq = pq
        twin.by_residual = lists.by_residual
        if not fast:
            twin.use_precomputed_table = lists.use_precomputed_table
    twin.is_trained = True
    twin.referenced_objects = [quantizer]
    return twin


def _twin(lists: Any, quantizer: Any, scale: float | None) -> Any:
    """An IVF index with the inverted lists of another and a quantizer of its own, in no memory to speak of; `scale` where
    their codes are to be signed bytes.

    It does not keep `lists` alive: the two would keep each other for ever.
    """
    twin = empty_like(lists, quantizer)
    if scale is not None:
        twin.sq = signed_quantizer(int(lists.d), scale)
    twin.replace_invlists(lists.invlists, False)
    twin.ntotal = lists.ntotal
    return twin
