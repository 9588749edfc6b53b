"""Calibration: the recall curve, what follows from it, and how it is measured again."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from index_rows import Rows, build, filled, hits, make_index, plain

from vecdb.index import index as index_module
from vecdb.index import of_same_files, plan
from vecdb.index.build import can_extend
from vecdb.index.calibrate import DEPTHS, Curve, Point, held_out, measure, recall

SEED = 20_261_128

CURVE = Curve(
    (
        Point(16, 0.80, 0.78, 0.90, 0.89),
        Point(64, 0.96, 0.95, 0.93, 0.92),
        Point(256, 0.995, 0.99, 0.97, 0.96),
    ),
    rows=1_000,
    queries=100,
    least=100,
)


@pytest.mark.parametrize(
    ("target", "k", "setting"),
    [
        (0.70, 1, 16),
        (0.95, 10, 64),
        (0.96, 10, 112),
        (0.999, 10, None),
        (1.0, 10, None),
        (0.92, 100, 100),
        (0.95, 100, 208),
        (0.95, 55, 171),
        (0.95, 1_000, 2_080),
        (0.97, 100, None),
    ],
)
def test_the_cheapest_setting_whose_bound_reaches_the_target(target, k, setting):
    """The curve's lower bound decides, on a straight line between two settings; between the measured k the setting grows
    with log k, and beyond them with k."""
    assert CURVE.setting(target, k) == setting


def test_measured_recall_is_that_of_the_chosen_setting():
    """The reported recall belongs to the setting in use, and is 1 where search is exact."""
    assert CURVE.measured(0.95) == 0.96
    assert CURVE.measured(1.0) == 1.0


def test_recall_counts_ties_as_right_and_bounds_below():
    """An answer as near as the k-th counts; the bound is below the mean even without a miss."""
    truth = np.tile(np.array([1.0, 2.0, 2.0, 3.0], np.float32), (50, 1))
    assert recall(truth, truth, 3)[0] == 1.0
    assert recall(truth, truth, 3)[1] == pytest.approx(1 - 3 / 150)
    found = truth.copy()
    found[:25, 2] = 2.5
    mean, bound = recall(truth, found, 3)
    assert mean == pytest.approx(1 - 25 / 150)
    spread = np.std([1.0] * 25 + [2 / 3] * 25, ddof=1) / np.sqrt(50)
    assert bound == pytest.approx(mean - 2.326 * spread)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_recall_is_the_same_for_vectors_of_any_magnitude(scale):
    """What counts as equally near is relative: tiny distances do not make every answer right."""
    truth = np.tile(np.array([1.0, 2.0, 3.0, 4.0], np.float32), (50, 1)) * np.float32(scale)
    found = truth + np.float32(scale)
    assert recall(truth, truth * np.float32(1 + 1e-7), 3)[0] == 1.0
    assert recall(truth, found, 3)[0] == pytest.approx(2 / 3)


def test_held_out_rows_are_a_sample():
    """Held-out rows are distinct and ascending; too few rows hold out none."""
    rng = np.random.default_rng(SEED)
    assert held_out(100, rng).size == 0
    assert held_out(200, rng).size == 64
    chosen = held_out(100_000, rng)
    assert chosen.size == 1_024
    assert (np.diff(chosen) > 0).all()
    assert chosen[0] >= 0
    assert chosen[-1] < 100_000


@st.composite
def curves(draw):
    settings = sorted(draw(st.sets(st.integers(1, 2_000), min_size=1, max_size=8)))
    shares = st.floats(0.0, 1.0)
    bounds_10 = sorted(draw(st.lists(shares, min_size=8, max_size=8)))
    bounds_100 = sorted(draw(st.lists(shares, min_size=8, max_size=8)))
    points = [
        Point(s, b, b, c, c) for s, b, c in zip(settings, bounds_10, bounds_100, strict=False)
    ]
    return Curve(tuple(points), 10_000, 100, draw(st.integers(1, 100)))


@given(curves(), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.integers(1, 3_000))
def test_settings_grow_with_target_and_k(curve, one, other, k):
    """A higher target or a larger k never gets a cheaper setting; None stands above all."""

    def cost(target, wide):
        setting = curve.setting(target, wide)
        return np.inf if setting is None else setting

    low, high = sorted((one, other))
    assert cost(low, k) <= cost(high, k)
    assert cost(low, k) <= cost(low, k + 1) or k < 10
    assert cost(low, 1) == cost(low, 10)
    setting = curve.setting(low, 10)
    if setting is not None:
        above = next(p for p in curve.points if p.setting >= setting)
        assert above.bound_10 >= low
        assert low - 1e-9 <= curve.expected(setting) <= above.recall_10 + 1e-9


def test_candidates_to_rank_again_grow_with_depth():
    """A lossless code ranks little more than k again, a lossy one its depth times k."""
    assert Curve((), 0, 0).ranked_again(10) == 16
    assert Curve((), 0, 0, depth=4.0).ranked_again(10) == 46
    assert Curve((), 0, 0).expected(None) == 1.0
    assert Curve((), 0, 0).setting(0.5, 10) is None


def fake_measure(settings, search, rank=None, rows=500, cancel=None):
    keys = np.tile(np.arange(100, dtype=np.float32), (64, 1))
    return measure(
        np.zeros((64, 2), np.float32),
        rows,
        settings,
        1,
        100,
        lambda queries, k: keys[: len(queries), :k],
        search,
        rank,
        cancel or threading.Event(),
        lambda share: None,
    )


def test_measure_stops_when_recall_is_complete_and_when_cancelled():
    """The curve ends at the first setting without a miss; cancelling gives no curve."""
    keys = np.tile(np.arange(100, dtype=np.float32), (64, 1))

    def search(queries, k, setting):
        found = keys[: len(queries), :k] + (0 if setting >= 4 else 1)
        return found, np.zeros(found.shape, np.int64)

    curve = fake_measure((1, 2, 4, 8), search)
    assert curve is not None
    assert [point.setting for point in curve.points] == [1, 2, 4]
    assert curve.points[0].recall_10 == pytest.approx(0.9)
    assert curve.points[-1].recall_10 == curve.points[-1].recall_100 == 1.0
    assert all(point.cost_us > 0 for point in curve.points)
    stop = threading.Event()
    stop.set()
    assert fake_measure((1, 2, 4, 8), search, cancel=stop) is None


@pytest.mark.parametrize(("blur", "depth"), [(1, 1.0), (25, 2.0), (100, 10.0)])
def test_depth_is_what_a_blurred_order_needs(blur, depth):
    """Candidates that come in blocks of a blurred order are ranked again deep enough to hold the best."""

    def search(queries, k, setting):
        # True neighbours 0, 1, 2, ... come in blocks of `blur`, each in reverse.
        order = np.arange(400) // blur * blur + (blur - 1 - np.arange(400) % blur)
        positions = np.tile(order[:k], (len(queries), 1))
        return positions.astype(np.float32), positions

    curve = fake_measure((400,), search, lambda queries, at: at.astype(np.float32))
    assert curve is not None
    assert curve.depth in DEPTHS
    assert curve.ranked_again(10) >= min(blur, 10 * depth)
    assert curve.points[0].recall_10 == pytest.approx(1.0, abs=0.003)


@pytest.mark.parametrize(
    ("kind", "metric", "storage", "quantization"),
    [
        ("hnsw", "l2", "float32", "none"),
        ("hnsw", "ip", "float32", "sq4"),
        ("ivf", "cosine", "float32", "none"),
        ("ivf", "l2", "float32", "pq4"),
        ("ivf", "l2", "float32", "pq8"),
        ("exact", "l2", "float32", "sq4"),
        ("hnsw", "hamming", "binary", "none"),
    ],
)
def test_a_build_measures_its_curve(kind, metric, storage, quantization, monkeypatch):
    """Settings ascend, recall does too (but for chance), costs are filled, lossy codes have a depth."""
    monkeypatch.setattr(index_module, "LEAST_FRESH_ROWS", 1_000)
    rows = Rows(4_000, storage=storage)
    index = filled(rows, kind, metric, quantization)
    built = build(index)
    curve = built.curve
    settings = [point.setting for point in curve.points]
    assert settings == sorted(set(settings))
    assert curve.queries == 400
    assert curve.rows == 4_000 - 400
    for point in curve.points:
        assert point.cost_us > 0
        assert point.bound_10 <= point.recall_10 <= 1.0
        assert point.bound_100 <= point.recall_100 <= 1.0
    recalls = [point.recall_10 for point in curve.points]
    assert all(later >= earlier - 0.02 for earlier, later in itertools.pairwise(recalls))
    assert curve.depth in DEPTHS
    assert (curve.depth > 1.0) == (quantization in ("sq4", "pq4", "pq8"))
    index.install(built)
    stats = index.stats()
    assert stats.curve == curve
    assert stats.measured_recall == curve.measured(0.95)


def test_depth_makes_up_for_what_codes_lose():
    """Ranking `depth` times k again gives the target where ranking k alone would not."""
    rows = Rows(5_000)
    index = filled(rows, "ivf", "l2", "pq4")
    index.install(build(index))
    truth = plain(rows.queries, rows.vectors, "l2")
    main = index.view.main
    _, positions = main.search(rows.queries, 10, main.curve.points[-1].setting)
    own = np.take_along_axis(truth, main.rows[positions], axis=1)
    by_code = (own <= np.sort(truth, axis=1)[:, 9:10] + 1e-6).mean()
    assert by_code < 0.9, "the codes alone are right, so nothing is tested"
    assert hits(truth, index.view.search(rows.queries, 10), 10).mean() >= 0.95


def odd_queries(rows, count):
    """Queries that lie between clusters, where no row of the collection does."""
    rng = np.random.default_rng(SEED)
    picked = rows.vectors[rng.integers(0, len(rows.vectors), (count, 8))]
    return picked.mean(axis=1).astype(np.float32)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_the_target_is_kept_for_every_k(kind, monkeypatch):
    """Also between those that were measured: points without clusters need many more lists for 100 answers than for 10."""
    monkeypatch.setattr(plan, "exact_cost", lambda main, allowed: np.inf)
    print("seed", SEED)
    rng = np.random.default_rng(SEED)
    rows = Rows(1)
    rows.vectors = rng.standard_normal((12_000, rows.vectors.shape[1])).astype(np.float32)
    index = filled(rows, kind)
    index.install(build(index))
    queries = rng.standard_normal((100, rows.vectors.shape[1])).astype(np.float32)
    truth = plain(queries, rows.vectors, "l2")
    for k in (10, 30, 60, 100, 250, 500, 1_000):
        assert hits(truth, index.view.search(queries, k), k).mean() >= 0.94, k


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_recalibration_on_queries_off_the_data_gives_higher_settings(kind, monkeypatch):
    """Measured on queries of users that lie apart, the target needs, and gets, a higher setting."""
    monkeypatch.setattr(plan, "exact_cost", lambda *_: np.inf)
    rows = Rows(5_000)
    index = filled(rows, kind)
    index.install(build(index))
    first = index.view.main
    learned, asked = np.split(odd_queries(rows, 600), 2)
    truth = plain(asked, rows.vectors, "l2")
    before = hits(truth, index.view.search(asked, 10), 10).mean()
    shares = []
    again = index.recalibrate(learned, cancel=threading.Event(), progress=shares.append)
    assert shares == sorted(shares)
    assert again.curve.queries == 300
    assert again.curve.rows == first.n
    assert again.curve.setting(0.95, 10) > first.curve.setting(0.95, 10)
    assert again.main.block is first.block
    assert index.view.main is first, "nothing changes before it is installed"
    index.install(again)
    after = hits(truth, index.view.search(asked, 10), 10)
    assert before < 0.95
    assert after.mean() >= 0.95 - 3 * after.std() / np.sqrt(after.size)
    assert index.view.pieces == ()


@pytest.mark.parametrize(
    ("kind", "metric", "storage", "quantization"),
    [
        ("hnsw", "cosine", "float16", "none"),
        ("ivf", "l2", "float32", "pq4"),
        ("hnsw", "hamming", "binary", "none"),
        ("exact", "ip", "float32", "sq8"),
    ],
)
def test_recalibration_knows_every_kind_and_can_be_cancelled(
    kind, metric, storage, quantization, monkeypatch, tmp_path
):
    """Few queries, no index and a cancel give None; the record of the same files takes the new curve."""
    monkeypatch.setattr(index_module, "LEAST_FRESH_ROWS", 1_000)
    rows = Rows(2_500, storage=storage)
    index = filled(rows, kind, metric, quantization)
    go, stop = threading.Event(), threading.Event()
    stop.set()

    def again(queries, cancel):
        return index.recalibrate(queries, cancel=cancel, progress=lambda share: None)

    assert again(rows.queries, go) is None
    built = build(index)
    record = index.save(built, tmp_path)
    index.install(built)
    assert again(rows.queries[:63], go) is None
    assert again(rows.queries, stop) is None
    measured = again(rows.queries[:200], go)
    assert measured.curve.queries == 200
    index.install(measured)
    assert index.stats().curve == measured.curve
    changed = of_same_files(record, measured)
    assert changed.files() == record.files()
    loaded = make_index(rows, kind, metric, quantization).load(changed, tmp_path)
    assert loaded.curve == measured.curve


def test_when_growth_keeps_its_curve():
    """A graph grown by a tenth keeps its curve; beyond, fresh rows must suffice to measure it again."""
    rows = Rows(4_000)
    index = make_index(rows)
    index.append(rows.vectors[:3_000])
    index.publish(1)
    measured = build(index)
    main = measured.main.with_curve(replace(measured.curve, rows=3_000))
    assert main.block is measured.main.block
    assert can_extend(main, 100)
    assert can_extend(main, 128)
    assert not can_extend(main.with_curve(replace(main.curve, rows=2_000)), 127)
    index.install(replace(measured, main=main))
    for stop, keeps in ((3_100, True), (4_000, False)):
        index.append(rows.vectors[index.view.n_rows : stop])
        index.publish(stop)
        built = build(index)
        assert (built.main.rows[:3_000] == main.rows).all()
        assert (built.curve is main.curve) == keeps
        index.install(built)
    assert index.stats().curve.rows == 4_000 - index.stats().curve.queries


def drifting(easy_first):
    """Two halves of a collection: one without clusters, where walks need long, one of tight ones."""
    rng = np.random.default_rng(SEED)
    hard = Rows(4_000, dimension=32)
    hard.vectors[:] = rng.standard_normal((4_000, 32))
    hard.queries = rng.standard_normal((300, 32)).astype(np.float32)
    easy = Rows(4_000, dimension=32, clusters=800)
    easy.vectors += 2.0
    easy.queries += 2.0
    return (easy, hard) if easy_first else (hard, easy)


@pytest.mark.long
@pytest.mark.parametrize("quantization", ["none", "sq8", "sq4"])
@pytest.mark.parametrize("easy_first", [False, True])
def test_recall_holds_for_old_and_new_rows_after_the_data_drifted(
    easy_first, quantization, monkeypatch
):
    """When fresh rows differ from those before, queries like either reach the target after growing.

    Codes of 8 bits that fitted the rows before are trained anew with the graph, whose curve is that of all
    rows together: then so is the promise.
    """
    monkeypatch.setattr(plan, "exact_cost", lambda *_: np.inf)
    first, second = drifting(easy_first)
    both = Rows(0, dimension=32)
    both.vectors = np.concatenate([first.vectors, second.vectors])
    index = make_index(both, "hnsw", "l2", quantization)
    index.append(first.vectors)
    index.publish(1)
    index.install(build(index))
    index.append(second.vectors)
    index.publish(2)
    index.install(build(index))
    every = np.concatenate([first.queries, second.queries])
    parts = [every] if quantization == "sq8" else [first.queries, second.queries]
    for queries in parts:
        truth = plain(queries, both.vectors, "l2")
        right = hits(truth, index.view.search(queries, 10), 10)
        assert right.mean() >= 0.95 - 3 * right.std() / np.sqrt(right.size)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "quantization"),
    [
        ("hnsw", "sq4"),
        ("hnsw", "sq8"),
        ("ivf", "pq4"),
        ("ivf", "pq8"),
        ("ivf", "sq8"),
        ("exact", "sq4"),
    ],
)
def test_recall_holds_where_codes_cannot_tell_vectors_apart(kind, quantization, monkeypatch):
    """Crowds closer than the codes can tell are still answered at the target, at whatever cost."""
    monkeypatch.setattr(index_module, "LEAST_FRESH_ROWS", 1_000)
    rng = np.random.default_rng(SEED)
    rows = Rows(3_000)
    every = rng.standard_normal((6, 24))[rng.integers(0, 6, 3_200)]
    every = (every + 2e-4 * rng.standard_normal(every.shape)).astype(np.float32)
    rows.vectors, rows.queries = every[:3_000], every[3_000:]
    index = filled(rows, kind, "l2", quantization)
    index.install(build(index))
    truth = plain(rows.queries, rows.vectors.astype(np.float64), "l2")
    for target in (0.95, 0.99):
        found = index.view.search(rows.queries, 10, target_recall=target)
        own = np.take_along_axis(truth, found.rows, axis=1)
        right = (own <= np.sort(truth, axis=1)[:, 9:10] * (1 + 1e-4)).mean(axis=1)
        assert right.mean() >= target - 3 * right.std() / np.sqrt(right.size)
