"""Calls in rounds: rates as in the other measurements, and how many calls they come from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import measure

_CALLS = 100_000
WARM_CALLS = 3


def timed(call: Callable[[int], object], batch: int, rounds: int, seconds: float) -> dict[str, Any]:
    """`measure.median` of `rounds` rounds of `seconds` each (one call at least), and `calls` of all.

    Before them three calls that do not count, fewer where they take longer than a round.
    """
    done = 0

    def counted(number: int) -> None:
        nonlocal done
        done += 1
        call(number)

    end_s = time.perf_counter() + seconds
    for number in range(WARM_CALLS):
        call(number)
        if time.perf_counter() > end_s:
            break
    seen = [measure.rate(counted, _CALLS, weight=batch, budget_s=seconds) for _ in range(rounds)]
    return {**measure.median(seen), "calls": done}


def figures(
    batches: Sequence[Any], seen: int, add_ms: list[float], search_ms: list[float]
) -> dict[str, Any]:
    """Of batches that were added one after another, each with a search behind it; `seen` of these found their row."""
    both = np.add(add_ms, search_ms)
    return {
        "added": len(batches[0]),
        "times": len(batches),
        "visible": seen,
        "add_p50_ms": float(np.median(add_ms)),
        "search_p50_ms": float(np.median(search_ms)),
        "p50_ms": float(np.median(both)),
        "p99_ms": float(np.percentile(both, 99)),
    }
