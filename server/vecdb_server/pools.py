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
from typing import Any, Protocol

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

    def __init__(self, size: int, name: str, setting: str) -> None:
        super().__init__(size, thread_name_prefix=f"vecdb-{name}")
        self.size = size
        self.setting = setting
        """The setting that makes it larger."""
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


class Streams(Protocol):
    """What must be known of the streams of queries: `query_stream.QueryStreams`."""

    @property
    def answering(self) -> int:
        """Streams that have something to answer."""

    def make_room(self) -> bool:
        """Ends one that has not, if there is one."""


class Pools:
    """The thread pools of one server. `reads` is the default pool of its grpc.Server."""

    def __init__(
        self,
        worker_threads: int,
        write_threads: int,
        stream_threads: int,
        query_streams: int,
        streams: Streams,
    ) -> None:
        self.read_threads = worker_threads or max(2, os.cpu_count() or 1)
        self.reads = CountedPool(self.read_threads, "read", "worker_threads")
        self.writes = CountedPool(write_threads, "write", "write_threads")
        self.long = CountedPool(stream_threads, "long", "stream_threads")
        self.queries = CountedPool(query_streams, "queries", "query_streams")
        self.quick = CountedPool(1, "health", "")
        self._streams = streams

    def of(self, method: str, *, streams: bool) -> CountedPool:
        """The pool of a call, by its full method name."""
        name = method.rsplit("/", 1)[-1]
        if method.startswith("/grpc.health"):
            return self.quick
        if name == "QueryStream":
            return self.queries
        if streams or name in _LONG:
            return self.long
        return self.writes if name in _WRITES else self.reads

    def full(self, pool: CountedPool) -> bool:
        """Whether a call for `pool` must be refused: long calls may last too long to queue."""
        return pool in (self.long, self.queries) and pool.busy >= pool.size

    def make_room(self, pool: CountedPool) -> bool:
        """Ends a call that only waits for its client, if there is one in `pool`."""
        return pool is self.queries and self._streams.make_room()

    def running(self) -> int:
        """Calls that wait or run, but for health checks, and for streams that have nothing to answer."""
        calls = self.reads.busy + self.writes.busy + self.long.busy
        return calls + self._streams.answering

    def shutdown(self, *, wait: bool) -> None:
        """Ends the threads; with `wait` once they are through."""
        for pool in (self.reads, self.writes, self.long, self.queries, self.quick):
            pool.shutdown(wait=wait, cancel_futures=True)
