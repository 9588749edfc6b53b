"""The channel of the asyncio client, and how it drives calls: deadlines, repeats, errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import grpc
import grpc.aio

from .. import reads, transport
from ..backup_types import Progress
from ..backups import Watched
from ..calls import Call
from ..credentials import Credentials
from ..errors import Closed, FailedPrecondition, Internal, VecdbError
from ..idle import checked_idle, silent
from ..reports import Meter, OnCall
from ..types import Records, WriteResult
from ..v1 import vecdb_pb2_grpc as pb_grpc
from .aside import Aside
from .streams import QueryStreams

T = TypeVar("T")


@asynccontextmanager
async def within(idle_s: float | None, times: int = 1) -> AsyncIterator[None]:
    """DeadlineExceeded where what is inside takes more than `times` the limit; None: there is none."""
    try:
        async with asyncio.timeout(None if idle_s is None else times * idle_s):
            yield
    except TimeoutError:
        if idle_s is None:
            raise
        raise silent(idle_s, times) from None


async def following(stream: Any, idle_s: float | None, times: int = 1) -> Any:
    """The next message of a stream; None behind the last. DeadlineExceeded when none comes within `times` the limit."""
    async with within(idle_s, times):
        answer = await stream.read()
    return None if answer is grpc.aio.EOF else answer


class Connection:
    """One channel to one server, made by the first call in the event loop that makes it."""

    def __init__(
        self,
        target: str,
        shown: Credentials,
        *,
        timeout_s: float,
        retry_s: float | None,
        idle_s: float,
        max_message_bytes: int,
        on_call: OnCall | None,
        call_metadata: transport.CallMetadata | None,
    ) -> None:
        self.target = transport.normalised_target(target)
        self.max_message_bytes = max_message_bytes
        self._timeout_s = transport.checked_timeout(timeout_s, None)
        self._repeating = transport.Repeating(retry_s)
        self.idle_s = checked_idle(idle_s)
        self._shown = shown
        self.on_call = on_call
        self._call_metadata = call_metadata
        self._options = [*transport.channel_options(max_message_bytes), *shown.options]
        self._channel: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stub: Any = None
        self._streams: Any = None
        self._closed = False
        self.aside = Aside()

    async def close(self) -> None:
        """Ends the channel and whatever runs on it; later calls raise Closed."""
        self._closed = True
        self.aside.close()
        if self._channel is not None:
            await self._streams.close()
            await self._channel.close()

    def method(self, rpc: str, collection: Any = None, request_id: str = "") -> Any:
        if self._closed:
            raise self._after_close()
        running = asyncio.get_running_loop()
        if self._channel is None:
            # grpc.aio binds a channel to the running loop, which `connect` need not have.
            self._loop = running
            if self._shown.channel is None:
                self._channel = grpc.aio.insecure_channel(self.target, options=self._options)
            else:
                self._channel = grpc.aio.secure_channel(
                    self.target, self._shown.channel, options=self._options
                )
            self._stub = pb_grpc.VecdbServiceStub(self._channel)
            self._streams = QueryStreams(
                partial(self._stub.QueryStream, metadata=self._shown.metadata)
            )
        elif self._loop is not running:
            raise FailedPrecondition(
                f"this client of {self.target} belongs to the event loop that made its first call, and this is another one; "
                "make a client in each"
            )
        found = getattr(self._stub, rpc)
        metadata = transport.headers(
            self._shown.metadata, collection, self._call_metadata, request_id
        )
        return partial(found, metadata=metadata) if metadata else found

    def _after_close(self) -> Closed:
        return Closed(f"this client of {self.target} was closed; connect again")

    def raised(self, error: Exception) -> VecdbError:
        if isinstance(error, VecdbError):
            return error
        if self._closed:
            return self._after_close()
        return transport.read_error(error, self.target)

    def failed(self, meter: Meter, error: BaseException) -> None:
        """Reports what is no error of a call. Raises Closed for a call that ends since this client was closed: grpc.aio
        says CancelledError then, which is for who was cancelled."""
        meter.failed(error)
        if isinstance(error, asyncio.CancelledError) and self._closed:
            task = asyncio.current_task()
            if task is None or not task.cancelling():
                raise Closed(
                    f"this client of {self.target} was closed while the call was under way; whether it was done is not "
                    "known"
                ) from None

    def pauses(self) -> transport.Pauses:
        """Pauses before each repetition of a call that begins now."""
        return self._repeating.pauses()

    async def run(self, call: Call[T], timeout_s: float | None = None) -> T:
        method = self.method(call.rpc, getattr(call.request, "collection", None), call.request_id)
        limit_s = transport.checked_timeout(timeout_s, self._timeout_s)
        end_s = None if limit_s is None else time.monotonic() + limit_s
        pauses = self.pauses()
        meter = Meter(call.rpc, self.on_call)
        # What goes with a call alone cannot go with a stream of many.
        streams = call.streams and self._call_metadata is None
        try:
            while True:
                left_s = transport.left_s(end_s)
                meter.attempt(call.request)
                try:
                    answer = await self._streams.ask(call.request, left_s) if streams else None
                    if answer is None:
                        # A stream may have broken late: what is left now counts.
                        answer = await method(call.request, timeout=transport.left_s(end_s))
                except (grpc.RpcError, grpc.aio.UsageError, VecdbError) as error:
                    meter.failed(error)
                    raised = self.raised(error)
                    pause_s = transport.pause_before_retry_s(raised, call.may_repeat, pauses, end_s)
                except BaseException as error:
                    self.failed(meter, error)
                    raise
                else:
                    self._repeating.has_worked = True
                    meter.received(answer)
                    return await self.aside.read(call.read, answer)
                await asyncio.sleep(pause_s)
        finally:
            meter.report()

    async def watch(self, call: Watched[T], timeout_s: float | None, progress: Progress) -> T:
        """A long call, repeated only where the server has not begun it; `timeout_s` None: no limit. What
        `progress` raises ends it."""
        limit_s = transport.checked_timeout(timeout_s, None)
        end_s = None if limit_s is None else time.monotonic() + limit_s
        method = self.method(call.rpc, getattr(call.request, "collection", None))
        pauses = self.pauses()
        meter = Meter(call.rpc, self.on_call)
        begun = False
        try:
            while True:
                meter.attempt(call.request)
                stream = method(call.request, timeout=transport.left_s(end_s))
                try:
                    while (answer := await following(stream, self.idle_s)) is not None:
                        begun = True
                        meter.received(answer)
                        if call.last(answer, progress):
                            return call.read(answer)
                    raise Internal(f"{call.rpc} ended without a result; report this")
                except (grpc.RpcError, grpc.aio.UsageError) as error:
                    meter.failed(error)
                    raised = self.raised(error)
                    if begun:
                        raise raised from None
                    pause_s = transport.pause_before_retry_s(raised, False, pauses, end_s)
                except BaseException as error:
                    self.failed(meter, error)
                    raise
                finally:
                    stream.cancel()
                await asyncio.sleep(pause_s)
        finally:
            meter.report()

    async def drive(
        self, steps: Generator[Call[WriteResult], WriteResult, WriteResult], timeout_s: float | None
    ) -> WriteResult:
        try:
            call = next(steps)
            while True:
                try:
                    result = await self.run(call, timeout_s)
                except VecdbError as error:
                    call = steps.throw(error)
                else:
                    call = steps.send(result)
        except StopIteration as done:
            total: WriteResult = done.value
            return total
        finally:
            steps.close()

    async def scan(
        self, call: Call[Records], limit_s: float | None
    ) -> AsyncGenerator[Records, None]:
        """A scan that goes on from its last cursor when the server was away for a moment."""
        end_s = None if limit_s is None else time.monotonic() + limit_s
        left: Call[Records] | None = call
        pauses = self.pauses()
        meter = Meter(call.rpc, self.on_call)
        try:
            while left is not None:
                left_s = transport.left_s(end_s)
                meter.attempt(left.request)
                stream = self.method(left.rpc, left.request.collection)(
                    left.request, timeout=left_s
                )
                try:
                    while (answer := await following(stream, self.idle_s)) is not None:
                        meter.received(answer)
                        records = await self.aside.read(left.read, answer)
                        left = reads.behind(left, records)
                        pauses = self.pauses()
                        yield records
                        if left is None:
                            return
                    return
                except (grpc.RpcError, grpc.aio.UsageError) as error:
                    meter.failed(error)
                    raised = self.raised(error)
                    pause_s = transport.pause_before_retry_s(raised, True, pauses, end_s)
                except BaseException as error:
                    self.failed(meter, error)
                    raise
                finally:
                    stream.cancel()
                await asyncio.sleep(pause_s)
        finally:
            meter.report()
