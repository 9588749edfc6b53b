"""Queries that travel on streams: the same answers and errors as calls, whatever happens to a stream."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from conftest import StartServer, wait_until

import vecdb
from vecdb_client import CallReport, aio, connect, errors, streaming
from vecdb_client.v1 import vecdb_pb2 as pb

ROWS, DIMENSION = 300, 8
VECTORS = np.random.default_rng(5).standard_normal((ROWS, DIMENSION), dtype=np.float32)


def filled(client: Any) -> Any:
    docs = client.create_collection("docs", dimension=DIMENSION, metric="l2", exist_ok=True)
    docs.upsert(
        [f"r{i}" for i in range(ROWS)],
        VECTORS,
        metadata=[{"n": i, "odd": i % 2 == 1} for i in range(ROWS)],
        documents=[f"d{i}" for i in range(ROWS)],
    )
    return docs


def warm(docs: Any) -> None:
    """Enough queries for the client to go over to streams."""
    for i in range(streaming.FEW_QUERIES + 1):
        docs.query(VECTORS[i], k=1)


@pytest.fixture
def exchanged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many queries each message of a stream had, of both clients."""
    seen: list[int] = []
    message_of = streaming.message_of

    def counted(sent: list[list[Any]]) -> Any:
        seen.append(sum(map(len, sent)))
        return message_of(sent)

    monkeypatch.setattr(streaming, "message_of", counted)
    return seen


def many_queries() -> list[dict[str, Any]]:
    """Queries of all sorts that may travel together."""
    asked: list[dict[str, Any]] = []
    for i in range(120):
        one: dict[str, Any] = {"vectors": VECTORS[i], "k": 1 + i % 3}
        if i % 4 == 1:
            one["filter"] = {"odd": True}
        if i % 4 == 2:
            one["include"] = ("metadata", "document", "vector")
        if i % 4 == 0:
            one["include"] = ("metadata", "document")
        if i % 8 == 3:
            one["target_recall"] = 0.99
        asked.append(one)
    return asked


def same(left: Any, right: Any) -> None:
    assert left.ids == right.ids
    np.testing.assert_allclose(left.distances, right.distances, rtol=1e-5, atol=1e-5)
    assert left.metadata == right.metadata
    assert left.documents == right.documents
    assert left.sequence == right.sequence
    assert (left.vectors is None) == (right.vectors is None)
    if left.vectors is not None:
        np.testing.assert_array_equal(left.vectors[0], right.vectors[0])


def test_answers_are_those_of_the_engine(start: StartServer, exchanged: list[int]) -> None:
    """Queries of many threads are answered as the engine answers each alone, and travel together."""
    server = start()
    with connect(server.address) as client, ThreadPoolExecutor(16) as pool:
        docs = filled(client)
        engine = server._database.get_collection("docs")
        asked = many_queries()
        found = list(pool.map(lambda one: docs.query(**one), asked))
        for one, result in zip(asked, found, strict=True):
            same(result, engine.query(**one))
    assert sum(exchanged) >= len(asked) - streaming.FEW_QUERIES - 16
    assert max(exchanged) > 1


def test_answers_are_those_of_the_engine_in_asyncio(
    start: StartServer, exchanged: list[int]
) -> None:
    """The asyncio client too, with a thousand queries in flight on streams of a server as it comes, and each caller gets its
    own answer."""
    server = start()
    with connect(server.address) as client:
        filled(client)
    engine = server._database.get_collection("docs")

    async def ask() -> None:
        async with aio.connect(server.address) as client:
            docs = await client.get_collection("docs")
            asked = many_queries()
            found = await asyncio.gather(*[docs.query(**one) for one in asked])
            for one, result in zip(asked, found, strict=True):
                same(result, engine.query(**one))
            del exchanged[:]
            own = await asyncio.gather(*[docs.query(VECTORS[i % ROWS], k=1) for i in range(1000)])
            assert [r.ids[0][0] for r in own] == [f"r{i % ROWS}" for i in range(1000)]

    asyncio.run(ask())
    assert sum(exchanged) >= 1000, "all went by streams; what is refused goes again"
    assert max(exchanged) == streaming.MOST_QUERIES


