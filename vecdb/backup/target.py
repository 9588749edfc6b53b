"""Where backups lie: a folder, or an object store behind `obstore`; the only door to either.

Both hold files named `<backup>/<file>`. A file appears whole or not at all, and is never written twice.
Names are made here or checked by `manifest`, so none leads anywhere else.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from .. import disk
from ..errors import (
    BackupDamaged,
    BackupNotFound,
    InvalidArgument,
    MissingDependency,
    Unavailable,
)
from . import direct
from .blocks import Blocks
from .digests import Blake3
from .ids import is_id
from .store_errors import full, in_our_words, unusable

if TYPE_CHECKING:
    from ..backup_types import BackupTarget

_WHAT = "backup"
_LISTS = 4
"""So often a list that was cut off is asked for."""


class Target(Protocol):
    """Any thread may call. What goes wrong outside is StorageFull or Unavailable."""

    name: str
    """For messages."""
    address: str
    """What another process opens the same target by; empty where it cannot."""

    def write(self, name: str, parts: Sequence[Any]) -> None:
        """Writes buffers one behind the other; durable on return, but for the names of folders. Where a store has not
        answered it may come yet: then the file is named by `unanswered` in the details of Unavailable."""

    def make_durable(self, backup: str) -> None:
        """Makes the names of a backup's files durable, before its manifest is written and after."""

    def read(self, name: str, limit_bytes: int) -> bytes:
        """A file of at most `limit_bytes`. BackupNotFound when it is not there, BackupDamaged when it is
        larger or no plain file."""

    def read_back(self, name: str, parts: Sequence[Any]) -> str:
        """The BLAKE3 of a file that was written from these buffers, as it reads now: not from memory of
        what was written, as far as the system lets us. BackupDamaged when it does not hold just them."""

    def backups(self) -> dict[str, dict[str, int]]:
        """Name of each folder at the top to its files and their bytes."""

    def delete(self, name: str) -> None:
        """Removes a file, for good on return; nothing happens when it is gone."""

    def delete_folder(self, backup: str) -> None:
        """Removes what is left of a backup."""


def open_target(where: BackupTarget) -> Target:
    """A folder for a path or a `file://` URL, else an object store.

    `where` may be an obstore store, or a URL that obstore knows, such as `s3://bucket/path`; what it
    needs to know beside (keys, region) comes from the environment, as obstore documents it. A LocalStore is
    taken as its folder: obstore would not sync what it writes. InvalidArgument, MissingDependency.
    """
    if isinstance(where, str | os.PathLike):
        text = os.fspath(where)
        if not isinstance(text, str) or not text or "\0" in text:
            raise InvalidArgument(f"a backup target is a folder or a URL, given {where!r:.80}")
        try:
            url = urlsplit(text)
        except ValueError as error:
            raise InvalidArgument(f"a backup target is a folder or a URL: {error}") from None
        if len(url.scheme) < 2:  # none, or the drive of a path
            return FolderTarget(Path(text))
        # A URL may hold passwords, before its host or behind it; they belong in no message.
        name = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
        if url.scheme == "file":
            return FolderTarget(_folder_of(text, url, name))
        if url.scheme == "memory":
            raise InvalidArgument(
                f"{name} is another, empty memory for each call, so a backup in it is gone at once; give a MemoryStore of "
                "obstore, the object, and keep it"
            )
        return StoreTarget(_store_of(text, name), name, text)
    if not type(where).__module__.startswith("obstore"):
        raise InvalidArgument(
            f"a backup target is a folder, a URL or a store of obstore, given {type(where).__name__}"
        )
    if type(where).__name__ == "LocalStore":
        return FolderTarget(_folder_in(where))
    return StoreTarget(where, type(where).__name__, "")


def _folder_of(text: str, url: SplitResult, name: str) -> Path:
    """The folder that a file:// URL names. InvalidArgument where it names more than that: what is passed over
    makes it another folder."""
    if url.netloc.lower() not in ("", "localhost"):
        raise InvalidArgument(
            f"{name} is a folder of another machine; give one of this machine as file:///path, or as a path"
        )
    if any(mark in text for mark in "?#\t\r\n"):
        raise InvalidArgument(
            f"{name}: a folder has no query, fragment or line end; write ? and # of its name as %3F and %23, or "
            "give its path"
        )
    try:
        path = unquote(url.path, errors="strict")
    except UnicodeDecodeError:
        path = ""
    if not path or "\0" in path:
        raise InvalidArgument(f"{name} names no folder; give one as file:///path, or as a path")
    return Path(path)


