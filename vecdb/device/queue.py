"""What waits for a device: searches and other requests, in the order in which they go.

Searches with the same handle, generation, k, setting and mask stand in one line. Next is the line whose first
has waited longest, so no placement keeps another waiting for more than one batch; and whatever else stands in
that line goes along, as far as there is room. Every other request is a line of its own.
"""

from __future__ import annotations

import mmap
import threading
import time
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from numpy.typing import NDArray

from ..errors import DeadlineExceeded, LimitExceeded
from ..turns import Wait
from . import messages as m
from .card import Floats, Rows

MAX_BATCH = 1_024
"""Queries in one call of the card at most."""
_RETRY_AFTER_MS = 100
"""When a search that finds the queue full may come again: by then the card has taken some batches."""
_LOOK_S = 0.1
"""How often somebody who waits asks whether he still should."""


class Ask:
    """A search that waits. `wake` is released once `found` or `error` is set."""

    __slots__ = (
        "error", "found", "generation", "handle", "k", "key", "mask", "number", "queries", "setting", "together",
        "wake",
    )  # fmt: skip

    def __init__(
        self, handle: int, generation: int, queries: Floats, k: int, setting: int, mask: int = 0
    ) -> None:
        self.handle = handle
        self.generation = generation
        self.queries = queries
        self.k = k
        self.setting = setting
        self.mask = mask
        self.key: Hashable = (handle, generation, k, setting, mask)
        self.number = 0
        self.found: tuple[Floats, Rows] | None = None
        self.together = 0
        """Queries in the call that answered it."""
        self.error: Exception | None = None
        self.wake = allocate_lock()
        self.wake.acquire()


class Order:
    """Any other request. `arrays` are copied to the shared memory first, and `read` makes the result of
    the answer."""

    __slots__ = (
        "arrays", "error", "generation", "key", "number", "read", "request", "result", "timeout_s", "wake",
    )  # fmt: skip

    def __init__(
        self,
        request: m.Request,
        generation: int,
        timeout_s: float,
        arrays: Sequence[tuple[int, NDArray[Any]]] = (),
        read: Callable[[mmap.mmap, int], Any] | None = None,
    ) -> None:
        self.request = request
        self.generation = generation
        self.timeout_s = timeout_s
        self.arrays = arrays
        self.read = read
        self.key: Hashable = self
        self.number = 0
        self.result: Any = None
        self.error: Exception | None = None
        self.wake = allocate_lock()
        self.wake.acquire()


