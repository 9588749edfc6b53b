"""Memory of a GPU by way of the CUDA driver: what FAISS has and does not hand out.

FAISS cannot make room for rows that come in pieces. `GpuIndexFlat.add` gives its memory exactly the
new size each time (FAISS 1.15, `FlatIndex.cu`: `append(..., true /* reserve exactly */)`), so every piece
copies all before it within the card, and twice the memory is needed at the end. Nor does it tell the
address of its vectors, from which a graph could be built. But `bfKnn`, on which its flat index is built,
takes addresses on the device. So flat vectors lie in memory that is asked for here.

The driver's primary context is the one that FAISS uses through the CUDA runtime, and pointers are good in
both. `libcuda.so.1` belongs to the driver: where a GPU works, it is there. One thread, that of the card, makes
all calls, and all of them go to one stream of ours, which waits for no other: what goes to CUDA's default stream
is held up by the streams of FAISS and cuVS.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..device.card import CardFull

_OUT_OF_MEMORY, _NOT_READY = 2, 600
"""CUDA_ERROR_OUT_OF_MEMORY, CUDA_ERROR_NOT_READY; every other error is an end."""
_POLLED_S = 0.02
"""A search that takes longer need not be seen to end at once."""
_size, _int, _address = ctypes.c_size_t, ctypes.c_int, ctypes.c_uint64
_SIGNATURES: dict[str, list[Any]] = {
    "cuInit": [ctypes.c_uint],
    "cuDeviceGet": [ctypes.POINTER(_int), _int],
    "cuDeviceGetName": [ctypes.c_char_p, _int, _int],
    "cuDevicePrimaryCtxRetain": [ctypes.POINTER(ctypes.c_void_p), _int],
    "cuCtxSetCurrent": [ctypes.c_void_p],
    "cuCtxSynchronize": [],
    "cuMemGetInfo_v2": [ctypes.POINTER(_size), ctypes.POINTER(_size)],
    "cuMemAlloc_v2": [ctypes.POINTER(_address), _size],
    "cuMemFree_v2": [_address],
    "cuGetErrorString": [_int, ctypes.POINTER(ctypes.c_char_p)],
    "cuMemcpyDtoHAsync_v2": [ctypes.c_void_p, _address, _size, ctypes.c_void_p],
    "cuMemsetD8Async": [_address, ctypes.c_ubyte, _size, ctypes.c_void_p],
    "cuDeviceGetAttribute": [ctypes.POINTER(_int), _int, _int],
    "cuModuleLoadData": [ctypes.POINTER(ctypes.c_void_p), ctypes.c_char_p],
    "cuModuleGetFunction": [ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p, ctypes.c_char_p],
    "cuOccupancyMaxActiveBlocksPerMultiprocessor": [
        ctypes.POINTER(_int), ctypes.c_void_p, _int, _size,
    ],
    "cuFuncSetAttribute": [ctypes.c_void_p, _int, _int],
    "cuLaunchKernel": [ctypes.c_void_p, *[ctypes.c_uint] * 7, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p],
    "cuLaunchCooperativeKernel": [ctypes.c_void_p, *[ctypes.c_uint] * 7, ctypes.c_void_p, ctypes.c_void_p],
    "cuMemHostAlloc": [ctypes.POINTER(ctypes.c_void_p), _size, ctypes.c_uint],
    "cuMemHostGetDevicePointer_v2": [ctypes.POINTER(_address), ctypes.c_void_p, ctypes.c_uint],
    "cuMemFreeHost": [ctypes.c_void_p],
    "cuMemcpyHtoDAsync_v2": [_address, ctypes.c_void_p, _size, ctypes.c_void_p],
    "cuStreamCreate": [ctypes.POINTER(ctypes.c_void_p), ctypes.c_uint],
    "cuStreamQuery": [ctypes.c_void_p],
    "cuStreamSynchronize": [ctypes.c_void_p],
}  # fmt: skip
_MAP_SIGNATURE = [
    ctypes.c_void_p, _int, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
    ctypes.c_void_p, _int, _int, _int, _int,
]  # fmt: skip
_MULTIPROCESSORS = 16
"""CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT."""
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR."""
_HOST_MAPPED = 2
"""CU_MEMHOSTALLOC_DEVICEMAP."""
_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: a stream that does not wait for the default one, nor that for it."""
_MAP_BYTES, _MAP_ALIGNED = 128, 64
_MAP_FLOAT16, _MAP_SWIZZLE_128, _MAP_PROMOTE_256 = 6, 3, 3
"""Of cuTensorMapEncodeTiled."""
_DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""


def load_driver() -> Any:
    """The driver's library with its signatures; OSError where there is none."""
    library = ctypes.CDLL("libcuda.so.1")
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, _int
    return library


TileMap = ctypes.c_uint8 * _MAP_BYTES
"""A CUtensorMap: how the copy engine of a card finds a tile of a matrix. A parameter of kernels, by value."""


