"""Backups of an embedded database: what is in them, chains, targets, and what happens beside them."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from backup_rows import NAMED, change, everything, filled
from seeds import RUN_SEED

import vecdb
from vecdb import errors
from vecdb.backup import open_target, side_by_side, taking


@pytest.fixture
def db(data_folder):
    with vecdb.open(data_folder, history_s=0.0, auto_build=False) as opened:
        yield opened


@pytest.fixture(params=["here", "there", "shared"])
def place(request, monkeypatch):
    """In this process, in one of its own as large collections are copied, and by two as larger ones are."""
    if request.param == "shared":
        monkeypatch.setattr(side_by_side, "LARGE_BYTES", 1)
        monkeypatch.setattr(side_by_side, "FILE_BYTES", 1)
        monkeypatch.setattr(side_by_side, "_places", lambda: (2, 0))
    monkeypatch.setattr(taking, "SMALL_BYTES", 1 << 40 if request.param == "here" else -1)
    return request.param


def test_several_files_and_purged_rows(db, tmp_path, place, monkeypatch):
    """A backup of many files, of rows of which some were purged, gives back what is live, with its numbers."""
    from vecdb.backup import copying

    if place == "here":
        monkeypatch.setattr("vecdb.backup.sink.FILE_BYTES", 20_000)
        monkeypatch.setattr(copying, "_GROUP_BYTES", 9_000)
    docs = filled(db)
    docs.delete([f"r{n}" for n in range(100, 900)])
    docs.compact()
    docs.upsert([f"r{n}" for n in range(2_000, 2_400)], np.ones((400, 4)))
    told = []
    info = db.backup(tmp_path / "b", progress=told.append)
    assert info.files > (5 if place == "here" else 2)
    assert [one.bytes for one in told] == sorted(one.bytes for one in told) != []
    assert vecdb.verify_backups(tmp_path / "b").ok
    vecdb.restore(tmp_path / "b", tmp_path / "new")
    with vecdb.open(tmp_path / "new") as other:
        again = other.get_collection("docs")
        assert again.check().ok
        assert everything(again) == everything(docs)
        assert again.stats().rows == docs.stats().rows
        core, original = again._core, docs._core
        live = original.index.view.live_mask(0, original.index.view.n_rows)
        assert np.array_equal(core.index.view.live_mask(0, core.index.view.n_rows), live)


def test_a_hundred_increments_are_one_state(db, tmp_path):
    """However often it was continued, a chain gives back the newest state, and each one before."""
    print(f"seed {RUN_SEED}")
    rng = random.Random(RUN_SEED)
    docs = db.create_collection("docs", dimension=4, vectors=NAMED)
    states = {}
    for _ in range(25):
        change(docs, rng)
        states[db.backup(tmp_path / "b", verify=False).id] = everything(docs)
    assert vecdb.verify_backups(tmp_path / "b").ok
    for backup in rng.sample(sorted(states), 4):
        name = f"at-{rng.randrange(1 << 30)}"
        db.restore(tmp_path / "b", backup=backup, collections={"docs": name})
        assert everything(db.get_collection(name)) == states[backup]


def test_collections_come_and_go_within_a_chain(db, tmp_path):
    """One made later is there in full, one dropped is not there any more, one renamed goes on."""
    filled(db, "a", 50)
    filled(db, "b", 60)
    first = db.backup(tmp_path / "b")
    db.drop_collection("b")
    db.rename_collection("a", "renamed")
    filled(db, "c", 70)
    second = db.backup(tmp_path / "b")
    assert {c.name: (c.since, c.rows) for c in second.collections} == {
        "c": (0, 70),
        "renamed": (1, 0),
    }
    vecdb.restore(tmp_path / "b", tmp_path / "second")
    vecdb.restore(tmp_path / "b", tmp_path / "first", backup=first.id)
    with vecdb.open(tmp_path / "second") as other:
        assert {i.name: other.get_collection(i.name).count() for i in other.list_collections()} == {
            "renamed": 50,
            "c": 70,
        }
    with vecdb.open(tmp_path / "first") as other:
        assert [i.name for i in other.list_collections()] == ["a", "b"]


def test_a_collection_dropped_while_it_is_copied_is_left_out(db, tmp_path, place):
    """A drop does not wait for a backup, and does not break it."""
    filled(db, "a", 500)
    filled(db, "b", 500)
    dropped = []

    def drop(progress):
        if not dropped:
            dropped.append(progress.collection)
            db.drop_collection("b")

    info = db.backup(tmp_path / "b", progress=drop)
    assert [c.name for c in info.collections] == ["a"]
    assert vecdb.verify_backups(tmp_path / "b").ok


@pytest.mark.parametrize("when", ["opening", "reading"])
def test_a_collection_dropped_before_it_is_read_is_left_out(
    data_folder, tmp_path, monkeypatch, when
):
    """A backup of all collections does not fail because one of them was dropped while it began."""
    with vecdb.open(data_folder, auto_build=False) as db:
        filled(db, "a", 50)
        filled(db, "b", 50)
    with vecdb.open(data_folder, auto_build=False) as db:
        where = (db, "_core") if when == "opening" else (taking, "_begin")
        original = getattr(*where)

        def slow(first, *given):
            if getattr(first, "name", first) == "b":
                db.drop_collection("b")
            return original(first, *given)

        with monkeypatch.context() as patched:
            patched.setattr(*where, slow)
            info = db.backup(tmp_path / "b")
        assert [c.name for c in info.collections] == ["a"]
        with pytest.raises(errors.InvalidArgument, match="at least one"):
            db.backup(tmp_path / "b", collections=[])


def test_files_removed_while_a_backup_is_taken(db, tmp_path):
    """A backup whose files somebody removes before it is done fails, also when the one it continues goes."""
    filled(db, "a", 50)
    filled(db, "b", 50)

    def prune(_):
        vecdb.prune_backups(tmp_path / "b", keep=1, incomplete_older_than_s=0.0)

    with pytest.raises(errors.Unavailable, match="was removed"):
        db.backup(tmp_path / "b", progress=prune)
    first = db.backup(tmp_path / "b")
    db.get_collection("a").delete(["r1"])
    with pytest.raises(errors.Unavailable, match=first.id):
        db.backup(tmp_path / "b", progress=lambda _: shutil.rmtree(tmp_path / "b" / first.id))
    assert list((tmp_path / "b").iterdir()) == []


def test_a_folder_that_was_set_back_is_not_continued(data_folder, tmp_path):
    """A database that was replaced by an older copy of its files begins anew in the next backup."""
    with vecdb.open(data_folder) as db:
        filled(db, rows=100)
    shutil.copytree(data_folder, tmp_path / "copy")
    with vecdb.open(data_folder) as db:
        db.get_collection("docs").insert(["new"], np.ones((1, 4)))
        db.backup(tmp_path / "b")
    shutil.rmtree(data_folder)
    (tmp_path / "copy").rename(data_folder)
    with vecdb.open(data_folder) as db:
        docs = db.get_collection("docs")
        time.sleep(0.002)
        docs.insert(["other"], np.ones((1, 4)))
        docs.insert(["another"], np.ones((1, 4)))
        info = db.backup(tmp_path / "b")
        assert info.collections[0].since == 0
        db.restore(tmp_path / "b", collections={"docs": "again"})
        assert everything(db.get_collection("again")) == everything(docs)


@pytest.mark.long
def test_writers_queries_and_compaction_beside_backups(db, tmp_path, place):
    """Each backup that is taken beside writers is one moment of what they wrote: whole commits, up to its own."""
    print(f"seed {RUN_SEED}")
    docs = db.create_collection("docs", dimension=4)
    docs.insert([f"r{n}" for n in range(500)], np.ones((500, 4)), metadata=[{"by": 0}] * 500)
    stop, failures = threading.Event(), []
    sums = {1: 500}

    def write():
        rng = random.Random(RUN_SEED)
        number = 1
        while not stop.is_set():
            number += 1
            ids = sorted({f"r{rng.randrange(500)}" for _ in range(80)})
            vectors = np.random.default_rng(number).standard_normal((len(ids), 4))
            sums[docs.upsert(ids, vectors, metadata=[{"by": number}] * len(ids)).sequence] = number

    def others():
        while not stop.is_set():
            assert len(docs.query(np.ones((1, 4)), k=5).ids[0]) == 5
            docs.compact()

    def guarded(work):
        try:
            work()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in (write, others)]
    for thread in threads:
        thread.start()
    infos = []
    try:
        for _ in range(5):
            infos.append(db.backup(tmp_path / "b"))
            time.sleep(0.05)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert vecdb.verify_backups(tmp_path / "b").ok
    for info in infos:
        (held,) = info.collections
        made = db.restore(tmp_path / "b", backup=info.id, collections={"docs": f"c{held.sequence}"})
        again = db.get_collection(f"c{held.sequence}")
        assert made.collections[0].count == held.count == 500
        assert again.check().ok
        newest = max(record[1].get("by", 0) for record in everything(again).values())
        assert newest == sums[held.sequence] if held.sequence > 1 else newest == 0


def test_compaction_waits_for_what_a_backup_still_copies(db, tmp_path):
    """Rows that die while a backup runs keep their content until it is done, and are purged afterwards."""
    docs = filled(db, rows=400)
    seen = []

    def compact(_):
        if not seen:
            docs.delete([f"r{n}" for n in range(200)])
            seen.append(docs.compact().purged_rows)

    info = db.backup(tmp_path / "b", progress=compact)
    assert seen == [0]
    assert info.collections[0].count == 400
    assert docs.compact().purged_rows == 200
    db.restore(tmp_path / "b", collections={"docs": "again"})
    assert db.get_collection("again").count() == 400


def test_a_reader_beside_the_writer_notices_that_it_was_overtaken(db, data_folder, tmp_path):
    """A process that only reads cannot keep rows from being purged: its backup fails and says so."""
    docs = filled(db, rows=200)
    code = (
        "import sys, vecdb\n"
        "def wait(_):\n"
        "    print('copied', flush=True)\n"
        "    sys.stdin.readline()\n"
        f"with vecdb.open({str(data_folder)!r}, read_only=True) as db:\n"
        "    try:\n"
        f"        db.backup({str(tmp_path / 'b')!r}, progress=wait)\n"
        "    except vecdb.errors.Unavailable as error:\n"
        "        print(error.reason, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "copied\n"
    docs.delete([f"r{n}" for n in range(100)])
    docs.compact()
    process.stdin.write("on\n" * 5)
    process.stdin.close()
    assert process.stdout.read().split()[-1] == "UNAVAILABLE"
    assert process.wait() == 0
    assert vecdb.list_backups(tmp_path / "b") == []


def test_a_read_only_database_can_be_backed_up(data_folder, tmp_path):
    """A process that only reads takes a backup beside the one that writes."""
    with vecdb.open(data_folder) as db:
        docs = filled(db, rows=100)
        want = everything(docs)
    with vecdb.open(data_folder, read_only=True) as reader:
        reader.backup(tmp_path / "b")
        with pytest.raises(errors.ReadOnly):
            reader.restore(tmp_path / "b", collections={"docs": "x"})
    vecdb.restore(tmp_path / "b", tmp_path / "new")
    with vecdb.open(tmp_path / "new") as other:
        assert everything(other.get_collection("docs")) == want


def test_a_damaged_row_stops_a_backup(db, tmp_path, place):
    """A row that fails its checksum in the store is named, and no backup hides the loss."""
    docs = filled(db, rows=50)
    env = docs._core.store._env
    env.write(lambda t: t.put((7).to_bytes(8, "big"), b'{"n":8}', db=env.table("metadata")), "rows")
    with pytest.raises(errors.Corrupted, match="row 7"):
        db.backup(tmp_path / "b")
    assert vecdb.list_backups(tmp_path / "b") == []


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_object_stores(db, tmp_path, kind):
    """Backups lie in an object store as in a folder."""
    store = pytest.importorskip("obstore.store")
    if kind == "memory":
        target = store.MemoryStore()
    else:
        (tmp_path / "objects").mkdir()
        target = store.LocalStore(tmp_path / "objects")
    docs = filled(db, rows=300)
    assert vecdb.list_backups(target) == []
    db.backup(target)
    docs.delete(["r1"])
    second = db.backup(target)
    assert second.kind == "incremental"
    assert vecdb.verify_backups(target).ok
    db.restore(target, collections={"docs": "again"})
    assert everything(db.get_collection("again")) == everything(docs)
    third = db.backup(target, kind="full")
    assert len(vecdb.prune_backups(target, keep=1)) == 2
    assert [one.id for one in vecdb.list_backups(target)] == [third.id]


def test_passwords_in_a_url_are_in_no_message(tmp_path):
    """What says which target it is about leaves out what stands before the host, and the query."""
    pytest.importorskip("obstore")
    with pytest.raises(errors.InvalidArgument, match="memory:///a") as missing:
        vecdb.restore("memory:///a?token=secret", tmp_path / "new")
    with pytest.raises(errors.InvalidArgument, match="nonsense://host/a") as refused:
        vecdb.list_backups("nonsense://user:secret@host/a")
    with pytest.raises(errors.InvalidArgument, match="file://host/a") as elsewhere:
        vecdb.list_backups("file://user:secret@host/a")
    opened = open_target("s3://user:secret@bucket/a?token=secret")
    assert opened.name == "s3://bucket/a"
    assert "secret" not in f"{missing.value}{refused.value}{elsewhere.value}"


def test_targets_that_are_none(db, tmp_path):
    """What is no target is refused by a typed error; file:// is a folder."""
    filled(db, rows=10)
    for given in ("", "a\0b", "nonsense://x/y", 7.5):
        with pytest.raises((errors.InvalidArgument, errors.Unavailable, errors.BackupNotFound)):
            db.backup(given)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(errors.Unavailable):
        db.backup(tmp_path / "file")
    db.backup(f"file://{tmp_path}/with%20space")
    assert len(vecdb.list_backups(tmp_path / "with space")) == 1


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("file://host{}/x", "another machine"),
        ("file://localhost:80{}/x", "another machine"),
        ("file://{}/x?y", "no query"),
        ("file://{}/x?", "no query"),
        ("file://{}/x#y", "fragment"),
        ("file://{}/x\ny", "line end"),
        ("file://{}/x%00y", "no folder"),
        ("file://{}/x%ff", "no folder"),
        ("file://localhost", "no folder"),
        ("file://[x", "folder or a URL"),
        ("memory:///x", "MemoryStore"),
    ],
)
def test_urls_that_would_lead_elsewhere(db, tmp_path, given, why):
    """A URL that names another folder than it seems to, or memory that nobody can find again, is refused before
    anything is written."""
    filled(db, rows=1)
    with pytest.raises(errors.InvalidArgument, match=why):
        db.backup(given.format(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_urls_of_folders_on_this_machine(db, tmp_path):
    """`localhost` is this machine, and marks of a URL can be part of a name where they are written as such."""
    filled(db, rows=1)
    db.backup(f"file://localhost{tmp_path}/b")
    db.backup(f"FILE://{tmp_path}/b%3Fc%23d")
    assert {path.name for path in tmp_path.iterdir()} == {"data", "b", "b?c#d"}


def test_a_local_store_is_synced_as_its_folder_is(db, tmp_path, monkeypatch):
    """What goes to a LocalStore is as durable as what goes to its folder; one without a folder is refused."""
    store = pytest.importorskip("obstore.store")
    filled(db, rows=1)
    (tmp_path / "b").mkdir()
    synced = set()
    monkeypatch.setattr("vecdb.failpoints.hook", lambda name, path: synced.add((name, str(path))))
    made = db.backup(store.LocalStore(tmp_path / "b"))
    assert ("backup.sync-folder.after", str(tmp_path / "b" / made.id)) in synced
    assert vecdb.list_backups(tmp_path / "b") == [made]
    with pytest.raises(errors.InvalidArgument, match="give the path"):
        db.backup(store.LocalStore())


@pytest.mark.parametrize("limit", ["x", True, [1], 10**400, 0, -1.0, float("nan")])
def test_limits_that_are_none(db, tmp_path, limit):
    """A rate that is no number above 0 is refused by name."""
    filled(db, rows=1)
    with pytest.raises(errors.InvalidArgument, match="limit_bytes_s"):
        db.backup(tmp_path / "b", limit_bytes_s=limit)
    db.backup(tmp_path / "b", limit_bytes_s=np.float32(1e9))


def test_a_rate_limit_is_kept(db, tmp_path, monkeypatch):
    """`limit_bytes_s` makes a backup take as long as its bytes take at that rate."""
    monkeypatch.setattr("vecdb.backup.sink.FILE_BYTES", 4_000)
    monkeypatch.setattr("vecdb.backup.copying._GROUP_BYTES", 4_000)
    filled(db, rows=400)
    began = time.monotonic()
    info = db.backup(tmp_path / "b", limit_bytes_s=60_000)
    assert time.monotonic() - began > info.bytes / 60_000


@pytest.mark.parametrize("limit", [1.0, 1e-300, 5e-324])
def test_a_backup_that_rests_can_be_ended(db, tmp_path, place, limit):
    """However low a limit is, a backup goes on saying how far it is, so that it ends when nobody wants it any more."""
    filled(db, "a", 100)
    said = []

    def progress(one):
        said.append(one)
        if len(said) > 1:
            raise errors.Cancelled("nobody waits")

    with pytest.raises(errors.Cancelled):
        db.backup(tmp_path / "b", limit_bytes_s=limit, progress=progress)
    assert len(said) == 2
    assert vecdb.list_backups(tmp_path / "b") == []


def test_the_process_that_copies_may_die(db, tmp_path, monkeypatch):
    """A copying process that is killed ends the backup with a typed error, and nothing of it is left."""
    monkeypatch.setattr(taking, "SMALL_BYTES", -1)
    filled(db, rows=300)
    with monkeypatch.context() as armed:
        armed.setenv("VECDB_FAILPOINTS", "backup.*=kill@3")
        with pytest.raises(errors.Unavailable, match="died with exit code -9"):
            db.backup(tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []
    db.backup(tmp_path / "b")
    assert vecdb.verify_backups(tmp_path / "b").ok
