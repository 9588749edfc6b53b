"""The vectors of filters that few rows match, kept from one moment to the next while rows come and go."""

from __future__ import annotations

import numpy as np
import pytest
from index_rows import Rows, build, make_index, plain

from vecdb.index import chosen, fews
from vecdb.selection import Selection

SEED, DIMENSION, STEPS = 20_261_128, 24, 60
FIRST, TENANTS = 6_000, 5
EACH = FIRST // TENANTS


@pytest.fixture(autouse=True)
def gathered(monkeypatch):
    """Numbers of rows that were gathered, one after the other."""
    monkeypatch.setattr(chosen, "FEW_ROWS", 2_000)
    monkeypatch.setattr(chosen, "_SMALL_BYTES", 1_000)
    real, counts = fews._gather, []

    def gather(view, rows, spare=0):
        counts.append(len(rows))
        return real(view, rows, spare)

    monkeypatch.setattr(fews, "_gather", gather)
    return counts


class Played:
    """An index to which rows are added, and from which rows are taken; row r belongs to tenant r % TENANTS."""

    def __init__(self, metric, built, rows=9_000):
        print("seed", SEED)
        self.rng = np.random.default_rng(SEED)
        self.metric, self.rows = metric, Rows(rows, SEED, "float32", DIMENSION)
        self.index = make_index(self.rows, "hnsw", metric, "none")
        self.index.append(self.rows.vectors[:FIRST])
        self.index.publish(1)
        if built:
            self.index.install(build(self.index))
        self.live = np.zeros(rows, np.bool_)
        self.live[:FIRST] = True
        self.n, self.moment = FIRST, 1

    def step(self, fresh, dead):
        """Adds and takes away so many rows; the view of then, and what is live in it."""
        if fresh:
            self.index.append(self.rows.vectors[self.n : self.n + fresh])
            self.live[self.n : self.n + fresh] = True
            self.n += fresh
        gone = self.rng.choice(np.flatnonzero(self.live), dead, replace=False)
        self.index.kill(gone)
        self.live[gone] = False
        self.moment += 1
        return self.index.publish(self.moment), self.live[: self.n].copy()

    def check(self, view, live, tenant, k, queries=1):
        """What a tenant's query finds is what numpy finds."""
        n = view.n_rows
        mine = np.arange(n) % TENANTS == tenant
        allowed = Selection(n, rows=np.flatnonzero(mine), key=f"tenant {tenant}")
        start = int(self.rng.integers(0, 200))
        asked = self.rows.queries[start : start + queries]
        found = view.search(asked, k, allowed=allowed)
        truth = plain(asked, self.rows.vectors[:n], self.metric)
        truth[:, ~(mine & live)] = np.inf
        count = min(k, int((mine & live).sum()))
        best = np.sort(truth, axis=1)[:, :count]
        own = np.take_along_axis(truth, found.rows[:, :count], axis=1)
        np.testing.assert_allclose(own, best, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.distances[:, :count], own, rtol=1e-4, atol=1e-4)
        assert (found.rows[:, count:] == -1).all()


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("built", [False, pytest.param(True, marks=pytest.mark.long)])
def test_answers_while_rows_come_and_go(metric, built, gathered, monkeypatch):
    """Whatever came or died since vectors were gathered, and in views of earlier moments too, the nearest live rows of the
    tenant answer."""
    monkeypatch.setattr(fews, "_KEPT_SHARE", 0)  # those of all tenants are kept
    played = Played(metric, built)
    before = []
    for n in range(STEPS):
        fresh, dead = int(played.rng.integers(0, 12)), int(played.rng.integers(0, 9))
        moment = played.step(fresh, dead)
        for tenant in range(TENANTS):
            played.check(*moment, tenant, k=int(played.rng.choice([1, 10, 70])))
        played.check(*moment, n % TENANTS, k=10, queries=3)
        before.append(moment)
        played.check(*before[int(played.rng.integers(len(before)))], n % TENANTS, k=10)
        if built and n == STEPS // 2:
            played.index.install(build(played.index))
    # Each tenant's at first, after each sixteen deaths, and for views of before: not at each of the 300 queries.
    assert sum(count > EACH // 2 for count in gathered) < STEPS + 12 * TENANTS


def test_only_what_came_is_gathered(gathered):
    """A commit costs a filter's next query the rows that it added for it; a new gathering comes when many have died."""
    played = Played("l2", built=False)
    played.check(*played.step(0, 0), 0, k=10)
    assert gathered == [EACH]
    for _ in range(10):
        played.check(*played.step(TENANTS, 1), 0, k=10)
    assert gathered == [EACH] + [1] * 10
    moment = played.step(0, 1_000)
    played.check(*moment, 0, k=10)
    assert len(gathered) == 12
    assert gathered[-1] < EACH
    played.check(*moment, 0, k=10)
    assert len(gathered) == 12


def test_who_was_not_asked_for_longest_goes(gathered):
    """Filters keep their vectors as long as all together have a quarter of the rows."""
    played = Played("l2", built=False)
    moment = played.step(0, 0)
    for tenant in (0, 1, 2, 3):
        played.check(*moment, tenant, k=10)
    assert len(gathered) == 4
    moment = played.step(0, 1)
    played.check(*moment, 3, k=10)
    assert len(gathered) == 4
    played.check(*moment, 0, k=10)
    assert len(gathered) == 5


def test_memory_is_given_back(gathered):
    """`let_go` forgets what is only there for the next query."""
    played = Played("l2", built=False)
    moment = played.step(0, 0)
    played.check(*moment, 0, k=10)
    moment[0].let_go()
    played.check(*moment, 0, k=10)
    assert gathered == [EACH, EACH]
