"""Seconds of a run, dealt out to its parts: what one does not need, those after it have."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

GRACE_S = 20.0
"""A part looks at its time between cases, so it may be over by one case; after this it is killed."""


class Budget:
    """`seconds` from now on; `weights` are the shares of the parts in the order they run."""

    def __init__(
        self,
        seconds: float,
        weights: Mapping[str, float],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self._end_s = now() + seconds
        self._weights = dict(weights)

    @property
    def left_s(self) -> float:
        return max(self._end_s - self._now(), 0.0)

    def grant(self, part: str) -> float:
        """Seconds for this part: its share of what is left among the parts that have not run."""
        share = self._weights[part] / sum(self._weights.values())
        del self._weights[part]
        return self.left_s * share

    def kill_after(self, granted_s: float) -> float:
        """When a part that does not end is killed: a little late, but all of them together no later than that."""
        whole_s = self._end_s + GRACE_S - self._now()
        return max(min(granted_s + GRACE_S, whole_s), 1.0)
