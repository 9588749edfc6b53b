"""How the main index answers one search: by its walk, by wider walks, or exactly.

Costs are counted in exact distances to contiguous vectors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from . import cells
from .blocks import FAR_COST_A_ROW, Allowed, FloatBlock
from .distance import Floats, Rows, widen
from .door import L2
from .main import Main
from .rough_guide import GuideBytes
from .side import Asked, SideGraph
from .trace import Trace

# Measured with WordNet vectors of 384 dimensions, one query and one thread on 2 cores of an AMD EPYC
# (Zen 4), medians of 50 to 200 searches against one exact search of all rows, which took 50 to 65 ns
# a row in float32 and 38 ns in float16. Only the proportion of the two decides.
GRAPH_COST_A_CANDIDATE = 50.0
"""Of efSearch. 30,000 rows: 71 at 32, 48 at 128, 41 at 1,024; 110,000 rows: 72, 53 and 47; float16
97, 69 and 61. (106 us at 32, 306 us at 128 with 30,000 rows.) 116,659 rows, on another day: 2.8 us each from
64 to 256, which is 47 at 60 ns a row."""
GUIDED = 0.7
"""A walk over sq8 to one over float32 (FAISS alone, WordNet, efSearch 24 to 128: 0.61 to 0.76, compared by the
vectors included)."""
ON_DEVICE = 0.04
"""Probing lists, or walking a graph, on a GPU to the same on the host, single queries: 1,000,000 x 384 in 4,000 lists of float32 took
an H100 11 us more, and a core of its host 302 us more, where 16 were probed instead of 8."""
DEVICE_CALL = 4_600.0
"""One such call beside what it probes, at 60 ns a distance: 0.18 ms in the process that holds the card (the same lists), 0.1 ms to it
(`device/link.py`)."""
BLAS_COST_A_ROW, COPY_COST_A_ROW, PROOF_COST = 0.2, 22.0, 1_000.0
"""Of a picked row where a batch is multiplied with a copy of them, for each query, and once a batch; and, under l2, of
proving a query's answer. 5,000 to 25,000 of 116,659 rows, in a run or not, as parts of a walk in the same batch: 31 to
38 ns a row and query for 16 queries, 20 for 32, 10 for 100 and 5 for 1,000."""
LISTS_COST_A_ROW = 1.0
"""Of a row in a visited IVF list: the same distances over contiguous codes."""
SIGNED_SCAN = 0.25
"""A row in a list of signed bytes to one of float32 in a row of all (384 dimensions, one thread of an Intel Xeon with AVX-512:
20 ns of 165 to 190; where memory is quicker, 50 to 65 of these are known)."""
FAST_SCAN = 0.25
"""A row in a list of pq4 to one of float32 (116,659 rows, 64 of 1,366 lists, single queries: some 14 ns of 50)."""
TABLE_SCAN, TABLES_A_LIST = 0.5, 90.0
"""The same for pq8, 35 to 40 ns of 72 to 85; and, under l2, what the tables of a visited list cost in exact
distances, 6.5 us (60,000 WordNet vectors in 800 lists of 48 bytes, single queries beside another program)."""
LISTS_MARGIN = 4
"""Under a filter lists are probed as for this many times the candidates: the allowed rows may be the
farthest of them, and of these a search that is calibrated for all of them finds fewest."""
WIDER = 2
"""A walk that found too few allowed rows is repeated this much wider. WordNet, 17 % allowed, target 0.95: 2 sigma
to spare and twice as wide gave 1,730 queries/s, 3 sigma and four times as wide 1,410 (one run each)."""
SIDE = "side-graph"
_TOO_NARROW = {"hnsw": 2, "ivf": 1}
"""After so many walks that found too few a query lies where its filter leaves less than elsewhere, and needs the closer look
of `_settled`. In a graph after one: WordNet, 17 % allowed, 1.45 and 1.32 times the time at targets of 0.95 and 0.99
instead of 1.11 and 1.06, for a recall that was above the target already; where clusters are barred the recall is the same."""
_KEPT_WALKS = 4_096


def wanted_with(k: int, share: float) -> int:
    """Candidates to ask for so that k of them are expected to be allowed, with 2 sigma to spare."""
    return math.ceil((k + 2.0 * math.sqrt(k) + 1.0) / share) if share < 1.0 else k


def _living(k: int, share: float) -> int:
    """The same where only dead rows are left out, which lie anywhere: so the deviation is that of a share."""
    return math.ceil((k + 2.0 * math.sqrt(k * (1.0 - share)) + 1.0) / share)


def walk_cost(main: Main, k: int, setting: int) -> float:
    """Cost of one approximate search, in exact distances."""
    if main.host is not None:
        return DEVICE_CALL + ON_DEVICE * walk_cost(main.host, k, setting)
    if main.kind == "hnsw":
        cost = main.price * GRAPH_COST_A_CANDIDATE * max(setting, k)
        return cost if main.guide is None else GUIDED * cost
    if main.kind == "flat":
        return float(main.n)
    lists = int(main.index.nlist)
    a_row = LISTS_COST_A_ROW * {"pq4": FAST_SCAN, "pq8": TABLE_SCAN}.get(main.code, 1.0)
    if main.scale is not None:
        a_row *= SIGNED_SCAN
    tables = main.code == "pq8" and int(main.index.metric_type) == L2
    a_list = TABLES_A_LIST if tables else 0.0
    return cells.cost(main.index, setting) + min(setting, lists) * (a_list + a_row * main.n / lists)


def exact_cost(main: Main, allowed: Allowed | None, queries: int = 1) -> float:
    """Cost of one exact search over the allowed rows, one of so many in a batch, in exact distances."""
    block = None if main.host is not None else main.block
    if allowed is not None and allowed.count == main.n:
        allowed = None
    by_bytes = math.inf
    if isinstance(block, FloatBlock) and block.by_bytes(queries, allowed):
        assert isinstance(block.rough, GuideBytes)
        by_bytes = block.rough.cost(allowed, main.n)
    if allowed is None:
        return min(float(main.n), by_bytes)
    alone = min(_alone_cost(main, allowed), by_bytes)
    if not isinstance(block, FloatBlock):
        return alone
    if not block.copies(queries, block.vectors.shape[1], allowed.count):
        return alone
    proof = PROOF_COST if block.metric == L2 else 0.0
    return min(alone, allowed.count * (BLAS_COST_A_ROW + COPY_COST_A_ROW / queries) + proof)


def _alone_cost(main: Main, allowed: Allowed) -> float:
    if allowed.count * FAR_COST_A_ROW < GRAPH_COST_A_CANDIDATE or allowed.count > main.n // 3:
        return min(FAR_COST_A_ROW * allowed.count, 1.5 * main.n)
    return allowed.cost()


def plain_walk(main: Main, target_recall: float, k: int) -> int | None:
    """The setting of a walk without a filter; None where comparing every row is cheaper, or k so large
    that it needs a closer look. Remembered: every query asks."""
    known = main.walks.get((target_recall, k), -1)
    if known != -1:
        return known
    setting = main.setting(target_recall, k)
    width = main.curve.ranked_again(k) if main.lossy else k
    if width * 4 >= main.n or (
        setting is not None and exact_cost(main, None) <= walk_cost(main, width, setting)
    ):
        setting = None
        if isinstance(main.block, FloatBlock) and main.block.by_bytes(1, None):
            return None  # not remembered: bytes may be given up
    if len(main.walks) > _KEPT_WALKS:
        main.walks = {}
    main.walks[target_recall, k] = setting
    return setting


def walk_name(main: Main) -> str:
    """The plan of a search that only walks, with nothing to sift."""
    return "graph" if main.kind == "hnsw" else "lists"


def widest(count: int) -> float:
    """The walk in a graph that costs as much as comparing `count` rows picked out by a filter."""
    return FAR_COST_A_ROW * count / GRAPH_COST_A_CANDIDATE


def walk_for(
    main: Main,
    k: int,
    count: int,
    target_recall: float | None,
    answers: int,
    *,
    deaths: bool = False,
) -> tuple[int, int | None, float]:
    """Candidates to ask for so that k of the `count` allowed ones come, with which setting, and the cost
    of that, which is infinite where no walk will do. Recall is wanted of `answers` among the k. `deaths`: it is lists, and
    only dead rows are not allowed, see `_settled`."""
    share = count / main.n
    want = min(wanted_with(k, share), main.n)
    sure = answers
    if deaths:
        want, sure = min(_living(k, share), main.n), _living(answers, share)
    elif count < main.n:
        # The answers are expected among so many nearest; the rest of what is wanted is to spare.
        sure = want * LISTS_MARGIN if main.kind == "ivf" else math.ceil(answers * main.n / count)
    setting = None if target_recall is None else main.setting(target_recall, sure)
    if setting is None or (want >= main.n and main.kind != "flat"):
        return want, None, math.inf
    return want, setting, walk_cost(main, want, setting)


def ranked_again(main: Main, k: int, allowed: Allowed | None, asked: Asked | None) -> int:
    """Candidates that lossy codes must give for k answers."""
    beside = None if asked is None or allowed is None else asked.graph(main, allowed.count)
    width = main.curve.ranked_again(k)
    return width if beside is None else max(width, beside.curve.ranked_again(k))


def search_main(
    main: Main,
    queries: Any,
    k: int,
    allowed: Allowed | None,
    target_recall: float | None,
    trace: Trace | None,
    check: Callable[[], None] = lambda: None,
    asked: Asked | None = None,
    answers: int | None = None,
) -> tuple[Floats, Rows, bool, str]:
    """Keys by code and row numbers (q, <= k), whether all are exact by code, and the plan's name.

    `allowed` None: all positions; else at least one is allowed. `target_recall` None asks for answers
    that are exact by code. Without a filter recall is wanted of `answers` of the k, where that is given: the
    others are there to be ranked again. `asked` says which filter it is that allows, where it may be asked again.

    With a filter the walk ignores it and fetches more: k allowed rows found among the k' nearest are
    the k nearest allowed ones, whatever the filter has to do with the vectors. Queries that find
    fewer walk wider, and then farther until their answers stay (`_settled`); once that would cost more than
    comparing every allowed row, that is done.
    (A walk that keeps only allowed rows, as FAISS's selectors do, gave recall@10 of 0.5 at efSearch 32
    and 0.82 at 256 for a filter of 9.8 %: nothing tells it that it has seen too little.) Where the
    filter has a graph of its own, that is walked instead, and only the dead are passed over.
    """
    count = main.n if allowed is None else allowed.count
    k = min(k, count)
    deaths = allowed is not None and allowed.deaths and main.kind == "ivf"
    sure = k if answers is None or (allowed is not None and not deaths) else min(answers, k)
    want, setting, cost = walk_for(main, k, count, target_recall, sure, deaths=deaths)
    limit = exact_cost(main, allowed, len(queries))
    if asked is None or allowed is None or target_recall is None:
        return _searched(
            main, queries, k, allowed, want, setting, cost, limit, trace, check,
            target_recall=target_recall,
        )  # fmt: skip
    beside = asked.graph(main, count)
    if beside is not None:
        # Its depth is calibrated too: of the candidates of lossy codes only so many must be right.
        ways = walk_for(beside, k, count, target_recall, min(k, asked.answers))
        if ways[2] < limit and (
            ways[2] < cost or ways[2] < asked.sides.walked(asked.key, target_recall, asked.answers)
        ):
            return _searched(main, queries, k, allowed, *ways, limit, trace, check, beside=beside)
    started = time.perf_counter()
    alone_in_graph = len(queries) == 1 and main.kind == "hnsw"
    seen = Trace() if trace is None and alone_in_graph else trace
    found = _searched(main, queries, k, allowed, want, setting, cost, limit, seen, check)
    alone = main.setting(target_recall, k)
    if alone is not None:
        took_s = time.perf_counter() - started
        cost, told = min(cost, limit), None
        if seen is not None and alone_in_graph:
            # Where the filter bars where a query lies, walks go on for many times what was expected.
            cost = told = max(cost, _walked(main, seen, limit))
        spared = 1.0 - walk_cost(main, k, alone) / cost
        if spared > 0.0:
            asked.sides.note(
                asked.key, main, allowed, queries, asked.answers, spared * took_s, target_recall, told,
            )  # fmt: skip
    return found


def _walked(main: Main, seen: Trace, limit: float) -> float:
    """Cost of the farthest walk of a query, at most `limit`, which is that of comparing all, where that was done."""
    if seen.main_rows_compared or not seen.candidates:
        return limit
    return min(walk_cost(main, seen.candidates, seen.setting), limit)


def _searched(
    main: Main,
    queries: Any,
    k: int,
    allowed: Allowed | None,
    want: int,
    setting: int | None,
    cost: float,
    limit: float,
    trace: Trace | None,
    check: Callable[[], None],
    *,
    beside: SideGraph | None = None,
    target_recall: float | None = None,
) -> tuple[Floats, Rows, bool, str]:
    """See `search_main`. `cost` is that of the walk for `want` candidates, `limit` of comparing all."""
    count = main.n if allowed is None else allowed.count
    if setting is None or (limit <= cost and not (main.kind == "flat" and allowed is None)):
        keys, positions = main.exact(queries, k, allowed)
        _note(trace, "exact", main, 0, 0, count)
        return keys, _rows(main, positions), True, "exact"
    if main.kind == "flat":
        keys, positions = main.exact(queries, k, allowed)
        _note(trace, "codes", main, 0, k, count)
        return keys, _rows(main, positions), False, "codes"
    walked = main if beside is None else beside
    plan = walk_name(main)
    if allowed is None or count == walked.n:
        plan = plan if beside is None else SIDE
        keys, positions = walked.search(queries, k, setting)
        short, deepest = np.flatnonzero(positions[:, k - 1] < 0), setting
    else:
        plan = "overfetch" if beside is None else SIDE
        keys, positions, short, want, wider, spent = _filtered(
            walked, queries, k, want, setting, allowed, limit, check
        )
        moving = wider
        if main.kind == "ivf" and not allowed.deaths:
            moving = np.arange(len(queries))
        short, deepest = _settled(
            walked, queries, want, setting, allowed, limit - spent, keys, positions, short,
            np.setdiff1d(moving, short), check,
        )  # fmt: skip
    if trace is not None:
        in_lists = cells.rows_probed(main.index, queries, deepest) if main.kind == "ivf" else 0
        _note(trace, plan, main, max(deepest, 0 if main.kind == "ivf" else want), want, in_lists)
        trace.expected_recall = walked.curve.expected(setting)
    rows = _rows(main, positions)
    if not short.size:
        return keys, rows, False, plan
    few = np.ascontiguousarray(queries[short])
    if main.host is not None and allowed is not None:
        # A device gives only so many candidates; the host goes on.
        rest = search_main(main.host, few, k, allowed, target_recall, None, check)
        keys[short], rows[short] = widen(rest[0], rest[1], k)
        exact = rest[2]
    else:
        found = main.exact(few, k, allowed)
        keys[short], rows[short] = widen(found[0], _rows(main, found[1]), k)
        exact = True
    if exact:
        plan = f"exact-after-{plan}"
    if trace is not None:
        trace.plan = plan
        trace.main_rows_compared += count * short.size // len(queries) if exact else 0
    return keys, rows, exact and short.size == len(queries), plan


def _filtered(
    main: Main,
    queries: Any,
    k: int,
    want: int,
    setting: int,
    allowed: Allowed,
    limit: float,
    check: Callable[[], None],
) -> tuple[Floats, Rows, Rows, int, Rows, float]:
    """Keys and positions (q, k), the queries that found fewer than k, the widest walk, those that
    `_TOO_NARROW` walks found too few for, and what all walks cost a query that made them. After the first none is made that
    would bring that, with what must follow it, to more than the `limit`: then the rows are compared."""
    keys = np.full((len(queries), k), np.inf, np.float32)
    positions = np.full((len(queries), k), -1, np.int64)
    short = np.arange(len(queries))
    width, narrow, walks, spent = want, short, 0, 0.0
    while True:
        spent += walk_cost(main, width, setting)
        few = queries if short.size == len(queries) else np.ascontiguousarray(queries[short])
        found = _allowed_first(*main.search(few, width, setting), allowed, k)
        keys[short], positions[short] = found
        short = short[found[1][:, k - 1] < 0]
        walks += 1
        if walks <= _TOO_NARROW[main.kind]:
            narrow = short
        wider, deeper = width * WIDER, setting * 2 if main.kind == "ivf" else setting
        if not short.size or wider >= main.n // 2 or not main.gives(wider, deeper):
            return keys, positions, short, width, narrow, spent
        ahead = walk_cost(main, wider, deeper)
        if walks >= _TOO_NARROW[main.kind]:
            # `_settled` asks that of it.
            walked = deeper if main.kind == "ivf" else max(wider, deeper)
            ahead += walk_cost(main, wider, 2 * walked)
        if spent + ahead > limit:
            return keys, positions, short, width, narrow, spent
        width, setting = wider, deeper
        check()


def _settled(
    main: Main,
    queries: Any,
    width: int,
    setting: int,
    allowed: Allowed,
    limit: float,
    keys: Floats,
    positions: Rows,
    short: Rows,
    moving: Rows,
    check: Callable[[], None],
) -> tuple[Rows, int]:
    """Probes twice as many lists, or walks twice as far, until the answers of the queries `moving` stay as they are; puts
    them into `keys` and `positions`. The queries that had better be compared with every allowed row, and the last setting.

    What a filter leaves may be the farthest of the candidates, and nothing calibrates for these: their
    neighbours lie in lists that were not probed, or were passed by where a walk ends. In a graph that is so for queries
    whose first walks found fewer allowed rows than a filter leaves elsewhere. (40,000 x 96 in clusters, half of these allowed,
    queries near the others, target 0.99: 0.94 of the ten nearest without this.)

    Where only dead rows are left out, fewer than half, lists are no different: who finds k living ones among the nearest
    candidates, for which probing is calibrated, is done. 60,000 WordNet
    vectors, lists of sq8, a tenth dead: 2,670 single queries a second, and 590 where all look again.
    """
    k = keys.shape[1]
    if main.kind == "hnsw":
        setting = max(setting, width)  # so far a walk for so many candidates goes
    while moving.size:
        check()
        deeper = setting * 2
        limit -= walk_cost(main, width, deeper)
        if limit < 0.0 or not main.gives(width, deeper):
            return np.union1d(short, moving), setting
        setting = deeper
        found = main.search(np.ascontiguousarray(queries[moving]), width, setting)
        found_keys, found_positions = _allowed_first(*found, allowed, k)
        changed = (found_positions != positions[moving]).any(axis=1)
        keys[moving], positions[moving] = found_keys, found_positions
        moving = moving[changed]
        if main.kind == "ivf" and setting >= int(main.index.nlist):
            break
    return short, setting


def _note(
    trace: Trace | None, plan: str, main: Main, setting: int, candidates: int, compared: int
) -> None:
    if trace is not None:
        trace.plan = plan
        trace.setting_name = main.setting_name if setting else ""
        trace.setting = setting
        trace.candidates = candidates
        trace.main_rows_compared = compared


def _allowed_first(keys: Floats, positions: Rows, allowed: Allowed, k: int) -> tuple[Floats, Rows]:
    """The first k allowed answers of each query, in order; padding where there are fewer."""
    good = allowed.holds(positions)
    if len(good) == 1:
        at = np.flatnonzero(good[0])[:k]
        return widen(keys[:, at], positions[:, at], k)
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
