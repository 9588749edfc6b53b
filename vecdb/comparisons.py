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
from .stopping import Interrupt

Mask = NDArray[np.bool_]
Asked = Callable[[Sequence[str], Interrupt], list[bool]]
"""The answers for some strings; the interrupt is called where they take long."""

FEW = 8
"""Up to here one comparison an operand beats a search in sorted operands."""
_TABLE_SPAN = 1 << 20
"""Integers in this range are looked up in a table of bools."""
_CELLS = 65_536
"""Values compared at once where several arrays are made on the way: they stay in the cache."""
_HASH_BITS = 17
_ODD = np.int64(-7046029254386353131)  # 2^64 over the golden ratio: spreads bits upwards
_CHUNK = 1_024
"""Strings between two calls of `interrupt`: a millisecond or two of a pattern, more where they are long."""
_FEW_PLACES = 64
"""Sorting the codes of one string in so many costs less than tables as long as all strings."""
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


def typed(cells: Cells, tag: int, mask: Mask) -> Mask:
    """`mask` where the values are of this type. Changes it: at a million rows an array more is 0.1 ms."""
    mask &= cells.tags == tag
    return mask


def member(data: NDArray[Any], operands: NDArray[Any]) -> Mask:
    """Where `data` is one of the sorted operands. 1 ms a million where the operands are close together
    or very few, 4 ms otherwise."""
    if len(operands) <= FEW:
        mask: Mask = data == operands[0]
        for operand in operands[1:]:
            mask |= data == operand
        return mask
    close = operands.dtype == np.int64 and int(operands[-1]) - int(operands[0]) <= _TABLE_SPAN
    find = _by_offset(operands) if close else _by_hash(operands)
    mask = np.empty(len(data), np.bool_)
    for at in range(0, len(data), _CELLS):
        mask[at : at + _CELLS] = find(data[at : at + _CELLS])
    return mask


def _by_offset(operands: NDArray[np.int64]) -> Callable[[NDArray[np.int64]], Mask]:
    first, span = operands[0], int(operands[-1]) - int(operands[0])
    table = np.zeros(span + 2, np.bool_)
    table[operands - first] = True

    def find(data: NDArray[np.int64]) -> Mask:
        # Offsets wrap around, so that as unsigned numbers all values outside are beyond `span`.
        offsets = (data - first).view(np.uint64)
        inside: Mask = table.take(np.minimum(offsets, np.uint64(span + 1)).view(np.int64))
        return inside

    return find


def _by_hash(operands: NDArray[Any]) -> Callable[[NDArray[Any]], Mask]:
    """Most values are ruled out by a hash, which takes no search among the operands."""
    table = np.zeros(1 << _HASH_BITS, np.bool_)
    table[_hashed(operands)] = True

    def find(data: NDArray[Any]) -> Mask:
        found: Mask = table.take(_hashed(data))
        at = np.flatnonzero(found)
        values = data[at]
        found[at] = operands.take(np.searchsorted(operands, values), mode="clip") == values
        return found

    return find


def _hashed(data: NDArray[Any]) -> NDArray[np.int64]:
    bits = data.view(np.int64)
    if data.dtype != np.int64:
        bits = np.where(bits == INT64_MIN, 0, bits)  # -0.0 equals 0.0
    mixed = (bits * _ODD).view(np.uint64) >> np.uint64(64 - _HASH_BITS)
    return mixed.view(np.int64)


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


def by_string(cells: Cells, texts: Asked) -> Mask:
    """Asks once a distinct string: of those at wanted places, or of all when that is less work."""
    is_string = cells.tags == STRING
    strings = cells.strings
    chosen = is_string & cells.wanted()
    n_strings, n_chosen = len(strings), int(np.count_nonzero(chosen))
    if n_chosen < n_strings // _FEW_PLACES:
        codes, place = np.unique(cells.data[chosen], return_inverse=True)
        mask = np.zeros(len(chosen), np.bool_)
        mask[chosen] = _asked(cells, codes, texts)[place]
        return mask
    answers = np.zeros(n_strings, np.bool_)
    # Picking strings one by one costs as much as a cheap question, so it must spare many.
    if n_chosen < n_strings // 2:
        asked = np.zeros(n_strings, np.bool_)
        asked[cells.data[chosen]] = True
        codes = np.flatnonzero(asked)
        answers[codes] = _asked(cells, codes, texts)
    else:
        for at in range(0, n_strings, _CHUNK):
            cells.interrupt()
            answers[at : at + _CHUNK] = texts(
                strings[at : min(at + _CHUNK, n_strings)], cells.interrupt
            )
    return typed(cells, STRING, by_code(cells, answers))


def _asked(cells: Cells, codes: NDArray[np.int64], texts: Asked) -> Mask:
    """The answer for each of these strings."""
    answers = np.zeros(len(codes), np.bool_)
    for at in range(0, len(codes), _CHUNK):
        cells.interrupt()
        some = codes[at : at + _CHUNK].tolist()
        answers[at : at + _CHUNK] = texts([cells.strings[code] for code in some], cells.interrupt)
    return answers


def by_code(cells: Cells, answers: Mask) -> Mask:
    """`answers[code]` for each value; anything where the value is no string."""
    if not len(answers):
        return np.zeros(len(cells.tags), np.bool_)
    found: Mask = answers.take(cells.data, mode="clip")
    return found
