"""When copies of lists are placed on devices, and when again."""

from __future__ import annotations

import numpy as np
import pytest
from device_lists_here import (
    ROWS,
    devices_are_asked,
    listed,
    queries_near,
    recall,
)
from on_devices import DIMENSION, SEED, filled, opened, placed, wait_for

from vecdb.device import Device
from vecdb.errors import LimitExceeded
from vecdb.index import device_main

pytestmark = pytest.mark.long

__all__ = ["devices_are_asked"]


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
        assert first.stats().devices[0].evictions >= 2


@pytest.mark.long
@pytest.mark.parametrize(("settings", "what"), [
    ({"index": "ivf", "quantization": "pq4"}, "lists of pq4"),
    ({"index": "hnsw", "quantization": "none"}, "a graph without cuVS"),
])  # fmt: skip
def test_what_a_device_cannot_search_is_said(tmp_path, devices, settings, what):
    """A collection that asks for a GPU and gets the CPU says why; one that does not ask says nothing."""
    devices(graphs=False)
    with opened(tmp_path) as database:
        made, vectors = filled(database, device="gpu:0", **settings)
        made.build_index(wait=True)
        stats = made.stats().index
        assert (stats.device, stats.device_note) == ("cpu", f"gpu:0 cannot search {what}")
        found = made.query(vectors[:3], k=5, explain=True).explain
        assert found.device_note == f"gpu:0 cannot search {what}; answered by the CPU"
    with opened(tmp_path / "other") as database:
        made, vectors = filled(database, **settings)
        made.build_index(wait=True)
        assert made.stats().index.device_note == ""


def test_lists_too_large_for_the_device_are_searched_by_the_cpu(tmp_path, devices):
    """Nothing fails, and a collection that asked for the GPU says why it is not used."""
    devices(size=60_000)
    with opened(tmp_path) as database:
        made, vectors = filled(database, n=ROWS, index="ivf", quantization="none", device="gpu")
        made.build_index(wait=True)
        stats = made.stats().index
        assert stats.device == "cpu"
        assert "cannot search lists of" in stats.device_note
        assert recall(made, queries_near(vectors), 10, on="cpu")[0] >= 0.93


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


@pytest.mark.long
def test_auto_makes_lists_of_pq8_for_a_device(tmp_path, devices):
    """`quantization` pq8 means lists, also where all vectors would fit the device."""
    devices()
    with opened(tmp_path) as database:
        made, vectors = listed(database, code="pq8", index="auto")
        stats = made.stats().index
        assert (stats.kind, stats.quantization, stats.device) == ("ivf", "pq8", "gpu:0")
        assert recall(made, queries_near(vectors), 10)[0] >= 0.93


@pytest.mark.long
@pytest.mark.parametrize(
    ("room", "code"), [(1.2, "none"), (0.8, "sq8"), (0.2, "pq8"), (0.02, "none")]
)
def test_lists_take_a_code_that_fits_the_device(tmp_path, devices, room, code):
    """With quantization auto the first of none, sq8 and pq8 that fits; what nothing fits is the CPU's."""
    devices(size=int(room * 5 / 4 * ROWS * (4 * DIMENSION + 4) / 0.81) + 4 * 200 * DIMENSION)
    with opened(tmp_path) as database:
        made, _ = filled(database, n=ROWS, index="ivf")
        made.build_index(wait=True)
        stats = made.stats().index
        assert (stats.kind, stats.quantization) == ("ivf", code)
        if room > 0.1:
            placed(made)
        else:
            assert stats.device == "cpu"


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
