"""explain says how an answer came about, and stats what stands behind it."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from index_rows import clustered

import vecdb
from vecdb import searching
from vecdb.index import cells
from vecdb.search_lane import LANE

N, D = 4_000, 32
STEPS = ["fetch", "filter", "rerank", "search", "total", "wait"]


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    """4,000 records, indexed, of which half have a vector `small`; then one more, and one less."""
    rng = np.random.default_rng(12)
    vectors = rng.standard_normal((N, D)).astype(np.float32)
    with vecdb.open(tmp_path_factory.mktemp("explain"), audit_share=0.0) as db:
        made = db.create_collection(
            "docs", dimension=D, index="hnsw", target_recall=0.9,
            vectors={"small": {"dimension": 8, "metric": "l2"}},
        )  # fmt: skip
        made.insert(
            [f"r{i}" for i in range(N)],
            vectors,
            metadata=[{"i": i, "tenth": i % 10 == 0} for i in range(N)],
            named_vectors={"small": [v[:8] if i % 2 else None for i, v in enumerate(vectors)]},
        )
        made.build_index()
        made.insert(["late"], vectors[:1] + 1)
        made.delete(["r4"])
        yield made, vectors


def test_an_approximate_query_is_explained(docs):
    """Plan, setting, what the calibration measured for it, and what was looked at."""
    made, vectors = docs
    stats = made.stats().index
    told = made.query(vectors[0], k=10, explain=True).explain
    assert (told.kind, told.quantization, told.setting_name) == ("hnsw", "none", "efSearch")
    assert told.plan != "exact"
    assert told.setting >= min(point.setting for point in stats.curve)
    assert told.target_recall == 0.9
    assert 0.9 <= told.expected_recall <= 1.0
    assert (told.rows, told.allowed_rows) == (N, N)
    assert (told.indexed_rows, told.tail_rows, told.rows_since_index) == (N, 1, 1)
    assert told.candidates >= 10
    assert told.rows_compared >= 1
    assert told.index_sequence == stats.built_at_sequence == 1
    assert 0 < told.index_age_s <= made.stats().index.age_s
    assert told.sequence == 3
    assert told.batch == 1
    higher = made.query(vectors[0], k=10, explain=True, target_recall=0.99).explain
    assert (higher.target_recall, higher.setting > told.setting) == (0.99, True)


def test_times_are_parts_of_the_whole(docs):
    """The steps are those promised; together they take no longer than the query."""
    made, vectors = docs
    begun = time.perf_counter()
    told = made.query(
        vectors[:5], explain=True, filter={"i": {"$gte": 2_500}}, include=["metadata"]
    ).explain
    took_us = 1e6 * (time.perf_counter() - begun)
    assert sorted(told.times_us) == STEPS
    steps = [told.times_us[step] for step in STEPS if step != "total"]
    assert min(steps) >= 0
    assert sum(steps) <= told.times_us["total"] * 1.001 <= took_us * 1.001
    assert told.times_us["filter"] > 0
    assert told.times_us["fetch"] > 0


@pytest.mark.parametrize("quantization", ["none", "sq8"])
def test_rows_of_probed_lists_are_counted(quantization, data_folder, monkeypatch):
    """A walk through lists has compared the rows of the lists that are nearest, by numpy; nobody counts them unless asked."""
    vectors = clustered(np.random.default_rng(12), N, D, 40).astype(np.float32)
    with vecdb.open(data_folder, audit_share=0.0, auto_build=False) as db:
        made = db.create_collection(
            "docs", dimension=D, metric="l2", index="ivf", quantization=quantization
        )
        made.insert([f"r{i}" for i in range(N)], vectors, metadata=[{"i": i} for i in range(N)])
        made.build_index()
        made.insert(["late"], vectors[:1] + 1)
        lists = made._core.view.main.index
        centres = lists.quantizer.reconstruct_n(0, lists.nlist)
        held = np.array([lists.invlists.list_size(i) for i in range(lists.nlist)])
        assert held.sum() == N
        for asked in ({}, {"filter": {"i": {"$gte": N // 4}}}):
            told = made.query(vectors[:3], k=10, explain=True, target_recall=0.8, **asked).explain
            assert told.plan == ("overfetch" if asked else "lists")
            away = ((vectors[:3, None] - centres[None]) ** 2).sum(axis=2)
            nearest = np.argsort(away, axis=1)[:, : told.setting]
            read = held[nearest].sum() / 3
            in_tail = 0 if asked else 1
            again = told.rows_compared / 3 - in_tail - read  # ranked again by stored vectors
            assert abs(again) < 1 if quantization == "none" else 9 <= again < N / 4
            assert nearest.shape[1] < lists.nlist

        def counted(*_):
            raise AssertionError("counted")

        monkeypatch.setattr(cells, "rows_probed", counted)
        made.query(vectors[0], k=10)
        made.query(vectors[0], k=10, filter={"i": {"$gte": N // 4}})


def test_exact_answers_are_explained(docs):
    """An exact query compares every allowed row; a rare filter makes the planner choose that."""
    made, vectors = docs
    told = made.query(vectors[0], explain=True, exact=True).explain
    assert (told.plan, told.setting_name, told.setting) == ("exact", "", 0)
    assert (told.target_recall, told.expected_recall) == (1.0, 1.0)
    assert told.rows_compared == told.allowed_rows == told.rows == N
    rare = made.query(vectors[0], explain=True, filter={"i": {"$lt": 5}}).explain
    assert (rare.plan, rare.allowed_rows, rare.rows_compared) == ("exact", 4, 4)
    within = made.query(vectors[0], explain=True, max_distance=0.1).explain
    assert (within.plan, within.target_recall) == ("exact", 1.0)


def test_every_way_to_query_is_explained(docs):
    """Groups, diversity, examples, ids and vector fields have an explanation of their own field."""
    made, vectors = docs
    for asked in (
        {"ids": ["r7"], "group_by": "tenth", "k": 2},
        {"vectors": vectors[:2], "mmr_lambda": 0.5},
        {"positive": ["r7"], "negative": ["r8"]},
    ):
        told = made.query(explain=True, **asked).explain
        assert told.kind == "hnsw"
        assert told.times_us["search"] > 0
    told = made.query(vectors[:1, :8], vector_name="small", explain=True).explain
    assert (told.kind, told.plan, told.indexed_rows, told.index_sequence) == (
        "exact",
        "exact",
        0,
        0,
    )
    assert (told.rows, told.allowed_rows) == (N, N // 2)


def test_a_batch_counts_all_of_its_queries(docs):
    """Candidates and comparisons are those of the call; large batches go by slices."""
    made, vectors = docs
    one = made.query(vectors[:1], explain=True, exact=True).explain
    many = made.query(vectors[:300], explain=True, exact=True).explain
    assert many.rows_compared == 300 * one.rows_compared
    assert 1 < many.batch <= 256


def test_no_explanation_unless_asked(docs):
    """Without explain there is none, and the answer is the same."""
    made, vectors = docs
    plain, told = made.query(vectors[:3]), made.query(vectors[:3], explain=True)
    assert plain.explain is None
    assert plain.ids == told.ids


def test_queries_that_were_searched_together_say_so(docs):
    """Behind a busy lane explained queries are searched in one call, and know of it."""
    made, vectors = docs
    core = made._core
    view = core.view
    gate, told = threading.Event(), []
    places = LANE._places(view, vectors[:1], False)

    class Held:
        """A view whose search takes until the gate opens."""

        is_simple, tail_rows, asks_devices_from = True, 0, 1_000

        def search(self, *args, **options):
            assert gate.wait(20)
            return view.search(*args, **options)

    blockers = [
        threading.Thread(target=LANE.search, args=(Held(), vectors[:1], 1)) for _ in range(places)
    ]
    askers = [
        threading.Thread(target=lambda: told.append(made.query(vectors[9], explain=True).explain))
        for _ in range(6)
    ]
    for thread in blockers:
        thread.start()
    while len(LANE._running) < places:
        time.sleep(0.01)
    for thread in askers:
        thread.start()
    while len(LANE._waiting) < 6:
        time.sleep(0.01)
    gate.set()
    for thread in blockers + askers:
        thread.join(20)
    assert [one.batch for one in told] == [6] * 6
    assert all(one.times_us["wait"] > 0 for one in told)


def test_stats_tell_of_every_field(docs):
    """The curve, the code, the age and the audit of each field's index; nothing where search is exact."""
    made, _ = docs
    stats = made.stats()
    index = stats.index
    assert (index.kind, index.quantization, index.target_recall) == ("hnsw", "none", 0.9)
    assert [p.setting for p in index.curve] == sorted(p.setting for p in index.curve)
    assert all(0 <= p.recall_at_10 <= 1 and 0 <= p.recall_at_100 <= 1 for p in index.curve)
    assert all(p.cost_us > 0 for p in index.curve)
    known = [p.recall_at_10 for p in index.curve]
    assert index.target_recall <= index.measured_recall <= max(known)
    assert index.audit.queries == 0
    assert list(stats.vectors) == ["small"]
    small = stats.vectors["small"]
    assert (small.kind, small.curve, small.built_at_sequence, small.age_s) == ("exact", (), 0, 0.0)
    assert small.tail_rows - small.dead_rows == N // 2
    assert stats.purged_rows == 0


