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


def now():
    """A moment between what was done and what is done next."""
    time.sleep(0.002)
    made = dt.datetime.now(dt.UTC)
    time.sleep(0.002)
    return made


def restored(target, path, **asked):
    """Names of what a restore makes, with the ids of each."""
    vecdb.restore(target, path, **asked)
    with vecdb.open(path, read_only=True) as made:
        names = [info.name for info in made.list_collections()]
        return {name: sorted(everything(made.get_collection(name))) for name in names}


def test_a_time_within_a_named_backup(db, tmp_path):
    """Of a backup that is named a time beyond it is refused, and so is one of which it does not know what was there then:
    neither gives another moment. Times that it knows come back."""
    docs = filled(db, rows=2)
    first = db.backup(tmp_path / "b")
    between = now()
    docs.insert(["after"], np.ones((1, 4)))
    docs.delete(["r0"])
    docs.compact()
    compacted = db.backup(tmp_path / "b")
    assert compacted.collections[0].oldest_sequence == compacted.collections[0].sequence
    then = now()
    docs.insert(["later"], np.ones((1, 4)))
    last = db.backup(tmp_path / "b")
    for backup in (compacted.id, last.id, None):
        with pytest.raises(errors.BackupNotFound, match="compacted away"):
            vecdb.restore(tmp_path / "b", tmp_path / "new", backup=backup, at=between)
    for backup in (first.id, compacted.id):
        with pytest.raises(errors.BackupNotFound, match="does not know"):
            vecdb.restore(tmp_path / "b", tmp_path / "new", backup=backup, at=then)
    assert restored(tmp_path / "b", tmp_path / "n", backup=last.id, at=last.taken_at) == {
        "docs": ["after", "later", "r1"]
    }
    assert restored(tmp_path / "b", tmp_path / "m", backup=last.id, at=then) == {
        "docs": ["after", "r1"]
    }


def test_a_time_before_backups_of_some_collections(db, tmp_path):
    """Each collection comes from the first backup since that holds it, with its aliases; one that none holds was
    dropped."""
    target = tmp_path / "b"
    for name in ("a", "b", "c"):
        filled(db, name, 1)
    db.set_alias("live", "b")
    whole = db.backup(target)
    at = now()
    some = db.backup(target, collections=["a"])
    db.get_collection("b").insert(["late"], np.ones((1, 4)))
    db.drop_collection("c")
    db.create_collection("young", dimension=4)
    every = db.backup(target)
    assert restored(target, tmp_path / "new", at=at) == {"a": ["r0"], "b": ["r0"]}
    made = db.restore(target, collections={"b": "b-then"}, at=at)
    assert made.backup == every.id
    assert sorted(everything(db.get_collection("b-then"))) == ["r0"]
    assert db.restore(target, collections={"a": "a-then"}, at=at).backup == some.id
    made = vecdb.restore(target, tmp_path / "again", at=at)
    assert (made.backup, made.aliases) == (every.id, {"live": "b"})
    for name, why in (("c", "was dropped"), ("young", "made after")):
        with pytest.raises(errors.BackupNotFound, match=why):
            db.restore(target, collections={name: "x"}, at=at)
    assert sorted(restored(target, tmp_path / "named", backup=whole.id, at=whole.taken_at)) == [
        *"abc"
    ]


