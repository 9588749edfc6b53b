"""One LMDB environment: opening, short transactions, growth of the map, errors in our own words."""

from __future__ import annotations

import errno
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from ..errors import (
    Closed,
    Corrupted,
    FormatMismatch,
    Internal,
    LimitExceeded,
    StorageFull,
    VecdbError,
)
from ..layout import DATA_FILE

Result = TypeVar("Result")

_MAX_READERS = 1_024
_LITTLE_ROOM_BYTES = 16 << 20
_PATIENCE_S = 0.05
_COMMITS_A_READER_CHECK = 256


class Environment:
    """An LMDB environment with named tables.

    Any thread may read; the caller sees to it that one thread at a time writes. Transactions must be
    short: an open one keeps LMDB from reusing pages, and the map cannot grow while one is open.
    """

    def __init__(
        self,
        folder: Path,
        tables: tuple[str, ...],
        *,
        create: bool,
        read_only: bool,
        map_initial_bytes: int,
        map_limit_bytes: int,
    ) -> None:
        self.folder = folder
        self.map_limit_bytes = map_limit_bytes
        self._pid = os.getpid()
        self._gate = threading.Condition()
        self._open_transactions = 0
        self._mine = threading.local()
        self._keep_out = False
        self._closed = False
        self._commits = 0
        data_file = folder / DATA_FILE
        if not create and not data_file.is_file():
            raise Corrupted(f"{data_file} is missing; restore it from a backup")
        # LMDB takes the larger of the file's own size and this one.
        size = min(map_initial_bytes, map_limit_bytes)
        if data_file.is_file():
            size = max(size, data_file.stat().st_size)
        with _in_our_words(folder):
            self._env = lmdb.open(
                str(folder),
                map_size=size,
                max_dbs=len(tables),
                max_readers=_MAX_READERS,
                readonly=read_only,
                create=create,
                meminit=False,
                # The kernel's read-ahead doubles the memory of random reads of single records.
                readahead=False,
            )
            # A reader that was killed keeps its slot, and LMDB the pages it saw, until someone looks.
            self._env.reader_check()
            try:
                self._tables = {t: self._env.open_db(t.encode(), create=create) for t in tables}
            except lmdb.NotFoundError:
                self._env.close()
                raise FormatMismatch(
                    f"{data_file} is not a file of this version of vecdb: a table is missing"
                ) from None
            except BaseException:
                self._env.close()
                raise

    def table(self, name: str) -> Any:
        return self._tables[name]

    @contextmanager
    def read(self) -> Iterator[Any]:
        """A read transaction whose values are buffers into the map, valid until it ends."""
        with _in_our_words(self.folder):
            transaction = self._begin()
            try:
                with transaction:
                    yield transaction
            finally:
                self._leave()

    def _begin(self) -> Any:
        while True:
            self._enter()
            try:
                return self._env.begin(buffers=True)
            except lmdb.MapResizedError:
                # Another process has made the file larger than our map.
                self._leave()
                self._resize(0)
            except BaseException:
                self._leave()
                raise

    def write(self, work: Callable[[Any], Result]) -> Result:
        """Runs `work(transaction)` and commits durably; if it raises, nothing is written.

        `work` runs again from the start when the map had to grow, so it must keep its results to
        itself until it returns. Raises StorageFull when the disk or the map limit is reached.
        """
        self._commits += 1
        if self._commits % _COMMITS_A_READER_CHECK == 0:
            self._env.reader_check()
        while True:
            self._enter()
            try:
                with _in_our_words(self.folder):
                    return self._try_write(work)
            except _MapFull:
                pass
            finally:
                self._leave()
            size = self._env.info()["map_size"]
            if size >= self.map_limit_bytes:
                raise StorageFull(
                    f"the LMDB map of {self.folder} is full at {size} bytes, its limit; nothing was "
                    "written. Raise the setting map_limit_bytes",
                    limit_bytes=size,
                )
            self._resize(min(2 * size, self.map_limit_bytes))

    def _try_write(self, work: Callable[[Any], Result]) -> Result:
        transaction = self._env.begin(write=True)
        try:
            result = work(transaction)
        except BaseException:
            # py-lmdb waits with an abort for a moment in which no thread is inside any call of this
            # environment. Beside busy readers that moment took a minute to come.
            with self._gate:
                self._keep_out = True
                self._gate.wait_for(lambda: self._open_transactions <= 1, _PATIENCE_S)
            try:
                transaction.abort()
            finally:
                with self._gate:
                    self._keep_out = False
                    self._gate.notify_all()
            raise
        transaction.commit()
        return result

    def map_bytes(self) -> tuple[int, int]:
        """(bytes of the map in use, bytes it may grow to)."""
        self._enter()
        try:
            info, stat = self._env.info(), self._env.stat()
        finally:
            self._leave()
        return (info["last_pgno"] + 1) * stat["psize"], self.map_limit_bytes

    def last_transaction(self) -> int:
        """Number of the last commit of any process; about 2 us."""
        self._enter()
        try:
            return int(self._env.info()["last_txnid"])
        finally:
            self._leave()

    def close(self) -> None:
        """Waits for running transactions, then closes. Later calls raise Closed."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
            self._gate.wait_for(lambda: self._open_transactions == 0)
            self._env.close()

    def _enter(self) -> None:
        depth = getattr(self._mine, "depth", 0)
        with self._gate:
            # A thread inside a transaction must not wait for those who wait for that transaction.
            if self._keep_out and not depth:
                self._gate.wait_for(lambda: not self._keep_out)
            if self._closed:
                raise Closed(f"{self.folder} is closed; open the database again")
            if os.getpid() != self._pid:
                raise Closed("the database was opened before a fork; open it again in this process")
            self._open_transactions += 1
        self._mine.depth = depth + 1

    def _leave(self) -> None:
        self._mine.depth -= 1
        with self._gate:
            self._open_transactions -= 1
            if self._keep_out or self._closed:
                self._gate.notify_all()

    def _resize(self, map_size_bytes: int) -> None:
        """Waits for a moment without transactions. While one lasts long, others go on in between."""
        while True:
            with self._gate:
                self._keep_out = True
                try:
                    if self._gate.wait_for(lambda: not self._open_transactions, _PATIENCE_S):
                        if not self._closed:
                            self._env.set_mapsize(map_size_bytes)
                        return
                finally:
                    self._keep_out = False
                    self._gate.notify_all()
            time.sleep(_PATIENCE_S)


class _MapFull(Exception):
    pass


@contextmanager
def _in_our_words(folder: Path) -> Iterator[None]:
    try:
        yield
    except (VecdbError, lmdb.MapResizedError, lmdb.NotFoundError):
        raise
    except lmdb.MapFullError:
        raise _MapFull from None
    except (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.PanicError) as error:
        raise Corrupted(f"{folder / DATA_FILE} is damaged ({error}); restore a backup") from error
    except (lmdb.VersionMismatchError, lmdb.InvalidError) as error:
        raise FormatMismatch(
            f"{folder / DATA_FILE} is not a file of this LMDB version ({error})"
        ) from error
    except lmdb.DiskError as error:
        raise _full_or_internal(folder, str(error)) from error
    except lmdb.Error as error:
        raise _full_or_internal(folder, str(error)) from error


def _full_or_internal(folder: Path, text: str) -> VecdbError:
    full = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), os.strerror(errno.EFBIG))
    if os.strerror(errno.EMFILE) in text or os.strerror(errno.ENFILE) in text:
        return LimitExceeded(
            f"too many files are open to open {folder}; raise the limit (ulimit -n): each collection "
            "takes two files and those of its index"
        )
    if os.strerror(errno.ENOMEM) in text:
        return LimitExceeded(
            f"not enough memory or address space to map {folder}; lift the limit (ulimit -v), or open "
            "with a smaller map_initial_bytes"
        )
    # LMDB reports a write that was cut short as EIO, whatever cut it.
    cut_short = os.strerror(errno.EIO) in text and _room_bytes(folder) < _LITTLE_ROOM_BYTES
    if cut_short or any(words in text for words in full):
        return StorageFull(f"no space left for {folder}; nothing was written. Free some and repeat")
    return Internal(f"LMDB refused: {text} ({folder})")


def _room_bytes(folder: Path) -> int:
    """How far the data file can still grow, by the disk and by the process's limit of file sizes."""
    disk = os.statvfs(folder)
    room = disk.f_bavail * disk.f_frsize
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY:
        room = min(room, limit - (folder / DATA_FILE).stat().st_size)
    return room
