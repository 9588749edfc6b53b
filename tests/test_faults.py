"""Faults of the machine: each has a typed error, reads go on, and writes resume when the cause has gone."""

from __future__ import annotations

import _thread
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import faults
import numpy as np
import pytest

import vecdb
from vecdb import errors
from vecdb.ages import Ages

DIMENSION = 64
SETTINGS = {
    "auto_build": False, "device": "cpu", "history_s": 0.0, "map_initial_bytes": 1 << 20, "build_threads": 1,
}  # fmt: skip


def rows(first, count):
    vectors = np.random.default_rng(first).standard_normal((count, DIMENSION), dtype=np.float32)
    return [f"r{i}" for i in range(first, first + count)], vectors


def holds(docs, model, *, checked=True):
    """The collection is sound, and its ids with their numbers are those of the model."""
    if checked:
        report = docs.check()
        assert report.ok, report.problems
    held = {
        i: m["n"]
        for b in docs.scan(include=["metadata"])
        for i, m in zip(b.ids, b.metadata, strict=True)
    }
    assert held == model
    assert docs.count() == len(model)
    ids, vectors = rows(0, 1)
    assert docs.query(vectors, k=1).ids == [ids]


def put(docs, model, first, count, n):
    ids, vectors = rows(first, count)
    docs.upsert(ids, vectors, metadata=[{"n": n}] * count)
    model.update(dict.fromkeys(ids, n))


def refused(error, match, *calls):
    for call in calls:
        with pytest.raises(error, match=match):
            call()


@pytest.mark.parametrize("durability", ["commit", "interval"])
def test_a_full_disk(tmp_path, durability):
    """On a full disk every verb that writes is StorageFull, what reads goes on, nothing is half written, and without
    opening anything again all of it works when there is room."""
    with (
        faults.small_disk(tmp_path / "disk") as disk,
        vecdb.open(disk / "db", durability=durability, **SETTINGS) as db,
    ):
        docs, model = db.create_collection("docs", dimension=DIMENSION, index="hnsw"), {}
        put(docs, model, 0, 2_000, 0)
        faults.fill(disk)
        refused(
            errors.StorageFull, r"[Ff]ree some",
            lambda: docs.insert(*rows(5_000, 300)),
            lambda: put(docs, {}, 0, 500, 1),
            lambda: docs.delete(["r7"]),
            docs.build_index,
            docs.compact,
            lambda: db.create_collection("more", dimension=2),
            lambda: db.set_alias("alias", "docs"),
            lambda: db.rename_collection("docs", "other"),
        )  # fmt: skip
        holds(docs, model)
        assert [info.name for info in db.list_collections()] == ["docs"]
        assert len(list((disk / "db" / "collections").iterdir())) == 1
        faults.free(disk)
        put(docs, model, 1_500, 1_000, 2)
        assert docs.build_index().indexed_rows == 2_500
        # Its way through: an index that holds the dead, and a second file.
        faults.fill(disk)
        refused(errors.StorageFull, r"[Ff]ree some", docs.compact)
        holds(docs, model)
        faults.free(disk)
        docs.compact()
        db.create_collection("more", dimension=2).insert(["a"], [[1, 2]])
        db.set_alias("alias", "docs")
        holds(db.get_collection("alias"), model)


@pytest.mark.parametrize("durability", ["commit", "interval"])
def test_opening_on_a_full_disk(tmp_path, durability):
    """A database is opened and read on a full disk, since its lock files have all of their room; a new one is
    StorageFull. Nobody is killed by LMDB's mapped lock file."""
    code = """
        import sys, vecdb
        from vecdb import errors
        db = vecdb.open(sys.argv[1], durability=sys.argv[2], auto_build=False, device="cpu")
        docs = db.get_collection("docs")
        try:
            docs.insert(["z"], [[1, 2]])
        except errors.StorageFull:
            print("full", docs.count(), docs.check().ok)
        try:
            vecdb.open(sys.argv[1] + "-new")
        except errors.StorageFull:
            print("full too")
        db.close()
    """
    with faults.small_disk(tmp_path / "disk") as disk:
        with vecdb.open(disk / "db", device="cpu") as db:
            db.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
        locks = list((disk / "db").rglob("lock.mdb"))
        assert len(locks) == 2
        for lock in locks:
            assert lock.stat().st_blocks * 512 >= lock.stat().st_size
        faults.fill(disk)
        done = python(code, str(disk / "db"), durability)
        assert (done.returncode, done.stdout) == (0, "full 1 True\nfull too\n"), done.stderr
        faults.free(disk)
        with vecdb.open(disk / "db", device="cpu") as db:
            db.get_collection("docs").insert(["z"], [[1, 2]])
            assert db.get_collection("docs").count() == 2


