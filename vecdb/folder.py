"""The folder of a database: who owns it, and making names in it durable."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from . import disk
from .errors import Corrupted, DatabaseLocked, DatabaseNotFound
from .layout import (
    CATALOG_ASIDE,
    CATALOG_FILES,
    CATALOG_FOLDER,
    COLLECTIONS_FOLDER,
    DATA_FILE,
    LOCK_FILE,
    QUARANTINE_FOLDER,
    RESTORING_FILE,
)

_WHAT = "database"
_PUT_BACK = "move it away, and put what was there back, or restore a backup. Nothing was changed"
_TAKEN = (errno.EAGAIN, errno.EACCES)


def prepare(path: Path, read_only: bool) -> bool:
    """Whether the catalog may be made there: whether no collection was ever made.

    Called before the lock is taken, and makes the folder only. Raises DatabaseNotFound (read_only, or where
    it is no folder) and Corrupted when the folder holds something else, or collections without a catalog.
    """
    if os.path.lexists(path) and not path.is_dir():
        raise DatabaseNotFound(f"{path} is no folder; give an empty folder or a new one")
    disk.must_be_folder(path / COLLECTIONS_FOLDER, _PUT_BACK)
    catalog = disk.must_be_folder(path / CATALOG_FOLDER, _PUT_BACK) and disk.must_be_file(
        path / CATALOG_FOLDER / DATA_FILE, _PUT_BACK
    )
    if read_only:
        if not catalog:
            raise DatabaseNotFound(
                f"{path} holds no vecdb database; open it for writing once to make one"
            )
        return False
    disk.make_folder(path, _WHAT, parents=True, exist_ok=True)
    made = path / COLLECTIONS_FOLDER
    collections = made.is_dir() and any(made.iterdir())
    if collections and not catalog:
        raise Corrupted(
            f"{path} holds collections, but its catalog is missing; restore {CATALOG_FOLDER}/ from a "
            "backup. Nothing was changed"
        )
    # What an interrupted first opening leaves is ours too.
    strangers = {p.name for p in path.iterdir()} - {
        LOCK_FILE,
        CATALOG_FOLDER,
        CATALOG_ASIDE,
        COLLECTIONS_FOLDER,
        QUARANTINE_FOLDER,
        RESTORING_FILE,
    }
    for folder in () if catalog else (CATALOG_FOLDER, CATALOG_ASIDE):
        disk.must_be_folder(path / folder, _PUT_BACK)
        names = disk.others_in(path / folder, CATALOG_FILES)
        strangers.update(f"{folder}/{name}" for name in names)
    if strangers and not catalog:
        raise Corrupted(
            f"{path} holds other files ({sorted(strangers)[0]!r}) and no vecdb database; give an empty "
            "folder or a new one"
        )
    return not collections


def sync_catalog(path: Path, lock: FolderLock | None) -> None:
    """Makes the folders and names of a new catalog durable, and locks it for who holds `lock`."""
    if lock is not None:
        lock.lock_catalog()
    for folder in (path / CATALOG_FOLDER, path, path.parent):
        disk.sync_folder(folder, _WHAT)


class FolderLock:
    """Keeps other processes from opening a folder for writing, until `close` or the end of this process.

    The folder of the catalog is locked beside the file: somebody may remove that while its process lives, taking it for
    one that a killed process has left, and the next to come would get a new one.
    """

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file = path, file
        self._catalog = -1

    def lock_catalog(self) -> None:
        """Once there is one. DatabaseLocked when another process has it."""
        if self._catalog >= 0 or not (self._path / CATALOG_FOLDER).is_dir():
            return
        descriptor = os.open(self._path / CATALOG_FOLDER, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in _TAKEN:
                raise DatabaseLocked(
                    f"{self._path} is open for writing in another process, whose file {LOCK_FILE} was removed; stop that "
                    "process, talk to its server, or open with read_only=True"
                ) from None
            return  # a file system that locks no folders, such as NFS
        self._catalog = descriptor

    def close(self) -> None:
        if self._catalog >= 0:
            os.close(self._catalog)
            self._catalog = -1
        self._file.close()


def take_lock(path: Path) -> FolderLock:
    """DatabaseLocked, which names the process that has the folder open for writing; Corrupted where the lock is no file."""
    disk.must_be_file(path / LOCK_FILE, "move it away: it holds no data, and is made anew")
    file = (path / LOCK_FILE).open("a+")
    lock = FolderLock(path, file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        if error.errno not in _TAKEN:
            raise
        raise DatabaseLocked(
            f"{path} is open for writing in process {holder}; stop that process, talk to its server, or "
            "open with read_only=True",
            pid=holder,
        ) from None
    try:
        lock.lock_catalog()
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
    except BaseException:
        with suppress(OSError):  # what could not be written is not written now
            lock.close()
        raise
    return lock
