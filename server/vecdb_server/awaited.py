"""The messages that calls wait for, from clients that send them late, slowly or never.

gRPC reads a request in the thread that is to serve it, for as long as its client likes. So who has not sent it
after a moment lends its thread to others (`FairPool.step_aside`). Where so many do this that work lacks threads, calls
end that have waited for `request_wait_s`, and in any case those that have waited for `max_request_s`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import chain
from typing import Any

from vecdb.errors import InvalidArgument

from .admission import Admission
from .fair_pool import FairPool, this_pool
from .headroom import OF_PROCESS

_SOON_S = 0.01
"""A request that comes within so long is waited for and nothing else: nearly all do."""
_LOOK_S = 0.1
"""How often a call that waits for longer is looked at."""


class Awaited:
    """Any thread may call."""

    def __init__(self, admission: Admission) -> None:
        """Asked how long a call may wait, and told of those that are ended."""
        self._admission = admission

    def only(self, requests: Iterator[Any]) -> Any:
        """The request of a call that takes one. InvalidArgument where there is none, DeadlineExceeded where it does not
        come in time."""
        found = self._next(requests, this_pool())
        if found is None:
            raise InvalidArgument("the call ended without the request that it takes")
        return found

    def all(self, requests: Iterator[Any], *, passed: bool = False) -> Iterator[Any]:
        """The messages of a call that takes many; the first is here when this returns. DeadlineExceeded where one does
        not come in time: for those behind it `max_request_s` alone counts, with `passed`, where these are passed on to
        another process that looks after them, nothing."""
        first = self._next(requests, this_pool())
        if first is None:
            return iter(())
        return chain([first], requests) if passed else self._behind(first, requests)

    def _behind(self, found: Any, requests: Iterator[Any]) -> Iterator[Any]:
        while found is not None:
            yield found
            found = self._next(requests, None)

    def make_room(self, pool: FairPool) -> bool:
        """Ends a call of a pool that waits for its request; False if none has for `request_wait_s`. Its thread is free
        some moments later."""
        return pool.make_room(self._admission.request_wait_s)

    def _next(self, requests: Any, pool: FairPool | None) -> Any:
        """The next message; None where none follows."""
        if not can_end(requests):
            return next(requests, None)
        since_s = time.perf_counter()
        told = requests._state.condition
        try:
            # Of those that come later the memory is taken bit by bit, and shows.
            with OF_PROCESS.reading(large=pool is None or pool.name == "write"), told:
                requests._raise_or_start_receive_message()
                told.wait(_SOON_S)
                found = requests._look_for_request()
            return self._late(requests, pool, since_s) if found is None else found
        except StopIteration:
            return None

    def _late(self, requests: Any, pool: FairPool | None, since_s: float) -> Any:
        if pool is None:
            return self._waited_for(requests, None, since_s)
        pool.step_aside(since_s)
        try:
            found = self._waited_for(requests, pool, since_s)
        finally:
            leaves = pool.step_back()
        if leaves:
            # Also where its message came at the last moment: another was promised the thread.
            raise self._admission.end_of_unsent("room", time.perf_counter() - since_s)
        return found

    def _waited_for(self, requests: Any, pool: FairPool | None, since_s: float) -> Any:
        told = requests._state.condition
        while True:
            with told:
                found = requests._look_for_request()
                if found is None:
                    told.wait(_LOOK_S)
                    found = requests._look_for_request()
            if found is not None:
                return found
            waited_s = time.perf_counter() - since_s
            if waited_s >= self._admission.max_request_s:
                raise self._admission.end_of_unsent("limit", waited_s)
            if pool is not None and pool.should_leave(self._admission.request_wait_s):
                return None


def can_end(requests: Any) -> bool:
    """Whether this grpc's requests can be waited for with an end: grpc/_server.py (`_RequestIterator`) has no such
    function, but what one is made of. Where a grpc has not, `server.py` warns of it, and they are waited for as gRPC does."""
    return hasattr(requests, "_look_for_request") and hasattr(
        requests, "_raise_or_start_receive_message"
    )
