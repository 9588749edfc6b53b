"""The address space that large calls leave to small ones, where the process has a limit of it (`ulimit -v`, RLIMIT_AS).

Where a large piece of memory cannot be had, whoever asks for it is told, and the call ends with an error of ours. Where a small one
cannot, the libraries beneath cannot go on: gRPC and C++ end the process, OpenBLAS reads memory that it has not got, and Python 3.11
goes round in a handler of exceptions for as long as there is none, with its lock held. So a call says what it may take before it
takes anything, and is refused where that would touch what is kept free. Without a limit nothing is counted.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

from vecdb import memory
from vecdb.errors import LimitExceeded, ResourceExhausted
from vecdb.index.door import warm_blas

from .admission import retry_after_ms

_COPIES = 3
"""What reading a message takes of its size: as it came, in one piece, and parsed; an answer likewise. As much is kept free as one
of the largest size takes, since nobody knows how large a request is before it is here."""
_READING_BYTES = 24 << 20
"""What a write is promised until its request is here: our clients send messages of 8 MiB."""
_SMALL_BYTES = 1 << 20
"""What takes no more is small: it is asked only whether `_LEAST_BYTES` are left."""
_LEAST_BYTES = 8 << 20
_WAIT_S = 0.25
"""How long a call waits for others to give back what they were promised: a small request is read in less than 1 ms."""
_BATCH = 6
_RECORD_BYTES = 500
"""What a write takes for each byte of its message and each of its records: 0.5 to 6 times its bytes in all were measured."""
_ANSWER_BYTES = 160
_INCLUDED_BYTES = 12 << 10
"""What an answer takes for each record, and for each included part of it, whose size nobody knows before it is read."""
_MANY_QUERIES = 20
_SEARCH_BYTES = 48 << 20
"""What searching many queries at once takes for distances, beside its answers."""
_LONG_BYTES = 32 << 20
"""What a check, a build, a compaction, a backup or a filter may take here; builds ask for their own."""
_LONG = frozenset(
    ("Check", "BuildIndex", "Compact", "BackupDatabase", "VerifyBackups", "RestoreBackup", "PruneBackups", "ListBackups")
)  # fmt: skip
_UNCOUNTED: AbstractContextManager[None] = nullcontext()
_ARENA_MAX = -8
"""M_ARENA_MAX of malloc.h."""
_ARENAS = 2


class Headroom:
    """What calls under way may take. Any thread; 2 us a call without a limit, some 30 with one."""

    def __init__(self, max_message_bytes: int = 64 << 20) -> None:
        self._told = threading.Condition()
        self._promised = 0
        self.refused = 0
        """Calls refused so far."""
        self.configure(max_message_bytes)

    def configure(self, max_message_bytes: int) -> None:
        """Keeps room for messages of this size from now on."""
        self.kept_bytes = _COPIES * max_message_bytes

    def reading(self, *, large: bool) -> AbstractContextManager[None]:
        """While a request is read, whose size nobody knows yet; `large` where it may well be one. ResourceExhausted."""
        left = memory.address_space_left()
        if left is None:
            return _UNCOUNTED
        needed = min(_READING_BYTES, self.kept_bytes) if large else 0
        return self._promise(needed, "reading its request", left)

    def serving(self, method: str, request: Any) -> AbstractContextManager[None]:
        """While a request that was read is served. ResourceExhausted: nothing was done yet."""
        left = memory.address_space_left()
        if left is None:
            return _UNCOUNTED
        return self._promise(self._needed(method, request), "serving it", left)

    def _promise(self, needed: int, what: str, left: int) -> AbstractContextManager[None]:
        if needed > _SMALL_BYTES:
            return self._large(needed, what)
        if left < _LEAST_BYTES:
            raise self._refusal(what, needed, left, 0)
        return _UNCOUNTED

    @contextmanager
    def _large(self, needed: int, what: str) -> Iterator[None]:
        with self._told:
            if not self._told.wait_for(
                lambda: self._fits(needed), _WAIT_S if self._promised else 0.0
            ):
                others = self._promised
                raise self._refusal(what, needed, memory.address_space_left() or 0, others)
            self._promised += needed
        try:
            yield
        finally:
            with self._told:
                self._promised -= needed
                self._told.notify_all()

    def _fits(self, needed: int) -> bool:
        left = memory.address_space_left()
        return left is None or needed <= left - self._promised - self.kept_bytes

    def _refusal(self, what: str, needed: int, left: int, others: int) -> ResourceExhausted:
        self.refused += 1
        # What others were promised comes back; where nobody has anything, coming again helps only once the limit was lifted.
        kind = ResourceExhausted if others else LimitExceeded
        beside = f", {others:,} are promised to calls under way" if others else ""
        kept = self.kept_bytes if needed > _SMALL_BYTES else _LEAST_BYTES
        return kind(
            f"not enough memory for this call: {what} may take {max(needed, _SMALL_BYTES):,} bytes of address space, the limit of "
            f"the server's process (ulimit -v) leaves {left:,}, and {kept:,} are kept free{beside}. Nothing was done; ask for "
            "less at once, lift the limit, or lower max_message_bytes",
            needed_bytes=needed,
            left_bytes=left,
            kept_bytes=kept,
            **({"retry_after_ms": retry_after_ms(0.5)} if others else {}),
        )

    def _needed(self, method: str, request: Any) -> int:
        """An upper bound, where there can be one, of what serving a request takes."""
        if method == "QueryStream":
            return sum(self._queried(one.query) for one in request.queries)
        if method == "Query":
            return self._queried(request)
        if method in ("Get", "Scan"):
            asked = len(request.ids) or request.limit if method == "Get" else request.batch_size
            return self._answered(asked or 1_000, request) + _of_filter(request)
        if method in _LONG:
            return _LONG_BYTES
        if hasattr(request, "records"):
            return _BATCH * int(request.ByteSize()) + _RECORD_BYTES * len(request.records.ids)
        return _BATCH * int(request.ByteSize()) + _of_filter(request)

    def _queried(self, query: Any) -> int:
        asked = max(1, query.vectors.count) + len(query.ids)
        needed = 4 * int(query.ByteSize()) + self._answered(asked * max(10, query.k), query)
        return needed + (_SEARCH_BYTES if asked >= _MANY_QUERIES else 0)

    def _answered(self, records: int, request: Any) -> int:
        included = min(_INCLUDED_BYTES * records * len(request.include), self.kept_bytes)
        return records * _ANSWER_BYTES + included


def _of_filter(request: Any) -> int:
    return _LONG_BYTES if getattr(request, "filter", "") else 0


OF_PROCESS = Headroom()
"""The limit is the process's, so this is too."""


def prepare(max_message_bytes: int) -> None:
    """Keeps free what `Headroom` says, in the engine too. Where the process has a limit, has the C library share its heaps among
    threads, each of which reserves 64 MiB of address space otherwise, and OpenBLAS take its buffers now. Some ms."""
    OF_PROCESS.configure(max_message_bytes)
    memory.keep_free(OF_PROCESS.kept_bytes)
    if memory.address_space_left() is None:
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_ARENA_MAX, _ARENAS)
    with suppress(MemoryError):  # A batch that needs them is refused then.
        warm_blas()
