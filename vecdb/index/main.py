"""The main index: an HNSW graph or IVF lists over the rows that were live when it was built.

Positions 0..n inside FAISS stand for the row numbers in `rows`. A main index never changes once it
is made; growing it makes another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .blocks import Block, FloatBlock, HalfBlock, ListBlock, as_keys, half_index
from .calibrate import Curve
from .distance import Floats, Rows
from .door import faiss, faiss_metric, use_threads_for

HNSW_M = 16
EF_CONSTRUCTION = 100
"""Recall measured on 30,000 WordNet vectors, 384 dimensions, M = 16: recall@10 at efSearch 64 is 0.984
with 80, 0.988 with 100, 0.991 with 140, 0.992 with 200; recall@100 at efSearch 100 is 0.951, 0.955,
0.958 and 0.960. The step from 80 to 100 gains most. Build times were taken on a busy machine, too
noisy to compare."""

EF_SETTINGS = (16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 128, 192, 256, 384, 512, 768, 1024)
GRAPH_BYTES_A_ROW = 2 * HNSW_M * 4 + 16


@dataclass(frozen=True, slots=True)
class Main:
    """A main index. `index` is a FAISS index whose vectors `block` searches exactly.

    `rows` (n,) int64 are the row numbers of positions, in no particular order; all are below
    `high_water`. Rows below `high_water` that are not in `rows` were dead when it was built.
    """

    kind: str
    index: Any
    block: Block
    rows: Rows
    high_water: int
    curve: Curve

    @property
    def n(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        graph = self.n * GRAPH_BYTES_A_ROW if self.kind == "hnsw" else 0
        return self.block.nbytes + graph + self.rows.nbytes

    def search(self, queries: Floats, k: int, setting: int) -> tuple[Floats, Rows]:
        """Approximate answers: keys and positions (q, k) ascending; inf and -1 where there is none.

        `queries` float32 (q, d), C-contiguous; k <= n; `setting` is efSearch or nprobe.
        """
        return search(self.kind, self.index, queries, k, setting)


def search(kind: str, index: Any, queries: Floats, k: int, setting: int) -> tuple[Floats, Rows]:
    use_threads_for(len(queries))
    if kind == "hnsw":
        params = _walk(max(setting, k))
    else:
        params = faiss.SearchParametersIVF(nprobe=min(setting, index.nlist))
    scores, positions = index.search(queries, k, params=params)
    return as_keys(scores, positions, int(index.metric_type))


@lru_cache(maxsize=4_096)
def _walk(ef_search: int) -> Any:
    """Parameters of a walk. A search only reads them, so threads may share them."""
    return faiss.SearchParametersHNSW(efSearch=ef_search)


def new_hnsw(dimension: int, metric: str, storage: str) -> Any:
    """An empty graph over vectors of `storage`."""
    if storage == "float16":
        half = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexHNSWSQ(dimension, half, HNSW_M, faiss_metric(metric))
        index.storage.is_trained = True
        index.is_trained = True
    else:
        index = faiss.IndexHNSWFlat(dimension, HNSW_M, faiss_metric(metric))
    index.hnsw.efConstruction = EF_CONSTRUCTION
    return index


def new_ivf(dimension: int, metric: str, storage: str, centroids: Floats) -> Any:
    """Empty lists around `centroids` (nlist, d)."""
    quantizer = faiss.IndexFlat(dimension, faiss_metric(metric))
    quantizer.add(centroids)
    if storage == "float16":
        half = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexIVFScalarQuantizer(
            quantizer, dimension, len(centroids), half, faiss_metric(metric), False
        )
    else:
        index = faiss.IndexIVFFlat(quantizer, dimension, len(centroids), faiss_metric(metric))
    quantizer.this.disown()
    index.own_fields = True
    index.is_trained = True
    return index


def storage_of(size: int, dimension: int, metric: str, storage: str) -> tuple[Any, Any]:
    """FAISS vectors for `size` rows with undefined content, and a writable (size, d) look at them.

    Filling in place, in any order, keeps one copy of the vectors in memory while loading.
    """
    half = storage == "float16"
    kind: Any = np.float16 if half else np.float32
    index = (
        half_index(dimension, faiss_metric(metric))
        if half
        else faiss.IndexFlat(dimension, faiss_metric(metric))
    )
    if not size:
        return index, np.empty((0, dimension), kind)
    bytes_needed = size * dimension * (2 if half else 4)
    index.codes.resize(bytes_needed)
    index.ntotal = size
    look = faiss.rev_swig_ptr(index.codes.data(), bytes_needed)
    return index, look.view(kind).reshape(size, dimension)


def attach_storage(graph: Any, storage: Any) -> None:
    """Give a graph that was read without vectors its vectors; it owns them from then on."""
    graph.storage = storage
    storage.this.disown()
    graph.own_fields = True


def block_of(kind: str, index: Any, storage: str) -> Block:
    """The exact side of a filled main index."""
    if kind == "ivf":
        return ListBlock(index)
    inner = faiss.downcast_index(index.storage)
    if storage == "float16":
        return HalfBlock(inner, owner=index)
    n, d = int(inner.ntotal), int(inner.d)
    if not n:
        return FloatBlock(np.empty((0, d), np.float32), int(inner.metric_type), owner=index)
    vectors = faiss.rev_swig_ptr(inner.get_xb(), n * d).reshape(n, d)
    return FloatBlock(vectors, int(inner.metric_type), owner=index)