def python(code, *words):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *words],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip


def test_a_map_that_is_full_and_grows(data_folder):
    """At `map_limit_bytes` a write is StorageFull and names the setting; below it the map grows by itself."""
    with vecdb.open(data_folder, map_limit_bytes=4 << 20, **SETTINGS) as db:
        docs, model = db.create_collection("docs", dimension=DIMENSION), {}
        with pytest.raises(errors.StorageFull, match="map_limit_bytes"):
            for n in range(100):
                put(docs, model, n * 500, 500, n)
        assert len(model) > 1_000
        holds(docs, model)
    with vecdb.open(data_folder, map_limit_bytes=64 << 20, **SETTINGS) as db:
        put(db.get_collection("docs"), model, 0, 5_000, 7)
        holds(db.get_collection("docs"), model)


def test_a_disk_that_became_read_only(tmp_path):
    """A folder on a read-only mount is ReadOnly for a writer, and serves readers."""
    with faults.small_disk(tmp_path / "disk") as disk:
        with vecdb.open(disk / "db", **SETTINGS) as db:
            put(db.create_collection("docs", dimension=DIMENSION), {}, 0, 50, 0)
        faults.remount(disk, "ro")
        refused(
            errors.ReadOnly, "may not be written",
            lambda: vecdb.open(disk / "db"),
            lambda: vecdb.open(disk / "new"),
        )  # fmt: skip
        with vecdb.open(disk / "db", read_only=True) as db:
            holds(db.get_collection("docs"), {f"r{i}": 0 for i in range(50)})
        faults.remount(disk, "rw")
        with vecdb.open(disk / "db", **SETTINGS) as db:
            db.get_collection("docs").delete(["r1"])


def test_permissions_that_are_lost(data_folder):
    """Where permissions are taken away from an open database, changes of names, index files and the opening
    are ReadOnly, reads go on, and everything works once they are back."""
    code = """
        import os, sys
        sys.path.insert(0, sys.argv[2])
        import faults
        faults.obey_modes()
        import numpy as np, vecdb
        from vecdb import errors
        db = vecdb.open(sys.argv[1], auto_build=False, device="cpu")
        docs = db.create_collection("docs", dimension=8, index="hnsw")
        docs.insert([f"r{i}" for i in range(2000)], np.random.default_rng(1).standard_normal((2000, 8)))
        folders = [p for p, _, _ in os.walk(sys.argv[1])]
        for folder in folders:
            os.chmod(folder, 0o500)
        new = lambda: vecdb.open(sys.argv[1] + "/inner")
        for call in (lambda: db.create_collection("more", dimension=2), docs.build_index, docs.compact, new):
            try:
                call()
            except errors.ReadOnly as error:
                assert "permission" in str(error), error
                print("refused")
        print(docs.count(), docs.check().ok, len(docs.query(np.ones(8), k=3).ids[0]))
        for folder in folders:
            os.chmod(folder, 0o700)
        docs.insert(["z"], np.ones((1, 8)))
        print(docs.build_index().indexed_rows, docs.check().ok)
        db.create_collection("more", dimension=2)
        db.close()
    """
    done = python(code, str(data_folder), os.path.dirname(__file__))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [*["refused"] * 4, "2000 True 3", "2001 True"]


@pytest.mark.parametrize("durability", ["commit", "interval"])
def test_no_more_open_files(data_folder, durability):
    """Out of file descriptors, what has to open a file is LimitExceeded, queries go on, and nothing has to be
    opened again when there are some."""
    with vecdb.open(data_folder, **SETTINGS) as db:
        db.create_collection("other", dimension=2)
    with vecdb.open(data_folder, durability=durability, **SETTINGS) as db:
        docs, model = db.create_collection("docs", dimension=DIMENSION, index="hnsw"), {}
        put(docs, model, 0, 2_000, 0)
        with faults.no_more_files():
            refused(
                errors.LimitExceeded, "ulimit -n",
                lambda: db.create_collection("more", dimension=2),
                lambda: db.get_collection("other"),
                lambda: db.drop_collection("docs"),
                docs.build_index,
                docs.compact,
                docs.check,
                lambda: vecdb.open(data_folder.with_name("new")),
            )  # fmt: skip
            put(docs, model, 100, 10, 1)
            holds(docs, model, checked=False)
        put(docs, model, 200, 10, 1)
        assert docs.build_index().indexed_rows == 2_000
        docs.compact()
        assert db.get_collection("other").count() == 0
        holds(docs, model)


