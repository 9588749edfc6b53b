"""A collection whose vectors lie on a device answers as one that is searched by the CPU."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from on_devices import (
    DIMENSION,
    QUERIES,
    ROWS,
    SEED,
    check,
    filled,
    opened,
    placed,
    plain,
    rows_of,
    using,
    wait_for,
)

from vecdb.index import chosen
from vecdb.selection import Selection


@pytest.fixture(params=["stand-in", "no masks", pytest.param("gpu", marks=pytest.mark.gpu)])
def devices(request, monkeypatch):
    """Of stand-ins also such without masks, as FAISS alone would be."""
    return using(request.param, monkeypatch)


@pytest.fixture(autouse=True)
def _few_are_fewer(monkeypatch):
    monkeypatch.setattr(chosen, "FEW_ROWS", 40)


@pytest.mark.parametrize(
    ("metric", "storage"),
    [("l2", "float32"), ("cosine", "float32"), ("ip", "float32"), ("l2", "float16"),
     ("cosine", "float16"), ("ip", "int8"), ("l2", "int8")],
)  # fmt: skip
def test_a_device_answers_as_the_cpu_does(tmp_path, devices, metric, storage):
    """Filters, deletes, updates, fresh rows and any k: the nearest rows, and no other ones."""
    masks = devices()
    if not masks and (metric, storage) not in (
        ("l2", "float32"),
        ("cosine", "float16"),
        ("ip", "int8"),
    ):
        pytest.skip("without masks three of the seven tell as much")
    with opened(tmp_path) as database:
        made, vectors = filled(database, metric, storage)
        placed(made)
        live = np.ones(len(vectors), np.bool_)
        assert made.stats().index.device_bytes > 0
        for k in (1, 10, 500):
            check(made, QUERIES, live, vectors, metric, k)
        assert check(made, QUERIES[:1], live, vectors, metric).plan == "exact"
        for part in (99, 50, 10):
            plan = "exact" if masks and part < 50 else "overfetch"
            for _ in range(2):
                assert check(made, QUERIES, live, vectors, metric, part=part).plan == plan
        two = check(made, QUERIES, live, vectors, metric, part=2)
        assert two.plan == ("exact" if masks else "overfetch")
        # Very few allowed rows are the host's, and without masks more answers than FAISS gives on a card.
        check(made, QUERIES, live, vectors, metric, part=1, on="cpu")
        check(made, QUERIES, live, vectors, metric, k=2_900, on="gpu:0" if masks else "cpu")
        gone = np.random.default_rng(SEED).choice(ROWS, 300, replace=False)
        made.delete([f"r{i}" for i in gone])
        live[gone] = False
        check(made, QUERIES, live, vectors, metric)
        check(made, QUERIES, live, vectors, metric, part=50, k=20)
        fresh = rows_of(metric, storage, np.random.default_rng(SEED + 2), 500)
        made.insert([f"r{ROWS + i}" for i in range(500)], fresh,
                    metadata=[{"part": (ROWS + i) % 100} for i in range(500)])  # fmt: skip
        vectors = np.concatenate([vectors, fresh])
        live = np.concatenate([live, np.ones(500, np.bool_)])
        check(made, QUERIES, live, vectors, metric)
        check(made, QUERIES, live, vectors, metric, part=50)
        made.update(["r7"], vectors=vectors[11:12])
        vectors[7] = vectors[11]
        live[7] = True
        if 7 not in gone:
            check(made, QUERIES, live, vectors, metric, k=40)


def test_rows_that_do_not_fit_one_device_lie_on_two(tmp_path, devices):
    """Shards of rows on all devices, and answers put together."""
    size = 4 * ROWS * DIMENSION
    devices(2, size=int(0.4 * size))
    with opened(tmp_path, device="gpu") as database:
        made, vectors = filled(database)
        placed(made)
        live = np.ones(ROWS, np.bool_)
        check(made, QUERIES, live, vectors, "l2", on="gpu:0,1")
        check(made, QUERIES, live, vectors, "l2", part=50, on="gpu:0,1")
        assert sum(one.used_bytes for one in database.devices.stats()) > 0


def test_a_killed_worker_costs_no_answer(tmp_path, devices):
    """Queries go on, answered by the CPU and marked so, and later on the device again."""
    devices()
    with opened(tmp_path) as database:
        made, vectors = filled(database)
        placed(made)
        live = np.ones(ROWS, np.bool_)
        (device,) = database.devices.placements.devices
        os.kill(device._worker.pid, signal.SIGKILL)
        marked = []
        wait_for(lambda: not marked.append(check(made, QUERIES, live, vectors, "l2", on=None))
                 and marked[-1].device == "cpu")  # fmt: skip
        assert "answered by the CPU" in marked[-1].device_note
        wait_for(lambda: check(made, QUERIES, live, vectors, "l2", on=None).device == "gpu:0")
        assert made.stats().devices[0].restarts >= 1


def test_a_collection_that_asks_for_the_cpu_stays_there(tmp_path, devices):
    """`device` cpu is obeyed although there is a device, which is not even started."""
    devices()
    with opened(tmp_path) as database:
        made, vectors = filled(database, device="cpu")
        made.build_index(wait=True)
        found = check(made, QUERIES, np.ones(ROWS, np.bool_), vectors, "l2", on="cpu", exact=True)
        assert found.device_note == ""
        assert database.devices.names == ("gpu:0",)
        assert [one.state for one in database.devices.stats()] == ["idle"]


def test_what_was_placed_is_placed_again_when_opened(tmp_path, devices):
    """Nothing of a device is on the disk: after opening the vectors go there by themselves."""
    devices()
    with opened(tmp_path) as database:
        _, vectors = filled(database)
    with opened(tmp_path) as database:
        made = database.get_collection("docs")
        placed(made)
        check(made, QUERIES, np.ones(ROWS, np.bool_), vectors, "l2")


def test_a_collection_too_large_for_the_device_is_searched_by_the_cpu(tmp_path, devices):
    """The engine builds its index for the CPU then, and nothing fails."""
    devices(1, size=60_000)
    with opened(tmp_path) as database:
        made, vectors = filled(database)
        made.build_index(wait=True)
        assert made.stats().index.device == "cpu"
        check(made, QUERIES, np.ones(ROWS, np.bool_), vectors, "l2", on="cpu", exact=True)


def test_a_device_without_masks_for_so_many_dimensions(tmp_path, devices, monkeypatch):
    """Beyond what its kernels take, a filter is met by asking for more, or by the host; nothing fails."""
    devices()
    monkeypatch.setattr("vecdb.index.served.SCAN_DIMENSIONS", DIMENSION - 1)
    with opened(tmp_path) as database:
        made, vectors = filled(database)
        placed(made)
        live = np.ones(ROWS, np.bool_)
        assert check(made, QUERIES, live, vectors, "l2", part=10).plan == "overfetch"
        check(made, QUERIES, live, vectors, "l2", k=2_900, on="cpu")


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_ten_thousand_answers_are_the_devices(tmp_path, devices, storage):
    """The largest k, with and without a filter that is met by asking for more or by a mask: answered by the device, and
    as the CPU answers."""
    if not devices():
        pytest.skip("without masks k ends at 2,048")
    n, k = 21_000, 10_000
    with opened(tmp_path) as database:
        made, _ = filled(database, "l2", storage, n)
        placed(made)
        index = made._core.field(None).index
        assert index.view.served.code == storage
        host = index._changed(index.view, served=None, tiled=None)
        for part, plan in ((100, "exact"), (90, "overfetch"), (48, "exact")):
            filter_ = None if part == 100 else {"part": {"$lt": part}}
            found = made.query(QUERIES[:2], k=k, filter=filter_, explain=True)
            told = found.explain
            assert (told.device, told.plan, told.device_note) == ("gpu:0", plan, "")
            allowed = np.arange(n) % 100 < part
            theirs = host.search(QUERIES[:2], k, allowed=Selection(n, mask=allowed))
            mine = np.array([[int(one[1:]) for one in ids] for ids in found.ids])
            assert mine.shape == (2, k)
            assert allowed[mine].all()
            assert np.mean(mine == theirs.rows) > 0.999
            np.testing.assert_allclose(found.distances, theirs.distances, rtol=1e-5, atol=1e-4)


def test_vectors_far_from_the_origin_have_their_nearest(tmp_path, devices):
    """As coordinates of maps are: a card that expands squared distances loses the digits that tell them apart, and its
    candidates are given as the answer only where no other row can belong to it."""
    devices()
    rng = np.random.default_rng(SEED)
    vectors = (1e5 + rng.uniform(0, 10, (ROWS, DIMENSION))).astype(np.float32)
    queries = (1e5 + rng.uniform(0, 10, (50, DIMENSION))).astype(np.float32)
    with opened(tmp_path) as database:
        made, _ = filled(database, "l2", vectors=vectors)
        placed(made)
        apart = queries[:, None].astype(np.float64) - vectors[None].astype(np.float64)
        truth = np.einsum("qnd,qnd->qn", apart, apart)
        for some in (slice(0, 50), slice(0, 1)):
            found = made.query(queries[some], k=10)
            for ids, near in zip(found.ids, truth[some], strict=True):
                rows = [int(one[1:]) for one in ids]
                assert len(set(rows)) == 10
                assert (near[rows] <= np.sort(near)[9] * (1 + 1e-5)).all()


def test_a_device_serves_what_was_written_again_and_again(tmp_path, devices):
    """Row numbers only grow: how many there ever were says nothing of how many lie there."""
    devices()
    with opened(tmp_path, history_s=0) as database:
        made, vectors = filled(database)
        placed(made)
        ids = [f"r{i}" for i in range(ROWS)]
        for _ in range(70):
            made.upsert(ids, vectors)
        placed(made)
        live = np.ones(ROWS, np.bool_)

        def served():
            return made.query(QUERIES, k=10, explain=True).explain.device == "gpu:0"

        wait_for(served)
        check(made, QUERIES, live, vectors, "l2")


def test_a_vector_that_few_records_have_is_served(tmp_path, devices):
    """Records without it are no dead rows: they neither keep the device from answering nor have all copied again."""
    devices()
    rng = np.random.default_rng(SEED)
    few = rng.standard_normal((ROWS, DIMENSION)).astype(np.float32)
    with opened(tmp_path) as database:
        made = database.create_collection(
            "docs", dimension=2, vectors={"rare": {"dimension": DIMENSION, "metric": "l2"}}
        )
        for start in range(0, 80 * ROWS, 8 * ROWS):
            made.insert(
                [f"r{start + n}" for n in range(8 * ROWS)],
                np.ones((8 * ROWS, 2), np.float32),
                named_vectors={
                    "rare": [
                        few[(start + n) // 80] if n % 80 == 0 else None for n in range(8 * ROWS)
                    ]
                },
            )
        wait_for(lambda: made.stats().vectors["rare"].device != "cpu")
        found = made.query(few[:5], k=1, vector_name="rare", explain=True)
        assert [one[0] for one in found.ids] == [f"r{80 * n}" for n in range(5)]
        assert found.explain.device == "gpu:0"
        there = made._core.field("rare").index
        assert not there.wants_placing()
        made.insert([f"more{n}" for n in range(ROWS)], np.ones((ROWS, 2), np.float32))
        assert not there.wants_placing(), "none of these has the vector"


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("part", [None, 60])
def test_of_equal_rows_the_lower_ones_answer(tmp_path, devices, monkeypatch, metric, part):
    """Whatever order a card has rows in that are equally near, also at the border of what it gives."""
    devices()
    rng, count = np.random.default_rng(SEED), 1_500
    # 30 different vectors of small whole numbers, whose products are exact in any order; each lies there some fifty times.
    vectors = rng.integers(-2, 3, (30, DIMENSION)).astype(np.float32)[rng.integers(0, 30, count)]
    queries = rng.integers(-2, 3, (50, DIMENSION)).astype(np.float32)
    ask = None if part is None else {"part": {"$lt": part}}
    with opened(tmp_path) as database:
        made, _ = filled(database, metric, n=count, vectors=vectors)
        placed(made)
        placements = database.devices.placements
        asked = placements.search

        def backwards(key, x, k, setting, lies_as, wait, mask=0):
            """All that lie there, of equal ones the last first."""
            scores, at, together = asked(key, x, count, setting, lies_as, wait, mask)
            order = np.lexsort((-at, scores if lies_as == "l2" else -scores), axis=1)[:, :k]
            return np.take_along_axis(scores, order, 1), np.take_along_axis(at, order, 1), together

        monkeypatch.setattr(placements, "search", backwards)
        far = plain(queries, vectors, metric)
        if part is not None:
            far[:, np.arange(count) % 100 >= part] = np.inf
        nearest = np.argsort(far, axis=1, kind="stable")
        for k in (1, 10, 120):
            found = made.query(queries, k=k, filter=ask, explain=True)
            assert found.explain.device == "gpu:0"
            rows = [[int(one[1:]) for one in ids] for ids in found.ids]
            assert rows == nearest[:, :k].tolist()
