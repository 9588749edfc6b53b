"""Streams of queries of the asyncio client; see `vecdb_client.streaming`.

Each stream has a task, which sends and receives; callers wait for futures, so a cancelled caller
disturbs nobody. Tasks and streams end when there was nothing to ask for a while.
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


class _Stream:
    """One stream and what it is about."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.sent_s: float | None = None
        """When the message was sent whose answers are not complete."""

    async def exchange(self, group: list[_Asked]) -> None:
        """Sends a message and hands out its answers."""
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

    def give_up_if_silent(self) -> None:
        if self.sent_s is not None and time.monotonic() - self.sent_s > streaming.SILENT_S:
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
        alarm = None if timeout_s is None else loop.call_later(timeout_s, _end, asked)
        try:
            outcome = await asked.outcome
        finally:
            if alarm is not None:
                alarm.cancel()
        if isinstance(outcome, VecdbError):
            raise outcome
        return outcome

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
                for asked in group:
                    asked.stream = stream
                await stream.exchange(group)
        except Exception as error:
            pause_s = streaming.pause_after_s(error)
            self._closed_until_s = max(self._closed_until_s, time.monotonic() + pause_s)
            self._release(group)
        except asyncio.CancelledError:
            self._release(group)
            raise
        finally:
            if stream is not None:
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


def _end(asked: _Asked) -> None:
    """The time of a query is over."""
    if asked.stream is not None:
        asked.stream.give_up_if_silent()
    asked.settle(streaming.late())
