"""The commonest query of all: one vector, to a graph over signed bytes, without a filter, fresh rows or dead ones.

A walk takes 60 to 150 us. What Python does around it finds the processor's caches full of vectors, so each step of it costs a
multiple of what it costs alone, and callers that ask at once wait for each other's steps. So what is the same for all such
queries to a view, of one k and target, is worked out once. The answer is that of the ordinary way (`one.py`), to the last bit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..memory import aligned_row
from . import desks, plan
from .distance import LARGE_SQUARE, SMALL_SQUARE
from .door import best_products, use_threads
from .found import Found
from .main import Main
from .one import in_order, to_near
from .signed import LEAST_STEP, STEP_OF_LARGEST, Walked
from .walking import walk, widened


class Straight:
    """Queries of one k and target recall to all rows of a main index. Any thread may ask."""

    def __init__(self, main: Main, walked: Walked, k: int, setting: int, metric: str) -> None:
        ef_search, factor = widened(k, setting, main.n)
        self._k, self._width = k, int(k * factor)
        self._params = walk(ef_search)
        self._search = walked.graph.search_c
        self._vectors = walked.vectors
        self._rows = main.rows
        self._metric = metric
        self._plan = plan.walk_name(main)

    def nearest(self, query: Any, square: float) -> Found | None:
        """The k nearest for `query` (1, d) float32, as it came, finite, with its squared length; None where it needs a
        closer look."""
        flags = query.flags
        if not (flags.c_contiguous and flags.aligned):
            return None
        dimension, width = query.shape[1], self._width
        if self._metric == "cosine":
            if not SMALL_SQUARE < square < LARGE_SQUARE:
                return None
            length = np.array(math.sqrt(square), np.float32)
            query = np.divide(query, length, aligned_row(dimension))
        desk = desks.take(dimension, width)
        largest = np.maximum.reduce(np.abs(query, desk.query), axis=None)
        if not largest > LEAST_STEP:
            return None
        np.divide(query, largest * STEP_OF_LARGEST, desk.query)
        np.rint(desk.query, desk.query)
        use_threads(1)
        self._search(1, desk.query_at, width, desk.scores_at, desk.places_at, self._params)
        scores, places = best_products(query, self._vectors, desk.places, self._k)
        desks.give_back(desk)
        if places[0, -1] < 0:
            return None
        near = to_near(scores, self._metric)
        return Found(*in_order(near, self._rows[places]), False, self._plan)
