"""Turns a batch of metadata, one dict a record, into typed values by path.

Pure, so it runs outside the writer lane. Strings get codes of the batch here, which `Columns` maps
to its own later: a string that occurs often is looked up once.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import LimitExceeded

MISSING, FALSE, TRUE, INT, FLOAT, DATETIME, STRING, LIST = range(8)
N_TAGS = 8
"""Tags of values, uint8. MISSING is 0, so that untouched memory reads as missing."""

AT_ONCE = 16_384
"""Values that are gone over in one step of C, in which no other thread gets the interpreter: 1 to 5 ms."""
MAX_PATHS = 65_535
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def microseconds(moment: dt.datetime) -> int:
    """Microseconds from 1970 to an aware datetime, exact."""
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


@dataclass(frozen=True, slots=True)
class Values:
    """The values of one path in a batch, or the elements of its lists; nulls are left out."""

    offsets: NDArray[np.int64]
    """Row of each value, counted from the batch's first; shape (n,), ascending."""
    tags: NDArray[np.uint8]
    data: NDArray[np.int64]
    """Shape (n,): by tag the int, the bits of the float64, microseconds, or a position in `strings`."""
    strings: list[str]
    elements: Values | None = None
    """Elements of the rows tagged LIST, their strings in the same `strings`."""


@dataclass(frozen=True, slots=True)
class ColumnBatch:
    """A batch pivoted to columns. Fields that are null everywhere do not occur."""

    n_rows: int
    fields: Mapping[str, Values]

    @classmethod
    def from_metadata(
        cls,
        metadata: Sequence[Mapping[str, Any]],
        columns: Mapping[str, list[Any]] | None = None,
    ) -> ColumnBatch:
        """From normalised metadata (`metadata.encode`, `decode`), one entry a row. About 0.4 us a value,
        and a quarter of that where all records have the same keys.

        `columns` are the same by key, see `metadata.Encoded`. LimitExceeded beyond 65,535 distinct
        paths, more than any collection may have.
        """
        alike = _alike(metadata, columns)
        if alike is not None:
            alike.make_large()
            return cls(len(metadata), alike)
        found: dict[str, tuple[list[int], list[Any]]] = {}
        for offset, record in enumerate(metadata):
            if record:
                _collect(found, offset, record, "")
        return cls(
            len(metadata), {path: _values(*pair, _kinds(pair[1])) for path, pair in found.items()}
        )


class _Pivoted(Mapping[str, Values]):
    """Values by path, each made when it is first asked for: an insert needs the paths before its commit,
    and the values after it. Given offsets, items (without None) and their types by path."""

    def __init__(self, given: dict[str, tuple[NDArray[np.int64], list[Any], set[type]]]) -> None:
        self._given = given
        self._made: dict[str, Values] = {}

    def make_large(self) -> None:
        """Makes what takes long by now: before the commit nobody waits for it but its caller."""
        for path, (_, items, kinds) in self._given.items():
            if list in kinds and sum(len(one) for one in items if type(one) is list) > AT_ONCE:
                self[path]

    def __getitem__(self, path: str) -> Values:
        made = self._made.get(path)
        if made is None:
            made = self._made[path] = _values(*self._given[path])
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


def pivoted(
    columns: Iterable[tuple[str, list[Any]]], offsets: NDArray[np.int64]
) -> _Pivoted | None:
    """Values by path of flat records given as lists, one a key, with an item (or None) at each of
    `offsets`. None where an item is a mapping: its keys are paths of their own."""
    found: dict[str, tuple[NDArray[np.int64], list[Any], set[type]]] = {}
    for key, items in columns:
        kinds = _kinds(items)
        if dict in kinds:
            return None
        if kinds <= {type(None)}:
            continue
        at = offsets
        if type(None) in kinds:
            kinds.discard(type(None))
            there = [place for place, item in enumerate(items) if item is not None]
            at, items = offsets[there], [items[place] for place in there]
        found[key] = at, items, kinds
    return _Pivoted(found)


