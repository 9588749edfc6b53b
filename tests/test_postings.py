"""Filters on columns that are sorted: the same answers as a plain look at every row, without one."""

from __future__ import annotations

import datetime as dt
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.plain_filter import matches
from tests.test_filters import (
    DATES,
    FLOATS,
    INTS,
    STRINGS,
    Alive,
    Source,
    fields,
    on_document,
    on_fields,
    one_of,
    operands,
)
from vecdb import columns as columns_module
from vecdb import filter_tree
from vecdb.columns import FEWEST_SORTED, Column, ColumnBatch, Columns
from vecdb.errors import Internal
from vecdb.filters import evaluate, parse, select
from vecdb.postings import Order

SEED = 23
N_SORTED, N_ROWS = FEWEST_SORTED + 600, FEWEST_SORTED + 1_100


class Sample:
    """Rows of a few dozen distinct records: two are common, the others rare. Most rows are sorted."""

    def __init__(self) -> None:
        rng = np.random.default_rng(SEED)
        scalars: list[Any] = [*INTS, *FLOATS, *STRINGS, *DATES, True, False]

        def pick() -> Any:
            return scalars[rng.integers(len(scalars))]

        self.records: list[dict[str, Any]] = [{"b": 1, "n": {"y": True}}, {"b": 2, "s": "a"}]
        for i in range(60):
            record: dict[str, Any] = {"b": int(rng.integers(3)), "s": STRINGS[i % len(STRINGS)]}
            if i % 4:
                record["a"] = pick()
            elif i % 8:
                some = [pick() for _ in range(rng.integers(4))]
                record["a"] = [*some, *some[:1]]
            if i % 3:
                record["n"] = {"x": float(rng.normal()) if i % 2 else pick(), "y": bool(i % 2)}
            if i % 5 == 0:
                record["n.z"] = pick()
            self.records.append(record)
        n = len(self.records)
        weights = np.r_[200.0, 200.0, rng.random(n - 2) ** 2]
        self.which = rng.choice(n, N_ROWS, p=weights / weights.sum())
        self.documents = [None if i % 2 else STRINGS[i % len(STRINGS)] for i in range(n)]
        self.columns = Columns(1000)
        rows = [self.records[i] for i in self.which.tolist()]
        self.columns.extend(ColumnBatch.from_metadata(rows[:9_000]), 0)
        self.columns.extend(ColumnBatch.from_metadata(rows[9_000:N_SORTED]), 9_000)
        for path in self.columns.fields():
            column(self.columns, path).want_postings(N_SORTED)
        self.columns.wait_sorted()
        self.columns.extend(ColumnBatch.from_metadata(rows[N_SORTED:]), N_SORTED)

    def source(self) -> Source:
        return Source([self.documents[i] for i in self.which.tolist()])

    def expected(self, expression: Any) -> NDArray[np.bool_]:
        """What the plain evaluator says; ids beyond r7 are in no filter and are all alike."""
        pairs = list(zip(self.records, self.documents, strict=True))
        mask = np.array([matches(expression, "x", *pair) for pair in pairs], np.bool_)[self.which]
        for row in range(8):
            mask[row] = matches(expression, f"r{row}", *pairs[self.which[row]])
        return mask


@pytest.fixture(scope="module")
def sample() -> Sample:
    print("seed", SEED)
    return Sample()


def column(columns: Columns, path: str) -> Column:
    found = columns.column(path)
    assert found is not None
    return found


ids = st.sampled_from([f"r{i}" for i in range(8)] + ["absent"])
leaves = (
    st.dictionaries(fields, on_fields | operands | st.none(), min_size=1, max_size=2)
    | one_of(ids).map(lambda names: {"id": {"$in": names}})
    | on_document.map(lambda c: {"$document": c})
)
expressions = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).flatmap(
            lambda parts: st.sampled_from([{"$and": parts}, {"$or": parts}])
        )
        | inner.map(lambda one: {"$not": one})
    ),
    max_leaves=5,
)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@settings(max_examples=250, deadline=None)
@given(
    expression=expressions,
    n_rows=st.sampled_from([N_ROWS, N_SORTED, FEWEST_SORTED, FEWEST_SORTED + 7, N_ROWS - 3, 500]),
    data=st.data(),
)
def test_same_answer_as_the_plain_evaluator(
    sample: Sample, expression: Any, n_rows: int, data: Any
) -> None:
    """Lists, masks and their mixtures are right below, at and beyond the rows that are sorted."""
    parsed, expected = parse(expression), sample.expected(expression)[:n_rows]
    source = sample.source()
    found = select(parsed, sample.columns, source, n_rows)
    assert found.n_rows == n_rows
    assert found.rows().dtype == np.int64
    assert found.rows().tolist() == np.flatnonzero(expected).tolist()
    assert np.array_equal(found.mask(), expected)
    assert found.count() == np.count_nonzero(expected)
    start = data.draw(st.integers(0, n_rows), "start")
    got = evaluate(parsed, sample.columns, source, range(start, n_rows))
    assert np.array_equal(got, expected[start:])
    live = np.random.default_rng(data.draw(st.integers(0, 9), "seed")).random(n_rows) < 0.7
    source = sample.source()
    found = select(parsed, sample.columns, source, n_rows, Alive(live.copy()))
    assert found.rows().tolist() == np.flatnonzero(expected & live).tolist()
    assert live[source.documents_read].all()


