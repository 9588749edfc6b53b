"""A graph's vectors compared one by one by way of the bytes that it is walked over: the answers of comparing all, under any filter."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from index_rows import Rows, build, make_index
from seeds import RUN_SEED
from test_index_rough import DIMENSION, _small, agrees, rows_of

from vecdb.index import blocks, plan, rough, rough_guide, signed
from vecdb.index.blocks import Allowed, FloatBlock
from vecdb.index.rough_guide import GuideBytes

assert _small  # every test here uses it


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(rough_guide, "LEAST_ROWS", 60)
    monkeypatch.setattr(rough_guide, "_MEASURED_SCALARS", 150 * DIMENSION)
    monkeypatch.setattr(rough_guide, "BYTES_COST", 20.0)


def guided(vectors, scale=None):
    """A block of `vectors` with bytes of them, as beside a graph."""
    scale = scale or signed.shared_scale(vectors, "ip") or 100.0
    numbers = signed.numbers_of(vectors, scale)
    codes = numbers.astype(np.int8) ^ np.int8(-128)
    return FloatBlock(vectors, 0, rough=GuideBytes(signed.look_at(codes, scale, 0)))


def measured(block, queries):
    """The same block, asked until it is known how wrong its bytes are."""
    for i in range(40):
        block.search(queries[i % len(queries)][None], 3)
        if block.rough.measured:
            return block
    raise AssertionError(f"{block.rough.n} of {block.n} rows are measured")


@pytest.mark.parametrize("spread", [0.0, 1e-4, 0.05, 0.5, 50.0])
@pytest.mark.parametrize("length", [1.0, 1e-12, 1e12, 1e-23])
def test_answers_are_those_of_comparing_all(spread, length):
    """Of rows from all alike to no alike, of any length, with filters that allow many and few; before bytes are measured and after."""
    rng = np.random.default_rng(RUN_SEED)
    vectors = rows_of(rng, 900, 5, spread, length)
    vectors[:40] = vectors[0]
    block, queries = guided(vectors), rows_of(rng, 40, 5, spread)
    for i in range(30):
        mask = rng.random(900) < rng.choice([0.05, 0.2, 0.6, 0.95])
        agrees(block, vectors, queries[i : i + 1], 1 + i % 9, mask)
        agrees(block, vectors, queries[i : i + 3], 5, mask)
    assert block.rough.measured or block.rough._refused
    agrees(block, vectors, queries[:1], 600)


@pytest.mark.parametrize("scale", [3.0, 40.0, 2_000.0])
def test_bytes_of_any_scale_are_believed_as_far_as_they_are_right(scale):
    """Numbers cut off at the bounds, and steps as wide as the vectors, count with their whole error."""
    rng = np.random.default_rng(RUN_SEED)
    vectors, queries = rows_of(rng, 700), rows_of(rng, 80)
    block = measured(guided(vectors, scale), queries)
    assert block.rough._error > {3.0: 0.3, 40.0: 0.02, 2_000.0: 0.5}[scale]
    for i in range(80):
        agrees(block, vectors, queries[i : i + 1], 4, rng.random(700) < 0.5)


def test_bytes_answer_and_few_vectors_are_compared(monkeypatch):
    """Once measured, a filter that allows some is answered by bytes; one that allows next to none, and a batch, by vectors."""
    rng = np.random.default_rng(RUN_SEED)
    vectors, queries = rows_of(rng, 900), rows_of(rng, 400)
    block = measured(guided(vectors), queries)
    assert block.nbytes == vectors.nbytes
    asked, search = [], rough.search_one
    monkeypatch.setattr(
        rough, "search_one", lambda index, *given: (asked.append(index), search(index, *given))[1]
    )
    mask = rng.random(900) < 0.5
    for query in queries[:200]:
        agrees(block, vectors, query[None], 5, mask)
    assert len(asked) == 200
    assert block.by_bytes(1, Allowed(900, mask=mask))
    assert block.by_bytes(1, None)
    few, run = np.arange(900) < 20, np.arange(900) < 200
    for other in (few, run):
        agrees(block, vectors, queries[:1], 5, other)
        assert not block.by_bytes(1, Allowed(900, mask=other))
    monkeypatch.setattr(blocks, "through_blas", lambda queries, dimension: queries > 300)
    agrees(block, vectors, queries, 5, mask)
    assert not block.by_bytes(400, Allowed(900, mask=mask))
    assert len(asked) == 200


def same(block, vectors, queries, k, allowed):
    """`agrees` of one and the same `Allowed`, as a filter that comes again has it."""
    keys, positions = block.search(queries, k, allowed)
    truth = -(queries.astype(np.float64) @ vectors.astype(np.float64).T)
    truth[:, ~allowed.mask()] = np.inf
    best = np.sort(truth, axis=1)[:, : keys.shape[1]]
    assert np.allclose(keys, best, atol=2e-6)
    assert np.allclose(np.take_along_axis(truth, positions, axis=1), best, atol=2e-6)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("spread", [1e-4, 0.5])
def test_a_filter_that_is_asked_again_has_its_bytes_side_by_side(listed, spread, monkeypatch):
    """Once, for all queries that follow, of one and of several; where proofs fail the vectors are compared."""
    rng = np.random.default_rng(RUN_SEED)
    vectors, queries = rows_of(rng, 900, 30, spread), rows_of(rng, 60, 30, spread)
    block, made = measured(guided(vectors), queries), []
    look_at = rough_guide.look_at
    monkeypatch.setattr(rough_guide, "look_at", lambda codes, *more: made.append(len(codes)) or look_at(codes, *more))  # fmt: skip
    mask = rng.random(900) < 0.4
    allowed = Allowed(900, picked=np.flatnonzero(mask)) if listed else Allowed(900, mask=mask)
    scattered = block.rough.cost(allowed, 900)
    for i in range(40):
        same(block, vectors, queries[i : i + 1 + i % 4], 1 + i % 7, allowed)
    for k in (allowed.count // 4, allowed.count - 1, allowed.count):
        same(block, vectors, queries[:1], k, allowed)
    assert made == [allowed.count]
    assert block.rough._refused or block.rough.cost(allowed, 900) < scattered
    assert block.rough._refused or block.nbytes > vectors.nbytes + allowed.count * DIMENSION


def test_filters_that_have_no_room_together_are_not_gathered_for_each_query(monkeypatch):
    """One that had to go is compared without for a while, and its price is that."""
    rng = np.random.default_rng(RUN_SEED)
    vectors, queries = rows_of(rng, 900), rows_of(rng, 60)
    block, made = measured(guided(vectors), queries), []
    look_at = rough_guide.look_at
    monkeypatch.setattr(rough_guide, "look_at", lambda codes, *more: made.append(len(codes)) or look_at(codes, *more))  # fmt: skip
    several = [Allowed(900, mask=rng.random(900) < 0.3) for _ in range(4)]
    gone = 0
    for i in range(20):
        for allowed in several:
            same(block, vectors, queries[i : i + 1], 5, allowed)
            for one in several:
                gone += one.asked < 0
                assert one.asked >= 0 or block.rough.cost(one, 900) > 20 + 0.5 * one.count
    assert gone
    assert len(made) <= 14
    assert sum(one.count for one, _ in block.rough._kept.values()) <= 450


def test_a_small_filter_of_many_rows_is_gathered_too():
    """To ask a mask for all rows would not pay, but side by side its bytes do."""
    rng = np.random.default_rng(RUN_SEED)
    vectors = rows_of(rng, 4_000)
    block = measured(guided(vectors), rows_of(rng, 40))
    allowed = Allowed(4_000, picked=np.sort(rng.choice(4_000, 70, replace=False)))
    assert not block.rough.pays(allowed, 4_000)
    for query in rows_of(rng, 5):
        same(block, vectors, query[None], 5, allowed)
    assert id(allowed) in block.rough._kept


def test_without_memory_to_gather_a_mask_is_asked(monkeypatch):
    """The answer comes all the same."""
    rng = np.random.default_rng(RUN_SEED)
    vectors = rows_of(rng, 900)
    block = measured(guided(vectors), rows_of(rng, 40))

    def none(*_):
        raise MemoryError

    monkeypatch.setattr(rough_guide, "look_at", none)
    allowed = Allowed(900, mask=rng.random(900) < 0.4)
    for query in rows_of(rng, 12):
        same(block, vectors, query[None], 5, allowed)
    assert not block.rough._kept


def test_a_mask_of_nearly_all_makes_no_list():
    """What it costs to compare what is alive is known without a list of it."""
    allowed = Allowed(1_000_000, mask=np.ones(1_000_000, np.bool_))
    assert allowed.cost() == pytest.approx(700_000, rel=0.01)
    assert allowed._picked is None


def test_fewer_allowed_than_candidates():
    """A k below, and above, of what is allowed: all of it is an answer, or the best."""
    rng = np.random.default_rng(RUN_SEED)
    vectors, queries = rows_of(rng, 900), rows_of(rng, 30)
    block = measured(guided(vectors), queries)
    for query in queries:
        mask = np.zeros(900, np.bool_)
        mask[rng.choice(900, 70, replace=False)] = True
        assert block.by_bytes(1, Allowed(900, mask=mask))
        agrees(block, vectors, query[None], 20, mask)
        agrees(block, vectors, query[None], 90, mask)


def test_dimensions_that_no_processor_takes_at_once_have_no_bytes():
    """FAISS compares codes of these more slowly than vectors."""
    rng = np.random.default_rng(RUN_SEED)
    vectors = np.ascontiguousarray(rows_of(rng, 700)[:, :23])
    for block in (guided(vectors), FloatBlock(vectors, 0, rough=rough.Rough(23, 700))):
        for query in vectors[:30]:
            agrees(block, vectors, query[None], 5)
        assert block.rough.n == 0
        assert not block.rough.measured


def test_rows_that_no_bytes_tell_apart_are_compared_as_before():
    """Where most proofs fail bytes are not asked any more; the graph keeps them."""
    rng = np.random.default_rng(RUN_SEED)
    vectors = rows_of(rng, 700, 1, 1e-4)
    block = measured(guided(vectors, 90.0), vectors)
    for i in range(120):
        agrees(block, vectors, vectors[i : i + 1], 5, rng.random(700) < 0.7)
    assert block.rough._refused
    assert not block.rough.measured
    assert not block.by_bytes(1, 700)
    agrees(block, vectors, vectors[:1], 5)


def test_many_threads_measure_and_ask():
    """One measures at a time; each answer is that of comparing all."""
    rng = np.random.default_rng(RUN_SEED)
    vectors, queries = rows_of(rng, 5_000), rows_of(rng, 64)
    block, faults = guided(vectors), []
    mask = rng.random(5_000) < 0.3

    def ask(number):
        try:
            for i in range(80):
                agrees(block, vectors, queries[(number + i) % 64][None], 4, mask)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults[0]
    assert block.rough.measured


@pytest.mark.parametrize("metric", ["cosine", "ip"])
def test_a_graph_compares_by_its_bytes(metric, tmp_path, monkeypatch):
    """Built, opened and grown; then plans count with it: comparing what a filter allows is cheaper than before."""
    monkeypatch.setattr(rough_guide, "_MEASURED_SCALARS", 150 * 96)
    rows = Rows(4_000, dimension=96)
    index = make_index(rows, "hnsw", metric, "none")
    index.append(rows.vectors[:3_000])
    index.publish(1)
    built = build(index)
    loaded = make_index(rows, "hnsw", metric, "none").load(index.save(built, tmp_path), tmp_path)
    index.install(built)
    index.append(rows.vectors[3_000:])
    index.publish(2)
    mains = [built.main, loaded.main, build(index).main]
    queries = rows.queries[:40].astype(np.float32)
    if metric == "cosine":
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    for main in mains:
        block = main.block
        assert isinstance(block.rough, GuideBytes), type(block)
        allowed = Allowed(main.n, mask=np.arange(main.n) % 3 > 0)
        before = plan.exact_cost(main, allowed), plan.exact_cost(main, None)
        measured(block, queries)
        assert plan.exact_cost(main, allowed) < before[0]
        assert plan.exact_cost(main, None) < before[1]
        assert plan.exact_cost(main, allowed, 400) <= before[0]
        for query in queries:
            agrees(block, np.asarray(block.vectors), query[None], 10, allowed.mask())
    assert mains[2].n == 4_000
