"""Metadata: what passes, in which form it comes back, merge patches and schemas."""

from __future__ import annotations

import datetime as dt
import enum
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecdb import metadata
from vecdb.errors import Corrupted, InvalidMetadata, InvalidSetting
from vecdb.types import MAX_METADATA_BYTES

NOON = dt.datetime(2024, 1, 31, 12, tzinfo=dt.UTC)
PLUS_TWO = dt.timezone(dt.timedelta(hours=2))

texts = st.text(max_size=8)
keys = st.text(alphabet="abä.$ ", min_size=1, max_size=4).filter(
    lambda key: key[0] != "$" and key != "id"
)
scalars = (
    texts
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.none()
    | st.datetimes(
        min_value=dt.datetime(2, 1, 1), max_value=dt.datetime(9998, 1, 1),
        timezones=st.sampled_from([dt.UTC, PLUS_TWO]),
    )
)  # fmt: skip
values = st.recursive(
    st.dictionaries(keys, scalars | st.lists(scalars, max_size=3), max_size=4),
    lambda inner: st.dictionaries(keys, scalars | inner, max_size=3),
    max_leaves=8,
)


def same(left: Any, right: Any) -> bool:
    """Equal in value and in type all the way down: 1, 1.0 and True differ, and so do 0.0 and -0.0."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return repr(left) == repr(right) if isinstance(left, float) else bool(left == right)


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"leaf": 1}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


@settings(max_examples=150, deadline=None)
@given(values)
def test_round_trip(value: dict[str, Any]) -> None:
    """Whatever passes comes back from its bytes with the same values and types, in the same order."""
    paths = [path for path, _ in metadata.flatten(value)]
    if len(set(paths)) < len(paths):
        with pytest.raises(InvalidMetadata, match="twice"):
            metadata.encode(value, "record 'r'")
        return
    raw, plain = metadata.encode(value, "record 'r'")
    assert same(metadata.decode(raw), plain)
    assert same(metadata.decode(memoryview(raw)), plain)
    assert plain == value
    assert metadata.encode(raw, "record 'r'") == (raw, plain)
    assert same(metadata.check(value, "record 'r'"), plain)


@pytest.mark.parametrize("empty", [None, {}, b"", b"{}", b" { } "])
def test_empty_metadata_takes_no_bytes(empty: Any) -> None:
    """No metadata and an empty mapping are the same thing."""
    assert metadata.encode(empty, "record 'r'") == (b"", {})
    assert metadata.decode(b"") == {}
    assert metadata.check(empty, "record 'r'") == {}


def test_stored_form() -> None:
    """Stored is compact JSON, with a datetime as `$date` in UTC to the microsecond."""
    local = dt.datetime(2024, 1, 31, 14, 0, 0, 250_000, tzinfo=PLUS_TWO)
    raw, plain = metadata.encode({"when": local, "n": 1, "x": 1.0, "all": (1, None)}, "r")
    assert raw == b'{"when":{"$date":"2024-01-31T12:00:00.250000Z"},"n":1,"x":1.0,"all":[1,null]}'
    assert plain["when"] == local
    assert plain["when"].tzinfo is dt.UTC
    assert plain["all"] == [1, None]


def test_text_that_looks_like_a_date_key_stays_text() -> None:
    """The bytes of `$date` inside a text do not turn it into a datetime."""
    value = {"a": '{"$date": "2024-01-31T12:00:00Z"}', "b": ["$date"]}
    assert metadata.decode(metadata.encode(value, "r")[0]) == value


def test_scalars_of_other_libraries_become_plain() -> None:
    """numpy scalars and subclasses of the plain types are stored as the plain type."""

    class Colour(str, enum.Enum):  # noqa: UP042 - str() of it is not its value, unlike StrEnum
        RED = "red"

    class Stamp(dt.datetime):
        pass

    stamp = Stamp(2024, 1, 31, 12, tzinfo=dt.UTC)
    given_ = {
        "i": np.int32(7), "u": np.uint64(8), "f": np.float32(0.5), "d": np.float64(2.0),
        "b": np.bool_(True), "s": np.str_("text"), "e": Colour.RED, "t": stamp, np.str_("k"): 1,
        "l": (np.int64(1), np.float16(1.5)),
    }  # fmt: skip
    plain = metadata.encode(given_, "r")[1]
    expected = {"i": 7, "u": 8, "f": 0.5, "d": 2.0, "b": True, "s": "text", "e": "red", "t": NOON,
                "k": 1, "l": [1, 1.5]}  # fmt: skip
    assert same(plain, expected)
    assert [type(key) for key in plain] == [str] * len(plain)


def test_the_dict_is_the_callers_own() -> None:
    """What `encode` gives back does not change with the value it was given."""
    value: dict[str, Any] = {"a": 1}
    deep: dict[str, Any] = {"a": [1], "b": {"c": 1}}
    plain, plain_deep = metadata.encode(value, "r")[1], metadata.encode(deep, "r")[1]
    value["a"] = 2
    deep["a"].append(2)
    deep["b"]["c"] = 2
    assert plain == {"a": 1}
    assert plain_deep == {"a": [1], "b": {"c": 1}}


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": float("nan")}, "a"),
        ({"a": float("-inf")}, "a"),
        ({"a": 2**63}, "a"),
        ({"a": -(2**63) - 1}, "a"),
        ({"a": 10**5000}, "a"),
        ({"a": np.uint64(2**63)}, "a"),
        ({"a": b"bytes"}, "a"),
        ({"a": {1, 2}}, "a"),
        ({"a": object()}, "a"),
        ({"a": np.zeros(2)}, "a"),
        ({"a": dt.datetime(2024, 1, 1)}, "a"),
        ({"a": dt.date(2024, 1, 1)}, "a"),
        ({"a": np.datetime64("2024-01-01")}, "a"),
        ({"a": dt.datetime(1, 1, 1, tzinfo=PLUS_TWO)}, "a"),
        ({"a": "\ud800"}, "a"),
        ({"a": {"$date": "yesterday"}}, "a"),
        ({"a": {"$date": "2024-01-31T12:00:00"}}, "a"),
        ({"a": {"$date": 5}}, "a"),
        ({"a": {"$date": 10**5000}}, "a"),
        ({"a": {"$date": "2024-01-31T12:00:00Z", "b": 1}}, "a."),
        ({"a": {"b": [1, float("inf")]}}, "a.b[1]"),
        ({"a": [[1]]}, "a[0]"),
        ({"a": [{"b": 1}]}, "a[0]"),
        ({"a": {"b": {"c": 1j}}}, "a.b.c"),
        ({"": 1}, ""),
        ({"a": {"": 1}}, "a."),
        ({"$a": 1}, ""),
        ({"a": {"$b": 1}}, "a."),
        ({"a\0": 1}, ""),
        ({"\ud800": 1}, ""),
        ({"$\ud800": 1}, ""),
        ({1: 1}, ""),
        ({"id": 1}, "id"),
        ({"id": {"x": 1}}, "id"),
        ({"a": {"b": 1}, "a.b": 2}, "a.b"),
        ({"a.b": {"c": None}, "a": {"b.c": None}}, "a.b.c"),
        ({"a" * 1025: 1}, ""),
        (nested(17), ".".join(["a"] * 16)),
        ({"a": "x" * MAX_METADATA_BYTES}, ""),
        ([1], ""),
        ("text", ""),
        (b"[1]", ""),
        (b"{", ""),
        (b'{"a": NaN}', ""),
        (b'{"a": 1e400}', ""),
        (b'{"a": 9223372036854775808}', "a"),
        (b'{"a": "\xff"}', ""),
        (b'{"a": "\\ud800"}', ""),
        (b'{"a":' * 3000, ""),
        (b'{"a": [{}]}', "a[0]"),
        (b" " * (MAX_METADATA_BYTES + 1), ""),
    ],
)
def test_refusals_name_record_and_path(value: Any, path: str) -> None:
    """What metadata cannot hold is refused, and the error names the record and the path."""
    with pytest.raises(InvalidMetadata) as caught:
        metadata.encode(value, "record 'r' (row 3 of the batch)")
    assert "record 'r' (row 3 of the batch)" in str(caught.value)
    assert caught.value.details["path"] == path
    json.dumps([str(caught.value), dict(caught.value.details)], ensure_ascii=False).encode()


def test_depth_limit_is_the_last_that_passes() -> None:
    """Sixteen mappings inside each other are allowed."""
    assert metadata.encode(nested(16), "r")[1] == nested(16)


@pytest.mark.parametrize("raw", [b"{", b"[1]", b'{"a":{"$date":"x"}}', b"\xff"])
def test_damaged_bytes_are_told_apart(raw: bytes) -> None:
    """Stored bytes that `encode` cannot have written raise Corrupted."""
    with pytest.raises(Corrupted):
        metadata.decode(raw)


@pytest.mark.parametrize(
    ("base", "patch", "result"),
    [
        # RFC 7396, appendix A, where both sides are objects.
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": ["b"]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        # A dotted key is the same path as nesting.
        ({"a": {"b": 1, "c": 2}}, {"a.b": None}, {"a": {"c": 2}}),
        ({"a": {"b": 1, "c": 2}}, {"a.b": 3}, {"a": {"c": 2}, "a.b": 3}),
        ({"a.b": 1}, {"a": {"b": 2}}, {"a": {"b": 2}}),
        ({"a.b": 1, "c": 1}, {"a": 5}, {"a": 5, "c": 1}),
        ({"a.b.c": 1, "a.bc": 2}, {"a": {"b": None}}, {"a.bc": 2, "a": {}}),
        ({"a": 1}, {"a.b": 2}, {"a.b": 2}),
    ],
)
def test_merge_patch(base: dict[str, Any], patch: dict[str, Any], result: dict[str, Any]) -> None:
    """Patches follow RFC 7396, and neither side is changed."""
    before = json.dumps([base, patch])
    assert metadata.merge(base, patch) == result
    assert json.dumps([base, patch]) == before


@settings(max_examples=150, deadline=None)
@given(values, values)
def test_a_patch_decides_its_paths(base: dict[str, Any], patch: dict[str, Any]) -> None:
    """After a merge every field of the patch is there, or gone if null, and no path is there twice."""
    try:
        base, patch = metadata.check(base, "r"), metadata.check(patch, "r")
    except InvalidMetadata:
        return
    merged = metadata.merge(base, patch)
    fields = list(metadata.flatten(merged))
    assert len(dict(fields)) == len(fields)
    for path, item in metadata.flatten(patch):
        if item is None:
            assert path not in dict(fields)
        else:
            assert same(dict(fields)[path], item)


def test_flatten() -> None:
    """Fields come with dotted paths, lists whole and nulls included; mappings are no fields."""
    value = {"a": 1, "b": {"c": None, "d": {"e": [1]}}, "f": {}, "g.h": 2}
    assert list(metadata.flatten(value)) == [("a", 1), ("b.c", None), ("b.d.e", [1]), ("g.h", 2)]


SCHEMA = {
    "s": "string", "i": "int", "f": "float", "b": "bool", "t": "datetime", "n.x": "int",
    "ss": "string[]", "fs": "float[]",
}  # fmt: skip


def test_schema_is_kept() -> None:
    """A valid schema comes back as given."""
    assert metadata.check_schema(SCHEMA) == SCHEMA
    assert metadata.check_schema({}) == {}


@pytest.mark.parametrize(
    "schema",
    [{f"a{i}": "int" for i in range(65_536)}, {"a": "text"}, {"a": "int[][]"}, {"a": 1}, {"": "int"}, {"$a": "int"}, {"id": "string"}, {1: "int"}, []],
)  # fmt: skip
def test_bad_schema_is_refused(schema: Any) -> None:
    """Unknown types and impossible paths are refused as a setting."""
    with pytest.raises(InvalidSetting) as caught:
        metadata.check_schema(schema)
    assert caught.value.details["setting"] == "schema"


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"s": "x", "i": 1, "f": 1.5, "b": True, "t": NOON, "other": [1]},
        {"f": 1, "fs": [1, 2.5, None], "ss": []},
        {"s": None, "n": {"x": None}},
        {"n": {"x": 1, "y": "free"}},
        {"n.x": 5},
        {"n": 5},
    ],
)
def test_conforming_metadata_passes(value: dict[str, Any]) -> None:
    """Declared types pass, and so do missing, null, ints for floats, and undeclared paths."""
    metadata.conform(value, SCHEMA, "record 'r'")


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"s": 1}, "s"),
        ({"i": 1.0}, "i"),
        ({"i": True}, "i"),
        ({"f": True}, "f"),
        ({"b": 1}, "b"),
        ({"t": "2024-01-31T12:00:00Z"}, "t"),
        ({"n": {"x": "1"}}, "n.x"),
        ({"n.x": "1"}, "n.x"),
        ({"n": {"x": {"y": 1}}}, "n.x"),
        ({"i": {"y": 1}}, "i"),
        ({"s": ["x"]}, "s"),
        ({"ss": "x"}, "ss"),
        ({"ss": ["x", 1]}, "ss"),
    ],
)
def test_metadata_against_the_schema_is_refused(value: dict[str, Any], path: str) -> None:
    """Another type at a declared path is refused, naming record, path and the declared type."""
    with pytest.raises(InvalidMetadata) as caught:
        metadata.conform(value, SCHEMA, "record 'r'")
    assert caught.value.details["path"] == path
    assert "record 'r'" in str(caught.value)
    assert SCHEMA[path] in str(caught.value)
