"""The contract of a search, for every kind, metric and storage, against plain numpy in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from index_rows import Rows, build, hits, make_index, plain, selection

from vecdb.errors import InvalidQuery, InvalidVector
from vecdb.index import Trace, plan
from vecdb.index import index as index_module
from vecdb.selection import Selection

SEED = 20_261_124
KINDS = ("exact", "hnsw", "ivf")
METRICS = ("cosine", "l2", "ip")
COMBINATIONS = [
    *itertools.product(KINDS, METRICS, ("float32", "float16"), ("none",)),
    *itertools.product(KINDS, ("cosine", "l2"), ("int8",), ("none",)),
    *itertools.product(KINDS, ("cosine", "ip"), ("uint8",), ("none",)),
    *itertools.product(("exact", "hnsw"), ("hamming",), ("binary",), ("none",)),
    *itertools.product(KINDS, ("cosine", "l2"), ("float32",), ("sq8",)),
    *itertools.product(KINDS, ("ip",), ("float32", "float16"), ("sq4",)),
    *itertools.product(("ivf",), METRICS, ("float32",), ("pq4", "pq8")),
    *itertools.product(("hnsw",), ("l2",), ("float32",), ("float16",)),
]
DIMENSION = 16


class Case:
    """An index of 3,600 rows with a main index (where its kind has one), a tail and dead rows."""

    def __init__(self, kind, metric, storage, quantization):
        rng = np.random.default_rng(SEED)
        rows = Rows(3_600, SEED, storage, DIMENSION, clusters=40)
        self.metric, self.storage, self.kind, self.quantization = (
            metric, storage, kind, quantization,
        )  # fmt: skip
        self.vectors, self.queries = rows.vectors, rows.queries[:24]
        self.index = make_index(rows, kind, metric, quantization)
        self.live = np.ones(3_600, np.bool_)
        self.index.append(self.vectors[:3_000])
        self._kill(rng.choice(3_000, 100, replace=False))
        self.index.publish(1)
        built = build(self.index)
        self.has_main = kind != "exact" or quantization != "none"
        assert (built is not None) == self.has_main
        if built is not None:
            self.index.install(built)
        self.index.append(self.vectors[3_000:])
        # An update is a new row and a dead one; a delete is a dead one.
        self._kill(rng.choice(3_000, 300, replace=False))
        self._kill(3_000 + rng.choice(600, 90, replace=False))
        self.view = self.index.publish(2)
        self.lossy = self.has_main and self.view.main.lossy
        self.truth = plain(self.queries, self.vectors, metric)
        # float32 sums of 16 products: by size of the products, a million times those of floats where
        # integers up to 255 are multiplied.
        self.tolerance = 1e-5 * max(1.0, float(np.abs(self.truth).max()) / 50)

    def _kill(self, rows):
        self.index.kill(rows)
        self.live[rows] = False

    def selection(self, allowed):
        """A filter in one of its two forms, which depends on how many it allows."""
        return selection(allowed, as_list=bool(allowed.sum() % 2))

    def answer(self, found, k, allowed):
        """True distances of the answers, inf where there is none; checks all that always holds."""
        allowed = allowed & self.live
        rows, near = found.rows, found.distances
        assert rows.dtype == np.int64
        assert near.dtype == np.float32
        assert rows.shape == near.shape == (len(rows), k)
        assert ((rows < 0) == np.isnan(near)).all()
        count = min(k, int(allowed.sum()))
        assert (rows[:, :count] >= 0).all()
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
        return np.sort(np.where(real, truth, np.inf), axis=1)[:, :count]

    def nearest(self, k, allowed, queries):
        truth = np.where(allowed & self.live, self.truth[:queries], np.inf)
        return np.sort(truth, axis=1)[:, : min(k, int((allowed & self.live).sum()))]

    def check_exact(self, k, allowed=None, queries=24, **options):
        chosen = None if allowed is None else self.selection(allowed)
        found = self.view.search(self.queries[:queries], k, allowed=chosen, **options)
        everything = np.ones(3_600, np.bool_) if allowed is None else allowed
        assert found.exact
        np.testing.assert_allclose(
            self.answer(found, k, everything),
            self.nearest(k, everything, queries),
            rtol=1e-5,
            atol=self.tolerance,
        )
        return found

    def recall(self, found, k, allowed):
        self.answer(found, k, allowed)
        truth = np.where(allowed & self.live, self.truth[: len(found.rows)], np.inf)
        return float(hits(truth, found, k).mean()) if np.isfinite(truth).any() else 1.0


_cases: dict[tuple[str, str, str, str], Case] = {}


@pytest.fixture(params=COMBINATIONS, ids=lambda c: "-".join(c))
def case(request):
    if request.param not in _cases:
        with pytest.MonkeyPatch.context() as patch:
            # Flat codes are made for more rows than this: below, the tail is as good.
            patch.setattr(index_module, "LEAST_FRESH_ROWS", 1_000)
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
        found = case.view.search(case.queries, k, allowed=case.selection(allowed))
        assert case.recall(found, k, allowed) >= 0.9


def test_a_filter_against_the_vectors_is_answered_right(case, monkeypatch):
    """Allowed rows that all lie far from the query do not fool the search."""
    monkeypatch.setattr(plan, "GRAPH_COST_A_CANDIDATE", 0.0)
    monkeypatch.setattr(plan, "LISTS_COST_A_ROW", 0.0)
    right = []
    for i in range(24):
        far = case.truth[i] > np.quantile(case.truth[i], 0.4)
        found = case.view.search(case.queries[i : i + 1], 10, allowed=case.selection(far))
        assert (found.rows >= 0).all()
        truth = np.where(far & case.live, case.truth[i : i + 1], np.inf)
        right.append(float(hits(truth, found, 10)[0]))
        if case.kind == "hnsw" and not case.lossy:
            assert "exact" in found.plan, "the walk goes where no row is allowed"
        if found.exact:
            assert right[-1] == 1.0
        else:
            assert case.lossy or case.view.lossy_tail or found.plan == "overfetch"
    assert np.mean(right) >= 0.9


def test_over_fetching_finds_what_a_filter_allows(case, monkeypatch):
    """A filter that has nothing to do with the vectors is served by the main index's own search."""
    monkeypatch.setattr(plan, "GRAPH_COST_A_CANDIDATE", 0.0)
    monkeypatch.setattr(plan, "LISTS_COST_A_ROW", 0.0)
    monkeypatch.setattr(plan, "LISTS_MARGIN", 1)  # few rows here: all lists would be probed
    allowed = np.random.default_rng(SEED).random(3_600) < 0.4
    found = case.view.search(case.queries, 10, allowed=case.selection(allowed))
    assert case.recall(found, 10, allowed) >= 0.9
    main = case.view.main
    if case.kind != "exact" and main.setting(0.95, 100) is not None:
        assert found.plan in ("overfetch", "exact-after-overfetch")
        assert not found.exact