def _folder_in(store: Any) -> Path:
    """That of a LocalStore. InvalidArgument when it has none, or does not say which."""
    prefix = getattr(store, "prefix", None)
    if prefix is None or not Path(prefix).is_absolute():
        raise InvalidArgument(
            f"a LocalStore is taken as the folder it lies in, and this one says {prefix!r:.80}; give the path itself"
        )
    return Path(prefix)


class FolderTarget:
    """Files in a folder of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.name = self.address = str(self.path)
        self._blocks = Blocks()

    def write(self, name: str, parts: Sequence[Any]) -> None:
        path = self.path / name
        with _disk_in_our_words(self.name):
            disk.make_folder(path.parent, _WHAT, parents=True, exist_ok=True)
            with disk.written_aside(path, _WHAT) as file:
                direct.write(file.fileno(), parts, lambda: disk.sync_file(file, path, _WHAT))

    def make_durable(self, backup: str) -> None:
        with _disk_in_our_words(self.name):
            for path in (self.path / backup, self.path, self.path.parent):
                disk.sync_folder(path, _WHAT)

    def read(self, name: str, limit_bytes: int) -> bytes:
        with _disk_in_our_words(self.name), self._plain_file(name) as file:
            size = os.fstat(file.fileno()).st_size
            _must_fit(name, size, limit_bytes)
            # Memory is asked for as many bytes as are read for; one more tells that the file has grown.
            data = file.read(size + 1)
            _must_fit(name, len(data), limit_bytes)
            return data

    def read_back(self, name: str, parts: Sequence[Any]) -> str:
        memory = [self._blocks.take()]
        try:
            with _disk_in_our_words(self.name), self._plain_file(name) as file:
                return _same(name, direct.read(file.fileno(), memory[0]), parts)
        finally:
            self._blocks.give(memory)

    def _plain_file(self, name: str) -> BinaryIO:
        # A backup of a stranger may hold links to anything, or a pipe that never ends.
        path = self.path / name
        if path.parent.is_symlink():
            raise BackupDamaged(f"{path.parent} is a link; a backup is a plain folder")
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise BackupDamaged(f"{path} is a link; a backup has plain files") from None
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise BackupDamaged(f"{path} is no plain file")
        return open(descriptor, "rb")

    def backups(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        with _disk_in_our_words(self.name):
            for entry in os.scandir(self.path):
                # What else lies there nobody may be allowed to look into, as the lost+found of a disk.
                if is_id(entry.name) and entry.is_dir(follow_symlinks=False):
                    with suppress(FileNotFoundError):  # it is being removed
                        found[entry.name] = _sizes(entry)
        return found

    def delete(self, name: str) -> None:
        with _disk_in_our_words(self.name), suppress(FileNotFoundError):
            disk.remove(self.path / name, _WHAT)
            # A power cut must not bring a manifest back when its files have gone.
            disk.sync_folder((self.path / name).parent, _WHAT)

    def delete_folder(self, backup: str) -> None:
        with _disk_in_our_words(self.name), suppress(FileNotFoundError):
            disk.remove_tree(self.path / backup, _WHAT, paced=True)


def _sizes(folder: os.DirEntry[str]) -> dict[str, int]:
    """Of the plain files in a folder; without those that go meanwhile."""
    found = {}
    for file in os.scandir(folder):
        with suppress(FileNotFoundError):
            if file.is_file(follow_symlinks=False):
                found[file.name] = file.stat(follow_symlinks=False).st_size
    return found


class StoreTarget:
    """Objects in a bucket, or whatever else obstore reaches. An object appears when it is whole."""

    def __init__(self, store: Any, name: str, address: str) -> None:
        self._store = store
        self.address = address
        self._door = _obstore()
        self.name = name

    def write(self, name: str, parts: Sequence[Any]) -> None:
        with in_our_words(self.name, writes=name):
            # In one call: who is killed leaves no parts of an upload that are paid for and that no list shows, and
            # a call whose answer was lost can be repeated. The end of an upload in parts cannot.
            self._door.put(self._store, name, b"".join(parts), use_multipart=False)

    def make_durable(self, backup: str) -> None:
        """Objects are durable when they are there."""

    def read(self, name: str, limit_bytes: int) -> bytes:
        with in_our_words(self.name):
            answer = self._door.get(self._store, name)
            _must_fit(name, int(answer.meta["size"]), limit_bytes)
            data = bytes(answer.bytes())
        _must_fit(name, len(data), limit_bytes)
        return data

    def read_back(self, name: str, parts: Sequence[Any]) -> str:
        size = sum(memoryview(part).nbytes for part in parts)
        return _same(name, [memoryview(self.read(name, size))], parts)

    def backups(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for path, size in self._listed():
            backup, _, file = path.partition("/")
            if file and "/" not in file:
                found.setdefault(backup, {})[file] = size
        return found

    def delete(self, name: str) -> None:
        with in_our_words(self.name), suppress(FileNotFoundError):
            try:
                self._door.delete(self._store, name)
            except FileNotFoundError:
                # Gone already, or the store does not know the call.
                self._door.head(self._store, name)
                raise unusable(
                    self.name,
                    f"{name} is there and cannot be deleted",
                    "see whether the store knows DeleteObjects",
                ) from None

    def delete_folder(self, backup: str) -> None:
        for path, _ in self._listed(backup):
            if path.startswith(backup + "/"):
                self.delete(path)

    def _listed(self, prefix: str | None = None) -> list[tuple[str, int]]:
        """Names and bytes of all objects in backups, or in one."""
        with in_our_words(self.name):
            for _ in range(_LISTS - 1):
                try:
                    return list(self._list(prefix))
                except Exception as error:
                    # What obstore repeats is a call; it gives up where an answer that has begun ends in the middle.
                    if "response body" not in str(error):
                        raise
            return list(self._list(prefix))

    def _list(self, prefix: str | None) -> Iterator[tuple[str, int]]:
        for page in self._door.list(self._store, prefix=prefix):
            for one in page:
                path = str(one["path"])
                # What else lies there may be any number of objects.
                if is_id(path.partition("/")[0]):
                    yield path, int(one["size"])


def _obstore() -> Any:
    try:
        import obstore
    except ImportError:
        raise MissingDependency(
            "backups in an object store need the package obstore; install vecdb[backup]"
        ) from None
    return obstore


def _store_of(url: str, name: str) -> Any:
    _obstore()
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    try:
        return from_url(url)
    except (BaseError, ValueError) as error:
        text = str(error).partition("\n")[0].replace(url, name)
        raise InvalidArgument(f"{name} is no target for backups: {text}") from None


def _same(name: str, pieces: Iterable[memoryview], parts: Sequence[Any]) -> str:
    """The BLAKE3 of `pieces`, one behind the other. BackupDamaged unless they are what `parts` are."""
    digest = Blake3()
    waiting = [memoryview(part).cast("B") for part in reversed(parts)]
    for piece in pieces:
        digest.update(piece)
        at = 0
        while at < piece.nbytes:
            if not waiting:
                raise _not_as_written(name)
            part = waiting.pop()
            size = min(part.nbytes, piece.nbytes - at)
            # Arrays, because memoryviews are compared byte by byte.
            if not np.array_equal(_numbers(part[:size]), _numbers(piece[at : at + size])):
                raise _not_as_written(name)
            at += size
            if size < part.nbytes:
                waiting.append(part[size:])
    if waiting:
        raise _not_as_written(name)
    return digest.hexdigest()


def _numbers(view: memoryview) -> NDArray[Any]:
    return np.frombuffer(view, "<u8" if view.nbytes % 8 == 0 else "u1")


def _not_as_written(name: str) -> BackupDamaged:
    return BackupDamaged(
        f"{name} does not hold what was just written to it; look at the disk or the store, then repeat the backup",
        file=name,
    )


def _must_fit(name: str, size: int, limit_bytes: int) -> None:
    if size > limit_bytes:
        raise BackupDamaged(
            f"{name} has {size:,} bytes, at most {limit_bytes:,} are expected; the backup was changed "
            "or is no backup of ours",
            file=name,
        )


@contextmanager
def _disk_in_our_words(target: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        text = str(error).partition("\n")[0]
        raise BackupNotFound(f"there is no such backup in {target}: {text}") from error
    except OSError as error:
        text = str(error).partition("\n")[0]
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise full(target, text) from error
        raise Unavailable(f"the backup target {target} cannot be used: {text}") from error
