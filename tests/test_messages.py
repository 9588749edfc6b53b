"""Results, settings and batches as messages: unchanged on the other side, cut where too large."""

from __future__ import annotations

import datetime as dt
import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_columns import QUICK, columns, over_the_wire, texts

from vecdb_client import batches, messages, wire
from vecdb_client.errors import (
    Internal,
    InvalidBatch,
    InvalidId,
    InvalidMetadata,
    InvalidQuery,
    InvalidSetting,
    LimitExceeded,
)
from vecdb_client.types import (
    CheckReport,
    CollectionInfo,
    CollectionStats,
    Content,
    IndexStats,
    QueryResult,
)
from vecdb_client.v1 import vecdb_pb2 as pb

keys = texts.filter(lambda key: key != "$date")


@QUICK
@given(
    st.builds(
        CollectionInfo,
        name=texts,
        dimension=st.integers(1, 65_535),
        metric=st.sampled_from(["cosine", "l2", "ip"]),
        storage=st.sampled_from(["float32", "float16"]),
        index=st.sampled_from(["auto", "exact", "hnsw", "ivf"]),
        target_recall=st.floats(0.5, 1.0),
        schema=st.dictionaries(texts, texts, max_size=3),
        description=texts,
        created_at=st.datetimes(
            min_value=dt.datetime(1970, 1, 1),
            max_value=dt.datetime(2200, 1, 1),
            timezones=st.just(dt.UTC),
        ),
    )
)
def test_collection_info_round_trip(info: CollectionInfo) -> None:
    """The settings of a collection arrive unchanged."""
    assert messages.decode_info(over_the_wire(messages.encode_info(info))) == info


def test_defaults_of_a_collection() -> None:
    """Fields that a caller in another language leaves out take the defaults of the contract."""
    info = messages.decode_info(pb.Collection(name="c", dimension=3))
    assert (info.metric, info.storage, info.index) == ("cosine", "float32", "auto")
    assert info.target_recall == 0.95


def test_unknown_enums_are_refused() -> None:
    """Numbers of a later contract, and names of none, are typed errors."""
    for field in ("metric", "storage", "index"):
        message = pb.Collection(name="c", dimension=3)
        setattr(message, field, 77)
        with pytest.raises(InvalidSetting):
            messages.decode_info(message)
        wrong: dict[str, Any] = {field: "other"}
        info = replace(CollectionInfo("c", 3), **wrong)
        with pytest.raises(InvalidSetting):
            messages.encode_info(info)
    for number in (0, 77):
        with pytest.raises(InvalidQuery):
            messages.decode_includes([number])
    with pytest.raises(InvalidQuery):
        messages.encode_includes(["vectors"])
    assert messages.decode_includes(messages.encode_includes("uri")) == ("uri",)


index_stats = st.builds(
    IndexStats,
    kind=texts,
    device=texts,
    indexed_rows=st.integers(0, 2**63),
    tail_rows=st.integers(0, 2**63),
    dead_rows=st.integers(0, 2**63),
    building=st.booleans(),
    build_progress=st.floats(0, 1),
    memory_bytes=st.integers(0, 2**63),
    file_bytes=st.integers(0, 2**63),
    target_recall=st.floats(0, 1),
    measured_recall=st.floats(0, 1),
    last_error=texts,
)


@QUICK
@given(
    st.builds(
        CollectionStats,
        name=texts,
        sequence=st.integers(0, 2**63),
        count=st.integers(0, 2**63),
        rows=st.integers(0, 2**63),
        disk_bytes=st.integers(0, 2**63),
        map_used_bytes=st.integers(0, 2**63),
        map_limit_bytes=st.integers(0, 2**63),
        fields=st.dictionaries(texts, st.integers(0, 2**63), max_size=3),
        index=index_stats,
    )
)
def test_stats_round_trip(stats: CollectionStats) -> None:
    """Every number of a collection arrives unchanged."""
    assert messages.decode_stats(over_the_wire(messages.encode_stats(stats))) == stats


@QUICK
@given(st.booleans(), st.integers(0, 2**40), st.lists(texts, max_size=3))
def test_check_round_trip(ok: bool, records: int, problems: list[str]) -> None:
    """A report arrives unchanged."""
    report = CheckReport(ok, records, tuple(problems))
    assert messages.decode_check(over_the_wire(messages.encode_check(report))) == report


