"""Columns of metadata: extended in steps, bounded, and read while they grow."""

from __future__ import annotations

import datetime as dt
import threading
from typing import Any

import numpy as np
import pytest

from vecdb.columns import ColumnBatch, Columns
from vecdb.errors import Internal, LimitExceeded
from vecdb.filters import evaluate, parse

NOON = dt.datetime(2024, 1, 31, 12, tzinfo=dt.UTC)
RECORDS: list[dict[str, Any]] = [
    {"a": 1, "s": "x", "l": ["x", 1, None]},
    {},
    {"a": 2.5, "n": {"x": True}, "l": []},
    {"a": None, "s": "y", "t": NOON},
    {"a": "one", "n": {"x": None, "y": False}, "l": [None]},
    {"s": "x", "l": [2.5, "y", NOON, True]},
]
FILTERS = [
    '{"a": 1}', '{"a": {"$gt": 1}}', '{"a": {"$exists": true}}', '{"s": "x"}', '{"l": "x"}',
    '{"l": {"$gte": 1}}', '{"l": {"$exists": true}}', '{"n.x": true}', '{"n.y": {"$ne": true}}',
    '{"t": {"$date": "2024-01-31T12:00:00Z"}}', '{"l": {"$regex": "^y$"}}', '{"never": 1}',
]  # fmt: skip


class Nothing:
    """A store that no filter of this file reads."""

    def rows_of_ids(self, ids: Any) -> Any:
        raise AssertionError("ids are not asked for")

    def ids(self, rows: Any) -> Any:
        raise AssertionError("ids are not asked for")

    def documents(self, rows: Any) -> Any:
        raise AssertionError("documents are not asked for")


def masks(columns: Columns, start: int, stop: int) -> list[list[bool]]:
    return [evaluate(parse(f), columns, Nothing(), range(start, stop)).tolist() for f in FILTERS]


def filled(records: list[dict[str, Any]], cuts: list[int]) -> Columns:
    columns = Columns(100)
    for low, high in zip([0, *cuts], [*cuts, len(records)], strict=True):
        columns.extend(ColumnBatch.from_metadata(records[low:high]), low)
    return columns


def test_batches_add_up() -> None:
    """Rows that come in several batches are the same as rows that come in one."""
    records = RECORDS * 300  # Beyond the first capacity, so that arrays are replaced on the way.
    whole = filled(records, [])
    seed = 7
    print("seed", seed)
    cuts = np.sort(np.random.default_rng(seed).integers(0, len(records) + 1, 40)).tolist()
    steps = filled(records, cuts)
    assert steps.n_rows == whole.n_rows == len(records)
    assert steps.fields() == whole.fields()
    for start, stop in ((0, len(records)), (1000, 1100), (3, 3), (1023, 1025)):
        assert masks(steps, start, stop) == masks(whole, start, stop)


def test_what_is_prepared_and_does_not_come_changes_nothing() -> None:
    """A batch that was prepared is added as any other; one that never comes leaves no value and no field."""
    plain, prepared = filled(RECORDS[:2], [0, 2]), filled(RECORDS[:2], [0, 2])
    lost = [{"a": "lost", "s": "x2", "l": ["lost", 7]}, {"s": "y", "new": 1}]
    for records in (RECORDS[2:4], RECORDS[4:]):
        prepared.prepare(ColumnBatch.from_metadata(lost))
        batch = ColumnBatch.from_metadata(records)
        if len(records[0]) > 2:
            prepared.prepare(batch)
        prepared.extend(batch, prepared.n_rows)
        plain.extend(ColumnBatch.from_metadata(records), plain.n_rows)
    assert prepared.fields() == plain.fields()
    assert masks(prepared, 0, 6) == masks(plain, 0, 6)


def test_fields_count_rows_without_null() -> None:
    """`fields` counts the rows that have a path; null does not count, an empty list does."""
    columns = filled(RECORDS, [2])
    assert columns.fields() == {"a": 3, "s": 3, "l": 4, "n.x": 1, "n.y": 1, "t": 1}


def test_rows_left_out_are_missing() -> None:
    """A gap between batches reads as rows without metadata, at the end of a column too."""
    columns = Columns(10)
    columns.extend(ColumnBatch.from_metadata([{"a": 1}]), 0)
    columns.extend(ColumnBatch.from_metadata([{"a": 1}, {}]), 5)
    columns.extend(ColumnBatch.from_metadata([{}] * 5000), 7)
    found = evaluate(parse({"a": 1}), columns, Nothing(), range(columns.n_rows))
    assert np.flatnonzero(found).tolist() == [0, 5]
    assert np.count_nonzero(~found) == columns.n_rows - 2
    missing = evaluate(parse({"a": None}), columns, Nothing(), range(4, columns.n_rows))
    assert np.flatnonzero(~missing).tolist() == [1]