def test_nothing_allowed_gives_nothing(case):
    """A filter without a match gives padding only."""
    for as_list in (True, False):
        nothing = selection(np.zeros(3_600, np.bool_), as_list)
        found = case.view.search(case.queries[:3], 5, allowed=nothing)
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
    assert stats.quantization == case.quantization
    assert stats.indexed_rows == (2_900 if case.has_main else 0)
    assert stats.built_at_sequence == (1 if case.has_main else 0)
    assert stats.age_s >= 0.0
    assert stats.indexed_rows + stats.tail_rows - stats.dead_rows == case.live.sum()
    bits = {"float32": 32, "float16": 16, "int8": 8, "uint8": 8, "binary": 1}[case.storage]
    bits = {"sq8": 8, "sq4": 4, "pq4": 1, "pq8": 2}.get(case.quantization, bits)
    assert stats.memory_bytes >= case.live.sum() * DIMENSION * bits / 8
    assert 0.9 <= stats.measured_recall <= 1.0


def test_calls_that_are_wrong_are_refused(case):
    """A wrong dimension, k or filter is a typed error, never an abort."""
    view = case.view
    with pytest.raises(InvalidVector, match="17"):
        view.search(np.zeros((1, 17), case.queries.dtype), 1)
    with pytest.raises(InvalidVector, match="expected"):
        view.search(case.queries[0], 1)
    with pytest.raises(InvalidQuery, match="k must be"):
        view.search(case.queries, 0)
    with pytest.raises(InvalidQuery, match="3600"):
        view.search(case.queries, 1, allowed=Selection(3_599, mask=np.ones(3_599, np.bool_)))


