"""Restores: which moments come back, what they keep to, and what is left when they fail."""

from __future__ import annotations

import datetime as dt
import time

import faults
import numpy as np
import pytest
from backup_rows import everything, filled

import vecdb
from vecdb import errors
from vecdb.backup import taking


@pytest.fixture
def db(data_folder):
    with vecdb.open(data_folder, history_s=0.0, auto_build=False) as opened:
        yield opened


def test_what_was_compacted_away_is_refused(db, tmp_path):
    """A moment that was purged before the backup came is refused by name of those that are there."""
    docs = filled(db, rows=300)
    db.backup(tmp_path / "b")
    docs.delete(["r1"])
    docs.delete(["r2"])
    docs.compact()
    docs.delete(["r3"])
    info = db.backup(tmp_path / "b")
    assert (info.collections[0].since, info.collections[0].oldest_sequence) == (1, 3)
    with pytest.raises(errors.BackupNotFound, match="from 3 to 4") as caught:
        db.restore(tmp_path / "b", collections={"docs": "x"}, sequence=2)
    assert caught.value.details["sequence"] == 3
    for sequence, count in ((1, 300), (3, 298), (4, 297)):
        made = db.restore(tmp_path / "b", collections={"docs": f"at-{sequence}"}, sequence=sequence)
        assert made.collections[0].count == count
        assert db.get_collection(f"at-{sequence}").check().ok


def test_a_time_between_the_start_of_a_backup_and_its_reading(db, tmp_path, monkeypatch):
    """A commit that a backup still took, after the time it bears, is not in what is restored as of before it."""
    docs = filled(db, rows=1)
    begin, between = taking._begin, []

    def late(*given):
        between.append(dt.datetime.now(dt.UTC))
        time.sleep(0.002)
        docs.insert(["late"], np.ones((1, 4)))
        return begin(*given)

    with monkeypatch.context() as patched:
        patched.setattr(taking, "_begin", late)
        assert db.backup(tmp_path / "b").taken_at <= between[0]
    docs.insert(["later"], np.ones((1, 4)))
    db.backup(tmp_path / "b")
    db.restore(tmp_path / "b", collections={"docs": "then"}, at=between[0])
    now = dt.datetime.now(dt.UTC)
    db.backup(tmp_path / "b")
    db.restore(tmp_path / "b", collections={"docs": "now"}, at=now)
    assert sorted(everything(db.get_collection("then"))) == ["r0"]
    assert sorted(everything(db.get_collection("now"))) == ["late", "later", "r0"]


def test_a_time_beside_a_backup_of_a_clock_that_was_ahead(db, tmp_path, monkeypatch):
    """A backup that was taken while the clock was years ahead, or behind, is not taken for one that came after what
    was committed since: later backups still follow it, and moments between are restored from those."""

    def backup(days):
        now = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
        monkeypatch.setattr(taking, "_now", lambda: now)
        return db.backup(tmp_path / "b").id

    docs = filled(db, rows=1)
    ids = [backup(4_000)]
    docs.insert(["late"], np.ones((1, 4)))
    then = dt.datetime.now(dt.UTC)
    time.sleep(0.002)
    docs.insert(["later"], np.ones((1, 4)))
    ids.append(backup(0))
    assert [info.id for info in vecdb.list_backups(tmp_path / "b")] == ids == sorted(ids)
    made = db.restore(tmp_path / "b", collections={"docs": "then"}, at=then)
    assert made.backup == ids[1]
    assert sorted(everything(db.get_collection("then"))) == ["late", "r0"]
    with pytest.raises(errors.BackupNotFound, match="or later"):
        db.restore(tmp_path / "b", collections={"docs": "now"}, at=dt.datetime.now(dt.UTC))
    ids += [backup(-4_000), backup(0)]
    for name, at in (("then-2", then), ("now", None)):
        made = db.restore(tmp_path / "b", collections={"docs": name}, at=at)
        assert made.backup == ids[3]
    assert sorted(everything(db.get_collection("then-2"))) == ["late", "r0"]


def test_a_restore_keeps_to_the_number_of_collections(data_folder, tmp_path):
    """A restore makes no more collections than `max_collections` allows, and says so before it reads them."""
    with vecdb.open(data_folder, max_collections=3) as db:
        filled(db, "a", 5)
        filled(db, "b", 5)
        db.backup(tmp_path / "b")
        with pytest.raises(errors.LimitExceeded, match="max_collections"):
            db.restore(tmp_path / "b", collections={"a": "c", "b": "d"})
        db.restore(tmp_path / "b", collections={"a": "c"})
        assert [info.name for info in db.list_collections()] == ["a", "b", "c"]
        assert len(list((data_folder / "collections").iterdir())) == 3


