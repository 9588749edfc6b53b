"""Which LMDB environments of a database are open: those used lately, and no more than a limit.

An open one takes five files, a map, and the pages that its largest transaction has written to. With a collection
for each of a thousand tenants that is more than a process may have, for collections most of which nobody asks.
"""

from __future__ import annotations

import threading
from typing import Protocol


class Resting(Protocol):
    """What can be closed until it is used again."""

    used: bool
    """Set at each use."""

    def rest(self) -> bool:
        """Closes it until then, and has `Awake` forget it; False where it is in use. Waits for no use."""


class Awake:
    """Any thread may call, but not while it holds what `rest` of another needs."""

    def __init__(self, limit: int) -> None:
        """`limit`: how many may be open. Those in use are not closed, so there may be more for a while."""
        self._limit = limit
        self._lock = threading.Lock()
        self._open: dict[Resting, None] = {}
        """The one that was opened, or passed over, the longest time ago comes first."""

    def __len__(self) -> int:
        return len(self._open)

    def add(self, opened: Resting) -> None:
        """Counts one that has been opened, and has others rest if there are too many."""
        with self._lock:
            self._open[opened] = None
        for _ in range(len(self._open)):
            one = self._next(opened)
            if one is None:
                return
            one.rest()

    def remove(self, closed: Resting) -> None:
        """Forgets one that is closed."""
        with self._lock:
            self._open.pop(closed, None)

    def _next(self, newest: Resting) -> Resting | None:
        """One that has not been used since it was passed over ("second chance"); None where none must rest."""
        with self._lock:
            for _ in range(2 * len(self._open)):
                if len(self._open) <= self._limit:
                    return None
                one = next(iter(self._open))
                self._open[one] = self._open.pop(one)
                if one is newest:
                    continue
                if not one.used:
                    return one
                one.used = False
        return None
