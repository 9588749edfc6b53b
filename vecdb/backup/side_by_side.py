"""Copying a large collection by several processes at once, a share of its rows each, where there are cores to spare.

One process takes 5 us a row of 384 float32 with metadata and text, 4 of them in the interpreter: 360 MB/s of a disk's
580, where two wrote 680. But there, on two cores, p99 of queries beside two was 5.0 ms, beside one 2.0 and without
1.2, though they are nice. So half of the cores are left alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from queue import SimpleQueue

import msgspec

from ..layout import ID_BLOCK_ROWS
from .child import Came, Copier, Order, Where
from .copying import Copied, Job

SHARE_BYTES = 64 << 20
"""What is copied in less time than another process takes to begin, 0.4 s with its imports, is not shared."""
_MOST = 4
_NUMBERS = 100_000
"""Of files, between one share and the next: 1.5 TB."""


class Copiers:
    """Processes that copy, started when they are needed and kept until `close`. One thread at a time."""

    def __init__(self) -> None:
        self._copiers: list[Copier] = []

    def copy(self, order: Order, where: Where, job: Job, came: Came) -> Copied:
        """The whole of a job. `came` is called in this thread, with rows and bytes of all shares together.

        Raises what `Copier.copy` raises first anywhere, and what `came` raises; all processes are ended then.
        """
        row_bytes = sum(field.row_bytes for field in where.shape.fields)
        shares = list(_shares(job, row_bytes))
        while len(self._copiers) < len(shares):
            self._copiers.append(Copier())
        if len(shares) < 2:
            return self._copiers[0].copy(order, where, job, came)
        try:
            files = [
                file for done in self._beside(order, where, shares, came) for file in done.rows
            ]
        except BaseException:
            self.close()
            raise
        # Behind all rows: what is purged by another process meanwhile is told by what history then says.
        size = sum(file.bytes for file in files)
        last = msgspec.structs.replace(job, begin=job.next_row)
        history = self._copiers[0].copy(
            msgspec.structs.replace(order, number=order.number + len(files)),
            where,
            last,
            lambda row, more: came(row, size + more),
        )
        return msgspec.structs.replace(history, rows=files)

    def close(self) -> None:
        """Ends the processes, whatever they do."""
        for copier in self._copiers:
            copier.close()

    def _beside(self, order: Order, where: Where, shares: list[Job], came: Came) -> list[Copied]:
        """Each share by a process of its own."""
        told: SimpleQueue[tuple[int, int, int, Copied | BaseException | None]] = SimpleQueue()

        def work(n: int, share: Job) -> None:
            limit = order.limit_bytes_s
            of_share = msgspec.structs.replace(
                order,
                number=order.number + n * _NUMBERS,
                limit_bytes_s=None if limit is None else limit / len(shares),
            )
            end: Copied | BaseException
            try:
                end = self._copiers[n].copy(
                    of_share, where, share, lambda row, size: told.put((n, row, size, None))
                )
            except BaseException as error:
                end = error
            told.put((n, 0, 0, end))

        threads = [
            threading.Thread(target=work, args=one, name="vecdb-backup-share")
            for one in enumerate(shares)
        ]
        done: dict[int, Copied] = {}
        rows, sizes = [share.begin for share in shares], [0] * len(shares)
        started = []
        try:
            for thread in threads:
                thread.start()
                started.append(thread)
            while len(done) < len(shares):
                n, row, size, end = told.get()
                if isinstance(end, BaseException):
                    raise end
                if end is not None:
                    done[n] = end
                    continue
                rows[n], sizes[n] = row, size
                copied = sum(row - share.begin for row, share in zip(rows, shares, strict=True))
                came(shares[0].begin + copied, sum(sizes))
        except BaseException:
            for copier in self._copiers:
                copier.stop()
            raise
        finally:
            for thread in started:
                thread.join()
        return [done[n] for n in range(len(shares))]


def _shares(job: Job, row_bytes: int) -> Iterator[Job]:
    """The job, or its rows in as many shares as processes are worth it, without its history."""
    rows = job.next_row - job.begin
    count = min(_most(), rows * row_bytes // SHARE_BYTES, rows // ID_BLOCK_ROWS)
    if count < 2:
        yield job
        return
    # Ids are stored in blocks, which are read as a whole.
    edges = [
        (job.begin + rows * n // count) // ID_BLOCK_ROWS * ID_BLOCK_ROWS for n in range(1, count)
    ]
    for begin, end in zip([job.begin, *edges], [*edges, job.next_row], strict=True):
        yield msgspec.structs.replace(job, begin=begin, end=end, history=False)


def _most() -> int:
    """How many processes leave half of the cores to others, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(_MOST, (cores or 1) // 2))
