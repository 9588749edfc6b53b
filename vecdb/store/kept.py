"""Files of an older format, kept beside those that were made of them: the way back from an upgrade."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from .. import disk
from ..errors import StorageFull, VecdbError
from ..layout import DATA_FILE, GOING_FILE, KEPT_FILE, LMDB_LOCK_FILE
from .environment import Environment
from .faults import full_or_internal

_WHAT = "downgrade"
_NAME = re.compile(re.escape(KEPT_FILE).replace(r"\{\}", r"(\d+)"))


def keep(environment: Environment, old_format: int) -> None:
    """Copies the file before it is upgraded; durable on return. Takes as much room again."""
    folder = environment.folder
    path = folder / KEPT_FILE.format(old_format)
    try:
        with disk.written_aside(path, "keep") as file:
            environment.copy_to(file.fileno())
        disk.sync_folder(folder, "keep")
    except (OSError, lmdb.Error) as error:
        found: VecdbError = full_or_internal(folder, str(error))
        if isinstance(found, StorageFull):
            found = StorageFull(
                f"no room to keep {folder} in format {old_format} while it is upgraded; nothing was "
                "changed. Free some, open it with read_only=True, or open it with "
                "keep_old_format=False where you will not want to go back"
            )
        raise found from error


def is_aside(name: str) -> bool:
    """Whether a file is one that was to be kept, and that a crash has left incomplete."""
    return name.endswith(disk.ASIDE_SUFFIX) and bool(
        _NAME.fullmatch(name.removesuffix(disk.ASIDE_SUFFIX))
    )


def kept(folder: Path) -> dict[int, Path]:
    """Format to file, the newest last."""
    found = {}
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match and path.is_file():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


@contextmanager
def put_back(folder: Path, old_format: int) -> Iterator[None]:
    """Puts a kept file in the place of the present one, which nobody has open for writing.

    In the body the caller opens it. When that fails, both are where they were; where the file system has no hard links,
    the kept file stays in place. Killed in between, all is as before or as after. Kept files of later formats are left.
    """
    present, going = folder / DATA_FILE, folder / GOING_FILE
    older = folder / KEPT_FILE.format(old_format)
    disk.remove(going, _WHAT)
    try:
        disk.link(present, going, _WHAT)
    except OSError as error:
        if error.errno not in disk.NO_LINK:
            raise
    disk.remove(folder / LMDB_LOCK_FILE, _WHAT)
    disk.rename(older, present, _WHAT)
    disk.sync_folder(folder, _WHAT)
    try:
        yield
    except BaseException:
        if going.exists():
            disk.link(present, older, _WHAT)
            disk.rename(going, present, _WHAT)
            disk.sync_folder(folder, _WHAT)
        raise
    disk.remove(going, _WHAT)
    disk.sync_folder(folder, _WHAT)


def discard(folder: Path) -> int:
    """Removes all kept files; how many bytes they took."""
    taken = 0
    for path in kept(folder).values():
        taken += path.stat().st_size
        disk.remove(path, _WHAT)
    if taken:
        disk.sync_folder(folder, _WHAT)
    return taken
