"""Rows that lie on no device are compared by one all the same, tile by tile, and answer as the CPU does."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import on_devices
import pytest
from on_devices import (
    DIMENSION,
    QUERIES,
    ROWS,
    check,
    filled,
    placed,
    plain,
)
from test_device_waits import PATIENT, hanging
from test_on_device import _few_are_fewer

import vecdb
from vecdb.device import Device
from vecdb.device.choice import STAND_IN_DEVICES
from vecdb.errors import Cancelled, DeadlineExceeded, DeviceFull, DeviceLost
from vecdb.index import tiled
from vecdb.index.tiled import Tiled
from vecdb.search_lane import MAX_TOGETHER
from vecdb.selection import Selection
from vecdb.stopping import while_wanted
from vecdb.turns import Wait

few_are_fewer = _few_are_fewer
NO_ROOM = 20_000
"""Bytes that may be placed: less than any of the collections here takes."""
SETTINGS = {**on_devices.SETTINGS, "device": "gpu", "auto_build": False}
LIVE = np.ones(ROWS, np.bool_)
PAYS, LEAST_QUERIES, LEAST_PAIRS = Tiled._pays, tiled.LEAST_QUERIES, tiled.LEAST_PAIRS


def opened(tmp_path, **settings):
    """A database whose devices are up."""
    return vecdb.open(tmp_path / "db", **{**SETTINGS, **settings})


@pytest.fixture(autouse=True)
def small_tiles_pay(monkeypatch):
    """A tile has a few hundred rows, and the device is always thought to be the faster one."""
    monkeypatch.setattr(Device, "tile_bytes", 20_000)
    monkeypatch.setattr(tiled, "LEAST_QUERIES", 1)
    monkeypatch.setattr(tiled, "LEAST_PAIRS", 1)
    monkeypatch.setattr(Tiled, "_pays", lambda *_: True)


@pytest.fixture
def sent(monkeypatch):
    """How many vectors each request to compare has sent; `sent.at[n]` is called before request n."""

    class Sent(list):
        at = {}

    counts, lock, compare = Sent(), threading.Lock(), Device.compare

    def counted(self, queries, vectors, *rest, **named):
        with lock:
            counts.append(len(vectors))
            happening = counts.at.get(len(counts))
        if happening is not None:
            happening()
        return compare(self, queries, vectors, *rest, **named)

    monkeypatch.setattr(Device, "compare", counted)
    return counts


@pytest.mark.parametrize(
    ("metric", "storage"),
    [("l2", "float32"), ("cosine", "float32"), ("ip", "float32"), ("l2", "float16"),
     ("cosine", "float16"), ("ip", "int8")],
)  # fmt: skip
def test_what_does_not_fit_is_compared_by_the_device(tmp_path, devices, metric, storage, sent):
    """A collection larger than the device's budget: the nearest live and allowed rows, at any k, and no row that is
    dead or not allowed is even sent."""
    devices()
    with opened(tmp_path, device_memory_bytes=NO_ROOM) as database:
        made, vectors = filled(database, metric, storage)
        live = LIVE.copy()
        for k in (1, 10, 700):
            del sent[:]
            told = check(made, QUERIES, live, vectors, metric, k)
            assert (told.plan, told.device_note, sum(sent)) == ("tiled", "", ROWS)
            assert len(sent) >= ROWS // 312
        gone = np.random.default_rng(1).choice(ROWS, 1_000, replace=False)
        made.delete([f"r{i}" for i in gone])
        live[gone] = False
        told = check(made, QUERIES, live, vectors, metric)
        assert told.allowed_rows == 2_000
        parts = np.arange(ROWS) % 100
        for part in (99, 50, 5):
            del sent[:]
            told = check(made, QUERIES, live, vectors, metric, part=part)
            wanted = int((live & (parts < part)).sum())
            assert (told.plan, told.allowed_rows, sum(sent)) == ("tiled", wanted, wanted)
        # All that are left, and more answers than a device gives.
        check(made, QUERIES, live, vectors, metric, k=900, part=40)
        assert check(made, QUERIES, live, vectors, metric, k=1_990, on="cpu").plan == "exact"


def test_few_of_many_rows_are_gathered_for_the_device(tmp_path, devices, sent, monkeypatch):
    """A filter that leaves a small share of a collection placed where there are no masks: only these rows are sent."""
    if devices() and not os.environ.get(STAND_IN_DEVICES):
        pytest.skip("this GPU has masks")
    monkeypatch.setenv("VECDB_STAND_IN_MASKS", "0")
    with opened(tmp_path) as database:
        made, vectors = filled(database, n=9_000)
        placed(made)
        live = np.ones(9_000, np.bool_)
        assert check(made, QUERIES, live, vectors, "l2").plan == "exact"
        assert sent == []
        told = check(made, QUERIES, live, vectors, "l2", part=1)
        assert (told.plan, told.allowed_rows, sum(sent)) == ("tiled", 90, 90)


@pytest.mark.parametrize("form", ["rows", "mask"])
def test_either_form_of_a_selection(tmp_path, devices, sent, form):
    """Dead rows of a selection are left out, whether it is a list or a mask."""
    devices()
    with opened(tmp_path, device_memory_bytes=NO_ROOM) as database:
        made, vectors = filled(database)
        made.delete([f"r{i}" for i in range(0, ROWS, 2)])
        view, chosen = made._core.view, np.arange(0, ROWS, 3)
        mask = np.zeros(view.n_rows, np.bool_)
        mask[chosen] = True
        selection = Selection(
            view.n_rows, **({"mask": mask} if form == "mask" else {"rows": chosen})
        )
        found = view.search(QUERIES, 20, allowed=selection)
        assert found.plan == "tiled"
        near = plain(QUERIES, vectors, "l2")
        near[:, [row for row in range(ROWS) if row % 3 or not row % 2]] = np.inf
        assert (np.sort(found.rows) == np.sort(np.argsort(near, axis=1)[:, :20])).all()
        assert sum(sent) == ROWS // 6


def test_exact_search_beside_an_index(tmp_path, devices, sent):
    """Where graph or lists serve, `exact=True` is the device's, by the stored vectors and not by codes; searches
    that the index may answer are left to it."""
    devices()
    with opened(tmp_path, device_memory_bytes=NO_ROOM) as database:
        made, vectors = filled(database, index="hnsw", quantization="sq8")
        made.build_index(wait=True)
        told = check(made, QUERIES, LIVE, vectors, "l2", exact=True)
        assert (told.plan, sum(sent)) == ("tiled", ROWS)
        del sent[:]
        assert made.query(QUERIES, k=5, explain=True).explain.device == "cpu"
        assert sent == []


def test_what_the_device_cannot_tell_apart_the_host_does(tmp_path, devices):
    """Squared distances that the device's rounding drowns are found by the host, not guessed."""
    devices()
    with opened(tmp_path, device_memory_bytes=NO_ROOM) as database:
        rng = np.random.default_rng(5)
        vectors = (10_000 + rng.standard_normal((ROWS, DIMENSION))).astype(np.float32)
        made = database.create_collection("docs", dimension=DIMENSION, metric="l2")
        made.insert([f"r{i}" for i in range(ROWS)], vectors)
        queries = vectors[:5] + np.float32(0.25)
        found = made.query(queries, k=10, explain=True)
        assert found.explain.plan == "tiled"
        for i, ids in enumerate(found.ids):
            rows = np.array([int(one[1:]) for one in ids])
            differences = queries[i].astype(np.float64) - vectors[rows]
            np.testing.assert_allclose((differences**2).sum(1), found.distances[i], rtol=1e-5)
            every = ((queries[i].astype(np.float64) - vectors) ** 2).sum(1)
            np.testing.assert_allclose(np.sort(every)[:10], found.distances[i], rtol=1e-5)