@QUICK
@given(st.lists(st.integers(0, 4), max_size=5), st.integers(4, 6), st.data())
def test_query_result_round_trip(counts: list[int], k: int, data: st.DataObject) -> None:
    """Answers of uneven length arrive nested as they were, distances padded with NaN to k."""
    include = data.draw(st.sets(st.sampled_from(sorted(messages.INCLUDES))))

    def nested(values: st.SearchStrategy[Any]) -> list[list[Any]]:
        return [data.draw(st.lists(values, min_size=n, max_size=n)) for n in counts]

    distances = np.full((len(counts), k), np.nan, np.float32)
    for i, n in enumerate(counts):
        distances[i, :n] = np.arange(n)
    documents = nested(st.none() | texts)
    entries = nested(st.dictionaries(keys, st.integers(-5, 5), max_size=2))
    contents = nested(st.none() | st.builds(Content, st.binary(max_size=4), texts))
    uris = nested(st.none() | texts)
    vectors = [np.arange(n * 3, dtype=np.float32).reshape(n, 3) for n in counts]
    raw = [[json.dumps(entry).encode() if entry else b"" for entry in row] for row in entries]
    sent = QueryResult(
        ids=nested(texts),
        distances=distances,
        vectors=vectors if "vector" in include else None,
        metadata=raw if "metadata" in include else None,  # type: ignore[arg-type]
        documents=documents if "document" in include else None,
        contents=contents if "content" in include else None,
        uris=uris if "uri" in include else None,
        sequence=7,
    )
    arrived = messages.decode_query_result(
        over_the_wire(messages.encode_query_result(sent)), tuple(include), k
    )
    assert arrived.ids == sent.ids
    assert np.array_equal(arrived.distances, distances, equal_nan=True)
    assert arrived.distances.dtype == np.float32
    assert arrived.metadata == (entries if "metadata" in include else None)
    assert arrived.documents == sent.documents
    assert arrived.contents == sent.contents
    assert arrived.uris == sent.uris
    assert arrived.sequence == 7
    assert (arrived.vectors is None) == ("vector" not in include)
    for got, want in zip(arrived.vectors or [], vectors if arrived.vectors else [], strict=True):
        assert got.dtype == np.float32
        assert got.shape[0] == want.shape[0]
        assert np.array_equal(got, want) or not len(want)


def test_query_result_as_wide_as_its_longest_answer() -> None:
    """Without a k the distances are as wide as the longest answer."""
    message = pb.QueryResponse(counts=[1, 3], distances=b"\0" * 16)
    message.hits.ids.extend("abcd")
    assert messages.decode_query_result(message, (), None).distances.shape == (2, 3)


@pytest.mark.parametrize(
    "message",
    [
        pb.QueryResponse(counts=[2], distances=b"\0" * 8),
        pb.QueryResponse(counts=[0], distances=b"\0" * 3),
        pb.QueryResponse(counts=[0], distances=b"\0" * 4),
    ],
)
def test_query_result_that_disagrees_with_itself(message: pb.QueryResponse) -> None:
    """An answer whose counts, ids and distances do not agree is Internal, not a wrong result."""
    with pytest.raises(Internal):
        messages.decode_query_result(message, (), 5)


def test_empty_pages_have_the_columns_that_were_asked_for() -> None:
    """A page without records still says which columns were included."""
    page = messages.decode_records(pb.RecordBatch(), ("metadata", "vector", "uri"), "", 3)
    assert (page.ids, page.metadata, page.uris, page.documents) == ([], [], [], None)
    assert page.vectors is not None
    assert len(page.vectors) == 0
    assert page.cursor is None


# --- cutting a batch into messages


@QUICK
@given(columns(), st.integers(1, 5))
def test_cutting_loses_nothing(given_columns: wire.Columns, rows: int) -> None:
    """The parts of a batch follow each other, cover it, and keep to the rows asked for."""
    parts = batches.cut(given_columns, rows, 64 * 1024 * 1024)
    assert parts[0][0] == 0
    assert parts[-1][1] == len(given_columns.ids)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))
    assert all(0 < stop - start <= rows for start, stop in parts)


@QUICK
@given(columns())
def test_estimated_sizes_are_upper_bounds(given_columns: wire.Columns) -> None:
    """What a record is said to take at most is never less than what it takes."""
    estimated = int(batches.row_bytes(given_columns).sum())
    assert wire.encode_columns(given_columns).ByteSize() <= estimated + 64


def test_parts_keep_under_the_byte_limit() -> None:
    """Large records make smaller parts; one that fits no message is LimitExceeded with both sizes."""
    n = 50
    ids = [str(i) for i in range(n)]
    large = wire.Columns(ids, np.zeros((n, 4), np.float32), documents=["x" * 100_000] * n)
    parts = batches.cut(large, None, 1024 * 1024)
    assert len(parts) > 4
    for start, stop in parts:
        assert wire.encode_columns(large, start, stop).ByteSize() <= 1024 * 1024
    with pytest.raises(LimitExceeded) as caught:
        batches.cut(large, None, 64 * 1024)
    assert caught.value.details["limit_bytes"] == 64 * 1024
    assert int(str(caught.value.details["given_bytes"])) > 100_000


@pytest.mark.parametrize(
    ("batch", "error"),
    [
        ({"ids": ["a"], "vectors": [[1]], "other": 3}, InvalidBatch),
        ((["a"],), InvalidBatch),
        (3, InvalidBatch),
        ((["a", "b"], [[1.0]]), InvalidBatch),
        (([], []), InvalidBatch),
        (("abc", [[1.0]]), InvalidBatch),
        (([1], [[1.0]]), InvalidId),
        ((["\ud800"], [[1.0]]), InvalidId),
        ((["a"], [[1.0]], [{}, {}]), InvalidBatch),
        ((["a"], [[1.0]], {"k": 1}), InvalidBatch),
        ((["a"], [[1.0]], None, ["x", "y"]), InvalidBatch),
        ((["a"], [[1.0]], None, "x"), InvalidBatch),
        ((["a"], [[1.0]], None, [3]), InvalidMetadata),
    ],
)
def test_batches_that_are_refused_before_sending(batch: Any, error: type[Exception]) -> None:
    """A batch whose columns do not fit together is a typed error on the client already."""
    with pytest.raises(error):
        batches.of_any(batch)
