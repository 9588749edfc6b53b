"""Durability levels: what each keeps after a kill, a power cut, and a disk that fails to sync."""

from __future__ import annotations

import errno
import itertools
import os
import platform
import random
import shutil
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import store_rows
from power_cut import Disk
from seeds import RUN_SEED

import vecdb
from vecdb import errors, layout
from vecdb.store import sync_point

LAZY = {"durability": "interval"}


@pytest.fixture
def boots(monkeypatch):
    """Call it, and the machine has been started again."""

    def boot():
        new = os.urandom(8).hex().encode()
        monkeypatch.setattr(sync_point, "boot_id", lambda: new)

    return boot


def writing(store, rng, model, seconds):
    """Random commits; (sequence, when it began, when it was acknowledged, records then) of each."""
    with store.read() as reader:
        last = reader.state().sequence
    version = 1_000 * (last + 1)
    log = [(last, 0.0, 0.0, model)]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        ids = sorted({f"r{rng.randrange(900)}" for _ in range(rng.choice([1, 1, 5, 80]))})
        if rng.random() < 0.7:
            version += 1
            sequence = store_rows.put(store, dict.fromkeys(ids, version))
            model = model | dict.fromkeys(ids, version)
        elif rng.random() < 0.8:
            sequence = store_rows.delete(store, ids)
            model = {i: v for i, v in model.items() if i not in set(ids)}
        else:
            for step, _ in enumerate(store.purge(log[-1][0], step_bytes=20_000)):
                if step > 3:
                    break
            continue
        if sequence > log[-1][0]:
            log.append((sequence, began, time.monotonic(), model))
        time.sleep(rng.choice([0, 0, 0.002]))
    return log


@pytest.mark.parametrize("interval_ms", [2.0, pytest.param(30.0, marks=pytest.mark.long)])
def test_after_a_power_cut_the_file_is_whole_and_lacks_one_interval_at_most(
    tmp_path, monkeypatch, boots, interval_ms
):
    """With any part of the pages written since the last sync the store is sound, holds exactly what it held
    at one commit, and only commits of one interval are missing."""
    seed = f"{RUN_SEED}/{interval_ms}"
    print(f"seed {seed}")
    rng = random.Random(seed)
    options = {**LAZY, "durability_interval_ms": interval_ms, "map_initial_bytes": 1 << 20}
    store, model = store_rows.filled(tmp_path / "store")
    store.close()
    lost, disk = [], Disk(tmp_path / "store")
    disk.patch(monkeypatch)
    for round_ in itertools.takewhile(lambda n: n < 15 or not lost, range(100)):
        store = store_rows.reopen(tmp_path / "store", **options)
        log = writing(store, rng, model, rng.uniform(0.02, 0.15))
        synced = store.synced_sequence
        target = tmp_path / "after"
        disk.cut(target, rng)
        # The process lives on as if nothing had been, and goes on with what the disk had then.
        store.close()
        boots()
        after = store_rows.reopen(target, **options)
        with after.read() as reader:
            found = reader.state().sequence
        assert (log[0][0] if synced is None else synced) <= found <= log[-1][0], (seed, round_)
        (model,) = [held for sequence, _, _, held in log if sequence == found]
        store_rows.assert_holds(after, model)
        gone = [acknowledged for sequence, _, acknowledged, _ in log if sequence > found]
        lost.extend(gone)
        assert not gone or gone[0] >= log[-1][1] - interval_ms / 1_000, (seed, round_)
        store_rows.put(after, {"after": round_})
        model = model | {"after": round_}
        if rng.random() < 0.3:
            after.vacuum()
        after.close()
        shutil.rmtree(tmp_path / "store")
        target.rename(tmp_path / "store")
        assert store_rows.files(tmp_path / "store") == {layout.DATA_FILE, layout.LMDB_LOCK_FILE}
        disk.remember()
    assert lost, f"seed {seed}: no cut took anything, so nothing was tested"


