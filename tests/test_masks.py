"""Results of recent filters, moments, and selections: what is kept, and what is made only when asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vecdb.masks import Deaths, FilterMasks, Moment
from vecdb.selection import Selection

Mask = NDArray[np.bool_]


class Work:
    """A filter over rows that says how many rows it was asked about."""

    def __init__(self, wanted: Mask, *, listed: bool = False) -> None:
        self.wanted = wanted
        self.listed = listed
        self.looked_at: list[int] = []

    def ask(self, masks: FilterMasks, text: str, n_rows: int) -> Selection:
        def whole() -> Selection:
            self.looked_at.append(n_rows)
            mask = self.wanted[:n_rows].copy()
            if self.listed:
                return Selection(n_rows, rows=np.flatnonzero(mask))
            return Selection(n_rows, mask=mask)

        def rest(start: int) -> Mask:
            self.looked_at.append(n_rows - start)
            return self.wanted[start:n_rows].copy()

        return masks.get(text, n_rows, whole, rest)


def some(n: int, share: float, seed: int = 3) -> Mask:
    return np.random.default_rng(seed).random(n) < share


@settings(deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 400)), max_size=30),
    entries=st.integers(0, 3),
    shares=st.tuples(*[st.sampled_from([0.0, 0.02, 0.12, 0.9])] * 3),
    forms=st.lists(st.sampled_from(["rows", "mask", ""]), min_size=30, max_size=30),
)
def test_held_results_are_right_for_any_number_of_rows(
    steps: Any, entries: int, shares: Any, forms: Any
) -> None:
    """Whatever is asked in whatever order, a result is what a fresh evaluation would be, and stays."""
    masks = FilterMasks(entries)
    work = {
        name: Work(some(400, share, seed=i), listed=share < 0.1)
        for i, (name, share) in enumerate(zip("abc", shares, strict=True))
    }
    given_out: list[tuple[Selection, Mask]] = []
    for (name, n_rows), form in zip(steps, forms, strict=False):
        found = work[name].ask(masks, name, n_rows)
        if form:
            getattr(found, form)()
        given_out.append((found, work[name].wanted[:n_rows]))
    for found, expected in given_out:
        assert found.n_rows == len(expected)
        assert found.count() == np.count_nonzero(expected)
        assert found.rows().tolist() == np.flatnonzero(expected).tolist()
        assert np.array_equal(found.mask(), expected)


def test_a_repeated_filter_is_the_same_object() -> None:
    """The same filter on as many rows gives the same object, also beside readers a commit behind."""
    masks, work = FilterMasks(2), Work(some(300, 0.5))
    first = work.ask(masks, "a", 100)
    assert work.ask(masks, "a", 100) is first
    second = work.ask(masks, "a", 120)
    assert work.ask(masks, "a", 100) is first
    assert work.ask(masks, "a", 120) is second
    earlier = work.ask(masks, "a", 50)
    assert work.ask(masks, "a", 50) is earlier
    assert work.ask(masks, "a", 120) is second
    assert work.looked_at == [100, 20]


def test_only_new_rows_are_looked_at() -> None:
    """A result grows with the rows; one that was pushed out is made anew."""
    masks, work = FilterMasks(1), Work(some(300, 0.5))
    for n_rows in (100, 101, 150, 150, 120, 300):
        work.ask(masks, "a", n_rows)
    assert work.looked_at == [100, 1, 49, 150]
    work.ask(masks, "b", 10)
    work.ask(masks, "a", 300)
    assert work.looked_at[-2:] == [10, 300]
    masks.clear()
    work.ask(masks, "a", 300)
    assert work.looked_at[-1] == 300


def test_nothing_is_held_without_entries() -> None:
    """With no entries every filter is evaluated each time."""
    masks, work = FilterMasks(0), Work(some(300, 0.5))
    work.ask(masks, "a", 100)
    work.ask(masks, "a", 100)
    assert work.looked_at == [100, 100]


def test_a_list_that_grows_long_becomes_a_mask() -> None:
    """A list is kept as one while it takes no more memory than a mask would."""
    masks, work = FilterMasks(1), Work(np.arange(1_000) >= 500, listed=True)
    assert work.ask(masks, "a", 500).is_list
    assert work.ask(masks, "a", 560).is_list
    assert not work.ask(masks, "a", 1_000).is_list


def test_threads_extend_one_result_at_once() -> None:
    """Threads that ask for different numbers of rows at once all get the right rows."""
    wanted = some(20_000, 0.4)
    masks = FilterMasks(1)
    failures: list[int] = []

    def ask(seed: int) -> None:
        rng = np.random.default_rng(seed)
        work = Work(wanted)
        n_rows = 0
        while n_rows < len(wanted):
            n_rows = min(n_rows + int(rng.integers(1, 90)), len(wanted))
            found = work.ask(masks, "a", max(1, n_rows - int(rng.integers(0, 5))))
            if not np.array_equal(found.mask(), wanted[: found.n_rows]):
                failures.append(found.n_rows)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


class FakeView:
    """A view that counts the rows it is asked about."""

    def __init__(self, live: Mask) -> None:
        self.live = live
        self.n_rows = len(live)
        self.n_live = int(live.sum())
        self.looked_at = 0

    def live_mask(self, start: int = 0, stop: int | None = None) -> Mask:
        found = self.live[start:stop].copy()
        self.looked_at += len(found)
        return found

    def is_live(self, rows: NDArray[np.int64]) -> Mask:
        self.looked_at += len(rows)
        return self.live[rows]


def selections(wanted: Mask) -> list[Selection]:
    return [Selection(len(wanted), mask=wanted),
            Selection(len(wanted), rows=np.flatnonzero(wanted))]  # fmt: skip


@settings(deadline=None)
@given(
    n=st.integers(0, 60),
    died=st.lists(st.tuples(st.integers(0, 59), st.integers(1, 9)), max_size=40),
    sequence=st.integers(0, 9),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    data=st.data(),
)
def test_a_moment_shows_what_was_live_then(
    n: int, died: Any, sequence: int, share: float, data: Any
) -> None:
    """An earlier moment is the present one and the rows that died since, in every form of asking."""
    when = {row: commit for row, commit in died if row < n}
    view = FakeView(np.array([row not in when for row in range(n)], np.bool_))
    rows, commits = (np.array(part, np.int64) for part in (list(when), list(when.values())))
    n_rows = data.draw(st.integers(0, n), "n_rows")
    past = Moment(sequence, n_rows, view, Deaths(rows, commits))
    expected = np.array([when.get(row, 99) > sequence for row in range(n_rows)], np.bool_)
    now = Moment(9, n, view, None)
    for moment, live in ((past, expected), (now, view.live)):
        asked = np.flatnonzero(some(len(live), 0.5))
        assert moment.is_live(asked).tolist() == live[asked].tolist()
        start = data.draw(st.integers(0, len(live)), "start")
        assert moment.live_range(start, len(live)).tolist() == live[start:].tolist()
        assert moment.rows(None).tolist() == np.flatnonzero(live).tolist()
        wanted = some(len(live), share)
        for selection in selections(wanted):
            assert moment.rows(selection).tolist() == np.flatnonzero(live & wanted).tolist()
            assert moment.count(selection) == np.count_nonzero(live & wanted)
        assert moment.live.tolist() == live.tolist()


@pytest.mark.parametrize("dead", [0, 3])
def test_a_moment_costs_nothing_until_asked(dead: int) -> None:
    """Making a moment looks at no row, a list of rows at these only; the mask is made once."""
    live = np.ones(1_000, np.bool_)
    live[:dead] = False
    view = FakeView(live)
    moment = Moment(5, 1_000, view, None)
    assert view.looked_at == 0
    moment.count(Selection(1_000, rows=np.array([2, 500])))
    assert view.looked_at <= 2
    assert moment.live is moment.live
    assert view.looked_at <= 1_002


@pytest.mark.parametrize("make", [lambda m: Selection(len(m), mask=m),
                                  lambda m: Selection(len(m), rows=np.flatnonzero(m))])  # fmt: skip
def test_a_selection_is_the_same_in_both_forms(make: Callable[[Mask], Selection]) -> None:
    """Rows, mask, count and parts of a selection do not depend on the form it was made in."""
    wanted = some(200, 0.3)
    for n_rows in (0, 1, 117, 200):
        cut = make(wanted).below(n_rows)
        assert cut.n_rows == n_rows
        assert cut.count() == np.count_nonzero(wanted[:n_rows])
        assert cut.rows().tolist() == np.flatnonzero(wanted[:n_rows]).tolist()
        assert np.array_equal(cut.mask(), wanted[:n_rows])


@pytest.mark.parametrize("entries", [0, 8])
@pytest.mark.parametrize("listed", [True, False])
def test_a_result_bears_the_text_it_is_of(entries: int, listed: bool) -> None:
    """However a result came about it has its filter's text as key; a selection made otherwise has none."""
    masks, work = FilterMasks(entries), Work(some(500, 0.02), listed=listed)
    for n_rows in (300, 500, 200, 500, 400):
        found = work.ask(masks, "a", n_rows)
        assert (found.key, found.n_rows) == ("a", n_rows)
        assert found.below(100).key == "a"
        assert found.count() == int(work.wanted[:n_rows].sum())
        assert Selection(n_rows, mask=found.mask()).key is None
    assert work.ask(masks, "b", 500).key == "b"