def shop(n: int, first: int = 0) -> ColumnBatch:
    """Rows with values that are rare, common, unique and in lists."""
    rows: list[dict[str, Any]] = [
        {
            "key": f"k{row % 400}",
            "number": row * 7 % 20_011,
            "price": row / 8,
            "change": (row * 7 % 20_011 - 10_000) / 4,
            "kind": "common" if row % 3 else "other",
            "day": DATES[1] + dt.timedelta(days=row % 900),
            "tags": [f"t{row % 500}", f"t{row % 7}", "t1"] if row % 2 else [],
            **({"note": True} if row % 1_000 == 5 else {}),
        }
        for row in range(first, first + n)
    ]
    return ColumnBatch.from_metadata(rows)


RARE: list[dict[str, Any]] = [
    {"key": "k7"},
    {"key": {"$in": ["k7", "k8", "never"]}},
    {"number": 99},
    {"number": {"$gte": 90, "$lt": 99.5}},
    {"$and": [{"price": {"$gt": 100}}, {"price": {"$lte": 103.25}}]},
    {"change": {"$lt": -2_480}},
    {"change": {"$gt": -0.5, "$lte": 3}},
    {"day": {"$gte": DATES[1], "$lt": DATES[1] + dt.timedelta(days=3)}},
    {"tags": "t77"},
    {"tags": {"$contains": "t78"}},
    {"note": True},
    {"note": {"$exists": True}},
    {"key": "k7", "kind": "common", "number": {"$gt": 5_000}, "tags": {"$regex": "3$"}},
    {"$or": [{"key": "k7"}, {"note": True}, {"id": "r3"}]},
    {"id": {"$in": ["r1", "r900", "absent"]}, "$document": {"$exists": True}},
    {"key": {"$in": ["k7"]}, "$document": "yes"},
    {"never": 1, "kind": "common"},
]


