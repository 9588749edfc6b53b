"""Lists of which a copy lies on a device answer as those of the host."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest
from device_lists_here import (
    CALL,
    ROWS,
    by_host,
    devices_are_asked,
    listed,
    queries_near,
    recall,
)
from on_devices import DIMENSION, SEED, filled, opened, placed, wait_for

from vecdb.index import plan

pytestmark = pytest.mark.long

__all__ = ["devices_are_asked"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("metric", "code"),
    [("l2", "none"), ("l2", "float16"), ("cosine", "sq8"), ("ip", "sq4"), ("cosine", "pq8")],
)
def test_the_device_answers_as_the_lists_of_the_host_do(tmp_path, devices, metric, code):
    """At any k the same rows at the same distances, as long as both probe; and recall at its target."""
    devices()
    with opened(tmp_path) as database:
        made, vectors = listed(database, metric, code, target_recall=0.9)
        stats = made.stats().index
        assert (stats.kind, stats.device) == ("ivf", "gpu:0")
        assert stats.device_bytes > 0
        queries = queries_near(vectors)
        for k in (1, 10, 100):
            explain = recall(made, queries, k)[1]
            assert explain.plan in ("lists", "exact-after-lists")
            assert explain.setting_name == "nprobe"
            found, host = made.query(queries, k=k), by_host(made, queries, k)
            if host.plan != "lists":
                continue  # comparing all was cheaper for it
            mine = np.array([[int(one[1:]) for one in ids] for ids in found.ids])
            assert np.mean(mine == host.rows) > 0.999
            np.testing.assert_allclose(found.distances, host.distances, rtol=1e-4, atol=1e-4)
        assert recall(made, queries, 10)[0] >= 0.9 - 0.03
        assert recall(made, queries[:1], 10)[1].batch == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("metric", "code"), [("l2", "none"), ("cosine", "sq8"), ("ip", "float16"), ("l2", "pq8")]
)
def test_filters_deaths_updates_and_fresh_rows_hold_on_a_device(tmp_path, devices, metric, code):
    """Whatever is deleted, changed, added or not allowed, only live and allowed rows answer, and the nearest."""
    devices()
    with opened(tmp_path) as database:
        made, vectors = listed(database, metric, code)
        queries = queries_near(vectors)
        live = np.ones(ROWS + 500, np.bool_)
        for part in (99, 60, 30):
            assert recall(made, queries, 10, part)[0] >= 0.95
        gone = np.random.default_rng(SEED).choice(ROWS, 900, replace=False)
        made.delete([f"r{i}" for i in gone])
        live[gone] = False
        for part in (None, 60):
            got, explain = recall(made, queries, 10, part, live)
            assert got >= 0.95
            assert "overfetch" in explain.plan
        fresh = np.random.default_rng(SEED + 2).standard_normal((500, DIMENSION))
        fresh = fresh.astype(np.float32)
        made.insert([f"r{ROWS + i}" for i in range(500)], fresh,
                    metadata=[{"part": (ROWS + i) % 100} for i in range(500)])  # fmt: skip
        found = made.query(fresh[:20], k=1)
        if metric != "ip":
            assert [ids[0] for ids in found.ids] == [f"r{ROWS + i}" for i in range(20)]
        for part in (None, 30):
            assert recall(made, queries, 10, part, live)[0] >= 0.95
        # An updated record is found where it is now, not where it was.
        changed = int(np.flatnonzero(live[:ROWS])[0])
        target = np.full((1, DIMENSION), 60.0, np.float32)
        made.update([f"r{changed}"], vectors=target)
        if metric != "ip":
            assert made.query(vectors[changed], k=1).ids[0][0] != f"r{changed}"
        assert made.check().ok


@pytest.mark.long
@pytest.mark.parametrize(
    ("metric", "storage"), [("l2", "int8"), ("cosine", "float16"), ("ip", "uint8")]
)
def test_lists_of_every_storage_are_searched_on_a_device(tmp_path, devices, metric, storage):
    """Integers and halves lie there as float16, which holds them exactly."""
    devices()
    rng = np.random.default_rng(SEED)
    vectors = rng.standard_normal((ROWS, DIMENSION))
    if storage != "float16":
        vectors = np.clip(np.rint(20 * vectors), -128, 127) + 128 * (storage == "uint8")
    vectors = vectors.astype(storage)
    with opened(tmp_path) as database:
        made, _ = filled(database, metric, storage, ROWS, vectors, index="ivf")
        made.build_index(wait=True)
        placed(made)
        for part in (None, 60):
            assert recall(made, vectors[:40].astype(np.float32), 10, part)[0] >= 0.93


@pytest.mark.long
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


def test_few_allowed_rows_and_exact_answers_are_the_hosts(tmp_path, devices, monkeypatch):
    """What is cheaper there, or must be exact, is not asked of the device."""
    monkeypatch.setattr(plan, "DEVICE_CALL", CALL)
    devices()
    with opened(tmp_path) as database:
        made, vectors = listed(database)
        queries = queries_near(vectors)
        assert recall(made, queries, 10, part=1, on="cpu")[0] == 1.0
        found = made.query(queries, k=10, exact=True, explain=True)
        assert (found.explain.device, found.explain.device_note) == ("cpu", "")


@pytest.mark.long
@pytest.mark.parametrize(("code", "most"), [("none", 2_048), ("sq8", 512)])
def test_more_answers_than_a_device_gives_are_the_hosts(tmp_path, devices, code, most):
    """k up to 10,000 is answered, and the explanation says by whom and why; scalar codes end at 512, since a GPU has no
    room for more of the best beside their bounds."""
    devices()
    with opened(tmp_path) as database:
        made, vectors = listed(database, code=code, n=24_000)
        queries = queries_near(vectors, 8)
        assert recall(made, queries, most // 2)[0] >= 0.95
        for k in (most + 500, 10_000):
            got, explain = recall(made, queries, k, on="cpu")
            assert got >= 0.95
            if explain.plan == "lists":
                assert (
                    f"candidates are more than gpu:0 gives ({most:,}); answered by the CPU"
                    in explain.device_note
                )
        assert made.stats().index.device_note == ""


def test_queries_that_need_more_than_a_device_gives_do_not_keep_the_others(
    tmp_path, devices, monkeypatch
):
    """In a batch with a filter that goes against some of the queries, these are answered by the host and the
    others by the device; nobody gets fewer or worse answers."""
    devices()
    with opened(tmp_path) as database:
        made, vectors = filled(database, n=ROWS, index="ivf", quantization="none")
        far = vectors.sum(axis=1) > np.quantile(vectors.sum(axis=1), 0.7)
        made.update([f"r{i}" for i in range(ROWS)], metadata=[{"far": bool(one)} for one in far])
        made.build_index(wait=True)
        placed(made)
        core = made._core.field(None).index
        copy = core.view.device_main
        monkeypatch.setattr(copy, "limits", type(copy.limits)(k=200, nprobe=2_048))
        queries = np.concatenate([queries_near(vectors[far], 20), queries_near(vectors[~far], 20)])
        found = made.query(queries, k=10, filter={"far": True}, explain=True)
        true = made.query(queries, k=10, filter={"far": True}, exact=True)
        hits = [len(set(a) & set(b)) / 10 for a, b in zip(found.ids, true.ids, strict=True)]
        assert found.explain.device == "gpu:0"
        assert np.mean(hits) >= 0.95
        for ids in found.ids:
            assert all(far[int(one[1:])] for one in ids)


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
