"""A new database from a backup."""

from __future__ import annotations

import datetime as dt
import errno
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import disk, folder
from .backup_types import BackupTarget, Progress, RestoreResult, unwatched
from .database import Database
from .errors import AlreadyExists, InvalidArgument, VecdbError
from .layout import (
    CATALOG_ASIDE,
    CATALOG_FOLDER,
    COLLECTIONS_FOLDER,
    DATA_FILE,
    LOCK_FILE,
    RESTORING_FILE,
)
from .out_of_memory import memory_told
from .store import Catalog, system_in_our_words

_ASIDE = ".restoring-"
_WHAT = "restore"
_MADE = {LOCK_FILE, RESTORING_FILE, CATALOG_FOLDER, CATALOG_ASIDE, COLLECTIONS_FOLDER}
"""All that a restore has in its folder."""


@memory_told
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
    restore. It is made beside, in `<path>.restoring-` and 8 hex digits, and renamed when it is complete and durable.
    What an interrupted restore to the same path has left there is removed; other folders of such names are not.
    Raises what `Database.restore` raises, AlreadyExists when something is in the folder, now or when the restore
    is done, and InvalidArgument when a disk is mounted at it.
    """
    wanted = Path(os.path.realpath(path))  # a link is not replaced by what it leads to
    with system_in_our_words(wanted.parent):
        if wanted.exists() and (not wanted.is_dir() or any(wanted.iterdir())):
            raise _taken(wanted)
        if os.path.ismount(wanted):
            raise _in_use(wanted)
        _sweep(wanted)
        aside = wanted.with_name(f"{wanted.name}{_ASIDE}{secrets.token_hex(4)}")
        try:
            with _begun(aside, {"auto_build": False, **settings}) as database:
                made = database.restore(
                    source,
                    backup=backup,
                    collections=collections,
                    at=at,
                    sequence=sequence,
                    progress=progress,
                )
            try:
                disk.rename(aside, wanted, _WHAT)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise _taken(wanted) from error  # another restore was first, or something else
                if error.errno == errno.EBUSY:
                    raise _in_use(wanted) from error
                raise
        except BaseException:
            disk.remove_tree(aside, _WHAT, last=RESTORING_FILE)
            raise
        disk.sync_folder(wanted.parent, _WHAT)
        # Not before the name is durable: without its mark a complete database under the other name would be left alone.
        disk.remove(wanted / RESTORING_FILE, _WHAT)
        return made


def _begun(aside: Path, settings: Mapping[str, Any]) -> Database:
    """An empty database there, with its mark durable before anything else is in the folder but the lock, which is held."""
    with system_in_our_words(aside):
        disk.make_folder(aside, _WHAT, parents=True)
        lock = folder.take_lock(aside)
        try:
            disk.make_empty(aside / RESTORING_FILE, _WHAT)
            disk.sync_folder(aside, _WHAT)
            return Database(aside, read_only=False, settings=settings, lock=lock)
        except BaseException:
            lock.close()
            raise


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
    """Removes what interrupted restores to the same folder have left, and nothing that only has such a name."""
    name = re.compile(re.escape(wanted.name + _ASIDE) + "[0-9a-f]{8}")
    try:
        named = [path for path in wanted.parent.iterdir() if name.fullmatch(path.name)]
    except OSError:
        return  # not there yet, or not to be read
    for left in named:
        try:
            if left.is_symlink() or not {path.name for path in left.iterdir()} <= _MADE:
                continue
            lock = folder.take_lock(left)
            try:
                litter = (left / RESTORING_FILE).exists() or not _holds_collections(left)
            finally:
                lock.close()
        except (VecdbError, OSError):
            continue  # under way, or not ours to look at
        if litter:
            disk.remove_tree(left, _WHAT, last=RESTORING_FILE)


def _holds_collections(left: Path) -> bool:
    """Whether any has got its name. Earlier versions set no mark: what they left was hardly ever complete, and
    what is complete and bears no mark may be somebody's."""
    if not (left / CATALOG_FOLDER / DATA_FILE).exists():
        return False
    catalog = Catalog(left, create=False, read_only=True)
    try:
        return bool(catalog.names().collections)
    finally:
        catalog.close()
