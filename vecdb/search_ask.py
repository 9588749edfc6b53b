"""One search in the search lane: what it asks, which others one call can answer with it, and until when it waits."""

from __future__ import annotations

import time
from _thread import allocate_lock, get_ident
from collections.abc import Callable
from typing import Any, Protocol

from numpy.typing import NDArray

from .errors import DeadlineExceeded
from .index import Found, Trace, View
from .search_note import Note
from .selection import Selection
from .stopping import stop_if_unwanted
from .turns import having

LOOK_S = 1.0
"""How often a waiting thread looks by itself whether a core is free: no lost wake-up keeps it."""


class Leaves(Protocol):
    """What a search does with its place when it has to wait for a device, see `turns.Turn`."""

    def leave(self, ask: Ask) -> None: ...

    def take_again(self, ask: Ask, waits: bool) -> None: ...


class Ask:
    """A search that waits for its turn. Its fields are written under the mutex of the lane. To `turns.py` it is the turn itself."""

    __slots__ = ("allowed", "alone", "end", "exact", "found", "gone", "group", "k", "key", "lane", "note", "queries",
                 "target_recall", "view", "wake")  # fmt: skip

    def __init__(
        self,
        lane: Leaves,
        view: View,
        queries: NDArray[Any],
        k: int,
        allowed: Selection | None,
        exact: bool,
        target_recall: float | None,
        end: float | None,
        note: Note | None,
        alone: bool,
    ) -> None:
        self.lane = lane
        self.view = view
        self.queries = queries
        self.k = k
        self.allowed = allowed
        self.exact = exact
        self.target_recall = target_recall
        self.end = end
        self.note = note
        self.alone = alone
        self.key = get_ident()
        self.group: list[Ask] = []
        """Set when it is this one's turn: itself, and those it is to search for."""
        self.found: Found | None = None
        """Set when another has searched for this one."""
        self.gone = False
        """Its thread waits no more."""
        self.wake = allocate_lock()
        self.wake.acquire()

    def agrees(self, other: Ask) -> bool:
        """Whether one call can answer both."""
        return (
            self.view is other.view
            and self.k == other.k
            and self.allowed is other.allowed
            and self.exact == other.exact
            and self.target_recall == other.target_recall
            and not self.alone
            and not other.alone
        )

    def search(self, queries: NDArray[Any], trace: Trace | None) -> Found:
        # What ends the search of one, its deadline or that its caller has gone, must not end that of others. Only a wait for
        # a device ends by it: then another of them asks again.
        alone = len(self.group) == 1
        with having(self):
            return self.view.search(
                queries, self.k, allowed=self.allowed, exact=self.exact,
                target_recall=self.target_recall, trace=trace, check=until(self.end) if alone else _never,
            )  # fmt: skip

    def leave(self) -> None:
        self.lane.leave(self)

    def take_again(self, waits: bool) -> None:
        self.lane.take_again(self, waits)


def left(end: float | None) -> float:
    """How long to wait before the next look, where `end` is a time of `time.monotonic`."""
    return LOOK_S if end is None else min(LOOK_S, max(0.0, end - time.monotonic()))


def is_over(end: float | None) -> bool:
    """Whether it is later than `end`."""
    return end is not None and time.monotonic() > end


def until(end: float | None) -> Callable[[], None]:
    """Raises DeadlineExceeded when called behind `end`; Cancelled when the caller of this thread has gone."""

    def check() -> None:
        stop_if_unwanted()
        if is_over(end):
            raise too_late()

    return check


def too_late() -> DeadlineExceeded:
    """What a search that was not done in time ends with."""
    return DeadlineExceeded(
        "the search was not done within the time given; give more time, send fewer queries a call, "
        "or ask fewer at once"
    )


def _never() -> None:
    """Ends nothing."""
