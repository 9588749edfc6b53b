"""Filters: compared with a plain evaluator, and every way to write one wrongly."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.plain_filter import matches
from vecdb import metadata
from vecdb.columns import ColumnBatch, Columns
from vecdb.errors import InvalidFilter
from vecdb.filters import MAX_DEPTH, MAX_OPERANDS, MAX_TEXT_BYTES, evaluate, parse, select

PLUS_TWO = dt.timezone(dt.timedelta(hours=2))
INTS = [0, 1, -1, 2, 7, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, 2**63 - 512, -(2**63),
        -(2**63) + 1]  # fmt: skip
FLOATS = [0.0, -0.0, 1.0, 0.5, -1.5, 2.0**53, 2.0**53 + 2, 2.0**63, -(2.0**63), 2.0**63 - 1024,
          1e300, -1e300, 5e-324, 1.7976931348623157e308]  # fmt: skip
WIDE = [2**63, 2**64, -(2**63) - 1, -(2**70), 2**1023 + 1, -(2**1024) + 1]
STRINGS = ["", "a", "A", "ab", "b", "ba", "ä", "日本", "😀", "\uffff", "0", "true", "a\nb"]
DATES = [
    dt.datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC),
    dt.datetime(1970, 1, 1, tzinfo=dt.UTC),
    dt.datetime(2024, 1, 31, 12, tzinfo=dt.UTC),
    dt.datetime(2024, 1, 31, 14, tzinfo=PLUS_TWO),
    dt.datetime(2024, 1, 31, 12, 0, 0, 1, tzinfo=dt.UTC),
    dt.datetime(1, 1, 1, tzinfo=dt.UTC),
    dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC),
]
PATTERNS = ["a", "^a", "b$", "^$", "[ab]+", "a.b", "日", "(a|0)", r"\d", "."]

present = st.sampled_from([*INTS, *FLOATS, *STRINGS, *DATES, True, False])
# Few distinct values, so that filters hit; a fresh one now and then.
stored = present | st.none() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=3)
field_values = stored | st.lists(stored, max_size=3)
records = st.fixed_dictionaries(
    {},
    optional={
        "a": field_values,
        "b": st.sampled_from([0, 1, 2]) | st.none(),
        "s": st.sampled_from(STRINGS),
        "n": st.fixed_dictionaries({}, optional={"x": field_values, "y": st.booleans()}),
        "n.z": field_values,
    },
)
documents = st.none() | st.sampled_from(STRINGS)
fields = st.sampled_from(["a", "b", "s", "n.x", "n.y", "n.z", "n", "never"])
ids = st.sampled_from([f"r{i}" for i in range(8)] + ["absent", ""])
ordered = st.sampled_from([*INTS, *FLOATS, *WIDE, *STRINGS, *DATES])
operands = ordered | st.booleans()


Pairs = Sequence[tuple[Sequence[str], st.SearchStrategy[Any]]]


@st.composite
def conditions(draw: st.DrawFn, pairs: Pairs) -> dict[str, Any]:
    """One operator, or two that must both hold."""
    found = {}
    for _ in range(draw(st.sampled_from([1, 1, 2]))):
        ops, values = draw(st.sampled_from(pairs))
        found[draw(st.sampled_from(ops))] = draw(values)
    return found


def one_of(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(values, min_size=1, max_size=12)


ORDER = ("$gt", "$gte", "$lt", "$lte")
CONTAINS = ("$contains", "$not_contains")
on_fields = conditions(
    [
        (("$eq", "$ne"), operands | st.none()),
        (ORDER, ordered),
        (("$in", "$nin"), one_of(operands | st.none())),
        (("$exists",), st.booleans()),
        (CONTAINS, operands),
        (("$regex",), st.sampled_from(PATTERNS)),
    ]
)
on_id = conditions(
    [
        (("$eq", "$ne", *ORDER), ids),
        (("$in", "$nin"), one_of(ids)),
        (CONTAINS, st.sampled_from(["r", "1", ""])),
        (("$regex",), st.sampled_from(["^r[0-3]$", "5"])),
    ]
)
on_document = conditions(
    [
        (("$eq", "$ne"), st.none() | st.sampled_from(STRINGS)),
        (CONTAINS, st.sampled_from(STRINGS)),
        (("$exists",), st.booleans()),
        (("$regex",), st.sampled_from(PATTERNS)),
    ]
)
leaves = (
    st.dictionaries(fields, on_fields | operands | st.none(), max_size=2)
    | (on_id | ids).map(lambda c: {"id": c})
    | (on_document | documents).map(lambda c: {"$document": c})
)
expressions = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).flatmap(
            lambda parts: st.sampled_from([{"$and": parts}, {"$or": parts}])
        )
        | inner.map(lambda one: {"$not": one})
        | st.tuples(leaves, inner).map(lambda two: {**two[0], "$not": two[1]})
    ),
    max_leaves=6,
)


class Source:
    """Rows in lists; notes which documents and ids were read."""

    def __init__(self, documents: Sequence[str | None]) -> None:
        self.texts = documents
        self.names = [f"r{row}" for row in range(len(documents))]
        self.documents_read: list[int] = []
        self.ids_read: list[int] = []

    def rows_of_ids(self, ids: Sequence[str]) -> NDArray[np.int64]:
        return np.array([self.names.index(i) for i in ids if i in self.names][::-1], np.int64)

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        self.ids_read += rows.tolist()
        return [self.names[row] for row in rows]

    def documents(self, rows: NDArray[np.int64]) -> list[str | None]:
        self.documents_read += rows.tolist()
        return [self.texts[row] for row in rows]


class Alive:
    """Rows that are live, as `select` asks for them."""

    def __init__(self, live: NDArray[np.bool_]) -> None:
        self.live = live
        self.live.flags.writeable = False

    def is_live(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        return self.live[rows]


def columns_of(values: Sequence[dict[str, Any]], cut: int | None = None) -> Columns:
    plain = [metadata.check(value, "r") for value in values]
    columns = Columns(1000)
    cut = len(plain) if cut is None else cut
    columns.extend(ColumnBatch.from_metadata(plain[:cut]), 0)
    columns.extend(ColumnBatch.from_metadata(plain[cut:]), cut)
    return columns


def as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_json(item) for item in value]
    return {"$date": value.isoformat()} if isinstance(value, dt.datetime) else value


@pytest.mark.filterwarnings("error::RuntimeWarning")
@settings(max_examples=600, deadline=None)
@given(
    rows=st.lists(st.tuples(records, documents), min_size=1, max_size=12),
    expression=expressions,
    data=st.data(),
)
def test_same_answer_as_the_plain_evaluator(rows: Any, expression: Any, data: Any) -> None:
    """A range of rows, a list of rows, and the live ones of all get what the plain evaluator says."""
    values, texts = [row[0] for row in rows], [row[1] for row in rows]
    n = len(rows)
    cut = data.draw(st.integers(0, n), "cut")
    start = data.draw(st.integers(0, n), "start")
    stop = data.draw(st.integers(start, n), "stop")
    flags = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n), "flags"), np.bool_)
    some = np.flatnonzero(flags)
    expected = [matches(expression, f"r{row}", values[row], texts[row]) for row in range(n)]
    parsed = parse(expression)
    columns, source = columns_of(values, cut), Source(texts)
    got = evaluate(parsed, columns, source, range(start, stop))
    assert got.dtype == np.bool_
    assert got.tolist() == expected[start:stop]
    assert evaluate(parsed, columns, source, some).tolist() == [expected[row] for row in some]
    assert select(parsed, columns, source, stop).mask().tolist() == expected[:stop]
    source = Source(texts)
    found = select(parsed, columns, source, n, Alive(flags.copy()))
    assert found.rows().dtype == np.int64
    assert found.rows().tolist() == [row for row in some.tolist() if expected[row]]
    assert set(source.documents_read) <= set(some.tolist())
    from_text = parse(json.dumps(as_json(expression)))
    assert (from_text.text, from_text.uses_id) == (parsed.text, parsed.uses_id)
    assert evaluate(from_text, columns, source, range(n)).tolist() == expected
    assert parse(parsed.text).text == parsed.text


@pytest.mark.filterwarnings("error::RuntimeWarning")
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from(["$eq", "$gt", "$gte", "$lt", "$lte"]),
    st.integers(-(2**65), 2**65) | st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-2, 2),
)
def test_numbers_compare_exactly(numbers: list[Any], op: str, bound: Any, near: int) -> None:
    """Ints and floats compare as exact numbers, also with bounds right beside a stored one."""
    for one in (bound, int(numbers[0]) + near):
        columns = columns_of([{"a": number} for number in numbers])
        source, at = Source([None] * len(numbers)), range(len(numbers))
        got = evaluate(parse({"a": {op: one}}), columns, source, at)
        assert got.tolist() == [matches({"a": {op: one}}, "", {"a": n}, None) for n in numbers]


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("op", ["$eq", "$ne", "$gt", "$gte", "$lt", "$lte"])
def test_edges_of_number_types(op: str) -> None:
    """Numbers at the edges of int64, float64 and 2^53 compare exactly with each other and beyond."""
    numbers = [*INTS, *FLOATS]
    columns = columns_of([{"a": number} for number in numbers])
    for bound in [*numbers, *WIDE]:
        source, at = Source([None] * len(numbers)), range(len(numbers))
        got = evaluate(parse({"a": {op: bound}}), columns, source, at)
        expected = [matches({"a": {op: bound}}, "", {"a": number}, None) for number in numbers]
        assert got.tolist() == expected, bound


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("n_operands", [1, 8, 9, 500])
@pytest.mark.parametrize("spread", [3, 10**15, 2**54 - 1])
def test_in_with_few_and_many_operands(n_operands: int, spread: int) -> None:
    """`$in` gives the same answer however its operands are looked up."""
    values: list[Any] = [i * spread for i in range(-300, 300)]
    values += [float(value) for value in values] + [f"s{value}" for value in values] + [-0.0]
    chosen = [value for i, value in enumerate(values[::2]) if i < n_operands or i % 7 == 0][
        : 3 * n_operands
    ]
    chosen += [f"s{i * spread}" for i in range(n_operands)]
    columns = columns_of([{"a": value} for value in values] + [{"a": values[:3]}])
    n = len(values) + 1
    got = evaluate(parse({"a": {"$in": chosen}}), columns, Source([None] * n), range(n))
    picked = set(chosen)
    assert got.tolist() == [value in picked for value in values] + [bool(picked & set(values[:3]))]


@pytest.mark.parametrize(
    ("expression", "matching"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"a": None}, [4, 5]),
        ({"a": {"$exists": False}}, [4, 5]),
        ({"a": {"$exists": True}}, [0, 1, 2, 3]),
        ({"a": {"$ne": 1}}, [1, 2, 3, 4, 5]),
        ({"a": {"$in": [None, 1]}}, [0, 4, 5]),
        ({"a": {"$nin": [None, 1]}}, [1, 2, 3]),
        ({"a": {"$not_contains": "b"}}, [0, 2, 3, 4, 5]),
        ({"a": {"$contains": "b"}}, [1]),
        ({"a": {"$contains": "abc"}}, [1, 2]),
        ({"a": {"$contains": 7}}, [2]),
        ({"a": {"$contains": 1}}, []),
        ({"a": {"$lt": "zzz"}}, [1, 2]),
        ({"$not": {"a": {"$lt": 5}}}, [1, 2, 3, 4, 5]),
        ({"a": {"$eq": True}}, []),
    ],
)
def test_written_rules(expression: Any, matching: list[int]) -> None:
    """Null, missing, complements and lists follow the written rules."""
    values: list[dict[str, Any]] = [
        {"a": 1}, {"a": "abc"}, {"a": ["abc", 7, None]}, {"a": []}, {"a": None}, {},
    ]  # fmt: skip
    got = evaluate(parse(expression), columns_of(values), Source([None] * 6), range(6))
    assert np.flatnonzero(got).tolist() == matching


def test_the_store_is_read_only_for_rows_left_open() -> None:
    """Documents and ids are read for candidates that the cheaper parts leave open, whatever the order."""
    source = Source(["yes"] * 100)
    columns = columns_of([{"n": i} for i in range(100)])
    live = np.arange(100) % 2 == 0
    expression = {"$document": "yes", "id": {"$regex": "^r[12].$"}, "n": {"$lt": 20}}
    got = select(parse(expression), columns, source, 100, Alive(live))
    assert got.rows().tolist() == [10, 12, 14, 16, 18]
    assert sorted(source.ids_read) == list(range(0, 20, 2))
    assert sorted(source.documents_read) == [10, 12, 14, 16, 18]
    source = Source(["no"] * 100)
    either = {"$or": [{"$document": "yes"}, {"n": {"$lt": 90}}]}
    assert select(parse(either), columns, source, 100, Alive(live)).count() == 45
    assert sorted(source.documents_read) == [90, 92, 94, 96, 98]


def test_filters_say_what_they_use() -> None:
    """A filter tells whether it reads ids or documents, at any depth."""
    assert parse({"a": 1}).uses_id is False
    assert parse({"$or": [{"a": 1}, {"$not": {"id": "x"}}]}).uses_id is True
    assert parse({"$and": [{"$document": {"$exists": True}}]}).uses_document is True
    assert parse({"a": 1}).uses_document is False


def test_equal_filters_share_their_text() -> None:
    """Order of keys, white space and the short form of `$eq` make no other filter; types do."""
    assert parse('{"b": 1, "a": {"$eq": 2}}').text == parse({"a": 2, "b": {"$eq": 1}}).text
    assert len({parse({"a": value}).text for value in (1, 1.5, True, "1", None)}) == 5
    noon = dt.datetime(2024, 1, 31, 14, tzinfo=PLUS_TWO)
    assert parse({"a": noon}).text == parse('{"a": {"$date": "2024-01-31T12:00:00Z"}}').text


def test_a_long_evaluation_can_be_stopped() -> None:
    """`interrupt` is called while distinct strings, ids and documents are gone through."""
    columns = columns_of([{"s": f"text {i}"} for i in range(20_000)])

    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    for expression in ({"s": {"$regex": "7$"}}, {"id": {"$regex": "7$"}}, {"$document": "x"}):
        with pytest.raises(Stop):
            select(parse(expression), columns, Source([None] * 20_000), 20_000, interrupt=stop)


def deep(levels: int) -> dict[str, Any]:
    expression: dict[str, Any] = {"a": 1}
    for _ in range(levels - 1):
        expression = {"$not": expression}
    return expression


def test_limits_are_the_last_that_passes() -> None:
    """Depth, operands and length are allowed up to their limits."""
    parse(deep(MAX_DEPTH))
    parse({"a": {"$in": list(range(MAX_OPERANDS))}})
    parse(b'{"a":"' + b"x" * (MAX_TEXT_BYTES - 16) + b'"}')


@pytest.mark.parametrize(
    ("expression", "path"),
    [
        ("", "$"),
        ("{", "$"),
        ("[1]", "$"),
        ("1", "$"),
        (b"\xff", "$"),
        ('"\ud800"', "$"),
        ("[" * 60_000, "$"),
        ('{"a": 1, "a": 2}', "$"),
        ('{"a": 1%s}' % (" " * MAX_TEXT_BYTES), "$"),
        ({"a": "x" * MAX_TEXT_BYTES}, "$"),
        ({"a": {"$in": ["x" * (MAX_TEXT_BYTES // 1000)] * 1000}}, "$"),
        ([{"a": 1}], "$"),
        (None, "$"),
        (deep(MAX_DEPTH + 1), "$" + ".$not" * MAX_DEPTH),
        ({"$and": []}, "$.$and"),
        ({"$or": {"a": 1}}, "$.$or"),
        ({"$and": [{"a": 1}, 5]}, "$.$and[1]"),
        ({"$and": [{"a": 1}, {"b": {"$gt": True}}]}, "$.$and[1].b.$gt"),
        ({"$not": [{"a": 1}]}, "$.$not"),
        ({"$nor": [{"a": 1}]}, "$.$nor"),
        ({"$gt": 1}, "$.$gt"),
        ({"$date": "2024-01-31T12:00:00Z"}, "$.$date"),
        ({"": 1}, "$."),
        ({"a\0": 1}, "$.a\0"),
        ({1: 1}, "$"),
        ({"\ud800": 1}, "$.?"),
        ({"a": "\ud800"}, "$.a"),
        ({"a": {}}, "$.a"),
        ({"a": {"b": 1}}, "$.a.b"),
        ({"a": {"$gt": 1, "b": 1}}, "$.a.b"),
        ({"a": [1, 2]}, "$.a"),
        ({"a": {"$eq": [1]}}, "$.a.$eq"),
        ({"a": {"$eq": {"b": 1}}}, "$.a.$eq"),
        ({"a": {"$near": 1}}, "$.a.$near"),
        ({"a": {"$not": {"$gt": 1}}}, "$.a.$not"),
        ({"a": {"$gt": None}}, "$.a.$gt"),
        ({"a": {"$lte": False}}, "$.a.$lte"),
        ({"a": {"$gt": [1]}}, "$.a.$gt"),
        ({"a": {"$gt": float("nan")}}, "$.a.$gt"),
        ({"a": {"$gt": 2**1024}}, "$.a.$gt"),
        ('{"a": {"$gt": Infinity}}', "$.a.$gt"),
        ('{"a": {"$gt": 1e999}}', "$.a.$gt"),
        ('{"a": 1%s}' % ("0" * 5000), "$"),
        ({"a": {"$in": []}}, "$.a.$in"),
        ({"a": {"$in": 5}}, "$.a.$in"),
        ({"a": {"$nin": "text"}}, "$.a.$nin"),
        ({"a": {"$in": [1, 2, [3]]}}, "$.a.$in[2]"),
        ({"a": {"$in": [1, object()]}}, "$.a.$in[1]"),
        ({"a": {"$in": [0] * (MAX_OPERANDS + 1)}}, "$.a.$in"),
        ({"a": {"$exists": 1}}, "$.a.$exists"),
        ({"a": {"$exists": None}}, "$.a.$exists"),
        ({"a": {"$exists": 10**5000}}, "$.a.$exists"),
        ({"a": {"$contains": None}}, "$.a.$contains"),
        ({"a": {"$not_contains": ["x"]}}, "$.a.$not_contains"),
        ({"a": {"$regex": 5}}, "$.a.$regex"),
        ({"a": {"$regex": "("}}, "$.a.$regex"),
        ({"a": {"$regex": r"(a)\1"}}, "$.a.$regex"),
        ({"a": {"$regex": "((a{100}){100}){100}"}}, "$.a.$regex"),
        ({"a": {"$date": "today"}}, "$.a"),
        ('{"a": {"$date": "\\ud800"}}', "$.a"),
        ({"a": {"$gt": {"$date": "2024-01-31"}}}, "$.a.$gt"),
        ({"a": dt.datetime(2024, 1, 1)}, "$.a"),
        ({"a": b"bytes"}, "$.a"),
        ({"id": 5}, "$.id"),
        ({"id": None}, "$.id"),
        ({"id": {"$in": ["x", None]}}, "$.id.$in[1]"),
        ({"id": {"$exists": True}}, "$.id.$exists"),
        ({"id": {"$gt": 1}}, "$.id.$gt"),
        ({"$document": 5}, "$.$document"),
        ({"$document": {"$gt": "a"}}, "$.$document.$gt"),
        ({"$document": {"$in": ["a"]}}, "$.$document.$in"),
        ({"$document": {"$contains": 5}}, "$.$document.$contains"),
        ({"$or": [{"$and": [{"$document": {"$regex": "["}}]}]}, "$.$or[0].$and[0].$document.$regex"),
    ],
)  # fmt: skip
def test_malformed_filters_name_the_fault(expression: Any, path: str) -> None:
    """A malformed filter is refused with the path to the fault and a message that can be printed."""
    with pytest.raises(InvalidFilter) as caught:
        parse(expression)
    assert caught.value.details["path"] == path
    assert len(str(caught.value)) < 1_000
    str(caught.value).encode()


def test_a_filter_has_a_bounded_number_of_patterns() -> None:
    """Patterns are dear to compile, so a filter of very many is refused before that."""
    parse({"$or": [{"a": {"$regex": f"x{i}"}} for i in range(100)]})
    with pytest.raises(InvalidFilter, match="100 patterns"):
        parse({"$or": [{"a": {"$regex": f"x{i}"}} for i in range(101)]})
