"""What the log tells of slow queries and calls: how they were answered, and what they did."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import StartServer, wait_until
from test_observing import lines_of
from test_unsent import Silent
from timing import once_below

import vecdb
from vecdb import steps
from vecdb.explaining import as_noted
from vecdb.index import View
from vecdb_client import connect, errors
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_server.slow_calls import SlowCalls

DIMENSION = 8
ROWS = 300


def told(start: StartServer, message: str, use: Callable[[Any, Any], None], **given: Any) -> Any:
    """Lines of the log with this message that a use of a server and its collection has left; all is slow."""
    server = start(slow_query_s=1e-9, **given)

    def at(_: Any) -> None:
        with connect(server.address, retry_s=0) as client:
            docs = client.create_collection("docs", dimension=DIMENSION)
            rng = np.random.default_rng(3)
            vectors = rng.standard_normal((ROWS, DIMENSION)).astype(np.float32)
            metadata = [{"n": n} for n in range(ROWS)]
            docs.insert([str(n) for n in range(ROWS)], vectors, metadata=metadata)
            use(client, docs)

    lines = [json.loads(line) for line in lines_of("json", at).splitlines()]
    return [line for line in lines if line["message"] == message]


def test_a_slow_call_is_told_with_what_it_did(start: StartServer) -> None:
    """Count, get, scan, delete, update and inserts: the collection, the filter, how many rows, how many ids; queries
    have lines of their own, and calls that are there to last none."""

    def use(client: Any, docs: Any) -> None:
        docs.count({"n": {"$lt": 100}})
        docs.get(["1", "2", "gone"])
        docs.get(filter={"n": {"$gte": 290}}, order_by="n", limit=4)
        assert sum(len(page.ids) for page in docs.scan(filter={"n": {"$lt": 50}}, batch_size=20))
        docs.update(["1"], documents=["text"])
        docs.delete(filter={"n": {"$lt": 7}})
        docs.query(np.ones(DIMENSION), k=3)
        list(docs.ingest([{"ids": ["x"], "vectors": np.ones((1, DIMENSION))}]))
        docs.check()
        with pytest.raises(errors.InvalidFilter):
            docs.count({"n": {"$none": 1}})

    lines = told(start, "slow call", use)
    found = [
        (one["method"], one["collection"], one["rows"], one["filter"], one["ids"], one["code"])
        for one in lines
    ]
    assert found == [
        ("CreateCollection", "docs", None, "", 0, "OK"),
        ("Insert", "docs", ROWS, "", ROWS, "OK"),
        ("Count", "docs", 100, '{"n":{"$lt":100}}', 0, "OK"),
        ("Get", "docs", 2, "", 3, "OK"),
        ("Get", "docs", 4, '{"n":{"$gte":290}}', 0, "OK"),
        ("Scan", "docs", 50, '{"n":{"$lt":50}}', 0, "OK"),
        ("Update", "docs", 1, "", 1, "OK"),
        ("Delete", "docs", 7, '{"n":{"$lt":7}}', 0, "OK"),
        ("Count", "docs", None, '{"n":{"$none":1}}', 0, "INVALID_ARGUMENT"),
    ]
    assert lines[4]["order_by"] == "n"
    assert all(one["ms"] >= 0 and one["queued_ms"] >= 0 for one in lines)


def test_a_scan_whose_reader_is_slow_is_not_slow(start: StartServer) -> None:
    """What a client takes between two batches is not the server's time."""
    server = start(slow_query_s=1.0)

    def use(_: Any) -> None:
        with connect(server.address) as client:
            docs = client.create_collection("docs", dimension=DIMENSION)
            docs.insert(["a", "b", "c"], np.ones((3, DIMENSION)))
            for _page in docs.scan(batch_size=1):
                time.sleep(0.4)

    # What else is slow here is the machine's: a commit waits for its disk.
    found = [json.loads(line) for line in lines_of("json", use).splitlines()]
    slow = [line["method"] for line in found if line["message"] == "slow call"]
    assert "Scan" not in slow


def test_a_call_whose_request_does_not_come_is_not_slow(start: StartServer) -> None:
    """It has done nothing, and there may be thousands: they are counted, and not in the log."""
    server = start(slow_query_s=1e-9, max_request_s=0.1)

    def use(_: Any) -> None:
        them = Silent(server.address, 1)
        for call in them.open("Count", 2) + them.open("Scan", 1, streams=True):
            wait_until(call.done, "it is ended")
        them.close()

    assert "slow" not in lines_of("text", use)
    assert server._observing.metrics.of_this_process().unsent["limit"] == 3


def test_the_first_slow_query_has_its_plan(start: StartServer) -> None:
    """A query that includes fields, under a filter: plan, rows and times, which are no more than all of it."""

    def use(_client: Any, docs: Any) -> None:
        docs.query(np.ones(DIMENSION), k=3, include=["metadata"], filter={"n": {"$lt": 9}})

    (line,) = told(start, "slow query", use)
    explain = line["explain"]
    assert (explain["plan"], explain["kind"], explain["allowed_rows"]) == ("exact", "exact", 9)
    assert (explain["rows"], explain["tail_rows"]) == (ROWS, ROWS)
    times = explain["times_us"]
    assert times["filter"] > 0
    assert times["fetch"] > 0
    parts = times["wait"] + times["filter"] + times["search"] + times["fetch"]
    assert parts == pytest.approx(times["total"])


def noted(docs: Any, *args: Any, **given: Any) -> dict[str, Any]:
    made = steps.begin()
    try:
        docs.query(*args, **given)
    finally:
        steps.end()
    return as_noted(made)


