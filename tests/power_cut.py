"""Power cuts of files that are synced by `os.fsync` and `os.fdatasync`, simulated.

What a file holds at its last sync is on the disk, and so are the names that its folder had when that was
synced. Of what was written later each page of 4 KiB is there or not, at random, as of the moment of the cut.
LMDB's own syncs are not seen: it is for files that LMDB writes without any.
"""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

PAGE = 4_096


class Disk:
    """Watches the files of one folder; `patch` puts it between os and its callers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.synced: dict[int, bytes] = {}
        """By inode."""
        self.names: dict[str, int] = {}
        self._lock = threading.Lock()
        """No sync comes to its end while the power is cut."""
        self.remember()

    def remember(self) -> None:
        """All that is there is on the disk, as after an orderly end."""
        self.names = self._names()
        self.synced = {inode: (self.folder / n).read_bytes() for n, inode in self.names.items()}

    def _names(self) -> dict[str, int]:
        return {p.name: p.stat().st_ino for p in self.folder.iterdir() if p.is_file()}

    def patch(self, monkeypatch) -> None:
        for name in ("fsync", "fdatasync"):
            real = getattr(os, name)

            def sync(descriptor, real=real):
                with self._lock:
                    self._sync(descriptor, real)

            monkeypatch.setattr(os, name, sync)

    def _sync(self, descriptor, real) -> None:
        # What is written while it runs may be on the disk or not, and is taken to be not.
        inode, names = os.fstat(descriptor).st_ino, self._names()
        found = [name for name, number in names.items() if number == inode]
        data = (self.folder / found[0]).read_bytes() if found else None
        real(descriptor)
        if inode == self.folder.stat().st_ino:
            self.names = names
            self.synced = {i: d for i, d in self.synced.items() if i in names.values()}
        elif data is not None:
            self.synced[inode] = data

    def cut(self, target: Path, rng: random.Random) -> None:
        """Writes what is left into the new folder `target`."""
        with self._lock:
            self._cut(target, rng)

    def _cut(self, target: Path, rng: random.Random) -> None:
        target.mkdir()
        now = self._names()
        names = dict(self.names)
        for name in {*now, *names}:
            if now.get(name) != names.get(name) and rng.random() < 0.5:
                names[name] = now.get(name, -1)
        where = {inode: name for name, inode in now.items()}
        share = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        for name, inode in names.items():
            if inode < 0:
                continue
            old = self.synced.get(inode, b"")
            new = (self.folder / where[inode]).read_bytes() if inode in where else old
            (target / name).write_bytes(_mixed(old, new, rng, share))


def _mixed(old: bytes, new: bytes, rng: random.Random, share: float) -> bytes:
    if new == old:
        return old
    pages = bytearray(old)
    if len(new) > len(pages) and rng.random() < 0.8:
        pages += bytes(len(new) - len(pages))
    for at in range(0, len(pages), PAGE):
        if new[at : at + PAGE] != pages[at : at + PAGE] and rng.random() < share:
            pages[at : at + PAGE] = new[at : at + PAGE]
    return bytes(pages)
