"""A graph that a device walks answers as the host's does, and never what it must not."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from on_devices import SEED, opened, wait_for

from vecdb.device import Device
from vecdb.index import chosen, plan
from vecdb.index.device_main import Unanswered

ROWS, DIMENSION = 4_000, 16
STORED = [
    ("l2", "float32", "none"),
    ("cosine", "float32", "none"),
    ("ip", "float32", "none"),
    ("l2", "float16", "auto"),
    ("cosine", "float16", "auto"),
    ("cosine", "float32", "sq8"),
    ("ip", "float32", "sq8"),
    ("l2", "int8", "auto"),
]


@pytest.fixture(autouse=True)
def _devices_are_asked(monkeypatch):
    """Sets are small here: a call of a device must not look dear for it."""
    monkeypatch.setattr(chosen, "FEW_ROWS", 40)
    monkeypatch.setattr(plan, "DEVICE_CALL", 0.0)


def rows_of(storage, n=ROWS, seed=SEED):
    vectors = np.random.default_rng(seed).standard_normal((n, DIMENSION))
    if storage == "int8":
        return np.clip(np.rint(40 * vectors), -128, 127).astype(np.int8)
    return vectors.astype(storage)


def queries_of(vectors, count=30):
    scale = 40 if vectors.dtype == np.int8 else 1
    return scale * rows_of("float32", count, SEED + 9)


def add(collection, vectors, first=0):
    numbers = range(first, first + len(vectors))
    metadata = [{"part": i % 100} for i in numbers]
    collection.insert([f"r{i}" for i in numbers], vectors, metadata=metadata)


def graphed(database, metric="l2", storage="float32", quantization="none", **settings):
    """A collection with a graph that lies on gpu:0 too, and its vectors."""
    print("seed", SEED)
    made = database.create_collection(
        "docs", dimension=DIMENSION, metric=metric, storage=storage, index="hnsw",
        quantization=quantization, **settings,
    )  # fmt: skip
    vectors = rows_of(storage)
    add(made, vectors)
    made.build_index(wait=True)
    wait_for(lambda: made.stats().index.device == "gpu:0")
    return made, vectors


def keys_of(queries, vectors, metric):
    x, y = queries.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        return (x**2).sum(1)[:, None] - 2 * x @ y.T + (y**2).sum(1)[None]
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        y = y / np.linalg.norm(y, axis=1, keepdims=True)
    return 1 - x @ y.T


def check(made, vectors, metric, live=None, part=None, k=10, on="gpu:0"):
    """Recall@k of 30 queries is the target's, distances are true, and nothing comes back which must not."""
    queries = queries_of(vectors)
    filter_ = None if part is None else {"part": {"$lt": part}}
    found = made.query(queries, k=k, filter=filter_, explain=True)
    allowed = np.ones(len(vectors), np.bool_) if live is None else live.copy()
    if part is not None:
        allowed &= np.arange(len(vectors)) % 100 < part
    true = keys_of(queries, vectors, metric)
    true[:, ~allowed] = np.inf
    want = min(k, int(allowed.sum()))
    hits = []
    for i, ids in enumerate(found.ids):
        rows = np.array([int(one[1:]) for one in ids])
        assert len(set(ids)) == len(ids) == want
        assert allowed[rows].all(), "a row that is dead or not allowed came back"
        scale = max(1.0, float(np.abs(true[i, rows]).max()))
        np.testing.assert_allclose(found.distances[i, :want], true[i, rows], atol=1e-4 * scale)
        nearest = np.argsort(true[i], kind="stable")[:want]
        hits.append(len(set(nearest.tolist()) & set(rows.tolist())) / want)
    assert np.mean(hits) >= 0.93
    if on is not None:
        assert found.explain.device == on, (found.explain.plan, found.explain.device_note)
    return found.explain


@pytest.mark.long
@pytest.mark.parametrize(("metric", "storage", "quantization"), STORED[:5])
def test_a_device_walks_as_the_host_does(tmp_path, devices, metric, storage, quantization):
    """Filters, deletes, updates, fresh rows and any k that a walk gives: the nearest, and no others."""
    devices(graphs=True)
    with opened(tmp_path) as database:
        made, vectors = graphed(database, metric, storage, quantization)
        assert made.stats().index.device_bytes > ROWS * 2 * DIMENSION
        for k in (1, 10, 100, 300):
            explain = check(made, vectors, metric, k=k)
            assert explain.plan == "graph"
            assert explain.setting_name == "itopk"
        assert check(made, vectors, metric, part=99).plan == "overfetch"
        for part in (60, 20):
            check(made, vectors, metric, part=part)
        check(made, vectors, metric, part=1, on="cpu")
        gone = np.random.default_rng(SEED).choice(ROWS, 400, replace=False)
        live = np.ones(ROWS, np.bool_)
        live[gone] = False
        made.delete([f"r{i}" for i in gone])
        check(made, vectors, metric, live)
        check(made, vectors, metric, live, part=60, k=20)
        fresh = rows_of(storage, 300, SEED + 2)
        add(made, fresh, ROWS)
        vectors, live = np.concatenate([vectors, fresh]), np.concatenate([live, np.ones(300, bool)])
        for part in (None, 60):
            check(made, vectors, metric, live, part)
        changed = int(np.flatnonzero(live)[3])
        made.update([f"r{changed}"], vectors=vectors[-1:])
        vectors[changed] = vectors[-1]
        check(made, vectors, metric, live, k=40)
        assert made.check().ok


