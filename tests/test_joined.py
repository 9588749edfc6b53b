"""Graphs that a device joins answer as those of the CPU do, and are like them in all else."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from on_devices import wait_for

import vecdb
from vecdb.device import Device
from vecdb.index import joined
from vecdb.index.joined import JoinedMaker

SEED = 20_261_126
ROWS, DIMENSION = 2_500, 96
SETTINGS = {"audit_share": 0.0, "device_timeout_s": 20.0}
"""Rows are so few by default that the CPU searches them, whoever has joined them."""
STORED = [
    ("l2", "float32", "auto"),
    ("cosine", "float32", "auto"),
    ("ip", "float32", "auto"),
    ("cosine", "float16", "auto"),
    ("l2", "float32", "sq8"),
    ("cosine", "float32", "sq4"),
    ("l2", "int8", "auto"),
]


@pytest.fixture(autouse=True)
def _few_rows_are_many(monkeypatch):
    monkeypatch.setattr(joined, "LEAST_ROWS", 1_500)


@pytest.fixture
def graphs(monkeypatch):
    """How many graphs the device has joined."""
    count = []
    asked = Device.links

    def links(self, graph, degree, check):
        found = asked(self, graph, degree, check)
        count.append(len(found))
        return found

    monkeypatch.setattr(Device, "links", links)
    return count


def rows_of(storage, n=ROWS, seed=SEED):
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, DIMENSION)) @ np.diag(0.97 ** np.arange(DIMENSION))
    if storage == "int8":
        return np.clip(np.rint(20 * vectors), -128, 127).astype(np.int8)
    return vectors.astype(storage)


def made(database, metric="l2", storage="float32", quantization="auto", **settings):
    print("seed", SEED)
    collection = database.create_collection(
        "docs", dimension=DIMENSION, metric=metric, storage=storage,
        quantization=quantization, **{"index": "hnsw", **settings},
    )  # fmt: skip
    vectors = rows_of(storage)
    add(collection, vectors, 0)
    collection.build_index(wait=True)
    return collection, vectors


def add(collection, vectors, first):
    names = range(first, first + len(vectors))
    collection.insert([f"r{i}" for i in names], vectors, metadata=[{"part": i % 10} for i in names])


def truth(queries, vectors, metric, allowed, k=10):
    x, y = queries.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        far = (x**2).sum(1)[:, None] - 2 * x @ y.T + (y**2).sum(1)[None]
    else:
        if metric == "cosine":
            x = x / np.linalg.norm(x, axis=1, keepdims=True)
            y = y / np.linalg.norm(y, axis=1, keepdims=True)
        far = -x @ y.T
    far[:, ~allowed] = np.inf
    return np.argsort(far, axis=1)[:, :k]


def check(collection, vectors, metric, live=None, part=None):
    """Recall@10 of 400 queries beside the rows, and that nothing comes back which must not. Of 60 the recall varies by
    more than lies between target and bound."""
    allowed = np.ones(len(vectors), np.bool_) if live is None else live.copy()
    if part is not None:
        allowed &= np.arange(len(vectors)) % 10 < part
    queries = rows_of("float32", 400, SEED + 1) * (20 if vectors.dtype == np.int8 else 1)
    found = collection.query(
        queries, k=10, filter=None if part is None else {"part": {"$lt": part}}
    )
    rows = np.array([[int(one[1:]) for one in ids] for ids in found.ids])
    assert allowed[rows].all(), "a row that is dead or not allowed came back"
    near = truth(queries, vectors, metric, allowed)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, near, strict=True)])
    assert recall > 0.94
    return collection.check()


@pytest.mark.long
@pytest.mark.parametrize(("metric", "storage", "quantization"), STORED)
def test_a_graph_that_a_device_joined_finds_what_is_near(
    tmp_path, devices, graphs, metric, storage, quantization
):
    """Recall is the collection's, with filters, deletes, fresh rows, and after opening again."""
    devices(graphs=True)
    with vecdb.open(tmp_path / "db", **SETTINGS) as database:
        collection, vectors = made(database, metric, storage, quantization)
        # All but the rows held out to calibrate, which the CPU adds.
        assert len(graphs) == 1
        assert 0.85 * ROWS < graphs[0] < ROWS
        figures = collection.stats().index
        assert (figures.kind, figures.indexed_rows) == ("hnsw", ROWS)
        check(collection, vectors, metric)
        for part in (9, 5, 1):
            check(collection, vectors, metric, part=part)
        live = np.ones(ROWS, np.bool_)
        live[::7] = False
        collection.delete([f"r{i}" for i in range(0, ROWS, 7)])
        check(collection, vectors, metric, live)
        fresh = rows_of(storage, 300, SEED + 2)
        add(collection, fresh, ROWS)
        vectors, live = np.concatenate([vectors, fresh]), np.concatenate([live, np.ones(300, bool)])
        check(collection, vectors, metric, live, part=5)
    with vecdb.open(tmp_path / "db", **SETTINGS) as database:
        collection = database.get_collection("docs")
        assert collection.stats().index.kind == "hnsw"
        check(collection, vectors, metric, live)
        assert len(graphs) == 1


