"""Deletes by filter: what others write while the filter is evaluated, deadlines, and callers that have gone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import StartServer, wait_until

import vecdb
from vecdb import deleting, errors
from vecdb.columns import Columns
from vecdb.core import Core
from vecdb.stopping import while_wanted
from vecdb_client import connect
from vecdb_client.v1 import vecdb_pb2 as pb

ROWS = 40
FILTERS: list[dict[str, Any]] = [
    {"n": 1},
    {"$document": {"$contains": "one"}},
    {"$document": {"$regex": "^one"}, "id": {"$ne": "none"}},
    {"id": {"$in": [f"r{i}" for i in range(1, ROWS, 2)] + ["new1", "later1"]}},
]
"""All match what is said to be one: rows of odd numbers, as long as nobody changes them."""


def put(docs: vecdb.Collection, ids: list[str], one: bool) -> None:
    """Writes records that are matched if `one`, as far as their ids do not decide."""
    text, number = ("one of them", 1) if one else ("another", 0)
    docs.upsert(
        ids,
        np.ones((len(ids), 2)),
        metadata=[{"n": number}] * len(ids),
        documents=[text] * len(ids),
    )


@pytest.fixture
def docs(data_folder: Path) -> Iterator[vecdb.Collection]:
    with vecdb.open(data_folder, auto_build=False) as db:
        docs = db.create_collection("docs", dimension=2)
        put(docs, [f"r{i}" for i in range(1, ROWS, 2)], one=True)
        put(docs, [f"r{i}" for i in range(0, ROWS, 2)], one=False)
        yield docs


@contextmanager
def after_a_look(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None]) -> Iterator[None]:
    """Whoever asks which rows match is given the answer once `meanwhile` is through, in another thread."""
    matching = Core.matching

    def slow(self: Core, *given: Any) -> Any:
        found = matching(self, *given)
        with ThreadPoolExecutor(1) as others:
            # Were writers kept out, this would never end.
            others.submit(meanwhile).result(20)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Core, "matching", slow)
        yield


def left(docs: vecdb.Collection) -> set[str]:
    return set(docs.get(limit=1_000).ids)


@pytest.mark.parametrize("few_rows", [1, 3, 1_000])
@pytest.mark.parametrize("expression", FILTERS, ids=["metadata", "text", "pattern", "ids"])
def test_others_write_while_a_filter_is_evaluated(
    docs: vecdb.Collection,
    monkeypatch: pytest.MonkeyPatch,
    expression: dict[str, Any],
    few_rows: int,
) -> None:
    """What comes, goes and changes after a delete has begun to look counts as its commit finds it; the others wait for
    no look at all rows."""
    monkeypatch.setattr(deleting, "_FEW_ROWS", few_rows)
    named = "id" in expression and "$document" not in expression

    def meanwhile() -> None:
        put(docs, ["new1", "later1"], one=True)
        put(docs, ["new0"], one=False)
        docs.delete(["r1", "r2", "later1"])
        put(docs, ["r3"], one=False)
        put(docs, ["r4"], one=True)
        put(docs, ["r5", "later1"], one=True)

    with after_a_look(monkeypatch, meanwhile):
        done = docs.delete(filter=expression)
    gone = {"new1", "later1"} | {f"r{i}" for i in range(5, ROWS, 2)} | {"r3" if named else "r4"}
    everything = {f"r{i}" for i in range(3, ROWS)} | {"r0", "new0"}
    assert left(docs) == everything - gone
    assert done.count == len(gone)
    assert docs.count(expression) == 0
    assert docs.check().ok


def test_ids_and_a_filter_are_both_of_the_commit(
    docs: vecdb.Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that was replaced meanwhile is judged by what it is now."""

    def meanwhile() -> None:
        put(docs, ["r1"], one=False)
        put(docs, ["r2"], one=True)

    with after_a_look(monkeypatch, meanwhile):
        assert docs.delete(["r1", "r2", "r3", "r4", "none"], filter={"n": 1}).count == 2
    assert left(docs) == {f"r{i}" for i in range(ROWS)} - {"r2", "r3"}


@pytest.mark.parametrize(
    ("new", "before_it", "in_it"),
    [(3, [], [[40, 41, 42]]), (5, [[40, 41, 42], [43, 44]], []), (0, [], [])],
)
def test_the_lane_asks_few_new_rows_only(
    docs: vecdb.Collection,
    monkeypatch: pytest.MonkeyPatch,
    new: int,
    before_it: list[list[int]],
    in_it: list[list[int]],
) -> None:
    """What came while all rows were looked at is looked at before the lane too, where it is more than a few rows."""
    asked: dict[bool, list[list[int]]] = {False: [], True: []}
    among, now = deleting.matching_among, deleting.Matching.now
    in_lane = threading.Event()

    def noted(expression: Any, columns: Any, reader: Any, rows: Any, *given: Any) -> Any:
        asked[in_lane.is_set()].append(rows.tolist())
        return among(expression, columns, reader, rows, *given)

    def entered(self: Any, writer: Any, named: bool) -> Any:
        in_lane.set()
        return now(self, writer, named)

    monkeypatch.setattr(deleting, "_FEW_ROWS", 3)
    monkeypatch.setattr(deleting, "matching_among", noted)
    monkeypatch.setattr(deleting.Matching, "now", entered)
    ids = [f"new{i}" for i in range(new)]
    with after_a_look(monkeypatch, lambda: put(docs, ids, one=True) if ids else None):
        assert docs.delete(filter={"n": 1}).count == ROWS // 2 + new
    assert asked == {False: before_it, True: in_it}


