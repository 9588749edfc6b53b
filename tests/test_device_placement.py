"""What lies where: budgets, eviction, shards, deaths, and figures."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from device_here import D, assert_same, device, until, vectors

from vecdb.device import Device, Placed, Placements
from vecdb.errors import DeviceFull, DeviceLost

ROW = 4 * (D + 1)
"""Bytes of a row under l2: its vector and its square."""


class Clock:
    """Time that stands until it is told."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Vectors:
    """Vectors of a key, and how they get onto a device."""

    def __init__(self, n: int, seed: int) -> None:
        self.y = vectors(n, seed)
        self.made: list[tuple[str, int, int]] = []

    @property
    def bytes(self) -> int:
        return len(self.y) * ROW

    def __call__(self, one: Device, start: int, stop: int) -> Placed:
        self.made.append((one.name, start, stop))
        return one.place_flat(D, "l2", "float32", stop - start, [self.y[start:stop]])


@pytest.fixture
def two() -> Iterator[list[Device]]:
    """Two devices with a budget of 100 rows each, and twice as much memory."""
    made = [device(name=f"gpu:{i}", size=200 * ROW, budget_bytes=100 * ROW) for i in range(2)]
    yield made
    for one in made:
        one.close()


def put(placements: Placements, key: str, given: Vectors, **more: Any) -> Any:
    return placements.place(key, given.bytes, len(given.y), given, **more)


def check(placements: Placements, key: str, given: Vectors, k: int = 5) -> None:
    x = vectors(3, 99)
    found = placements.search(key, x, k, 0, "l2")
    assert found is not None
    assert_same(found[:2], x, given.y, k)


def test_the_device_with_most_room_is_taken(two: list[Device]) -> None:
    """One after the other goes where most is free, and is placed once only."""
    placements = Placements(two)
    given = {name: Vectors(40, i) for i, name in enumerate("abc")}
    for name, one in given.items():
        put(placements, name, one)
        assert put(placements, name, one) is placements.get(name)
        check(placements, name, one)
    assert [one.made[0][0] for one in given.values()] == ["gpu:0", "gpu:1", "gpu:0"]
    assert [len(one.made) for one in given.values()] == [1, 1, 1]
    assert placements.room(two[0]) == 20 * ROW
    assert placements.get("d") is None
    assert placements.search("d", vectors(1), 1, 0, "l2") is None


def test_what_was_searched_longest_ago_goes(two: list[Device]) -> None:
    """Where room is needed, the longest idle placement is evicted, and only as many as must be."""
    clock = Clock()
    placements = Placements(two, clock=clock, keep_s=10)
    given = {name: Vectors(50, i) for i, name in enumerate("abcd")}
    for one in given:
        put(placements, one, given[one])
    for one in "bcda":
        clock.now += 5
        check(placements, one, given[one])
    clock.now += 60
    put(placements, "e", Vectors(30, 9))
    assert placements.get("b") is None
    assert all(placements.get(one) for one in "acde")
    assert placements.evictions == 1
    assert sum(one.stats().evictions for one in two) == 1
    assert sum(one.used_bytes for one in two) == 180 * ROW


def test_what_is_used_right_now_is_left_until_last(two: list[Device]) -> None:
    """What was searched within the last seconds goes only when nothing else is left; what is being searched
    never."""
    clock = Clock()
    placements = Placements(two[:1], clock=clock, keep_s=10)
    old, recent = Vectors(60, 1), Vectors(40, 2)
    put(placements, "old", old)
    clock.now += 50
    put(placements, "recent", recent)
    # 60 rows: the old one is enough, and older.
    put(placements, "x", Vectors(60, 3))
    assert placements.get("old") is None
    assert placements.get("recent")
    # Both are recent now; something has to go, and it is what was used before the other.
    clock.now += 1
    check(placements, "recent", recent)
    put(placements, "y", Vectors(55, 4))
    assert placements.get("x") is None
    with placements.using("recent") as held, pytest.raises(DeviceFull, match="being searched"):
        assert held is not None
        put(placements, "z", Vectors(90, 5))
    check(placements, "recent", recent)
    put(placements, "z", Vectors(90, 5))
    assert placements.get("recent") is None


