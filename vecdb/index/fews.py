"""The vectors of a few rows that a filter allows, side by side: gathered once, kept for the queries that follow."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Protocol

import numpy as np

from ..selection import Selection
from .chosen import Few, are_small
from .distance import Floats, Rows, side_by_side
from .live import Bits, is_set
from .main import Main
from .rough import Rough
from .source import VectorSource, exact_space
from .trace import Trace

_KEPT_FEW, _KEPT_SHARE = 64, 4
"""Selections whose vectors are kept: so many, of a quarter of the rows together, or one; who was not asked for longest goes."""
_LEAST_BY_BYTES = 640
"""Rows that are compared by bytes of them (`rough.py`)."""
_MOST_GONE = 16
"""Rows that have died since a selection was gathered and are passed over: each is one candidate more for FAISS's heap."""


class Seen(Protocol):
    """What is needed of the view whose rows they are."""

    dimension: int
    metric: str
    source: VectorSource
    lossy_tail: bool
    sequence: int
    n_rows: int
    live: Bits
    main: Main | None


class Fews:
    """Of one view, which is handed to each call: held here, it would be a circle, and its arrays would stay until
    the collector comes. Any thread may call: two may gather the same, and either result is right."""

    def __init__(self, lasting: Lasting) -> None:
        self._lasting = lasting
        self._kept: dict[int, tuple[Selection, Few, Rows]] = {}

    def let_go(self) -> None:
        """Of what is only kept for the next query."""
        self._kept = {}
        self._lasting.let_go()

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
            few = self._lasting.of(view, allowed.key, rows)
            # The selection is kept too, so that its id stays its own.
            kept = self._kept[id(allowed)] = (allowed, few, rows)
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


class _Gathered:
    """What was gathered for a filter: of `rows`, all that it allowed at a moment; `vectors` have room for some more."""

    __slots__ = ("n_rows", "rough", "rows", "sequence", "vectors")

    def __init__(self, view: Seen, rows: Rows, vectors: Floats) -> None:
        self.sequence, self.n_rows = view.sequence, view.n_rows
        self.rows = rows
        self.vectors = vectors
        self.rough = Rough(view.dimension, len(vectors), _LEAST_BY_BYTES)


class Lasting:
    """The vectors of what filters allow, from one view of an index to the next: a row never changes, so those that came are
    put behind, and those that died are passed over. To gather 1,300 rows of 384 anew after each commit was a quarter of
    the time of queries that alternate with writes. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[str, _Gathered] = OrderedDict()

    def let_go(self) -> None:
        """Of all that is held."""
        with self._lock:
            self._held = OrderedDict()

    def of(self, view: Seen, key: str | None, rows: Rows) -> Few:
        """The vectors of `rows`, the live ones of those that the filter `key` allows, ascending."""
        if key is None or view.metric == "hamming":
            return Few(rows, _gather(view, rows), view.metric)
        with self._lock:
            held = self._held.get(key)
            grown = None if held is None else self._grown(held, view, rows)
            if grown is not None:
                self._held.move_to_end(key)
                return grown
        n = len(rows)
        if are_small(4 * n * view.dimension):
            return Few(rows, _gather(view, rows), view.metric)
        vectors = _gather(view, rows, n // 8 + _MOST_GONE)
        made = _Gathered(view, rows, vectors)
        with self._lock:
            self._keep(key, made, view)
        return Few(rows, vectors[:n], view.metric, rough=made.rough)

    def _grown(self, held: _Gathered, view: Seen, rows: Rows) -> Few | None:
        """The vectors of a later moment; None where what is held does not do for that."""
        if view.sequence < held.sequence or view.n_rows < held.n_rows:
            return None
        alive = is_set(view.live, held.rows)
        before = int(np.searchsorted(rows, held.n_rows))
        gone = len(held.rows) - int(np.count_nonzero(alive))
        count, fresh = len(held.rows), rows[before:]
        if (
            len(held.rows) - gone != before
            or gone > _MOST_GONE
            or count + len(fresh) > len(held.vectors)
        ):
            return None
        if len(fresh):
            # Nobody looks there: what was given out ends before.
            held.vectors[count : count + len(fresh)] = _gather(view, fresh)
            held.rows = np.concatenate([held.rows, fresh])
        held.sequence, held.n_rows = view.sequence, view.n_rows
        if gone:
            alive = np.concatenate([alive, np.ones(len(fresh), np.bool_)])
        vectors = held.vectors[: len(held.rows)]
        return Few(held.rows, vectors, view.metric, alive if gone else None, held.rough)

    def _keep(self, key: str, made: _Gathered, view: Seen) -> None:
        held = self._held.get(key)
        if held is not None and held.sequence > made.sequence:
            return
        self._held[key] = made
        self._held.move_to_end(key)
        together = sum(len(one.vectors) for one in self._held.values())
        while len(self._held) > 1 and (
            len(self._held) > _KEPT_FEW or together * _KEPT_SHARE > view.n_rows
        ):
            together -= len(self._held.popitem(last=False)[1].vectors)


def _gather(view: Seen, rows: Rows, spare: int = 0) -> Any:
    """The vectors of ascending rows in the index's space, side by side, and behind them room for so many of float32."""
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
    return np.concatenate(parts) if view.metric == "hamming" else side_by_side(parts, spare)
