"""Streams from which nothing comes end by themselves; those that are slow, and those whose reader is, do not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import StartServer, wait_until
from pretended_server import serving

from vecdb_client import aio, connect, errors
from vecdb_client.idle import Idle
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_client.v1 import vecdb_pb2_grpc as pb_grpc
from vecdb_server import service_backups

IDLE_S = 0.3
SLOW_IDLE_S = 1.0
ROWS = {"ids": ["a"], "vectors": np.ones((1, 4), np.float32)}


class Stuck(pb_grpc.VecdbServiceServicer):  # type: ignore[misc,unused-ignore]
    """Says one thing on each stream and then nothing, until the client has gone; `slow`: something now and then."""

    def __init__(self) -> None:
        self.slow = False
        self.left = 0

    def _stuck(self, context: Any, message: Any, last: Any) -> Iterator[Any]:
        yield message
        if self.slow:
            for _ in range(8):
                time.sleep(0.3 * SLOW_IDLE_S)
                yield message
            yield last
            return
        gone = threading.Event()
        context.add_callback(gone.set)
        gone.wait(30)
        self.left += 1

    def GetCollection(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.GetCollectionResponse(collection=pb.Collection(name="docs", dimension=4))

    def Scan(self, request: Any, context: Any) -> Any:  # noqa: N802
        page = pb.ScanResponse(records=pb.RecordBatch(ids=["a"]), cursor="1")
        last = pb.ScanResponse(records=pb.RecordBatch(ids=["b"]))
        return self._stuck(context, page, last)

    def Ingest(self, requests: Any, context: Any) -> Any:  # noqa: N802
        next(requests)
        acknowledged = pb.IngestResponse(sequence=1, count=1)
        return self._stuck(context, acknowledged, acknowledged)

    def BackupDatabase(self, request: Any, context: Any) -> Any:  # noqa: N802
        told = pb.BackupDatabaseResponse(progress=pb.BackupProgress(stage="copy"))
        return self._stuck(context, told, pb.BackupDatabaseResponse(backup=pb.BackupInfo(id="x")))


@pytest.fixture
def stuck() -> Iterator[tuple[Stuck, str]]:
    """(servicer, address) of a server whose streams stop."""
    with serving(Stuck(), 8) as made:
        yield made


def use(address: str, what: str, idle_s: float = IDLE_S) -> list[Any]:
    """What came of a stream of the synchronous client; the error that ended it comes last."""
    seen: list[Any] = []
    with connect(address, idle_s=idle_s) as db:
        docs = db.get_collection("docs")
        try:
            if what == "scan":
                seen += iter(docs.scan(include=()))
            elif what == "ingest":
                seen += iter(docs.ingest([ROWS] * 5))
            else:
                seen.append(db.backup())
        except errors.VecdbError as error:
            seen.append(error)
    return seen


def use_aio(address: str, what: str, idle_s: float = IDLE_S) -> list[Any]:
    """The same of the asyncio client."""

    async def work() -> list[Any]:
        seen: list[Any] = []
        async with aio.connect(address, idle_s=idle_s) as db:
            docs = await db.get_collection("docs")
            try:
                if what == "scan":
                    seen += [page async for page in docs.scan(include=())]
                elif what == "ingest":
                    seen += [ack async for ack in docs.ingest([ROWS] * 5)]
                else:
                    seen.append(await db.backup())
            except errors.VecdbError as error:
                seen.append(error)
        return seen

    return asyncio.run(work())


@pytest.mark.parametrize("user", [use, use_aio])
@pytest.mark.parametrize("what", ["scan", "ingest", "backup"])
def test_a_stream_from_which_nothing_comes_is_ended(stuck: Any, user: Any, what: str) -> None:
    """With a typed error that says how long it was silent, and what an ingest had acknowledged; the server is told."""
    servicer, address = stuck
    error = user(address, what)[-1]
    assert isinstance(error, errors.DeadlineExceeded)
    assert error.details["idle_s"] == IDLE_S
    assert "idle_s" in error.message
    if what == "ingest":
        assert error.details["acknowledged"] == 1
    wait_until(lambda: servicer.left == 1, "the server has heard of it")


@pytest.mark.parametrize("user", [use, use_aio])
@pytest.mark.parametrize("what", ["scan", "ingest", "backup"])
def test_a_slow_stream_may_last(stuck: Any, user: Any, what: str) -> None:
    """One that takes many times as long in all, but never so long between two messages, is read to its end."""
    servicer, address = stuck
    servicer.slow = True
    found = user(address, what, SLOW_IDLE_S)
    assert not isinstance(found[-1], Exception), found[-1]


@pytest.mark.long
def test_a_reader_may_take_its_time(start: StartServer) -> None:
    """What counts is how long it waits for the server, not what it does between two batches; nor how long a batch of an
    ingest takes to make."""
    with connect(start().address, idle_s=1.0) as db:
        docs = db.create_collection("docs", dimension=4)

        def batches() -> Iterator[Any]:
            for n in range(2):
                time.sleep(1.5)
                yield {**ROWS, "ids": [str(n)]}

        assert len(list(docs.ingest(batches()))) == 2
        seen = 0
        for page in docs.scan(batch_size=1):
            time.sleep(1.5)
            seen += len(page.ids)
        assert seen == 2


@pytest.mark.parametrize("given", [0, -1, float("nan"), "1", True, None])
def test_what_is_no_time_is_refused(given: Any) -> None:
    """`idle_s` is a number of seconds above 0; infinity is no limit."""
    for how in (connect, aio.connect):
        with pytest.raises(errors.InvalidSetting, match="idle_s"):
            how("127.0.0.1:1", idle_s=given)
        assert how("127.0.0.1:1", idle_s=float("inf")) is not None


def test_a_backup_that_is_long_silent_says_so_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last word is repeated, so that a client knows of the server that it works."""
    monkeypatch.setattr(service_backups, "_SAYS_S", 0.01)
    may_end = threading.Event()

    def work(progress: Any) -> str:
        may_end.wait(30)
        progress(service_backups.BackupProgress("verify", "b", 0, 0, 7))
        may_end.clear()
        may_end.wait(30)
        return "done"

    said = service_backups._watched(work, "verify")
    assert [next(said).bytes for _ in range(3)] == [0, 0, 0]
    may_end.set()
    wait_until(lambda: next(said).bytes == 7, "it has said more")
    assert next(said).collection == "b"
    may_end.set()
    assert list(said)[-1] == "done"


def test_what_comes_at_the_last_moment_comes_too_late() -> None:
    """The stream has been ended by then: the next message would be gRPC's error and not ours."""

    class Late:
        def __init__(self) -> None:
            self.cancelled = threading.Event()

        def __next__(self) -> str:
            assert self.cancelled.wait(30)
            return "late"

        def cancel(self) -> None:
            self.cancelled.set()

    with pytest.raises(errors.DeadlineExceeded, match=r"for 0\.2 s"):
        Idle(0.1).next(Late(), 2)
