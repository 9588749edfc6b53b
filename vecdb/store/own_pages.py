"""LMDB's lists in pages of their own.

An environment that may write asks for 2 MiB of zeros and for 1 MiB more, and uses some KiB of them unless a
transaction is large. Where glibc gives it pages of its own, untouched ones take nothing. But once a process has
freed arrays of some MB, as every process with vectors does, glibc serves whatever is smaller from its heap, where
the zeros are written and the rest is used already: 2 to 3 MB for each open collection.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of what `mallopt` sets (malloc.h)."""
_LISTS_BYTES = (2 << 20, 1 << 20)
_LEAST_BYTES = 512 << 10
"""What is smaller than the lists, and larger than all else that LMDB asks for when it opens a file."""
_ROUNDED_BYTES = 2_048
"""Pieces with pages of their own are rounded up to a page; others get at most some bytes more than was asked for."""
_MOST_PLUGS = 256
_HEAP_BYTES = 8 << 20
"""Afterwards larger pieces get pages of their own, and free memory at the end of a heap goes back from twice as much on.
glibc's own thresholds follow the sizes of what is freed, up to 32 MiB; loads and queries are as quick with these."""


@contextmanager
def own_pages() -> Iterator[None]:
    """Within it, large pieces of memory that this thread asks for get pages of their own.

    From then on glibc's thresholds stay what is set here. Does nothing without glibc, and where the environment
    has set them (`MALLOC_MMAP_THRESHOLD_`, `GLIBC_TUNABLES`).
    """
    if _glibc is None:
        yield
        return
    with _lock:
        _glibc.mallopt(_MMAP_THRESHOLD, _LEAST_BYTES)
        plugs = _plugged(_glibc)
        try:
            yield
        finally:
            for plug in plugs:
                _glibc.free(plug)
            _glibc.mallopt(_MMAP_THRESHOLD, _HEAP_BYTES)
            _glibc.mallopt(_TRIM_THRESHOLD, 2 * _HEAP_BYTES)


def _plugged(glibc: ctypes.CDLL) -> list[int]:
    """Takes the holes of the heap that the lists would fit into, which are used before the system is asked."""
    plugs: list[int] = []
    for size in _LISTS_BYTES:
        for _ in range(_MOST_PLUGS):
            plug = glibc.malloc(size)
            if not plug:
                break
            plugs.append(plug)
            if glibc.malloc_usable_size(plug) >= size + _ROUNDED_BYTES:
                break
    return plugs


def _find_glibc() -> ctypes.CDLL | None:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "MALLOC_MMAP_THRESHOLD_" in os.environ or "malloc" in tunables:
        return None
    try:
        found = ctypes.CDLL(None)
        found.mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
        found.malloc.argtypes, found.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
        found.malloc_usable_size.argtypes = (ctypes.c_void_p,)
        found.malloc_usable_size.restype = ctypes.c_size_t
        found.free.argtypes, found.free.restype = (ctypes.c_void_p,), None
    except (OSError, AttributeError):
        return None
    return found


_glibc = _find_glibc()
_lock = threading.Lock()
