"""The parts of the index by themselves: distances, blocks, bitmap, tail, recall curve."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from index_rows import plain

from vecdb.index import distances
from vecdb.index.blocks import Block, FloatBlock, HalfBlock, ListBlock
from vecdb.index.calibrate import Curve, Point, held_out, measure, recall
from vecdb.index.distance import Merger, unit
from vecdb.index.door import INNER_PRODUCT, L2, knn, through_blas
from vecdb.index.live import LiveRows, is_set, unpack
from vecdb.index.main import new_ivf
from vecdb.index.tail import Tail

SEED = 20_261_123


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
def test_distances_follow_the_definitions(metric):
    """distances() gives the textbook values to float32 accuracy."""
    rng = np.random.default_rng(SEED)
    x, y = rng.standard_normal((3, 70)), rng.standard_normal((50, 70))
    found = distances(x.astype(np.float32), y.astype(np.float32), metric)
    assert found.dtype == np.float32
    assert found.shape == (3, 50)
    np.testing.assert_allclose(found, plain(x, y, metric), rtol=2e-6, atol=2e-6)


def test_l2_of_long_and_close_vectors_keeps_its_digits():
    """Vectors far from the origin and close to each other have exact squared distances."""
    base = np.full((1, 64), 10_000.0, np.float32)
    other = base + np.float32(0.25)
    assert distances(base, other, "l2")[0, 0] == 64 * 0.0625


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
def test_a_distance_does_not_depend_on_the_rest_of_the_call(metric):
    """A pair has the same bits alone and among others."""
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal((40, 33)).astype(np.float32)
    y = rng.standard_normal((300, 33)).astype(np.float32)
    together = distances(x, y, metric)
    assert together[17, 123] == distances(x[17:18], y[123:124], metric)[0, 0]


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1.0, 1e12, 1e30])
def test_unit_vectors_of_any_magnitude(scale):
    """Normalising does not overflow or vanish for tiny and huge vectors."""
    vectors = np.array([[3.0, 4.0], [-1.0, 0.0]]) * scale
    np.testing.assert_allclose(
        unit(vectors.astype(np.float32)), [[0.6, 0.8], [-1.0, 0.0]], rtol=1e-6, atol=1e-7
    )


def blocks_of(vectors, metric) -> list[Block]:
    lists = new_ivf(
        vectors.shape[1], "l2" if metric == L2 else "ip", "float32", vectors[:16].copy()
    )
    lists.add(vectors)
    lists.make_direct_map(True)
    return [FloatBlock(vectors, metric), HalfBlock.of(vectors, metric), ListBlock(lists)]


@pytest.mark.parametrize("metric", [L2, INNER_PRODUCT])
@pytest.mark.parametrize(("queries", "dimension"), [(1, 12), (30, 12), (500, 256)])
@pytest.mark.parametrize("share", [0.0, 0.002, 0.03, 0.2, 0.6, 1.0])
def test_blocks_search_exactly_within_a_mask(metric, queries, dimension, share):
    """Each kind of block gives the nearest allowed vectors, whatever share is allowed."""
    rng = np.random.default_rng(SEED)
    # Multiples of 1/4 in a small range: float16, float32 and their dot products are all exact.
    vectors = (rng.integers(-16, 17, (1_000, dimension)) / 4).astype(np.float32)
    x = (rng.integers(-16, 17, (queries, dimension)) / 4).astype(np.float32)
    mask = rng.random(1_000) < share
    mask[77] = share > 0
    dots = x.astype(np.float64) @ vectors.T.astype(np.float64)
    truth = (x**2).sum(1)[:, None] - 2 * dots + (vectors**2).sum(1) if metric == L2 else -dots
    truth[:, ~mask] = np.inf
    k = 7
    assert through_blas(queries, dimension) == (queries == 500)
    for block in blocks_of(vectors, metric):
        keys, positions = block.search(x, k, mask)
        width = min(k, int(mask.sum()))
        assert keys.shape == positions.shape == (queries, width)
        if width:
            assert mask[positions].all()
            np.testing.assert_array_equal(keys, np.sort(truth, axis=1)[:, :width])
            np.testing.assert_array_equal(keys, np.take_along_axis(truth, positions, axis=1))
        np.testing.assert_array_equal(block.take(np.array([5, 3])), vectors[[5, 3]])


@pytest.mark.parametrize("offset", [0.0, 100.0, 10_000.0])
def test_l2_batches_answer_as_single_queries_do(offset):
    """A batch that goes through BLAS gives the answers of single queries, also far from 0."""
    rng = np.random.default_rng(SEED)
    vectors = (rng.standard_normal((1_000, 512)) + offset).astype(np.float32)
    x = (rng.standard_normal((260, 512)) + offset).astype(np.float32)
    assert through_blas(*x.shape)
    assert not through_blas(1, 512)
    block = FloatBlock(vectors, L2)
    keys, positions = block.search(x, 10)
    lossy = knn(x, vectors, 10, L2)[1]
    assert (lossy != positions).any() == (offset > 0), "BLAS did no harm, so nothing was tested"
    for i in (0, 13, 129, 259):
        truth = plain(x[i : i + 1], vectors, "l2")[0]
        np.testing.assert_allclose(keys[i], np.sort(truth)[:10], rtol=1e-5)
        np.testing.assert_array_equal(positions[i], np.argsort(truth)[:10])
        np.testing.assert_array_equal(block.search(x[i : i + 1], 10)[1][0], positions[i])


def test_l2_batch_among_many_equal_vectors():
    """More ties than spare candidates do not lose an answer."""
    vectors = np.zeros((500, 512), np.float32)
    vectors[400:] = 1.0
    keys, positions = FloatBlock(vectors, L2).search(np.ones((250, 512), np.float32), 120)
    assert (keys[:, :100] == 0).all()
    assert (keys[:, 100:] == 512).all()
    assert (np.sort(positions[:, :100], axis=1) == np.arange(400, 500)).all()


def test_merger_keeps_the_best_in_order():
    """Many pieces merge to the k smallest, by distance and then row, padded behind the last."""
    rng = np.random.default_rng(SEED)
    merger = Merger(50)
    every = []
    for piece in range(200):
        keys = rng.integers(0, 1_000, (2, 40)).astype(np.float32)
        rows = np.tile(np.arange(piece * 40, piece * 40 + 40), (2, 1))
        merger.add(keys, rows)
        every.append(keys)
    near, rows = merger.result(2, "l2")
    np.testing.assert_array_equal(near, np.sort(np.concatenate(every, axis=1), axis=1)[:, :50])
    same = near[:, 1:] == near[:, :-1]
    assert (rows[:, 1:] > rows[:, :-1])[same].all()
    near, rows = Merger(3).result(2, "ip")
    assert np.isnan(near).all()
    assert (rows == -1).all()


@given(st.lists(st.tuples(st.integers(0, 70), st.lists(st.integers(0, 400))), max_size=12))
def test_live_rows_are_a_set_that_views_share(steps):
    """The bitmap follows a plain set, and what was shared never changes below its rows."""
    live, model, shared = LiveRows(), [], []
    for count, deaths in steps:
        live.append(count)
        model += [True] * count
        rows = sorted({row for row in deaths if row < len(model)})
        expected = [row for row in rows if model[row]]
        assert (
            live.kill(np.array(deaths, np.int64)[np.array(deaths, np.int64) < len(model)]).tolist()
            == expected
        )
        for row in rows:
            model[row] = False
        assert live.n_live == sum(model)
        assert live.mask().tolist() == model
        shared.append((live.share(), list(model)))
        for bits, then in shared:
            n = len(then)
            assert unpack(bits, 0, n).tolist() == then
            assert unpack(bits, n // 3, n).tolist() == then[n // 3 :]
            assert is_set(bits, np.arange(n)).tolist() == then


@pytest.mark.parametrize("half", [False, True])
def test_tail_holds_every_row_in_pieces(half):
    """Rows come back under their numbers over many pieces, before and after trimming."""
    tail = Tail(65_000, L2, half, start=5)
    assert tail.piece_rows == 256
    tail = Tail(4, L2, half, start=5)
    tail.piece_rows = 100
    vectors = np.arange(4 * 777, dtype=np.float32).reshape(777, 4) % 1_000
    for start in range(0, 777, 130):
        tail.append(vectors[start : start + 130])
    for first in (5, 38, 105, 106, 781):
        tail.trim(first)
        seen = []
        for piece in tail.pieces():
            positions = np.arange(piece.block.n)
            rows = piece.row_numbers(positions)
            np.testing.assert_array_equal(piece.block.take(positions), vectors[rows - 5])
            seen += rows.tolist()
        assert seen == list(range(first, 782))
    tail.trim(782)
    assert tail.pieces() == ()
    tail.append(vectors[:1])
    assert tail.pieces()[0].start == 782


@pytest.mark.parametrize("half", [False, True])
def test_tail_under_steady_updates_stays_small(half):
    """A few records updated for ever take bounded memory, and stay right."""
    tail, live = Tail(8, L2, half), LiveRows()
    tail.piece_rows = 200
    rng = np.random.default_rng(SEED)
    vectors = np.empty((0, 8), np.float32)
    current = np.empty(0, np.int64)
    for _ in range(100):
        fresh = rng.integers(0, 50, (90, 8)).astype(np.float32)
        tail.append(fresh)
        live.append(90)
        live.kill(current)
        current = np.arange(len(vectors), len(vectors) + 90)
        vectors = np.concatenate([vectors, fresh])
        tail.compact(live.mask())
    held = sum(piece.block.n for piece in tail.pieces())
    assert held <= 90 + 2 * 200
    alive = []
    for piece in tail.pieces():
        positions = np.arange(piece.block.n)
        rows = piece.row_numbers(positions)
        np.testing.assert_array_equal(piece.block.take(positions), vectors[rows])
        alive += rows[live.mask()[rows]].tolist()
    assert alive == current.tolist()


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
        (0.96, 10, 256),
        (0.999, 10, None),
        (1.0, 10, None),
        (0.92, 100, 100),
        (0.95, 100, 256),
        (0.95, 55, 160),
        (0.95, 1_000, 2_560),
        (0.97, 100, None),
    ],
)
def test_the_cheapest_setting_whose_bound_reaches_the_target(target, k, setting):
    """The curve's lower bound decides; between and beyond the measured k the setting grows with k."""
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


