"""The one place that imports `faiss`, and the rules for calling it.

FAISS aborts the process on wrong shapes and dtypes, so every call of this package goes through
functions that take only C-contiguous arrays of stated dtype; callers make them so.

FAISS ships no type stubs: `faiss` is `Any` here; results get their types where they enter.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingDependency
from ..memory import must_be_mappable

DISTRIBUTIONS = {"faiss-cpu": "cpu", "faiss-gpu": "gpu", "faiss-gpu-cuvs": "gpu-cuvs"}
"""Wheels that all install the module `faiss`, each with the extra of ours that asks for it."""

PARALLEL_QUERIES = 8
"""Batches from this size on may use every core; below it the threads cost more than they give."""


def _load() -> Any:
    installed = []
    for name in DISTRIBUTIONS:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        installed.append(name)
    try:
        module = importlib.import_module("faiss")
    except ImportError as error:
        if len(installed) > 1:
            raise MissingDependency(
                f"FAISS does not load ({error}): {' and '.join(installed)} are both installed and "
                "overwrite each other; uninstall all of them, then install one",
                installed=installed,
            ) from error
        raise MissingDependency(
            f"no usable FAISS is installed ({error}); run: pip install 'vecdb[cpu]' "
            "(or 'vecdb[gpu]', 'vecdb[gpu-cuvs]' for an NVIDIA GPU)",
            installed=installed,
        ) from error
    if len(installed) > 1:
        warnings.warn(
            f"{' and '.join(installed)} are both installed and overwrite each other; "
            "uninstall all of them, then install one",
            RuntimeWarning,
            stacklevel=2,
        )
    return module


faiss: Any = _load()

_BLAS_FROM_SCALARS = 6_144
"""Queries x dimension from which exact search goes through BLAS. FAISS 1.15 waits until 128,000. At
d = 384 on 2 cores, rows 16,384 and 116,659, BLAS takes 1.4 to 1.0 times as long for 8 queries, 0.7 to
0.4 for 16, 0.3 to 0.2 for 100, and 0.15 for 256. Process-wide: FAISS knows no other way."""
if faiss.cvar.distance_compute_blas_threshold > _BLAS_FROM_SCALARS:
    faiss.cvar.distance_compute_blas_threshold = _BLAS_FROM_SCALARS

L2: int = faiss.METRIC_L2
INNER_PRODUCT: int = faiss.METRIC_INNER_PRODUCT

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

_thread = threading.local()


READ_FLAGS: int = faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE
"""For every index that is read: without it lists of `pq8` under l2 get tables of 1 KiB for each list and part, which for a
million vectors are four times the codes."""


def faiss_metric(metric: str) -> int:
    """FAISS's number for one of ours; cosine is the inner product of unit vectors.

    Hamming distances come from classes of their own; their keys are distances, as those of l2.
    """
    return INNER_PRODUCT if metric in ("cosine", "ip") else L2


def device() -> str:
    """What searches where no device does: "cpu"."""
    return "cpu"


def use_threads(count: int) -> None:
    """Set the number of OpenMP threads for calls from this thread.

    The setting belongs to the calling thread; it is kept beside it, because asking OpenMP each time
    costs more than the comparison.
    """
    if getattr(_thread, "count", 0) != count:
        faiss.omp_set_num_threads(count)
        _thread.count = count


def limit_threads(count: int) -> None:
    """Let no later search or build from the calling thread use more than `count` cores; others are not touched."""
    _thread.limit = count
    use_threads(count)


def use_threads_for(queries: int) -> None:
    """One thread for a few queries, so that n callers do not start n x n; all cores for a batch."""
    use_threads(getattr(_thread, "limit", CORES) if queries >= PARALLEL_QUERIES else 1)


def bitmap_selector(mask: NDArray[np.bool_]) -> tuple[Any, NDArray[np.uint8]]:
    """A selector of the True positions of `mask`, and the array that must outlive it."""
    packed = np.packbits(mask, bitorder="little")
    return faiss.IDSelectorBitmap(mask.size, faiss.swig_ptr(packed)), packed


def through_blas(queries: int, dimension: int) -> bool:
    """Whether `knn` without a selector computes l2 by expansion, which loses digits.

    FAISS 1.15 does so when queries x dimension reach its threshold (tried out with its default of
    128,000: 500 x 256 does, 499 x 256 does not), earlier versions when the number of queries reaches
    theirs, 20.
    """
    threshold = int(faiss.cvar.distance_compute_blas_threshold)
    return queries * dimension >= threshold if threshold > 1_000 else queries >= threshold


def give_memory_back() -> None:
    """Return freed memory to the system. Costs some milliseconds; does nothing without glibc.

    glibc keeps freed pieces of up to 32 MiB for itself once it has seen such sizes come and go, which
    is what the pieces of a tail do: 60,000 x 384 took 0.5 times their vectors more without it.
    """
    if _malloc_trim is not None:
        _malloc_trim(0)


def _find_malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None


_malloc_trim = _find_malloc_trim()

_EMPTY = faiss.IndexFlat(1)
_NO_OWNER = _EMPTY.codes.owner
"""An empty owner: whoever makes a view keeps the memory alive itself. It lies within `_EMPTY`, which
therefore lives as long as the module."""


def flat_over(vectors: NDArray[np.float32], metric: int) -> Any:
    """A flat index over (n, d) C-contiguous float32 `vectors` without a copy of them.

    It keeps the array alive, and must not be added to.
    """
    n, d = vectors.shape
    index = faiss.IndexFlat(d, metric)
    raw = faiss.swig_ptr(vectors.reshape(-1).view(np.uint8))
    index.codes = view_of(raw, 4 * n * d)
    index.ntotal = n
    index.referenced_objects = [vectors]
    return index


def view_of(data: Any, size: int) -> Any:
    """`size` bytes at a pointer of FAISS's as what an index has its codes in; who makes it keeps the memory alive."""
    return faiss.MaybeOwnedVectorUInt8.create_view(data, size, _NO_OWNER)


