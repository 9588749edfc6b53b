"""Databases saved by each version of the format are opened in every test run, for ever."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import signal
import tarfile
from pathlib import Path

import lmdb
import numpy as np
import pytest
import store_rows

import vecdb
from tools import save_database
from vecdb import failpoints, layout
from vecdb.backup import manifest
from vecdb.index.files import FORMAT
from vecdb.store import Shape, upgrading
from vecdb_server import __main__ as command_line

DATA = Path(__file__).parent / "data"
SAVED = sorted(DATA.glob("format-*.tar.gz"))


def number_of(path):
    """`format-2.tar.gz`, and `format-2-checksums.tar.gz` for what came to be kept in that format later."""
    return int(path.name.split(".")[0].split("-")[1])


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
        patch.setattr(upgrading, "KEYED", type("Broken", (), {"pack": refuse}))
        with pytest.raises(vecdb.errors.Internal, match="Input"), vecdb.open(folder) as db:
            db.get_collection("docs")
    assert formats(folder) == {1}
    with vecdb.open(folder, auto_build=False) as db:
        assert db.get_collection("docs").check().ok


@pytest.fixture
def old(tmp_path):
    """A database of format 1."""
    return unpacked(SAVED[0], tmp_path)


def content(folder):
    """All records of all collections, read without changing anything."""
    with vecdb.open(folder, read_only=True) as db:
        return {
            info.name: [
                (part.ids, part.metadata, part.documents, part.vectors.tolist())
                for part in db.get_collection(info.name).scan()
            ]
            for info in db.list_collections()
        }


def upgraded(folder, **settings):
    with vecdb.open(folder, auto_build=False, **settings) as db:
        for info in db.list_collections():
            assert db.get_collection(info.name).check().ok
    assert formats(folder) == {layout.COLLECTION_FORMAT}


def test_an_upgrade_can_be_undone_and_done_again(old):
    """Upgraded, nothing written, gone back: the older format with all that was in it, as often as one likes."""
    before = content(old)
    for _ in range(2):
        upgraded(old)
        assert content(old) == before
        done = vecdb.downgrade(old)
        assert {(d.format_before, d.format) for d in done} == {(layout.COLLECTION_FORMAT, 1)}
        assert all(d.sequence == d.sequence_before for d in done)
        assert formats(old) == {1}
        assert content(old) == before
    assert {d.format for d in vecdb.downgrade(old)} == {1}


def test_going_back_loses_what_was_written_since_and_says_how_much(old):
    """Commits after the upgrade are gone, counted; the collection is as it was, and others keep their format."""
    before = content(old)
    with vecdb.open(old, auto_build=False) as db:
        docs = db.get_collection("docs")
        docs.delete(filter={})
        docs.insert(["new"], [[1, 1, 1, 1]])
        docs.compact()
        docs.build_index()
        db.create_collection("younger", dimension=2).insert(["a"], [[1, 1]])
    told = {d.collection: (d.format, d.sequence_before - d.sequence) for d in vecdb.downgrade(old)}
    assert told == {"docs": (1, 2), "half": (1, 0), "younger": (2, 0)}
    assert content(old)["docs"] == before["docs"]
    with vecdb.open(old, auto_build=False) as db:
        docs = db.get_collection("docs")
        assert docs.count() == 1_199
        # The files of the index from before went when the newer format built its own.
        assert all("index file" in problem for problem in docs.check().problems)
        assert docs.build_index().indexed_rows >= 1_199
        assert docs.check().ok


def test_kept_files_can_be_given_up_or_never_made(old, tmp_path):
    """Without them there is nothing to go back to, and nothing is changed by trying."""
    upgraded(old)
    assert vecdb.discard_kept(old) > 0
    assert vecdb.discard_kept(old) == 0
    assert {d.format for d in vecdb.downgrade(old)} == {layout.COLLECTION_FORMAT}
    other = unpacked(SAVED[0], tmp_path / "other")
    upgraded(other, keep_old_format=False)
    assert not [*other.rglob("data.format-*")]


def test_without_room_for_the_copy_nothing_is_upgraded(old):
    """The refusal says what to do, and the older format is as it was."""
    failpoints.arm("keep.sync.before=error:ENOSPC@1+")
    try:
        with (
            vecdb.open(old, auto_build=False) as db,
            pytest.raises(vecdb.errors.StorageFull, match="keep_old_format=False"),
        ):
            db.get_collection("docs")
    finally:
        failpoints.arm("")
    assert formats(old) == {1}
    assert not [*old.rglob("data.format-*")]
    upgraded(old)


def test_an_open_database_is_not_downgraded(old):
    """Nobody may have the folder open for writing."""
    with vecdb.open(old, auto_build=False), pytest.raises(vecdb.errors.DatabaseLocked):
        vecdb.downgrade(old)
    with pytest.raises(vecdb.errors.DatabaseNotFound):
        vecdb.downgrade(old.parent / "nowhere")


@pytest.mark.long
@pytest.mark.parametrize("point", ["keep.*", "upgrade.*", "downgrade.*"])
def test_killed_at_any_step_of_an_upgrade_or_of_the_way_back(old, point, tmp_path):
    """Stopped before or after each durable step, all records are there, and both ways can be gone again."""
    before = content(old)
    names = tmp_path / "names"

    def run(folder, rule):
        """How a process ends that upgrades and goes back, with this failpoint."""
        process = os.fork()
        if process:
            return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        try:
            failpoints.arm(rule)
            with vecdb.open(folder, auto_build=False) as db:
                for info in db.list_collections():
                    db.get_collection(info.name)
            vecdb.downgrade(folder)
            os._exit(0)
        finally:
            os._exit(1)

    recorded = shutil.copytree(old, tmp_path / "recorded")
    assert run(recorded, f"{point}=record:{names}") == 0
    hits = len(names.read_text().splitlines())
    assert hits >= 4
    for hit in range(1, hits + 1):
        folder = shutil.copytree(old, tmp_path / f"{hit}")
        assert run(folder, f"{point}=kill@{hit}") == -signal.SIGKILL
        assert content(folder) == before
        upgraded(folder)
        assert content(folder) == before
        assert {d.format for d in vecdb.downgrade(folder)} == {1}
        assert content(folder) == before


def test_downgrade_on_the_command_line(old, capsys):
    """`vecdb downgrade` says of each collection where it is now; --discard gives the way up; a folder in use is
    exit code 3."""

    def told(code, *words):
        assert command_line.main(["downgrade", *words]) == code
        output = capsys.readouterr()
        return (output.out + output.err).splitlines()

    with vecdb.open(old, auto_build=False) as db:
        db.get_collection("docs").delete(["r5"])
        assert "DATABASE_LOCKED" in told(3, "--data", str(old))[0]
    assert told(0, "--data", str(old)) == [
        "docs: format 2 -> 1, at commit 4; 1 later commits are gone",
        "half: format 1, nothing to go back to",
    ]
    upgraded(old)
    assert "no way back" in told(0, "--data", str(old), "--discard")[0]
    assert json.loads(told(0, "--data", str(old), "--json")[0]) == {
        "collection": "docs", "format_before": 2, "format": 2, "sequence_before": 4, "sequence": 4,
    }  # fmt: skip
    assert "--data" in told(2)[0]


def raise_format(folder, number):
    env = lmdb.open(str(folder), max_dbs=20)
    with env, env.begin(write=True) as txn:
        txn.put(layout.META_FORMAT, str(number).encode(), db=env.open_db(b"meta", txn=txn))


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("what", ["collection", "catalog"])
def test_a_newer_format_is_refused_with_both_numbers(tmp_path, what, read_only):
    """FormatMismatch names the format that was found, those that are read, and what to do; nothing changes."""
    folder = unpacked(SAVED[-1], tmp_path)
    with vecdb.open(folder) as db:  # checksums of names are added
        held = db.get_collection("docs")._core.store.folder
    raise_format(held if what == "collection" else folder / layout.CATALOG_FOLDER, 97)
    seen = {p: p.read_bytes() for p in folder.rglob("data.mdb")}
    with (
        pytest.raises(vecdb.errors.FormatMismatch, match=r"format 97, .* reads .*version") as found,
        vecdb.open(folder, auto_build=False, read_only=read_only) as db,
    ):
        db.get_collection("docs")
    assert found.value.details["given"] == 97
    assert {p: p.read_bytes() for p in folder.rglob("data.mdb")} == seen


def test_a_newer_file_without_a_table_says_its_format(tmp_path):
    """A format that has lost a table of ours is refused by its number too."""
    folder = unpacked(SAVED[-1], tmp_path)
    with vecdb.open(folder, read_only=True) as db:
        held = db.get_collection("docs")._core.store.folder
    raise_format(held, 98)
    env = lmdb.open(str(held), max_dbs=20)
    with env, env.begin(write=True) as txn:
        txn.drop(env.open_db(b"keys", txn=txn))
    with vecdb.open(folder) as db, pytest.raises(vecdb.errors.FormatMismatch, match="format is 98"):
        db.get_collection("docs")


SAVED_INDEXES = sorted(DATA.glob("indexes-*.tar.gz"))


@pytest.mark.parametrize("saved", SAVED_INDEXES, ids=lambda path: path.name.split(".")[0])
def test_saved_indexes_are_served_as_they_were_built(saved, tmp_path):
    """A saved index of each kind, of each format of records, serves at once without being built again."""
    assert (DATA / f"indexes-{FORMAT}.tar.gz") in SAVED_INDEXES
    vectors = save_database.index_vectors()
    rows = save_database.INDEX_ROWS
    asked = [5, 500, rows - 1, rows]
    with vecdb.open(unpacked(saved, tmp_path), auto_build=False) as db:
        for name, kind in save_database.INDEXES.items():
            docs = db.get_collection(name)
            stats = docs.stats().index
            held = (stats.kind, stats.quantization, stats.indexed_rows, stats.dead_rows)
            assert held == (kind["index"], kind["quantization"], rows, 1), name
            assert stats.last_error == ""
            found = docs.query(vectors[asked], k=1, target_recall=0.9)
            assert found.ids == [[f"i{n}"] for n in asked], name
            assert docs.query(vectors[3], k=1).ids != [["i3"]]
            assert docs.check().ok
        named = db.get_collection("named")
        assert named.stats().vectors["side"].indexed_rows == rows + 2
        assert named.query(vectors[asked], vector_name="side", k=1).ids == [
            [f"i{n}"] for n in asked
        ]


SAVED_BACKUPS = sorted(DATA.glob("backups-*.tar.gz"))


@pytest.mark.parametrize("saved", SAVED_BACKUPS, ids=lambda path: path.name.split(".")[0])
def test_saved_backups_are_verified_restored_and_continued(saved, tmp_path):
    """Backups of each format of manifests: whole, restored as of either, and continued by an increment of today's."""
    assert {number_of(p) for p in SAVED_BACKUPS} == set(range(1, manifest.FORMAT + 1))
    folder = unpacked(saved, tmp_path)
    first, second = [one.id for one in vecdb.list_backups(folder / "backups")]
    (line, *_) = (folder / "backups" / second / "manifest.json").read_bytes().split(b"\n")
    assert json.loads(line)["format"] == number_of(saved)
    with vecdb.open(folder / "db", auto_build=False) as db:
        db.get_collection("docs").insert(["new"], [[5, 5]])
        third = db.backup(folder / "backups")
    assert (third.kind, third.parent) == ("incremental", second)
    assert vecdb.verify_backups(folder / "backups").ok
    for backup, count, least in ((first, 400, 0), (second, 399, -1), (third.id, 400, -1)):
        vecdb.restore(folder / "backups", tmp_path / backup, backup=backup)
        with vecdb.open(tmp_path / backup, auto_build=False) as db:
            docs = db.get_collection("docs")
            assert docs.count() == count
            (got,) = docs.get(["b0"], include=["metadata", "document"])
            assert got.metadata == {"n": least}
            assert docs.get(["b399"], include=["document"]).documents == ["text 399"]
            assert docs.check().ok


