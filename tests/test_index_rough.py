"""Exact answers of float32 rows by way of their bytes: those of comparing all, whatever the rows, and proven."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from conftest import wait_until
from seeds import RUN_SEED

from vecdb.index import rough, signed, tail
from vecdb.index.blocks import Allowed, FloatBlock
from vecdb.index.chosen import Few
from vecdb.index.tail import Tail

DIMENSION = 24


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Few rows of few dimensions have bytes too."""
    monkeypatch.setattr(signed, "_LEAST_DIMENSION", 1)
    monkeypatch.setattr(rough, "LEAST_ROWS", 200)
    monkeypatch.setattr(rough, "_STEP_ROWS", 90)
    monkeypatch.setattr(rough, "_BEYOND", 15)


def rows_of(rng, n, clusters=30, spread=0.5, length=1.0):
    """Vectors (n, d) in clusters, whose lengths differ by half where `length` is not 1."""
    made = rng.standard_normal((clusters, DIMENSION))[rng.integers(clusters, size=n)]
    made = made + spread * rng.standard_normal((n, DIMENSION))
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    if length != 1.0:
        made *= length * rng.uniform(0.5, 1.0, (n, 1))
    return np.ascontiguousarray(made, np.float32)


def agrees(block, vectors, queries, k, mask=None):
    """Answers are the k nearest of the allowed, at their distances."""
    allowed = None if mask is None else Allowed(len(mask), mask=mask)
    keys, positions = block.search(queries, k, allowed)
    truth = -(queries.astype(np.float64) @ vectors.astype(np.float64).T)
    if mask is not None:
        truth[:, ~mask] = np.inf
    best = np.sort(truth, axis=1)[:, : keys.shape[1]]
    longest = [np.linalg.norm(of.astype(np.float64), axis=1).max() for of in (queries, vectors)]
    size = float(longest[0] * longest[1])
    assert np.allclose(keys, best, atol=2e-6 * size)
    own = np.take_along_axis(truth, positions, axis=1)
    assert np.allclose(own, best, atol=2e-6 * size)
    assert all(np.unique(row).size == len(row) for row in positions)


@pytest.mark.parametrize("spread", [0.0, 1e-4, 0.05, 0.5, 50.0])
@pytest.mark.parametrize(
    ("length", "asked"), [(1.0, 1.0), (1e-12, 1e-3), (1e12, 1e6), (1.0, 1e-22), (1e-23, 1.0)]
)
def test_answers_are_those_of_comparing_all(spread, length, asked):
    """Of rows from all alike to no alike, of any length, for single queries and several, with a filter and without; while
    rows get their bytes and when all have them."""
    rng = np.random.default_rng(RUN_SEED)
    vectors = rows_of(rng, 700, 5, spread, length)
    vectors[:40] = vectors[0]
    block = FloatBlock(vectors, 0, rough=rough.Rough(DIMENSION, 700))
    queries = rows_of(rng, 60, 5, spread) * np.float32(asked)
    mask = rng.random(700) < 0.6
    for i in range(20):
        agrees(block, vectors, queries[i : i + 1], 1 + i % 7)
        agrees(block, vectors, queries[i : i + 3], 5, mask)
    assert block.rough.n == 700 or block.rough._refused
    agrees(block, vectors, queries, 10)
    agrees(block, vectors, queries[:1], 600)


def test_bytes_answer_and_few_vectors_are_compared(monkeypatch):
    """Once rows have bytes no search compares all vectors, unless its proof fails."""
    rng = np.random.default_rng(RUN_SEED)
    vectors = rows_of(rng, 800)
    block = FloatBlock(vectors, 0, rough=rough.Rough(DIMENSION, 800))
    queries = rows_of(rng, 300)
    for i in range(20):
        block.search(queries[i : i + 1], 5)
    assert block.rough.n == 800
    assert block.nbytes == vectors.nbytes + 800 * DIMENSION
    compared = []
    knn = rough.knn
    monkeypatch.setattr(
        rough, "knn", lambda *given: (compared.append(len(given[0])), knn(*given))[1]
    )
    before = block.rough._failed
    for i in range(20, 300):
        agrees(block, vectors, queries[i : i + 1], 5)
    assert len(compared) == block.rough._failed - before < 100


