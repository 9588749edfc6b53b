"""What can be asked of a value, evaluated over typed columns and over plain text.

One class an operator. Each answers for the values of a column at once (`holds`), for elements of
lists (`holds_in_list`), for values in sorted order (`runs`, `runs_in_list`), and for texts that are no
column, such as ids and documents (`texts`). Negative operators do not exist here: they are
complements, made one level up.

Ints and floats compare as exact numbers: the bound is converted to the type of the column.
Text is asked once a distinct string, then looked up by code. Threads: any; predicates never change.
"""

from __future__ import annotations

import datetime as dt
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import long_texts
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
    typed,
    union,
)
from .pivot import DATETIME, FALSE, FLOAT, INT, MISSING, N_TAGS, STRING, TRUE, microseconds
from .postings import Run, Sorted, overlap
from .regex_worker import compiled
from .scalars import INT64_MAX, INT64_MIN
from .selection import MOST_LISTED, once
from .stopping import Interrupt, endless
from .types import Scalar

Rows = NDArray[np.int64]

MOST_SORTED = 64
"""Rows that have to be sorted first are listed up to this part of all; a mask is made sooner then."""
_MOST_LOOKED_UP = 128
"""Operands beyond this are compared in one pass over the column, which takes as long by then."""
_REGEX_WORK = 1 << 25
"""Instructions of a pattern times bytes that are searched without a look at any limit: 0.01 s as a rule, 0.3 s at worst
(2 to 7 ns for both, where RE2 has to follow every way through the pattern at once)."""
_REGEX_FIRST_BYTES = 1 << 16
"""What is looked at first of a text that another process would be asked for."""


class Predicate(Protocol):
    """A positive question. Masks are bool, shape (n,), new, and mean nothing where not wanted."""

    def by_order(self, column: Column) -> bool:
        """Whether sorted values can answer; otherwise `runs` must not be asked."""

    def runs(self, values: Sorted) -> list[Run]:
        """Where it holds among the values of rows in sorted order: ascending and apart."""

    def runs_in_list(self, values: Sorted) -> list[Run]:
        """Where it holds among the elements of lists."""

    def holds(self, cells: Cells) -> Mask:
        """For the values of rows; False for lists and for what is missing."""

    def holds_in_list(self, cells: Cells) -> Mask:
        """For the elements of lists."""

    def texts(self, values: Sequence[str], interrupt: Interrupt) -> list[bool]:
        """For texts, one answer each. `interrupt` is called where it takes long, and may raise."""


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

    def by_order(self, column: Column) -> bool:
        numbers = (len(some) for some in (self._ints, self._floats, self._moments, self._strings))
        return sum(numbers) <= _MOST_LOOKED_UP

    def runs(self, values: Sorted) -> list[Run]:
        codes = sorted(values.codes[text] for text in self._strings if text in values.codes)
        found: list[Run] = []
        for tag in sorted(set(self._tags)):
            found += values.of_type(tag)
        found += values.equal(INT, self._ints.tolist())
        found += values.equal(FLOAT, self._floats.tolist())
        found += values.equal(DATETIME, self._moments.tolist())
        return found + values.equal(STRING, codes)

    def runs_in_list(self, values: Sorted) -> list[Run]:
        return self.runs(values)

    def holds(self, cells: Cells) -> Mask:
        masks = [cells.tags == tag for tag in self._tags if cells.counts[tag]]
        for tag, operands in ((INT, self._ints), (DATETIME, self._moments)):
            if len(operands) and cells.counts[tag]:
                masks.append(typed(cells, tag, member(cells.data, operands)))
        if len(self._floats) and cells.counts[FLOAT]:
            data = cells.data.view(np.float64)
            masks.append(typed(cells, FLOAT, member(data, self._floats)))
        codes = sorted(cells.codes[text] for text in self._strings if text in cells.codes)
        if len(codes) > FEW:
            answers = np.zeros(len(cells.strings), np.bool_)
            answers[codes] = True
            masks.append(typed(cells, STRING, by_code(cells, answers)))
        elif codes:
            masks.append(typed(cells, STRING, member(cells.data, np.array(codes, np.int64))))
        return union(masks, cells)

    def holds_in_list(self, cells: Cells) -> Mask:
        return self.holds(cells)

    def texts(self, values: Sequence[str], interrupt: Interrupt) -> list[bool]:
        return [text in self._strings for text in values]


