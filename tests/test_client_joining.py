"""Queries of one message that go as one request, and the answer that is taken apart again."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import pytest

from vecdb_client import answers, errors, joining, reads, streaming, streams, wire
from vecdb_client.v1 import vecdb_pb2 as pb

PLAIN: dict[str, Any] = dict.fromkeys(
    ("ids", "positive", "negative", "vector_name", "k", "where", "max_distance", "target_recall",
     "group_by", "group_size", "mmr_lambda", "mmr_candidates", "min_sequence")
) | {"exact": False, "explain": False, "include": ()}  # fmt: skip


def asked(vector: Any, collection: str = "docs", **given: Any) -> pb.QueryRequest:
    call = reads.query(collection, np.asarray(vector), **{**PLAIN, **given})
    assert call.streams
    request: pb.QueryRequest = call.request
    return request


def vectors_in(request: pb.QueryRequest) -> Any:
    return np.frombuffer(request.vectors.data, "<f4").reshape(request.vectors.count, -1)


def test_what_agrees_goes_together_and_all_go_once() -> None:
    """Each query is in one parcel; those of a parcel agree in all but the vector, and no two parcels could be one."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    sorts = [
        {"k": 3}, {"k": 4}, {"k": 3, "where": {"a": 1}}, {"k": 3, "target_recall": 0.9},
        {"k": 3, "collection": "others"}, {"k": 3, "wide": True}, {},
        {"k": 3, "include": ("document",)}, {"k": 3, "include": ("document", "metadata")},
    ]  # fmt: skip
    chosen = [rng.randrange(len(sorts)) for _ in range(60)]
    requests = []
    for i, sort in enumerate(chosen):
        given = dict(sorts[sort])
        requests.append(asked(np.full(5 if given.pop("wide", False) else 4, i + 1.0), **given))
    parcels = joining.alike(requests)
    assert sorted(position for parcel in parcels for position in parcel) == list(range(60))
    assert len(parcels) == len(set(chosen))
    for parcel in parcels:
        assert len({chosen[position] for position in parcel}) == 1
        joined = pb.QueryRequest()
        joining.join([requests[position] for position in parcel], joined)
        assert vectors_in(joined)[:, 0].tolist() == [position + 1.0 for position in parcel]
        joined.vectors.CopyFrom(requests[parcel[0]].vectors)
        assert joined == requests[parcel[0]]


@pytest.mark.parametrize(
    "given",
    [
        {"vector": np.zeros(4, np.float32)},
        {"vector": np.array([1, np.nan, 0, 0], np.float32)},
        {"vector": np.array([1, -np.inf, np.inf, 0], np.float32)},
        {"vector": np.full(4, 3e38, np.float32)},
        {"vector": np.ones(4, np.float16)},
        {"vector": np.ones(4, np.uint8)},
        {"include": ("vector",)},
        {"include": ("document", "content")},
        {"k": joining.MOST_K + 1},
        {"k": joining.MOST_INCLUDED, "include": ("document",)},
    ],
    ids=[
        "zero",
        "nan",
        "infinite",
        "overflow",
        "float16",
        "uint8",
        "vectors",
        "contents",
        "large k",
        "large k with documents",
    ],
)
def test_what_might_spoil_the_answer_to_others_goes_alone(given: dict[str, Any]) -> None:
    """A vector that the server may refuse, or an answer that may be large, is not put together with others."""
    odd = [asked(**{"vector": np.ones(4), **given}) for _ in range(2)]
    plain = [asked(np.ones(4)) for _ in range(3)]
    parcels = joining.alike([odd[0], *plain, odd[1]])
    assert sorted(parcels) == [[0], [1, 2, 3], [4]]


def answer(hits: list[list[str]]) -> pb.QueryResponse:
    flat = [hit for own in hits for hit in own]
    return pb.QueryResponse(
        counts=[len(own) for own in hits],
        distances=np.arange(len(flat), dtype="<f4").tobytes(),
        hits=pb.RecordBatch(ids=flat),
        sequence=7,
    )


def test_an_answer_is_taken_apart() -> None:
    """Each query has its own ids and distances, as wide as it asked for, and memory of its own."""
    found = joining.outcomes(answer([["a", "b"], [], ["c"]]), 3)
    parts = [one for one in found if isinstance(one, answers.Part)]
    first, none, last = (answers.decode_query_result(part, (), 2) for part in parts)
    assert (first.ids, none.ids, last.ids) == ([["a", "b"]], [[]], [["c"]])
    np.testing.assert_array_equal(first.distances, [[0, 1]])
    np.testing.assert_array_equal(none.distances, [[np.nan, np.nan]])
    np.testing.assert_array_equal(last.distances, [[2, np.nan]])
    assert [parts[0].result(None).distances.shape, parts[2].result(None).distances.shape] == [
        (1, 2),
        (1, 1),
    ]
    assert {one.sequence for one in (first, none, last)} == {7}
    first.distances[0, 0] = 9  # writable, and nobody else's
    assert parts[0].result(2).distances[0, 0] == 0
    assert 0 < sum(part.ByteSize() for part in parts) <= answer([["a", "b"], [], ["c"]]).ByteSize()
    with pytest.raises(errors.Internal, match="2 hits"):
        parts[0].result(1)


def test_many_hits_with_documents_are_shared_among_parcels() -> None:
    """Where parts of records are included, the queries of a parcel have a bounded number of hits together."""
    requests = [asked(np.ones(4), k=300, include=("document",)) for _ in range(8)]
    assert joining.alike(requests) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert joining.alike([asked(np.ones(4), include=("uri",)) for _ in range(64)]) == [
        list(range(64))
    ]


