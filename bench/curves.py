"""Recall against rate: points, medians over rounds, and rates compared at equal recall."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from . import measure

Point = dict[str, Any]
"""One setting of one system: setting, recall, and what `measure.median` gives."""


def point(setting: float, recall: float, rounds: Sequence[measure.Rate]) -> Point:
    return {"setting": setting, "recall": recall, **measure.median(rounds)}


def reaching(points: Iterable[Point], target: float) -> Point | None:
    """The fastest point whose recall is at least `target`; None where none has it."""
    enough = [one for one in points if one["recall"] >= target]
    return max(enough, key=lambda one: one["queries_per_s"], default=None)


def rate_at(points: Iterable[Point], recall: float) -> float | None:
    """Rate at exactly this recall, between two neighbours of the curve.

    The logarithm of the rate is taken as linear in recall between them. None where the curve does not
    come so high; where it begins higher, the rate of its first point, which is what the system can do there.
    """
    ordered = sorted(points, key=lambda one: (one["recall"], -one["queries_per_s"]))
    below = None
    for above in ordered:
        if above["recall"] >= recall:
            if below is None or above["recall"] == recall:
                return float(above["queries_per_s"])
            share = (recall - below["recall"]) / (above["recall"] - below["recall"])
            low, high = math.log(below["queries_per_s"]), math.log(above["queries_per_s"])
            return math.exp(low + share * (high - low))
        below = above
    return None


def ratio(one: float | None, other: float | None) -> float | None:
    return None if not one or not other else one / other
