"""Ranks of rows by a metadata field, for ordered pages."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import Columns
from .pivot import DATETIME, FALSE, FLOAT, INT, STRING, TRUE

Ranks = NDArray[np.int64]


def sort_ranks(columns: Columns, path: str, rows: Ranks) -> tuple[Ranks, NDArray[np.bool_]]:
    """(rank of each row, whether it has the field); equal values share a rank.

    Values of one type follow each other: false and true, then numbers (int and float by value), then
    datetimes, then strings by code point. Lists have no order and count as missing. Costs a sort of
    the rows' values, and of the distinct strings among them.
    """
    ranks = np.zeros(len(rows), np.int64)
    present = np.zeros(len(rows), np.bool_)
    column = columns.column(path)
    if column is None or not len(rows):
        return ranks, present
    stop = int(rows.max()) + 1
    cells = column.cells(0, stop, np.ones(stop, np.bool_), lambda: None)
    inside = rows < len(cells.tags)
    at = np.where(inside, rows, 0)
    if not len(cells.tags):
        return ranks, present
    tags, data = np.where(inside, cells.tags[at], 0), cells.data[at]
    offset = 0
    for group in ((FALSE, TRUE), (INT, FLOAT), (DATETIME,), (STRING,)):
        mine = np.isin(tags, group)
        if mine.any():
            dense = _dense(group, tags[mine], data[mine], cells.strings)
            ranks[mine] = dense + offset
            offset += int(dense.max()) + 1
            present |= mine
    return ranks, present


def _dense(
    group: tuple[int, ...], tags: NDArray[np.uint8], data: Ranks, strings: list[str]
) -> Ranks:
    """Ranks 0, 1, … of the values of one type."""
    if group == (FALSE, TRUE):
        ones: Ranks = (tags == TRUE).astype(np.int64)
        return ones
    if group == (INT, FLOAT) and (tags == FLOAT).any():
        # Wide enough on Linux for every int64 and every float64 at once.
        wide = data.astype(np.longdouble)
        return _positions(np.where(tags == FLOAT, data.view(np.float64), wide))
    if group != (STRING,):
        return _positions(data)
    codes = np.unique(data)
    texts = [strings[code] for code in codes.tolist()]
    rank_of = np.empty(len(codes), np.int64)
    rank_of[sorted(range(len(codes)), key=texts.__getitem__)] = np.arange(len(codes))
    return rank_of[np.searchsorted(codes, data)]


def _positions(values: NDArray[Any]) -> Ranks:
    """Place of each value among the distinct ones."""
    return np.searchsorted(np.unique(values), values).astype(np.int64)
