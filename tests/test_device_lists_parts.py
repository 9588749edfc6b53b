"""Lists that no device has room for alone: a part of each list on every device, and answers put together."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from device_lists_here import (
    ROWS,
    by_host,
    devices_are_asked,
    listed,
    queries_near,
    recall,
)
from on_devices import DIMENSION, opened, wait_for

from vecdb.index.codes import code_bytes
from vecdb.index.door import faiss
from vecdb.index.host_lists import lists_bytes, part_of
from vecdb.index.makers import lists_for

__all__ = ["devices_are_asked"]


def room_for(share, code="float32"):
    """Memory of a device that takes so much of the lists of `ROWS`."""
    return int(share * lists_bytes(ROWS, code_bytes(code, DIMENSION), lists_for(ROWS), DIMENSION))


@pytest.mark.parametrize(
    ("metric", "code", "held"),
    [
        ("l2", "none", "float32"),
        pytest.param("cosine", "sq8", "sq8", marks=pytest.mark.long),
        pytest.param("ip", "pq8", "pq8", marks=pytest.mark.long),
    ],
)
def test_lists_that_fit_two_devices_lie_on_both(tmp_path, devices, metric, code, held):
    """The rows that the host's lists find, under filters and after deletes too, from both devices at once."""
    devices(2, size=room_for(0.75, held))
    with opened(tmp_path, device="gpu") as database:
        made, vectors = listed(database, metric, code)
        assert made.stats().index.device == "gpu:0,1"
        used = [one.used_bytes for one in made.stats().devices]
        assert min(used) > 0.3 * sum(used)
        queries = queries_near(vectors)
        found, host = made.query(queries, k=10), by_host(made, queries, 10)
        if host.plan == "lists":
            mine = np.array([[int(one[1:]) for one in ids] for ids in found.ids])
            assert np.mean(mine == host.rows) > 0.999
            np.testing.assert_allclose(found.distances, host.distances, rtol=1e-4, atol=1e-4)
        for part in (None, 50, 10):
            got, told = recall(made, queries, 10, part, on="gpu:0,1" if part != 10 else None)
            assert got >= 0.93
            assert part == 10 or told.device_note == ""
        made.delete([f"r{i}" for i in range(1_000)])
        live = np.arange(ROWS) >= 1_000
        assert recall(made, queries, 10, live=live, on="gpu:0,1")[0] >= 0.93


@pytest.mark.long
def test_either_devices_end_costs_no_answer(tmp_path, devices):
    """Where one of two parts is lost the host answers, with a note, until both lie there again."""
    devices(2, size=room_for(0.75))
    with opened(tmp_path, device="gpu") as database:
        made, vectors = listed(database)
        queries = queries_near(vectors)
        os.kill(database.devices.placements.devices[1]._worker.pid, signal.SIGKILL)
        seen = []

        def by_the_cpu():
            got, told = recall(made, queries, 10, on=None)
            assert got >= 0.93
            seen.append(told)
            return told.device == "cpu"

        wait_for(by_the_cpu)
        assert seen[-1].device_note.endswith("answered by the CPU")
        wait_for(lambda: recall(made, queries, 10, on=None)[1].device == "gpu:0,1")
        assert [one.placements for one in made.stats().devices] == [1, 1]


def test_lists_that_do_not_fit_all_devices_together(tmp_path, devices):
    """They are the host's, and that is said."""
    devices(2, size=room_for(0.4))
    with opened(tmp_path, device="gpu") as database:
        made = database.create_collection(
            "docs", dimension=DIMENSION, metric="l2", index="ivf", quantization="none"
        )
        vectors = np.random.default_rng(3).standard_normal((ROWS, DIMENSION)).astype(np.float32)
        made.insert([f"r{i}" for i in range(ROWS)], vectors)
        made.build_index(wait=True)
        told = made.query(vectors[:3], k=5, explain=True).explain
        assert told.device == "cpu"
        assert told.device_note == (
            f"gpu:0, gpu:1 cannot search lists of {room_for(1):,} bytes; answered by the CPU"
        )


@pytest.mark.parametrize("stop", [1, 500, 999])
def test_parts_have_all_that_the_whole_has(stop):
    """Each row is in one part, at its place there, with the code that it had; the whole stays as it was."""
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((1_000, 8)).astype(np.float32)
    quantizer = faiss.IndexFlatL2(8)
    whole = faiss.IndexIVFFlat(quantizer, 8, 10, faiss.METRIC_L2)
    whole.train(vectors)
    whole.add(vectors)
    parts = [(0, part_of(whole, 0, stop)), (stop, part_of(whole, stop, 1_000))]
    assert [part.ntotal for _, part in parts] == [stop, 1_000 - stop]
    for start, part in parts:
        part.make_direct_map()
        for at in {0, part.ntotal - 1}:
            assert (part.reconstruct(at) == vectors[start + at]).all()
    assert whole.ntotal == 1_000
    assert (whole.search(vectors[:5], 1)[1][:, 0] == np.arange(5)).any()
