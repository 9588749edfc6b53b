"""How many candidates of lossy codes are ranked again, where calibration does not speak for the query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .distance import Floats, Rows

_SURE = 3.0
"""Standard deviations of the codes' error that a k-th answer must be nearer than the last candidate.
2 left recall@10 at 0.90 for sq4 where a filter allows the farthest 90 % only; 3 gave 1.0 for every code
(0.82 to 0.03 without), and asks again for none to half of the queries under filters that do not care."""

_DEEPER = 4


def deep_enough(
    queries: Any,
    k: int,
    width: int,
    found: tuple[Floats, Rows],
    rank: Callable[[Any, Rows], Floats],
    more: Callable[[Any, int], tuple[Floats, Rows]],
    check: Callable[[], None],
) -> tuple[Floats, Rows]:
    """True keys and rows (q, k) of the best among `found`, and among more where that is needed.

    `found` are the `width` nearest by code, keys and rows (q, <= width); fewer columns: there are no
    others. `more(queries, width)` finds more of them, `rank(queries, rows)` gives true keys.

    The depth of calibration speaks for nearest neighbours. Far from the query, where a filter may
    lead, many more rows lie within the error of the codes. That error is seen on the candidates: a
    query is done when its k-th answer is clearly nearer than the last candidate.
    """
    keys, rows = found
    out = np.full((len(queries), k), np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
    left = np.arange(len(queries))
    while rows.shape[1]:
        true = rank(queries, rows)
        order = np.lexsort((rows, true), axis=1)[:, :k]
        near, nearest = (np.take_along_axis(part, order, axis=1) for part in (true, rows))
        out[0][left, : near.shape[1]], out[1][left, : near.shape[1]] = near, nearest
        if rows.shape[1] < width:
            break
        there = rows >= 0
        error = np.where(there, true - np.where(there, keys, 0), 0)
        count = np.maximum(there.sum(axis=1), 1)
        mean = error.sum(axis=1) / count
        spread = np.sqrt(np.maximum((error**2).sum(axis=1) / count - mean**2, 0))
        last = np.where(there, keys, -np.inf).max(axis=1)
        # Candidates look nearer than they are, since they were chosen for that: no credit for it.
        unsure = near.max(axis=1) > last + np.minimum(mean, 0) - _SURE * spread
        if not unsure.any():
            break
        check()
        left, width = left[unsure], _DEEPER * width
        queries = np.ascontiguousarray(queries[unsure])
        keys, rows = more(queries, width)
    return out
