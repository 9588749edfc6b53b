"""Errors become statuses here: one table, and one border that every call of ours goes through. It also refuses what must
not run at all (a late or malformed request), keeps answers under the message limit, and logs. Handlers have no try/except.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf.message import EncodeError

from vecdb import errors
from vecdb.stopping import while_wanted
from vecdb_client.transport import ERROR_KEY, RETRY_AFTER_KEY

from . import arrivals
from .access import ROLE_OF
from .admission import retry_after_ms
from .fair_pool import came_s, lend
from .pools import Pools
from .slow_calls import SlowCalls, rows_of
from .untaken import Untaken

log = logging.getLogger("vecdb.server")

PREFIX = "/vecdb.v1.VecdbService/"
_MOST_UNTAKEN = 8  # answers of the largest size
_QUERIES = "QueryStream"
_REFLECTION = "/grpc.reflection."
_HEALTH = "/grpc.health."

STATUS: dict[type[errors.VecdbError], grpc.StatusCode] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
    errors.Corrupted: grpc.StatusCode.DATA_LOSS,
    errors.Internal: grpc.StatusCode.INTERNAL,
    errors.VecdbError: grpc.StatusCode.UNKNOWN,
}
"""A class stands for its subclasses too."""

_BY_REASON = {kind.reason: code for kind, code in STATUS.items()}

# gRPC drops a call whose trailing metadata exceeds about 8 KiB, so long lists of ids are cut.
_MAX_TEXT_CHARS = 1_000
_MAX_ERROR_BYTES = 4_096


def code_of(error: Exception) -> grpc.StatusCode | None:
    """The status of an error of ours, by its nearest class in the table; None for a stranger.
    Goes by `reason`: `wire.py` raises the client's copies of the classes."""
    for kind in type(error).__mro__:
        code = _BY_REASON.get(getattr(kind, "reason", ""))
        if code is not None:
            return code
    return None


def encoded(error: Any) -> bytes:
    """The error as JSON {"reason", "message", "details"} of at most 4 KiB.

    Lists are cut to what fits, the number of their entries then stands beside them as `<name>_total`;
    what still does not fit is left out.
    """
    message = _shortened(error.message, 2 * _MAX_TEXT_CHARS)
    details = dict(error.details)
    for length in (100, 20, 5, 0):
        kept = _cut(details, length)
        found = json.dumps({"reason": error.reason, "message": message, "details": kept})
        if len(found) <= _MAX_ERROR_BYTES:
            return found.encode()
    bare = {"reason": error.reason, "message": _shortened(message, 300), "details": {}}
    return json.dumps(bare).encode()


def _cut(details: Mapping[str, Any], length: int) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in details.items():
        if isinstance(value, list | tuple) and len(value) > length:
            kept[name] = list(value[:length])
            kept.setdefault(f"{name}_total", len(value))
        else:
            kept[name] = _shortened(value, 500) if isinstance(value, str) else value
    return kept


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


class Malformed:
    """Stands in for a request whose bytes are no message, so that the border can refuse it."""

    def __init__(self, reason: Exception) -> None:
        self.reason = reason