def test_the_simulated_cut_breaks_a_file_without_sync_points(tmp_path, monkeypatch):
    """The same cuts, of a file whose sync point is thrown away, leave broken ones: they are no soft test."""
    rng = random.Random(RUN_SEED)
    store, model = store_rows.filled(tmp_path / "store")
    store.close()
    broken = 0
    for round_ in range(40):
        folder, target = tmp_path / f"s{round_}", tmp_path / f"t{round_}"
        shutil.copytree(tmp_path / "store", folder)
        with monkeypatch.context() as patch:
            disk = Disk(folder)
            disk.patch(patch)
            store = store_rows.reopen(folder, **LAZY, durability_interval_ms=5.0)
            log = writing(store, rng, model, 0.03)
            disk.cut(target, rng)
            store.close()
        (target / layout.SYNC_POINT_FILE).unlink(missing_ok=True)
        try:
            with_it = store_rows.reopen(target)
        except errors.VecdbError:
            broken += 1
            continue
        try:
            with with_it.read() as reader:
                sound = [*store_rows.problems(reader)] == []
                held = [m for s, _, _, m in log if s == reader.state().sequence]
            store_rows.assert_holds(with_it, held[0])
            broken += not sound
        except (errors.VecdbError, AssertionError, IndexError):
            broken += 1
        finally:
            with_it.close()
        if broken:
            return
    raise AssertionError("no cut broke a file, so the simulation proves nothing")


WRITER = """
    import sys, numpy as np, vecdb
    db = vecdb.open(sys.argv[1], durability=sys.argv[2], durability_interval_ms=50)
    docs = db.create_collection("docs", dimension=8, exist_ok=True)
    n = docs.count()
    print("ready", flush=True)
    while True:
        docs.insert([f"r{n}"], np.full((1, 8), n + 1), documents=[f"text {n}"])
        n += 1
        print(n, flush=True)
"""


def killed(folder, level, seconds):
    """Inserts in a process that is killed; how many were acknowledged."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(folder), level],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(seconds)
    process.kill()
    lines = process.stdout.read().splitlines(keepends=True)
    process.wait()
    return int([line for line in lines if line.endswith("\n")][-1])


@pytest.mark.parametrize("level", ["commit", "interval"])
def test_a_kill_loses_nothing_at_either_level(data_folder, level):
    """SIGKILL: all that was acknowledged is there, and the collection is sound."""
    rng = random.Random(RUN_SEED)
    for _ in range(3):
        acknowledged = killed(data_folder, level, rng.uniform(0.05, 0.4))
        with vecdb.open(data_folder) as db:
            docs = db.get_collection("docs")
            assert docs.count() in (acknowledged, acknowledged + 1), RUN_SEED
            assert docs.check().ok
            found = docs.query(np.full((1, 8), 1.0), k=1, include=["document"])
            assert found.documents[0][0].startswith("text ")


def test_a_kill_and_then_a_power_cut_lose_what_the_kill_left_unsynced(data_folder, boots):
    """A process dies, and before the database is opened again the machine does: readers refuse it, and a
    writer finds the last synced commit."""
    acknowledged = killed(data_folder, "interval", 0.5)
    (folder,) = (data_folder / layout.COLLECTIONS_FOLDER).iterdir()
    assert (folder / layout.SYNC_POINT_FILE).exists()
    boots()
    with (
        vecdb.open(data_folder, read_only=True) as db,
        pytest.raises(errors.ReadOnly, match="once"),
    ):
        db.get_collection("docs")
    with vecdb.open(data_folder) as db:
        docs = db.get_collection("docs")
        assert 0 < docs.count() <= acknowledged + 1
        assert docs.count() == docs.stats().sequence == docs.insert(["x"], [[1] * 8]).sequence - 1
        assert docs.check().ok
    with vecdb.open(data_folder, read_only=True) as db:
        assert "x" in db.get_collection("docs").get(["x"]).ids


class FailingDisk:
    """`os.fdatasync` that fails on demand, or waits."""

    def __init__(self, monkeypatch):
        self.number = 0
        self.calls = 0
        self.pass_on = threading.Event()
        self.pass_on.set()
        real = os.fdatasync

        def fdatasync(descriptor):
            self.calls += 1
            self.pass_on.wait(30)
            if self.number:
                raise OSError(self.number, os.strerror(self.number))
            real(descriptor)

        monkeypatch.setattr(os, "fdatasync", fdatasync)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_after_a_failed_sync_nothing_is_written_until_the_database_is_opened_again(
    data_folder, monkeypatch, number
):
    """A sync that fails once is told to every later write and flush, though later ones would succeed; opening
    again goes back to the last commit that was on the disk."""
    disk = FailingDisk(monkeypatch)
    db = vecdb.open(data_folder, **LAZY, durability_interval_ms=20)
    docs = db.create_collection("docs", dimension=2)
    docs.insert(["kept"], [[1, 1]])
    assert docs.flush() == 1
    disk.number = number
    docs.insert(["lost"], [[1, 2]])
    with pytest.raises(errors.ReadOnly) as caught:
        for _ in range(1_000):
            docs.upsert(["lost too"], [[1, 3]])
            time.sleep(0.01)
    assert caught.value.details["synced_sequence"] == 1
    disk.number = 0
    with pytest.raises(errors.ReadOnly, match=os.strerror(number)):
        docs.insert(["refused"], [[1, 4]])
    with pytest.raises(errors.ReadOnly, match="not on the disk"):
        docs.flush()
    assert docs.stats().synced_sequence == 1
    assert "lost" in docs.get(["lost"]).ids
    with pytest.raises(errors.ReadOnly):
        db.close()
    with vecdb.open(data_folder) as db:
        docs = db.get_collection("docs")
        assert docs.get().ids == ["kept"]
        assert docs.insert(["new"], [[1, 5]]).sequence == 2
        assert docs.check().ok


READER = """
    import sys, vecdb
    docs = vecdb.open(sys.argv[1], read_only=True).get_collection("docs")
    print(docs.count())
    print(sys.stdin.read(), docs.count())
