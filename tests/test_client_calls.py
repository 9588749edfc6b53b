"""What the clients do beyond sending: writes repeated and done once, delays honoured, calls reported."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import StartServer, wait_until
from pretended_server import serving
from timing import once_below, seconds

import vecdb
from vecdb_client import CallReport, aio, connect, errors, transport
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_client.v1 import vecdb_pb2_grpc as pb_grpc


class Forgetful(grpc.ServerInterceptor):  # type: ignore[misc,unused-ignore]
    """Loses the answers of the first calls of a real server: they are done, and UNAVAILABLE comes back."""

    def __init__(self) -> None:
        self.losses = 0

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        # The border takes every single request as a stream of one.
        if handler is None or handler.stream_unary is None:
            return handler

        def answer(requests: Any, context: Any) -> Any:
            done = handler.stream_unary(requests, context)
            if self.losses:
                self.losses -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "lost on the way")
            return done

        return grpc.stream_unary_rpc_method_handler(
            answer, handler.request_deserializer, handler.response_serializer
        )


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch, start: StartServer) -> tuple[Forgetful, str]:
    """(what loses answers, address) of a server whose answers get lost."""
    lost = Forgetful()
    made = grpc.server
    monkeypatch.setattr(
        grpc,
        "server",
        lambda *a, interceptors=(), **k: made(*a, interceptors=[lost, *interceptors], **k),
    )
    return lost, start().address


def test_a_write_whose_answer_is_lost_is_done_once(forgetful: Any) -> None:
    """Inserts, upserts, updates and deletes succeed through lost answers, each as one commit, and so does a drop."""
    lost, address = forgetful
    with connect(address) as db:
        docs = db.create_collection("docs", dimension=2)
        for n, write in enumerate((
            lambda: docs.insert(["a", "b"], [[1, 2], [3, 4]]),
            lambda: docs.upsert(["a"], [[1, 3]], metadata=[{"n": 1}]),
            lambda: docs.update(["a"], documents=["text"]),
            lambda: docs.delete(["b"]),
            lambda: docs.delete(filter={"n": 1}),
        )):  # fmt: skip
            lost.losses = 2
            assert write().sequence == n + 1
        lost.losses = 3
        done = docs.insert([f"r{i}" for i in range(50)], np.ones((50, 2)), batch_size=10)
        assert (done.count, done.sequence) == (50, 10)
        assert docs.count() == 50
        lost.losses = 1
        db.drop_collection("docs")
        assert lost.losses == 0
        assert db.list_collections() == []


def test_a_caller_may_repeat_a_whole_write(forgetful: Any) -> None:
    """With a request id of its own, a write in several messages that broke off is finished by calling again."""
    lost, address = forgetful
    ids, vectors = [f"r{i}" for i in range(50)], np.ones((50, 2))

    async def again() -> int:
        async with aio.connect(address) as db:
            docs = await db.get_collection("docs")
            done = await docs.insert(ids, vectors, batch_size=10, request_id="load-1")
            return int(done.count)

    with connect(address, retry_s=0) as db:
        docs = db.create_collection("docs", dimension=2)
        lost.losses = 1
        with pytest.raises(errors.Unavailable):
            docs.insert(ids, vectors, batch_size=10, request_id="load-1")
        assert docs.count() == 10
        assert docs.insert(ids, vectors, batch_size=10, request_id="load-1").count == 50
        assert asyncio.run(again()) == 50
        assert docs.count() == 50
        assert docs.stats().sequence == 5
        with pytest.raises(errors.InvalidBatch):
            docs.delete(["r1"], request_id="x" * 60)


class Busy(pb_grpc.VecdbServiceServicer):  # type: ignore[misc,unused-ignore]
    """Refuses calls, with or without a delay."""

    def __init__(self) -> None:
        self.refusals = 0
        self.delay: str | None = None
        self.at_s: list[float] = []
        self.taken = 0
        """Messages of a stream that are taken, or given, before it is refused."""
        self.came: list[list[str]] = []

    def _refuse(self, context: Any) -> None:
        self.at_s.append(time.monotonic())
        if self.refusals:
            self.refusals -= 1
            if self.delay is not None:
                context.set_trailing_metadata((("vecdb-retry-after-ms", self.delay),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    def Count(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._refuse(context)
        return pb.CountResponse(count=5)

    def Ingest(self, requests: Any, context: Any) -> Any:  # noqa: N802
        for number, request in enumerate(requests):
            if number == self.taken:
                self._refuse(context)
            self.came.append(list(request.records.ids))
            yield pb.IngestResponse(sequence=number, count=len(request.records.ids))

    def BackupDatabase(self, request: Any, context: Any) -> Any:  # noqa: N802
        for number in range(2):
            if number == self.taken:
                self._refuse(context)
            yield pb.BackupDatabaseResponse(progress=pb.BackupProgress(stage="copying"))
        yield pb.BackupDatabaseResponse(backup=pb.BackupInfo(id="b1"))

    def GetCollection(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.GetCollectionResponse(collection=pb.Collection(name="docs", dimension=4))

    def DropCollection(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._refuse(context)
        return pb.DropCollectionResponse()


@pytest.fixture
def busy() -> Iterator[Any]:
    """(servicer, address)"""
    with serving(Busy()) as made:
        yield made


def test_a_delay_that_the_server_names_is_honoured(busy: Any) -> None:
    """A refused call, of whatever kind, comes again after the delay, not before; without one it does not."""
    servicer, address = busy
    with connect(address, retry_s=2) as db:
        docs = db.get_collection("docs")
        servicer.refusals, servicer.delay = 2, "400"
        assert docs.count() == 5
        gaps = np.diff(servicer.at_s)
        assert len(gaps) == 2
        assert gaps.min() >= 0.4
        servicer.refusals = 1
        db.drop_collection("docs")
        servicer.refusals, servicer.delay = 1, None
        with pytest.raises(errors.ResourceExhausted):
            docs.count()
        servicer.refusals, servicer.delay = 1_000, "400"

        def refused() -> None:
            with pytest.raises(errors.ResourceExhausted) as caught:
                docs.count(timeout_s=0.3)
            assert caught.value.details["retry_after_ms"] == 400

        once_below(0.3, lambda: seconds(refused))
        servicer.delay = "soon"
        with pytest.raises(errors.ResourceExhausted):
            docs.count()

    async def asynchronous() -> None:
        async with aio.connect(address, retry_s=2) as db:
            found = await db.get_collection("docs")
            servicer.refusals, servicer.delay = 1, "100"
            assert await found.count() == 5

    asyncio.run(asynchronous())


def rows_of(count: int) -> list[Any]:
    return [([f"r{i}"], [[1, 2, 3, 4]]) for i in range(count)]


async def ingested(docs: Any, count: int) -> int:
    return sum([ack.count async for ack in docs.ingest(rows_of(count))])


def test_a_stream_that_was_refused_is_sent_again(busy: Any) -> None:
    """An ingest that is refused with a delay comes again with all that is not acknowledged, and a backup of which
    nothing was answered; one with an answer does not, and where no delay is named neither does."""
    servicer, address = busy
    reports: list[CallReport] = []
    wanted = [[f"r{i}"] for i in range(6)]

    async def asynchronous() -> None:
        async with aio.connect(address, on_call=reports.append) as db:
            docs = await db.get_collection("docs")
            for servicer.taken in (0, 1):
                servicer.refusals, servicer.came = 2, []
                assert await ingested(docs, 6) == 6
                assert servicer.came == wanted
            servicer.taken, servicer.refusals = 0, 2
            assert (await db.backup()).id == "b1"
            servicer.taken, servicer.refusals = 1, 1
            with pytest.raises(errors.ResourceExhausted):
                await db.backup()
            servicer.delay, servicer.refusals = None, 1
            with pytest.raises(errors.ResourceExhausted) as caught:
                await ingested(docs, 6)
            assert caught.value.details["acknowledged"] == 1

    servicer.delay = "20"
    with connect(address, on_call=reports.append) as db:
        docs = db.get_collection("docs")
        for servicer.taken in (0, 1):
            servicer.refusals, servicer.came = 2, []
            assert sum(ack.count for ack in docs.ingest(rows_of(6))) == 6
            assert servicer.came == wanted
        servicer.taken, servicer.refusals = 0, 2
        assert db.backup().id == "b1"
        servicer.taken, servicer.refusals = 1, 1
        with pytest.raises(errors.ResourceExhausted):
            db.backup()
        servicer.delay, servicer.refusals = None, 1
        with pytest.raises(errors.ResourceExhausted) as caught:
            list(docs.ingest(rows_of(6)))
        assert caught.value.details["acknowledged"] == 1
    servicer.taken, servicer.delay = 0, "20"
    asyncio.run(asynchronous())
    ended = "RESOURCE_EXHAUSTED"
    assert [(r.method, r.code, r.attempts) for r in reports] == 2 * [
        ("GetCollection", "OK", 1), ("Ingest", "OK", 3), ("Ingest", "OK", 3), ("BackupDatabase", "OK", 3),
        ("BackupDatabase", ended, 1), ("Ingest", ended, 1),
    ]  # fmt: skip
    assert all(r.received_bytes > 0 for r in reports if r.code == "OK")


def test_a_stream_is_not_sent_again_beyond_its_time(busy: Any) -> None:
    """`timeout_s` and `retry_s` bound all attempts of an ingest and of a backup together."""
    servicer, address = busy
    servicer.refusals, servicer.delay = 1_000, "20000"

    async def asynchronous(retry_s: float, timeout_s: float | None) -> None:
        async with aio.connect(address, retry_s=retry_s) as db:
            docs = await db.get_collection("docs")
            with pytest.raises(errors.ResourceExhausted):
                await anext(docs.ingest(rows_of(1), timeout_s=timeout_s))
            with pytest.raises(errors.ResourceExhausted):
                await db.backup(timeout_s=timeout_s)

    for retry_s, timeout_s in ((0.0, None), (3.0, 15.0)):
        servicer.at_s.clear()
        with connect(address, retry_s=retry_s) as db:
            docs = db.get_collection("docs")
            with pytest.raises(errors.ResourceExhausted):
                list(docs.ingest(rows_of(1), timeout_s=timeout_s))
            with pytest.raises(errors.ResourceExhausted):
                db.backup(timeout_s=timeout_s)
        asyncio.run(asynchronous(retry_s, timeout_s))
        assert len(servicer.at_s) == 4


def test_pauses_are_random_and_bounded() -> None:
    """Pauses grow, differ from client to client, and add up to what was allowed."""
    found = [list(transport.retry_pauses_s(5.0)) for _ in range(20)]
    assert all(sum(pauses) == pytest.approx(5.0) for pauses in found)
    assert len({pauses[0] for pauses in found}) > 10
    assert all(0.05 <= pauses[0] <= 0.1 for pauses in found)
    assert list(transport.retry_pauses_s(0)) == []
    for wrong in (-1, "x", True):
        with pytest.raises(errors.InvalidSetting, match="retry_s"):
            connect("127.0.0.1", retry_s=wrong)  # type: ignore[arg-type]


def test_calls_wait_longest_for_a_server_that_has_answered() -> None:
    """A client that says nothing of repetitions waits for a minute where its server is away, once that has answered a call,
    as long as for any where it is busy; one that names a time waits for that."""

    def paused_s(pauses: transport.Pauses, is_away: bool) -> float:
        return sum(iter(lambda: pauses.next(is_away) or 0.0, 0.0))

    for retry_s, has_worked, longest_s in (
        (None, False, transport.DEFAULT_RETRY_S),
        (None, True, transport.RESTART_S),
        (5.0, True, 5.0),
        (0.0, True, 0.0),
    ):
        repeating = transport.Repeating(retry_s)
        repeating.has_worked = has_worked
        usual_s = transport.DEFAULT_RETRY_S if retry_s is None else retry_s
        assert paused_s(repeating.pauses(), True) == pytest.approx(longest_s)
        assert paused_s(repeating.pauses(), False) == pytest.approx(usual_s)


def test_calls_are_repeated_until_shortly_before_their_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long the next pause would be, a server that is back within its time is asked; a delay that a server names is
    kept to."""
    clock_s = [0.0]
    monkeypatch.setattr(transport, "time", SimpleNamespace(monotonic=lambda: clock_s[0]))
    away = errors.Unavailable("no server answers", answered=False)
    busy = errors.ResourceExhausted("too busy", retry_after_ms=700)
    for end_s in (0.5, 1.0, 2.0, 5.0, 30.0) * 5:
        repeating = transport.Repeating(60.0)
        clock_s[0], pauses = 0.0, repeating.pauses()
        with pytest.raises(errors.Unavailable):
            while True:
                clock_s[0] += transport.pause_before_retry_s(away, True, pauses, end_s)
        assert end_s - 0.2 <= clock_s[0] + 1e-9 < end_s
        clock_s[0], pauses = 0.0, repeating.pauses()
        with pytest.raises(errors.ResourceExhausted):
            while True:
                pause_s = transport.pause_before_retry_s(busy, True, pauses, end_s)
                assert pause_s >= 0.7
                clock_s[0] += pause_s
        assert clock_s[0] < end_s


