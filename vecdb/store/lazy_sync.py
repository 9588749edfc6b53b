"""Durability `interval`: commits are synced by a thread, a bounded time after they were acknowledged.

What makes it safe is a reader. LMDB never writes to a page that a reader may still look at, so while a read
transaction stands on the last synced commit, that commit stays whole on the disk, whatever part of the later
ones has come there. Its meta page, which LMDB does overwrite, is kept in the file of `sync_point`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import disk
from ..errors import ReadOnly
from ..layout import DATA_FILE, SYNC_POINT_FILE
from . import sync_point
from .faults import in_our_words, no_thread
from .sync_point import SyncPoint

log = logging.getLogger("vecdb")

_PART = 0.5
"""When in the interval a sync begins: the rest is for the sync itself."""


class LazySync:
    """Syncs one LMDB file that is written without fsync.

    `begin()` gives a read transaction of it, `sequence_of(transaction)` the commit that this shows. One thread
    at a time writes, any thread may ask for a sync.
    """

    def __init__(
        self,
        folder: Path,
        interval_s: float,
        begin: Callable[[], Any],
        sequence_of: Callable[[Any], int],
    ) -> None:
        self._sequence = 0
        self._folder = folder
        self._interval_s = interval_s
        self._begin = begin
        self._sequence_of = sequence_of
        # Kept open: the kernel tells of a failed write to those who had the file open then, once.
        self._file = os.open(folder / DATA_FILE, os.O_RDONLY)
        self._points = -1
        self._is_there = False
        """Whether a file of sync points may lie in the folder: it does also where it could not be removed."""
        self._number = 0
        self._point: SyncPoint | None = None
        self._stand: Any = None
        """The read transaction that stands on the last synced commit; None while nothing is unsynced."""
        self._rounds = threading.Lock()
        self._committing = threading.Lock()
        self._state = threading.Condition()
        self._since: float | None = None
        """When the oldest commit was made that no sync has begun for."""
        self._under_way: float | None = None
        """The same of the sync that is running."""
        self._failed: BaseException | None = None
        self._ended = False
        self._thread: threading.Thread | None = None

    def before_write(self) -> None:
        """Waits while a commit is older than the interval and still not on the disk; ReadOnly after a sync
        has failed. The first call makes the sync point that later commits can be undone to."""
        with self._state:
            self._state.wait_for(lambda: self._failed is not None or not self._is_late())
        self._check()
        self._make_stand()

    def _make_stand(self) -> None:
        if self._stand is None:
            # Everything is on the disk yet: what fails here costs nothing, and may be tried again.
            with self._rounds, in_our_words(self._folder):
                self._start()
                if self._stand is None:
                    self._round()

    def _start(self) -> None:
        """Starts the thread: without it nobody would sync, and writers would wait for ever."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="vecdb-sync", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                raise no_thread(error) from error
            self._thread = thread

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Around LMDB's own commit, which the body does; when it returns the commit is under watch. Raises what
        `before_write` does where another thread has settled meanwhile, and no commit may be made then."""
        while True:
            # Whoever lets the file rest settles beside a write: what it commits must not be without a point to go back to.
            # LMDB has left all pages of the commit before untouched so far, whoever stood on it.
            self._make_stand()
            self._committing.acquire()
            if self._stand is not None:
                break
            self._committing.release()
        try:
            yield
        finally:
            # After an error too: the commit may have been made.
            with self._state:
                if self._since is None:
                    self._since = time.monotonic()
                self._state.notify_all()
            self._committing.release()

    def flush(self) -> None:
        """Returns when every commit so far is on the disk. ReadOnly when one cannot be brought there,
        now or ever since the database was opened."""
        with self._rounds:
            self._check()
            with self._committing:
                # One that readers see may not have been noted yet: it is when it lets go of this.
                unsynced = self._since is not None
            if unsynced:
                try:
                    self._round()
                except BaseException as error:
                    self._fail(error)
                    self._check()

    def settle(self) -> None:
        """`flush`, and nothing of the file depends on this object any more, until the next write."""
        while not self._settle():
            pass

    def _settle(self) -> bool:
        """False where a commit came between: it would have no point to go back to."""
        self.flush()
        with self._rounds, self._committing, in_our_words(self._folder):
            if self._since is not None:
                return False
            self._leave_stand()
            self._point = None
            if self._points >= 0:
                os.close(self._points)
                self._points = -1
            if self._is_there:
                sync_point.forget(self._folder)
                self._is_there = False
        return True

    def close(self) -> None:
        """`settle`, and the thread ends; raises what `settle` raises when all has been let go."""
        try:
            if self._stand is not None or self._is_there or self._since is not None:
                self.settle()
        finally:
            with self._state:
                self._ended = True
                self._state.notify_all()
            if self._thread is not None:
                self._thread.join()
            with self._rounds:
                self._leave_stand()
                for file in (self._file, self._points):
                    if file >= 0:
                        os.close(file)
                self._file = self._points = -1

    @property
    def synced(self) -> int | None:
        """The newest commit that is surely on the disk; None when all are."""
        return None if self.settled else self._sequence

    @property
    def has_unsynced(self) -> bool:
        """Whether there may be commits after the one that is kept whole, whose freed pages nothing can have yet."""
        return self._since is not None or self._under_way is not None

    @property
    def settled(self) -> bool:
        """Whether `settle` was called, and nothing written since."""
        return self._stand is None and self._since is None

    def _is_late(self) -> bool:
        oldest = self._since if self._under_way is None else self._under_way
        return oldest is not None and time.monotonic() - oldest > self._interval_s

    def _round(self) -> None:
        """Makes what is committed durable, then the point that says so; then moves the stand there."""
        with self._committing:
            stand = self._begin()
            with self._state:
                self._under_way, self._since = self._since, None
            try:
                meta = sync_point.read_meta(self._file, stand.id())
            except BaseException:
                stand.abort()
                raise
        try:
            disk.sync_data(self._file, self._folder / DATA_FILE, "lazy")
            if self._points < 0:
                sync_point.is_there(self._folder)  # Corrupted where something else has its name
                self._is_there = True
                self._points = sync_point.make(self._folder)
            self._number += 1
            boot = sync_point.boot_id()
            point = SyncPoint(self._number, False, boot, stand.id(), meta)
            sync_point.write_slot(self._points, self._folder, point)
            disk.sync_data(self._points, self._folder / SYNC_POINT_FILE, "point")
            self._sequence = self._sequence_of(stand)
        except BaseException:
            stand.abort()
            raise
        # The new one first: without any, all that there is would count as synced.
        before, self._stand, self._point = self._stand, stand, point
        if before is not None:
            before.abort()
        with self._state:
            self._under_way = None
            self._state.notify_all()

    def _run(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._ended or self._since is not None)
                if self._ended:
                    return
                assert self._since is not None
                due = self._since + _PART * self._interval_s
                self._state.wait_for(lambda: self._ended, max(0.0, due - time.monotonic()))
                if self._ended:
                    return
            try:
                self.flush()
            except ReadOnly:
                return  # The next write tells.

    def _leave_stand(self) -> None:
        if self._stand is not None:
            self._stand.abort()
            self._stand = None

    def _check(self) -> None:
        if self._failed is not None:
            raise ReadOnly(
                f"syncing {self._folder} failed ({self._failed}): commits after {self._sequence} are not on "
                "the disk, and nothing is written any more. Mend the disk, then open the database again, "
                "which goes back to that commit",
                synced_sequence=self._sequence,
            ) from self._failed

    def _fail(self, error: BaseException) -> None:
        # Never tried again: after a failure the kernel may call pages clean that it could not write.
        with self._state:
            self._failed = error
            self._under_way = None
            self._state.notify_all()
        log.critical(
            "%s: commits after %d could not be synced: %s", self._folder, self._sequence, error
        )
        if self._point is not None:
            number = self._number + 1
            mark = SyncPoint(
                number, True, self._point.boot, self._point.transaction, self._point.meta
            )
            try:
                sync_point.write_slot(self._points, self._folder, mark)
            except OSError as second:
                log.critical("%s: nor could that be noted: %s", self._folder, second)
