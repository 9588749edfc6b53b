"""The stream of a caller who is alone: it asks and waits itself, where a thread of `streams.py` would have to be woken
for the question, and the caller for the answer.

Callers who meet have company for a moment, in which all go by the streams that share messages, and this one is closed.
"""

from __future__ import annotations

import math
import threading
import time
from _thread import allocate_lock
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import grpc

from . import streaming
from .v1 import vecdb_pb2 as pb

COMPANY_S = 1.0
"""Callers who have met share messages for so long since the last time."""
LEAST_S = 10.0
"""Who waits for less goes by the other streams, where a caller can leave without the stream."""
_SOON_S = 0.1


class _Only:
    """The query of a caller who is alone."""

    __slots__ = ("end_s", "request")
    given_up = False

    def __init__(self, request: pb.QueryRequest, end_s: float | None) -> None:
        self.request = request
        self.end_s = end_s


class _Stream:
    """An open stream that carries one query at a time."""

    __slots__ = ("_call", "_messages", "ended")

    def __init__(self, open_call: Callable[[Iterator[Any]], Any]) -> None:
        self._messages: SimpleQueue[Any] = SimpleQueue()
        self._call = open_call(iter(self._messages.get, None))
        self.ended = False
        """Whether it was ended while somebody waited for it, since that took too long."""

    def exchange(self, asked: _Only) -> streaming.Outcome:
        """What became of a query. Raises what gRPC does, EOFError for a stream that the server has ended."""
        sent = [[asked]]
        self._messages.put(streaming.message_of(sent))
        response = next(self._call, None)
        if response is None:
            raise EOFError("the server ended the stream")
        ((_, outcome),) = streaming.answered(response, sent, {0})
        return outcome

    def end(self) -> None:
        self.ended = True
        self.close()

    def close(self) -> None:
        self._messages.put(None)
        self._call.cancel()


class Alone:
    """Any thread may call; one thread more looks after the stream while there is one."""

    def __init__(self, open_call: Callable[[Iterator[Any]], Any]) -> None:
        """`open_call(messages)` opens a stream and returns an iterator of its responses."""
        self._open_call = open_call
        self._taken = allocate_lock()
        """Held by one caller while it asks, by whichever stream. One that Ctrl-C leaves held has all go by the others."""
        self._stream: _Stream | None = None
        """Open, and nobody's: whoever takes it puts it back when its answer is there, so that no answer of a query that
        was interrupted is ever taken for that of another."""
        self._used_s = 0.0
        """When it was put back."""
        self._waits: tuple[_Stream, float] | None = None
        """The stream that its caller waits for, and until when."""
        self._company_until_s = self._rests_until_s = 0.0
        self._looks = False
        self._closed = False
        self._bell = threading.Event()
        """Set when it is closed."""

    def enter(self, now_s: float) -> bool:
        """Whether no other caller is within; then `leave` has to follow."""
        if self._taken.acquire(blocking=False):
            return True
        self._company_until_s = now_s + COMPANY_S
        return False

    def leave(self) -> None:
        self._taken.release()

    def serves(self, timeout_s: float | None, now_s: float) -> bool:
        """Whether a query may go alone now, of the caller who is within."""
        patient = timeout_s is None or timeout_s >= LEAST_S
        return patient and now_s >= max(self._company_until_s, self._rests_until_s)

    def rest(self, seconds: float) -> None:
        """Opens no stream for so long."""
        self._rests_until_s = time.monotonic() + seconds

    def ask(self, request: pb.QueryRequest, end_s: float | None) -> streaming.Outcome:
        """What became of a query of the caller who is within. Raises what gRPC does where the stream breaks, and
        DeadlineExceeded; the stream is gone then."""
        stream, self._stream = self._stream, None
        kept = False
        try:
            if stream is None:
                stream = _Stream(self._open_call)
            self._waits = stream, math.inf if end_s is None else end_s
            if not self._looks:
                self._look_from_now_on()
            found = stream.exchange(_Only(request, end_s))
            now_s = time.monotonic()
            if not (stream.ended or self._closed or now_s < self._company_until_s):
                self._used_s = now_s
                self._stream = stream
                kept = True
            return found
        except grpc.RpcError:
            # One may be ended for the sake of the query before, at the last moment.
            over = end_s is not None and time.monotonic() >= end_s
            if over and stream is not None and stream.ended:
                raise streaming.late() from None
            raise
        finally:
            self._waits = None
            if not kept and stream is not None:
                stream.close()

    def close(self) -> None:
        """Ends the stream; who waits for it meets what gRPC says of a channel that was closed."""
        self._closed = True
        self._bell.set()
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _look_from_now_on(self) -> None:
        self._looks = True
        try:
            threading.Thread(target=self._look, name="vecdb-alone", daemon=True).start()
        except BaseException:
            self._looks = False
            raise

    def _look(self) -> None:
        while not self._closed and (left_s := self._left_s()) is not None:
            # Whoever begins to wait meanwhile waits for longer.
            self._bell.wait(min(left_s, LEAST_S))

    def _left_s(self) -> float | None:
        """Ends the stream when its caller has waited too long, or nobody has used it for a while; how long not to look again.
        None: until another is opened."""
        waits, now_s = self._waits, time.monotonic()
        if waits is not None:
            stream, end_s = waits
            if now_s < end_s:
                return end_s - now_s
            stream.end()
            return _SOON_S
        left_s = self._used_s + streaming.IDLE_S - now_s
        if left_s > 0:
            return left_s
        if not self._taken.acquire(blocking=False):
            return _SOON_S
        unused, self._stream = self._stream, None
        self._looks = False
        self._taken.release()
        if unused is not None:
            unused.close()
        return None
