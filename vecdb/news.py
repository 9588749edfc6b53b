"""How a read waits for a commit that it wants to see."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .errors import DeadlineExceeded, InvalidQuery
from .index.view import View
from .scalars import shown
from .stopping import stop_if_unwanted, watched

_FOLLOW_S, _LOOK_S, _WAIT_S = 0.02, 1.0, 30.0
_END = 1 << 64
"""Beyond what a commit is ever called, also on the wire."""
_WANTED_S = 0.05
"""How often is asked whether the caller still waits."""


class News:
    """Of one collection. Any thread may tell, and wait."""

    def __init__(self, name: str, *, follows: bool) -> None:
        """`follows`: commits are another process's, so nobody tells and whoever waits has to look."""
        self._name = name
        self._longest_s = _FOLLOW_S if follows else _LOOK_S
        self._came = threading.Condition()

    def tell(self) -> None:
        """Something is visible that was not."""
        with self._came:
            self._came.notify_all()

    def wait(
        self, newest: Callable[[], View], sequence: int | None, timeout_s: float | None
    ) -> View:
        """The first view that shows commit `sequence` (None: any). DeadlineExceeded after `timeout_s` (None: 30);
        Cancelled once its caller has gone; InvalidQuery for what is no number of a commit; what `newest` raises."""
        view = newest()
        if sequence is None:
            return view
        if isinstance(sequence, bool) or not isinstance(sequence, int) or not 0 <= sequence < _END:
            raise InvalidQuery(
                f"min_sequence must be the number of a commit, given {shown(sequence)}"
            )
        if view.sequence >= sequence:
            return view
        limit_s = _WAIT_S if timeout_s is None else max(0.0, timeout_s)
        end = time.monotonic() + limit_s
        longest_s = min(self._longest_s, _WANTED_S) if watched() else self._longest_s
        while view.sequence < sequence:
            left = end - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded(
                    f"commit {sequence} did not become visible within {limit_s:g} s; collection "
                    f"{self._name!r} is at {view.sequence}",
                    sequence=view.sequence,
                )
            stop_if_unwanted()
            with self._came:
                self._came.wait(min(left, longest_s))
            view = newest()
        return view
