"""The goals, whether they were met, and what a kernel of our own would bring by the limits of the same run."""

from __future__ import annotations

from typing import Any

from .bounds import BATCH_GOAL, SINGLE_GOAL
from .plan import BATCHES
from .tables import number, percent, table

_USUAL = 0.8
"""Of a floor, what a kernel that is written with care usually reaches."""


def judged(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One verdict for each single query and each largest batch of `exact.shares`; without limits none."""
    largest = max((case["batch"] for case in cases), default=0)
    found = []
    for case in cases:
        single = case["batch"] == 1
        if not single and case["batch"] != largest:
            continue
        share = case["of_bandwidth"] if single else case["of_arithmetic"]
        if share is None or not case["fused_s"]:
            continue
        goal = SINGLE_GOAL if single else BATCH_GOAL
        found.append(
            {
                "case": case["case"],
                "limit": "bandwidth" if single else "arithmetic",
                "goal": goal,
                "share": share,
                "met": share >= goal,
                "times_short": None if share >= goal else goal / share,
                "measured_ms": case["batch_s"] * 1e3,
                "fused_ms": case["fused_s"] * 1e3,
                "two_pass_ms": case["two_pass_s"] * 1e3,
                "own_gain": case["batch_s"] / (case["fused_s"] / _USUAL),
            }
        )
    return found


def page(verdicts: list[dict[str, Any]], card: dict[str, Any], bounds_only: bool) -> list[str]:
    title = "## Goals\n"
    if not verdicts:
        return [f"{title}\nNothing can be said: the limits or exact search were not measured.\n"]
    lines = [
        (
            one["case"],
            one["limit"],
            percent(one["goal"]),
            percent(one["share"]),
            "met" if one["met"] else f"missed, {number(one['times_short'])} times too slow",
            f"{one['measured_ms']:.3f} ms",
            f"{one['two_pass_ms']:.3f} ms",
            f"{one['fused_ms']:.3f} ms",
            f"{one['own_gain']:.2f} x",
        )
        for one in verdicts
    ]
    header = (
        "exact search", "limit", "goal", "reached", "", "a batch took", "floor of two passes", "floor of one pass",
        f"own kernel at {_USUAL:.0%} of that",
    )  # fmt: skip
    parts = [
        f"{title}\nSingle exact queries at {SINGLE_GOAL:.0%} of the memory bandwidth, exact batches of"
        f" {BATCHES[-1]:,} at {BATCH_GOAL:.0%} of the arithmetic limit of their numbers' type, both measured below.\n",
        table(header, lines),
        "One pass: a kernel that reads the vectors once and keeps the best of each query as it multiplies; its floor"
        " is the larger of bytes / bandwidth and operations / arithmetic limit. Two passes, as FAISS works: all scores"
        " are written as float32 and read again, so 8 bytes a row and query more. The last column is measured time"
        f" / (one pass / {_USUAL}): what a kernel of our own would bring; below 1 it would bring nothing.\n",
        _said(verdicts),
    ]
    if bounds_only:
        parts.append(
            "The limits are lower bounds, see below: shares are too high, gains too low.\n"
        )
    if card.get("device", "").startswith("none"):
        parts.append("A dry run on the CPU: nothing here says anything about a card.\n")
    return parts


def _said(verdicts: list[dict[str, Any]]) -> str:
    met = sum(one["met"] for one in verdicts)
    text = f"Met: {met} of {len(verdicts)}."
    missed = [one for one in verdicts if not one["met"]]
    if missed:
        worst = max(missed, key=lambda one: one["times_short"])
        text += (
            f" Farthest off: {worst['case']}, {percent(worst['share'])} of {worst['limit']} where"
            f" {percent(worst['goal'])} is the goal."
        )
        worth = [one for one in missed if one["own_gain"] > 1]
        if worth:
            most = max(worth, key=lambda one: one["own_gain"])
            text += (
                f" A kernel of our own would be faster in {len(worth)} of the {len(missed)} missed, up to"
                f" {most['own_gain']:.1f} times ({most['case']})."
            )
    return text + "\n"