@pytest.mark.long
@pytest.mark.parametrize("quantization", ["none", "sq8"])
def test_a_walk_on_a_device_gives_back_no_row_that_a_filter_excludes(
    tmp_path, devices, quantization
):
    """A card knows no filters: what they exclude, and what died, is sifted out, however much that is. (The long tests do
    this for all kinds of vectors.)"""
    devices(graphs=True)
    with opened(tmp_path) as database:
        made, vectors = graphed(database, "cosine", "float32", quantization)
        live = np.ones(ROWS, np.bool_)
        for part in (99, 60, 20):
            check(made, vectors, "cosine", live, part)
        gone = np.random.default_rng(SEED).choice(ROWS, 400, replace=False)
        live[gone] = False
        made.delete([f"r{i}" for i in gone])
        check(made, vectors, "cosine", live)
        check(made, vectors, "cosine", live, 60)


def test_more_than_a_walk_gives_is_not_asked_of_it(tmp_path, devices):
    """k and itopk beyond 1,024 are refused before the card is asked; the vectors beneath the graph give them."""
    devices(graphs=True)
    with opened(tmp_path) as database:
        made, vectors = graphed(database)
        copy = made._core.field(None).index.view.device_main
        queries = queries_of(vectors)
        for k, itopk in ((1_025, 1_025), (10, 1_025)):
            with pytest.raises(Unanswered, match="more than gpu:0"):
                copy.search(queries, k, itopk)
        assert (copy.search(queries, 1_024, 32)[1] >= 0).all()
        assert check(made, vectors, "l2", k=1_500).plan == "exact"


@pytest.mark.parametrize("quantization", ["none", "sq8"])
def test_a_graph_that_falls_short_of_the_target_is_not_asked(tmp_path, devices, quantization):
    """What only the graph of the host reaches it answers, with filters too, and the explanation says why."""
    devices(graphs=True)
    with opened(tmp_path) as database:
        made, vectors = graphed(database, "l2", "float32", quantization)
        index = made._core.field(None).index
        curve = index.view.device_main.curve
        worse = tuple(replace(point, bound_10=0.9, bound_100=0.9) for point in curve.points)
        worse = replace(curve, points=worse)
        index.on_device.measure_again(index.view.main, lambda _: worse)
        with index._lock:
            index._view = index._changed(index.view, device_main=index.on_device.copy)
        for part in (None, 60):
            explain = check(made, vectors, "l2", part=part, on="cpu")
            assert "does not reach a recall of 0.95" in explain.device_note
            assert explain.plan in ("graph", "overfetch")
        found = made.query(queries_of(vectors), k=10, target_recall=0.85, explain=True)
        assert found.explain.device == "gpu:0"


def test_exact_answers_are_not_of_a_walk(tmp_path, devices):
    """All vectors are compared, where they lie."""
    devices(graphs=True)
    with opened(tmp_path) as database:
        made, vectors = graphed(database)
        found = made.query(queries_of(vectors), k=10, exact=True, explain=True)
        assert (found.explain.device, found.explain.device_note) == ("gpu:0", "")
        assert found.explain.plan == "exact"


def test_the_curve_of_the_device_is_measured_on_rows_that_its_graph_did_not_know(
    tmp_path, devices, monkeypatch
):
    """Rows that are in a graph find themselves and would flatter it."""
    devices(graphs=True)
    sizes = []
    place = Device.place_graph

    def spied(self, source, degree, **more):
        made = place(self, source, degree, **more)
        sizes.append(made.bytes)
        return made

    monkeypatch.setattr(Device, "place_graph", spied)
    with opened(tmp_path) as database:
        made, _ = graphed(database)
        curve = made._core.field(None).index.view.device_main.curve
        assert curve.queries == 400
        assert curve.rows == ROWS - 400
        assert curve.points[0].setting == 32
        assert curve.points[-1].recall_10 > 0.95
        assert len(sizes) == 2
        # Only what serves is left.
        assert database.devices.stats()[0].used_bytes == sizes[1]


