"""Which rows are live: a packed bitmap, copied when a kill would change what a view sees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..selection import once
from .distance import Rows

Bits = NDArray[np.uint8]


def unpack(bits: Bits, start: int, stop: int) -> NDArray[np.bool_]:
    """Bits start..stop of a little-endian packed bitmap, as a new bool array."""
    first = start // 8
    out = np.unpackbits(bits[first : (stop + 7) // 8], bitorder="little")
    return out[start - first * 8 : stop - first * 8].view(np.bool_)


def is_set(bits: Bits, rows: Rows) -> NDArray[np.bool_]:
    """Whether the bit of each row is set."""
    found: NDArray[np.bool_] = (bits[rows >> 3] >> (rows & 7).astype(np.uint8)) & 1 != 0
    return found


class LiveRows:
    """The writer's side of the bitmap; one thread at a time.

    Appending sets bits behind the rows that a view knows, in place: views ignore bits beyond their
    own number of rows. Killing copies the bitmap first when a view shares it (n / 8 bytes).
    """

    def __init__(self) -> None:
        self.n_rows = 0
        self.n_live = 0
        self._bits: Bits = np.zeros(64, np.uint8)
        self._shared = False

    def append(self, count: int) -> None:
        stop = self.n_rows + count
        needed = (stop + 7) // 8
        if needed > len(self._bits):
            larger = np.zeros(max(needed, 2 * len(self._bits)), np.uint8)
            larger[: len(self._bits)] = self._bits
            self._bits, self._shared = larger, False
        first, last = self.n_rows // 8, stop // 8
        low = (0xFF << (self.n_rows % 8)) & 0xFF
        high = (1 << (stop % 8)) - 1
        if first == last:
            self._bits[first] |= low & high
        else:
            self._bits[first] |= low
            self._bits[first + 1 : last] = 0xFF
            if high:
                self._bits[last] |= high
        self.n_rows = stop
        self.n_live += count

    def kill(self, rows: Rows) -> Rows:
        """Clear these rows (all below n_rows); returns those that were live, ascending."""
        rows = once(np.sort(rows))
        rows = rows[is_set(self._bits, rows)]
        if rows.size:
            if self._shared:
                self._bits, self._shared = self._bits.copy(), False
            keep = ~(np.uint8(1) << (rows & 7).astype(np.uint8))
            np.bitwise_and.at(self._bits, rows >> 3, keep)
            self.n_live -= rows.size
        return rows

    def share(self) -> Bits:
        """A read-only look at the bitmap for a view; bits beyond n_rows mean nothing."""
        self._shared = True
        bits = self._bits[: (self.n_rows + 7) // 8]
        bits.flags.writeable = False
        return bits

    @property
    def nbytes(self) -> int:
        return self._bits.nbytes

    def mask(self) -> NDArray[np.bool_]:
        return unpack(self._bits, 0, self.n_rows)
