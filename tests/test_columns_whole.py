"""Columns that are never half made, orders that never go back, and long sorts that end when nobody waits for them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vecdb
from vecdb import errors, ordering
from vecdb.columns import Column
from vecdb.ordering import order_of
from vecdb.stored_columns import SLICE_ROWS

ROWS = 3 * SLICE_ROWS


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with vecdb.open(tmp_path_factory.mktemp("columns") / "data", auto_build=False) as db:
        docs = db.create_collection("docs", dimension=1, index="exact")
        docs.insert(
            [f"r{(n * 7919) % ROWS}" for n in range(ROWS)],
            np.ones((ROWS, 1)),
            metadata=[{"tags": [f"t{n % 50}", "all"], "key": f"k{n}"} for n in range(ROWS)],
        )
        yield docs


def anew(docs: Any) -> None:
    """All copies are made anew, as after a fault."""
    with docs._core.exclusive():
        docs._core._load()


@pytest.mark.parametrize("failure", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("path", ["tags", "key"])
def test_columns_that_broke_in_the_middle_of_a_slice_are_made_anew(
    filled: Any, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException], path: str
) -> None:
    """Continued, they would hold the elements of lists twice: wrong counts, and rows that come twice."""
    anew(filled)
    coded, calls = Column.coded, dict[int, int]()

    def breaks(column: Column, strings: list[str]) -> Any:
        calls[id(column)] = calls.get(id(column), 0) + 1
        mine = "all" in strings if path == "tags" else "k8192" in strings
        if mine and calls[id(column)] == 2:
            raise failure
        return coded(column, strings)

    with monkeypatch.context() as patched:
        patched.setattr(Column, "coded", breaks)
        with pytest.raises((errors.LimitExceeded, KeyboardInterrupt)):
            filled.count({"tags": "t7"})
    expected = len(range(7, ROWS, 50))
    for _ in range(2):
        assert filled.count({"tags": "t7"}) == expected
        assert filled._core.columns.fields() == {"tags": ROWS, "key": ROWS}
        filled._core.columns.wait_sorted()
    assert len({*filled.get(filter={"tags": "t7"}, limit=1_000).ids}) == expected
    assert filled.check().ok


def test_an_order_of_an_older_moment_takes_the_place_of_no_newer_one(filled: Any) -> None:
    """Who looked before another had sorted more rows asks for fewer; the rows between would come twice."""
    anew(filled)
    assert filled.count({"tags": "t7"}) == len(range(7, ROWS, 50))
    column = filled._core.columns.column("tags")
    column.want_postings(ROWS)
    column.wait_sorted()
    column._sort_soon(ROWS - 2_000)
    column.wait_sorted()
    assert column.postings(ROWS).n_rows == ROWS
    assert filled.count({"tags": "t7", "key": {"$exists": True}}) == len(range(7, ROWS, 50))
    assert filled.count({"tags": "t8"}) == len(range(8, ROWS, 50))


@given(st.lists(st.text(max_size=4), unique=True, max_size=200), st.integers(1, 40))
def test_texts_are_ordered_part_by_part_as_at_once(texts: list[str], at_once: int) -> None:
    """However small the parts are, and whatever the texts."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ordering, "AT_ONCE", at_once)
        calls: list[None] = []
        found = order_of(texts, lambda: calls.append(None))
    assert [texts[n] for n in found.tolist()] == sorted(texts)
    assert len(calls) >= len(texts) // at_once


@pytest.mark.parametrize("order_by", ["id", "-id", "key", "-key"])
def test_an_order_ends_at_its_deadline(filled: Any, order_by: str) -> None:
    """Between its steps; and given time it is right."""
    filled.count({"key": "k1"})
    with pytest.raises(errors.DeadlineExceeded):
        filled.get(order_by=order_by, timeout_s=1e-9)
    found = filled.get(order_by=order_by, limit=5_000, include=("metadata",), timeout_s=60)
    values = found.ids if "id" in order_by else [one["key"] for one in found.metadata]
    names = "r" if "id" in order_by else "k"
    every = sorted((f"{names}{n}" for n in range(ROWS)), reverse=order_by[0] == "-")
    assert values == every[:5_000]


class NotATime(dt.datetime):
    """As pandas.NaT: a datetime that is none."""

    def utcoffset(self) -> dt.timedelta | None:
        raise ValueError("NaTType does not support utcoffset")


def test_a_datetime_that_is_none_is_refused_in_words(data_folder: Path) -> None:
    """With the record and the path, in records and in filters."""
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=1)
        docs.insert(["a"], [[1]], metadata=[{"at": dt.datetime(2020, 1, 1, tzinfo=dt.UTC)}])
        bad = NotATime(2020, 1, 1)
        for call in (
            lambda: docs.insert(["b"], [[1]], metadata=[{"at": bad}]),
            lambda: docs.update(["a"], metadata=[{"x": {"at": bad}}]),
        ):
            with pytest.raises(errors.InvalidMetadata, match=r"is no moment") as caught:
                call()
            assert caught.value.details["path"].endswith("at")
        with pytest.raises(errors.InvalidFilter, match=r"is no moment"):
            docs.count({"at": {"$gt": bad}})
        assert docs.count() == 1
