"""Checking a database that nobody serves, and repairing it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import folder
from .collection import Collection
from .collection_files import sweep_files
from .collection_info import shape_of
from .core import Core
from .database import Database
from .errors import DatabaseNotFound, ReadOnly, VecdbError
from .layout import COLLECTIONS_FOLDER, LOCK_FILE
from .out_of_memory import memory_told
from .settings import ENGINE, resolve
from .store import (
    Catalog,
    RepairedFile,
    beside_faults,
    catalog_problems,
    file_problems,
    losses,
    repair_catalog,
    repair_file,
    settle,
    system_in_our_words,
)

_BUILT = "the index was built again"
_FORGOTTEN = "the index that was damaged is gone: so few rows are searched without one"


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


@memory_told
def check(path: str | os.PathLike[str], *, repair: bool = False) -> list[CheckedCollection]:
    """Compares all that is stored in a folder with itself: an entry for the catalog and one a collection.

    The folder must not be open for writing. Without `repair` nothing is changed; of a collection with damaged pages the problems
    say which records cannot be read, the first 20 by id, in the time and memory that a repair takes. With it, damaged files are
    made again from what can be read of them: ids, dead marks, counts and indexes from the rows, rows as far
    as their checksums hold. What is lost is named by id; the old file then stays in `quarantine/`, with a list of
    the lost rows and their bytes (`rows.jsonl`), and the collection tells of it in the log at each opening. What is sound is not touched. May be called again after a failure.
    Files that an upgrade has kept, and sync points, are looked at too; damaged ones are named, and a repair leaves the
    former as they are.
    What keeps one collection from being checked or repaired, a full disk or a folder without permission among it,
    stands in its entry, and the others go on. Raises DatabaseLocked, DatabaseNotFound, ReadOnly, StorageFull, LimitExceeded
    (open files).
    """
    root = Path(path)
    with system_in_our_words(root):
        _must_be_database(root)
        if repair:
            # Refused before anything is written.
            _must_be_writable(root)
            if (made := root / COLLECTIONS_FOLDER).is_dir():
                _must_be_writable(made)
        # Held to the end: nobody writes between the repair of a file and the look at its index.
        with _locked(root) as lock:
            first, folders, rest = _checked(root, repair)
            # Before the database is opened, which makes sync points anew.
            beside = [_beside(made) for made in folders]
            try:
                if rest:
                    rest = _all_with_indexes(rest, beside, root, repair, lock)
            except VecdbError as error:
                if not any(one.repair for one in rest):
                    raise
                # What was lost has to be told all the same.
                first = replace(first, problems=(*first.problems, error.message), repaired=False)
        return [first, *rest]


def lost_in(path: str | os.PathLike[str], collection: str) -> list[str]:
    """What a repair of a collection whose pages are damaged would lose, as `check` says it; empty where they are sound, or it is
    not in the catalog. DatabaseLocked while a process has the folder open for writing, and the errors of `check`."""
    root = Path(path)
    with system_in_our_words(root), _locked(root):
        catalog = Catalog(root, create=False, read_only=True)
        try:
            token = catalog.names().collections.get(collection)
        finally:
            catalog.close()
        return [] if token is None else losses(root / COLLECTIONS_FOLDER / token, shape_of)


def _all_with_indexes(
    checked: list[CheckedCollection],
    beside: list[list[str]],
    root: Path,
    repair: bool,
    lock: folder.FolderLock | None,
) -> list[CheckedCollection]:
    settings = {"auto_build": False}
    with Database(root, read_only=not repair, settings=settings, lock=lock) as database:
        found = zip(checked, beside, strict=True)
        return [_with_beside(_with_indexes(one, database, b, repair), b) for one, b in found]


def _beside(made: Path) -> list[str]:
    try:
        with system_in_our_words(made):
            return beside_faults(made, shape_of, resolve(ENGINE, {})) if made.is_dir() else []
    except (VecdbError, OSError) as error:
        return [_words(error)]


def _words(error: VecdbError | OSError) -> str:
    return error.message if isinstance(error, VecdbError) else str(error)


def _with_beside(one: CheckedCollection, beside: list[str]) -> CheckedCollection:
    if not beside:
        return one
    return replace(one, problems=(*one.problems, *beside), repaired=False)


def _must_be_database(root: Path) -> None:
    made = root / COLLECTIONS_FOLDER
    if not (root / "catalog").is_dir() and not (made.is_dir() and any(made.iterdir())):
        raise DatabaseNotFound(f"{root} holds no vecdb database")


def _must_be_writable(root: Path) -> None:
    if not _may_be_written(root):
        raise ReadOnly(f"{root} may not be written, so it cannot be repaired; nothing was changed")


def _may_be_written(root: Path) -> bool:
    return os.access(root, os.W_OK, effective_ids=True)


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


def _checked(
    root: Path, repair: bool
) -> tuple[CheckedCollection, list[Path], list[CheckedCollection]]:
    """(the catalog, the folders of the collections, the collections)"""
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
    except (VecdbError, OSError) as error:
        # Without a catalog the collections have no names.
        return first if first.problems else replace(first, problems=(_words(error),)), [], []
    try:
        named = catalog.names().collections
    finally:
        catalog.close()
    folders = [root / COLLECTIONS_FOLDER / token for token in named.values()]
    checked = [
        _collection(name, root, made, options, repair)
        for name, made in zip(named, folders, strict=True)
    ]
    return first, folders, checked


def _collection(
    name: str, root: Path, made: Path, options: Mapping[str, Any], repair: bool
) -> CheckedCollection:
    found: tuple[str, ...] = ()
    done: RepairedFile | None = None
    try:
        with system_in_our_words(made):
            if not made.is_dir():
                return CheckedCollection(name, (f"its folder {made} is missing; restore a backup",))
            if repair and _may_be_written(made):
                settle(made)
            found = tuple(file_problems(made, shape_of, options))
            if not found or not repair:
                lost = losses(made, shape_of) if found else []
                return CheckedCollection(name, (*found, *lost))
            _must_be_writable(made)
            done = repair_file(made, shape_of, options, root, list(found))
            left = tuple(file_problems(made, shape_of, options))
            return CheckedCollection(name, found, not left, done, left)
    except (VecdbError, OSError) as error:
        # The others are looked at all the same, and what a repair has lost so far is told.
        told = (_words(error),)
        return CheckedCollection(name, found or told, False, done, told if found else ())


def _with_indexes(
    one: CheckedCollection, database: Database, beside: list[str], repair: bool
) -> CheckedCollection:
    """The same with what is wrong with the indexes, which are built again; what is `beside` it is told by others."""
    if one.problems and not one.repaired:
        return one

    def faults(collection: Collection) -> tuple[str, ...]:
        return tuple(fault for fault in collection.check().problems if fault not in beside)

    try:
        collection = database.get_collection(one.collection)
        found = faults(collection)
        if not found or not repair:
            return replace(one, problems=(*one.problems, *found))
        unusable = _unusable(collection._core)
        collection.build_index()
        done = _forget_unbuilt(collection._core, len(unusable))
        left = faults(collection)
    except (VecdbError, OSError) as error:
        found, left, done = (_words(error),), (_words(error),), ()
    return replace(
        one,
        problems=(*one.problems, *found),
        repaired=not left,
        done=(*one.done, *(left or done)),
    )


def _unusable(core: Core) -> list[int]:
    """The vector fields whose saved index cannot be used."""
    return [f.number for f in core.all_fields if f.raw_record is not None and f.record is None]


def _forget_unbuilt(core: Core, unusable: int) -> tuple[str, ...]:
    """Behind a build: forgets saved indexes that it has not replaced, since too few rows are left. What was done with
    those that were `unusable` before it, one sentence each."""
    unbuilt = _unusable(core)
    for number in unbuilt:
        core.drop_index(number)
    if not unbuilt:
        return (_BUILT,)
    sweep_files(core)
    return (*[_BUILT] * (len(unbuilt) < unusable), _FORGOTTEN)
