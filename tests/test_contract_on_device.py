"""What a device answers is what the definitions say: random collections that lie there, against plain numpy.

A collection is searched by the CPU until it is placed, so these tests wait for that before they ask.
"""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from conftest import open_backend, wait_until
from hypothesis import example, given, settings
from plain_search import expect, plain_distances
from shared_device import FEW_ROWS, SETTINGS

import vecdb
from vecdb.index import tiled
from vecdb.index.tiled import Tiled

PARTS = 20
"""Values of the field `part`, one after the other."""
TRIES = 5
_numbers = itertools.count()


@pytest.fixture(scope="module", params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)])
def on_device(request, tmp_path_factory):
    """A database whose collections all lie on one device."""
    folder = tmp_path_factory.mktemp("on-device") / "data"
    with open_backend(request.param, folder, **SETTINGS) as opened:
        yield opened.db


def random_rows(rng, n, dimension, storage):
    if storage in ("int8", "uint8"):
        bounds = np.iinfo(storage)
        rows = rng.integers(bounds.min, bounds.max, (n, dimension), storage, endpoint=True)
        rows[~rows.any(axis=1)] = 1  # no cosine is defined for zeros
        return rows
    return (rng.standard_normal((n, dimension)) + 2 * rng.integers(0, 3, (n, 1))).astype(storage)


