"""What one query of FAISS reads and writes, kept by the thread that asked, with pointers to it: to make these takes longer than
to compare a hundred vectors."""

from __future__ import annotations

import threading

import numpy as np

from ..memory import aligned
from .door import pointer

_KEPT, _KEPT_WIDTH = 32, 1_024


class Desk:
    """Room for a float32 query (1, d), and for `width` scores and places (1, width) of what is found."""

    __slots__ = ("places", "places_at", "query", "query_at", "scores", "scores_at", "width")

    def __init__(self, dimension: int, width: int) -> None:
        self.width = width
        self.query = aligned(1, dimension)
        self.scores = np.empty((1, width), np.float32)
        self.places = np.empty((1, width), np.int64)
        self.query_at, self.scores_at = pointer(self.query), pointer(self.scores)
        self.places_at = pointer(self.places)


class _Desks(threading.local):
    """A thread's desks, by dimension and width."""

    def __init__(self) -> None:
        self.made: dict[tuple[int, int], Desk] = {}


_desks = _Desks()


def take(dimension: int, width: int) -> Desk:
    """One that nobody else has, as a query within this one may ask for the same: in a signal's handler, or a finaliser."""
    return _desks.made.pop((dimension, width), None) or Desk(dimension, width)


def give_back(desk: Desk) -> None:
    """For this thread's next query like that. One that is not given back is only made anew."""
    if desk.width > _KEPT_WIDTH:
        return
    made = _desks.made
    if len(made) >= _KEPT:
        made.clear()
    made[desk.query.shape[1], desk.width] = desk
