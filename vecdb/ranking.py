"""Diversity: from many near hits those that are near the query and unlike each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .index import distances

Floats = NDArray[np.float32]


def most_relevant(
    near: Floats,
    vectors: NDArray[Any],
    metric: str,
    k: int,
    share: float,
    check: Callable[[], None],
) -> NDArray[np.int64]:
    """Positions of the picks in order, at most k: maximal marginal relevance.

    `near` (m,) are the distances of the candidates to the query, ascending; `vectors` (m, width) are
    theirs as stored, float32 or packed bits. Each pick has the largest share * sim(query, x) - (1 -
    share) * max(sim(picked, x)), where sim = -distance and the second part is 0 for the first pick
    (Carbonell & Goldstein, SIGIR 1998). Of equal ones the nearest is picked. Costs k * m distances;
    `check` is called at each pick and may raise.
    """
    m = len(near)
    to_all = _distances_to(vectors, metric)
    relevance = -np.float32(share) * near
    nearest_pick = np.full(m, np.inf, np.float32)
    """Distance of each candidate to the pick that is most like it."""
    left = np.ones(m, np.bool_)
    picks = np.empty(min(k, m), np.int64)
    for n in range(len(picks)):
        check()
        score = relevance if n == 0 else relevance + np.float32(1.0 - share) * nearest_pick
        best = int(np.argmax(np.where(left, score, np.float32(-np.inf))))
        picks[n], left[best] = best, False
        np.minimum(nearest_pick, to_all(best), out=nearest_pick)
    return picks


def _distances_to(vectors: NDArray[Any], metric: str) -> Callable[[int], Floats]:
    """Distances of one of the vectors to all of them, by its position."""
    if metric in ("cosine", "ip"):
        wide = vectors.astype(np.float32, copy=metric == "cosine")
        if metric == "cosine":
            wide /= np.linalg.norm(wide, axis=1, keepdims=True)

        def by_product(position: int) -> Floats:
            found: Floats = np.float32(1.0) - wide @ wide[position]
            return found

        return by_product
    return lambda position: distances(vectors[position : position + 1], vectors, metric)[0]