def test_one_that_fails_fails_alone(start: StartServer, exchanged: list[int]) -> None:
    """Each query on a message meets its own error; the others are answered."""
    server = start()
    with connect(server.address) as client, ThreadPoolExecutor(12) as pool:
        docs = filled(client)
        warm(docs)
        nobody = client.create_collection("gone", dimension=DIMENSION)
        client.drop_collection("gone")

        def ask(i: int) -> Any:
            try:
                if i % 4 == 1:
                    return docs.query(np.full(DIMENSION + 1, 0.5, np.float32), k=1)
                if i % 4 == 2:
                    return docs.query(np.full(DIMENSION, np.nan, np.float32), k=1)
                if i % 4 == 3:
                    return nobody.query(VECTORS[i], k=1)
                return docs.query(VECTORS[i], k=1)
            except errors.VecdbError as error:
                return error

        for i, result in enumerate(pool.map(ask, range(120))):
            if i % 4 in (1, 2):
                assert isinstance(result, errors.InvalidVector), (i, result)
            elif i % 4 == 3:
                assert isinstance(result, errors.CollectionNotFound), (i, result)
            else:
                assert result.ids == [[f"r{i}"]]
    assert max(exchanged) > 1


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Queries with a `k` of 7 wait in the server until the event is set; `gate.reached` is set when one does."""
    gate: Any = threading.Event()
    gate.reached = threading.Event()
    query = vecdb.Collection.query

    def held(self: Any, *args: Any, **keywords: Any) -> Any:
        if keywords.get("k") == 7:
            gate.reached.set()
            assert gate.wait(30)
        return query(self, *args, **keywords)

    monkeypatch.setattr(vecdb.Collection, "query", held)
    yield gate
    gate.set()


def test_deadlines_hold(start: StartServer, slow: Any) -> None:
    """A caller waits no longer than its deadline, whatever its stream is about; others are answered."""
    server = start()
    with connect(server.address) as client:
        docs = filled(client)
        warm(docs)
        begun = time.monotonic()
        with pytest.raises(errors.DeadlineExceeded):
            docs.query(VECTORS[0], k=7, timeout_s=0.3)
        assert time.monotonic() - begun < 5
        assert docs.query(VECTORS[1], k=1).ids == [["r1"]]
        slow.set()

    async def ask() -> None:
        slow.clear()
        async with aio.connect(server.address) as client:
            docs = await client.get_collection("docs")
            for i in range(streaming.FEW_QUERIES + 1):
                await docs.query(VECTORS[i], k=1)
            with pytest.raises(errors.DeadlineExceeded):
                await docs.query(VECTORS[0], k=7, timeout_s=0.3)
            assert (await docs.query(VECTORS[1], k=1)).ids == [["r1"]]
            slow.set()

    asyncio.run(ask())


def test_a_silent_server_costs_its_stream_not_the_client(
    start: StartServer, slow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream whose answer does not come is given up, and later queries are answered."""
    monkeypatch.setattr(streaming, "SILENT_S", 0.1)
    server = start()
    with connect(server.address) as client:
        docs = filled(client)
        warm(docs)
        for _ in range(streaming.MOST_STREAMS):
            with pytest.raises(errors.DeadlineExceeded):
                docs.query(VECTORS[0], k=7, timeout_s=0.3)
        assert docs.query(VECTORS[1], k=1, timeout_s=5).ids == [["r1"]]
        slow.set()


def test_a_cancelled_caller_disturbs_nobody(start: StartServer, slow: Any) -> None:
    """Cancelling one query leaves the others on its message their answers."""
    server = start()
    with connect(server.address) as client:
        filled(client)

    async def ask() -> None:
        async with aio.connect(server.address) as client:
            docs = await client.get_collection("docs")
            for i in range(streaming.FEW_QUERIES + 1):
                await docs.query(VECTORS[i], k=1)
            tasks = [asyncio.create_task(docs.query(VECTORS[i], k=7)) for i in range(20)]
            await asyncio.sleep(0.1)
            for task in tasks[::2]:
                task.cancel()
            slow.set()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(one, asyncio.CancelledError) for one in found[::2])
            assert [one.ids[0][0] for one in found[1::2]] == [f"r{i}" for i in range(1, 20, 2)]

    asyncio.run(ask())


