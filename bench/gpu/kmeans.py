"""k-means on the card and on the CPU: seconds a round, and whether both come to the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import clusters
from . import data
from .plan import Context, Sizes
from .tables import number, table

_CPU_ROUNDS = 2
_CPU_TERAFLOPS = 0.4
"""Of 16 cores, low on purpose: it decides whether the CPU's turn fits."""
_CARD_TERAFLOPS = 8.0


def needs(sizes: Sizes, rounds: int) -> list[tuple[str, float]]:
    """The cases in their order, each with the seconds that it is thought to take."""
    needed: list[tuple[str, float]] = []
    for rows, lists, own_rounds in sizes.kmeans:
        name, one_round = (
            f"{rows:,} rows, {lists:,} lists",
            2 * rows * lists * clusters.DIMENSION / 1e12,
        )
        first = not needed
        needed.append((f"{name}, card", 3 + (own_rounds + 2) * one_round / _CARD_TERAFLOPS))
        if first:
            # The CPU does the smallest only, and few rounds of it: they are all alike.
            needed.append((f"{name}, CPU", 1 + _CPU_ROUNDS * one_round / _CPU_TERAFLOPS))
    return needed


def run(ctx: Context) -> None:
    sizes = ctx.sizes
    held = data.clustered(ctx.folder, sizes.clustered, sizes.queries, ctx.task.seed)
    needed = dict(needs(sizes, ctx.task.rounds))
    for rows, lists, rounds in sizes.kmeans:
        name = f"{rows:,} rows, {lists:,} lists"
        if not ctx.fits(f"{name}, card", needed[f"{name}, card"]):
            continue
        with ctx.attempt(name):
            sample = np.ascontiguousarray(held.vectors[:rows])
            _case(ctx, f"{name}, card", sample, lists, rounds, cpu=False)
            if f"{name}, CPU" in needed and ctx.fits(f"{name}, CPU", needed[f"{name}, CPU"]):
                _case(ctx, f"{name}, card", sample, lists, _CPU_ROUNDS, cpu=False)
                _case(ctx, f"{name}, CPU", sample, lists, _CPU_ROUNDS, cpu=True)


def _case(ctx: Context, name: str, sample: Any, lists: int, rounds: int, cpu: bool) -> None:
    seconds, objective = ctx.backend.kmeans(sample, lists, rounds, ctx.task.seed, cpu)
    ctx.put(
        case=name, rows=len(sample), lists=lists, rounds=rounds, cpu=cpu, seconds=seconds,
        round_s=seconds / rounds, objective=objective / len(sample),
    )  # fmt: skip


def page(cases: list[dict[str, Any]], card: dict[str, Any]) -> list[str]:
    lines = [
        (
            case["case"],
            str(case["rounds"]),
            f"{case['seconds']:.2f} s",
            f"{case['round_s'] * 1e3:,.0f} ms",
            number(case["objective"], 5),
        )
        for case in cases
    ]
    header = ("k-means", "rounds", "taken", "a round", "mean product with the centroid")
    return [
        "## k-means\n\nSpherical, FAISS's own `Kmeans`, rows in host memory; with the same seed and the same number"
        " of rounds card and CPU must come to about the same mean product.\n",
        table(header, lines),
    ]
