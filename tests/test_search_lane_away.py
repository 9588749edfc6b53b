"""The search lane and searches that wait for a device: they keep no place, come back in turn, and end in time."""

from __future__ import annotations

import math
import signal
import threading

import numpy as np
import pytest
from conftest import wait_until

from vecdb import errors, search_ask
from vecdb.index import Found
from vecdb.search_lane import SearchLane
from vecdb.stopping import while_wanted
from vecdb.turns import away


class Clock:
    """In place of `time` in the lane: it is `now` until the test says otherwise."""

    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(search_ask, "time", made)
    monkeypatch.setattr(search_ask, "LOOK_S", 0.01)
    return made


class Asking:
    """A view that waits for a device, until `gate` is open or the wait ends; then it works until `done` is."""

    is_simple, tail_rows, asks_devices_from = False, 0, 0

    def __init__(self):
        self.gate, self.done = threading.Event(), threading.Event()
        self.calls = []
        self.waiting = self.working = self.most_working = 0
        self.failing = False
        self._lock = threading.Lock()

    def search(self, queries, k, **options):
        with self._lock:
            self.calls.append(len(queries))
            self.waiting += 1
        try:
            with away() as wait:
                while not self.gate.wait(0.01):
                    if wait.end is not None and search_ask.time.monotonic() > wait.end:
                        raise errors.DeadlineExceeded("late, on purpose")
                    wait.check()
                if self.failing:
                    raise errors.DeviceLost("lost, on purpose")
        except errors.DeviceLost:
            pass  # the host goes on
        finally:
            with self._lock:
                self.waiting -= 1
        with self._lock:
            self.working += 1
            self.most_working = max(self.most_working, self.working)
        assert self.done.wait(60)
        with self._lock:
            self.working -= 1
        near = np.repeat(queries[:, :1], k, axis=1)
        return Found(near, np.zeros(near.shape, np.int64), False, "asking")

    def together(self, count, k, allowed, exact, wait):
        return 0


class Busy(Asking):
    """A view that waits for no device."""

    asks_devices_from = math.inf

    def search(self, queries, k, **options):
        self.working += 1
        assert self.done.wait(60)
        self.working -= 1
        near = np.repeat(queries[:, :1], k, axis=1)
        return Found(near, np.zeros(near.shape, np.int64), False, "busy")


def ask(lane, view, number, k=1, **options):
    queries = np.full((1, 3), number, np.float32)
    return float(lane.search(view, queries, k, **options).distances[0, 0])


class Call(threading.Thread):
    """A search in a thread of its own, and what came of it."""

    def __init__(self, *given, **options):
        super().__init__()
        self.given, self.options, self.outcome = given, options, None
        self.start()

    def run(self):
        try:
            self.outcome = ask(*self.given, **self.options)
        except BaseException as error:
            self.outcome = error

    def ended(self):
        self.join(60)
        assert not self.is_alive()
        return self.outcome


def is_free(lane):
    return not (lane._running or lane._away or lane._waiting or lane._returning)


@pytest.mark.parametrize("failing", [False, True])
def test_who_waits_for_a_device_keeps_no_place(failing):
    """Any number waits there at once, another view is searched meanwhile, and those who come back, with an answer or
    without, do so one by one where there is one core."""
    lane, view, other = SearchLane(1), Asking(), Busy()
    view.failing = failing
    calls = [Call(lane, view, n, k=n) for n in range(1, 6)]
    wait_until(lambda: view.waiting == 5, "all five wait for the device")
    assert not lane.idle
    other.done.set()
    assert ask(lane, other, 7) == 7
    other.done.clear()
    busy = Call(lane, other, 8)
    wait_until(lambda: other.working == 1, "the core is taken")
    view.gate.set()
    wait_until(lambda: len(lane._returning) == 5, "all five wait for the core")
    late = Call(lane, other, 9)
    wait_until(lambda: lane.waiting == 1, "one waits that has not begun")
    other.done.set()
    view.done.set()
    assert [call.ended() for call in (*calls, busy, late)] == [1, 2, 3, 4, 5, 8, 9]
    assert view.most_working == 1
    assert is_free(lane)


