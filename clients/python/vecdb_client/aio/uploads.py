"""The stream of an ingest for asyncio: a message out, its acknowledgement back, the true error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Coroutine, Iterable
from typing import Any

import grpc
import grpc.aio

from .. import batches, calls, transport
from ..errors import Internal, Unavailable
from ..idle import UPLOAD_TIMES
from ..reports import Meter
from .connection import Connection, within
from .connection import following as read_next

_FORGOTTEN = "Internal error from Core"
"""What `set_internal_error` (grpc/_cython/_cygrpc/aio/call.pyx.pxi) puts in place of a status."""
_STATUS_WAIT_S = 5.0


async def messages_of(
    connection: Connection,
    made: calls.IngestMessages,
    batch_stream: Iterable[Any] | AsyncIterable[Any],
) -> AsyncGenerator[Any, None]:
    """The messages of an ingest, from a plain or an asynchronous iterable of batches, which is asked in the event loop."""
    batches.stream_of(batch_stream, (Iterable, AsyncIterable))
    asked = batch_stream if isinstance(batch_stream, AsyncIterable) else _each(batch_stream)
    async for batch in asked:
        columns = await connection.aside.columns(batches.of_any, batch)
        for message in made.of_batch(columns):
            yield message


async def _each(items: Iterable[Any]) -> AsyncGenerator[Any, None]:
    for item in items:
        yield item


async def following(messages: AsyncIterator[Any]) -> tuple[Any, Exception | None]:
    """The next message, or None with the error that kept it from being made, if one did."""
    try:
        return await anext(messages, None), None
    except Exception as error:
        # A bad batch, or the caller's iterable: what is under way is still finished.
        return None, error


class Upload:
    """One Ingest stream. For one task; a message is acknowledged before the next one is sent.

    When the server ends a stream while a write is under way, the write fails, and grpc.aio puts
    INTERNAL over the status that the server gave, if that came first. So each status is kept here
    as it comes, before it can be overwritten.
    """

    def __init__(self, stream: Any, idle_s: float | None = None) -> None:
        """`idle_s`: a message may take `UPLOAD_TIMES` as long to go, and its acknowledgement to come; None: no limit."""
        self._stream = stream
        self._idle_s = idle_s
        self._status: grpc.aio.AioRpcError | None = None
        self._ended = asyncio.Event()
        stream.add_done_callback(self._keep)

    def _keep(self, stream: Any) -> None:
        details = _at_once(stream.details())
        if details == _FORGOTTEN:
            return
        self._status = grpc.aio.AioRpcError(
            _at_once(stream.code()),
            grpc.aio.Metadata(),
            _at_once(stream.trailing_metadata()),
            details,
        )
        self._ended.set()

    async def send(self, message: Any) -> None:
        """Writes a message; raises the status of a stream that the server has ended."""
        try:
            async with within(self._idle_s, UPLOAD_TIMES):
                await self._stream.write(message)
        except (grpc.RpcError, asyncio.InvalidStateError):
            raise await self._true_status() from None

    async def _true_status(self) -> Exception:
        try:
            await asyncio.wait_for(self._ended.wait(), _STATUS_WAIT_S)
        except TimeoutError:
            pass  # no status came: the connection is gone
        if self._status is None:
            return Unavailable(
                "the server ended the ingest before it took all messages; it may be shutting down"
            )
        if self._status.code() is grpc.StatusCode.OK:
            return Internal("the server ended the ingest without acknowledging all messages")
        status: Exception = self._status
        return status

    async def acknowledgement(self) -> Any:
        """The answer to the message before; None when the server ended the stream without one."""
        return await read_next(self._stream, self._idle_s, UPLOAD_TIMES)

    async def finish(self) -> None:
        """Says that no message follows. Every one is acknowledged by now."""
        try:
            await self._stream.done_writing()
        except grpc.aio.InternalError:
            pass  # the server has ended the stream just now; nothing was lost with it

    def cancel(self) -> None:
        """Ends the stream, if it has not ended."""
        self._stream.cancel()


class Ingest:
    """An `Upload` that is opened again where it breaks or is refused. For one task.

    A message is kept until it is acknowledged: it has a request id, so that a server which has done it before its stream
    broke only acknowledges it again.
    """

    def __init__(
        self, connection: Connection, collection: str, timeout_s: float | None, meter: Meter
    ) -> None:
        """Sends nothing yet. `timeout_s`: for the whole ingest; None: no limit. InvalidArgument, Closed."""
        self._connection = connection
        self._collection = collection
        limit_s = transport.checked_timeout(timeout_s, None)
        self._end_s = None if limit_s is None else time.monotonic() + limit_s
        self._pauses = connection.pauses()
        self._meter = meter
        self._kept: Any = None
        self._open()

    def _open(self) -> None:
        method = self._connection.method("Ingest", self._collection)
        stream = method(timeout=transport.left_s(self._end_s))
        self._upload = Upload(stream, self._connection.idle_s)
        self._failure: Exception | None = None
        self._meter.attempt()

    async def send(self, message: Any) -> None:
        """Writes a message. The status of a stream that the server has ended comes with its acknowledgement."""
        self._meter.sent(message)
        self._kept = message
        try:
            await self._upload.send(message)
        except (grpc.RpcError, Unavailable) as error:
            self._failure = error

    async def acknowledgement(self) -> Any:
        """The answer to the message before. Internal where none comes; the status where the server has ended
        the ingest for good."""
        while True:
            try:
                if self._failure is not None:
                    raise self._failure
                found = calls.present(await self._upload.acknowledgement())
            except (grpc.RpcError, Unavailable) as error:
                self._meter.failed(error)
                pause_s = transport.pause_before_going_on_s(
                    self._connection.raised(error), self._pauses, self._end_s
                )
                if pause_s is None:
                    raise
            else:
                self._kept = None
                self._pauses = self._connection.pauses()
                self._meter.received(found)
                return found
            self._upload.cancel()
            await asyncio.sleep(pause_s)
            self._open()
            await self.send(self._kept)

    async def finish(self) -> None:
        """Says that no message follows. Every one is acknowledged by now."""
        await self._upload.finish()

    def cancel(self) -> None:
        """Ends the stream, if it has not ended."""
        self._upload.cancel()


def _at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that need not wait: a done call knows its status."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    return None
