"""A device with its queue: answers, batches, order, limits, deadlines, long work between searches."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from device_here import D, ask, assert_same, device, device_of, place, until, vectors
from timing import once_below, seconds

from vecdb.device import Device, collected
from vecdb.device.queue import MAX_BATCH, Ask, Order, Queue
from vecdb.errors import (
    Closed,
    DeadlineExceeded,
    DeviceFull,
    DeviceLost,
    FailedPrecondition,
    InvalidVector,
    LimitExceeded,
)
from vecdb.turns import Wait


@pytest.fixture(scope="module", params=["stand-in", pytest.param("gpu", marks=pytest.mark.gpu)])
def shared(request: Any) -> Iterator[Device]:
    """One device for the tests that leave it as it was."""
    with closing(device_of(request.param)) as one:
        yield one


@pytest.fixture
def slow() -> Iterator[Device]:
    """A device whose searches take 0.2 s."""
    one = device("search_s=0.2")
    yield one
    one.close()


def in_threads(count: int, work: Any) -> list[Any]:
    """What `work(i)` returned or raised, each in a thread of its own."""
    results: list[Any] = [None] * count

    def run(i: int) -> None:
        try:
            results[i] = work(i)
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_answers_are_those_of_the_card(shared: Device, metric: str) -> None:
    """Vectors that came in several slices are found, by one query and by many."""
    y = vectors(3_000)
    placed = shared.place_flat(
        D, metric, "float32", 3_000, (y[i : i + 700] for i in range(0, 3_000, 700))
    )
    assert placed.bytes >= y.nbytes
    for n in (1, 40):
        x = vectors(n, 2)
        assert_same(ask(shared, placed, x, 7), x, y, 7, metric)
    before = shared.stats()
    shared.drop(placed.handle, placed.generation)
    assert shared.stats().used_bytes == before.used_bytes - placed.bytes
    with pytest.raises(DeviceLost, match="was taken from"):
        ask(shared, placed, vectors(1))


def test_stats_say_what_happened(shared: Device) -> None:
    """Queries and batches are counted, memory and state told."""
    y = vectors(10)
    before = shared.stats()
    placed = place(shared, y)
    ask(shared, placed, vectors(4))
    now = shared.stats()
    assert (now.name, now.state, now.queued, now.restarts, now.last_error) == (
        "gpu:0",
        "up",
        0,
        0,
        "",
    )
    assert now.total_bytes >= now.budget_bytes > 0
    assert now.queries == before.queries + 4
    assert now.batches == before.batches + 1
    assert now.placements == before.placements + 1
    shared.drop(placed.handle, placed.generation)


def test_a_batch_beyond_the_limit_is_cut(shared: Device) -> None:
    """More queries than go into one call are asked in several, and come back as one."""
    y, x = vectors(100), vectors(MAX_BATCH * 2 + 5, 3)
    placed = place(shared, y)
    scores, positions, together = ask(shared, placed, x)
    assert_same((scores, positions), x, y, 3)
    assert together == MAX_BATCH
    shared.drop(placed.handle, placed.generation)


def test_a_batch_beyond_the_shared_memory_is_cut() -> None:
    """Where the memory between engine and worker is small, calls are small too, and one query too large for
    it is refused."""
    y, x = vectors(100), vectors(300, 3)
    with closing(device(memory_bytes=8_192)) as one:
        placed = place(one, y)
        scores, positions, together = ask(one, placed, x, 10)
        assert_same((scores, positions), x, y, 10)
        assert together == (8_192 - 3 * 64) // (4 * D + 12 * 10)
        scores, positions = one.compare(x, y, 10, "l2")
        assert_same((scores, positions), x, y, 10)
        with pytest.raises(FailedPrecondition, match=r"takes .* bytes"):
            ask(one, placed, x, 2_000)


def test_who_waits_shares_the_next_call(slow: Device) -> None:
    """While one search runs, those with the same placement, k and setting become one batch; with another k
    they do not. Everyone gets the own answer."""
    y = vectors(50)
    placed = place(slow, y)
    questions = [vectors(1 + i % 3, 10 + i) for i in range(12)]

    def work(i: int) -> Any:
        if i:
            time.sleep(0.05)
        return ask(slow, placed, questions[i], 5 if i % 4 == 3 else 3)

    results = in_threads(12, work)
    for i, (found, x) in enumerate(zip(results, questions, strict=True)):
        assert_same(found[:2], x, y, 5 if i % 4 == 3 else 3)
    assert slow.stats().batches <= 5
    assert max(found[2] for found in results) > 3


def test_a_full_queue_refuses() -> None:
    """Searches beyond `device_queue` get LimitExceeded, which names the setting; the others their answers."""
    with closing(device("search_s=0.3", queue_limit=2)) as one:
        placed = place(one, vectors(5))

        def work(i: int) -> Any:
            time.sleep(0.0 if i == 0 else 0.1)
            # Of different k: they cannot share a call.
            return ask(one, placed, vectors(1), 1 + i)

        results = in_threads(6, work)
    refused = [r for r in results if isinstance(r, LimitExceeded)]
    assert len(refused) == 3
    assert refused[0].details["setting"] == "device_queue"
    assert refused[0].details["retry_after_ms"] == 100
    assert sum(isinstance(r, tuple) for r in results) == 3


def test_a_deadline_ends_the_wait(slow: Device) -> None:
    """A search whose time is over leaves the queue, or is not waited for; the device goes on."""
    placed = place(slow, vectors(5))
    with pytest.raises(DeadlineExceeded):
        ask(slow, placed, vectors(1), wait=Wait(time.monotonic() - 1))

    def too_late() -> None:
        with pytest.raises(DeadlineExceeded):
            ask(slow, placed, vectors(1), wait=Wait(time.monotonic() + 0.05))

    once_below(0.19, lambda: seconds(too_late))
    assert ask(slow, placed, vectors(1), wait=Wait(time.monotonic() + 60))[1].shape == (1, 3)
    until(lambda: slow.stats().queued == 0)


def test_closing_tells_those_who_wait() -> None:
    """Who waits, and whose search runs, gets Closed; so does everyone after it; closing twice is fine."""
    one = device("search_s=5")
    placed = place(one, vectors(5))
    threading.Timer(0.3, one.close).start()
    started = time.monotonic()
    results = in_threads(3, lambda i: ask(one, placed, vectors(1), 1 + i))
    assert time.monotonic() - started < 4
    assert [type(r) for r in results] == [Closed] * 3
    one.close()
    with pytest.raises(Closed):
        ask(one, placed, vectors(1))
    assert one.stats().state == "closed"


def test_wrong_shapes_are_refused_here(shared: Device) -> None:
    """Queries without rows or with one axis never reach the worker; of another width, they do not harm it."""
    for x in (vectors(0), vectors(1)[0]):
        with pytest.raises(InvalidVector):
            shared.search(1, 1, x, 3, 0)
    placed = place(shared, vectors(5))
    with pytest.raises(FailedPrecondition, match="expected"):
        ask(shared, placed, vectors(1, 1, D + 1))
    assert ask(shared, placed, vectors(1))[1].shape == (1, 3)
    shared.drop(placed.handle, placed.generation)


def test_what_the_card_refuses_is_a_failed_precondition(shared: Device) -> None:
    """A k beyond the card's is told as such, and nothing is lost by it."""
    placed = place(shared, vectors(5))
    with pytest.raises(FailedPrecondition, match=r"from 1 to \d+, given 50000"):
        ask(shared, placed, vectors(1), 50_000)
    assert ask(shared, placed, vectors(1))[1].shape == (1, 3)
    shared.drop(placed.handle, placed.generation)


