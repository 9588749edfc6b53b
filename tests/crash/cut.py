"""What a power cut leaves of a folder: what was synced, and any part of what was not.

`Disk` follows the failpoints of `vecdb.disk` and keeps of each file what its last fsync made durable, and
of each folder the names that its last fsync made durable. A cut writes another folder, in which

- a name that was made, changed or removed since the last fsync of its folder is there as it was or as it is.
  A rename is one step: the new name with the file, or the old one, also between two folders; an fsync of
  either of the two makes it durable. (A file's own fsync makes its name durable on most file systems. Nothing
  here counts on that.)
- a file holds, of the pages of 4 KiB that were written since its last fsync, any; others are as they were, or
  zeros where the file is longer than it was. A length that was not synced is there or not.
- a file of LMDB is written in the order that LMDB keeps: a commit writes the pages of data, then
  fdatasync, then one of the two first pages (the meta pages), through a descriptor opened with O_DSYNC. So while a
  commit runs, any of its data pages are there and neither meta page is newer, or all of them and perhaps the
  meta page, which is shorter than a sector and so is there as a whole or not at all. After a commit all is there.
  The environment that a vacuum copies into syncs nothing before its end: of it any page may be missing.
- with durability `interval` the file of a collection is written without a sync, its meta pages too: of it any
  page may be missing that was written since the last sync began.

A cut at the point before a commit falls inside the commit: what it has written is known only afterwards.
Lock files hold nothing that outlives a process; they come back empty.
"""

from __future__ import annotations

import os
import random
import stat
import threading
from dataclasses import dataclass
from pathlib import Path

from vecdb import layout

PAGE = 4096
META_PAGES = 2

Key = tuple[int, str]
"""A name: number of the folder it is in, and itself."""


@dataclass
class _File:
    descriptor: int
    """Keeps the file, and its number, even when no name is left."""
    durable: bytes | None = None
    """Content at the last fsync; None before the first."""


