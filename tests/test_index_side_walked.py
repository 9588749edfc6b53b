"""Whether the graph of a filter serves is told by what its queries have taken without one."""

from __future__ import annotations

import threading

import pytest
from index_rows import soon_worth_it
from test_index_side import ASKED, Filtered, K

from vecdb.index import plan, side

TARGET, HIGH = 0.95, 0.98


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    soon_worth_it(monkeypatch, ASKED)


def test_a_graph_serves_where_walks_go_on_for_longer_than_expected():
    """What queries have taken without it decides, where that is more than the filter's share of the rows lets expect."""
    filtered = Filtered()
    name, view = "against", filtered.index.view
    for at in range(ASKED):
        filtered.ask(name, slice(at, at + 1))
    assert filtered.index.build_side(cancel=threading.Event())
    sides, main = filtered.index.sides, view.main
    count = int((filtered.masks[name] & filtered.live).sum())
    expected = plan.walk_for(main, K, count, TARGET, K)[2]
    walked = sides.walked(name, TARGET, K)
    assert walked > 1.2 * expected
    graph = sides.graph(name, main, count)
    graph.price *= (expected + walked) / 2 / plan.walk_for(graph, K, count, TARGET, K)[2]
    assert filtered.plan(name) == plan.SIDE
    assert filtered.check(name) >= 0.93
    sides._notes[name].walks[TARGET, K] = expected, ASKED
    assert filtered.plan(name) != plan.SIDE


def test_what_one_target_walks_says_nothing_of_another():
    """What queries of a target have walked is known apart, also while a graph serves another target; and not before a few
    have been asked."""
    filtered = Filtered()
    name, sides, main = "against", filtered.index.sides, filtered.index.view.main
    for at in range(ASKED):
        filtered.ask(name, slice(at, at + 1))
    assert filtered.index.build_side(cancel=threading.Event())
    count = int((filtered.masks[name] & filtered.live).sum())
    graph, low = sides.graph(name, main, count), sides.walked(name, TARGET, K)
    expected = plan.walk_for(main, K, count, HIGH, K)[2]
    graph.price *= 1.1 * expected / plan.walk_for(graph, K, count, HIGH, K)[2]
    assert filtered.plan(name, target_recall=HIGH) != plan.SIDE
    for at in range(side.LEAST_WALKS):
        assert sides.walked(name, HIGH, K) == 0.0
        filtered.ask(name, slice(at, at + 1), target_recall=HIGH)
    assert sides.walked(name, HIGH, K) > 1.1 * expected
    assert sides.walked(name, TARGET, K) == low
    assert filtered.plan(name, target_recall=HIGH) == plan.SIDE