def test_rows_that_no_bytes_tell_apart_are_compared_as_before():
    """Where most proofs fail bytes are not asked any more, and answers stay right."""
    rng = np.random.default_rng(RUN_SEED)
    vectors = rows_of(rng, 500, 1, 1e-4)
    block = FloatBlock(vectors, 0, rough=rough.Rough(DIMENSION, 500))
    for _ in range(3):
        agrees(block, vectors, rows_of(rng, 50, 1, 1e-4), 5)
    assert block.rough._refused
    agrees(block, vectors, vectors[:1], 5)


def test_a_row_beyond_the_bounds_only_widens_them():
    """Later rows that reach farther than those the scale was made for count with their whole error."""
    rng = np.random.default_rng(RUN_SEED)
    vectors = rows_of(rng, 600)
    vectors[400:] *= 5
    block = FloatBlock(vectors, 0, rough=rough.Rough(DIMENSION, 600))
    for _ in range(12):
        agrees(block, vectors, rows_of(rng, 1), 5)
    assert block.rough.n == 600 or block.rough._refused
    assert block.rough._error > 0.5 or block.rough._refused


def test_no_bytes_under_l2_for_few_rows_and_where_dimensions_differ():
    """There all is compared, as before."""
    rng = np.random.default_rng(RUN_SEED)
    vectors = rows_of(rng, 600)
    assert FloatBlock(vectors, 1, rough=rough.Rough(DIMENSION, 600)).rough is None
    few = FloatBlock(vectors[:199], 0, rough=rough.Rough(DIMENSION, 600))
    far = vectors.copy()
    far[:, 3] += 40
    uneven = FloatBlock(far, 0, rough=rough.Rough(DIMENSION, 600))
    for block, held in ((few, vectors[:199]), (uneven, far)):
        agrees(block, held, rows_of(rng, 1), 5)
        assert block.rough.n == 0


def test_memory_that_is_not_there_is_not_missed(monkeypatch):
    """Without room for bytes all vectors are compared."""

    def none(size):
        raise MemoryError

    monkeypatch.setattr(rough, "anonymous", none)
    rng = np.random.default_rng(RUN_SEED)
    vectors = rows_of(rng, 600)
    block = FloatBlock(vectors, 0, rough=rough.Rough(DIMENSION, 600))
    agrees(block, vectors, rows_of(rng, 1), 5)
    assert block.rough.n == 0


def test_a_tail_that_grows_seals_and_is_cut_answers_right(monkeypatch):
    """Views of every moment, asked again later, give the nearest of their own rows."""
    monkeypatch.setattr(tail, "MAX_PIECE_ROWS", 512)
    rng = np.random.default_rng(RUN_SEED)
    vectors = rows_of(rng, 3_000)
    own = Tail(DIMENSION, "cosine", "float32")
    views, stop = [], 0
    while stop < len(vectors):
        more = int(rng.integers(1, 250))
        own.append(vectors[stop : stop + more])
        stop = min(stop + more, len(vectors))
        if rng.random() < 0.1:
            own.trim(own.start + int(rng.integers(0, stop - own.start)))
        if rng.random() < 0.1:
            live = rng.random(stop) < 0.3
            own.compact(live)
        views.append(own.pieces())
        for pieces in (views[-1], views[int(rng.integers(len(views)))]):
            for piece in pieces:
                held = piece.block.take(np.arange(piece.block.n))
                mask = rng.random(piece.block.n) < 0.7
                agrees(piece.block, held, rows_of(rng, 1), 4)
                if mask.any():
                    agrees(piece.block, held, rows_of(rng, 1), 4, mask)
    coded = {id(p.block.rough): p.block.rough.n for pieces in views for p in pieces}
    assert sum(coded.values()) > 500


