"""The contract of a search, for every kind, metric and storage, against plain numpy in float64."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from index_rows import plain

from vecdb.errors import InvalidQuery, InvalidVector
from vecdb.index import Index, plan
from vecdb.settings import ENGINE, resolve

SEED = 20_261_124
KINDS = ("exact", "hnsw", "ivf")
COMBINATIONS = list(itertools.product(KINDS, ("cosine", "l2", "ip"), ("float32", "float16")))
DIMENSION = 16


def clustered(rng, n, centers, storage):
    near = centers[rng.integers(0, len(centers), n)]
    return (near + 0.35 * rng.standard_normal((n, DIMENSION))).astype(storage)


class Case:
    """An index of 3,600 rows with a main index (where its kind has one), a tail and dead rows."""

    def __init__(self, kind, metric, storage):
        rng = np.random.default_rng(SEED)
        centers = rng.standard_normal((40, DIMENSION))
        self.metric, self.storage, self.kind = metric, storage, kind
        self.vectors = clustered(rng, 3_600, centers, storage)
        self.queries = clustered(rng, 24, centers, np.float32)
        self.index = Index(
            dimension=DIMENSION,
            metric=metric,
            storage=storage,
            kind=kind,
            target_recall=0.95,
            settings=resolve(ENGINE, {"build_threads": 2}),
        )
        self.live = np.ones(3_600, np.bool_)
        self.index.append(self.vectors[:3_000])
        self._kill(rng.choice(3_000, 100, replace=False))
        view = self.index.publish(1)
        built = self.index.build(
            view, lambda a, b: self.vectors[a:b], cancel=threading.Event(), progress=lambda s: None
        )
        assert (built is None) == (kind == "exact")
        if built is not None:
            self.index.install(built)
        self.index.append(self.vectors[3_000:])
        # An update is a new row and a dead one; a delete is a dead one.
        self._kill(rng.choice(3_000, 300, replace=False))
        self._kill(3_000 + rng.choice(600, 90, replace=False))
        self.view = self.index.publish(2)
        self.truth = plain(self.queries, self.vectors, metric)
        # float32 sums of 16 products of size 10 at most; codes of unit vectors have 11 bits.
        self.tolerance = 1e-3 if self.view.lossy else 2e-5

    def _kill(self, rows):
        self.index.kill(rows)
        self.live[rows] = False

    def answer(self, found, k, allowed):
        """The k nearest of `found`, as a caller takes them; checks all that always holds."""
        allowed = allowed & self.live
        rows, near = found.rows, found.distances
        assert rows.dtype == np.int64
        assert near.dtype == np.float32
        assert rows.shape == near.shape
        assert (rows.shape[1] >= k) if self.view.lossy else (rows.shape[1] == k)
        assert ((rows < 0) == np.isnan(near)).all()
        count = min(k, int(allowed.sum()))
        assert (rows[:, :count] >= 0).all()
        if not self.view.lossy:
            assert (rows[:, count:] == -1).all()
        truth = np.take_along_axis(self.truth[: len(rows)], rows, axis=1)
        real = rows >= 0
        assert allowed[rows[real]].all()
        np.testing.assert_allclose(near[real], truth[real], rtol=1e-5, atol=self.tolerance)
        # Ascending by distance and then row, which also means that no row comes twice in a row.
        later, both = near[:, 1:] > near[:, :-1], real[:, 1:]
        assert (later | ((near[:, 1:] == near[:, :-1]) & (rows[:, 1:] > rows[:, :-1])))[both].all()
        for given in rows:
            assert np.unique(given[given >= 0]).size == np.count_nonzero(given >= 0)
        own = np.where(real, truth, np.inf)
        return np.sort(own, axis=1)[:, :count]

    def nearest(self, k, allowed, queries):
        truth = np.where(allowed & self.live, self.truth[:queries], np.inf)
        return np.sort(truth, axis=1)[:, : min(k, int((allowed & self.live).sum()))]

    def check_exact(self, k, allowed=None, queries=24, **options):
        found = self.view.search(self.queries[:queries], k, allowed=allowed, **options)
        everything = np.ones(3_600, np.bool_) if allowed is None else allowed
        assert found.exact
        np.testing.assert_allclose(
            self.answer(found, k, everything),
            self.nearest(k, everything, queries),
            rtol=1e-5,
            atol=2e-5,
        )
        return found

    def recall(self, found, k, allowed):
        own, best = self.answer(found, k, allowed), self.nearest(k, allowed, len(found.rows))
        return float((own <= best[:, -1:] + 1e-4).mean()) if own.size else 1.0


_cases: dict[tuple[str, str, str], Case] = {}


@pytest.fixture(params=COMBINATIONS, ids=lambda c: "-".join(c))
def case(request):
    if request.param not in _cases:
        _cases[request.param] = Case(*request.param)
    return _cases[request.param]


def test_exact_answers(case):
    """exact=True gives the true nearest rows, alone and in a batch, for small and large k."""
    for k, queries in ((1, 1), (10, 1), (10, 24), (150, 3), (150, 24)):
        case.check_exact(k, queries=queries, exact=True)
    case.check_exact(10, target_recall=1.0)


def test_more_answers_than_rows(case):
    """k beyond the number of live rows gives every live row, once."""
    for exact in (True, False):
        found = case.view.search(case.queries[:2], 10_000, exact=exact)
        for row in found.rows:
            assert sorted(row[row >= 0].tolist()) == np.flatnonzero(case.live).tolist()
        case.answer(found, 10_000, np.ones(3_600, np.bool_))


def test_usual_answers_are_complete_and_mostly_the_nearest(case):
    """Without exact, every answer is live and has its true distance, and recall is near target."""
    everything = np.ones(3_600, np.bool_)
    for k in (1, 10, 100):
        found = case.view.search(case.queries, k)
        assert case.recall(found, k, everything) >= 0.9
    assert case.view.search(case.queries[:0], 10).rows.shape[0] == 0


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.9, 0.99])
def test_filters_of_any_selectivity(case, share):
    """With a filter, k allowed answers come whenever k rows are allowed, and they are the nearest."""
    rng = np.random.default_rng(SEED)
    allowed = rng.random(3_600) < share
    for k in (10, 100):
        case.check_exact(k, allowed, exact=True)
        case.check_exact(k, allowed, queries=1, exact=True)
        found = case.view.search(case.queries, k, allowed=allowed)
        assert case.recall(found, k, allowed) >= 0.9


def test_a_filter_against_the_vectors_is_answered_right(case, monkeypatch):
    """Allowed rows that all lie far from the query do not fool the search."""
    monkeypatch.setattr(plan, "GRAPH_COST_A_CANDIDATE", 0.0)
    monkeypatch.setattr(plan, "LISTS_COST_A_ROW", 0.0)
    for i in range(5):
        far = case.truth[i] > np.quantile(case.truth[i], 0.4)
        found = case.view.search(case.queries[i : i + 1], 10, allowed=far)
        near = np.where(far & case.live, case.truth[i], np.inf)
        own = case.truth[i][found.rows[0][found.rows[0] >= 0]]
        np.testing.assert_allclose(np.sort(own)[:10], np.sort(near)[:10], rtol=1e-5, atol=2e-5)
        assert found.exact
        if case.kind == "hnsw":
            assert found.plan == "exact-after-overfetch"


def test_over_fetching_finds_what_a_filter_allows(case, monkeypatch):
    """A filter that has nothing to do with the vectors is served by the main index's own search."""
    monkeypatch.setattr(plan, "GRAPH_COST_A_CANDIDATE", 0.0)
    monkeypatch.setattr(plan, "LISTS_COST_A_ROW", 0.0)
    allowed = np.random.default_rng(SEED).random(3_600) < 0.4
    found = case.view.search(case.queries, 10, allowed=allowed)
    assert case.recall(found, 10, allowed) >= 0.9
    if case.kind != "exact":
        assert found.plan in ("overfetch", "exact-after-overfetch")
        assert not found.exact


