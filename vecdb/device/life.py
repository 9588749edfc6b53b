"""A worker kept alive, and the one thread that speaks to it: the *link*.

Any thread puts requests into the queue and waits; the link takes them in turn, one at a time, starts workers,
and tells everybody who waits when one has died.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import (
    Closed,
    DeviceFull,
    DeviceLost,
    FailedPrecondition,
    Internal,
    VecdbError,
)
from ..turns import PATIENT, Wait
from . import messages as m
from .card import CardInfo, Limits
from .queue import MAX_BATCH, Ask, Order, Queue, answered
from .worker import Died, Worker

log = logging.getLogger("vecdb")

MEMORY_BYTES = 64 << 20
"""Shared memory of a worker; taken as it is touched."""
GIVE_UP_AFTER = 10
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 30.0
_START_TIMEOUT_S = 120.0
"""Loading CUDA and a first context take seconds, on a machine with many cards more."""
_PING_EVERY_S = 5.0
_LONG = (m.Graph, m.Kmeans, m.Links, m.Lists)
"""Requests that may take long; all others are cut into short ones."""
_SHORT_S = 0.25
"""A search waits no longer than this for one of these, where the host can answer it too."""


class Linked:
    """Starts the link, and with it the first worker, and waits until that is ready; DeviceLost says why it
    is not. For the parameters see `Device`."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: dict[str, str],
        queue_limit: int,
        timeout_s: float,
        memory_bytes: int,
        give_up_after: int,
    ) -> None:
        self.name = name
        self.generation = 0
        self.info = CardInfo("", 0, 0, Limits(), False)
        self._arguments, self._environment = arguments, environment
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._give_up_after = give_up_after
        self._queue = Queue(queue_limit, self._room)
        self._placed: dict[int, int] = {}
        """Bytes of each handle of this generation."""
        self._placed_lock = threading.Lock()
        self._state = "starting"
        self._closing = self._forked = self._came_up = False
        self._worker: Worker | None = None
        self._deaths = 0
        """In a row, without anything done between."""
        self._batches = self._queries = self._restarts = 0
        self.evictions = 0
        """Placements, and shards of them, that had to go to make room; counted by `Placements`."""
        self._spent: dict[int, tuple[float, int, int]] = {}
        """Of each handle that was searched: seconds, calls, queries. Only the link writes."""
        self._last_error = ""
        self._long: tuple[float, str] | None = None
        """Since when, by `time.monotonic`, the worker is at a request that may take long, and its name. Only the link writes."""
        self._ended = 0
        """The generation whose process is known to have ended."""
        first = threading.Event()
        self._thread = threading.Thread(
            target=self._live, args=(first,), name=f"vecdb-{name}", daemon=True
        )
        self._thread.start()
        try:
            first.wait()
        except BaseException:
            self.close()
            raise
        if not self._came_up:
            self._thread.join()
            raise DeviceLost(f"the worker of {name} did not start: {self._last_error}", device=name)

    @property
    def up(self) -> bool:
        """Whether a worker is there to take requests."""
        return self._state == "up" and not self._closing

    @property
    def down(self) -> bool:
        """Whether it is closed, or has died so often that no other worker is started."""
        return self._closing or self._state in ("down", "closed")

    def close(self) -> None:
        """Ends the worker. Whoever waits gets Closed, a search that runs as well."""
        if self._forked:
            return
        self._closing = True
        worker = self._worker
        if worker is not None:
            worker.interrupt()
        self._queue.ring()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # --- for callers: into the queue

    def _put(self, one: Ask | Order) -> None:
        if self._forked:
            raise Closed(
                "this process was forked from the one that opened the database, whose devices it must "
                "not use; open the database here"
            )
        self._queue.put(one, self._admit)

    def _admit(self, generation: int) -> None:
        if self._closing or self._state == "closed":
            raise self._closed()
        if self._state != "up":
            raise self._lost(f"{self.name} is {self._state}: {self._last_error}")
        if generation != self.generation:
            raise self._lost(
                f"the worker of {self.name} was started anew, and what was placed on it is gone"
            )

    def _run(self, order: Order, wait: Wait = PATIENT) -> Any:
        """Any request but a search, to its end, or that of the wait."""
        wait = self._impatient(wait)
        self._put(order)
        answered(order, wait, self._queue.withdraw)
        return order.result

    def _impatient(self, wait: Wait) -> Wait:
        """The same wait, which also ends while a request holds the card for long, if there is a check: DeviceLost then, now or later."""
        check = wait.check
        if check is None:
            return wait

        def look() -> None:
            check()
            self._not_for_long()

        self._not_for_long()
        return Wait(wait.end, look)

    def _not_for_long(self) -> None:
        held = self._long
        if held is not None and time.monotonic() > held[0] + _SHORT_S:
            raise self._lost(f"{self.name} is busy for long ({held[1]})")

    def _fitting(self, dimension: int, k: int) -> int:
        """Queries that fit one call."""
        a_query = 4 * dimension + 12 * k
        fitting = (self._memory_bytes - 3 * m.ALIGN) // a_query
        if fitting < 1:
            raise FailedPrecondition(
                f"a query of {dimension} dimensions with k = {k} takes {a_query} bytes, the memory "
                f"shared with the worker has {self._memory_bytes}"
            )
        return min(MAX_BATCH, fitting)

    def _room(self, ask: Ask) -> int:
        return self._fitting(ask.queries.shape[1], ask.k)

    # --- the link

    def _live(self, first: threading.Event) -> None:
        try:
            if self._start():
                first.set()
                while not self._closing:
                    self._serve()
            while not self._closing and first.is_set():
                self._queue.take(_LONGEST_PAUSE_S)
        except BaseException as error:
            # A bug of ours must not leave callers waiting for ever.
            log.exception("the link to %s failed", self.name)
            self._last_error = f"{type(error).__name__}: {error}"
            self._fail_all("down", Internal(f"the link to {self.name} failed: {error}"))
        finally:
            self._fail_all("closed" if first.is_set() else "down", self._closed())
            if self._worker is not None:
                self._worker.end()
            first.set()

    def _start(self) -> bool:
        """One attempt to bring a worker up."""
        self.generation += 1
        generation = self.generation

        def ended() -> None:
            self._ended = max(self._ended, generation)
            self._queue.ring()

        try:
            self._worker = Worker(
                self.name, self._arguments, self._memory_bytes, self._environment, ended
            )
            if self._closing:
                self._worker.interrupt()
            self.info = self._worker.ready(_START_TIMEOUT_S)
        except (Died, OSError) as error:
            self._last_error = str(error)
            self._worker = None
            return False
        self._state = "up"
        self._came_up = True
        log.info("%s is up: %s, worker %d", self.name, self.info.name, self._worker.pid)
        return True

    def _serve(self) -> None:
        """The next batch or request; a new worker when the one there has died."""
        worker = self._worker
        if worker is None:
            self._again()
            return
        taken: list[Ask] | Order | None = None
        try:
            taken = self._queue.take(min(_PING_EVERY_S, self._timeout_s))
            if self._closing:
                raise Died("closed")
            if self._ended == self.generation:
                raise Died("it ended while idle")
            if taken is None:
                worker.call(m.Ping(), self._timeout_s)
            elif isinstance(taken, Order):
                self._order(worker, taken)
            else:
                self._searches(worker, taken)
        except Died as died:
            self._buried(worker, str(died), taken)
        except Exception as error:
            # A bug of ours: nobody may wait for ever, and what the worker says next may be another's answer.
            log.exception("the link to %s failed", self.name)
            self._buried(worker, f"the link failed: {error!r}", taken)

    def _searches(self, worker: Worker, group: list[Ask]) -> None:
        first = group[0]
        count, d, k = sum(len(a.queries) for a in group), first.queries.shape[1], first.k
        if any(a.queries.shape[1] != d for a in group):
            self._one_by_one(worker, group)
            return
        x = m.array(worker.memory, (count, d), np.float32, 0)
        start = 0
        for a in group:
            stop = start + len(a.queries)
            x[start:stop] = a.queries
            start = stop
        request = m.Search(first.handle, count, d, k, first.setting, first.mask)
        begun = time.perf_counter()
        said = worker.call(request, self._timeout_s)
        took_s = time.perf_counter() - begun
        if isinstance(said, m.Failed):
            if said.full and len(group) > 1:
                self._one_by_one(worker, group)
                return
            error = self._failure(said)
            if not said.full and first.handle not in self._placed:
                error = self._lost(f"placement {first.handle} was taken from {self.name}")
            for a in group:
                a.error = error
                a.wake.release()
            return
        self._deaths = 0
        self._batches += 1
        self._queries += count
        spent, calls, queries = self._spent.get(first.handle, (0.0, 0, 0))
        self._spent[first.handle] = spent + took_s, calls + 1, queries + count
        scores_at, positions_at, _ = m.search_layout(count, d, k)
        scores = m.array(worker.memory, (count, k), np.float32, scores_at)
        positions = m.array(worker.memory, (count, k), np.int64, positions_at)
        start = 0
        for a in group:
            stop = start + len(a.queries)
            a.found = scores[start:stop].copy(), positions[start:stop].copy()
            a.together = count
            a.wake.release()
            start = stop

    def _one_by_one(self, worker: Worker, group: list[Ask]) -> None:
        """What is too much together may fit alone, and what is wrong with one is not with the others."""
        while group:
            try:
                self._searches(worker, group[:1])
            except Died:
                # The first is still in `group` of whoever buries; those before it have their answers.
                raise
            group.pop(0)

    def _order(self, worker: Worker, order: Order) -> None:
        for offset, values in order.arrays:
            m.array(worker.memory, values.shape, values.dtype, offset)[:] = values
        if isinstance(order.request, _LONG):
            self._long = time.monotonic(), type(order.request).__name__.lower()
        try:
            said = worker.call(order.request, order.timeout_s)
        finally:
            self._long = None
        if isinstance(said, m.Failed):
            order.error = self._failure(said)
        else:
            if isinstance(order.request, m.Used):
                self._deaths = 0  # it has taken a placement
            order.result = said.value
            if order.read is not None:
                order.result = order.read(worker.memory, said.value)
        order.wake.release()

    def _buried(self, worker: Worker, why: str, taken: list[Ask] | Order | None) -> None:
        """After a death: everybody who waits is told, and the next worker must wait a little."""
        self._worker = None
        in_it = [] if taken is None else [taken] if isinstance(taken, Order) else taken
        if self._closing:
            error: VecdbError = self._closed()
        else:
            self._deaths += 1
            self._last_error = why
            log.warning("the worker of %s is gone: %s", self.name, why)
            error = self._lost(f"the worker of {self.name} is gone: {why}")
        self._fail_all("starting", error, in_it)
        if self._closing:
            worker.end()
        else:
            worker.kill()

    def _again(self) -> None:
        """A pause that grows with each death, then another worker, or none any more."""
        if self._deaths >= self._give_up_after:
            if self._state != "down":
                self._state = "down"
                log.error(
                    "%s stays down after %d deaths in a row: %s",
                    self.name, self._deaths, self._last_error,
                )  # fmt: skip
            self._queue.take(_LONGEST_PAUSE_S)
            return
        until = time.monotonic() + min(
            _LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** max(0, self._deaths - 1)
        )
        while not self._closing and (left := until - time.monotonic()) > 0:
            self._queue.take(left)
        if self._closing:
            return
        self._restarts += 1
        if not self._start():
            self._deaths += 1
            log.warning("the worker of %s did not start: %s", self.name, self._last_error)

    def _fail_all(self, state: str, error: VecdbError, more: Sequence[Ask | Order] = ()) -> None:
        def then() -> None:
            self._state = state
            with self._placed_lock:
                self.generation += (
                    1  # what a placing still holds is not taken for something that is there
                )
                self._placed.clear()
                self._spent.clear()

        for one in (*more, *self._queue.clear(then)):
            if one.wake.locked() and (isinstance(one, Order) or one.found is None):
                one.error = error
                one.wake.release()

    def _failure(self, said: m.Failed) -> VecdbError:
        if said.full:
            return DeviceFull(
                f"{self.name} has too little memory for this: {said.message}", device=self.name
            )
        return FailedPrecondition(f"{self.name} refuses: {said.message}", device=self.name)

    def _lost(self, text: str) -> DeviceLost:
        return DeviceLost(text, device=self.name)

    def _closed(self) -> Closed:
        return Closed(f"{self.name} was closed")

    def _in_child(self) -> None:
        """After a fork, in the child, where neither thread nor worker are ours."""
        self._forked = self._closing = True
        self._state = "closed"
        if self._worker is not None:
            self._worker.hang_up()
