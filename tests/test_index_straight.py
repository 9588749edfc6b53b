"""The commonest query of all goes a way of its own, with the answers of the ordinary one."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from index_rows import Rows, build, make_index
from seeds import RUN_SEED

from vecdb.index import chosen, desks, straight
from vecdb.index.chosen import Few
from vecdb.index.door import best_products

ROWS = 3_000


@pytest.fixture(scope="module", params=["cosine", "ip"])
def view(request):
    """Of a graph over signed bytes, and nothing else."""
    rows = Rows(ROWS, dimension=96)
    index = make_index(rows, "hnsw", request.param, "none")
    index.append(rows.vectors)
    index.publish(1)
    index.install(build(index))
    index.publish(2)
    assert index.view.main is not None
    assert index.view.main.walked is not None
    return index.view


def asked(view, query, k, target=0.95):
    """The straight way, and the ordinary one, which is taken where the square is not known."""
    square = float(query[0].dot(query[0]))
    return view.search(query, k, target_recall=target, square=square), view.search(
        query, k, target_recall=target
    )


def test_answers_are_those_of_the_ordinary_way(view, monkeypatch):
    """To the last bit, for any k, target and length of the query; and they do come the straight way."""
    taken, nearest = [], straight.Straight.nearest

    def counted(self, query, square):
        taken.append(nearest(self, query, square))
        return taken[-1]

    monkeypatch.setattr(straight.Straight, "nearest", counted)
    rng = np.random.default_rng(RUN_SEED)
    for i in range(60):
        query = rng.standard_normal((1, 96)).astype(np.float32) * np.float32(10.0 ** (i % 9 - 4))
        k, target = (1, 3, 10, 40)[i % 4], (0.6, 0.9, 0.95)[i % 3]
        one, other = asked(view, query, k, target)
        assert one.plan == other.plan == "graph"
        assert not one.exact
        assert (one.rows == other.rows).all()
        assert (one.distances == other.distances).all()
    assert len(taken) == 60
    assert None not in taken


def test_queries_that_need_a_closer_look_go_the_ordinary_way(view):
    """Not contiguous, very short and very long, zero: as where nothing is known of the square."""
    rng = np.random.default_rng(RUN_SEED)
    wide = rng.standard_normal((1, 192)).astype(np.float32)
    one, other = asked(view, wide[:, ::2], 10)
    assert (one.rows == other.rows).all()
    for size in (1e-14, 1e16) if view.metric == "cosine" else (1e-14, 1e14):
        one, other = asked(view, wide[:, :96].copy() * np.float32(size), 10)
        assert (one.rows == other.rows).all()
    if view.metric == "ip":
        one, other = asked(view, np.zeros((1, 96), np.float32), 10)
        assert (one.distances == other.distances).all()


def test_a_query_within_a_query(view, monkeypatch):
    """As a signal's handler may ask one: both are answered right."""
    rng = np.random.default_rng(RUN_SEED)
    queries = rng.standard_normal((2, 1, 96)).astype(np.float32)
    truth = [view.search(query, 10, target_recall=0.9).rows for query in queries]
    inner, use = [], straight.use_threads

    def asks(count):
        if not inner:
            inner.append(None)
            inner.append(asked(view, queries[1], 10, 0.9)[0])
        use(count)

    asked(view, queries[0], 10, 0.9)
    monkeypatch.setattr(straight, "use_threads", asks)
    outer, _ = asked(view, queries[0], 10, 0.9)
    assert (outer.rows == truth[0]).all()
    assert (inner[1].rows == truth[1]).all()


def test_a_query_of_few_rows_within_another(monkeypatch):
    """What is asked among a small filter's rows has a desk of its own too; wide ones are not kept."""
    rng = np.random.default_rng(RUN_SEED)
    vectors, queries = rng.standard_normal((2, 60, 96)).astype(np.float32)
    few = Few(np.arange(60), vectors, "l2")
    truth = [few.nearest(query, 1.0, 5) for query in queries[:2]]
    inner, use = [], chosen.use_threads

    def asks(count):
        if not inner:
            inner.append(None)
            inner.append(few.nearest(queries[1], 1.0, 5))
        use(count)

    monkeypatch.setattr(chosen, "use_threads", asks)
    outer = few.nearest(queries[0], 1.0, 5)
    for found, right in zip((outer, inner[1]), truth, strict=True):
        assert (found[0] == right[0]).all()
        assert found[1] == right[1]
    wide = desks.take(96, 5_000)
    desks.give_back(wide)
    assert desks.take(96, 5_000) is not wide
    narrow = desks.take(96, 50)
    desks.give_back(narrow)
    assert desks.take(96, 50) is narrow


