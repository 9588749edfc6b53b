"""What travels between client and server comes out as it went in, or is refused with a typed error."""

from __future__ import annotations

import array
import datetime as dt
import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_columns import QUICK, columns, matrices, over_the_wire, texts

from vecdb_client import json_text, wire
from vecdb_client.errors import (
    InvalidBatch,
    InvalidFilter,
    InvalidId,
    InvalidMetadata,
    InvalidVector,
)
from vecdb_client.types import (
    Content,
)
from vecdb_client.v1 import vecdb_pb2 as pb

# --- vectors


@QUICK
@given(matrices)
def test_vectors_round_trip(matrix: Any) -> None:
    """Every matrix of floats or of small integers, also empty and not finite, arrives bit by bit."""
    arrived = wire.decode_vectors(over_the_wire(wire.encode_vectors(matrix)))
    assert arrived.dtype == matrix.dtype
    assert arrived.shape == matrix.shape
    assert arrived.tobytes() == matrix.tobytes()


def test_vectors_are_little_endian_rows() -> None:
    """The bytes are those that the contract names, whatever the order of the array in memory."""
    rows = [[1.5, -2.0], [3.25, 4.0]]
    expected = struct.pack("<4f", 1.5, -2.0, 3.25, 4.0)
    for matrix in (
        np.array(rows, ">f4"),
        np.asfortranarray(np.array(rows, "<f4")),
        np.array(rows, "<f8"),
        np.repeat(np.array(rows, "<f4"), 2, axis=0)[::2],
    ):
        assert wire.encode_vectors(wire.as_matrix(matrix)).data == expected
    half = wire.encode_vectors(wire.as_matrix(np.array(rows, ">f2")))
    assert half.data == struct.pack("<4e", 1.5, -2.0, 3.25, 4.0)
    assert half.element_type == pb.ELEMENT_TYPE_FLOAT16


class Tensor:
    """Something that is an array only by `__array__`."""

    def __init__(self, values: Any) -> None:
        self._values = np.asarray(values, np.float32)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self._values.astype(dtype or np.float32)


class OnDevice:
    """A tensor that refuses to become an array, as one on a GPU does."""

    def __repr__(self) -> str:
        """The name of a test must be the same in each process."""
        return "OnDevice()"

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError("can't convert device tensor to numpy")


