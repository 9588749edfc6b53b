"""Searches that leave the search lane while they wait for a device, and come back when it is their turn again.

Each is in one of three places: it runs, it is away, or it is away and wants to come back. Whoever comes back goes on before
all who have not begun.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

from .search_ask import Ask, is_over, left, too_late
from .stopping import stop_if_unwanted


class Away(ABC):
    """What a `SearchLane` does with them. To `turns.py` each is the turn itself, by `Ask`."""

    _cores: int
    _mutex: threading.Lock
    _running: dict[int, Sequence[Ask]]
    _waiting: deque[Ask]

    def _nobody_is_away(self) -> None:
        self._away: dict[int, Sequence[Ask]] = {}
        """Threads that wait for a device, and have no place, each with those it searches for."""
        self._returning: deque[Ask] = deque()
        """Those that are away, and want a place again."""

    @abstractmethod
    def _call_next(self) -> None:
        """Lets those go on who come back, and those who wait first search, as long as a core is free."""

    def _go_on(self) -> None:
        """Lets those go on who come back, as long as a core is free. Under the mutex."""
        while self._returning and len(self._running) < self._cores:
            back = self._returning.popleft()
            self._running[back.key] = self._away.pop(back.key, back.group)
            back.wake.release()

    def leave(self, ask: Ask) -> None:
        """See `turns.Turn`; so is the next."""
        with self._mutex:
            self._away[ask.key] = self._running.pop(ask.key, ask.group)
        if self._waiting or self._returning:
            self._call_next()

    def take_again(self, ask: Ask, waits: bool) -> None:
        with self._mutex:
            if not waits or (len(self._running) < self._cores and not self._returning):
                self._running[ask.key] = self._away.pop(ask.key, ask.group)
                return
            # Its turn may have come before unnoticed, see `_is_served`: that says nothing of this one.
            ask.wake.acquire(blocking=False)
            self._returning.append(ask)
        # As in `_in_turn`: who ended before that did not see us wait.
        if len(self._running) < self._cores:
            self._call_next()
        while not ask.wake.acquire(timeout=left(ask.end)):
            stop_if_unwanted()
            if is_over(ask.end):
                raise too_late()
            with self._mutex:
                # As in `_is_served`, for what Ctrl-C in another thread may have left undone.
                if ask.key in self._running:
                    return
                if ask not in self._returning:
                    self._returning.append(ask)
            self._call_next()
