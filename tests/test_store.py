"""The store alone: growth of the map, full maps, atomic commits, and what `check` finds."""

from __future__ import annotations

import re
import subprocess
import sys
import threading

import lmdb
import numpy as np
import pytest

import vecdb
from vecdb import errors, layout
from vecdb.store import fresh, opening

SETTINGS = {"map_initial_bytes": 1 << 20, "auto_build": False}


def fill(docs, first, count, dimension=64):
    ids = [f"r{i}" for i in range(first, first + count)]
    vectors = np.full((count, dimension), 1.0, np.float32)
    return docs.insert(
        ids, vectors, metadata=[{"i": i} for i in range(first, first + count)], documents=ids
    )


def environment_of(folder):
    """The LMDB folder of the only collection."""
    return next((folder / layout.COLLECTIONS_FOLDER).iterdir())


def test_the_map_grows_while_others_read(data_folder):
    """Writes go on past the first size of the map, with readers at work, and lose nothing."""
    with vecdb.open(data_folder, **SETTINGS) as db:
        docs = db.create_collection("docs", dimension=64)
        fill(docs, 0, 100)
        stop, failures = threading.Event(), []

        def read():
            while not stop.is_set():
                try:
                    assert docs.get(["r7"], include=["document"]).documents == ["r7"]
                    assert docs.count() >= 100
                except BaseException as error:
                    failures.append(error)
                    return

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for first in range(100, 10_100, 500):
            fill(docs, first, 500)
        stop.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert docs.count() == 10_100
        assert docs.stats().map_used_bytes > SETTINGS["map_initial_bytes"]
        assert docs.check().ok


def test_a_full_map_is_a_clear_error_and_nothing_is_half_written(data_folder):
    """At the limit a write raises StorageFull and leaves no trace; reads and small deletes go on."""
    with vecdb.open(data_folder, map_initial_bytes=1 << 20, map_limit_bytes=2 << 20) as db:
        docs = db.create_collection("docs", dimension=64)
        first = 0
        with pytest.raises(errors.StorageFull, match="map_limit_bytes"):
            for first in range(0, 100_000, 200):
                fill(docs, first, 200)
        assert first > 0
        assert docs.count() == first
        assert docs.get([f"r{first - 1}", f"r{first}"]).ids == [f"r{first - 1}"]
        assert docs.query(np.ones(64), k=3).sequence == first // 200
        assert docs.check().ok
    with vecdb.open(data_folder, map_initial_bytes=1 << 20, map_limit_bytes=8 << 20) as db:
        docs = db.get_collection("docs")
        assert docs.count() == first
        fill(docs, first, 200)
        assert docs.check().ok


def test_disk_use_stays_near_the_raw_bytes(data_folder):
    """Vectors take little more on disk than their own bytes (384 dimensions, batches of 1,000)."""
    with vecdb.open(data_folder, auto_build=False) as db:
        docs = db.create_collection("docs", dimension=384)
        vectors = np.random.default_rng(3).standard_normal((20_000, 384), dtype=np.float32)
        for first in range(0, 20_000, 1_000):
            docs.insert(
                [f"record-{i:08}" for i in range(first, first + 1_000)],
                vectors[first : first + 1_000],
            )
        assert docs.stats().map_used_bytes < 1.10 * vectors.nbytes


@pytest.fixture
def planted(data_folder, monkeypatch):
    """A function that plants a fault into a small closed database and gives the problems found."""
    monkeypatch.setattr(fresh, "LEAST_FRESH_ROWS", 16)  # so that `keys` holds some of the rows

    def plant(fault):
        with vecdb.open(data_folder, **SETTINGS) as db:
            docs = db.create_collection("docs", dimension=64)
            for first in range(0, 600, 200):
                fill(docs, first, 200)
            docs.insert(["img"], np.ones((1, 64)), contents=[(b"x" * 100, "image/png")], uris=["u"])
            docs.delete(["r5", "r6"])
            docs.update(["r7"], metadata=[{"new": 1}])
            with docs._core.read() as reader:
                assert reader.keyed().first > 100
            for _ in docs._core.store.purge(5):
                pass
            docs.delete(["r20"])
            assert docs.check().ok
        path = str(environment_of(data_folder))
        with lmdb.open(path, max_dbs=len(layout.COLLECTION_TABLES), map_size=1 << 24) as env:
            tables = {t: env.open_db(t.encode()) for t in layout.COLLECTION_TABLES}
            with env.begin(write=True) as txn:
                fault(txn, tables)
        with vecdb.open(data_folder, **SETTINGS) as db:
            return db.get_collection("docs").check().problems

    return plant