@pytest.fixture
def poor(monkeypatch):
    """Devices join each row to the first one only; how many of such graphs there were."""
    count = []
    asked = Device.links

    def links(self, graph, degree, check):
        rows = len(asked(self, graph, degree, check))
        count.append(rows)
        return np.zeros((rows, degree), np.int32)

    monkeypatch.setattr(Device, "links", links)
    return count


def test_a_graph_that_misses_the_target_is_built_by_the_cpu(tmp_path, devices, poor, caplog):
    """Where only a graph may serve and that of a device does not reach the target, the CPU's does, which is told once; and
    devices join no other for this index, so that the next build is not done twice."""
    devices(graphs=True)
    with caplog.at_level(logging.WARNING, "vecdb"), vecdb.open(tmp_path / "db", **SETTINGS) as one:
        collection, vectors = made(one, quantization="none")
        main = collection._core.index.view.main
        assert (main.kind, main.n) == ("hnsw", ROWS)
        assert main.setting(0.95, 10) is not None
        fresh = rows_of("float32", ROWS, SEED + 2)
        add(collection, fresh, ROWS)
        collection.build_index(wait=True)
        assert collection.stats().index.indexed_rows == 2 * ROWS
        check(collection, np.concatenate([vectors, fresh]), "l2")
    assert len(poor) == 1
    told = [one for one in caplog.records if "does not reach a recall of 0.95" in one.message]
    assert len(told) == 1


@pytest.mark.parametrize(("metric", "storage", "quantization"), STORED[:2])
@pytest.mark.parametrize("fault", ["die_at_add=1", "die_at_graph=1"])
def test_a_device_that_fails_costs_no_graph(
    tmp_path, devices, caplog, fault, metric, storage, quantization
):
    """The CPU builds it after all, and one line of the log says so."""
    devices(faults=fault, graphs=True)
    with caplog.at_level(logging.WARNING, "vecdb"), vecdb.open(tmp_path / "db", **SETTINGS) as one:
        collection, vectors = made(one, metric, storage, quantization)
        assert collection.stats().index.kind == "hnsw"
        assert sum("is built by the CPU" in record.message for record in caplog.records) == 1
        check(collection, vectors, metric)


def test_links_of_other_rows_are_not_believed(tmp_path, devices, monkeypatch, caplog):
    """What a device says is looked at: FAISS would read beyond its memory."""
    devices(graphs=True)
    asked = Device.links
    monkeypatch.setattr(Device, "links", lambda *given: asked(*given) + 10)
    with vecdb.open(tmp_path / "db", **SETTINGS) as database:
        collection, vectors = made(database)
        assert "gave no links" in caplog.text
        check(collection, vectors, "l2")


@pytest.mark.long
def test_a_graph_grows_by_the_cpu_until_much_is_new(tmp_path, devices, graphs):
    """A device joins all rows anew where a quarter of them or more is fresh."""
    devices(graphs=True)
    with vecdb.open(tmp_path / "db", auto_build=False, **SETTINGS) as database:
        collection, vectors = made(database)
        few, many = rows_of("float32", 300, SEED + 2), rows_of("float32", 1_000, SEED + 3)
        for fresh, joined_graphs in ((few, 1), (many, 2)):
            add(collection, fresh, len(vectors))
            vectors = np.concatenate([vectors, fresh])
            collection.build_index(wait=True)
            assert collection.stats().index.indexed_rows == len(vectors)
            assert len(graphs) == joined_graphs
            check(collection, vectors, "l2")
            check(collection, vectors, "l2", part=5)


