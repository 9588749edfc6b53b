"""Streams of queries of the asyncio client; see `vecdb_client.streaming`.

Each stream has a task, which sends and receives; callers wait for futures, so a cancelled caller
disturbs nobody: a stream ends when all callers of its message have left. Tasks and streams end when there was nothing to ask for a while.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc.aio

from .. import streaming
from ..errors import VecdbError
from ..v1 import vecdb_pb2 as pb


class _Asked:
    """A query of a caller, who waits for `outcome`: an answer, an error, or None to send it as a call."""

    __slots__ = ("end_s", "outcome", "request", "stream")

    def __init__(self, request: pb.QueryRequest, end_s: float | None, outcome: Any) -> None:
        self.request = request
        self.end_s = end_s
        self.outcome: asyncio.Future[streaming.Outcome] = outcome
        self.stream: _Stream | None = None

    @property
    def given_up(self) -> bool:
        return self.outcome.done()

    def settle(self, outcome: streaming.Outcome) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def leave(self) -> None:
        """Its caller waits no more, and `outcome` is done."""
        if self.stream is not None:
            self.stream.end_if_unwanted()


class _Stream:
    """One stream and what it is about."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.sent_s: float | None = None
        """When the message was sent whose answers are not complete."""
        self._group: list[_Asked] = []
        """The queries of that message."""
        self._unwanted = False
        """Whether it was ended since nobody waited for its answers."""

    async def exchange(self, group: list[_Asked]) -> bool:
        """Sends a message and hands out its answers; False where the stream was ended since nobody waited for them."""
        self._group = group
        for asked in group:
            asked.stream = self
        try:
            await self._exchange(group)
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            if not self._unwanted:
                if isinstance(error, asyncio.CancelledError):
                    # grpc.aio says so of a call that was cancelled here.
                    raise EOFError("the answers of the stream were late") from None
                raise
        self._group = []
        return not self._unwanted

    async def _exchange(self, group: list[_Asked]) -> None:
        self.sent_s = time.monotonic()
        parcels = streaming.parcels(group)
        await self._call.write(streaming.message_of(parcels))
        left = set(range(len(parcels)))
        while left:
            response = await self._call.read()
            if response is grpc.aio.EOF:
                raise EOFError("the server ended the stream")
            for asked, outcome in streaming.answered(response, parcels, left):
                asked.settle(outcome)
        self.sent_s = None

    def end_if_unwanted(self) -> None:
        """Ends the stream where nobody waits for its answers, or one has left and they are late."""
        if streaming.nobody_waits(self._group):
            self._unwanted = True
            self._call.cancel()
        elif self.sent_s is not None and time.monotonic() - self.sent_s > streaming.SILENT_S:
            self._call.cancel()

    def close(self) -> None:
        self._call.cancel()


class QueryStreams:
    """The streams of one client, in one event loop."""

    def __init__(self, open_call: Callable[[], Any]) -> None:
        self._open_call = open_call
        self._waiting: deque[_Asked] = deque()
        self._bells: list[asyncio.Future[bool]] = []
        """What tasks without work wait for: True when there is some, False when there was none for long."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: set[_Stream] = set()
        """Those that are open."""
        self._queries = 0
        self._closed_until_s = 0.0

    async def ask(self, request: pb.QueryRequest, timeout_s: float | None) -> Any:
        """The answer; None where the query is to be sent as a call. Raises what the query met.

        DeadlineExceeded when there is none after `timeout_s`.
        """
        if self._queries < streaming.FEW_QUERIES:
            self._queries += 1
            return None
        now_s = time.monotonic()
        if now_s < self._closed_until_s:
            return None
        loop = asyncio.get_running_loop()
        end_s = None if timeout_s is None else now_s + timeout_s
        asked = _Asked(request, end_s, loop.create_future())
        self._waiting.append(asked)
        self._wake_one(loop)
        alarm = None if timeout_s is None else loop.call_later(timeout_s, self._end, asked)
        try:
            outcome = await asked.outcome
        except asyncio.CancelledError:
            self._left(asked)
            raise
        finally:
            if alarm is not None:
                alarm.cancel()
        if isinstance(outcome, VecdbError):
            raise outcome
        return outcome

    def _end(self, asked: _Asked) -> None:
        """The time of a query is over."""
        asked.settle(streaming.late())
        self._left(asked)

    def _left(self, asked: _Asked) -> None:
        """The caller of a query waits no more, and its `outcome` is done."""
        asked.leave()
        if asked.stream is None:
            # No stream had time for it. Those whose callers have left before them may be late by now.
            for stream in list(self._streams):
                stream.end_if_unwanted()

    def _wake_one(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._bells:
            bell = self._bells.pop()
            if not bell.done():
                bell.set_result(True)
                return
        # A task that has ended is in the set until the loop comes round.
        if sum(not task.done() for task in self._tasks) < streaming.MOST_STREAMS:
            task = loop.create_task(self._serve())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Sends nothing more; what waits is sent as calls."""
        self._closed_until_s = float("inf")
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A task that had not begun has released nothing.
        self._release([])

    async def _serve(self) -> None:
        """The life of a task: a stream, until it breaks or nobody asks."""
        stream: _Stream | None = None
        group: list[_Asked] = []
        try:
            while group := await self._next_group():
                if stream is None:
                    stream = _Stream(self._open_call())
                    self._streams.add(stream)
                if not await stream.exchange(group):
                    self._close(stream)
                    stream = None
        except Exception as error:
            pause_s = streaming.pause_after_s(error)
            self._closed_until_s = max(self._closed_until_s, time.monotonic() + pause_s)
            self._release(group)
        except asyncio.CancelledError:
            self._release(group)
            raise
        finally:
            if stream is not None:
                self._close(stream)

    def _close(self, stream: _Stream) -> None:
        self._streams.discard(stream)
        stream.close()

    async def _next_group(self) -> list[_Asked]:
        """What waits, as soon as something does; nothing to end the task."""
        loop = asyncio.get_running_loop()
        while not (group := streaming.take(self._waiting)):
            bell: asyncio.Future[bool] = loop.create_future()
            self._bells.append(bell)
            alarm = loop.call_later(streaming.IDLE_S, self._end_idle, bell)
            try:
                if not await bell:
                    # Somebody may have asked since the alarm, and found no bell.
                    return streaming.take(self._waiting)
            finally:
                alarm.cancel()
        return group

    def _end_idle(self, bell: asyncio.Future[bool]) -> None:
        if bell in self._bells and not bell.done():
            self._bells.remove(bell)
            bell.set_result(False)

    def _release(self, group: list[_Asked]) -> None:
        """A stream broke: its queries, and all that wait, are sent as calls."""
        left = [*group, *self._waiting]
        self._waiting.clear()
        for asked in left:
            asked.settle(None)
