"""Collections whose files are closed while nobody uses them: nothing of it is seen but files that are not open."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from pathlib import Path

import faults
import numpy as np
import pytest
from seeds import RUN_SEED

import vecdb
from vecdb import errors
from vecdb.store import lazy_sync
from vecdb.store.awake import Awake

D = 8


def environment(docs):
    return docs._core.store._env


def rests(docs):
    return environment(docs)._env is None


def vectors(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, D), dtype=np.float32)


def fill(docs, n=20):
    docs.insert(
        [f"r{i}" for i in range(n)],
        vectors(n),
        metadata=[{"n": i} for i in range(n)],
        documents=[f"text {i}" for i in range(n)],
    )
    return docs


def open_files(folder):
    """Of this process, in a folder."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith(str(folder))
        except OSError:
            continue
    return found


@pytest.fixture
def docs(data_folder):
    with vecdb.open(data_folder) as db:
        yield fill(db.create_collection("docs", dimension=D))


class Plain:
    """Rests when told to, unless it is busy."""

    def __init__(self, awake):
        self.awake, self.used, self.busy, self.open = awake, True, False, True
        awake.add(self)

    def rest(self):
        if self.busy:
            return False
        self.open = False
        self.awake.remove(self)
        return True


def test_those_not_used_lately_rest():
    """Of more than the limit the one opened first that was not used since rests; used ones are passed over once."""
    awake = Awake(3)
    first = [Plain(awake) for _ in range(3)]
    for one in first:
        one.used = False
    first[0].used = True
    newest = Plain(awake)
    assert [one.open for one in first] == [True, False, True]
    Plain(awake)
    assert [one.open for one in first] == [True, False, False]
    assert newest.open
    assert len(awake) == 3


def test_what_is_in_use_stays_open():
    """Where all are in use there may be more than the limit; the next one that is opened finds those that are free."""
    awake = Awake(2)
    held = [Plain(awake) for _ in range(2)]
    for one in held:
        one.busy = True
    more = Plain(awake)
    assert len(awake) == 3
    held[1].busy = False
    more.busy = True
    Plain(awake)
    assert [one.open for one in (*held, more)] == [True, False, True]


def test_every_verb_wakes_a_resting_collection(docs):
    """Reads and writes of a collection that rests answer as before, and it is open afterwards."""
    stats = docs.stats()
    calls = [
        (lambda: docs.get(["r3"]).documents, ["text 3"]),
        (lambda: docs.query(vectors(20)[4], k=1, include=["document"]).documents, [["text 4"]]),
        (lambda: [i for batch in docs.scan() for i in batch.ids], [f"r{i}" for i in range(20)]),
        (lambda: docs.get(filter={"n": {"$lt": 2}}).ids, ["r0", "r1"]),
        (lambda: docs.upsert(["r3"], vectors(1), documents=["new"]).sequence, 2),
        (lambda: docs.get(["r3"]).documents, ["new"]),
        (lambda: docs.update(["r4"], metadata=[{"n": 40}]).sequence, 3),
        (lambda: docs.delete(["r5"]).count, 1),
        (lambda: docs.compact().purged_rows >= 0, True),
        (lambda: docs.check().ok, True),
    ]
    for call, expected in calls:
        assert environment(docs).rest()
        assert rests(docs)
        assert call() == expected
        assert not rests(docs)
    assert docs.stats().map_limit_bytes == stats.map_limit_bytes


def test_what_needs_no_file_lets_it_rest(docs, data_folder):
    """Ids, distances, counts and figures of a resting collection open nothing."""
    assert open_files(data_folder / "collections") == 5
    used = docs.stats().map_used_bytes
    assert environment(docs).rest()
    assert docs.query(vectors(20)[4], k=1).ids == [["r4"]]
    assert docs.count() == 20
    assert docs.count({"n": {"$gte": 15}}) == 5
    assert docs.stats().map_used_bytes == used
    assert rests(docs)
    assert open_files(data_folder / "collections") == 0


def test_who_is_inside_keeps_it_open(docs):
    """A collection that is being read does not rest, and its transaction goes on."""
    with docs._core.read() as reader:
        assert not environment(docs).rest()
        assert reader.state().next_row == 20
    assert environment(docs).rest()
    docs._core.close("closed")
    assert not environment(docs).rest()


def test_pages_and_scans_go_on_where_they_were(docs):
    """A cursor and a scan show the moment of their first page through a rest, and through writes after it."""
    page = docs.get(limit=5)
    scan = docs.scan(batch_size=5)
    seen = list(next(scan).ids)
    assert environment(docs).rest()
    docs.delete(["r7", "r12"])
    assert environment(docs).rest()
    assert docs.get(limit=5, cursor=page.cursor).ids == [f"r{i}" for i in range(5, 10)]
    assert environment(docs).rest()
    for batch in scan:
        seen += batch.ids
        environment(docs).rest()
    assert seen == [f"r{i}" for i in range(20)]


def test_a_map_that_has_grown_is_large_enough_again(data_folder):
    """A file that outgrew its first map rests and grows on."""
    with vecdb.open(data_folder, map_initial_bytes=1 << 20) as db:
        docs = db.create_collection("docs", dimension=512)
        for first in range(0, 4_000, 1_000):
            rows = np.full((1_000, 512), first + 1, np.float32)
            docs.insert([f"r{first + i}" for i in range(1_000)], rows)
            assert environment(docs).rest()
        assert docs.get(["r0", "r3999"], include=["vector"]).vectors[:, 0].tolist() == [1, 3_001]
        assert docs.check().ok


