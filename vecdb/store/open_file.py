"""An LMDB file that a process has open: opened, closed while nobody uses it, opened again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb

from .. import disk
from ..errors import Closed, Corrupted, Internal, VecdbError
from ..layout import DATA_FILE, LMDB_LOCK_FILE
from . import sync_point, vacuum
from .awake import Awake
from .faults import full_or_internal, in_our_words
from .gate import Gate
from .lazy_sync import LazySync
from .opening import open_tables
from .watched_file import WatchedFile

PUT_BACK = "move it away, and put the file back that was there, or restore a backup"


class OpenFile:
    """An LMDB environment with its tables, and who is inside. Any thread may call.

    While nobody uses it, it may rest: then LMDB's environment is closed, and opened again by the next call,
    which takes about 0.5 ms.
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
        awake: Awake | None = None,
    ) -> None:
        """`later_tables` are those of `tables` that a file of an older format may lack, `optional_tables`
        those that one of this format may; `make_optional_tables` adds them.

        With `sync_interval_s` commits do not wait for the disk, see `LazySync`. `awake` counts it among those
        that are open and decides when it rests; without it it never does.
        """
        self.folder = folder
        self.map_limit_bytes = map_limit_bytes
        self._names = tables
        self._later_names = later_tables
        self._optional_names = optional_tables
        self.read_only = read_only
        self.on_move: Callable[[], None] = lambda: None
        """Called when the map has moved or another file is in its place, before anyone reads it."""
        self.on_rest: Callable[[], None] = lambda: None
        """Called when it rests, for what can be read again."""
        self.sequence_of: Callable[[Any], int] = lambda _: 0
        """Which commit of rows a transaction shows."""
        self._map_initial_bytes = map_initial_bytes
        self._gate = Gate(folder)
        self._awake = awake
        self.used = True
        """Set at each use."""
        self._may_rest = True
        self._exchanging = False
        """Whether an exchange with a compacted file was begun and not finished, so that nothing is open."""
        self._rested: tuple[int, int, int, int] | None = None
        """What `map_use` says of one that rests."""
        self._env: Any = None
        self._file: WatchedFile
        self._lazy: LazySync | None = None
        self._sync_interval_s = None if read_only else sync_interval_s
        self._tables: dict[str, Any] = {}
        self._file_number = 0
        self._data_file = str(folder / DATA_FILE)
        if not disk.must_be_file(folder / DATA_FILE, PUT_BACK) and not create:
            raise Corrupted(f"{folder / DATA_FILE} is missing; restore it from a backup")
        if read_only:
            self._open_newest()
        else:
            self._open_for_writing(create=create)
        if awake is not None:
            awake.add(self)

    def _open_for_writing(self, *, create: bool) -> None:
        folder = self.folder
        sync_point.recover(folder)
        whole = vacuum.whole_copy(folder)
        if whole is not None:
            vacuum.must_belong(folder)
        self._env, self._tables = self._open_in(whole or folder, create=create)
        try:
            if whole is not None:
                vacuum.move_in(folder)
            vacuum.sweep(folder)
            self._file = self._watched(self._env)
            try:
                self._sync_lazily()
            except BaseException:
                self._file.close()
                raise
        except BaseException:
            self._env.close()
            raise

    def _open_exchanged(self) -> None:
        """Opens what a broken exchange has left, as after a crash."""
        # Before anything is written: the names that it has changed may not be durable.
        disk.sync_folder(self.folder, "vacuum")
        try:
            self._open_for_writing(create=False)
        except BaseException:
            self._env = None
            raise
        self._exchanging = False

    def _sync_lazily(self) -> None:
        """Begins to watch over the file that is open, if commits do not wait for the disk."""
        if self._sync_interval_s is not None:
            self._lazy = LazySync(
                self.folder,
                self._sync_interval_s,
                lambda: self._opened().begin(),
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
            except Corrupted:
                # Pages are looked over by name: in a file that was put in place since, they are of another transaction,
                # which nothing keeps from being written over.
                if number == os.stat(self._data_file).st_ino:
                    raise
                continue
            if number == os.stat(self._data_file).st_ino:
                try:
                    self._file = self._watched(env)
                except BaseException:
                    env.close()
                    raise
                self._env, self._tables, self._file_number = env, tables, number
                return
            env.close()

    def _watched(self, env: Any) -> WatchedFile:
        with in_our_words(self.folder):
            return WatchedFile(self.folder / DATA_FILE, int(env.stat()["psize"]))

    def file_fault(self) -> str:
        """What has become of the file behind the map, empty while it is in its folder; for one that is inside."""
        return self._file.fault()

    def rest(self) -> bool:
        """Closes LMDB's environment until the next use; False where it is in use, or must stay open."""
        lazy = self._lazy
        if lazy is not None:
            try:
                lazy.settle()
            except VecdbError:
                return False  # the next write tells
        return self._gate.if_empty(self._close_to_rest)

    def _close_to_rest(self) -> bool:
        lazy = self._lazy
        if self._env is None:
            return True
        if not self._may_rest or not (lazy is None or lazy.settled):
            return False
        try:
            used, size, _, readers = self._map_use()
        except Corrupted:
            return False  # It was cut off, which the next call tells.
        self._rested = used, size, 0, readers
        if lazy is not None:
            lazy.close()
            self._lazy = None
        env, self._env = self._env, None
        self._file.keep_locks()
        env.close()
        self._file.close()
        if self._awake is not None:
            self._awake.remove(self)
        self.on_move()
        self.on_rest()
        return True

    def _wake(self) -> bool:
        """Opens what rests, and says whether it did. While nobody is inside."""
        if self._env is not None:
            return False
        with in_our_words(self.folder):
            try:
                os.stat(self._data_file)
            except (FileNotFoundError, NotADirectoryError):
                raise Closed(
                    f"{self.folder} has gone: its collection was dropped by another process, or removed by hand"
                ) from None
            if self.read_only:
                self._open_newest()
            elif self._exchanging:
                self._open_exchanged()
            else:
                # Nobody else may have written: it is looked at no closer than one that stayed open.
                self._file.watch_again()
                try:
                    self._env, self._tables = self._open_in(self.folder, create=False, known=True)
                    self._file.opened_again()
                    self._sync_lazily()
                except BaseException:
                    self._file.close()
                    if self._env is not None:
                        self._env.close()
                        self._env = None
                    raise
        self._rested = None
        return True

    def _open_in(
        self, folder: Path, *, create: bool, known: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        return open_tables(
            folder,
            self._names,
            may_lack=(*self._later_names, *self._optional_names),
            create=create,
            known=known,
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

    def reopen(self) -> None:
        """Opens the file again as it is now; of a read-only environment."""
        seen = self._env

        def again() -> None:
            if seen is not None and self._env is seen:
                # LMDB must not map one file twice in a process, so the old one is closed first.
                self._env = None
                self._file.keep_locks()
                seen.close()
                self._file.close()
                self._open_newest()

        self._gate.alone(again)

    def _follow_file(self) -> None:
        """Opens the file that the writer has put in place of ours, if it has; 2 us."""
        try:
            if self._env is not None and os.stat(self._data_file).st_ino != self._file_number:
                self.reopen()
        except FileNotFoundError:
            return  # The collection was dropped; what is open can still be read.
        except OSError as error:
            raise full_or_internal(self.folder, str(error)) from error

    def _opened(self) -> Any:
        if self._env is None:
            raise Internal(f"{self.folder} could not be opened again; repeat the call")
        self._file.must_be_whole()
        return self._env

    @property
    def is_awaited(self) -> bool:
        """Whether someone waits for a moment without transactions."""
        return self._gate.awaited > 0

    def map_bytes(self) -> tuple[int, int]:
        """(bytes of the map in use, bytes it may grow to)."""
        return self.map_use()[0], self.map_limit_bytes

    def map_use(self) -> tuple[int, int, int, int]:
        """(bytes of the map in use, its size, reader slots taken: one a thread that has read, slots there are)."""
        rested = self._rested
        if rested is not None:
            return rested
        self._enter()
        try:
            return self._map_use()
        finally:
            self._leave()

    def _map_use(self) -> tuple[int, int, int, int]:
        info, page = self._opened().info(), self._opened().stat()["psize"]
        used = (info["last_pgno"] + 1) * page
        return used, info["map_size"], info["num_readers"], info["max_readers"]

    def open_elsewhere(self) -> bool:
        """Whether another process has it open; True where the system does not tell.

        LMDB holds a lock on its second file as long as it is open. To ask for that lock one would open the file, and
        to close it again lets go of one's own.
        """
        try:
            inode = (self.folder / LMDB_LOCK_FILE).stat().st_ino
            locks = Path("/proc/locks").read_text("ascii").splitlines()
        except OSError:
            return True
        # "1: POSIX  ADVISORY  READ 1234 fd:00:5678 0 0", with -> behind the number for one who waits
        of_file = [line.split() for line in locks if f":{inode} " in line]
        return any(str(os.getpid()) not in words[4:6] for words in of_file)

    def close(self) -> None:
        """Waits for running transactions, syncs, and closes. Later calls raise Closed.

        ReadOnly, when it is closed, if the last commits could not be synced.
        """
        if not self._gate.close():
            return
        if self._awake is not None:
            self._awake.remove(self)
        try:
            if self._env is not None:
                self._file.keep_locks()
            if self._lazy is not None:
                self._lazy.close()
        finally:
            if self._env is not None:
                self._env.close()
                self._file.close()

    def _enter(self) -> None:
        self.used = True
        if self._gate.enter(self._wake) and self._awake is not None:
            try:
                self._awake.add(self)
            except BaseException:
                self._leave()
                raise

    def _leave(self) -> None:
        self._gate.leave()
