"""Where whole blocks of vectors lie in the map, so that single vectors are read without asking LMDB.

py-lmdb reads a byte of every page of a value before it hands it over, so that no page fault happens
under the interpreter lock: for a block of 96 KiB that is 24 pages, to use 1.5 KB of them. To read 14
scattered vectors on a busy machine took 140 us that way, and 42 to 57 with addresses; 16 on a quiet one
take 20.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .shape import FieldShape

Rows = NDArray[np.int64]
Locate = Callable[[int], tuple[NDArray[Any], int]]
"""Number of a block -> (its vectors, in the map; the rows it leaves out)."""

_ALIGNMENT = 16
"""LMDB puts a value of several pages behind a header of 16 bytes."""


_SHARING_BYTES = 1 << 15
"""Values up to half a page share one with others and move when these change. Pages have 64 KiB at most."""


class _Memory:
    """Memory of the map, for numpy."""

    def __init__(self, interface: dict[str, Any]) -> None:
        self.__array_interface__ = interface


class MappedBlocks:
    """Addresses of the whole blocks of one vector field. Any thread may take.

    A block that is whole stays where it is until it is purged, or the map is moved or exchanged; then
    `forget` is called before the next write can use its pages again. Readers look twice: what they have
    copied counts only if nothing was forgotten meanwhile. The memory is there all the while, since the
    map stays in place while their transaction is open.
    """

    def __init__(self, shape: FieldShape) -> None:
        self._shape = shape
        self._bits = shape.rows_per_block.bit_length() - 1
        self._step = math.gcd(_ALIGNMENT, shape.row_bytes)
        self._units = shape.row_bytes // self._step
        self._own_pages = shape.rows_per_block * shape.row_bytes > _SHARING_BYTES
        self._lock = threading.Lock()
        self._forgotten = 0
        self._least = 0
        self._starts = np.zeros(0, np.int64)
        self._low = self._high = 0
        self._view: tuple[int, NDArray[Any]] = (0, np.empty((0, shape.width), shape.dtype))

    def forget(self, transaction_id: int = 0) -> None:
        """Lets go of all addresses; none are learned from transactions before this one any more.

        0: the map has moved or was exchanged, and no transaction is open.
        """
        with self._lock:
            self._forgotten += 1
            # A new file counts its transactions anew.
            self._least = max(self._least, transaction_id) if transaction_id else 0
            self._starts = np.zeros(0, np.int64)
            self._low = self._high = 0

    def take(self, rows: Rows, transaction_id: int, locate: Locate) -> tuple[NDArray[Any], Rows]:
        """(vectors (n, width) of rows, which of them were not found here: theirs are undefined).

        `rows` are int64 and below the number of rows of the transaction. `locate` is asked for blocks
        not seen before. About 15 us for 16 rows of 384 float32 that no cache holds.
        """
        seen = self._forgotten
        numbers = rows >> self._bits
        starts = self._starts
        most = int(numbers.max(initial=-1))
        if most >= len(starts):
            starts = self._reach(most)
        at = starts[numbers]
        if not at.all():
            self._learn(np.unique(numbers[at == 0]), transaction_id, locate)
            at = self._starts[numbers] if len(self._starts) > most else np.zeros_like(rows)
        low, view = self._view
        missing = np.flatnonzero(at == 0) if not at.all() else rows[:0]
        at = at + (rows & (self._shape.rows_per_block - 1)) * self._units - low
        if missing.size:
            at[missing] = 0
        if missing.size == rows.size or not len(view) or at.max() >= len(view) or at.min() < 0:
            return np.empty((rows.size, self._shape.width), self._shape.dtype), np.arange(rows.size)
        found = view[at]
        if seen != self._forgotten:
            return found, np.arange(rows.size)
        return found, missing

    def _reach(self, number: int) -> Rows:
        with self._lock:
            if number >= len(self._starts):
                grown = np.zeros(max(number + 1, 2 * len(self._starts)), np.int64)
                grown[: len(self._starts)] = self._starts
                self._starts = grown
            return self._starts

    def _learn(self, numbers: Rows, transaction_id: int, locate: Locate) -> None:
        """Notes where these blocks lie, as far as they are whole."""
        seen, size = self._forgotten, self._shape.rows_per_block * self._shape.row_bytes
        found = []
        for number in numbers.tolist() if self._own_pages else ():
            block, gaps = locate(number)
            if not gaps and len(block) == self._shape.rows_per_block:
                found.append((number, int(block.__array_interface__["data"][0])))
        with self._lock:
            if seen != self._forgotten or transaction_id < self._least or not found:
                return
            low = min(address for _, address in found)
            high = max(address for _, address in found) + size
            if not self._low or low < self._low or high > self._high:
                self._low = min(low, self._low or low)
                self._high = max(high, self._high)
                self._look()
            for number, address in found:
                if number < len(self._starts):
                    self._starts[number] = address // self._step

    def _look(self) -> None:
        """A view of all memory between the lowest and the highest block, a row at every step."""
        shape, step = self._shape, self._step
        low = self._low // step
        memory = _Memory({
            "version": 3,
            "typestr": shape.dtype.str,
            "data": (low * step, True),
            "shape": ((self._high - low * step - shape.row_bytes) // step + 1, shape.width),
            "strides": (step, shape.dtype.itemsize),
        })  # fmt: skip
        self._view = (low, np.asarray(memory))
