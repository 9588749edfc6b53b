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
from .errors import DatabaseNotFound, ReadOnly, VecdbError
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
    as their checksums hold. What is lost is named by id; the old file then stays in `quarantine/`, with a list of
    the lost rows and their bytes (`rows.jsonl`), and the collection tells of it in the log at each opening. What is sound is not touched. May be called again after a failure.
    What keeps one collection from being checked or repaired, a full disk among it, stands in its entry, and
    the others go on. Raises DatabaseLocked, DatabaseNotFound, ReadOnly, StorageFull.
    """
    root = Path(path)
    _must_be_database(root)
    with system_in_our_words(root):
        if repair:
            # Refused before anything is written.
            _must_be_writable(root)
        # Held to the end: nobody writes between the repair of a file and the look at its index.
        with _locked(root) as lock:
            first, *rest = _checked(root, repair)
            try:
                if rest:
                    rest = _all_with_indexes(rest, root, repair, lock)
            except VecdbError as error:
                if not any(one.repair for one in rest):
                    raise
                # What was lost has to be told all the same.
                first = replace(first, problems=(*first.problems, error.message), repaired=False)
        return [first, *rest]


def _all_with_indexes(
    checked: list[CheckedCollection], root: Path, repair: bool, lock: folder.FolderLock | None
) -> list[CheckedCollection]:
    settings = {"auto_build": False}
    with Database(root, read_only=not repair, settings=settings, lock=lock) as database:
        return [_with_indexes(one, database, repair) for one in checked]


def _must_be_database(root: Path) -> None:
    made = root / COLLECTIONS_FOLDER
    if not (root / "catalog").is_dir() and not (made.is_dir() and any(made.iterdir())):
        raise DatabaseNotFound(f"{root} holds no vecdb database")


def _must_be_writable(root: Path) -> None:
    made = root / COLLECTIONS_FOLDER
    for path in (root, *(made.iterdir() if made.is_dir() else ())):
        if not os.access(path, os.W_OK, effective_ids=True):
            raise ReadOnly(
                f"{path} may not be written, so it cannot be repaired; nothing was changed"
            )


@contextmanager
def _locked(root: Path) -> Iterator[folder.FolderLock | None]:
    if not (root / LOCK_FILE).exists() and not os.access(root, os.W_OK):
        yield None  # Nobody can have it open for writing.
        return
    lock = folder.take_lock(root)
    try:
        yield lock
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
    except VecdbError as error:
        # Without a catalog the collections have no names.
        return [first if first.problems else replace(first, problems=(error.message,))]
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
    found: tuple[str, ...] = ()
    done: RepairedFile | None = None
    try:
        with system_in_our_words(made):
            if repair:
                settle(made)
            found = tuple(file_problems(made, shape_of, options))
            if not found or not repair:
                return CheckedCollection(name, found)
            done = repair_file(made, shape_of, options, root, list(found))
            left = tuple(file_problems(made, shape_of, options))
            return CheckedCollection(name, found, not left, done, left)
    except VecdbError as error:
        # The others are looked at all the same, and what a repair has lost so far is told.
        told = () if found else (error.message,)
        return CheckedCollection(
            name, found or told, False, done, (error.message,) if found else ()
        )


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
