"""An index file behind an open map: whether all of it is still there.

A page of a map that its file does not reach any more ends the process (SIGBUS) when it is read. An index file never
changes, so one that is shorter than when it was mapped was cut off by somebody.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

_MOST_DESCRIPTORS = 256
"""Files of the process that are watched by a descriptor, 0.26 us a look. Others are looked at by name, 1.8 us, so that
thousands of indexes leave descriptors to files that cannot do without."""

_count_lock = threading.Lock()
_count = 0


class MappedFile:
    """A file that is about to be mapped. Any thread may ask."""

    def __init__(self, path: Path) -> None:
        """OSError when it cannot be opened."""
        global _count
        self._name = str(path)
        self._descriptor = -1
        descriptor = os.open(path, os.O_RDONLY)
        self._size = os.lseek(descriptor, 0, os.SEEK_END)
        with _count_lock:
            if _count < _MOST_DESCRIPTORS:
                _count += 1
                self._descriptor = descriptor
        if self._descriptor < 0:
            os.close(descriptor)

    @property
    def is_whole(self) -> bool:
        """Whether it is as long as it was."""
        if self._descriptor >= 0:
            return os.lseek(self._descriptor, 0, os.SEEK_END) >= self._size
        try:
            return os.stat(self._name).st_size >= self._size
        except OSError:
            return True  # It was removed: the map keeps what it had.

    def __del__(self) -> None:
        global _count
        if getattr(self, "_descriptor", -1) >= 0:
            os.close(self._descriptor)
            # Without the lock: the collector may run this in a thread that holds it. What is off by a race is a bound.
            _count -= 1
