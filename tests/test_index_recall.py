"""The promised recall as a property: kinds, metrics, storages, codes, dimensions, filters, deletes.

Combinations are chosen so that every two values that go together meet in at least one of them. Data is
clustered and seeded; queries come from the same clusters and are in no index. Each mean is held
against its target less four standard errors of that mean, which covers the chance in which queries
were drawn (the chance in calibration is covered by the index itself, by its lower bounds): of 1,000
means that lie at the target in truth not one in ten would fall below. All means of an index
together must reach the target itself.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from index_rows import Rows, build, hits, make_index, plain, selection

from vecdb.index import index as index_module
from vecdb.index import main, plan
from vecdb.index.trace import Trace

SEED = 20_261_127
INDEXED, FRESH = 6_000, 600
QUERIES = 100
K = 10
DIMENSIONS = (8, 24, 96, 384)
TARGETS = (0.95, 0.99)
SHARES = (0.000_1, 0.001, 0.01, 0.1, 0.5, 0.99)
CHOICES = {
    "kind": ("exact", "hnsw", "ivf"),
    "metric": ("cosine", "l2", "ip", "hamming"),
    "storage": ("float32", "float16", "int8", "uint8", "binary"),
    "quantization": ("none", "float16", "sq8", "sq4", "pq4", "pq8"),
}


def goes_together(kind, metric, storage, quantization):
    if (storage == "binary") != (metric == "hamming") or (storage, kind) == ("binary", "ivf"):
        return False
    if quantization in ("pq4", "pq8") and kind != "ivf":
        return False
    return quantization == "none" or storage.startswith("float")


def pairs(combination):
    return {frozenset(two) for two in itertools.combinations(enumerate(combination), 2)}


def chosen_combinations():
    """As few combinations as a greedy search finds that hold every pair of values that goes together."""
    every = [one for one in itertools.product(*CHOICES.values()) if goes_together(*one)]
    missing = set().union(*map(pairs, every))
    chosen = []
    while missing:
        best = max(every, key=lambda one: len(pairs(one) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return [(*one, DIMENSIONS[i % len(DIMENSIONS)]) for i, one in enumerate(chosen)]


SIGNED = [
    (kind, metric, "float32", quantization, dimension)
    for kind, quantization in (("hnsw", "none"), ("hnsw", "sq8"), ("ivf", "sq8"))
    for metric, dimension in (("cosine", 96), ("ip", 128))
]
"""Those whose 8-bit codes walks read as signed bytes, see `signed.py`."""
COMBINATIONS = list(dict.fromkeys([*chosen_combinations(), *SIGNED]))


class Case:
    """An index just after its build (`fresh`), and with a tail, replaced and deleted rows (`aged`)."""

    def __init__(self, kind, metric, storage, quantization, dimension, indexed=INDEXED):
        rng = np.random.default_rng(SEED)
        self.kind, self.metric = kind, metric
        self.rows = Rows(indexed + FRESH, SEED, storage, dimension, clusters=60)
        self.queries = self.rows.queries[:QUERIES]
        self.truth = plain(self.queries, self.rows.vectors, metric)
        index = make_index(self.rows, kind, metric, quantization)
        index.append(self.rows.vectors[:indexed])
        index.publish(1)
        built = build(index)
        assert (built is None) == (kind == "exact" and quantization == "none")
        if built is not None:
            index.install(built)
        live = np.arange(indexed + FRESH) < indexed
        self.moments = [(index.view, live)]
        index.append(self.rows.vectors[indexed:])
        # Fresh rows replace as many old ones, and others are deleted.
        dead = rng.choice(indexed + FRESH, FRESH + 300, replace=False)
        index.kill(dead)
        live = np.ones(indexed + FRESH, np.bool_)
        live[dead] = False
        self.moments.append((index.publish(2), live))
        # float32 sums of products of this size.
        self.tolerance = 1e-5 * max(1.0, float(np.abs(self.truth).max()) / 50)

    def search(self, view, live, allowed=None, queries=slice(None), k=K, **options):
        """Hits of each query; checks that answers are live, allowed, complete and truly distant."""
        chosen = None
        wanted = live[: view.n_rows]
        if allowed is not None:
            wanted = wanted & allowed[: view.n_rows]
            chosen = selection(allowed[: view.n_rows], as_list=allowed.mean() < 0.05)
        found = view.search(self.queries[queries], k, allowed=chosen, **options)
        truth = np.where(wanted, self.truth[queries, : view.n_rows], np.inf)
        count = min(k, int(wanted.sum()))
        assert (found.rows[:, :count] >= 0).all()
        assert (found.rows[:, count:] == -1).all()
        assert np.isnan(found.distances[:, count:]).all()
        own = np.take_along_axis(truth, found.rows[:, :count], axis=1)
        assert np.isfinite(own).all(), "a dead row or one that is not allowed answers"
        near = found.distances[:, :count]
        np.testing.assert_allclose(near, own, rtol=1e-5, atol=self.tolerance)
        assert all(np.unique(row).size == count for row in found.rows[:, :count])
        return hits(truth, found, k) if count else np.ones(len(truth))


@pytest.fixture(scope="module", params=COMBINATIONS, ids=lambda one: "-".join(map(str, one)))
def case(request):
    with pytest.MonkeyPatch.context() as patch:
        # Flat codes are made for more rows than this: below, the tail is as good.
        patch.setattr(index_module, "LEAST_FRESH_ROWS", 1_000)
        return Case(*request.param)


def masks(live):
    """Allowed rows at each selectivity, at least one."""
    rng = np.random.default_rng(SEED)
    for share in SHARES:
        mask = np.zeros(live.size, np.bool_)
        mask[rng.choice(live.size, max(1, round(share * live.size)), replace=False)] = True
        yield share, mask


class Held:
    """Collects means that must reach a target, and says which do not."""

    def __init__(self, target):
        self.target, self.every, self.short = target, [], []

    def add(self, name, right):
        error = float(right.std(ddof=1)) / np.sqrt(right.size)
        self.every.append(right)
        if right.mean() < self.target - 4 * error:
            self.short.append((name, round(float(right.mean()), 3)))

    def check(self):
        assert not self.short, f"below {self.target}: {self.short}"
        assert np.concatenate(self.every).mean() >= self.target


def test_every_pair_of_values_is_tried():
    """No pair of values that goes together is left out, and each dimension is there."""
    every = [one for one in itertools.product(*CHOICES.values()) if goes_together(*one)]
    tried = set().union(*(pairs(one[:4]) for one in COMBINATIONS))
    assert tried == set().union(*map(pairs, every))
    assert {one[4] for one in COMBINATIONS} >= set(DIMENSIONS)


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_recall_reaches_its_target(case, target):
    """Without a filter, fresh and aged, in batches and alone, mean recall@10 is at least the target."""
    held = Held(target)
    for name, (view, live) in zip(("fresh", "aged"), case.moments, strict=True):
        held.add(name, case.search(view, live, target_recall=target))
        alone = [
            case.search(view, live, queries=slice(i, i + 1), target_recall=target)
            for i in range(40)
        ]
        held.add(f"{name}, alone", np.concatenate(alone))
    held.check()


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("walks", [False, True])
def test_recall_under_filters_reaches_its_target(case, target, walks, monkeypatch):
    """At every selectivity mean recall@10 is at least the target, also where comparing all that is
    allowed is made to look dear."""
    if walks:
        monkeypatch.setattr(plan, "exact_cost", lambda *_: 1e9)
    held = Held(target)
    for name, (view, live) in zip(("fresh", "aged"), case.moments, strict=True):
        for share, mask in masks(live):
            right = case.search(view, live, mask, target_recall=target)
            held.add(f"{name}, {share:.2%}", right)
    held.check()


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_recall_under_a_filter_against_the_vectors_reaches_its_target(case, target):
    """Where only rows far from the query are allowed, mean recall@10 is at least the target too."""
    held = Held(target)
    for name, (view, live) in zip(("fresh", "aged"), case.moments, strict=True):
        for share in (0.9, 0.5, 0.02):
            right = []
            for i in range(30):
                far = case.truth[i] > np.quantile(case.truth[i], 1.0 - share)
                one = slice(i, i + 1)
                right.append(case.search(view, live, far, queries=one, target_recall=target))
            held.add(f"{name}, farthest {share:.0%}", np.concatenate(right))
    held.check()


def test_exact_answers_are_exact(case):
    """exact=True is right for every query, under every filter, fresh and aged."""
    for view, live in case.moments:
        assert (case.search(view, live, exact=True) == 1.0).all()
        for _, mask in masks(live):
            few = slice(0, 25)
            assert (case.search(view, live, mask, queries=few, exact=True) == 1.0).all()
        far = case.truth[0] > np.quantile(case.truth[0], 0.6)
        assert (case.search(view, live, far, queries=slice(0, 1), exact=True) == 1.0).all()


@pytest.mark.parametrize("quantization", ["none", "sq8", "pq4"])
def test_lists_are_hardly_probed_more_for_dead_rows(quantization):
    """Some rows that died anywhere cost a few lists more, and a filter that allows the others many; where the nearest rows of a query have died, its answers among the
    living reach the target all the same."""
    rows = Rows(INDEXED, SEED, "float32", 24, clusters=60)
    queries, live = rows.queries[:60], np.ones(INDEXED, np.bool_)
    truth = plain(queries, rows.vectors, "l2")
    index = make_index(rows, "ivf", "l2", quantization)
    index.append(rows.vectors)
    index.publish(1)
    index.install(build(index))

    def setting(view, allowed=None):
        trace = Trace()
        view.search(queries[:1], K, allowed=allowed, target_recall=0.95, trace=trace)
        return trace.setting

    def asked(dead, sequence):
        index.kill(dead[live[dead]])
        live[dead] = False
        view = index.publish(sequence)
        found = [view.search(one[None], K, target_recall=0.95) for one in queries]
        among = np.where(live, truth, np.inf)
        right = [hits(among[i : i + 1], one, K)[0] for i, one in enumerate(found)]
        assert np.mean(right) >= 0.95
        return setting(view)

    whole = asked(np.empty(0, np.int64), 2)
    anywhere = np.random.default_rng(SEED).choice(INDEXED, 300, replace=False)
    others = np.ones(INDEXED, np.bool_)
    others[anywhere] = False
    filtered = setting(index.view, selection(others, as_list=False))
    assert whole <= asked(anywhere, 3) < (whole + filtered) / 2
    asked(np.unique(np.argsort(truth, axis=1)[:, :9]), 4)


LEAST_SHARE = 0.000_1
MANY = 52_000
"""Of so many rows the least share allows five."""


@pytest.mark.long
@pytest.mark.parametrize("against", [False, True], ids=["any", "farthest"])
@pytest.mark.parametrize("walks", [False, True])
def test_recall_where_one_row_in_ten_thousand_is_allowed(many, walks, against, monkeypatch):
    """Of five allowed rows among 52,000 the three nearest come at the target recall, and all of them where ten are
    asked for; wherever they lie, and also where comparing them is made to look dear."""
    if walks:
        monkeypatch.setattr(plan, "exact_cost", lambda *_: 1e9)
    held = Held(0.95)
    rng = np.random.default_rng(SEED)
    for name, (view, live) in zip(("fresh", "aged"), many.moments, strict=True):
        right = {3: [], 10: []}
        for i in range(12):
            there = np.flatnonzero(live)
            count = round(LEAST_SHARE * there.size)
            assert count >= 5
            chosen = there[np.argsort(many.truth[i, there])[-count:]]
            mask = np.zeros(live.size, np.bool_)
            mask[chosen if against else rng.choice(there, count, replace=False)] = True
            for k, hits_ in right.items():
                one = slice(i, i + 1)
                hits_.append(many.search(view, live, mask, one, k, target_recall=0.95))
        assert (np.concatenate(right[10]) == 1.0).all()
        held.add(f"{name}, 3 of 5", np.concatenate(right[3]))
    held.check()


@pytest.fixture(scope="module", params=[("exact", "none"), ("hnsw", "none"), ("ivf", "none")])
def many(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "EF_CONSTRUCTION", 40)  # in half the time, and good enough for 0.95
        return Case(request.param[0], "l2", "float32", request.param[1], 8, MANY)
