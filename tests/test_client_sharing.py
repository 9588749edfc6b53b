"""How queries of a client's threads are shared among its streams."""

from __future__ import annotations

import copy
import random

import pytest

from vecdb_client.streaming import GATHER_S, MOST_STREAMS, TOGETHER_S, Sharing

QUICK_S, SLOW_S = TOGETHER_S / 20, TOGETHER_S


def with_cost(cost_s: float) -> Sharing:
    """Queries of which each takes so long; nothing is expected any more at second 1."""
    sharing = Sharing()
    sharing.sent(1, 0.0)
    sharing.answered(1, 0.0, cost_s)
    return sharing


def test_a_query_alone_waits_for_nobody() -> None:
    """Whatever queries cost, one that finds no other under way is sent at once."""
    for cost_s in (QUICK_S, SLOW_S):
        assert with_cost(cost_s).share(1, 1.0) == 1
    assert Sharing().share(1, 0.0) == 1
    assert Sharing().share(0, 0.0) == 0


def test_quick_queries_wait_for_those_who_come_back() -> None:
    """Callers of one message are together in the next one; who does not come back soon is not waited for."""
    sharing = with_cost(QUICK_S)
    sharing.sent(3, 1.0)
    sharing.answered(3, 1.0, 1.001)
    for waiting in (1, 2):
        sharing.asked()
        assert sharing.share(waiting, 1.001) == 0
        assert 0 < sharing.gather_s(waiting, 1.001) <= GATHER_S * 1.001
    sharing.asked()
    assert sharing.share(3, 1.001) == 3
    sharing.sent(3, 1.001)
    sharing.answered(3, 1.001, 1.002)
    sharing.asked()
    assert sharing.share(1, 1.002 + GATHER_S * 1.001) == 1


def test_quick_queries_join_the_many_that_are_under_way() -> None:
    """A straggler waits for the answer to the others' message, but not longer than `TOGETHER_S`."""
    sharing = with_cost(QUICK_S)
    sharing.sent(2, 1.0)
    assert sharing.share(1, 1.0) == 0
    assert sharing.share(2, 1.0) == 2
    assert 0 < sharing.gather_s(1, 1.001) <= TOGETHER_S
    assert sharing.share(1, 1.001 * (1 + TOGETHER_S)) == 1


def test_slow_queries_are_shared_among_the_streams() -> None:
    """Where all together would take too long, each stream gets its part, and nobody waits for one under way."""
    sharing = with_cost(SLOW_S)
    assert sharing.share(8, 1.0) == 8 // MOST_STREAMS
    sharing.sent(4, 1.0)
    assert sharing.share(4, 1.0) == 4
    sharing.sent(4, 1.0)
    assert sharing.share(1, 1.0) >= 1


@pytest.mark.parametrize("cost_s", [QUICK_S, SLOW_S])
def test_what_waits_is_sent_in_bounded_time(cost_s: float) -> None:
    """Whatever happened before, a query that waits may be sent when `gather_s` has passed twice at most, and
    soon; all counts come back to none."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    sharing, now_s, waiting, messages = with_cost(cost_s), 1.0, 0, []
    for _ in range(3_000):
        now_s += rng.expovariate(1 / QUICK_S)
        happens = rng.random()
        if happens < 0.6:
            waiting += 1
            sharing.asked()
        elif messages:
            count, sent_s = messages.pop(rng.randrange(len(messages)))
            if happens < 0.95:
                sharing.answered(count, sent_s, now_s)
            else:
                sharing.broke(count)
        if not waiting or len(messages) == MOST_STREAMS:
            continue
        share = sharing.share(waiting, now_s)
        if not share:
            later, look_s, looks = copy.copy(sharing), now_s, 0
            while not later.share(waiting, look_s):
                wait_s = later.gather_s(waiting, look_s)
                assert wait_s > 0
                look_s, looks = look_s + wait_s + 1e-9, looks + 1
            assert looks <= 2
            assert look_s <= now_s + TOGETHER_S + GATHER_S
            continue
        taken = min(share, waiting)
        waiting -= taken
        sharing.sent(taken, now_s)
        messages.append((taken, now_s))
    for count, _ in messages:
        sharing.broke(count)
    assert sharing._under_way == 0
    assert sharing._expected >= 0
