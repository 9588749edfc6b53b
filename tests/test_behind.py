"""Opening a collection with a graph: it answers before its vectors are in memory, and they are read behind."""

from __future__ import annotations

import logging
import threading
import time

import numpy as np
import pytest

import vecdb
from vecdb import behind, errors
from vecdb.index import files

ROWS, D, K = 4_000, 64, 10


def vectors_of(seed, rows=ROWS):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((40, D))
    return (centres[rng.integers(0, 40, rows)] + 0.5 * rng.standard_normal((rows, D))).astype("f4")


def make(folder, metric):
    """A collection of ROWS records with a graph that is walked over codes."""
    with vecdb.open(folder, auto_build=False) as database:
        docs = database.create_collection(
            "docs", dimension=D, metric=metric, index="hnsw", quantization="none"
        )
        docs.insert(
            [f"{i:05}" for i in range(ROWS)],
            vectors_of(7),
            metadata=[{"n": i, "even": i % 2} for i in range(ROWS)],
        )
        docs.build_index()


@pytest.fixture(autouse=True)
def all_graphs_are_large(monkeypatch):
    monkeypatch.setattr(files, "BEHIND_BYTES", 0)


@pytest.fixture
def held(monkeypatch):
    """Nothing is read behind by itself while this test runs."""
    monkeypatch.setattr(behind, "_FIRST_S", 3_600.0)


def index_of(docs):
    return docs._core.index


def read_all(docs):
    assert index_of(docs).fill(threading.Event())
    assert not index_of(docs).is_late


def answers(docs):
    """Ids, distances and plans of queries of all kinds."""
    queries = vectors_of(8, 24)
    asked = [
        (queries[:1], {}),
        (queries, {}),
        (queries, {"k": 300}),
        (queries[:1], {"filter": {"even": 1}}),
        (queries, {"filter": {"n": {"$lt": 1_500}}}),
        (queries[:1], {"filter": {"n": {"$gte": 3_980}}}),
        (queries, {"exact": True}),
        (queries[:3], {"exact": True, "filter": {"even": 0}}),
    ]
    found = []
    for some, how in asked:
        given = docs.query(some, **{"k": K, **how})
        found.append((given.ids, np.asarray(given.distances)))
    return found


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
def test_answers_are_the_same_before_and_after(data_folder, metric, held):
    """Queries of a walk have the same ids and distances, to the bit, before the vectors are in memory and after;
    exact ones the same ids, and distances but for rounding."""
    make(data_folder, metric)
    with vecdb.open(data_folder, audit_share=0.0) as database:
        docs = database.get_collection("docs")
        assert index_of(docs).is_late
        before = answers(docs)
        assert index_of(docs).is_late, "a query has waited for the vectors"
        read_all(docs)
        after = answers(docs)
    assert len(before) == len(after)
    for (ids, near), (ids_after, near_after) in zip(before, after, strict=True):
        assert ids == ids_after
        np.testing.assert_allclose(near, near_after, rtol=2e-6, atol=2e-6)
    assert np.array_equal(before[0][1], after[0][1])


def test_vectors_that_are_read_in_part_answer_too(data_folder, held):
    """A reading that was stopped in the middle changes no answer, and goes on when asked again."""
    make(data_folder, "cosine")
    with vecdb.open(data_folder, audit_share=0.0) as database:
        docs = database.get_collection("docs")
        index, before = index_of(docs), answers(docs)
        stop = threading.Event()
        block = index.view.main.block
        reached = []

        def half(row):
            reached.append(row)
            block._through = row
            if row:
                stop.set()

        block._reached = half
        assert not index.fill(stop)
        assert max(reached) > 0
        assert index.is_late
        for one, other in zip(before, answers(docs), strict=True):
            assert one[0] == other[0]
        del block._reached
        read_all(docs)


def test_a_small_graph_is_whole_when_it_serves(data_folder, monkeypatch, held):
    """Few vectors are read at once, as they always were."""
    monkeypatch.setattr(files, "BEHIND_BYTES", 4 * ROWS * D)
    make(data_folder, "cosine")
    with vecdb.open(data_folder) as database:
        assert not index_of(database.get_collection("docs")).is_late