def test_a_time_before_a_copy_was_restored(db, tmp_path):
    """A collection that was restored since bears the age of the first one. It was not there at that time, and does not
    keep the others from coming back; one that was backed up before is never left out."""
    target = tmp_path / "b"
    filled(db, "a", 1)
    docs = filled(db, "docs", 1)
    first = db.backup(target)
    at = now()
    db.backup(target, collections=["a"])
    db.restore(target, backup=first.id, collections={"docs": "copy"})
    db.get_collection("copy").insert(["mine"], np.ones((1, 4)))
    db.backup(target)
    assert restored(target, tmp_path / "new", at=at) == {"a": ["r0"], "docs": ["r0"]}
    with pytest.raises(errors.BackupNotFound, match="compacted away"):
        db.restore(target, collections={"copy": "x"}, at=at)
    docs.insert(["late"], np.ones((1, 4)))
    docs.delete(["late"])
    docs.compact()
    db.backup(tmp_path / "other", collections=["a", "docs"])
    at = now()
    db.backup(tmp_path / "other", collections=["a"])
    docs.delete(["r0"])
    docs.compact()
    db.backup(tmp_path / "other", kind="full")
    with pytest.raises(errors.BackupNotFound, match="compacted away"):
        vecdb.restore(tmp_path / "other", tmp_path / "none", at=at)


def test_a_time_when_two_collections_had_what_is_now_one_name(db, tmp_path):
    """Of two collections that bear one name in two backups neither is left out without a word; each can be had."""
    target = tmp_path / "b"
    filled(db, "docs", 1)
    filled(db, "old", 2)
    first = db.backup(target)
    at = now()
    db.backup(target, collections=["docs"])
    db.drop_collection("docs")
    db.rename_collection("old", "docs")
    last = db.backup(target)
    with pytest.raises(errors.BackupNotFound, match="are two") as caught:
        vecdb.restore(target, tmp_path / "new", at=at)
    assert caught.value.details["collection"] == "docs"
    for backup, ids in ((None, ["r0"]), (last.id, ["r0", "r1"])):
        name = f"from-{backup}"
        db.restore(target, collections={"docs": name}, backup=backup, at=at)
        assert sorted(everything(db.get_collection(name))) == ids
    assert sorted(restored(target, tmp_path / "new", at=first.taken_at)) == ["docs", "old"]


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


def test_folders_that_are_named_as_a_restore_names_its_own(db, tmp_path):
    """A restore removes what an interrupted one to the same name has left, of earlier versions too, and no folder of
    the user's, whatever its name: one that is called nearly so, that holds other files, or a database that is complete
    and bears no mark. Characters of patterns in the name stand for themselves."""
    filled(db, rows=20)
    db.backup(tmp_path / "b")
    here = tmp_path / "here"
    left = [here / f"d?.restoring-0000000{n}" for n in range(3)]
    mine = [
        here / name
        for name in ("d?.restoring-notes", "d?.restoring-0123abcd0", "dx.restoring-01234567")
    ]
    mine += [here / f"d?.restoring-1111111{n}" for n in range(2)]
    for folder in (*left, *mine):
        folder.mkdir(parents=True)
    for folder in (left[0], mine[-1], mine[2]):
        with vecdb.open(folder) as other:
            filled(other, rows=5)
    (left[0] / "restoring").touch()
    vecdb.open(left[1]).close()  # as earlier versions left one
    for folder in mine[:2] + mine[3:4]:
        (folder / "notes.txt").write_text("mine")
    for name in ("d?", "d"):
        vecdb.restore(tmp_path / "b", here / name)
    assert sorted(here.iterdir()) == sorted([here / "d?", here / "d", *mine])
    assert all(list(folder.iterdir()) for folder in mine)
    assert not (here / "d" / "restoring").exists()


def test_a_restore_that_is_killed_leaves_its_mark(db, tmp_path, monkeypatch):
    """What an interrupted restore leaves says so from the first file on, and until it has its name."""
    filled(db, rows=20)
    db.backup(tmp_path / "b")
    seen = {}

    def reached(name, path):
        for aside in tmp_path.glob("new.restoring-*"):
            holds = {inner.name for inner in aside.iterdir()}
            seen[name] = "restoring" in holds or holds <= {"vecdb.lock"}

    monkeypatch.setattr("vecdb.failpoints.hook", reached)
    vecdb.restore(tmp_path / "b", tmp_path / "new")
    assert seen
    assert "restore.rename.before" in seen
    assert all(seen.values()), seen