class Queue:
    """Any thread puts and withdraws, one takes."""

    def __init__(self, limit: int, room: Callable[[Ask], int]) -> None:
        """At most `limit` searches wait; `room` says how many queries like these fit one call."""
        self._limit = limit
        self._room = room
        self._mutex = threading.Lock()
        self._lines: dict[Hashable, deque[Ask | Order]] = {}
        self._searches = 0
        self._number = 0
        self._asleep = self._rung = False
        self._bell = allocate_lock()
        self._bell.acquire()

    def __len__(self) -> int:
        """Searches that wait."""
        return self._searches

    def put(self, one: Ask | Order, admit: Callable[[int], None]) -> None:
        """`admit` is called with its generation while nobody takes, and raises when it must not wait."""
        with self._mutex:
            admit(one.generation)
            if isinstance(one, Ask):
                if self._searches >= self._limit:
                    raise LimitExceeded(
                        f"{self._searches:,} searches wait for this device already; try again later, "
                        "or raise the setting device_queue",
                        setting="device_queue",
                        limit=self._limit,
                        retry_after_ms=_RETRY_AFTER_MS,
                    )
                self._searches += 1
            self._number += 1
            one.number = self._number
            line = self._lines.get(one.key)
            if line is None:
                self._lines[one.key] = deque((one,))
            else:
                line.append(one)
            if not self._asleep:
                return
            self._asleep = False
        self._bell.release()

    def take(self, timeout_s: float) -> list[Ask] | Order | None:
        """The next request, or the next searches of one kind; None after that long without any, or `ring`."""
        with self._mutex:
            if self._lines:
                return self._next()
            if self._rung:
                self._rung = False
                return None
            self._asleep = True
        rung = self._bell.acquire(timeout=timeout_s)
        with self._mutex:
            self._rung = False
            if not rung and not self._asleep:
                self._bell.acquire()  # rung in between
            self._asleep = False
            return self._next() if self._lines else None

    def ring(self) -> None:
        """Lets `take` return at once, now or when it is called next."""
        with self._mutex:
            self._rung = True
            if not self._asleep:
                return
            self._asleep = False
        self._bell.release()

    def withdraw(self, one: Ask | Order) -> bool:
        """Takes one out; False if its turn has come."""
        with self._mutex:
            line = self._lines.get(one.key)
            if line is None or one not in line:
                return False
            line.remove(one)
            if not line:
                del self._lines[one.key]
            self._searches -= isinstance(one, Ask)
            return True

    def clear(self, then: Callable[[], None]) -> list[Ask | Order]:
        """Takes all out and calls `then` before another can be put."""
        with self._mutex:
            then()
            found = [one for line in self._lines.values() for one in line]
            self._lines.clear()
            self._searches = 0
            return found

    def _next(self) -> list[Ask] | Order:
        lines = self._lines
        if len(lines) == 1:
            (line,) = lines.values()
        else:
            line = min(lines.values(), key=_age)
        first = line.popleft()
        if isinstance(first, Order):
            del lines[first.key]
            return first
        group, room = [first], self._room(first) - len(first.queries)
        while line and room > 0:
            other = line[0]
            assert isinstance(other, Ask)
            if len(other.queries) > room:
                break
            line.popleft()
            group.append(other)
            room -= len(other.queries)
        if not line:
            del lines[first.key]
        self._searches -= len(group)
        return group


def _age(line: deque[Ask | Order]) -> int:
    return line[0].number


class Waiting:
    """Searches that were asked for and not waited for yet: one, or the parts of a large batch, which
    queue up one after the other so that others get between them."""

    __slots__ = ("_asks", "_put", "_wait", "_withdraw")

    def __init__(
        self,
        asks: list[Ask],
        wait: Wait,
        put: Callable[[Ask], None],
        withdraw: Callable[[Ask], bool],
    ) -> None:
        self._asks = asks
        self._wait = wait
        self._put = put
        self._withdraw = withdraw
        if wait.end is not None and time.monotonic() > wait.end:
            raise _too_late()
        put(asks[0])

    def result(self) -> list[Ask]:
        """All of them, answered; see `answered`."""
        for at, ask in enumerate(self._asks):
            if at:
                self._put(ask)
            answered(ask, self._wait, self._withdraw)
        return self._asks

    def cancel(self) -> None:
        """Nobody will wait for it."""
        for ask in self._asks:
            self._withdraw(ask)


def answered(one: Ask | Order, wait: Wait, withdraw: Callable[[Any], bool]) -> None:
    """Waits for the answer to what was put. Raises its error, DeadlineExceeded when the end passes first, and what the check raises; what
    was asked is then taken out of the queue, and if its turn has come, its answer is thrown away."""
    try:
        while not one.wake.acquire(timeout=_step(wait)):
            if wait.end is not None and time.monotonic() >= wait.end:
                raise _too_late()
            if wait.check is not None:
                wait.check()
    except BaseException:
        withdraw(one)
        raise
    if one.error is not None:
        raise one.error


def _step(wait: Wait) -> float:
    """How long to wait before one looks."""
    if wait.end is None:
        return -1.0 if wait.check is None else _LOOK_S
    left = max(0.0, wait.end - time.monotonic())
    return left if wait.check is None else min(left, _LOOK_S)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "the search on the device was not done within the time given; give more time, send fewer "
        "queries a call, or ask fewer at once"
    )
