"""Nothing falls back to the CPU in silence: where a device was asked for, `explain`, `stats` and the log say why it
does not answer; where `auto` found it, nothing is said of what is the CPU's anyway."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from on_devices import DIMENSION, QUERIES, ROWS, check, filled, opened, placed, using, wait_for

from vecdb.device import Device
from vecdb.errors import DeviceFull
from vecdb.index import chosen, plan
from vecdb.index.on_device import OnDevice

LIVE = np.ones(ROWS, np.bool_)
BY_CPU = "; answered by the CPU"


@pytest.fixture
def devices(monkeypatch):
    return using("stand-in", monkeypatch)


@pytest.fixture
def told(caplog):
    """What the log of the engine has from warnings on."""
    logging.getLogger("vecdb").propagate = True
    caplog.set_level(logging.WARNING, "vecdb")
    return lambda: [record.getMessage() for record in caplog.records]


def asked(made, vectors, why, **how):
    """A query that the CPU answers rightly, and says `why`."""
    found = check(made, QUERIES, LIVE, vectors, "l2", on="cpu", **how)
    assert found.device_note == why + BY_CPU


@pytest.mark.parametrize("database_asks", [True, False])
def test_rows_that_do_not_fit_are_said_not_to(tmp_path, devices, told, database_asks):
    """Whoever asked, the database or the collection; also after reopening. The log says it once, whatever is written."""
    devices(1, size=60_000)
    of_database = {"device": "gpu"} if database_asks else {}
    of_collection = {} if database_asks else {"device": "gpu"}
    why = f"{2 * ROWS * DIMENSION:,} bytes do not fit gpu:0"
    with opened(tmp_path, **of_database) as database:
        made, vectors = filled(database, index="exact", **of_collection)
        wait_for(told)
        for _ in range(3):
            made.upsert(["r0"], vectors[:1], metadata=[{"part": 0}])
        asked(made, vectors, why)
        stats = made.stats().index
        assert (stats.device, stats.device_note) == ("cpu", why)
    assert told() == [f"collection docs: {why}{BY_CPU}"]
    with opened(tmp_path, **of_database) as database:
        made = database.get_collection("docs")
        wait_for(lambda: len(told()) == 2)
        asked(made, vectors, why)
        assert made.stats().index.device_note == why


@pytest.mark.parametrize("index", ["exact", "hnsw"])
def test_a_small_collection_says_that_it_is_small(tmp_path, devices, told, index):
    """At or below `exact_max_scalars` the CPU is faster; an empty collection is small as well."""
    devices()
    why = "rows x dimension is at most exact_max_scalars"
    with opened(tmp_path, exact_max_scalars=ROWS * DIMENSION) as database:
        empty = database.create_collection("empty", dimension=DIMENSION, device="gpu")
        assert empty.query(QUERIES, k=1, explain=True).explain.device_note == why + BY_CPU
        made, _ = filled(database, device="gpu:0", index=index)
        made.build_index(wait=True)
        found = made.query(QUERIES, k=3, explain=True).explain
        assert (found.device, found.device_note) == ("cpu", why + BY_CPU)
        stats = made.stats().index
        assert (stats.device, stats.device_note) == ("cpu", why)
    assert told() == []


def test_what_is_not_placed_yet_says_so(tmp_path, devices, monkeypatch):
    """Before the first placing, and where what lay there had to go."""
    devices()
    wants = OnDevice.wants
    monkeypatch.setattr(OnDevice, "wants", lambda *_: False)
    with opened(tmp_path, device="gpu") as database:
        made, vectors = filled(database)
        asked(made, vectors, "not placed on gpu:0 yet")
        assert made.stats().index.device_note == "not placed on gpu:0 yet"
        monkeypatch.setattr(OnDevice, "wants", wants)
        database._builder.consider(made._core)
        placed(made)
        check(made, QUERIES, LIVE, vectors, "l2")
        monkeypatch.setattr(OnDevice, "wants", lambda *_: False)
        database.devices.placements.forget(made._core.index.view.served.key)
        assert made.stats().index.device_note == "not placed on gpu:0 again yet"
        asked(made, vectors, "what lay on the device had to go, or its worker died")


@pytest.mark.parametrize(("settings", "what"), [
    ({"index": "hnsw", "quantization": "none"}, "a graph without cuVS"),
    ({"index": "hnsw", "quantization": "sq8"}, "a graph without cuVS"),
])  # fmt: skip
def test_an_index_that_no_device_can_search_is_said_and_logged_once(
    tmp_path, devices, monkeypatch, told, settings, what
):
    """Whoever asked, and however often rows come."""
    monkeypatch.setattr("vecdb.index.index.LEAST_FRESH_ROWS", 2_000)
    devices(graphs=False)
    why = f"gpu:0 cannot search {what}"
    with opened(tmp_path, device="gpu") as database:
        made, vectors = filled(database, **settings)
        made.build_index(wait=True)
        for i in range(3):
            made.insert([f"n{i}"], vectors[:1])
        stats = made.stats().index
        assert (stats.device, stats.device_note) == ("cpu", why)
        found = made.query(QUERIES, k=3, explain=True).explain
        assert (found.device, found.device_note) == ("cpu", why + BY_CPU)
    assert [line for line in told() if "cannot" in line] == [f"collection docs: {why}{BY_CPU}"]


def test_an_index_that_is_not_built_yet_is_said_to_lack(tmp_path, devices):
    """Lists that are asked for lie nowhere before they are made."""
    devices()
    with opened(tmp_path, device="gpu", auto_build=False) as database:
        made, vectors = filled(database, index="ivf")
        asked(made, vectors, "there is no index yet")
        assert made.stats().index.device_note == "there is no index yet"


def test_bits_are_said_to_be_the_cpus(tmp_path, devices):
    """No device compares them."""
    devices()
    with opened(tmp_path, device="gpu", exact_max_scalars=0) as database:
        made = database.create_collection("bits", dimension=16, metric="hamming", storage="binary")
        made.insert(["a"], np.zeros((1, 2), np.uint8))
        found = made.query(np.zeros((1, 2), np.uint8), k=1, explain=True).explain
        assert found.device_note == "gpu:0 cannot search bits" + BY_CPU


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("asks", [True, False])
def test_few_rows_and_many_answers_are_said_to_be_the_cpus(tmp_path, monkeypatch, masks, asks):
    """What flat vectors on a device had better not answer, or cannot; with `auto` nothing is said of it."""
    using("stand-in" if masks else "no masks", monkeypatch)()
    monkeypatch.setattr(chosen, "FEW_ROWS", 40)
    with opened(tmp_path) as database:
        made, vectors = filled(database, device="gpu" if asks else "auto")
        placed(made)
        few = check(made, QUERIES, LIVE, vectors, "l2", part=1, on="cpu")
        assert few.device_note == (f"few rows are allowed{BY_CPU}" if asks else "")
        many = check(made, QUERIES, LIVE, vectors, "l2", k=2_900, on="gpu:0" if masks else "cpu")
        why = f"2,908 candidates are more than gpu:0 gives (2,048){BY_CPU}"
        assert many.device_note == (why if asks and not masks else "")
        check(made, QUERIES, LIVE, vectors, "l2")
        assert made.stats().index.device_note == ""


@pytest.mark.parametrize(
    ("index", "quantization"), [("ivf", "none"), ("ivf", "sq8"), ("hnsw", "sq8")]
)
def test_what_an_index_on_a_device_leaves_to_the_cpu_is_said(
    tmp_path, devices, monkeypatch, index, quantization
):
    """Exact answers, and filters that leave few rows, with lists and with a graph."""
    monkeypatch.setattr(chosen, "FEW_ROWS", 10)
    monkeypatch.setattr(plan, "DEVICE_CALL", 0.0)
    devices(graphs=True)
    with opened(tmp_path, device="gpu") as database:
        made, vectors = filled(database, index=index, quantization=quantization)
        made.build_index(wait=True)
        placed(made)
        asked(made, vectors, "all rows are compared, and gpu:0 holds an index", exact=True)
        asked(made, vectors, "few rows are allowed", part=1)
        found = made.query(QUERIES, k=3, explain=True).explain
        assert (found.device, found.device_note) == ("gpu:0", "")


def test_a_placing_that_fails_is_said_and_logged_once(tmp_path, devices, monkeypatch, told):
    """Until it is placed after all; it is tried again and again, and the log does not fill with that."""
    monkeypatch.setattr("vecdb.builder._RETRY_S", 0.02)
    devices()
    plain, tries = Device.place_flat, []

    def full(self, *arguments, **more):
        tries.append(self)
        raise DeviceFull(f"no room at try {len(tries)}, on purpose")

    monkeypatch.setattr(Device, "place_flat", full)
    with opened(tmp_path, device="gpu") as database:
        made, vectors = filled(database)

        def tried():
            database._builder.consider(made._core)
            return len(tries) >= 4

        wait_for(tried)
        monkeypatch.setattr("vecdb.builder._RETRY_S", 60.0)
        wait_for(lambda: not database._builder._of(made._core))
        why = f"placing on gpu:0 failed: no room at try {len(tries)}, on purpose"
        asked(made, vectors, why)
        assert made.stats().index.device_note == why
        assert told() == ["collection docs: no room at try 1, on purpose"]
        monkeypatch.setattr(Device, "place_flat", plain)
        monkeypatch.setattr("vecdb.builder._RETRY_S", 0.0)
        database._builder.consider(made._core)
        placed(made)
        assert check(made, QUERIES, LIVE, vectors, "l2").device_note == ""
        assert made.stats().index.device_note == ""
