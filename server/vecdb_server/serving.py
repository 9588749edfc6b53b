"""A server as a process: signals, exit codes, what systemd is told."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from queue import SimpleQueue
from typing import Any

import vecdb
from vecdb.errors import DatabaseLocked, FormatMismatch, InvalidSetting, VecdbError

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


class _Signals:
    """What signals ask for, in their order. The second SIGTERM or SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.came: SimpleQueue[int] = SimpleQueue()
        """A handler interrupts whoever waits here, so this must not be a lock that both take."""
        self._stops = False

    def handle(self, number: int, _: Any) -> None:
        if number != signal.SIGHUP:
            if self._stops:
                os._exit(128 + number)
            self._stops = True
        self.came.put(number)


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    asked = _Signals()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.signal(number, asked.handle) for number in numbers]
    try:
        yield asked
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


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
        except (DatabaseLocked, FormatMismatch) as error:
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
        while asked.came.get() == signal.SIGHUP:
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
