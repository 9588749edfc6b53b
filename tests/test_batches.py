"""Whole batches: what is done at once for many records equals what is done for one after the other."""

from __future__ import annotations

import datetime as dt
import json
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecdb import ids as ids_module
from vecdb import metadata as meta
from vecdb.batch import check_columns
from vecdb.errors import InvalidBatch, InvalidMetadata, InvalidVector
from vecdb.ids import Ids
from vecdb.pivot import ColumnBatch
from vecdb.types import CollectionInfo, VectorSettings
from vecdb.vectors import check_named, check_queries

NOON = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=4),
    st.lists(st.integers(-3, 3) | st.text(max_size=2), max_size=3),
    st.just(NOON),
    st.dictionaries(st.sampled_from("pq"), st.integers(-3, 3), max_size=2),
)
KEYS = st.sampled_from(["a", "b", "c", "d.e"])
ALIKE = st.lists(KEYS, min_size=1, max_size=4, unique=True).flatmap(
    lambda keys: st.lists(
        st.fixed_dictionaries(dict.fromkeys(keys, VALUES)), min_size=1, max_size=6
    )
)
UNLIKE = st.lists(st.none() | st.dictionaries(KEYS, VALUES, max_size=4), min_size=1, max_size=6)


@pytest.mark.long
@given(ALIKE | UNLIKE)
def test_metadata_of_a_batch_is_encoded_as_record_by_record(entries):
    """Texts and values are the same, whether all records have the same keys or not."""
    texts, values, _ = meta.encode_all(entries, str)
    assert list(zip(texts, values, strict=True)) == [meta.encode(entry, "") for entry in entries]
    for given_entry, value in zip(entries, values, strict=True):
        assert value is not given_entry


JSON_TEXTS = st.one_of(
    st.text('{}[],: \n"a1', max_size=8).map(str.encode),
    st.dictionaries(KEYS, st.integers() | st.text("{}\n", max_size=2), max_size=2).map(
        lambda value: json.dumps(value, indent=1).encode()
    ),
    st.sampled_from([b'{"a":1}', b'{"a":1}{"a":2}', b'{"a":1},{"a":2}', b'{"a":[1', b"2]}", b" "]),
)


@given(st.lists(JSON_TEXTS, min_size=1, max_size=4))
def test_metadata_given_as_json_is_read_as_record_by_record(entries):
    """Texts of a batch give what each gives alone, and are refused where one is no object, whatever the others make
    of it together."""
    try:
        wanted = [meta.encode(entry, "") for entry in entries]
    except InvalidMetadata:
        with pytest.raises(InvalidMetadata):
            meta.encode_all(entries, str)
    else:
        texts, values, _ = meta.encode_all(entries, str)
        assert list(zip(texts, values, strict=True)) == wanted


@given(ALIKE | UNLIKE)
def test_records_that_are_alike_give_the_same_columns(entries):
    """A record without metadata among them makes the batch go the general way, to the same values."""
    _, values, columns = meta.encode_all(entries, str)
    general = ColumnBatch.from_metadata([*values, {}])
    for alike in (ColumnBatch.from_metadata(values), ColumnBatch.from_metadata(values, columns)):
        assert alike.n_rows == len(values)
        assert alike.fields.keys() == general.fields.keys()
        for path, column in alike.fields.items():
            same_values(column, general.fields[path])


def same_values(one, other):
    for part in ("offsets", "tags", "data"):
        assert np.array_equal(getattr(one, part), getattr(other, part)), part
    assert one.strings == other.strings
    assert (one.elements is None) == (other.elements is None)
    if one.elements is not None and other.elements is not None:
        same_values(one.elements, other.elements)


@pytest.mark.parametrize(
    "bad", [2**63, -(2**63) - 1, float("nan"), float("inf"), "\ud800", b"x", object(), "x" * 2**20]
)
def test_a_bad_value_in_a_batch_is_found(bad):
    """One bad value among many records that are alike is refused, with its record."""
    entries = [{"a": 1, "b": "x"} for _ in range(50)]
    entries[37]["b"] = bad
    with pytest.raises(InvalidMetadata, match="number 37"):
        meta.encode_all(entries, lambda i: f"number {i}")


@pytest.mark.parametrize("key", ["id", "", "$x", 5])
def test_a_bad_key_in_a_batch_is_found(key):
    """A key that no record may have is refused, though all records have it."""
    with pytest.raises(InvalidMetadata, match="number 0"):
        meta.encode_all([{"a": 1, key: 2}] * 10, lambda i: f"number {i}")


def test_what_the_caller_changes_later_is_not_stored():
    """A batch keeps copies of the mappings it was given."""
    entries = [{"a": 1}, {"a": 2}]
    values = meta.encode_all(entries, str).values
    entries[0]["a"] = 99
    assert values == [{"a": 1}, {"a": 2}]


