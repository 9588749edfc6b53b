"""Changes of files that must outlive the process: the only door to fsync, renames, removals, commits and writes in place.

Whoever changes files says for what (`rows`, `catalog`, `index`, ...), in one word. Each step reaches two
failpoints, `WHAT.STEP.before` and `WHAT.STEP.after` (`vecdb.failpoints`). No step makes a name durable
by itself: after names have changed, `sync_folder` does.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from .errors import Corrupted
from .failpoints import reach

log = logging.getLogger("vecdb")

NO_LINK = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""Why a file system gives a file no second name: one may do without, or copy it."""
ASIDE_SUFFIX = ".tmp"
"""Ends the name of a file that is not complete yet."""
_BLOCK_BYTES = 512
"""The unit of `st_blocks`, whatever the blocks of the disk are."""


_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISREG, "a file"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def must_be_file(path: Path, advice: str) -> bool:
    """Whether there is a file of this name, or a link to one; asked before it is opened, since that would never end
    for a pipe. 3 us.

    Corrupted, which says what is there instead and gives the `advice`, for a folder, a pipe, a link that leads nowhere
    and whatever else is no file. OSError when the system does not tell.
    """
    return _must_be(path, stat.S_ISREG, "file", advice)


def must_be_folder(path: Path, advice: str) -> bool:
    """The same of a folder."""
    return _must_be(path, stat.S_ISDIR, "folder", advice)


def _must_be(path: Path, wanted: Callable[[int], bool], word: str, advice: str) -> bool:
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if not os.path.islink(path):
            return False
        found = "a link that leads nowhere"
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        found = "a link that leads to itself"
    else:
        if wanted(mode):
            return True
        found = next((name for is_one, name in _KINDS if is_one(mode)), "a device")
    raise Corrupted(f"{path} is {found}, where a {word} belongs; {advice}", file=str(path))


def others_in(folder: Path, ours: frozenset[str]) -> list[str]:
    """Names in a folder besides these, sorted; none where there is no folder, as while another process takes it away."""
    try:
        return sorted({entry.name for entry in folder.iterdir()} - ours)
    except FileNotFoundError:
        return []


def make_folder(path: Path, what: str, *, parents: bool = False, exist_ok: bool = False) -> None:
    """Makes a folder; with `parents` those above it too, whose names are durable then: the caller sees to that of the
    folder itself. FileExistsError unless `exist_ok`."""
    missing = []
    if parents:
        missing = list(itertools.takewhile(lambda above: not above.exists(), path.parents))
    reach(f"{what}.mkdir.before", path)
    path.mkdir(parents=parents, exist_ok=exist_ok)
    reach(f"{what}.mkdir.after", path)
    for made in missing:
        with suppress(PermissionError):  # who may write into a folder may not always read it
            sync_folder(made.parent, what)


def make_empty(path: Path, what: str) -> None:
    """Makes an empty file, if there is nothing of this name."""
    reach(f"{what}.touch.before", path)
    if not os.path.lexists(path):
        path.touch()
    reach(f"{what}.touch.after", path)


def reserve(path: Path, size_bytes: int, what: str) -> None:
    """Makes a file of at least this size, if it is not there, all of whose bytes have their place on the disk.

    A file that is mapped must not have holes: on a full disk, whoever writes into one is killed (SIGBUS). Not
    for a file on which this process holds record locks, which would be lost.
    """
    reach(f"{what}.reserve.before", path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        found = os.fstat(descriptor)
        if found.st_size < size_bytes or found.st_blocks * _BLOCK_BYTES < found.st_size:
            os.posix_fallocate(descriptor, 0, max(size_bytes, found.st_size))
    finally:
        os.close(descriptor)
    reach(f"{what}.reserve.after", path)


def write_at(descriptor: int, data: bytes, offset: int, path: Path, what: str) -> None:
    """Writes all of `data` at a place of an open file; durable once that is synced."""
    reach(f"{what}.write.before", path)
    view, done = memoryview(data), 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], offset + done)
    reach(f"{what}.write.after", path)


def sync_file(file: BinaryIO, path: Path, what: str) -> None:
    """Makes all that was written to an open file durable."""
    file.flush()
    reach(f"{what}.sync.before", path)
    os.fsync(file.fileno())
    reach(f"{what}.sync.after", path)


