"""Calls that last keep no other client from an answer: one thread more serves those of whom nothing runs."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from conftest import wait_until
from hypothesis import given
from hypothesis import strategies as st

from vecdb_server.fair_pool import FairPool
from vecdb_server.fair_queue import FairQueue, Who

RELIEF_S = 0.02


class Slow:
    """Work that lasts until `end`; `begun` counts who has begun."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.begun: Counter[str] = Counter()

    def __call__(self, name: str) -> str:
        self.begun[name] += 1
        self.may_end.wait(60)
        return name


def _slow(pool: FairPool, work: Slow, client: str, count: int) -> list:
    return [pool.submit_for(Who(client, "docs"), work, client) for _ in range(count)]


def test_a_client_whose_calls_last_does_not_keep_another_waiting() -> None:
    """With all threads taken by one client, another's calls are answered, one after the other; more of the first one's
    wait for its own."""
    pool, work = FairPool(2, "test", RELIEF_S), Slow()
    first = _slow(pool, work, "a", 5)
    wait_until(lambda: work.begun["a"] == 2, "both threads are taken")
    for n in range(5):
        assert pool.submit_for(Who("b", "docs"), pow, n, 2).result(60) == n * n
    assert (work.begun["a"], pool.waiting) == (2, 3)
    work.may_end.set()
    assert [one.result(60) for one in first] == ["a"] * 5
    pool.shutdown()
    assert pool.busy == 0


def test_one_who_has_a_call_there_waits_for_its_turn() -> None:
    """The thread more is for clients of whom nothing runs: two that last take it from nobody for long, one call each."""
    pool, work = FairPool(2, "test", RELIEF_S), Slow()
    held = _slow(pool, work, "a", 2)
    wait_until(lambda: work.begun["a"] == 2, "both threads are taken")
    held += _slow(pool, work, "b", 3)
    wait_until(lambda: work.begun["b"] == 1, "the thread more is taken")
    more = pool.submit_for(Who("c", "docs"), pow, 3, 2)
    assert not threading.Event().wait(5 * RELIEF_S)
    assert (work.begun["b"], more.done()) == (1, False)
    work.may_end.set()
    assert more.result(60) == 9
    assert [one.result(60) for one in held] == ["a", "a", "b", "b", "b"]
    pool.shutdown()


def test_without_relief_others_wait() -> None:
    """A pool that was made without has the threads it was made with, and no more."""
    pool, work = FairPool(1, "test"), Slow()
    _slow(pool, work, "a", 1)
    wait_until(lambda: work.begun["a"] == 1, "the thread is taken")
    other = pool.submit_for(Who("b", "docs"), pow, 2, 2)
    assert not threading.Event().wait(5 * RELIEF_S)
    assert not other.done()
    work.may_end.set()
    assert other.result(60) == 4
    pool.shutdown()


def test_shutting_down_ends_the_thread_more() -> None:
    """What runs there is waited for, what waits may be dropped, and no thread is left."""
    pool, work = FairPool(1, "test-end", RELIEF_S), Slow()
    held = [*_slow(pool, work, "a", 1), *_slow(pool, work, "b", 1)]
    wait_until(lambda: work.begun.total() == 2, "both run")
    dropped = pool.submit_for(Who("c", "docs"), pow, 2, 2)
    threading.Timer(0.05, work.may_end.set).start()
    pool.shutdown(wait=True, cancel_futures=True)
    assert dropped.cancelled()
    assert [one.result(0) for one in held] == ["a", "b"]
    assert not [one for one in threading.enumerate() if one.name.startswith("vecdb-test-end")]


@pytest.mark.long
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("xy")), max_size=30), st.data())
def test_whichever_way_work_is_taken_each_is_done_once(put: list, data: st.DataObject) -> None:
    """Taken in turn or passed over the others, nothing is lost or given twice, and who is passed has none running."""
    queue: FairQueue[int] = FairQueue()
    clients = {n: client for n, (client, _) in enumerate(put)}
    coming, done, tickets = list(enumerate(put)), [], []
    while coming or queue.waiting:
        step = data.draw(st.sampled_from(["put", "take", "idle", "settle"]))
        if step == "put" and coming:
            number, (client, collection) = coming.pop(0)
            queue.put(Who(client, collection), number)
        elif step == "take" and queue.waiting:
            number, ticket = queue.take(0.001)
            done.append(number)
            tickets.append((number, ticket))
        elif step == "idle":
            running = {clients[number] for number, _ in tickets}
            found = queue.take_idle(0.001)
            idle = [c for c in "abcd" if queue.of(c)[0] and c not in running]
            if found is None:
                assert not idle
                continue
            assert clients[found[0]] not in running
            done.append(found[0])
            tickets.append(found)
        elif step == "settle" and tickets:
            queue.settle(tickets.pop(0)[1], 0.002)
    assert sorted(done) == list(range(len(put)))
