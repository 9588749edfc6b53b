"""What a filter's graph promises, which few queries of users have measured."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from index_rows import soon_worth_it
from test_index_side import ASKED, Filtered

from vecdb.index import plan
from vecdb.index.build import Build
from vecdb.index.calibrate import UNSEEN, least_queries, recall

HIGH = 0.993
"""Out of reach of `ASKED` queries that miss nothing."""


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    soon_worth_it(monkeypatch, ASKED)


@pytest.mark.parametrize("target", [0.9, 0.95, 0.99, 0.995])
def test_few_queries_without_a_miss_promise_no_more_than_they_tell(target):
    """A target needs as many queries as let the bound reach it with one that was not seen, and half as many do not."""
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
    assert sides.any_wanted
    assert filtered.index.build_side(cancel=cancel) == 0, "they were 280 over and over"
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
