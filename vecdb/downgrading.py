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
from .errors import Corrupted
from .layout import COLLECTIONS_FOLDER, KEPT_FILE
from .out_of_memory import memory_told
from .settings import ENGINE, resolve
from .store import Catalog, CollectionStore, kept, kept_faults, system_in_our_words


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


@memory_told
def downgrade(path: str | os.PathLike[str]) -> list[Downgraded]:
    """Puts the files back that the newest upgrade has kept, so that the version before opens the database.

    What was written since the upgrade is lost, and `sequence_before` and `sequence` say how much.
    Collections that were never upgraded are left as they are; the version before refuses those of a later
    format. The kept files are compared with themselves first, about 3 us a record. The database must not be open for
    writing. May be called again after a failure. Raises DatabaseLocked, DatabaseNotFound, ReadOnly, StorageFull, LimitExceeded
    (open files), and Corrupted when a kept file is damaged: then nothing was changed.
    """
    with system_in_our_words(Path(path)), _collections(Path(path)) as named:
        ways = [_way_back(name, made) for name, made in named]
        return [_back(way) for way in ways]


@memory_told
def discard_kept(path: str | os.PathLike[str]) -> int:
    """Removes the files that upgrades have kept: there is no way back then. The bytes they took."""
    with system_in_our_words(Path(path)), _collections(Path(path)) as named:
        return sum(kept.discard(made) for _, made in named)


@contextmanager
def _collections(path: Path) -> Iterator[list[tuple[str, Path]]]:
    """Names and folders, while nobody else writes."""
    folder.prepare(path, read_only=True)
    lock = folder.take_lock(path)
    try:
        catalog = Catalog(path, create=False, read_only=True)
        try:
            named = catalog.names().collections
        finally:
            catalog.close()
        yield [(name, path / COLLECTIONS_FOLDER / token) for name, token in named.items()]
    finally:
        lock.close()


@dataclass(frozen=True, slots=True)
class _Way:
    """What is to be done with a collection."""

    name: str
    made: Path
    format: int
    sequence: int
    to: int
    """The format of the kept file that comes back; `format` where there is none."""


def _way_back(name: str, made: Path) -> _Way:
    """Corrupted when the file that would come back is damaged: the present one must not go for it."""
    held = kept.kept(made)
    if held:
        # Whatever a crash has left undone belongs to the file that goes.
        _seen(made, read_only=False)
    number, sequence = _seen(made, read_only=True)
    older = [one for one in held if one < number]
    if not older:
        return _Way(name, made, number, sequence, number)
    options: dict[str, Any] = resolve(ENGINE, {})
    with system_in_our_words(made):
        faults = kept_faults(held[older[-1]], older[-1], shape_of, options)
    if faults:
        raise Corrupted(
            f"collection {name!r} cannot go back to format {older[-1]}: {held[older[-1]]} is damaged: {faults[0]}. No collection "
            "was changed. `vecdb export` and an import by the version before bring the records there; "
            "`vecdb downgrade --discard` removes the file",
            collection=name,
            file=KEPT_FILE.format(older[-1]),
            faults=faults,
        )
    return _Way(name, made, number, sequence, older[-1])


def _back(way: _Way) -> Downgraded:
    if way.to == way.format:
        after = way.format, way.sequence
    else:
        with kept.put_back(way.made, way.to):
            after = _seen(way.made, read_only=True)
    return Downgraded(way.name, way.format, after[0], way.sequence, after[1])


def _seen(made: Path, *, read_only: bool) -> tuple[int, int]:
    """(format, newest commit) of a collection's file."""
    options: dict[str, Any] = resolve(ENGINE, {})
    store = CollectionStore.open(made, shape_of, options, read_only=read_only)
    try:
        with store.read() as reader:
            return reader.format(), reader.state().sequence
    finally:
        store.close()