class Compare:
    """Whether a value of the bound's type stands in the order `$gt $gte $lt $lte` to the bound."""

    def __init__(self, op: str, bound: str | float | dt.datetime) -> None:
        self._op = op
        self._bound = bound

    def by_order(self, column: Column) -> bool:
        return not isinstance(self._bound, str)

    def runs(self, values: Sorted) -> list[Run]:
        op, bound = self._op, self._bound
        assert not isinstance(bound, str)
        if isinstance(bound, dt.datetime):
            return values.ordered(DATETIME, op, microseconds(bound))
        ints = values.ordered(INT, *int_bound(op, bound))
        return ints + values.ordered(FLOAT, *float_bound(op, bound))

    def runs_in_list(self, values: Sorted) -> list[Run]:
        return self.runs(values)

    def holds(self, cells: Cells) -> Mask:
        op, bound = self._op, self._bound
        if isinstance(bound, str):
            return by_string(cells, self.texts)
        if isinstance(bound, dt.datetime):
            return typed(cells, DATETIME, ordered(cells.data, op, microseconds(bound)))
        masks: list[Mask] = []
        if cells.counts[INT]:
            masks.append(typed(cells, INT, ordered(cells.data, *int_bound(op, bound))))
        if cells.counts[FLOAT]:
            data = cells.data.view(np.float64)
            masks.append(typed(cells, FLOAT, ordered(data, *float_bound(op, bound))))
        return union(masks, cells)

    def holds_in_list(self, cells: Cells) -> Mask:
        return self.holds(cells)

    def texts(self, values: Sequence[str], interrupt: Interrupt) -> list[bool]:
        compare, bound = _PYTHON[self._op], self._bound
        if not isinstance(bound, str):
            return [False] * len(values)
        return [compare(text, bound) for text in values]


class Contains:
    """Whether text contains the operand, or a list has an element that equals it."""

    def __init__(self, operand: Scalar) -> None:
        self._operand = operand
        self._element = Equal((operand,))

    def by_order(self, column: Column) -> bool:
        return not (isinstance(self._operand, str) and column.has_strings)

    def runs(self, values: Sorted) -> list[Run]:
        return []

    def runs_in_list(self, values: Sorted) -> list[Run]:
        return self._element.runs(values)

    def holds(self, cells: Cells) -> Mask:
        if isinstance(self._operand, str):
            return by_string(cells, self.texts)
        return union([], cells)

    def holds_in_list(self, cells: Cells) -> Mask:
        return self._element.holds(cells)

    def texts(self, values: Sequence[str], interrupt: Interrupt) -> list[bool]:
        part = self._operand
        if not isinstance(part, str):
            return [False] * len(values)
        return [part in text for text in values]


