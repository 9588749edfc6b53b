"""Lists of ten thousands of elements: the same as short ones, and made ready before the commit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vecdb import metadata, pivot
from vecdb.columns import ColumnBatch, Columns
from vecdb.errors import InvalidMetadata
from vecdb.scalars import INT64_MAX, INT64_MIN


class Text(str):
    """A str that is none exactly, as subclasses are."""

    __slots__ = ()


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["a", "b"],
        ["a", "é"],
        [1, INT64_MIN, INT64_MAX],
        [True, 2, None, "x", 0.5],
        [Text("s"), "t"],
        [None],
        [2.5, -0.0],
        (1, 2),
        [1, True],
    ],
)
def test_elements_of_one_kind_are_kept_as_others_are(given: Any) -> None:
    """What is taken without a look at each element is what it would be with one; it is a copy."""
    expected = metadata.encode({"l": [*given, 0.25]}, "here")[1]["l"][:-1]
    found = metadata.encode({"l": given}, "here")[1]["l"]
    assert found == expected
    assert list(map(type, found)) == list(map(type, expected))
    assert found is not given


@pytest.mark.parametrize("given", [[1, INT64_MAX + 1], [INT64_MIN - 1], ["a", "\ud800"], [[1]]])
def test_elements_that_cannot_be_stored_are_refused(given: list[Any]) -> None:
    """Also in lists that are of one kind, with the position."""
    with pytest.raises(InvalidMetadata, match=rf"l\[{len(given) - 1}\]"):
        metadata.encode({"l": given}, "here")


def test_many_strings_have_codes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known ones, new ones and both mixed, over pieces: each string has one code, and each code its string."""
    monkeypatch.setattr(pivot, "AT_ONCE", 7)
    monkeypatch.setattr("vecdb.columns.AT_ONCE", 7)
    columns = Columns(10)
    rows: list[list[Any]] = []
    rng = np.random.default_rng(3)
    for n in (1, 40, 6, 60, 7, 21):
        given = [[f"s{i}" for i in rng.integers(0, 90, n)], rng.integers(-9, 9, n).tolist()]
        rows += given
        columns.extend(ColumnBatch.from_metadata([{"l": one} for one in given]), len(rows) - 2)
    column = columns.column("l")
    assert column is not None
    assert sorted(column._codes.values()) == list(range(len(column._strings)))
    assert all(column._strings[code] == text for text, code in column._codes.items())
    wanted = np.ones(len(rows), np.bool_)
    owners, cells = column.elements(0, len(rows), lambda: wanted, lambda: None)
    found: list[list[Any]] = [[] for _ in rows]
    for owner, tag, data in zip(owners.tolist(), cells.tags, cells.data.tolist(), strict=True):
        found[owner].append(cells.strings[data] if tag == pivot.STRING else data)
    assert found == rows


def test_long_lists_are_columns_before_the_commit() -> None:
    """What takes seconds is not left for the lane, where others wait; what is short is made while the disk works."""
    short = ColumnBatch.from_metadata([{"l": ["a"]}]).fields
    long = ColumnBatch.from_metadata([{"l": list(range(10_000)), "s": "x"}] * 2).fields
    assert isinstance(short, pivot._Pivoted)
    assert isinstance(long, pivot._Pivoted)
    assert not short._made
    assert list(long._made) == ["l"]