def test_all_devices_take_part(tmp_path, devices, sent):
    """Tiles go to all devices in turn, and explain names these."""
    devices(2)
    with opened(tmp_path, device_memory_bytes=NO_ROOM) as database:
        made, vectors = filled(database)
        assert check(made, QUERIES, LIVE, vectors, "l2", on="gpu:0,1").plan == "tiled"
        assert sum(sent) == ROWS


def test_a_lost_device_costs_no_answer(tmp_path, devices, sent):
    """A worker that dies between two tiles: the CPU answers and says why, and goes on to for a while."""
    devices()
    with opened(tmp_path, device_memory_bytes=NO_ROOM) as database:
        made, vectors = filled(database)
        (device,) = database.devices.placements.devices
        sent.at[4] = lambda: os.kill(device._worker.pid, signal.SIGKILL)
        for _ in range(2):
            told = check(made, QUERIES, LIVE, vectors, "l2", on="cpu")
            assert told.plan == "exact"
            assert "gpu:0" in told.device_note
            assert told.device_note.endswith("answered by the CPU")
        assert len(sent) <= 4 + tiled._THREADS


def test_a_device_that_is_not_up_is_not_passed_over(tmp_path, devices, monkeypatch):
    """While no worker is there the CPU answers, and says so."""
    devices()
    with opened(tmp_path, device_memory_bytes=NO_ROOM) as database:
        made, vectors = filled(database)
        monkeypatch.setattr(Device, "up", False)
        told = check(made, QUERIES, LIVE, vectors, "l2", on="cpu")
        assert told.device_note == "gpu:0 is not up; answered by the CPU"