def reserve(codes: Any, size: int) -> None:
    """Room for `size` bytes in a FAISS vector of codes, so that adding does not move and double it."""
    held = codes.size()
    if size > held:
        codes.resize(size)
        codes.resize(held)  # keeps the room: a std::vector does not shrink its memory


def add_to_lists(index: Any, vectors: NDArray[np.float32], lists: NDArray[np.int64]) -> None:
    """`index.add` for float32 vectors (n, d) whose lists (n,) are known; both C-contiguous."""
    pointer = faiss.swig_ptr
    index.add_core(len(vectors), pointer(vectors), None, pointer(lists))


class _Blas:
    """OpenBLAS takes buffers for each thread that is in it, once, and keeps them. Where it cannot have them it reads memory that is
    not there, which ends the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads = self._known = 0

    @contextmanager
    def room(self) -> Iterator[None]:
        """MemoryError where more threads than ever before could not have theirs; some us."""
        own = getattr(_thread, "count", 0) or CORES
        with self._lock:
            self._threads += own
            threads = self._threads
        try:
            if threads > self._known:
                must_be_mappable(_BUFFERS_BYTES * (threads - self._known))
            yield
            self._known = max(self._known, threads)
        finally:
            with self._lock:
                self._threads -= own


_MAY_USE_BLAS = 20
_BUFFERS_BYTES = 96 << 20
"""For each thread, with the heap of its own that it begins; 65 to 90 MB measured."""
_blas = _Blas()


def knn(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int, metric: int, sel: Any = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k best of `vectors` (n, d) for each of `queries` (q, d), both float32 and C-contiguous.

    Returns FAISS's scores (q, k), best first, and positions (q, k), -1 where there are fewer. `sel`
    must be alive during the call. Without it large batches go through BLAS, see `through_blas`; MemoryError where a
    limit of the address space leaves no room for its buffers.
    """
    if sel is None and len(queries) >= _MAY_USE_BLAS:
        with _blas.room():
            return _knn(queries, vectors, k, metric, None)
    return _knn(queries, vectors, k, metric, sel)