def test_queries_survive_a_restart(start: StartServer) -> None:
    """A server that stops and comes again costs those who ask meanwhile a pause, and no query."""
    server = start()
    with connect(server.address, timeout_s=30) as client:
        docs = filled(client)
        warm(docs)
        stop, failures, answered = threading.Event(), [], [0]

        def ask(i: int) -> None:
            while not stop.is_set():
                try:
                    assert docs.query(VECTORS[i], k=1).ids == [[f"r{i}"]]
                    answered[0] += 1
                except Exception as error:
                    failures.append(error)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        wait_until(lambda: answered[0] > 50, "queries are answered")
        assert server.stop()
        server.stop = lambda: True
        start(port=server.port)
        before = answered[0]
        wait_until(lambda: answered[0] > before + 50, "queries are answered again")
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures


def test_silent_streams_do_not_keep_a_server_from_stopping(start: StartServer) -> None:
    """A server that is told to stop does not wait for streams that have nothing to answer."""
    server = start(drain_timeout_s=30.0)
    with connect(server.address) as client:
        warm(filled(client))
        begun = time.monotonic()
        assert server.stop()
        assert time.monotonic() - begun < 5
    server.stop = lambda: True


def test_without_room_for_a_stream_queries_are_calls(
    start: StartServer, slow: Any, exchanged: list[int]
) -> None:
    """A server that has no stream left answers calls; a silent stream makes room for another client."""
    server = start(query_streams=1)
    with connect(server.address) as first, connect(server.address) as second:
        docs, others = filled(first), second.get_collection("docs")
        warm(docs)
        with ThreadPoolExecutor(1) as pool:
            held = pool.submit(docs.query, VECTORS[3], k=7)
            assert slow.reached.wait(10), "the stream is busy"
            begun = len(exchanged)
            for i in range(10):
                assert others.query(VECTORS[i], k=1).ids == [[f"r{i}"]]
            assert len(exchanged) == begun + 2  # that of one caller was tried, then a shared one
            slow.set()
            assert held.result().ids[0][0] == "r3"
        time.sleep(1.1)
        with connect(server.address) as third:
            fresh = third.get_collection("docs")
            begun = len(exchanged)
            for i in range(10):
                assert fresh.query(VECTORS[i], k=1).ids == [[f"r{i}"]]
            assert len(exchanged) == begun + 10 - streaming.FEW_QUERIES
        assert docs.query(VECTORS[5], k=1).ids == [["r5"]]


