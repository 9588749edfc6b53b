"""Lists on a device through all that happens to them: growth, eviction, workers that die, reopening."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest
from on_devices import (
    DIMENSION,
    SEED,
    listed,
    opened,
    placed,
    queries_near,
    recall,
    wait_for,
)
from on_devices import LISTED_ROWS as ROWS

from vecdb.device import Device
from vecdb.errors import LimitExceeded
from vecdb.index import chosen, device_main, plan


@pytest.fixture(autouse=True)
def _devices_are_asked(monkeypatch):
    """Sets are small here: neither a call of a device nor comparing few rows may look dear or cheap for it."""
    monkeypatch.setattr(chosen, "FEW_ROWS", 40)
    monkeypatch.setattr(plan, "DEVICE_CALL", 0.0)


def test_threads_that_ask_while_all_changes_get_right_answers(tmp_path, devices):
    """Rows come and go, lists grow, are placed anew, and a worker is killed: no query fails, and none gets a row
    that was never there or is dead before the query begins."""
    devices()
    with opened(tmp_path, index_tail_share=0.01) as database:
        made, vectors = listed(database, code="sq8")
        queries, stop, errors, answered = queries_near(vectors, 4), threading.Event(), [], []
        gone: set[str] = set()

        def ask():
            while not stop.is_set():
                dead = set(gone)
                try:
                    found = made.query(queries, k=10, explain=True)
                except Exception as error:  # whatever it is, the test fails
                    errors.append(error)
                    return
                answered.append(found.explain.device)
                for ids in found.ids:
                    if len(ids) != 10 or dead & set(ids):
                        errors.append((ids, dead & set(ids)))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        rng = np.random.default_rng(SEED + 7)
        for step in range(3):
            fresh = rng.standard_normal((1_500, DIMENSION)).astype(np.float32)
            made.insert([f"n{step}-{i}" for i in range(1_500)], fresh)
            dead = [f"r{i}" for i in range(100 * step, 100 * step + 100)]
            made.delete(dead)
            gone.update(dead)
            made.build_index(wait=True)
            if step == 1:
                (device,) = database.devices.placements.devices
                os.kill(device._worker.pid, signal.SIGKILL)
        wait_for(lambda: made.stats().index.device == "gpu:0")
        count = len(answered)
        wait_for(lambda: len(answered) > count + 20)
        stop.set()
        for thread in threads:
            thread.join()
        assert not errors
        assert answered[-1] == "gpu:0"
        assert made.check().ok


def test_a_killed_worker_costs_no_answer(tmp_path, devices):
    """Queries go on, answered by the CPU and marked so, and later by the device again."""
    devices()
    with opened(tmp_path) as database:
        made, vectors = listed(database)
        queries = queries_near(vectors)
        (device,) = database.devices.placements.devices
        os.kill(device._worker.pid, signal.SIGKILL)
        seen = []

        def answered_by_the_cpu():
            got, explain = recall(made, queries, 10, on=None)
            assert got >= 0.93
            seen.append(explain)
            return explain.device == "cpu"

        wait_for(answered_by_the_cpu)
        assert "answered by the CPU" in seen[-1].device_note
        wait_for(lambda: recall(made, queries, 10, on=None)[1].device == "gpu:0")
        assert made.stats().devices[0].restarts >= 1


def test_a_worker_that_dies_within_a_search_costs_no_answer(tmp_path, devices):
    """The query in whose middle the worker ends is answered too."""
    devices()
    with opened(tmp_path) as database:
        _, vectors = listed(database)
    devices(faults=f"die_at_search=3,once={tmp_path / 'once'}")
    with opened(tmp_path) as database:
        made, queries = database.get_collection("docs"), queries_near(vectors)
        placed(made)
        notes = [recall(made, queries, 10, on=None)[1].device_note for _ in range(6)]
        assert any("gone" in note and "answered by the CPU" in note for note in notes)


def test_a_full_device_costs_no_answer(tmp_path, devices):
    """A search for which the card has no memory is answered by the host."""
    devices()
    with opened(tmp_path) as database:
        _, vectors = listed(database)
    devices(faults="full_at_search=2")
    with opened(tmp_path) as database:
        made, queries = database.get_collection("docs"), queries_near(vectors)
        placed(made)
        seen = [recall(made, queries, 10, on=None)[1] for _ in range(3)]
        assert [one.device for one in seen] == ["gpu:0", "cpu", "gpu:0"]
        assert "too little memory" in seen[1].device_note


def test_lists_that_have_grown_are_placed_anew(tmp_path, devices):
    """The copy of an older main index is never asked with the positions of a newer one."""
    devices()
    with opened(tmp_path, index_tail_share=0.01) as database:
        made, vectors = listed(database, code="sq8")
        index = made._core.field(None).index
        before = index.view
        fresh = np.random.default_rng(SEED + 5).standard_normal((3_000, DIMENSION))
        fresh = fresh.astype(np.float32)
        made.insert([f"r{ROWS + i}" for i in range(3_000)], fresh,
                    metadata=[{"part": (ROWS + i) % 100} for i in range(3_000)])  # fmt: skip
        made.build_index(wait=True)
        assert made.stats().index.indexed_rows == ROWS + 3_000
        wait_for(lambda: made.stats().index.device == "gpu:0")
        after = index.view
        assert after.device_main.host is after.main is not before.main
        assert after.device_main.key != before.device_main.key
        assert database.devices.stats()[0].placements == 1
        both = np.concatenate([vectors, fresh])
        assert recall(made, queries_near(both), 10)[0] >= 0.93
        # Who still holds the older view gets its answers from the host.
        queries = queries_near(vectors)
        found, true = before.search(queries, 10), before.search(queries, 10, exact=True)
        assert found.rows.max() < ROWS
        assert (
            np.mean([np.isin(a, b).mean() for a, b in zip(found.rows, true.rows, strict=True)])
            >= 0.93
        )


def test_another_curve_of_the_same_lists_copies_nothing(tmp_path, devices):
    """Recalibration changes the setting; what lies on the device stays."""
    devices()
    with opened(tmp_path) as database:
        made, vectors = listed(database)
        index = made._core.field(None).index
        key = index.view.device_main.key
        database._builder.recalibrate(made._core, 0, queries_near(vectors, 200))
        wait_for(
            lambda: index.view.device_main is not None and index.view.main.curve.queries == 200
        )
        assert index.view.device_main.key == key
        assert index.view.device_main.curve is index.view.main.curve
        assert recall(made, queries_near(vectors), 10)[0] >= 0.9


def test_lists_are_placed_again_when_opened(tmp_path, devices):
    """Nothing of a device is on the disk: after opening the lists go there by themselves, from their file."""
    devices()
    with opened(tmp_path) as database:
        _, vectors = listed(database, code="sq8")
    with opened(tmp_path) as database:
        made = database.get_collection("docs")
        placed(made)
        assert recall(made, queries_near(vectors), 10)[0] >= 0.93


def test_what_had_to_go_comes_back_when_it_is_asked(tmp_path, devices):
    """Two collections that do not fit together take turns, and both answer all the time."""
    one = 8_000 * (4 * DIMENSION + 4) * 5 // 4 + 4 * 200 * DIMENSION
    devices(size=int(1.6 * one))
    with opened(tmp_path) as database:
        first, vectors = listed(database)
        queries = queries_near(vectors)
        second = database.create_collection(
            "second", dimension=DIMENSION, metric="l2", index="ivf", quantization="none"
        )
        second.insert([f"r{i}" for i in range(ROWS)], vectors)
        second.build_index(wait=True)
        placed(second)
        assert first.stats().index.device == "cpu"
        got, explain = recall(first, queries, 10, on=None)
        assert got >= 0.93
        if explain.device == "cpu":
            assert device_main.GONE in explain.device_note
        wait_for(lambda: recall(first, queries, 10, on=None)[1].device == "gpu:0")
        assert recall(second, queries, 10, on=None)[0] >= 0.93


def test_a_full_queue_is_told_to_the_caller(tmp_path, devices, monkeypatch):
    """Where too many wait for the device, the host does not take them over: they are refused."""
    devices()
    with opened(tmp_path) as database:
        made, vectors = listed(database)

        def full(*arguments):
            raise LimitExceeded("too many wait, on purpose")

        monkeypatch.setattr(database.devices.placements, "search", full)
        with pytest.raises(LimitExceeded, match="on purpose"):
            made.query(queries_near(vectors), k=10)
        assert made.query(queries_near(vectors), k=10, exact=True).ids


def test_an_index_that_is_dropped_leaves_the_device(tmp_path, devices):
    """Memory of a device goes back with what lay in it."""
    devices()
    with opened(tmp_path) as database:
        made, _ = listed(database)
        assert database.devices.stats()[0].used_bytes > 0
        made._core.drop_index(0)
        assert database.devices.stats()[0].used_bytes == 0
        made.build_index(wait=True)
        placed(made)
        database.drop_collection("docs")
        assert database.devices.stats()[0].used_bytes == 0


def test_a_placing_that_failed_is_tried_again_without_a_write(tmp_path, devices, monkeypatch):
    """A worker that dies while lists are on their way does not leave the collection on the CPU."""
    devices()
    plain, tries = Device.place_lists, []

    def place_lists(self, *arguments):
        tries.append(self)
        if len(tries) == 1:
            self._worker._process.kill()
        return plain(self, *arguments)

    with opened(tmp_path) as database:
        listed(database)
    monkeypatch.setattr(Device, "place_lists", place_lists)
    with opened(tmp_path) as database:
        made = database.get_collection("docs")
        placed(made)
        assert len(tries) == 2
        assert made.stats().devices[0].restarts == 1
