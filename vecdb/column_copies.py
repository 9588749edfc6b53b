"""Whether a column in memory, and the order of its values, is what the stored metadata say."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from .columns import Cells, Column, ColumnMoment
from .pivot import DATETIME, FLOAT, INT, MISSING, N_TAGS, STRING, Values
from .postings import Sorted
from .stopping import Interrupt

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]

_NOBODY = np.empty(0, np.bool_)
"""For whom answers matter: nobody asks, all are compared."""
_POSITIONS = 1 << 17
"""Positions of an order that are looked at at once: some milliseconds."""


class ColumnFaults:
    """What differs between one column and the stored values of its path, block by block of rows."""

    def __init__(self, path: str, moment: ColumnMoment) -> None:
        self.path = path
        self.moment = moment
        self._column: Column = moment.column
        self._rows, self._first = 0, -1
        self._tags = np.zeros(N_TAGS, np.int64)
        self._element_tags = np.zeros(N_TAGS, np.int64)

    @property
    def found(self) -> bool:
        """Whether values differ."""
        return self._rows > 0

    def compare(self, values: Values | None, start: int, purged: Mask) -> None:
        """Compares a block of rows from `start` on with what is stored of them, None where that is nothing.

        What was purged is in the store no more; in memory it stays until the columns are made anew.
        """
        n = len(purged)
        cells = self._column.cells(start, start + n, _NOBODY, _never)
        tags, data = np.zeros(n, np.uint8), np.zeros(n, np.int64)
        tags[: len(cells.tags)], data[: len(cells.tags)] = cells.tags, cells.data
        self._tags += np.bincount(tags, minlength=N_TAGS)[:N_TAGS]
        wanted_tags, wanted = np.zeros(n, np.uint8), np.zeros(n, np.int64)
        codes = self._codes_of(values, cells)
        if values is not None:
            wanted_tags[values.offsets] = values.tags
            wanted[values.offsets] = _coded(values, codes)
        different = (tags != wanted_tags) | ((wanted_tags != MISSING) & (data != wanted))
        different |= self._lists_differ(values, codes, start, purged)
        different &= ~purged
        rows = np.flatnonzero(different)
        if len(rows):
            self._first = start + int(rows[0]) if self._first < 0 else self._first
            self._rows += len(rows)

    def _codes_of(self, values: Values | None, cells: Cells) -> Rows:
        """The column's code of each string of a block, -1 where it has none or tells another string by it."""
        if values is None:
            return np.empty(0, np.int64)
        found = [cells.codes.get(text, -1) for text in values.strings]
        known = len(cells.strings)
        for n, code in enumerate(found):
            if not 0 <= code < known or cells.strings[code] != values.strings[n]:
                found[n] = -1
        return np.array(found, np.int64)

    def _lists_differ(self, values: Values | None, codes: Rows, start: int, purged: Mask) -> Mask:
        """Of which rows of the block the elements of their lists differ."""
        different = np.zeros(len(purged), np.bool_)
        owners, cells = self._column.elements(start, start + len(purged), _NOBODY, _never)
        self._element_tags += np.bincount(cells.tags, minlength=N_TAGS)[:N_TAGS]
        stays = ~purged[owners]
        owners, tags, data = owners[stays], cells.tags[stays], cells.data[stays]
        elements = None if values is None else values.elements
        if elements is None:
            different[owners] = True
            return different
        wanted = _coded(elements, codes)
        lengths = np.bincount(owners, minlength=len(purged))
        wanted_lengths = np.bincount(elements.offsets, minlength=len(purged))
        different |= lengths != wanted_lengths
        # Of rows that have as many elements as they should, these stand in the same order on both sides.
        same = ~different
        mine, theirs = same[owners], same[elements.offsets]
        apart = (tags[mine] != elements.tags[theirs]) | (data[mine] != wanted[theirs])
        different[owners[mine][apart]] = True
        return different

    def sentences(self) -> Iterator[str]:
        """What is wrong with the column, once all blocks have been compared."""
        if self._rows:
            more = f" and {self._rows - 1} more" if self._rows > 1 else ""
            yield (
                f"metadata {self.path!r} of row {self._first}{more} is held with another value than is stored"
            )
        for what, counted, there in (
            ("values", self.moment.counts, self._tags),
            ("elements of lists", self.moment.element_counts, self._element_tags),
        ):
            # Of what is missing nothing is counted.
            if (counted[MISSING + 1 :] != there[MISSING + 1 :]).any():
                yield (
                    f"metadata {self.path!r}: {counted[1:].sum()} {what} are counted by type as "
                    f"{counted[1:].tolist()}, there are {there[1:].tolist()}"
                )


def _coded(values: Values, codes: Rows) -> Rows:
    """The data of values as a column holds them, with its own codes of strings."""
    data = values.data
    strings = values.tags == STRING
    if strings.any():
        data = np.where(strings, codes.take(data, mode="clip"), data)
    return data


def faults_of_postings(path: str, moment: ColumnMoment, interrupt: Interrupt) -> Iterator[str]:
    """What is wrong with the order of the values of a column that holds the right ones."""
    postings = moment.postings
    if postings is None:
        return
    column = moment.column
    n = postings.n_rows
    owners, elements = column.elements(0, n, _NOBODY, _never)
    in_rows, in_elements = column.in_order(postings)
    for what, ordered, tags, wanted in (
        ("values", in_rows, column.cells(0, n, _NOBODY, _never).tags, n),
        ("elements of lists", in_elements, elements.tags, len(owners)),
    ):
        if ordered.order.n != wanted or not _is_order(ordered, tags, interrupt):
            yield f"metadata {path!r}: the sorted order of its {what} is not that of what is stored"


def _is_order(ordered: Sorted, tags: NDArray[np.uint8], interrupt: Interrupt) -> bool:
    """Whether an order names each position of each type once, by value and then by position."""
    order = ordered.order
    counts = np.bincount(tags, minlength=N_TAGS)[:N_TAGS]
    if order.starts != [0, 0, *np.cumsum(counts[MISSING + 1 :]).tolist()]:
        return False
    if len(order.positions) != order.starts[-1]:
        return False
    for tag in range(MISSING + 1, N_TAGS):
        begin, end = order.starts[tag], order.starts[tag + 1]
        for start in range(begin, end, _POSITIONS):
            interrupt()
            # One more, so that each is compared with the next one across blocks too.
            at = order.positions[start : min(start + _POSITIONS + 1, end)].astype(np.int64)
            if (at >= len(tags)).any() or (tags[at] != tag).any():
                return False
            ascending = at[1:] > at[:-1]
            if tag in (INT, FLOAT, DATETIME, STRING):
                data = ordered.data[at]
                data = data.view(np.float64) if tag == FLOAT else data
                ascending = (data[1:] > data[:-1]) | ((data[1:] == data[:-1]) & ascending)
            if not ascending.all():
                return False
    return True


def _never() -> None:
    """What takes milliseconds is not interrupted."""
