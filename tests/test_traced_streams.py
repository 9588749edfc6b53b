"""Queries that travel on a stream are in traces as those are that are calls."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from conftest import StartServer
from test_observing import Kept, fill, kept  # noqa: F401  (a fixture)

from vecdb_client import connect
from vecdb_client.v1 import vecdb_pb2 as pb

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CARRIED = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
STEPS = ("queue", "wait", "filter", "search", "rerank", "fetch")


def query(collection: str = "docs", k: int = 3, **given: Any) -> pb.StreamedQuery:
    vectors = pb.Vectors(data=np.ones(4, "<f4").tobytes(), count=1, dimension=4)
    asked = pb.QueryRequest(collection=collection, vectors=vectors, k=k, **given)
    return pb.StreamedQuery(query=asked)


def answers(client: Any, messages: list[list[Any]], metadata: Any = CARRIED) -> list[Any]:
    """All answers to a stream of such messages."""
    sent = iter([pb.QueryStreamRequest(queries=queries) for queries in messages])
    stream = client._connection._stub.QueryStream(sent, metadata=metadata)
    return [answer for response in stream for answer in response.answers]


def spans(server: Any, exporter: Kept) -> list[Any]:
    """Those of queries of streams, in the order in which they ended."""
    server._observing._tracing._provider.force_flush()
    return [span for span in exporter.spans if span.name.endswith("/QueryStream")]


def below(exporter: Kept, span: Any) -> dict[str, Any]:
    own = span.context.span_id
    return {one.name: one for one in exporter.spans if one.parent and one.parent.span_id == own}


def test_each_query_of_a_stream_is_a_span(start: StartServer, kept: Kept) -> None:  # noqa: F811
    """Alone, and searched together with others, each has its steps below, and the caller's span above; answers have no
    explanation that was not asked for."""
    server = start(trace_endpoint="http://unused", trace_share=0.0)
    with connect(server.address) as client:
        fill(client)
        found = answers(client, [[query()], [query(), query(), query(k=2)]])
    assert len(found) == 4
    assert not any(one.answer.HasField("explain") for one in found)
    made = spans(server, kept)
    assert sorted(span.attributes["vecdb.together"] for span in made) == [1, 1, 2, 2]
    assert len({span.context.span_id for span in made}) == 4
    for span in made:
        assert f"{span.context.trace_id:032x}" == TRACE
        assert f"{span.parent.span_id:016x}" == PARENT
        assert span.attributes["db.collection.name"] == "docs"
        steps = below(kept, span)
        assert set(steps) == set(STEPS)
        assert all(span.start_time <= one.start_time <= one.end_time for one in steps.values())


def test_a_query_that_fails_says_so_in_its_span(start: StartServer, kept: Kept) -> None:  # noqa: F811
    """Alone, in a group whose queries are then answered one by one, and with all of its group: one span each."""
    server = start(trace_endpoint="http://unused", trace_share=0.0)
    with connect(server.address) as client:
        fill(client)
        wrong = query()
        wrong.query.vectors.data = np.full(4, np.nan, "<f4").tobytes()
        answers(client, [[query("none")]])
        answers(client, [[wrong, query()]])
    made = spans(server, kept)
    assert [span.attributes.get("error.type") for span in made[:1]] == ["COLLECTION_NOT_FOUND"]
    assert {span.attributes.get("error.type") for span in made[1:]} == {"INVALID_VECTOR", None}
    assert [span.attributes["vecdb.together"] for span in made] == [1, 1, 1]


def test_a_refusal_of_all_is_in_the_span_of_each(
    start: StartServer,
    kept: Kept,  # noqa: F811
) -> None:
    """Where queries that go together exceed a limit of the server that all would, each has a span with the error."""
    server = start(trace_endpoint="http://unused", trace_share=0.0, max_filter_s=1e-6)
    with connect(server.address) as client:
        docs = client.create_collection("docs", dimension=4)
        ids = [str(n) for n in range(3_000)]
        docs.insert(ids, np.ones((3_000, 4)), documents=["a long text " * 20] * 3_000)
        sought = '{"$document":{"$regex":"(x+)+y"}}'
        found = answers(client, [[query(filter=sought), query(filter=sought)]])
    assert all(one.HasField("error") for one in found)
    made = spans(server, kept)
    assert [span.attributes.get("error.type") for span in made] == ["LIMIT_EXCEEDED"] * 2


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_without_a_caller_the_share_decides(
    start: StartServer,
    kept: Kept,  # noqa: F811
    share: float,
) -> None:
    """Queries of our own clients, which send none of their own trace on streams, are traced by `trace_share`."""
    server = start(trace_endpoint="http://unused", trace_share=share)
    with connect(server.address) as client:
        docs = fill(client)
        for _ in range(12):
            docs.query([1, 1, 1, 1], k=3)
    # The first few of a client are calls.
    assert (len(spans(server, kept)) > 5) == bool(share)


def test_a_traced_stream_ends_as_others_do(start: StartServer, kept: Kept) -> None:  # noqa: F811
    """What ends a stream with an error leaves no query of it without its span, and the next one is answered."""
    server = start(trace_endpoint="http://unused", trace_share=1.0)
    with connect(server.address) as client:
        fill(client)
        with pytest.raises(grpc.RpcError):
            answers(client, [[query()], []])
        assert len(answers(client, [[query()]])) == 1
    assert len(spans(server, kept)) == 2
