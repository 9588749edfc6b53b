"""What can be asked of a value, evaluated over typed columns and over plain text.

One class an operator. Each answers for the values of a column at once (`holds`), for elements of
lists (`holds_in_list`), and for texts that are no column, such as ids and documents (`texts`).
Negative operators do not exist here: they are complements, made one level up.

Ints and floats compare as exact numbers: the bound is converted to the type of the column.
Text is asked once a distinct string, then looked up by code. Threads: any; predicates never change.
"""

from __future__ import annotations

import datetime as dt
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import re2

from .columns import Cells, Column
from .comparisons import (
    FEW,
    Mask,
    by_code,
    by_string,
    float_bound,
    int_bound,
    member,
    nearest,
    ordered,
    union,
)
from .pivot import DATETIME, FALSE, FLOAT, INT, MISSING, STRING, TRUE, microseconds
from .scalars import INT64_MAX, INT64_MIN
from .types import Scalar

_REGEX_MEMORY_BYTES = 1 << 20


class Predicate(Protocol):
    """A positive question. Masks are bool, shape (n,), and mean nothing where not wanted."""

    def holds(self, cells: Cells) -> Mask:
        """For the values of rows; False for lists and for what is missing."""

    def holds_in_list(self, cells: Cells) -> Mask:
        """For the elements of lists."""

    def texts(self, values: Sequence[str]) -> list[bool]:
        """For texts, one answer each."""


class Equal:
    """Whether a value equals one of the operands, which are not null."""

    def __init__(self, operands: Iterable[Scalar]) -> None:
        ints: set[int] = set()
        floats: set[float] = set()
        self._tags: list[int] = []
        self._strings: set[str] = set()
        moments: set[int] = set()
        for item in operands:
            if isinstance(item, bool):
                self._tags.append(TRUE if item else FALSE)
            elif isinstance(item, str):
                self._strings.add(item)
            elif isinstance(item, dt.datetime):
                moments.add(microseconds(item))
            elif isinstance(item, (int, float)):
                if item == int(item) and INT64_MIN <= item <= INT64_MAX:
                    ints.add(int(item))
                if (near := nearest(item)) == item:
                    floats.add(near)
        self._ints = np.array(sorted(ints), np.int64)
        self._floats = np.array(sorted(floats), np.float64)
        self._moments = np.array(sorted(moments), np.int64)

    def holds(self, cells: Cells) -> Mask:
        masks = [cells.tags == tag for tag in self._tags if cells.counts[tag]]
        for tag, operands in ((INT, self._ints), (DATETIME, self._moments)):
            if len(operands) and cells.counts[tag]:
                masks.append(member(cells.data, operands) & (cells.tags == tag))
        if len(self._floats) and cells.counts[FLOAT]:
            data = cells.data.view(np.float64)
            masks.append(member(data, self._floats) & (cells.tags == FLOAT))
        codes = sorted(cells.codes[text] for text in self._strings if text in cells.codes)
        if len(codes) > FEW:
            answers = np.zeros(len(cells.strings), np.bool_)
            answers[codes] = True
            masks.append(by_code(cells, answers) & (cells.tags == STRING))
        elif codes:
            operands = np.array(codes, np.int64)
            masks.append(member(cells.data, operands) & (cells.tags == STRING))
        return union(masks, cells)

    def holds_in_list(self, cells: Cells) -> Mask:
        return self.holds(cells)

    def texts(self, values: Sequence[str]) -> list[bool]:
        return [text in self._strings for text in values]


class Compare:
    """Whether a value of the bound's type stands in the order `$gt $gte $lt $lte` to the bound."""

    def __init__(self, op: str, bound: str | float | dt.datetime) -> None:
        self._op = op
        self._bound = bound

    def holds(self, cells: Cells) -> Mask:
        op, bound = self._op, self._bound
        if isinstance(bound, str):
            return by_string(cells, self.texts)
        if isinstance(bound, dt.datetime):
            moments = ordered(cells.data, op, microseconds(bound))
            return union([moments & (cells.tags == DATETIME)], cells)
        masks: list[Mask] = []
        if cells.counts[INT]:
            masks.append(ordered(cells.data, *int_bound(op, bound)) & (cells.tags == INT))
        if cells.counts[FLOAT]:
            data = cells.data.view(np.float64)
            masks.append(ordered(data, *float_bound(op, bound)) & (cells.tags == FLOAT))
        return union(masks, cells)

    def holds_in_list(self, cells: Cells) -> Mask:
        return self.holds(cells)

    def texts(self, values: Sequence[str]) -> list[bool]:
        compare, bound = _PYTHON[self._op], self._bound
        if not isinstance(bound, str):
            return [False] * len(values)
        return [compare(text, bound) for text in values]


class Contains:
    """Whether text contains the operand, or a list has an element that equals it."""

    def __init__(self, operand: Scalar) -> None:
        self._operand = operand
        self._element = Equal((operand,))

    def holds(self, cells: Cells) -> Mask:
        if isinstance(self._operand, str):
            return by_string(cells, self.texts)
        return union([], cells)

    def holds_in_list(self, cells: Cells) -> Mask:
        return self._element.holds(cells)

    def texts(self, values: Sequence[str]) -> list[bool]:
        part = self._operand
        if not isinstance(part, str):
            return [False] * len(values)
        return [part in text for text in values]


class Regex:
    """Whether an RE2 pattern is found anywhere in text; ValueError, with RE2's words, if it is none.

    RE2 takes time linear in the text whatever the pattern, and memory is bounded here.
    """

    def __init__(self, pattern: str) -> None:
        options = re2.Options()
        options.max_mem = _REGEX_MEMORY_BYTES
        options.log_errors = False
        options.never_capture = True  # Only whether it matches is asked; groups cost time.
        try:
            self._search = re2.compile(pattern.encode(), options).search
        except re2.error as error:
            words = error.args[0] if error.args else "not understood"
            raise ValueError(
                words.decode(errors="replace") if isinstance(words, bytes) else str(words)
            ) from None

    def holds(self, cells: Cells) -> Mask:
        return by_string(cells, self.texts)

    def holds_in_list(self, cells: Cells) -> Mask:
        return by_string(cells, self.texts)

    def texts(self, values: Sequence[str]) -> list[bool]:
        # As bytes: re2 spends most of its time on turning offsets into characters otherwise.
        search = self._search
        return [search(text.encode()) is not None for text in values]


class Exists:
    """Whether there is a value at all; an empty list is one."""

    def holds(self, cells: Cells) -> Mask:
        mask: Mask = cells.tags != MISSING
        return mask

    def holds_in_list(self, cells: Cells) -> Mask:
        return np.zeros(len(cells.tags), np.bool_)

    def texts(self, values: Sequence[str]) -> list[bool]:
        return [True] * len(values)


def field_mask(
    column: Column | None,
    predicate: Predicate,
    start: int,
    stop: int,
    wanted: Mask,
    interrupt: Callable[[], None],
) -> Mask:
    """Where `predicate` holds for rows [start, stop): bool, shape (stop - start,), new.

    For a list it holds when it does for any element. None as the column: missing everywhere.
    """
    mask = np.zeros(stop - start, np.bool_)
    if column is None:
        return mask
    cells = column.cells(start, stop, wanted, interrupt)
    mask[: len(cells.tags)] = predicate.holds(cells)
    if column.has_lists:
        rows, elements = column.elements(start, stop, wanted, interrupt)
        mask[rows[predicate.holds_in_list(elements)] - start] = True
    return mask


_PYTHON: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