class Regex:
    """Whether an RE2 pattern is found anywhere in text; ValueError, with RE2's words, if it is none.

    RE2 takes time linear in the text whatever the pattern, and memory is bounded. Where it could take seconds all the same,
    another process searches, which ends with the call (`long_texts.py`).
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern.encode()
        self._search, size = compiled(self._pattern)
        self._most_bytes = _REGEX_WORK // max(1, size)

    def by_order(self, column: Column) -> bool:
        return False

    def runs(self, values: Sorted) -> list[Run]:
        raise AssertionError("patterns are asked of every text")

    def runs_in_list(self, values: Sorted) -> list[Run]:
        raise AssertionError("patterns are asked of every text")

    def holds(self, cells: Cells) -> Mask:
        return by_string(cells, self.texts)

    def holds_in_list(self, cells: Cells) -> Mask:
        return by_string(cells, self.texts)

    def texts(self, values: Sequence[str], interrupt: Interrupt) -> list[bool]:
        # As bytes: re2 spends most of its time on turning offsets into characters otherwise.
        search = self._search
        # A character is 4 bytes at most.
        if 4 * sum(map(len, values)) <= self._most_bytes or endless(interrupt):
            return [search(text.encode()) is not None for text in values]
        return list(self._with_looks(values, interrupt))

    def _with_looks(self, values: Sequence[str], interrupt: Interrupt) -> Iterator[bool]:
        """The answers, with looks at limits in between that are never far apart."""
        done = 0
        for value in values:
            text = value.encode()
            done += len(text)
            if done > self._most_bytes:
                interrupt()
                done = len(text)
            if len(text) <= self._most_bytes:
                yield self._search(text) is not None
                continue
            # Most patterns that are found at all are found soon, and what matches there matches in the whole.
            done = min(self._most_bytes, _REGEX_FIRST_BYTES)
            early = self._search(text, 0, done) is not None
            yield early or long_texts.found(self._pattern, text, interrupt)


class Exists:
    """Whether there is a value at all; an empty list is one."""

    def by_order(self, column: Column) -> bool:
        return True

    def runs(self, values: Sorted) -> list[Run]:
        return [run for tag in range(MISSING + 1, N_TAGS) for run in values.of_type(tag)]

    def runs_in_list(self, values: Sorted) -> list[Run]:
        return []

    def holds(self, cells: Cells) -> Mask:
        mask: Mask = cells.tags != MISSING
        return mask

    def holds_in_list(self, cells: Cells) -> Mask:
        return np.zeros(len(cells.tags), np.bool_)

    def texts(self, values: Sequence[str], interrupt: Interrupt) -> list[bool]:
        return [True] * len(values)


def field_mask(
    column: Column | None,
    predicate: Predicate,
    at: range | Rows,
    wanted: Mask,
    interrupt: Callable[[], None],
) -> Mask:
    """Where `predicate` holds for the rows `at`, a range or ascending: bool, shape (len(at),), new.

    For a list it holds when it does for any element. None as the column: missing everywhere.
    """
    if column is None:
        return np.zeros(len(at), np.bool_)
    if isinstance(at, range):
        cells = column.cells(at.start, at.stop, wanted, interrupt)
    else:
        cells = column.cells_at(at, wanted, interrupt)
    mask = predicate.holds(cells)
    if len(mask) < len(at):
        mask = np.concatenate([mask, np.zeros(len(at) - len(mask), np.bool_)])
    if column.has_lists:
        if isinstance(at, range):
            owners, elements = column.elements(at.start, at.stop, wanted, interrupt)
        else:
            owners, elements = column.elements_at(at, wanted, interrupt)
        mask[owners[predicate.holds_in_list(elements)]] = True
    return mask


@dataclass(frozen=True, slots=True)
class Few:
    """Matching rows that are cheap to list, not listed yet."""

    about: int
    """How many, estimated."""
    rows: Callable[[], Rows]
    """Lists them: int64, ascending, without repetition."""


def field_few(
    column: Column | None,
    predicates: Sequence[Predicate],
    n_rows: int,
    interrupt: Callable[[], None],
) -> Few | None:
    """The rows below `n_rows` where all of the predicates hold, if they are few and easy to find.

    Several predicates are answered only where no list is: each of them may hold for another element.
    """
    if column is None:
        return Few(0, lambda: np.empty(0, np.int64))
    postings = column.postings(n_rows)
    if postings is None or not all(one.by_order(column) for one in predicates):
        return None
    values, elements = column.in_order(postings)
    in_lists: list[Run] = []
    if postings.elements.n:
        if len(predicates) > 1:
            return None
        in_lists = predicates[0].runs_in_list(elements)
    runs = reduce(overlap, [one.runs(values) for one in predicates])
    count = sum(b - a for a, b in runs) + sum(b - a for a, b in in_lists)
    ascending = not count or (
        len(runs) + len(in_lists) == 1
        and (values.one_value(runs[0]) if runs else elements.one_value(in_lists[0]))
    )
    if count > postings.n_rows // (MOST_LISTED if ascending else MOST_SORTED):
        return None

    def rows() -> Rows:
        parts = [values.order.positions[a:b] for a, b in runs]
        parts += [column.rows_of_elements(elements.order.positions[a:b]) for a, b in in_lists]
        found = np.concatenate(parts) if parts else np.empty(0, np.int64)
        if not ascending:
            found.sort()
        found = found.astype(np.int64)
        if in_lists:
            found = once(found)
        if n_rows < postings.n_rows:
            return found[: np.searchsorted(found, n_rows)]
        rest = range(postings.n_rows, n_rows)
        wanted = np.ones(len(rest), np.bool_)
        for one in predicates:
            wanted &= field_mask(column, one, rest, wanted, interrupt)
        return np.concatenate([found, np.flatnonzero(wanted) + rest.start])

    return Few(count, rows)


_PYTHON: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
