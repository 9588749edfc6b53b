"""Exact search by many queries over float16 vectors, by tensor cores: `kernels/products.cu`.

Queries are rounded to float16, as FAISS does; sums are of float32. How it finds the best without writing all
scores is said in the kernels.
"""

from __future__ import annotations

import ctypes
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..device.card import Floats, Rows, padding
from .driver import Driver, Kernel, Memory, Pinned, TileMap
from .kernels import ptx, scores_of

log = logging.getLogger("vecdb")

MOST_K = 256
LEAST_ROWS = 32_768
MOST_ROWS = 1 << 31
"""The copy engine of a Hopper finds a tile by numbers of 32 bits with a sign, and zeros what lies before the first."""
LEAST_QUERIES = 5
"""Fewer are read by `scan.py` in less time."""
_TILE = 128
_TILE_ROWS = 256
_THREADS = 256
_SHARED_BYTES = 4 * (_TILE + _TILE_ROWS) * 64
_HOPPER = (9, 0)
"""Cards that have kernels of their own: `kernels/hopper.cu`."""
_HOPPER_THREADS = 384
_HOPPER_COLUMNS = 64
_HOPPER_SHARED_BYTES = 4 * (_TILE + _TILE_ROWS) * 2 * _HOPPER_COLUMNS + 1_024
_STATE, _BINS = 8, 2_048
_LEAST_SAMPLE = 4_096
_SAMPLES_APART = 4
"""A second sample has so many times the rows of the first, or there is none."""
_ROOM = 2_048
"""Rows that may be as near as a threshold says, a query; a power of two."""
_EXPECTED = _ROOM // 4
"""Rows that are expected to be that near at most, of those compared at once: rows are in no order as to what is near,
since sample and parts take every so-manieth."""
_GIVEN = 20
"""Rows that are given for each answer, but for those of a small or large k: fewer cost a larger sample."""
_SAMPLED = 16
"""A sample has at most one row in so many."""
_NOTHING = np.uint64(2**64 - 1)
_U64, _U32, _INT = ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int
_AFTER_ROWS = (_U64, _U64, _U64, _U64, _U64, _U64, _U32)
"""Parameters of `sample` and `nearest` from `allowed` on."""
_KINDS = ("sample_l2", "sample_ip", "nearest_l2", "nearest_ip")


