"""The LMDB file behind an open map: whether all of it is still there, and whether it is still in its folder.

A page of a map that the file does not reach any more ends the process (SIGBUS) when it is read. LMDB never
makes a file shorter, so one that is shorter than it was before was cut off by somebody, and must not be read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import Corrupted
from ..layout import LMDB_LOCK_FILE
from .page_faults import file_faults


class WatchedFile:
    """A file that LMDB has open, by a descriptor of our own. Any thread may ask."""

    def __init__(self, path: Path, page_bytes: int) -> None:
        """OSError when it cannot be opened. `page_bytes` are LMDB's."""
        self._path, self._name = path, str(path)
        self._page_bytes = page_bytes
        self._descriptor = os.open(path, os.O_RDONLY)
        self._identity = os.fstat(self._descriptor)
        self._watch_locks()
        self._least = self._size()
        self._cut_off = ""
        """What was said when the file was found to be shorter."""
        self._seen = -1
        """The newest transaction of another process that was looked at."""

    def _watch_locks(self) -> None:
        """LMDB has mapped its lock file too, and looks into it whenever a transaction begins or ends.

        Our descriptor of it must be closed after LMDB's environment, never before: that gives up the locks that the
        process holds on the file, LMDB's among them (POSIX `fcntl`).
        """
        try:
            self._locks = os.open(self._path.with_name(LMDB_LOCK_FILE), os.O_RDWR)
        except OSError:
            self._locks, self._locks_size = -1, 0  # Nobody may write there: LMDB reads without one.
            return
        self._locks_size = os.lseek(self._locks, 0, os.SEEK_END)

    def keep_locks(self) -> None:
        """Makes a lock file that was cut off as long as it was, so that LMDB can close: what it has lost is who reads."""
        if self._locks >= 0 and os.lseek(self._locks, 0, os.SEEK_END) < self._locks_size:
            os.ftruncate(self._locks, self._locks_size)

    def _locks_are_whole(self) -> bool:
        return self._locks < 0 or os.lseek(self._locks, 0, os.SEEK_END) >= self._locks_size

    def _size(self) -> int:
        # A quarter of a microsecond, a third of what `fstat` takes.
        return os.lseek(self._descriptor, 0, os.SEEK_END)

    def must_be_whole(self) -> None:
        """Corrupted when the file, or the lock file beside it, is shorter than it was at an earlier call, and at each
        later call too: what LMDB would write behind the end may make it longer again, with a hole in it. 0.6 us."""
        # Read first: another thread may note a larger size meanwhile.
        least = self._least
        size = self._size()
        if size < least and not self._cut_off:
            self._cut_off = (
                f"{self._path} was cut off while it was open: it had {least} bytes, and {size} are left. This "
                "collection is neither read nor written any more; when no process has the database open, run "
                "`vecdb check --repair`, or restore a backup"
            )
        if not self._cut_off and not self._locks_are_whole():
            # Who reads is not known any more, so a writer might take pages that are being read.
            self._cut_off = (
                f"{self._path.with_name(LMDB_LOCK_FILE)} was cut off while it was open; no record is lost by that. Open "
                "the database again"
            )
            self.keep_locks()
        if self._cut_off:
            raise Corrupted(self._cut_off)
        if size > least:
            self._least = size

    def note_size(self) -> None:
        """After a commit: so long the file has to be from now on."""
        self._least = max(self._least, self._size())

    def must_hold(self, environment: Any, transaction: Any) -> None:
        """The same for what a process beside us has written: Corrupted when pages of the commit that
        `transaction` shows are behind the end of the file. 0.2 us, 3 us at a commit not seen before."""
        shown = transaction.id()
        if shown == self._seen:
            return
        needed = (environment.info()["last_pgno"] + 1) * self._page_bytes
        # A page at the end that its own transaction has given up again is never written.
        if self._size() < needed:
            faults = file_faults(self._path, shown)
            if faults:
                raise Corrupted(
                    f"{self._path} is damaged: {faults[0]}. It was cut off while it was open, or replaced; run "
                    "`vecdb check --repair` when no process has the database open, or restore a backup",
                    faults=faults[:100],
                )
        self._seen = shown

    def fault(self) -> str:
        """What has become of the file in its folder, empty while it is there; 3 us."""
        try:
            there = os.stat(self._name)
        except (FileNotFoundError, NotADirectoryError):
            return f"{self._path} was removed while it was open"
        if not os.path.samestat(there, os.fstat(self._descriptor)):
            return f"{self._path} was replaced by another file while it was open"
        return ""

    def must_be_in_place(self) -> None:
        """Corrupted when a commit would go into a file that is not in its folder any more, and be gone with it."""
        fault = self.fault()
        if fault:
            raise Corrupted(
                f"{fault}: nothing was written. What was open can still be read: take a backup or export it, then "
                "open the database again"
            )

    def watch_again(self) -> None:
        """After `close`, before LMDB opens the file: Corrupted when it is another one, or shorter than it was."""
        descriptor = os.open(self._path, os.O_RDONLY)
        if not os.path.samestat(os.fstat(descriptor), self._identity):
            os.close(descriptor)
            raise Corrupted(
                f"{self._path} was replaced by another file while it was open; open the database again"
            )
        self._descriptor = descriptor
        self._locks = -1  # LMDB opens its lock file anew, whatever became of it.
        try:
            self.must_be_whole()
        except BaseException:
            self.close()
            raise

    def opened_again(self) -> None:
        """After `watch_again`, when LMDB has the files open."""
        self._watch_locks()

    def close(self) -> None:
        """When LMDB has closed the files."""
        os.close(self._descriptor)
        if self._locks >= 0:
            os.close(self._locks)
            self._locks = -1
