"""Flat vectors in the memory of a GPU, and exact search over them: which kernels answer which search.

Vectors lie in memory of ours: see `driver.py` for why. There are three ways to search them:

- `scan.py` reads all (allowed) vectors once for up to eight queries: for few queries, under a mask, and for any k.
- `products.py` multiplies float16 vectors by tensor cores: for many queries.
- FAISS's `bfKnn` multiplies matrices and chooses from the products: for many queries over float32, and for everything
  where the driver takes no kernels of ours.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from ..device.card import SCAN_DIMENSIONS, CardFull, CardRefused, Floats, Limits, Rows
from ..device.merging import padded
from .door import faiss, faiss_metric
from .driver import Driver, Memory
from .products import Products
from .scan import Scanner

log = logging.getLogger("vecdb")

_READ_NS, _READ_NUMBER_PS = 0.13, 1.51
_FAISS_NS, _FAISS_NUMBER_PS = 3.3, 2.35
"""Nanoseconds of a float32 vector, and picoseconds of each number of it: to be read for eight queries, and to be compared with
few by FAISS. On an H100, from 1,000,000 x 384 and x 1536 by 32: 2.8 and 9.8 ms by reading, 4.2 and 6.9 by FAISS."""
_MOST_SCANS = 5
SCAN_K = 32_768


class Flat:
    """Room for `rows` vectors, of which `used` are there."""

    def __init__(self, driver: Driver, dimension: int, metric: str, code: str, rows: int) -> None:
        self.dimension = dimension
        self.metric = metric
        self.code = code
        self.masks: dict[int, Memory] = {}
        self.kind = np.dtype(np.float16 if code == "float16" else np.float32)
        self.rows = rows
        self.used = 0
        self.vectors = driver.allocate(rows * dimension * self.kind.itemsize)
        self.squares: Memory | None = None
        if metric == "l2":
            try:
                self.squares = driver.allocate(4 * rows)
            except CardFull:
                self.vectors.free()
                raise

    @property
    def device_bytes(self) -> int:
        return self.vectors.size + (0 if self.squares is None else self.squares.size)

    def add(self, vectors: Floats) -> None:
        coded = vectors.astype(self.kind, copy=False)
        self.vectors.write(self.used * self.dimension * self.kind.itemsize, coded)
        if self.squares is not None:
            as_stored = coded.astype(np.float32, copy=False)
            self.squares.write(4 * self.used, np.einsum("nd,nd->n", as_stored, as_stored))
        self.used += len(vectors)

    def taken(self, rows: Rows) -> Floats:
        """The vectors (n, d) of a few rows, as they are stored; a copy from the card for each."""
        found = np.empty((len(rows), self.dimension), self.kind)
        for at, row in enumerate(rows.tolist()):
            self.vectors.read(found[at], row * found[at].nbytes)
        return found.astype(np.float32)


class FlatSearch:
    """Searches of flat vectors. One thread, the card's."""

    def __init__(self, driver: Driver, resources: Any) -> None:
        self._resources = resources
        self._scanner: Scanner | None = None
        self._products: Products | None = None
        try:
            self._scanner = Scanner(driver)
            self._products = Products(driver, self._scanner.module)
        except (RuntimeError, AttributeError) as error:
            # A driver that is too old for the kernels, or a card that is too old for tensor cores.
            what = "all exact search" if self._scanner is None else "exact search by many queries"
            log.warning("%s is left to FAISS: %s", what, error)
        self.limits = Limits() if self._scanner is None else Limits(scan_k=SCAN_K)

    @property
    def masks(self) -> bool:
        """Whether masks are obeyed, and k goes up to `limits.scan_k`."""
        return self._scanner is not None

    def search(self, flat: Flat, queries: Floats, k: int, mask: int) -> tuple[Floats, Rows]:
        """As `Card.search`."""
        most = self.limits.scan_k if self.masks else self.limits.k
        if not 1 <= k <= most:
            raise CardRefused(f"k must be from 1 to {most}, given {k}")
        if mask and mask not in flat.masks:
            raise CardRefused(f"mask {mask} is not known")
        products, many = self._products, len(queries)
        if (
            products is not None
            and flat.code == "float16"
            and products.takes(flat.dimension, flat.used, many, k)
        ):
            found = products.search(
                flat.vectors, flat.squares, flat.used, queries, k, flat.masks.get(mask)
            )
            if found is not None:
                return found
        few = many <= scan_queries(flat.dimension) and flat.dimension <= SCAN_DIMENSIONS
        if self._scanner is None or not (mask or few or k > self.limits.k):
            found = or_full(self._by_faiss, flat, queries, k)
            return found[0], found[1]
        if flat.dimension > SCAN_DIMENSIONS:
            raise CardRefused(f"such a search takes at most {SCAN_DIMENSIONS} dimensions")
        return self._scanner.search(
            flat.vectors, flat.code, flat.metric, flat.used, queries, k, flat.masks.get(mask)
        )

    def _by_faiss(self, flat: Flat, queries: Floats, k: int) -> tuple[Floats, Rows]:
        width = min(k, flat.used)
        scores = np.empty((len(queries), width), np.float32)
        positions = np.empty((len(queries), width), np.int64)
        if not scores.size:
            return padded(scores, positions, k, flat.metric)
        asked = queries.astype(flat.kind, copy=False)  # both sides must be of one type
        code = faiss.DistanceDataType_F16 if flat.kind == np.float16 else faiss.DistanceDataType_F32
        call = faiss.GpuDistanceParams()
        call.metric, call.k, call.dims = faiss_metric(flat.metric), width, flat.dimension
        call.vectors = faiss.cast_integer_to_void_ptr(flat.vectors.address)
        call.vectorType, call.vectorsRowMajor, call.numVectors = code, True, flat.used
        if flat.squares is not None:
            call.vectorNorms = faiss.cast_integer_to_float_ptr(flat.squares.address)
        call.queries = faiss.swig_ptr(asked)
        call.queryType, call.queriesRowMajor, call.numQueries = code, True, len(queries)
        call.outDistances, call.outIndices = faiss.swig_ptr(scores), faiss.swig_ptr(positions)
        call.outIndicesType = faiss.IndicesDataType_I64
        call.device, call.use_cuvs = 0, False
        faiss.bfKnn(self._resources, call)
        return padded(scores, positions, k, flat.metric)


