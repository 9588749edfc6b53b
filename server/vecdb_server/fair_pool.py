"""Threads that take their work from a fair queue, and know how long it takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from vecdb.tally import SECONDS, Tally

from .fair_queue import FairQueue, Ticket, Who

NOBODY = Who("", "")
_FIRST_COST_S = 0.001
_WEIGHT = 0.05
"""Of the newest piece of work in the mean of what one takes."""


class _Job(NamedTuple):
    future: Future[Any]
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    came_s: float


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
        self._news = threading.Condition()
        self._pool_threads: list[threading.Thread] = []
        self._idle = 0
        self._running = 0
        self._ended = False

    @property
    def waiting(self) -> int:
        """Pieces of work that wait for a thread."""
        return len(self._queue)

    @property
    def running(self) -> int:
        return self._running

    @property
    def busy(self) -> int:
        """Pieces of work that wait or run."""
        return self._running + len(self._queue)

    @property
    def clients(self) -> int:
        """Clients that have work here, or had until a moment ago."""
        return self._queue.clients

    @property
    def wait_s(self) -> float:
        """How long new work would probably wait, if it came last."""
        return len(self._queue) * self.cost_s / self.size

    def of(self, client: str) -> tuple[int, int]:
        """(pieces of work of a client that wait, that run)."""
        with self._news:
            return self._queue.of(client)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_: Any) -> Future[Any]:
        return self.submit_for(NOBODY, fn, *args)

    def submit_for(self, who: Who, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """`submit` for a client and a collection."""
        future: Future[Any] = Future()
        with self._news:
            if self._ended:
                raise RuntimeError("this pool was shut down")
            self._queue.put(who, _Job(future, fn, args, time.perf_counter()))
            if self._idle:
                self._news.notify()
            elif len(self._pool_threads) < self.size:
                name = f"vecdb-{self.name}-{len(self._pool_threads)}"
                thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._pool_threads.append(thread)
                thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more work; with `cancel_futures` drops what waits, with `wait` returns when all is done."""
        with self._news:
            self._ended = True
            dropped = []
            while cancel_futures and len(self._queue):
                job, ticket = self._queue.take(0.0)
                self._queue.settle(ticket, 0.0)
                dropped.append(job)
            self._news.notify_all()
        for job in dropped:
            job.future.cancel()
            job.future.set_running_or_notify_cancel()
        for thread in self._pool_threads if wait else ():
            thread.join()

    def _work(self) -> None:
        while True:
            with self._news:
                while not len(self._queue):
                    if self._ended:
                        return
                    self._idle += 1
                    self._news.wait()
                    self._idle -= 1
                job, ticket = self._queue.take(self.cost_s)
                self._running += 1
            self._run(job, ticket)
            # Or the arguments of the last call would stay in memory while the thread waits.
            del job, ticket

    def _run(self, job: _Job, ticket: Ticket) -> None:
        begun_s = time.perf_counter()
        self.waits.add(begun_s - job.came_s)
        result, failure = None, None
        there = job.future.set_running_or_notify_cancel()
        if there:
            try:
                result = job.fn(*job.args)
            except BaseException as error:
                failure = error
        took_s = time.perf_counter() - begun_s
        with self._news:
            self._running -= 1
            self._queue.settle(ticket, took_s)
            self.cost_s += _WEIGHT * (took_s - self.cost_s)
        if there and failure is not None:
            job.future.set_exception(failure)
        elif there:
            job.future.set_result(result)
