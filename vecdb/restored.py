"""A new database from a backup."""

from __future__ import annotations

import datetime as dt
import errno
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import disk, folder
from .backup_types import BackupTarget, Progress, RestoreResult, unwatched
from .database import open as open_database
from .errors import AlreadyExists, DatabaseLocked, InvalidArgument

_ASIDE = ".restoring-"


def restore(
    source: BackupTarget,
    path: str | os.PathLike[str],
    *,
    backup: str | None = None,
    collections: Iterable[str] | Mapping[str, str] | None = None,
    at: dt.datetime | None = None,
    sequence: int | None = None,
    progress: Progress = unwatched,
    **settings: Any,
) -> RestoreResult:
    """Makes a new database in folder `path`, which must be missing or empty, from a backup.

    The arguments are those of `Database.restore`; `settings` those of `vecdb.open`, for the time of the
    restore. It is made beside, in `<path>.restoring-…`, and renamed when it is complete and durable.
    Raises what `Database.restore` raises, AlreadyExists when something is in the folder, now or when the restore
    is done, and InvalidArgument when a disk is mounted at it.
    """
    wanted = Path(os.path.realpath(path))  # a link is not replaced by what it leads to
    if wanted.exists() and (not wanted.is_dir() or any(wanted.iterdir())):
        raise _taken(wanted)
    if os.path.ismount(wanted):
        raise _in_use(wanted)
    _sweep(wanted)
    aside = wanted.with_name(f"{wanted.name}{_ASIDE}{secrets.token_hex(4)}")
    try:
        with open_database(aside, **{"auto_build": False, **settings}) as database:
            made = database.restore(
                source,
                backup=backup,
                collections=collections,
                at=at,
                sequence=sequence,
                progress=progress,
            )
        try:
            disk.rename(aside, wanted, "restore")
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise _taken(wanted) from error  # another restore was first, or something else
            if error.errno == errno.EBUSY:
                raise _in_use(wanted) from error
            raise
    except BaseException:
        disk.remove_tree(aside, "restore")
        raise
    disk.sync_folder(wanted.parent, "restore")
    return made


def _taken(wanted: Path) -> AlreadyExists:
    return AlreadyExists(
        f"{wanted} holds something already; give an empty folder or a new one, or restore into the "
        "open database under new names",
        path=str(wanted),
    )


def _in_use(wanted: Path) -> InvalidArgument:
    return InvalidArgument(
        f"a disk is mounted at {wanted}, so no finished database can take that name; give a folder below it, or "
        "open a database there and restore into it",
        path=str(wanted),
    )


def _sweep(wanted: Path) -> None:
    """Removes what interrupted restores to the same folder have left."""
    for left in wanted.parent.glob(f"{wanted.name}{_ASIDE}*"):
        try:
            folder.take_lock(left).close()
        except (DatabaseLocked, OSError):
            continue  # under way, or not ours to look at
        disk.remove_tree(left, "restore")
