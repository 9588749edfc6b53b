"""What a search lets go of while it waits for a device, and what ends that wait.

The search lane lets hardly more searches go on at once than there are cores. One that waits for a device needs none: it
lets another have its place meanwhile. So those of many callers wait together and are one batch there, and a device
that is slow, or hangs, holds up nobody who does not ask it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Protocol

from .errors import Cancelled, DeadlineExceeded
from .stopping import lend, stop_if_unwanted


class Wait(NamedTuple):
    """How somebody waits for a device. The plain one waits for as long as it takes."""

    end: float | None = None
    """A time of `time.monotonic`: DeadlineExceeded when it passes."""
    check: Callable[[], None] | None = None
    """Called every tenth of a second and may raise. Who gives one can be answered elsewhere too: he is not kept waiting for what holds
    a device for long, as a graph that is built there, but gets DeviceLost."""


PATIENT = Wait()


class Turn(Protocol):
    """A search that has its turn, by the thread that searches."""

    end: float | None

    def leave(self) -> None:
        """Lets another have the place."""

    def take_again(self, waits: bool) -> None:
        """Has a place again, when it is its turn; without `waits` at once, beside those that have one. DeadlineExceeded, Cancelled."""


class _Mine(threading.local):
    turn: Turn | None = None


_mine = _Mine()


def waits_here() -> Wait:
    """How a search of this thread waits where it keeps its place, since it has other work to do meanwhile."""
    turn = _mine.turn
    return PATIENT if turn is None else Wait(turn.end, stop_if_unwanted)


class having:  # noqa: N801 - is used as a function is
    """Within it the search of this thread has `turn`."""

    __slots__ = ("_before", "_turn")

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    def __enter__(self) -> None:
        self._before, _mine.turn = _mine.turn, self._turn

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _mine.turn = self._before


class away:  # noqa: N801 - is used as a function is
    """Within it this thread only waits for a device, as the `Wait` says that it gives. Whoever ends with an answer, or without one that
    the device could give, goes on when it is his turn again; what ends the search itself ends it at once."""

    __slots__ = ("_turn",)

    def __enter__(self) -> Wait:
        self._turn = turn = _mine.turn
        if turn is None:
            return PATIENT
        turn.leave()
        lend(True)
        return Wait(turn.end, stop_if_unwanted)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._turn is not None:
            lend(False)
            goes_on = error is None or (
                isinstance(error, Exception) and not isinstance(error, DeadlineExceeded | Cancelled)
            )
            self._turn.take_again(goes_on)
