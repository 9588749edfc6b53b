"""Reading and writing files past the system's page cache, where it lets us (O_DIRECT).

A backup that goes through the cache pushes out what queries read, costs a core the copies, and makes commits
of the database wait until what was written before them is on the disk.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_DIRECT = getattr(os, "O_DIRECT", 0)
_SECTOR_BYTES = 4_096
"""Direct writes have whole ones; no disk has larger."""


def write(descriptor: int, parts: Sequence[Any], sync: Callable[[], None]) -> None:
    """Writes buffers one behind the other from where the file stands on. The caller syncs at the end.

    Directly from buffers that are aligned to a page, up to the first that is no multiple of a sector. What goes
    through the cache is followed by `sync()` after each buffer: a commit of the database would wait until all
    that is there is on the disk.
    """
    direct = _go_past_cache(descriptor, True)
    for part in parts:
        view = memoryview(part).cast("B")
        while view.nbytes:
            some = view
            if direct:
                some = view[: view.nbytes - view.nbytes % _SECTOR_BYTES]
                if not some.nbytes:
                    direct = _go_past_cache(descriptor, False)
                    continue
            try:
                written = os.write(descriptor, some)
            except OSError as error:
                if not direct or error.errno != errno.EINVAL:
                    raise
                # The file system does not, or a write that was cut short has left us between two sectors.
                direct = _go_past_cache(descriptor, False)
                continue
            view = view[written:]
        if not direct:
            sync()


def read(descriptor: int, memory: memoryview) -> Iterator[memoryview]:
    """What a file holds, from the disk and not from the cache as far as the system lets us, piece by piece.
    Each is in `memory`, which is aligned to a page, and gone when the next comes."""
    direct = _go_past_cache(descriptor, True)
    if not direct:
        _forget(descriptor)
    while True:
        try:
            size = os.readv(descriptor, [memory])
        except OSError as error:
            if not direct or error.errno != errno.EINVAL:
                raise
            direct = _go_past_cache(descriptor, False)
            _forget(descriptor)
            continue
        if not size:
            return
        yield memory[:size]


def _forget(descriptor: int) -> None:
    """Has the system drop what it has of a file in memory, as far as it likes."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _go_past_cache(descriptor: int, wanted: bool) -> bool:
    """Whether reads and writes of an open file go past the cache from now on."""
    if not _DIRECT:
        return False
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | _DIRECT if wanted else flags & ~_DIRECT)
    except OSError:
        return False  # a file system that cannot, such as tmpfs for long
    return wanted
