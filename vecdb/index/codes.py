"""Codes: the forms in which an index holds vectors, and what each loses.

A *code* is what stands for a vector inside FAISS. `float32` loses nothing, `float16` rounds, `sq8` and
`sq4` keep 8 or 4 bits a dimension between trained bounds (`sq8` often between bounds that all dimensions share, see
`signed.py`), `pq4` names the nearest of 16 trained values for each few dimensions (product quantization, read by FAISS's fast-scan: André, Kermarrec and Le Scouarnec, VLDB 2015),
`pq8` the nearest of 256 (Jégou, Douze and Schmid, PAMI 2011), in as many bytes as a GPU can hold;
`binary` are stored bits as they are. Stored integers
of 8 bits are float16 here, which holds them exactly: FAISS's own byte codes round the query to bytes
too (where 32 divides the dimension). Answers found by a lossy code are ranked again by the stored vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .distance import Floats, unit, wide
from .door import faiss, faiss_metric
from .signed import LANES, as_added, has_bytes, set_bounds, shared_scale

SCALAR_TYPES = {
    "float16": faiss.ScalarQuantizer.QT_fp16,
    "sq8": faiss.ScalarQuantizer.QT_8bit,
    "sq4": faiss.ScalarQuantizer.QT_4bit,
}
_ROOM = 0.05
"""Bounds reach so far beyond those of the sample, as a share of their distance: later vectors fit too."""
_FINE_SHARE = 0.1
"""A code is fine enough to build a graph over when its error is below this share of the distance to
the tenth neighbour among a sample. WordNet under sq8: 0.02, and the graph is as good as one built over
float32 (recall@10 at efSearch 32: 0.960 and 0.959; 128: 0.992 and 0.992), in 10.9 s instead of 18.5 s."""
_FINE_QUERIES = 256
GPU_PARTS = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
"""Bytes of a product-quantized vector on a GPU; FAISS 1.15, `IVFPQ::isSupportedPQCodeLength`."""
FLOAT32_TABLES = 48
"""Parts whose tables of distances in float32 fit the 48 KiB of shared memory that a block has there. Those of more
are float16, which loses digits and overflows at 65,504."""
_PART_SIZES = (4, 5, 3, 6, 7, 8, 2, 1)
LEAST_GUIDED_DIMENSION = 64
"""Below it a vector is a few cache lines, and to compare candidates again may cost what small codes spare.
A guess: only 384 dimensions have been measured."""


def own_code(storage: str) -> str:
    """The code that comes nearest to stored vectors; without loss but for unit vectors in float16."""
    return "float16" if storage in ("int8", "uint8") else storage


def code_of(storage: str, metric: str, quantization: str) -> str:
    """The code of a main index of a collection with this storage and (resolved) quantization."""
    if quantization == "none" or storage in ("int8", "uint8", "binary"):
        return own_code(storage)
    return quantization


def is_lossy(code: str, storage: str, metric: str) -> bool:
    """Whether distances by `code` differ from those of the stored vectors."""
    if code != own_code(storage):
        return True
    return metric == "cosine" and code == "float16"


def code_bytes(code: str, dimension: int) -> int:
    """Bytes of one vector in this code."""
    return {
        "float32": 4 * dimension,
        "float16": 2 * dimension,
        "sq4": (dimension + 1) // 2,
        "pq4": (dimension // part_of(dimension) + 1) // 2,
        "pq8": parts_of(dimension),
        "binary": dimension // 8,
    }.get(code, dimension)


def vector_bytes(code: str, dimension: int) -> int:
    """Bytes of a vector in the index's space, before it is coded."""
    return code_bytes("binary" if code == "binary" else "float32", dimension)


def part_of(dimension: int) -> int:
    """Dimensions that one value of `pq4` stands for: 4, or what is near to it and divides the dimension."""
    return next(size for size in _PART_SIZES if dimension % size == 0)


def parts_of(dimension: int) -> int:
    """Bytes of a vector in `pq8`: a quarter of the dimension or what is near to it, where a GPU can hold that many, in
    float32 tables, and they divide the dimension."""
    fitting = [n for n in GPU_PARTS if n <= FLOAT32_TABLES and dimension % n == 0]
    return min(fitting, key=lambda n: (abs(n - dimension / 4), -n))


def guide_bytes(kind: str, code: str, dimension: int) -> int:
    """Bytes of what a graph over float32 is walked over, a vector, where its codes are fine."""
    graph = kind == "hnsw" and code == "float32"
    guided = graph and dimension >= LEAST_GUIDED_DIMENSION and dimension % LANES == 0
    return code_bytes("sq8", dimension) if guided else 0


def to_space(vectors: NDArray[Any], metric: str, storage: str) -> NDArray[Any]:
    """Stored vectors (n, width) as the index compares them: float32 C-contiguous (binary: uint8).

    Unit length for cosine; rounded to float16 where the tail holds float16.
    """
    if storage == "binary":
        return np.ascontiguousarray(vectors, np.uint8)
    floats = unit(vectors) if metric == "cosine" else wide(vectors)
    rounded = vectors.dtype == np.float16 and metric != "cosine"
    if own_code(storage) == "float16" and not rounded:
        floats = floats.astype(np.float16).astype(np.float32)
    return floats


