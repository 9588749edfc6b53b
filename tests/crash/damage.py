"""Damage to what can be made again from the rows, and the repair after which nothing may be missing."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np

import vecdb
from crash.model import Model
from crash.wrong import Wrong
from vecdb import disk
from vecdb.layout import DATA_FILE, META_STATE, STATE
from vecdb.store.pages import MAIN, PageFile

PAGE = 4_096


def plant(collection: Path, rng: random.Random, *, by_commit: bool = False) -> None:
    """Damages the files of a collection, in its folder, that nobody has open; in the way that takes a commit, if that is wanted."""
    kinds: list[Callable[[Path, random.Random], bool]] = [_a_page_of_ids, _an_index_file, _a_bit]
    if by_commit or not rng.choice(kinds)(collection, rng):
        _the_count(collection)


def is_pending(model: Model) -> bool:
    """Whether a repair was under way: nobody may open the database before it is done."""
    return any(part["do"] == "repair" for part in model.pending)


def mend(folder: Path) -> None:
    """Repairs a database. Wrong if anything was lost, or is not mended."""
    for one in vecdb.check(folder, repair=True):
        done = one.repair
        if done is not None and (
            done.lost or done.lost_unknown or done.lost_versions or done.lost_commits
            or done.unverified or done.undecided
            or [said for said in done.doubts if "was put right" not in said]
        ):  # fmt: skip
            raise Wrong(f"a repair of {one.collection!r} has lost something: {done}")
        if one.problems and not one.repaired:
            raise Wrong(f"a repair of {one.collection!r} has left {one.problems}: {one.done}")


def _a_page_of_ids(collection: Path, rng: random.Random) -> bool:
    """A page of the table that says which row an id has."""
    return _on_a_page(collection / DATA_FILE, "keys", rng)


def _a_bit(collection: Path, rng: random.Random) -> bool:
    """A bit of a vector: the checksum of its row tells which. Not of what says where a block of vectors lies: without that
    nothing can be told of any of its rows (--seed 7301)."""
    path = collection / DATA_FILE
    values = values_of(path, "vectors")
    if not values:
        return False
    first, size = rng.choice(values)
    place = first + rng.randrange(size)
    file = os.open(path, os.O_RDWR)
    try:
        _overwrite(file, place, bytes([os.pread(file, 1, place)[0] ^ 1 << rng.randrange(8)]))
    finally:
        os.close(file)
    return True


def values_of(path: Path, table: str) -> list[tuple[int, int]]:
    """(place in the file, bytes) of each value of a table: the same bytes may lie in what pages have left of earlier ones."""
    held = PageFile(path)
    tables = held.subtrees(held.walk(held.metas()[0].main, MAIN).entries)
    blocks = [
        np.frombuffer(value, np.uint8)
        for _, value in held.items(held.walk(tables[table], table).entries)
    ]
    return [(block.ctypes.data - held.raw.ctypes.data, block.size) for block in blocks]


def _on_a_page(path: Path, table: str, rng: random.Random) -> bool:
    """Zeros for a page of a table; whether there was one."""
    held = PageFile(path)
    tables = held.subtrees(held.walk(held.metas()[0].main, MAIN).entries)
    before = held.seen.copy()
    held.walk(tables[table], table)
    pages = np.flatnonzero(held.seen & ~before).tolist()
    if not pages:
        return False
    file = os.open(path, os.O_RDWR)
    try:
        _overwrite(file, PAGE * rng.choice(pages), bytes(PAGE))
    finally:
        os.close(file)
    return True


def _an_index_file(collection: Path, rng: random.Random) -> bool:
    found = sorted(collection.glob("index-*"))
    if not found:
        return False
    path, how = rng.choice(found), rng.randrange(3)
    if how == 0:
        path.unlink()
    elif how == 1:
        os.truncate(path, rng.randrange(path.stat().st_size))
    else:
        file = os.open(path, os.O_RDWR)
        try:
            place = rng.randrange(path.stat().st_size)
            _overwrite(file, place, bytes([os.pread(file, 1, place)[0] ^ 1]))
        finally:
            os.close(file)
    return True


def _the_count(collection: Path) -> None:
    """One record more than there are."""
    with lmdb.open(str(collection), max_dbs=1, map_size=1 << 30) as environment:
        transaction = environment.begin(write=True)
        meta = environment.open_db(b"meta", txn=transaction, create=False)
        # A collection that has had no commit has none.
        raw = transaction.get(META_STATE, db=meta) or bytes(STATE.size)
        sequence, next_row, live = STATE.unpack(raw)
        transaction.put(META_STATE, STATE.pack(sequence, next_row, live + 1), db=meta)
        # By the door, so that who simulates power cuts knows that it is on the disk (--seed 15244057: a cut took it
        # back, and the repaired copy was of a file that no longer was).
        disk.commit(transaction, collection, "damage")


def _overwrite(file: int, at: int, data: bytes) -> None:
    os.pwrite(file, data, at)
