"""Ranks of rows by a metadata field, for ordered pages."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import Columns
from .pivot import DATETIME, FALSE, FLOAT, INT, STRING, TRUE
from .stopping import Interrupt

Ranks = NDArray[np.int64]

AT_ONCE = 8_192
"""Texts that are sorted in one step, a few milliseconds in which no other thread runs."""
_LOOKED_AT = 16
"""Texts for each part that say where parts should end: so no part is much larger than others."""


def order_of(texts: Sequence[str], interrupt: Interrupt) -> Ranks:
    """The places of distinct texts in the order of these, by code point. One call of `sorted` would keep all other threads
    from running for as long as it takes, so the texts are parted first, and the parts sorted one by one, with a call of
    `interrupt` before each. 1 to 1.5 us a text, half as much again as that one call."""
    n = len(texts)
    parts = -(-n // AT_ONCE)
    if parts <= 1:
        interrupt()
        return np.array(sorted(range(n), key=texts.__getitem__), np.int64)
    some = sorted(texts[:: max(1, n // (_LOOKED_AT * parts))])
    ends = some[_LOOKED_AT - 1 :: _LOOKED_AT]
    part_of = np.empty(n, np.int64)
    for at in range(0, n, AT_ONCE):
        interrupt()
        part_of[at : at + AT_ONCE] = [bisect_right(ends, one) for one in texts[at : at + AT_ONCE]]
    by_part = np.argsort(part_of, kind="stable")
    stops = np.cumsum(np.bincount(part_of, minlength=len(ends) + 1))
    for start, stop in zip([0, *stops[:-1].tolist()], stops.tolist(), strict=True):
        interrupt()
        by_part[start:stop] = sorted(by_part[start:stop].tolist(), key=texts.__getitem__)
    return by_part


def sort_ranks(
    columns: Columns, path: str, rows: Ranks, interrupt: Interrupt
) -> tuple[Ranks, NDArray[np.bool_]]:
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
    cells = column.cells(0, stop, np.ones(stop, np.bool_), interrupt)
    inside = rows < len(cells.tags)
    at = np.where(inside, rows, 0)
    if not len(cells.tags):
        return ranks, present
    tags, data = np.where(inside, cells.tags[at], 0), cells.data[at]
    offset = 0
    for group in ((FALSE, TRUE), (INT, FLOAT), (DATETIME,), (STRING,)):
        mine = np.isin(tags, group)
        if mine.any():
            interrupt()
            dense = _dense(group, tags[mine], data[mine], cells.strings, interrupt)
            ranks[mine] = dense + offset
            offset += int(dense.max()) + 1
            present |= mine
    return ranks, present


def _dense(
    group: tuple[int, ...],
    tags: NDArray[np.uint8],
    data: Ranks,
    strings: list[str],
    interrupt: Interrupt,
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
    rank_of[order_of(texts, interrupt)] = np.arange(len(codes))
    return rank_of[np.searchsorted(codes, data)]


def _positions(values: NDArray[Any]) -> Ranks:
    """Place of each value among the distinct ones."""
    return np.searchsorted(np.unique(values), values).astype(np.int64)
