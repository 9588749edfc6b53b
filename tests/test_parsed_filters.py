"""Filters that come again are parsed once, and never taken for another."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest

from vecdb import errors, filters
from vecdb.parsed_filters import parsed


def test_a_filter_that_comes_again_is_the_same_object():
    """Mappings, JSON texts and bytes are kept; a parsed filter passes through, None is none."""
    for given in ({"a": 1, "b": {"$in": ["x", None]}}, '{"a": 1}', b'{"a": 2}'):
        assert parsed(given) is parsed(given)
    assert parsed({"a": 1, "b": {"$in": ["x", None]}}) is parsed(
        {"a": 1, "b": {"$in": ["x", None]}}
    )
    made = filters.parse({"a": 1})
    assert parsed(made) is made
    assert parsed(None) is None


def test_values_that_are_equal_in_python_stay_apart():
    """1, 1.0, True and "1" are four filters; so are a text and its bytes as a value, and two moments."""
    day = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    later = day + dt.timedelta(microseconds=1)
    texts = {parsed({"a": value}).text for value in (1, True, "1", None, day, later, 2, 2.5)}
    assert len(texts) == 8
    assert parsed({"a": 1.0}).text != parsed({"a": True}).text
    assert parsed({"a": {"$in": [1]}}).text != parsed({"a": {"$in": [True]}}).text
    assert parsed({"a": {"$in": [1, 2]}}) is not parsed({"a": {"$in": [1, "2"]}})


@pytest.mark.parametrize("first", [0, 1])
def test_the_two_hours_at_the_end_of_summer_time_stay_apart(first):
    """Python takes them for equal; whichever is asked for first, each is its own."""

    class Berlin(dt.tzinfo):
        def utcoffset(self, when):
            return dt.timedelta(hours=1 if when.fold else 2)

        def dst(self, when):
            return dt.timedelta(hours=0 if when.fold else 1)

    one = dt.datetime(2024, 10, 27, 2, 30, 10 + first, tzinfo=Berlin())
    hours = [one, one.replace(fold=1)]
    assert hours[0] == hours[1]
    texts = {fold: parsed({"t": {"$gte": hours[fold]}}).text for fold in (first, 1 - first)}
    assert "T00:30" in texts[0]
    assert "T01:30" in texts[1]


def test_a_mapping_may_be_changed_afterwards():
    """What counts is what the mapping said at the call."""
    given = {"a": {"$in": [1, 2]}}
    first = parsed(given)
    given["a"]["$in"].append(3)
    assert parsed(given).text != first.text
    assert parsed({"a": {"$in": [1, 2]}}) is first


def test_what_cannot_be_compared_is_parsed_each_time():
    """numpy scalars, subclasses and very long filters give the right filter, kept or not."""

    class Text(str):
        __slots__ = ()

    for given, plain in (
        ({"a": np.int64(5)}, {"a": 5}),
        ({"a": Text("x")}, {"a": "x"}),
        ({Text("a"): 1}, {"a": 1}),
        ({"a": {"$in": list(range(5_000))}}, None),
        ({"a": "x" * 10_000}, None),
    ):
        expected = filters.parse(given if plain is None else plain).text
        assert parsed(given).text == expected
        assert parsed(given).text == expected


def test_wrong_filters_are_refused_each_time():
    """An error is not kept, and the next filter is."""
    for _ in range(2):
        for wrong in ({"a": {"$near": 1}}, "", "{", [1], 5, {"a": dt.datetime(2024, 1, 1)}):
            with pytest.raises(errors.InvalidFilter):
                parsed(wrong)


def test_many_filters_do_not_pile_up():
    """However many filters come by, few are kept."""
    from vecdb import parsed_filters

    for i in range(2_000):
        assert parsed({"a": i}).text == filters.parse({"a": i}).text
    assert len(parsed_filters._kept) <= 256