def _knn(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int, metric: int, sel: Any
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    q, d = queries.shape
    scores = np.empty((q, k), np.float32)
    positions = np.empty((q, k), np.int64)
    x, y, out, ids = map(faiss.swig_ptr, (queries, vectors, scores, positions))
    if metric == L2:
        faiss.knn_L2sqr(x, y, d, q, len(vectors), k, out, ids, None, sel)
    else:
        faiss.knn_inner_product(x, y, d, q, len(vectors), k, out, ids, sel)
    return scores, positions


def pointer(array: Any) -> Any:
    """What FAISS takes for a C-contiguous array, which must outlive it."""
    return faiss.swig_ptr(array)


def compare_few(
    query: Any, vectors: Any, dimension: int, n: int, k: int, scores: Any, at: Any, metric: int
) -> None:
    """`knn` of one query, by pointers: the k best scores of n float32 vectors, best first, and where they are."""
    if metric == L2:
        faiss.knn_L2sqr(query, vectors, dimension, 1, n, k, scores, at, None, None)
    else:
        faiss.knn_inner_product(query, vectors, dimension, 1, n, k, scores, at, None)


def search_one(
    index: Any, query: NDArray[np.float32], k: int, params: Any
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """`index.search` for one float32 C-contiguous query (1, d) without FAISS's own wrapper: 3 us less."""
    scores = np.empty((1, k), np.float32)
    positions = np.empty((1, k), np.int64)
    pointer = faiss.swig_ptr
    index.search_c(1, pointer(query), k, pointer(scores), pointer(positions), params)
    return scores, positions


def compare_one(
    query: NDArray[np.float32], vectors: NDArray[np.float32], metric: int
) -> NDArray[np.float32]:
    """Scores (n,) of all `vectors` (n, d) for a query (d,): inner products, or squared distances by
    differences. Both float32 and C-contiguous. 25 ns a row of 384, and never more than one thread: BLAS
    takes several for a product like this, which on busy cores wait for each other: a search of 1,265 rows
    took 590 us there, and 90 this way.
    """
    scores = np.empty(len(vectors), np.float32)
    compare = faiss.fvec_L2sqr_ny if metric == L2 else faiss.fvec_inner_products_ny
    pointer = faiss.swig_ptr
    compare(pointer(scores), pointer(query), pointer(vectors), vectors.shape[1], len(vectors))
    return scores


def address(array: Any) -> int:
    """Where the memory of a C-contiguous array begins, which must outlive what is done with it."""
    return int(array.__array_interface__["data"][0])


def best_products(
    query: NDArray[np.float32], vectors: NDArray[np.float32], places: NDArray[np.int64], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Inner products and places (1, k), best first, of the best of those `places` (1, w) of `vectors` (n, d) for a query (1, d);
    w >= k. All C-contiguous. Of negative places, which come last, none is an answer: -inf and -1 where there are fewer. A call of
    FAISS: 1.2 us, and what comparing takes."""
    scores = np.empty((1, k), np.float32)
    found = np.empty((1, k), np.int64)
    rows, dimension = vectors.shape
    pointer = faiss.swig_ptr
    faiss.knn_inner_products_by_idx(
        pointer(query), pointer(vectors), pointer(places), dimension, 1, rows, places.size, k,
        pointer(scores), pointer(found), places.size,
    )  # fmt: skip
    if found[0, -1] < 0:
        scores[found < 0] = -np.inf
    return scores, found


def products_at(
    queries: NDArray[np.float32], origin: int, places: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Inner products (q, w) of each query (q, d) with float32 vectors anywhere in memory, of which one begins
    at the address `origin` + 4 d x place, modulo 2^64; `places` (q, w) are not negative. All C-contiguous.

    FAISS means rows of one matrix. It computes addresses as unsigned numbers of 64 bits, which wrap; the tests
    reach behind the end of one this way. Batches are spread over threads.
    """
    return _at(faiss.fvec_inner_products_by_idx, queries, origin, places)


def squares_at(
    queries: NDArray[np.float32], origin: int, places: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Squared distances (q, w), by differences; else as `products_at`."""
    return _at(faiss.fvec_L2sqr_by_idx, queries, origin, places)


def _at(
    compare: Any, queries: NDArray[np.float32], origin: int, places: NDArray[np.int64]
) -> NDArray[np.float32]:
    found = np.empty(places.shape, np.float32)
    pointer = faiss.swig_ptr
    vectors = faiss.cast_integer_to_float_ptr(origin)
    compare(
        pointer(found), pointer(queries), vectors, pointer(places), queries.shape[1], *places.shape
    )
    return found


def lengths_at(origin: int, places: NDArray[np.int64], dimension: int) -> NDArray[np.float32]:
    """Squared lengths of vectors (d,), in the shape of `places`; see `products_at`."""
    found = np.empty(places.shape, np.float32)
    vectors, at = faiss.cast_integer_to_float_ptr(origin), faiss.swig_ptr(places)
    faiss.pairwise_indexed_inner_product(
        dimension, places.size, vectors, at, vectors, at, faiss.swig_ptr(found)
    )
    return found


def warm_blas() -> None:
    """Has OpenBLAS, that of FAISS and that of numpy, take the buffers of a batch that all cores search; some ms, and of memory
    what is touched of them."""
    vectors = np.zeros((1_024, 256), np.float32)
    use_threads(CORES)
    knn(vectors, vectors, 1, L2)
    np.dot(vectors, vectors.T)
