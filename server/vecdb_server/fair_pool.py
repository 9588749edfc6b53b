"""Threads that take their work from a fair queue, and know how long it takes."""

from __future__ import annotations

import threading
import time
from _thread import allocate_lock
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from vecdb.tally import SECONDS, Tally

from .fair_queue import FairQueue, Ticket, Who

NOBODY = Who("", "")
_FIRST_COST_S = 0.001
_WEIGHT = 0.05
"""Of the newest piece of work in the mean of what one takes."""


_Job = tuple[Future[Any], Callable[..., Any], tuple[Any, ...], float]
"""What becomes of it, the function, its arguments, when it came."""


class _Here(threading.local):
    waited_s = 0.0


_here = _Here()


def queued_s() -> float:
    """How long the work that this thread does has waited for it."""
    return _here.waited_s


def waits_no_more() -> None:
    """What this thread works on from now on came after its work had got the thread."""
    _here.waited_s = 0.0


class FairPool(ThreadPoolExecutor):
    """A pool whose work waits in a `FairQueue`. Any thread may call.

    A ThreadPoolExecutor by name only, because gRPC runs a handler in no pool of another class: nothing of
    that class is used. Threads are made when they are first needed.
    """

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        self.name = name
        self.waits = Tally(SECONDS)
        """Seconds that work has waited for a thread."""
        self.cost_s = _FIRST_COST_S
        """Mean of what a piece of work takes, the newest ones counting most."""
        self._queue: FairQueue[_Job] = FairQueue()
        self._guard = allocate_lock()
        self._bells: SimpleQueue[None] = SimpleQueue()
        """One entry for each piece of work, and for each thread that is to end: threads wait in C."""
        self._pool_threads: list[threading.Thread] = []
        self.busy = 0
        """Pieces of work that wait or run."""
        self._ended = False

    @property
    def waiting(self) -> int:
        """Pieces of work that wait for a thread."""
        return self._queue.waiting

    @property
    def running(self) -> int:
        return self.busy - self._queue.waiting

    @property
    def clients(self) -> int:
        """Clients that have work here, or had until a moment ago."""
        return self._queue.clients

    @property
    def wait_s(self) -> float:
        """How long new work would probably wait, if it came last."""
        return self._queue.waiting * self.cost_s / self.size

    def wait_for(self, mine: int) -> float:
        """How long new work of a client would probably wait that has `mine` pieces waiting already: what
        others have waiting beyond their turns comes after it."""
        turns = min(self._queue.waiting, (mine + 1) * max(1, self._queue.active))
        return turns * self.cost_s / self.size

    def of(self, client: str) -> tuple[int, int]:
        """(pieces of work of a client that wait, that run)."""
        with self._guard:
            return self._queue.of(client)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_: Any) -> Future[Any]:
        return self.submit_for(NOBODY, fn, *args)

    def submit_for(self, who: Who, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """`submit` for a client and a collection."""
        future: Future[Any] = Future()
        with self._guard:
            if self._ended:
                raise RuntimeError("this pool was shut down")
            threads = len(self._pool_threads)
            if threads < self.size and self.busy >= threads:
                self._add_thread()
            self._queue.put(who, (future, fn, args, time.perf_counter()))
            self.busy += 1
        self._bells.put(None)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more work; with `cancel_futures` drops what waits, with `wait` returns when all is done."""
        with self._guard:
            self._ended = True
            dropped = []
            while cancel_futures and self._queue.waiting:
                (future, *_), ticket = self._queue.take(0.0)
                self._queue.settle(ticket, 0.0)
                self.busy -= 1
                dropped.append(future)
        for _ in self._pool_threads:
            self._bells.put(None)
        for future in dropped:
            future.cancel()
            future.set_running_or_notify_cancel()
        for thread in self._pool_threads if wait else ():
            thread.join()

    def _add_thread(self) -> None:
        number = len(self._pool_threads)
        thread = threading.Thread(
            target=self._work, name=f"vecdb-{self.name}-{number}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            # The system gives no more of them. Those that are there do the work, later.
            if not number:
                raise
            return
        self._pool_threads.append(thread)

    def _work(self) -> None:
        while True:
            self._bells.get()
            with self._guard:
                if not self._queue.waiting:
                    if self._ended:
                        return
                    continue
                job, ticket = self._queue.take(self.cost_s)
            self._run(job, ticket)
            # Or the arguments of the last call would stay in memory while the thread waits.
            del job, ticket

    def _run(self, job: _Job, ticket: Ticket) -> None:
        future, fn, args, came_s = job
        begun_s = time.perf_counter()
        _here.waited_s = begun_s - came_s
        self.waits.add(begun_s - came_s)
        result, failure = None, None
        there = future.set_running_or_notify_cancel()
        if there:
            try:
                result = fn(*args)
            except BaseException as error:
                failure = error
        took_s = time.perf_counter() - begun_s
        with self._guard:
            self.busy -= 1
            self._queue.settle(ticket, took_s)
            self.cost_s += _WEIGHT * (took_s - self.cost_s)
        if there and failure is not None:
            future.set_exception(failure)
        elif there:
            future.set_result(result)
