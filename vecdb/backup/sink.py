"""Files of a backup on their way to the target: filled here, written, hashed and read back beside."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from .blocks import Blocks, Filling
from .chunk import MAGIC
from .digests import blake3_of
from .files import File

if TYPE_CHECKING:
    from .target import Target

FILE_BYTES = 16 << 20
"""Where a file ends: large enough for the fsync of each to cost little, small enough to hold a few, and that
the disk need not wait long for the first."""
_MOST_WAITING = 2
_LOOK_S = 0.5
"""So often a backup that rests says how far it is, which is when it can be ended."""


class Sink:
    """One thread adds. Memory: up to `_MOST_WAITING` files and the one that is being filled."""

    def __init__(
        self,
        target: Target,
        backup: str,
        *,
        number: int,
        verify: bool,
        limit_bytes_s: float | None,
        done: Callable[[int], None],
    ) -> None:
        """Files are numbered from `number` + 1. `done(bytes)` is called in the thread that adds, after each file,
        with all bytes so far."""
        self._target = target
        self._backup = backup
        self._verify = verify
        self._limit_bytes_s = limit_bytes_s
        self._done = done
        self._began_s = time.monotonic()
        self._blocks = Blocks()
        self._filling = Filling(self._blocks)
        self._first = 0
        self._number = number
        self._sent = self._written = 0
        self._files: list[File] = []
        self._waiting: deque[Future[File]] = deque()
        # Three, so that one is written and one read back while another waits for the disk.
        self._pool = ThreadPoolExecutor(3, thread_name_prefix="vecdb-backup")

    def add(self, group: list[Any], first: int, end: int) -> None:
        """Puts a group behind those before; of rows [first, end), or both 0 for history."""
        if not self._filling.bytes:
            self._first = first
            self._filling.add(MAGIC)
        for part in group:
            self._filling.add(part)
        if self._filling.bytes >= FILE_BYTES:
            self._send(end)

    def end_file(self, end: int) -> None:
        """What is added next comes into another file; this one holds rows up to `end`, 0 for history."""
        if self._filling.bytes:
            self._send(end)

    def take(self) -> list[File]:
        """Ends the file, which holds history if it holds anything, waits for all, and gives those since the last call in
        their order."""
        self.end_file(0)
        while self._waiting:
            self._settle()
        files, self._files = self._files, []
        return files

    def close(self) -> None:
        """Waits for what is being written, whatever becomes of it."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _send(self, end: int) -> None:
        self._number += 1
        name, filling = f"{self._number:06d}.chunk", self._filling
        self._sent += filling.bytes
        self._filling = Filling(self._blocks)
        self._waiting.append(self._pool.submit(self._write, name, filling, self._first, end))
        while len(self._waiting) > _MOST_WAITING:
            self._settle()
        if self._limit_bytes_s:
            self._rest(self._sent / self._limit_bytes_s)

    def _rest(self, end_s: float) -> None:
        """Waits until so many seconds after the start. A limit that is low enough takes years: whoever gives up
        meanwhile is heard."""
        while (left_s := end_s - (time.monotonic() - self._began_s)) > 0:
            time.sleep(min(left_s, _LOOK_S))
            if left_s > _LOOK_S:
                self._done(self._written)

    def _settle(self) -> None:
        file = self._waiting.popleft().result()
        self._files.append(file)
        self._written += file.bytes
        self._done(self._written)

    def _write(self, name: str, filling: Filling, first: int, end: int) -> File:
        path, parts, size = f"{self._backup}/{name}", filling.parts(), filling.bytes
        self._target.write(path, parts)
        # What is read back is hashed, not memory: the manifest speaks of what is on the disk.
        digest = self._target.read_back(path, parts) if self._verify else blake3_of(parts)
        parts.clear()
        filling.free()
        return File(name, size, first, end, blake3=digest)
