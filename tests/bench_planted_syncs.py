"""A planted system that makes calls of each kind in known numbers, also in another thread and in another process."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bench_planted_writes

_ASYNC = 1


class System(bench_planted_writes.System):
    """An insert calls fsync twice, once in a thread; an upsert fdatasync in a process that it starts, and msync, once
    with and once without waiting; a delete nothing. One file is open with O_DSYNC."""

    def __init__(self, source: Any, folder: Path, *, create: bool) -> None:
        super().__init__(source, folder, create=create)
        self._log = os.open(folder / "log", os.O_RDWR | os.O_CREAT)
        os.truncate(self._log, mmap.PAGESIZE)
        self._map = mmap.mmap(self._log, mmap.PAGESIZE)
        self._other = os.open(folder / "synchronous", os.O_RDWR | os.O_CREAT | os.O_DSYNC)

    def insert(self, start: int, part: Any) -> None:
        super().insert(start, part)
        os.fsync(self._log)
        thread = threading.Thread(target=os.fsync, args=(self._log,))
        thread.start()
        thread.join()

    def upsert(self, numbers: Sequence[int], part: Any) -> None:
        super().upsert(numbers, part)
        word = f"import os; os.fdatasync({self._log})"
        subprocess.run([sys.executable, "-S", "-c", word], pass_fds=[self._log], check=True)
        self._map.flush()
        place = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        ctypes.CDLL(None).msync(ctypes.c_void_p(place), ctypes.c_size_t(mmap.PAGESIZE), _ASYNC)

    def close(self) -> None:
        os.close(self._other)
