"""A way to a server that loses what the server says: for tests of what clients do then."""

from __future__ import annotations

import itertools
import socket
import threading
from contextlib import closing, suppress


class LossyWay:
    """A port that leads to a server. Any thread may call."""

    def __init__(self, target: str) -> None:
        """`target`: host:port of the server."""
        host, port = target.rsplit(":", 1)
        self._target = host, int(port)
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._mute: list[socket.socket] = []
        self._port = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._port.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_answers(self) -> None:
        """From now on nothing that the server says over the connections there are arrives; it still gets what clients send."""
        self._mute = [server for _, server in self._pairs]

    def cut(self) -> None:
        """Ends all connections. Later ones are as any."""
        ended, self._pairs = self._pairs, []
        for one in itertools.chain(*ended):
            with suppress(OSError):  # its other side was quicker
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Takes no more connections, and ends those there are."""
        self._port.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._port.accept()
                server = socket.create_connection(self._target)
                self._pairs.append((client, server))
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError), closing(source), closing(target):
            while data := source.recv(65_536):
                if source not in self._mute:
                    target.sendall(data)
