"""Which threads serve which calls.

Reads get about as many threads as cores: more were slower when measured (one echo per call, 8
callers: 4,900 a second with 2 threads, 4,100 with 8); where calls last, one thread more answers those
clients of whom none runs. Writes wait for the disk, and those that wait
together share a commit, so they get more. Calls that may last (streams, checks, builds) get their
own threads, so that they never keep a query waiting; a health check and reflection neither. These
two have few threads and few places, whatever the settings say: nobody needs more, and for health no key.
"""

from __future__ import annotations

import os
from typing import Protocol

from vecdb.errors import Unavailable, VecdbError

from .admission import Admission
from .arrivals import GatedPool, RefusingPool
from .awaited import Awaited
from .fair_pool import MOST_LENT, FairPool
from .fair_queue import Who
from .silence import Brief, Silences, Watches

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
_RELIEF_S = 0.1
"""After so long with all threads for reads kept by the same calls one more serves clients that have none."""
_REFLECTION_THREADS = 2
_HEALTH_THREADS = 4
HEALTH_CALLS = 64
"""Calls of the health service that may run or wait at once; half of them for one connection."""
HEALTH_WATCHES = 2_000
"""Watches of the health service that may be open at once, of all hosts; half of them for one."""
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
        self.reads = GatedPool(self.read_threads, "read", self._refusal, _RELIEF_S, MOST_LENT)
        self.writes = GatedPool(write_threads, "write", self._refusal, None, MOST_LENT)
        self.long = GatedPool(stream_threads, "long", self._refusal_of_long)
        self.queries = GatedPool(query_streams, "stream", self._refusal_of_stream)
        self.reflection = GatedPool(_REFLECTION_THREADS, "reflection", self._refusal_of_reflection)
        self.health = GatedPool(_HEALTH_THREADS, "health", self._refusal_of_health)
        self.refusals = RefusingPool()
        """Of calls without a good key."""
        self._gated = (self.reads, self.writes, self.long)
        self.awaited = Awaited(admission)
        """Requests that calls wait for, but those of health and reflection and of streams of queries."""
        self.reflecting = Silences()
        """Streams of reflection, which a client may leave open for days."""
        self.asking = Brief()
        """Calls of the health service whose request has not come."""
        self.watches = Watches(self._refusal_of_watch)

    def of(self, method: str, *, streams: bool) -> FairPool:
        """The pool of a call, by its full method name."""
        name = method.rsplit("/", 1)[-1]
        if method.startswith("/grpc.health"):
            return self.health
        if method.startswith("/grpc.reflection"):
            return self.reflection
        if name == "QueryStream":
            return self.queries
        if streams or name in _LONG:
            return self.long
        return self.writes if name in _WRITES else self.reads

    def by_name(self) -> dict[str, FairPool]:
        """All that serve calls."""
        return {pool.name: pool for pool in self._all()}

    def _all(self) -> tuple[FairPool, ...]:
        return (*self._gated, self.queries, self.reflection, self.health)

    def _refusal(self, pool: FairPool, who: Who, left_s: float | None) -> VecdbError | None:
        return self._admission.refusal(pool, who, left_s, self.running())

    def _refusal_of_long(self, pool: FairPool, who: Who, _: float | None) -> VecdbError | None:
        # Long calls may last too long to queue, but one that is ended gives its thread back a moment later.
        if pool.busy >= pool.size and self.awaited.make_room(pool):
            return None
        return self._admission.refusal_of_long(pool, who, self.running(), "stream_threads")

    def _refusal_of_stream(self, pool: FairPool, who: Who, _: float | None) -> VecdbError | None:
        # A stream that is ended gives its thread back a moment later, so the new one may wait for it.
        if pool.busy >= pool.size and self._streams.make_room():
            return None
        return self._admission.refusal_of_long(pool, who, 0, "query_streams")

    def _refusal_of_reflection(
        self, pool: FairPool, who: Who, _: float | None
    ) -> VecdbError | None:
        # As of a stream of queries: an idle one goes for the sake of another.
        if pool.busy >= pool.size and self.reflecting.make_room():
            return None
        return self._admission.refusal_of_long(pool, who, 0, "those of reflection")

    def _refusal_of_health(self, pool: FairPool, who: Who, _: float | None) -> VecdbError | None:
        mine = sum(pool.of(who.client))
        return self._admission.refusal_of_few(mine, pool.busy, HEALTH_CALLS, "calls of health")

    def _refusal_of_watch(self, mine: int, taken: int) -> VecdbError | None:
        return self._admission.refusal_of_few(mine, taken, HEALTH_WATCHES, "watches of health")

    def refuse_all(self) -> None:
        """From now on no call enters but those of health. Those that are in go on."""
        for pool in (*self._gated, self.queries, self.reflection):
            pool.decide = _stopping

    def queries_wait(self) -> bool:
        """Whether there are queries that no core has time for."""
        return self.reads.waiting > 0 or self._streams.answering > self.read_threads

    def running(self) -> int:
        """Calls that wait or run, but for health and reflection, and for streams that have nothing to answer."""
        return self.reads.busy + self.writes.busy + self.long.busy + self._streams.answering

    def shutdown(self, *, wait: bool) -> None:
        """Ends the threads; with `wait` once they are through."""
        for pool in self._all():
            pool.shutdown(wait=wait, cancel_futures=True)
        # Dropped they would be in no line and no number of the audit log; see `Guard.refused`.
        self.refusals.shutdown(wait=wait)


def _stopping(pool: FairPool, who: Who, left_s: float | None) -> VecdbError:
    """Says what a client is told of a server that is not there, which it waits for: soon it is not."""
    return Unavailable("the server is stopping and takes no more calls", answered=False)
