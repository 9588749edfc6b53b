"""The moment in which a call arrives: whose it is, whether it may enter, and how it is refused unread.

gRPC hands each call to a pool in the thread that polls, right after the interceptors. There the pool asks
the admission. A call that is refused is answered in this very thread: handlers are registered as taking a
stream of requests, so that gRPC does not read the request before they run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from vecdb.errors import InvalidArgument, ResourceExhausted, VecdbError
from vecdb_client.transport import COLLECTION_KEY

from .fair_pool import NOBODY, FairPool
from .fair_queue import Who
from .readers.forwarded import origin

Decide = Callable[[FairPool, Who, "float | None"], "VecdbError | None"]
_MAX_NAME_BYTES = 512
_NO_THREAD_MS = 500
MOST_REFUSALS = 50
"""As many as the audit log has lines for in a second."""


class _Here(threading.local):
    client: str | None = None
    collection = ""
    refusal: VecdbError | None = None


_here = _Here()


def announce(client: str, metadata: Any) -> None:
    """Says whose call is being handed to a pool by this thread: `client` as it is known by its key, "" to go
    by its connection."""
    _here.client = client
    _here.collection = ""
    for name, value in metadata or ():
        if name == COLLECTION_KEY and isinstance(value, bytes):
            _here.collection = value[:_MAX_NAME_BYTES].decode(errors="replace")


def forget() -> None:
    """What this thread hands to a pool next is no call of ours."""
    _here.client = None


def refusal() -> VecdbError | None:
    """Why the call that this thread works on must not be served."""
    return _here.refusal


def only(requests: Iterator[Any]) -> Any:
    """The request of a call that takes one. InvalidArgument where there is none."""
    found = next(requests, None)
    if found is None:
        raise InvalidArgument("the call ended without the request that it takes")
    return found


class _AtOnce(ThreadPoolExecutor):
    """No pool: work is done by the thread that brings it."""

    def __init__(self) -> None:
        pass

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args))
        except Exception as error:
            done.set_exception(error)
        return done


AT_ONCE = _AtOnce()
"""For refusals: they take 0.1 ms, and a queue of them would have no end."""


class RefusingPool(FairPool):
    """One thread for refusals that belong into the audit log, whose disk may be slow: the thread that brings them is
    the one that all messages go through. Where it is `MOST_REFUSALS` behind, they are done at once and get no line."""

    def __init__(self) -> None:
        super().__init__(1, "refusing")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_: Any) -> Future[Any]:
        if self.busy < MOST_REFUSALS:
            try:
                return self.submit_for(NOBODY, fn, *args)
            except RuntimeError:  # the system gives no thread
                pass
        return AT_ONCE.submit(fn, *args)


class GatedPool(FairPool):
    """A pool that gRPC hands calls to; `decide` says which enter."""

    def __init__(
        self,
        size: int,
        name: str,
        decide: Decide,
        relief_s: float | None = None,
        most_lent: int = 0,
    ) -> None:
        super().__init__(size, name, relief_s, most_lent)
        self.decide = decide
        """May be exchanged at any time."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **_: Any) -> Future[Any]:
        client, _here.client = _here.client, None
        if client is None:
            return super().submit(fn, *args)
        event = _event(args)
        who = Who(client or _peer(event), _here.collection)
        refused = self.decide(self, who, _left_s(event))
        if refused is None:
            try:
                return self.submit_for(who, fn, *args)
            except RuntimeError as error:
                # No thread to be had for a pool that has none yet. What is raised here ends gRPC's own thread, after which
                # the server would answer nobody any more.
                refused = ResourceExhausted(
                    f"the server has no thread for this call now ({error}); try again later",
                    retry_after_ms=_NO_THREAD_MS,
                )
        _here.refusal = refused
        try:
            return AT_ONCE.submit(fn, *args)
        finally:
            _here.refusal = None


def _event(args: tuple[Any, ...]) -> Any:
    """What gRPC knows of the call that these arguments are for; None where they are for none."""
    for one in args:
        if hasattr(one, "call_details"):
            return one
    return None


def _peer(event: Any) -> str:
    """The connection of a call, as gRPC writes it, also of one that came by way of a reading process."""
    if event is None:
        return ""
    peer = event.call.peer()
    text = peer.decode(errors="replace") if isinstance(peer, bytes) else str(peer)
    return origin(text, event.invocation_metadata).peer


def _left_s(event: Any) -> float | None:
    """Seconds until the deadline of a call; None when it has none."""
    if event is None:
        return None
    left_s = float(event.call_details.deadline) - time.time()
    return None if left_s > 1e9 else left_s
