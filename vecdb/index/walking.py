"""How FAISS is asked: graphs, lists and flat codes, and what is found by small codes compared by vectors."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import numpy as np

from .blocks import Block, FloatBlock, as_keys
from .cells import probing
from .distance import Floats, Rows
from .door import faiss, faiss_metric, flat_over, search_one, use_threads_for
from .signed import Walked, asked, has_bytes

GUIDE_EXTRA = 6
"""Candidates beyond k that a walk over small codes gives, at least, to be compared by the vectors."""

Find = Callable[[Any, int, int], tuple[Floats, Rows]]
"""(queries, k, setting) -> keys and positions; see `Main.search`."""


def finder(kind: str, code: str, index: Any, both: Any, *, alone: bool = False) -> Find:
    """`Main.search` of an index that may not be a Main yet; `both` is its `refined`. `alone`: however many queries are
    given, it answers as each would be answered that comes alone, see `cells.probing`."""
    if both is not None:
        size, metric = int(index.ntotal), int(index.metric_type)

        def compare(queries: Any, k: int, setting: int) -> tuple[Floats, Rows]:
            use_threads_for(len(queries))
            return as_keys(*walk_and_compare(both, queries, k, setting, size), metric)

        return compare

    scale = scale_of(kind, index)

    def find(queries: Any, k: int, setting: int) -> tuple[Floats, Rows]:
        use_threads_for(len(queries))
        if kind == "flat":
            scores, positions = index.search(queries, k)
            return as_keys(scores, positions, int(index.metric_type))
        if kind == "hnsw":
            params = walk(max(setting, k))
            searched = index
        else:
            searched, params = probing(index, setting, 1 if alone else len(queries))
        scores, positions = by_codes(searched, params, queries, k, scale)
        if scores.dtype != np.float32:
            scores = scores.astype(np.float32)
        return as_keys(
            scores, positions, faiss_metric("l2") if code == "binary" else int(index.metric_type)
        )

    return find


def by_codes(
    index: Any, params: Any, queries: Any, k: int, scale: float | None
) -> tuple[Any, Rows]:
    """Scores and positions (q, k) of a graph or lists; `scale` where they hold signed bytes."""
    step = None
    if scale is not None:
        queries, step = asked(queries)
    if len(queries) == 1 and queries.dtype == np.float32:
        scores, positions = search_one(index, queries, k, params)
    else:
        scores, positions = index.search(queries, k, params=params)
    if step is not None:
        scores *= step * np.float32(1.0 / cast("float", scale))
    return scores, positions


def walk_and_compare(
    both: Any, queries: Any, k: int, setting: int, rows: int
) -> tuple[Floats, Rows]:
    """The same of a graph whose candidates are compared by vectors, as `refined` gives it."""
    ef_search, factor = widened(k, setting, rows)
    if isinstance(both, Walked):
        return both.search(queries, k, int(k * factor), walk(ef_search))
    if len(queries) == 1:
        return search_one(both, queries, k, _refine(ef_search, factor))
    scores, positions = both.search(queries, k, params=_refine(ef_search, factor))
    return scores, positions


def scale_of(kind: str, index: Any) -> float | None:
    """What scores of signed bytes are multiplied by; None where no such are searched."""
    if kind == "ivf":
        index = probing(index, 1, 1)[0]
    elif isinstance(index, faiss.IndexHNSW):
        index = index.referenced_objects[0]
    return float(index.sq.rangestat_arg) if has_bytes(index) else None


def guide_of(code: str, index: Any) -> Any:
    """The codes that a graph over float32 walks over; None for everything else."""
    if code != "float32" or not isinstance(index, faiss.IndexHNSW):
        return None
    storage = index.referenced_objects[0]
    return storage if isinstance(storage, faiss.IndexScalarQuantizer) else None


def refined(code: str, graph: Any, block: Block) -> Any:
    """What walks over the guide of `graph` and compares what it finds by the vectors of `block`, a FAISS index or a
    `Walked`; None where there is no guide."""
    if guide_of(code, graph) is None:
        return None
    assert isinstance(block, FloatBlock)
    if has_bytes(graph.referenced_objects[0]):
        return Walked(graph, block.vectors)
    vectors = flat_over(block.vectors, block.metric)
    both = faiss.IndexRefine(graph, vectors)
    both.referenced_objects = [graph, vectors]
    return both


def widened(k: int, setting: int, rows: int) -> tuple[int, float]:
    """(efSearch, candidates as a multiple of k) of a walk over a guide."""
    width = min(rows, k + max(GUIDE_EXTRA, k // 4))
    # FAISS cuts the product off to an integer.
    return max(setting, width), (width + 0.5) / k


@lru_cache(maxsize=4_096)
def walk(ef_search: int) -> Any:
    """Parameters of a walk. A search only reads them, so threads may share them."""
    return faiss.SearchParametersHNSW(efSearch=ef_search)


@lru_cache(maxsize=4_096)
def _refine(ef_search: int, factor: float) -> Any:
    return faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=walk(ef_search))


# Before the interpreter takes FAISS apart: its wrappers would complain that they cannot free them.
atexit.register(walk.cache_clear)
atexit.register(_refine.cache_clear)
