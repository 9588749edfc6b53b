"""The audit log: who changed what, one JSON object a line. No secrets, no contents, no ids of records.

    {"time": ..., "key": "k3v8…", "certificate": "", "peer": "10.0.0.7", "method": "Insert",
     "collection": "docs", "count": 100, "sequence": 41, "code": "OK", "reason": ""}

Calls that change something are written whatever came of them, and so is every call that was refused for want
of a key or of a right, up to some a second: a stranger must not be able to fill the disk.
"""

from __future__ import annotations

import datetime as dt
import errno
import itertools
import json
import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

log = logging.getLogger("vecdb.server")

REFUSALS_A_SECOND = 50
_COMPLAIN_EVERY_S = 60.0
_NEWLINE = ord("\n")
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT


class AuditLines(ABC):
    """What becomes lines of an audit log. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._second = 0
        self._refused = 0
        self._left_out = 0
        self._counting = threading.Lock()
        """Of what is left out; never held while a line is written."""

    @abstractmethod
    def _append(self, fields: dict[str, Any]) -> None:
        """Puts one line at the end; one thread at a time."""

    def write(self, **fields: Any) -> None:
        """Appends a line with the time of day. It is with the system when this returns."""
        with self._lock:
            self._append(fields)

    def write_refusal(self, **fields: Any) -> None:
        """As `write`, for what a stranger can cause at will: beyond 50 a second only a number is kept."""
        with self._lock:
            second = int(time.monotonic())
            if second != self._second:
                self._second, self._refused = second, 0
                self._tell_left_out()
            self._refused += 1
            if self._refused > REFUSALS_A_SECOND:
                self.leave_out()
                return
            self._append(fields)

    def leave_out(self) -> None:
        """Counts a refusal that gets no line; waits for no disk."""
        with self._counting:
            self._left_out += 1

    def _tell_left_out(self) -> None:
        """With the lock."""
        with self._counting:
            count, self._left_out = self._left_out, 0
        if count:
            self._append({"event": "refusals left out", "count": count})

    def close(self) -> None:
        """Tells of what was left out; later lines may be lost."""
        with self._lock:
            self._tell_left_out()


def _ends_a_line(path: Path) -> bool:
    """Whether the last byte of a file ends a line; so it is taken where that cannot be looked at."""
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"
    except OSError:
        return True


class AuditLog(AuditLines):
    """Appends to a file; begins a new one at `max_bytes` and keeps `files` of them. Any thread.

    `<file>` is the newest, `<file>.1` the one before. A line that cannot be written is lost: the call
    has happened by then; the server's log says so.
    """

    def __init__(self, path: Path, max_bytes: int, files: int) -> None:
        """Opens the file; OSError when that is not possible."""
        super().__init__()
        self._path = path
        self._max_bytes = max_bytes
        self._files = files
        self._complained_s = -_COMPLAIN_EVERY_S
        self._descriptor = os.open(path, _APPEND, 0o600)
        self._size = os.fstat(self._descriptor).st_size
        self._is_torn = self._size > 0 and not _ends_a_line(path)
        """Whether the file ends within a line, of which the disk took only a part, or a power cut left one."""

    def _append(self, fields: dict[str, Any]) -> None:
        now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, **fields}) + "\n"
        try:
            if self._size and self._size + len(line) > self._max_bytes:
                self._turn()
            data = ("\n" + line if self._is_torn else line).encode()
            written = os.write(self._descriptor, data)
            self._size += written
            if written:
                self._is_torn = data[written - 1] != _NEWLINE
            if written < len(data):
                raise OSError(errno.ENOSPC, "only a part of a line was written")
        except OSError as error:
            if time.monotonic() - self._complained_s > _COMPLAIN_EVERY_S:
                self._complained_s = time.monotonic()
                log.error("the audit log %s cannot be written: %s", self._path, error)

    def _turn(self) -> None:
        """Begins a new file and moves each older one on; the last one is gone.

        The new one is made first: without it nothing moves, and the old descriptor stays. One that was
        closed already might be that of another file by then.
        """
        names = [
            Path(f"{self._path}{end}")
            for end in (".new", "", *(f".{n}" for n in range(1, self._files)))
        ]
        fresh = os.open(names[0], _APPEND | os.O_TRUNC, 0o600)
        try:
            for newer, older in reversed(list(itertools.pairwise(names))):
                if newer.exists():
                    os.replace(newer, older)
        except BaseException:
            os.close(fresh)
            raise
        os.close(self._descriptor)
        self._descriptor, self._size, self._is_torn = fresh, 0, False

    def close(self) -> None:
        """Closes the file; later lines are lost, with a complaint."""
        super().close()
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1
