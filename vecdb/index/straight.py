"""The commonest query of all: one vector, to a graph over signed bytes, without a filter, fresh rows or dead ones.

A walk takes 60 to 150 us. What Python does around it finds the processor's caches full of vectors, so each step of it costs a
multiple of what it costs alone, and callers that ask at once wait for each other's steps. So what is the same for all such
queries to a view, of one k and target, is worked out once. The answer is that of the ordinary way (`one.py`), to the last bit.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np

from ..memory import aligned, aligned_row
from . import plan
from .distance import LARGE_SQUARE, SMALL_SQUARE
from .door import faiss, pointer, use_threads
from .found import Found
from .main import Main
from .one import in_order
from .signed import LEAST_STEP, STEP_OF_LARGEST, Walked
from .walking import walk, widened

_ONE = np.array(1.0, np.float32)
_KEPT_DESKS, _KEPT_WIDTH = 32, 1_024


class _Desk:
    """What FAISS reads and writes in one query of a thread, with pointers to it."""

    __slots__ = ("at", "places", "query", "query_at", "scores", "scores_at")

    def __init__(self, dimension: int, width: int) -> None:
        self.query = aligned(1, dimension)
        self.scores = np.empty((1, width), np.float32)
        self.places = np.empty((1, width), np.int64)
        self.query_at, self.scores_at = pointer(self.query), pointer(self.scores)
        self.at = pointer(self.places)


class _Desks(threading.local):
    """A thread's desks, by dimension and width."""

    def __init__(self) -> None:
        self.made: dict[tuple[int, int], _Desk] = {}

    def take(self, dimension: int, width: int) -> _Desk:
        """One that nobody else has, as a query within this one may ask for the same: in a signal's handler, or a finaliser."""
        return self.made.pop((dimension, width), None) or _Desk(dimension, width)

    def give_back(self, desk: _Desk, dimension: int, width: int) -> None:
        if width > _KEPT_WIDTH:
            return
        if len(self.made) >= _KEPT_DESKS:
            self.made.clear()
        self.made[dimension, width] = desk


_DESKS = _Desks()


class Straight:
    """Queries of one k and target recall to all rows of a main index. Any thread may ask."""

    def __init__(self, main: Main, walked: Walked, k: int, setting: int, metric: str) -> None:
        ef_search, factor = widened(k, setting, main.n)
        self._k, self._width = k, int(k * factor)
        self._params = walk(ef_search)
        self._search = walked.graph.search_c
        self._walked = walked
        self._vectors = pointer(walked.vectors)
        self._n, self._dimension = walked.vectors.shape
        self._rows = main.rows
        self._cosine = metric == "cosine"
        self._plan = plan.walk_name(main)

    def nearest(self, query: Any, square: float) -> Found | None:
        """The k nearest for `query` (1, d) float32, as it came, finite, with its squared length; None where it needs a
        closer look."""
        flags = query.flags
        if not (flags.c_contiguous and flags.aligned):
            return None
        dimension, width, k = self._dimension, self._width, self._k
        if self._cosine:
            if not SMALL_SQUARE < square < LARGE_SQUARE:
                return None
            length = np.array(math.sqrt(square), np.float32)
            query = np.divide(query, length, aligned_row(dimension))
        desk = _DESKS.take(dimension, width)
        largest = np.maximum.reduce(np.abs(query, desk.query), axis=None)
        if not largest > LEAST_STEP:
            return None
        np.divide(query, largest * STEP_OF_LARGEST, desk.query)
        np.rint(desk.query, desk.query)
        use_threads(1)
        self._search(1, desk.query_at, width, desk.scores_at, desk.at, self._params)
        scores = np.empty((1, k), np.float32)
        places = np.empty((1, k), np.int64)
        faiss.knn_inner_products_by_idx(
            pointer(query), self._vectors, desk.at, dimension, 1, self._n, width, k,
            pointer(scores), pointer(places), width,
        )  # fmt: skip
        _DESKS.give_back(desk, dimension, width)
        if places[0, -1] < 0:
            return None
        np.subtract(_ONE, scores, scores)
        return Found(*in_order(scores, self._rows[places]), False, self._plan)
