"""Databases saved by each version of the format are opened in every test run, for ever."""

from __future__ import annotations

import datetime as dt
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import lmdb
import numpy as np
import pytest
import store_rows

import vecdb
from vecdb import failpoints, layout
from vecdb.store import Shape, collection_store

DATA = Path(__file__).parent / "data"
SAVED = sorted(DATA.glob("format-*.tar.gz"))


def number_of(path):
    return int(path.name.split("-")[1].split(".")[0])


def unpacked(path, folder):
    with tarfile.open(path) as archive:
        # Python 3.11 has filters from 3.11.4 on; Debian 12 comes with 3.11.2.
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder, **safely)
    return folder / "data"


def formats(database):
    """Format of each collection, as its file says."""
    found = set()
    for folder in (database / layout.COLLECTIONS_FOLDER).iterdir():
        env = lmdb.open(str(folder), max_dbs=1, readonly=True, lock=False)
        with env, env.begin(db=env.open_db(b"meta", create=False)) as txn:
            found.add(int(txn.get(layout.META_FORMAT)))
    return found


def test_every_format_has_a_saved_database():
    """The present format and all before it are under tests/data."""
    assert {number_of(p) for p in SAVED} == set(range(1, layout.COLLECTION_FORMAT + 1))


@pytest.mark.parametrize("read_only", [True, False], ids=["read-only", "written"])
@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.name)
def test_a_saved_database_opens_and_holds_what_was_stored(path, read_only, tmp_path):
    """Records, settings, aliases, dead rows and the index of an older database are all there; only
    opened for writing it becomes one of the present format."""
    folder = unpacked(path, tmp_path)
    assert formats(folder) == {number_of(path)}
    vectors = (np.sin(np.arange(4_800, dtype=np.float64).reshape(1_200, 4)) * 10).astype(np.float32)
    with vecdb.open(folder, auto_build=False, read_only=read_only) as db:
        assert [i.name for i in db.list_collections() if i.name != "fields"] == ["docs", "half"]
        assert db.list_aliases() == {"alias": "docs"}
        docs = db.get_collection("alias")
        assert (docs.info.metric, docs.info.index, dict(docs.info.schema)) == (
            "l2",
            "hnsw",
            {"n": "int"},
        )
        assert {i.device for i in db.list_collections()} == {"auto"}
        assert docs.count() == 1_199
        assert docs.count({"n": {"$gte": 600}}) == 600
        stats = docs.stats()
        assert (stats.sequence, stats.rows) == (4, 1_202)
        assert (stats.index.kind, stats.index.indexed_rows) == ("hnsw", 1_200)
        found = docs.query(vectors[500:510], k=1)
        assert found.ids == [[f"r{n}"] for n in range(500, 510)]
        assert docs.query(vectors[0], k=1).ids != [["r0"]]
        got = docs.get(
            ["x" * 1_000, "r2"], include=["vector", "metadata", "document", "content", "uri"]
        )
        assert got.metadata == [
            {"when": dt.datetime(2026, 1, 31, tzinfo=dt.UTC), "tags": ["a", 1], "d": {"e": 1.5}},
            {"new": True},
        ]
        assert (got.documents, got.uris) == (["grün", None], ["file:///x", None])
        assert got.contents == [vecdb.Content(b"\x00\xff", "image/png"), None]
        assert np.array_equal(got.vectors, [[1, 2, 3, 4], vectors[2]])
        assert docs.check().ok
        half = db.get_collection("half")
        assert half.query([[1, 2, 3, 4]], k=1).ids == [["a"]]
        if not read_only:
            assert docs.upsert(["r0"], [[0, 0, 0, 0]]).sequence == 5
            assert docs.check().ok
    assert formats(folder) == {number_of(path) if read_only else layout.COLLECTION_FORMAT}


