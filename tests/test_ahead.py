"""Reading one step ahead: order, bounds, errors and ends as of a plain `map`."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from conftest import wait_until

from vecdb_server.ahead import one_ahead


def ahead_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "vecdb-ahead"]


def test_one_item_is_made_while_its_user_has_the_one_before() -> None:
    """Items come in order; the next one is made without being asked for, the one after it is not."""
    made: list[int] = []

    def make(item: int) -> int:
        made.append(item)
        return item * 10

    results = one_ahead(iter(range(5)), make)
    assert made == []
    for number in range(5):
        assert next(results) == number * 10
        wanted = list(range(min(number + 2, 5)))
        wait_until(lambda wanted=wanted: made == wanted, "the next one is made")  # type: ignore[misc]
    assert next(results, None) is None
    wait_until(lambda: not ahead_threads(), "the thread ends with the items")


@pytest.mark.parametrize("where", ["items", "make"])
def test_an_error_comes_in_its_turn(where: str) -> None:
    """What is before a failure is still given, then the failure, then nothing."""

    def items() -> Iterator[int]:
        yield from (1, 2)
        if where == "items":
            raise OSError("no more")
        yield 3

    def make(item: int) -> int:
        if item == 3:
            raise OSError("no more")
        return item

    results = one_ahead(items(), make)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(OSError, match="no more"):
        next(results)
    assert list(results) == []
    wait_until(lambda: not ahead_threads(), "the thread has ended")


def test_a_user_who_leaves_ends_the_thread() -> None:
    """Closing the iterator ends its thread, and keeps nothing that was made."""

    class Thing:
        pass

    kept: list[Any] = []

    def make(_: int) -> Thing:
        thing = Thing()
        kept.append(weakref.ref(thing))
        return thing

    results = one_ahead(iter(range(1000)), make)
    next(results)
    wait_until(lambda: len(kept) == 2, "one is made ahead")
    results.close()  # type: ignore[attr-defined]
    del results
    wait_until(lambda: not ahead_threads(), "the thread has ended")
    assert len(kept) <= 3
    wait_until(lambda: all(one() is None for one in kept), "nothing is kept")


def test_the_thread_has_the_context_of_its_user() -> None:
    """Who calls is known where an item is made, as it is where it is used."""
    caller: ContextVar[str] = ContextVar("caller", default="nobody")
    results = one_ahead(iter("ab"), lambda item: item + caller.get())
    caller.set("me")
    assert list(results) == ["ame", "bme"]