def test_it_is_read_behind_by_itself(data_folder, monkeypatch):
    """Some time after the opening all vectors are in memory, in a process that only reads too."""
    monkeypatch.setattr(behind, "_FIRST_S", 0.0)
    make(data_folder, "l2")
    for read_only in (False, True):
        with vecdb.open(data_folder, read_only=read_only) as database:
            docs = database.get_collection("docs")
            end = time.monotonic() + 30
            while index_of(docs).is_late:
                assert time.monotonic() < end
                time.sleep(0.01)
            assert docs.query(vectors_of(7)[5], k=1).ids[0][0] == "00005"


@pytest.mark.parametrize("first_s", [0.0, 0.002, 3_600.0])
def test_closing_at_once_is_safe(data_folder, monkeypatch, caplog, first_s):
    """A collection that is closed or dropped while its vectors are read leaves no thread and no complaint behind."""
    monkeypatch.setattr(behind, "_FIRST_S", first_s)
    make(data_folder, "cosine")
    with caplog.at_level(logging.WARNING, "vecdb"):
        for _ in range(8):
            with vecdb.open(data_folder) as database:
                database.get_collection("docs")
        with vecdb.open(data_folder) as database:
            database.get_collection("docs")
            database.drop_collection("docs")
    assert not caplog.records
    assert not [t for t in threading.enumerate() if t.name == "vecdb-behind"]


@pytest.mark.parametrize("first_s", [0.0, 3_600.0])
def test_writes_builds_and_compaction_meanwhile(data_folder, monkeypatch, first_s):
    """What is written, deleted, built and compacted while vectors are read stands, and is found."""
    monkeypatch.setattr(behind, "_FIRST_S", first_s)
    make(data_folder, "l2")
    fresh = vectors_of(9, 600)
    with vecdb.open(data_folder, auto_build=False) as database:
        docs = database.get_collection("docs")
        docs.insert([f"new{i}" for i in range(600)], fresh)
        assert docs.query(fresh[0], k=1).ids[0][0] == "new0"
        docs.delete([f"{i:05}" for i in range(0, ROWS, 2)])
        old = vectors_of(7)
        assert docs.query(old[1], k=1).ids[0][0] == "00001"
        assert docs.query(old[2], k=1, exact=True).ids[0][0] != "00002"
        docs.build_index()
        assert not index_of(docs).is_late
        docs.compact()
        assert docs.query(fresh[3], k=1).ids[0][0] == "new3"
        assert docs.query(old[3], k=1).ids[0][0] == "00003"
        assert docs.check().ok
    with vecdb.open(data_folder) as database:
        docs = database.get_collection("docs")
        assert docs.count() == ROWS // 2 + 600
        assert docs.query(old[3], k=1).ids[0][0] == "00003"


def test_without_memory_it_serves_from_the_store(data_folder, monkeypatch, caplog):
    """Where memory for the vectors lacks, the collection goes on answering, says so once, and a build tries again."""
    monkeypatch.setattr(behind, "_FIRST_S", 0.0)
    make(data_folder, "cosine")
    with vecdb.open(data_folder, audit_share=0.0) as database:
        from vecdb.index import filling

        def none(*_):
            raise MemoryError

        with monkeypatch.context() as patched, caplog.at_level(logging.ERROR, "vecdb"):
            patched.setattr(filling, "fill", none)
            docs = database.get_collection("docs")
            docs._core._behind._thread.join()
            assert "not enough memory" in caplog.text
            assert index_of(docs).is_late
            assert docs.query(vectors_of(7)[5], k=1).ids[0][0] == "00005"
            docs.insert(["x"], vectors_of(9, 1))
            with pytest.raises(errors.LimitExceeded, match="not enough memory"):
                docs.build_index()
        docs.build_index()
        assert docs.query(vectors_of(7)[5], k=1).ids[0][0] == "00005"