def test_rows_that_are_added_cost_no_recall_at_the_same_setting():
    """A curve is kept while a graph grows by a tenth, so a joined graph must stay as good as it was."""
    print("seed", SEED)
    vectors, queries = rows_of("float32"), rows_of("float32", 400, SEED + 1)
    before = ROWS * 9 // 10
    graph = joined.empty_graph(DIMENSION, "l2")
    joined.attach(graph, joined.new_codes("float32", DIMENSION, "l2"))
    graph.init_level0 = False
    graph.add(vectors[:before])
    near = joined.faiss.knn(vectors[:before], vectors[:before], joined.DEGREE + 1)[1]
    joined.set_links(graph, near[:, 1:].astype(np.int32))
    graph.init_level0 = True
    graph.hnsw.efSearch = 24

    def recall(rows):
        found = graph.search(queries, 10)[1]
        right = truth(queries, vectors[:rows], "l2", np.ones(rows, np.bool_))
        return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, right, strict=True)])

    first = recall(before)
    graph.add(vectors[before:])
    assert recall(ROWS) > first - 0.01


@pytest.mark.parametrize("why", ["asked for the CPU", "too few rows", "too small a device"])
def test_the_cpu_builds_what_no_device_is_for(tmp_path, devices, graphs, monkeypatch, why):
    """Nothing is asked of a device that would not do."""
    devices(graphs=True, size=1 << 20 if why == "too small a device" else 1 << 30)
    if why == "too few rows":
        monkeypatch.setattr(joined, "LEAST_ROWS", ROWS + 1)
    with vecdb.open(tmp_path / "db", **SETTINGS) as database:
        asks = {"device": "cpu"} if why == "asked for the CPU" else {}
        collection, vectors = made(database, **asks)
        check(collection, vectors, "l2")
        assert graphs == []


def test_many_rows_at_once_need_no_lists_first(tmp_path, devices, graphs, monkeypatch):
    """Kind auto makes the graph at once where a device joins it."""
    devices(graphs=True)
    monkeypatch.setattr("vecdb.index.on_device.OnDevice.takes", lambda *_: False)
    monkeypatch.setattr("vecdb.index.choice._LISTS_FIRST_ROWS", 1_000)
    kinds = []
    anew = vecdb.index.build.Build.anew
    monkeypatch.setattr(
        vecdb.index.build.Build,
        "anew",
        lambda self, *given: kinds.append(self.kind) or anew(self, *given),
    )
    with vecdb.open(tmp_path / "db", exact_max_scalars=1_000, **SETTINGS) as database:
        collection, vectors = made(database, index="auto")
        check(collection, vectors, "l2")
        assert kinds[0] == "hnsw"
        assert graphs


def test_a_joined_graph_is_one_of_faiss_that_any_version_reads(tmp_path, devices, monkeypatch):
    """Its file holds an HNSW graph with upper levels, not the class that comes from a GPU."""
    devices(graphs=True)
    makers = []
    serving = JoinedMaker.serving
    monkeypatch.setattr(JoinedMaker, "serving", lambda self: makers.append(self) or serving(self))
    with vecdb.open(tmp_path / "db", **SETTINGS) as database:
        made(database)
        graph = makers[-1].graph
        assert type(graph) is joined.faiss.IndexHNSWFlat
        assert graph.hnsw.max_level >= 1
        assert graph.init_level0


@pytest.mark.long
def test_joining_that_kills_workers_is_given_up(tmp_path, devices):
    """After two workers in a row the CPU builds all graphs of the collection."""
    devices(graphs=True, faults="die_at_graph=1")
    with vecdb.open(tmp_path / "db", auto_build=False, **SETTINGS) as database:
        collection, vectors = made(database)
        for _ in range(3):
            wait_for(lambda: database.devices.stats()[0].state == "up")
            database._builder.rebuild(collection._core, 0)
            collection.build_index(wait=True)
            check(collection, vectors, "l2")
        assert database.devices.stats()[0].restarts == 2
