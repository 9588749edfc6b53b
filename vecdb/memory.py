"""Memory that comes from the system in whole pages, and goes back there as soon as nobody holds it.

What the allocator hands out instead may be memory that was used before: then spare room at the end of a buffer takes
as much as the rest of it, though nobody has touched it yet.
"""

from __future__ import annotations

import mmap

_HUGE_BYTES = 4 << 20
"""Numpy asks for huge pages for arrays from this size on: they are filled and read faster."""


def anonymous(size_bytes: int) -> mmap.mmap:
    """Zeroed memory of the process's own, at least one byte; what is not touched takes no space. MemoryError."""
    try:
        memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{size_bytes:,} bytes: {error}") from error
    if size_bytes >= _HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
