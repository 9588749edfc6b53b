"""Masks that lie on a device: which of the placed rows a filter allows, told once and asked for often."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..device import Placements
from ..selection import Selection
from ..turns import away
from .distance import Rows
from .live import Bits, is_set, unpack

_KEPT = 64
"""Masks of one placement; each takes a bit a row of it."""


@dataclass(slots=True)
class _Mask:
    number: int
    count: int
    """Rows that it allows."""
    held: tuple[Selection, Bits]
    """What it was made of: kept, so that their ids stay their own."""
    searching: int = 0


class Masks:
    """The masks of one placement of `rows` (n,). Any thread may ask.

    The first search under a filter costs 0.5 ms a million rows more: the mask is made and copied.
    """

    _numbers = itertools.count(1)

    def __init__(self, placements: Placements, key: Hashable, rows: Rows) -> None:
        self._placements = placements
        self._key = key
        self._rows = rows
        self._ascending = bool((rows[1:] > rows[:-1]).all())
        self._dense = bool(rows.size and self._ascending and int(rows[-1]) + 1 == rows.size)
        """Positions are row numbers."""
        self._lock = threading.Lock()
        self._known: OrderedDict[Hashable, _Mask] = OrderedDict()

    @contextmanager
    def using(self, allowed: Selection, live: Bits) -> Iterator[tuple[int, int]]:
        """The number of the mask for live rows of a selection, and how many it allows; it stays while the block
        runs. DeviceFull, DeviceLost. The number is 0 where the placement has gone."""
        # A text means the same rows however many come behind them; a selection without one is itself only.
        what = allowed.key if allowed.key is not None else id(allowed)
        key = (what, id(live))
        with self._lock:
            mask = self._known.get(key)
            if mask is not None:
                self._known.move_to_end(key)
                mask.searching += 1
        if mask is None:
            # Not under the lock: it waits for the device, and others have their masks already.
            made = self._made(allowed, live)
            if made is None:
                yield 0, 0
                return
            with self._lock:
                mask = self._known.setdefault(key, made)
                self._known.move_to_end(key)
                mask.searching += 1
                self._shrink()
            if mask is not made:
                self._placements.unmask(self._key, made.number)
        try:
            yield mask.number, mask.count
        finally:
            with self._lock:
                mask.searching -= 1

    def _made(self, allowed: Selection, live: Bits) -> _Mask | None:
        flags = self.flags(allowed, live)
        number = next(self._numbers)
        with away() as wait:
            if not self._placements.mask(self._key, number, flags, wait):
                return None
        return _Mask(number, int(np.count_nonzero(flags)), (allowed, live))

    def flags(self, allowed: Selection, live: Bits) -> np.ndarray:
        """Whether each position is allowed and live, bool (n,)."""
        n = self._rows.size
        if allowed.is_list:
            chosen = allowed.rows()
            chosen = chosen[is_set(live, chosen)]
            flags = np.zeros(n, np.bool_)
            if self._dense:
                flags[chosen[: np.searchsorted(chosen, n)]] = True
            elif n and not self._ascending:
                wanted = np.zeros(int(self._rows.max()) + 1, np.bool_)
                wanted[chosen[: np.searchsorted(chosen, wanted.size)]] = True
                flags = wanted[self._rows]
            elif n:
                at = np.minimum(np.searchsorted(self._rows, chosen), n - 1)
                flags[at[self._rows[at] == chosen]] = True
            return flags
        if self._dense:
            found: np.ndarray = allowed.mask()[:n] & unpack(live, 0, n)
            return found
        return np.asarray(allowed.mask()[self._rows] & is_set(live, self._rows))

    def _shrink(self) -> None:
        for key, mask in list(self._known.items()):
            if len(self._known) <= _KEPT:
                return
            if not mask.searching:
                del self._known[key]
                self._placements.unmask(self._key, mask.number)
