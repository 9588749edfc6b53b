"""What the main index gives to an answer: by the device where a copy of it lies, else by the host; and ranked
again by the stored vectors where codes lose something.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..types import LISTS_ONLY
from . import plan
from .blocks import Allowed
from .depth import deep_enough
from .device_main import DeviceMain, Unanswered
from .distance import Floats, Merger, Rows
from .main import Main
from .side import Asked
from .trace import FEW, Trace

Rank = Callable[[Any, Rows, Trace | None], Floats]
"""(queries, rows, trace) -> keys by the stored vectors."""


def search(
    main: Main,
    copy: DeviceMain | None,
    x: Any,
    k: int,
    allowed: Allowed | None,
    target: float | None,
    asked: Asked | None,
    rank: Rank,
    merger: Merger,
    trace: Trace | None,
    check: Callable[[], None],
) -> tuple[bool, str]:
    """Adds the k nearest (allowed) rows of `main` for (q, d) queries to `merger`; whether they are exact, and the
    plan's name. `copy` is what lies of it on a device; `target` None asks for exact answers, which the host gives.

    LimitExceeded when the queue of the device is full.
    """
    part = _Part(x, k, allowed, target, rank, merger, check)
    if copy is None or target is None:
        return part.by(main, main, asked, trace)
    try:
        # Graphs beside the main one are the host's.
        found = part.by(copy, main, None, trace)
    except Unanswered as why:
        if trace is not None:
            trace.main_rows_compared, trace.rerank_us = 0, 0.0
            trace.device_note = f"{why}; answered by the CPU"
        return part.by(main, main, asked, trace)
    if trace is not None:
        if found[1] != "exact":
            trace.device = copy.names
        else:
            trace.why_cpu = "comparing the rows takes the CPU less time" if allowed is None else FEW
    return found


class _Part:
    """One search of one main index."""

    def __init__(
        self,
        x: Any,
        k: int,
        allowed: Allowed | None,
        target: float | None,
        rank: Rank,
        merger: Merger,
        check: Callable[[], None],
    ) -> None:
        self.x, self.k, self.allowed, self.target = x, k, allowed, target
        self.rank, self.merger, self.check = rank, merger, check

    def by(
        self, main: Main, host: Main, asked: Asked | None, trace: Trace | None
    ) -> tuple[bool, str]:
        """See `search`. Nothing has been added where it raises."""
        x, k, allowed = self.x, self.k, self.allowed
        if not main.lossy:
            keys, rows, exact, name = plan.search_main(
                main, x, k, allowed, self.target, trace, self.check, asked
            )
            self.merger.add(keys, rows)
            return exact, name
        width = plan.ranked_again(main, k, allowed, asked)
        found = plan.search_main(main, x, width, allowed, self.target, trace, self.check, asked, k)
        coded, rows, name = found[0], found[1], found[3]
        # Dead rows hardly lead away from the query; product quantization is too coarse to go by that.
        scalar = main.kind == "ivf" and main.code not in LISTS_ONLY
        if allowed is None or (allowed.deaths and scalar):
            self.merger.add(self.rank(x, rows, trace), rows)
            return False, name

        def more(queries: Any, wider: int) -> tuple[Floats, Rows]:
            try:
                return self._found(main, queries, wider, asked)
            except Unanswered:
                # Some queries look deeper than a device does; what it answered for the others stands.
                return self._found(host, queries, wider, None)

        def rank(queries: Any, candidates: Rows) -> Floats:
            return self.rank(queries, candidates, trace)

        self.merger.add(*deep_enough(x, k, width, (coded, rows), rank, more, self.check))
        return False, name

    def _found(
        self, main: Main, queries: Any, width: int, asked: Asked | None
    ) -> tuple[Floats, Rows]:
        return plan.search_main(
            main, queries, width, self.allowed, self.target, None, self.check, asked
        )[:2]
