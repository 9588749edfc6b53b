"""A GPU on paper: the parts of the CUDA driver and of FAISS's GPU classes that `FaissCard` uses, in memory
of the host, so that what it passes them is checked where there is no card.

Settings that do not exist are refused as SWIG's classes refuse them; addresses are real ones of the host.
"""

from __future__ import annotations

import ctypes
from typing import Any

import faiss
import numpy as np
from paper_kernels import launched


class PaperCuda:
    """`libcuda.so.1` with `total` bytes. Pointers come as `ctypes.byref` makes them."""

    def __init__(self, total: int, *, old: bool = False, capability: int = 90) -> None:
        """`old`: the driver does not understand the engine's kernels. `capability` 80 for the compute capability 8.0."""
        self.total, self.old, self.capability = total, old, capability
        self.refused = b""
        """Kernels in whose text this is are not understood."""
        self.busy = False
        """Whether nothing is ever done until somebody waits for it."""
        self.modules: list[bytes] = []
        self.functions: list[str] = []
        self.shared: dict[int, int] = {}
        self.pieces: dict[int, np.ndarray] = {}
        self.pinned: dict[int, np.ndarray] = {}
        self.broken = 0
        """An error code that every copy answers."""
        self.synchronized = 0
        self.stream = 4_711
        """The one that all is to go to."""

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:  # noqa: N802
        device._obj.value = number
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:  # noqa: N802
        name.value = b"paper"
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:  # noqa: N802
        context._obj.value = 1
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:  # noqa: N802
        return 0

    def cuCtxSynchronize(self) -> int:  # noqa: N802
        self.synchronized += 1
        return 0

    def cuStreamCreate(self, stream: Any, flags: int) -> int:  # noqa: N802
        assert flags == 1
        stream._obj.value = self.stream
        return 0

    def cuStreamQuery(self, stream: Any) -> int:  # noqa: N802
        assert stream.value == self.stream
        return 600 if self.busy else self.broken

    def cuStreamSynchronize(self, stream: Any) -> int:  # noqa: N802
        assert stream.value == self.stream
        self.synchronized += 1
        return 0

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:  # noqa: N802
        free._obj.value = self.total - sum(p.nbytes for p in self.pieces.values())
        total._obj.value = self.total
        return 0

    def cuMemAlloc_v2(self, address: Any, size: int) -> int:  # noqa: N802
        if size > self.total - sum(p.nbytes for p in self.pieces.values()):
            return 2
        piece = np.zeros(size, np.uint8)
        self.pieces[piece.ctypes.data] = piece
        address._obj.value = piece.ctypes.data
        return 0

    def cuMemFree_v2(self, address: int) -> int:  # noqa: N802
        del self.pieces[address]
        return 0

    def cuMemcpyHtoDAsync_v2(self, address: int, source: int, size: int, stream: Any) -> int:  # noqa: N802
        assert stream.value == self.stream
        assert size <= self.pinned.get(source, np.empty(size, np.uint8)).nbytes
        if self.broken:
            return self.broken
        start = max(begin for begin in self.pieces if begin <= address)
        assert address + size <= start + self.pieces[start].nbytes, "beyond the piece"
        ctypes.memmove(address, source, size)
        return 0

    def cuMemcpyDtoHAsync_v2(self, out: int, address: int, size: int, stream: Any) -> int:  # noqa: N802
        assert stream.value == self.stream
        start = max(begin for begin in self.pieces if begin <= address)
        assert address + size <= start + self.pieces[start].nbytes, "beyond the piece"
        ctypes.memmove(out, address, size)
        return 0

    def cuMemsetD8Async(self, address: int, value: int, size: int, stream: Any) -> int:  # noqa: N802
        assert stream.value == self.stream
        ctypes.memset(address, value, size)
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
        value._obj.value = {16: 4, 75: self.capability // 10, 76: self.capability % 10}[attribute]
        return 0

    def cuMemHostAlloc(self, place: Any, size: int, flags: int) -> int:  # noqa: N802
        assert flags == 2
        piece = np.zeros(size, np.uint8)
        self.pinned[piece.ctypes.data] = piece
        place._obj.value = piece.ctypes.data
        return 0

    def cuMemHostGetDevicePointer_v2(self, address: Any, place: Any, flags: int) -> int:  # noqa: N802
        assert flags == 0
        address._obj.value = place.value
        return 0

    def cuMemFreeHost(self, place: int) -> int:  # noqa: N802
        del self.pinned[place]
        return 0

    @property
    def cuTensorMapEncodeTiled(self) -> Any:  # noqa: N802
        """A function that has types, as those of a library have."""
        kinds = (
            ctypes.c_void_p,
            ctypes.c_int,
            ctypes.c_uint,
            *[ctypes.c_void_p] * 5,
            *[ctypes.c_int] * 4,
        )
        return ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(_tile_map)

    def cuModuleLoadData(self, module: Any, ptx: bytes) -> int:  # noqa: N802
        if self.old or (self.refused and self.refused in ptx):
            return 222
        assert ptx.startswith(b"// Made by tools/kernels.py")
        self.modules.append(ptx)
        module._obj.value = len(self.modules)
        return 0

    def cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> int:  # noqa: N802
        assert b".entry " + name + b"(" in self.modules[module.value - 1]
        self.functions.append(name.decode())
        function._obj.value = len(self.functions)
        return 0

    def cuFuncSetAttribute(self, function: Any, attribute: int, value: int) -> int:  # noqa: N802
        assert attribute == 8
        self.shared[function.value] = value
        return 0

    def cuOccupancyMaxActiveBlocksPerMultiprocessor(  # noqa: N802
        self, count: Any, function: Any, threads: int, shared: int
    ) -> int:
        count._obj.value = 2
        return 0

    def cuLaunchKernel(self, function: Any, *given: Any) -> int:  # noqa: N802
        x, y, z, threads, _, _, shared, stream, places, _ = given
        assert z == 1
        assert stream.value == self.stream
        assert shared <= self.shared.get(function.value, 48 << 10)
        launched(self.functions[function.value - 1], (x, y), threads, shared, places)
        return 0

    def cuLaunchCooperativeKernel(self, function: Any, *given: Any) -> int:  # noqa: N802
        x, y, *_ = given
        assert x * y <= 8, "more blocks than run at once"
        return self.cuLaunchKernel(function, *given, None)

    def cuGetErrorString(self, code: int, text: Any) -> int:  # noqa: N802
        text._obj.value = {2: b"out of memory"}.get(code, b"an illegal memory access")
        return 0


def _tile_map(place: int, kind: int, rank: int, address: int, sizes: int, strides: int, box: int, steps: int, *rest: int) -> int:  # fmt: skip
    """Refuses what the driver refuses; what is written stands for a map of 128 bytes."""
    columns, rows = _at(sizes, (2,), np.uint64)
    wide, high = map(int, _at(box, (2,), np.uint32))
    (stride,) = _at(strides, (1,), np.uint64)
    good = place % 64 == address % 16 == stride % 16 == 0 and (kind, rank) == (6, 2)
    if not good or wide * 2 > 128 or high > 256 or (_at(steps, (2,), np.uint32) != 1).any():
        return 1
    assert rest == (0, 3, 3, 0)
    _at(place, (16,), np.uint64)[:5] = address, rows, columns, stride, wide << 32 | high
    return 0


def _settings(name: str, *fields: str, **values: Any) -> type:
    """A class whose objects have these attributes and no others."""

    def init(self: Any) -> None:
        for field, value in values.items():
            setattr(self, field, value() if isinstance(value, type) else value)

    return type(name, (), {"__slots__": (*fields, *values), "__init__": init})


_FLAT = _settings("GpuIndexFlatConfig", "memorySpace", device=0, use_cuvs=True, useFloat16=False)
_LISTS = {"device": 0, "use_cuvs": True, "indicesOptions": 3, "flatConfig": _FLAT}


def _at(address: Any, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), kind).reshape(shape)


