"""Lists of which a copy lies on a device answer as those of the host."""

from __future__ import annotations

import numpy as np
import pytest
from on_devices import (
    DIMENSION,
    SEED,
    filled,
    listed,
    opened,
    placed,
    queries_near,
    recall,
)
from on_devices import LISTED_ROWS as ROWS

from vecdb.index import chosen, plan

CALL = plan.DEVICE_CALL


@pytest.fixture(autouse=True)
def _devices_are_asked(monkeypatch):
    """Sets are small here: neither a call of a device nor comparing few rows may look dear or cheap for it."""
    monkeypatch.setattr(chosen, "FEW_ROWS", 40)
    monkeypatch.setattr(plan, "DEVICE_CALL", 0.0)


def by_host(made, queries, k):
    """Rows and distances that the host's lists give for the same view."""
    index = made._core.field(None).index
    view = index._changed(index.view, device_main=None)
    return view.search(queries, k)


@pytest.mark.parametrize(
    ("metric", "code"),
    [("l2", "none"), ("l2", "float16"), ("l2", "sq8"), ("l2", "sq4"), ("l2", "pq8"), ("cosine", "none"),
     ("cosine", "sq8"), ("cosine", "pq8"), ("ip", "none"), ("ip", "sq4"), ("ip", "pq8")],
)  # fmt: skip
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


@pytest.mark.parametrize("code", ["none", "sq8"])
def test_more_answers_than_a_device_gives_are_the_hosts(tmp_path, devices, code):
    """k up to 10,000 is answered, and the explanation says by whom and why."""
    devices()
    with opened(tmp_path) as database:
        made, vectors = listed(database, code=code, n=24_000)
        queries = queries_near(vectors, 8)
        assert recall(made, queries, 1_000)[0] >= 0.95
        for k in (2_500, 10_000):
            got, explain = recall(made, queries, k, on="cpu")
            assert got >= 0.95
            if explain.plan == "lists":
                assert (
                    "candidates are more than gpu:0 gives (2,048); answered by the CPU"
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


@pytest.mark.parametrize(("settings", "what"), [
    ({"index": "ivf", "quantization": "pq4"}, "lists of pq4"),
    ({"index": "hnsw", "quantization": "none"}, "a graph"),
])  # fmt: skip
def test_what_a_device_cannot_search_is_said(tmp_path, devices, settings, what):
    """A collection that asks for a GPU and gets the CPU says why; one that does not ask says nothing."""
    devices()
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


def test_auto_makes_lists_of_pq8_for_a_device(tmp_path, devices):
    """`quantization` pq8 means lists, also where all vectors would fit the device."""
    devices()
    with opened(tmp_path) as database:
        made, vectors = listed(database, code="pq8", index="auto")
        stats = made.stats().index
        assert (stats.kind, stats.quantization, stats.device) == ("ivf", "pq8", "gpu:0")
        assert recall(made, queries_near(vectors), 10)[0] >= 0.93


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
