"""Many threads at once: group commit, reads that see one moment, nothing lost."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import vecdb
from vecdb import errors
from vecdb.lane import Lane


def run_all(*functions):
    """Runs functions in threads of their own and raises what any of them raised."""
    failures = []

    def guarded(function):
        try:
            function()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(f,)) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.fixture
def docs(data_folder):
    with vecdb.open(data_folder) as db:
        yield db.create_collection("docs", dimension=4, metric="l2")


def test_writers_that_wait_share_a_commit(docs):
    """Sixteen writers of single records need far fewer commits than records, and lose none."""
    writers, each = 16, 40
    results = [[] for _ in range(writers)]

    def write(n):
        for i in range(each):
            results[n].append(docs.insert([f"{n}-{i}"], [[n, i, 0, 1]]))

    run_all(*[lambda n=n: write(n) for n in range(writers)])
    assert docs.count() == writers * each
    commits = docs.stats().sequence
    assert commits == max(r.sequence for rs in results for r in rs)
    assert commits < writers * each / 2
    for own in results:
        assert [r.sequence for r in own] == sorted(r.sequence for r in own)
    assert docs.check().ok


def test_sixteen_writers_behind_a_slow_commit_share_the_next(docs, monkeypatch):
    """However many writes have come while a commit was on its way to the disk, all of them are the next one."""
    core = docs._core
    reached, go_on = threading.Event(), threading.Event()
    commit, commits = core.store.commit, []

    def slow(*work):
        commits.append(1)
        if len(commits) == 1:
            reached.set()
            assert go_on.wait(10)
        return commit(*work)

    monkeypatch.setattr(core.store, "commit", slow)
    sequences = []

    def write(n):
        sequences.append(docs.insert([f"r{n}"], [[1, 2, 3, n]]).sequence)

    first = threading.Thread(target=write, args=(-1,))
    first.start()
    assert reached.wait(10)
    others = [threading.Thread(target=write, args=(n,)) for n in range(16)]
    for thread in others:
        thread.start()
    deadline = time.monotonic() + 10
    while len(core._lane._waiting) < 16 and time.monotonic() < deadline:
        time.sleep(0.002)
    go_on.set()
    for thread in [first, *others]:
        thread.join()
    assert (sorted(sequences), len(commits)) == ([1, *[2] * 16], 2)
    assert docs.count() == 17
    assert docs.check().ok


def test_writers_without_pause_share_commits(docs):
    """Sixteen writers that write again as soon as they are answered have at least eight writes a commit."""
    writers, each = 16, 60
    write = [
        lambda n=n: [docs.insert([f"{n}-{i}"], [[n, i, 0, 1]]) for i in range(each)]
        for n in range(writers)
    ]
    commit, pause_s = docs._core.store.commit, 0.01

    def slow(*work):
        # A disk as slow as many are: what this one takes must not decide.
        time.sleep(pause_s)
        return commit(*work)

    docs._core.store.commit = slow
    run_all(*write)
    assert docs.count() == writers * each
    assert writers * each / docs.stats().sequence >= 8


def test_one_refused_write_does_not_take_others_down(docs):
    """In a shared commit a write that is refused writes nothing, the others succeed."""
    outcomes, named = [], []

    def write(n):
        for i in range(30):
            try:
                docs.insert([f"shared-{i}", f"{n}-{i}"], np.ones((2, 4)))
                outcomes.append((n, i))
            except errors.RecordExists as error:
                named.append((error.details["ids"], [f"shared-{i}"]))

    run_all(*[lambda n=n: write(n) for n in range(8)])
    assert sorted(i for _, i in outcomes) == list(range(30))
    assert all(given == expected for given, expected in named)
    assert docs.count() == 60
    assert sorted(docs.get([f"{n}-{i}" for n, i in outcomes]).ids) == sorted(
        f"{n}-{i}" for n, i in outcomes
    )


def test_a_write_that_breaks_takes_nobody_with_it(data_folder):
    """When one write of a group fails with a bug, the others are committed without it."""

    class Broken:
        frees, looks, adds = False, False, 0
        vectors = None

        def apply(self, writer, sequence, before):
            raise RuntimeError("bug")

    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=4)
        core = docs._core
        gate = threading.Event()
        errors_seen = []

        def broken():
            gate.wait()
            try:
                core.write(Broken())
            except RuntimeError as error:
                errors_seen.append(error)

        def good(n):
            gate.wait()
            docs.insert([f"g{n}"], [[1, 2, 3, 4]])

        with core.exclusive():
            # All of them queue up behind us, so that one group holds them together.
            threads = [threading.Thread(target=broken)] + [
                threading.Thread(target=good, args=(n,)) for n in range(6)
            ]
            for thread in threads:
                thread.start()
            gate.set()
            deadline = time.monotonic() + 10
            while len(core._lane._waiting) < 7 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert len(core._lane._waiting) == 7
        for thread in threads:
            thread.join()
        assert len(errors_seen) == 1
        assert docs.count() == 6
        assert docs.check().ok


def test_an_update_never_hides_a_record(docs):
    """While records are replaced without pause, each query and get sees every one exactly once."""
    n = 50
    ids = [f"r{i}" for i in range(n)]
    docs.insert(ids, np.eye(4)[np.arange(n) % 4], metadata=[{"version": 0}] * n)
    stop = threading.Event()

    def write():
        for version in range(1, 120):
            docs.upsert(ids, np.eye(4)[np.arange(n) % 4], metadata=[{"version": version}] * n)
        stop.set()

    def read():
        while not stop.is_set():
            assert docs.count() == n
            assert docs.count({"version": {"$gte": 0}}) == n
            found = docs.query([[1, 0, 0, 0]], k=100, include=["metadata"])
            assert sorted(found.ids[0]) == sorted(ids)
            assert len({m["version"] for m in found.metadata[0]}) == 1
            page = docs.get(limit=100)
            assert sorted(page.ids) == sorted(ids)
            assert len({m["version"] for m in page.metadata}) == 1
            assert docs.get(["r7"]).ids == ["r7"]

    run_all(write, read, read)
    assert docs.check().ok


def test_named_vectors_change_with_their_records(data_folder):
    """While records are replaced without pause, each search by a named field sees every one once,
    with the vectors of one version."""
    n = 50
    ids = [f"r{i}" for i in range(n)]
    with vecdb.open(data_folder) as db:
        docs = db.create_collection(
            "docs", dimension=2, metric="l2", vectors={"t": {"dimension": 1, "metric": "l2"}}
        )

        def put(version):
            named = [[version] if i % 5 else None for i in range(n)]
            docs.upsert(ids, [[version, i] for i in range(n)], named_vectors={"t": named})

        put(0)
        stop = threading.Event()

        def write():
            for version in range(1, 100):
                put(version)
            stop.set()

        def read():
            while not stop.is_set():
                found = docs.query(
                    [[0.0]], vector_name="t", k=100, include=["vector", "named_vectors"]
                )
                assert sorted(found.ids[0]) == sorted(i for i in ids if int(i[1:]) % 5)
                (version,) = set(found.vectors[0][:, 0].tolist())
                assert set(found.named_vectors["t"][0][:, 0].tolist()) == {version}
                assert set(found.distances[0, : len(found.ids[0])].tolist()) == {version**2}

        run_all(write, read, read)
        assert docs.check().ok


def test_a_write_is_visible_to_the_next_read(docs):
    """Whoever has an acknowledgement sees the write, in every verb, from any thread."""

    def work(n):
        for i in range(60):
            record_id, vector = f"{n}-{i}", [n, i, 7, 7]
            sequence = docs.insert([record_id], [vector], metadata=[{"n": n, "i": i}]).sequence
            assert docs.get([record_id]).ids == [record_id]
            found = docs.query([vector], k=1)
            assert (found.ids, found.distances[0, 0]) == ([[record_id]], 0.0)
            assert found.sequence >= sequence
            assert docs.count({"n": n, "i": i}) == 1
            if i % 3 == 0:
                docs.delete([record_id])
                assert docs.get([record_id]).ids == []
                assert record_id not in docs.query([vector], k=5).ids[0]
                assert docs.count({"n": n, "i": i}) == 0

    run_all(*[lambda n=n: work(n) for n in range(6)])
    assert docs.count() == 6 * 40
    assert docs.check().ok


def test_delete_by_filter_takes_what_matches_at_its_moment(docs):
    """Beside inserts, deletes by filter count each record once and none twice."""
    inserted, deleted = [], []
    done = threading.Event()

    def insert():
        for i in range(150):
            docs.insert([f"r{i}"], [[i, 0, 0, 1]], metadata=[{"kind": i % 2}])
            inserted.append(i)
        done.set()

    def delete():
        while not done.is_set():
            deleted.append(docs.delete(filter={"kind": 1}).count)

    run_all(insert, delete)
    deleted.append(docs.delete(filter={"kind": 1}).count)
    assert sum(deleted) == 75
    assert docs.count() == 75
    assert docs.check().ok


def test_the_lane_commits_in_order_of_arrival(docs, monkeypatch):
    """A delete by filter sees everything that was queued before it and nothing behind it, in the commit of all."""
    core = docs._core
    groups = []
    plain = Lane._commit
    monkeypatch.setattr(
        Lane, "_commit", lambda lane, group: (groups.append(len(group)), plain(lane, group))[1]
    )
    with core.exclusive():
        threads = []
        for n in range(3):
            threads.append(threading.Thread(target=docs.insert, args=([f"a{n}"], [[1, 1, 1, 1]])))
        threads.append(threading.Thread(target=docs.delete, kwargs={"filter": {}}))
        threads.append(threading.Thread(target=docs.insert, args=(["late"], [[1, 1, 1, 1]])))
        for count, thread in enumerate(threads, 1):
            thread.start()
            deadline = time.monotonic() + 10
            while len(core._lane._waiting) < count and time.monotonic() < deadline:
                time.sleep(0.002)
    for thread in threads:
        thread.join()
    assert groups == [5]
    assert docs.get(limit=10).ids == ["late"]


def held_back(core, *calls):
    """Starts calls in threads while the lane is held, so that they share a group; then lets go."""
    with core.exclusive():
        threads = []
        for count, call in enumerate(calls, 1):
            threads.append(threading.Thread(target=call))
            threads[-1].start()
            deadline = time.monotonic() + 10
            while len(core._lane._waiting) < count and time.monotonic() < deadline:
                time.sleep(0.002)
        assert len(core._lane._waiting) == len(calls)
    for thread in threads:
        thread.join()


def test_a_commit_never_exceeds_max_fields(data_folder):
    """Two writes that fit alone but not together: one is refused, and nothing is bricked."""
    outcomes = []
    with vecdb.open(data_folder, max_fields=3) as db:
        docs = db.create_collection("docs", dimension=1, metric="l2")

        def insert(name, fields):
            try:
                outcomes.append(
                    docs.insert([name], [[1]], metadata=[dict.fromkeys(fields, 1)]).count
                )
            except errors.LimitExceeded as error:
                outcomes.append(type(error))

        held_back(docs._core, lambda: insert("a", ["p", "q"]), lambda: insert("b", ["r", "s"]))
        assert sorted(outcomes, key=str) == [1, errors.LimitExceeded]
        assert docs.count() == 1
        docs.insert(["c"], [[2]])
    with vecdb.open(data_folder, max_fields=1) as db:
        docs = db.get_collection("docs")
        assert docs.count({"p": 1}) + docs.count({"r": 1}) == 1
        assert docs.stats().count == 2


def test_a_write_that_breaks_in_the_middle_leaves_nothing(docs):
    """A typed error after the first change undoes the whole write, and the others are committed."""
    docs.insert(["a"], [[1, 1, 1, 1]])
    core = docs._core

    class Half:
        frees, looks, adds = False, False, 0
        vectors = None

        def apply(self, writer, sequence, before):
            writer.kill(writer.rows_of_ids([b"a"]), sequence)
            raise errors.Corrupted("planted")

    seen = []

    def half():
        try:
            core.write(Half())
        except errors.Corrupted as error:
            seen.append(error.message)

    held_back(core, half, lambda: docs.insert(["b"], [[2, 2, 2, 2]]))
    assert seen == ["planted"]
    assert docs.get(["a", "b"]).ids == ["a", "b"]
    assert docs.check().ok


def test_vectors_of_a_refused_batch_are_not_found_in_the_next(data_folder):
    """The same array, refused and then given again with other numbers, is searched as it is stored."""
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=64, metric="l2")
        docs.insert(["taken"], np.zeros((1, 64)))
        vectors = np.random.default_rng(5).standard_normal((3_000, 64)).astype(np.float32)
        names = [f"r{i}" for i in range(3_000)]
        with pytest.raises(errors.RecordExists):
            docs.insert(["taken", *names[1:]], vectors)
        vectors *= -1
        docs.insert(names, vectors)
        found = docs.query(vectors[::100], k=1)
        assert [ids[0] for ids in found.ids] == names[::100]
        assert max(distances[0] for distances in found.distances) == 0
        assert docs.check().ok


def test_a_write_too_large_for_the_map_does_not_refuse_its_neighbours(data_folder):
    """What fits is stored, what does not is refused, though they wanted to share a commit."""
    with vecdb.open(data_folder, map_initial_bytes=1 << 20, map_limit_bytes=2 << 20) as db:
        docs = db.create_collection("docs", dimension=64)
        seen = []

        def large():
            try:
                docs.insert([f"l{i}" for i in range(20_000)], np.ones((20_000, 64)))
            except errors.StorageFull as error:
                seen.append(error)

        held_back(docs._core, large, lambda: docs.insert(["small"], np.ones((1, 64))))
        assert len(seen) == 1
        assert docs.get(["small", "l0"]).ids == ["small"]
        assert docs.check().ok


def test_names_are_never_stale(data_folder):
    """A collection can be got as soon as its creation returns, however many others are looking."""
    with vecdb.open(data_folder) as db:
        stop = threading.Event()

        def look():
            while not stop.is_set():
                db.list_aliases()
                try:
                    db.get_collection("c1").count()
                except (errors.CollectionNotFound, errors.Closed):
                    pass

        def change():
            try:
                for round_ in range(8):
                    for name in ("c0", "c1"):
                        db.create_collection(name, dimension=2)
                        assert db.get_collection(name).count() == 0
                        db.set_alias("alias", name)
                        assert db.get_collection("alias").name == name
                    for name in ("c0", "c1"):
                        db.drop_collection(name)
                        with pytest.raises(errors.CollectionNotFound):
                            db.get_collection(name)
                    assert round_ >= 0
            finally:
                stop.set()

        run_all(change, look, look)
        assert db.list_collections() == []
    with vecdb.open(data_folder) as db:
        assert db.list_collections() == []
