"""Exact answers where the index holds lossy codes: few vectors are read, where a bound shows that these are enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ..selection import Selection
from .blocks import Allowed, Mask
from .distance import Floats, Merger, Rows, padded, to_distances
from .found import Found
from .main import Main
from .source import VectorSource, scan
from .tail import Piece
from .trace import Trace

_HALF_ERROR = 2.0**-11 + 1e-5
"""Largest distance of a unit vector from its float16 code, with room for float32 rounding."""
_ROUNDING = 1e-5


class Seen(Protocol):
    """What is needed of the view that is searched."""

    metric: str
    source: VectorSource
    lossy_tail: bool
    n_rows: int
    n_live: int
    main: Main | None
    main_live: int
    pieces: tuple[Piece, ...]

    def live_mask(self, start: int = 0, stop: int | None = None) -> Mask: ...

    def count(self, allowed: Selection | None) -> int: ...

    def allowed_in_main(self, allowed: Selection | None) -> Allowed | None: ...

    def allowed_in_piece(self, piece: Piece, allowed: Selection | None) -> Allowed | None: ...

    def ranked_again(self, x: Any, rows: Rows, trace: Trace | None) -> Floats: ...


def nearest(
    view: Seen,
    x: Any,
    k: int,
    allowed: Selection | None,
    trace: Trace | None,
    check: Callable[[], None],
) -> Found:
    """The k nearest live and allowed rows by the stored vectors, for queries x (q, d) in the index's space.

    Candidates are taken by code, more and more of them, until none outside can belong to the
    answer: a code c of x with |c - x| <= e changes a distance by at most e (l2, not squared) or e
    times the query's length (Cauchy-Schwarz). Queries without that proof read every vector.
    """
    error = _HALF_ERROR if view.lossy_tail else 0.0
    if view.main is not None:
        error = np.inf if view.main.is_late else max(error, view.main.error)
    error += _ROUNDING
    near, rows = np.empty((len(x), 0), np.float32), np.empty((len(x), 0), np.int64)
    width = k + max(8, k // 2)
    certain = np.zeros(len(x), np.bool_)
    while np.isfinite(error) and width <= 4 * k + 1_000:
        check()
        own = Merger(width)
        _candidates(view, x, width, allowed, own, trace)
        keys, rows = own.best(len(x))
        true = view.ranked_again(x, rows, trace)
        # Sorted as a whole, so that ties at the k-th place go by row.
        near = np.where(rows < 0, np.float32(np.nan), to_distances(true, view.metric))
        order = np.lexsort((rows, near), axis=1)[:, :k]
        near, rows = np.take_along_axis(near, order, 1), np.take_along_axis(rows, order, 1)
        if keys.shape[1] < width:
            certain[:] = True
            break
        kth = np.sort(true, axis=1)[:, k - 1]
        last = keys.max(axis=1)
        if view.metric == "l2":
            beyond = np.sqrt(np.maximum(last, 0)) - error > np.sqrt(kth)
        else:
            beyond = last - error * np.sqrt(np.einsum("qd,qd->q", x, x)) > kth
        certain = ~np.isfinite(last) | beyond
        if certain.all():
            break
        width *= 2
    distances, rows = padded(near, k, np.nan), padded(rows, k, -1)
    few = np.flatnonzero(~certain)
    if few.size:
        mask = None if allowed is None else allowed.mask()

        def wanted(start: int, stop: int) -> Mask:
            live = view.live_mask(start, stop)
            return live if mask is None else live & mask[start:stop]

        merger = Merger(k)
        merger.add(
            *scan(
                np.ascontiguousarray(x[few]),
                k,
                view.metric,
                view.source,
                view.n_rows,
                wanted,
                check,
            )
        )
        distances[few], rows[few] = merger.result(few.size, view.metric)
    if trace is not None:
        trace.plan = "exact"
        trace.allowed_rows = view.count(allowed)
        trace.main_rows_compared += view.n_live if few.size else 0
    return Found(distances, rows, True, "exact")


def _candidates(
    view: Seen, x: Any, width: int, allowed: Selection | None, own: Merger, trace: Trace | None
) -> None:
    """The `width` nearest by code, in main index and tail."""
    main = view.main
    if main is not None and view.main_live:
        inside = view.allowed_in_main(allowed)
        if inside is None or inside.count:
            keys, positions = main.exact(x, width, inside)
            own.add(keys, np.where(positions < 0, -1, main.rows[positions]))
    for piece in view.pieces:
        inside = view.allowed_in_piece(piece, allowed)
        if piece.start < piece.stop and (inside is None or inside.count):
            keys, positions = piece.block.search(x, width, inside)
            own.add(keys, piece.row_numbers(positions))
            if trace is not None:
                trace.tail_rows_compared += piece.block.n if inside is None else inside.count