def test_what_fits_no_device_is_divided(two: list[Device]) -> None:
    """Contiguous rows on all devices by their room, with the answers of the whole."""
    placements = Placements(two)
    small, large = Vectors(20, 1), Vectors(150, 2)
    put(placements, "small", small)
    placement = put(placements, "large", large)
    assert [name for name, _, _ in large.made] == ["gpu:0", "gpu:1"]
    assert [shard.start for shard in placement.shards] == [0, placement.shards[0].stop]
    assert placement.rows == 150
    assert 60 <= placement.shards[0].stop <= 80
    check(placements, "large", large, 10)
    check(placements, "large", large, 160)
    check(placements, "small", small)
    assert placements.evictions == 0
    figures = {one.key: one for one in placements.figures()}
    assert figures["large"].devices == ("gpu:0", "gpu:1")
    assert (figures["large"].rows, figures["large"].bytes) == (150, 150 * ROW)
    assert figures["large"].searches == 2


def test_one_without_room_keeps_no_others_from_their_shares(two: list[Device]) -> None:
    """What each has to hold leaves none on one of three, which gets no rows."""
    third = device(name="gpu:2", size=200 * ROW, budget_bytes=100 * ROW)
    placements = Placements([*two, third])
    put(placements, "crowd", Vectors(95, 1), among=["gpu:1"])
    large = Vectors(150, 9)
    with placements.using("crowd"):
        put(placements, "large", large, each=10 * ROW)
    assert [name for name, _, _ in large.made] == ["gpu:0", "gpu:2"]
    check(placements, "large", large)
    third.close()


def test_dividing_evicts_what_it_must(two: list[Device]) -> None:
    """A large one may drive out small ones on all devices, and comes back whole."""
    clock = Clock()
    placements = Placements(two, clock=clock, keep_s=10)
    for i, name in enumerate("abcd"):
        put(placements, name, Vectors(45, i))
    clock.now += 60
    large = Vectors(190, 7)
    put(placements, "large", large)
    check(placements, "large", large)
    assert [one.key for one in placements.figures()] == ["large"]
    small = Vectors(30, 8)
    clock.now += 60
    put(placements, "small", small)
    check(placements, "small", small)
    assert placements.get("large") is None
    assert sum(one.used_bytes for one in two) == 30 * ROW


def test_too_large_for_all_is_device_full(two: list[Device]) -> None:
    """DeviceFull says how much was wanted and is free; nothing was evicted for it."""
    placements = Placements(two)
    put(placements, "a", Vectors(10, 1))
    for rows, more in ((250, {}), (110, {"divisible": False})):
        with pytest.raises(DeviceFull, match="free of the budgets") as caught:
            put(placements, "b", Vectors(rows, 2), **more)
        assert caught.value.details["needed_bytes"] == rows * ROW
    assert placements.get("a")
    assert placements.evictions == 0


def test_a_card_that_is_full_before_its_budget(two: list[Device]) -> None:
    """Where the card has less than the books say, idle ones go, one by one, until it fits."""
    one = device(size=100 * ROW, budget_bytes=1_000 * ROW)
    try:
        clock = Clock()
        placements = Placements([one], clock=clock)
        for i, name in enumerate("abc"):
            put(placements, name, Vectors(30, i))
            clock.now += 1
        last = Vectors(50, 5)
        put(placements, "last", last)
        check(placements, "last", last)
        assert placements.get("a") is None
        assert placements.get("b") is None
        assert placements.get("c")
        with pytest.raises(DeviceFull):
            put(placements, "huge", Vectors(500, 6))
        assert one.used_bytes == sum(f.bytes for f in placements.figures())
    finally:
        one.close()


def test_a_placing_that_fails_leaves_nothing(two: list[Device]) -> None:
    """If the second shard fails, the first is dropped, and the room is there again."""
    placements = Placements(two)
    large = Vectors(150, 1)

    def make(one: Device, start: int, stop: int) -> Placed:
        if start:
            raise KeyError("second")
        return large(one, start, stop)

    with pytest.raises(KeyError, match="second"):
        placements.place("a", large.bytes, 150, make)
    assert placements.get("a") is None
    assert [one.used_bytes for one in two] == [0, 0]
    assert [placements.room(one) for one in two] == [100 * ROW] * 2
    put(placements, "a", large)
    check(placements, "a", large)


