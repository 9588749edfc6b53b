"""A server that is measured, in a process that does not outlive the one that asks it."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

_START_S, _END_S, _LOOK_S = 60.0, 60.0, 0.02

T = TypeVar("T")


class Server:
    """Started at once; killed when this interpreter ends without `stop`."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        heard: bool,
        ends_by: signal.Signals = signal.SIGTERM,
        errors: Path | None = None,
    ) -> None:
        """`heard`: `first_line` will be read. What nobody reads must not fill a pipe: the server would wait.
        `ends_by`: what it takes as the wish that it end at once. `errors`: a file for what it says on stderr."""
        self._ends_by, self._errors = ends_by, errors
        with open(os.devnull if errors is None else errors, "w") as said:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if heard else subprocess.DEVNULL,
                stderr=said,
                text=True,
            )
        atexit.register(self._process.kill)

    def first_line(self) -> str:
        """What it prints when it is ready. Raises RuntimeError if it ended before."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server did not start: exit code {self._process.wait()}")
        return line

    def reached(self, connect: Callable[[], T]) -> T:
        """The first thing that `connect` returns without raising. Raises RuntimeError after 60 s."""
        until_s = time.perf_counter() + _START_S
        while True:
            try:
                return connect()
            except Exception as error:
                if self._process.poll() is not None or time.perf_counter() > until_s:
                    said = "" if self._errors is None else f" {self._errors.read_text()[-1_000:]}"
                    raise RuntimeError(f"the server could not be reached: {error}{said}") from error
            time.sleep(_LOOK_S)

    def stop(self) -> None:
        """Kindly; after 60 s not."""
        self._process.send_signal(self._ends_by)
        try:
            self._process.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        atexit.unregister(self._process.kill)


def free_port() -> int:
    """A port of the loopback device that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port
