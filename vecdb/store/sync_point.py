"""The file that says which commit of an LMDB file is whole on the disk, and going back to that commit.

LMDB without fsync is safe when a process dies, since what it wrote is with the kernel. A power cut is
another matter: the kernel writes pages in any order, so the newest meta page may be on the disk without the
pages that it names. But the pages of an earlier commit are never written to as long as a reader stands on it
(see `lazy_sync`), so with the meta page of that commit put back the file is what it was then.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

from .. import disk
from ..errors import Corrupted, DatabaseLocked, ReadOnly
from ..layout import (
    BOOT_FILE,
    DATA_FILE,
    LMDB_LOCK_FILE,
    LMDB_META,
    SYNC_POINT,
    SYNC_POINT_FILE,
    SYNC_POINT_MAGIC,
)
from . import page_faults, pages
from .faults import full_or_internal
from .nodes import HEADER

log = logging.getLogger("vecdb")

_SLOT_BYTES = 4_096
"""Two slots are written in turn, each in a page of its own: what tears one leaves the other."""
_CHECKSUM = struct.Struct("<I")
_LOOKS, _PAUSE_S = 3, 0.002
"""Whoever looks while a slot is written may find it half written, for some microseconds."""


@dataclass(frozen=True, slots=True)
class SyncPoint:
    """A commit that is on the disk. `meta` is LMDB's meta of it, as it stands in its page."""

    number: int
    """Grows with each point of a file."""
    failed: bool
    """A later sync failed: what came after this point must not be trusted."""
    boot: bytes
    """The run of the kernel that holds what is not on the disk."""
    transaction: int
    meta: bytes

    @property
    def needs_return(self) -> bool:
        """Whether later commits may be there in part only: the machine went down, or its disk failed."""
        return self.failed or self.boot != boot_id()


def boot_id() -> bytes:
    """Another one after each start of the kernel; random where the kernel does not tell."""
    try:
        return Path(BOOT_FILE).read_bytes().strip()[:40]
    except OSError:
        return os.urandom(20).hex().encode()


def read_meta(data_file: int, transaction: int) -> bytes:
    """LMDB's meta of its newest commit. Nobody commits meanwhile, and `transaction` is that commit."""
    first = os.pread(data_file, LMDB_META.size, HEADER.size)
    at = HEADER.size + (transaction & 1) * LMDB_META.unpack(first)[2]
    meta = os.pread(data_file, LMDB_META.size, at)
    magic, _, _, _, found = LMDB_META.unpack(meta)
    if (magic, found) != (pages.MAGIC, transaction):
        raise Corrupted(
            f"the meta page of an LMDB file holds commit {found}, not {transaction}; run check"
        )
    return meta


def is_there(folder: Path) -> bool:
    """Whether a folder has a sync point. Corrupted where something else has its name, since whether there was one is not
    known then."""
    return disk.must_be_file(
        folder / SYNC_POINT_FILE,
        "move it away, and put back the file that was there. Was there none, nothing is lost; else the commits of the last "
        "moment before a power cut may be there in part only, so run `vecdb check`",
    )


