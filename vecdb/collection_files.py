"""The folder of a collection: which files belong there, and what they take."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from . import disk
from .collection_info import shape_of, to_json
from .core import Core
from .errors import CollectionNotFound, Corrupted, VecdbError
from .index import is_beside, is_ours
from .layout import DATA_FILE, GOING_FILE, TOKEN, UNNAMED_FILE
from .store import CollectionStore, full_or_internal, kept, system_in_our_words
from .types import CollectionInfo

log = logging.getLogger("vecdb")

_NOT_OURS = "%s is named by no catalog and bears no mark of ours; left as it is"


def sweep_files(core: Core) -> None:
    """Removes index files that the store does not name: replaced ones, and what a crash left behind.

    Only what has a name of ours: anything else is somebody's. Not the mark: while a build ends, a drop may have just set
    it, and a crash would leave a folder that nobody names, and that counts as somebody's data.
    """
    keep: set[str] = set()
    for field in core.all_fields:
        keep.update(() if field.record is None else field.record.files())
    named = [field.record.graph.name for field in core.all_fields if field.record is not None]
    for path in core.store.folder.iterdir():
        beside = any(is_beside(path.name, name) for name in named)
        ours = is_ours(path.name) or path.name == GOING_FILE or kept.is_aside(path.name)
        if ours and path.name not in keep and not beside and not path.is_dir():
            disk.remove(path, "sweep")


def sweep_opened(core: Core) -> None:
    """The same where a collection is opened that the catalog names, and the mark, which says nothing any more.

    Whoever drops it must not set the mark meanwhile.
    """
    sweep_files(core)
    mark = core.store.folder / UNNAMED_FILE
    if os.path.lexists(mark) and not mark.is_dir():
        disk.remove(mark, "sweep")
        disk.sync_folder(core.store.folder, "sweep")


def sweep_folders(root: Path, known: Collection[str], remove: Callable[[str, str], None]) -> None:
    """Has folders removed that a crash left behind: marked ones, and empty ones with such a name as we give, since the
    mark is the first that comes into a folder and the last that goes. Tells of those that are nobody's but hold something,
    and of what it may not look into; both stay, and so does what a link leads to.
    """
    try:
        found = sorted(root.iterdir())
    except OSError as error:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            log.warning("%s cannot be looked into: %s", root, error)
        return
    for path in found:
        if path.name in known:
            continue
        try:
            if _is_marked(path):
                remove(path.name, "sweep")
            elif path.is_dir() and (path.is_symlink() or any(path.iterdir())):
                log.warning(_NOT_OURS, path)
            elif path.is_dir() and TOKEN.fullmatch(path.name):
                disk.remove_folder(path, "sweep")
        except OSError as error:
            log.warning("%s cannot be looked into, and is left as it is: %s", path, error)


def _is_marked(path: Path) -> bool:
    """Whether a folder, or what a link leads to, has the file that calls it litter. OSError when nobody may look."""
    try:
        return stat.S_ISREG(os.lstat(path / UNNAMED_FILE).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def make_files(folder: Path, info: CollectionInfo, options: Mapping[str, Any]) -> None:
    """Makes the folder of an empty collection, complete, durable, and marked, since nothing names it yet."""
    with system_in_our_words(folder):
        disk.make_folder(folder, "create", parents=True)
        mark_unnamed(folder, "create")
        settings = to_json(info)
        CollectionStore.create(folder, settings, shape_of(settings), options).close()
        for path in (folder, folder.parent, folder.parent.parent):
            disk.sync_folder(path, "create")


def mark_unnamed(folder: Path, what: str) -> None:
    """Says durably that the folder of a collection is litter unless the catalog names it."""
    # Else somebody has removed it; and what a link leads to is no business of ours.
    if folder.is_dir() and not folder.is_symlink():
        disk.make_empty(folder / UNNAMED_FILE, what)
        disk.sync_folder(folder, what)


def unmark(folder: Path, what: str) -> None:
    """Takes the mark away durably, as far as it can: named and marked is right too, and the next opening sweeps it."""
    with suppress(OSError):
        disk.remove(folder / UNNAMED_FILE, what)
        disk.sync_folder(folder, what)


@contextmanager
def marked(folder: Path, is_named: Callable[[], bool], what: str) -> Iterator[None]:
    """Marks a folder before the body takes its name away. Where that fails and the catalog names it still, the collection
    lives on, and must not be taken for litter by whoever cannot read the catalog."""
    try:
        mark_unnamed(folder, what)
        yield
    except BaseException:
        with suppress(
            VecdbError, OSError
        ):  # a catalog that cannot be read any more: the mark stays
            if is_named():
                unmark(folder, what)
        raise


def folder_bytes(folder: Path) -> int:
    """Bytes that the files of a folder take on disk; sparse parts count nothing. Corrupted where it has gone."""
    total = 0
    try:
        for path in folder.iterdir():
            with suppress(FileNotFoundError):  # an index file may be replaced while we look
                total += path.stat().st_blocks * 512
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Corrupted(
            f"{folder} has gone; put it back with the database closed, or restore a backup"
        ) from error
    except OSError as error:
        raise full_or_internal(folder, str(error)) from error
    return total


def must_be_own(folder: Path, name: str, names: Mapping[str, str]) -> None:
    """Corrupted where links lead another collection to the same data file, so that one would write over what the other
    knows; the one whose own file it is may be opened. `names` are those of all collections by token."""
    try:
        held, linked = os.stat(folder / DATA_FILE), _is_led_away(folder)
    except OSError:
        return  # whoever opens it tells
    if held.st_nlink == 1 and not linked:
        return
    for token, other in names.items():
        beside = f"{folder.parent}/{token}/{DATA_FILE}"  # ten thousand paths as objects would take a fifth of a second
        with suppress(OSError):
            if token == folder.name or not os.path.samestat(held, os.stat(beside)):
                continue
            if linked or not _is_led_away(folder.with_name(token)):
                raise Corrupted(
                    f"{folder / DATA_FILE} and {beside} are one file by a link, and collections {name!r} and {other!r} share "
                    "it; put a copy in the place of the link, or restore a backup. Nothing was changed",
                    collection=name,
                    other=other,
                )


def _is_led_away(folder: Path) -> bool:
    """Whether the data file of a collection is somewhere else, by a link."""
    return folder.is_symlink() or (folder / DATA_FILE).is_symlink()


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
