"""When commits were made, for the judge of histories, and which writes have no order that would tell."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple


class Window(NamedTuple):
    """An answer that names no commit, and the first and last commit that it may be of."""

    call: Any
    first: int
    last: int


class Newest:
    """The newest commit by a time."""

    def __init__(self, at: Iterable[tuple[float, int]]) -> None:
        pairs = sorted(at)
        self._times = [time for time, _ in pairs]
        self._commits = [0, *itertools.accumulate((commit for _, commit in pairs), max)]

    def before(self, time: float) -> int:
        return self._commits[bisect_left(self._times, time)]

    def until(self, time: float) -> int:
        return self._commits[bisect_right(self._times, time)]


def apart(group: Sequence[Any]) -> bool:
    """Whether these writes give the same in any order."""
    if any(call.asked.get("filter") is not None for call in group):
        return False
    ids = [i for call in group for i in call.asked["ids"]]
    return len(set(ids)) == len(ids)
