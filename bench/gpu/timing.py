"""Calls in rounds: rates as in the other measurements, and how many calls they come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import measure

_CALLS = 100_000
WARM_CALLS = 3


def timed(
    call: Callable[[int], object], batch: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """`measure.median` of `rounds` rounds of `seconds` each (one call at least), and `calls` of all."""
    done = 0

    def counted(number: int) -> None:
        nonlocal done
        done += 1
        call(number)

    for number in range(WARM_CALLS):
        call(number)
    seen = [measure.rate(counted, _CALLS, weight=batch, budget_s=seconds) for _ in range(rounds)]
    return {**measure.median(seen), "calls": done}
