"""Which queries on streams are refused, whose they are, and what remains of those whose callers have left."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from conftest import StartServer

import vecdb
from vecdb_client import connect, streaming
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_client.v1 import vecdb_pb2_grpc as pb_grpc
from vecdb_server.admission import Admission, Beside

LIMITS = {"max_concurrent": 1_000, "max_wait_s": 1.0}


def test_queries_that_share_the_cores_are_refused_when_they_would_take_too_long() -> None:
    """With a hundred of two clients under way that make each other last 20 ms longer, more of one of them are refused;
    the first ones never."""
    admission = Admission(LIMITS)
    assert admission.refusal_beside(64, Beside(0, 0, 0, 10.0), None) is None
    assert admission.refusal_beside(64, Beside(40, 0, 2, 0.02), None) is None
    assert admission.refusal_beside(64, Beside(40, 5, 2, 0.02), None) is None
    assert admission.refusal_beside(64, Beside(100, 50, 2, 0.02), None) is not None
    assert admission.refused()["wait"] == 64
    assert admission.refusal_beside(20, Beside(40, 0, 2, 0.02), 0.5) is not None
    assert admission.refused()["deadline"] == 20


def test_a_client_alone_gets_half_of_the_places_of_streams() -> None:
    """A client that has as many queries under way as are left for others is refused more; whoever has none is let in,
    also where all places are taken, as long as its turn comes in time; of newcomers no crowd is let in."""
    admission = Admission(LIMITS)
    assert admission.refusal_beside(1, Beside(24, 24, 4, 0.02), None) is None
    assert admission.refusal_beside(1, Beside(25, 25, 4, 0.02), None) is not None
    assert admission.refused()["share"] == 1
    assert admission.refusal_beside(1, Beside(3_072, 0, 48, 0.02), None) is None
    assert admission.refusal_beside(64, Beside(99, 0, 48, 0.02), None) is None
    assert admission.refusal_beside(64, Beside(100, 0, 48, 0.02), None) is not None
    # However slow: one on each of two streams.
    assert admission.refusal_beside(1, Beside(1, 1, 1, 60.0), None) is None
    assert admission.refusal_beside(1, Beside(2, 2, 2, 60.0), None) is not None


class Gate:
    """Queries of the engine wait here until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        """Released once for each call of the engine."""
        self.opened = threading.Event()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Queries with a `k` of 7 wait in the server until it is opened."""
    made = Gate()
    query = vecdb.Collection.query

    def held(self: Any, *args: Any, **keywords: Any) -> Any:
        if keywords.get("k") == 7:
            made.entered.release()
            assert made.opened.wait(60)
        return query(self, *args, **keywords)

    monkeypatch.setattr(vecdb.Collection, "query", held)
    yield made
    made.opened.set()


def message(queries: int, k: int) -> Any:
    vectors = pb.Vectors(data=b"\0\0\x80\x3f" * 2, count=1, dimension=2)
    asked = pb.QueryRequest(collection="docs", vectors=vectors, k=k)
    return pb.QueryStreamRequest(queries=[pb.StreamedQuery(query=asked, timeout_s=50)] * queries)


def test_a_flood_of_one_client_on_streams_refuses_no_other(start: StartServer, gate: Gate) -> None:
    """While one client has hundreds of queries under way on its streams, more than can be answered in max_wait_s,
    single queries of another are all answered; a further message of the first is refused."""
    server = start()
    # Clients of one process share a connection, unless they ask for one of their own.
    own = [("grpc.use_local_subchannel_pool", 1)]
    with (
        connect(server.address, retry_s=0) as client,
        grpc.insecure_channel(server.address, options=own) as flooding,
    ):
        docs = client.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 2]])
        stub: Any = pb_grpc.VecdbServiceStub(flooding)  # type: ignore[no-untyped-call,unused-ignore]
        # Each is known to take long before the first is through, so that all are let in.
        flood = [stub.QueryStream(iter([message(64, 7)]), timeout=60) for _ in range(6)]
        for _ in flood:
            assert gate.entered.acquire(timeout=30)
        server._streams._cost_s = 0.01
        for _ in range(streaming.FEW_QUERIES + 20):
            assert docs.query([1, 2], k=1, timeout_s=50).ids == [["a"]]
        counted = client.metrics()
        (refused,) = list(stub.QueryStream(iter([message(64, 1)]), timeout=60))
        assert {answer.WhichOneof("outcome") for answer in refused.answers} == {"error"}
        gate.opened.set()
        for stream in flood:
            assert {a.WhichOneof("outcome") for r in stream for a in r.answers} == {"answer"}
    # The client would have sent what was refused as calls, which are answered.
    assert 'vecdb_calls_seconds_count{code="OK",method="QueryStream"} 20.0' in counted
    assert (
        'vecdb_calls_seconds_count{code="RESOURCE_EXHAUSTED",method="QueryStream"}' not in counted
    )
    assert server._streams._of_client == {}


def test_a_streamed_query_beside_too_many_is_refused(
    start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the queries under way will take longer than max_wait_s, each query of another message is refused with
    a delay; when they are through, the next is answered."""
    server = start()
    entered, release = threading.Event(), threading.Event()
    query = vecdb.Collection.query

    def slow(self: Any, *args: Any, **keywords: Any) -> Any:
        entered.set()
        assert release.wait(20)
        return query(self, *args, **keywords)

    def message() -> Any:
        vectors = pb.Vectors(data=b"\0\0\x80\x3f" * 2, count=1, dimension=2)
        asked = pb.QueryRequest(collection="docs", vectors=vectors, k=1)
        return pb.QueryStreamRequest(queries=[pb.StreamedQuery(query=asked, timeout_s=30)] * 3)

    with connect(server.address) as client:
        docs = client.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 2]])
        stub: Any = client._connection._stub
        monkeypatch.setattr(vecdb.Collection, "query", slow)
        server._streams._cost_s = 1.0
        first = stub.QueryStream(iter([message()]), timeout=30)
        assert entered.wait(10)
        (refused,) = list(stub.QueryStream(iter([message()]), timeout=30))
        assert len(refused.answers) == 3
        for one in refused.answers:
            told = json.loads(one.error.error)
            assert told["reason"] == "RESOURCE_EXHAUSTED"
            assert told["details"]["retry_after_ms"] > 1_000
        release.set()
        assert all(one.answer.hits.ids == ["a"] for answer in first for one in answer.answers)
        (later,) = list(stub.QueryStream(iter([message()]), timeout=30))
        assert all(one.answer.hits.ids == ["a"] for one in later.answers)
        text = client.metrics()
    assert 'vecdb_calls_seconds_count{code="RESOURCE_EXHAUSTED",method="QueryStream"} 3.0' in text
    assert 'vecdb_calls_seconds_count{code="OK",method="QueryStream"} 6.0' in text
