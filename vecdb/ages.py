"""How old commits are at least, however the wall clock jumps."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

_MARKS = 64
"""So many marks lie in the time that is looked back: what is told is late by a part of that."""


def _since_boot_s() -> float:
    """Never jumps, and goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Ages:
    """Any thread may call. Times of commits in the store are those of the wall clock; of the commits that this
    process has seen it keeps its own."""

    def __init__(
        self,
        look_back_s: float,
        clock: Callable[[], float] = _since_boot_s,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._look_back_s = look_back_s
        self._clock, self._wall = clock, wall
        self._begun_s, self._begun_wall_s = clock(), wall()
        self._lock = threading.Lock()
        self._marks: deque[tuple[float, int]] = deque()
        """(when, the newest commit then), both ascending."""
        self._old = 0

    def saw(self, sequence: int) -> None:
        """Commit `sequence` is the newest; called after each commit, 1 us."""
        now = self._clock()
        with self._lock:
            if not self._marks or now - self._marks[-1][0] >= self._look_back_s / _MARKS:
                self._marks.append((now, sequence))
            while self._marks and now - self._marks[0][0] >= self._look_back_s:
                self._old = self._marks.popleft()[1]

    def old(self, newest: int) -> int:
        """A commit that was there `look_back_s` ago, as this process knows; 0 if it knows of none."""
        self.saw(newest)
        with self._lock:
            return self._old

    def now_us(self) -> int:
        """Microseconds since 1970 to hold times in the store against: the wall clock, but never further than time
        has gone by since the opening. What is younger than this says is never called old."""
        gone = self._begun_wall_s + self._clock() - self._begun_s
        return int(min(self._wall(), gone) * 1e6)