@pytest.mark.parametrize("expression", RARE)
def test_what_is_rare_is_not_looked_for_everywhere(
    expression: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was slow once is sorted, and then only its rows and those that came since are looked at."""
    n = 20_000
    columns, source = Columns(100), Source(["yes" if row % 2 else None for row in range(n + 50)])
    columns.extend(shop(n), 0)
    parsed = parse(expression)
    before = select(parsed, columns, source, n)
    columns.wait_sorted()
    columns.extend(shop(50, n), n)
    expected = np.flatnonzero(evaluate(parsed, columns, source, range(n + 50)))
    looked_at = [0]
    plain = Column.cells

    def cells(self: Column, start: int, stop: int, *rest: Any) -> Any:
        looked_at.append(stop - start)
        return plain(self, start, stop, *rest)

    monkeypatch.setattr(Column, "cells", cells)
    source.documents_read.clear()
    after = select(parsed, columns, source, n + 50)
    assert after.is_list
    assert after.rows().tolist() == expected.tolist()
    assert set(before.rows().tolist()) <= set(expected.tolist())
    assert max(looked_at) <= 50
    assert len(source.documents_read) <= 200


def test_bounds_of_a_list_may_hold_for_different_elements() -> None:
    """Two bounds on a list field may each hold for another element, sorted or not."""
    n = 20_000
    columns = Columns(100)
    rows = [{"l": [1 if row % 2 else 5, row]} for row in range(n)]
    columns.extend(ColumnBatch.from_metadata(rows), 0)
    column(columns, "l").want_postings(n)
    columns.wait_sorted()
    found = select(parse({"l": {"$gt": n - 10, "$lt": 2}}), columns, Source([]), n)
    assert found.rows().tolist() == list(range(n - 9, n, 2))


def test_only_columns_that_find_few_are_sorted() -> None:
    """Four bytes a value more are spent where filters find few, not for common values or patterns."""
    n = 20_000
    columns, source = Columns(100), Source([None] * n)
    columns.extend(shop(n), 0)
    plain = columns.nbytes
    for expression in (
        {"kind": "common"},
        {"price": {"$gt": 100}},
        {"key": {"$regex": "^k77$"}},
        {"key": {"$contains": "k77"}},
        {"tags": {"$regex": "^t77$"}},
        {"number": {"$ne": 5}, "kind": "other"},
    ):
        select(parse(expression), columns, source, n)
        select(parse({"$not": expression}), columns, source, 100)
    columns.wait_sorted()
    # Only the $ne has found one row.
    assert columns.nbytes == plain + 4 * n
    assert column(columns, "number").has_postings
    select(parse({"tags": "t77"}), columns, source, n)
    columns.wait_sorted()
    assert columns.nbytes == plain + 4 * n + 4 * (n + 3 * n // 2)


def test_orders_are_renewed_as_rows_come() -> None:
    """When many rows have come since, the order is extended in the background and stays right."""
    n, source = FEWEST_SORTED, Source([])
    columns = Columns(100)
    columns.extend(shop(n), 0)
    parsed = [parse(one) for one in RARE if "id" not in str(one) and "document" not in str(one)]
    covered = []
    for total in range(n, 5 * n, 9_000):
        if total > n:
            columns.extend(shop(9_000, total - 9_000), total - 9_000)
        for one in parsed:
            found = select(one, columns, source, total).rows()
            assert np.array_equal(
                found, np.flatnonzero(evaluate(one, columns, source, range(total)))
            )
        columns.wait_sorted()
        postings = column(columns, "key").postings(total)
        assert postings is not None
        covered.append(postings.n_rows)
    assert len(set(covered)) == 4
    assert covered == sorted(covered)
    assert total - covered[-1] <= FEWEST_SORTED


def test_too_little_memory_leaves_filters_as_they_were(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where an order does not fit into memory, filters go on looking through the column."""

    def full(*args: Any) -> Any:
        raise MemoryError

    columns, parsed = Columns(100), parse({"key": "k7"})
    columns.extend(shop(20_000), 0)
    monkeypatch.setattr(Order, "extended", full)
    for _ in range(2):
        assert select(parsed, columns, Source([]), 20_000).count() == 50
        columns.wait_sorted()
    assert not column(columns, "key").has_postings
    assert "no memory" in caplog.text


def test_no_thread_leaves_filters_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread is to be had, a filter answers all the same, and the next one tries again."""

    def none(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    columns, parsed = Columns(100), parse({"key": "k7"})
    columns.extend(shop(20_000), 0)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        assert select(parsed, columns, Source([]), 20_000).count() == 50
    assert not column(columns, "key").has_postings
    assert select(parsed, columns, Source([]), 20_000).count() == 50
    columns.wait_sorted()
    assert column(columns, "key").has_postings


def test_rows_beyond_the_columns_are_refused() -> None:
    """Asking for rows that the columns do not hold is a fault of the engine, said at once."""
    columns = Columns(100)
    columns.extend(shop(10), 0)
    with pytest.raises(Internal):
        select(parse({}), columns, Source([]), 11)
    with pytest.raises(Internal):
        evaluate(parse({}), columns, Source([]), np.array([3, 10]))


def test_readers_beside_the_writer_and_the_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers get exact answers for the rows they saw while rows come and orders are renewed."""
    monkeypatch.setattr(columns_module, "FEWEST_SORTED", 128)
    monkeypatch.setattr(filter_tree, "FEWEST_SORTED", 128)
    seed = 5
    print("seed", seed)
    rng = np.random.default_rng(seed)
    n = 20_000
    parsed = [parse(one) for one in RARE if "id" not in str(one) and "document" not in str(one)]
    whole = Columns(100)
    whole.extend(shop(n), 0)
    expected = [evaluate(one, whole, Source([]), range(n)) for one in parsed]
    columns = Columns(100)
    done = threading.Event()
    failures: list[str] = []
    lists = [0]

    def read() -> None:
        while not failures:
            last = done.is_set()
            stop = columns.n_rows
            for one, mask in zip(parsed, expected, strict=True):
                found = select(one, columns, Source([]), stop)
                lists[0] += found.is_list
                if not np.array_equal(found.rows(), np.flatnonzero(mask[:stop])):
                    failures.append(f"{one.text} on {stop}")
            if last:
                break

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    at = 0
    while at < n:
        size = min(int(rng.integers(1, 150)), n - at)
        columns.extend(shop(size, at), at)
        at += size
    done.set()
    for reader in readers:
        reader.join(60)
    assert not failures
    assert lists[0] > 100