def flip(table, key, at):
    def fault(txn, tables):
        value = bytearray(txn.get(key, db=tables[table]))
        value[at] ^= 0x10
        txn.put(key, bytes(value), db=tables[table])

    return fault


def remove(table, key):
    return lambda txn, tables: txn.delete(key, db=tables[table])


def put(table, key, value):
    return lambda txn, tables: txn.put(key, value, db=tables[table])


def cut(table, key, size):
    return lambda txn, tables: txn.put(
        key, bytes(txn.get(key, db=tables[table]))[:-size], db=tables[table]
    )


BLOCK_0, BLOCK_1 = layout.ROW.pack(0), layout.ROW.pack(1)
VECTORS_0 = layout.VECTOR_KEY.pack(0, 0)
ROW_4, ROW_10, ROW_600, ROW_999 = (layout.ROW.pack(n) for n in (4, 10, 600, 999))
# Rows 5 and 6 are purged, so the vector of row 10 and its checksum stand two places lower.
FAULTS = [
    (flip("vectors", VECTORS_0, 64 * 4 * 8), "'r10' .* checksum"),
    (flip("documents", ROW_10, 0), "'r10' .* checksum"),
    (flip("metadata", ROW_10, 5), "'r10' .* checksum"),
    (flip("contents", ROW_600, 50), "'img' .* checksum"),
    (flip("contents", ROW_600, 0), "'img' .* checksum|media type"),
    (flip("uris", ROW_600, 0), "'img' .* checksum"),
    (flip("ids", BLOCK_0, 4 + 4 * 8), "'r10' .* checksum"),
    (flip("ids", BLOCK_0, -1), "checksum|points to"),
    (put("ids", BLOCK_0, b"\x01"), "block 0 of ids"),
    (cut("ids", BLOCK_0, 1), "block 0 of ids"),
    (remove("documents", ROW_10), "'r10' .* checksum"),
    (remove("ids", BLOCK_0), "block 0 of ids is missing"),
    (remove("ids", BLOCK_1), "block 1 of ids is missing"),
    (put("ids", layout.ROW.pack(7), layout.pack_ids([], [])), "4 blocks of ids are stored, 3 belong"),
    (remove("keys", b"r10"), "'r10' points to row -1"),
    (put("keys", b"r10", layout.ROW_VALUE.pack(11)), "'r10' points to row 11"),
    (put("keys", b"ghost", layout.ROW_VALUE.pack(10)), "row 10, and so does another"),
    (put("keys", b"ghost", layout.ROW_VALUE.pack(5)), "row 5 is purged, but something is left"),
    (put("keys", b"ghost", layout.ROW_VALUE.pack(20)), "an id points to row 20, whose id is b'r20'"),
    (put("keys", b"r20", layout.ROW_VALUE.pack(20)), "an id points to row 20, which is dead"),
    (put("keys", b"ghost", layout.ROW_VALUE.pack(999)), "row 999, which was never given out"),
    (put("meta", layout.META_KEYED, layout.KEYED.pack(7, 999)), "keyed up to rows 7 and 999 of 602|'keyed' .* fails its checksum"),
    (put("documents", ROW_999, b"x"), "documents holds row 999"),
    (put("documents", layout.ROW.pack(5), b"x"), "row 5 is purged, but something is left"),
    (remove("dead", layout.ROW.pack(20)), "live"),
    (put("dead", ROW_10, layout.SEQUENCE_VALUE.pack(2)), "live"),
    (put("dead", ROW_999, layout.SEQUENCE_VALUE.pack(2)), "row 999 is marked dead"),
    (put("dead", ROW_10, layout.SEQUENCE_VALUE.pack(99)), "died in commit 99, the newest is 7"),
    (put("dead", layout.ROW.pack(5), layout.SEQUENCE_VALUE.pack(2)), "row 5 is purged, but still"),
    (remove("log", layout.SEQUENCE.pack(6)), "begins at commit 7, the horizon is 5"),
    (remove("log", layout.SEQUENCE.pack(7)), "log ends at commit 6, the state is at 7"),
    (put("meta", layout.META_HORIZON, layout.SEQUENCE_VALUE.pack(8)), "the horizon is commit 8|'horizon' .* fails its checksum"),
    (remove("meta", layout.META_HORIZON), "horizon was never moved|'horizon' .* fails its checksum"),
    (put("meta", layout.META_STATE, layout.STATE.pack(7, 602, 7)), "7 live"),
    (remove("vectors", VECTORS_0), "block 0 of vectors is missing"),
    (cut("vectors", VECTORS_0, 1), "block 0 of vectors is .* bytes long"),
    (put("vectors", layout.VECTOR_KEY.pack(0, 99), b""), "4 blocks of vectors are stored, 3 belong"),
    (remove("purged", BLOCK_0), "block 0"),
    (put("purged", layout.ROW.pack(9), b"\1" * 32), "purged that were never given out"),
    (put("absent", layout.VECTOR_KEY.pack(1, 0), b"\1" * 32), "block 0 of field 1, which does not"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "match"), FAULTS)
