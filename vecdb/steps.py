"""What the query of this thread has done so far, noted in a microsecond or so while somebody wants to know: for a log
of slow ones, which are known as such only when they are over."""

from __future__ import annotations

import threading
import time
from typing import Any


class Steps:
    """Notes of one query, by its own thread. What they mean is worked out in `explaining.py`, if at all."""

    __slots__ = ("allowed", "begun_s", "fetch_at_s", "filter_s", "plan", "target_recall", "view", "wait_s")  # fmt: skip

    def __init__(self) -> None:
        self.begun_s = time.perf_counter()
        self.view: Any = None
        """What it searched, from the moment on that it knows."""
        self.allowed: Any = None
        """What its filter lets through."""
        self.plan = ""
        """How it was searched first; empty until then."""
        self.target_recall: float | None = None
        """What it asks itself; 1.0 where it compares all."""
        self.filter_s = 0.0
        self.wait_s = 0.0
        self.fetch_at_s = 0.0
        """When it began to fetch what it includes; 0 where it has not."""


class _Here(threading.local):
    now: Steps | None = None


HERE = _Here()
"""`now`: the notes to make; None where nobody wants any."""


def begin() -> Steps:
    """From now on the queries of this thread note what they do, until `end`."""
    HERE.now = made = Steps()
    return made


def end() -> None:
    """What was noted is kept by nobody here: a view holds the memory of an index."""
    HERE.now = None
