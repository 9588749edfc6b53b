"""The channel of the synchronous client, and how it drives calls: deadlines, repeats, errors."""

from __future__ import annotations

import time
from collections.abc import Generator
from functools import partial
from typing import Any, TypeVar

import grpc

from . import reads, transport
from .backup_types import Progress
from .backups import Watched
from .calls import Call
from .credentials import Credentials
from .errors import Closed, Internal, VecdbError
from .idle import Idle, checked_idle
from .reports import Meter, OnCall
from .streams import QueryStreams
from .types import Records, WriteResult
from .v1 import vecdb_pb2_grpc as pb_grpc

T = TypeVar("T")


class Connection:
    """One channel to one server, shared by all threads."""

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
        self.idle = Idle(checked_idle(idle_s))
        self._shown = shown
        self.on_call = on_call
        self._call_metadata = call_metadata
        options = [*transport.channel_options(max_message_bytes), *shown.options]
        if shown.channel is None:
            self._channel = grpc.insecure_channel(self.target, options=options)
        else:
            self._channel = grpc.secure_channel(self.target, shown.channel, options=options)
        self._stub: Any = pb_grpc.VecdbServiceStub(self._channel)
        self._streams = QueryStreams(partial(self._stub.QueryStream, metadata=shown.metadata))
        self._closed = False

    def close(self) -> None:
        """Ends the channel and whatever runs on it; later calls raise Closed."""
        self._closed = True
        self._streams.close()
        self._channel.close()

    def method(self, rpc: str, collection: Any = None, request_id: str = "") -> Any:
        if self._closed:
            raise Closed(f"this client of {self.target} was closed; connect again")
        found = getattr(self._stub, rpc)
        metadata = transport.headers(
            self._shown.metadata, collection, self._call_metadata, request_id
        )
        return partial(found, metadata=metadata) if metadata else found

    def raised(self, error: Exception) -> VecdbError:
        if isinstance(error, VecdbError):
            return error
        if isinstance(error, ValueError):
            # What grpc raises on a channel that another thread has just closed.
            return Closed(f"this client of {self.target} was closed; connect again")
        return transport.read_error(error, self.target)

    def pauses(self) -> transport.Pauses:
        """Pauses before each repetition of a call that begins now."""
        return self._repeating.pauses()

    def run(self, call: Call[T], timeout_s: float | None = None) -> T:
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
                    answer = self._streams.ask(call.request, left_s) if streams else None
                    if answer is None:
                        # A stream may have broken late: what is left now counts.
                        answer = method(call.request, timeout=transport.left_s(end_s))
                except (grpc.RpcError, ValueError, VecdbError) as error:
                    meter.failed(error)
                    raised = self.raised(error)
                    pause_s = transport.pause_before_retry_s(raised, call.may_repeat, pauses, end_s)
                except BaseException as error:
                    meter.failed(error)
                    raise
                else:
                    self._repeating.has_worked = True
                    meter.received(answer)
                    return call.read(answer)
                time.sleep(pause_s)
        finally:
            meter.report()

    def watch(self, call: Watched[T], timeout_s: float | None, progress: Progress) -> T:
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
                    while (answer := self.idle.next(stream)) is not None:
                        begun = True
                        meter.received(answer)
                        if call.last(answer, progress):
                            return call.read(answer)
                    raise Internal(f"{call.rpc} ended without a result; report this")
                except grpc.RpcError as error:
                    meter.failed(error)
                    raised = self.raised(error)
                    if begun:
                        raise raised from None
                    pause_s = transport.pause_before_retry_s(raised, False, pauses, end_s)
                except BaseException as error:
                    meter.failed(error)
                    raise
                finally:
                    stream.cancel()
                time.sleep(pause_s)
        finally:
            meter.report()

    def drive(
        self, steps: Generator[Call[WriteResult], WriteResult, WriteResult], timeout_s: float | None
    ) -> WriteResult:
        try:
            call = next(steps)
            while True:
                try:
                    result = self.run(call, timeout_s)
                except VecdbError as error:
                    call = steps.throw(error)
                else:
                    call = steps.send(result)
        except StopIteration as done:
            total: WriteResult = done.value
            return total
        finally:
            steps.close()

    def scan(self, call: Call[Records], limit_s: float | None) -> Generator[Records, None, None]:
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
                    while (answer := self.idle.next(stream)) is not None:
                        meter.received(answer)
                        records = left.read(answer)
                        left = reads.behind(left, records)
                        pauses = self.pauses()
                        yield records
                        if left is None:
                            return
                    return
                except (grpc.RpcError, ValueError) as error:
                    meter.failed(error)
                    raised = self.raised(error)
                    pause_s = transport.pause_before_retry_s(raised, True, pauses, end_s)
                except BaseException as error:
                    meter.failed(error)
                    raise
                finally:
                    stream.cancel()
                time.sleep(pause_s)
        finally:
            meter.report()
