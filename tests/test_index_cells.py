"""Which lists are probed: found by codes of centroids, as by comparing all of them, and no file knows of it."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from index_rows import Rows, build, clustered, filled, hits, make_index, plain

from vecdb.index import IndexRecord, cells
from vecdb.index.door import faiss
from vecdb.index.main import new_ivf, whole

CODES = ("float32", "float16", "sq8", "sq4", "pq4", "pq8")
LISTS, DIMENSION, NPROBE = 800, 32, 12


@pytest.fixture(autouse=True)
def _codes_for_few(monkeypatch):
    monkeypatch.setattr(cells, "LEAST_SCALARS", 1_000)


def lists_of(code="sq8", metric="l2", dimension=DIMENSION, seed=3):
    """Full lists, the vectors in them, and queries."""
    vectors = clustered(np.random.default_rng(seed), 6_000, dimension, 200).astype(np.float32)
    lists = new_ivf(dimension, metric, code, vectors[:LISTS].copy(), vectors[:2_000])
    lists.add(vectors)
    return whole(lists), vectors, vectors[-50:] + np.float32(0.1)


def searched(lists, nprobe, queries, by_codes):
    """Answers of single queries, by the twin or by the lists themselves."""
    index, params = cells.probing(lists, nprobe, 1)
    assert (index is not lists) == by_codes
    found = [index.search(queries[i : i + 1], 10, params=params) for i in range(len(queries))]
    return tuple(np.concatenate(part) for part in zip(*found, strict=True))


@pytest.fixture
def _of_few_lists(monkeypatch):
    """A few thousand rows have 150 lists, of which more may be compared again."""
    monkeypatch.setattr(cells, "_MOST_SHARE", 1)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("code", CODES)
def test_codes_find_the_nearest_lists(code, metric):
    """Lists that are found by codes of their centroids give nearly always the bits that all comparisons give."""
    lists, _, queries = lists_of(code, metric)
    before = searched(lists, NPROBE, queries, by_codes=False)
    cells.align_centroids(lists)
    after = searched(lists, NPROBE, queries, by_codes=True)
    same = (after[1] == before[1]).all(axis=1)
    assert same.mean() >= 0.9
    assert after[0][same].tobytes() == before[0][same].tobytes()


@pytest.mark.parametrize("queries", [1, 50])
def test_rows_of_the_lists_that_are_probed_are_counted(queries):
    """Nearly the rows of the nearest lists by numpy, found by codes or, where queries are many, by comparing all; and all rows
    where more lists are asked for than there are."""
    lists, vectors, asked = lists_of()
    cells.align_centroids(lists)
    held = np.array([lists.invlists.list_size(i) for i in range(LISTS)])
    nearest = np.argsort(plain(asked[:queries], vectors[:LISTS], "l2"), axis=1)[:, :NPROBE]
    expected = held[nearest].sum() / queries
    assert cells.rows_probed(lists, asked[:queries], NPROBE) == pytest.approx(expected, rel=0.1)
    assert cells.rows_probed(lists, asked[:queries], 2 * LISTS) == len(vectors)


@pytest.mark.parametrize("scale", [1e-15, 1e17])
def test_codes_of_the_smallest_and_largest_vectors(scale):
    """Vectors as small or large as a collection takes them find their lists as well."""
    lists, vectors, queries = lists_of("float32")
    scaled = new_ivf(DIMENSION, "l2", "float32", vectors[:LISTS] * np.float32(scale), vectors[:9])
    scaled.add(vectors * np.float32(scale))
    for one in (lists, scaled):
        cells.align_centroids(one)
    _, as_they_are = searched(lists, NPROBE, queries, by_codes=True)
    _, found = searched(scaled, NPROBE, queries * np.float32(scale), by_codes=True)
    assert (found == as_they_are).mean() > 0.98


def test_nearly_all_of_the_nearest_lists_are_found():
    """Of the lists that are nearest to queries more than 19 of 20 are probed."""
    lists, _, queries = lists_of()
    _, nearest = lists.quantizer.search(queries, NPROBE)
    cells.align_centroids(lists)
    twin, params = cells.probing(lists, NPROBE, 1)
    found = twin.quantizer.search(queries, NPROBE, params=params.quantizer_params)[1]
    shares = [np.isin(a, b).mean() for a, b in zip(nearest, found, strict=True)]
    assert np.mean(shares) > 0.95


@pytest.mark.parametrize(
    ("dimension", "nprobe", "queries"),
    [(31, NPROBE, 1), (DIMENSION, LISTS, 1), (DIMENSION, LISTS // 4, 1), (DIMENSION, NPROBE, 100)],
    ids=["an odd dimension", "all lists", "many lists", "many queries"],
)
def test_all_centroids_are_compared_where_codes_spare_nothing(dimension, nprobe, queries):
    """Dimensions without pairs, and calls that look at many lists or bring many queries, have no use for codes."""
    lists, *_ = lists_of(dimension=dimension)
    cells.align_centroids(lists)
    index, params = cells.probing(lists, nprobe, queries)
    assert index is lists
    assert params.nprobe == nprobe
    assert cells.cost(lists, LISTS) == LISTS
    if dimension == DIMENSION:
        assert cells.cost(lists, NPROBE) < LISTS / 2


def test_few_centroids_have_no_codes(monkeypatch):
    """Below a number of scalars it is quicker to compare them all."""
    monkeypatch.setattr(cells, "LEAST_SCALARS", LISTS * DIMENSION + 1)
    lists, *_ = lists_of()
    cells.align_centroids(lists)
    assert cells.probing(lists, NPROBE, 1)[0] is lists


@pytest.mark.usefixtures("_of_few_lists")
def test_files_do_not_know_of_codes(tmp_path):
    """What is saved is what would be saved without, and an index that was opened has codes and the same answers."""
    lists, *_ = lists_of()
    saved = faiss.serialize_index(lists).tobytes()
    cells.align_centroids(lists)
    assert faiss.serialize_index(lists).tobytes() == saved
    rows = Rows(6_000, dimension=DIMENSION)
    index = filled(rows, "ivf", "cosine", "sq8")
    built = build(index)
    index.install(built)
    record = index.save(built, tmp_path)
    other = filled(rows, "ivf", "cosine", "sq8")
    loaded = other.load(IndexRecord.from_json(record.to_json()), tmp_path)
    other.install(loaded)
    assert cells.probing(other.view.main.index, 1, 1)[0] is not other.view.main.index
    for query in rows.queries[:100]:
        one, two = (i.view.search(query[None], 10) for i in (index, other))
        assert one.rows.tobytes() == two.rows.tobytes()
        assert one.distances.tobytes() == two.distances.tobytes()


@pytest.mark.usefixtures("_of_few_lists")
@pytest.mark.parametrize("useless", [False, True], ids=["codes", "useless codes"])
def test_the_recall_that_was_measured_is_that_of_codes(useless, monkeypatch):
    """However bad codes are, single queries and small batches reach the target: the calibration searched this way, and
    has more lists probed."""
    if useless:
        # All centroids have the same code, and as many are compared again as are probed.
        monkeypatch.setattr(cells, "_LEVELS", np.zeros(4, np.float32))
        monkeypatch.setattr(cells, "_CANDIDATES", 0)
        monkeypatch.setattr(cells, "_CANDIDATES_A_LIST", 1)
        cells._probe_by_codes.cache_clear()
    try:
        rows = Rows(6_000, dimension=DIMENSION)
        index = filled(rows, "ivf", "l2", "sq8", target_recall=0.9)
        built = build(index)
        index.install(built)
        setting = built.curve.setting(0.9, 10)
        twin = cells.probing(built.main.index, 1, 1)[0]
        assert twin is not built.main.index
        truth = plain(rows.queries, rows.vectors, "l2")
        for size in (1, 10):
            right = [
                hits(truth[i : i + size], index.view.search(rows.queries[i : i + size], 10), 10)
                for i in range(0, 300, size)
            ]
            assert np.concatenate(right).mean() >= 0.9
    finally:
        cells._probe_by_codes.cache_clear()
    if useless:
        lists = int(built.main.index.nlist)
        assert setting is None or setting > lists // 8, "codes that say nothing were not noticed"
    else:
        assert setting is not None


@pytest.mark.usefixtures("_of_few_lists")
def test_lists_that_grow_have_codes_again():
    """Lists that took in fresh rows are compared by codes, and those before stay as they were."""
    rows = Rows(6_500, dimension=DIMENSION)
    index = make_index(rows, "ivf", "cosine", "sq8")
    index.append(rows.vectors[:6_000])
    index.publish(1)
    index.install(build(index))
    first = index.view.main.index
    index.append(rows.vectors[6_000:])
    index.publish(2)
    index.install(build(index))
    second = index.view.main.index
    assert second is not first
    assert int(second.ntotal) == int(first.ntotal) + 500
    for lists in (first, second):
        twin = cells.probing(lists, 1, 1)[0]
        assert twin is not lists
        assert int(twin.ntotal) == int(lists.ntotal)


def test_lists_go_when_nobody_holds_them():
    """Lists and what searches them by codes do not keep each other: 400 MB would wait for Python to look for cycles."""
    lists, *_ = lists_of()
    cells.align_centroids(lists)
    held = weakref.ref(lists)
    gc.disable()
    try:
        del lists
        assert held() is None
    finally:
        gc.enable()
