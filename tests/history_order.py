"""When commits were made, for the judge of histories: of which of them an answer may be, and which writes have no order
that would tell.

What is known of a call is that it took effect at one moment between its start and its end. An answer that names a
commit says that this moment lay after that commit and before the next one; a write that changed something took effect
with the commit that it names. So of two calls of which one had ended before the other began, the second is of the same
commit or a later one, and of a later one where it is a write that changed something. Whose threads they are, and whether
they read or write, does not matter. Calls that overlap say nothing of each other.
"""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

WRITES = ("insert", "upsert", "update", "delete")


class Window(NamedTuple):
    """An answer, and the first and last commit that it may be of."""

    call: Any
    first: int
    last: float
    why: str
    """What tells that it is of none before `first`."""


class Newest:
    """The newest commit by a time."""

    def __init__(self, at: Iterable[tuple[float, int]]) -> None:
        pairs = sorted(at)
        self._times = [time for time, _ in pairs]
        self._commits = [0, *itertools.accumulate((commit for _, commit in pairs), max)]

    def until(self, time: float) -> int:
        return self._commits[bisect_right(self._times, time)]


def changes(call: Any) -> bool:
    """Whether this is an acknowledged write that must have made the commit that it names.

    Only a delete may find nothing to do, and a batch of no records. Whatever else says that it changed nothing counts as
    a change, so that what it says is compared with what it did.
    """
    if call.verb not in WRITES or call.refusal:
        return False
    return call.answer.count > 0 or (call.verb != "delete" and len(call.asked["ids"]) > 0)


def windows(calls: Sequence[Any]) -> Iterator[Window]:
    """Of which commits each call may be, by what the others name; `calls` by start."""
    begun = Newest((call.start, call.sequence) for call in calls if changes(call))
    starts = [call.start for call in calls]
    named = [math.inf if call.sequence is None else call.sequence - changes(call) for call in calls]
    # The oldest that any of the calls from a place on allows those that had ended before.
    follow = [*itertools.accumulate(reversed(named), min, initial=math.inf)][::-1]
    running: list[tuple[float, int, int, bool]] = []
    acknowledged = shown = 0
    seen: dict[str, int] = defaultdict(int)
    for place, call in enumerate(calls):
        while running and running[0][0] < call.start:
            _, _, commit, wrote = heapq.heappop(running)
            shown = max(shown, commit)
            acknowledged = max(acknowledged, commit * wrote)
        floors = {
            "had been acknowledged before it began": acknowledged,
            "its own thread had seen": seen[call.thread],
            "it asked for": call.asked.get("min_sequence") or 0,
            "an answer that ended before it began was of": shown,
        }
        why = max(floors, key=floors.__getitem__)
        first, last = floors[why], begun.until(call.end)
        if call.sequence is None:
            yield Window(call, first, min(last, follow[bisect_right(starts, call.end)]), why)
        else:
            yield Window(call, first, last, why)
        # An answer that names no commit is of its first at least.
        reached = first if call.sequence is None else call.sequence
        seen[call.thread] = reached
        wrote = call.verb in WRITES and not call.refusal
        heapq.heappush(running, (call.end, place, reached, wrote))


def apart(group: Sequence[Any]) -> bool:
    """Whether these writes give the same in any order."""
    if any(call.asked.get("filter") is not None for call in group):
        return False
    ids = [i for call in group for i in call.asked["ids"]]
    return len(set(ids)) == len(ids)
