"""Expensive calls let queries go first: deletes and scans while their filter is evaluated, and checks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import StartServer, wait_until
from timing import once_below, seconds

import vecdb
from vecdb import filter_tree, predicates
from vecdb.core import Core
from vecdb.stopping import evaluating, resting, while_wanted
from vecdb.store import check
from vecdb_client import connect
from vecdb_server import admission
from vecdb_server.admission import Rests
from vecdb_server.pools import Pools

ROWS = 600
PATTERN = {"$document": {"$regex": "t+"}}


def filled(docs: Any) -> None:
    docs.insert([f"r{i}" for i in range(ROWS)], np.ones((ROWS, 2)), documents=["text"] * ROWS)


@pytest.fixture
def docs(data_folder: Path) -> Iterator[vecdb.Collection]:
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=2)
        filled(docs)
        yield docs


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents are asked one by one, and checked in three parts."""
    monkeypatch.setattr(filter_tree, "_CHARS_AT_ONCE", 1)
    monkeypatch.setattr(check, "_SLICE_BYTES", 1)


def verbs(docs: Any) -> dict[str, Callable[[], Any]]:
    return {
        "scan": lambda: sum(len(page) for page in docs.scan(filter=PATTERN)),
        "check": lambda: docs.check().ok,
        "delete": lambda: docs.delete(filter=PATTERN).count,
    }


def test_a_call_rests_by_what_it_has_worked() -> None:
    """Up to four times as long as since its last rest; not for steps that are too short to matter, and not when no query
    waits. What it says it has rested is what it has."""
    for waiting, low_s, high_s in ((True, 0.12, 0.25), (False, 0.0, 0.02)):

        def once(waiting: bool = waiting, low_s: float = low_s) -> float:
            rests = Rests(lambda: waiting)
            time.sleep(0.03)
            begun_s = time.monotonic()
            said_s = rests()
            took_s = time.monotonic() - begun_s
            assert low_s <= said_s <= took_s
            return took_s

        once_below(high_s + 0.02, once)
    once_below(0.004, lambda: seconds(Rests(lambda: True)))
    once_below(0.02, lambda: seconds(Rests(lambda: True, wanted=lambda: False)))


def test_rests_do_not_count_as_evaluation() -> None:
    """A filter that lets others go first has as much time of its own as one that need not."""
    rested: list[int] = []

    def rest() -> None:
        rested.append(1)
        time.sleep(0.06)

    with while_wanted(lambda: True, 0.05), resting(rest):
        ask = evaluating(lambda: None)
        ask()
        ask()
    assert len(rested) == 2


@pytest.mark.usefixtures("in_pieces")
def test_the_engine_rests_where_it_keeps_nobody_waiting(
    docs: vecdb.Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filters of scans and deletes, and checks, rest between their pieces, and never while they have the lane."""
    lane, matching = docs._core._lane, Core.matching
    calls: list[int] = []

    def looked(self: Core, *given: Any) -> Any:
        # What comes after this look is left for the lane.
        found = matching(self, *given)
        writer = threading.Thread(
            target=docs.upsert, args=(["new"], np.ones((1, 2))), kwargs={"documents": ["text"]}
        )
        writer.start()
        writer.join(60)
        return found

    def rest() -> float:
        calls.append(1)
        with lane._mutex:
            assert not lane._led
        free = threading.Thread(
            target=lambda: lane._lane.acquire(timeout=5) and lane._lane.release()
        )
        free.start()
        free.join(5)
        assert not free.is_alive()
        return 0.0

    def rested(call: Callable[[], Any]) -> Any:
        with resting(rest):
            return call()

    monkeypatch.setattr(Core, "matching", looked)
    for verb, call in verbs(docs).items():
        calls.clear()
        # In a thread that commits itself, as those of a server do.
        with ThreadPoolExecutor(1) as others:
            done = others.submit(rested, call).result(20)
        assert done == {"scan": ROWS, "check": True, "delete": ROWS + 1}[verb]
        assert len(calls) >= (3 if verb == "check" else ROWS), verb
    with resting(rest):
        calls.clear()
        docs.query([1, 1], k=1)
        assert not calls


@pytest.mark.usefixtures("in_pieces")
def test_a_check_does_not_rest_while_its_transaction_is_in_the_way(docs: vecdb.Collection) -> None:
    """Where the map is to grow, or a compacted file to be put in place, a check that rested would keep writers waiting."""
    gate = docs._core.store._env._gate
    calls: list[bool] = []

    def rest() -> float:
        calls.append(docs._core.store.is_awaited)
        return 0.0

    through = threading.Event()

    def alone() -> None:
        gate.alone(through.set)

    with docs._core.read():
        waiting = threading.Thread(target=alone)
        waiting.start()
        wait_until(lambda: docs._core.store.is_awaited, "someone waits to be alone")
        with resting(rest):
            assert docs.check().ok
        assert calls == []
        assert not through.is_set()
    waiting.join(60)
    assert through.is_set()
    with resting(rest):
        assert docs.check().ok
    assert len(calls) >= 3
    assert not any(calls)


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("verb", ["scan", "check", "delete"])
def test_long_calls_look_for_queries_between_their_pieces(
    start: StartServer, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Over the wire: from one piece of their work to the next they ask whether queries wait."""
    looked: list[int] = []
    before: list[int] = []
    texts, rows = predicates.Regex.texts, check._rows

    def noted_texts(self: Any, values: Any, interrupt: Any) -> list[bool]:
        before.append(len(looked))
        return texts(self, values, interrupt)

    def noted_rows(*given: Any) -> Iterator[str]:
        before.append(len(looked))
        yield from rows(*given)

    def queries_wait(self: Any) -> bool:
        looked.append(1)
        return False

    monkeypatch.setattr(predicates.Regex, "texts", noted_texts)
    monkeypatch.setattr(check, "_rows", noted_rows)
    monkeypatch.setattr(Pools, "queries_wait", queries_wait)
    monkeypatch.setattr(admission, "_LOOK_S", 0.0)
    server = start()
    with connect(server.address) as client:
        docs = client.create_collection("docs", dimension=2)
        filled(docs)
        looked.clear()
        before.clear()
        assert verbs(docs)[verb]() == (True if verb == "check" else ROWS)
    assert len(before) == (3 if verb == "check" else ROWS)
    assert all(later > earlier for earlier, later in pairwise(before))