def test_short_and_empty_queries_do_not_end_the_bytes():
    """They have no proof by bytes, and do not count as failures of it."""
    rng = np.random.default_rng(RUN_SEED)
    vectors = rows_of(rng, 600)
    block = FloatBlock(vectors, 0, rough=rough.Rough(DIMENSION, 600))
    for _ in range(20):
        block.search(np.zeros((10, DIMENSION), np.float32), 5)
    agrees(block, vectors, rows_of(rng, 10), 5)
    assert not block.rough._refused
    assert block.rough.n == 600


def test_wide_answers_do_not_take_the_bytes_from_narrow_ones(monkeypatch):
    """A k for which nearly as many candidates as rows would be needed asks no bytes, and proofs are counted by how they went
    lately."""
    monkeypatch.setattr(rough, "_MOST_FAILED", 1.0)
    rng = np.random.default_rng(RUN_SEED)
    vectors = rows_of(rng, 700)
    block = FloatBlock(vectors, 0, rough=rough.Rough(DIMENSION, 700))
    for _ in range(12):
        agrees(block, vectors, rows_of(rng, 10), 100)
    assert block.rough._tried == 0
    for _ in range(400):
        agrees(block, vectors, rows_of(rng, 10), 2)
    assert block.rough._tried <= 2 * rough._REMEMBERED
    assert not block.rough._refused


def test_many_threads_ask_while_rows_come():
    """Each answer is right for the rows of its view, and one thread at a time makes bytes."""
    rng = np.random.default_rng(RUN_SEED)
    vectors = rows_of(rng, 4_000)
    queries = rows_of(rng, 64)
    own = Tail(DIMENSION, "cosine", "float32")
    own.append(vectors[:250])
    held, faults, ends = [own.pieces()], [], threading.Event()
    asked = [0] * 4

    def ask(number):
        turn = np.random.default_rng([RUN_SEED, number])
        try:
            while not ends.is_set():
                for piece in held[-1]:
                    at = slice(piece.start, piece.stop)
                    i = int(turn.integers(64))
                    agrees(piece.block, vectors[at], queries[i : i + 1], 3)
                asked[number] += 1
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for start in range(250, 4_000, 50):
        own.append(vectors[start : start + 50])
        held.append(own.pieces())
    wait_until(lambda: bool(faults) or min(asked) > 20, "they have asked")
    ends.set()
    for thread in threads:
        thread.join()
    assert not faults, faults[0]


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_a_filter_s_gathered_rows_are_compared_by_their_bytes(metric):
    """Nearest first, equal ones by row, those that died passed over; single queries make the bytes."""
    rng = np.random.default_rng(RUN_SEED)
    vectors = rows_of(rng, 700)
    vectors[300:310] = vectors[20]
    rows = np.sort(rng.choice(5_000, 700, replace=False))
    own = rough.Rough(DIMENSION, 800, 100)
    alive = rng.random(700) > 0.01
    everything = Few(rows, vectors, metric, rough=own)
    living = Few(rows, vectors, metric, alive, own)
    for i, query in enumerate([*rows_of(rng, 30), vectors[20], vectors[300]]):
        for few, there in ((everything, np.ones(700, np.bool_)), (living, alive)):
            near, found = few.search(query[None], 1 + i % 12)
            truth = 1.0 - vectors[there].astype(np.float64) @ query.astype(np.float64)
            best = np.argsort(truth, kind="stable")[: near.shape[1]]
            assert np.allclose(near[0], truth[best], atol=2e-6)
            clear = np.diff(truth[best]).min(initial=1.0) > 1e-5
            assert not clear or (found[0] == rows[there][best]).all()
    assert own.n == 700 or own._refused
    assert Few(rows, vectors, "l2", rough=own)._rough is None
