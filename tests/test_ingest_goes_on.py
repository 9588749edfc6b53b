"""Ingests whose stream breaks: each batch is done once, whatever became of its acknowledgement."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import StartServer, wait_until
from lossy_way import LossyWay
from server_process import spawn
from test_restart import free_port

import vecdb
from vecdb_client import CallReport, aio, calls, connect, errors
from vecdb_client.v1 import vecdb_pb2 as pb

ROWS = 10
"""Records of a batch."""

both_clients = pytest.mark.parametrize("client", ["threads", "asyncio"])


def batch(number: int, value: float = 1.0) -> tuple[list[str], Any]:
    return [f"r{number}-{i}" for i in range(ROWS)], np.full((ROWS, 2), value + number)


class Ingested:
    """An ingest into `docs` by one of the clients: what was acknowledged, what it raised, what it reported."""

    def __init__(
        self,
        client: str,
        address: str,
        batches: Iterable[Any],
        retry_s: float = 60,
        told: Callable[[int], None] | None = None,
        **given: Any,
    ) -> None:
        """`told` is called after each acknowledgement with their number so far."""
        self._each = told
        self.told: list[Any] = []
        self.raised: errors.VecdbError | None = None
        self.reports: list[CallReport] = []
        try:
            if client == "threads":
                with connect(address, retry_s=retry_s, on_call=self.reports.append) as db:
                    for one in db.get_collection("docs").ingest(batches, **given):
                        self._take(one)
            else:
                asyncio.run(self._by_asyncio(address, batches, retry_s, given))
        except errors.VecdbError as error:
            self.raised = error

    async def _by_asyncio(
        self, address: str, batches: Iterable[Any], retry_s: float, given: Any
    ) -> None:
        async with aio.connect(address, retry_s=retry_s, on_call=self.reports.append) as db:
            async for one in (await db.get_collection("docs")).ingest(batches, **given):
                self._take(one)

    def _take(self, one: Any) -> None:
        self.told.append(one)
        if self._each is not None:
            self._each(len(self.told))

    def all_once(self, count: int) -> None:
        """Each batch was acknowledged in its turn, with the commit that it has by itself."""
        if self.raised is not None:
            raise self.raised
        assert [(one.count, one.sequence) for one in self.told] == [
            (ROWS, n + 1) for n in range(count)
        ]


@pytest.fixture
def lossy(start: StartServer) -> Iterator[tuple[LossyWay, Any]]:
    """A way to a server with the collection `docs`, and that collection by a client that goes another way."""
    server = start()
    way = LossyWay(server.address)
    with connect(server.address) as db:
        yield way, db.create_collection("docs", dimension=2)
    way.close()


class CutOnce:
    """After the third acknowledgement no more arrive; the connection breaks once the server has committed a batch that the
    client sends after that, so that its acknowledgement is lost for sure."""

    def __init__(self, way: LossyWay, docs: Any, client: str) -> None:
        self._way, self._docs = way, docs
        self.committed = {"threads": 3 + calls.INGEST_WINDOW, "asyncio": 4}[client]
        self._cutter = threading.Thread(target=self._cut)

    def __call__(self, told: int) -> None:
        if told == 3:
            self._way.lose_answers()
            self._cutter.start()

    def _cut(self) -> None:
        wait_until(
            lambda: self._docs.stats().sequence >= self.committed, "the server has committed it"
        )
        self._way.cut()

    def join(self) -> None:
        self._cutter.join()


@both_clients
@pytest.mark.parametrize("upsert", [False, True])
def test_a_batch_whose_acknowledgement_is_lost_is_done_once(
    lossy: tuple[LossyWay, Any], client: str, upsert: bool
) -> None:
    """The connection breaks after the server has committed, and before it can say so: the ingest goes on by itself, nothing
    is refused as there already, and no batch has two commits."""
    way, docs = lossy
    once = CutOnce(way, docs, client)
    done = Ingested(client, way.address, map(batch, range(20)), told=once, upsert=upsert)
    once.join()
    done.all_once(20)
    assert docs.count() == 20 * ROWS
    assert docs.stats().sequence == 20
    (attempts,) = [report.attempts for report in done.reports if report.method == "Ingest"]
    assert attempts > 1
    assert docs.check().ok


@both_clients
def test_an_ingest_that_is_not_to_be_repeated_says_what_was_acknowledged(
    lossy: tuple[LossyWay, Any], client: str
) -> None:
    """With `retry_s=0` the same loss is Unavailable, whose details count what was acknowledged; called again with its
    request id, the ingest does what is missing and answers the rest as the first time."""
    way, docs = lossy
    once = CutOnce(way, docs, client)
    given = {"request_id": "load-7"}
    first = Ingested(client, way.address, map(batch, range(20)), retry_s=0, told=once, **given)
    once.join()
    assert isinstance(first.raised, errors.Unavailable)
    assert first.raised.details["acknowledged"] == ROWS * len(first.told)
    assert first.told[-1].sequence < once.committed <= docs.stats().sequence
    Ingested(client, way.address, map(batch, range(20)), **given).all_once(20)
    assert docs.count() == 20 * ROWS


@both_clients
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_is_started_again_is_waited_for(
    tmp_path: Path, client: str, number: signal.Signals
) -> None:
    """The server is killed in the middle, twice, or told to stop, and comes back on its port: the ingest goes on, each
    batch is acknowledged with the commit that holds it, and is there once."""
    folder, port = tmp_path / "db", free_port()
    flags = "--log-level", "error", "--drain-timeout-s", "0.5"
    process, address = spawn(folder, *flags, port=port)
    try:
        with connect(address) as db:
            db.create_collection("docs", dimension=2)

        def batches() -> Iterator[Any]:
            nonlocal process
            for made in range(60):
                if made in (20, 40):
                    process.send_signal(number)
                    process.communicate()
                    process, _ = spawn(folder, *flags, port=port)
                yield batch(made)

        done = Ingested(client, address, batches())
        done.all_once(60)
    finally:
        process.kill()
        process.communicate()
    with vecdb.open(folder, device="cpu") as database:
        docs = database.get_collection("docs")
        assert docs.count() == 60 * ROWS
        assert docs.check().ok


@both_clients
def test_a_whole_ingest_may_be_repeated(start: StartServer, client: str) -> None:
    """With a request id of its caller, an ingest whose own source of batches failed is called again and does the rest. Other
    batches under the same id are InvalidBatch, as is an id that is no short text."""
    address = start().address

    def broken() -> Iterator[Any]:
        yield from (batch(n) for n in range(5))
        raise errors.InvalidArgument("the source is gone")

    with connect(address) as db:
        docs = db.create_collection("docs", dimension=2)
        first = Ingested(client, address, broken(), request_id="load")
        assert isinstance(first.raised, errors.InvalidArgument)
        assert len(first.told) == 5
        Ingested(client, address, map(batch, range(9)), request_id="load").all_once(9)
        assert docs.count() == 9 * ROWS
        other = Ingested(client, address, [batch(0, value=5.0)], request_id="load")
        assert isinstance(other.raised, errors.InvalidBatch)
        assert "another write" in str(other.raised)
        for wrong in ("", "x" * 53, 5):
            refused = Ingested(client, address, [batch(20)], request_id=wrong)
            assert isinstance(refused.raised, errors.InvalidBatch), wrong
        assert docs.count() == 9 * ROWS


def test_a_client_of_another_language_names_its_batches(start: StartServer) -> None:
    """The server asks for nothing of ours: an id in the message is enough, and without one a batch is no repetition."""
    with connect(start().address) as db:
        docs = db.create_collection("docs", dimension=2)
        list(docs.ingest([batch(0)]))
        message = pb.IngestRequest(collection="docs", request_id="x")
        message.records.ids.append("a")
        message.records.vectors.CopyFrom(vectors([1, 2]))
        send = db._connection.method("Ingest")
        first = list(send(iter([message, message]), timeout=30))
        assert [(one.sequence, one.count) for one in first] == [(2, 1), (2, 1)]
        assert list(send(iter([message]), timeout=30)) == first[:1]
        message.request_id = ""
        with pytest.raises(Exception, match="exist"):
            list(send(iter([message]), timeout=30))
        assert docs.stats().sequence == 2


def vectors(row: list[float]) -> Any:
    rows = np.asarray([row], "<f4")
    return pb.Vectors(count=1, dimension=len(row), data=rows.tobytes())
