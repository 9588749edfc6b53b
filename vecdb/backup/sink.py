"""Files of a backup on their way to the target: filled here, written, hashed and read back beside."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ..errors import BackupDamaged
from .chunk import MAGIC
from .manifest import File
from .target import Target

FILE_BYTES = 32 << 20
"""Where a file ends: large enough for the fsync of each to cost little, small enough to hold a few."""
_MOST_WAITING = 3


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
        """Files are numbered from `number` + 1. `done(bytes)` is called in the thread that adds, after each file, with all bytes so far."""
        self._target = target
        self._backup = backup
        self._verify = verify
        self._limit_bytes_s = limit_bytes_s
        self._done = done
        self._began_s = time.monotonic()
        self._parts: list[Any] = []
        self._filled = 0
        self._first = 0
        self._number = number
        self._sent = self._written = 0
        self._files: list[File] = []
        self._waiting: deque[Future[File]] = deque()
        # Two, so that one is written while the other waits for the disk.
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="vecdb-backup")

    def add(self, group: list[Any], first: int, end: int) -> None:
        """Puts a group behind those before; of rows [first, end), or both 0 for history."""
        if not self._parts:
            self._parts, self._filled, self._first = [MAGIC], len(MAGIC), first
        self._parts += group
        self._filled += sum(memoryview(part).nbytes for part in group)
        if self._filled >= FILE_BYTES:
            self._send(end)

    def take(self, end: int) -> list[File]:
        """Ends the file, waits for all, and gives those since the last call in their order."""
        if self._parts:
            self._send(end)
        while self._waiting:
            self._settle()
        files, self._files = self._files, []
        return files

    def close(self) -> None:
        """Waits for what is being written, whatever becomes of it."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _send(self, end: int) -> None:
        self._number += 1
        name, parts, first = f"{self._number:06d}.chunk", self._parts, self._first
        self._sent += self._filled
        self._parts, self._filled = [], 0
        self._waiting.append(self._pool.submit(self._write, name, parts, first, end))
        while len(self._waiting) > _MOST_WAITING:
            self._settle()
        if self._limit_bytes_s:
            wait_s = self._sent / self._limit_bytes_s - (time.monotonic() - self._began_s)
            time.sleep(max(0.0, wait_s))

    def _settle(self) -> None:
        file = self._waiting.popleft().result()
        self._files.append(file)
        self._written += file.bytes
        self._done(self._written)

    def _write(self, name: str, parts: list[Any], first: int, end: int) -> File:
        digest, size = hashlib.sha256(), 0
        for part in parts:
            view = memoryview(part).cast("B")
            digest.update(view)
            size += view.nbytes
        path = f"{self._backup}/{name}"
        self._target.write(path, parts)
        file = File(name, size, digest.hexdigest(), first, end)
        if self._verify:
            parts.clear()
            read_back(self._target, self._backup, file, fresh=True)
        return file


def read_back(target: Target, backup: str, file: File, *, fresh: bool = False) -> bytes:
    """The bytes of a file, which are those that its manifest names; else BackupDamaged."""
    data = target.read(f"{backup}/{file.name}", file.bytes, fresh=fresh)
    if len(data) != file.bytes or hashlib.sha256(data).hexdigest() != file.sha256:
        raise BackupDamaged(
            f"{backup}/{file.name} in {target.name} has {len(data):,} bytes, not the {file.bytes:,} with "
            f"SHA-256 {file.sha256[:16]}… that were written; take a new full backup",
            backup=backup,
            file=file.name,
        )
    return data
