"""Threads that take their work from a fair queue, and know how long it takes."""

from __future__ import annotations

import math
import threading
import time
from _thread import allocate_lock
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

from vecdb.tally import SECONDS, Tally

from .fair_queue import FairQueue, Ticket, Who

NOBODY = Who("", "")
_FIRST_COST_S = 0.001
_LAST_S = 0.005
_WEIGHT = 0.05
"""Of the newest piece of work in the mean of what one takes."""
MOST_LENT = 32
"""Threads more, at most, that a pool has in the place of those whose work waits for its client."""
MOST_AT_DEVICES = 128
"""The same of those whose work waits for a device: many at once are a batch there, and one that hangs keeps no thread from others."""


_Job = tuple[Future[Any], Callable[..., Any], tuple[Any, ...], float]
"""What becomes of it, the function, its arguments, when it came."""


class _Here(threading.local):
    waited_s = 0.0
    pool: FairPool | None = None
    client = ""
    aside_s = 0.0
    """How long the work of this thread has waited for its client."""
    lent_s = 0.0
    """How long of that another could have the thread."""
    device_since_s = 0.0


_here = _Here()


def this_pool() -> FairPool | None:
    """The pool whose work this thread does; None for a thread of no pool."""
    return _here.pool


def this_client() -> str:
    """Whose work this thread does, as its call was announced; empty for a thread of no pool."""
    return _here.client


class _Aside:
    """Work that waits for its client: since when, whose it is, and whether it was told to end."""

    __slots__ = ("client", "leaves", "since_s")

    def __init__(self, client: str, since_s: float) -> None:
        self.client = client
        self.since_s = since_s
        self.leaves = False


def queued_s() -> float:
    """How long the work that this thread does has waited for it."""
    return _here.waited_s


def came_s() -> float:
    """When the work that this thread begins now came, before it waited for the thread; of `time.perf_counter`."""
    return time.perf_counter() - _here.waited_s


def lend(begins: bool) -> None:
    """The work of this thread begins to wait for a device, or that is over: meanwhile its pool has another thread."""
    if _here.pool is not None:
        _here.pool.lend(begins)


def waits_no_more() -> None:
    """What this thread works on from now on came after its work had got the thread."""
    _here.waited_s = 0.0