def test_rows_come_in_order() -> None:
    """A row that is there already cannot be given again."""
    columns = filled(RECORDS, [])
    with pytest.raises(Internal):
        columns.extend(ColumnBatch.from_metadata([{}]), 5)


def test_max_fields_is_checked_before_anything_changes() -> None:
    """Batches that together have too many paths are refused, and the columns stay as they were."""
    columns = Columns(3)
    columns.extend(ColumnBatch.from_metadata([{"a": 1, "b": {"c": 1}}]), 0)
    one, two = (ColumnBatch.from_metadata([{name: 1, "a": 1}]) for name in "xy")
    assert not columns.would_exceed(one)
    assert not columns.would_exceed(one, one)
    assert columns.would_exceed(one, two)
    columns.check(one)
    with pytest.raises(LimitExceeded) as caught:
        columns.check(one, two)
    assert caught.value.details["limit"] == 3
    assert columns.n_rows == 1
    assert columns.fields() == {"a": 1, "b.c": 1}
    columns.extend(one, 1)
    assert columns.fields() == {"a": 2, "b.c": 1, "x": 1}


def test_what_is_stored_is_never_refused() -> None:
    """A limit lowered since, or passed by an older version, keeps no stored row out."""
    columns = Columns(1)
    columns.extend(ColumnBatch.from_metadata([{"x": 1, "y": 1}]), 0)
    assert columns.fields() == {"x": 1, "y": 1}
    columns.check(ColumnBatch.from_metadata([{"x": 2}]))
    with pytest.raises(LimitExceeded):
        columns.check(ColumnBatch.from_metadata([{"z": 2}]))


def test_a_batch_has_no_more_paths_than_any_collection() -> None:
    """A batch with more paths than any collection may have is refused while it is pivoted."""
    with pytest.raises(LimitExceeded):
        ColumnBatch.from_metadata([{f"k{i}": 1 for i in range(65_536)}])


def test_null_brings_no_field() -> None:
    """A path that is only ever null takes no place among the fields."""
    batch = ColumnBatch.from_metadata([{"a": None, "b": {"c": None}}])
    assert dict(batch.fields) == {}
    assert batch.n_rows == 1


def test_memory_is_nine_bytes_a_row_and_field() -> None:
    """A full column of numbers takes nine bytes a row, of its capacity."""
    columns = Columns(10)
    columns.extend(ColumnBatch.from_metadata([{"a": i, "b": i / 2} for i in range(4096)]), 0)
    assert columns.nbytes == 2 * 9 * 4096


def test_readers_beside_the_writer() -> None:
    """Readers get exact answers for the rows they saw, while the writer appends and arrays move."""
    seed = 11
    print("seed", seed)
    rng = np.random.default_rng(seed)
    n = 12_000
    numbers = rng.integers(0, 50, n)
    records: list[dict[str, Any]] = [
        {
            "n": int(number) if row % 3 else float(number),
            "s": f"text {number} {row // 500}",
            "l": [f"e{number}", int(number)] if row % 2 else None,
            # A column that begins late, and one a thousand rows.
            **({"late": row} if row > 7000 else {}),
            f"f{row // 1000}": True,
        }
        for row, number in enumerate(numbers.tolist())
    ]
    rows = np.arange(n)
    expected = {
        '{"n": {"$lt": 10}}': numbers < 10,
        '{"s": {"$regex": "^text 7 "}}': numbers == 7,
        '{"s": {"$contains": "text 1"}}': (numbers == 1) | ((numbers >= 10) & (numbers < 20)),
        '{"l": "e7"}': (numbers == 7) & (rows % 2 == 1),
        '{"l": {"$in": [3, "e4"]}}': ((numbers == 3) | (numbers == 4)) & (rows % 2 == 1),
        '{"late": {"$gte": 0}}': rows > 7000,
        '{"f9": {"$ne": true}}': rows // 1000 != 9,
    }
    columns = Columns(100)
    done, looked = threading.Event(), threading.Event()
    failures: list[str] = []
    seen: set[int] = set()

    def read() -> None:
        parsed = [(parse(text), mask) for text, mask in expected.items()]
        while not failures:
            last = done.is_set()
            stop = columns.n_rows
            seen.add(stop)
            looked.set()
            start = max(0, stop - 1500)
            for one, mask in parsed:
                got = evaluate(one, columns, Nothing(), range(start, stop))
                if not np.array_equal(got, mask[start:stop]):
                    failures.append(f"{one.text} on [{start}, {stop})")
            if last:
                break

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    at = 0
    while at < n:
        size = int(rng.integers(1, 120))
        columns.extend(ColumnBatch.from_metadata(records[at : at + size]), at)
        if at // 1000 < (at + size) // 1000:
            # A writer that is let run may be done before they have looked a sixth time.
            looked.clear()
            assert looked.wait(60)
        at = min(at + size, n)
    done.set()
    for reader in readers:
        reader.join(60)
    assert not failures
    assert n in seen
    assert len(seen) > 5
