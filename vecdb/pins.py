"""Moments that must stay readable while something long reads them piece by piece."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Pin:
    """One reader's claim: what was live right after `sequence`, or later, is not purged.

    Begins at 0, which keeps everything, so that it can be taken before one knows what to ask for.
    """

    def __init__(self) -> None:
        self.sequence = 0


class Pins:
    """The claims on one collection. Any thread may call. They end with the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: set[Pin] = set()

    @contextmanager
    def hold(self) -> Iterator[Pin]:
        """A pin for as long as the body runs."""
        pin = Pin()
        with self._lock:
            self._held.add(pin)
        try:
            yield pin
        finally:
            with self._lock:
                self._held.discard(pin)

    def oldest(self, newest: int) -> int:
        """The oldest sequence that is claimed, `newest` if that is older still."""
        with self._lock:
            return min((pin.sequence for pin in self._held), default=newest)
