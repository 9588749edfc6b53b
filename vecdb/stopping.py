"""Whether the caller of this thread still wants its answer.

A call that nobody waits for any more should end soon. Whoever makes calls for others says how to find out,
and what may take long asks every few milliseconds, beside its deadline.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import Cancelled, DeadlineExceeded

Interrupt = Callable[[], None]
"""Called every few milliseconds; raises what ends the work."""


class _Mine(threading.local):
    wanted: Callable[[], bool] | None = None


_mine = _Mine()


@contextmanager
def while_wanted(wanted: Callable[[], bool]) -> Iterator[None]:
    """Reads of this thread end with Cancelled soon after `wanted` says no. It is called often and must be
    quick. A write is not ended: its commit may be shared by others."""
    before, _mine.wanted = _mine.wanted, wanted
    try:
        yield
    finally:
        _mine.wanted = before


def watched() -> bool:
    """Whether someone may lose interest in what this thread does."""
    return _mine.wanted is not None


def stop_if_unwanted() -> None:
    """Cancelled when the caller of this thread has gone."""
    wanted = _mine.wanted
    if wanted is not None and not wanted():
        raise Cancelled("the caller does not wait for the answer any more; the call was ended")


def deadline(timeout_s: float | None) -> Interrupt:
    """Raises DeadlineExceeded when called more than `timeout_s` from now, never for None; and Cancelled once
    nobody waits for the call any more."""
    if timeout_s is None:
        return stop_if_unwanted
    end = time.monotonic() + timeout_s

    def check() -> None:
        stop_if_unwanted()
        if time.monotonic() > end:
            raise DeadlineExceeded(
                f"not done within {timeout_s:g} s; give more time, ask for less at once, or put a "
                "cheaper condition beside the filter"
            )

    return check
