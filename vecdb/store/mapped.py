"""Where whole blocks of vectors lie in the map, so that single vectors are read without asking LMDB.

py-lmdb reads a byte of every page of a value before it hands it over, so that no page fault happens
under the interpreter lock: for a block of 96 KiB that is 24 pages, to use 1.5 KB of them. To read 14
scattered vectors on a busy machine took 140 us that way, and 42 to 57 with addresses; 16 on a quiet one
take 20.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..selection import once
from .shape import FieldShape

Rows = NDArray[np.int64]
Result = TypeVar("Result")
Locate = Callable[[int], tuple[NDArray[Any], int]]
"""Number of a block -> (its vectors, in the map; the rows it leaves out)."""

_ALIGNMENT = 16
"""LMDB puts a value of several pages behind a header of 16 bytes."""


_UNKNOWN = 1 << 60
"""Where a block lies that is not known: behind all memory, so that numpy refuses to read there."""
_NOWHERE = -(1 << 62)
"""The place of a block that has none: negative, whichever row of it is meant."""
_SHARING_BYTES = 1 << 15
"""Values up to half a page share one with others and move when these change. Pages have 64 KiB at most."""


class _Memory:
    """Memory of the map, for numpy."""

    def __init__(self, interface: dict[str, Any]) -> None:
        self.__array_interface__ = interface


class _Known(NamedTuple):
    """What is known of all blocks; readers take it whole."""

    starts: Rows
    """Where each block begins in `memory`."""
    memory: NDArray[Any]
    places: Rows
    """Of each block's first row, see `MappedBlocks.in_place`."""
    origin: int


