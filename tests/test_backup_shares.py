"""Large collections are copied by several processes, a share of the rows each."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time

import msgspec
import pytest
from backup_rows import everything, filled
from conftest import wait_until

import vecdb
from vecdb import errors
from vecdb.backup import child, side_by_side, taking
from vecdb.backup.copying import Job
from vecdb.backup.side_by_side import _Beside
from vecdb.layout import ID_BLOCK_ROWS
from vecdb.settings import ENGINE, resolve
from vecdb.store import Shape

ROWS = 6 * ID_BLOCK_ROWS + 100


@pytest.fixture
def started(monkeypatch):
    """The processes that were started. Backups of anything are shared by three."""
    monkeypatch.setattr(taking, "SMALL_BYTES", -1)
    monkeypatch.setattr(side_by_side, "LARGE_BYTES", 1)
    monkeypatch.setattr(side_by_side, "FILE_BYTES", 1)
    monkeypatch.setattr(side_by_side, "_places", lambda: (3, 0))
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
@pytest.mark.parametrize("rows", [0, 1, 255, 512, 513, 5_000, 300_001])
@pytest.mark.parametrize("row_bytes", [1, 1_024, 1 << 25])
def test_shares_hold_each_row_once(first, rows, row_bytes):
    """Taken by whoever has none left, they lie one behind the other, none is empty, and blocks of ids are cut nowhere."""
    job = Job("docs", 0, 9, first, first + rows)
    beside = _Beside(job, row_bytes, 1, [child.Copier(), child.Copier()])
    steady, spare = beside._shares(0), iter(lambda: beside._take(side_by_side.FILE_BYTES), None)
    shares = [share for pair in itertools.zip_longest(steady, spare) for share in pair if share]
    assert sorted(shares) == shares
    assert [begin for begin, _ in shares] + [first + rows] == [first] + [end for _, end in shares]
    assert all(begin < end for begin, end in shares)
    assert all(end % ID_BLOCK_ROWS == 0 for _, end in shares[:-1])
    for begin, end in shares:
        size = (end - begin) * row_bytes
        assert size <= side_by_side._MOST_SHARE_BYTES or end - begin <= ID_BLOCK_ROWS


def test_places_leave_half_of_the_cores(monkeypatch):
    """Half of the cores copy whatever happens, four at most; the others only while nobody asks."""
    for cores, expected in (
        (1, (1, 0)),
        (2, (1, 1)),
        (3, (1, 2)),
        (4, (2, 2)),
        (8, (4, 0)),
        (64, (4, 0)),
    ):
        monkeypatch.setattr(
            os, "sched_getaffinity", lambda _, n=cores: set(range(n)), raising=False
        )
        assert side_by_side._places() == expected


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
    real, real_work, real_shares = child._started, _Beside._work, _Beside._shares
    here, given = threading.local(), threading.Event()

    def work(self, n, order, where):
        here.n = n
        real_work(self, n, order, where)

    def started_with_a_fault():
        if here.n != 1:
            return real()
        with monkeypatch.context() as armed:
            armed.setenv("VECDB_FAILPOINTS", "backup.*=kill@1")
            return real()

    def shares(self, n):  # that one has rows before the others take any
        if n != 1:
            assert given.wait(60)
        for share in real_shares(self, n):
            given.set()
            yield share

    with monkeypatch.context() as planted:
        planted.setattr(child, "_started", started_with_a_fault)
        planted.setattr(_Beside, "_work", work)
        planted.setattr(_Beside, "_shares", shares)
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
        copier.copy(order, where, Job("docs", 0, 1, 0, 1), [(0, 1)], lambda *_: None)
    assert found[0].poll() is not None


def test_a_dropped_collection_ends_its_shares_only(db, tmp_path, started, monkeypatch):
    """A collection that is dropped while it is copied is left out, and the others are backed up."""
    filled(db, "first", rows=ROWS)
    filled(db, "second", rows=ROWS)
    real = _Beside.copy

    def dropped_first(self, order, where, came):
        if db.list_collections()[0].name == "first":
            db.drop_collection("first")
        return real(self, order, where, came)

    monkeypatch.setattr(_Beside, "copy", dropped_first)
    info = db.backup(tmp_path / "b")
    assert [one.name for one in info.collections] == ["second"]
    assert vecdb.verify_backups(tmp_path / "b").ok


def test_one_process_is_enough_for_a_rate_limit(db, tmp_path, started):
    """`limit_bytes_s` holds for the whole backup, which one process then writes."""
    filled(db, rows=ROWS)
    began_s = time.monotonic()
    info = db.backup(tmp_path / "b", limit_bytes_s=60_000)
    assert time.monotonic() - began_s > 0.9 * info.bytes / 60_000
    assert len(started) == 1


def _one_steady_one_spare(monkeypatch):
    monkeypatch.setattr(side_by_side, "_places", lambda: (1, 1))
    # What the tests themselves take of a core is no sign of work here.
    monkeypatch.setattr(side_by_side, "_AT_WORK", 1e9)


def _files_of(folder, info):
    """Numbers of the files of a backup: those of the second process begin at 100,000."""
    return sorted(int(path.stem) for path in (folder / info.id).glob("*.chunk"))


def test_while_nobody_asks_another_process_helps(db, tmp_path, started, monkeypatch):
    """In a place that is to be left to those who ask a process copies as long as nobody does."""
    _one_steady_one_spare(monkeypatch)
    monkeypatch.setattr(side_by_side, "_QUIET_S", 0.1)
    filled(db, rows=ROWS)
    real = _Beside._shares

    def shares(self, n):  # the other one comes first, however quick this one is
        if n == 0:
            wait_until(lambda: self._next > 0, "the other process has rows")
        yield from real(self, n)

    monkeypatch.setattr(_Beside, "_shares", shares)
    info = db.backup(tmp_path / "b")
    assert len(started) == 2
    numbers = _files_of(tmp_path / "b", info)
    assert numbers[0] < side_by_side._NUMBERS <= numbers[-1]
    assert vecdb.verify_backups(tmp_path / "b").ok


def test_while_somebody_asks_no_other_process_helps(db, tmp_path, started, monkeypatch):
    """As long as queries come it gets no rows, and the backup is whole all the same."""
    _one_steady_one_spare(monkeypatch)
    docs = filled(db, rows=ROWS)
    real, ended = _Beside._shares, threading.Event()

    def ask():
        while not ended.is_set():
            docs.query([1, 2, 3, 4], k=1)

    def shares(self, n):  # all of them take longer than a process waits for quiet
        for share in real(self, n):
            time.sleep(side_by_side._QUIET_S / 4)
            yield share

    monkeypatch.setattr(_Beside, "_shares", shares)
    asker = threading.Thread(target=ask)
    asker.start()
    try:
        info = db.backup(tmp_path / "b")
    finally:
        ended.set()
        asker.join()
    numbers = _files_of(tmp_path / "b", info)
    assert len(numbers) > 4
    assert numbers[-1] < side_by_side._NUMBERS
    assert vecdb.verify_backups(tmp_path / "b").ok


@pytest.mark.parametrize("sign", ["query", "work"])
def test_what_ends_the_quiet(db, monkeypatch, sign):
    """A query does, and what this process does otherwise; then it begins anew."""
    docs = filled(db, rows=10)
    if sign == "query":
        monkeypatch.setattr(side_by_side, "_AT_WORK", 1e9)
    quiet = side_by_side.Quiet()
    wait_until(lambda: quiet.lasts_s() > 3 * side_by_side._PAUSE_S, "quiet")
    if sign == "query":
        docs.query([1, 2, 3, 4], k=1)
    else:
        end_s = time.process_time() + 2 * side_by_side._PAUSE_S
        while time.process_time() < end_s:
            pass
    assert quiet.lasts_s() == 0.0
    wait_until(lambda: quiet.lasts_s() > 3 * side_by_side._PAUSE_S, "quiet")


def test_others_who_have_it_open_are_seen(db, tmp_path, data_folder, started, monkeypatch):
    """Of queries that another process answers nothing is known here: while it has the files open no process helps."""
    _one_steady_one_spare(monkeypatch)
    monkeypatch.setattr(side_by_side, "_LOOK_S", 0.0)
    store = filled(db, rows=ROWS)._core.store
    assert not store.open_elsewhere()
    read = "import sys, vecdb; vecdb.open(sys.argv[1], read_only=True).get_collection('docs').count(); print(1, flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", read, str(data_folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert other.stdout.readline() == b"1\n"
        assert store.open_elsewhere()
        db.backup(tmp_path / "b")
        assert len(started) == 1
    finally:
        other.kill()
        other.communicate()
    assert not store.open_elsewhere()
    db.backup(tmp_path / "b", kind="full")
    assert len(started) == 3


def test_a_process_that_copies_ends_silently_after_its_parent(tmp_path):
    """Where the engine was killed, what it would have been told goes nowhere: no trace of an error in the log of a server."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vecdb.backup_worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.close()
    where = child.Where(str(tmp_path / "gone"), Shape(2, "float32"), dict(resolve(ENGINE, {})))
    order = child.Order(str(tmp_path / "b"), "one", False, None, 0)
    told = child.Told(order, where, Job("docs", 0, 0, 0, 0), True)
    process.stdin.write(msgspec.json.encode(told) + b"\n")
    process.stdin.close()
    said = process.stderr.read()
    process.stderr.close()
    process.wait(60)
    assert (process.returncode, said) == (1, b"")
