"""Exact search by kernels of our own (`kernels/scan.cu`): for few queries, under a filter, and for any k.

FAISS's `bfKnn` is written for many queries. For one it reads at a tenth of the card's rate, it knows no filter, and
its k ends at 2,048. These kernels read every allowed vector once for up to eight queries.

The kernels are compiled by the driver when the card is opened, which it remembers for the next time. Where that fails,
an old driver say, there is no `Scanner` and everything is FAISS's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from ..device.card import Floats, Rows, padding
from .driver import Driver, Kernel, Memory, Pinned
from .kernels import ptx, scores_of

_U64, _U32, _INT = ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int
_SCAN_TYPES = (_U64, _U64, _INT, _U64, _U64, _U64, _U64)
_CHOOSE_TYPES = (_U64, _U64, _U32, _INT, _INT, _U32, _U64, _U64, _U64, _U64)
_TOGETHER = (1, 4, 8)
"""Queries that a kernel of each kind takes at once."""
_SHARED_BYTES = 48 << 10
_THREADS = 256
_STATE = 8
"""Numbers of `State` in the kernels."""
_AHEAD = 8
"""Keys that a thread reads at once."""
_BINS = 2_048
_ROOM = 1_024
"""Answers beyond k that there is room for: rows that share the first 22 bits of the k-th key. Where there are more,
as among vectors that are all the same, a third step tells them apart."""


class Scanner:
    """Searches flat vectors that lie on the device of `driver`. One thread, the card's."""

    def __init__(self, driver: Driver) -> None:
        """RuntimeError where the driver does not take the kernels."""
        self._driver = driver
        self.module = driver.module(ptx("scan"))
        self._units = driver.multiprocessors()
        self._keys_bytes = driver.scratch_bytes()
        self._kernels: dict[str, Kernel] = {}
        self._bins = driver.zeros(4 * _BINS * _TOGETHER[-1])
        self._states = driver.zeros(4 * _STATE * _TOGETHER[-1])
        self._queries = driver.allocate(_SHARED_BYTES)
        self._keys: Memory | None = None
        """Of `_keys_bytes` at most, but for those of one query."""
        # A search is a copy, two kernels and one waiting: queries are told and answers are read in memory of the host.
        self._asked = driver.pinned(_SHARED_BYTES)
        self._out: Pinned | None = None
        self._choose = driver.kernel(self.module, "choose", _THREADS, *_CHOOSE_TYPES)
        self._most_blocks = self._units * max(1, self._choose.resident(0))
        """Of `choose`, which wait for each other."""

    def search(
        self,
        vectors: Memory,
        code: str,
        metric: str,
        rows: int,
        queries: Floats,
        k: int,
        allowed: Memory | None = None,
    ) -> tuple[Floats, Rows]:
        """Scores and positions (q, k) of the nearest of `rows` vectors of `code`, as `Card.search` gives them.

        Sums are of float32, and `l2` is the sum of squared differences. `allowed` holds a bit for each row, least
        significant first, in whole words of 4 bytes.
        """
        if not rows or not len(queries):
            return _nothing(len(queries), k, metric)
        d = queries.shape[1]
        most = max(1, min(_SHARED_BYTES // (4 * d), self._keys_bytes // (4 * rows)))
        sizes = [size for size in _TOGETHER if size <= most]
        start = 0
        scores: Any = None
        while start < len(queries):
            left = len(queries) - start
            together = next((size for size in sizes if size >= left), sizes[-1])
            some = queries[start : start + together]
            found = self._few(vectors, code, metric, rows, some, together, k, allowed)
            if scores is None:
                # While the card works: of the 0.25 ms for a million vectors each hundredth counts.
                scores, positions = _nothing(len(queries), k, metric)
            for i, packed in enumerate(found()[: len(some)]):
                at = slice(0, len(packed))
                positions[start + i, at] = (packed & np.uint64(0xFFFFFFFF)).astype(np.int64)
                scores[start + i, at] = scores_of(packed, metric)
            start += len(some)
        return scores, positions

    def _few(
        self,
        vectors: Memory,
        code: str,
        metric: str,
        rows: int,
        queries: Floats,
        together: int,
        k: int,
        allowed: Memory | None,
    ) -> Callable[[], list[Any]]:
        """What waits for the best of each of `together` queries, at most k, in order: key and position in one uint64."""
        d = queries.shape[1]
        asked = self._asked.bytes[: 4 * together * d].view(np.float32).reshape(together, d)
        asked[: len(queries)] = queries
        asked[len(queries) :] = queries[-1]
        room = min(rows, k + _ROOM)
        shared = 4 * together * d
        keys = self._keys = self._at_least(self._keys, 4 * rows * together)
        self._driver.write_pinned(self._queries.address, self._asked, shared)
        width = "slim" if d % 4 else "wide"
        scan = self._kernel(f"scan_{code}_{width}_{metric}_{together}")
        scan.launch(
            self._units * max(1, scan.resident(shared)), 1, shared, vectors.address, rows, d,
            self._queries.address, 0 if allowed is None else allowed.address, keys.address,
            self._states.address,
        )  # fmt: skip
        blocks = min(-(-rows // (_AHEAD * _THREADS)), self._most_blocks // together)
        size = 8 * room * together
        out = self._out = self._driver.pinned_at_least(self._out, size + 4 * together)
        given = out.bytes[size : size + 4 * together].view(np.uint32)
        found = out.bytes[:size].view(np.uint64).reshape(together, room)

        def chosen(start: int, stop: int) -> None:
            self._choose.launch_together(
                blocks, together, keys.address, rows, k, start, stop, room, self._states.address,
                self._bins.address, out.address, out.address + size,
            )  # fmt: skip

        def answers() -> list[Any]:
            self._driver.wait()
            counts = given.tolist()
            if max(counts) > room:
                chosen(2, 2)
                self._driver.wait()
                counts = given.tolist()
            return [np.sort(found[i, :count])[:k] for i, count in enumerate(counts)]

        chosen(0, 1)
        return answers

    def _at_least(self, held: Memory | None, size: int) -> Memory:
        if held is not None and held.size >= size:
            return held
        if held is not None:
            held.free()
        return self._driver.allocate(size)

    def _kernel(self, name: str) -> Kernel:
        known = self._kernels.get(name)
        if known is None:
            known = self._driver.kernel(self.module, name, _THREADS, *_SCAN_TYPES)
            self._kernels[name] = known
        return known


def _nothing(queries: int, k: int, metric: str) -> tuple[Floats, Rows]:
    """Scores and positions (queries, k) where nothing was found."""
    scores = np.full((queries, k), padding(metric), np.float32)
    return scores, np.full((queries, k), -1, np.int64)
