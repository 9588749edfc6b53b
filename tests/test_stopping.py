"""Calls that nobody waits for any more, or whose time is over, stop: checks, waits for builds and for commits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import StartServer, wait_until
from timing import once_below, seconds

import vecdb
from vecdb import builder, collection_stats, errors
from vecdb.index import file_sums
from vecdb.stopping import Interrupt, while_wanted
from vecdb.store import check, problems
from vecdb_client import connect
from vecdb_client.v1 import vecdb_pb2 as pb

ROWS = 3_000


@pytest.fixture
def docs(data_folder: Path) -> Iterator[vecdb.Collection]:
    """A collection with an index, with records that were replaced and deleted."""
    with vecdb.open(data_folder, auto_build=False) as db:
        docs = db.create_collection("docs", dimension=8, index="hnsw")
        vectors = np.random.default_rng(1).normal(size=(ROWS, 8))
        ids = [f"r{i}" for i in range(ROWS)]
        docs.insert(ids, vectors, documents=["text"] * ROWS)
        docs.upsert(ids[:50], vectors[:50])
        docs.delete(ids[100:150])
        docs.build_index()
        yield docs


def ending(after: int, error: Exception) -> tuple[Interrupt, list[int]]:
    """An interrupt that raises at its call `after`, and the calls it has got."""
    calls: list[int] = []

    def interrupt() -> None:
        calls.append(1)
        if len(calls) == after:
            raise error

    return interrupt, calls


@pytest.mark.parametrize("error", [errors.DeadlineExceeded("over"), errors.Cancelled("gone")])
def test_a_check_ends_wherever_it_is_asked_to(
    docs: vecdb.Collection, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It asks in each of its parts, and what it is told at any of these ends it: no part takes it for damage."""
    monkeypatch.setattr(file_sums, "_PART_BYTES", 64 << 10)  # several parts of the graph's file
    whole, calls = ending(0, error)
    monkeypatch.setattr(collection_stats, "deadline", lambda _: whole)
    assert docs.check().ok
    # At least the pages of some tables, rows, the log twice, and parts of the files of the index.
    assert len(calls) >= 15
    for after in range(1, len(calls) + 1):
        interrupt, _ = ending(after, error)
        monkeypatch.setattr(collection_stats, "deadline", lambda _, held=interrupt: held)
        with pytest.raises(type(error), match=str(error)):
            docs.check()
    monkeypatch.undo()
    with pytest.raises(errors.DeadlineExceeded):
        docs.check(timeout_s=0.0)
    assert docs.check(timeout_s=60.0).ok


def test_a_check_of_large_records_asks_more_often(
    docs: vecdb.Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many rows it reads between two questions follows from how large they are."""
    counts = []
    for slice_bytes in (1 << 30, 1):
        monkeypatch.setattr(check, "_SLICE_BYTES", slice_bytes)
        interrupt, calls = ending(0, ValueError())
        with docs._core.read() as reader:
            assert not list(problems(reader, interrupt))
        counts.append(len(calls))
    # 3,050 rows at once, and in twelve blocks of ids.
    assert counts[1] - counts[0] == 11


@contextmanager
def gone_while(calling: Callable[[], Any]) -> Iterator[threading.Event]:
    """A thread that makes a call for someone who has gone once the event is set, and must end with Cancelled."""
    gone, outcomes = threading.Event(), []

    def call() -> None:
        with while_wanted(lambda: not gone.is_set()):
            try:
                calling()
            except errors.VecdbError as error:
                outcomes.append(type(error))

    thread = threading.Thread(target=call)
    thread.start()
    yield gone
    thread.join(20)
    assert outcomes == [errors.Cancelled]


@pytest.mark.parametrize("verb", ["build_index", "compact"])
def test_who_has_gone_waits_for_no_job(
    docs: vecdb.Collection, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """A call that waits for a build or a compaction ends when its caller has gone; the job goes on."""
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def slow(job: Any) -> None:
        begun.set()
        assert may_end.wait(20)
        ended.set()

    monkeypatch.setitem(builder.TASKS, "compact" if verb == "compact" else "build", slow)
    docs.insert(["new"], np.ones((1, 8)))
    with gone_while(getattr(docs, verb)) as gone:
        assert begun.wait(60)
        gone.set()
    assert not ended.is_set()
    with pytest.raises(errors.DeadlineExceeded, match="it goes on"):
        getattr(docs, verb)(timeout_s=0.05)
    may_end.set()
    assert ended.wait(60)


def test_who_has_gone_waits_for_no_commit(docs: vecdb.Collection) -> None:
    """A read that waits for a commit to come ends when its caller has gone, long before its half minute."""

    def waiting() -> float:
        with gone_while(lambda: docs.count(min_sequence=10**6)) as gone:
            gone.set()
        return 0.0

    once_below(0.8, lambda: seconds(waiting))


@pytest.mark.parametrize("verb", ["Check", "BuildIndex", "Compact"])
def test_a_long_call_that_is_cancelled_frees_its_thread(
    start: StartServer, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Over the wire: when the client of a check, or of a build or compaction that is waited for, cancels it or its
    deadline has passed, the server's thread is free."""
    server = start()
    entered, may_end = threading.Event(), threading.Event()

    def slow_job(job: Any) -> None:
        entered.set()
        assert may_end.wait(90)

    def endless(reader: Any, interrupt: Interrupt) -> Iterator[str]:
        entered.set()
        while not may_end.wait(0.005):
            interrupt()
        yield "nobody stopped it"

    monkeypatch.setitem(builder.TASKS, "build", slow_job)
    monkeypatch.setitem(builder.TASKS, "compact", slow_job)
    monkeypatch.setattr(collection_stats, "problems", endless)
    request: Any = {
        "Check": pb.CheckRequest(collection="docs"),
        "BuildIndex": pb.BuildIndexRequest(collection="docs", wait=True),
        "Compact": pb.CompactRequest(collection="docs", wait=True),
    }[verb]
    with connect(server.address) as client:
        client.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
        method: Any = getattr(client._connection._stub, verb)
        for timeout_s in (60, 0.3):
            entered.clear()
            call = method.future(request, timeout=timeout_s)
            if timeout_s == 60:
                assert entered.wait(10)
                assert server._pools.long.busy == 1
                call.cancel()
            wait_until(call.done, "the client is told")
            wait_until(lambda: not server._pools.long.busy, "the thread is free")
            assert not may_end.is_set()
        may_end.set()
