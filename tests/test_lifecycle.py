"""The life of an index inside a collection: built in the background, saved, mapped again, mended."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import wait_until

import vecdb
from vecdb import errors, layout
from vecdb.lane import Lane
from vecdb.store.environment import Environment
from vecdb.writes import Delete

D = 16
SMALL = {"exact_max_scalars": 2_000 * D}


def clustered(n, seed=7):
    # The same centres for every seed: queries come from where the records are.
    centres = np.random.default_rng(99).standard_normal((40, D)) * 3
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(0, 40, n)] + rng.standard_normal((n, D))).astype(np.float32)


def fill(docs, vectors, first=0):
    ids = [f"r{i}" for i in range(first, first + len(vectors))]
    docs.insert(ids, vectors, metadata=[{"i": i} for i in range(first, first + len(vectors))])


def index_files(db):
    folder = next((db.path / layout.COLLECTIONS_FOLDER).iterdir())
    return sorted(
        p for p in folder.iterdir() if p.name not in (layout.DATA_FILE, layout.LMDB_LOCK_FILE)
    )


def settled(docs, timeout_s=60):
    """Stats once no build is queued or running."""
    end = time.monotonic() + timeout_s
    while docs.stats().index.building:
        assert time.monotonic() < end, "the build did not end"
        time.sleep(0.02)
    return docs.stats().index


def right(docs, vectors, live=None):
    """Exact answers equal numpy, and each answer without `exact` has recall of 0.9 at least."""
    queries = clustered(20, seed=8)
    near = ((queries[:, None, :] - vectors[None]) ** 2).sum(axis=2)
    if live is not None:
        near[:, ~live] = np.inf
    truth = np.argsort(near, axis=1)[:, :10]
    exact = docs.query(queries, k=10, exact=True)
    assert [[int(i[1:]) for i in ids] for ids in exact.ids] == truth.tolist()
    found = docs.query(queries, k=10)
    hits = sum(len(set(a) & set(b)) for a, b in zip(found.ids, exact.ids, strict=True))
    assert hits >= 0.9 * truth.size


def test_an_index_is_built_in_the_background(data_folder):
    """auto stays exact while small, then builds by itself while writes and queries go on."""
    vectors = clustered(6_000)
    with vecdb.open(data_folder, **SMALL) as db:
        docs = db.create_collection("docs", dimension=D, metric="l2")
        fill(docs, vectors[:1_500])
        assert settled(docs).kind == "exact"
        right(docs, vectors[:1_500])
        for first in range(1_500, 6_000, 500):
            fill(docs, vectors[first : first + 500], first)
            assert docs.query(vectors[first], k=1).ids == [[f"r{first}"]]
        stats = settled(docs)
        assert stats.kind == "hnsw"
        assert stats.indexed_rows + stats.tail_rows == 6_000
        assert stats.measured_recall >= 0.95
        assert stats.last_error == ""
        right(docs, vectors)
        assert len(index_files(db)) == len(docs._core.default.record.files())
    with vecdb.open(data_folder, **SMALL) as db:
        docs = db.get_collection("docs")
        reopened = docs.stats().index
        assert (reopened.kind, reopened.indexed_rows) == ("hnsw", stats.indexed_rows)
        assert reopened.measured_recall == stats.measured_recall
        right(docs, vectors)


def test_auto_build_off_builds_only_when_asked(data_folder):
    """With auto_build off nothing is built until build_index is called."""
    vectors = clustered(3_000)
    with vecdb.open(data_folder, auto_build=False, **SMALL) as db:
        docs = db.create_collection("docs", dimension=D, metric="l2", index="hnsw")
        fill(docs, vectors)
        assert (docs.stats().index.kind, docs.stats().index.building) == ("exact", False)
        assert docs.build_index().kind == "hnsw"
        right(docs, vectors)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "empty"])
def test_a_damaged_index_costs_a_rebuild_not_data(data_folder, damage):
    """A saved index that is damaged is named, searched around, and built again."""
    vectors = clustered(3_000)
    with vecdb.open(data_folder, **SMALL) as db:
        docs = db.create_collection("docs", dimension=D, metric="l2", index="hnsw")
        fill(docs, vectors)
        docs.build_index()
        settled(docs)
        path = max(index_files(db), key=lambda p: p.stat().st_size)
    raw = bytearray(path.read_bytes())
    if damage == "flipped":
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(raw[: len(raw) // 2] if damage == "truncated" else b"")
    with vecdb.open(data_folder, auto_build=False, **SMALL) as db:
        docs = db.get_collection("docs")
        stats = docs.stats().index
        assert stats.kind == "exact"
        assert path.name in stats.last_error
        right(docs, vectors)
        docs.build_index()
        assert (docs.stats().index.kind, docs.stats().index.last_error) == ("hnsw", "")
        right(docs, vectors)
    with vecdb.open(data_folder, **SMALL) as db:
        docs = db.get_collection("docs")
        assert docs.stats().index.kind == "hnsw"
        assert docs.check().ok
        assert len(index_files(db)) == len(docs._core.default.record.files())


def test_writes_and_deletes_during_builds(data_folder):
    """Whatever is written or deleted while an index builds is right as soon as it is acknowledged."""
    vectors = clustered(5_000)
    live = np.ones(5_000, bool)
    with vecdb.open(data_folder, auto_build=False, **SMALL) as db:
        docs = db.create_collection("docs", dimension=D, metric="l2", index="hnsw")
        fill(docs, vectors[:3_000])
        failures = []

        def build():
            try:
                for _ in range(3):
                    docs.build_index()
            except BaseException as error:
                failures.append(error)

        builder = threading.Thread(target=build)
        builder.start()
        for first in range(3_000, 5_000, 100):
            fill(docs, vectors[first : first + 100], first)
            doomed = list(range(first - 3_000, first - 2_950))
            docs.delete([f"r{i}" for i in doomed])
            live[doomed] = False
            assert docs.count() == first + 100 - 50 * ((first - 3_000) // 100 + 1)
            found = docs.query(vectors[first], k=5)
            assert found.ids[0][0] == f"r{first}"
            assert all(live[int(i[1:])] for i in found.ids[0])
        builder.join()
        assert failures == []
        right(docs, vectors, live)
        docs.build_index()
        assert docs.stats().index.dead_rows + docs.count() >= docs.stats().index.indexed_rows
        right(docs, vectors, live)
        assert docs.check().ok


@pytest.mark.long
def test_a_build_is_cancelled_by_close_and_by_drop(data_folder):
    """Closing or dropping in the middle of a build returns soon and leaves nothing broken."""
    vectors = clustered(30_000)
    with vecdb.open(data_folder, **SMALL) as db:
        for name in ("kept", "dropped"):
            docs = db.create_collection(name, dimension=D, metric="l2", index="hnsw")
            fill(docs, vectors)
            docs.build_index(wait=False)
        assert docs.stats().index.building
        started = time.monotonic()
        db.drop_collection("dropped")
        assert time.monotonic() - started < 20
        with pytest.raises(errors.Closed):
            docs.query(vectors[0])
    with vecdb.open(data_folder, auto_build=False) as db:
        docs = db.get_collection("kept")
        assert docs.count() == 30_000
        assert docs.query(vectors[5], k=1).ids == [["r5"]]
        assert docs.check().ok


def test_build_index_keeps_its_time_limit(data_folder):
    """build_index with a limit raises DeadlineExceeded; the build goes on and ends."""
    with vecdb.open(data_folder, auto_build=False, **SMALL) as db:
        docs = db.create_collection("docs", dimension=D, metric="l2", index="hnsw")
        fill(docs, clustered(20_000))
        with pytest.raises(errors.DeadlineExceeded):
            docs.build_index(timeout_s=0.01)
        assert settled(docs).kind == "hnsw"


def test_a_build_that_fails_is_reported_and_search_goes_on(data_folder, monkeypatch):
    """A failing build ends with a typed error and a note in the stats; answers stay exact."""
    vectors = clustered(2_500)
    with vecdb.open(data_folder, auto_build=False, **SMALL) as db:
        docs = db.create_collection("docs", dimension=D, metric="l2", index="hnsw")
        fill(docs, vectors)

        def broken(*_):
            raise errors.Corrupted("planted")

        with monkeypatch.context() as patch:
            for read in ("range", "rows"):
                patch.setattr(type(docs._core.index.source), read, broken)
            with pytest.raises(errors.Corrupted, match="planted"):
                docs.build_index()
        assert "planted" in docs.stats().index.last_error
        right(docs, vectors)
        assert docs.build_index().last_error == ""


def test_a_commit_that_fails_on_the_disk_leaves_nothing(data_folder, monkeypatch):
    """What was prepared in memory beside a commit that failed is not there, and other rows take its place."""
    rng = np.random.default_rng(12)
    vectors = rng.standard_normal((3_000, 128)).astype(np.float32)

    def metadata(name, rows):
        return [{"who": f"{name}{row % 7}", "row": row} for row in rows]

    def fails(self, work, what):
        transaction = self._env.begin(write=True)
        work(transaction)
        transaction.abort()
        raise OSError("the disk is gone")

    with vecdb.open(data_folder, auto_build=False) as db:
        docs = db.create_collection("docs", dimension=128)
        first, lost, last = (range(at, at + 1_000) for at in (0, 1_000, 2_000))
        docs.insert([f"a{n}" for n in first], vectors[:1_000], metadata=metadata("first", first))
        with monkeypatch.context() as patch:
            patch.setattr(Environment, "_try_write", fails)
            with pytest.raises(errors.Internal, match="the disk is gone"):
                docs.insert(
                    [f"b{n}" for n in lost], vectors[1_000:2_000], metadata=metadata("lost", lost)
                )
        docs.insert([f"c{n}" for n in last], vectors[2_000:], metadata=metadata("last", last))
        assert docs.count() == 2_000
        assert docs.count({"who": "lost3"}) == 0
        assert docs.count({"who": "last3"}) == sum(n % 7 == 3 for n in last)
        found = docs.query(vectors[[2_500, 1_500]], k=1)
        assert found.ids[0] == ["c2500"]
        assert found.ids[1] != ["b1500"]
        assert docs.check().ok


def test_a_write_that_waits_does_not_hold_up_the_end(data_folder, monkeypatch):
    """A write that came before a collection was closed, and whose turn comes after, is refused; both return."""
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=2)
        core = docs._core
        reached, waits = threading.Event(), threading.Event()
        close, take = core.store.close, Lane._finish

        def closing():
            reached.set()
            assert waits.wait(10)
            close()

        def finish(lane, entry):
            waits.set()
            take(lane, entry)

        monkeypatch.setattr(core.store, "close", closing)
        monkeypatch.setattr(Lane, "_finish", finish)
        write = Delete([b"a"], None)
        end = threading.Thread(target=core.close, args=("closed",), daemon=True)
        end.start()
        assert reached.wait(10)
        with ThreadPoolExecutor(1) as late, pytest.raises(errors.Closed):
            late.submit(core._lane.submit, write).result(10)
        end.join(10)
        assert not end.is_alive()


def test_copies_are_made_anew_after_a_fault(data_folder, monkeypatch):
    """When following a commit fails in memory, the commit stands and the next call sees it."""
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=D, metric="l2")
        fill(docs, clustered(10))
        with monkeypatch.context() as patch:
            patch.setattr(
                type(docs._core.index), "publish", lambda *_: (_ for _ in ()).throw(MemoryError())
            )
            assert docs.insert(["x"], [np.ones(D)], metadata=[{"i": 99}]).sequence == 2
        assert docs.count() == 11
        assert docs.count({"i": 99}) == 1
        assert docs.query(np.ones(D), k=1).ids == [["x"]]
        assert docs.insert(["y"], [np.ones(D)]).sequence == 3
        assert docs.check().ok


def test_each_vector_field_has_an_index_of_its_own(data_folder):
    """Named fields are built, saved, mapped again and mended one by one, rows without them left out."""
    vectors, titles = clustered(4_000), clustered(4_000, seed=3)
    named = {"title": {"dimension": D, "metric": "l2", "index": "hnsw"}}
    queries = clustered(20, seed=8)
    truth = (
        np.argsort(((queries[:, None] - titles[None, ::2]) ** 2).sum(axis=2), axis=1)[:, :10] * 2
    )

    def right_by_title(docs):
        exact = docs.query(queries, vector_name="title", k=10, exact=True)
        assert [[int(i[1:]) for i in ids] for ids in exact.ids] == truth.tolist()
        found = docs.query(queries, vector_name="title", k=10)
        hits = sum(len(set(a) & set(b)) for a, b in zip(found.ids, exact.ids, strict=True))
        assert hits >= 0.9 * truth.size

    with vecdb.open(data_folder, auto_build=False) as db:
        docs = db.create_collection("docs", dimension=D, metric="l2", index="hnsw", vectors=named)
        ids = [f"r{i}" for i in range(4_000)]
        given = [v if i % 2 == 0 else None for i, v in enumerate(titles)]
        docs.insert(ids, vectors, named_vectors={"title": given})
        docs.build_index()
        stats = docs.stats()
        assert (stats.index.kind, stats.index.indexed_rows) == ("hnsw", 4_000)
        title = stats.vectors["title"]
        assert (title.kind, title.indexed_rows, title.tail_rows) == ("hnsw", 2_000, 0)
        right(docs, vectors)
        right_by_title(docs)
        files = [path.name for path in index_files(db)]
        mine = docs._core.fields["title"].record.files()
        assert set(files) == {*mine, *docs._core.default.record.files()}
    with vecdb.open(data_folder, auto_build=False) as db:
        docs = db.get_collection("docs")
        assert docs.stats().vectors["title"].indexed_rows == 2_000
        right(docs, vectors)
        right_by_title(docs)
        for path in index_files(db):
            if path.name in mine:
                path.unlink()
    with vecdb.open(data_folder, auto_build=False) as db:
        docs = db.get_collection("docs")
        stats = docs.stats()
        assert (stats.index.kind, stats.vectors["title"].kind) == ("hnsw", "exact")
        assert "saved index not used" in stats.vectors["title"].last_error
        right_by_title(docs)
        docs.build_index()
        assert docs.stats().vectors["title"].last_error == ""
        right_by_title(docs)


def test_a_build_can_be_cancelled(data_folder):
    """cancel_build ends a build soon, tells those who wait for it, and leaves search as it was."""
    vectors = clustered(30_000)
    with vecdb.open(data_folder, **SMALL) as db:
        docs = db.create_collection("docs", dimension=D, metric="l2", index="hnsw")
        assert docs.cancel_build() is False
        fill(docs, vectors)
        seen = []

        def build():
            try:
                docs.build_index()
            except errors.VecdbError as error:
                seen.append(error)

        waiting = threading.Thread(target=build)
        waiting.start()
        while not docs.stats().index.building:
            time.sleep(0.001)
        assert docs.cancel_build() is True
        waiting.join()
        assert [type(error) for error in seen] == [errors.Cancelled]
        fill(docs, vectors[:1], 30_000)
        stats = docs.stats().index
        assert (stats.building, stats.kind, stats.last_error) == (False, "exact", "")
        assert docs.query(vectors[5], k=1, exact=True).ids == [["r5"]]
    with vecdb.open(data_folder, read_only=True) as db, pytest.raises(errors.ReadOnly):
        db.get_collection("docs").cancel_build()


def test_a_recalibration_is_kept(data_folder):
    """A curve that is measured again serves at once, and after opening too."""
    vectors = clustered(4_000)
    with vecdb.open(data_folder, auto_build=False) as db:
        docs = db.create_collection("docs", dimension=D, metric="l2", index="hnsw")
        fill(docs, vectors)
        docs.build_index()
        before = docs.stats().index.curve
        files = index_files(db)
        docs._builder.recalibrate(docs._core, 0, clustered(128, seed=5))
        wait_until(lambda: docs.stats().index.curve != before, "a new curve", 30)
        curve = docs.stats().index.curve
        assert index_files(db) == files
        right(docs, vectors)
    with vecdb.open(data_folder, auto_build=False) as db:
        docs = db.get_collection("docs")
        assert docs.stats().index.curve == curve
        right(docs, vectors)
        built_at = docs.stats().index.built_at_sequence
        docs.delete(["r7"])
        docs._builder.rebuild(docs._core, 0)
        wait_until(lambda: docs.stats().index.built_at_sequence > built_at, "a new index", 60)
        assert docs.stats().index.indexed_rows == 3_999