def make(folder: Path) -> int:
    """A descriptor of a new file without a point, in which points find their room however full the disk. The caller has asked
    `is_there`."""
    file = os.open(folder / SYNC_POINT_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        disk.write_at(file, bytes(2 * _SLOT_BYTES), 0, folder / SYNC_POINT_FILE, "point")
        disk.sync_folder(folder, "point")
    except BaseException:
        os.close(file)
        raise
    return file


def write_slot(file: int, folder: Path, point: SyncPoint) -> None:
    """Puts a point in place of the one before the last; durable once the file, that of the folder, is synced."""
    packed = SYNC_POINT.pack(
        SYNC_POINT_MAGIC, point.number, point.failed, point.boot, point.transaction, point.meta
    )
    at = (point.number & 1) * _SLOT_BYTES
    slot = packed + _CHECKSUM.pack(zlib.crc32(packed))
    disk.write_at(file, slot, at, folder / SYNC_POINT_FILE, "point")


def newest(folder: Path) -> SyncPoint | None:
    """The newest whole point of a folder; None when it has none, as after each orderly end. Corrupted as `is_there`."""
    if not is_there(folder):
        return None
    try:
        data = (folder / SYNC_POINT_FILE).read_bytes()
    except FileNotFoundError:
        return None
    points = [_unpacked(data[at:]) for at in (0, _SLOT_BYTES)]
    return max((p for p in points if p is not None), key=lambda p: p.number, default=None)


def faults(folder: Path) -> list[str]:
    """What is wrong with the sync point of a folder, one sentence or none; others may write it meanwhile.

    A file without a point is not: so it begins. What a damaged one said is not known any more.
    """
    path = folder / SYNC_POINT_FILE
    found: list[str] = []
    for look in range(_LOOKS):
        try:
            found = _wrong(path.read_bytes()) if path.is_file() else []
        except FileNotFoundError:
            return []
        if not found:
            return []
        if look + 1 < _LOOKS:
            time.sleep(_PAUSE_S)
    return [
        f"{path}: {' and '.join(found)}, so it may not name the newest commit that is on the disk; a power cut while it was "
        "written leaves that too. Should the machine go down first, commits may be there in part only: open the "
        "database for writing, which syncs what is there and makes the file anew"
    ]


def _wrong(data: bytes) -> list[str]:
    if not any(data):
        return []  # fresh, or not even as long as it will be
    found = []
    for number in range(2):
        slot = data[number * _SLOT_BYTES : (number + 1) * _SLOT_BYTES]
        used = slot[: SYNC_POINT.size + _CHECKSUM.size]
        if any(used) and _unpacked(slot) is None:
            found.append(f"slot {number} fails its checksum")
        elif len(slot) < _SLOT_BYTES:
            found.append(f"slot {number} is cut off")
    return found


def _unpacked(slot: bytes) -> SyncPoint | None:
    packed, rest = slot[: SYNC_POINT.size], slot[SYNC_POINT.size :]
    if len(rest) < _CHECKSUM.size or zlib.crc32(packed) != _CHECKSUM.unpack_from(rest)[0]:
        return None
    magic, number, failed, boot, transaction, meta = SYNC_POINT.unpack(packed)
    if magic != SYNC_POINT_MAGIC:
        return None
    return SyncPoint(number, failed, boot.rstrip(b"\0"), transaction, meta)


def refuse_unsafe(folder: Path) -> None:
    """ReadOnly when a folder has to be opened for writing before anyone may read it."""
    try:
        point = newest(folder)
    except OSError as error:
        raise full_or_internal(folder, str(error)) from error
    if point is not None and point.needs_return:
        raise ReadOnly(
            f"{folder} was not closed before the machine or its disk failed; open the database for "
            "writing once, which brings it back to its last synced commit"
        )


def recover(folder: Path, *, repairing: bool = False) -> None:
    """Makes durable what is there, or goes back to the sync point; before LMDB opens for writing.

    After the death of a process the kernel has all of it. Killed in between, it is done again. DatabaseLocked
    while another process reads what would be undone. Corrupted, and nothing is written, where pages are not whole that
    the point leads to: of an older one some were written over. A repair goes on with what has fewer such pages, the
    point or the file as it is.
    """
    if not is_there(folder):
        return
    point = newest(folder)
    if point is not None or (folder / DATA_FILE).is_file():
        file = os.open(folder / DATA_FILE, os.O_RDWR)
        try:
            if point is None:
                # A torn first point is one that nothing was committed after. Of damaged ones nothing is known, and what
                # the kernel has is made durable as far as it can be.
                disk.sync_data(file, folder / DATA_FILE, "recover")
            elif point.needs_return or not _synced(file, folder):
                _must_be_alone(folder)
                if _must_go_back(folder, point, repairing):
                    _go_back(file, folder, point)
                    log.warning(
                        "%s: the machine or its disk failed before the last commits were synced; back at "
                        "LMDB transaction %d, the last one that was on the disk",
                        folder,
                        point.transaction,
                    )
                else:
                    disk.sync_data(file, folder / DATA_FILE, "recover")
        finally:
            os.close(file)
    forget(folder)


def forget(folder: Path) -> None:
    """Removes the file: all commits are on the disk."""
    disk.remove(folder / SYNC_POINT_FILE, "point")
    disk.sync_folder(folder, "point")


def _must_be_alone(folder: Path) -> None:
    """A process that has seen later commits would take those that get their numbers for the same. Whoever has
    the file open holds a lock on the first byte of LMDB's lock file."""
    try:
        locks = os.open(folder / LMDB_LOCK_FILE, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        fcntl.lockf(locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
    except (BlockingIOError, PermissionError):
        raise DatabaseLocked(
            f"the last commits of {folder} did not come to the disk and have to be undone, but another process "
            "reads them; close the database there (read_only=True), then open it again"
        ) from None
    finally:
        os.close(locks)


def _synced(file: int, folder: Path) -> bool:
    try:
        disk.sync_data(file, folder / DATA_FILE, "recover")
    except OSError:
        return False
    return True


def _must_go_back(folder: Path, point: SyncPoint, repairing: bool) -> bool:
    """Whether the point is to be trusted rather than the file; always so where all that it leads to is whole."""
    path = folder / DATA_FILE
    faults = page_faults.faults_from(path, point.meta)
    if not faults:
        return True
    if not repairing:
        raise Corrupted(
            f"{folder / SYNC_POINT_FILE} leads to LMDB transaction {point.transaction} of {path}, of which pages are damaged or "
            f"were written over since: {faults[0]}. It may be an older one, as it stays where a folder is copied over an "
            "older copy of it without removing what is gone. Nothing was changed. `vecdb check --repair` takes what has fewer "
            "damaged pages, that or the file as it is; or restore a backup",
            file=str(path),
        )
    here = page_faults.file_faults(path)
    # Of a file whose metas are damaged nothing more is known than that.
    if not here or (not page_faults.bounds_faults(path) and len(here) < len(faults)):
        log.warning(
            "%s: its sync point leads to pages that are not whole (%s, %d faults), the file as it is has %d; so the "
            "point is passed over",
            folder,
            faults[0],
            len(faults),
            len(here),
        )
        return False
    return True


def _go_back(file: int, folder: Path, point: SyncPoint) -> None:
    page_bytes = LMDB_META.unpack(point.meta)[2]
    # Its own place first: until the other is overwritten, it may be the newer and the broken one.
    for slot in (point.transaction & 1, 1 - (point.transaction & 1)):
        at = slot * page_bytes + HEADER.size
        disk.write_at(file, point.meta, at, folder / DATA_FILE, "recover")
    disk.sync_data(file, folder / DATA_FILE, "recover")