def test_a_restore_commits_by_bytes_of_all_that_a_row_has(db, tmp_path, monkeypatch):
    """Named vectors, ids and texts count for the memory that a restore takes before it commits; each commit
    tells how far it is."""
    named = {"large": {"dimension": 1_000, "metric": "l2"}}
    docs = db.create_collection("docs", dimension=2, vectors=named)
    for start in range(0, 400, 100):
        ids, vectors = [f"r{n}" for n in range(start, start + 100)], np.ones((100, 2))
        docs.insert(ids, vectors, named_vectors={"large": np.ones((100, 1_000))})
    monkeypatch.setattr("vecdb.backup.copying._GROUP_BYTES", 100_000)
    monkeypatch.setattr("vecdb.backup.restoring._COMMIT_BYTES", 150_000)
    info = db.backup(tmp_path / "b")
    told = []
    db.restore(tmp_path / "b", collections={"docs": "again"}, progress=told.append)
    assert len(told) > 5
    assert [(one.rows, one.bytes) for one in told] == sorted((one.rows, one.bytes) for one in told)
    assert (told[-1].rows, told[-1].total_rows) == (400, 400)
    assert 0 < told[-1].bytes <= info.bytes
    assert everything(db.get_collection("again")) == everything(docs)


def test_restore_makes_a_database_or_nothing(db, tmp_path):
    """A folder that holds something is refused, and a restore that fails leaves nothing behind."""
    filled(db, rows=200)
    info = db.backup(tmp_path / "b")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    with pytest.raises(errors.AlreadyExists, match="taken"):
        vecdb.restore(tmp_path / "b", tmp_path / "taken")
    (tmp_path / "empty").mkdir()
    vecdb.restore(tmp_path / "b", tmp_path / "empty")
    with vecdb.open(tmp_path / "empty") as other:
        assert other.get_collection("docs").count() == 200
    (next((tmp_path / "b" / info.id).glob("*.chunk"))).write_bytes(b"VECDBCK1")
    with pytest.raises(errors.BackupDamaged):
        vecdb.restore(tmp_path / "b", tmp_path / "failed")
    with pytest.raises(errors.BackupDamaged):
        db.restore(tmp_path / "b", collections={"docs": "new"})
    assert {path.name for path in tmp_path.iterdir()} == {"b", "data", "taken", "empty"}
    assert len(list((tmp_path / "data" / "collections").iterdir())) == 1


def test_names_that_no_finished_database_can_take(db, tmp_path):
    """A folder at which a disk is mounted is refused before anything is read; a link, also one that leads nowhere yet,
    is followed, and stays a link."""
    filled(db, rows=20)
    db.backup(tmp_path / "b")
    (tmp_path / "real").mkdir()
    for name, leads_to in (("link", "real"), ("ahead", "later")):
        (tmp_path / name).symlink_to(tmp_path / leads_to)
        vecdb.restore(tmp_path / "b", tmp_path / name)
        assert (tmp_path / name).is_symlink()
        with vecdb.open(tmp_path / leads_to, read_only=True) as other:
            assert other.get_collection("docs").count() == 20
    with faults.small_disk(tmp_path / "disk") as mounted:
        with pytest.raises(errors.InvalidArgument, match="mounted"):
            vecdb.restore(tmp_path / "b", mounted)
        vecdb.restore(tmp_path / "b", mounted / "below")
        assert [path.name for path in mounted.iterdir()] == ["below"]


def test_a_folder_that_fills_while_it_is_restored(db, tmp_path):
    """Of two restores into one folder the first that is done has it; the other says so, and nothing of it is left."""
    filled(db, rows=20)
    db.backup(tmp_path / "b")

    def first(_):
        if not (tmp_path / "new").exists():
            vecdb.restore(tmp_path / "b", tmp_path / "new")

    with pytest.raises(errors.AlreadyExists, match="new"):
        vecdb.restore(tmp_path / "b", tmp_path / "new", progress=first)
    assert {path.name for path in tmp_path.iterdir()} == {"b", "data", "new"}
    with vecdb.open(tmp_path / "new", read_only=True) as other:
        assert other.get_collection("docs").count() == 20


def test_a_restore_on_a_full_disk(db, tmp_path):
    """Backups and restores that meet a full disk are StorageFull, nothing of them is left, and both are done when there
    is room."""
    docs = db.create_collection("docs", dimension=256)
    docs.insert([f"r{n}" for n in range(3_000)], np.random.default_rng(1).random((3_000, 256)))
    db.backup(tmp_path / "b")
    with faults.small_disk(tmp_path / "disk") as disk:
        (disk / "most").write_bytes(bytes(faults.DISK_BYTES - (2 << 20)))
        for call in (
            lambda: db.backup(disk / "b"),
            lambda: vecdb.restore(tmp_path / "b", disk / "new"),
        ):
            with pytest.raises(errors.StorageFull):
                call()
            assert not [path for path in disk.rglob("*") if path.is_file() and path.name != "most"]
        (disk / "most").unlink()
        db.backup(disk / "b")
        assert vecdb.verify_backups(disk / "b").ok
        vecdb.restore(disk / "b", disk / "new")
        with vecdb.open(disk / "new", read_only=True) as other:
            assert other.get_collection("docs").count() == 3_000


def test_more_fields_than_the_setting_allows(db, tmp_path):
    """A restore keeps to `max_fields` as an insert does."""
    filled(db, rows=5)
    db.get_collection("docs").upsert(
        ["x"], np.ones((1, 4)), metadata=[{f"f{n}": n for n in range(50)}]
    )
    db.backup(tmp_path / "b")
    with pytest.raises(errors.LimitExceeded, match="max_fields"):
        vecdb.restore(tmp_path / "b", tmp_path / "new", max_fields=20)
    vecdb.restore(tmp_path / "b", tmp_path / "new", max_fields=51)
