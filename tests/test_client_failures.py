"""What the clients do when a server fails: repeat calls, keep to deadlines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from pretended_server import serving
from timing import once_below, seconds

from vecdb_client import aio, connect, errors, transport
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_client.v1 import vecdb_pb2_grpc as pb_grpc


def rows(start: int, stop: int) -> tuple[list[str], Any]:
    ids = [f"r{i}" for i in range(start, stop)]
    return ids, np.arange(start * 4, stop * 4, dtype=np.float32).reshape(-1, 4) + 1


class Flaky(pb_grpc.VecdbServiceServicer):  # type: ignore[misc,unused-ignore]
    """Answers UNAVAILABLE a number of times, then as it should; counts the calls."""

    def __init__(self) -> None:
        self.failures = 0
        self.calls = 0
        self.full = False
        self.answers = False
        self.request_ids: list[str] = []

    def _fail(self, context: Any) -> None:
        self.calls += 1
        if self.failures:
            self.failures -= 1
            if self.answers:
                said = b'{"reason": "DEVICE_LOST", "message": "no GPU is up", "details": {}}'
                context.set_trailing_metadata(((transport.ERROR_KEY, said),))
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")

    def GetCollection(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.GetCollectionResponse(collection=pb.Collection(name="docs", dimension=4))

    def Count(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._fail(context)
        return pb.CountResponse(count=5)

    def Insert(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.request_ids.append(request.request_id)
        self._fail(context)
        return pb.InsertResponse(sequence=1, count=1)

    def Delete(self, request: Any, context: Any) -> Any:  # noqa: N802
        time.sleep(1)
        return pb.DeleteResponse()

    def Scan(self, request: Any, context: Any) -> Any:  # noqa: N802
        start = int(request.cursor or 0)
        for i in range(start, 6):
            if i == 3 and not start:
                self._fail(context)
            cursor = "" if i == 5 else str(i + 1)
            yield pb.ScanResponse(records=pb.RecordBatch(ids=[f"r{i}"]), cursor=cursor)

    def Ingest(self, requests: Any, context: Any) -> Any:  # noqa: N802
        if self.full:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "all threads are busy")
        next(requests)
        yield pb.IngestResponse(sequence=1, count=1)


@pytest.fixture
def flaky() -> Iterator[Any]:
    """(servicer, address) of a server that fails as often as the servicer is told."""
    with serving(Flaky()) as made:
        yield made


@pytest.mark.usefixtures("short_retries")
def test_a_read_is_repeated_while_the_server_is_away(flaky: Any) -> None:
    """A read survives four failures and gives up at the fifth."""
    servicer, address = flaky
    with connect(address) as client:
        docs = client.get_collection("docs")
        servicer.failures = 4
        assert docs.count() == 5
        assert servicer.calls == 5
        servicer.failures = 5
        with pytest.raises(errors.Unavailable):
            docs.count()


def test_a_server_that_says_what_is_unavailable_is_not_waited_for_as_one_that_is_away(
    flaky: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a server that has answered before both clients wait long where it is away, and as briefly as ever where it says
    itself that something is unavailable: its user is to know."""
    brief_s = transport.DEFAULT_RETRY_S
    monkeypatch.setattr(
        transport, "retry_pauses_s", lambda s: iter([0.01] * (2 if s == brief_s else 5))
    )
    servicer, address = flaky

    async def attempts() -> int:
        servicer.calls, servicer.failures = 0, 0
        async with aio.connect(address) as db:
            docs = await db.get_collection("docs")
            servicer.failures = 100
            with pytest.raises(errors.Unavailable):
                await docs.count()
        return int(servicer.calls)

    for servicer.answers, wanted in ((False, 6), (True, 3)):
        servicer.calls, servicer.failures = 0, 0
        with connect(address) as client:
            docs = client.get_collection("docs")
            servicer.failures = 100
            with pytest.raises(errors.Unavailable):
                docs.count()
        assert servicer.calls == wanted
        assert asyncio.run(attempts()) == wanted


@pytest.mark.usefixtures("short_retries")
def test_a_write_of_records_is_repeated_with_its_id(flaky: Any) -> None:
    """A write is repeated as a read is, with the id that it had the first time; with `retry_s=0` it is not."""
    servicer, address = flaky
    with connect(address) as client:
        docs = client.get_collection("docs")
        servicer.failures = 4
        assert docs.insert(["a"], [[1, 2, 3, 4]]).count == 1
        assert servicer.calls == 5
        docs.insert(["b"], [[1, 2, 3, 4]])
        assert len(servicer.request_ids[0]) == 32
        assert len(set(servicer.request_ids)) == 2