def test_check_finds_each_planted_fault(planted, fault, match):
    """A fault in any table is found and named."""
    try:
        problems = planted(fault)
    except errors.Corrupted as error:
        problems = (error.message,)
    assert any(re.search(match, p) for p in problems), problems


def test_every_commit_is_in_the_log(data_folder):
    """The log tells for each commit which rows it made and which died, with a time that never lies."""
    with vecdb.open(data_folder, **SETTINGS) as db:
        docs = db.create_collection("docs", dimension=64)
        fill(docs, 0, 3)
        docs.upsert(["r1", "r9"], np.ones((2, 64)))
        docs.delete(["r0", "r9"])
        with docs._core.read() as reader:
            log = [
                (c.sequence, c.first_row, c.end_row, sorted(c.died.tolist())) for c in reader.log(0)
            ]
            times = [c.time_us for c in reader.log(0)]
            assert [c.sequence for c in reader.log(2)] == [3]
    assert log == [(1, 0, 3, []), (2, 3, 5, [1]), (3, 5, 5, [0, 4])]
    assert times == sorted(times)


def test_a_reader_opens_while_the_writer_grows_the_file(data_folder, monkeypatch):
    """A file that becomes larger between the look at its size and the first transaction is looked at again."""
    write = (
        "import sys, numpy as np, vecdb\n"
        "with vecdb.open(sys.argv[1], auto_build=False) as db:\n"
        "    docs = db.create_collection('docs', dimension=256, exist_ok=True)\n"
        "    n = docs.count()\n"
        "    docs.insert([f'r{i}' for i in range(n, n + 8_000)], np.ones((8_000, 256), np.float32))\n"
    )

    def insert() -> None:
        subprocess.run([sys.executable, "-c", write, str(data_folder)], check=True)

    insert()
    opened: list[str] = []

    def opens_late(path, **given):
        env = lmdb_open(path, **given)
        if "collections" in path:
            opened.append(path)
            if len(opened) == 1:
                insert()
        return env

    lmdb_open = lmdb.open
    monkeypatch.setattr(opening.lmdb, "open", opens_late)
    with vecdb.open(data_folder, read_only=True, map_initial_bytes=1 << 20) as db:
        assert db.get_collection("docs").count() == 16_000
    assert len(opened) == 2
