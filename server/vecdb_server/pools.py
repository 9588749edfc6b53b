"""Which threads serve which calls.

Reads get about as many threads as cores: more were slower when measured (one echo per call, 8
callers: 4,900 a second with 2 threads, 4,100 with 8). Writes wait for the disk, and those that wait
together share a commit, so they get more. Calls that may last (streams, checks, builds) get their
own threads, so that they never keep a query waiting; a health check neither.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_WRITES = frozenset(
    (
        "CreateCollection",
        "DropCollection",
        "RenameCollection",
        "SetAlias",
        "DropAlias",
        "Insert",
        "Upsert",
        "Update",
        "Delete",
        "Flush",
    )
)
_LONG = frozenset(
    ("Scan", "Ingest", "Check", "BuildIndex", "Compact", "ListBackups", "PruneBackups")
)


class CountedPool(ThreadPoolExecutor):
    """A pool that knows how many of its calls wait or run."""

    def __init__(self, size: int, name: str) -> None:
        super().__init__(size, thread_name_prefix=f"vecdb-{name}")
        self.size = size
        self.busy = 0
        self._guard = threading.Lock()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with self._guard:
            self.busy += 1
        future = super().submit(fn, *args, **kwargs)
        future.add_done_callback(self._ended)
        return future

    def _ended(self, _: Future[Any]) -> None:
        with self._guard:
            self.busy -= 1


class Pools:
    """The thread pools of one server. `reads` is the default pool of its grpc.Server."""

    def __init__(self, worker_threads: int, write_threads: int, stream_threads: int) -> None:
        self.read_threads = worker_threads or max(2, os.cpu_count() or 1)
        self.reads = CountedPool(self.read_threads, "read")
        self.writes = CountedPool(write_threads, "write")
        self.long = CountedPool(stream_threads, "long")
        self.quick = CountedPool(1, "health")

    def of(self, method: str, *, streams: bool) -> CountedPool:
        """The pool of a call, by its full method name."""
        name = method.rsplit("/", 1)[-1]
        if method.startswith("/grpc.health"):
            return self.quick
        if streams or name in _LONG:
            return self.long
        return self.writes if name in _WRITES else self.reads

    def full(self, pool: CountedPool) -> bool:
        """Whether a call for `pool` must be refused: long calls may last too long to queue."""
        return pool is self.long and pool.busy >= pool.size

    def running(self) -> int:
        """Calls that wait or run, but for health checks."""
        return self.reads.busy + self.writes.busy + self.long.busy

    def shutdown(self, *, wait: bool) -> None:
        """Ends the threads; with `wait` once they are through."""
        for pool in (self.reads, self.writes, self.long, self.quick):
            pool.shutdown(wait=wait, cancel_futures=True)
