"""The folder of a collection: which files belong there, and what they take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import disk
from .core import Core
from .errors import Corrupted
from .index import is_beside
from .layout import DATA_FILE, LMDB_LOCK_FILE, SYNC_POINT_FILE
from .store import kept


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
