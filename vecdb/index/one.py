"""Queries to a graph or lists and at most fresh rows beside: the commonest search, with little around the walk.

A walk takes 60 to 200 us; every call of numpy around it costs one or two, after that of a batch 10 to 30, on
caches that the walk has filled with vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import plan
from .blocks import Allowed, FloatBlock
from .distance import Floats, Rows, to_distances
from .door import use_threads, use_threads_for
from .main import Main
from .side import MOST_SHARE, Asked, SideGraph
from .source import VectorSource, true_keys
from .tail import Piece

Answer = tuple[Floats, Rows, str]
"""Distances and rows (q, k), nearest first, ties by row, and the plan's name."""


_KEPT_WAYS = 256
_FEW = 64
_ONE = np.array(1.0, np.float32)
"""Numpy takes half as long with this as with a number of Python's."""


class Way(NamedTuple):
    """How a query under a filter is answered."""

    walked: Main
    want: int
    setting: int
    sift: bool
    """Some of what is found may not be allowed."""
    name: str


def nearest(
    main: Main, x: Floats, k: int, target: float, source: VectorSource, metric: str
) -> Answer | None:
    """The k nearest of all rows of `main`, for queries (q, d); None where it is not as simple as that."""
    setting = plan.plain_walk(main, target, k)
    if setting is None or (main.lossy and len(x) > 1):
        return None
    use_threads_for(len(x))
    found = main.nearest(x, main.curve.ranked_again(k) if main.lossy else k, setting)
    if found is None:
        return None
    rows = main.rows[found[1]]
    if main.lossy:
        near = to_distances(true_keys(x, source, rows, metric, all_there=True), metric)
        order = np.lexsort((rows[0], near[0]))[:k]
        return near[:, order], rows[:, order], plan.walk_name(main)
    return *in_order(to_near(found[0], metric), rows), plan.walk_name(main)


def nearest_allowed(
    main: Main,
    x: Floats,
    k: int,
    target: float,
    allowed: Allowed,
    asked: Asked | None,
    metric: str,
) -> Answer | None:
    """The same for a query (1, d), among allowed positions of a main index that loses nothing. None also where the answer
    needs a second look: few of the found are allowed, or comparing all is cheaper."""
    graph = None if asked is None else asked.graph(main, allowed.count)
    known = allowed.ways.get((k, target))
    if known is None or known[0] is not graph:
        if len(allowed.ways) >= _KEPT_WAYS:
            allowed.ways = {}
        known = allowed.ways[k, target] = (graph, _way(main, k, target, allowed, graph))
    way: Way | None = known[1]
    if way is None:
        return None
    use_threads(1)
    found = way.walked.nearest(x, way.want, way.setting)
    if found is None:
        return None
    scores, positions = found
    if way.sift:
        at = allowed.mask()[positions[0]].nonzero()[0][:k]
        if at.size < k:
            return None
        scores, positions = scores[:, at], positions[:, at]
    return *in_order(to_near(scores, metric), main.rows[positions]), way.name


def is_simple(main: Main | None, pieces: tuple[Piece, ...], lossy_tail: bool) -> bool:
    """Whether there is a graph or lists, and in the tail beside it nothing but float32 vectors."""
    if main is None or main.kind == "flat" or main.code == "binary" or (pieces and lossy_tail):
        return False
    if not main.tells:
        return False
    return all(isinstance(piece.block, FloatBlock) for piece in pieces)


def with_tail(
    found: Answer,
    tail: Sequence[tuple[Piece, Allowed | None]],
    x: Floats,
    k: int,
    metric: str,
) -> Answer:
    """The k nearest of what was found for a query (1, d) and of the rows of pieces that are live and allowed (None: all).

    Fresh rows are the usual thing, so they have a way of their own. One of 384 dimensions takes 88 ns (20,000 of them beside
    1,000,000) to 182 (2,333 beside 116,659; `python -m bench index --only building`, 2 cores of an Intel Xeon): it is read from memory.
    """
    near, rows = [found[0]], [found[1]]
    for piece, inside in tail:
        keys, at = piece.block.search(x, k, inside)
        near.append(to_distances(keys, metric))
        rows.append(at + piece.start if piece.rows is None else piece.rows[at])
    together, every = np.concatenate(near, axis=1), np.concatenate(rows, axis=1)
    order = np.lexsort((every[0], together[0]))[:k]
    return together[:, order], every[:, order], found[2]


def _way(
    main: Main, k: int, target: float, allowed: Allowed, graph: SideGraph | None
) -> Way | None:
    count = allowed.count
    if 4 * k > count:
        return None
    want, setting, cost = plan.walk_for(main, k, count, target, k)
    limit = plan.exact_cost(main, allowed)
    if graph is not None:
        beside = plan.walk_for(graph, k, count, target, k)
        if beside[1] is not None and beside[2] < min(cost, limit):
            return Way(graph, beside[0], beside[1], count < graph.n, plan.SIDE)
    # Filters that allow less may need a wider walk, or earn a graph.
    if setting is None or limit <= cost or count <= MOST_SHARE * main.n:
        return None
    return Way(main, want, setting, True, "overfetch")


def to_near(scores: Floats, metric: str) -> Floats:
    """Distances of FAISS's scores."""
    return scores if metric == "l2" else np.subtract(_ONE, scores)


def in_order(near: Floats, rows: Rows) -> tuple[Any, Any]:
    """Equal distances by row; nearly always that is how they come."""
    if len(near) == 1 and near.shape[1] <= _FEW:
        # They rise, so where all differ they are in order: 1 us less than to compare neighbours.
        values = near[0].tolist()
        if len(set(values)) == len(values):
            return near, rows
    elif (near[:, 1:] > near[:, :-1]).all():
        return near, rows
    order = np.lexsort((rows, near), axis=1)
    return np.take_along_axis(near, order, 1), np.take_along_axis(rows, order, 1)