def _alike(
    metadata: Sequence[Mapping[str, Any]], columns: Mapping[str, list[Any]] | None
) -> _Pivoted | None:
    """Values by path of flat records that have the same keys; None for all others."""
    keys = tuple(metadata[0]) if metadata else ()
    if not keys or len(keys) > MAX_PATHS:
        return None
    if columns is not None:
        return pivoted(columns.items(), np.arange(len(metadata)))
    if set(map(len, metadata)) != {len(keys)}:
        return None
    try:
        made = ((key, [record[key] for record in metadata]) for key in keys)
        return pivoted(made, np.arange(len(metadata)))
    except KeyError:
        return None


def _collect(
    found: dict[str, tuple[list[int], list[Any]]],
    offset: int,
    value: Mapping[str, Any],
    prefix: str,
) -> None:
    for key, item in value.items():
        if item is None:
            continue
        path = prefix + key if prefix else key
        if type(item) is dict:
            _collect(found, offset, item, path + ".")
            continue
        pair = found.get(path)
        if pair is None:
            if len(found) >= MAX_PATHS:
                raise LimitExceeded(
                    f"a batch may have {MAX_PATHS:,} distinct metadata paths, given more; keep "
                    "values out of keys",
                    limit=MAX_PATHS,
                )
            pair = found[path] = ([], [])
        pair[0].append(offset)
        pair[1].append(item)


def _values(rows: list[int] | NDArray[np.int64], items: list[Any], kinds: set[type]) -> Values:
    """`kinds` are the types of the items."""
    # Counts on at each new string, without a step of Python.
    codes: defaultdict[str, int] = defaultdict(count().__next__)
    offsets = np.array(rows, np.int64)
    tags, data = _typed(items, kinds, codes)
    elements = None
    if list in kinds:
        lists = np.flatnonzero(tags == LIST)
        owners: list[int] = []
        flat: list[Any] = []
        for position in lists.tolist():
            present = [item for item in items[position] if item is not None]
            flat += present
            owners += [int(rows[position])] * len(present)
        elements = Values(np.array(owners, np.int64), *_typed(flat, _kinds(flat), codes), [])
    return Values(offsets, tags, data, list(codes), elements)


def _typed(
    items: list[Any], kinds: set[type], codes: defaultdict[str, int]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Tags and data of plain values; new strings are added to `codes`."""
    if len(kinds) <= 1:
        return _uniform(next(iter(kinds), list), items, codes)
    tags = np.empty(len(items), np.uint8)
    data = np.empty(len(items), np.int64)
    for kind in kinds:
        at = [i for i, item in enumerate(items) if type(item) is kind]
        tags[at], data[at] = _uniform(kind, [items[i] for i in at], codes)
    return tags, data


def _kinds(items: list[Any]) -> set[type]:
    return set(map(type, items))


def _uniform(
    kind: type, items: list[Any], codes: defaultdict[str, int]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    n = len(items)
    if kind is bool:
        return np.where(np.array(items, np.bool_), np.uint8(TRUE), np.uint8(FALSE)), np.zeros(
            n, np.int64
        )
    if kind is int:
        return np.full(n, INT, np.uint8), _numbers(items, np.int64)
    if kind is float:
        return np.full(n, FLOAT, np.uint8), _numbers(items, np.float64).view(np.int64)
    if kind is str:
        coded = np.empty(n, np.int64)
        for at in range(0, n, AT_ONCE):
            some = items[at : at + AT_ONCE]
            coded[at : at + AT_ONCE] = np.fromiter(
                map(codes.__getitem__, some), np.int64, len(some)
            )
        return np.full(n, STRING, np.uint8), coded
    if kind is dt.datetime:
        moments = [microseconds(item) for item in items]
        return np.full(n, DATETIME, np.uint8), np.array(moments, np.int64)
    return np.full(n, LIST, np.uint8), np.zeros(n, np.int64)


def _numbers(items: list[Any], kind: type) -> NDArray[Any]:
    numbers: NDArray[Any] = np.empty(len(items), kind)
    for at in range(0, len(items), AT_ONCE):
        numbers[at : at + AT_ONCE] = items[at : at + AT_ONCE]
    return numbers