def test_a_placement_that_does_not_fit_is_device_full() -> None:
    """DeviceFull for what is too large; then there is as much room as before."""
    with closing(device(size=1 << 20)) as one:
        with pytest.raises(DeviceFull):
            place(one, vectors(100_000))
        placed = place(one, vectors(1_000))
        assert one.used_bytes == placed.bytes
        with pytest.raises(DeviceFull):
            place(one, vectors(20_000))
        assert ask(one, placed, vectors(1))[1].shape == (1, 3)


def test_out_of_memory_hits_only_who_is_too_large() -> None:
    """A batch of several callers that is too much together is asked again one by one."""
    with closing(device("search_s=0.2,full_at_search=2")) as one:
        y = vectors(20)
        placed = place(one, y)
        questions = [vectors(1, i) for i in range(5)]

        def work(i: int) -> Any:
            time.sleep(0.0 if i == 0 else 0.1)
            return ask(one, placed, questions[i])

        results = in_threads(5, work)
    for found, x in zip(results, questions, strict=True):
        assert_same(found[:2], x, y, 3)
        assert found[2] == 1


def test_out_of_memory_alone_is_device_full() -> None:
    """One search that finds no memory fails by DeviceFull, and the next is answered."""
    with closing(device("full_at_search=1")) as one:
        placed = place(one, vectors(20))
        with pytest.raises(DeviceFull, match="on purpose"):
            ask(one, placed, vectors(1))
        assert ask(one, placed, vectors(1))[1].shape == (1, 3)


