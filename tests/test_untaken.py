"""Answers that clients do not take are counted, those that they have taken are not."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import StartServer, wait_until

from vecdb_client import connect
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_client.v1 import vecdb_pb2_grpc as pb_grpc
from vecdb_server import status
from vecdb_server.untaken import Untaken


class Call:
    """A call as `Untaken` sees it."""

    def __init__(self, lasts: bool = True) -> None:
        self.lasts = lasts
        self.over: list[Callable[[], None]] = []
        self.cancelled = False

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self.over.append(callback)
        return self.lasts

    def cancel(self) -> None:
        self.cancelled = True


def test_answers_are_counted_until_they_are_taken() -> None:
    """Small ones never; one that was taken, that came too late or whose call was ended counts no more, and once only."""
    untaken = Untaken(100_000)
    calls = [Call() for _ in range(4)]
    for one in calls:
        untaken.sending(one, 30_000)
    assert [one.cancelled for one in calls] == [True, False, False, False]
    assert untaken.n_bytes == 90_000
    for one in calls[:2]:
        one.over[0]()
    assert untaken.n_bytes == 60_000
    untaken.sending(Call(), 4_096)
    untaken.sending(Call(lasts=False), 20_000)
    assert untaken.n_bytes == 60_000
    untaken.sending(calls[2], 40_000)  # a stream, whose message before was taken
    untaken.sending(calls[2], 1_000)
    assert untaken.n_bytes == 31_000
    assert len(calls[2].over) == 1
    alone = Call()
    untaken.sending(alone, 200_000)
    assert [one.cancelled for one in [*calls, alone]] == [True, False, True, True, False]
    alone.over[0]()
    assert untaken.n_bytes == 0


def test_a_stream_whose_messages_were_taken_holds_nothing() -> None:
    """It is told of once however long it lasts, and never ended for others."""
    untaken, stream = Untaken(100_000), Call()
    for _ in range(100):
        untaken.sending(stream, 50_000)
        untaken.taken(stream)
        assert untaken.n_bytes == 0
    assert len(stream.over) == 1
    others = [Call() for _ in range(3)]
    for one in others:
        untaken.sending(one, 40_000)
    assert [one.cancelled for one in [stream, *others]] == [False, True, False, False]
    untaken.taken(Call())
    stream.over[0]()
    assert untaken.n_bytes == 80_000


def test_an_idle_stream_of_queries_holds_nothing(
    start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that has read a large answer, and asks nothing more, may stay as long as it likes."""
    made: list[Untaken] = []

    def noted(limit_bytes: int) -> Untaken:
        made.append(Untaken(limit_bytes))
        return made[-1]

    monkeypatch.setattr(status, "Untaken", noted)
    server = start()
    with connect(server.address) as client:
        docs = client.create_collection("docs", dimension=4)
        docs.insert(["a"], np.ones((1, 4)), documents=["x" * 100_000])
    asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = pb_grpc.VecdbServiceStub(channel)  # type: ignore[no-untyped-call,unused-ignore]
        answers = stub.QueryStream(iter(asked.get, None))
        vectors = pb.Vectors(count=1, dimension=4, data=np.ones(4, np.float32).tobytes())
        query = pb.QueryRequest(
            collection="docs", vectors=vectors, k=1, include=[pb.INCLUDE_DOCUMENT]
        )
        asked.put(pb.QueryStreamRequest(queries=[pb.StreamedQuery(query=query)]))
        assert next(answers).ByteSize() > 100_000
        wait_until(lambda: made[0].n_bytes == 0, "it has been taken")
        assert len(made[0]._sizes) == 1
        asked.put(None)
        assert list(answers) == []
    wait_until(lambda: not made[0]._sizes, "it is forgotten")