@pytest.mark.parametrize("durability", ["commit", "interval"])
def test_no_more_memory(data_folder, durability):
    """At the limit of its address space a write is refused for memory or threads and is not done later either;
    queries go on, and writes when the limit is lifted."""
    code = """
        import resource, sys, numpy as np, vecdb
        from vecdb import errors
        db = vecdb.open(sys.argv[1], durability=sys.argv[2], auto_build=False, device="cpu")
        docs = db.create_collection("docs", dimension=64, index="exact")
        docs.query(np.ones(64), k=1)
        many = [f"b{i}" for i in range(40_000)]
        batches = [(["a"], np.ones((1, 64))), (many, np.ones((len(many), 64)))]
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        unlimited = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), unlimited[1]))
        refusals = 0
        for ids, vectors in batches:
            try:
                docs.insert(ids, vectors)
            except (MemoryError, errors.LimitExceeded) as error:
                refusals += 1
        print(refusals, docs.count(), len(docs.query(np.ones(64), k=1).ids))
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
        docs.insert(["c"], np.ones((1, 64)))
        print(docs.count(), docs.check().ok, sorted(docs.get(["a", "c"]).ids))
        db.close()
    """
    done = python(code, str(data_folder), durability)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["2 0 1", "1 True ['c']"], done.stderr


def test_a_reader_that_died(data_folder):
    """A reader that is killed in the middle of a read keeps no pages from being used again for ever."""
    code = """
        import sys, time, vecdb
        db = vecdb.open(sys.argv[1], read_only=True)
        docs = db.get_collection("docs")
        with docs._core.store.read():
            print("reading", flush=True)
            time.sleep(60)
    """
    with vecdb.open(data_folder, **SETTINGS) as db:
        docs, model = db.create_collection("docs", dimension=DIMENSION), {}
        put(docs, model, 0, 500, 0)
        reader = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(data_folder)],
            stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )  # fmt: skip
        assert reader.stdout.readline() == "reading\n"
        reader.send_signal(signal.SIGKILL)
        reader.wait()
        reader.stdout.close()
        for n in range(300):
            docs.upsert(["x"], np.full((1, DIMENSION), n + 1.0), metadata=[{"n": n}])
        used = docs.stats().map_used_bytes
        for n in range(300):
            docs.upsert(["x"], np.full((1, DIMENSION), n + 1.0), metadata=[{"n": n}])
        # 300 commits write some 60 MiB of pages: nearly all are used again.
        assert docs.stats().map_used_bytes - used < 4 << 20
        holds(docs, {**model, "x": 299})


def test_two_writers_of_one_folder(data_folder):
    """A second process is refused with DatabaseLocked, which names the first, also when the lock file was removed; it gets
    in when the first was killed."""
    code = """
        import sys, time, vecdb
        db = vecdb.open(sys.argv[1])
        print("open", flush=True)
        time.sleep(60)
    """
    first = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(data_folder)],
        stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert first.stdout.readline() == "open\n"
    refused(errors.DatabaseLocked, f"process {first.pid}", lambda: vecdb.open(data_folder))
    # Whoever takes the lock file for a dead process's, and removes it, gets no second writer by that.
    (data_folder / "vecdb.lock").unlink()
    refused(errors.DatabaseLocked, "was removed", lambda: vecdb.open(data_folder))
    refused(errors.DatabaseLocked, "was removed", lambda: vecdb.check(data_folder, repair=True))
    first.kill()
    first.wait()
    first.stdout.close()
    vecdb.open(data_folder).close()


class Clocks:
    """A wall clock that can be set, and one that only goes on."""

    def __init__(self):
        self.gone_s = 0.0
        self.wall_s = 1e9

    def pass_by(self, seconds):
        self.gone_s += seconds
        self.wall_s += seconds

    def ages(self, look_back_s):
        return Ages(look_back_s, lambda: self.gone_s, lambda: self.wall_s)