"""


def test_commits_are_not_undone_under_a_process_that_reads_them(data_folder, monkeypatch):
    """Until readers end that have seen commits which a failed sync undoes, the folder is DatabaseLocked."""
    disk = FailingDisk(monkeypatch)
    db = vecdb.open(data_folder, **LAZY, durability_interval_ms=20)
    docs = db.create_collection("docs", dimension=2)
    docs.insert(["kept"], [[1, 1]])
    docs.flush()
    command = [sys.executable, "-uc", textwrap.dedent(READER), str(data_folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as reader:
        assert reader.stdout.readline() == "1\n"
        disk.number = errno.EIO
        docs.insert(["lost"], [[1, 2]])
        with pytest.raises(errors.ReadOnly):
            db.close()
        disk.number = 0
        with vecdb.open(data_folder) as db, pytest.raises(errors.DatabaseLocked, match="undone"):
            db.get_collection("docs")
        assert reader.communicate("look") == ("look 2\n", None)
    with vecdb.open(data_folder) as db:
        assert db.get_collection("docs").get().ids == ["kept"]


def test_a_disk_that_fails_before_anything_was_promised_may_recover(data_folder, monkeypatch):
    """When the first sync fails the write is refused, and the next one is tried as if nothing had been."""
    disk = FailingDisk(monkeypatch)
    with vecdb.open(data_folder, **LAZY) as db:
        docs = db.create_collection("docs", dimension=2)
        disk.number = errno.ENOSPC
        with pytest.raises(errors.StorageFull):
            docs.insert(["a"], [[1, 1]])
        disk.number = 0
        assert docs.insert(["a"], [[1, 1]]).sequence == 1
    with vecdb.open(data_folder) as db:
        assert db.get_collection("docs").count() == 1


def test_a_slow_disk_holds_writers_back(data_folder, monkeypatch):
    """While a sync takes longer than the interval no more is acknowledged than one interval's writes."""
    disk = FailingDisk(monkeypatch)
    with vecdb.open(data_folder, **LAZY, durability_interval_ms=100) as db:
        docs = db.create_collection("docs", dimension=2)
        docs.insert(["first"], [[1, 1]])
        docs.flush()
        disk.pass_on.clear()
        begun = time.monotonic()
        times = []

        def write():
            for n in range(100_000):
                docs.insert([f"r{n}"], [[1, 1]])
                times.append(time.monotonic() - begun)
                if times[-1] > 0.5:
                    return

        thread = threading.Thread(target=write)
        thread.start()
        time.sleep(0.5)
        acknowledged = len(times)
        assert acknowledged > 0
        assert docs.stats().synced_sequence == 1
        disk.pass_on.set()
        thread.join()
        # One more may have begun within the interval and end after it.
        assert [t for t in times[: acknowledged - 1] if t > times[0] + 0.11] == []
        assert docs.flush() == docs.stats().synced_sequence == len(times) + 1