def test_a_full_device_costs_no_answer(tmp_path, devices, sent, monkeypatch):
    """Out of memory is the end of one way to search, not of the search; later the device is asked again."""
    devices()

    def full():
        raise DeviceFull("gpu:0 has too little memory for this", device="gpu:0")

    monkeypatch.setattr(tiled, "_REST_S", 0.0)
    with opened(tmp_path, device_memory_bytes=NO_ROOM) as database:
        made, vectors = filled(database)
        sent.at[2] = full
        told = check(made, QUERIES, LIVE, vectors, "l2", on="cpu")
        assert told.device_note == "gpu:0 has too little memory for this; answered by the CPU"
        assert check(made, QUERIES, LIVE, vectors, "l2").device_note == ""


def test_time_that_is_over_ends_the_search(tmp_path, devices, sent, monkeypatch):
    """A search that has no time left ends between two tiles, with DeadlineExceeded."""
    devices()
    monkeypatch.setattr(tiled, "_THREADS", 2)
    with opened(tmp_path, device_memory_bytes=NO_ROOM) as database:
        made, _ = filled(database)
        sent.at[3] = lambda: threading.Event().wait(0.5)
        with pytest.raises(DeadlineExceeded):
            made.query(QUERIES, k=3, timeout_s=0.3)
        assert len(sent) < ROWS // 312


def test_a_device_that_hangs_ends_no_later_than_the_deadline(tmp_path, devices):
    """A search whose tiles are not answered ends in time, or when nobody wants it any more; later ones go there again."""
    devices()
    with opened(tmp_path, device_memory_bytes=NO_ROOM, **PATIENT) as database:
        made, vectors = filled(database)
        queries = np.resize(QUERIES, (2 * LEAST_QUERIES, DIMENSION))
        (one,) = database.devices.placements.devices
        with hanging(one._worker.pid):
            with pytest.raises(DeadlineExceeded):
                made.query(queries, k=3, timeout_s=0.3)
            wanted = iter([True] * 12)
            with while_wanted(lambda: next(wanted, False)), pytest.raises(Cancelled):
                made.query(queries, k=3)
        assert check(made, queries, LIVE, vectors, "l2").plan == "tiled"


def test_a_device_that_hangs_is_measured_for_no_longer_than_the_deadline(
    tmp_path, devices, monkeypatch
):
    """Nor is a large batch kept, of which a tile is compared to know whether it should go there, nor one that nobody wants."""
    devices()
    monkeypatch.setattr(Tiled, "_pays", PAYS)
    with opened(tmp_path, device_memory_bytes=NO_ROOM, **PATIENT) as database:
        made, vectors = filled(database)
        queries = np.resize(QUERIES, (2 * MAX_TOGETHER, DIMENSION))
        (one,) = database.devices.placements.devices
        with hanging(one._worker.pid):
            with pytest.raises(DeadlineExceeded):
                made.query(queries, k=3, timeout_s=0.3)
            wanted = iter([True] * 12)
            with while_wanted(lambda: next(wanted, False)), pytest.raises(Cancelled):
                made.query(queries, k=3)
        check(made, queries, LIVE, vectors, "l2", on=None)


def test_queries_that_a_device_fails_twice_are_counted_once(tmp_path, devices, monkeypatch):
    """Where what lies there is not searched, and tiles are not compared either, the CPU takes each query over once."""
    devices()
    with opened(tmp_path) as database:
        made, vectors = filled(database)
        placed(made)
        placements = database.devices.placements
        lost = []

        def lose(*_, **__):
            lost.append(True)
            raise DeviceLost("lost, on purpose", device="gpu:0")

        monkeypatch.setattr(placements, "search", lose)
        monkeypatch.setattr(Device, "compare", lose)
        before = placements.taken_over.read().total
        check(made, QUERIES, LIVE, vectors, "l2", on="cpu")
        assert len(lost) > 1
        assert placements.taken_over.read().total - before == len(QUERIES)