def of_two(lane, view, first, second):
    """Two calls that are searched together; the first searches, and waits for the device."""
    other = Busy()
    holder = Call(lane, other, 0)
    wait_until(lambda: other.working == 1, "the core is taken")
    calls = []
    for number, options in enumerate((first, second), 1):
        calls.append(Call(lane, view, number, **options))
        wait_until(lambda number=number: lane.waiting == number, "the next one waits")
    other.done.set()
    assert holder.ended() == 0
    wait_until(lambda: view.waiting == 1, "the device is asked")
    assert view.calls == [2]
    return calls


def test_who_is_searched_for_waits_until_its_deadline_only(clock):
    """A caller whose query another has taken to the device gets DeadlineExceeded in time; the other gets its answer."""
    lane, view = SearchLane(1), Asking()
    first, second = of_two(lane, view, {}, {"end": 5.0})
    clock.now = 6.0
    assert isinstance(second.ended(), errors.DeadlineExceeded)
    assert first.is_alive()
    view.gate.set()
    view.done.set()
    assert first.ended() == 1
    assert view.calls == [2]
    assert is_free(lane)


def test_a_deadline_of_who_searches_ends_the_search_of_no_other(clock):
    """Where the caller who took others along is too late, another of them asks the device again."""
    lane, view = SearchLane(1), Asking()
    first, second = of_two(lane, view, {"end": 5.0}, {})
    clock.now = 6.0
    assert isinstance(first.ended(), errors.DeadlineExceeded)
    wait_until(lambda: view.calls == [2, 1], "the other asks")
    view.gate.set()
    view.done.set()
    assert second.ended() == 2
    assert is_free(lane)


def test_nobody_is_searched_for_who_has_gone(clock):
    """A caller that waits no more is left out when the search that took it along is done again."""
    lane, view = SearchLane(1), Asking()
    first, second = of_two(lane, view, {"end": 7.0}, {"end": 5.0})
    clock.now = 6.0
    assert isinstance(second.ended(), errors.DeadlineExceeded)
    clock.now = 8.0
    assert isinstance(first.ended(), errors.DeadlineExceeded)
    assert view.calls == [2]
    assert is_free(lane)
    view.gate.set()
    view.done.set()
    assert ask(lane, view, 3) == 3


def test_a_caller_that_has_gone_ends_the_wait():
    """Cancelled while the device is asked, and while there is no core to come back to."""
    lane, view, other = SearchLane(1), Asking(), Busy()
    wanted = threading.Event()
    wanted.set()

    class Watched(Call):
        def run(self):
            with while_wanted(wanted.is_set):
                super().run()

    first = Watched(lane, view, 1)
    wait_until(lambda: view.waiting == 1, "the device is asked")
    wanted.clear()
    assert isinstance(first.ended(), errors.Cancelled)
    assert is_free(lane)
    wanted.set()
    second = Watched(lane, view, 2)
    wait_until(lambda: view.waiting == 1, "the device is asked again")
    busy = Call(lane, other, 3)
    wait_until(lambda: other.working == 1, "the core is taken")
    view.gate.set()
    wait_until(lambda: len(lane._returning) == 1, "it wants to come back")
    wanted.clear()
    assert isinstance(second.ended(), errors.Cancelled)
    other.done.set()
    assert busy.ended() == 3
    assert is_free(lane)


def test_an_interrupted_wait_leaves_nothing_behind():
    """Ctrl-C while the device is asked, or while there is no core to come back to."""
    lane, view, other = SearchLane(1), Asking(), Busy()
    busy = None

    def interrupt_when(true):
        def wait():
            wait_until(true, "it waits")
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        threading.Thread(target=wait).start()

    interrupt_when(lambda: view.waiting == 1)
    with pytest.raises(KeyboardInterrupt):
        ask(lane, view, 1)
    assert is_free(lane)
    busy = Call(lane, other, 3)
    wait_until(lambda: other.working == 1, "the core is taken")
    lane._cores = 2  # to begin with
    view.gate.set()

    class Slow(Asking):
        def search(self, queries, k, **options):
            with away():
                lane._cores = 1
            return

    interrupt_when(lambda: len(lane._returning) == 1)
    with pytest.raises(KeyboardInterrupt):
        ask(lane, Slow(), 2)
    other.done.set()
    assert busy.ended() == 3
    assert is_free(lane)