def test_nothing_is_repeated_where_that_is_not_wanted(flaky: Any) -> None:
    """With `retry_s=0` each call is sent once."""
    servicer, address = flaky
    with connect(address, retry_s=0) as client:
        docs = client.get_collection("docs")
        servicer.failures = 2
        for call in (docs.count, lambda: docs.insert(["a"], [[1, 2, 3, 4]])):
            with pytest.raises(errors.Unavailable):
                call()
        assert servicer.calls == 2


@pytest.mark.usefixtures("short_retries")
def test_a_scan_goes_on_behind_the_last_batch(flaky: Any) -> None:
    """A scan that breaks off is continued from its cursor: nothing twice, nothing left out."""
    servicer, address = flaky
    with connect(address) as client:
        docs = client.get_collection("docs")
        servicer.failures = 1
        found = [record_id for page in docs.scan(include=()) for record_id in page.ids]
    assert found == [f"r{i}" for i in range(6)]
    assert servicer.calls == 1


def test_retries_keep_to_the_deadline(flaky: Any) -> None:
    """Repeating ends before the deadline passes."""
    servicer, address = flaky
    with connect(address) as client:
        docs = client.get_collection("docs")
        servicer.failures = 1_000

        def refused() -> None:
            with pytest.raises(errors.Unavailable):
                docs.count(timeout_s=0.3)

        once_below(0.5, lambda: seconds(refused))


def test_an_ingest_that_ends_too_early_is_an_error(flaky: Any) -> None:
    """A server that ends the stream without acknowledging everything does not look like success."""
    _, address = flaky
    with connect(address) as client, pytest.raises(errors.Internal, match="acknowledg"):
        list(client.get_collection("docs").ingest([rows(i, i + 1) for i in range(3)]))


def test_an_ingest_refused_unread_says_why(flaky: Any) -> None:
    """A server that refuses a stream before it has read the message is understood by both clients."""
    servicer, address = flaky
    servicer.full = True
    ids, vectors = rows(0, 1)
    batch = (ids, vectors, None, ["d" * 3_000_000])

    async def refused_asyncio() -> None:
        async with aio.connect(address) as db:
            docs = await db.get_collection("docs")
            for _ in range(50):
                with pytest.raises(errors.ResourceExhausted, match="all threads are busy"):
                    await anext(docs.ingest([batch]))

    with connect(address) as client:
        docs = client.get_collection("docs")
        for _ in range(20):
            with pytest.raises(errors.ResourceExhausted, match="all threads are busy"):
                list(docs.ingest([batch]))
    asyncio.run(refused_asyncio())


def test_a_call_ends_at_its_deadline(flaky: Any) -> None:
    """`timeout_s` of a call, and of the client, end a call that takes longer."""
    _, address = flaky
    with connect(address, timeout_s=0.2) as client:
        docs = client.get_collection("docs")
        with pytest.raises(errors.DeadlineExceeded):
            docs.delete(["a"])
        with pytest.raises(TimeoutError):
            docs.delete(["a"], timeout_s=0.1)
        assert docs.delete(["a"], timeout_s=10).count == 0


@pytest.mark.usefixtures("short_retries")
def test_asyncio_retries_and_errors(flaky: Any) -> None:
    """The asyncio client repeats reads, writes and scans, and raises the same errors."""
    servicer, address = flaky

    async def work() -> None:
        async with aio.connect(address) as db:
            docs = await db.get_collection("docs")
            servicer.failures = 4
            assert await docs.count() == 5
            servicer.failures, servicer.calls = 1, 0
            assert (await docs.insert(["a"], [[1, 2, 3, 4]])).count == 1
            assert servicer.calls == 2
            servicer.failures = 1
            found = [i async for page in docs.scan(include=()) for i in page.ids]
            assert found == [f"r{i}" for i in range(6)]
            with pytest.raises(errors.DeadlineExceeded):
                await docs.delete(["a"], timeout_s=0.2)
            with pytest.raises((errors.Internal, errors.Unavailable), match="ended the ingest"):
                async for _ in docs.ingest([rows(i, i + 1) for i in range(30)]):
                    pass
        with pytest.raises(errors.Closed):
            await docs.count()

    asyncio.run(work())
