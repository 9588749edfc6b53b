"""What a client makes of its arguments: batches cut into messages, queries with all they ask for."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_columns import QUICK, columns

from vecdb_client import batches, calls, reads, wire
from vecdb_client.errors import (
    InvalidBatch,
    InvalidId,
    InvalidMetadata,
    InvalidName,
    InvalidQuery,
    InvalidSetting,
    InvalidVector,
    LimitExceeded,
    VecdbError,
)
from vecdb_client.types import Records, VectorSettings
from vecdb_client.v1 import vecdb_pb2 as pb


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
    fields = len(given_columns.named_vectors or ())
    assert wire.encode_columns(given_columns).ByteSize() <= estimated + 64 + 192 * fields


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
        ({"ids": ["a"], "vectors": [[1]], "named_vectors": [[1]]}, InvalidBatch),
        ({"ids": ["a"], "vectors": [[1]], "named_vectors": {"": [[1]]}}, InvalidBatch),
        ({"ids": ["a"], "vectors": [[1]], "named_vectors": {3: [[1]]}}, InvalidBatch),
        ({"ids": ["a"], "vectors": [[1]], "named_vectors": {"t": [[1], [2]]}}, InvalidBatch),
        ({"ids": ["a"], "vectors": [[1]], "named_vectors": {"t": [[1], None]}}, InvalidBatch),
        ({"ids": ["a"], "vectors": [[1]], "named_vectors": {"t": [["x"]]}}, InvalidVector),
    ],
)
def test_batches_that_are_refused_before_sending(batch: Any, error: type[Exception]) -> None:
    """A batch whose columns do not fit together is a typed error on the client already."""
    with pytest.raises(error):
        batches.of_any(batch)


def test_named_vectors_in_each_form_of_a_batch() -> None:
    """Arrays, lists with None and Records of a scan all become the rows that are there."""
    rows = [[1.0, 2.0], None, [3.0, 4.0]]
    ids, own = ["a", "b", "c"], np.ones((3, 2))
    page = Records(
        ids,
        own,
        named_vectors={"t": np.array([[1, 2], [np.nan, np.nan], [3, 4]], np.float32)},
        named_present={"t": np.array([True, False, True])},
    )
    forms: list[Any] = [
        {"ids": ids, "vectors": own, "named_vectors": {"t": rows}},
        (ids, own, None, None, None, None, {"t": rows}),
        page,
    ]
    for form in forms:
        named = (batches.of_any(form).named_vectors or {})["t"]
        assert named.rows.tolist() == [[1.0, 2.0], [3.0, 4.0]]
        assert named.present is not None
        assert named.present.tolist() == [True, False, True]
    whole = batches.to_columns(ids, own, None, None, None, None, {"t": own, "none": None})
    assert set(whole.named_vectors or ()) == {"t"}
    assert (whole.named_vectors or {})["t"].present is None
    nobody = batches.to_columns(ids, own, None, None, None, None, {"t": [None, None, None]})
    (message,) = wire.encode_columns(nobody, 0, 3).named_vectors
    assert (message.vectors.count, message.present) == (0, b"\0")


# --- queries


def query(vectors: Any = None, **given: Any) -> pb.QueryRequest:
    """The request of a query that leaves out all but what is given."""
    defaults = dict.fromkeys(
        ("ids", "positive", "negative", "vector_name", "k", "where", "max_distance",
         "target_recall", "group_by", "group_size", "mmr_lambda", "mmr_candidates", "min_sequence")
    )  # fmt: skip
    asked = {**defaults, "exact": False, "explain": False, "include": (), **given}
    request: pb.QueryRequest = reads.query("docs", vectors, **asked).request
    return request


def test_a_plain_query_carries_nothing_else() -> None:
    """What was not asked for is not sent."""
    request = query([[1.0, 2.0]], k=3)
    assert {field.name for field, _ in request.ListFields()} == {"collection", "vectors", "k"}


def test_everything_that_a_query_can_ask_for() -> None:
    """Examples travel as ids and vectors, the rest under its name."""
    request = query(
        positive=["a", [1.0, 2.0], "b", np.array([3, 4], np.float32)],
        negative=np.ones((2, 2), np.int8),
        vector_name="title",
        mmr_lambda=0,
        mmr_candidates=70,
        group_by="pos.kind",
        group_size=3,
        explain=True,
    )
    assert list(request.positive.ids) == ["a", "b"]
    assert wire.decode_vectors(request.positive.vectors).tolist() == [[1, 2], [3, 4]]
    assert not request.negative.ids
    assert wire.decode_vectors(request.negative.vectors).dtype == np.int8
    assert request.HasField("mmr_lambda")
    assert (request.mmr_lambda, request.mmr_candidates) == (0, 70)
    assert (request.vector_name, request.group_by, request.group_size) == ("title", "pos.kind", 3)
    assert request.explain
    assert query(positive=[]).HasField("positive")


@pytest.mark.parametrize(
    "given",
    [
        {"positive": "a"},
        {"positive": 3},
        {"positive": {"a": 1}},
        {"vector_name": ""},
        {"group_by": ""},
        {"group_by": 3},
        {"group_size": 0},
        {"group_size": 101},
        {"mmr_candidates": 0},
        {"mmr_candidates": 10_001},
        {"mmr_lambda": "much"},
        {"explain": 1},
    ],
    ids=repr,
)
def test_queries_that_are_refused_before_sending(given: dict[str, Any]) -> None:
    """What the contract could not carry, or would read as the default, is InvalidQuery at once."""
    with pytest.raises(InvalidQuery):
        query(**given)


def test_examples_that_are_no_vectors() -> None:
    """Ragged examples are InvalidVector."""
    with pytest.raises(InvalidVector):
        query(positive=[[1.0, 2.0], [1.0]])


# --- settings of vector fields


def created(vectors: Any) -> pb.Collection:
    call = calls.create_collection(
        "docs", 3, "cosine", "float32", "auto", 0.95, None, "", "auto", vectors, False, "auto"
    )
    collection: pb.Collection = call.request.collection
    return collection


def test_forms_of_vector_fields() -> None:
    """Settings of a field are VectorSettings or a mapping; what is left out has its default."""
    made = created({"b": {"dimension": 2, "metric": "l2"}, "a": VectorSettings(5)})
    assert [(field.name, field.dimension) for field in made.vectors] == [("b", 2), ("a", 5)]
    assert made.vectors[0].metric == pb.METRIC_L2
    assert made.vectors[1].metric == pb.METRIC_COSINE
    assert made.vectors[1].target_recall == 0.95


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ([("a", 3)], InvalidSetting),
        ({"a": 3}, InvalidSetting),
        ({"a": {}}, InvalidSetting),
        ({"a": {"dimension": 3, "colour": 1}}, InvalidSetting),
        ({"a": {"dimension": 0}}, InvalidSetting),
        ({"a": {"dimension": 3, "metric": "other"}}, InvalidSetting),
        ({"a": {"dimension": 3, "target_recall": 2}}, InvalidSetting),
        ({"": {"dimension": 3}}, InvalidName),
        ({3: {"dimension": 3}}, InvalidName),
    ],
    ids=repr,
)
def test_vector_fields_that_are_none(given: Any, error: type[VecdbError]) -> None:
    """Settings that a field cannot have are typed errors before anything is sent."""
    with pytest.raises(error):
        created(given)
