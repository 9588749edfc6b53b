"""Streams of queries of the synchronous client; see `streaming.py`.

Each stream has a thread, which waits for answers; callers wait for it, so that Ctrl-C and deadlines
reach them. Threads and streams end when there was nothing to ask for a while. A caller who meets no other
has a stream without a thread; see `alone.py`.
"""

from __future__ import annotations

import threading
import time
from _thread import allocate_lock
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

from . import streaming
from .alone import Alone
from .errors import DeadlineExceeded, VecdbError
from .v1 import vecdb_pb2 as pb


class _Asked:
    """A query of a caller, who waits for `wake`."""

    __slots__ = ("end_s", "given_up", "outcome", "request", "settled", "stream", "wake")

    def __init__(self, request: pb.QueryRequest, end_s: float | None) -> None:
        self.request = request
        self.end_s = end_s
        self.given_up = False
        self.outcome: streaming.Outcome = None
        """None after waking: to be sent as a call."""
        self.settled = False
        self.stream: _Stream | None = None
        self.wake = allocate_lock()
        self.wake.acquire()

    def settle(self, outcome: streaming.Outcome) -> None:
        self.outcome = outcome
        self.settled = True
        self.wake.release()

    def leave(self) -> None:
        """Its caller waits no more."""
        self.given_up = True
        if self.stream is not None:
            self.stream.end_if_unwanted()


class _Stream:
    """One stream and what it is about."""

    def __init__(self, open_call: Callable[[Iterator[Any]], Any]) -> None:
        self._messages: SimpleQueue[Any] = SimpleQueue()
        self.sent_s: float | None = None
        """When the message was sent whose answers are not complete."""
        self._group: list[_Asked] = []
        """The queries of that message."""
        self._unwanted = False
        """Whether it was ended since nobody waited for its answers."""
        self._call = open_call(iter(self._messages.get, None))

    def exchange(self, group: list[_Asked]) -> bool:
        """Sends a message and hands out its answers; False where the stream was ended since nobody waited for them."""
        self._group = group
        for asked in group:
            asked.stream = self
        try:
            self._exchange(group)
        except Exception:
            if not self._unwanted:
                raise
        self._group = []
        return not self._unwanted

    def _exchange(self, group: list[_Asked]) -> None:
        parcels = streaming.parcels(group)
        self._messages.put(streaming.message_of(parcels))
        self.sent_s = time.monotonic()
        if any(asked.given_up for asked in group):
            # They left before they could see by which stream they go.
            self.end_if_unwanted()
        left = set(range(len(parcels)))
        while left:
            response = next(self._call, None)
            if response is None:
                raise EOFError("the server ended the stream")
            for asked, outcome in streaming.answered(response, parcels, left):
                asked.settle(outcome)
        self.sent_s = None

    def end_if_unwanted(self) -> None:
        """Ends the stream where nobody waits for its answers, or one has left and they are late. Any thread."""
        sent_s = self.sent_s
        if streaming.nobody_waits([asked for asked in self._group if not asked.settled]):
            self._unwanted = True
            self._call.cancel()
        elif sent_s is not None and time.monotonic() - sent_s > streaming.SILENT_S:
            self._call.cancel()

    def close(self) -> None:
        self._messages.put(None)
        self._call.cancel()


