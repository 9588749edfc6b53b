"""Queries of several callers that reach the server as one request: each is answered, refused and counted as if alone."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import StartServer
from test_query_streams import DIMENSION, VECTORS, filled, raw

import vecdb
from vecdb.search_lane import CORES
from vecdb_client import aio, connect, errors, streaming
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_server.admission import Admission
from vecdb_server.query_stream import MANY_QUERIES, QueryStreams


def test_queries_that_went_as_one_meet_their_own_failures(
    start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the server refuses what several callers asked as one, each of them is answered all the same."""
    query, joined = vecdb.Collection.query, [0]

    def refusing(self: Any, vectors: Any = None, **given: Any) -> Any:
        if vectors is not None and len(vectors) > 1:
            joined[0] += 1
            raise errors.LimitExceeded("too much at once")
        return query(self, vectors, **given)

    server = start()
    with connect(server.address) as client:
        filled(client)
    monkeypatch.setattr(vecdb.Collection, "query", refusing)

    async def ask() -> None:
        async with aio.connect(server.address) as client:
            docs = await client.get_collection("docs")
            found = await asyncio.gather(*[docs.query(VECTORS[i], k=1) for i in range(100)])
            assert [one.ids for one in found] == [[[f"r{i}"]] for i in range(100)]

    asyncio.run(ask())
    assert joined[0] >= 1


def test_queries_that_went_as_one_are_counted_each(start: StartServer) -> None:
    """The metrics of the server count the queries of a stream, however they travelled; so do failures."""
    server = start()

    def counted(code: str) -> float:
        labels = {"method": "QueryStream", "code": code}
        registry = server._observing.metrics.registry
        return registry.get_sample_value("vecdb_calls_seconds_count", labels) or 0.0

    with connect(server.address) as client:
        filled(client)
        message = pb.QueryStreamRequest()
        for collection, count in (("docs", 5), ("docs", 1), ("nobody", 3)):
            query = message.queries.add().query
            query.collection, query.k = collection, 2
            rows = np.ascontiguousarray(VECTORS[:count])
            query.vectors.CopyFrom(
                pb.Vectors(data=rows.tobytes(), count=count, dimension=DIMENSION)
            )
        answers = [answer for response in raw(client, [message]) for answer in response.answers]
        outcomes = {answer.position: streaming.outcome_of(answer) for answer in answers}
        assert list(outcomes[0].counts) == [2] * 5
        assert isinstance(outcomes[2], errors.CollectionNotFound)
        assert (counted("OK"), counted("NOT_FOUND")) == (6, 3)
        assert server._streams._under_way == 0


def test_a_count_that_is_made_up_counts_for_no_more_than_its_bytes(start: StartServer) -> None:
    """A request that says to have four billion vectors is refused, and is no more queries to the metrics than it has bytes."""
    server = start()
    with connect(server.address) as client:
        filled(client)
        data = VECTORS[0].tobytes()
        vectors = pb.Vectors(data=data, count=2**32 - 1, dimension=DIMENSION)
        made_up = pb.StreamedQuery(query=pb.QueryRequest(collection="docs", vectors=vectors))
        (answer,) = raw(client, [pb.QueryStreamRequest(queries=[made_up])])
        assert answer.answers[0].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    labels = {"method": "QueryStream", "code": "INVALID_ARGUMENT"}
    registry = server._observing.metrics.registry
    counted = registry.get_sample_value("vecdb_calls_seconds_count", labels) or 0.0
    assert 1 <= counted <= len(data)


def test_only_who_is_alone_searches_with_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """While anything else is under way in the server, and where it is small, a message is searched by one thread."""
    limits: list[int] = []
    monkeypatch.setattr(vecdb, "limit_search_threads", limits.append)
    streams = QueryStreams(Admission({"max_wait_s": 1.0}))
    for under_way, count in ((1, MANY_QUERIES), (2, MANY_QUERIES), (1, MANY_QUERIES - 1)):
        vectors = pb.Vectors(count=count, data=bytes(4 * count))
        queries = [pb.StreamedQuery(query=pb.QueryRequest(collection="docs", vectors=vectors))]
        streams.under_way = lambda: under_way  # noqa: B023
        answered = streams._message(
            queries, None, lambda *_: pb.QueryResponse(), 1 << 20, lambda *_: None
        )
        assert len(list(answered)) == 1
    assert limits == [CORES, 1, 1]
