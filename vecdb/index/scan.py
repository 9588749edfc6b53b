"""Exact search by kernels of our own (`kernels/scan.cu`): for few queries, under a filter, and for any k.

FAISS's `bfKnn` is written for many queries. For one it reads at a tenth of the card's rate, it knows no filter, and
its k ends at 2,048. These kernels read every allowed vector once for up to eight queries.

The kernels are compiled by the driver when the card is opened, which it remembers for the next time. Where that fails,
an old driver say, there is no `Scanner` and everything is FAISS's.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from ..device.card import Floats, Rows, padding
from .driver import Driver, Kernel, Memory
from .kernels import ptx, scores_of

_U64, _U32, _INT = ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int
_SCAN_TYPES = (_U64, _U64, _INT, _U64, _U64, _U64, _U64)
_TOGETHER = (1, 4, 8)
"""Queries that a kernel of each kind takes at once."""
_SHARED_BYTES = 48 << 10
_THREADS = 256
_STATE = 8
_GIVEN = 4
"""Of `State` in the kernels."""
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
        self._queries: Memory | None = None
        self._keys: Memory | None = None
        """Of `_keys_bytes` at most, but for those of one query."""
        self._out: Memory | None = None

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
        scores = np.full((len(queries), k), padding(metric), np.float32)
        positions = np.full((len(queries), k), -1, np.int64)
        if not rows:
            return scores, positions
        d = queries.shape[1]
        most = max(1, min(_SHARED_BYTES // (4 * d), self._keys_bytes // (4 * rows)))
        sizes = [size for size in _TOGETHER if size <= most]
        start = 0
        while start < len(queries):
            left = len(queries) - start
            together = next((size for size in sizes if size >= left), sizes[-1])
            some = queries[start : start + together]
            found = self._few(vectors, code, metric, rows, some, together, k, allowed)
            for i, packed in enumerate(found[: len(some)]):
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
    ) -> list[Any]:
        """For each of `together` queries its best, at most k, in order: key and position in one uint64."""
        d = queries.shape[1]
        if len(queries) < together:
            queries = np.concatenate([queries, np.repeat(queries[-1:], together - len(queries), 0)])
        room = min(rows, k + _ROOM)
        keys = self._keys = self._at_least(self._keys, 4 * rows * together)
        # What has been given, and behind it the states: read at once.
        out = self._out = self._at_least(self._out, (8 * room + 4 * _STATE) * together)
        states = out.address + 8 * room * together
        asked = self._queries = self._at_least(self._queries, queries.nbytes)
        asked.write(0, queries, wait=False)
        width = "slim" if d % 4 else "wide"
        scan = self._kernel(f"scan_{code}_{width}_{metric}_{together}", *_SCAN_TYPES)
        shared = 4 * together * d
        scan.launch(
            self._units * max(1, scan.resident(shared)), 1, shared, vectors.address, rows, d,
            asked.address, 0 if allowed is None else allowed.address, keys.address, states,
        )  # fmt: skip
        blocks = max(1, min(2 * self._units, rows // (8 * _THREADS)))
        narrow = self._kernel("narrow", _U64, _U64, _U32, _INT, _U64, _U64)
        give = self._kernel("give", _U64, _U64, _INT, _U32, _U64, _U64)

        def narrowed(step: int) -> None:
            narrow.launch(
                blocks, together, 0, keys.address, rows, k, step, states, self._bins.address
            )

        def given(step: int) -> tuple[Any, Any]:
            give.launch(blocks, together, 0, keys.address, rows, step, room, states, out.address)
            read = out.read(np.empty((8 * room + 4 * _STATE) * together, np.uint8))
            border = 8 * room * together
            return (
                read[:border].view(np.uint64).reshape(together, room),
                read[border:].view(np.uint32).reshape(together, _STATE),
            )

        narrowed(0)
        narrowed(1)
        found, state = given(1)
        if (state[:, _GIVEN] > room).any():
            again = state.copy()
            again[:, _GIVEN] = 0
            self._driver.write(states, again, wait=False)
            narrowed(2)
            found, state = given(2)
        return [np.sort(found[i, : state[i, _GIVEN]])[:k] for i in range(together)]

    def _at_least(self, held: Memory | None, size: int) -> Memory:
        if held is not None and held.size >= size:
            return held
        if held is not None:
            held.free()
        return self._driver.allocate(size)

    def _kernel(self, name: str, *types: Any) -> Kernel:
        known = self._kernels.get(name)
        if known is None:
            known = self._kernels[name] = self._driver.kernel(self.module, name, _THREADS, *types)
        return known