def test_calls_are_reported(forgetful: Any) -> None:
    """Each call of both clients gives one report with method, code, attempts, time and bytes."""
    lost, address = forgetful
    reports: list[CallReport] = []

    def hook(report: CallReport) -> None:
        reports.append(report)
        raise RuntimeError("a hook that fails changes nothing")

    with connect(address, on_call=hook) as db:
        docs = db.create_collection("docs", dimension=2)
        lost.losses = 1
        docs.insert(["a"], [[1, 2]], documents=["d" * 1_000])
        list(docs.scan())
        list(docs.ingest([(["b"], [[1, 2]])]))
        with pytest.raises(errors.RecordExists):
            docs.insert(["a"], [[1, 2]])

    async def asynchronous() -> None:
        async with aio.connect(address, on_call=hook) as db:
            docs = await db.get_collection("docs")
            await docs.query([1, 2])
            async for _ in docs.scan():
                pass
            async for _ in docs.ingest([(["c"], [[1, 2]])]):
                pass

    asyncio.run(asynchronous())
    assert [(r.method, r.code, r.attempts) for r in reports] == [
        ("CreateCollection", "OK", 1), ("Insert", "OK", 2), ("Scan", "OK", 1), ("Ingest", "OK", 1),
        ("Insert", "ALREADY_EXISTS", 1), ("GetCollection", "OK", 1), ("Query", "OK", 1),
        ("Scan", "OK", 1), ("Ingest", "OK", 1),
    ]  # fmt: skip
    with connect(address, on_call=hook) as db:
        given_up = db.get_collection("docs").ingest([([f"g{i}"], [[1, 2]]) for i in range(9)])
        next(given_up)
        given_up.close()
    assert [(r.method, r.code) for r in reports[-1:]] == [("Ingest", "CANCELLED")]
    assert reports[1].sent_bytes > 2_000
    assert reports[2].received_bytes > 1_000
    assert all(r.seconds > 0 for r in reports)