class Driver:
    """The device that CUDA calls `number`, current for this thread from now on."""

    def __init__(self, number: int = 0, library: Any = None) -> None:
        self._library = load_driver() if library is None else library
        self._call("cuInit", 0)
        device, context = _int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), number)
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, 256, device)
        self.name = name.value.decode("utf-8", "replace")
        self._device = device
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self.stream = ctypes.c_void_p()
        """Where everything is launched, in order."""
        self._call("cuStreamCreate", ctypes.byref(self.stream), _NON_BLOCKING)
        self._sent: NDArray[Any] | None = None

    def memory(self) -> tuple[int, int]:
        """Bytes that are free, and all."""
        free, total = _size(), _size()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, size: int) -> Memory:
        """CardFull when there is not so much."""
        address = _address()
        self._call("cuMemAlloc_v2", ctypes.byref(address), max(1, size))
        return Memory(self, address.value, size)

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", address)

    def write(self, address: int, values: NDArray[Any], wait: bool = True) -> None:
        """Copies a C-contiguous array to the device. Without `wait` it must not be changed before the next `Driver.wait`.

        The copy may still be on its way when the driver returns. Kernels of ours come after it on the same stream;
        FAISS's streams do not wait for it by themselves, so for these `wait`.
        """
        self._call("cuMemcpyHtoDAsync_v2", address, values.ctypes.data, values.nbytes, self.stream)
        if wait:
            self._call("cuCtxSynchronize")
        else:
            self._sent = values  # not given back while it is read

    def read(self, address: int, out: NDArray[Any]) -> None:
        """Copies from the device into a C-contiguous array, after everything that was launched before."""
        self._call("cuMemcpyDtoHAsync_v2", out.ctypes.data, address, out.nbytes, self.stream)
        self._call("cuStreamSynchronize", self.stream)

    def clear(self, address: int, size: int) -> None:
        self._call("cuMemsetD8Async", address, 0, size, self.stream)

    def zeros(self, size: int) -> Memory:
        """`allocate`, all zero."""
        made = self.allocate(size)
        self.clear(made.address, size)
        return made

    def pinned(self, size: int) -> Pinned:
        """Memory of the host that kernels read and write where it lies. CardFull when there is not so much."""
        place, address = ctypes.c_void_p(), _address()
        self._call("cuMemHostAlloc", ctypes.byref(place), max(1, size), _HOST_MAPPED)
        self._call("cuMemHostGetDevicePointer_v2", ctypes.byref(address), place, 0)
        return Pinned(self, int(place.value or 0), address.value, size)

    def pinned_at_least(self, held: Pinned | None, size: int) -> Pinned:
        """What is held where it is large enough; else it is given back, and there is another."""
        if held is not None:
            if held.size >= size:
                return held
            held.free()
        return self.pinned(size)

    def free_pinned(self, place: int) -> None:
        self._call("cuMemFreeHost", place)

    def write_pinned(self, address: int, pinned: Pinned, size: int) -> None:
        """Copies the first bytes of `pinned`, before whatever is launched next; until that is done they must stay."""
        self._call("cuMemcpyHtoDAsync_v2", address, pinned.place, size, self.stream)

    def wait(self) -> None:
        """Until everything that was launched is done; RuntimeError where it failed.

        Asked for again and again at first: where the driver sleeps until the card wakes it, that takes 0.1 ms, a third of
        a search of a million vectors.
        """
        until_s = time.perf_counter() + _POLLED_S
        while (code := self._library.cuStreamQuery(self.stream)) == _NOT_READY:
            if time.perf_counter() > until_s:
                self._call("cuStreamSynchronize", self.stream)
                break
        else:
            self._check("cuStreamQuery", code)
        self._sent = None

    def tile_map(
        self, address: int, rows: int, columns: int, row_bytes: int, box: tuple[int, int]
    ) -> Any:
        """A TileMap of float16 numbers (rows, columns) at `address`, both multiples of 16 bytes apart, in tiles of `box`
        (rows, 64 columns), which are swizzled by 128 bytes. What a tile has beyond the matrix is zero."""
        room = (ctypes.c_uint8 * (_MAP_BYTES + _MAP_ALIGNED))()
        place = -(-ctypes.addressof(room) // _MAP_ALIGNED) * _MAP_ALIGNED
        function = self._library.cuTensorMapEncodeTiled
        function.argtypes, function.restype = _MAP_SIGNATURE, _int
        self._call(
            "cuTensorMapEncodeTiled", place, _MAP_FLOAT16, 2, address, (_size * 2)(columns, rows),
            (_size * 1)(row_bytes), (ctypes.c_uint32 * 2)(box[1], box[0]), (ctypes.c_uint32 * 2)(1, 1), 0,
            _MAP_SWIZZLE_128, _MAP_PROMOTE_256, 0,
        )  # fmt: skip
        return TileMap.from_buffer_copy((ctypes.c_uint8 * _MAP_BYTES).from_address(place))

    def scratch_bytes(self) -> int:
        """Memory that a kind of search may hold for itself; what is placed is counted without it."""
        return min(512 << 20, self.memory()[1] // 64)

    def multiprocessors(self) -> int:
        return self._attribute(_MULTIPROCESSORS)

    def capability(self) -> tuple[int, int]:
        """The compute capability, as (9, 0)."""
        return self._attribute(_CAPABILITY_MAJOR), self._attribute(_CAPABILITY_MINOR)

    def _attribute(self, which: int) -> int:
        value = _int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), which, self._device)
        return value.value

    def module(self, ptx: bytes) -> ctypes.c_void_p:
        """Kernels compiled for this device; RuntimeError where the driver does not understand them."""
        module = ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), ptx)
        return module

    def kernel(self, module: ctypes.c_void_p, name: str, threads: int, *types: Any) -> Kernel:
        """A kernel of a module; `types` are the C types of its parameters."""
        found = ctypes.c_void_p()
        self._call("cuModuleGetFunction", ctypes.byref(found), module, name.encode())
        return Kernel(self, found, threads, types)

    def _call(self, name: str, *arguments: Any) -> None:
        self._check(name, getattr(self._library, name)(*arguments))

    def _check(self, name: str, code: int) -> None:
        if code == 0:
            return
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(code, ctypes.byref(text))
        said = (text.value or b"unknown").decode("utf-8", "replace")
        if code == _OUT_OF_MEMORY:
            raise CardFull(f"{name}: {said}")
        raise RuntimeError(f"{name} failed with CUDA error {code}: {said}")


