"""The recall curve of a main index, measured on vectors it does not hold yet, and what follows.

A build keeps some of its rows back, asks for their neighbours among all the others, compares with
exact answers, and adds them afterwards. Rows that are in the graph would flatter it: the walk to a
stored vector ends at the vector itself.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .distance import Floats, Rows

MAX_HELD_OUT = 512
LEAST_HELD_OUT = 64
CALIBRATED_K = (10, 100)
_STEP = 256
"""Queries between two looks at `cancel` while exact answers are made."""
_ENOUGH = 0.999
"""Larger settings are not measured once both means reach this."""


@dataclass(frozen=True, slots=True)
class Point:
    """Recall at one setting (efSearch, nprobe): mean and lower 99 % bound, at k = 10 and 100."""

    setting: int
    recall_10: float
    bound_10: float
    recall_100: float
    bound_100: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Recall by setting, ascending. `rows` is how many rows the index held when it was measured.

    `least` is the smallest setting that the search for k = 100 used in truth: a graph's efSearch is
    never below k.
    """

    points: tuple[Point, ...]
    rows: int
    queries: int
    least: int = 1

    def setting(self, target_recall: float, k: int) -> int | None:
        """The cheapest setting whose lower bound reaches the target, None if none does.

        Up to k = 10 the curve of recall@10 decides, from 10 to 100 the setting is interpolated,
        beyond 100 it grows with k.
        """
        if target_recall >= 1.0:
            return None
        at_10 = next((p.setting for p in self.points if p.bound_10 >= target_recall), None)
        if k <= CALIBRATED_K[0]:
            return at_10
        at_100 = next((p.setting for p in self.points if p.bound_100 >= target_recall), None)
        if at_10 is None or at_100 is None:
            return None
        at_100 = max(at_100, self.least)
        if k >= CALIBRATED_K[1]:
            return math.ceil(at_100 * k / CALIBRATED_K[1])
        share = (k - CALIBRATED_K[0]) / (CALIBRATED_K[1] - CALIBRATED_K[0])
        return math.ceil(at_10 + share * (max(at_10, at_100) - at_10))

    def measured(self, target_recall: float) -> float:
        """Mean recall@10 at the setting chosen for the target; 1.0 where search is exact."""
        setting = self.setting(target_recall, CALIBRATED_K[0])
        return next((p.recall_10 for p in self.points if p.setting == setting), 1.0)


def held_out(count: int, rng: np.random.Generator) -> Rows:
    """Which of `count` new rows to keep back, ascending; none when there are too few to tell."""
    size = min(MAX_HELD_OUT, max(LEAST_HELD_OUT, count // 10))
    if count < 2 * LEAST_HELD_OUT:
        return np.empty(0, np.int64)
    return np.sort(rng.choice(count, size, replace=False)).astype(np.int64)


def recall(truth: Floats, found: Floats, k: int) -> tuple[float, float]:
    """Mean recall@k over queries and its lower one-sided 99 % bound, from ascending keys (q, >=k).

    An answer counts when it is as near as the true k-th one: ties are right. With no miss at all
    the spread says nothing, so the bound leaves room for 3 misses (the rule of three).
    """
    kth = truth[:, k - 1]
    slack = 1e-6 * np.maximum(1.0, np.abs(kth))
    hits = np.count_nonzero(found[:, :k] <= (kth + slack)[:, None], axis=1) / k
    spread = float(hits.std(ddof=1)) / math.sqrt(len(hits))
    mean = float(hits.mean())
    return mean, mean - max(2.326 * spread, 3.0 / (len(hits) * k))


def measure(
    queries: Floats,
    rows: int,
    settings: tuple[int, ...],
    least: int,
    exact: Callable[[Floats, int], Floats],
    search: Callable[[Floats, int, int], Floats],
    cancel: threading.Event,
    progress: Callable[[float], None],
) -> Curve | None:
    """The curve over `settings`; None when cancelled.

    `exact(queries, k)` and `search(queries, k, setting)` give ascending keys (q, k); `rows` is the
    number of rows that both look at.
    """
    small, large = (min(k, rows) for k in CALIBRATED_K)
    steps = [queries[i : i + _STEP] for i in range(0, len(queries), _STEP)]
    truth = []
    for done, step in enumerate(steps):
        if cancel.is_set():
            return None
        truth.append(exact(step, large))
        progress(0.5 * (done + 1) / len(steps))
    true_keys = np.concatenate(truth)
    points: list[Point] = []
    wide: Floats | None = None
    for done, setting in enumerate(settings):
        if cancel.is_set():
            return None
        # The walk for the larger k sees what the one for the smaller k sees, at the same setting; and
        # below `least` it is always the same walk.
        if wide is None or setting > least:
            wide = search(queries, large, max(setting, least))
        narrow = wide if setting >= least else search(queries, small, setting)
        at_10 = recall(true_keys, narrow[:, :small], small)
        at_100 = recall(true_keys, wide, large)
        points.append(Point(setting, *at_10, *at_100))
        progress(0.5 + 0.5 * (done + 1) / len(settings))
        if at_10[0] >= _ENOUGH and at_100[0] >= _ENOUGH:
            break
    progress(1.0)
    return Curve(tuple(points), rows, len(queries), least)