class Disk:
    """Follows the files below `root` from here on: all that is there now is durable. Any thread may call."""

    def __init__(self, root: Path, seed: int, *, lazy: bool = False) -> None:
        """`lazy` is durability `interval`."""
        self._root = root
        self._lazy = lazy
        self._begun: dict[int, bytes] = {}
        """What files held when their last sync began: what is written while it runs may be on the disk or not."""
        self._in_order: set[int] = set()
        """Files of LMDB in which a commit runs that waits for the disk."""
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self._files: dict[int, _File] = {}
        self._folders: dict[int, int] = {}
        """Folders by their number, with a descriptor that keeps the number from being given again."""
        self._names: dict[Key, int] = self._now()
        for number, file in self._files.items():
            file.durable = self._content(number)

    def reached(self, name: str, path: Path) -> None:
        """A failpoint is reached."""
        what, step, when = name.split(".")
        with self._lock:
            now = self._now()
            file = path / layout.DATA_FILE if path.is_dir() else path
            if step == "commit" and not self._is_unsynced(what, path):
                (self._in_order.add if when == "before" else self._in_order.discard)(
                    self._number(file)
                )
            if when == "before":
                if step == "sync" and self._number(file) in self._files:
                    self._begun[self._number(file)] = self._content(self._number(file))
            elif step == "sync-folder":
                self._folder_synced(path, now)
            elif step == "sync":
                self._file_synced(file, self._begun.pop(self._number(file), None))
            elif step == "commit" and what != "vacuum" and not self._is_unsynced(what, path):
                self._file_synced(file)

    def _is_unsynced(self, what: str, folder: Path) -> bool:
        # A collection is made durably, whatever the level; so is damage.
        return self._lazy and self._is_lazy(folder) and what not in ("create", "tables", "damage")

    @staticmethod
    def _is_lazy(folder: Path) -> bool:
        """Whether commits in this folder of LMDB do not wait for the disk: all but those of names, and of the file that a
        repair makes, whatever the level."""
        if folder.name.startswith(layout.COMPACTING_PREFIX):
            return False
        return folder.name not in (layout.CATALOG_FOLDER, layout.CATALOG_ASIDE)

    def cut(self, target: Path) -> tuple[int, int]:
        """Writes what a cut at this moment leaves to `target`; (pages, names) that are not as they are now.

        May be called once, in place of `reached` for the point after a commit: then the cut falls inside.
        """
        with self._lock:
            now = self._now()
            names = self._some_names(now)
            differ = sum(now.get(key) != names.get(key) for key in {*now, *names})
            return self._write(self._number(self._root), names, target), differ

    def close(self) -> None:
        """Lets go of all files, and of the room of those that have no name any more. Nothing may be called after it."""
        with self._lock:
            for descriptor in (
                *self._folders.values(),
                *(f.descriptor for f in self._files.values()),
            ):
                os.close(descriptor)
            self._folders, self._files = {}, {}

    # -- what is there

    def _number(self, path: Path) -> int:
        try:
            return os.stat(path).st_ino
        except FileNotFoundError:
            return -1

    def _now(self) -> dict[Key, int]:
        """All names below the root; files that are new are kept open."""
        found: dict[Key, int] = {}
        waiting = [self._root]
        while waiting:
            folder = waiting.pop()
            number = self._number(folder)
            try:
                entries = list(os.scandir(folder))
            except FileNotFoundError:
                continue
            for entry in entries:
                path = Path(entry.path)
                try:
                    mode = os.stat(path)
                    if stat.S_ISDIR(mode.st_mode):
                        if mode.st_ino not in self._folders:
                            self._folders[mode.st_ino] = os.open(path, os.O_RDONLY)
                        waiting.append(path)
                    elif not _is_lock(entry.name) and mode.st_ino not in self._files:
                        self._files[mode.st_ino] = _File(os.open(path, os.O_RDONLY))
                except FileNotFoundError:
                    continue
                found[number, entry.name] = mode.st_ino
        return found

    def _content(self, number: int) -> bytes:
        descriptor = self._files[number].descriptor
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)

    # -- what is durable

    def _file_synced(self, path: Path, content: bytes | None = None) -> None:
        number = self._number(path)
        if number in self._files:
            self._files[number].durable = self._content(number) if content is None else content

    def _folder_synced(self, path: Path, now: dict[Key, int]) -> None:
        folder = self._number(path)
        mine = {key: number for key, number in now.items() if key[0] == folder}
        gone = {n for key, n in self._names.items() if key[0] == folder and now.get(key) != n}
        moved = {*mine.values(), *gone}
        kept = {
            key: number
            for key, number in self._names.items()
            if key[0] != folder and (number not in moved or now.get(key) == number)
        }
        # What has moved from here to another folder is there for good too.
        there = {key: number for key, number in now.items() if number in gone}
        self._names = kept | there | mine

    # -- what is left

    def _some_names(self, now: dict[Key, int]) -> dict[Key, int]:
        then = self._names
        names = dict(then)
        changed = {
            number
            for key in {*now, *then}
            if now.get(key) != then.get(key)
            for number in (now.get(key), then.get(key))
            if number is not None
        }
        share = self._rng.choice([0.0, 0.5, 0.5, 1.0])
        for number in self._rng.sample(sorted(changed), len(changed)):
            keys = [key for key, held in now.items() if held == number]
            gained = any(then.get(key) != number for key in keys)
            replaced = not gained and any(
                now.get(k) not in (None, number) for k, held in then.items() if held == number
            )
            if replaced or self._rng.random() >= share:
                # What another file has replaced goes when that one comes; so does one of two names of a file
                # (TEST_SEED=3081515: the name of a collection's file was gone before the new file had come).
                continue
            for key in [key for key, held in names.items() if held == number]:
                # Nor does the one under which another file has taken its place (TEST_SEED=12336368: a file that had
                # got a second name lost its first before the other was there).
                if now.get(key) in (None, number):
                    del names[key]
            names.update(dict.fromkeys(keys, number))
        return names

    def _write(self, folder: int, names: dict[Key, int], target: Path) -> int:
        target.mkdir()
        left_out = 0
        for (parent, name), number in names.items():
            if parent != folder:
                continue
            if number in self._folders:
                left_out += self._write(number, names, target / name)
            elif _is_lock(name):
                (target / name).touch()
            else:
                in_order = name == layout.DATA_FILE and (
                    number in self._in_order or not (self._lazy and self._is_lazy(target))
                )
                content, missing = self._some_pages(number, in_order)
                (target / name).write_bytes(content)
                left_out += missing
        return left_out

    def _some_pages(self, number: int, lmdb: bool) -> tuple[bytes, int]:
        """(content after the cut, pages of it that are not as they are now)."""
        rng, now, then = self._rng, self._content(number), self._files[number].durable
        length = max(len(now), len(then or b""))
        pages = [
            start
            for start in range(0, length, PAGE)
            if then is None or now[start : start + PAGE] != then[start : start + PAGE]
        ]
        if not pages:
            return now, 0
        share = rng.choice([0.0, rng.random(), 1.0])
        written = [start for start in pages if rng.random() < share]
        if lmdb and then is not None:
            meta = META_PAGES * PAGE
            data = [start for start in pages if start >= meta]
            written = [start for start in written if start >= meta]
            if len(written) == len(data) and rng.random() < 0.5:
                written = pages
        content = bytearray(then or b"")
        for start in written:
            chunk = now[start : start + PAGE]
            if len(content) < start:
                content += bytes(start - len(content))
            content[start : start + len(chunk)] = chunk
        if len(content) < len(now) and rng.random() < 0.5:
            content += bytes(len(now) - len(content))
        return bytes(content), len(pages) - len(written)


def _is_lock(name: str) -> bool:
    return name in (layout.LMDB_LOCK_FILE, layout.LOCK_FILE)
