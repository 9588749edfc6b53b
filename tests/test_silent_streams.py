"""Streams whose answers do not come, and callers who wait for less time than a stream is given."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from conftest import wait_until

from vecdb_client import errors, streaming, streams
from vecdb_client.aio import streams as aio_streams
from vecdb_client.v1 import vecdb_pb2 as pb

PATIENCE_S = 0.02
ASKS = 1_000
"""So many callers, one after the other, wait for ten times as long as a stream is given."""


class Ended(grpc.RpcError):
    """What gRPC raises for a stream that was cancelled."""


class Silent:
    """A stream that takes a message and says nothing until it is cancelled."""

    def __init__(self, messages: Iterator[Any]) -> None:
        self._ended = threading.Event()

    def __iter__(self) -> Silent:
        return self

    def __next__(self) -> Any:
        self._ended.wait()
        raise Ended

    def cancel(self) -> None:
        self._ended.set()


class SilentInAsyncio:
    """The same of grpc.aio, which says of a call that was cancelled here what it says of a task."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def write(self, message: Any) -> None:
        pass

    async def read(self) -> Any:
        return await self._answer

    def cancel(self) -> None:
        self._answer.cancel()


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream is given for ten times as long as a caller waits."""
    monkeypatch.setattr(streaming, "SILENT_S", 10 * PATIENCE_S)


def test_callers_of_little_patience_are_not_kept_from_answers() -> None:
    """Where all streams are silent, each caller leaves before they are given up. Those whose query no stream takes end
    them in time, and what comes next is sent as a call."""
    asked = streams.QueryStreams(Silent)
    for _ in range(streaming.FEW_QUERIES):
        assert asked.ask(pb.QueryRequest(), PATIENCE_S) is None
    late = 0
    while late < ASKS:
        try:
            assert asked.ask(pb.QueryRequest(), PATIENCE_S) is None
            break
        except errors.DeadlineExceeded:
            late += 1
    assert 0 < late < ASKS
    asked.close()
    for stream in list(asked._streams):  # as gRPC does where a channel is closed
        stream._call.cancel()
    wait_until(lambda: not asked._streams, "all streams are closed")


def test_callers_of_little_patience_are_not_kept_from_answers_in_asyncio() -> None:
    """The same of the asyncio client, which opens no other stream at once either."""

    async def work() -> int:
        asked = aio_streams.QueryStreams(SilentInAsyncio)
        for _ in range(streaming.FEW_QUERIES):
            assert await asked.ask(pb.QueryRequest(), PATIENCE_S) is None
        late = 0
        while late < ASKS:
            try:
                assert await asked.ask(pb.QueryRequest(), PATIENCE_S) is None
                break
            except errors.DeadlineExceeded:
                late += 1
        assert asked._closed_until_s > 0
        await asked.close()
        assert not asked._streams
        return late

    assert 0 < asyncio.run(work()) < ASKS
