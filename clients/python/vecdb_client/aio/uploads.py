"""The stream of an ingest for asyncio: a message out, its acknowledgement back, the true error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Coroutine, Iterable
from typing import Any

import grpc
import grpc.aio

from .. import calls
from ..errors import Unavailable

_FORGOTTEN = "Internal error from Core"
"""What `set_internal_error` (grpc/_cython/_cygrpc/aio/call.pyx.pxi) puts in place of a status."""
_STATUS_WAIT_S = 5.0


async def messages_of(
    collection: str,
    batch_stream: Iterable[Any] | AsyncIterable[Any],
    upsert: bool,
    max_message_bytes: int,
) -> AsyncGenerator[Any, None]:
    """The messages of an ingest, from a plain or an asynchronous iterable of batches."""
    if isinstance(batch_stream, AsyncIterable):
        async for batch in batch_stream:
            for message in calls.ingest(collection, [batch], upsert, max_message_bytes):
                yield message
    else:
        for message in calls.ingest(collection, batch_stream, upsert, max_message_bytes):
            yield message


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

    def __init__(self, stream: Any) -> None:
        self._stream = stream
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
            await self._stream.write(message)
        except (grpc.RpcError, asyncio.InvalidStateError):
            raise await self._true_status() from None

    async def _true_status(self) -> Exception:
        try:
            await asyncio.wait_for(self._ended.wait(), _STATUS_WAIT_S)
        except TimeoutError:
            pass  # no status came: the connection is gone
        if self._status is None or self._status.code() is grpc.StatusCode.OK:
            return Unavailable(
                "the server ended the ingest before it took all messages; it may be shutting down"
            )
        status: Exception = self._status
        return status

    async def acknowledgement(self) -> Any:
        """The answer to the message before; None when the server ended the stream without one."""
        answer = await self._stream.read()
        return None if answer is grpc.aio.EOF else answer

    async def finish(self) -> None:
        """Says that no message follows. Every one is acknowledged by now."""
        try:
            await self._stream.done_writing()
        except grpc.aio.InternalError:
            pass  # the server has ended the stream just now; nothing was lost with it

    def cancel(self) -> None:
        """Ends the stream, if it has not ended."""
        self._stream.cancel()


def _at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that need not wait: a done call knows its status."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    return None