class Model:
    """A collection of random rows beside what it should hold: `r` and the number are ids."""

    def __init__(self, db, rng, dimension, metric, storage):
        self.rng, self.metric, self.storage = rng, metric, storage
        self.dimension = dimension
        self.name = f"c{next(_numbers)}"
        self.docs = db.create_collection(
            self.name, dimension=dimension, metric=metric, storage=storage
        )
        self.vectors = np.empty((0, dimension), storage)
        self.live = np.empty(0, np.bool_)
        self.written = 0
        """Rows that were ever written, replaced and deleted ones too."""

    def insert(self, n):
        start = len(self.vectors)
        rows = random_rows(self.rng, n, self.dimension, self.storage)
        self.vectors = np.concatenate([self.vectors, rows])
        self.live = np.concatenate([self.live, np.ones(n, np.bool_)])
        self._write(np.arange(start, start + n))

    def replace(self, n):
        """New vectors for some that live, and a second life for some that do not."""
        chosen = self.rng.choice(len(self.live), min(n, len(self.live)), replace=False)
        self.vectors[chosen] = random_rows(self.rng, len(chosen), self.dimension, self.storage)
        self.live[chosen] = True
        self._write(chosen)

    def _write(self, chosen):
        if not len(chosen):
            return
        self.docs.upsert(
            [f"r{i}" for i in chosen],
            self.vectors[chosen],
            metadata=[{"part": int(i) % PARTS, "even": bool(i % 2 == 0)} for i in chosen],
        )
        self.written += len(chosen)

    def delete(self, share):
        """This share of all that were ever there, some of which may be dead already."""
        count = int(share * len(self.live))
        if not count:
            return
        chosen = self.rng.choice(len(self.live), count, replace=False)
        self.docs.delete([f"r{i}" for i in chosen])
        self.live[chosen] = False

    def placed(self):
        wait_until(lambda: self.docs.stats().index.device == "gpu:0", "it lies on the device", 20)

    def ask(self, count, k, part, **options):
        """A query, compared; `part` is a bound of the field, None for no filter."""
        queries = random_rows(self.rng, count, self.dimension, self.storage).astype(np.float32)
        allowed, condition = self.live.copy(), None
        if part is not None:
            condition = {"part": {"$lt": part}, "even": True}
            rows = np.arange(len(allowed))
            allowed &= (rows % PARTS < part) & (rows % 2 == 0)
        near = plain_distances(queries, self.vectors, self.metric)
        near[:, ~allowed] = np.inf
        many = k <= 20 and allowed.sum() > max(FEW_ROWS, self.written / 4)
        for _ in range(TRIES):
            found = self.docs.query(queries, k=k, filter=condition, explain=True, **options)
            expect(found, near, k)
            told = found.explain
            if told.device == "gpu:0" or not many:
                break
            # Just when rows are placed anew the CPU answers, and says so.
            assert told.device_note.endswith("answered by the CPU")
            self.placed()
        assert not many or (told.device, told.device_note) == ("gpu:0", "")
        return told


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    metric=st.sampled_from(["l2", "cosine", "ip"]),
    storage=st.sampled_from(["float32", "float16", "int8", "uint8"]),
    dimension=st.integers(2, 48),
    rows=st.integers(1, 400),
    k=st.sampled_from([1, 2, 10, 20, 100, 500]),
    part=st.sampled_from([None, 1, 2, 5, 10, 19, 20]),
    dead=st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9]),
    fresh=st.integers(0, 60),
)
@example(1, "l2", "float32", 8, 300, 10, 10, 0.1, 20)
@example(2, "cosine", "float16", 8, 300, 10, 10, 0.1, 20)
@example(3, "ip", "int8", 8, 300, 10, None, 0.5, 0)
def test_answers_are_those_of_the_definition(
    on_device, seed, metric, storage, dimension, rows, k, part, dead, fresh
):
    """Whatever lies on the device, is written, replaced or deleted afterwards, and whatever the filter: the k
    nearest live and allowed rows, and never a dead or filtered one."""
    model = Model(on_device, np.random.default_rng(seed), dimension, metric, storage)
    try:
        model.insert(rows)
        model.placed()
        model.ask(3, k, None)
        model.ask(1, k, part)
        model.delete(dead)
        model.ask(3, k, part)
        if fresh:
            model.insert(fresh)
            model.replace(fresh // 2)
        model.ask(2, k, None)
        model.placed()
        model.ask(2, k, part)
    finally:
        on_device.drop_collection(model.name)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    metric=st.sampled_from(["l2", "cosine", "ip"]),
    storage=st.sampled_from(["float32", "float16", "int8", "uint8"]),
    dimension=st.integers(2, 48),
    rows=st.integers(1, 400),
    k=st.sampled_from([1, 10, 100, 500]),
    part=st.sampled_from([None, 2, 10, 20]),
    dead=st.sampled_from([0.0, 0.1, 0.9]),
)
def test_answers_by_tiles_are_those_of_the_definition(
    on_device, seed, metric, storage, dimension, rows, k, part, dead
):
    """The same of rows that a device compares without holding them: only live and allowed rows are sent."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled, "LEAST_QUERIES", 1)
        patch.setattr(tiled, "LEAST_PAIRS", 1)
        patch.setattr(Tiled, "_pays", lambda *_: True)
        patch.setattr("vecdb.device.Device.tile_bytes", 4_096)
        patch.setattr("vecdb.index.on_device.OnDevice.takes", lambda *_: False)
        model = Model(on_device, np.random.default_rng(seed), dimension, metric, storage)
        try:
            model.insert(rows)
            model.delete(dead)
            model.replace(rows // 10)
            told = model.ask(3, k, part, exact=True)
            if told.allowed_rows > FEW_ROWS:
                assert (told.plan, told.device) == ("tiled", "gpu:0")
        finally:
            on_device.drop_collection(model.name)


@pytest.mark.parametrize("index", ["auto", "exact", "ivf", "hnsw"])
def test_the_first_query_of_a_contract_test_is_the_devices(on_device, index):
    """What a contract test writes lies on the device when it asks: it is the device that keeps the contract."""
    rng = np.random.default_rng(3)
    name = f"first-{index}"
    docs = on_device.create_collection(name, dimension=8, metric="l2", index=index)
    rows = rng.standard_normal((1_200, 8)).astype(np.float32)
    docs.insert([f"r{i}" for i in range(1_200)], rows)
    if index in ("ivf", "hnsw"):
        docs.build_index()
    told = docs.query(rows[:2], k=5, explain=True).explain
    assert (told.device, told.device_note) == ("gpu:0", "")
    on_device.drop_collection(name)


@pytest.mark.parametrize("placed", [True, False])
def test_a_contract_that_only_the_cpu_keeps_fails(tmp_path, monkeypatch, placed):
    """A database whose searches the CPU answers, although a device could, does not pass for one on a device."""
    if not placed:
        monkeypatch.setattr("vecdb.index.Index.wants_placing", lambda index: False)

    def ask():
        with open_backend("stand-in", tmp_path / "data", **SETTINGS) as opened:
            docs = opened.db.create_collection("docs", dimension=2)
            docs.insert(["a"], [[1, 2]])
            assert docs.query(np.array([[1, 2]], np.float32), k=1).ids == [["a"]]

    if placed:
        ask()
    else:
        with pytest.raises(AssertionError, match="not placed on gpu:0 yet"):
            ask()


def test_only_the_database_that_was_given_a_device_has_it(tmp_path):
    """Beside a database on a stand-in another one has no device, says so, and is searched as without the first: what the
    tests put before a database's objects is not before those of others."""
    with (
        open_backend("stand-in", tmp_path / "there") as there,
        open_backend("embedded", tmp_path / "here", lambda options: None) as here,
    ):
        told = {}
        for one in (there, here):
            docs = one.db.create_collection("docs", dimension=2)
            docs.insert([f"r{i}" for i in range(40)], np.eye(2)[np.arange(40) % 2] + 0.01)
            explain = docs.query([[1, 0]], k=3, explain=True).explain
            told[one.name] = explain.device, len(docs.stats().devices)
        assert told == {"gpu": ("gpu:0", 1), "embedded": ("cpu", 0)}
        index = docs._core.index
        assert here.db.devices is None
        assert not {"search", "place"} & {*vars(index), *vars(index.view)}
        assert type(docs) is vecdb.Collection


def test_a_collection_that_is_emptied(on_device):
    """Nothing is found when all that lies on the device is dead, and what is written then is."""
    model = Model(on_device, np.random.default_rng(7), 8, "l2", "float32")
    model.insert(50)
    model.placed()
    model.ask(2, 5, None)
    model.delete(1.0)
    for part in (None, 10):
        found = model.docs.query(
            np.zeros((2, 8)), k=5, filter=None if part is None else {"part": {"$lt": part}}
        )
        assert found.ids == [[], []]
    model.insert(5)
    model.ask(2, 5, None)
    on_device.drop_collection(model.name)
