"""Memory that comes from the system in whole pages, and goes back there as soon as nobody holds it; and memory that
begins where a cache line does.

What the allocator hands out instead may be memory that was used before: then spare room at the end of a buffer takes
as much as the rest of it, though nobody has touched it yet.
"""

from __future__ import annotations

import mmap
import resource
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

_HUGE_BYTES = 4 << 20
"""Numpy asks for huge pages for arrays from this size on: they are filled and read faster."""


_LARGE_BYTES = 1 << 20
"""What takes less may take it of what is kept free."""
_kept_bytes = 0


def address_space_left() -> int | None:
    """Bytes that a limit of this process's address space (`ulimit -v`) leaves; None where there is none, or nobody can tell.
    0.3 us without a limit, some 8 with one."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            return max(0, limit - int(file.read(64).split()[0]) * mmap.PAGESIZE)
    except OSError:
        return None


def keep_free(size_bytes: int) -> None:
    """From now on large pieces leave so much of a limited address space to small ones, which cannot be done without: whoever does
    not get one of those ends the process. Of the whole process; 0, as at first: nothing."""
    global _kept_bytes
    _kept_bytes = size_bytes


def must_leave_room(size_bytes: int) -> None:
    """MemoryError where so much more would touch what `keep_free` keeps; what is below 1 MiB never does."""
    if _kept_bytes and size_bytes >= _LARGE_BYTES:
        left = address_space_left()
        if left is not None and left - size_bytes < _kept_bytes:
            raise MemoryError(
                f"{size_bytes:,} bytes, of {left:,} that are left, {_kept_bytes:,} of them for small pieces"
            )


def anonymous(size_bytes: int) -> mmap.mmap:
    """Zeroed memory of the process's own, at least one byte; what is not touched takes no space. MemoryError."""
    must_leave_room(size_bytes)
    try:
        memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{size_bytes:,} bytes: {error}") from error
    if size_bytes >= _HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def must_be_mappable(size_bytes: int) -> None:
    """MemoryError where a limit of the process's address space (`ulimit -v`) leaves less; nothing is taken. Asked
    before what cannot be told that there is none: a thread of FAISS or of OpenMP then ends the process."""
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        anonymous(size_bytes).close()


_LINE = 64
"""Bytes of a cache line, and of the widest numbers that processors compute with."""


def aligned(rows: int, width: int) -> NDArray[np.float32]:
    """A float32 array (rows, width), undefined content, that begins where a cache line does; 1 us. MemoryError.

    Numpy begins at any multiple of 16 bytes, and mostly each read of 64 bytes then touches two cache lines. To compare a
    query with 3,368 vectors of 384 took FAISS 92 us there, and 65 where all begin at a line (the query alone: 80).
    """
    spare = _LINE // 4
    memory = np.empty(rows * width + spare, np.float32)
    start = -memory.__array_interface__["data"][0] % _LINE // 4
    return memory[start : start + rows * width].reshape(rows, width)


class _Rows(threading.local):
    def __init__(self) -> None:
        self.by_width: dict[int, list[NDArray[np.float32]]] = {}


_rows = _Rows()
_ROWS_AT_ONCE = 16
_KEPT_WIDTHS = 8


def aligned_row(width: int) -> NDArray[np.float32]:
    """`aligned(1, width)` for what lives as long as a query: 0.2 us, since 16 are made at once. A row that is kept keeps
    the 16. Any thread."""
    rows = _rows.by_width.get(width)
    if not rows:
        if len(_rows.by_width) >= _KEPT_WIDTHS:
            _rows.by_width.clear()
        step = -(-width // (_LINE // 4)) * (_LINE // 4)
        made = aligned(_ROWS_AT_ONCE, step)
        rows = _rows.by_width[width] = [made[i : i + 1, :width] for i in range(_ROWS_AT_ONCE)]
    return rows.pop()


def words(n: int) -> NDArray[np.int64]:
    """n zeros: memory that nobody has touched takes no space, so spare room is nearly free."""
    return np.zeros(n, np.int64)


_Held = TypeVar("_Held", NDArray[Any], mmap.mmap)
_AT_ONCE = 1 << 16
"""So many values are moved in a fraction of a millisecond."""
_LAST = 16
"""The copy is made while the last sixteenth is filled: sooner, more collections would rest with half a copy in memory;
later, each commit would have more to copy (with four columns 0.7 MB for a batch of 1,000 rows)."""


class Growing(Generic[_Held]):
    """Makes the longer copy of memory that is filled from the front, part by part before it is needed.

    To move all at once keeps a commit waiting: half a million rows, four columns and their ids took 60 ms, most of it
    the first touch of new memory.
    """

    def __init__(self, make: Callable[[int], _Held]) -> None:
        """`make(n)` gives zeroed memory for `n` values."""
        self._make: Callable[[int], _Held] = make
        self._longer: _Held | None = None
        self._done = 0

    def reserve(self, held: _Held, used: int, n: int, room: int, *, ahead: bool = True) -> _Held:
        """`held` where `n` values fit in, else a copy with room for `room`. MemoryError.

        The first `used` values, of which `held` may lack the last, never change; what is behind them is not copied.
        `ahead`: whether more are to come. One thread at a time.
        """
        size = len(held)
        start = size - size // _LAST
        if n <= size and (n <= start or size < _AT_ONCE or not ahead):
            return held
        longer = self._longer
        if longer is None or len(longer) < n:
            try:
                longer = self._make(max(n, room))
            except MemoryError:
                if n <= size:
                    return held
                raise
            self._done = 0
        done, goal = self._done, min(used, size if n > size else _LAST * (n - start))
        if done < goal:
            longer[done:goal] = held[done:goal]
        if n > size:
            self._longer, self._done = None, 0
            return longer
        self._longer, self._done = longer, max(done, goal)
        return held

    @property
    def room(self) -> int:
        """How many values fit into what is being made."""
        return 0 if self._longer is None else len(self._longer)
