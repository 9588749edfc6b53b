"""Inverted lists as they come to a card: read, checked against what a GPU can hold, and, for the
stand-in, searched on the CPU.

Here and not in `vecdb/device/`, because FAISS is needed to read them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..device.card import CardRefused, Floats, Rows
from ..device.merging import padded
from .cells import empty_like
from .codes import FLOAT32_TABLES, GPU_PARTS
from .door import INNER_PRODUCT, READ_FLAGS, faiss, faiss_metric, use_threads

_WRITTEN_BYTES = 1 << 20
_SHARED_BYTES = 48 << 10
"""Fast memory of a block of a GPU."""
_BEST_BYTES = 48
"""Of it, for one of the best that a block keeps: each of four warps has its own, of 12 bytes. FAISS rounds their number up to a
power of two, 32 at least; from 1,024 on the best take all."""
_BOUNDS_BYTES = 8
"""Of it, for the bounds of a dimension, where codes are scalars of 8 or 4 bits. FAISS 1.15 does not look whether both
have room: the call fails with "invalid argument", and takes the process along."""
_LEAST_BEST = 32
_BY_NUMBER = int(faiss.InvertedLists.SUBSET_TYPE_ID_RANGE)


def deserialized(data: Any) -> Any:
    """The FAISS index that `data` (bytes-like) holds. It is data of ours: FAISS trusts what it reads."""
    return faiss.deserialize_index(np.frombuffer(data, np.uint8), READ_FLAGS)


def serialized(index: Any) -> Any:
    """The bytes of a FAISS index, uint8 (n,), for `deserialized`.

    Written twice, the first time to be counted: `faiss.serialize_index` holds up to four times the bytes.
    """
    size = 0

    def count(part: bytes) -> int:
        nonlocal size
        size += len(part)
        return len(part)

    faiss.write_index(index, faiss.PyCallbackIOWriter(count, _WRITTEN_BYTES))
    data, size = np.empty(size, np.uint8), 0

    def keep(part: bytes) -> int:
        data[size : size + len(part)] = np.frombuffer(part, np.uint8)
        return count(part)

    faiss.write_index(index, faiss.PyCallbackIOWriter(keep, _WRITTEN_BYTES))
    return data


def part_of(index: Any, start: int, stop: int) -> Any:
    """Lists of the positions start..stop of others, numbered from 0, with the same centroids and codes. Asked for the
    same lists, parts together find what the whole does."""
    part = empty_like(index, index.quantizer)
    index.copy_subset_to(part, _BY_NUMBER, start, stop)
    # What is copied keeps its numbers, and what is merged gets others.
    moved = empty_like(index, index.quantizer)
    moved.merge_from(part, -start)
    return moved


def checked_lists(index: Any) -> str:
    """ "flat", "sq" or "pq" for lists that FAISS's classic GPU classes can hold; CardRefused for others.

    What they refuse they would refuse with the same exception type as what goes wrong, so it is asked first.
    """
    metric = int(index.metric_type)
    if not isinstance(index, faiss.IndexIVF):
        raise CardRefused(f"lists are wanted, given {type(index).__name__}")
    if metric not in (INNER_PRODUCT, faiss_metric("l2")):
        raise CardRefused(f"lists on a GPU are l2 or inner product, given FAISS's metric {metric}")
    if not index.is_trained or type(faiss.downcast_index(index.quantizer)) not in (
        faiss.IndexFlat, faiss.IndexFlatL2, faiss.IndexFlatIP,
    ):  # fmt: skip
        raise CardRefused("lists on a GPU are trained, and their centroids are float32 vectors")
    d = int(index.d)
    if type(index) is faiss.IndexIVFFlat:
        return "flat"
    if type(index) is faiss.IndexIVFScalarQuantizer:
        kinds = faiss.ScalarQuantizer
        kind = int(index.sq.qtype)
        if kind not in (kinds.QT_8bit, kinds.QT_4bit, kinds.QT_fp16):
            raise CardRefused(
                f"scalar codes on a GPU are of 8 or 4 bits or float16, given type {kind}"
            )
        if kind != kinds.QT_fp16 and scalar_k(d) == 0:
            raise CardRefused(f"such codes on a GPU have fewer dimensions than {d}")
        return "sq"
    if type(index) is faiss.IndexIVFPQ:
        parts, bits = int(index.pq.M), int(index.pq.nbits)
        if bits != 8 or parts not in GPU_PARTS or d % parts:
            raise CardRefused(
                f"product quantization on a GPU has 8 bits and one of {GPU_PARTS} parts, given "
                f"{parts} parts of {bits} bits for {d} dimensions"
            )
        if not index.by_residual or index.polysemous_ht:
            raise CardRefused("product quantization on a GPU is by residuals, and not polysemous")
        return "pq"
    raise CardRefused(f"{type(index).__name__} cannot be searched on a GPU")


def most_k(index: Any, limit: int) -> int:
    """The largest k of a search of lists on a GPU, `limit` for those that have no limit of their own."""
    if type(index) is not faiss.IndexIVFScalarQuantizer:
        return limit
    if int(index.sq.qtype) == faiss.ScalarQuantizer.QT_fp16:
        return limit
    return min(limit, scalar_k(int(index.d)))


def scalar_k(dimension: int) -> int:
    """The largest k of lists of scalar codes of 8 or 4 bits: 512 up to 3,072 dimensions, 32 up to 5,952, then 0."""
    k = 512
    while _BEST_BYTES * k + _BOUNDS_BYTES * dimension > _SHARED_BYTES:
        k //= 2
        if k < _LEAST_BEST:
            return 0
    return k


def check_k(k: int, most: int) -> None:
    """CardRefused for a k that lists do not give, which would be the end of a real worker."""
    if k > most:
        raise CardRefused(f"k of such lists is at most {most}, given {k}")


def float16_tables(index: Any) -> bool:
    """Whether a PQ needs float16 tables, which lose digits and overflow at 65,504: only where it must."""
    return int(index.pq.M) > FLOAT32_TABLES


def centroid_bytes(index: Any) -> int:
    """Of that, what each part of lists takes again."""
    return 4 * int(index.nlist) * int(index.d)


def device_bytes(index: Any) -> int:
    """Memory that lists take on a GPU, estimated."""
    return lists_bytes(int(index.ntotal), int(index.code_size), int(index.nlist), int(index.d))


def lists_bytes(rows: int, code_size: int, lists: int, dimension: int) -> int:
    """The same for lists that are yet to be made: codes, positions of 4 bytes, centroids, and what lists that grow
    by a quarter leave unused."""
    return rows * (code_size + 4) * 5 // 4 + 4 * lists * dimension


class HostLists:
    """Lists that are searched where they were read; what a GPU refuses is refused."""

    def __init__(self, data: Any) -> None:
        index = deserialized(data)
        checked_lists(index)
        self._index = index
        self.metric = "ip" if int(index.metric_type) == INNER_PRODUCT else "l2"
        self.dimension = int(index.d)
        self.lists = int(index.nlist)
        self.device_bytes = device_bytes(index)

    def search(self, queries: Floats, k: int, nprobe: int) -> tuple[Floats, Rows]:
        check_k(k, most_k(self._index, k))
        use_threads(1)
        params = faiss.SearchParametersIVF(nprobe=nprobe)
        scores, positions = self._index.search(np.ascontiguousarray(queries), k, params=params)
        return padded(scores, positions, k, self.metric)


def read_lists(data: memoryview, code: str) -> HostLists:
    """For `StandInCard`: lists from their bytes."""
    return HostLists(data)


def joined(vectors: Floats, metric: str, degree: int) -> NDArray[np.int32]:
    """For `StandInCard`: the lowest level (n, degree) of an HNSW graph, -1 where a row has fewer links."""
    use_threads(1)
    graph = faiss.IndexHNSWFlat(vectors.shape[1], degree // 2, faiss_metric(metric))
    graph.add(vectors)
    all_links = faiss.rev_swig_ptr(graph.hnsw.neighbors.data(), graph.hnsw.neighbors.size())
    starts = faiss.vector_to_array(graph.hnsw.offsets)[:-1].astype(np.int64)
    return np.array(all_links[starts[:, None] + np.arange(degree)], np.int32)