class MappedBlocks:
    """Addresses of the whole blocks of one vector field. Any thread may take.

    A block that is whole stays where it is until it is purged, or the map is moved or exchanged; then
    `forget` is called before the next write can use its pages again. Readers look twice: what they have
    copied counts only if nothing was forgotten meanwhile. The memory is there all the while, since the
    map stays in place as long as their transaction is open, or they hold it (`Environment.hold`).
    """

    def __init__(self, shape: FieldShape) -> None:
        self._shape = shape
        self._bits = shape.rows_per_block.bit_length() - 1
        self._step = math.gcd(_ALIGNMENT, shape.row_bytes)
        self._units = shape.row_bytes // self._step
        twos = shape.row_bytes & -shape.row_bytes
        self._twos, self._wrap = twos, (1 << 64) // twos - 1
        self._inverse = pow(shape.row_bytes // twos, -1, self._wrap + 1)
        self._own_pages = shape.rows_per_block * shape.row_bytes > _SHARING_BYTES
        self._lock = threading.Lock()
        self._forgotten = 0
        self._least = 0
        self._low = self._high = 0
        self._known = self._nothing()

    def _nothing(self) -> _Known:
        none, shape = np.empty(0, np.int64), self._shape
        return _Known(none, np.empty((0, shape.width), shape.dtype), none, 0)

    def forget(self, transaction_id: int = 0) -> None:
        """Lets go of all addresses; none are learned from transactions before this one any more.

        0: the map has moved or was exchanged, and no transaction is open.
        """
        with self._lock:
            self._forgotten += 1
            # A new file counts its transactions anew.
            self._least = max(self._least, transaction_id) if transaction_id else 0
            self._low = self._high = 0
            self._known = self._nothing()

    def known(self, rows: Rows) -> NDArray[Any] | None:
        """Vectors (n, width) of rows (int64, not negative) whose blocks are all known, else None.

        The caller holds the map, or has a transaction open. About 10 us for 16 rows of 384 float32 that
        no cache holds.
        """
        seen = self._forgotten
        starts, memory, _, _ = self._known
        try:
            at = starts[rows >> self._bits]
            at += (rows & (self._shape.rows_per_block - 1)) * self._units
            found: NDArray[Any] = memory[at]
        except IndexError:  # a block behind the last one that is known, or among them and not known
            return None
        return found if seen == self._forgotten else None

    def in_place(self, rows: Rows, work: Callable[[int, Rows], Result]) -> Result | None:
        """`work(origin, places (n,))` for float32 vectors of rows (int64, not negative) where they lie; None
        where that is not known of all, or not any more when `work` was done, or has no place.

        A vector begins at the address `origin` + bytes of a row x place, **modulo 2^64**. Blocks lie a
        multiple of a page apart and not of a row, but such a place there is nearly always: a row of
        384 numbers takes 512 x 3 bytes, pages are multiples of 512, and 3 has an inverse modulo 2^64. So
        functions that take vectors from "row i of a matrix" reach vectors anywhere in the map, and nothing is
        copied. Rows that are multiples of more than a page have no places. The caller holds the map, or has
        a transaction open.
        """
        seen = self._forgotten
        _, _, places, origin = self._known
        try:
            at = places[rows >> self._bits]
        except IndexError:
            return None
        at += rows & (self._shape.rows_per_block - 1)
        if not at.size or np.minimum.reduce(at) < 0:
            return None
        found = work(origin, at)
        return found if seen == self._forgotten else None

    def take(self, rows: Rows, transaction_id: int, locate: Locate) -> tuple[NDArray[Any], Rows]:
        """(vectors (n, width) of rows, which of them were not found here: theirs are undefined).

        `rows` are int64 and below the number of rows of the transaction. `locate` is asked for blocks
        not seen before.
        """
        found = self.known(rows)
        if found is not None:
            return found, rows[:0]
        numbers = once(np.sort(rows >> self._bits))
        starts = self._known.starts
        held = np.minimum(numbers, max(len(starts) - 1, 0))
        fresh = (
            numbers if not len(starts) else numbers[(held < numbers) | (starts[held] == _UNKNOWN)]
        )
        if fresh.size:
            self._learn(fresh, transaction_id, locate)
        starts = self._known.starts
        inside = rows >> self._bits < len(starts)
        inside[inside] = starts[rows[inside] >> self._bits] != _UNKNOWN
        found = self.known(rows[inside])
        if found is None:
            return np.empty((rows.size, self._shape.width), self._shape.dtype), np.arange(rows.size)
        missing = np.flatnonzero(~inside)
        if missing.size:
            vectors = np.empty((rows.size, self._shape.width), self._shape.dtype)
            vectors[inside] = found
            return vectors, missing
        return found, missing

    def faults(self, n_rows: int, transaction_id: int, locate: Locate) -> Iterator[int]:
        """Numbers of the blocks of the first `n_rows` rows that do not lie where they are held to be; what is known
        of later moments than the transaction is passed over."""
        seen = self._forgotten
        starts, _, places, low = self._known
        if transaction_id < self._least:
            return
        starts = starts[: n_rows >> self._bits]
        for number in np.flatnonzero(starts != _UNKNOWN).tolist():
            block, gaps = locate(number)
            offset = np.array([int(block.__array_interface__["data"][0]) - low])
            right = starts[number] * self._step == offset[0] and not gaps
            right = right and places[number] == self._places(offset)[0]
            if seen != self._forgotten:
                return
            if not right:
                yield number

    def _learn(self, numbers: Rows, transaction_id: int, locate: Locate) -> None:
        """Notes where these blocks lie, as far as they are whole."""
        seen, size = self._forgotten, self._shape.rows_per_block * self._shape.row_bytes
        blocks, addresses = [], []
        for number in numbers.tolist() if self._own_pages else ():
            block, gaps = locate(number)
            if not gaps and len(block) == self._shape.rows_per_block:
                blocks.append(number)
                addresses.append(int(block.__array_interface__["data"][0]))
        with self._lock:
            if seen != self._forgotten or transaction_id < self._least or not blocks:
                return
            low, high = min(addresses), max(addresses) + size
            if (
                not self._low
                or low < self._low
                or high > self._high
                or blocks[-1] >= len(self._known.starts)
            ):
                self._reach(blocks[-1], min(low, self._low or low), max(high, self._high))
            # Within the bounds of those who read meanwhile: they see the block, or that it is not known.
            offsets = np.array(addresses) - self._low
            self._known.places[blocks] = self._places(offsets)
            self._known.starts[blocks] = offsets // self._step

    def _places(self, offsets: Rows) -> Rows:
        """Numbers whose product with the bytes of a row is `offsets`, modulo 2^64."""
        if self._shape.dtype != np.float32:
            return np.full(len(offsets), _NOWHERE)
        found = (offsets // self._twos).astype(np.uint64) * np.uint64(self._inverse)
        found &= np.uint64(self._wrap)
        return np.where(offsets % self._twos, _NOWHERE, found.astype(np.int64))

    def _reach(self, number: int, low: int, high: int) -> None:
        """Makes room for blocks up to this number, and a view of all memory from `low` to `high` with a
        row at every step. Readers keep what they hold: both change together."""
        starts, shape, step = self._known.starts, self._shape, self._step
        size = len(starts) if number < len(starts) else max(number + 1, 2 * len(starts))
        moved = np.full(size, _UNKNOWN, np.int64)
        moved[: len(starts)] = np.where(
            starts == _UNKNOWN, _UNKNOWN, starts + (self._low - low) // step
        )
        memory = _Memory({
            "version": 3,
            "typestr": shape.dtype.str,
            "data": (low, True),
            "shape": ((high - low - shape.row_bytes) // step + 1, shape.width),
            "strides": (step, shape.dtype.itemsize),
        })  # fmt: skip
        self._low, self._high = low, high
        places = np.full(size, _NOWHERE)
        there = moved != _UNKNOWN
        places[there] = self._places(moved[there] * step)
        self._known = _Known(moved, np.asarray(memory), places, low)