def test_asking_without_waiting(shared: Device) -> None:
    """`begin` returns before the answer is there."""
    y, x = vectors(30), vectors(5, 2)
    placed = place(shared, y)
    waiting = [shared.begin(placed.handle, placed.generation, x, k, 0) for k in (1, 2)]
    for k, one in zip((1, 2), waiting, strict=True):
        assert_same(collected(one.result())[:2], x, y, k)
    shared.drop(placed.handle, placed.generation)


# --- the queue alone


def admitted(_: int) -> None:
    pass


def names(taken: Any) -> list[int]:
    return [a.handle for a in taken]


def test_the_oldest_goes_first_and_takes_its_like_along() -> None:
    """Placements take turns by who waited longest, however many wait for one of them."""
    queue = Queue(100, lambda ask: 4)

    def put(handle: int, queries: int = 1) -> Ask:
        one = Ask(handle, 1, vectors(queries), 3, 0)
        queue.put(one, admitted)
        return one

    for handle in (1, 1, 2, 1, 1, 1, 3, 2):
        put(handle)
    order = Order(object(), 1, 1.0)  # type: ignore[arg-type]
    queue.put(order, admitted)
    put(1)
    assert len(queue) == 9
    assert names(queue.take(0)) == [1, 1, 1, 1]
    assert names(queue.take(0)) == [2, 2]
    assert names(queue.take(0)) == [1, 1]
    assert names(queue.take(0)) == [3]
    assert queue.take(0) is order
    assert queue.take(0.01) is None
    put(1, 3)
    late, third = put(1, 2), put(1)
    assert names(queue.take(0)) == [1]
    assert queue.withdraw(late)
    assert not queue.withdraw(late)
    assert queue.take(0) == [third]
    assert len(queue) == 0


def test_ringing_is_not_lost() -> None:
    """A bell that rings before anyone listens is heard."""
    queue = Queue(1, lambda ask: 4)
    queue.ring()
    started = time.monotonic()
    assert queue.take(10) is None
    threading.Timer(0.05, queue.ring).start()
    assert queue.take(10) is None
    assert time.monotonic() - started < 5


def test_nobody_enters_while_the_queue_is_cleared() -> None:
    """What is refused by `admit` is not in the queue, and clearing gives back all that was."""
    queue = Queue(10, lambda ask: 4)
    asks = [Ask(i, 1, vectors(1), 3, 0) for i in range(3)]
    for one in asks:
        queue.put(one, admitted)
    assert queue.clear(lambda: None) == asks

    def refused(_: int) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        queue.put(asks[0], refused)
    assert len(queue) == 0
    assert queue.take(0.01) is None
