"""Which setting of a system reaches a recall: each is asked once, and what was seen is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_SPREAD = 6
_ENOUGH = 0.995

Seen = dict[int, dict[str, Any]]
"""What was measured, by the number of the setting; `recall` is in it."""


class Tuning:
    """Over the settings of one system for one kind of query; recall is taken to rise with them."""

    def __init__(self, settings: list[float], measure: Callable[[float], dict[str, Any]]) -> None:
        self._settings, self._measure = settings, measure
        self.seen: Seen = {}

    def spread(self) -> None:
        """Settings over the whole range, until recall is as good as all."""
        last = len(self._settings) - 1
        for step in range(_SPREAD):
            if self._recall(round(last * step / (_SPREAD - 1))) >= _ENOUGH:
                return

    def lowest(self) -> None:
        """Only the least setting."""
        self._recall(0)

    def reaching(self, target: float) -> tuple[float, bool]:
        """The least setting that reaches the target by halving, or the best there is; whether it reaches it."""
        below, above = -1, len(self._settings)
        for number, found in self.seen.items():
            if found["recall"] >= target:
                above = min(above, number)
        below = max((one for one in self.seen if one < above), default=-1)
        while above - below > 1:
            middle = (below + above) // 2
            if self._recall(middle) >= target:
                above = middle
            else:
                below = middle
        if above < len(self._settings):
            return self._settings[above], True
        best = max(self.seen, key=lambda one: (self.seen[one]["recall"], -one))
        return self._settings[best], False

    def _recall(self, number: int) -> float:
        if number not in self.seen:
            self.seen[number] = self._measure(self._settings[number])
        recall: float = self.seen[number]["recall"]
        return recall