class QueryStreams:
    """The streams of one client. Any thread may ask."""

    def __init__(self, open_call: Callable[[Iterator[Any]], Any]) -> None:
        """`open_call(messages)` opens a stream and returns an iterator of its responses."""
        self._open_call = open_call
        self._alone = Alone(open_call)
        self._mutex = threading.Lock()
        self._waiting: deque[_Asked] = deque()
        self._bells: list[Any] = []
        """Locks that threads without work wait for."""
        self._gathering: list[Any] = []
        """Locks that threads wait for until callers have come back."""
        self._sharing = streaming.Sharing()
        self._streams: set[_Stream] = set()
        """Those of threads that are open."""
        self._threads = 0
        self._queries = 0
        self._closed_until_s = 0.0

    def ask(self, request: pb.QueryRequest, timeout_s: float | None) -> Any:
        """The answer; None where the query is to be sent as a call. Raises what the query met.

        DeadlineExceeded when there is none after `timeout_s`.
        """
        if self._queries < streaming.FEW_QUERIES:
            self._queries += 1
            return None
        now_s = time.monotonic()
        if now_s < self._closed_until_s:
            return None
        end_s = None if timeout_s is None else now_s + timeout_s
        if self._alone.enter(now_s):
            try:
                if self._alone.serves(timeout_s, now_s):
                    outcome = self._ask_alone(request, end_s)
                else:
                    outcome = self._ask_together(_Asked(request, end_s), timeout_s, now_s)
            finally:
                self._alone.leave()
        else:
            outcome = self._ask_together(_Asked(request, end_s), timeout_s, now_s)
        if isinstance(outcome, VecdbError):
            raise outcome
        return outcome

    def _ask_alone(self, request: pb.QueryRequest, end_s: float | None) -> streaming.Outcome:
        try:
            return self._alone.ask(request, end_s)
        except DeadlineExceeded:
            raise
        except Exception as error:
            # The streams that are shared may be there all the same.
            self._alone.rest(streaming.pause_after_s(error))
            return None

    def _ask_together(
        self, asked: _Asked, timeout_s: float | None, now_s: float
    ) -> streaming.Outcome:
        with self._mutex:
            self._waiting.append(asked)
            self._sharing.asked()
            self._wake_one(now_s)
        patience_s = -1 if timeout_s is None else min(timeout_s, threading.TIMEOUT_MAX)
        try:
            is_answered = asked.wake.acquire(timeout=patience_s)
        except BaseException:  # Ctrl-C
            self._left(asked)
            raise
        if not is_answered:
            self._left(asked)
            raise streaming.late()
        return asked.outcome

    def _left(self, asked: _Asked) -> None:
        """The caller of a query waits no more."""
        asked.leave()
        if asked.stream is None:
            # No stream had time for it. Those whose callers have left before them may be late by now.
            for stream in list(self._streams):
                stream.end_if_unwanted()

    def _wake_one(self, now_s: float) -> None:
        """Calls a thread for what waits. With the mutex."""
        if self._gathering:
            if self._sharing.share(len(self._waiting), now_s):
                self._gathering.pop().release()
        elif self._bells:
            self._bells.pop().release()
        elif self._threads < streaming.MOST_STREAMS:
            self._threads += 1
            try:
                threading.Thread(target=self._serve, name="vecdb-queries", daemon=True).start()
            except RuntimeError:
                # No more threads here. What waits is taken by one that lives, or else sent as calls.
                self._threads -= 1
                while self._waiting and not self._threads:
                    self._waiting.popleft().settle(None)

    def close(self) -> None:
        """Sends nothing more; what waits is sent as calls."""
        self._closed_until_s = float("inf")
        self._alone.close()
        with self._mutex:
            left, self._bells = self._bells, []
            for bell in left:
                bell.release()

    def _serve(self) -> None:
        """The life of a thread: a stream, until it breaks or nobody asks."""
        stream: _Stream | None = None
        group: list[_Asked] | None = None
        try:
            while (group := self._next_group()) is not None:
                if stream is None:
                    stream = _Stream(self._open_call)
                    self._streams.add(stream)
                begun_s = time.monotonic()
                if stream.exchange(group):
                    with self._mutex:
                        self._sharing.answered(len(group), begun_s, time.monotonic())
                else:
                    self._close(stream)
                    stream = None
                    with self._mutex:
                        self._sharing.broke(len(group))
                    # Nobody, but where the message of those who left was answered at the last moment.
                    _as_calls(group)
                group = None
        except Exception as error:
            pause_s = streaming.pause_after_s(error)
            self._closed_until_s = max(self._closed_until_s, time.monotonic() + pause_s)
            self._release(group or [])
        if stream is not None:
            self._close(stream)

    def _close(self, stream: _Stream) -> None:
        self._streams.discard(stream)
        stream.close()

    def _next_group(self) -> list[_Asked] | None:
        """What waits, as soon as it is enough for a message; None to end the thread, which is counted out
        then."""
        while True:
            with self._mutex:
                now_s = time.monotonic()
                if group := self._taken(now_s):
                    return group
                if now_s < self._closed_until_s and not self._waiting:
                    self._threads -= 1
                    return None
                gather_s = self._sharing.gather_s(len(self._waiting), now_s)
                bell = allocate_lock()
                bell.acquire()
                (self._gathering if gather_s else self._bells).append(bell)
            if bell.acquire(timeout=gather_s or streaming.IDLE_S):
                continue
            with self._mutex:
                if gather_s and bell in self._gathering:
                    self._gathering.remove(bell)
                elif not gather_s and bell in self._bells:
                    self._bells.remove(bell)
                    self._threads -= 1
                    return None

    def _taken(self, now_s: float) -> list[_Asked]:
        """Takes the queries of the next message; none while it is not time. With the mutex."""
        group: list[_Asked] = []
        while not group and (share := self._sharing.share(len(self._waiting), now_s)):
            group = streaming.take(self._waiting, share)
        if group:
            self._sharing.sent(len(group), now_s)
            if self._waiting:
                self._wake_one(now_s)
        return group

    def _release(self, group: list[_Asked]) -> None:
        """A stream broke: its queries, and those that wait for no other, are sent as calls."""
        with self._mutex:
            self._threads -= 1
            self._sharing.broke(len(group))
            left = [*group, *self._waiting]
            self._waiting.clear()
        _as_calls(left)


def _as_calls(group: list[_Asked]) -> None:
    """Queries that have no answer are sent as calls."""
    for asked in group:
        if not asked.settled:
            asked.settle(None)