@pytest.mark.parametrize("path", [p for p in SAVED if number_of(p) > 1], ids=lambda path: path.name)
def test_what_format_2_has_added_is_there(path, tmp_path):
    """Named vectors, storages and purged rows of a saved database, and it can be written."""
    with vecdb.open(unpacked(path, tmp_path), auto_build=False) as db:
        fields = db.get_collection("fields")
        assert (fields.count(), fields.stats().rows) == (999, 1_501)
        assert fields.stats().purged_rows == 500
        assert (fields.info.storage, [*fields.info.vectors]) == ("binary", ["title", "body"])
        with fields._core.read() as reader:
            assert 0 < reader.keyed().first <= reader.n_rows
            rows = reader.rows_of_ids([b"f0", b"f1", b"f2", b"f4", b"f1498", b"f1499"])
            assert rows.tolist() == [-1, -1, 1_500, 4, 1_498, 1_499]
            rows = rows[rows >= 0]
            assert reader.vectors(rows).tolist() == [[0, 255], [0, 4], [5, 218], [5, 219]]
            assert reader.vectors(rows, 1).tolist() == [[7, 7], [4, 1], [98, 1], [0, 0]]
            assert reader.present(rows, 1).tolist() == [True, True, True, False]
            assert reader.vectors(rows[2:], 2).tolist() == [[1498, 1, 0.5], [1499, 1, 0.5]]
            assert not reader.present(rows[:2], 2).any()
        assert fields.query([[1, 2]], vector_name="title", k=1).distances[0][0] == 2
        assert fields.check().ok
        fields.upsert([f"f{n}" for n in range(20)], np.ones((20, 2), np.uint8))
        assert (fields.count(), fields.check().ok) == (999 + 8, True)


def test_a_reader_beside_follows_the_change_of_format(tmp_path):
    """A process that has format 1 open read-only goes on when the writer makes format 2 of it."""
    folder = unpacked(SAVED[0], tmp_path)
    with vecdb.open(folder, auto_build=False, read_only=True) as db:
        store_folder = db.get_collection("docs")._core.store.folder
    beside = store_rows.reader_beside(store_folder, Shape(4, "float32"))
    assert store_rows.ask(beside, "r0", "r3") == ["1", "4", "-x"]
    with vecdb.open(folder, auto_build=False, history_s=0.0) as db:
        docs = db.get_collection("docs")
        assert store_rows.ask(beside, "r0", "r3") == ["2", "4", "-x"]
        docs.upsert(["r0", "r3"], np.ones((2, 4)))
        for _ in docs._core.store.purge(5):
            pass
        assert store_rows.ask(beside, "r0", "r3", "r1") == ["2", "5", "xx-"]
        docs._core.store.vacuum()
        assert store_rows.ask(beside, "r0", "r3", "r1") == ["2", "5", "xx-"]
    beside.communicate()


def test_making_the_present_format_is_one_commit(tmp_path, monkeypatch):
    """An upgrade that breaks leaves the older format as it was, and is done at the next opening."""
    folder = unpacked(SAVED[0], tmp_path)

    def refuse(*_, **__):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(collection_store, "KEYED", type("Broken", (), {"pack": refuse}))
        with pytest.raises(OSError, match="Input"), vecdb.open(folder) as db:
            db.get_collection("docs")
    assert formats(folder) == {1}
    with vecdb.open(folder, auto_build=False) as db:
        assert db.get_collection("docs").check().ok


@pytest.mark.parametrize("point", ["before", "after"])
def test_killed_while_it_makes_the_present_format(point, tmp_path):
    """SIGKILL right before or after the commit of an upgrade: the file is of one format or of the other, whole."""
    folder = unpacked(SAVED[0], tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", f"import vecdb; vecdb.open({str(folder)!r}).get_collection('docs')"],
        env=os.environ | {failpoints.VARIABLE: f"upgrade.commit.{point}=kill"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    # Of two collections the one that was opened is brought to the present format.
    assert formats(folder) == ({1} if point == "before" else {1, layout.COLLECTION_FORMAT})
    with vecdb.open(folder, auto_build=False) as db:
        docs = db.get_collection("docs")
        assert (docs.count(), docs.check().ok) == (1_199, True)