def test_nothing_allowed_gives_nothing(case):
    """A filter without a match gives padding only."""
    found = case.view.search(case.queries[:3], 5, allowed=np.zeros(3_600, np.bool_))
    assert (found.rows == -1).all()
    assert np.isnan(found.distances).all()


def test_live_rows_are_told(case):
    """The view knows which rows are live, by mask, by row and by number."""
    view = case.view
    assert view.n_rows == 3_600
    assert view.n_live == case.live.sum()
    np.testing.assert_array_equal(view.live_mask(), case.live)
    np.testing.assert_array_equal(view.live_mask(13, 2_999), case.live[13:2_999])
    rows = np.array([3_599, 0, 77, -1, 3_600, 5_000])
    expected = [case.live[3_599], case.live[0], case.live[77], False, False, False]
    assert view.is_live(rows).tolist() == expected


def test_stats_count_rows(case):
    """Live rows are those held less the dead ones."""
    stats = case.index.stats()
    assert stats.kind == case.kind
    assert stats.device == "cpu"
    assert stats.indexed_rows == (0 if case.kind == "exact" else 2_900)
    assert stats.indexed_rows + stats.tail_rows - stats.dead_rows == case.live.sum()
    width = 2 if case.storage == "float16" else 4
    assert stats.memory_bytes >= case.live.sum() * DIMENSION * width
    assert 0.9 <= stats.measured_recall <= 1.0