def test_columns_that_are_made_anew_meanwhile_are_not_waited_for(
    docs: vecdb.Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the columns were thrown away since, the lane makes its own for the new rows: who builds them for all may
    wait for the lane itself."""
    core = docs._core

    def meanwhile() -> None:
        put(docs, ["new1"], one=True)
        core.columns, core._columns_ready = Columns(1_000), False

    with after_a_look(monkeypatch, meanwhile), core._columns_lock:
        assert docs.delete(filter={"n": 1}).count == ROWS // 2 + 1
    assert docs.count({"n": 0}) == ROWS // 2


@pytest.mark.parametrize("error", [errors.DeadlineExceeded, errors.Cancelled])
def test_a_delete_ends_with_nothing_done(
    docs: vecdb.Collection, monkeypatch: pytest.MonkeyPatch, error: type[errors.VecdbError]
) -> None:
    """Over its time, or without anybody who waits, a delete ends wherever its filter is evaluated: in the first look, in
    a later one, and when the lane has come to it."""
    monkeypatch.setattr(deleting, "_FEW_ROWS", 3)
    calls: list[int] = []
    ends_at = 0

    def interrupt() -> None:
        calls.append(1)
        if len(calls) == ends_at:
            raise error("told to")

    monkeypatch.setattr(deleting, "deadline", lambda _: interrupt)
    there = left(docs)

    def meanwhile() -> None:
        ids = [f"at{ends_at} {i}" for i in range(8)]
        put(docs, ids, one=True)
        there.update(ids)

    done = None
    while done is None:
        calls.clear()
        ends_at += 1
        try:
            with after_a_look(monkeypatch, meanwhile):
                done = docs.delete(filter={"$document": {"$regex": "^one"}})
        except error:
            assert left(docs) == there
    # The first look, the rows that came, three at a time, and the lane.
    assert ends_at >= 6
    assert done.count == len(there) - ROWS // 2


def test_a_delete_takes_a_timeout(docs: vecdb.Collection) -> None:
    """Embedded, too, its filter has to be evaluated in time."""
    with pytest.raises(errors.DeadlineExceeded, match="within 0 s"):
        docs.delete(filter={"n": 1}, timeout_s=0.0)
    assert docs.count() == ROWS
    assert docs.delete(filter={"n": 1}, timeout_s=60.0).count == ROWS // 2


def test_a_delete_whose_caller_has_gone_is_not_begun(docs: vecdb.Collection) -> None:
    """It waits for the lane like every write; when its turn comes and nobody waits for it any more, nothing is done."""
    gone = threading.Event()

    def delete() -> int:
        with while_wanted(lambda: not gone.is_set()):
            return docs.delete(filter={"n": 1}).count

    with ThreadPoolExecutor(2) as others:
        with docs._core.exclusive():
            before = others.submit(put, docs, ["new"], False)
            wait_until(lambda: docs._core._lane._led, "the first of both leads")
            late = others.submit(delete)
            wait_until(lambda: len(docs._core._lane._waiting) == 2, "both wait")
            gone.set()
        before.result(60)
        with pytest.raises(errors.Cancelled):
            late.result(60)
    assert docs.count({"n": 1}) == ROWS // 2


def test_another_thread_commits_for_a_caller_and_asks_for_him(
    docs: vecdb.Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main thread hands its writes over; who does them asks whether the one who gave it the call still waits."""
    gone = threading.Event()
    assert threading.current_thread() is threading.main_thread()
    with while_wanted(lambda: not gone.is_set()), after_a_look(monkeypatch, gone.set):
        with pytest.raises(errors.Cancelled):
            docs.delete(filter={"n": 1})
        gone.clear()
    assert docs.count({"n": 1}) == ROWS // 2


@pytest.mark.parametrize("timeout_s", [60.0, 0.3])
def test_a_delete_that_is_cancelled_frees_its_thread(
    start: StartServer, monkeypatch: pytest.MonkeyPatch, timeout_s: float
) -> None:
    """Over the wire: cancelled, or at its deadline, the evaluation of its filter stops, and nothing is deleted."""
    server = start(write_threads=1)
    entered, may_end = threading.Event(), threading.Event()

    def endless(self: Any, expression: Any, moment: Any, interrupt: Callable[[], None]) -> Any:
        entered.set()
        while not may_end.wait(0.005):
            interrupt()
        raise AssertionError("nobody stopped it")

    with connect(server.address) as client:
        docs = client.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 2]], metadata=[{"n": 1}])
        with monkeypatch.context() as patch:
            patch.setattr(Core, "matching", endless)
            method: Any = client._connection._stub.Delete
            call = method.future(
                pb.DeleteRequest(collection="docs", filter="{}"), timeout=timeout_s
            )
            if timeout_s > 1:  # the other may be over before it is begun
                assert entered.wait(60)
                call.cancel()
            wait_until(call.done, "the client is told")
            wait_until(lambda: not server._pools.writes.busy, "the thread is free")
            assert not may_end.is_set()
        assert docs.count() == 1
        assert docs.delete(filter={"n": 1}).count == 1