def test_with_lazy_syncs_all_is_on_the_disk_before_it_rests(data_folder):
    """With durability `interval` a resting collection has nothing to lose: a copy of its folder holds every commit."""
    with vecdb.open(data_folder, durability="interval", durability_interval_ms=60_000) as db:
        docs = fill(db.create_collection("docs", dimension=D))
        threads = threading.active_count()
        assert docs.stats().synced_sequence == 0
        assert environment(docs).rest()
        assert docs.stats().synced_sequence == 1
        assert threading.active_count() < threads
        assert not list(Path(data_folder).rglob("*sync*"))
        shutil.copytree(data_folder, data_folder.parent / "copy")
        docs.insert(["more"], vectors(1))
        assert docs.stats().synced_sequence == 1
    with vecdb.open(data_folder.parent / "copy") as db:
        assert db.get_collection("docs").count() == 20


def test_a_file_that_is_to_rest_beside_a_write_keeps_its_point(data_folder, monkeypatch):
    """Whoever lets it rest syncs what there is and takes the point away; the write under way is not committed without one,
    to which a power cut could go back."""
    with vecdb.open(data_folder, durability="interval", durability_interval_ms=60_000) as db:
        docs = fill(db.create_collection("docs", dimension=D))
        docs.flush()
        env, rested = environment(docs), []
        try_write = env._try_write

        def beside(work, what):
            def working(transaction):
                found = work(transaction)
                thread = threading.Thread(target=lambda: rested.append(env.rest()))
                thread.start()
                thread.join()
                return found

            return try_write(working, what)

        monkeypatch.setattr(env, "_try_write", beside)
        docs.insert(["more"], vectors(1))
        assert rested == [False]
        assert docs.stats().synced_sequence == 1, "the write is not on the disk"
        assert list(Path(data_folder).rglob("sync.point"))
        assert env._lazy._stand is not None
        monkeypatch.undo()
        synced = []
        sync_data = lazy_sync.disk.sync_data
        monkeypatch.setattr(
            lazy_sync.disk,
            "sync_data",
            lambda file, path, what: (synced.append(path.name), sync_data(file, path, what)),
        )
    assert "data.mdb" in synced, "closing brings it there"


def test_a_commit_without_a_point_is_not_made(data_folder, monkeypatch):
    """Where the point cannot be made that another thread took away, the write is refused, and the next one is made."""
    with vecdb.open(data_folder, durability="interval", durability_interval_ms=60_000) as db:
        docs = fill(db.create_collection("docs", dimension=D))
        docs.flush()
        env = environment(docs)
        try_write, sync_data = env._try_write, lazy_sync.disk.sync_data

        def full(file, path, what):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def beside(work, what):
            def working(transaction):
                found = work(transaction)
                env._lazy.settle()
                monkeypatch.setattr(lazy_sync.disk, "sync_data", full)
                return found

            return try_write(working, what)

        monkeypatch.setattr(env, "_try_write", beside)
        with pytest.raises(errors.VecdbError):
            docs.insert(["more"], vectors(1))
        monkeypatch.setattr(env, "_try_write", try_write)
        monkeypatch.setattr(lazy_sync.disk, "sync_data", sync_data)
        assert docs.count() == 20
        docs.insert(["more"], vectors(1))
        docs.flush()
        assert docs.count() == 21
        assert docs.check().ok


def test_out_of_files_is_an_error_that_passes(docs):
    """A collection that cannot be opened again for want of files says so, and works as soon as there are some."""
    docs.get(["r0"])
    assert environment(docs).rest()
    with faults.no_more_files():
        with pytest.raises(errors.LimitExceeded, match="max_open_collections"):
            docs.get(["r0"])
        with pytest.raises(errors.LimitExceeded, match="ulimit -n"):
            docs.insert(["x"], vectors(1))
        assert docs.query(vectors(20)[4], k=1).ids == [["r4"]]
    docs.insert(["x"], vectors(1))
    assert docs.get(["r0", "x"]).ids == ["r0", "x"]
    assert docs.check().ok


def test_a_file_that_is_gone_is_said(docs):
    """A resting collection whose folder was removed by hand is an error, no crash."""
    assert environment(docs).rest()
    shutil.rmtree(environment(docs).folder)
    with pytest.raises(errors.Closed, match="has gone"):
        docs.get(["r0"])


@pytest.mark.parametrize("durability", ["commit", "interval"])
def test_many_threads_over_more_collections_than_may_be_open(data_folder, durability):
    """Threads that write to and read from six collections, of which two may be open, find what they wrote."""
    with vecdb.open(data_folder, max_open_collections=2, durability=durability) as db:
        held = [db.create_collection(f"c{n}", dimension=D) for n in range(6)]
        failures = []

        def work(worker):
            rng = random.Random(RUN_SEED + worker)
            written = {n: [] for n in range(len(held))}
            try:
                for step in range(60):
                    n = rng.randrange(len(held))
                    docs, name = held[n], f"w{worker}-{step}"
                    docs.insert([name], vectors(1, step), documents=[name])
                    written[n].append(name)
                    m = rng.randrange(len(held))
                    asked = rng.sample(written[m], min(3, len(written[m])))
                    if asked:
                        assert held[m].get(asked).documents == asked
                    if not step % 20:
                        held[m].compact()
                    found = docs.query(vectors(1, step), k=1, include=["document"])
                    assert found.documents == found.ids
            except BaseException as error:
                failures.append(error)
                raise

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, f"TEST_SEED={RUN_SEED}"
        # All six may have been in use at once: those that are too many rest when the next one is opened.
        db.create_collection("c6", dimension=D)
        assert len(db._awake) <= 3
        assert sum(docs.count() for docs in held) == 4 * 60
        assert all(docs.check().ok for docs in held)
