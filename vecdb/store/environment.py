"""One LMDB environment: opening, short transactions, growth of the map, errors in our own words."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from .. import disk
from ..errors import Closed, Corrupted, Internal, StorageFull
from ..layout import COMPACTING_PREFIX, DATA_FILE
from . import sync_point, vacuum
from .faults import MapFull, in_our_words, must_have_address_space
from .lazy_sync import LazySync
from .opening import MAX_READERS, open_tables

Result = TypeVar("Result")

_PATIENCE_S = 0.05
_COMMITS_A_READER_CHECK = 256
_SPARE_BYTES = 16 << 20
"""What a copy may take more than its original, which is small: pages of its own bookkeeping."""


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
        later_tables: tuple[str, ...] = (),
        optional_tables: tuple[str, ...] = (),
        sync_interval_s: float | None = None,
    ) -> None:
        """`later_tables` are those of `tables` that a file of an older format may lack, `optional_tables`
        those that one of this format may; `make_optional_tables` adds them.

        With `sync_interval_s` commits do not wait for the disk, see `LazySync`.
        """
        self.folder = folder
        self.map_limit_bytes = map_limit_bytes
        self._names = tables
        self._later_names = later_tables
        self._optional_names = optional_tables
        self.read_only = read_only
        self.on_move: Callable[[], None] = lambda: None
        """Called when the map has moved or another file is in its place, before anyone reads it."""
        self.sequence_of: Callable[[Any], int] = lambda _: 0
        """Which commit of rows a transaction shows."""
        self._map_initial_bytes = map_initial_bytes
        self._pid = os.getpid()
        self._gate = threading.Condition()
        self._open_transactions = 0
        self._mine = threading.local()
        self._keep_out = False
        self._closed = False
        self._commits = 0
        self._env: Any = None
        self._lazy: LazySync | None = None
        self._sync_interval_s = None if read_only else sync_interval_s
        self._tables: dict[str, Any] = {}
        self._file_number = 0
        self._data_file = str(folder / DATA_FILE)
        if not create and not (folder / DATA_FILE).is_file():
            raise Corrupted(f"{folder / DATA_FILE} is missing; restore it from a backup")
        if read_only:
            self._open_newest()
            return
        sync_point.recover(folder)
        whole = vacuum.whole_copy(folder)
        self._env, self._tables = self._open_in(whole or folder, create=create)
        try:
            if whole is not None:
                vacuum.move_in(folder)
            vacuum.sweep(folder)
            self._sync_lazily()
        except BaseException:
            self._env.close()
            raise

    def _sync_lazily(self) -> None:
        """Begins to watch over the file that is open, if commits do not wait for the disk."""
        if self._sync_interval_s is not None:
            self._lazy = LazySync(
                self.folder,
                self._sync_interval_s,
                lambda: self._env.begin(),
                lambda seen: self.sequence_of(seen),
            )

    def _open_newest(self) -> None:
        """Opens the file that stands in the folder when it is open, not one replaced meanwhile."""
        while True:
            sync_point.refuse_unsafe(self.folder)
            number = os.stat(self._data_file).st_ino
            try:
                env, tables = self._open_in(self.folder, create=False)
            except lmdb.MapResizedError:
                continue  # another process has made the file larger since it was measured
            if number == os.stat(self._data_file).st_ino:
                self._env, self._tables, self._file_number = env, tables, number
                return
            env.close()

    def _open_in(self, folder: Path, *, create: bool) -> tuple[Any, dict[str, Any]]:
        return open_tables(
            folder,
            self._names,
            may_lack=(*self._later_names, *self._optional_names),
            create=create,
            read_only=self.read_only,
            map_bytes=min(self._map_initial_bytes, self.map_limit_bytes),
            sync=self._sync_interval_s is None,
        )

    def table(self, name: str) -> Any:
        """Handle of a table; None if the file is of a format that lacks it."""
        return self._tables.get(name)

    @property
    def lacks_tables(self) -> bool:
        """Whether the file is of an older format, as far as this process has seen."""
        return any(name not in self._tables for name in self._later_names)

    def make_tables(self, transaction: Any) -> None:
        """Adds the tables that an older format lacks; part of a `write`."""
        for name in self._later_names:
            self._tables[name] = self._env.open_db(name.encode(), txn=transaction)

    def make_optional_tables(self) -> None:
        """Adds the optional tables that the file lacks, in a commit of its own. Once the format is known to
        be ours: a file of another one must not be changed."""
        missing = [name for name in self._optional_names if name not in self._tables]

        def work(transaction: Any) -> None:
            for name in missing:
                self._tables[name] = self._env.open_db(name.encode(), txn=transaction)

        if missing:
            self.write(work, "tables")

    @contextmanager
    def read(self) -> Iterator[Any]:
        """A read transaction whose values are buffers into the map, valid until it ends."""
        with in_our_words(self.folder):
            transaction = self._begin()
            try:
                with transaction:
                    yield transaction
            finally:
                self._leave()

    def hold(self) -> None:
        """Keeps the map where it is until `let_go`, which must follow from the same thread, without a
        transaction: pages may be reused meanwhile. A tenth of what a transaction costs."""
        self._enter()

    def let_go(self) -> None:
        self._leave()

    def _begin(self) -> Any:
        while True:
            if self.read_only and not getattr(self._mine, "depth", 0):
                self._follow_file()
            self._enter()
            try:
                return self._opened().begin(buffers=True)
            except lmdb.MapResizedError:
                # Another process has made the file larger than our map.
                self._leave()
                self._resize(0)
            except BaseException:
                self._leave()
                raise

    def write(self, work: Callable[[Any], Result], what: str) -> Result:
        """Runs `work(transaction)` and commits, durably unless syncs are lazy; if it raises, nothing is written.

        `what` it is for names the failpoints of the commit, see `vecdb.disk`.

        `work` runs again from the start when the map had to grow, so it must keep its results to
        itself until it returns. Raises StorageFull when the disk or the map limit is reached.
        """
        self._commits += 1
        while True:
            if self._lazy is not None:
                self._lazy.before_write()
            self._enter()
            try:
                if self._commits % _COMMITS_A_READER_CHECK == 0:
                    self._env.reader_check()
                with in_our_words(self.folder):
                    return self._try_write(work, what)
            except MapFull:
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
            if self._lazy is not None:
                # Moving the map ends all transactions, that on the synced commit too.
                self._lazy.settle()
            self._resize(min(2 * size, self.map_limit_bytes))

    def _try_write(self, work: Callable[[Any], Result], what: str) -> Result:
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
        with nullcontext() if self._lazy is None else self._lazy.committing():
            disk.commit(transaction, self.folder, what)
        return result

    def flush(self) -> None:
        """Returns when every commit so far is on the disk; ReadOnly when one cannot be brought there."""
        if self._lazy is not None:
            self._lazy.flush()

    @property
    def synced(self) -> int | None:
        """The newest commit of rows that is surely on the disk; None when all are."""
        return None if self._lazy is None else self._lazy.synced

    def copy_to(self, descriptor: int) -> None:
        """Writes the file as it is now, free pages too, to an open file."""
        self._enter()
        try:
            self._opened().copyfd(descriptor)
        finally:
            self._leave()

    def map_bytes(self) -> tuple[int, int]:
        """(bytes of the map in use, bytes it may grow to)."""
        return self.map_use()[0], self.map_limit_bytes

    def map_use(self) -> tuple[int, int, int, int]:
        """(bytes of the map in use, its size, reader slots taken: one a thread that has read, slots there are)."""
        self._enter()
        try:
            info, page = self._opened().info(), self._opened().stat()["psize"]
        finally:
            self._leave()
        used = (info["last_pgno"] + 1) * page
        return used, info["map_size"], info["num_readers"], info["max_readers"]

    def last_transaction(self) -> int:
        """Number of the last commit of any process; about 2 us."""
        self._enter()
        try:
            return int(self._opened().info()["last_txnid"])
        finally:
            self._leave()

    def vacuum(self) -> tuple[int, int]:
        """Rewrites the file without free pages; (bytes of the map in use before, after).

        The caller keeps writers out; readers go on, and wait only while the files are exchanged. Takes
        room for a second file meanwhile. When it fails before the copy is whole, StorageFull among the
        reasons, the old file stays and nothing has changed; later the environment is closed, and is
        right when it is opened again.
        """
        before = self.map_bytes()[0]
        if self._lazy is not None:
            # What the file of sync points says is of the old file, and must not be found beside the new one.
            self._lazy.settle()
        aside = self.folder / (COMPACTING_PREFIX + secrets.token_hex(8))
        try:
            with self.read() as transaction:
                size = int(self._env.info()["map_size"])
                vacuum.copy_tables(
                    transaction, self._tables, aside, size + _SPARE_BYTES, MAX_READERS
                )
            env, tables = self._open_in(aside, create=False)
        except BaseException:
            disk.remove_tree(aside, "vacuum")
            raise
        old = self._env
        try:
            vacuum.declare_whole(self.folder, aside)

            def swap() -> None:
                vacuum.move_in(self.folder)
                self._env, self._tables = env, tables
                self.on_move()

            self._alone(swap)
            if self._lazy is not None:
                self._lazy.close()
                self._sync_lazily()
        except BaseException as error:
            self.close()
            env.close()
            raise Internal(
                f"the compacted file of {self.folder} could not be put in its place ({error}); nothing "
                "is lost, open the database again"
            ) from error
        old.close()
        return before, self.map_bytes()[0]

    def reopen(self) -> None:
        """Opens the file again as it is now; of a read-only environment."""
        seen = self._env

        def again() -> None:
            if self._env is seen:
                # LMDB must not map one file twice in a process, so the old one is closed first.
                self._env = None
                if seen is not None:
                    seen.close()
                self._open_newest()

        self._alone(again)

    def _follow_file(self) -> None:
        """Opens the file that the writer has put in place of ours, if it has; 2 us."""
        try:
            if self._env is None or os.stat(self._data_file).st_ino != self._file_number:
                self.reopen()
        except FileNotFoundError:
            return  # The collection was dropped; what is open can still be read.

    def _opened(self) -> Any:
        if self._env is None:
            raise Internal(f"{self.folder} could not be opened again; repeat the call")
        return self._env

    def close(self) -> None:
        """Waits for running transactions, syncs, and closes. Later calls raise Closed.

        ReadOnly, when it is closed, if the last commits could not be synced.
        """
        with self._gate:
            if self._closed:
                return
            self._closed = True
            self._gate.wait_for(lambda: self._open_transactions == 0)
        try:
            if self._lazy is not None:
                self._lazy.close()
        finally:
            if self._env is not None:
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
        def grow() -> None:
            environment = self._opened()
            more = map_size_bytes - int(environment.info()["map_size"])
            if more > 0:
                must_have_address_space(more, self.folder)
            try:
                environment.set_mapsize(map_size_bytes)
            except lmdb.Error:
                # LMDB has let go of the old map and has no new one: a call would end the process.
                self._closed = True
                environment.close()
                raise
            self.on_move()

        with in_our_words(self.folder):
            self._alone(grow)

    def _alone(self, work: Callable[[], None]) -> None:
        """Runs `work` in a moment without transactions; not at all once the environment is closed.

        While one lasts long, others go on in between.
        """
        while True:
            with self._gate:
                self._keep_out = True
                try:
                    if self._gate.wait_for(lambda: not self._open_transactions, _PATIENCE_S):
                        if not self._closed:
                            work()
                        return
                finally:
                    self._keep_out = False
                    self._gate.notify_all()
            time.sleep(_PATIENCE_S)