class _Resources:
    def __init__(self) -> None:
        self.lists = 0

    def setTempMemory(self, size: int) -> None:  # noqa: N802
        assert size <= 1536 << 20

    def setPinnedMemory(self, size: int) -> None:  # noqa: N802
        assert size

    def syncDefaultStreamCurrentDevice(self) -> None:  # noqa: N802
        pass

    def getMemoryInfo(self) -> dict[int, dict[str, tuple[int, int]]]:  # noqa: N802
        scratch = {"TemporaryMemoryBuffer": (1, 1 << 30)}
        return {0: {**scratch, "IVFLists": (1, self.lists)}} if self.lists else {0: scratch}


class _Lists:
    def __init__(self, resources: _Resources, host: Any, config: Any) -> None:
        assert config.use_cuvs is False
        assert config.flatConfig.use_cuvs is False
        assert config.indicesOptions == 2
        self.host = host
        self.d, self.nlist, self.metric_type = host.d, host.nlist, host.metric_type
        resources.lists += host.ntotal * (host.code_size + 4)
        self.referenced_objects = [host]

    def search(self, x: Any, k: int, params: Any = None) -> Any:
        assert 1 <= k <= 2048
        assert 1 <= params.nprobe <= min(2048, self.nlist)
        assert params.sel is None
        return self.host.search(x, k, params=params)


