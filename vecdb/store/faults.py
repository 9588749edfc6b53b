"""Errors of LMDB in our own words."""

from __future__ import annotations

import errno
import mmap
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb

from ..errors import (
    Closed,
    Corrupted,
    FormatMismatch,
    Internal,
    LimitExceeded,
    ReadOnly,
    StorageFull,
    VecdbError,
)
from ..layout import DATA_FILE, META_FORMAT, format_number
from ..memory import must_leave_room

_LITTLE_ROOM_BYTES = 16 << 20
_THE_DISK_FAILED = (errno.EIO, errno.EREMOTEIO, errno.EUCLEAN, errno.ESTALE)


class MapFull(Exception):
    """The map has to grow before the transaction can be repeated."""


@contextmanager
def in_our_words(folder: Path) -> Iterator[None]:
    """Errors of LMDB as those of `vecdb.errors`; MapFull where growing the map helps."""
    try:
        yield
    except (VecdbError, lmdb.MapResizedError, lmdb.NotFoundError):
        raise
    except lmdb.MapFullError:
        raise MapFull from None
    except lmdb.PanicError as error:
        # LMDB could not write its meta page, and does not know what of it is on the disk.
        raise Closed(
            f"writing to {folder / DATA_FILE} failed, and it is not used any more; mend the disk, then open "
            "the database again. What was acknowledged is there"
        ) from error
    except (lmdb.CorruptedError, lmdb.PageNotFoundError) as error:
        raise Corrupted(f"{folder / DATA_FILE} is damaged ({error}); restore a backup") from error
    except (lmdb.VersionMismatchError, lmdb.InvalidError) as error:
        raise FormatMismatch(
            f"{folder / DATA_FILE} is not a file of this LMDB version ({error})"
        ) from error
    except (lmdb.Error, OSError) as error:
        raise full_or_internal(folder, str(error)) from error


@contextmanager
def system_in_our_words(folder: Path) -> Iterator[None]:
    """Errors of the operating system, met at files in `folder`, as those of `vecdb.errors`; those that say
    nothing of room, permissions, limits or a disk that fails as they are."""
    try:
        yield
    except VecdbError:
        raise
    except OSError as error:
        told = full_or_internal(folder, str(error))
        if isinstance(told, Internal) and error.errno not in _THE_DISK_FAILED:
            raise
        raise told from error


def full_or_internal(folder: Path, text: str) -> VecdbError:
    """The error that a message of LMDB or the system stands for."""
    full = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), os.strerror(errno.EFBIG))
    if os.strerror(errno.EMFILE) in text or os.strerror(errno.ENFILE) in text:
        return LimitExceeded(
            f"too many files are open to open {folder}; raise the limit (ulimit -n), or lower the setting "
            "max_open_collections: each that is open takes five files and those of its index"
        )
    if os.strerror(errno.ENOMEM) in text:
        return LimitExceeded(
            f"not enough memory or address space to map {folder}; lift the limit (ulimit -v), or open "
            "with a smaller map_initial_bytes"
        )
    if any(os.strerror(number) in text for number in (errno.EROFS, errno.EACCES, errno.EPERM)):
        return ReadOnly(
            f"{folder} may not be written: {text}. Give this process the permission, or mount the disk for "
            "writing, and repeat; nothing was changed"
        )
    # LMDB reports a write that was cut short as EIO, whatever cut it.
    cut_short = os.strerror(errno.EIO) in text and _room_bytes(folder) < _LITTLE_ROOM_BYTES
    if cut_short or any(words in text for words in full):
        return StorageFull(f"no space left for {folder}; nothing was written. Free some and repeat")
    return Internal(f"LMDB or the disk refused: {text} ({folder})")


def no_thread(error: RuntimeError) -> LimitExceeded:
    """The error of a thread that could not be started."""
    return LimitExceeded(
        f"no thread to be had ({error}); nothing was written. Lift the limit of memory (ulimit -v) or "
        "threads (ulimit -u), and repeat"
    )


def must_have_address_space(size_bytes: int, folder: Path) -> None:
    """LimitExceeded when this process may not map so much more. LMDB gives its old map up before it asks."""
    try:
        must_leave_room(size_bytes)
        mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ).close()
    except MemoryError as error:
        raise full_or_internal(folder, f"{os.strerror(errno.ENOMEM)}: {error}") from None
    except OSError as error:
        raise full_or_internal(folder, str(error)) from error


def _room_bytes(folder: Path) -> int:
    """How far the data file can still grow, by the disk and by the process's limit of file sizes."""
    try:
        disk = os.statvfs(folder)
        room = disk.f_bavail * disk.f_frsize
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY:
            room = min(room, limit - (folder / DATA_FILE).stat().st_size)
    except OSError:
        return _LITTLE_ROOM_BYTES  # nobody can say, or there is no such file
    return room


def refuse_damaged(folder: Path, faults: list[str]) -> None:
    """Corrupted when there are any, before LMDB reads what they name."""
    if faults:
        more = f" and {len(faults) - 1} more faults" if len(faults) > 1 else ""
        raise Corrupted(
            f"{folder / DATA_FILE} is damaged: {faults[0]}{more}. Nothing was changed; restore a backup",
            faults=faults[:100],
        )


def format_told(env: Any) -> str:
    """What a file of another version says of its format."""
    try:
        with env.begin(db=env.open_db(b"meta", create=False)) as transaction:
            found = format_number(bytes(transaction.get(META_FORMAT, b"")))
    except lmdb.Error:
        return ""
    return "" if found is None else f", and says that its format is {found}"
