"""When exact search on a device is too much of a load, so that `auto` builds an index."""

from __future__ import annotations

import time

import pytest
from on_devices import filled, opened, placed, wait_for

from vecdb.index import load
from vecdb.index.load import Load


def high(busy_share: float, a_call_s: float, queries_a_call: int, window_s: float = 30.0) -> bool:
    """Whether a device that is so busy for so long is too busy."""
    now = [0.0]
    seen = Load(lambda: now[0])
    told = []
    busy, calls = 0.0, 0
    while now[0] < window_s:
        now[0] += 0.1
        busy += 0.1 * busy_share
        calls = int(busy / a_call_s)
        told.append(seen.note(busy, calls, queries_a_call * calls))
    assert told.count(True) == int(seen.high)  # said once
    return seen.high


@pytest.fixture(autouse=True)
def cores(monkeypatch):
    monkeypatch.setattr(load, "CORES", 16)


def test_a_device_that_has_time_goes_on():
    """Searches that take a tenth of its time, and quick ones that take all of it, are what it is there for."""
    assert not high(0.1, 0.001, 1)
    assert not high(1.0, 0.02, 1_024)


def test_a_busy_device_whose_searches_are_dear_is_too_busy():
    """Where each query takes more of it than a walk would take of the CPU."""
    assert high(0.9, 0.001, 1)
    assert not high(0.4, 0.001, 1)
    assert high(0.9, 0.2, 1_024)


def test_slow_searches_are_too_slow_however_few_come():
    """A single user must not wait for tens of milliseconds, while large batches may."""
    assert high(0.05, 0.02, 1)
    assert not high(0.05, 0.02, 1_024)


def test_a_short_burst_decides_nothing():
    """Before the window is full nothing is said."""
    assert not high(1.0, 0.02, 1, window_s=9.0)


def test_counts_that_begin_anew_are_no_load():
    """A worker that has died counts from nothing again."""
    now = [0.0]
    seen = Load(lambda: now[0])
    for i in range(40):
        now[0] = float(i)
        busy = 0.1 * (i % 5)
        assert not seen.note(busy, i % 5, 100 * (i % 5))


@pytest.mark.long
def test_auto_builds_an_index_under_load(tmp_path, devices, monkeypatch):
    """Its answers come from the device until the index is there, and the vectors leave the device then."""
    monkeypatch.setattr(load, "WINDOW_S", 0.5)
    monkeypatch.setattr(load, "_LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(load, "LONGEST_S", 1e-6)
    devices(graphs=False)
    with opened(tmp_path) as database:
        made, vectors = filled(database, n=4_000)
        placed(made)
        assert made.query(vectors[:1], k=3, explain=True).explain.device == "gpu:0"
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            made.query(vectors[:1], k=3)
        wait_for(lambda: made.stats().index.kind == "hnsw")
        assert made.query(vectors[:1], k=3, explain=True).explain.plan != "exact"
        assert made.stats().index.indexed_rows == 4_000
        wait_for(lambda: database.devices.stats()[0].used_bytes == 0)
        with_exact, _ = filled_exact(database, vectors)
        placed(with_exact)
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            with_exact.query(vectors[:1], k=3)
        assert with_exact.stats().index.device == "gpu:0"  # it was asked to compare all


def filled_exact(database, vectors):
    made = database.create_collection(
        "exact", dimension=vectors.shape[1], metric="l2", index="exact"
    )
    made.insert([f"r{i}" for i in range(len(vectors))], vectors)
    return made, vectors