def test_an_older_server_is_asked_by_calls(
    start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a server does not know streams of queries, the client sends calls."""
    from vecdb_client.v1 import vecdb_pb2_grpc

    server = start()
    stub = vecdb_pb2_grpc.VecdbServiceStub.__init__

    def older(self: Any, channel: Any) -> None:
        stub(self, channel)
        self.QueryStream = channel.stream_stream("/vecdb.v1.VecdbService/Unknown")

    monkeypatch.setattr(vecdb_pb2_grpc.VecdbServiceStub, "__init__", older)
    monkeypatch.setattr(streaming, "message_of", lambda sent: b"")
    with connect(server.address) as client:
        docs = filled(client)
        for i in range(20):
            assert docs.query(VECTORS[i], k=1).ids == [[f"r{i}"]]


def test_what_may_take_long_goes_alone(start: StartServer, exchanged: list[int]) -> None:
    """Queries that compare everything, wait for a commit or explain themselves are calls."""
    server = start()
    with connect(server.address) as client:
        docs = filled(client)
        warm(docs)
        del exchanged[:]
        calls: list[Callable[[], Any]] = [
            lambda: docs.query(VECTORS[0], k=1, exact=True),
            lambda: docs.query(VECTORS[0], k=1, explain=True),
            lambda: docs.query(VECTORS[0], k=1, min_sequence=1),
            lambda: docs.query(VECTORS[:2], k=1),
            lambda: docs.query(VECTORS[0], max_distance=1.0),
            lambda: docs.query(ids=["r0"], k=1),
            lambda: docs.query(VECTORS[0], k=1, group_by="n"),
            lambda: docs.query(VECTORS[0], k=1, mmr_lambda=0.5),
        ]
        for call in calls:
            call()
        assert exchanged == []
        docs.query(VECTORS[0], k=1)
        assert exchanged == [1]


def raw(client: Any, messages: list[Any]) -> list[Any]:
    return list(client._connection._stub.QueryStream(iter(messages), timeout=20))


def test_messages_that_no_client_of_ours_sends(start: StartServer) -> None:
    """An empty message, one of too many queries, and a query that waits for a commit are refused."""
    import grpc

    server = start()
    with connect(server.address) as client:
        filled(client)
        query = pb.QueryRequest(collection="docs", k=1, min_sequence=9)
        query.vectors.CopyFrom(pb.Vectors(data=VECTORS[0].tobytes(), count=1, dimension=DIMENSION))
        for count in (0, 257):
            message = pb.QueryStreamRequest(queries=[pb.StreamedQuery(query=query)] * count)
            with pytest.raises(grpc.RpcError) as refused:
                raw(client, [message])
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        [response] = raw(client, [pb.QueryStreamRequest(queries=[pb.StreamedQuery(query=query)])])
        outcome = streaming.outcome_of(response.answers[0])
        assert isinstance(outcome, errors.InvalidQuery)
        assert "min_sequence" in outcome.message


def test_an_answer_too_large_is_refused_alone(start: StartServer) -> None:
    """Answers that together exceed a message travel in several; one that does alone is an error."""
    server = start(max_message_bytes=1 << 20)
    with connect(server.address, max_message_bytes=1 << 20) as client:
        docs = client.create_collection("large", dimension=2, metric="l2")
        for i in range(8):
            docs.insert([f"r{i}"], [[i, 0]], documents=["x" * 400_000])
        message = pb.QueryStreamRequest()
        for i, k in enumerate((1, 1, 1, 4, 1)):
            one = message.queries.add().query
            one.collection, one.k = "large", k
            one.include.append(pb.INCLUDE_DOCUMENT)
            data = np.array([[i, 0]], "<f4").tobytes()
            one.vectors.CopyFrom(pb.Vectors(data=data, count=1, dimension=2))
        responses = raw(client, [message])
        assert len(responses) > 1
        found = {a.position: streaming.outcome_of(a) for r in responses for a in r.answers}
        assert sorted(found) == list(range(5))
        assert isinstance(found.pop(3), errors.LimitExceeded)
        assert {i: list(found[i].hits.ids) for i in found} == {i: [f"r{i}"] for i in (0, 1, 2, 4)}


def test_a_closed_client_says_so(start: StartServer) -> None:
    """After `close` a query is refused, also one that waited for a stream."""
    server = start()
    client = connect(server.address)
    docs = filled(client)
    warm(docs)
    client.close()
    with pytest.raises(errors.Closed):
        docs.query(VECTORS[0], k=1)


def test_errors_on_a_stream_are_reported_as_those_of_calls(start: StartServer) -> None:
    """The hook `on_call` gets the status of a query, whether it went on a stream or as a call."""
    reports: list[CallReport] = []
    server = start()
    with connect(server.address, on_call=reports.append) as client:
        docs = filled(client)
        nobody = client.create_collection("gone", dimension=DIMENSION)
        client.drop_collection("gone")
        for rounds in range(2):
            if rounds:
                warm(docs)
            del reports[:]
            with pytest.raises(errors.InvalidVector):
                docs.query(np.zeros(DIMENSION + 1, np.float32), k=1)
            with pytest.raises(errors.CollectionNotFound):
                nobody.query(VECTORS[0], k=1)
            docs.query(VECTORS[0], k=1)
            assert [r.code for r in reports] == ["INVALID_ARGUMENT", "NOT_FOUND", "OK"]


def test_a_patience_of_ages_is_taken(start: StartServer) -> None:
    """A `timeout_s` beyond what the system can count is no error of a query on a stream."""
    server = start()
    with connect(server.address) as client:
        docs = filled(client)
        warm(docs)
        assert docs.query(VECTORS[5], k=1, timeout_s=1e12).ids == [["r5"]]
