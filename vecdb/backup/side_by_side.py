"""Copying a large collection by several processes at once, where there are cores to spare.

One process takes 5 us a row of 384 float32 with metadata and text, 4 of them in the interpreter: 360 MB/s of a disk's
580, where two wrote 680. But there, on two cores, p99 of queries beside two was 5.0 ms, beside one 2.0 and without
1.2, though they are nice. So half of the cores are left to those who ask, and the others taken only while nobody does:
rows are handed out in shares of some tens of milliseconds, and a process that stands in such a place gets none as long
as queries come, or the engine is at work otherwise. On two cores, 1,000,000 such rows: 331 MB/s of a disk's 449 with all
read back, 223 of 444 by one process.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue

import msgspec

from ..layout import ID_BLOCK_ROWS
from ..search_lane import LANE
from .child import Came, Copier, Order, Where
from .copying import Copied, Job, Share
from .files import File
from .sink import FILE_BYTES

LARGE_BYTES = 128 << 20
"""What is smaller is copied before another process would have begun, 0.4 s with its imports, and helped."""
_MOST = 4
_MOST_SHARE_BYTES = 64 << 20
_NUMBERS = 100_000
"""Of files, between one process and the next: 1.5 TB."""
_LOOK_S, _QUIET_S, _PAUSE_S = 0.1, 0.5, 0.02
"""For how long nobody must have asked before another process is started, and before it is given rows; how often that
is looked at."""
_AT_WORK = 0.2
"""Of a core: what the engine takes beyond that is work for somebody."""


class Copiers:
    """Processes that copy, started when they are needed and kept until `close`. One thread at a time."""

    def __init__(self) -> None:
        self._copiers: list[Copier] = []

    def copy(self, order: Order, where: Where, job: Job, came: Came, *, alone: bool) -> Copied:
        """The whole of a job. `came` is called in this thread, with rows and bytes of all processes together.
        `alone`: no other process answers queries, so this one knows whether any come.

        Raises what `Copier.copy` raises first anywhere, and what `came` raises; all processes are ended then.
        """
        steady, spare = _places() if alone else (_places()[0], 0)
        row_bytes = sum(field.row_bytes for field in where.shape.fields)
        large = (job.next_row - job.first_row) * row_bytes >= LARGE_BYTES
        # One process is as fast as a limit that somebody sets, or nearly.
        if not large or order.limit_bytes_s is not None:
            steady, spare = 1, 0
        while len(self._copiers) < steady + spare:
            self._copiers.append(Copier())
        if steady + spare == 1:
            return self._copiers[0].copy(order, where, job, [(job.first_row, job.next_row)], came)
        beside = _Beside(job, row_bytes, steady, self._copiers[: steady + spare])
        try:
            files = beside.copy(order, where, came)
        except BaseException:
            self.close()
            raise
        # Behind all rows: what is purged by another process meanwhile is told by what history then says.
        size = sum(file.bytes for file in files)
        history = self._copiers[0].copy(
            msgspec.structs.replace(order, number=order.number + len(files)),
            where,
            job,
            (),
            lambda rows, more: came(job.next_row - job.first_row, size + more),
        )
        return msgspec.structs.replace(history, rows=files)

    def close(self) -> None:
        """Ends the processes, whatever they do."""
        for copier in self._copiers:
            copier.close()


def _places() -> tuple[int, int]:
    """How many processes leave half of the cores to others, at least one, and how many more there may be while
    nobody asks."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    steady = max(1, min(_MOST, (cores or 1) // 2))
    return steady, min(_MOST, cores or 1) - steady


