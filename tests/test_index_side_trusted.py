"""What a filter's graph promises, which few queries of users have measured."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from index_rows import soon_worth_it
from test_index_side import ASKED, Filtered

from vecdb.index import plan, side
from vecdb.index.build import Build
from vecdb.index.calibrate import UNSEEN, least_queries, recall

HIGH = 0.993
"""Out of reach of `ASKED` queries that miss nothing."""


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    soon_worth_it(monkeypatch, ASKED)


@pytest.mark.parametrize("target", [0.9, 0.95, 0.99, 0.995])
def test_few_queries_without_a_miss_promise_no_more_than_they_tell(target):
    """A target needs as many queries as let the bound reach it with one that was not seen, and two fifths of that do not."""
    count = least_queries(target)
    truth = np.tile(np.arange(10, dtype=np.float32), (count, 1))
    mean, bound = recall(truth, truth, 10, UNSEEN)
    assert mean == 1.0
    assert target < bound < 1 - UNSEEN / count
    fewer = truth[: int(0.8 / (1 - target))]
    assert recall(fewer, fewer, 10, UNSEEN)[1] < target
    assert recall(fewer, fewer, 10)[1] > target


def test_a_high_target_takes_more_queries_to_be_promised():
    """A graph that was measured on too few for a target does not serve it; measured anew on more, it does, and a target for
    which no number would do never has one."""
    filtered = Filtered()
    sides, cancel = filtered.index.sides, threading.Event()
    assert filtered.earn("third")
    graph = sides._notes["third"].graph
    assert graph.curve.queries == ASKED
    assert filtered.plan("third", target_recall=0.95) == plan.SIDE
    assert filtered.plan("third", target_recall=HIGH) != plan.SIDE
    sides._notes["third"].settle(graph)
    for _ in range(3):
        filtered.ask("third", slice(0, 280), target_recall=HIGH)
    assert not sides.any_wanted, "they were 280 over and over"
    assert sides._notes["third"].graph is graph
    filtered.ask("third", slice(0, 300), target_recall=HIGH)
    filtered.ask("third", slice(0, 10), target_recall=HIGH)
    assert filtered.index.build_side(cancel=cancel) == graph.n
    assert sides._notes["third"].graph.curve.queries == least_queries(HIGH)
    assert filtered.plan("third", target_recall=HIGH) == plan.SIDE
    for _ in range(4):
        filtered.ask("against", target_recall=0.997)
    assert not sides.any_wanted
    assert "against" not in sides._notes


def test_what_cannot_be_measured_better_goes_on_as_it_is(monkeypatch):
    """Where a graph measured anew would serve nobody, or cannot be made, the one before serves on."""
    filtered = Filtered()
    assert filtered.earn("third")
    graph = filtered.index.sides._notes["third"].graph
    filtered.ask("third", slice(0, 300), target_recall=HIGH)
    assert filtered.index.sides.any_wanted
    monkeypatch.setattr(Build, "beside", lambda *_: None)
    assert filtered.index.build_side(cancel=threading.Event()) == 0
    assert filtered.index.sides._notes["third"].graph is graph
    assert filtered.plan("third") == plan.SIDE
    filtered.ask("third", slice(0, 300), target_recall=HIGH)
    assert not filtered.index.sides.any_wanted


def test_a_high_target_asked_once_keeps_no_graph_from_others(monkeypatch):
    """A graph is built as soon as enough have come for the least target; what was asked too, and no setting reaches, does not
    refuse it."""
    filtered = Filtered()
    filtered.ask("third", slice(0, 1), target_recall=HIGH)
    filtered.ask("third", slice(1, ASKED))
    assert filtered.index.sides.any_wanted
    assert filtered.index.build_side(cancel=threading.Event())
    assert filtered.plan("third") == plan.SIDE
    # All that came first asked for more than it reaches, but it reaches what the collection promises.
    wanted = side.Sides.wanted
    monkeypatch.setattr(
        side.Sides,
        "wanted",
        lambda self: (one := wanted(self)) and one._replace(target_recall=0.9999),
    )
    assert filtered.earn("tenth")
    assert filtered.plan("tenth") == plan.SIDE
    filtered.index.target_recall = 0.9999
    filtered.ask("against")
    assert filtered.index.build_side(cancel=threading.Event()) == 0


def test_a_filter_that_loses_its_graph_may_earn_another(monkeypatch):
    """Also where it could not be measured better before."""
    filtered = Filtered()
    assert filtered.earn("third")
    note = filtered.index.sides._notes["third"]
    note.refused = True
    note.forget()
    assert filtered.earn("third")
    assert filtered.plan("third") == plan.SIDE


@pytest.mark.parametrize("quantization", ["none", "sq8"])
def test_a_high_target_is_served_after_a_row_has_died_and_for_more_answers(quantization):
    """What was measured on enough queries is so at each k."""
    filtered = Filtered("l2", quantization=quantization)
    for _ in range(2):
        filtered.ask("third", slice(0, 300), target_recall=HIGH)
    assert filtered.index.build_side(cancel=threading.Event())
    graph = filtered.index.sides._notes["third"].graph
    assert all(point.bound_100 > 0.9935 for point in graph.curve.points[-1:])
    assert filtered.plan("third", target_recall=HIGH) == plan.SIDE
    filtered.kill(np.flatnonzero(filtered.masks["third"])[:1])
    assert filtered.plan("third", target_recall=HIGH) == plan.SIDE


def test_queries_that_come_again_do_not_drive_out_others(monkeypatch):
    """Distinct ones are kept, also while a graph is built, and where the filter is forgotten meanwhile."""
    filtered = Filtered()
    filtered.ask("third", slice(0, ASKED))
    sides = filtered.index.sides
    wanted = sides.wanted()
    for _ in range(30):
        filtered.ask("third", slice(5, 25))
    assert len(wanted.queries()) == ASKED
    filtered.ask("third", slice(ASKED, ASKED + 10))
    assert len(wanted.queries()) == ASKED + 10
    sides._notes["third"].forget()
    assert len(wanted.queries()) == ASKED
    for _ in range(30):
        filtered.rows.queries[:300] += np.float32(0.001)
        filtered.ask("third", slice(0, 100))
    assert len(sides._notes["third"].queries) == side.MEASURED


def test_walks_of_many_targets_are_bounded():
    """The ones asked least make room; each k is known apart."""
    note = side._Note()
    for k in (10, 100):
        for _ in range(20):
            note.walk((0.95, k), float(k))
    for i in range(100):
        note.walk((0.5 + i / 1000, 10), 1.0)
    assert len(note.walks) == side.MOST_WALKS
    assert note.walks[0.95, 10] == (10.0, 20)
    assert note.walks[0.95, 100] == (100.0, 20)


def test_what_is_wanted_late_is_not_built_of_nothing():
    """A query that finds its graph wanted while that is put into service, or let go, wants none on no queries."""
    filtered = Filtered()
    filtered.ask("third", slice(0, ASKED))
    sides = filtered.index.sides
    note = sides._notes["third"]
    wanted = note.wanted
    for graph in (None, filtered.index.view.main):
        note.settle(graph)
        note.wanted = wanted
        assert sides.wanted() is None
        assert note.wanted is None
