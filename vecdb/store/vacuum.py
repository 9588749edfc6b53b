"""A copy of an environment without free pages, and putting it in the place of the old one."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb

from .. import disk
from ..errors import Corrupted
from ..layout import (
    COMPACTED_FOLDER,
    COMPACTING_PREFIX,
    COPIED_FROM_FILE,
    DATA_FILE,
    LMDB_LOCK_FILE,
    META_STATE,
    STATE,
)
from . import page_faults, pages

_WHAT = "vacuum"
_ASIDE = re.compile(re.escape(COMPACTING_PREFIX) + "[0-9a-f]{16}")
_CHUNK_BYTES = 32 << 20
"""Written in one transaction: pages wait in memory until it ends."""
_SPARE_BYTES = 16 << 20
"""What a copy may take more than its original, which is small: pages of its own bookkeeping."""
_ENTRY_BYTES = 32
"""What an entry takes beside its value, near enough."""
_READER_BYTES, _LOCK_HEADER_BYTES = 64, 4_096
"""Of LMDB's lock file: a slot (MDB_reader, a line of the cache), and more than what stands before (MDB_txninfo)."""


def locks_must_be_a_file(folder: Path) -> None:
    """Corrupted where something else has the name of LMDB's lock file."""
    disk.must_be_file(folder / LMDB_LOCK_FILE, "move it away: it holds no data, and is made anew")


def reserve_locks(folder: Path, readers: int, *, read_only: bool = False) -> None:
    """Gives LMDB's lock file its place on the disk before LMDB maps it, which leaves it a hole.

    Not for a folder that this process has open. With `read_only` it may be one where nothing can be
    written: LMDB then reads without locks. Corrupted where something else has its name.
    """
    locks_must_be_a_file(folder)
    try:
        disk.reserve(folder / LMDB_LOCK_FILE, readers * _READER_BYTES + _LOCK_HEADER_BYTES, "locks")
    except OSError as error:
        if not (read_only and error.errno == errno.EROFS):
            raise


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """A name for the folder of a copy, of which nothing is left when the body fails."""
    made = folder / (COMPACTING_PREFIX + secrets.token_hex(8))
    try:
        yield made
    except BaseException:
        disk.remove_tree(made, _WHAT)
        raise


def copy_tables(
    transaction: Any, tables: Mapping[str, Any], folder: Path, map_size_bytes: int, readers: int
) -> None:
    """Writes the tables, as `transaction` sees them, into a new environment; durable on return.

    `map_size_bytes` is that of the original.

    Entries are appended in the order of their keys, so that every page is full, which a copy of the
    pages would not give: at random ids those of `keys` are two thirds full.
    """
    disk.make_folder(folder, _WHAT)
    reserve_locks(folder, readers)
    environment = lmdb.open(
        str(folder),
        map_size=map_size_bytes + _SPARE_BYTES,
        max_readers=readers,
        max_dbs=len(tables),
        sync=False,
        # Pages are not left as memory was: something deleted long ago might come back in them.
        meminit=True,
        readahead=False,
    )
    try:
        make_tables(environment, tables, folder, _WHAT)
        for name, table in tables.items():
            target = environment.open_db(name.encode(), create=False)
            source = transaction.cursor(db=table)
            more = source.first()
            while more:
                writing = environment.begin(write=True)
                try:
                    writing.cursor(db=target).putmulti(_chunk(source), append=True)
                except BaseException:
                    writing.abort()
                    raise
                disk.commit(writing, folder, _WHAT)
                more = bool(source.key())
        disk.sync_environment(environment, folder, _WHAT)
    finally:
        environment.close()
    disk.sync_folder(folder, _WHAT)


def make_tables(environment: Any, names: Iterable[str], folder: Path, what: str) -> None:
    """Makes those of the named tables that are not there, in one commit: LMDB by itself makes one for each."""
    transaction = environment.begin(write=True)
    try:
        for name in names:
            environment.open_db(name.encode(), txn=transaction)
    except BaseException:
        transaction.abort()
        raise
    disk.commit(transaction, folder, what)


def _chunk(cursor: Any) -> Iterator[tuple[Any, Any]]:
    """Entries from where the cursor stands, some MiB of them; it is left behind the last."""
    room = _CHUNK_BYTES
    while room > 0:
        key, value = cursor.item()
        room -= len(value) + _ENTRY_BYTES
        yield key, value
        if not cursor.next():
            return


def note_source(folder: Path, aside: Path) -> None:
    """Writes durably into the copy `aside` which file it was made of, that of `folder`; until it is in its place nobody
    may write there."""
    path = aside / COPIED_FROM_FILE
    with open(path, "wb") as file:
        file.write(_source_of(folder))
        disk.sync_file(file, path, _WHAT)
    disk.sync_folder(aside, _WHAT)