@pytest.mark.parametrize(
    "given",
    [
        [[1, 2], [3, 4]],
        ((1.0, 2.0), (3.0, 4.0)),
        np.array([[1, 2], [3, 4]], np.int64),
        np.array([[1, 2], [3, 4]], np.int16),
        [np.array([1.0, 2.0]), np.array([3.0, 4.0])],
        [array.array("f", [1, 2]), array.array("f", [3, 4])],
        np.array([[1, 2], [3, 4]], np.float32).data,
        Tensor([[1, 2], [3, 4]]),
        [Tensor([1, 2]), Tensor([3, 4])],
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_counts_as_vectors(given: Any) -> None:
    """Numpy, lists, `__array__` and the buffer protocol all become the same float32 matrix."""
    matrix = wire.as_matrix(given)
    assert matrix.dtype == np.dtype("<f4")
    assert matrix.tolist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_small_integers_stay_what_they_are(dtype: Any) -> None:
    """int8 and uint8 travel in one byte a number, from arrays of any layout."""
    matrix = wire.as_matrix(np.asfortranarray(np.array([[1, 2], [3, 4]], dtype)))
    assert matrix.dtype == dtype
    message = wire.encode_vectors(matrix)
    assert message.data == b"\1\2\3\4"
    assert message.dimension == 2


def test_one_vector_is_one_row() -> None:
    """A vector of shape (d,) becomes a matrix of one row."""
    assert wire.as_matrix([1, 2, 3]).shape == (1, 3)
    assert wire.as_matrix(array.array("d", [1, 2])).shape == (1, 2)


@pytest.mark.parametrize(
    "given",
    [
        [[1, 2], [3]],
        [[1j, 2]],
        [["a", "b"]],
        [[None, 1.0]],
        np.array([[OnDevice]]),
        np.zeros((2, 2, 2)),
        np.float32(1),
        [[True, False]],
        [[1e300, 0.0]],
        [[0.0, -3.5e38]],
        b"abcd",
        OnDevice(),
        None,
    ],
    ids=repr,
)
def test_what_is_refused_as_vectors(given: Any) -> None:
    """Ragged rows, wrong types, wrong depths and numbers beyond float32 are InvalidVector."""
    with pytest.raises(InvalidVector):
        wire.as_matrix(given)


def test_a_number_beyond_float32_is_named_with_its_record() -> None:
    """The refusal says which record, dimension and number, in plain digits."""
    given = np.array([[1, 2], [3, 1e300]])
    with pytest.raises(InvalidVector) as caught:
        wire.as_matrix(given, ["fine", "vast"])
    assert "record 'vast' (position 1 of the batch)" in str(caught.value)
    assert "too large for float32, 1e+300 at dimension 1;" in str(caught.value)
    assert caught.value.details == {"position": 1}
    with pytest.raises(InvalidVector, match=r"^vector 1 has .* 1e\+300 at dimension 1"):
        wire.as_matrix(given)


def test_infinity_is_left_to_the_engine() -> None:
    """NaN and infinities pass the wire: only the engine judges them."""
    matrix = wire.as_matrix(np.array([[math.inf, math.nan]]))
    assert math.isinf(matrix[0, 0])
    assert math.isnan(matrix[0, 1])


@pytest.mark.parametrize(
    "message",
    [
        pb.Vectors(data=b"\0" * 8, count=1, dimension=3),
        pb.Vectors(data=b"\0" * 16, count=1, dimension=3),
        pb.Vectors(data=b"", count=2**32 - 1, dimension=2**32 - 1),
        pb.Vectors(data=b"", count=2**32 - 1, dimension=0),
        pb.Vectors(data=b"\0" * 4, count=1, dimension=1, element_type=9),  # type: ignore[arg-type]
        pb.Vectors(data=b"\0" * 4, count=1, dimension=1, element_type=pb.ELEMENT_TYPE_FLOAT16),
        pb.Vectors(data=b"\0" * 4, count=1, dimension=1, element_type=pb.ELEMENT_TYPE_UINT8),
        pb.Vectors(data=b"\0", count=1, dimension=8, element_type=pb.ELEMENT_TYPE_BINARY),
    ],
)
def test_vectors_whose_length_is_wrong(message: pb.Vectors) -> None:
    """A length that does not agree with count, dimension and type is InvalidVector, at no cost."""
    with pytest.raises(InvalidVector):
        wire.decode_vectors(message)


# --- columns


@QUICK
@given(st.lists(st.none() | texts, max_size=20))
def test_texts_round_trip(values: list[str | None]) -> None:
    """A column of texts keeps which values are absent; an empty text is not an absent one."""
    message = over_the_wire(wire.encode_texts(values))
    assert wire.decode_texts(message, len(values), "documents") == values


@QUICK
@given(st.lists(st.none() | st.tuples(st.binary(max_size=9), texts), max_size=20))
def test_contents_round_trip(values: list[tuple[bytes, str] | None]) -> None:
    """A column of contents keeps bytes, media types and which are absent."""
    message = over_the_wire(wire.encode_contents(values))
    assert wire.decode_contents(message, len(values)) == values


@QUICK
@given(columns(), st.data())
def test_columns_round_trip(given_columns: wire.Columns, data: st.DataObject) -> None:
    """Any part of a batch, with any columns missing, arrives as that part."""
    n = len(given_columns.ids)
    start = data.draw(st.integers(0, n - 1))
    stop = data.draw(st.integers(start + 1, n))
    arrived = wire.decode_columns(over_the_wire(wire.encode_columns(given_columns, start, stop)))
    for name in ("ids", "metadata", "documents", "contents", "uris"):
        column = getattr(given_columns, name)
        assert getattr(arrived, name) == (None if column is None else column[start:stop])
    if given_columns.vectors is None:
        assert arrived.vectors is None
    else:
        assert np.array_equal(arrived.vectors, given_columns.vectors[start:stop])  # type: ignore[arg-type]
    for name, sent in (given_columns.named_vectors or {}).items():
        got = (arrived.named_vectors or {})[name]
        assert np.array_equal(spread(got, stop - start), spread(sent, n)[start:stop])
        assert got.rows.dtype == sent.rows.dtype


def spread(named: wire.Named, n: int) -> Any:
    """A row a record, -1 where it has no such vector."""
    whole = np.full((n, named.rows.shape[1]), -1.0)
    whole[slice(None) if named.present is None else named.present] = named.rows
    return whole


def batch_of_two() -> pb.RecordBatch:
    whole = wire.Columns(
        ["a", "b"],
        np.zeros((2, 2), np.float32),
        [b"{}", b"{}"],
        ["x", None],
        [(b"1", "t"), None],
        [None, "u"],
        {
            "title": wire.Named(np.zeros((2, 3), np.float32)),
            "body": wire.Named(np.zeros((1, 3), np.float32), np.array([False, True])),
        },
    )
    return wire.encode_columns(whole)


@pytest.mark.parametrize(
    ("column", "spoil"),
    [
        ("vectors", lambda b: b.vectors.CopyFrom(wire.encode_vectors(np.zeros((3, 2))))),
        ("metadata", lambda b: b.metadata.append(b"{}")),
        ("documents", lambda b: b.documents.values.append("z")),
        ("contents", lambda b: b.contents.media_types.pop()),
        ("contents", lambda b: b.contents.values.pop()),
        ("uris", lambda b: b.uris.values.pop()),
        ("documents", lambda b: setattr(b.documents, "present", b"\1\1")),
        ("contents", lambda b: setattr(b.contents, "present", b"\1\1")),
        ("named_vectors.title", lambda b: setattr(b.named_vectors[0], "present", b"\1")),
        (
            "named_vectors.title",
            lambda b: b.named_vectors[0].vectors.CopyFrom(wire.encode_vectors(np.zeros((1, 3)))),
        ),
        ("named_vectors.body", lambda b: setattr(b.named_vectors[1], "present", b"\3")),
        ("named_vectors.body", lambda b: setattr(b.named_vectors[1], "present", b"\2\0")),
        ("named_vectors.body", lambda b: setattr(b.named_vectors[1], "present", b"")),
    ],
)
def test_columns_of_unequal_length(column: str, spoil: Any) -> None:
    """A column that has not one entry for each id is InvalidBatch that names the column."""
    batch = batch_of_two()
    spoil(batch)
    with pytest.raises(InvalidBatch) as caught:
        wire.decode_columns(batch)
    assert caught.value.details["column"] == column


def test_named_vectors_that_are_none() -> None:
    """A named vector without numbers is InvalidVector; a name given twice is InvalidBatch."""
    batch = batch_of_two()
    batch.named_vectors.add(name="empty")
    with pytest.raises(InvalidVector):
        wire.decode_columns(batch)
    batch = batch_of_two()
    batch.named_vectors.append(batch.named_vectors[0])
    with pytest.raises(InvalidBatch, match="more than once"):
        wire.decode_columns(batch)


def test_claims_of_absent_vectors_cost_nothing() -> None:
    """However wide a named vector says it is, rows that are not there take no memory."""
    batch = pb.RecordBatch(ids=map(str, range(20_000)))
    wide = pb.Vectors(count=0, dimension=2**32 - 1)
    batch.named_vectors.add(name="title", vectors=wide, present=b"\0" * 2_500)
    (named,) = (wire.decode_columns(batch).named_vectors or {}).values()
    assert named.rows.nbytes == 0


def test_texts_that_are_no_unicode() -> None:
    """A lone surrogate in an id or a document is a typed error before anything is sent."""
    with pytest.raises(InvalidId):
        wire.encode_columns(wire.Columns(["\ud800"]))
    with pytest.raises(InvalidMetadata):
        wire.encode_columns(wire.Columns(["a"], documents=["\ud800"]))


def test_forms_of_a_content() -> None:
    """A content may be Content, a pair, or any bytes; anything else is InvalidMetadata."""
    plain = (b"x", "application/octet-stream")
    assert wire.as_content(b"x") == plain
    assert wire.as_content(bytearray(b"x")) == plain
    assert wire.as_content(memoryview(b"x")) == plain
    assert wire.as_content((b"x", "image/png")) == (b"x", "image/png")
    assert wire.as_content(Content(b"x", "image/png")) == (b"x", "image/png")
    assert wire.as_content(None) is None
    for wrong in ("text", 3, (b"x",), (b"x", 3), np.zeros(3)):
        with pytest.raises(InvalidMetadata):
            wire.as_content(wrong)


# --- metadata and filters

moments = st.datetimes(
    min_value=dt.datetime(2, 1, 1),
    max_value=dt.datetime(9998, 1, 1),
    # Fixed offsets: moments that a clock shows twice never equal themselves in another zone.
    timezones=st.sampled_from([dt.UTC, dt.timezone(dt.timedelta(hours=-11, minutes=-30))]),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
    moments,
)
keys = texts.filter(lambda key: key != "$date")
objects = st.dictionaries(
    keys,
    st.recursive(
        scalars | st.lists(scalars, max_size=3),
        lambda inner: st.dictionaries(keys, inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


@QUICK
@given(st.lists(objects, max_size=4))
def test_metadata_round_trip(entries: list[dict[str, Any]]) -> None:
    """Scalars keep type and value, moments become the same moment in UTC, none becomes {}."""
    encoded = json_text.encode_metadata(entries, ["x"] * len(entries))
    decoded = json_text.decode_metadata(encoded)
    assert decoded == entries
    assert repr(decoded).count("datetime.datetime(") == repr(entries).count("datetime.datetime(")


@QUICK
@given(st.lists(st.dictionaries(st.text("},{a", max_size=3), scalars, min_size=1), max_size=5))
def test_flat_metadata_is_written_as_record_by_record(entries: list[dict[str, Any]]) -> None:
    """A batch of flat records gives the same bytes as each alone, whatever its texts look like."""
    together = json_text.encode_metadata(entries, ["x"] * len(entries))
    assert together == [json_text.encode_metadata([entry], ["x"])[0] for entry in entries]
    nested = json_text.encode_metadata([*entries, {"a": [{"b": 1}, {"c": 2}]}], [])
    assert nested == [*together, b'{"a":[{"b":1},{"c":2}]}']


def test_metadata_of_numpy_and_tuples() -> None:
    """numpy scalars become Python scalars, tuples lists, other mappings objects; bytes pass."""
    entry = {"a": np.int64(3), "b": np.float32(0.5), "c": np.bool_(True), "d": (1, np.str_("x"))}
    raw = b'{"as": "given"}'
    encoded = json_text.encode_metadata([entry, None, {}, raw], list("abcd"))
    assert json.loads(encoded[0]) == {"a": 3, "b": 0.5, "c": True, "d": [1, "x"]}
    assert encoded[1:] == [b"", b"", raw]


loop: dict[str, Any] = {}
loop["self"] = loop


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        ({"a": {"b": [1, math.nan]}}, "a.b[1]"),
        ({"a": math.inf}, "a"),
        ({"a": dt.datetime(2026, 1, 1)}, "a"),
        ({"a": b"bytes"}, "a"),
        ({"a": {1, 2}}, "a"),
        ({"a": {1: "x"}}, "a"),
        ({1: "x"}, ""),
        ({"a": "\ud800"}, "a"),
        ({"a": np.datetime64("2026-01-01")}, "a"),
    ],
)
def test_metadata_that_json_cannot_carry(entry: Any, path: str) -> None:
    """What JSON would lose or change is InvalidMetadata that names record and path."""
    with pytest.raises(InvalidMetadata) as caught:
        json_text.encode_metadata([{}, entry], ["first", "second"])
    assert "second" in caught.value.message
    assert caught.value.details["path"] == path


@pytest.mark.parametrize("entry", [["a"], "text", 3, loop], ids=["list", "text", "number", "loop"])
def test_metadata_that_is_no_object(entry: Any) -> None:
    """Metadata that is no mapping, or holds itself, is InvalidMetadata."""
    with pytest.raises(InvalidMetadata):
        json_text.encode_metadata([entry], ["a"])


def test_filters_as_text() -> None:
    """A filter becomes JSON text with moments; a text passes as it is; None is no filter."""
    when = dt.datetime(2026, 1, 31, 13, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    text = json_text.encode_filter({"t": {"$gte": when}, "tags": {"$in": ("a", None)}})
    assert json.loads(text) == {
        "t": {"$gte": {"$date": "2026-01-31T12:00:00Z"}},
        "tags": {"$in": ["a", None]},
    }
    assert json_text.encode_filter('{"a" : 1}') == '{"a" : 1}'
    assert json_text.encode_filter(None) == ""
    assert json_text.encode_filter({}) == "{}"


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"a": {"$in": [1, 2, object()]}}, "$.a.$in[2]"),
        ({"a": math.nan}, "$.a"),
        ({1: 2}, "$"),
        ([], "$"),
        ("", "$"),
        ("  ", "$"),
        ('{"a": "\ud800"}', "$"),
    ],
)
def test_filters_that_are_none(given: Any, path: str) -> None:
    """What cannot be a filter is InvalidFilter with a path; an empty text never means everything."""
    with pytest.raises(InvalidFilter) as caught:
        json_text.encode_filter(given)
    assert caught.value.details["path"] == path