class _Beside:
    """The rows of one job on their way through several processes."""

    def __init__(self, job: Job, row_bytes: int, steady: int, copiers: list[Copier]) -> None:
        self._job = job
        self._row_bytes = float(row_bytes)
        self._steady = steady
        self._copiers = copiers
        self._lock = threading.Lock()
        self._next = job.first_row
        self._stopped = threading.Event()
        self._quiet = Quiet()
        self._told: SimpleQueue[tuple[int, int, int, list[Copied] | BaseException | None]] = (
            SimpleQueue()
        )

    def copy(self, order: Order, where: Where, came: Came) -> list[File]:
        """The files of all rows, in their order."""
        count = len(self._copiers)
        threads = [
            threading.Thread(target=self._work, args=(n, order, where), name="vecdb-backup-share")
            for n in range(count)
        ]
        done: list[Copied] = []
        rows, sizes = [0] * count, [0] * count
        started, ended = [], 0
        try:
            for thread in threads:
                thread.start()
                started.append(thread)
            while ended < count:
                n, rows_there, size, end = self._told.get()
                if isinstance(end, BaseException):
                    raise end
                if end is not None:
                    done += end
                    ended += 1
                    continue
                rows[n], sizes[n] = rows_there, size
                self._row_bytes = sum(sizes) / max(1, sum(rows))
                came(sum(rows), sum(sizes))
        except BaseException:
            self._stopped.set()
            for copier in self._copiers:
                copier.stop()
            raise
        finally:
            for thread in started:
                thread.join()
        return sorted((file for one in done for file in one.rows), key=lambda file: file.first)

    def _work(self, n: int, order: Order, where: Where) -> None:
        """What one process is given to do, in a thread that waits for it."""
        end: list[Copied] | BaseException = []
        try:
            if n < self._steady or self._wait(_LOOK_S):
                of_this = msgspec.structs.replace(order, number=order.number + n * _NUMBERS)
                done = self._copiers[n].copy(
                    of_this, where, self._job, self._shares(n),
                    lambda rows, size: self._told.put((n, rows, size, None)), history=False,
                )  # fmt: skip
                end = [done]
        except BaseException as error:
            end = error
        self._told.put((n, 0, 0, end))

    def _shares(self, n: int) -> Iterator[Share]:
        """Rows for this process, until none are left."""
        while n < self._steady or self._wait(_QUIET_S):
            share = self._take(_MOST_SHARE_BYTES if n < self._steady else FILE_BYTES)
            if share is None:
                return
            yield share

    def _take(self, most_bytes: int) -> Share | None:
        """The next rows, about so many bytes of them; fewer near the end, so that all end at once."""
        with self._lock:
            begin, stop = self._next, self._job.next_row
            left = (stop - begin) * self._row_bytes
            size = max(FILE_BYTES, min(most_bytes, left / (2 * len(self._copiers))))
            end = begin + int(size / self._row_bytes)
            # Ids are stored in blocks, which are read as a whole.
            end = min(stop, max(end // ID_BLOCK_ROWS, begin // ID_BLOCK_ROWS + 1) * ID_BLOCK_ROWS)
            self._next = end
            return (begin, end) if begin < end else None

    def _wait(self, quiet_s: float) -> bool:
        """Whether nobody has asked for so long; False when there is nothing left to do."""
        while not self._stopped.is_set():
            if self._next >= self._job.next_row:
                return False
            if self._quiet.lasts_s() >= quiet_s:
                return True
            self._stopped.wait(_PAUSE_S)
        return False


class Quiet:
    """Since when no query has come, and this process had little to do. Any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen = LANE.batches.read().total
        self._since_s = self._looked_s = time.monotonic()
        self._cpu_s = time.process_time()

    def lasts_s(self) -> float:
        """Seconds of quiet, as far as it was looked at."""
        with self._lock:
            now_s, seen = time.monotonic(), LANE.batches.read().total
            asked = seen != self._seen or not LANE.idle
            passed_s = now_s - self._looked_s
            if passed_s >= _PAUSE_S:
                cpu_s = time.process_time()
                asked = asked or cpu_s - self._cpu_s > _AT_WORK * passed_s
                self._looked_s, self._cpu_s = now_s, cpu_s
            if asked:
                self._seen, self._since_s = seen, now_s
            return now_s - self._since_s
