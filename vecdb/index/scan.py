"""Exact search by kernels of our own (`kernels/scan.cu`): for few queries, under a filter, and for any k.

FAISS's `bfKnn` is written for many queries. For one it reads at a tenth of the card's rate, it knows no filter, and
its k ends at 2,048. These kernels read every allowed vector once for up to eight queries.

`scan.ptx` is compiled by the driver when the card is opened, which it remembers for the next time. Where that fails,
an old driver say, there is no `Scanner` and everything is FAISS's.
"""

from __future__ import annotations

import logging
from importlib import resources
from typing import Any

import numpy as np

from ..device.card import Floats, Rows, padding
from .driver import Driver, Memory

log = logging.getLogger("vecdb")

MOST_DIMENSIONS = 12_288
"""A query lies in the 48 KiB of shared memory that every card gives a block."""
_TOGETHER = (1, 4, 8)
"""Queries that a kernel of each kind takes at once."""
_SHARED_BYTES = 48 << 10
_THREADS = 256
_STATE = 8
_ALLOWED, _GIVEN = 3, 5
"""Numbers of `State` in the kernels."""
_BINS = 2_048
_KEYS_BYTES = 512 << 20
"""Keys that are held at most, but for those of one query."""
_ROOM = 1_024
"""Answers beyond k that there is room for: rows that share the first 22 bits of the k-th key. Where there are more,
as among vectors that are all the same, a third step tells them apart."""


class Scanner:
    """Searches flat vectors that lie on the device of `driver`. One thread, the card's."""

    def __init__(self, driver: Driver) -> None:
        """RuntimeError where the driver does not take the kernels."""
        self._driver = driver
        source = resources.files("vecdb.index").joinpath("kernels/scan.ptx").read_bytes()
        self._module = driver.module(source)
        self._units = driver.multiprocessors()
        self._functions: dict[str, tuple[Any, int]] = {}
        largest = _TOGETHER[-1]
        self._bins = driver.zeros(4 * _BINS * largest)
        self._states = driver.zeros(4 * _STATE * largest)
        self._queries: Memory | None = None
        self._keys: Memory | None = None
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
        most = max(1, min(_SHARED_BYTES // (4 * d), _KEYS_BYTES // (4 * rows)))
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
                scores[start + i, at] = _score(packed, metric)
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
        out = self._out = self._at_least(self._out, 8 * room * together)
        asked = self._queries = self._at_least(self._queries, queries.nbytes)
        asked.write(0, queries)
        wide = "wide" if d * (2 if code == "float16" else 4) % 16 == 0 else "slim"
        self._launch(
            f"scan_{code}_{wide}_{metric}_{together}", 0, 1, 4 * together * d,
            np.uint64(vectors.address), np.uint64(rows), np.int32(d), np.uint64(asked.address),
            np.uint64(0 if allowed is None else allowed.address), np.uint64(keys.address),
        )  # fmt: skip
        blocks = max(1, min(2 * self._units, rows // (8 * _THREADS)))
        whole = (np.uint64(keys.address), np.uint64(rows))
        states, bins = np.uint64(self._states.address), np.uint64(self._bins.address)

        def give(step: int) -> tuple[Any, Any]:
            self._launch(
                "give", blocks, together, 0,
                *whole, np.int32(step), np.uint32(room), states, np.uint64(out.address),
            )  # fmt: skip
            state = self._states.read(np.empty((together, _STATE), np.uint32))
            return state, out.read(np.empty((together, room), np.uint64))

        for step in (0, 1):
            self._launch(
                "narrow", blocks, together, 0, *whole, np.uint32(k), np.int32(step), states, bins
            )
        state, given = give(1)
        if (state[:, _GIVEN] > room).any():
            state[:, _GIVEN] = 0
            self._states.write(0, state)
            self._launch(
                "narrow", blocks, together, 0, *whole, np.uint32(k), np.int32(2), states, bins
            )
            state, given = give(2)
        return [
            np.sort(
                given[i, : min(room, state[i, _GIVEN])] if state[i, _ALLOWED] else given[i, :0]
            )[:k]
            for i in range(together)
        ]

    def _at_least(self, held: Memory | None, size: int) -> Memory:
        if held is not None and held.size >= size:
            return held
        if held is not None:
            held.free()
        return self._driver.allocate(size)

    def _launch(self, name: str, blocks: int, queries: int, shared: int, *arguments: Any) -> None:
        """`blocks` 0: as many as the device runs at once."""
        known = self._functions.get(name)
        if known is None:
            function = self._driver.function(self._module, name)
            known = self._functions[name] = (function, 0)
        function, resident = known
        if not blocks:
            resident = self._driver.resident(function, _THREADS, shared)
            blocks = max(1, resident * self._units)
        self._driver.launch(function, (blocks, queries), _THREADS, shared, arguments)


def opened(driver: Driver) -> Scanner | None:
    """A scanner, or None with a warning where the driver takes no kernels of ours."""
    try:
        return Scanner(driver)
    except (RuntimeError, AttributeError) as error:
        log.warning("exact search is left to FAISS: %s", error)
        return None


def _score(packed: Any, metric: str) -> Floats:
    """Scores of uint64 whose upper half is a key: see `key_of` in the kernels."""
    keys = (packed >> np.uint64(32)).astype(np.uint32)
    bits = np.where(keys & np.uint32(0x80000000), keys ^ np.uint32(0x80000000), ~keys)
    values: Floats = bits.view(np.float32)
    return values if metric == "l2" else -values
