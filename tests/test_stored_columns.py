"""Stored metadata read into columns many rows at once: the same columns as record by record."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecdb import metadata
from vecdb.columns import ColumnBatch
from vecdb.errors import Corrupted
from vecdb.pivot import Values
from vecdb.stored_columns import StoredColumns

NOON = dt.datetime(2024, 1, 31, 12, tzinfo=dt.UTC)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.sampled_from([NOON, "a", "b"])
    | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4)
)  # fmt: skip
values = scalars | st.lists(scalars, max_size=3)
keys = st.sampled_from(["a", "b", "key with space", "ä.b", 'quo"te', "back\\slash", "f0", "n"])
flat = st.dictionaries(keys, values, max_size=4)
nested = st.dictionaries(keys, values | st.dictionaries(st.sampled_from("xy"), values), max_size=3)
same = st.fixed_dictionaries({"a": st.integers(0, 3), "b": st.sampled_from("xyz")})


def plain(values: Values | None) -> Any:
    """Arrays of values as lists, with strings in place of codes."""
    if values is None:
        return None
    return [values.offsets.tolist(), values.tags.tolist(), values.data.tolist(), values.strings,
            plain(values.elements)]  # fmt: skip


def compare(got: ColumnBatch, expected: ColumnBatch) -> None:
    assert got.n_rows == expected.n_rows
    assert {path: plain(v) for path, v in got.fields.items()} == {
        path: plain(v) for path, v in expected.fields.items()
    }


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(same, max_size=9) | st.lists(flat, max_size=9) | st.lists(nested, max_size=5),
                min_size=1, max_size=4))  # fmt: skip
def test_same_columns_as_record_by_record(slices: list[list[dict[str, Any]]]) -> None:
    """Slices that follow each other, with keys that come and go, are pivoted as single records are."""
    stored = StoredColumns()
    for records in slices:
        records = [metadata.check(record, "r") for record in records if _distinct(record)]
        texts = [metadata.encode(record, "r")[0] for record in records]
        there = [i for i, text in enumerate(texts) if text]
        got = stored.batch(len(records), there, [texts[i] for i in there])
        compare(got, ColumnBatch.from_metadata(records))


def _distinct(record: dict[str, Any]) -> bool:
    """Whether no path is given twice, nested and with dots, which is refused before it is stored."""
    paths = [path for path, _ in metadata.flatten(record)]
    return len(set(paths)) == len(paths)


def test_many_keys_go_the_plain_way() -> None:
    """Records with hundreds of distinct keys give the same columns too."""
    records = [{f"k{i}": i, "all": True} for i in range(300)]
    texts = [metadata.encode(record, "r")[0] for record in records]
    stored = StoredColumns()
    for at in range(0, 300, 50):
        got = stored.batch(50, range(50), texts[at : at + 50])
        compare(got, ColumnBatch.from_metadata(records[at : at + 50]))


@pytest.mark.parametrize(
    "texts",
    [
        [b'{"a":1}', b'{"a":'],
        [b'{"a":"x', b'","a":"y"}'],
        [b'{"a":1},{"a":2}', b'{"a":3}'],
        [b'{"a":{"$date":"never"}}', b'{"a":1}'],
        [b"[1]", b'{"a":1}'],
        [b'{"a":1}', b"\xff"],
    ],
)
def test_damaged_texts_are_named(texts: list[bytes]) -> None:
    """A text that is not stored metadata is Corrupted, also where its neighbours would complete it."""
    stored = StoredColumns()
    stored.batch(1, [0], [b'{"a":0}'])
    with pytest.raises(Corrupted):
        stored.batch(4, [0, 2, 3], [b'{"a":0}', *texts])
