"""The recall curve of a main index, measured on vectors it does not hold yet, and what follows.

A build keeps some of its rows back, asks for their neighbours among all the others, compares with
exact answers, and adds them afterwards. Rows that are in the graph would flatter it: the walk to a
stored vector ends at the vector itself. Later the curve is measured again on queries of users.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .distance import Floats, Rows

MAX_HELD_OUT = 1_024
"""With a spread of 0.035 a query, as at a recall of 0.99, the bound lies 0.0025 below the mean; 0.0036 with
512, which cost a target of 0.99 a tenth of its speed. A bound of 95 % missed it by 0.002 on another set."""
LEAST_HELD_OUT = 64
UNSEEN = 0.3
"""Share of its answers that a query loses which is added to a few of users before their bound is taken: most lose nothing,
some much, and where none of these was among 100, the spread says nothing of them. Graphs of five filters of 12 to 41 % of
WordNet, 200 draws each from its 1,000 queries, target 0.99, missed where recall over all of them was lower by more than 0.0005:
with 100, 128, 192 and 256 queries the bound alone missed in 4.2, 3.0, 2.6 and 1.7 % of the draws, by up to 0.010, 0.008, 0.005 and
0.003; with this in none, none, none and 0.1 % (by 0.0008), while 24, 62, 97 and 100 % of the draws reached 0.99 at all. With 256 that
takes 1.2 times the efSearch. A loss of 0.2 missed with 256 in 0.4 %, by 0.003; one of 0.5 in none, for 1.7 times."""
SMALL_K, LARGE_K, LISTS_LARGE_K = 10, 100, 1_000
"""Curves are measured at k = 10 and at a large k: 100 for graphs, whose efSearch is at least k anyway, and
1,000 for lists, where a filter asks for many candidates and nprobe does not grow with them by itself."""
DEPTHS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
"""Candidates to rank again by stored vectors, as multiples of k."""
DEPTH_EXTRA = 6
_DEPTH_LOSS = 0.002
"""Recall that ranking fewer candidates again may cost against ranking all of them."""
_LEAST_DEPTH_LISTS, _DEPTH_LISTS_SHARE = 128, 16
"""How deep to rank is measured in so many lists, or a sixteenth of them, more than targets need as a rule: the fewer the
shallower. In a quarter, 1,000 of 4,000, it took 3.7 s."""
_STEP = 256
"""Queries between two looks at `cancel` while exact answers are made of what is in memory."""
_FOUND_STEP, FOUND_PAIRS, PAIR_BYTES = 128, 1 << 20, 28
"""Queries whose candidates are ranked again together: so many, or fewer where they have more candidates than that
altogether. Each takes some 28 bytes: keys, positions, row numbers, true keys."""
_TIMED_QUERIES = 32
_WIDE_QUERIES = 128
"""Queries at the large k of lists, where each answer has a thousand places, and each of more candidates is read from
the store; at that of graphs, once nothing is left to be learned at the small one."""
_ENOUGH = 0.999
"""Larger settings are not measured once both means reach this."""
_FAR, _ENOUGH_FAR = 512, 0.995
"""Settings from the first on cost as much to measure as all others together: then this is enough, and half the queries
at the large k of lists."""


@dataclass(frozen=True, slots=True)
class Point:
    """Recall at one setting (efSearch, nprobe): mean and lower 99 % bound, at k = 10 and at the large k
    (named after 100).

    `cost_us` is the time of a query, searched in batches by the threads of the build.
    """

    setting: int
    recall_10: float
    bound_10: float
    recall_100: float
    bound_100: float
    cost_us: float = 0.0


@dataclass(frozen=True, slots=True)
class Curve:
    """Recall by setting, ascending. `rows` is how many rows the index held when it was measured.

    `least` is the smallest setting that the search for k = 100 used in truth: a graph's efSearch is
    never below k. `depth` times k, and a few more, candidates are ranked again where codes are lossy.
    `large` is the large k.
    """

    points: tuple[Point, ...]
    rows: int
    queries: int
    least: int = 1
    depth: float = 1.0
    large: int = LARGE_K

    def setting(self, target_recall: float, k: int) -> int | None:
        """The cheapest setting whose lower bound reaches the target, None if none does.

        Between two measured settings the bound is taken as a straight line, which lies below it: every
        step of a setting gains less recall than the one before. Up to k = 10 the curve of recall@10
        decides; from 10 to the large k the setting is interpolated over log k, which lies above what k of between need
        (lists over 24,000 points of 16 dimensions, target 0.95: a straight line over k gave 0.90 at k = 256); beyond it
        grows with k.
        """
        if target_recall >= 1.0:
            return None
        at_10 = _reaching([(p.setting, p.bound_10) for p in self.points], target_recall)
        if k <= SMALL_K:
            return at_10
        at_100 = _reaching([(p.setting, p.bound_100) for p in self.points], target_recall)
        if at_10 is None or at_100 is None:
            return None
        at_100 = max(at_100, self.least)
        if k >= self.large:
            return math.ceil(at_100 * k / self.large)
        share = math.log(k / SMALL_K) / math.log(self.large / SMALL_K)
        return math.ceil(at_10 + share * (max(at_10, at_100) - at_10))

    def measured(self, target_recall: float) -> float:
        """Mean recall@10 at the setting chosen for the target; 1.0 where search is exact."""
        return self.expected(self.setting(target_recall, SMALL_K))

    def expected(self, setting: int | None) -> float:
        """Mean recall@10 at this setting, between measured ones on a straight line; 1.0 for None, which is
        exact."""
        if setting is None:
            return 1.0
        known = [p for p in self.points if p.setting <= setting]
        if not known:
            return 0.0
        return float(
            np.interp(setting, [p.setting for p in self.points], [p.recall_10 for p in self.points])
        )

    def cost_us(self, setting: int | None) -> float:
        """What a query took at this setting, between measured ones on a straight line; infinite for None."""
        if setting is None or not self.points:
            return math.inf
        return float(
            np.interp(setting, [p.setting for p in self.points], [p.cost_us for p in self.points])
        )

    def no_better_than(self, other: Curve) -> Curve:
        """This curve with no recall above that of `other` at the same setting.

        A graph that has grown was measured on queries like its fresh rows; `other` speaks for those
        like the rows before. Each ends where a larger setting had nothing to add: behind that it stays as it was, so that easy
        fresh rows take no setting from the others.
        """
        points = []
        settings = {point.setting for curve in (self, other) for point in curve.points}
        for setting in sorted(settings if self.points and other.points else ()):
            mine, theirs = _at(self.points, setting), _at(other.points, setting)
            if mine is None or theirs is None:
                continue
            points.append(
                Point(
                    setting,
                    min(mine.recall_10, theirs.recall_10),
                    min(mine.bound_10, theirs.bound_10),
                    min(mine.recall_100, theirs.recall_100),
                    min(mine.bound_100, theirs.bound_100),
                    mine.cost_us * setting / mine.setting,
                )
            )
        depth = max(self.depth, other.depth)
        return Curve(tuple(points), self.rows, self.queries, self.least, depth, self.large)

    def ranked_again(self, k: int) -> int:
        """Candidates that a lossy index must give for k answers."""
        return math.ceil(self.depth * k) + DEPTH_EXTRA


def _reaching(bounds: list[tuple[int, float]], target: float) -> int | None:
    """The smallest setting whose bound reaches the target; ascending settings with their bounds."""
    before: tuple[int, float] | None = None
    for setting, bound in bounds:
        if bound >= target:
            if before is None:
                return setting
            share = (target - before[1]) / (bound - before[1])
            return before[0] + math.ceil(share * (setting - before[0]))
        before = setting, bound
    return None


def held_out(count: int, rng: np.random.Generator) -> Rows:
    """Which of `count` new rows to keep back, ascending; none when there are too few to tell."""
    size = min(MAX_HELD_OUT, max(LEAST_HELD_OUT, count // 10))
    if count < 2 * LEAST_HELD_OUT:
        return np.empty(0, np.int64)
    return np.sort(rng.choice(count, size, replace=False)).astype(np.int64)


def least_queries(target_recall: float) -> int:
    """Queries of users from which on a bound with `UNSEEN` may reach a target below 1: twice as many as where nothing is missed."""
    return max(LEAST_HELD_OUT, math.ceil(2.0 / (1.0 - target_recall)))


def recall(truth: Floats, found: Floats, k: int, unseen: float = 0.0) -> tuple[float, float]:
    """Mean recall@k over queries and its lower one-sided 99 % bound, from ascending keys (q, >=k).

    An answer counts when it is as near as the true k-th one: ties are right. With no miss at all
    the spread says nothing, so the bound leaves room for 3 misses (the rule of three). With `unseen` it is that
    of the same queries and one more, which loses this share of its answers.
    """
    kth = truth[:, k - 1]
    slack = 1e-6 * np.abs(kth)
    hits = np.count_nonzero(found[:, :k] <= (kth + slack)[:, None], axis=1) / k
    mean = float(hits.mean())
    if unseen:
        hits = np.append(hits, 1.0 - unseen)
    spread = float(hits.std(ddof=1)) / math.sqrt(len(hits))
    return mean, float(hits.mean()) - max(2.326 * spread, 3.0 / (len(hits) * k))


def _at(points: tuple[Point, ...], setting: int) -> Point | None:
    """What was measured at the largest setting up to this one; None below all."""
    known = [point for point in points if point.setting <= setting]
    return known[-1] if known else None


Exact = Callable[[Any, int], Floats]
"""(queries, k) -> true keys (q, k), ascending."""
Search = Callable[[Any, int, int], tuple[Floats, Rows]]
"""(queries, k, setting) -> keys by code, and positions (q, k); inf and -1 where there is none."""
Rank = Callable[[Any, Rows], Floats]
"""(queries, positions) -> true keys of these positions, inf for -1; not sorted."""


def measure(
    queries: Any,
    rows: int,
    settings: tuple[int, ...],
    least: int,
    large_k: int,
    exact: Exact,
    search: Search,
    rank: Rank | None,
    cancel: threading.Event,
    progress: Callable[[float], None],
    unseen: float = 0.0,
    *,
    shares: bool = True,
) -> Curve | None:
    """The curve over `settings` for (q, d) queries; None when cancelled.

    `rows` is the number of rows that all look at. `rank` None: keys by code are the true ones. `unseen`: see `recall`; then
    the queries are few, and all are asked at each k. `shares`: a walk finds for the smaller k what it finds for the larger,
    at the same setting. Not so where a guide leads it: of what it finds more is compared by the vectors for the larger k.
    """
    small, large = min(SMALL_K, rows), min(large_k, rows)
    # A walk for the larger k sees what one for the smaller k sees, at the same setting. Lists take several times as long
    # for it: 600 queries for a thousand of 6,000 rows took half of a build.
    of_lists = large_k > LARGE_K
    walks = rank is None and not of_lists and shares
    ranked = len(queries) if walks or unseen else min(len(queries), _WIDE_QUERIES)
    # Where codes are lossy each call reads every vector; it looks at `cancel` by itself.
    step = _STEP if rank is None else len(queries)
    truth: list[tuple[Floats, int]] = []
    for start, stop, k in ((0, ranked, large), (ranked, len(queries), small)):
        for i in range(start, stop, step):
            if cancel.is_set():
                return None
            truth.append((exact(queries[i : min(stop, i + step)], k), k))
            progress(0.5 * min(stop, i + step) / len(queries))
    true_wide = np.concatenate([found for found, k in truth if k == large])
    true_keys = np.concatenate([found[:, :small] for found, _ in truth])
    depth = 1.0
    if rank is not None:
        depth = _depth(queries, rows, settings, of_lists, true_keys, search, rank)
    points: list[Point] = []
    for done, setting in enumerate(settings):
        if cancel.is_set():
            return None
        started = time.perf_counter()
        shared = walks and setting >= least
        known = points[-1] if points and points[-1].recall_10 >= _ENOUGH else None
        some = queries
        if known is not None and not unseen:
            # Nothing is left to be learned at the small k but what it costs. (Lists of 1,000,000 rows: 15 s.)
            some = queries[: _WIDE_QUERIES if shared else _TIMED_QUERIES]
        if shared:
            wide = search(some, large, setting)[0]
            narrow = wide[:, :small]
        else:
            narrow = _found(some, small, setting, rows, depth, search, rank)
        cost_us = 1e6 * (time.perf_counter() - started) / len(some)
        at_10 = recall(true_keys[: len(some)], narrow, small, unseen)
        if known is not None:
            # A larger setting looks at what the one before looked at, and at more; a graph's nearly so.
            at_10 = max(known.recall_10, at_10[0]), max(known.bound_10, at_10[1])
        # Below `least` a walk for the large k is always the same one.
        if not shared and (setting > least or not points):
            few = ranked if setting < _FAR or unseen else ranked // 2
            wide = _found(queries[:few], large, max(setting, least), rows, depth, search, rank)
        if shared or setting > least or not points:
            at_100 = recall(true_wide[: len(wide)], wide, large, unseen)
        points.append(Point(setting, *at_10, *at_100, cost_us))
        progress(0.5 + 0.5 * (done + 1) / len(settings))
        enough = _ENOUGH if setting < _FAR else _ENOUGH_FAR
        if at_10[0] >= enough and at_100[0] >= enough:
            break
    progress(1.0)
    return Curve(tuple(points), rows, len(true_keys), least, depth, large_k)


def _found(
    queries: Any, k: int, setting: int, rows: int, depth: float, search: Search, rank: Rank | None
) -> Floats:
    if rank is None:
        return search(queries, k, setting)[0]
    width = min(rows, math.ceil(depth * k) + DEPTH_EXTRA)
    found = np.empty((len(queries), k), np.float32)
    # In parts: FAISS takes 24 bytes a query and list that is probed, which for all of them was 0.1 times the
    # vectors of a million rows.
    step = max(1, min(_FOUND_STEP, FOUND_PAIRS // width))
    for start in range(0, len(queries), step):
        some = queries[start : start + step]
        true = rank(some, search(some, width, setting)[1])
        found[start : start + step] = np.sort(true, axis=1)[:, :k]
    return found


def _depth(
    queries: Any,
    rows: int,
    settings: tuple[int, ...],
    of_lists: bool,
    true_keys: Floats,
    search: Search,
    rank: Rank,
) -> float:
    """How many times k candidates have to be ranked again, at a setting that finds nearly all; of lists in some of
    them: what these do not hold is missing at every depth."""
    small = min(SMALL_K, rows)
    widest = min(rows, math.ceil(DEPTHS[-1] * small) + DEPTH_EXTRA)
    some, truth = queries[:_STEP], true_keys[:_STEP]
    least = 2 * widest
    if of_lists:
        least = max(_LEAST_DEPTH_LISTS, settings[-1] // _DEPTH_LISTS_SHARE)
    setting = next((s for s in settings if s >= least), settings[-1])
    keys = rank(some, search(some, widest, setting)[1])
    best = recall(truth, np.sort(keys, axis=1), small)[0]
    for depth in DEPTHS:
        width = math.ceil(depth * small) + DEPTH_EXTRA
        if recall(truth, np.sort(keys[:, :width], axis=1), small)[0] >= best - _DEPTH_LOSS:
            return depth
    return DEPTHS[-1]
