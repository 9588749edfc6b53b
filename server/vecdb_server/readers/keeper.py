"""In the writer: keeps the reading processes alive and tells them what to do."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

import vecdb
import vecdb_client
from vecdb.errors import Unavailable

from ..audit import AuditLines
from ..call_figures import CallFigures, total
from .channel import Channel, Order, Said

log = logging.getLogger("vecdb.server")

_START_S = 60.0
_FIGURES_S = 1.0
_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 10.0
_GRACE_S = 5.0
_ROOTS = [
    str(Path(found).resolve().parents[1])
    for found in (vecdb.__file__, vecdb_client.__file__, str(Path(__file__).parent))
]


class _Process:
    """One reading process at a time, and what is left of those before it."""

    def __init__(self, number: int) -> None:
        self.name = f"reader-{number}"
        self.starts = 0
        self.channel: Channel | None = None
        self.running: subprocess.Popen[bytes] | None = None
        self.is_ready = False
        self.failure = ""
        self.now = CallFigures()
        self.asked, self.answered = 0, 0
        self.before = CallFigures()

    @property
    def figures(self) -> CallFigures:
        return total((self.now, self.before))


class Keeper:
    """Some reading processes. `start`, then `stop`; both once. Any thread may call the rest."""

    def __init__(self, count: int, settings: Mapping[str, Any], audit: AuditLines | None) -> None:
        """`settings` are all of the server, as `settings.check` gives them. Starts nothing yet.

        OSError when no folder for the socket between writer and readers can be made.
        """
        self._settings = dict(settings)
        self._audit = audit
        # Its path must fit into the 107 bytes that an address of a unix socket has.
        self._folder = tempfile.mkdtemp(prefix="vecdb-")
        self.writer = f"unix:{self._folder}/writer"
        """Where the writer has to listen for what readers pass on: only this user can reach it."""
        self._processes = [_Process(number) for number in range(1, count + 1)]
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._port = 0

    def start(self, port: int) -> None:
        """Starts all, and returns when they listen on `port`. Unavailable, with the words of one that cannot."""
        self._port = port
        for process in self._processes:
            thread = threading.Thread(
                target=self._keep, args=(process,), name=f"vecdb-{process.name}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        with self._changed:
            self._changed.wait_for(
                lambda: all(p.is_ready or p.failure for p in self._processes), _START_S
            )
            failed = next((p for p in self._processes if not p.is_ready), None)
        if failed is not None:
            raise Unavailable(
                f"process {failed.name} cannot serve: "
                f"{failed.failure or f'it was not ready within {_START_S:g} s'}. Mend that, or set "
                "read_processes to 0"
            )

    def address(self, name: str) -> str:
        """Where one process listens alone, to ask just that one: only this user can reach it."""
        return f"unix:{self._folder}/{name}"

    @property
    def up(self) -> int:
        """Processes that listen now."""
        return sum(process.is_ready for process in self._processes)

    @property
    def restarts(self) -> int:
        """Times that one was started again."""
        return sum(max(0, process.starts - 1) for process in self._processes)

    @property
    def pids(self) -> list[int]:
        """Of those that run."""
        return [p.running.pid for p in self._processes if p.running is not None]

    def figures(self) -> dict[str, CallFigures]:
        """What each has counted, those that died included. Waits a second at most for one that is busy, whose
        figures of before then stand."""
        with self._changed:
            asked = [process for process in self._processes if process.is_ready]
            for process in asked:
                process.asked += 1
        for process in asked:
            self._tell(process, {"do": "figures"})
        with self._changed:
            self._changed.wait_for(
                lambda: all(p.answered >= p.asked or not p.is_ready for p in asked), _FIGURES_S
            )
            return {process.name: process.figures for process in self._processes}

    def reload(self, changed: Mapping[str, Any]) -> None:
        """Has all take up these settings, and keys and certificates that have changed."""
        self._settings.update(changed)
        for process in self._processes:
            self._tell(process, {"do": "reload", "settings": dict(changed)})

    def stop(self) -> None:
        """Has all of them refuse new calls and end those they have; returns at once, see `wait`."""
        self._stopping.set()
        for process in self._processes:
            self._tell(process, {"do": "stop"})

    def wait(self, timeout_s: float) -> None:
        """Returns when all have ended; ends those that have not within the time."""
        self._stopping.set()
        end_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        for process in self._processes:
            if process.running is not None and process.running.poll() is None:
                log.error("a reading process does not end and is killed", extra=_named(process))
                process.running.kill()
        for thread in self._threads:
            thread.join(_GRACE_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _tell(self, process: _Process, order: Order) -> None:
        channel = process.channel
        if channel is not None:
            channel.send(order)

    def _keep(self, process: _Process) -> None:
        pause_s = _PAUSE_S
        while not self._stopping.is_set():
            begun_s, code = time.monotonic(), None
            try:
                code = self._live(process)
            except Exception as error:
                # Whatever it was, as no descriptors for a while: it is tried again, and this thread lives.
                process.failure = f"{type(error).__name__}: {error}"
                if process.channel is not None:
                    process.channel.close()
                if process.running is not None and process.running.poll() is None:
                    process.running.kill()
                    code = process.running.wait()
            with self._changed:
                process.before = process.figures.ended()
                process.now = CallFigures()
                process.answered = process.asked
                was_ready, process.is_ready = process.is_ready, False
                process.failure = process.failure or f"it ended with exit status {code}"
                self._changed.notify_all()
            if self._stopping.is_set():
                return
            log.error(
                "a reading process has ended, and is started again",
                extra={**_named(process), "exit_status": code, "why": process.failure},
            )
            if not was_ready or time.monotonic() - begun_s < _LONGEST_PAUSE_S:
                self._stopping.wait(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                pause_s = _PAUSE_S

    def _live(self, process: _Process) -> int | None:
        """One life of a process, from its start to its end; its exit status."""
        ours, theirs = socket.socketpair()
        try:
            running = _started(theirs)
        except OSError as error:
            ours.close()
            process.failure = f"it cannot be started: {error}"
            return None
        finally:
            theirs.close()
        process.running, process.channel = running, Channel(ours)
        process.starts += 1
        self._tell(
            process,
            {
                "do": "serve",
                "settings": self._settings,
                "port": self._port,
                "writer": self.writer,
                "own": self.address(process.name),
            },
        )
        if self._stopping.is_set():
            # `stop` may have come before there was anybody to tell.
            self._tell(process, {"do": "stop"})
        for line in process.channel.lines():
            self._heard(process, msgspec.json.decode(line, type=Said))
        process.channel.close()
        return running.wait()

    def _heard(self, process: _Process, said: Said) -> None:
        if said.refused is not None and self._audit is not None:
            self._audit.write(**said.refused)
        with self._changed:
            if said.figures is not None:
                process.now = said.figures
                process.answered += 1
            if said.ready:
                process.is_ready, process.failure = True, ""
            process.failure = said.failed or process.failure
            self._changed.notify_all()


def _started(theirs: socket.socket) -> subprocess.Popen[bytes]:
    paths = [*_ROOTS, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        # -P: a file called numpy.py in the current folder is not ours.
        [
            sys.executable, "-P", "-m", "vecdb_server.readers.process",
            f"--socket={theirs.fileno()}",
        ],
        pass_fds=(theirs.fileno(),),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
    )  # fmt: skip


def _named(process: _Process) -> dict[str, Any]:
    return {"reader": process.name}
