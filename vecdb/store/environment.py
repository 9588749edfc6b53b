"""One LMDB environment: short transactions, growth of the map, rewriting, errors in our own words."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, TypeVar

import lmdb

from .. import disk
from ..errors import StorageFull
from . import vacuum
from .faults import MapFull, in_our_words, must_have_address_space
from .open_file import OpenFile
from .opening import MAX_READERS
from .watched_file import WatchedFile

log = logging.getLogger("vecdb")

Result = TypeVar("Result")

_COMMITS_A_READER_CHECK = 256


class Environment(OpenFile):
    """An LMDB environment with named tables.

    Any thread may read; the caller sees to it that one thread at a time writes. Transactions must be
    short: an open one keeps LMDB from reusing pages, and the map cannot grow while one is open.
    """

    _commits = 0
    """Writes that were begun."""

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
        try:
            self._file.must_be_whole()
        except BaseException:
            self._leave()
            raise

    def let_go(self) -> None:
        self._leave()

    def _begin(self) -> Any:
        while True:
            if self.read_only and not self._gate.is_inside:
                self._follow_file()
            self._enter()
            try:
                return self._checked(self._opened().begin(buffers=True))
            except lmdb.MapResizedError:
                # Another process has made the file larger than our map.
                self._leave()
                self._resize(0)
            except BaseException:
                self._leave()
                raise

    def _checked(self, transaction: Any) -> Any:
        """The transaction; Corrupted when it shows a commit of another process that the file does not hold."""
        if self.read_only:
            try:
                self._file.must_hold(self._env, transaction)
            except BaseException:
                transaction.abort()
                raise
        return transaction

    @property
    def reserve_bytes(self) -> int:
        """The part of the map limit that is kept for what gives space back: a sixteenth, no less than 1 MiB or a quarter,
        no more than 1 GiB."""
        limit = self.map_limit_bytes
        return min(max(limit // 16, 1 << 20), limit // 4, 1 << 30)

    def write(self, work: Callable[[Any], Result], what: str, *, reserves: bool = False) -> Result:
        """Runs `work(transaction)` and commits, durably unless syncs are lazy; if it raises, nothing is written.

        `what` it is for names the failpoints of the commit, see `vecdb.disk`.

        `work` runs again from the start when the map had to grow, so it must keep its results to
        itself until it returns. Raises StorageFull when the disk or the map limit is reached, with `reserves` the
        limit without its reserve: for writes that take room, beside which those must fit that give it back. What fails after the
        commit is logged and not raised: the commit stands.
        """
        self._commits += 1
        limit = self.map_limit_bytes - (self.reserve_bytes if reserves else 0)
        while True:
            self._enter()
            try:
                self._opened()  # What is cut off is refused as that, and not as a sync that fails.
                if reserves and self._beyond(limit):
                    raise MapFull
                unsynced = False
                if self._lazy is not None:
                    self._lazy.before_write()
                    unsynced = self._lazy.has_unsynced
                if self._commits % _COMMITS_A_READER_CHECK == 0:
                    self._env.reader_check()
                with in_our_words(self.folder):
                    return self._try_write(work, what)
            except MapFull:
                size = int(self._env.info()["map_size"])
                smaller = self._beyond(limit) if reserves else 0
            finally:
                self._leave()
            if size >= limit and not smaller:
                if not unsynced:
                    raise self._full(limit, reserves)
                # What those commits freed may be written over from then on; if the file rests by now it is so already.
                self.flush()
                continue
            lazy = self._lazy
            if lazy is not None:
                # Moving the map ends all transactions, that on the synced commit too.
                lazy.settle()
            self._resize(smaller or min(2 * size, limit))

    def _beyond(self, limit: int) -> int:
        """How large the map has to be so that nothing takes more room than there is below the limit, or is taken already;
        0 where it is no larger. What gave space back may have made it so."""
        info = self._env.info()
        used = (
            (info["last_pgno"] + 1) * self._env.stat()["psize"] if info["map_size"] > limit else 0
        )
        least = max(limit, used)
        return least if info["map_size"] > least else 0

    def _full(self, limit: int, reserves: bool) -> StorageFull:
        kept = (
            f", and {self.reserve_bytes} more are kept for deletes and compaction"
            if reserves
            else ""
        )
        advice = "Delete records and compact, or raise" if reserves else "Raise"
        return StorageFull(
            f"the LMDB map of {self.folder} is full at {limit} bytes{kept}; nothing was written. {advice} the "
            f"setting map_limit_bytes, now {self.map_limit_bytes}",
            limit_bytes=self.map_limit_bytes,
        )

    def _try_write(self, work: Callable[[Any], Result], what: str) -> Result:
        self._file.must_be_in_place()
        transaction = self._env.begin(write=True)
        try:
            result = work(transaction)
            # The commit would make a file that was cut off as long as it was, with a hole in it.
            self._file.must_be_whole()
        except BaseException:
            # py-lmdb waits with an abort for a moment in which no thread is inside any call of this
            # environment. Beside busy readers that moment took a minute to come.
            with self._gate.quiet():
                transaction.abort()
            raise
        begun = stands = False
        try:
            with nullcontext() if self._lazy is None else self._lazy.committing():
                begun = True
                disk.commit(transaction, self.folder, what)
                stands = True
            self._file.note_size()
        except Exception:
            # Whoever was told that it failed would do it a second time.
            if not begun:
                with self._gate.quiet():
                    transaction.abort()
            if not stands:
                raise
            log.exception(
                "%s: a commit of %s stands, but what follows it failed", self.folder, what
            )
        return result

    def flush(self) -> None:
        """Returns when every commit so far is on the disk; ReadOnly when one cannot be brought there."""
        lazy = self._lazy
        if lazy is not None:
            lazy.flush()

    @property
    def synced(self) -> int | None:
        """The newest commit of rows that is surely on the disk; None when all are."""
        lazy = self._lazy
        return None if lazy is None else lazy.synced

    def copy_to(self, descriptor: int) -> None:
        """Writes the file as it is now, free pages too, to an open file."""
        self._enter()
        try:
            self._opened().copyfd(descriptor)
        finally:
            self._leave()

    def last_transaction(self) -> int:
        """Number of the last commit of any process; about 2 us."""
        self._enter()
        try:
            return int(self._opened().info()["last_txnid"])
        finally:
            self._leave()

    def moment(self) -> tuple[int, int]:
        """Another value after each commit of any process, also where it has put a new file in place; 8 us, a third of
        what a transaction costs."""
        if self.read_only and not self._gate.is_inside:
            self._follow_file()
        return self._file_number, self.last_transaction()

    def moment_of(self, transaction_id: int) -> tuple[int, int]:
        """The same at an open transaction, whose number this is."""
        return self._file_number, transaction_id

    def vacuum(self) -> tuple[int, int]:
        """Rewrites the file without free pages; (bytes of the map in use before, after).

        The caller keeps writers out; readers go on, and wait only while the files are exchanged. Takes
        room for a second file meanwhile. When it fails before the copy has been declared whole, StorageFull and
        ReadOnly among the reasons, the old file stays and nothing has changed. Later there is no way back: then
        all is closed, and opened again as after a crash, by this call, or else by the first for which that is possible.
        """
        # Nobody else sets it: writers are kept out.
        self._enter()
        self._may_rest = False
        self._leave()
        try:
            return self._vacuum()
        finally:
            self._may_rest = True

    def _vacuum(self) -> tuple[int, int]:
        before = self.map_bytes()[0]
        if self._lazy is not None:
            # What the file of sync points says is of the old file, and must not be found beside the new one.
            self._lazy.settle()
        with in_our_words(self.folder):
            vacuum.sweep(self.folder)  # what an earlier one could not remove
        failed: BaseException | None = None
        with vacuum.aside(self.folder) as aside:
            with self.read() as transaction:
                size = int(self._env.info()["map_size"])
                vacuum.copy_tables(transaction, self._tables, aside, size, MAX_READERS)
                vacuum.note_source(self.folder, aside)
            env, tables = self._open_in(aside, create=False)
            try:
                with in_our_words(self.folder):
                    vacuum.declare_whole(self.folder, aside)
            except BaseException as error:
                if not vacuum.is_declared(self.folder):
                    env.close()
                    raise
                failed = error
        old, old_file = self._env, self._file
        try:
            if failed is not None:
                raise failed
            self._exchange(env, tables)
        except BaseException as error:
            self._close_between(old, old_file, env)
            if not isinstance(error, Exception):
                raise
            log.warning(
                "%s: the compacted file could not be put in its place (%s); it is opened again",
                self.folder,
                error,
            )
            self._enter()
            self._leave()
        else:
            # While our descriptors keep the old files, nobody gets their inodes: py-lmdb takes these for open until its
            # `close` has come back, and would refuse to open a file that another thread has just made.
            old.close()
            old_file.close()
        return before, self.map_bytes()[0]

    def _exchange(self, env: Any, tables: dict[str, Any]) -> None:
        """Puts the copy in the place of the old file, which the caller closes, and stops watching."""

        def swap() -> None:
            vacuum.move_in(self.folder)
            watched = self._watched(env)
            self._env, self._tables, self._file = env, tables, watched
            self.on_move()

        self._gate.alone(swap)
        if self._lazy is not None:
            self._lazy.close()
            self._sync_lazily()

    def _close_between(self, old: Any, old_file: WatchedFile, new: Any) -> None:
        """Closes both files: nothing may be written to the old one any more. The next who enters opens what there is."""

        def shut() -> None:
            lazy, self._lazy = self._lazy, None
            if lazy is not None:
                with suppress(Exception):
                    lazy.close()  # it was settled, and nothing written since
            self._file.keep_locks()
            old.close()
            new.close()
            self._file.close()
            if old_file is not self._file:
                old_file.close()
            self._env, self._exchanging = None, True
            if self._awake is not None:
                self._awake.remove(self)
            self.on_move()

        self._gate.alone(shut)

    def _resize(self, map_size_bytes: int) -> None:
        def grow() -> None:
            if self._env is None:
                # It rests, and is opened with a map as large as that, or as its file.
                self._map_initial_bytes = max(self._map_initial_bytes, map_size_bytes)
                return
            environment = self._env
            more = map_size_bytes - int(environment.info()["map_size"])
            if more > 0:
                must_have_address_space(more, self.folder)
            try:
                environment.set_mapsize(map_size_bytes)
            except lmdb.Error:
                # LMDB has let go of the old map and has no new one: a call would end the process.
                self._gate.closed = True
                self._file.keep_locks()
                environment.close()
                self._file.close()
                raise
            self.on_move()

        with in_our_words(self.folder):
            self._gate.alone(grow)
