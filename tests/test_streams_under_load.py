"""Which queries on streams are refused, whose they are, and what remains of those whose callers have left."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import grpc
import pytest
from conftest import StartServer, wait_until

import vecdb
from vecdb_client import aio, alone, connect, streaming
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


@pytest.fixture
def filtering(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Evaluating a filter takes some 20 s unless it is stopped; `entered` is set when one is begun, `ended` says what
    stopped each."""
    from vecdb import core

    class Filtering:
        entered = threading.Event()
        ended: ClassVar[list[str]] = []

    def endless(self: Any, expression: Any, moment: Any, interrupt: Any = lambda: None) -> Any:
        Filtering.entered.set()
        try:
            for _ in range(4_000):
                interrupt()
                time.sleep(0.005)
        except Exception as error:
            Filtering.ended.append(type(error).__name__)
            raise
        raise AssertionError("nobody stopped it")

    monkeypatch.setattr(core.Core, "matching", endless)
    monkeypatch.setattr(core.Core, "matched", lambda *_: None)
    return Filtering


def stopped(server: Any, filtering: Any) -> None:
    """The server ends what it does on streams, since nobody waits for it."""
    wait_until(lambda: server._streams.answering == 0, "the server works no more")
    assert set(filtering.ended) == {"Cancelled"}


def test_the_server_stops_when_all_callers_of_a_message_have_left(
    start: StartServer, filtering: Any
) -> None:
    """Cancelled queries of the asyncio client that travelled together end the server's work, the last of them, one whose
    time is over while a more patient one was cancelled too; queries after it are answered."""
    server = start()

    async def ask() -> None:
        async with aio.connect(server.address) as client:
            docs = await client.create_collection("docs", dimension=2)
            await docs.insert(["a"], [[1, 2]])
            for _ in range(streaming.FEW_QUERIES + 1):
                await docs.query([1, 2], k=1)
            for patience_s in ((60, 60), (60, 0.3)):
                filtering.entered.clear()
                del filtering.ended[:]
                asked = [
                    asyncio.create_task(docs.query([1, 2], k=1, filter={"a": 1}, timeout_s=seconds))
                    for seconds in patience_s
                ]
                assert await asyncio.to_thread(filtering.entered.wait, 30)
                for task, seconds in zip(asked, patience_s, strict=True):
                    if seconds == 60:
                        assert server._streams.answering == 1
                        task.cancel()
                        await asyncio.sleep(0)
                found = await asyncio.gather(*asked, return_exceptions=True)
                assert isinstance(found[0], asyncio.CancelledError)
                await asyncio.to_thread(stopped, server, filtering)
                assert (await docs.query([1, 2], k=1)).ids == [["a"]]

    asyncio.run(ask())


def test_the_server_stops_when_ctrl_c_ends_the_callers(start: StartServer, filtering: Any) -> None:
    """A query that goes by a stream that others may share, and whose caller is interrupted, ends the server's work;
    queries after it are answered."""
    server = start()
    with connect(server.address) as client:
        docs = client.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 2]])
        for _ in range(streaming.FEW_QUERIES + 1):
            docs.query([1, 2], k=1)

        def interrupt() -> None:
            assert filtering.entered.wait(30)
            # Only a signal ends a wait for a lock.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        for _ in range(2):
            filtering.entered.clear()
            del filtering.ended[:]
            interrupting = threading.Thread(target=interrupt)
            interrupting.start()
            # So short a patience that it does not go by the stream of who is alone.
            with pytest.raises(KeyboardInterrupt):
                docs.query([1, 2], k=1, filter={"a": 1}, timeout_s=alone.LEAST_S - 0.1)
            interrupting.join()
            stopped(server, filtering)
            assert docs.query([1, 2], k=1).ids == [["a"]]
