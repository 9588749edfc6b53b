"""Blocks of vectors by themselves: each is searched exactly, by what stands for its vectors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from index_rows import plain

from vecdb.index.blocks import Allowed, BitBlock, Block, CodeBlock, FloatBlock, ListBlock
from vecdb.index.cells import align_centroids
from vecdb.index.chosen import Few
from vecdb.index.codes import own_code
from vecdb.index.distance import unit
from vecdb.index.door import INNER_PRODUCT, L2, faiss, knn, through_blas
from vecdb.index.main import new_ivf

SEED = 20_261_123


def blocks_of(vectors, metric) -> list[Block]:
    name = "l2" if metric == L2 else "ip"
    some = vectors[:16].copy()
    made: list[Block] = [
        FloatBlock(vectors, metric),
        CodeBlock.of(vectors, "float16", name),
    ]
    for code in ("float32", "float16"):
        lists = new_ivf(vectors.shape[1], name, code, some, some)
        lists.add(vectors)
        lists.make_direct_map(True)
        made.append(ListBlock(lists))
    return made


def allowed_in(mask, as_list):
    if as_list:
        return Allowed(len(mask), picked=np.flatnonzero(mask))
    return Allowed(len(mask), mask=mask)


@pytest.mark.parametrize("metric", [L2, INNER_PRODUCT])
@pytest.mark.parametrize(("queries", "dimension"), [(1, 12), (30, 12), (500, 256)])
@pytest.mark.parametrize("share", [0.0, 0.002, 0.03, 0.2, 0.6, 1.0])
def test_blocks_search_exactly_within_what_is_allowed(metric, queries, dimension, share):
    """Each kind of block gives the nearest allowed vectors, whatever share is allowed."""
    rng = np.random.default_rng(SEED)
    # Small integers: every code holds them without loss, and their dot products are exact.
    vectors = rng.integers(-16, 17, (1_000, dimension)).astype(np.float32)
    x = rng.integers(-16, 17, (queries, dimension)).astype(np.float32)
    mask = rng.random(1_000) < share
    mask[77] = share > 0
    dots = x.astype(np.float64) @ vectors.T.astype(np.float64)
    truth = (x**2).sum(1)[:, None] - 2 * dots + (vectors**2).sum(1) if metric == L2 else -dots
    truth[:, ~mask] = np.inf
    k = 7
    assert through_blas(queries, dimension) == (queries == 500)
    width = min(k, int(mask.sum()))
    for number, block in enumerate(blocks_of(vectors, metric)):
        keys, positions = block.search(x, k, allowed_in(mask, as_list=number % 2 == 0))
        assert keys.shape == positions.shape == (queries, width)
        if width:
            assert mask[positions].all()
            own = np.take_along_axis(truth, positions, axis=1)
            np.testing.assert_array_equal(own, np.sort(truth, axis=1)[:, :width])
            np.testing.assert_allclose(keys, own, rtol=1e-6, atol=1e-2)
        if share == 1.0:
            np.testing.assert_array_equal(block.search(x, k)[0], keys)
        np.testing.assert_array_equal(block.take(np.array([5, 3])), vectors[[5, 3]])


@pytest.mark.parametrize("share", [0.0, 0.002, 0.2, 1.0])
@pytest.mark.parametrize("width", [1, 6, 48])
def test_bits_are_compared_by_how_many_differ(share, width):
    """A block of bits gives Hamming distances, with any number of bytes a vector."""
    rng = np.random.default_rng(SEED)
    vectors = rng.integers(0, 256, (500, width), np.uint8)
    x = rng.integers(0, 256, (9, width), np.uint8)
    mask = rng.random(500) < share
    truth = np.where(mask, plain(x, vectors, "hamming"), np.inf)
    count = min(12, int(mask.sum()))
    block = BitBlock(vectors)
    for as_list in (True, False):
        keys, positions = block.search(x, 12, allowed_in(mask, as_list))
        assert keys.shape == (9, count)
        np.testing.assert_array_equal(keys, np.sort(truth, axis=1)[:, :count])
        np.testing.assert_array_equal(keys, np.take_along_axis(truth, positions, axis=1))
    np.testing.assert_array_equal(block.take(np.array([5, 3])), vectors[[5, 3]])


@pytest.mark.parametrize("metric", [L2, INNER_PRODUCT])
@pytest.mark.parametrize("storage", ["int8", "uint8"])
@pytest.mark.parametrize("dimension", [8, 16, 24, 32, 96, 384])
@pytest.mark.parametrize("shift", [0.0, 0.45, -300.0])
def test_integers_are_compared_with_queries_of_any_numbers(metric, storage, dimension, shift):
    """Stored integers are compared with fractions and numbers out of their range, not with bytes."""
    rng = np.random.default_rng(SEED)
    bounds = np.iinfo(storage)
    vectors = rng.integers(bounds.min, bounds.max + 1, (400, dimension)).astype(storage)
    x = (rng.integers(bounds.min, bounds.max + 1, (4, dimension)) + shift).astype(np.float32)
    name = "l2" if metric == L2 else "ip"
    truth = plain(x, vectors, name) - (0 if metric == L2 else 1)
    keys, positions = CodeBlock.of(vectors, own_code(storage), name).search(x, 10)
    scale = np.linalg.norm(x, axis=1).max() * np.linalg.norm(vectors.astype(float), axis=1).max()
    np.testing.assert_allclose(keys, np.sort(truth, axis=1)[:, :10], rtol=1e-5, atol=1e-6 * scale)
    own = np.take_along_axis(truth, positions, axis=1)
    np.testing.assert_allclose(keys, own, rtol=1e-5, atol=1e-6 * scale)


@given(st.integers(1, 60), st.sets(st.integers(0, 59)), st.lists(st.integers(-1, 59), min_size=1))
def test_what_is_allowed_is_the_same_as_mask_and_as_list(n, chosen, asked):
    """Mask and list tell the same positions, and -1 is never allowed."""
    mask = np.isin(np.arange(n), list(chosen))
    positions = np.array([min(one, n - 1) for one in asked])
    for as_list in (True, False):
        for first in ("holds", "mask", "picked"):
            allowed = allowed_in(mask, as_list)
            if first != "holds":
                getattr(allowed, first)()
            expected = [bool(one >= 0 and mask[one]) for one in positions]
            assert allowed.holds(positions).tolist() == expected
            assert allowed.count == mask.sum()
            assert allowed.mask().tolist() == mask.tolist()
            assert allowed.picked().tolist() == np.flatnonzero(mask).tolist()


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


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("queries", [1, 3, 40])
@pytest.mark.parametrize("k", [1, 10, 64, 65, 200])
def test_few_selected_rows_are_ordered_by_distance_and_then_by_row(metric, queries, k):
    """However many of them are equally near, and whether k is more than there are."""
    rng = np.random.default_rng(SEED)
    vectors = rng.integers(-2, 3, (90, 3)).astype(np.float32)
    vectors = vectors[(vectors != 0).any(axis=1)]
    asked = rng.integers(-2, 3, (queries, 3)).astype(np.float32) + np.float32(0.25)
    if metric == "cosine":
        vectors, asked = unit(vectors), unit(asked)
    rows = np.sort(rng.choice(1_000, len(vectors), replace=False)).astype(np.int64)
    near, found = Few(rows, vectors, metric).search(asked, k)
    width = min(k, len(rows))
    assert near.shape == found.shape == (queries, k)
    assert np.isnan(near[:, width:]).all()
    assert (found[:, width:] == -1).all()
    truth = plain(asked, vectors, "ip" if metric == "cosine" else metric)
    for i in range(queries):
        best = np.sort(truth[i])[:width]
        np.testing.assert_allclose(near[i, :width], best, atol=1e-5)
        assert len(set(found[i, :width].tolist())) == width
        equal = near[i, 1:width] == near[i, : width - 1]
        assert (found[i, 1:width] > found[i, : width - 1])[equal].all()


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_one_query_to_a_few_rows_goes_the_short_way(metric):
    """The same bits as the long way, for queries of any length and from several threads at once."""
    rng = np.random.default_rng(SEED)
    vectors = rng.standard_normal((82, 48)).astype(np.float32)
    vectors = unit(vectors) if metric == "cosine" else vectors
    rows = np.sort(rng.choice(100_000, len(vectors), replace=False)).astype(np.int64)
    few = Few(rows, vectors, metric)
    asked = (rng.standard_normal((400, 48)) * rng.choice([1e-3, 1.0, 50.0], (400, 1))).astype("f4")

    def check(query, k):
        near, at = few.nearest(query, query.dot(query), k)
        long = few.search(unit(query[None]) if metric == "cosine" else query[None], k)
        assert near.shape == (1, k)
        assert near.tobytes() == long[0].tobytes()
        assert few.rows[at].tolist() == long[1][0].tolist()

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(check, q, 1 + i % 12) for i, q in enumerate(asked)]:
            done.result()
    assert few.nearest(asked[0], asked[0].dot(asked[0]), 82) is None, "all there are"
    assert few.nearest(asked[0], asked[0].dot(asked[0]), 65) is None, "no heap for so many"
    twins = Few(rows, np.repeat(vectors[:41], 2, axis=0), metric)
    assert twins.nearest(asked[0], asked[0].dot(asked[0]), 10) is None, "equal distances"
    assert not Few(rows, np.zeros((82, 1_024), np.float32), metric).is_small


@pytest.mark.parametrize("code", ["float32", "sq8", "pq4", "pq8"])
def test_moved_centroids_answer_as_before(code):
    """Centroids that were moved to a cache line are the same ones: each search gives the same bits, saved too."""
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(600, 16)).astype(np.float32)
    lists = new_ivf(16, "l2", code, vectors[:12].copy(), vectors)
    lists.add(vectors)
    before = lists.search(vectors[:50], 5)
    saved = faiss.serialize_index(lists).tobytes()
    align_centroids(lists)
    align_centroids(lists)
    assert int(faiss.downcast_index(lists.quantizer).get_xb()) % 64 == 0
    after = lists.search(vectors[:50], 5)
    assert [part.tobytes() for part in after] == [part.tobytes() for part in before]
    assert faiss.serialize_index(lists).tobytes() == saved