def coming_back(lane, view, *others):
    """A search whose device has answered, while others have more places than there are cores."""
    back = Call(lane, view, 1)
    wait_until(lambda: view.waiting == 1, "the device is asked")
    calls = []
    for number, other in enumerate(others, 2):
        calls.append(Call(lane, other, number))
        wait_until(lambda other=other: other.working == 1, "it has a place")
    view.gate.set()
    wait_until(lambda: len(lane._returning) == 1, "it wants to come back")
    return back, calls


def test_short_searches_keep_nobody_from_coming_back():
    """Who comes back from a device is not passed over by short searches, which have places beside one a core: those that begin
    meanwhile wait behind it, however many there are."""
    lane, view = SearchLane(1), Asking()
    first, second, third = Busy(), Busy(), Busy()
    for one in (first, second, third):
        one.is_simple = True
    back, (one, two) = coming_back(lane, view, first, second)
    late = Call(lane, third, 4)
    wait_until(lambda: lane.waiting or third.working, "it comes")
    assert (lane.waiting, third.working) == (1, 0)
    first.done.set()
    assert one.ended() == 2
    assert (lane.waiting, third.working, len(lane._returning)) == (1, 0, 1)
    second.done.set()
    assert two.ended() == 3
    wait_until(lambda: view.working == 1, "it has come back")
    view.done.set()
    third.done.set()
    assert (back.ended(), late.ended()) == (1, 4)
    assert is_free(lane)


def test_who_comes_back_as_the_last_place_is_given_up_is_not_left_to_wait(monkeypatch):
    """Another may end between the look at the places and queueing up, and does not see who queues up: that one looks again."""
    monkeypatch.setattr(search_ask, "LOOK_S", 90.0)
    lane, view = SearchLane(1), Asking()

    class Places(dict):
        """One of another thread is given up just after they were counted."""

        def __len__(self):
            count = super().__len__()
            if view.gate.is_set():
                self.pop(0, None)
            return count

    lane._running = Places()
    back = Call(lane, view, 1)
    wait_until(lambda: view.waiting == 1, "the device is asked")
    lane._running[0] = ()
    view.done.set()
    view.gate.set()
    assert back.ended() == 1
    assert is_free(lane)


def test_a_turn_that_came_unnoticed_gives_no_place_later(monkeypatch):
    """A search whose turn comes just after it has looked in vain goes on at once; back from a device it waits for a place all the
    same, and is called once."""
    monkeypatch.setattr(search_ask, "LOOK_S", 0.01)
    lane, view, before, after = SearchLane(1), Asking(), Busy(), Busy()
    looks = []

    def wanted():
        if lane.waiting:
            before.done.set()
            holder.join(60)  # it has called this one
        looks.append(None)
        return True

    class Watched(Call):
        def run(self):
            with while_wanted(wanted):
                super().run()

    holder = Call(lane, before, 1)
    wait_until(lambda: before.working == 1, "the core is taken")
    back = Watched(lane, view, 2)
    wait_until(lambda: view.waiting == 1, "the device is asked")
    busy = Call(lane, after, 3)
    wait_until(lambda: after.working == 1, "the core is taken again")
    view.gate.set()
    wait_until(lambda: len(lane._returning) == 1, "it wants to come back")
    seen = len(looks)
    wait_until(lambda: len(looks) > seen + 2, "it waits for that, and looks whether it should")
    assert view.working == 0
    after.done.set()
    view.done.set()
    assert (holder.ended(), busy.ended(), back.ended()) == (1, 3, 2)
    assert is_free(lane)
