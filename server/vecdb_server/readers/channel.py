"""What the writer and a reading process say to each other: one JSON object a line, over a socket pair.

The end of the socket is the end of the other side, however it came.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from ..call_figures import CallFigures

Order = Mapping[str, Any]
"""For a reading process: {"do": "serve", "settings", "port", "writer", "own"}, first and once; {"do": "figures"};
{"do": "reload", "settings"}; {"do": "stop"}."""

READS = ("Query", "QueryStream", "Get", "Count", "Scan")
"""Calls that a reading process answers itself."""


class Said(msgspec.Struct, omit_defaults=True):
    """What a reading process says; one of these a line."""

    ready: bool = False
    """It listens."""
    failed: str = ""
    """Why it cannot, before it ends."""
    figures: CallFigures | None = None
    """The answer to `figures`."""
    refused: dict[str, Any] | None = None
    """A line for the audit log, which one process alone may write."""


class Channel:
    """One end. Any thread may `send`, one at a time reads `lines`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message: Said | Order) -> bool:
        """Whether it could be sent; not if the other side has gone."""
        data = msgspec.json.encode(message) + b"\n"
        try:
            with self._lock:
                self._connection.sendall(data)
        except OSError:
            return False
        return True

    def lines(self) -> Iterator[bytes]:
        """What the other side says, until it has gone or `close` was called."""
        with suppress(OSError), self._connection.makefile("rb") as stream:
            yield from stream

    def close(self) -> None:
        """Ends `lines` on both sides. Any thread."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