def test_a_stream_that_breaks_late_leaves_the_deadline(
    start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query that comes back from a stream is sent as a call with the rest of its time, not with all of it."""
    given_s: list[float] = []

    def watch(client: Any) -> None:
        query = client._connection._stub.Query

        def watched(request: Any, timeout: float, **more: Any) -> Any:
            given_s.append(timeout)
            return query(request, timeout=timeout, **more)

        monkeypatch.setattr(client._connection._stub, "Query", watched)

    server = start()
    with connect(server.address, timeout_s=10) as db:
        docs = db.create_collection("docs", dimension=2)
        watch(db)
        monkeypatch.setattr(db._connection._streams, "ask", lambda *_: time.sleep(0.5))
        docs.query([1, 2], k=1)

    async def asynchronous() -> None:
        async with aio.connect(server.address, timeout_s=10) as db:
            docs = await db.get_collection("docs")
            watch(db)
            monkeypatch.setattr(db._connection._streams, "ask", lambda *_: asyncio.sleep(0.5))
            await docs.query([1, 2], k=1)

    asyncio.run(asynchronous())
    assert len(given_s) == 2
    assert max(given_s) <= 9.5


def test_a_thousand_queries_in_flight(start: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One asyncio client has 1,000 queries under way at once on one connection, and each gets its answer."""
    server = start(max_concurrent=2_000, max_wait_s=60.0)
    gate = threading.Event()
    query = vecdb.Collection.query

    def slow(self: Any, *given: Any, **named: Any) -> Any:
        assert gate.wait(60)
        return query(self, *given, **named)

    with connect(server.address) as db:
        vectors = np.eye(1_000, dtype=np.float32)
        db.create_collection("docs", dimension=1_000).insert(
            [f"r{i}" for i in range(1_000)], vectors
        )
    monkeypatch.setattr(vecdb.Collection, "query", slow)

    async def work() -> list[Any]:
        async with aio.connect(server.address, timeout_s=120) as client:
            docs = await client.get_collection("docs")
            asked = [
                asyncio.create_task(docs.query(vectors[i], k=1, exact=True)) for i in range(1_000)
            ]

            def all_under_way() -> None:
                wait_until(lambda: server._pools.reads.busy >= 1_000, "1,000 queries wait", 60)
                gate.set()

            await asyncio.to_thread(all_under_way)
            return list(await asyncio.gather(*asked))

    found = asyncio.run(work())
    assert [answer.ids for answer in found] == [[[f"r{i}"]] for i in range(1_000)]
