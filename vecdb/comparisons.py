"""Comparisons of whole columns with operands, and questions about their distinct strings.

Ints and floats compare as exact numbers: the bound is converted to the type of the column.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .columns import Cells
from .pivot import STRING
from .scalars import INT64_MAX, INT64_MIN

Mask = NDArray[np.bool_]

FEW = 8
"""Up to here one comparison an operand beats a search in sorted operands."""
_TABLE_SPAN = 1 << 20
"""Integers in this range are looked up in a table of bools."""
_CHUNK = 8_192
"""Strings between two calls of `interrupt`: some milliseconds."""
_NUMPY: dict[str, np.ufunc] = {
    "$gt": np.greater,
    "$gte": np.greater_equal,
    "$lt": np.less,
    "$lte": np.less_equal,
}


def union(masks: list[Mask], cells: Cells) -> Mask:
    mask = masks[0] if masks else np.zeros(len(cells.tags), np.bool_)
    for other in masks[1:]:
        mask |= other
    return mask


def member(data: NDArray[Any], operands: NDArray[Any]) -> Mask:
    """Where `data` is one of the sorted operands."""
    if len(operands) <= FEW:
        mask: Mask = data == operands[0]
        for operand in operands[1:]:
            mask |= data == operand
        return mask
    if data.dtype == np.int64:
        span = int(operands[-1]) - int(operands[0])
        if span <= _TABLE_SPAN:
            # Offsets wrap around, so that as unsigned numbers all values outside are beyond `span`.
            table = np.zeros(span + 2, np.bool_)
            table[operands - operands[0]] = True
            offsets = (data - operands[0]).view(np.uint64)
            inside: Mask = table.take(np.minimum(offsets, np.uint64(span + 1)).view(np.int64))
            return inside
    found: Mask = operands.take(np.searchsorted(operands, data), mode="clip") == data
    return found


def ordered(data: NDArray[Any], op: str, bound: float) -> Mask:
    mask: Mask = _NUMPY[op](data, bound)
    return mask


def int_bound(op: str, bound: float) -> tuple[str, int]:
    """A comparison of int64 values that has exactly the answers of `value op bound`."""
    if op in ("$gt", "$gte"):
        low = math.floor(bound) + 1 if op == "$gt" else math.ceil(bound)
        return ("$gt", INT64_MAX) if low > INT64_MAX else ("$gte", max(low, INT64_MIN))
    high = math.ceil(bound) - 1 if op == "$lt" else math.floor(bound)
    return ("$lt", INT64_MIN) if high < INT64_MIN else ("$lte", min(high, INT64_MAX))


def float_bound(op: str, bound: float) -> tuple[str, float]:
    """A comparison of finite float64 values that has exactly the answers of `value op bound`."""
    near = nearest(bound)
    if near == bound:
        return op, near
    # No float equals the bound: take the next one on the side that the comparison keeps.
    if op in ("$gt", "$gte"):
        return "$gte", near if near > bound else math.nextafter(near, math.inf)
    return "$lte", near if near < bound else math.nextafter(near, -math.inf)


def nearest(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def by_string(cells: Cells, texts: Callable[[Sequence[str]], list[bool]]) -> Mask:
    """Asks once a distinct string: of those at wanted places, or of all when that is less work."""
    is_string = cells.tags == STRING
    strings = cells.strings
    chosen = is_string & cells.wanted()
    n_strings = len(strings)
    answers = np.zeros(n_strings, np.bool_)
    # Picking strings one by one costs as much as a cheap question, so it must spare many.
    if np.count_nonzero(chosen) < n_strings // 2:
        asked = np.zeros(n_strings, np.bool_)
        asked[cells.data[chosen]] = True
        codes = np.flatnonzero(asked)
        for at in range(0, len(codes), _CHUNK):
            cells.interrupt()
            some = codes[at : at + _CHUNK]
            answers[some] = texts([strings[code] for code in some.tolist()])
    else:
        for at in range(0, n_strings, _CHUNK):
            cells.interrupt()
            answers[at : at + _CHUNK] = texts(strings[at : min(at + _CHUNK, n_strings)])
    mask: Mask = by_code(cells, answers) & is_string
    return mask


def by_code(cells: Cells, answers: Mask) -> Mask:
    """`answers[code]` for each value; anything where the value is no string."""
    if not len(answers):
        return np.zeros(len(cells.tags), np.bool_)
    found: Mask = answers.take(cells.data, mode="clip")
    return found
