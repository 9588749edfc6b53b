"""The stream of an ingest: messages out, their acknowledgements back; opened again where it breaks or is refused."""

from __future__ import annotations

import queue
import time
from collections import deque
from typing import Any

import grpc

from . import calls, transport
from .connection import Connection
from .idle import UPLOAD_TIMES
from .reports import Meter


class Upload:
    """One Ingest, for one thread. Messages are kept until they are acknowledged: they have request ids, so that a
    server which has done one before its stream broke only acknowledges it again."""

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
        self._kept: deque[Any] = deque()
        self._open()

    def _open(self) -> None:
        self._to_send: queue.SimpleQueue[Any] = queue.SimpleQueue()
        method = self._connection.method("Ingest", self._collection)
        self._stream = method(iter(self._to_send.get, None), timeout=transport.left_s(self._end_s))
        self._meter.attempt()

    def send(self, message: Any) -> None:
        """Gives a message to gRPC; None says that no more follow."""
        self._kept.append(message)
        self._put(message)

    def _put(self, message: Any) -> None:
        if message is not None:
            self._meter.sent(message)
        self._to_send.put(message)

    def acknowledgement(self) -> Any:
        """The next acknowledgement. Internal where none comes, DeadlineExceeded where it does not come in time,
        grpc.RpcError where the server has ended the ingest for good."""
        while True:
            try:
                found = calls.present(self._connection.idle.next(self._stream, UPLOAD_TIMES))
            except grpc.RpcError as error:
                self._meter.failed(error)
                pause_s = transport.pause_before_going_on_s(
                    self._connection.raised(error), self._pauses, self._end_s
                )
                if pause_s is None:
                    raise
            else:
                self._kept.popleft()
                self._pauses = self._connection.pauses()
                self._meter.received(found)
                return found
            self.end()
            time.sleep(pause_s)
            self._open()
            for message in self._kept:
                self._put(message)

    def end(self) -> None:
        """Ends the stream, if it has not ended."""
        self._to_send.put(None)
        self._stream.cancel()
