"""How the main index answers one search: by its walk, by its walk with more candidates, or exactly.

Costs are counted in exact distances to contiguous vectors.
"""

from __future__ import annotations

import math

import numpy as np

from .blocks import Mask
from .distance import Floats, Rows, widen
from .main import Main

# Measured with WordNet vectors of 384 dimensions, one query and one thread on 2 cores of an AMD EPYC
# (Zen 4), medians of 50 to 200 searches against one exact search of all rows, which took 50 to 65 ns
# a row in float32 and 38 ns in float16. Only the proportion of the two decides.
GRAPH_COST_A_CANDIDATE = 60.0
"""Of efSearch. 30,000 rows: 71 at 32, 48 at 128, 41 at 1,024; 110,000 rows: 72, 53 and 47; float16
97, 69 and 61. (106 us at 32, 306 us at 128 with 30,000 rows.)"""
PICKED_COST_A_ROW = 2.4
"""Of a row picked out by a mask. 30,000 rows, float32: 1.3 to 1.9 for 1 % to 20 % of the rows, float16
1.4 to 5; 110,000 rows: 1.2 to 3.2 and 2.9 to 4.6, since the rows come from memory one by one."""
LISTS_COST_A_ROW = 1.0
"""Of a row in a visited IVF list: the same distances over contiguous codes."""


def wanted_with(k: int, share: float) -> int:
    """Candidates to ask for so that k of them are expected to be allowed, with 3 sigma to spare."""
    return math.ceil((k + 3.0 * math.sqrt(k) + 4.0) / share)


def walk_cost(main: Main, k: int, setting: int) -> float:
    """Cost of one approximate search, in exact distances."""
    if main.kind == "hnsw":
        return GRAPH_COST_A_CANDIDATE * max(setting, k)
    lists = int(main.index.nlist)
    return lists + LISTS_COST_A_ROW * main.n * min(1.0, setting / lists)


def exact_cost(main: Main, allowed: int) -> float:
    """Cost of one exact search over the allowed rows, in exact distances."""
    if allowed == main.n:
        return float(main.n)
    return min(PICKED_COST_A_ROW * allowed, 1.5 * main.n)


def search_main(
    main: Main,
    queries: Floats,
    k: int,
    mask: Mask | None,
    allowed: int,
    target_recall: float | None,
) -> tuple[Floats, Rows, bool, str]:
    """Keys and row numbers (q, <= k) of the main index, whether all are exact, and the plan's name.

    `mask` is bool over positions, None when all are allowed; `allowed` is its count, at least 1.
    `target_recall` None asks for exact answers.

    With a mask the walk ignores it and fetches more: k allowed rows found among the k' nearest are
    the k nearest allowed ones, whatever the filter has to do with the vectors. Where fewer are
    found, the query is answered exactly. (A walk that only steps on allowed rows gets lost when
    they are few or far from the query.)
    """
    k = min(k, allowed)
    want = k if mask is None else wanted_with(k, allowed / main.n)
    setting = None
    if target_recall is not None and want < main.n:
        setting = main.curve.setting(target_recall, want)
    if setting is None or exact_cost(main, allowed) <= walk_cost(main, want, setting):
        keys, positions = main.block.search(queries, k, mask, allowed)
        return keys, _rows(main, positions), True, "exact"
    keys, positions = main.search(queries, want, setting)
    plan = "graph" if main.kind == "hnsw" else "lists"
    if mask is not None:
        plan = "overfetch"
        keys, positions = _allowed_first(keys, positions, mask, k)
    short = np.flatnonzero(positions[:, k - 1] < 0)
    if short.size:
        few = np.ascontiguousarray(queries[short])
        exact_keys, exact_positions = main.block.search(few, k, mask, allowed)
        keys[short], positions[short] = widen(exact_keys, exact_positions, k)
        plan = f"exact-after-{plan}"
    return keys, _rows(main, positions), short.size == len(queries), plan


def _allowed_first(keys: Floats, positions: Rows, mask: Mask, k: int) -> tuple[Floats, Rows]:
    """The first k allowed answers of each query, in order; padding where there are fewer."""
    good = (positions >= 0) & mask[positions]
    order = np.argsort(~good, axis=1, kind="stable")[:, :k]
    taken = np.take_along_axis(good, order, axis=1)
    return (
        np.where(taken, np.take_along_axis(keys, order, axis=1), np.float32(np.inf)),
        np.where(taken, np.take_along_axis(positions, order, axis=1), -1),
    )


def _rows(main: Main, positions: Rows) -> Rows:
    rows = main.rows[positions]
    missing = positions < 0
    return np.where(missing, -1, rows) if missing.any() else rows
