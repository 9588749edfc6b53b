"""Claims about time, on machines that do other things too.

What another process holds up is held up once; what our code makes slow is slow every time. So a claim that
something is quick holds if it once was, in a few tries. That something takes at least as long needs none of this.
"""

from __future__ import annotations

import time
from collections.abc import Callable


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    begun = time.monotonic()
    call()
    return time.monotonic() - begun


def once_below(bound: float, measure: Callable[[], float], tries: int = 5) -> None:
    """Measures until a measurement is below the bound, and fails with all of them when none is."""
    seen: list[float] = []
    while len(seen) < tries:
        seen.append(measure())
        if seen[-1] < bound:
            return
    raise AssertionError(f"none of {seen} is below {bound}")