def scan_queries(dimension: int) -> int:
    """Up to so many queries float32 vectors are read again for every eight of them; beyond, FAISS multiplies matrices. The more
    numbers a vector has, the less it matters that FAISS chooses slowly: 40 up to 500 dimensions, 16 at 1,536, 8 from 4,540 on."""
    reading = _READ_NS + 1e-3 * _READ_NUMBER_PS * dimension
    faiss_ns = _FAISS_NS + 1e-3 * _FAISS_NUMBER_PS * dimension
    return 8 * max(1, min(_MOST_SCANS, int(faiss_ns / reading)))


def or_full(call: Any, *arguments: Any, **named: Any) -> Any:
    """A call of FAISS; CardFull where it wanted more memory than there is."""
    try:
        return call(*arguments, **named)
    except (RuntimeError, MemoryError) as error:
        if is_full(error):
            raise CardFull(str(error).strip()[:500]) from error
        raise


def is_full(error: Exception) -> bool:
    """Whether an exception that came out of FAISS means that the card has too little memory.

    `StandardGpuResources: alloc fail ... (cudaMalloc error out of memory [2])`; with cuVS `CUDA memory
    allocation error`, or RMM's `std::bad_alloc: out_of_memory`. An allocation that fails for another reason
    ("an illegal memory access was encountered [700]") is the end of the context.
    """
    text = str(error)
    return isinstance(error, MemoryError) or any(
        words in text
        for words in ("out of memory", "out_of_memory", "CUDA memory allocation error", "bad_alloc")
    )
