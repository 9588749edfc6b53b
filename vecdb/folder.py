"""The folder of a database: who owns it, and making names in it durable."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

from .errors import Corrupted, DatabaseLocked, DatabaseNotFound
from .layout import CATALOG_FOLDER, COLLECTIONS_FOLDER, DATA_FILE, LOCK_FILE


def prepare(path: Path, read_only: bool) -> bool:
    """Whether a database must be made there."""
    if (path / CATALOG_FOLDER / DATA_FILE).is_file():
        return False
    if read_only:
        raise DatabaseNotFound(
            f"{path} holds no vecdb database; open it for writing once to make one"
        )
    path.mkdir(parents=True, exist_ok=True)
    # What an interrupted first opening leaves is ours too.
    strangers = {p.name for p in path.iterdir()} - {LOCK_FILE, CATALOG_FOLDER, COLLECTIONS_FOLDER}
    if strangers:
        raise Corrupted(
            f"{path} holds other files ({sorted(strangers)[0]!r}) and no vecdb database; give an empty "
            "folder or a new one"
        )
    (path / CATALOG_FOLDER).mkdir(exist_ok=True)
    return True


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


def sync(path: Path) -> None:
    """Makes the names in a folder durable, not only what the files hold."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