def test_held_out_rows_are_a_sample():
    """Held-out rows are distinct and ascending; too few rows hold out none."""
    rng = np.random.default_rng(SEED)
    assert held_out(100, rng).size == 0
    assert held_out(200, rng).size == 64
    chosen = held_out(100_000, rng)
    assert chosen.size == 512
    assert (np.diff(chosen) > 0).all()
    assert chosen[0] >= 0
    assert chosen[-1] < 100_000


def test_measure_stops_when_recall_is_complete_and_when_cancelled():
    """The curve ends at the first setting without a miss; cancelling gives no curve."""
    keys = np.tile(np.arange(100, dtype=np.float32), (64, 1))

    def search(queries, k, setting):
        return keys[: len(queries), :k] + (0 if setting >= 4 else 1)

    arguments = (
        np.zeros((64, 2), np.float32),
        500,
        (1, 2, 4, 8),
        1,
        lambda q, k: keys[: len(q), :k],
        search,
    )
    curve = measure(*arguments, threading.Event(), lambda share: None)
    assert curve is not None
    assert [point.setting for point in curve.points] == [1, 2, 4]
    assert curve.points[0].recall_10 == pytest.approx(0.9)
    assert curve.points[-1].recall_10 == curve.points[-1].recall_100 == 1.0
    stop = threading.Event()
    stop.set()
    assert measure(*arguments, stop, lambda share: None) is None