class FairPool(ThreadPoolExecutor):
    """A pool whose work waits in a `FairQueue`. Any thread may call.

    A ThreadPoolExecutor by name only, because gRPC runs a handler in no pool of another class: nothing of
    that class is used. Threads are made when they are first needed.

    With `relief_s` there is one thread more: where all others have been kept for so long by what they do, it does what
    waits of clients of whom nothing runs. So calls that last, of a client or some, keep no other from an answer.

    Work that waits for its client steps aside (`step_aside`): for each of up to `most_lent` there is one thread more
    meanwhile, so that whoever sends nothing, or slowly, keeps no other from a thread. So does work that waits for a device (`lend`).
    """

    def __init__(
        self, size: int, name: str, relief_s: float | None = None, most_lent: int = 0
    ) -> None:
        self.size = size
        self._most_lent = most_lent
        self._aside: dict[int, _Aside] = {}
        """By thread."""
        self._at_devices = 0
        """Pieces of work that wait for a device."""
        self._relief_s = relief_s
        self._relief: threading.Thread | None = None
        self._crowded = threading.Event()
        """Set when work had to wait."""
        self._begun: dict[int, float] = {}
        """When each piece of work began that runs, by thread."""
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
    def ended(self) -> bool:
        """Whether it was shut down: what still waits is to be brief."""
        return self._ended

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
            if threads < self._room and self.busy >= threads:
                self._add_thread()
            self._queue.put(who, (future, fn, args, time.perf_counter()))
            self.busy += 1
            if self._relief_s is not None and self.busy > self.size and not self._crowded.is_set():
                self._call_relief()
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
            own = self._pool_threads.copy()
        for _ in own:
            self._bells.put(None)
        for future in dropped:
            future.cancel()
            future.set_running_or_notify_cancel()
        self._crowded.set()
        threads = [*own, *filter(None, [self._relief])]
        for thread in threads if wait else ():
            thread.join()

    # -- work that waits for its client

    @property
    def _room(self) -> int:
        """How many threads there may be. With the guard, or for a first look."""
        lent = min(len(self._aside), self._most_lent) + min(self._at_devices, MOST_AT_DEVICES)
        return self.size + lent

    def lend(self, begins: bool) -> None:
        """See the function of this name. Pools that lend to nobody, as where streams have a thread each, do not so either."""
        if not self._most_lent:
            return
        if begins:
            _here.device_since_s = time.perf_counter()
            with self._guard:
                self._at_devices += 1
                self._grow()
            return
        with self._guard:
            lent = self._at_devices <= MOST_AT_DEVICES
            self._at_devices -= 1
        if lent:
            waited_s = time.perf_counter() - _here.device_since_s
            _here.aside_s += waited_s
            _here.lent_s += waited_s

    def step_aside(self, since_s: float) -> None:
        """The work of this thread waits for its client, since a moment of `time.perf_counter`: until `step_back`
        another thread may do what waits."""
        with self._guard:
            self._aside[threading.get_ident()] = _Aside(_here.client, since_s)
            self._grow()

    def _grow(self) -> None:
        """One thread more where work waits for one and there may be. With the guard."""
        if self._queue.waiting and len(self._pool_threads) < self._room and not self._ended:
            self._add_thread()

    def step_back(self) -> bool:
        """What was waited for has come, or will not; whether the work was told meanwhile to end for another."""
        with self._guard:
            lent = len(self._aside) <= self._most_lent
            mine = self._aside.pop(threading.get_ident())
        waited_s = time.perf_counter() - mine.since_s
        if self._most_lent:
            _here.aside_s += waited_s
        if lent and not mine.leaves:
            _here.lent_s += waited_s
        return mine.leaves

    def should_leave(self, after_s: float) -> bool:
        """Whether the work of this thread, which has stepped aside, should end because other work lacks a thread: only
        when it has waited for `after_s`, and more wait so than threads are lent; as many as work waits. Those go
        first whose client has most of them, then those that have waited longest."""
        with self._guard:
            mine = self._aside[threading.get_ident()]
            crowded = self._most_lent and len(self._aside) > self._most_lent
            if crowded and self._queue.waiting and not mine.leaves:
                mine.leaves = mine in self._longest(after_s)[: self._queue.waiting]
            return mine.leaves

    def make_room(self, after_s: float) -> bool:
        """Has one piece of work end that has waited for its client for `after_s`; False if there is none. Its thread
        is free some moments later."""
        with self._guard:
            for one in self._longest(after_s):
                if not one.leaves:
                    one.leaves = True
                    return True
            return False

    def _longest(self, after_s: float) -> list[_Aside]:
        mine = Counter(one.client for one in self._aside.values())
        before_s = time.perf_counter() - after_s
        waiting = [one for one in self._aside.values() if one.since_s <= before_s]
        return sorted(waiting, key=lambda one: (-mine[one.client], one.since_s))

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
            if len(self._pool_threads) > self._room and self._goes():
                return

    def _goes(self) -> bool:
        """Whether this thread, which was one more than usual, is needed no longer."""
        with self._guard:
            # When the pool has ended, a bell is there for each.
            if self._ended or len(self._pool_threads) <= self._room:
                return False
            self._pool_threads.remove(threading.current_thread())
            return True

    def _call_relief(self) -> None:
        if self._relief is None:
            thread = threading.Thread(
                target=self._relieve, name=f"vecdb-{self.name}-relief", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # the system gives no more of them just now
                return
            self._relief = thread
        self._crowded.set()

    def _relieve(self) -> None:
        assert self._relief_s is not None
        while True:
            self._crowded.wait()
            time.sleep(_LAST_S if self._ended else self._relief_s)
            found = None
            with self._guard:
                if not self._queue.waiting:
                    if self._ended:
                        return
                    self._crowded.clear()
                    continue
                newest_s = max([*self._begun.values()], default=math.inf)
                kept = time.perf_counter() - newest_s >= self._relief_s
                if kept and self.running >= self.size:
                    found = self._queue.take_idle(self.cost_s)
            if found is not None:
                self._run(*found)
            del found

    def _run(self, job: _Job, ticket: Ticket) -> None:
        future, fn, args, came_s = job
        begun_s = time.perf_counter()
        self._begun[threading.get_ident()] = begun_s
        _here.waited_s = begun_s - came_s
        _here.pool, _here.client = self, ticket.client.key
        _here.aside_s = _here.lent_s = 0.0
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
            del self._begun[threading.get_ident()]
            # Time in which another could have the thread costs nobody anything. Where there was none for another it does:
            # else who sends nothing would come first again each time.
            self._queue.settle(ticket, max(took_s - _here.lent_s, 0.0))
            self.cost_s += _WEIGHT * (max(took_s - _here.aside_s, 0.0) - self.cost_s)
        if there and failure is not None:
            future.set_exception(failure)
        elif there:
            future.set_result(result)
