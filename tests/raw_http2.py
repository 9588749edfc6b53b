"""Frames of HTTP/2 as no library writes them, for what strangers may send."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import Counter
from types import TracebackType
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
END_STREAM, END_HEADERS = 1, 4
ACK = 1
INITIAL_WINDOW = 4


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def setting(name: int, value: int) -> bytes:
    return struct.pack(">HI", name, value)


def header(name: str, value: str) -> bytes:
    """As a literal that enters no table."""
    return b"\0" + _text(name) + _text(value)


def _text(text: str) -> bytes:
    data = text.encode()
    if len(data) < 127:
        return bytes((len(data),)) + data
    rest, length = len(data) - 127, b"\x7f"
    while rest >= 128:
        length, rest = length + bytes((rest % 128 | 128,)), rest // 128
    return length + bytes((rest,)) + data


def call(method: str) -> bytes:
    """The headers of a call of ours."""
    return b"".join(
        header(name, value)
        for name, value in (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", f"/vecdb.v1.VecdbService/{method}"),
            (":authority", "x"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        )
    )


def message(data: bytes) -> bytes:
    """As gRPC puts it into DATA."""
    return b"\0" + struct.pack(">I", len(data)) + data


class Raw:
    """A connection that reads and forgets what comes, but for how many frames of each kind there were.

    It confirms no settings of the other side unless it is told to, so that it is bound by none.
    """

    def __init__(self, address: str, settings: bytes = b"", *, confirms: bool = False) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), 10)
        self._socket.settimeout(60)  # as long as a test waits for anything
        self._confirms = confirms
        self.came: Counter[int] = Counter()
        self.ended = threading.Event()
        self._socket.sendall(PREFACE + frame(SETTINGS, 0, 0, settings))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, data: bytes) -> bool:
        """Whether the server still took it."""
        try:
            self._socket.sendall(data)
        except OSError:
            return False
        return not self.ended.is_set()

    def _read(self) -> None:
        rest = b""
        with contextlib.suppress(OSError):
            while data := self._socket.recv(1 << 16):
                rest += data
                while len(rest) >= 9 and len(rest) >= 9 + int.from_bytes(rest[:3], "big"):
                    if self._confirms and rest[3] == SETTINGS and not rest[4] & ACK:
                        self._socket.sendall(frame(SETTINGS, ACK, 0))
                    self.came[rest[3]] += 1
                    rest = rest[9 + int.from_bytes(rest[:3], "big") :]
        self.ended.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._reader.join(10)