def new_codes(
    code: str, dimension: int, metric: str, sample: Floats | None = None, *, shared: bool = True
) -> Any:
    """An empty FAISS index of codes. sq8 and sq4 take their bounds from `sample` (n, d) float32; all dimensions those of sq8
    where that may be and loses little, unless not `shared`.

    float32 gives an `IndexFlat`; all others an `IndexScalarQuantizer`.
    """
    if code == "float32":
        return faiss.IndexFlat(dimension, faiss_metric(metric))
    index = faiss.IndexScalarQuantizer(dimension, SCALAR_TYPES[code], faiss_metric(metric))
    if code != "float16":
        assert sample is not None
        train_scalars(index.sq, code, metric, sample, _ROOM, shared=shared)
    index.is_trained = True
    return index


def train_scalars(
    quantizer: Any,
    code: str,
    metric: str,
    sample: Floats,
    room: float = 0.0,
    *,
    shared: bool = True,
) -> None:
    """Gives a scalar quantizer of sq8 or sq4 its bounds, from `sample` (n, d) float32; those of each dimension reach
    `room` of their distance beyond the sample's."""
    scale = shared_scale(sample, metric) if shared and code == "sq8" else None
    if scale is not None:
        set_bounds(quantizer, scale)
        return
    quantizer.rangestat_arg = room
    quantizer.train(np.ascontiguousarray(sample, np.float32))


def like(index: Any) -> Any:
    """An empty index with the same code and bounds."""
    dimension, metric = int(index.d), int(index.metric_type)
    other = faiss.IndexScalarQuantizer(dimension, int(index.sq.qtype), metric)
    other.sq = index.sq
    other.is_trained = True
    return other


def decoded(index: Any, codes: NDArray[np.uint8]) -> Floats:
    """Vectors (n, d) float32 of codes (n, bytes)."""
    if int(index.sq.qtype) == SCALAR_TYPES["float16"]:
        halves: NDArray[np.float16] = codes.view(np.float16)
        # Not by `wide`: values that are too large for a half are infinite here.
        return halves.astype(np.float32)
    vectors = np.asarray(index.sa_decode(np.ascontiguousarray(codes)), np.float32)
    return vectors / np.float32(index.sq.rangestat_arg) if has_bytes(index) else vectors


def coded(index: Any, vectors: Floats) -> Floats:
    """Vectors (n, d) float32 as their codes in `index` stand for them."""
    return decoded(index, index.sa_encode(as_added(index, vectors)))


def largest_error(index: Any, vectors: Floats) -> float:
    """Largest Euclidean distance of one of `vectors` from what its code says."""
    difference = coded(index, vectors) - vectors
    return float(np.sqrt(np.einsum("nd,nd->n", difference, difference).max(initial=0.0)))


def typical_error(index: Any, vectors: Floats) -> float:
    """Root of the mean squared Euclidean distance of `vectors` from what their codes say."""
    difference = coded(index, vectors) - vectors
    return float(np.sqrt(np.einsum("nd,nd->n", difference, difference).mean()))


def is_fine(code: str, sample: Floats, metric: str) -> bool:
    """Whether a graph built over `code` will join the right neighbours, judged by a sample."""
    return fine_codes(code, sample, metric) is not None


def fine_codes(code: str, sample: Floats, metric: str) -> Any:
    """Empty codes over which a graph will join the right neighbours, judged by a sample; None where those of `code` do
    not tell vectors apart so well. Where bounds that all dimensions share are too coarse, those of each may do."""
    if len(sample) < 4 * _FINE_QUERIES:
        return None
    some = np.ascontiguousarray(sample[:: len(sample) // _FINE_QUERIES][:_FINE_QUERIES])
    tenth = np.sqrt(np.maximum(faiss.knn(some, sample, 11, metric=faiss.METRIC_L2)[0][:, 10], 0))
    typical = float(np.median(tenth))
    for shared in (True, False) if code == "sq8" else (True,):
        index = new_codes(code, sample.shape[1], metric, sample, shared=shared)
        if typical == 0.0 or typical_error(index, some) <= _FINE_SHARE * typical:
            return index
    return None


def is_guide(codes: Any) -> bool:
    """Whether a graph over float32 is better walked over these codes, and its answers compared by the
    vectors: so for sq8, which in batches is 1.4 to 1.8 times as fast as float32 (WordNet, signed bytes) and takes a quarter
    more memory. (float16 is about as fast as float32, and takes half more.)"""
    return (
        isinstance(codes, faiss.IndexScalarQuantizer)
        and (has_bytes(codes) or int(codes.sq.qtype) == SCALAR_TYPES["sq8"])
        and int(codes.d) >= LEAST_GUIDED_DIMENSION
    )