def test_calls_that_are_wrong_are_refused(case):
    """A wrong dimension, k or filter mask is a typed error, never an abort."""
    view = case.view
    with pytest.raises(InvalidVector, match="17"):
        view.search(np.zeros((1, 17), np.float32), 1)
    with pytest.raises(InvalidVector, match="expected"):
        view.search(np.zeros(DIMENSION, np.float32), 1)
    with pytest.raises(InvalidQuery, match="k must be"):
        view.search(case.queries, 0)
    with pytest.raises(InvalidQuery, match="3600"):
        view.search(case.queries, 1, allowed=np.ones(3_599, np.bool_))
    with pytest.raises(InvalidQuery, match="bool"):
        view.search(case.queries, 1, allowed=np.ones(3_600, np.uint8))


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
def test_empty_and_dead_collections(metric, storage):
    """Without rows, and when all rows are dead, a search gives padding."""
    index = Index(
        dimension=3,
        metric=metric,
        storage=storage,
        kind="auto",
        target_recall=0.95,
        settings=resolve(ENGINE, {}),
    )
    query = np.ones((1, 3), np.float32)
    assert (index.view.search(query, 2).rows == -1).all()
    index.append(np.ones((5, 3), storage))
    assert index.view.n_rows == 0
    assert (index.publish(1).search(query, 2).rows[0, :2] == [0, 1]).all()
    index.kill(np.arange(5))
    index.kill(np.array([2, 2]))
    assert index.view.n_live == 5
    view = index.publish(2)
    assert view.n_live == 0
    assert (view.search(query, 2).rows == -1).all()
    assert not index.wants_build()


def test_wide_vectors_and_odd_layouts():
    """Strided, reversed and float16 input is copied, not misread."""
    rng = np.random.default_rng(SEED)
    vectors = rng.standard_normal((64, 2_000)).astype(np.float32)
    index = Index(
        dimension=1_000,
        metric="l2",
        storage="float32",
        kind="exact",
        target_recall=0.95,
        settings=resolve(ENGINE, {}),
    )
    index.append(vectors[::-1, ::2])
    view = index.publish(1)
    truth = plain(vectors[:3, ::2], vectors[::-1, ::2], "l2")
    found = view.search(np.asfortranarray(vectors[:3, ::2]), 4)
    np.testing.assert_allclose(found.distances, np.sort(truth, axis=1)[:, :4], rtol=1e-4, atol=1e-2)
    assert found.rows[:, 0].tolist() == [63, 62, 61]


def test_exact_answers_survive_lossy_codes_of_close_vectors():
    """With float16 and cosine the true nearest are among the answers, also in a dense crowd."""
    rng = np.random.default_rng(SEED)
    crowd = (rng.standard_normal(32) + 2e-3 * rng.standard_normal((600, 32))).astype(np.float16)
    index = Index(
        dimension=32,
        metric="cosine",
        storage="float16",
        kind="exact",
        target_recall=0.95,
        settings=resolve(ENGINE, {}),
    )
    index.append(crowd)
    view = index.publish(1)
    assert view.lossy
    query = crowd[:5].astype(np.float32)
    truth = plain(query, crowd, "cosine")
    found = view.search(query, 10)
    own = np.sort(np.take_along_axis(truth, found.rows, axis=1), axis=1)[:, :10]
    np.testing.assert_array_equal(own, np.sort(truth, axis=1)[:, :10])
    codes_only = np.sort(np.take_along_axis(truth, found.rows[:, :10], axis=1), axis=1)
    assert (codes_only != own).any(), "the codes alone were right, so nothing was tested"
