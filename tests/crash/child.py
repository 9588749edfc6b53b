"""A forked process that tells by lines of JSON what it does."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

PATIENCE_S = 60.0


class Failed(Exception):
    """A child has found the database wrong, or broke."""


class Child:
    """A forked process with a pipe of JSON lines to us."""

    def __init__(self, run: Callable[[Callable[[Any], None]], None]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        reading, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(reading)
            code = 1
            try:
                run(lambda line: _send(writing, line))
                code = 0
            except BaseException:
                _send(writing, ["failed", traceback.format_exc()])
            finally:
                os._exit(code)
        os.close(writing)
        self._pipe = reading
        # `select` knows no file beyond the 1,023rd, and a process of tests may have more open.
        self._told = select.poll()
        self._told.register(reading, select.POLLIN)
        self._rest = b""
        self._ended = False

    def lines(self, until: float, stop: Callable[[Any], bool] = lambda _: False) -> list[Any]:
        """Lines that come before the moment `until` or the end of the process, up to one that stops."""
        found: list[Any] = []
        while True:
            while b"\n" in self._rest:
                line, _, self._rest = self._rest.partition(b"\n")
                found.append(json.loads(line))
                if stop(found[-1]):
                    return found
            left = until - time.monotonic()
            if left <= 0 or not self._told.poll(1000 * left):
                return found
            data = os.read(self._pipe, 1 << 20)
            if not data:
                self._ended = True
                return found
            self._rest += data

    def until(self, *verbs: str) -> list[Any]:
        """Lines up to one of these verbs, or to the end of the process. Raises Failed where neither comes."""
        found = self.lines(time.monotonic() + PATIENCE_S, lambda line: line[0] in verbs)
        if not self._ended and not (found and found[-1][0] in verbs):
            self.kill()
            self.close()
            raise Failed(f"a child hung for {PATIENCE_S} s; it told {found[-4:]}")
        return found

    def kill(self) -> int:
        """Kills it, unless it has ended; the wait status."""
        os.kill(self.pid, signal.SIGKILL)
        return os.waitpid(self.pid, 0)[1]

    def close(self) -> None:
        os.close(self._pipe)


_sending = threading.Lock()


def _send(pipe: int, line: Any) -> None:
    data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
    with _sending:
        while data:
            data = data[os.write(pipe, data) :]