@given(st.lists(st.lists(st.text(max_size=40).map(str.encode), max_size=50), max_size=20))
def test_ids_come_back_in_any_order(batches):
    """Ids of any lengths, appended in any portions, are read by row, twice the same."""
    ids, expected = Ids(), []
    for n, batch in enumerate(batches):
        if n % 2:
            ids.append(batch)
        else:
            ids.append_packed(np.array([len(i) for i in batch], np.int64), b"".join(batch))
        expected += [i.decode() for i in batch]
    assert ids.n_rows == len(expected)
    rows = np.random.default_rng(len(expected)).permutation(len(expected))
    for wanted in (rows, rows[:3], rows[:0], np.arange(len(expected)), rows[: len(rows) // 2 * 2]):
        assert ids.take(wanted) == [expected[row] for row in wanted.tolist()]
        pairs = wanted[: len(wanted) // 2 * 2].reshape(-1, 2)
        assert ids.take_each(pairs) == [[expected[a], expected[b]] for a, b in pairs.tolist()]


def test_texts_of_ids_are_kept_within_bounds(monkeypatch):
    """Ids of many rows are kept as texts, of a bounded number of rows, and are right before and after."""
    monkeypatch.setattr(ids_module, "_KEPT_TEXTS", 500)
    ids, rng = Ids(), np.random.default_rng(7)
    ids.append([b"record %d" % row for row in range(3_000)])
    empty, most = ids.nbytes, 0
    for _ in range(40):
        rows = rng.integers(0, 3_000, 200)
        assert ids.take(rows) == [f"record {row}" for row in rows.tolist()]
        most = max(most, ids.nbytes)
    assert empty + 9 * 3_000 < most <= empty + 9 * 3_000 + 80 * (500 + 200)


def test_ids_are_read_while_they_grow():
    """Rows that are published are read right by other threads while more are appended."""
    ids, published, failures = Ids(), [0], []

    def read():
        rng = np.random.default_rng(threading.get_ident() % 1_000)
        while published[0] < 60_000:
            rows = rng.integers(0, max(1, published[0]), rng.choice((20, 200)))
            if published[0] and ids.take(rows) != [f"record {row}" for row in rows.tolist()]:
                failures.append(rows)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for first in range(0, 60_000, 300):
        ids.append([b"record %d" % row for row in range(first, first + 300)])
        published[0] = first + 300
    for reader in readers:
        reader.join()
    assert failures == []


def test_texts_of_ids_are_replaced_while_rows_come(monkeypatch):
    """Where a reader gives up the texts that are kept while an appender makes room, later rows are found too."""
    monkeypatch.setattr(ids_module, "_KEPT_TEXTS", 0)
    ids, growing = Ids(), []
    ids.append([b"record %d" % row for row in range(900)])
    ids.take(np.arange(450))

    def grown(capacity):
        if not growing:
            more = [b"record %d" % row for row in range(900, 3_000)]
            growing.append(threading.Thread(target=ids.append, args=(more,)))
            growing[0].start()
            growing[0].join(0.2)
        return made(capacity)

    made = ids_module._Texts
    monkeypatch.setattr(ids_module, "_Texts", grown)
    assert ids.take(np.arange(450, 600))[-1] == "record 599"
    growing[0].join()
    assert ids.take(np.arange(3_000))[-1] == "record 2999"


def test_named_vectors_are_spread_over_the_batch():
    """Fields come by number, with zeros where a record has none; what nobody has is left out."""
    fields = {
        "a": VectorSettings(2, metric="l2"),
        "b": VectorSettings(16, metric="hamming", storage="binary"),
        "c": VectorSettings(2, storage="int8", metric="l2"),
    }
    found = check_named(
        fields, {"c": [[1, 2], None], "b": [None, None], "a": np.ones((2, 2))}, 2, str
    )
    assert list(found) == [1, 3]
    vectors, there = found[3]
    assert (vectors.tolist(), vectors.dtype, there.tolist()) == (
        [[1, 2], [0, 0]], np.int8, [True, False],
    )  # fmt: skip
    for bad in ({"d": [[1, 2]] * 2}, {"a": [[1, 2]]}, {"a": [None] * 3}, [1, 2]):
        with pytest.raises(InvalidBatch):
            check_named(fields, bad, 2, str)


def test_queries_are_float32_whatever_is_stored():
    """Queries of whole-number storages may be any numbers; those of bits are bytes."""
    for storage in ("float32", "float16", "int8", "uint8"):
        queries = check_queries(VectorSettings(2, "l2", storage), [[0.5, -300]])
        assert (queries.dtype, queries.tolist()) == (np.float32, [[0.5, -300]])
    bits = VectorSettings(16, "hamming", "binary")
    queries = check_queries(bits, [1, 255])
    assert (queries.dtype, queries.tolist()) == (np.uint8, [[1, 255]])
    for bad in ([[1, 2, 3]], [[1, 256]], [[1, 0.5]], np.ones((1, 16), np.bool_)):
        with pytest.raises(InvalidVector):
            check_queries(bits, bad)


def test_a_batch_without_named_vectors_has_none():
    """Collections without named fields pay nothing for them."""
    info = CollectionInfo("docs", 2)
    assert check_columns(info, ["a"], [[1, 2]], None, None, None, None).named == {}