def test_a_trace_tells_what_a_search_did(case):
    """The trace agrees with the answer, counts what was allowed and compared, and changes nothing."""
    allowed = np.random.default_rng(SEED).random(3_600) < 0.5
    for mask, exact in ((None, False), (allowed, False), (None, True), (allowed, True)):
        chosen = None if mask is None else case.selection(mask)
        trace = Trace()
        found = case.view.search(case.queries, 10, allowed=chosen, exact=exact, trace=trace)
        plain_found = case.view.search(case.queries, 10, allowed=chosen, exact=exact)
        np.testing.assert_array_equal(found.rows, plain_found.rows)
        wanted = case.live if mask is None else case.live & mask
        assert trace.plan == found.plan == plain_found.plan
        assert trace.allowed_rows == wanted.sum()
        assert (trace.setting_name == "") == (trace.setting == 0)
        assert trace.setting_name == {"hnsw": "efSearch", "ivf": "nprobe"}.get(
            case.kind if trace.setting else "", ""
        )
        if exact and not case.lossy and not case.view.lossy_tail:
            compared = trace.main_rows_compared + trace.tail_rows_compared
            assert compared == wanted.sum()
        if not exact:
            in_tail = np.count_nonzero(wanted[3_000:] if case.has_main else wanted)
            # Where its codes lose something the tail may be looked at again.
            assert trace.tail_rows_compared >= in_tail
            assert trace.tail_rows_compared == in_tail or case.view.lossy_tail
        assert 0.9 <= trace.expected_recall <= 1.0


@pytest.mark.parametrize("storage", ["float32", "float16", "int8", "uint8", "binary"])
@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
def test_empty_and_dead_collections(metric, storage):
    """Without rows, and when all rows are dead, a search gives padding."""
    rows = Rows(5, storage=storage, dimension=8)
    index = make_index(rows, "auto", "hamming" if storage == "binary" else metric)
    rows.vectors[:] = 1
    query = np.ones_like(rows.queries[:1])
    assert (index.view.search(query, 2).rows == -1).all()
    index.append(rows.vectors)
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
    rows = Rows(64, dimension=1_000)
    rows.vectors = vectors[::-1, ::2]
    index = make_index(rows, "exact")
    index.append(rows.vectors)
    view = index.publish(1)
    truth = plain(vectors[:3, ::2], vectors[::-1, ::2], "l2")
    for queries in (np.asfortranarray(vectors[:3, ::2]), vectors[:3, ::2].astype(np.float64)):
        found = view.search(queries, 4)
        np.testing.assert_allclose(
            found.distances, np.sort(truth, axis=1)[:, :4], rtol=1e-4, atol=1e-2
        )
        assert found.rows[:, 0].tolist() == [63, 62, 61]


@pytest.mark.parametrize("exact", [True, False])
def test_answers_survive_lossy_codes_of_close_vectors(exact):
    """With float16 and cosine the true nearest are the answers, also in a dense crowd."""
    rng = np.random.default_rng(SEED)
    rows = Rows(600, storage="float16", dimension=32)
    rows.vectors = (rng.standard_normal(32) + 2e-3 * rng.standard_normal((600, 32))).astype(
        np.float16
    )
    index = make_index(rows, "exact", "cosine")
    index.append(rows.vectors)
    view = index.publish(1)
    query = rows.vectors[:5].astype(np.float32)
    truth = plain(query, rows.vectors, "cosine")
    found = view.search(query, 10, exact=exact)
    own = np.sort(np.take_along_axis(truth, found.rows, axis=1), axis=1)
    np.testing.assert_allclose(own, np.sort(truth, axis=1)[:, :10], rtol=1e-5, atol=2e-7)
    unit = query / np.linalg.norm(query, axis=1, keepdims=True)
    by_code = view.pieces[0].block.search(unit, 10)[1]
    codes_only = np.sort(np.take_along_axis(truth, by_code, axis=1), axis=1)
    assert (codes_only > own + 2e-7).any(), "the codes alone were right, so nothing was tested"
