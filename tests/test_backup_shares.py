"""Large collections are copied by several processes, a share of the rows each."""

from __future__ import annotations

import itertools
import threading
import time

import pytest
from backup_rows import everything, filled

import vecdb
from vecdb import errors
from vecdb.backup import child, side_by_side, taking
from vecdb.backup.copying import Job
from vecdb.layout import ID_BLOCK_ROWS

ROWS = 6 * ID_BLOCK_ROWS + 100


@pytest.fixture
def started(monkeypatch):
    """The processes that were started. Backups of anything are shared by three."""
    monkeypatch.setattr(taking, "SMALL_BYTES", -1)
    monkeypatch.setattr(side_by_side, "SHARE_BYTES", 1)
    monkeypatch.setattr(side_by_side, "_most", lambda: 3)
    found, real = [], child._started
    monkeypatch.setattr(child, "_started", lambda: found.append(real()) or found[-1])
    yield found
    assert all(process.poll() is not None for process in found)
    assert not [one for one in threading.enumerate() if one.name == "vecdb-backup-share"]


@pytest.fixture
def db(data_folder):
    with vecdb.open(data_folder, history_s=0.0, auto_build=False) as opened:
        yield opened


@pytest.mark.parametrize("first", [0, 1, 300, 5 * ID_BLOCK_ROWS])
@pytest.mark.parametrize("most", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [0, 1, 255, 512, 513, 5_000, 300_001])
def test_shares_hold_each_row_once(monkeypatch, first, most, rows):
    """They lie one behind the other, none is empty, and blocks of ids are cut nowhere."""
    monkeypatch.setattr(side_by_side, "_most", lambda: most)
    job = Job("docs", 0, 9, first, first + rows, first, first + rows)
    shares = list(side_by_side._shares(job, 1_024))
    assert (shares[0].begin, shares[-1].end) == (job.begin, job.end)
    assert len(shares) <= most
    if len(shares) == 1:
        assert shares == [job]
        assert most == 1 or rows * 1_024 < 2 * side_by_side.SHARE_BYTES
        return
    assert all(share.begin < share.end and not share.history for share in shares)
    for share, following in itertools.pairwise(shares):
        assert share.end == following.begin
        assert share.end % ID_BLOCK_ROWS == 0
    assert all((share.first_row, share.next_row) == (first, first + rows) for share in shares)


def test_a_shared_backup_is_restored_and_continued(db, tmp_path, started):
    """Three processes write what one would: it is verified, restored as of both backups, and told of as it comes."""
    docs = filled(db, rows=ROWS)
    before = everything(docs)
    seen = []
    full = db.backup(
        tmp_path / "b", progress=lambda told: seen.append((told, threading.current_thread()))
    )
    assert len(started) == 3
    assert {thread for _, thread in seen} == {threading.current_thread()}
    told = [one for one, _ in seen if one.stage == "copy"]
    assert [one.rows for one in told] == sorted(one.rows for one in told)
    assert [one.bytes for one in told] == sorted(one.bytes for one in told)
    assert (told[-1].rows, {one.total_rows for one in told}) == (ROWS, {ROWS})
    docs.delete([f"r{n}" for n in range(0, ROWS, 3)])
    docs.upsert([f"r{n}" for n in range(1, ROWS, 3)], [[1, 2, 3, 4]] * len(range(1, ROWS, 3)))
    after = everything(docs)
    second = db.backup(tmp_path / "b")
    assert second.kind == "incremental"
    assert vecdb.verify_backups(tmp_path / "b").ok
    for backup, held in ((full.id, before), (second.id, after)):
        vecdb.restore(tmp_path / "b", tmp_path / backup, backup=backup)
        with vecdb.open(tmp_path / backup, auto_build=False) as restored:
            assert everything(restored.get_collection("docs")) == held
            assert restored.get_collection("docs").check().ok


def test_one_of_the_processes_may_die(db, tmp_path, started, monkeypatch):
    """One that is killed ends the others and the backup with a typed error; nothing is left, and the next is whole."""
    filled(db, rows=ROWS)
    real, turn, numbers = child._started, threading.Lock(), itertools.count()

    def started_with_a_fault():
        with turn, monkeypatch.context() as armed:
            if next(numbers) == 1:
                armed.setenv("VECDB_FAILPOINTS", "backup.*=kill@3")
            return real()

    with monkeypatch.context() as planted:
        planted.setattr(child, "_started", started_with_a_fault)
        with pytest.raises(errors.Unavailable, match="died with exit code -9"):
            db.backup(tmp_path / "b")
    assert list((tmp_path / "b").glob("*")) == []
    db.backup(tmp_path / "b")
    assert vecdb.verify_backups(tmp_path / "b").ok


def test_who_is_told_may_end_it(db, tmp_path, started):
    """What the caller's function raises ends all processes and comes back to him; nothing is left."""
    filled(db, rows=ROWS)

    def enough(told):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        db.backup(tmp_path / "b", progress=enough)
    assert len(started) == 3
    assert list((tmp_path / "b").glob("*")) == []


def test_a_process_that_starts_while_all_are_stopped_ends(monkeypatch):
    """Told to stop before it has a process, it ends the one that it starts."""
    copier, found, real = child.Copier(), [], child._started

    def started_late():
        found.append(real())
        copier.stop()
        return found[-1]

    monkeypatch.setattr(child, "_started", started_late)
    order, where = child.Order("", "", False, None, 0), child.Where("", None, {})
    with pytest.raises(errors.Unavailable):
        copier.copy(order, where, Job("docs", 0, 1, 0, 1, 0, 1), lambda *_: None)
    assert found[0].poll() is not None


def test_a_dropped_collection_ends_its_shares_only(db, tmp_path, started, monkeypatch):
    """A collection that is dropped while it is copied is left out, and the others are backed up."""
    filled(db, "first", rows=ROWS)
    filled(db, "second", rows=ROWS)
    real = side_by_side.Copiers._beside

    def dropped_first(self, order, where, shares, came):
        if db.list_collections()[0].name == "first":
            db.drop_collection("first")
        return real(self, order, where, shares, came)

    monkeypatch.setattr(side_by_side.Copiers, "_beside", dropped_first)
    info = db.backup(tmp_path / "b")
    assert [one.name for one in info.collections] == ["second"]
    assert vecdb.verify_backups(tmp_path / "b").ok


def test_a_rate_limit_is_that_of_all_shares(db, tmp_path, started, monkeypatch):
    """`limit_bytes_s` holds for all processes together."""
    filled(db, rows=ROWS)
    began_s = time.monotonic()
    info = db.backup(tmp_path / "b", limit_bytes_s=60_000)
    assert time.monotonic() - began_s > 0.9 * info.bytes / 60_000
