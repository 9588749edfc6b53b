"""Which threads serve which calls.

Reads get about as many threads as cores: more were slower when measured (one echo per call, 8
callers: 4,900 a second with 2 threads, 4,100 with 8). Writes wait for the disk, and those that wait
together share a commit, so they get more. Calls that may last (streams, checks, builds) get their
own threads, so that they never keep a query waiting; a health check neither.
"""

from __future__ import annotations

import os
from typing import Protocol

from vecdb.errors import VecdbError

from .admission import Admission
from .arrivals import GatedPool
from .fair_pool import FairPool
from .fair_queue import Who

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
        admission: Admission,
    ) -> None:
        self._streams = streams
        self._admission = admission
        self.read_threads = worker_threads or max(2, os.cpu_count() or 1)
        self.reads = GatedPool(self.read_threads, "read", self._refusal)
        self.writes = GatedPool(write_threads, "write", self._refusal)
        self.long = GatedPool(stream_threads, "long", self._refusal_of_long)
        self.queries = GatedPool(query_streams, "stream", self._refusal_of_stream)
        self.quick = FairPool(1, "health")
        self._gated = (self.reads, self.writes, self.long)

    def of(self, method: str, *, streams: bool) -> FairPool:
        """The pool of a call, by its full method name."""
        name = method.rsplit("/", 1)[-1]
        if method.startswith("/grpc.health"):
            return self.quick
        if name == "QueryStream":
            return self.queries
        if streams or name in _LONG:
            return self.long
        return self.writes if name in _WRITES else self.reads

    def by_name(self) -> dict[str, FairPool]:
        """Those that calls of ours wait for."""
        return {pool.name: pool for pool in (*self._gated, self.queries)}

    def _refusal(self, pool: FairPool, who: Who, left_s: float | None) -> VecdbError | None:
        return self._admission.refusal(pool, who, left_s, self.running())

    def _refusal_of_long(self, pool: FairPool, who: Who, _: float | None) -> VecdbError | None:
        # Long calls may last too long to queue.
        return self._admission.refusal_of_long(pool, who, self.running(), "stream_threads")

    def _refusal_of_stream(self, pool: FairPool, who: Who, _: float | None) -> VecdbError | None:
        # A stream that is ended gives its thread back a moment later, so the new one may wait for it.
        if pool.busy >= pool.size and self._streams.make_room():
            return None
        return self._admission.refusal_of_long(pool, who, 0, "query_streams")

    def queries_wait(self) -> bool:
        """Whether there are queries that no core has time for."""
        return self.reads.waiting > 0 or self._streams.answering > self.read_threads

    def running(self) -> int:
        """Calls that wait or run, but for health checks, and for streams that have nothing to answer."""
        return self.reads.busy + self.writes.busy + self.long.busy + self._streams.answering

    def shutdown(self, *, wait: bool) -> None:
        """Ends the threads; with `wait` once they are through."""
        for pool in (*self._gated, self.queries, self.quick):
            pool.shutdown(wait=wait, cancel_futures=True)
