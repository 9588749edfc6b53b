"""The folder of a database: who owns it, and making names in it durable."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

from . import disk
from .errors import Corrupted, DatabaseLocked, DatabaseNotFound
from .layout import (
    CATALOG_ASIDE,
    CATALOG_FOLDER,
    COLLECTIONS_FOLDER,
    DATA_FILE,
    LOCK_FILE,
    QUARANTINE_FOLDER,
)

_WHAT = "database"


def prepare(path: Path, read_only: bool) -> bool:
    """Whether the catalog may be made there: whether no collection was ever made.

    Called before the lock is taken, and makes the folder only. Raises DatabaseNotFound (read_only)
    and Corrupted when the folder holds something else, or collections without a catalog.
    """
    catalog = (path / CATALOG_FOLDER / DATA_FILE).is_file()
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
    }
    if strangers and not catalog:
        raise Corrupted(
            f"{path} holds other files ({sorted(strangers)[0]!r}) and no vecdb database; give an empty "
            "folder or a new one"
        )
    return not collections


def sync_catalog(path: Path) -> None:
    """Makes the folders and names of a new catalog durable."""
    for folder in (path / CATALOG_FOLDER, path, path.parent):
        disk.sync_folder(folder, _WHAT)


def take_lock(path: Path) -> Any:
    file = (path / LOCK_FILE).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        raise DatabaseLocked(
            f"{path} is open for writing in process {holder}; stop that process, talk to its server, or "
            "open with read_only=True",
            pid=holder,
        ) from None
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file
