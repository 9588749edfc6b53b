"""From insert to visible: 1,000 rows added to flat vectors on the card by FAISS, then a search that must find them; and the same
through the engine."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from . import engine
from .answers import Floats
from .backend import Placed
from .plan import Context, K, Sizes
from .tables import millis, table
from .timing import figures

_ADDED = 1_000
_TIMES = 20
_S_A_MILLION_NUMBERS = 2e-3
_TAIL = "beside it, in a small index"
_ENGINE = "through the engine, durable"
_ENGINE_S = 18.0
"""A million rows at 100,000 a second, placing them, and twenty inserts."""


def needs(sizes: Sizes, rounds: int) -> list[tuple[str, float]]:
    """The cases in their order, each with the seconds that it is thought to take; the last is through the engine."""
    flat = [
        (f"{rows:,} x {dimension} {code}", 3 + rows * dimension / 1e6 * _S_A_MILLION_NUMBERS)
        for rows, dimension, code in sizes.insert
    ]
    rows, dimension = sizes.engine
    return [*flat, (f"{rows:,} x {dimension} float32, {_ENGINE}", _ENGINE_S)]


def run(ctx: Context) -> None:
    needed = [(name, 0.5 if ctx.task.tiny else s) for name, s in needs(ctx.sizes, ctx.task.rounds)]
    for (name, needed_s), (rows, dimension, code) in zip(
        needed[:-1], ctx.sizes.insert, strict=True
    ):
        if ctx.fits(name, needed_s):
            with ctx.attempt(name):
                _case(ctx, name, rows, dimension, code)
    rows, dimension = ctx.sizes.engine
    name, needed_s = needed[-1]
    if ctx.fits(name, needed_s):
        with ctx.attempt(name):
            count = 4 if ctx.task.tiny else _TIMES
            arrays = ctx.backend.arrays
            fresh = arrays.host(arrays.made(count * _ADDED, dimension, ctx.task.seed, 3))
            ctx.put(case=name, **engine.visible(ctx, rows, dimension, np.split(fresh, count)))


def _case(ctx: Context, name: str, rows: int, dimension: int, code: str) -> None:
    arrays = ctx.backend.arrays
    flat = ctx.backend.flat(dimension, code)
    made = arrays.made(rows, dimension, ctx.task.seed, 0)
    begun_s = time.perf_counter()
    flat.add_made(arrays, made)
    placed_s = time.perf_counter() - begun_s
    del made
    count = 4 if ctx.task.tiny else _TIMES
    fresh = arrays.host(arrays.made(2 * count * _ADDED, dimension, ctx.task.seed, 2))
    batches = np.split(fresh, 2 * count)
    ctx.put(
        case=f"{name}, into the whole",
        placed_s=placed_s,
        **_added(flat, None, batches[:count]),
    )
    tail = ctx.backend.flat(dimension, code)
    ctx.put(
        case=f"{name}, {_TAIL}", placed_s=placed_s, **_added(tail, flat, batches[count:])
    )  # fmt: skip


def _added(target: Placed, main: Placed | None, batches: list[Floats]) -> dict[str, Any]:
    """Adds each batch to `target` and searches for one row of it; with `main`, there too, and merges."""
    add_ms, search_ms, seen = [], [], 0
    for number, batch in enumerate(batches):
        wanted = number * 37 % len(batch)
        query = np.ascontiguousarray(batch[wanted][None])
        before = target.rows
        begun_s = time.perf_counter()
        target.add(batch)
        added_s = time.perf_counter()
        scores, found = target.search(query, K)
        if main is not None:
            others, rows = main.search(query, K)
            order = np.argsort(-np.concatenate([scores, others], axis=1), axis=1)[:, :K]
            merged = np.concatenate([found + main.rows, rows], axis=1)
            found, before = np.take_along_axis(merged, order, 1), before + main.rows
        done_s = time.perf_counter()
        seen += int(before + wanted in found[0])
        add_ms.append((added_s - begun_s) * 1e3)
        search_ms.append((done_s - added_s) * 1e3)
    return figures(batches, seen, add_ms, search_ms)


def page(cases: list[dict[str, Any]], card: dict[str, Any]) -> list[str]:
    lines = [
        (
            case["case"],
            f"{case['placed_s']:.2f} s",
            millis(case["add_p50_ms"]),
            millis(case["search_p50_ms"]),
            millis(case["p50_ms"]),
            millis(case["p99_ms"]),
            f"{case['visible']} of {case['times']}",
        )
        for case in cases
    ]
    header = ("", "all placed in", "add", "search", "both, p50", "both, p99", "found")
    return [
        f"## Insert to visible\n\n{_ADDED:,} rows from host memory are added, then one of them is searched for"
        " (k = 10) and must be among the answers. FAISS makes room for exactly what is added, so adding to the"
        " whole copies the whole; the other way is a small index beside it, and both are searched and merged."
        " Through the engine the rows are on the disk before the insert returns, they lie beside those of the"
        " card, and a query asks both.\n",
        table(header, lines),
    ]