def test_notes_agree_with_explain(tmp_path: Path) -> None:
    """Over an index, with and without a filter, exactly, by several vectors and by a named vector: plan, kind, rows and
    what the filter lets through are what `explain` says."""
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((3_000, 16)).astype(np.float32)
    with vecdb.open(tmp_path / "db", device="cpu") as db:
        docs = db.create_collection(
            "docs", dimension=16, index="hnsw", vectors={"other": {"dimension": 4}}
        )
        docs.insert(
            [str(n) for n in range(3_000)], vectors, metadata=[{"n": n % 100} for n in range(3_000)],
            named_vectors={"other": vectors[:, :4].copy()},
        )  # fmt: skip
        docs.build_index()
        docs.insert(["new"], vectors[:1])
        queries: list[tuple[Any, dict[str, Any]]] = [
            (vectors[0], {}),
            (vectors[:3], {}),
            (vectors[0], {"filter": {"n": {"$lt": 50}}}),
            (vectors[0], {"filter": {"n": 3}, "include": ["metadata"]}),
            (vectors[0], {"exact": True}),
            (vectors[0], {"target_recall": 0.8}),
            (vectors[0, :4].copy(), {"vector_name": "other"}),
            (vectors[0], {"max_distance": 0.5}),
        ]
        for given, how in queries:
            explain = docs.query(given, explain=True, **how).explain
            found = noted(docs, given, **how)
            for name in found.keys() - {"times_us", "index_age_s", "device_note"}:
                if name == "rows" and "vector_name" in how:
                    continue  # of those that have it
                assert found[name] == getattr(explain, name), (name, how)


def test_a_query_that_fails_before_it_searches_has_no_plan(tmp_path: Path) -> None:
    """What was noted until then is told all the same."""
    with vecdb.open(tmp_path / "db", device="cpu") as db:
        docs = db.create_collection("docs", dimension=4)
        made = steps.begin()
        with pytest.raises(vecdb.errors.InvalidVector):
            docs.query([1, 2, 3])
        steps.end()
    assert as_noted(made)["plan"] == ""
    assert as_noted(made)["times_us"]["total"] > 0


def test_waiting_for_a_commit_is_no_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `explain` and by what is noted of slow queries, of those that end without the commit too."""
    with vecdb.open(tmp_path / "db", device="cpu") as db:
        docs = db.create_collection("docs", dimension=4)
        docs.insert(["a"], np.ones((1, 4)))
        before = docs._core.wait_for

        def late(sequence: int | None, timeout_s: float | None) -> Any:
            time.sleep(0.2)
            return before(sequence, timeout_s)

        monkeypatch.setattr(docs._core, "wait_for", late)
        given = {"k": 1, "min_sequence": 1}
        explained = docs.query(np.ones(4), explain=True, **given).explain.times_us
        for times in (explained, noted(docs, np.ones(4), **given)["times_us"]):
            assert times["wait"] >= 200_000
            assert times["wait"] + times["search"] <= times["total"]
        made = steps.begin()
        with pytest.raises(vecdb.errors.DeadlineExceeded):
            docs.query(np.ones(4), k=1, min_sequence=9, timeout_s=0.1)
        steps.end()
        failed = as_noted(made)
        assert failed["plan"] == ""
        assert failed["times_us"]["wait"] >= 300_000


def test_a_line_is_bounded_by_no_request(caplog: pytest.LogCaptureFixture) -> None:
    """What a client repeats, or makes long, is cut: it could fill the disk otherwise."""
    calls = SlowCalls({"slow_query_s": 1.0})
    request = pb.ScanRequest(
        collection="c" * 10_000, filter="f" * 10_000, include=[pb.INCLUDE_DOCUMENT] * 10_000
    )
    assert calls.is_slow("Scan", request, 2.0)
    assert not calls.is_slow("Scan", request, 0.5)
    assert not calls.is_slow("Query", request, 2.0)
    assert not calls.is_slow("Scan", None, 2.0)
    with caplog.at_level(logging.WARNING, "vecdb.server"):
        calls.tell("Scan", request, None, grpc.StatusCode.OK, 2.0)
    (record,) = caplog.records
    assert len(repr(vars(record))) < 3_000


def test_nothing_is_held_when_a_query_is_over(start: StartServer) -> None:
    """Notes of a query go with it: a view that a thread kept would keep the memory of an index that has gone."""
    import gc

    def views() -> list[View]:
        gc.collect()
        return [one for one in gc.get_objects() if isinstance(one, View)]

    # Other tests of this process may have left some.
    before = {id(one): one for one in views()}

    def use(client: Any, docs: Any) -> None:
        for _ in range(20):
            docs.query(np.ones(DIMENSION), k=3)
        assert any(id(one) not in before for one in views())
        client.drop_collection("docs")
        assert [one for one in views() if id(one) not in before] == []

    told(start, "slow query", use)


def test_notes_cost_hardly_anything(tmp_path: Path) -> None:
    """Queries that note what they do take hardly longer than others: less than 6 % longer, on any machine."""
    with vecdb.open(tmp_path / "db", device="cpu") as db:
        docs = db.create_collection("docs", dimension=4)
        docs.insert([str(n) for n in range(100)], np.random.default_rng(1).random((100, 4)))
        query = np.ones(4, np.float32)

        def turn(notes: bool) -> float:
            begun = time.thread_time()
            if notes:
                steps.begin()
            docs.query(query, k=3)
            steps.end()
            return time.thread_time() - begun

        def more() -> float:
            pairs = [(turn(False), turn(True)) for _ in range(500)]
            usual, noted = (sorted(one) for one in zip(*pairs, strict=True))
            # Of the quick ones: what else the machine does only makes some slower.
            return (noted[50] - usual[50]) / usual[50]

        once_below(0.06, more)
