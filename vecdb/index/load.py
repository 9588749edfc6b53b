"""How much of a device exact search of one collection takes, and whether an index would serve its users better.

To compare every row is right and needs no build, so `auto` does it where a device holds the rows. It stops being
wise in two cases. One search takes long: then a single user waits. Or searches keep the device busy, and each costs more
of it than walking a graph would cost the CPU: then all users wait for each other.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from .door import CORES

LONGEST_S = 0.005
"""What one search may take of a device: some 17 GB that are read at 3.5 TB/s (H200), or 14 GB (H100, where one query takes
10,000,000 x 384 float32 5.5 ms)."""
BUSY_SHARE = 0.5
WINDOW_S = 10.0
_LOOK_EVERY_S = 0.5
_FEW = 8
"""Queries in one call for which the vectors are read once."""
_WALK_S = 0.0004
"""A query to a graph on one core, at recall 0.99 (WordNet, 2 cores of an AMD EPYC: 0.25 ms)."""


class Load:
    """Of one collection. Any thread notes. Once `high`, it stays so: an index that has been built serves on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.high = False
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: deque[tuple[float, float, int, int]] = deque()

    def note(self, busy_s: float, batches: int, queries: int) -> bool:
        """What the searches so far have taken of the device, in how many calls and for how many queries, all counted from
        one beginning on. Whether this has just become too much; costs a microsecond."""
        now = self._clock()
        with self._lock:
            seen = self._seen
            if self.high or (seen and now - seen[-1][0] < _LOOK_EVERY_S):
                return False
            if seen and queries < seen[-1][3]:
                seen.clear()  # another worker: it counts from the beginning
            seen.append((now, busy_s, batches, queries))
            while len(seen) > 2 and seen[1][0] <= now - WINDOW_S:
                seen.popleft()
            then, busy_then, batches_then, queries_then = seen[0]
            if now - then < WINDOW_S or queries == queries_then:
                return False
            spent = busy_s - busy_then
            calls = batches - batches_then
            slow = spent > LONGEST_S * calls and queries - queries_then <= _FEW * calls
            dear = spent > _WALK_S / CORES * (queries - queries_then)
            self.high = slow or (dear and spent > BUSY_SHARE * (now - then))
            return self.high