@pytest.mark.parametrize("chunk", ["000001.chunk", "000002.chunk"])
@pytest.mark.parametrize("saved", SAVED_BACKUPS, ids=lambda path: path.name.split(".")[0])
def test_a_changed_file_of_a_saved_backup_is_found(saved, chunk, tmp_path):
    """One byte of rows or of history is told by the digest of the format, before anything is read of it."""
    folder = unpacked(saved, tmp_path)
    first = vecdb.list_backups(folder / "backups")[0].id
    path = folder / "backups" / first / chunk
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = vecdb.verify_backups(folder / "backups")
    digest = "SHA-256" if number_of(saved) == 1 else "BLAKE3"
    assert not found.ok
    assert digest in str(found.problems)
    with pytest.raises(vecdb.errors.BackupDamaged, match=digest):
        vecdb.restore(folder / "backups", tmp_path / "restored", backup=first)


def test_an_index_of_a_newer_format_is_built_again(tmp_path):
    """The index is a copy: one that is not understood is not read, says so, and is replaced by a build."""
    folder = unpacked(SAVED[-1], tmp_path)
    with vecdb.open(folder, auto_build=False) as db:
        store = db.get_collection("docs")._core.store
        with store.read() as reader:
            record = json.loads(reader.index_record(0))
        store.set_index_record(json.dumps(record | {"format": 99}).encode())
    with vecdb.open(folder, auto_build=False) as db:
        docs = db.get_collection("docs")
        assert "format 99" in docs.stats().index.last_error
        assert docs.stats().index.indexed_rows == 0
        assert docs.count() == 1_199
        assert docs.build_index().indexed_rows >= 1_199