def test_memory_at_an_odd_address(view):
    """Such queries are copied first."""
    rng = np.random.default_rng(RUN_SEED)
    query = rng.standard_normal((1, 96)).astype(np.float32)
    odd = np.frombuffer(b"x" + query.tobytes(), np.float32, offset=1).reshape(1, 96)
    one, other = asked(view, odd, 10)
    assert (one.rows == other.rows).all()


def test_ways_that_are_kept_are_few(view):
    """A target of each query's own does not fill memory."""
    query = np.ones((1, 96), np.float32)
    for n in range(100):
        asked(view, query, 5, 0.8 + n / 1_000)
    assert len(view._straights) <= 64


def test_more_than_there_is_and_exact_answers(view):
    """A k of nearly all rows, and a target of 1, compare all."""
    rng = np.random.default_rng(RUN_SEED)
    query = rng.standard_normal((1, 96)).astype(np.float32)
    for k, target in ((2_900, 0.95), (10, 1.0)):
        one, other = asked(view, query, k, target)
        assert one.exact
        assert (one.rows == other.rows).all()


def test_a_fresh_or_dead_row_ends_the_straight_way():
    """Views of later moments give what is there then."""
    rows = Rows(ROWS + 1, dimension=96)
    index = make_index(rows, "hnsw", "cosine", "none")
    index.append(rows.vectors[:ROWS])
    index.publish(1)
    index.install(build(index))
    index.publish(2)
    query = rows.vectors[ROWS:].astype(np.float32)
    before, _ = asked(index.view, query, 5)
    index.append(rows.vectors[ROWS:])
    index.publish(3)
    fresh, _ = asked(index.view, query, 5)
    assert fresh.rows[0, 0] == ROWS
    assert fresh.rows[0, 1:].tolist() == before.rows[0, :4].tolist()
    index.kill(np.array([ROWS, before.rows[0, 0]]))
    index.publish(4)
    left, _ = asked(index.view, query, 4)
    assert left.rows[0].tolist() == before.rows[0, 1:].tolist()


def test_many_threads_ask_one_view(view):
    """Each has its own desk."""
    rng = np.random.default_rng(RUN_SEED)
    queries = rng.standard_normal((40, 1, 96)).astype(np.float32)
    truth = [view.search(query, 10, target_recall=0.9).rows for query in queries]
    faults = []

    def ask(number):
        for i in range(120):
            at = (7 * number + i) % 40
            found, _ = asked(view, queries[at], 10, 0.9)
            if (found.rows != truth[at]).any():
                faults.append(at)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


@pytest.mark.parametrize("dimension", [1, 7, 384, 1_536])
def test_the_best_products_are_those_of_numpy(dimension):
    """Of a query with rows anywhere in a matrix, best first."""
    rng = np.random.default_rng(dimension)
    vectors = rng.standard_normal((500, dimension)).astype(np.float32)
    query = rng.standard_normal((1, dimension)).astype(np.float32)
    places = rng.choice(500, (1, 40), replace=False).astype(np.int64)
    scores, found = best_products(query, vectors, places, 10)
    assert scores.dtype == np.float32
    truth = vectors[places[0]].astype(np.float64) @ query[0].astype(np.float64)
    order = np.argsort(-truth)[:10]
    np.testing.assert_allclose(scores[0], truth[order], rtol=1e-4, atol=1e-4)
    assert found[0].tolist() == places[0, order].tolist()


def test_negative_places_are_no_answers():
    """A walk that found fewer than it was asked for gives them at its end."""
    vectors = -np.eye(8, dtype=np.float32)
    query = np.arange(1, 9, dtype=np.float32).reshape(1, 8)
    places = np.array([[5, 2, 7, -1, -1, -1]], np.int64)
    scores, found = best_products(query, vectors, places, 5)
    assert found.tolist() == [[2, 5, 7, -1, -1]]
    assert scores[0].tolist() == [-3.0, -6.0, -8.0, -np.inf, -np.inf]
