"""What a client tells about its own calls, for metrics: one report a call."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from .errors import Corrupted, VecdbError

log = logging.getLogger("vecdb.client")


def _code_of(error: VecdbError) -> str:
    """What the status would be of an error that came on a stream of queries: named as its kind is."""
    kind = next((k for k in type(error).__mro__ if VecdbError in k.__bases__), None)
    if kind is None:
        return "UNKNOWN"
    return "DATA_LOSS" if kind is Corrupted else kind.__dict__["reason"]


@dataclass(frozen=True, slots=True)
class CallReport:
    """One call, with all its attempts. Of a stream it comes when the stream has ended.

    `code` is the gRPC status of the last attempt, such as OK or UNAVAILABLE. `seconds` are those the
    caller waited, pauses included. Bytes are those of messages, of all attempts together.
    """

    method: str
    code: str
    seconds: float
    attempts: int
    sent_bytes: int
    received_bytes: int


OnCall = Callable[[CallReport], None]


class Meter:
    """Watches one call; costs nothing where nobody wants a report. For one thread at a time."""

    __slots__ = ("_method", "_on_call", "_received", "_sent", "_started_s", "attempts", "code")

    def __init__(self, method: str, on_call: OnCall | None) -> None:
        self._method = method
        self._on_call = on_call
        self._started_s = time.perf_counter()
        self._sent = self._received = 0
        self.attempts = 0
        self.code = "OK"

    def attempt(self, request: Any = None) -> None:
        """The call is sent, again or for the first time."""
        self.attempts += 1
        self.code = "OK"
        if request is not None:
            self.sent(request)

    def sent(self, message: Any) -> None:
        if self._on_call is not None:
            self._sent += message.ByteSize()

    def received(self, message: Any) -> None:
        if self._on_call is not None:
            self._received += message.ByteSize()

    def failed(self, error: BaseException) -> None:
        """How the attempt ended. A caller that goes away counts as CANCELLED."""
        if isinstance(error, grpc.RpcError):
            self.code = error.code().name
        else:
            self.code = _code_of(error) if isinstance(error, VecdbError) else "CANCELLED"

    def report(self) -> None:
        """The last word. What the hook raises is logged and changes nothing."""
        if self._on_call is None:
            return
        seconds = time.perf_counter() - self._started_s
        done = CallReport(
            self._method, self.code, seconds, self.attempts, self._sent, self._received
        )
        try:
            self._on_call(done)
        except Exception:
            log.exception("the hook on_call failed for %s", self._method)
