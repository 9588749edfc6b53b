"""Blocks of vectors that are announced to the kernel before they are read: which pages these are."""

from __future__ import annotations

import numpy as np

import vecdb
from vecdb.layout import DATA_FILE
from vecdb.store import read_ahead

ROWS, D = 3_000, 128


def filled(folder):
    database = vecdb.open(folder, auto_build=False)
    docs = database.create_collection(
        "docs", dimension=D, index="exact", vectors={"other": {"dimension": 256}}
    )
    rng = np.random.default_rng(3)
    first, other = (rng.standard_normal((ROWS, d)).astype("f4") for d in (D, 256))
    for start in range(0, ROWS, 700):
        part = slice(start, start + 700)
        docs.insert(
            [str(i) for i in range(ROWS)][part], first[part], named_vectors={"other": other[part]}
        )
    return database, docs, (first, other)


def test_places_are_where_the_blocks_lie(data_folder):
    """Of every field, the bytes that would be announced for a block are those of its vectors."""
    database, docs, stored = filled(data_folder)
    with database:
        store = docs._core.store
        raw = (store.folder / DATA_FILE).read_bytes()
        found = read_ahead._found(store.folder / DATA_FILE)
        assert sorted(found) == [0, 1]
        for field, vectors in enumerate(stored):
            with store.read() as reader:
                step = reader.rows_per_block(field)
            assert len(found[field].starts) == -(-ROWS // step)
            for number in range(len(found[field].starts)):
                part = vectors[number * step : (number + 1) * step].tobytes()
                start, size = int(found[field].starts[number]), int(found[field].sizes[number])
                assert raw[start : start + size].endswith(part)


def test_each_block_is_announced_once_for_rows_and_always_for_ranges(data_folder, monkeypatch):
    """Single rows announce their blocks once; a range announces its blocks, and as many behind it, each time."""
    database, docs, _ = filled(data_folder)
    asked = []
    with database:
        path = docs._core.store.folder / DATA_FILE
        places = read_ahead._found(path)[0]
        monkeypatch.setattr(
            read_ahead, "_advise", lambda _, start, size, how: asked.append((start, size))
        )
        ahead = read_ahead.ReadAhead(path)
        ahead.blocks(0, np.array([1, 3]))
        inside = lambda n: any(s <= places.starts[n] < s + size for s, size in asked)  # noqa: E731
        assert inside(1)
        assert inside(3)
        asked.clear()
        ahead.blocks(0, np.array([1, 3, 1_000_000]))
        assert not asked
        for _ in range(2):
            asked.clear()
            ahead.range(0, 0, 1)
            assert all(map(inside, range(4)))
        asked.clear()
        ahead.range(7, 0, 1)
        assert not asked


def test_what_cannot_be_read_announces_nothing(tmp_path):
    """A file that is missing, or none of LMDB, is for those to complain of who read it."""
    ahead = read_ahead.ReadAhead(tmp_path / "data.mdb")
    ahead.range(0, 0, 5)
    (tmp_path / "data.mdb").write_bytes(bytes(range(256)) * 8_192)
    ahead.forget()
    ahead.range(0, 0, 5)
    ahead.blocks(0, np.arange(5))
