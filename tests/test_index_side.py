"""Graphs of their own for filters that are asked often: earned, right, and let go when they no longer pay."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from conftest import wait_until
from index_rows import SEED, Rows, build, hits, make_index, plain, soon_worth_it

from vecdb.errors import LimitExceeded
from vecdb.index import Trace, plan, side
from vecdb.index.blocks import Allowed, nearness
from vecdb.index.calibrate import Curve, Point
from vecdb.index.one import _way
from vecdb.selection import Selection

N, FRESH, K = 3_000, 300, 10
ASKED = 128

CASES = [
    ("l2", "float32", "none"),
    ("cosine", "float32", "none"),
    ("ip", "float16", "none"),
    ("cosine", "float32", "sq8"),
    ("l2", "float32", "sq4"),
    ("ip", "float32", "sq8"),
]


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    soon_worth_it(monkeypatch, ASKED)


class Filtered:
    """An index and the filters asked of it, with the truth about each."""

    def __init__(self, metric="l2", storage="float32", quantization="none", **settings):
        self.metric = metric
        self.rows = Rows(N + FRESH, SEED, storage)
        self.index = make_index(self.rows, metric=metric, quantization=quantization, **settings)
        self.calls = 0
        self.index.sides.wake = self.wake
        self.index.append(self.rows.vectors[:N])
        self.index.publish(1)
        self.index.install(build(self.index))
        self.live = np.arange(N + FRESH) < N
        self.truth = plain(self.rows.queries, self.rows.vectors, metric)
        # Queries in order of one direction, so that a filter may go against them.
        order = np.argsort(self.rows.queries[:, 0].astype(np.float32), kind="stable")
        self.low, self.any = order[:200], np.arange(300)
        along = self.rows.vectors[:, 0].astype(np.float32)
        rng = np.random.default_rng(SEED)
        self.masks = {
            "tenth": rng.random(N + FRESH) < 0.1,
            "third": rng.random(N + FRESH) < 0.3,
            "against": along > np.quantile(along, 0.75),
        }
        self.kept = {}

    def wake(self):
        self.calls += 1

    def selection(self, name, view):
        """As collections give it: the same object for the same filter and rows."""
        kept = self.kept.get((name, view.n_rows))
        if kept is None:
            mask = self.masks[name][: view.n_rows]
            kept = self.kept[name, view.n_rows] = Selection(view.n_rows, mask=mask, key=name)
        return kept

    def queries(self, name):
        return self.low if name == "against" else self.any

    def ask(self, name, at=slice(0, ASKED), view=None, k=K, **options):
        view = view or self.index.view
        which = self.queries(name)[at]
        allowed = self.selection(name, view)
        return view.search(self.rows.queries[which], k, allowed=allowed, **options)

    def earn(self, name):
        self.ask(name)
        assert self.index.sides.any_wanted
        return self.index.build_side(cancel=threading.Event())

    def plan(self, name, **options):
        trace = Trace()
        self.ask(name, slice(150, 180), trace=trace, **options)
        return trace.plan

    def check(self, name, view=None, live=None, k=K, at=slice(ASKED, 200)):
        """Answers of queries that were not calibrated on: allowed, live, complete; the share of right ones."""
        view = view or self.index.view
        live = (self.live if live is None else live)[: view.n_rows]
        found = self.ask(name, at, view, k)
        wanted = self.masks[name][: view.n_rows] & live
        which = self.queries(name)[at]
        truth = np.where(wanted, self.truth[which][:, : view.n_rows], np.inf)
        count = min(k, int(wanted.sum()))
        assert (found.rows[:, :count] >= 0).all()
        own = np.take_along_axis(truth, found.rows[:, :count], axis=1)
        assert np.isfinite(own).all(), "a dead row or one that is not allowed answers"
        np.testing.assert_allclose(found.distances[:, :count], own, rtol=1e-4, atol=1e-3)
        assert all(np.unique(row).size == count for row in found.rows[:, :count])
        return float(hits(truth, found, k).mean())

    def kill(self, rows):
        self.index.kill(rows)
        self.live[rows] = False
        self.index.publish(self.index.view.sequence + 1)


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_answers_are_right_at_every_age(case):
    """With dead rows and with a tail the recall holds, also where a filter goes against the vectors; when a
    fifth of the rows have died the graph is let go."""
    filtered = Filtered(*case)
    sides = filtered.index.sides
    before = filtered.index.stats().memory_bytes
    for count, name in enumerate(filtered.masks, 1):
        assert filtered.plan(name) != plan.SIDE
        joined = int((filtered.masks[name] & filtered.live).sum())
        assert filtered.earn(name) == joined
        assert filtered.plan(name) == plan.SIDE
        assert sides.count == filtered.index.stats().side_graphs == count
        assert filtered.check(name) >= 0.93
        assert filtered.check(name, at=slice(190, 191)) >= 0.5
        assert filtered.check(name, k=60) >= 0.9
        # More than it can hold, or all that there are.
        assert filtered.check(name, k=joined + 5, at=slice(130, 140)) >= 0.9
    assert filtered.index.stats().memory_bytes == before + sides.nbytes
    rng = np.random.default_rng(SEED + 1)
    filtered.kill(np.flatnonzero(rng.random(N) < 0.1))
    filtered.index.append(filtered.rows.vectors[N:])
    filtered.live[N:] = True
    filtered.index.publish(9)
    for name in filtered.masks:
        # By 4 bits in 24 dimensions the nearest hundred cannot be told from each other.
        assert filtered.plan(name) == plan.SIDE or case[-1] == "sq4"
        assert filtered.check(name) >= 0.93
    filtered.kill(np.flatnonzero(filtered.live[:N] & (rng.random(N) < 0.2)))
    for name in filtered.masks:
        assert filtered.plan(name) != plan.SIDE
        assert filtered.check(name) >= 0.93
    assert sides.count == 0
    assert filtered.earn("tenth"), "it may be earned again"
    assert filtered.check("tenth") >= 0.93


def test_two_filters_never_share():
    """Each graph answers for its own filter, and none for a selection without a key."""
    filtered = Filtered()
    filtered.masks = {"even": np.arange(N + FRESH) % 4 == 0, "odd": np.arange(N + FRESH) % 4 == 1}
    assert filtered.earn("even")
    assert filtered.plan("odd") != plan.SIDE
    assert filtered.earn("odd")
    for name in filtered.masks:
        assert filtered.plan(name) == plan.SIDE
        assert filtered.check(name) >= 0.93
    nameless = Selection(N, mask=filtered.masks["even"][:N])
    trace = Trace()
    filtered.index.view.search(filtered.rows.queries, K, allowed=nameless, trace=trace)
    assert trace.plan != plan.SIDE
    assert len(filtered.index.sides._notes) == 2


def test_a_graph_must_be_earned(monkeypatch):
    """Few queries, the same ones over and over, exact ones, time that is not lost, filters of few or of
    most rows, and an index for which nobody builds: no graph."""
    filtered = Filtered()
    sides, cancel = filtered.index.sides, threading.Event()
    filtered.ask("tenth", slice(0, ASKED - 1))
    filtered.ask("third", exact=True)
    filtered.ask("third", target_recall=1.0)
    assert not sides.any_wanted
    filtered.ask("tenth", slice(0, 1))
    assert (sides.any_wanted, filtered.calls) == (True, 1)
    filtered.masks |= {"few": np.arange(N + FRESH) < 150, "most": np.arange(N + FRESH) % 5 > 1}
    for name in ("few", "most"):
        filtered.ask(name)
        assert name not in sides._notes
    for _ in range(ASKED // 32):
        filtered.ask("against", slice(0, 32))
    assert filtered.index.build_side(cancel=cancel) > 0
    assert filtered.index.build_side(cancel=cancel) == 0
    assert filtered.plan("against") != plan.SIDE
    monkeypatch.setattr(side, "build_seconds", lambda rows, dimension: 60.0)
    filtered.ask("third")
    assert not sides.any_wanted
    monkeypatch.setattr(side, "build_seconds", lambda rows, dimension: 0.0)
    sides.wake = None
    filtered.ask("third")
    assert not sides.any_wanted


def test_memory_is_bounded(monkeypatch):
    """The graph that was not used for longest goes first; one that does not fit alone is not built."""
    filtered = Filtered()
    filtered.masks = {f"m{i}": np.arange(N + FRESH) % 10 == i for i in range(4)}
    filtered.masks["large"] = np.arange(N + FRESH) % 10 > 5
    each, main = side.graph_bytes(N // 10, N), filtered.index.view.main.nbytes
    monkeypatch.setattr(side, "MEMORY_SHARE", (2.5 * each) / main)
    for name in ("m0", "m1"):
        assert filtered.earn(name)
    filtered.ask("m0")
    assert filtered.earn("m2")
    assert filtered.index.sides.nbytes == 2 * each
    assert [filtered.plan(f"m{i}") == plan.SIDE for i in range(3)] == [True, False, True]
    assert filtered.earn("large") == 0
    filtered.ask("large")
    assert not filtered.index.sides.any_wanted
    assert filtered.index.sides.count == 2


def test_watched_filters_are_bounded(monkeypatch):
    """Of the filters asked only the last ones are remembered."""
    monkeypatch.setattr(side, "MOST_KEPT", 3)
    filtered = Filtered()
    filtered.masks = {f"m{i}": np.arange(N + FRESH) % 10 == i for i in range(6)}
    for name in filtered.masks:
        filtered.ask(name, slice(0, 2))
    assert list(filtered.index.sides._notes) == ["m3", "m4", "m5"]


def test_a_cancelled_build_leaves_nothing():
    """Cancelled, the graph is still wanted, and built by the next one who builds."""
    filtered = Filtered()
    cancel = threading.Event()
    cancel.set()
    filtered.ask("third")
    assert filtered.index.build_side(cancel=cancel) == 0
    assert filtered.index.sides.count == 0
    assert filtered.index.build_side(cancel=threading.Event())
    assert filtered.plan("third") == plan.SIDE


def test_what_fails_is_not_tried_again():
    """An error comes out once; no graph of this filter is built until there is another main index."""
    filtered = Filtered(quantization="sq8")
    small = Filtered(build_memory_bytes=1 << 40)
    small.index.settings = {**small.index.settings, "build_memory_bytes": 1_000}

    def broken(start, stop):
        raise OSError("no such disk")

    filtered.ask("third")
    filtered.rows.before_read = broken
    for one, error in ((filtered, OSError), (small, LimitExceeded)):
        one.ask("third")
        with pytest.raises(error):
            one.index.build_side(cancel=threading.Event())
        one.ask("third")
        assert not one.index.sides.any_wanted
    filtered.rows.before_read = lambda start, stop: None
    assert filtered.check("third") >= 0.93


def test_a_target_that_no_setting_reaches(monkeypatch):
    """A graph that cannot keep the promise does not serve."""
    monkeypatch.setattr(side, "least_queries", lambda target: 64)
    filtered = Filtered()
    filtered.index.target_recall = 0.995
    filtered.ask("third", target_recall=0.995)
    assert filtered.index.sides.any_wanted
    assert filtered.index.build_side(cancel=threading.Event()) == 0
    assert filtered.index.sides.count == 0
    assert not filtered.index.sides.any_wanted


@pytest.mark.parametrize("single", [True, False])
def test_a_walk_in_the_graph_is_priced_as_what_it_takes(monkeypatch, single):
    """A target that takes more candidates in the filter's graph than in the main one is still answered by the graph, as long
    as these candidates cost less; beyond that, and where comparing costs less, it is not."""
    filtered = Filtered()
    assert filtered.earn("third")
    at, count = slice(150, 151 if single else 180), int(filtered.masks["third"][:N].sum())
    main, graph = filtered.index.view.main, filtered.index.sides._notes["third"].graph
    monkeypatch.setattr(plan, "exact_cost", lambda *_: np.inf)

    def planned(target, candidates):
        graph.curve = Curve((Point(candidates, 1.0, 0.999, 1.0, 0.999),), count, 300)
        trace = Trace()
        found = filtered.ask("third", at, target_recall=target, trace=trace)
        assert (found.rows >= 0).all()
        inside = filtered.index.view.allowed_in_main(
            filtered.selection("third", filtered.index.view)
        )
        way = _way(main, K, target, inside, graph)
        assert (way is not None and way.walked is graph) == (trace.plan == plan.SIDE)
        return trace.plan

    wide = plan.walk_for(main, K, count, 0.9, K)[2] / plan.GRAPH_COST_A_CANDIDATE
    assert graph.price < 0.8
    assert planned(0.9, int(1.2 * wide)) == plan.SIDE
    wide = plan.walk_for(main, K, count, 0.91, K)[2] / plan.GRAPH_COST_A_CANDIDATE
    assert planned(0.91, int(3.0 * wide)) != plan.SIDE
    monkeypatch.setattr(plan, "exact_cost", lambda *_: 0.5 * graph.price * 20)
    assert planned(0.92, 20) == "exact"


def test_candidates_cost_less_in_a_small_graph_of_rows_in_a_run():
    """The price of a candidate rises with the rows of the graph and with the gaps between them, up to that in the main graph."""
    filtered = Filtered()
    main = filtered.index.view.main

    def price(positions):
        return side.SideGraph(main, main.index, positions, main.curve).price

    run, apart = np.arange(10_000), np.arange(0, 20_000, 2)
    assert price(run[:5_000]) < price(run) < price(apart) < 1.0 == main.price
    assert price(np.arange(0, 400_000, 2)) == 1.0
    assert (nearness(apart), nearness(run[:1])) == (0.0, 0.0)
    assert nearness(run) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("metric", "quantization", "multiplied"),
    [("ip", "none", True), ("l2", "none", True), ("ip", "sq8", False)],
)
def test_batches_are_compared_for_less_where_they_are_multiplied(metric, quantization, multiplied):
    """Comparing rows costs each query of a large batch less than a single one, but only over float32 vectors, and under l2
    its proof comes on top; a few queries cost as much as one."""
    main = Filtered(metric, quantization=quantization).index.view.main
    allowed = Allowed(N, picked=np.arange(0, N, 5))
    alone, few, many = (plan.exact_cost(main, allowed, queries) for queries in (1, 4, 1_000))
    assert alone == few
    if not multiplied:
        assert many == alone
    elif metric == "l2":
        assert many == min(alone, 600 * (0.2 + 22 / 1_000) + plan.PROOF_COST)
    else:
        assert many == pytest.approx(600 * (0.2 + 22 / 1_000))


def test_older_views_keep_their_rows():
    """A view from before some deaths is not answered by a graph that was built after them."""
    filtered = Filtered()
    old, live = filtered.index.view, filtered.live.copy()
    gone = np.flatnonzero(filtered.masks["third"][:N])[:100]
    filtered.kill(gone)
    assert filtered.earn("third")
    assert filtered.plan("third") == plan.SIDE
    assert filtered.plan("third", view=old) != plan.SIDE
    assert filtered.check("third", old, live) >= 0.93
    assert filtered.check("third") >= 0.93


def test_a_grown_index_gets_its_graphs_back(monkeypatch):
    """What was lost for want of a graph is remembered when the main index grows: it is not earned anew."""
    filtered = Filtered()
    assert filtered.earn("third")
    lost_s = filtered.index.sides._notes["third"].lost_s
    monkeypatch.setattr(side, "build_seconds", lambda rows, dimension: lost_s / side.WORTH)
    old = filtered.index.view
    filtered.index.append(filtered.rows.vectors[N:])
    filtered.live[N:] = True
    filtered.index.publish(2)
    filtered.index.install(build(filtered.index))
    assert filtered.index.sides.count == 0
    assert not filtered.index.sides.any_wanted
    assert filtered.plan("third") != plan.SIDE
    filtered.ask("third", view=old)
    assert filtered.index.build_side(cancel=threading.Event()) == 0, "of an index that is gone"
    assert filtered.earn("third") == filtered.masks["third"].sum()
    assert filtered.plan("third") == plan.SIDE
    assert filtered.check("third") >= 0.93
    assert filtered.check("third", old, np.arange(N + FRESH) < N) >= 0.93


def test_queries_are_kept_when_half_is_lost(monkeypatch):
    """Until then a filter takes no memory; a graph is wanted when all is lost that it would take."""
    filtered = Filtered()
    monkeypatch.setattr(side, "build_seconds", lambda rows, dimension: 1.0 / side.WORTH)
    note = filtered.index.sides.note
    allowed = Allowed(N, picked=np.arange(0, N, 5))
    queries, main = filtered.rows.queries[:ASKED], filtered.index.view.main
    note("x", main, allowed, queries[:1], K, 0.499, 0.95)
    kept = filtered.index.sides._notes["x"].queries
    assert len(kept) == 0
    note("x", main, allowed, queries, K, 0.01, 0.95)
    assert len(kept) == ASKED
    assert not filtered.index.sides.any_wanted
    note("x", main, allowed, queries[:1], K, 0.5, 0.95)
    assert filtered.index.sides.any_wanted
    assert not any(np.shares_memory(one, queries) for one in kept.values())


def test_threads_ask_while_it_is_built_and_rows_die():
    """Every answer is complete, live in its view and allowed, whoever serves it."""
    filtered = Filtered()
    live = {filtered.index.view.sequence: filtered.live.copy()}
    done, failures = threading.Event(), []

    def read(name):
        try:
            while not done.is_set():
                view = filtered.index.view
                filtered.check(name, view, live[view.sequence], at=slice(0, 70))
        except BaseException as error:  # told by the test, not lost in a thread
            failures.append(repr(error))

    threads = [threading.Thread(target=read, args=(name,)) for name in ("third", "against") * 2]
    for thread in threads:
        thread.start()
    rng, built = np.random.default_rng(SEED), 0
    try:
        wait_until(lambda: filtered.index.sides.any_wanted, "a graph is wanted")
        for sequence in range(2, 14):
            dead = rng.choice(N, 60, replace=False)
            filtered.index.kill(dead)
            filtered.live[dead] = False
            live[sequence] = filtered.live.copy()
            filtered.index.publish(sequence)
            built += filtered.index.build_side(cancel=threading.Event())
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert (sequence, built > 0) == (13, True)


def test_nothing_is_calibrated_before_its_end():
    """A build that is stopped while its recall is measured gives no graph."""
    filtered = Filtered()
    filtered.ask("third")

    class Late(threading.Event):
        looks = 0

        def is_set(self):
            self.looks += 1
            return self.looks > 3

    assert filtered.index.build_side(cancel=Late()) == 0
    assert filtered.index.sides.count == 0
