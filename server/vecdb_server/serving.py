"""A server as a process: signals, exit codes, what systemd is told."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import vecdb
from vecdb.errors import (
    DatabaseLocked,
    DatabaseNotFound,
    FormatMismatch,
    InvalidSetting,
    VecdbError,
)

from . import logs
from .notify import notify, reloading
from .server import Server
from .settings import check

log = logging.getLogger("vecdb.server")

Read = Callable[[], Mapping[str, Any]]
"""Settings as their sources have them now; InvalidSetting."""

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_SETTING = 2
EXIT_FOLDER = 3

_LOOK_S = 1.0
_MANY = 4_096


class _Signals:
    """What signals ask for, in their order. The second SIGTERM or SIGINT ends the process at once.

    The system may give a signal to any thread, and Python runs its handler in the main one only, once that
    goes on. So whoever waits here waits for a byte, which is sent in whichever thread a signal comes.
    """

    def __init__(self, woken: socket.socket) -> None:
        self._woken = woken
        self._came: deque[int] = deque()
        self._stops = False

    def handle(self, number: int, _: Any) -> None:
        if number != signal.SIGHUP:
            if self._stops:
                os._exit(128 + number)
            self._stops = True
        self._came.append(number)

    def next(self) -> int:
        """Waits for the next signal."""
        while not self._came:
            # A byte comes before its handler has run: a wait of one second at most is the worst.
            with contextlib.suppress(TimeoutError):
                self._woken.recv(_MANY)
        return self._came.popleft()


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    woken, wakes = socket.socketpair()
    with woken, wakes:
        woken.settimeout(_LOOK_S)
        wakes.setblocking(False)
        asked = _Signals(woken)
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        descriptor = signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        before = [signal.signal(number, asked.handle) for number in numbers]
        try:
            yield asked
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
            signal.set_wakeup_fd(descriptor)


def serve(settings: Mapping[str, Any], read: Read | None = None) -> int:
    """Serves until SIGTERM or SIGINT; the exit code. For the main thread of a process.

    On SIGHUP keys, certificates and, by `read`, settings are read again.

    0: stopped in order; 2: a bad setting, or an address that cannot be listened on; 3: the folder
    is in use, of another format, or cannot be read and written; 1: anything else.
    """
    try:
        checked = check(settings)
        logs.configure(str(checked["log_level"]), str(checked["log_format"]))
        server = Server(checked)
    except InvalidSetting as error:
        return _refuse(error.message, EXIT_SETTING)
    with _signals() as asked:
        try:
            server.start()
        except InvalidSetting as error:
            return _refuse(error.message, EXIT_SETTING)
        except (DatabaseLocked, DatabaseNotFound, FormatMismatch) as error:
            return _refuse(error.message, EXIT_FOLDER)
        except VecdbError as error:
            folder_fault = error.reason in ("CORRUPTED", "STORAGE_FULL", "INVALID_NAME")
            return _refuse(error.message, EXIT_FOLDER if folder_fault else EXIT_ERROR)
        except OSError as error:
            return _refuse(f"cannot use folder {checked['data']}: {error}", EXIT_FOLDER)
        print(
            f"vecdb {vecdb.__version__} serving {checked['data']} on {server.address}", flush=True
        )
        log.info("serving", extra={"data": checked["data"], "address": server.address})
        if server.metrics_port is not None:
            log.info("metrics", extra={"port": server.metrics_port})
        notify("READY=1", f"STATUS=serving {checked['data']} on {server.address}")
        while asked.next() == signal.SIGHUP:
            _reload(server, read)
        notify("STOPPING=1", "STATUS=waiting for running calls")
        log.info("stopping", extra={"drain_timeout_s": server.settings["drain_timeout_s"]})
        if not server.stop():
            logging.shutdown()
            # Threads that still run would keep a normal exit waiting for ever.
            os._exit(EXIT_ERROR)
        log.info("stopped")
    return EXIT_OK


def _reload(server: Server, read: Read | None) -> None:
    """Takes up what has changed; a setting or a file that cannot be used changes nothing and is logged."""
    reloading()
    changed: list[str] | None = None
    try:
        changed = server.reload(None if read is None else read())
    except InvalidSetting as error:
        log.error("not all was taken up: %s", error.message)
    # Settings that may change are taken up even if a file of keys cannot be.
    logs.configure(str(server.settings["log_level"]), str(server.settings["log_format"]))
    if changed is not None:
        log.info("read again", extra={"changed": ",".join(changed) or "nothing"})
    notify("READY=1")


def _refuse(message: str, exit_code: int) -> int:
    print(f"vecdb: {message}", file=sys.stderr)
    return exit_code
