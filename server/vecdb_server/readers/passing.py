"""Hands the calls that a reading process does not answer itself to the writer, as bytes.

Neither requests nor answers are decoded here. Keys, rights, limits and the audit log are the writer's, who is
told whose call it is; what is refused here for want of threads is refused as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import grpc

from vecdb.errors import VecdbError

from .. import arrivals
from ..fair_pool import came_s
from ..guard import certificate_of
from ..pools import Pools
from ..slow_calls import SlowCalls
from ..status import PREFIX, Border, Guarding, Watching, in_pool, remaining_s
from . import forwarded
from .channel import READS

_OWN = ("user-agent", "grpc-", ":", "te", "content-type")
"""Beginnings of metadata that belong to one connection."""


def connect(writer: str) -> grpc.Channel:
    """A channel to the writer, whose target this is; messages are as large as its client's may be."""
    return grpc.insecure_channel(
        writer,
        options=(
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
        ),
    )


class PassingBorder(Border):
    """The border of a reading process: reads are served, other calls of ours are the writer's."""

    def __init__(
        self,
        pools: Pools,
        max_message_bytes: int,
        guard: Guarding,
        watching: Watching,
        filter_s: Callable[[], float],
        slow: SlowCalls,
        writer: grpc.Channel,
    ) -> None:
        super().__init__(pools, max_message_bytes, guard, watching, filter_s, slow)
        self._writer = writer

    def _wrap(self, method: str, handler: Any) -> Any:
        name = method.removeprefix(PREFIX)
        if not method.startswith(PREFIX) or name in READS:
            return super()._wrap(method, handler)
        pool = self._pools.of(method, streams=handler.response_streaming)
        if not handler.response_streaming:
            call = self._writer.unary_unary(method)
            return grpc.stream_unary_rpc_method_handler(in_pool(self._passed(name, call), pool))
        streamed = (
            self._writer.stream_stream(method)
            if handler.request_streaming
            else self._writer.unary_stream(method)
        )
        behavior = self._passed_stream(name, streamed, one=not handler.request_streaming)
        return grpc.stream_stream_rpc_method_handler(in_pool(behavior, pool))

    def _passed(self, name: str, call: Any) -> Any:
        def passed(requests: Any, context: grpc.ServicerContext) -> bytes:
            request = self._taken(name, requests, context)
            under_way = call.future(request, timeout=remaining_s(context), metadata=_said(context))
            if not context.add_callback(under_way.cancel):
                under_way.cancel()
            try:
                answer: bytes = under_way.result()
            except (grpc.RpcError, grpc.FutureCancelledError):
                _fail_as(under_way, context)
                raise
            context.set_trailing_metadata(under_way.trailing_metadata())
            return answer

        return passed

    def _passed_stream(self, name: str, call: Any, *, one: bool) -> Any:
        def passed(requests: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
            # Entered first, so that what is refused is refused unread.
            given = self._taken(name, requests, context, one=one)
            under_way = call(given, timeout=remaining_s(context), metadata=_said(context))
            try:
                yield from under_way
            except grpc.RpcError:
                _fail_as(under_way, context)
                raise
            finally:
                # Nothing to a call that is through; else its client has gone.
                under_way.cancel()
            context.set_trailing_metadata(under_way.trailing_metadata())

        return passed

    def _taken(
        self, name: str, requests: Any, context: grpc.ServicerContext, *, one: bool = True
    ) -> Any:
        """The request, or all of them, of a call that may enter."""
        started_s = came_s()
        try:
            if (refusal := arrivals.refusal()) is not None:
                raise refusal
            awaited = self._pools.awaited
            return awaited.only(requests) if one else _quietly(awaited.all(requests, passed=True))
        except VecdbError as error:
            self._fail(name, context, error, started_s)


def _quietly(requests: Iterator[bytes]) -> Iterator[bytes]:
    """The messages of a client, who may go between two of them: its call is cancelled then."""
    with suppress(grpc.RpcError):
        yield from requests


def _said(context: grpc.ServicerContext) -> list[tuple[str, Any]]:
    """The metadata of a call, and whose it is, for the writer."""
    kept = [
        (name, value)
        for name, value in context.invocation_metadata()
        if name not in forwarded.KEYS and not name.startswith(_OWN)
    ]
    return [*kept, *forwarded.told(context.peer(), certificate_of(context))]


def _fail_as(under_way: Any, context: grpc.ServicerContext) -> None:
    """Ends a call as its other half has ended."""
    context.set_trailing_metadata(tuple(under_way.trailing_metadata() or ()))
    context.abort(under_way.code(), under_way.details() or "")
