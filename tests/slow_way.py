"""A way to a server that is slow in one direction."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class SlowWay:
    """A port that leads to a server, over which a client's bytes take `bytes_s` a second, or with `answers` the server's."""

    def __init__(self, address: str, bytes_s: int, *, answers: bool = False) -> None:
        self._server = address.rsplit(":", 1)
        self._step = max(1, bytes_s // 50)
        self._answers = answers
        self._ended = threading.Event()
        self._passes = threading.Event()
        self._passes.set()
        self.passed = 0
        """Bytes that have come in the slow direction."""
        self._port = socket.socket()
        _as_a_link(self._port)
        self._port.bind(("127.0.0.1", 0))
        self._port.listen()
        self.address = f"127.0.0.1:{self._port.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._port.accept()
                server = socket.socket()
                _as_a_link(server)
                server.connect((self._server[0], int(self._server[1])))
                ways = ((client, server, not self._answers), (server, client, self._answers))
                for args in ways:
                    threading.Thread(target=self._pump, args=args, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, slow: bool) -> None:
        with suppress(OSError):
            while data := source.recv(self._step if slow else 65_536):
                if slow:
                    self._passes.wait()
                    self.passed += len(data)
                target.sendall(data)
                if slow:
                    self._ended.wait(0.02)
        for one in (source, target):
            with suppress(OSError):
                # Closed alone it would last for as long as the other thread reads from it.
                one.shutdown(socket.SHUT_RDWR)

    def hold(self) -> None:
        """Lets nothing more pass in the slow direction, until `close`."""
        self._passes.clear()

    def close(self) -> None:
        """Takes no more connections, and is slow no longer."""
        self._port.close()
        self._ended.set()
        self._passes.set()


def _as_a_link(one: socket.socket) -> None:
    """Has a socket without a connection buffer little, or a whole message would lie there at once, and take segments of a
    size that fits that: those within a machine have 64 KiB."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1_400)