def test_what_is_acknowledged_is_synced_soon_without_being_asked(data_folder):
    """After an interval, and no write or flush since, the last commit is on the disk."""
    with vecdb.open(data_folder, **LAZY, durability_interval_ms=30) as db:
        docs = db.create_collection("docs", dimension=2)
        for n in range(50):
            sequence = docs.insert([f"r{n}"], [[1, 1]]).sequence
        deadline = time.monotonic() + 5
        while docs.stats().synced_sequence < sequence:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert (docs.stats().durability, sequence) == ("interval", 50)


def test_files_grow_move_and_are_compacted_under_lazy_syncs(data_folder):
    """The map grows, the index is built, dead rows are purged, the file is rewritten, and readers follow."""
    settings = {"map_initial_bytes": 1 << 20, "history_s": 0.0, "durability_interval_ms": 5.0}
    rng = np.random.default_rng(RUN_SEED)
    with vecdb.open(data_folder, **LAZY, **settings) as db:
        docs = db.create_collection("docs", dimension=16, index="hnsw")
        for first in range(0, 12_000, 500):
            ids = [f"r{n % 9_000}" for n in range(first, first + 500)]
            docs.upsert(ids, rng.standard_normal((500, 16), dtype=np.float32))
        docs.build_index()
        docs.compact()  # What the background has purged before is not counted by it.
        assert docs.stats().purged_rows == 3_000
        docs.delete([f"r{n}" for n in range(100)])
        assert docs.check().ok
    with vecdb.open(data_folder) as db:
        docs = db.get_collection("docs")
        assert docs.count() == 8_900
        assert docs.stats().index.indexed_rows >= 9_000
        assert docs.check().ok


# System calls of one thread fail: LMDB makes its own, out of reach of a patch.
FAILING = """
    import ctypes, errno, os, signal, struct, sys, threading, vecdb
    folder, number, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

    def fail():
        "`number` fails with EIO in this thread; with `count` only where its third argument is that."
        step = lambda code, jt, jf, k: struct.pack("HBBI", code, jt, jf, k)
        wrong, right = step(6, 0, 0, 0x50000 | errno.EIO), step(6, 0, 0, 0x7FFF0000)
        inner = step(0x20, 0, 0, 32) + step(0x15, 0, 1, count) if count else b""
        code = step(0x20, 0, 0, 0) + step(0x15, 0, 3 if count else 1, number) + inner + wrong + right
        text = ctypes.create_string_buffer(code)
        program = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(text))
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        if prctl(38, 1, 0, 0, 0) or prctl(22, 2, ctypes.c_char_p(program), 0, 0):
            print("no seccomp", flush=True)
            os._exit(0)

    def tell(verb, *words):
        try:
            print(verb(*words), flush=True)
        except vecdb.VecdbError as error:
            print(type(error).__name__, flush=True)

    def insert(name):
        return docs.insert([name], [[1, 1]]).sequence

    db = vecdb.open(folder)
    docs = db.create_collection("docs", dimension=2)
    tell(insert, "before")

    def failing():
        fail()
        tell(insert, "failed")

    thread = threading.Thread(target=failing)
    thread.start()
    thread.join()
    tell(insert, "after")
    tell(lambda: docs.get().ids)
    os.kill(os.getpid(), signal.SIGKILL)
"""
CALLS = {"x86_64": {"fdatasync": 75, "pwrite64": 18}, "aarch64": {"fdatasync": 83, "pwrite64": 68}}
META_WRITE_BYTES = 120
"""What LMDB writes of its meta page."""


@pytest.mark.parametrize(
    ("call", "count", "said", "kept"),
    [
        ("fdatasync", 0, ["1", "Internal", "2", "['before', 'after']"], ["before", "after"]),
        ("pwrite64", META_WRITE_BYTES, ["1", "Internal", "Closed", "Closed"], ["before"]),
    ],
)
def test_a_failed_sync_of_a_commit_is_told_and_nothing_is_built_on_it(
    data_folder, call, count, said, kept
):
    """At `commit` a write whose sync fails is refused and not made, and later ones are whole; when the meta page
    cannot be written, nothing is acknowledged until the database is opened again."""
    calls = CALLS.get(platform.machine())
    if calls is None:
        pytest.skip("the numbers of system calls are not known here")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FAILING), data_folder, str(calls[call]), str(count)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    if "no seccomp" in lines:
        pytest.skip("system calls cannot be made to fail here")
    assert lines == said, done.stderr
    with vecdb.open(data_folder) as db:
        docs = db.get_collection("docs")
        assert docs.get().ids == kept
        assert docs.check().ok