class Kernel:
    """A kernel with `threads` a block. Launched on the driver's stream; `Driver.read` waits for it."""

    def __init__(
        self, driver: Driver, function: ctypes.c_void_p, threads: int, types: Sequence[Any]
    ) -> None:
        self._driver = driver
        self._function = function
        self._threads = threads
        self._values = [kind() for kind in types]
        self._maps = TileMap in types
        self._places = (ctypes.c_void_p * len(types))(*map(ctypes.addressof, self._values))
        self._resident: dict[int, int] = {}

    def resident(self, shared: int) -> int:
        """Blocks that a multiprocessor runs at once, each with so many bytes of shared memory."""
        known = self._resident.get(shared)
        if known is None:
            count = _int()
            self._driver._call(
                "cuOccupancyMaxActiveBlocksPerMultiprocessor",
                ctypes.byref(count), self._function, self._threads, shared,
            )  # fmt: skip
            known = self._resident[shared] = count.value
        return known

    def allow_shared(self, size: int) -> None:
        """Lets a block have so much shared memory, beyond the 48 KiB that each may have."""
        self._driver._call("cuFuncSetAttribute", self._function, _DYNAMIC_SHARED, size)

    def launch(self, blocks: int, lines: int, shared: int, *values: Any) -> None:
        """Starts `blocks` x `lines` blocks with these arguments, which are copied."""
        self._set(values)
        self._driver._call(
            "cuLaunchKernel", self._function, blocks, lines, 1, self._threads, 1, 1, shared,
            self._driver.stream, self._places, None,
        )  # fmt: skip

    def launch_together(self, blocks: int, lines: int, *values: Any) -> None:
        """`launch` of blocks that wait for each other: not more than run at once."""
        self._set(values)
        self._driver._call(
            "cuLaunchCooperativeKernel", self._function, blocks, lines, 1, self._threads, 1, 1, 0,
            self._driver.stream, self._places,
        )  # fmt: skip

    def _set(self, values: Sequence[Any]) -> None:
        for held, value in zip(self._values, values, strict=True):
            if self._maps and isinstance(held, TileMap):
                ctypes.memmove(held, value, _MAP_BYTES)
            else:
                held.value = value


class Memory:
    """A piece of the device's memory; given back with `free`, or when nobody knows it any more."""

    def __init__(self, driver: Driver, address: int, size: int) -> None:
        self._driver = driver
        self.address = address
        self.size = size

    def write(self, offset: int, values: NDArray[Any], wait: bool = True) -> None:
        """See `Driver.write`."""
        if offset + values.nbytes > self.size:
            raise ValueError(f"{values.nbytes} bytes at {offset} do not fit {self.size}")
        if values.nbytes:
            self._driver.write(self.address + offset, np.ascontiguousarray(values), wait)

    def read(self, out: NDArray[Any], offset: int = 0) -> NDArray[Any]:
        """Fills `out` (C-contiguous) from `offset` on, and returns it."""
        if offset + out.nbytes > self.size:
            raise ValueError(f"{out.nbytes} bytes at {offset} are not within {self.size}")
        self._driver.read(self.address + offset, out)
        return out

    def free(self) -> None:
        address, self.address, self.size = self.address, 0, 0
        if address:
            self._driver.free(address)

    def __del__(self) -> None:
        self.free()


class Pinned:
    """Memory of the host that a device sees; given back when nobody knows it any more."""

    def __init__(self, driver: Driver, place: int, address: int, size: int) -> None:
        self._driver = driver
        self.place = place
        self.address = address
        """Where kernels find it."""
        self.size = size
        held = (ctypes.c_uint8 * size).from_address(place)
        self.bytes: NDArray[np.uint8] = np.ctypeslib.as_array(held)

    def free(self) -> None:
        """Nobody may hold a part of `bytes` any more."""
        place, self.place, self.size = self.place, 0, 0
        if place:
            self._driver.free_pinned(place)

    def __del__(self) -> None:
        self.free()
