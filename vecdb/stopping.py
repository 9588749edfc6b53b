"""Whether the caller of this thread still wants its answer, and whether others go first.

A call that nobody waits for any more should end soon, and one that takes long should not keep short ones waiting. Whoever
makes calls for others says how to find out and how to rest, and what may take long asks every few milliseconds,
beside its deadline.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TypeVar

from .errors import Cancelled, DeadlineExceeded, LimitExceeded

Item = TypeVar("Item")

Interrupt = Callable[[], None]
"""Called every few milliseconds; raises what ends the work."""
_ITEMS = 4_096


@dataclass(frozen=True, slots=True)
class Caller:
    """For whom a thread works."""

    wanted: Callable[[], bool] | None = None
    """Whether it still waits; None: always."""
    filter_s: float = 0.0
    """Seconds of a core that evaluating one filter may take; 0: any."""
    rest: Callable[[], object] | None = None
    """Lets others go first; None: nobody goes first."""
    lend: Callable[[bool], object] | None = None
    """Told True when the thread begins to wait for a device, and False when that is over: others may have what it keeps meanwhile."""


class _Mine(threading.local):
    caller = Caller()
    elsewhere_s = 0.0


_mine = _Mine()
_ends = False


def end_threads() -> None:
    """The process ends: what other threads than the main one do ends as if nobody waited for it."""
    global _ends
    _ends = True


def caller() -> Caller:
    """The caller of this thread, for what is done for it in the lane: by another thread perhaps, and without rests, since
    others wait."""
    return replace(_mine.caller, rest=None)


class on_behalf_of:  # noqa: N801 - is used as a function is
    """What this thread does within it is done for `caller`. No generator: each query has one, for 0.5 us instead of 2."""

    __slots__ = ("_before", "_caller")

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def __enter__(self) -> None:
        self._before, _mine.caller = _mine.caller, self._caller

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _mine.caller = self._before


def while_wanted(
    wanted: Callable[[], bool],
    filter_s: float = 0.0,
    lend: Callable[[bool], object] | None = None,
) -> on_behalf_of:
    """Reads and waits of this thread, and what a write does before its commit, end with Cancelled soon after
    `wanted` says no. It is called often and must be quick. A commit is not ended: others may share it.

    `filter_s` bounds the evaluation of a filter, in seconds of a core; 0: not at all. `lend` is told of waits for devices."""
    return on_behalf_of(Caller(wanted, filter_s, lend=lend))


def resting(rest: Callable[[], object]) -> on_behalf_of:
    """Filters that this thread evaluates and checks that it makes call `rest` every few milliseconds."""
    return on_behalf_of(replace(_mine.caller, rest=rest))


def give_way() -> None:
    """Lets others go first, where whoever this thread works for wants that."""
    rest = _mine.caller.rest
    if rest is not None:
        rest()


def lend(begins: bool) -> None:
    """Says that this thread begins to wait for a device, or that this is over."""
    told = _mine.caller.lend
    if told is not None:
        told(begins)


def watched() -> bool:
    """Whether someone may lose interest in what this thread does."""
    return _mine.caller.wanted is not None


def stop_if_unwanted() -> None:
    """Cancelled when the caller of this thread has gone, or the process ends and this is not its main thread."""
    wanted = _mine.caller.wanted
    if wanted is not None and not wanted():
        raise Cancelled("the caller does not wait for the answer any more; the call was ended")
    if _ends and threading.current_thread() is not threading.main_thread():
        raise Cancelled("the process ends, and the call with it")


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


def evaluating(interrupt: Interrupt) -> Interrupt:
    """For the evaluation of a filter that begins now in this thread: `interrupt` after a rest, and LimitExceeded once it
    has taken more than the caller of this thread is allowed.

    What counts is the time of the processor: by the clock a cheap filter would be refused on a server that has much to
    do, and rests would count."""
    limit_s = _mine.caller.filter_s
    if not limit_s and _mine.caller.rest is None:
        return interrupt
    begun_s = _worked_s()

    def check() -> None:
        give_way()
        interrupt()
        if limit_s and _worked_s() - begun_s > limit_s:
            raise LimitExceeded(
                f"the filter takes more than {limit_s:g} s of a core, which is all that this server gives to one; "
                "put a cheaper condition beside it with $and, give it fewer or simpler patterns, or have its setting "
                "max_filter_s raised",
                setting="max_filter_s",
                limit=limit_s,
            )

    return check


def endless(interrupt: Interrupt) -> bool:
    """Whether `interrupt` never raises for this thread: without a deadline, a limit and one who may lose interest."""
    return interrupt is stop_if_unwanted and not watched()


def worked_elsewhere(seconds: float) -> None:
    """Another process has worked so long for this thread, in seconds of a core; they count as its own."""
    _mine.elsewhere_s += seconds


def _worked_s() -> float:
    return time.thread_time() + _mine.elsewhere_s


def asking(items: Iterable[Item], interrupt: Interrupt) -> Iterator[Item]:
    """The items, some us each to whoever takes them; `interrupt` is called before every 4,096th."""
    for number, item in enumerate(items):
        if number % _ITEMS == 0:
            interrupt()
        yield item