def test_a_dead_worker_takes_its_placements_along(two: list[Device]) -> None:
    """After a death a search raises DeviceLost or finds nothing; what lay on it is forgotten, the other
    half of a divided one given back, and placing anew works."""
    placements = Placements(two)
    small, large = Vectors(20, 1), Vectors(150, 2)
    put(placements, "large", large)
    put(placements, "small", small)
    with placements.using("small") as held:
        assert held is not None
        where = two.index(held.shards[0].device)
    dead, other = two[where], two[1 - where]
    assert dead._worker is not None
    os.kill(dead._worker.pid, signal.SIGKILL)
    until(lambda: dead.stats().restarts == 1 and dead.up)
    assert placements.get("small") is None
    assert placements.get("large") is None
    until(lambda: other.used_bytes == 0)
    assert placements.figures() == []
    put(placements, "large", large)
    check(placements, "large", large)


def test_a_death_in_mid_search_is_told() -> None:
    """The search of a placement whose worker dies raises DeviceLost."""
    one = device("search_s=20")
    try:
        placements = Placements([one])
        put(placements, "a", Vectors(20, 1))
        assert one._worker is not None
        threading.Timer(0.3, os.kill, (one._worker.pid, signal.SIGKILL)).start()
        with pytest.raises(DeviceLost):
            placements.search("a", vectors(1), 1, 0, "l2")
    finally:
        one.close()
    with pytest.raises(DeviceLost, match="no device is up"):
        put(placements, "b", Vectors(2, 1))


def test_placements_go_to_devices_that_are_up(two: list[Device]) -> None:
    """A device that is closed or down is left out."""
    placements = Placements(two)
    two[0].close()
    given = Vectors(30, 1)
    put(placements, "a", given)
    assert given.made[0][0] == "gpu:1"
    check(placements, "a", given)


def test_forgetting_gives_the_room_back(two: list[Device]) -> None:
    """A key that is forgotten takes nothing any more; forgetting twice is fine."""
    placements = Placements(two)
    put(placements, "a", Vectors(150, 1))
    placements.forget("a")
    placements.forget("a")
    assert placements.get("a") is None
    assert [one.used_bytes for one in two] == [0, 0]


def test_two_who_place_the_same(two: list[Device]) -> None:
    """The second waits for the first, and both get the same placement."""
    placements = Placements(two)
    given = Vectors(40, 1)
    gate = threading.Event()

    def make(one: Device, start: int, stop: int) -> Placed:
        gate.wait(20)
        return given(one, start, stop)

    found: list[Any] = []

    def work() -> None:
        found.append(placements.place("a", given.bytes, 40, make))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    assert placements.room(two[0]) == 60 * ROW
    gate.set()
    for thread in threads:
        thread.join()
    assert len(given.made) == 1
    assert found[0] is found[1] is found[2]


def test_random_days(two: list[Device]) -> None:
    """Whatever is placed, searched and forgotten in whatever order: answers are right, budgets are kept,
    and the books agree with the devices."""
    seed = int.from_bytes(os.urandom(4))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    clock = Clock()
    placements = Placements(two, clock=clock, keep_s=5)
    given = {i: Vectors(int(rng.integers(1, 170)), i) for i in range(12)}
    for _ in range(120):
        clock.now += float(rng.choice([0.0, 1.0, 20.0]))
        key = int(rng.integers(12))
        what = rng.random()
        if what < 0.5:
            put(placements, key, given[key])  # type: ignore[arg-type]
        if what < 0.9 and placements.get(key) is not None:
            check(placements, key, given[key])  # type: ignore[arg-type]
        if what > 0.97:
            placements.forget(key)
        for one in two:
            assert one.used_bytes <= one.budget_bytes
        assert sum(one.used_bytes for one in two) == sum(f.bytes for f in placements.figures())
