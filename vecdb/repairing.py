"""Checking a database that nobody serves, and repairing it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import folder
from .collection_info import shape_of
from .database import Database
from .database import open as open_database
from .errors import Corrupted, DatabaseNotFound, ReadOnly, VecdbError
from .layout import COLLECTIONS_FOLDER, LOCK_FILE
from .settings import ENGINE, resolve
from .store import (
    Catalog,
    RepairedFile,
    catalog_problems,
    file_problems,
    repair_catalog,
    repair_file,
    settle,
    system_in_our_words,
)

_WHAT = "repair"


@dataclass(frozen=True, slots=True)
class CheckedCollection:
    """What a check found in a collection, and what a repair has done."""

    collection: str
    """Its name; empty for the catalog."""
    problems: tuple[str, ...] = ()
    """One sentence a fault that was found."""
    repaired: bool = False
    """Whether all of them are mended; see `repair` for what was lost."""
    repair: RepairedFile | None = None
    """What the repair of its file has kept and lost; None when the file was sound or was not repaired."""
    done: tuple[str, ...] = ()
    """Sentences about what else was done, or why it could not be."""

    @property
    def ok(self) -> bool:
        return not self.problems


def check(path: str | os.PathLike[str], *, repair: bool = False) -> list[CheckedCollection]:
    """Compares all that is stored in a folder with itself: an entry for the catalog and one a collection.

    The folder must not be open for writing. Without `repair` nothing is changed. With it, damaged files are
    made again from what can be read of them: ids, dead marks, counts and indexes from the rows, rows as far
    as their checksums hold. What is lost is named by id; the old file then stays in `quarantine/`, and the
    collection tells of it in the log at each opening. What is sound is not touched. May be called again after a failure.
    Raises DatabaseLocked, DatabaseNotFound, ReadOnly, StorageFull.
    """
    root = Path(path)
    _must_be_database(root)
    with system_in_our_words(root):
        if repair:
            # Refused before anything is written.
            _must_be_writable(root)
        with _locked(root):
            first, *rest = _checked(root, repair)
        if not rest:
            return [first]
        # The database takes the lock by itself: indexes are looked at as they are when it is open.
        with open_database(root, read_only=not repair, auto_build=False) as database:
            return [first, *(_with_indexes(one, database, repair) for one in rest)]


def _must_be_database(root: Path) -> None:
    made = root / COLLECTIONS_FOLDER
    if not (root / "catalog").is_dir() and not (made.is_dir() and any(made.iterdir())):
        raise DatabaseNotFound(f"{root} holds no vecdb database")


def _must_be_writable(root: Path) -> None:
    made = root / COLLECTIONS_FOLDER
    for path in (root, *(made.iterdir() if made.is_dir() else ())):
        if not os.access(path, os.W_OK):
            raise ReadOnly(
                f"{path} may not be written, so it cannot be repaired; nothing was changed"
            )


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    if not (root / LOCK_FILE).exists() and not os.access(root, os.W_OK):
        yield  # Nobody can have it open for writing.
        return
    lock = folder.take_lock(root)
    try:
        yield
    finally:
        lock.close()


def _checked(root: Path, repair: bool) -> list[CheckedCollection]:
    options: dict[str, Any] = resolve(ENGINE, {})
    found = tuple(catalog_problems(root))
    done: tuple[str, ...] = ()
    left = found
    if found and repair:
        done = tuple(repair_catalog(root))
        left = tuple(catalog_problems(root))
    first = CheckedCollection("", found, bool(found) and not left, None, (*done, *left))
    try:
        catalog = Catalog(root, create=False, read_only=True)
    except VecdbError:
        return [first]  # Without a catalog the collections have no names.
    try:
        named = catalog.names().collections
    finally:
        catalog.close()
    checked = [
        _collection(name, root, root / COLLECTIONS_FOLDER / token, options, repair)
        for name, token in named.items()
    ]
    return [first, *checked]


def _collection(
    name: str, root: Path, made: Path, options: Mapping[str, Any], repair: bool
) -> CheckedCollection:
    if not made.is_dir():
        return CheckedCollection(name, (f"its folder {made} is missing; restore a backup",))
    try:
        if repair:
            settle(made)
        found = tuple(file_problems(made, shape_of, options))
    except Corrupted as error:
        return CheckedCollection(name, (error.message,))
    if not found or not repair:
        return CheckedCollection(name, found)
    try:
        done = repair_file(made, shape_of, options, root, list(found))
    except Corrupted as error:
        return CheckedCollection(name, found, done=(error.message,))
    left = tuple(file_problems(made, shape_of, options))
    return CheckedCollection(name, found, not left, done, left)


def _with_indexes(one: CheckedCollection, database: Database, repair: bool) -> CheckedCollection:
    """The same with what is wrong with the indexes, which are built again."""
    if one.problems and not one.repaired:
        return one
    try:
        collection = database.get_collection(one.collection)
        found = collection.check().problems
        if not found or not repair:
            return replace(one, problems=(*one.problems, *found))
        collection.build_index()
        left = collection.check().problems
    except VecdbError as error:
        found, left = (error.message,), (error.message,)
    return replace(
        one,
        problems=(*one.problems, *found),
        repaired=not left,
        done=(*one.done, "the index was built again", *left) if not left else (*one.done, *left),
    )