class _Graph:
    needed = 1
    """With fewer samplings a walk does not come to the cluster of its query."""

    def __init__(self, resources: _Resources, d: int, metric: int, config: Any) -> None:
        self.d, self.metric, self.degree = d, metric, config.graph_degree

    def train_ex(self, n: int, address: int, kind: int) -> None:
        self.kind = np.float16 if kind == faiss.Float16 else np.float32
        self.vectors = _at(address, (n, self.d), self.kind)

    def search(self, x: Any, k: int, params: Any = None, numeric_type: int = 0) -> Any:
        assert x.dtype == self.kind
        assert params.itopk_size >= k
        assert params.itopk_size % 32 == 0
        y = self.vectors.astype(np.float32)
        if params.num_random_samplings < self.needed:
            y = -y
        return faiss.knn(x.astype(np.float32), y, k, metric=self.metric)

    def get_knngraph(self) -> Any:
        y = self.vectors.astype(np.float32)
        near = faiss.knn(y, y, self.degree, metric=self.metric)[1]
        found = faiss.Int64Vector()
        faiss.copy_array_to_vector(near.reshape(-1), found)
        return found


class PaperFaiss:
    """The module `faiss` with GPU classes on paper."""

    StandardGpuResources = _Resources
    INDICES_32_BIT, INDICES_64_BIT = 2, 3
    DistanceDataType_F32, DistanceDataType_F16, IndicesDataType_I64 = 1, 2, 1
    graph_build_algo_NN_DESCENT = 1  # noqa: N815
    GpuIndexFlatConfig = _FLAT
    GpuIndexIVFFlatConfig = _settings("GpuIndexIVFFlatConfig", **_LISTS)
    GpuIndexIVFScalarQuantizerConfig = _settings("GpuIndexIVFScalarQuantizerConfig", **_LISTS)
    GpuIndexIVFPQConfig = _settings("GpuIndexIVFPQConfig", "useFloat16LookupTables", **_LISTS)
    GpuIndexCagraConfig = _settings(
        "GpuIndexCagraConfig", "graph_degree", "intermediate_graph_degree", "build_algo", device=0
    )
    SearchParametersCagra = _settings(
        "SearchParametersCagra", itopk_size=64, num_random_samplings=1
    )
    GpuIndexIVFFlat = GpuIndexIVFScalarQuantizer = GpuIndexIVFPQ = _Lists
    GpuIndexCagra = _Graph
    GpuDistanceParams = _settings(
        "GpuDistanceParams", "metric", "k", "dims", "vectors", "vectorType", "vectorsRowMajor",
        "numVectors", "queries", "queryType", "queriesRowMajor", "numQueries", "outDistances",
        "outIndices", "outIndicesType", vectorNorms=None, device=-1, use_cuvs=True,
    )  # fmt: skip

    def __init__(self) -> None:
        self.fail: Exception | None = None
        """What the next search raises."""

    def __getattr__(self, name: str) -> Any:
        return getattr(faiss, name)

    @staticmethod
    def cast_integer_to_void_ptr(address: int) -> int:
        return address

    cast_integer_to_float_ptr = cast_integer_to_void_ptr

    @staticmethod
    def swig_ptr(values: Any) -> Any:
        assert values.flags.c_contiguous
        return values

    @staticmethod
    def GpuIndexFlat(resources: Any, d: int, metric: int, config: Any) -> Any:  # noqa: N802
        assert config.use_cuvs is False
        return faiss.IndexFlat(d, metric)

    def bfKnn(self, resources: Any, call: Any) -> None:  # noqa: N802
        if self.fail is not None:
            failure, self.fail = self.fail, None
            raise failure
        assert (call.device, call.use_cuvs) == (0, False)
        assert call.vectorType == call.queryType
        assert 0 < call.k <= min(2048, call.numVectors)
        kind = np.float16 if call.vectorType == self.DistanceDataType_F16 else np.float32
        assert call.queries.dtype == kind
        assert call.outIndices.dtype == np.int64
        x = call.queries.astype(np.float32)
        y = _at(call.vectors, (call.numVectors, call.dims), kind).astype(np.float32)
        keys = -x @ y.T
        if call.metric == faiss.METRIC_L2:
            squares = _at(call.vectorNorms, (call.numVectors,), np.float32)
            keys = 2 * keys + squares + np.einsum("qd,qd->q", x, x)[:, None]
        order = np.argsort(keys, axis=1, kind="stable")[:, : call.k]
        found = np.take_along_axis(keys, order, axis=1)
        call.outDistances[:] = found if call.metric == faiss.METRIC_L2 else -found
        call.outIndices[:] = order

    def knn_gpu(self, resources: Any, xq: Any, xb: Any, k: int, **named: Any) -> Any:
        assert (named["device"], named["use_cuvs"]) == (0, False)
        assert named["vectorsMemoryLimit"] >= 4 * xb.shape[1] * k
        assert k <= min(2048, len(xb))
        return faiss.knn(xq, xb, k, metric=named["metric"])
