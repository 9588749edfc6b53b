"""The folder of a collection: which files belong there, and what they take."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from . import disk
from .core import Core
from .errors import CollectionNotFound, Corrupted, VecdbError
from .index import is_beside
from .layout import DATA_FILE, LMDB_LOCK_FILE, SYNC_POINT_FILE, UNNAMED_FILE
from .store import kept
from .types import CollectionInfo

log = logging.getLogger("vecdb")


def sweep_files(core: Core) -> None:
    """Removes index files that the store does not name: replaced ones, and what a crash left behind."""
    keep = {DATA_FILE, LMDB_LOCK_FILE, SYNC_POINT_FILE}
    for field in core.all_fields:
        keep.update(() if field.record is None else field.record.files())
    keep.update(path.name for path in kept.kept(core.store.folder).values())
    named = [field.record.graph.name for field in core.all_fields if field.record is not None]
    for path in core.store.folder.iterdir():
        beside = any(is_beside(path.name, name) for name in named)
        if path.name not in keep and not beside and not path.is_dir():
            disk.remove(path, "sweep")


def sweep_folders(root: Path, known: Collection[str], remove: Callable[[str, str], None]) -> None:
    """Has folders removed that a crash left behind; tells of those that are nobody's but hold data."""
    for path in root.iterdir() if root.is_dir() else ():
        if path.name in known:
            continue
        if os.path.lexists(path / UNNAMED_FILE) or not (path / DATA_FILE).exists():
            remove(path.name, "sweep")
        else:
            log.warning("%s is a collection that the catalog does not name; left as it is", path)


def folder_bytes(folder: Path) -> int:
    """Bytes that the files of a folder take on disk; sparse parts count nothing."""
    total = 0
    for path in folder.iterdir():
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue  # an index file may be replaced while we look
    return total


@contextmanager
def named_where_damaged(name: str) -> Iterator[None]:
    """Corrupted that says of which collection the file is: its folder tells nobody."""
    try:
        yield
    except Corrupted as error:
        raise Corrupted(
            f"collection {name!r}: {error.message}", **{**error.details, "collection": name}
        ) from error


def listed(name: str, read: Callable[[], CollectionInfo]) -> list[CollectionInfo]:
    """What a list says of a collection, whatever its files are like: one entry, none where it was dropped meanwhile."""
    try:
        return [read()]
    except CollectionNotFound:
        return []
    except VecdbError as error:
        return [CollectionInfo.unreadable(name, error.message)]
    except OSError as error:
        return [CollectionInfo.unreadable(name, str(error))]
