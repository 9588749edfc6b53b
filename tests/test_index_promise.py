"""What a curve promises is what is served: walks that a guide leads, graphs that grow by easy rows, codes that cannot hold
a number."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from index_rows import DIMENSION, Rows, build, filled, make_index, plain, selection, small_steps

from vecdb.index import index as index_module
from vecdb.index import plan
from vecdb.index.calibrate import Curve, Point, measure

SEED = 20_261_129


@pytest.mark.parametrize("shares", [True, False])
def test_a_guided_walk_is_measured_as_it_is_served(shares):
    """For a large k more of what is found is compared by the vectors than for a small one, at the same setting: where that is
    so the small k is asked for itself."""
    keys = np.tile(np.arange(100, dtype=np.float32), (64, 1))

    def search(queries, k, setting):
        found = keys[: len(queries), :k] + (0 if k == 100 else 5)
        return found, np.zeros(found.shape, np.int64)

    curve = measure(
        np.zeros((64, 2), np.float32), 500, (100, 200), 1, 100,
        lambda queries, k: keys[: len(queries), :k],
        search, None, threading.Event(), lambda share: None, shares=shares,
    )  # fmt: skip
    assert curve is not None
    assert curve.points[0].recall_100 == 1.0
    assert curve.points[0].recall_10 == (1.0 if shares else 0.5)


def test_near_copies_that_a_guide_cannot_tell_apart_keep_the_promise(monkeypatch):
    """Groups of rows that 8-bit codes see as one: what the curve says at a setting is what a query of k = 10 gets there."""
    monkeypatch.setattr(plan, "exact_cost", lambda main, allowed: np.inf)
    rng = np.random.default_rng(SEED)
    rows = Rows(1, dimension=64)
    spread = rng.standard_normal((5_000, 64))
    middles = rng.standard_normal((18, 64))
    groups = middles.repeat(100, axis=0) + 0.002 * rng.standard_normal((1_800, 64))
    rows.vectors = rng.permutation(np.concatenate([spread, groups])).astype(np.float32)
    index = filled(rows, "hnsw", "l2")
    index.install(build(index))
    main = index.view.main
    chosen = rng.integers(0, 18, 300)
    queries = (middles[chosen] + 0.002 * rng.standard_normal((300, 64))).astype(np.float32)
    queries[: len(queries) * 5_000 // 6_800] = spread[: len(queries) * 5_000 // 6_800]
    truth = plain(queries, rows.vectors, "l2")
    last = np.sort(truth, axis=1)[:, 9:10]
    for point in main.curve.points:
        found = main.search(queries, 10, point.setting)[1]
        right = np.take_along_axis(truth, main.rows[found], axis=1) <= last * (1 + 1e-6) + 1e-9
        assert right.mean() >= point.recall_10 - 0.06, point


def test_easy_rows_take_no_setting_from_those_before():
    """A curve that ends early, since all was found, says of larger settings that all is found there too."""
    before = Curve(
        (
            Point(16, 0.80, 0.79, 0.8, 0.79, 10.0),
            Point(64, 0.94, 0.93, 0.9, 0.89, 30.0),
            Point(128, 0.98, 0.97, 0.96, 0.95, 60.0),
            Point(256, 0.995, 0.993, 0.99, 0.98, 110.0),
        ),
        1_000,
        100,
    )
    easy = Curve((Point(16, 1.0, 0.999, 1.0, 0.999, 12.0),), 1_100, 100)
    both = easy.no_better_than(before)
    assert [point.setting for point in both.points] == [16, 64, 128, 256]
    assert both.setting(0.95, 10) == before.setting(0.95, 10)
    assert both.points[0].recall_10 == 0.80
    assert both.points[-1].cost_us == pytest.approx(12.0 * 16)
    assert before.no_better_than(easy).setting(0.95, 10) == before.setting(0.95, 10)
    assert Curve((), 0, 0).no_better_than(before).points == ()
    finer = Curve((Point(16, 0.9, 0.9, 0.9, 0.9), Point(32, 0.97, 0.96, 0.9, 0.9)), 1_100, 100)
    joined = finer.no_better_than(before)
    assert [point.recall_10 for point in joined.points] == [0.8, 0.8, 0.94, 0.97, 0.97]


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf"])
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_numbers_that_float16_cannot_hold_cost_no_answer(monkeypatch, kind, metric):
    """Their codes are infinite, so the vectors decide."""
    small_steps(monkeypatch)
    monkeypatch.setattr(index_module, "LEAST_FRESH_ROWS", 1_000)
    rng = np.random.default_rng(SEED)
    rows = Rows(4_000)
    large = np.sort(rng.choice(4_000, 900, replace=False))
    rows.vectors[large, 0] = 1e5
    index = make_index(rows, kind, metric, "float16", target_recall=0.8)
    index.append(rows.vectors)
    index.publish(1)
    index.install(build(index))
    view = index.view
    assert view.main is not None
    assert view.main.code == "float16"
    assert rows.vectors.shape[1] == DIMENSION
    mask = np.zeros(4_000, np.bool_)
    mask[large] = True
    queries = rows.vectors[large[:5]].copy()
    truth = plain(queries, rows.vectors, metric)
    for allowed in (None, selection(mask, as_list=False)):
        found = view.search(queries, 5, allowed=allowed)
        assert (found.rows >= 0).all()
        assert np.isfinite(found.distances).all()
        held = truth if allowed is None else np.where(mask, truth, np.inf)
        best = np.sort(held, axis=1)[:, :5]
        own = np.take_along_axis(held, found.rows, axis=1)
        np.testing.assert_allclose(own, best, rtol=1e-5, atol=1e-2 * np.abs(best).max() * 1e-3)