def _lenient(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    # What a deserializer raises would become INTERNAL, as if the fault were ours.
    def parse_or_mark(data: bytes) -> Any:
        try:
            return parse(data)
        except Exception as error:
            return Malformed(error)

    return parse_or_mark


def _checked(request: Any) -> Any:
    if isinstance(request, Malformed):
        if isinstance(request.reason, MemoryError):
            raise request.reason
        raise errors.InvalidArgument(
            f"the bytes of the request are not the message that this call takes ({request.reason}); "
            "client and server may be of different versions"
        )
    return request


def remaining_s(context: grpc.ServicerContext) -> float | None:
    """Seconds until the deadline of a call, None when it has none."""
    left_s = context.time_remaining()
    # gRPC gives the far future for "no deadline".
    return None if left_s is None or left_s > 1e9 else left_s


def _refuse_late(context: grpc.ServicerContext) -> None:
    left_s = remaining_s(context)
    if left_s is not None and left_s <= 0:
        raise errors.DeadlineExceeded(
            "the deadline passed before the call could start; nothing was done"
        )


class Guarding(Protocol):
    """What stands before every handler of ours; `guard.py`."""

    def known_as(self, metadata: Any) -> str:
        """The id of the key of a call, known before its request is read; empty where none is asked for.
        Unauthenticated when the call cannot be taken."""

    def refused(self, method: str, context: Any, error: Exception) -> None:
        """Is told of a call that `known_as` has stopped."""

    def unary(self, method: str, behavior: Any) -> Any:
        """The handler, guarded."""

    def stream(self, method: str, behavior: Any) -> Any:
        """The handler of a stream of answers, guarded."""


class Watching(Protocol):
    """What is told of every call of ours; `observing.py`."""

    def call(self, method: str, context: Any) -> AbstractContextManager[None]:
        """Around a call that is served."""

    def ended(self, method: str, code: grpc.StatusCode, took_s: float) -> None:
        """A call is through, or was refused."""


class Border(grpc.ServerInterceptor):  # type: ignore[misc,unused-ignore]
    """Wraps every handler of ours once; gives each call the thread pool it belongs to."""

    def __init__(
        self,
        pools: Pools,
        max_message_bytes: int,
        guard: Guarding,
        watching: Watching,
        filter_s: Callable[[], float] = lambda: 0.0,
        slow: SlowCalls | None = None,
    ) -> None:
        """`filter_s` says how many seconds of a core evaluating a filter may take, 0 for any; it is asked at each call.
        `slow` is told of calls that are over; None: nobody is."""
        self._slow = slow
        self._pools = pools
        self._filter_s = filter_s
        self._guard = guard
        self._watching = watching
        self._max_message_bytes = max_message_bytes
        self.untaken = Untaken(_MOST_UNTAKEN * max_message_bytes)
        self._wrapped: dict[str, Any] = {}

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        method: str = handler_call_details.method
        handler = continuation(handler_call_details)
        arrivals.forget()
        if handler is None:
            return None
        metadata = handler_call_details.invocation_metadata
        client = ""
        if not method.startswith(_HEALTH):
            try:
                client = self._guard.known_as(metadata)
            except errors.Unauthenticated as refusal:
                return self._refusing(method, refusal)
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            wrapped = self._wrapped[method] = self._wrap(method, handler)
        arrivals.announce(client, metadata)
        return wrapped

    def _wrap(self, method: str, handler: Any) -> Any:
        pool = self._pools.of(method, streams=handler.response_streaming)
        name = method.removeprefix(PREFIX)
        if method.startswith(_HEALTH):
            return self._health(name, handler, pool)
        # Registered as taking a stream, whatever it takes: gRPC reads no request before the handler asks
        # for it, so that a call can be refused unread. On the wire there is no difference.
        if handler.response_streaming:
            behavior = handler.stream_stream or handler.unary_stream
            if method.startswith(_REFLECTION):
                behavior = self._pools.reflecting.followed(behavior)
            behavior = self._guard.stream(name, behavior)
            served = self._stream(name, behavior, one=not handler.request_streaming)
            make: Any = grpc.stream_stream_rpc_method_handler
        else:
            served = self._unary(name, self._guard.unary(name, handler.unary_unary))
            make = grpc.stream_unary_rpc_method_handler
        # Answers leave the border as bytes: only so is their size known before gRPC fails on it.
        return make(
            in_pool(served, pool),
            request_deserializer=_lenient(handler.request_deserializer),
            response_serializer=bytes,
        )

    def _bytes(self, message: Any, context: grpc.ServicerContext) -> bytes:
        data: bytes = message.SerializeToString()
        if len(data) > self._max_message_bytes:
            raise too_large(len(data), self._max_message_bytes)
        self.untaken.sending(context, len(data))
        return data

    def _unary(self, name: str, behavior: Any) -> Any:
        def answer(requests: Any, context: grpc.ServicerContext) -> bytes:
            started_s, begun_s = came_s(), time.perf_counter()
            request = message = None
            try:
                if (refusal := arrivals.refusal()) is not None:
                    raise refusal
                request = self._pools.awaited.only(requests)
                begun_s = time.perf_counter()
                _refuse_late(context)
                wanted = while_wanted(context.is_active, self._filter_s(), lend)
                with self._watching.call(name, context), wanted:
                    message = behavior(_checked(request), context)
                    data = self._bytes(message, context)
            except grpc.RpcError:
                # The client has gone before its request was read; nobody is left to be told.
                self._tell(name, grpc.StatusCode.CANCELLED, started_s)
                raise
            except Exception as error:
                failure = error
            else:
                self._tell(name, grpc.StatusCode.OK, started_s)
                self._worked(name, request, message, None, time.perf_counter() - begun_s)
                return data
            self._worked(name, request, message, failure, time.perf_counter() - begun_s)
            return self._fail(name, context, failure, started_s)

        return answer

    def _stream(self, name: str, behavior: Any, *, one: bool) -> Any:
        def steps(requests: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
            if (refusal := arrivals.refusal()) is not None:
                raise refusal
            if one:
                given = _checked(self._pools.awaited.only(requests))
            else:
                given = map(_checked, self._all(name, requests))
            _refuse_late(context)
            messages = iter(behavior(given, context))
            worked_s, rows = 0.0, 0
            failure: Exception | None = None
            try:
                while True:
                    begun_s = time.perf_counter()
                    try:
                        # For each step: between them other calls use the thread.
                        with while_wanted(context.is_active, self._filter_s(), lend):
                            message = next(messages, None)
                        if message is None:
                            return
                        rows += (one and rows_of(message)) or 0
                        data, message = self._bytes(message, context), None  # one of them is enough
                    except Exception as error:
                        failure = error
                        raise
                    finally:
                        # What its client takes to read is no time of the call.
                        worked_s += time.perf_counter() - begun_s
                    yield data
                    self.untaken.taken(context)
            finally:
                self._worked(name, given if one else None, rows, failure, worked_s)

        def answers(requests: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
            started_s = came_s()
            try:
                # A span of days helps nobody.
                with nullcontext() if _lasts(name) else self._watching.call(name, context):
                    yield from steps(requests, context)
            except GeneratorExit:
                self._tell(name, grpc.StatusCode.CANCELLED, started_s)
                raise
            except Exception as error:
                failure = error
            else:
                self._tell(name, grpc.StatusCode.OK, started_s)
                return
            if not context.is_active():
                # The client has gone; nobody is left to be told.
                self._tell(name, grpc.StatusCode.CANCELLED, started_s)
                return
            self._fail(name, context, failure, started_s)

        return answers

    def _all(self, name: str, requests: Any) -> Iterator[Any]:
        """The messages of a stream. Of streams that may be silent for long, others take care."""
        return requests if _lasts(name) else self._pools.awaited.all(requests)

    def _health(self, name: str, handler: Any, pool: Any) -> Any:
        """A handler of the health service. Anybody may call it, so who sends no request keeps no thread."""

        def admitted(requests: Any, context: grpc.ServicerContext) -> Any:
            started_s = came_s()
            try:
                if (refusal := arrivals.refusal()) is not None:
                    raise refusal
                request = _checked(self._pools.asking.only(requests, context))
                if handler.response_streaming:
                    self._pools.watches.enter(context)
            except errors.VecdbError as error:
                self._fail(name, context, error, started_s)
            return request

        def check(requests: Any, context: grpc.ServicerContext) -> Any:
            return handler.unary_unary(admitted(requests, context), context)

        def watch(requests: Any, context: grpc.ServicerContext, send: Any = None) -> Any:
            return handler.unary_stream(admitted(requests, context), context, send)

        # It takes no thread while it waits for news.
        watch.experimental_non_blocking = True  # type: ignore[attr-defined]
        make: Any = grpc.stream_unary_rpc_method_handler
        if handler.response_streaming:
            make = grpc.stream_stream_rpc_method_handler
        return make(
            in_pool(watch if handler.response_streaming else check, pool),
            request_deserializer=_lenient(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _refusing(self, method: str, error: errors.VecdbError) -> Any:
        """Answers a call without looking at its request."""

        def refuse(requests: Any, context: grpc.ServicerContext) -> NoReturn:
            self._guard.refused(method.removeprefix(PREFIX), context, error)
            self._fail(method.removeprefix(PREFIX), context, error, came_s())

        return grpc.stream_unary_rpc_method_handler(in_pool(refuse, self._pools.refusals))

    def _worked(
        self, name: str, request: Any, answer: Any, failure: Exception | None, took_s: float
    ) -> None:
        if self._slow is not None and self._slow.is_slow(name, request, took_s):
            code = grpc.StatusCode.OK if failure is None else code_of(failure)
            self._slow.tell(name, request, answer, code or grpc.StatusCode.INTERNAL, took_s)

    def _tell(self, name: str, code: grpc.StatusCode, started_s: float) -> None:
        took_s = time.perf_counter() - started_s
        if not _lasts(name) or code not in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
            # It lasts as long as its client likes; what is counted of queries is each one.
            self._watching.ended(name, code, took_s)
        if log.isEnabledFor(logging.DEBUG):
            log.debug(
                "call", extra={"method": name, "code": code.name, "ms": round(1000 * took_s, 3)}
            )

    def _fail(
        self, name: str, context: grpc.ServicerContext, error: Exception, started_s: float
    ) -> NoReturn:
        code, known = failure_of(name, error)
        self._tell(name, code, started_s)
        trailing: list[tuple[str, Any]] = [(ERROR_KEY, encoded(known))]
        if "retry_after_ms" in known.details:
            trailing.append((RETRY_AFTER_KEY, str(known.details["retry_after_ms"])))
        context.set_trailing_metadata(tuple(trailing))
        context.abort(code, _shortened(known.message, _MAX_TEXT_CHARS))
        raise AssertionError("abort raises")


def _lasts(name: str) -> bool:
    """Whether calls stay open for as long as their clients like, with nothing to do for most of the time."""
    return name == _QUERIES or name.startswith(_REFLECTION)


def in_pool(behavior: Any, pool: Any) -> Any:
    # grpc/_server.py (`_select_thread_pool_for_behavior`) runs a handler in the pool of this
    # attribute; grpc's own health service uses it. A grpc that drops it ignores the attribute: calls
    # then share the default pool, which `server.py` makes larger after looking for the function.
    behavior.experimental_thread_pool = pool
    return behavior


def too_large(given_bytes: int, limit_bytes: int) -> errors.LimitExceeded:
    """The error of an answer that no message may carry."""
    return errors.LimitExceeded(
        f"the answer has {given_bytes} bytes, a message at most {limit_bytes}; ask for fewer records or "
        "fewer parts of them, use scan, or raise max_message_bytes of server and client",
        given_bytes=given_bytes,
        limit_bytes=limit_bytes,
    )


def failure_of(name: str, error: Exception) -> tuple[grpc.StatusCode, Any]:
    """The status of what a handler raised, and the error to tell the client; logs what is our fault."""
    code = code_of(error)
    if isinstance(error, MemoryError | EncodeError) or isinstance(error.__cause__, MemoryError):
        log.error("%s ran out of memory", name, exc_info=error)
        exhausted = "not enough memory for this call; ask for less at once"
        # Of a change nobody knows how far it came, so a client must not repeat it unasked.
        delay = {"retry_after_ms": retry_after_ms(1.0)} if ROLE_OF.get(name) in ("", "read") else {}
        return grpc.StatusCode.RESOURCE_EXHAUSTED, errors.ResourceExhausted(exhausted, **delay)
    if code is None:
        number = uuid.uuid4().hex[:8]
        log.error("%s failed unexpectedly, error %s", name, number, exc_info=error)
        internal = (
            f"the server failed in an unexpected way; its log has the details under error {number}"
        )
        return grpc.StatusCode.INTERNAL, errors.Internal(internal)
    if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS):
        log.error("%s failed: %s", name, error, exc_info=error)
    return code, error
