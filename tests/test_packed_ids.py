"""Ids as they are read at opening: whole stretches of blocks at a time, and blocks that lack rows one by one."""

from __future__ import annotations

import random
import shutil

import lmdb
import numpy as np
import pytest
from seeds import RUN_SEED

import vecdb
from vecdb.errors import Corrupted
from vecdb.ids import Ids
from vecdb.layout import ID_BLOCK_ROWS, ROW
from vecdb.store import reader as reader_module

ROWS = 3 * reader_module._BLOCKS_TOGETHER * ID_BLOCK_ROWS + 700


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A database of some stretches of blocks, of which one lacks purged rows; ids of many lengths."""
    made = tmp_path_factory.mktemp("ids") / "db"
    with vecdb.open(made, history_s=0.0, auto_build=False) as db:
        docs = db.create_collection("docs", dimension=1)
        for start in range(0, ROWS, 7_000):
            rows = range(start, min(start + 7_000, ROWS))
            docs.insert([name(row) for row in rows], np.ones((len(rows), 1), np.float32))
        gone = reader_module._BLOCKS_TOGETHER * ID_BLOCK_ROWS + 300
        docs.delete([name(row) for row in range(gone, gone + 900)])
        docs.compact()
    return made


def name(row):
    return f"{'é' * (row % 5)}{row}{'x' * (row * 7 % 31)}"


def store_of(db):
    return db.get_collection("docs")._core.store


def test_any_range_of_packed_ids_is_that_of_the_ids(folder):
    """Whatever rows are asked for, the packed ids are the bytes of those that are read one block at a time."""
    print(f"seed {RUN_SEED}")
    rng = random.Random(RUN_SEED)
    ranges = [(0, ROWS), (ID_BLOCK_ROWS, ROWS), (1, ROWS - 1)]
    ranges += [tuple(sorted(rng.sample(range(ROWS + 1), 2))) for _ in range(20)]
    with vecdb.open(folder, auto_build=False) as db, store_of(db).read() as reader:
        assert len(reader.purged()) == 900
        every = reader.id_range(0, ROWS)
        assert every[5].decode() == name(5)
        for start, stop in ranges:
            lengths, texts = reader.packed_ids(start, stop)
            assert lengths.tolist() == [*map(len, every[start:stop])]
            assert texts == b"".join(every[start:stop])


@pytest.mark.parametrize("damage", ["ends", "count", "cut", "gone"])
def test_a_damaged_block_among_whole_ones_is_named(folder, tmp_path, damage):
    """A block of ids whose lengths disagree, or that is cut or missing, is named, however many whole ones are read with it."""
    shutil.copytree(folder, tmp_path / "db")
    (collection,) = (tmp_path / "db" / "collections").iterdir()
    with lmdb.open(str(collection), max_dbs=16, map_size=1 << 30) as source:
        table = source.open_db(b"ids")
        key = ROW.pack(5)
        with source.begin(write=True) as transaction:
            changed = bytearray(transaction.get(key, db=table))
            if damage == "ends":
                end = 4 + 4 * ID_BLOCK_ROWS + 40
                changed[end : end + 4] = (1 << 30).to_bytes(4, "little")
            elif damage == "count":
                changed[0] ^= 1
            elif damage == "cut":
                del changed[-1]
            transaction.delete(key, db=table)
            if damage != "gone":
                transaction.put(key, bytes(changed), db=table)
    with (
        vecdb.open(tmp_path / "db", auto_build=False, read_only=True) as db,
        pytest.raises(Corrupted, match="block 5 of ids"),
    ):
        db.get_collection("docs")


@pytest.mark.parametrize("expected", [0, 10, 5_000, 1_000_000])
def test_ids_are_found_whatever_number_was_expected(expected):
    """Ids come back as they were appended, with as many of them expected, more or fewer."""
    ids = Ids(expected)
    names = [name(row) for row in range(5_000)]
    for start in range(0, 5_000, 1_000):
        ids.append([one.encode() for one in names[start : start + 1_000]])
    rows = np.random.default_rng(RUN_SEED).permutation(5_000)
    assert ids.take(rows) == [names[row] for row in rows.tolist()]
    assert ids.take(rows[:10]) == [names[row] for row in rows[:10].tolist()]