@pytest.mark.parametrize("jump_s", [-86_400.0, 0.0, 86_400.0])
def test_ages_do_not_follow_the_wall_clock(jump_s):
    """A commit of this process is old after its time and not before, wherever the wall clock jumps; what is held
    against stored times is never later than true. Of many commits few marks are kept, asked for or not."""
    clocks = Clocks()
    ages = clocks.ages(100.0)
    ages.saw(1)
    clocks.pass_by(50)
    ages.saw(2)
    clocks.wall_s += jump_s
    clocks.pass_by(49)
    assert ages.old(2) == 0
    clocks.pass_by(2)
    assert ages.old(2) == 1
    clocks.pass_by(50)
    assert ages.old(2) == 2
    assert ages.now_us() <= (1e9 + clocks.gone_s) * 1e6
    for commit in range(3, 5_000):
        clocks.pass_by(1)
        ages.saw(commit)
    assert len(ages._marks) <= 66


@pytest.mark.parametrize("jump_s", [-86_400, 86_400])
def test_a_clock_that_jumps(data_folder, monkeypatch, jump_s):
    """Times of commits never go back; nothing younger than `history_s` is purged and what is older is; deadlines,
    syncs and builds go on."""
    settings = {**SETTINGS, "history_s": 0.4, "durability": "interval"}
    real_s, real_ns, jump = time.time, time.time_ns, [0]
    monkeypatch.setattr(time, "time", lambda: real_s() + jump[0])
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + jump[0] * 1_000_000_000)
    with vecdb.open(data_folder, **settings) as db:
        docs, model = db.create_collection("docs", dimension=DIMENSION, index="hnsw"), {}
        put(docs, model, 0, 1_500, 0)
        first = docs.stats().sequence
        jump[0] = jump_s
        put(docs, model, 0, 1_500, 1)
        assert docs.compact().purged_rows == 0
        put(docs, model, 1_500, 10, 1)
        assert docs.query(rows(0, 1)[1], k=1, timeout_s=5.0).ids == [["r0"]]
        docs.flush()
        deadline = time.monotonic() + 10
        purged = 0
        while not purged and time.monotonic() < deadline:
            time.sleep(0.1)
            purged += docs.compact().purged_rows
        assert purged == 1_500
        assert docs.build_index().age_s < 60
        holds(docs, model)
        with docs._core.read() as reader:
            times = [commit.time_us for commit in reader.log(first)]
        assert times == sorted(times)


def test_a_write_without_a_thread_is_not_done_later(data_folder, monkeypatch):
    """When no thread can be started, a write of the main thread is LimitExceeded, and is not done behind its
    back by the next one."""
    with vecdb.open(data_folder, **SETTINGS) as db:
        docs = db.create_collection("docs", dimension=2)

        def no_thread(*_):
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as broken:
            broken.setattr(threading.Thread, "start", no_thread)
            broken.setattr(_thread, "start_new_thread", no_thread)
            refused(errors.LimitExceeded, "no thread", lambda: docs.insert(["a"], [[1, 2]]))
        docs.insert(["b"], [[1, 2]])
        assert docs.get(["a", "b"]).ids == ["b"]
        assert docs.check().ok


def test_a_map_that_finds_no_address_space(data_folder):
    """When the map cannot grow for want of address space the write is LimitExceeded, and the old map still serves."""
    code = """
        import resource, sys, numpy as np, vecdb
        from vecdb import errors
        db = vecdb.open(sys.argv[1], auto_build=False, device="cpu", map_initial_bytes=1 << 20)
        docs = db.create_collection("docs", dimension=256, index="exact")
        docs.insert(["a"], np.ones((1, 256)))
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        unlimited = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20), unlimited[1]))
        done, batch = 0, np.ones((500, 256))
        try:
            for n in range(200):
                docs.insert([f"r{i}" for i in range(done, done + 500)], batch)
                done += 500
        except errors.LimitExceeded as error:
            print("ulimit -v" in str(error))
        print(docs.count() == done + 1, len(docs.query(np.ones(256), k=3).ids[0]))
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
        docs.insert([f"r{i}" for i in range(done, done + 500)], batch)
        print(docs.count() == done + 501, docs.check().ok)
        db.close()
    """
    done = python(code, str(data_folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True", "True 3", "True True"], done.stderr
