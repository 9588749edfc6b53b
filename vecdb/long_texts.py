"""Patterns over long texts, searched in a process of their own, which can be ended at any moment.

RE2 takes time linear in the text, but for each byte up to some ns for every instruction of the pattern: `(a|b)*a(a|b){900}c` takes
100 s for a text of 16 MB, and nothing stops a search that has begun. Its result cannot be put together from pieces of the text, nor
can its time be foretold: what is cheap for the first half may be as slow as that for the second. So a text for which it could be a
matter of seconds is given to another process, while the thread that wants to know looks at its limits, and ends the process
where one is passed. What is asked and what is found are the same. Patterns that only look large, as `\\p{L}+x`, take milliseconds for
megabytes there too. Any thread.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from typing import IO

import re2

from . import regex_worker
from .errors import Unavailable
from .stopping import Interrupt, worked_elsewhere

_LOOK_MS = 10
_PIECE = 1 << 16
_IDLE = 2
"""Processes that are kept for other texts."""
_KEPT_S = 0.8 * regex_worker.IDLE_S
"""One that is about to end on its own is asked nothing."""
_idle: deque[Worker] = deque()
_at_once = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))
"""Each takes a core; more of them would only be slower."""


def found(pattern: bytes, text: bytes, interrupt: Interrupt) -> bool:
    """Whether the pattern is in the text, as UTF-8 both.

    `interrupt` is called every 10 ms or so; what it raises ends the search, and the process with it. Unavailable when there can
    be no process, or when it dies.
    """
    at_once = _at_once
    while not at_once.acquire(timeout=_LOOK_MS / 1000):
        interrupt()
    try:
        worker = _taken()
        try:
            answer = worker.ask(pattern, text, interrupt)
        except BaseException:
            worker.end()
            raise
        if len(_idle) < _IDLE:
            _idle.append(worker)
        else:
            worker.end()
        return answer
    finally:
        at_once.release()


def _taken() -> Worker:
    """One that waits for work, else a new one."""
    while True:
        try:
            worker = _idle.pop()
        except IndexError:
            return Worker()
        if worker.ready:
            return worker
        worker.end()


class Worker:
    """A process that searches; one thread at a time. Unavailable where none can be started."""

    def __init__(self) -> None:
        # -I: neither the current folder nor ours, which has a types.py, is looked for modules. -S: what is installed is not
        # looked through either, which takes as long as all the rest.
        command = [sys.executable, "-I", "-S", "-c", _START, os.path.dirname(regex_worker.__file__)]
        try:
            self._process = subprocess.Popen(
                [*command, os.path.dirname(os.path.dirname(re2.__file__))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                # Ctrl-C is for whoever asks.
                start_new_session=True,
            )
        except OSError as error:
            raise Unavailable(
                f"the process that searches long texts for a pattern cannot be started: {error}; repeat the call, or give "
                "machine or container room for another process"
            ) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        os.set_blocking(self._to.fileno(), False)
        self._counted_s = 0.0
        self._used_s = time.monotonic()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ready(self) -> bool:
        return self._process.poll() is None and time.monotonic() - self._used_s < _KEPT_S

    def ask(self, pattern: bytes, text: bytes, interrupt: Interrupt) -> bool:
        """As `found`. After anything was raised it can only be ended."""
        lengths = b"".join(len(one).to_bytes(8, "little") for one in (pattern, text))
        for part in (lengths + pattern, text):
            rest = memoryview(part)
            while rest:
                self._until_ready(self._to, select.POLLOUT, interrupt)
                try:
                    rest = rest[self._to.write(rest[:_PIECE]) or 0 :]
                except BrokenPipeError:
                    raise self._died() from None
        self._until_ready(self._from, select.POLLIN, interrupt)
        answer = self._from.read(1)
        self._count()
        self._used_s = time.monotonic()
        if not answer:
            raise self._died()
        return answer == regex_worker.FOUND

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._to.close()
        self._from.close()
        self._process.wait()

    def _until_ready(self, pipe: IO[bytes], event: int, interrupt: Interrupt) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        while not poll.poll(_LOOK_MS):
            self._count()
            interrupt()

    def _count(self) -> None:
        """What the process has worked since the last time is work of this thread."""
        # The clock of the processor's time of another process, as clock_getcpuclockid(3) makes it.
        try:
            now_s = time.clock_gettime(~self._process.pid << 3 | 2)
        except OSError:
            return  # it has died, which is seen where it is asked
        worked_elsewhere(now_s - self._counted_s)
        self._counted_s = now_s

    def _died(self) -> Unavailable:
        code = self._process.wait()
        return Unavailable(
            f"the process that searched a long text for a pattern died with exit code {code}"
            f"{' (killed, perhaps for want of memory)' if code == -signal.SIGKILL else ''}; repeat the call"
        )


_START = (
    "import sys; sys.path += sys.argv[2:]; "
    "import importlib.util as u; s = u.spec_from_file_location('regex_worker', sys.argv[1] + '/regex_worker.py'); "
    "m = u.module_from_spec(s); s.loader.exec_module(m); m.main()"
)


@atexit.register
def _end_idle() -> None:
    while _idle:
        _idle.pop().end()


def _anew() -> None:
    """In a copy of this process, whose pipes are the same, none of its processes may be asked."""
    global _at_once
    _idle.clear()
    _at_once = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))


os.register_at_fork(after_in_child=_anew)
