"""The vectors of a few rows that a filter allows, side by side: gathered once, kept for the queries that follow."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..selection import Selection
from .chosen import Few
from .distance import Rows, side_by_side
from .live import Bits, is_set
from .main import Main
from .source import VectorSource, exact_space
from .trace import Trace

_KEPT_FEW, _KEPT_SHARE = 8, 4
"""Selections whose vectors are kept: so many, of a quarter of the rows together, or one."""


class Seen(Protocol):
    """What is needed of the view whose rows they are."""

    metric: str
    source: VectorSource
    lossy_tail: bool
    n_rows: int
    live: Bits
    main: Main | None


class Fews:
    """Of one view, which is handed to each call: held here, it would be a circle, and its arrays would stay until
    the collector comes. Any thread may call: two may gather the same, and either result is right."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Selection, Few, Rows]] = {}

    def let_go(self) -> None:
        """Of what is only kept for the next query."""
        self._kept = {}

    def kept(self, allowed: Selection) -> Few | None:
        """The vectors of a selection, where they were gathered for an earlier query."""
        kept = self._kept.get(id(allowed))
        return kept[1] if kept is not None and kept[0] is allowed else None

    def of(self, view: Seen, allowed: Selection, trace: Trace | None) -> Few:
        """The vectors of a selection of few rows; the last ones asked for are kept."""
        kept = self._kept.get(id(allowed))
        if kept is None or kept[0] is not allowed:
            rows = allowed.rows()
            rows = rows[is_set(view.live, rows)]
            # The selection is kept too, so that its id stays its own.
            kept = self._kept[id(allowed)] = (allowed, _gather(view, rows), rows)
            together = sum(len(rows) for _, _, rows in list(self._kept.values()))
            if len(self._kept) > _KEPT_FEW or together * _KEPT_SHARE > view.n_rows:
                self._kept = {id(allowed): kept}
        if trace is not None:
            main = view.main
            inside = 0 if main is None else np.searchsorted(kept[2], main.high_water)
            trace.plan, trace.allowed_rows = "exact", kept[2].size
            trace.main_rows_compared = int(inside)
            trace.tail_rows_compared = kept[2].size - int(inside)
        return kept[1]


def _gather(view: Seen, rows: Rows) -> Few:
    main = view.main
    inside = 0
    if main is not None and not main.lossy and not view.lossy_tail:
        inside = int(np.searchsorted(rows, main.high_water))
    parts = []
    if inside and main is not None:
        parts.append(main.block.take(main.position_of_row()[rows[:inside]]))
    if inside < rows.size or not parts:
        # From the store where codes would lose something, and what pieces of the tail hold.
        parts.append(exact_space(view.source.rows(rows[inside:]), view.metric))
    together = np.concatenate(parts) if view.metric == "hamming" else side_by_side(parts)
    return Few(rows, together, view.metric)