def _source_of(folder: Path) -> bytes:
    """What every commit to the file of a folder changes: a digest of its meta pages, damaged or not."""
    file = pages.PageFile(folder / DATA_FILE)
    return (
        hashlib.blake2b(bytes(file.raw[: 2 * file.page_size]), digest_size=16).hexdigest().encode()
    )


def declare_whole(folder: Path, aside: Path) -> None:
    """From here on the copy `aside` is the truth, whatever happens next."""
    disk.rename(aside, folder / COMPACTED_FOLDER, _WHAT)
    disk.sync_folder(folder, _WHAT)


def is_declared(folder: Path) -> bool:
    """Whether a copy has the name that says it is whole; False where nobody may look."""
    return os.path.lexists(folder / COMPACTED_FOLDER)


def whole_copy(folder: Path) -> Path | None:
    """The copy that has been declared whole and is not in its place yet. A link is none: we make none."""
    made = folder / COMPACTED_FOLDER
    return made if (made / DATA_FILE).is_file() and not made.is_symlink() else None


def must_belong(folder: Path) -> None:
    """Corrupted where the whole copy is not one of the file that stands in the folder, which may be the newer.

    A crash leaves a copy beside its source only, since nothing is written to that any more. Whoever copies a folder
    while it changes, or over an older copy of it, brings others together.
    """
    made, path = folder / COMPACTED_FOLDER, folder / DATA_FILE
    if not path.is_file():
        return
    noted = made / COPIED_FROM_FILE
    if noted.is_file():
        if noted.read_bytes() == _source_of(folder):
            return
    elif page_faults.file_faults(path):
        return  # an earlier version has repaired a file of which nothing else can be told
    elif not page_faults.file_faults(made / DATA_FILE) and _told_by(path) == _told_by(
        made / DATA_FILE
    ):
        return
    raise Corrupted(
        f"{made} holds a file that is not made of the {DATA_FILE} beside it: {path} {_state_of(path)}, the other "
        f"{_state_of(made / DATA_FILE)}. "
        "To copy a folder over an older copy of it, without removing what is gone, brings such files together. Nothing "
        f"was changed. Move {made} away to go on with {path}; or move that away and put the other in its place",
        file=str(path),
    )


def _told_by(path: Path) -> bytes:
    """A digest of the tables `meta` and `ids` of a file whose pages are sound. Two files that agree in them hold the same:
    there are the checksums of all rows and of the log."""
    told = hashlib.blake2b(digest_size=32)
    for name in ("meta", "ids"):
        for key, value in _items(path, name):
            told.update(b"%d %d " % (len(key), len(value)))
            told.update(key)
            told.update(value)
    return told.digest()


def _items(path: Path, name: str) -> Iterator[tuple[bytes, memoryview]]:
    """The entries of a table, none where there is no such table."""
    file = pages.PageFile(path)
    trees = file.subtrees(file.walk(file.metas()[0].main, pages.MAIN).entries)
    return file.items(file.walk(trees[name], name).entries) if name in trees else iter(())


def _state_of(path: Path) -> str:
    if page_faults.file_faults(path):
        return "is damaged"
    raw = bytes(dict(_items(path, "meta")).get(META_STATE, b""))
    sequence, _, live = STATE.unpack(raw) if len(raw) == STATE.size else (0, 0, 0)
    return f"is of commit {sequence} with {live} records"


def move_in(folder: Path) -> None:
    """Renames the files of the whole copy over the old ones.

    The locks come first. A reader of another process that opens in between has the old data with the
    new locks, which harms nobody, since nobody writes to the old data any more. The other way round
    it would have the new data without being seen by the writer.
    """
    made = folder / COMPACTED_FOLDER
    disk.rename(made / LMDB_LOCK_FILE, folder / LMDB_LOCK_FILE, _WHAT)
    disk.rename(made / DATA_FILE, folder / DATA_FILE, _WHAT)
    # Before anything of it goes: a power cut must not leave the copy where it was, without what says of which file it is.
    disk.sync_folder(folder, _WHAT)
    disk.remove_tree(made, _WHAT)
    disk.sync_folder(folder, _WHAT)


def sweep(folder: Path) -> None:
    """Removes what an interrupted copy has left; not to be called while there is a whole one.

    Of a link with such a name nothing but itself, and nothing that only has a similar one.
    """
    for path in folder.glob(COMPACTING_PREFIX + "*"):
        if _ASIDE.fullmatch(path.name):
            disk.remove_tree(path, _WHAT)
    if is_declared(folder):
        disk.remove_tree(folder / COMPACTED_FOLDER, _WHAT)