@pytest.mark.long
def test_queries_of_users_have_both_curves_measured_again(tmp_path, devices):
    """Recalibration gives the graph on the device a curve on the same queries, and copies nothing."""
    devices(graphs=True)
    with opened(tmp_path) as database:
        made, vectors = graphed(database, "cosine", "float32", "sq8")
        index = made._core.field(None).index
        before = index.view.device_main
        queries = rows_of("float32", 200, SEED + 7)
        database._builder.recalibrate(made._core, 0, queries)
        wait_for(lambda: index.view.main.curve.queries == 200)
        after = index.view.device_main
        assert after.key == before.key
        assert after.curve.queries == 200
        assert (after.curve.rows, after.curve.points[0].setting) == (ROWS, 32)
        check(made, vectors, "cosine")


@pytest.mark.long
def test_a_killed_worker_costs_no_answer(tmp_path, devices):
    """Queries go on, answered by the CPU and marked so, and later by the device again."""
    devices(graphs=True)
    with opened(tmp_path) as database:
        made, vectors = graphed(database)
        (device,) = database.devices.placements.devices
        os.kill(device._worker.pid, signal.SIGKILL)
        seen = []

        def by_the_cpu():
            seen.append(check(made, vectors, "l2", on=None))
            return seen[-1].device == "cpu"

        wait_for(by_the_cpu)
        assert "answered by the CPU" in seen[-1].device_note
        wait_for(lambda: check(made, vectors, "l2", on=None).device == "gpu:0")
        assert made.stats().devices[0].restarts >= 1


def test_a_graph_that_kills_workers_is_given_up(tmp_path, devices, monkeypatch):
    """Two workers die of it and no more, since others lie on that device too; the CPU answers."""
    monkeypatch.setattr("vecdb.builder._RETRY_S", 0.0)
    devices(graphs=True, faults="die_at_graph=1")
    with opened(tmp_path) as database:
        made = database.create_collection(
            "docs", dimension=DIMENSION, metric="l2", index="hnsw", device="gpu"
        )
        vectors = rows_of("float32")
        add(made, vectors)
        made.build_index(wait=True)

        def tried():
            check(made, vectors, "l2", on="cpu")
            database._builder.consider(made._core)
            (device,) = database.devices.stats()
            return device.restarts >= 2 and device.state == "up"

        wait_for(tried)
        assert not made._core.field(None).index.wants_placing()
        check(made, vectors, "l2", on="cpu")
        assert database.devices.stats()[0].restarts == 2
        assert "killed its worker again and again" in made.stats().index.device_note


def test_a_graph_that_has_grown_is_placed_anew(tmp_path, devices):
    """What lies there of an older main index is never asked with the positions of a newer one."""
    devices(graphs=True)
    with opened(tmp_path, index_tail_share=0.01) as database:
        made, vectors = graphed(database)
        index = made._core.field(None).index
        before = index.view.device_main
        fresh = rows_of("float32", 900, SEED + 5)
        add(made, fresh, ROWS)
        made.build_index(wait=True)
        assert made.stats().index.indexed_rows == ROWS + 900
        wait_for(lambda: made.stats().index.device == "gpu:0")
        after = index.view.device_main
        assert after.key != before.key
        assert after.host is index.view.main
        assert database.devices.stats()[0].placements == 1
        check(made, np.concatenate([vectors, fresh]), "l2")


def test_a_graph_is_placed_again_when_opened(tmp_path, devices):
    """Nothing of a device is on the disk: after opening the graph is made there anew."""
    devices(graphs=True)
    with opened(tmp_path) as database:
        _, vectors = graphed(database, "cosine", "float32", "sq8")
    with opened(tmp_path) as database:
        made = database.get_collection("docs")
        wait_for(lambda: made.stats().index.device == "gpu:0")
        check(made, vectors, "cosine")


@pytest.mark.parametrize("what", ["no graphs", "no room"])
def test_the_cpu_walks_where_no_device_can(tmp_path, devices, what):
    """Nothing fails, and a collection that asked for the GPU says why it is not used."""
    devices(graphs=what != "no graphs", size=400_000 if what == "no room" else 1 << 30)
    with opened(tmp_path) as database:
        made = database.create_collection(
            "docs", dimension=DIMENSION, index="hnsw", quantization="none", device="gpu"
        )
        vectors = rows_of("float32")
        add(made, vectors)
        made.build_index(wait=True)
        check(made, vectors, "cosine", on="cpu")
        assert "cannot search a graph" in made.stats().index.device_note