def test_a_failure_of_another_search_is_not_taken_for_ones_own(tmp_path, devices, monkeypatch):
    """A search that does not ask what lies on the device, after one that failed there, is counted where its tiles fail, and says
    why they did, and not why the other one had failed."""
    if devices() and not os.environ.get(STAND_IN_DEVICES):
        pytest.skip("this GPU has masks")
    monkeypatch.setenv("VECDB_STAND_IN_MASKS", "0")
    with opened(tmp_path) as database:
        made, vectors = filled(database, n=9_000)
        placed(made)
        placements, live = database.devices.placements, np.ones(9_000, np.bool_)

        def fails(why):
            def fail(*_, **__):
                raise DeviceLost(why, device="gpu:0")

            return fail

        monkeypatch.setattr(placements, "search", fails("lost, on purpose"))
        told = check(made, QUERIES, live, vectors, "l2", on="gpu:0")
        assert (told.plan, told.device_note) == ("tiled", "")
        monkeypatch.setattr(Device, "compare", fails("no tiles either"))
        before = placements.taken_over.read().total
        told = check(made, QUERIES, live, vectors, "l2", part=1, on="cpu")
        assert told.device_note == "no tiles either; answered by the CPU"
        assert placements.taken_over.read().total - before == len(QUERIES)


def test_a_large_batch_shares_the_way(tmp_path, devices, sent):
    """All queries of a large batch go in one call, so that each vector crosses the bus once."""
    devices()
    with opened(tmp_path, device_memory_bytes=NO_ROOM) as database:
        made, vectors = filled(database)
        queries = np.random.default_rng(3).standard_normal((600, DIMENSION)).astype(np.float32)
        told = check(made, queries, LIVE, vectors, "l2")
        assert (told.plan, told.batch, sum(sent)) == ("tiled", 600, ROWS)


@pytest.mark.parametrize(("device_s", "host_s"), [(1.0, 2.0), (2.0, 1.0)])
def test_the_faster_one_answers(tmp_path, devices, monkeypatch, device_s, host_s):
    """Who answers is decided by rates that are measured once for searches alike, and by none for small ones."""
    devices()
    monkeypatch.setattr(Tiled, "_pays", PAYS)
    monkeypatch.setattr(tiled, "LEAST_QUERIES", LEAST_QUERIES)
    monkeypatch.setattr(tiled, "LEAST_PAIRS", LEAST_PAIRS)
    measured = []

    def rates(self, source, queries, k, *_):
        measured.append((queries, k))
        return tiled._Rates(device_s, host_s, float("inf"))

    monkeypatch.setattr(Tiled, "_measured", rates)
    with opened(tmp_path, device_memory_bytes=NO_ROOM) as database:
        made, vectors = filled(database)
        check(made, QUERIES, LIVE, vectors, "l2", on="cpu")
        assert measured == []
        monkeypatch.setattr(tiled, "LEAST_PAIRS", 1)
        queries = np.repeat(QUERIES, 3, axis=0)
        on, plan, note = "gpu:0", "tiled", ""
        if device_s >= host_s:
            on, plan = "cpu", "exact"
            note = "96,000 bytes do not fit gpu:0; answered by the CPU"
        for _ in range(3):
            told = check(made, queries, LIVE, vectors, "l2", on=on)
            assert (told.plan, told.device_note) == (plan, note)
        assert measured == [(21, 10)]
        # One query pays for no way over the bus.
        check(made, QUERIES[:1], LIVE, vectors, "l2", on="cpu")
        assert measured == [(21, 10)]


def test_rates_are_measured(tmp_path, devices):
    """A measurement gives the seconds that a number of a row takes on the device and on the host."""
    devices()
    with opened(tmp_path, device_memory_bytes=NO_ROOM) as database:
        made, _ = filled(database)
        view = made._core.view
        found = view.tiled._measured(
            view.source, 64, 10, np.arange(ROWS), database.devices.placements.devices, Wait()
        )
        assert 0 < found.device_s < 1e-3
        assert 0 < found.host_s < 1e-3