def test_compact_and_cancel_build(data_folder):
    """compact gives back the space of dead records; cancel_build says whether there was a build."""
    with vecdb.open(data_folder, history_s=0.0, auto_build=False) as db:
        docs = db.create_collection("docs", dimension=64, index="hnsw")
        vectors = np.random.default_rng(3).standard_normal((6_000, 64))
        docs.insert([f"r{i}" for i in range(6_000)], vectors)
        docs.delete([f"r{i}" for i in range(3_000)])
        done = docs.compact()
        assert done.purged_rows + docs.stats().purged_rows >= 3_000
        assert docs.stats().purged_rows == 3_000
        assert done.bytes_after < done.bytes_before
        assert docs.cancel_build() is False
        docs.build_index(wait=False)
        assert docs.cancel_build() in (True, False)
        docs.build_index()
        found = docs.query(vectors[4_000], k=3)
        assert found.ids[0][0] == "r4000"
        assert docs.check().ok


def test_an_index_that_came_since_is_not_told_of(data_folder, monkeypatch):
    """An index that is built between answer and explanation has no part in either."""
    vectors = np.random.default_rng(3).standard_normal((2_000, 8)).astype(np.float32)
    explained = searching.explained
    with vecdb.open(data_folder, auto_build=False) as db:
        made = db.create_collection("docs", dimension=8, index="hnsw")
        made.insert([f"r{i}" for i in range(2_000)], vectors)

        def late(*given, **options):
            made.build_index()
            return explained(*given, **options)

        monkeypatch.setattr(searching, "explained", late)
        told = made.query(vectors[0], explain=True).explain
        assert made.stats().index.built_at_sequence == 1
    assert (told.kind, told.indexed_rows, told.tail_rows) == ("exact", 0, 2_000)
    assert (told.index_sequence, told.index_age_s, told.rows_since_index) == (0, 0.0, 0)