class Products:
    """One thread, the card's."""

    def __init__(self, driver: Driver, scan: ctypes.c_void_p) -> None:
        """`scan` is the module of `Scanner`, whose `narrow` chooses here too. RuntimeError where the driver does not take
        the kernels, as for cards before compute capability 8.0."""
        self._driver = driver
        self._units = driver.multiprocessors()
        self._sample_bytes = driver.scratch_bytes()
        """Scores of the sample, which are written: it has no more rows than this gives each query."""
        best = driver.module(ptx("best"))
        self._hopper = driver.capability() == _HOPPER
        """Whether the kernels are those of hopper.cu."""
        if self._hopper:
            try:
                self._kernels = self._multiplying()
            except (RuntimeError, AttributeError) as error:
                log.warning("many queries are compared by the kernels for every card: %s", error)
                self._hopper = False
        if not self._hopper:
            self._kernels = self._multiplying()
        self._narrow = self._kernel(scan, "narrow", _U64, _U64, _U32, _INT, _U64, _U64)
        self._begin = self._kernel(best, "begin", _U64, _U32, _U32, _U32, _U64, _U64, _U64)
        self._keep = self._kernel(best, "keep_best", _U64, _U32, _U32, _INT, _U64, _U64, _U64, _U64)
        self._halve = self._kernel(best, "halve", _U64, _U32, _INT, _U64, _U64)
        self._scratch: dict[str, Memory] = {}
        self._answer: Pinned | None = None

    def takes(self, dimension: int, rows: int, queries: int, k: int) -> bool:
        """Whether such a search is one for these kernels."""
        return (
            queries >= LEAST_QUERIES
            and rows >= LEAST_ROWS
            and k <= MOST_K
            and dimension % 8 == 0
            and rows < MOST_ROWS
        )

    def search(
        self,
        vectors: Memory,
        squares: Memory | None,
        rows: int,
        queries: Floats,
        k: int,
        allowed: Memory | None = None,
    ) -> tuple[Floats, Rows] | None:
        """Scores and positions (q, k), as `Card.search` gives them: `l2` with `squares` (rows,) of the vectors, else
        inner products. None where rows lie so that thresholds say too little, thousands at one distance say.
        """
        asked, d = queries.shape
        padded = -(-asked // _TILE) * _TILE
        full, x = self._held("queries", queries.nbytes), self._held("halves", 2 * padded * d)
        samples = _samples(rows, k, max(_LEAST_SAMPLE, self._sample_bytes // (4 * padded)))
        strides = [-(-rows // size) for size in samples]
        # To the last row: what lies there may be like nothing before it.
        sample, reached = (-(-rows // stride) for stride in (strides[0], strides[-1]))
        keys = self._held("keys", 4 * padded * sample)
        bins = self._zeros("bins", 4 * _BINS * padded)
        states = self._zeros("states", 4 * _STATE * padded)
        thresholds = self._held("thresholds", 4 * padded)
        given = self._held("given", 4 * padded)
        out = self._held("out", 8 * _ROOM * padded)
        # What is read in the end: the answers, the squared lengths of queries, and whether it went well.
        answer_bytes = (8 * k + 4) * padded + 4
        answer = self._answer = self._driver.pinned_at_least(self._answer, answer_bytes)
        lengths = answer.address + 8 * k * padded
        overflow = lengths + 4 * padded
        metric = "ip" if squares is None else "l2"

        after = (
            0 if squares is None else squares.address, 0 if allowed is None else allowed.address,
            keys.address, thresholds.address, given.address, out.address, _ROOM,
        )  # fmt: skip
        multiply = self._multiplier(vectors, x, padded, d, metric, after)
        full.write(0, queries, wait=False)
        self._halve.launch(padded, 1, 0, full.address, asked, d, x.address, lengths)
        multiply("sample", 0, strides[0], sample)
        blocks = max(1, min(8, sample // (16 * _THREADS)))
        for step in (0, 1):
            self._narrow.launch(
                blocks, asked, 0, keys.address, sample, k, step, states.address, bins.address
            )
        self._begin.launch(
            -(-padded // _THREADS), 1, 0, states.address, k, asked, padded, thresholds.address,
            given.address, overflow,
        )  # fmt: skip

        def keep(forget: int) -> None:
            self._keep.launch(
                asked, 1, 8 * _ROOM, out.address, _ROOM, k, forget, thresholds.address,
                given.address, overflow, answer.address,
            )  # fmt: skip

        if len(strides) > 1:
            multiply("nearest", 0, strides[1], reached)
            keep(1)
        parts = -(-rows // max(1, _expected(k) * reached // k))
        for part in range(parts):
            multiply("nearest", part, parts, (rows - part + parts - 1) // parts)
            keep(0)
        self._driver.wait()
        read = answer.bytes[:answer_bytes]
        if read[-4:].any():
            return None
        packed = read[: 8 * k * asked].view(np.uint64).reshape(asked, k)
        missing = packed == _NOTHING
        scores = scores_of(packed, metric)
        if metric == "l2":
            of_queries = read[8 * k * padded : -4].view(np.float32)[:asked, None]
            scores = np.maximum(scores + of_queries, 0.0)
        positions = (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)
        scores[missing], positions[missing] = padding(metric), -1
        return scores, positions

    def _multiplier(
        self, vectors: Memory, x: Memory, padded: int, d: int, metric: str, after: tuple[int, ...]
    ) -> Callable[[str, int, int, int], None]:
        """What starts `sample` or `nearest` over `count` rows, each `stride`-th from `first` on, by queries `x`."""
        driver, query_tiles = self._driver, padded // _TILE
        of_queries = None
        if self._hopper:
            of_queries = driver.tile_map(x.address, padded, d, 2 * d, (_TILE, _HOPPER_COLUMNS))

        def multiply(what: str, first: int, stride: int, count: int) -> None:
            name = f"{what}_{metric}"
            blocks = min(self._units, -(-count // _TILE_ROWS) * query_tiles)
            if of_queries is None:
                self._kernels[name].launch(
                    blocks, 1, _SHARED_BYTES, vectors.address, first, stride, count, d, x.address,
                    query_tiles, *after,
                )  # fmt: skip
                return
            of_rows = driver.tile_map(
                vectors.address + 2 * d * first, count, d, 2 * d * stride, (_TILE_ROWS, _HOPPER_COLUMNS)
            )  # fmt: skip
            self._kernels[name].launch(
                blocks, 1, _HOPPER_SHARED_BYTES, of_queries, of_rows, first, stride, count, d,
                query_tiles, *after,
            )  # fmt: skip

        return multiply

    def _multiplying(self) -> dict[str, Kernel]:
        """`sample` and `nearest` by their names, for this card or, where that is no Hopper, for every card."""
        threads, shared, name = _THREADS, _SHARED_BYTES, "products"
        types: tuple[Any, ...] = (_U64, _U64, _U64, _U32, _INT, _U64, _INT, *_AFTER_ROWS)
        if self._hopper:
            threads, shared, name = _HOPPER_THREADS, _HOPPER_SHARED_BYTES, "hopper"
            types = (TileMap, TileMap, _U64, _U64, _U32, _INT, _INT, *_AFTER_ROWS)
        module = self._driver.module(ptx(name))
        made = {kind: self._driver.kernel(module, kind, threads, *types) for kind in _KINDS}
        for kernel in made.values():
            kernel.allow_shared(shared)
        return made

    def _kernel(self, module: Any, name: str, *types: Any) -> Kernel:
        return self._driver.kernel(module, name, _THREADS, *types)

    def _held(self, name: str, size: int) -> Memory:
        held = self._scratch.get(name)
        if held is None or held.size < size:
            self._scratch.pop(name, None)
            if held is not None:
                held.free()
            held = self._scratch[name] = self._driver.allocate(size)
        return held

    def _zeros(self, name: str, size: int) -> Memory:
        """Zero when it is made, and left so by whoever writes into it."""
        held = self._scratch.get(name)
        if held is None or held.size < size:
            held = self._held(name, size)
            self._driver.clear(held.address, size)
        return held


def _expected(k: int) -> int:
    """`_EXPECTED`, or fewer for a small k: rows as near as the k-th of a sample are a sum of k numbers that vary as much as
    they are large on average, which is above `_ROOM` once in a billion if the average is no more than this."""
    return max(1, min(_EXPECTED, int(_ROOM * k / (k + 6.4 * math.sqrt(k) + 14))))


def _samples(rows: int, k: int, most: int) -> list[int]:
    """Rows of the samples: one whose scores are written, `most` at most, and where that is worth it a larger one, of which
    again only what is near is kept. The larger it is, the fewer rows of all are given only to be left out."""
    wanted = min(max(rows * k // min(_expected(k), _GIVEN * k), _LEAST_SAMPLE), rows // _SAMPLED)
    first = min(max(_LEAST_SAMPLE, wanted * k // _expected(k)), most, rows)
    second = min(wanted, first * _expected(k) // k)
    return [first, second] if second >= _SAMPLES_APART * first else [max(first, min(wanted, most))]
