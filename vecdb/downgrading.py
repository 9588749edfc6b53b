"""Going back to the format that collections had before this version upgraded them, and giving that up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import folder
from .collection_info import shape_of
from .layout import COLLECTIONS_FOLDER
from .settings import ENGINE, resolve
from .store import Catalog, CollectionStore, kept


@dataclass(frozen=True, slots=True)
class Downgraded:
    """What became of one collection."""

    collection: str
    format_before: int
    format: int
    """That it has now; the same as before when there was nothing to go back to."""
    sequence_before: int
    sequence: int
    """Newest commit that it has now: those between are gone."""


def downgrade(path: str | os.PathLike[str]) -> list[Downgraded]:
    """Puts the files back that the newest upgrade has kept, so that the version before opens the database.

    What was written since the upgrade is lost, and `sequence_before` and `sequence` say how much.
    Collections that were never upgraded are left as they are; the version before refuses those of a later
    format. The database must not be open for writing. May be called again after a failure. Raises
    DatabaseLocked, DatabaseNotFound, StorageFull.
    """
    return [_back(name, made) for name, made in _collections(Path(path))]


def discard_kept(path: str | os.PathLike[str]) -> int:
    """Removes the files that upgrades have kept: there is no way back then. The bytes they took."""
    return sum(kept.discard(made) for _, made in _collections(Path(path)))


def _collections(path: Path) -> Iterator[tuple[str, Path]]:
    """Names and folders, while nobody else writes."""
    with _locked(path):
        catalog = Catalog(path, create=False, read_only=True)
        try:
            named = catalog.names().collections
        finally:
            catalog.close()
        for name, token in named.items():
            yield name, path / COLLECTIONS_FOLDER / token


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    folder.prepare(path, read_only=True)
    lock = folder.take_lock(path)
    try:
        yield
    finally:
        lock.close()


def _back(name: str, made: Path) -> Downgraded:
    held = kept.kept(made)
    if held:
        # Whatever a crash has left undone belongs to the file that goes.
        _seen(made, read_only=False)
    before = _seen(made, read_only=True)
    older = [number for number in held if number < before[0]]
    if older:
        kept.put_back(made, older[-1])
    after = _seen(made, read_only=True)
    return Downgraded(name, before[0], after[0], before[1], after[1])


def _seen(made: Path, *, read_only: bool) -> tuple[int, int]:
    """(format, newest commit) of a collection's file."""
    options: dict[str, Any] = resolve(ENGINE, {})
    store = CollectionStore.open(made, shape_of, options, read_only=read_only)
    try:
        with store.read() as reader:
            return reader.format(), reader.state().sequence
    finally:
        store.close()
