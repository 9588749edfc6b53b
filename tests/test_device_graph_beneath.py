"""What a walk on a device does not give, the vectors beneath its graph do: any k, exact answers, and narrow filters."""

from __future__ import annotations

import numpy as np
import pytest
from on_devices import DIMENSION, QUERIES, check, filled, opened, placed, plain, using

from vecdb.index import chosen, plan

ROWS = 3_000


@pytest.fixture(params=["stand-in", "no masks", pytest.param("gpu", marks=pytest.mark.gpu)])
def devices(request, monkeypatch):
    """Of stand-ins also such without masks."""
    return using(request.param, monkeypatch)


@pytest.fixture(autouse=True)
def _devices_are_asked(monkeypatch):
    monkeypatch.setattr(chosen, "FEW_ROWS", 40)
    monkeypatch.setattr(plan, "DEVICE_CALL", 0.0)


def graphed(database, metric, storage, quantization="none"):
    """A collection with a graph on gpu:0; its first rows died before that was made, so positions are no row numbers."""
    made, vectors = filled(database, metric, storage, ROWS, index="hnsw", quantization=quantization)
    made.delete([f"r{i}" for i in range(100)])
    made.build_index(wait=True)
    placed(made)
    live = np.arange(ROWS) >= 100
    return made, vectors, live


@pytest.mark.parametrize(
    ("metric", "storage"),
    [("l2", "float32"), ("cosine", "float32"), ("ip", "int8"), ("cosine", "float16")],
)
def test_any_k_and_exact_answers_are_the_devices(tmp_path, devices, metric, storage):
    """Beyond what a walk gives and where every row is to be compared, under filters, after deletes and with fresh rows: the
    nearest, by the device."""
    masks = devices(graphs=True)
    with opened(tmp_path) as database:
        made, vectors, live = graphed(database, metric, storage)
        assert made._core.field(None).index.view.main.kind == "hnsw"
        told = check(made, QUERIES, live, vectors, metric, exact=True)
        assert (told.plan, told.device_note) == ("exact", "")
        check(made, QUERIES, live, vectors, metric, target_recall=1.0)
        far = 2_500 if masks else 1_500
        if storage != "float16" or masks:
            check(made, QUERIES, live, vectors, metric, k=far)
        for part in (90, 60, 10):
            check(made, QUERIES, live, vectors, metric, part=part, exact=True)
        # A filter that leaves so few that a walk would have to look beyond its limits.
        check(made, QUERIES, live, vectors, metric, k=60, part=4, on="gpu:0" if masks else None)
        gone = np.random.default_rng(3).choice(np.arange(100, ROWS), 200, replace=False)
        made.delete([f"r{i}" for i in gone])
        live[gone] = False
        fresh = vectors[:50] + np.ones((50, DIMENSION), vectors.dtype)
        made.insert([f"r{ROWS + i}" for i in range(50)], fresh,
                    metadata=[{"part": (ROWS + i) % 100} for i in range(50)])  # fmt: skip
        vectors, live = np.concatenate([vectors, fresh]), np.concatenate([live, np.ones(50, bool)])
        on = "gpu:0" if storage == "float32" or metric != "cosine" else None
        check(made, QUERIES, live, vectors, metric, exact=True, on=on)
        check(made, QUERIES, live, vectors, metric, part=30, exact=True, on=on)


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
@pytest.mark.parametrize("part", [None, 60])
def test_of_equal_rows_the_lower_ones_answer(tmp_path, devices, monkeypatch, metric, part):
    """Whatever order a card has rows in that are equally near, also at the border of what it gives, and where it compares rows of
    cosine by l2."""
    devices(graphs=True)
    rng, count = np.random.default_rng(4), 1_500
    different = rng.standard_normal((30, DIMENSION)).astype(np.float32)
    which = rng.integers(0, 30, count)  # each lies there some fifty times
    queries = different[:20] + np.float32(0.1)
    ask = None if part is None else {"part": {"$lt": part}}
    with opened(tmp_path) as database:
        made, _ = filled(
            database, metric, n=count, vectors=different[which], index="hnsw", quantization="none"
        )
        made.build_index(wait=True)
        placed(made)
        placements = database.devices.placements
        asked = placements.search

        def backwards(key, x, k, setting, lies_as, wait, mask=0):
            """All that lie there, of equal ones the last first."""
            scores, at, together = asked(key, x, count, setting, lies_as, wait, mask)
            near = np.round(scores if lies_as == "l2" else -scores, 4)
            order = np.lexsort((-at, near), axis=1)[:, :k]
            return np.take_along_axis(scores, order, 1), np.take_along_axis(at, order, 1), together

        monkeypatch.setattr(placements, "search", backwards)
        far = plain(queries, different, metric)[:, which]
        if part is not None:
            far[:, np.arange(count) % 100 >= part] = np.inf
        nearest = np.argsort(far, axis=1, kind="stable")
        for k in (1, 10, 60):
            found = made.query(queries, k=k, filter=ask, exact=True, explain=True)
            assert found.explain.device == "gpu:0"
            rows = [[int(one[1:]) for one in ids] for ids in found.ids]
            assert rows == nearest[:, :k].tolist()


def test_what_codes_say_of_vectors_is_not_taken_for_exact(tmp_path, devices):
    """A graph over sq8 has decoded codes on the device: exact answers are the host's, and it says why."""
    devices(graphs=True)
    with opened(tmp_path, device="gpu") as database:
        made, vectors, live = graphed(database, "l2", "float32", "sq8")
        told = check(made, QUERIES, live, vectors, "l2", exact=True, on="cpu")
        assert (
            told.device_note
            == "all rows are compared, and gpu:0 holds an index; answered by the CPU"
        )


@pytest.mark.long
@pytest.mark.parametrize("index", ["ivf", "hnsw"])
def test_ten_thousand_answers_are_right_whoever_gives_them(tmp_path, devices, index):
    """The largest k of a collection whose index lies on a device: all rows come, nearest first; by the vectors beneath a
    graph, or by the CPU, which says that lists end before."""
    masks = devices(graphs=True)
    n, k = 10_400, 10_000
    rng = np.random.default_rng(8)
    rows = rng.standard_normal((n, 4)).astype(np.float32)
    with opened(tmp_path, device="gpu") as database:
        made = database.create_collection(
            "docs", dimension=4, metric="l2", index=index, quantization="none"
        )
        made.insert([f"r{i}" for i in range(n)], rows)
        made.build_index(wait=True)
        placed(made)
        found = made.query(rows[:2], k=k, explain=True)
        near = ((rows[:2, None] - rows[None]) ** 2).sum(axis=2)
        for i, ids in enumerate(found.ids):
            got = np.array([int(one[1:]) for one in ids])
            assert len(set(ids)) == k
            assert np.isin(got, np.argsort(near[i])[:k]).mean() >= 0.99
            np.testing.assert_allclose(found.distances[i], near[i, got], atol=1e-4)
        told = found.explain
        if index == "hnsw" and masks:
            assert (told.device, told.device_note) == ("gpu:0", "")
        else:
            assert told.device == "cpu"
            assert told.device_note.endswith("answered by the CPU")
            assert "gives (" in told.device_note or "less time" in told.device_note
