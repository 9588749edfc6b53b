"""Are answers right: recall with ties, rows that must not come back, and over-fetch with a proof."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Flags = NDArray[np.bool_]

_TIE = 1e-5


def recall(found: Rows, scores: Floats, bounds: Floats, wanted: int) -> float:
    """recall@wanted with ties: a row counts when its score is no lower than that of the true last one.

    `found` (q, k) with -1 for none, `scores` (q, k) of them computed anew by float32, `bounds` (q,). A row
    that is named twice counts once.
    """
    right = (found >= 0) & (scores >= bounds[:, None] - _TIE) & first_of_each(found)
    return float(np.minimum(right.sum(axis=1), wanted).sum()) / max(len(found) * wanted, 1)


def first_of_each(found: Rows) -> Flags:
    """True where a row stands for the first time in its line."""
    order = np.argsort(found, axis=1, kind="stable")
    in_order = np.take_along_axis(found, order, axis=1)
    fresh = np.ones(found.shape, np.bool_)
    fresh[:, 1:] = in_order[:, 1:] != in_order[:, :-1]
    first = np.empty_like(fresh)
    np.put_along_axis(first, order, fresh, axis=1)
    return first


def scores_of(queries: Floats, found: Rows, vectors_of: Callable[[Rows], Floats]) -> Floats:
    """Inner products (q, k) of queries and the rows that were found; -inf for none."""
    flat = np.maximum(found, 0).reshape(-1)
    gathered = vectors_of(flat).reshape(*found.shape, queries.shape[1])
    scores = np.einsum("qd,qkd->qk", queries, gathered)
    return np.where(found >= 0, scores, -np.inf).astype(np.float32)


def forbidden(found: Rows, allowed: Flags) -> int:
    """How many rows came back that the filter does not allow."""
    return int((~allowed[np.maximum(found, 0)] & (found >= 0)).sum())


def overfetch(
    search: Callable[[Floats, int], Rows],
    queries: Floats,
    allowed: Flags,
    k: int,
    first: int,
    most: int,
) -> tuple[Rows, Flags, int]:
    """The k best allowed rows from the k' nearest of all; what is not complete is asked again with 2 k'.

    Complete is a query with k allowed rows among its k' nearest: none that is farther can be better. So the
    proof holds where `search` is exact. Returns rows (q, k), -1 padded; which are complete; the last k'.
    """
    rows = np.full((len(queries), k), -1, np.int64)
    complete = np.zeros(len(queries), np.bool_)
    asked = min(max(first, k), most, len(allowed))
    while True:
        todo = np.flatnonzero(~complete)
        found = search(queries[todo], asked)
        fits = (found >= 0) & allowed[np.maximum(found, 0)]
        order = np.argsort(~fits, axis=1, kind="stable")[:, :k]
        kept = np.take_along_axis(fits, order, axis=1)
        best = np.where(kept, np.take_along_axis(found, order, axis=1), -1)
        rows[todo, : best.shape[1]] = best
        complete[todo] = (fits.sum(axis=1) >= k) | (asked >= len(allowed))
        if complete.all() or asked >= min(most, len(allowed)):
            return rows, complete, asked
        asked = min(2 * asked, most, len(allowed))