def test_an_answer_with_parts_of_records_is_taken_apart() -> None:
    """Each query has the metadata, documents and URIs of its own hits, as if it had been asked alone."""
    given = {
        "metadata": [b'{"a": 1}', b"", b'{"b": [2]}'],
        "documents": ["x", None, "\u00fc\u00df"],
        "uris": [None, "u", None],
    }
    whole = answer([["a", "b"], [], ["c"]])
    columns = wire.Columns(ids=["a", "b", "c"], **given)
    whole.hits.CopyFrom(wire.encode_columns(columns))
    include = [pb.INCLUDE_DOCUMENT, pb.INCLUDE_METADATA, pb.INCLUDE_URI]
    parts = [one for one in joining.outcomes(whole, 3, include) if isinstance(one, answers.Part)]
    found = [
        answers.decode_query_result(part, ("document", "metadata", "uri"), 2) for part in parts
    ]
    assert [one.metadata for one in found] == [[[{"a": 1}, {}]], [[]], [[{"b": [2]}]]]
    assert [one.documents for one in found] == [[["x", None]], [[]], [["\u00fc\u00df"]]]
    assert [one.uris for one in found] == [[[None, "u"]], [[]], [[None]]]
    assert [one.ids for one in found] == [[["a", "b"]], [[]], [["c"]]]
    # A column that is empty does not travel, and is there.
    bare = answers.taken_apart(answer([["a"], ["b"]]), 2, include)[1].result(1)
    assert (bare.metadata, bare.documents, bare.uris) == ([[{}]], [[None]], [[None]])
    whole.hits.metadata.append(b"{}")
    with pytest.raises(errors.InvalidBatch, match="metadata"):
        answers.taken_apart(whole, 3, include)


def test_an_answer_that_does_not_agree_is_not_believed() -> None:
    """Counts, ids and distances that do not fit each other, or the number of queries, are Internal."""
    good = answer([["a"], ["b"]])
    for spoil in ("counts", "ids", "distances"):
        bad = pb.QueryResponse()
        bad.CopyFrom(good)
        if spoil == "counts":
            bad.counts[0] = 2
        elif spoil == "ids":
            bad.hits.ids.append("c")
        else:
            bad.distances += b"\0\0\0\0"
        with pytest.raises(errors.Internal, match="does not agree"):
            answers.taken_apart(bad, 2)
    with pytest.raises(errors.Internal, match="does not agree"):
        answers.taken_apart(good, 3)


def test_failures_of_all_are_told_to_each_and_others_are_met_alone() -> None:
    """What concerns all alike is an error for each; what one may have brought about sends each as a call."""
    for kind in (errors.CollectionNotFound, errors.ResourceExhausted, errors.DeadlineExceeded):
        found = joining.outcomes(kind("no", retry_after_ms=5), 3)
        assert [type(one) for one in found] == [kind] * 3
        assert len({id(one) for one in found}) == 3
        assert all(one.details == {"retry_after_ms": 5} for one in found)
    for kind in (errors.InvalidVector, errors.LimitExceeded, errors.Internal):
        assert joining.outcomes(kind("no"), 3) == [None] * 3
        assert isinstance(joining.outcomes(kind("no"), 1)[0], kind)


def test_a_stream_that_breaks_behind_a_failure_gives_every_query_back_once() -> None:
    """Of queries that went as one and failed, and of those whose answer never came, each is sent as a call."""
    failure = pb.StreamedError(
        code=3, error=b'{"reason": "INVALID_VECTOR", "message": "no", "details": {}}'
    )
    sent: deque[Any] = deque()

    class Call:
        def __init__(self, messages: Any) -> None:
            self._messages = messages
            self._answers = iter([pb.StreamedAnswer(position=0, error=failure)])

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> Any:
            if not sent:
                sent.append(next(self._messages))
            return pb.QueryStreamResponse(answers=[next(self._answers)])

        def cancel(self) -> None:
            pass

    stream = streams._Stream(Call)
    group = [streams._Asked(asked(np.ones(4), name), None) for name in ("a", "b", "a")]
    owner = streams.QueryStreams(Call)
    owner._threads = 1
    with pytest.raises(EOFError):
        stream.exchange(group)
    assert len(sent[0].queries) == 2
    owner._release(group)
    for one in group:
        assert one.wake.acquire(timeout=5)
        assert one.outcome is None
    assert streaming.parcels(group) == [[group[0], group[2]], [group[1]]]


def test_queries_are_calls_where_no_thread_can_be_started(monkeypatch: Any) -> None:
    """A process at its limit of threads loses no query and no stream: what waits is sent as calls, and streams come back."""

    def refused(*_: Any) -> Any:
        raise RuntimeError("can't start new thread")

    owner = streams.QueryStreams(lambda messages: iter(()))
    owner._queries = streaming.FEW_QUERIES
    with monkeypatch.context() as patched:
        patched.setattr(streams.threading.Thread, "start", refused)
        for _ in range(2 * streaming.MOST_STREAMS):
            assert owner.ask(asked(np.ones(4), "a"), 10.0) is None
        assert (owner._threads, len(owner._waiting)) == (0, 0)
        # A thread that lives takes what waits.
        owner._threads = 1
        with pytest.raises(errors.DeadlineExceeded):
            owner.ask(asked(np.ones(4), "a"), 0.05)
        assert owner._threads == 1
