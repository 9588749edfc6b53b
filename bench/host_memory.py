"""What fresh memory costs on this machine, and how a run is kept from paying for it.

A virtual machine may get its memory page by page from its host, when it is first touched, and give free
pages back after seconds. Then whatever fills memory becomes slower once the free pages of the last minutes
are used up, a database and a plain file alike: on one machine 1 MiB of fresh memory took 0.7 ms before and
3 ms after. Memory that holds cached files stays with the guest, and the kernel takes it back for new pages
at no such cost, as on a machine that has been at work for a while.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TOUCHED_BYTES = 16 << 20
_READ_BYTES = 1 << 24
_PAGE_BYTES = mmap.PAGESIZE


def fresh_ms_a_mib() -> float:
    """Milliseconds for the first touch of 1 MiB of anonymous memory, of 16 MiB touched."""
    with mmap.mmap(-1, _TOUCHED_BYTES) as memory:
        begun_s = time.perf_counter()
        for at in range(0, _TOUCHED_BYTES, _PAGE_BYTES):
            memory[at] = 1
        taken_s = time.perf_counter() - begun_s
    return 1e3 * taken_s / (_TOUCHED_BYTES >> 20)


class Cached:
    """A file of holes, as long as the machine's memory: it takes no disk, and its pages are cached."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        with path.open("wb") as file:
            file.truncate(size_bytes)

    def read(self) -> None:
        """Has all memory that is free hold pages of the file; half a minute at first, then seconds."""
        buffer = bytearray(_READ_BYTES)
        with self._path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


@contextmanager
def taken(folder: Path, size_bytes: int | None = None) -> Iterator[Cached]:
    """A `Cached` of `size_bytes`, by default the size of the memory, which goes when the body ends."""
    if size_bytes is None:
        size_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    path = folder / "holes"
    try:
        yield Cached(path, size_bytes)
    finally:
        path.unlink(missing_ok=True)