def sync_data(descriptor: int, path: Path, what: str) -> None:
    """Makes durable what a file holds and how long it is, whoever wrote it; not when it was changed."""
    reach(f"{what}.sync.before", path)
    os.fdatasync(descriptor)
    reach(f"{what}.sync.after", path)


def sync_folder(path: Path, what: str) -> None:
    """Makes the names in a folder durable, not only what the files hold."""
    reach(f"{what}.sync-folder.before", path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    reach(f"{what}.sync-folder.after", path)


def rename(source: Path, target: Path, what: str) -> None:
    """Gives a file or folder another name on the same disk, in place of the file that has it."""
    reach(f"{what}.rename.before", target)
    os.replace(source, target)
    reach(f"{what}.rename.after", target)


def link(source: Path, target: Path, what: str) -> None:
    """Gives a file a second name on the same disk. FileExistsError when there is one of this name."""
    reach(f"{what}.link.before", target)
    os.link(source, target)
    reach(f"{what}.link.after", target)


def remove(path: Path, what: str) -> None:
    """Removes a file, if it is there."""
    reach(f"{what}.remove.before", path)
    path.unlink(missing_ok=True)
    reach(f"{what}.remove.after", path)


def remove_folder(path: Path, what: str) -> None:
    """Removes an empty folder."""
    reach(f"{what}.rmdir.before", path)
    path.rmdir()
    reach(f"{what}.rmdir.after", path)


def remove_tree(path: Path, what: str, *, last: str | None = None, paced: bool = False) -> None:
    """Removes a folder with all in it, as far as it can: what stays is left to the next who sweeps.

    Where the folder is a link, only that goes: what it leads to is not ours, and stays.
    Errors of the operating system are of no account. The file named `last` is there until all else is
    gone, durably: it tells a later opening what the rest is. `paced`: each file is gone for good before the next
    goes. A file system that tells its disk what is free (`discard`) holds up all commits meanwhile, for 25 ms a 16 MB
    where that was measured; of many files at once for as long as all take.
    """
    with suppress(OSError):
        if path.is_symlink():
            log.warning("%s is a link: it is removed, and what it leads to stays", path)
            remove(path, what)
            return
        for inner in sorted(path.iterdir()):
            if inner.name != last:
                _remove_any(inner, what)
                if paced:
                    sync_folder(path, what)
        if last is not None and os.path.lexists(path / last):
            if any(inner.name != last for inner in path.iterdir()):
                return
            sync_folder(path, what)
            _remove_any(path / last, what)
        remove_folder(path, what)


def _remove_any(path: Path, what: str) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_tree(path, what)
    else:
        with suppress(OSError):
            remove(path, what)


@contextmanager
def written_aside(path: Path, what: str) -> Iterator[BinaryIO]:
    """A file to write and read, which has the name `path` when the body has ended without an error.

    It is durable then, its name not before `sync_folder`. After an error nothing is left of it.
    """
    aside = path.with_name(path.name + ASIDE_SUFFIX)
    try:
        reach(f"{what}.write.before", aside)
        with open(aside, "w+b") as file:
            yield file
            reach(f"{what}.write.after", aside)
            sync_file(file, aside, what)
        rename(aside, path, what)
    except BaseException:
        with suppress(OSError):
            remove(aside, what)
        raise


def commit(transaction: Any, folder: Path, what: str) -> None:
    """Commits an LMDB transaction of the environment in `folder`; as durable as that was opened.

    When the point before it raises, the transaction is undone. What the point after it raises is logged and goes no
    further: the commit stands.
    """
    try:
        reach(f"{what}.commit.before", folder)
    except BaseException:
        transaction.abort()
        raise
    transaction.commit()
    try:
        reach(f"{what}.commit.after", folder)
    except Exception:
        log.exception("%s: a commit of %s stands, but the point after it failed", folder, what)


def sync_environment(environment: Any, folder: Path, what: str) -> None:
    """Makes all commits of an LMDB environment durable that does not sync by itself."""
    reach(f"{what}.sync.before", folder)
    environment.sync(True)
    reach(f"{what}.sync.after", folder)
