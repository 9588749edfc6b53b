"""A new database from a backup."""

from __future__ import annotations

import datetime as dt
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import disk, folder
from .backup_types import BackupTarget, Progress, RestoreResult, unwatched
from .database import open as open_database
from .errors import AlreadyExists, DatabaseLocked

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
    Raises what `Database.restore` raises, and AlreadyExists when something is in the folder.
    """
    wanted = Path(path).absolute()
    if wanted.exists() and (not wanted.is_dir() or any(wanted.iterdir())):
        raise AlreadyExists(
            f"{wanted} holds something already; give an empty folder or a new one, or restore into the "
            "open database under new names",
            path=str(wanted),
        )
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
        disk.rename(aside, wanted, "restore")
    except BaseException:
        disk.remove_tree(aside, "restore")
        raise
    disk.sync_folder(wanted.parent, "restore")
    return made


def _sweep(wanted: Path) -> None:
    """Removes what interrupted restores to the same folder have left."""
    for left in wanted.parent.glob(f"{wanted.name}{_ASIDE}*"):
        try:
            folder.take_lock(left).close()
        except (DatabaseLocked, OSError):
            continue  # under way, or not ours to look at
        disk.remove_tree(left, "restore")
