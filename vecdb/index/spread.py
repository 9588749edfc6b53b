"""A batch of queries in parts, each searched from beginning to end by a core of its own.

FAISS spreads a batch over the cores too, but what comes behind it, ranking again by stored vectors and putting
answers in order, would be one core's work: of 13 ms for 100 queries to 1,000,000 rows on 2 cores that was 3.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from .door import CORES, one_thread

Part = TypeVar("Part")

_LEAST_QUERIES = 32
"""Queries of a part, at least: handing it over takes some 50 us."""


class Cores:
    """The cores beside the caller's. Any thread may call `spread`; one batch at a time is spread, and those
    that come meanwhile are searched as a whole, since then no core is idle."""

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self.clear()

    def clear(self) -> None:
        """Forgets the threads: a forked process does not have them."""
        self._free = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def spread(self, queries: int, search: Callable[[int, int], Part]) -> list[Part]:
        """What search(start, stop) gives for parts that make up all queries, in order.

        Raises what a part has raised, once none runs any more.
        """
        count = min(self._cores, queries // _LEAST_QUERIES)
        if count < 2 or not self._free.acquire(blocking=False):
            return [search(0, queries)]
        try:
            bounds = [i * queries // count for i in range(count + 1)]
            others = self._started(search, bounds)
            try:
                with one_thread():
                    first = search(0, bounds[count - len(others)])
            finally:
                for other in others:
                    other.exception()  # waits
            return [first, *(other.result() for other in others)]
        finally:
            self._free.release()

    def _started(self, search: Callable[[int, int], Part], bounds: list[int]) -> list[Future[Part]]:
        """The last parts, as many as there are threads for."""

        def alone(start: int, stop: int) -> Part:
            with one_thread():
                return search(start, stop)

        started: list[Future[Part]] = []
        try:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._cores - 1, "vecdb-search")
            for i in range(len(bounds) - 2, 0, -1):
                started.insert(0, self._pool.submit(alone, bounds[i], bounds[i + 1]))
        except RuntimeError:  # no thread to be had, or the interpreter is about to end
            return started
        return started


BESIDE = Cores(CORES)
"""Of this process."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=BESIDE.clear)
