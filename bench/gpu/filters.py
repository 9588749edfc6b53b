"""Filtered search on the card: rows gathered and compared, over-fetch with a proof, and bitsets of cuVS.

FAISS's own kernels ignore a selector without a word, so each plan's answers are looked at row by row.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from . import data
from .answers import Flags, Floats, Rows, forbidden, overfetch, recall, scores_of
from .backend import Placed
from .bounds import first_k
from .own import Own
from .plan import Context, K, Sizes
from .tables import millis, number, rate, table
from .timing import timed

SELECTIVITIES = (0.001, 0.01, 0.1, 0.5, 0.99)
_SAMPLE = 64
_ITOPK = 128
_GRAPH, _GRAPH_S = "bitset, graph", 30.0
"""Building the graph, and all that follows: it comes first, and must not cost the other plans."""
_SELECTIVITY_S = 9.0
_MOST_GATHERED = 0.11
"""Share of the rows that the CPU gathers: those of 10 % take it 90 ms a call already."""
_TINY_S = 0.5

Plan = Callable[[Floats], Rows]
"""Queries (q, d) to the rows of their k nearest allowed (q, k), -1 for none."""


def needs(sizes: Sizes, rounds: int) -> list[tuple[str, float]]:
    """The cases in their order, each with the seconds that it is thought to take; the first needs cuVS."""
    return [(_GRAPH, _GRAPH_S), *((f"{one:.1%}", _SELECTIVITY_S) for one in SELECTIVITIES)]


def run(ctx: Context) -> None:
    sizes, backend = ctx.sizes, ctx.backend
    arrays = backend.arrays
    held = data.clustered(ctx.folder, sizes.clustered, sizes.queries, ctx.task.seed)
    vectors = held.vectors
    rows, dimension = vectors.shape
    placed = arrays.put(vectors)
    flat = backend.flat(dimension, "float32")
    flat.add(vectors)
    engine = backend.own()
    engine.place(arrays, placed, "float32")
    bits = None
    if backend.bitsets:
        bits = backend.flat(dimension, "float32", bitsets=True)
        bits.add(vectors)
    graph = _graph(ctx, vectors)
    for selectivity in SELECTIVITIES:
        name = f"{selectivity:.1%}"
        if not ctx.fits(name, _TINY_S if ctx.task.tiny else _SELECTIVITY_S):
            continue
        rng = np.random.default_rng([ctx.task.seed, int(selectivity * 1_000)])
        flags: Flags = np.asarray(rng.random(rows) < selectivity)
        flags[:K] = True  # so that k are allowed also of few rows
        allowed = np.flatnonzero(flags)
        own = arrays.take(placed, allowed)
        sample = held.queries[:_SAMPLE]
        truth = arrays.best(sample, own, K)[0]
        kept = backend.flat(dimension, "float32")
        begun_s = time.perf_counter()
        kept.add_made(arrays, own)
        placed_s = time.perf_counter() - begun_s
        del own
        plans = _plans(ctx, vectors, placed, flags, allowed, flat, kept, bits, graph)
        if engine.masks:
            mask = engine.allow(flags)
            plans["mask, vecdb"] = functools.partial(_masked, engine, mask)
        for plan, search in plans.items():
            with ctx.attempt(f"{name}, {plan}"):
                extra: dict[str, Any] = (
                    {"placed_s": placed_s} if plan.endswith("kept on the card") else {}
                )
                _measured(ctx, selectivity, plan, search, held, flags, truth[:, -1], extra)
        with ctx.attempt(f"{name}, over-fetch"):
            _overfetched(ctx, selectivity, flat, held, flags, truth[:, -1])


def _masked(engine: Own, mask: int, queries: Floats) -> Rows:
    return engine.search(queries, K, mask)[1]


def _graph(ctx: Context, vectors: Floats) -> Placed | None:
    if not ctx.backend.graphs:
        return None
    if not ctx.fits(_GRAPH, _TINY_S if ctx.task.tiny else _GRAPH_S):
        return None
    with ctx.attempt("graph"):
        return ctx.backend.graph(vectors)
    return None


def _plans(
    ctx: Context,
    vectors: Floats,
    placed: Any,
    flags: Flags,
    allowed: Rows,
    flat: Placed,
    kept: Placed,
    bits: Placed | None,
    graph: Placed | None,
) -> dict[str, Plan]:
    backend, arrays = ctx.backend, ctx.backend.arrays

    def named(found: Rows) -> Rows:
        return np.where(found >= 0, allowed[np.maximum(found, 0)], -1)

    plans: dict[str, Plan] = {}
    if len(allowed) <= _MOST_GATHERED * len(vectors):
        plans["rows gathered by the CPU"] = lambda q: named(backend.compare(q, vectors[allowed], K))
    plans["rows gathered before, kept on the card"] = lambda q: named(kept.search(q, K)[1])
    if arrays.on_card or backend.name == "cpu":
        plans["rows gathered on the card"] = lambda q: named(
            arrays.best(q, arrays.take(placed, allowed), K)[1]
        )
    if bits is not None:
        plans["bitset, flat"] = lambda q: bits.search(q, K, 0, backend.selector(flags))[1]
    if graph is not None:
        plans[_GRAPH] = lambda q: graph.search(q, K, _ITOPK, backend.selector(flags))[1]
    return plans


def _measured(
    ctx: Context,
    selectivity: float,
    plan: str,
    search: Plan,
    held: data.Clustered,
    flags: Flags,
    bound: Floats,
    extra: dict[str, Any],
) -> None:
    sample = held.queries[:_SAMPLE]
    found = search(sample)
    reached = recall(found, scores_of(sample, found, lambda rows: held.vectors[rows]), bound, K)
    wrong = forbidden(found, flags)
    for batch in ctx.sizes.batches[:2]:
        parts = [held.queries[i : i + batch] for i in range(0, len(held.queries), batch)]

        def call(turn: int, parts: list[Floats] = parts) -> None:
            # Every answer of the rounds is looked at too: it costs microseconds.
            nonlocal wrong
            wrong += forbidden(search(parts[turn % len(parts)]), flags)

        cell = timed(call, batch, ctx.task.rounds, ctx.sizes.cell_s / 2)
        ctx.put(
            case=f"{selectivity:.1%}, {plan}, by {batch}",
            selectivity=selectivity, plan=plan, batch=batch, recall=reached, forbidden=wrong, **extra, **cell,
        )  # fmt: skip
    if wrong:
        ctx.put("failed", name=f"{selectivity:.1%}, {plan}", why=f"{wrong} filtered rows came back")


def _overfetched(
    ctx: Context,
    selectivity: float,
    flat: Placed,
    held: data.Clustered,
    flags: Flags,
    bound: Floats,
) -> None:
    first = first_k(K, selectivity, ctx.backend.most_k)

    def near(queries: Floats, k: int) -> Rows:
        return flat.search(queries, k)[1]

    def search(queries: Floats) -> tuple[Rows, Flags, int]:
        return overfetch(near, queries, flags, K, first, ctx.backend.most_k)

    _, complete, asked = search(held.queries[:_SAMPLE])
    extra: dict[str, Any] = {"first_k": first, "last_k": asked, "complete": float(complete.mean())}
    if not complete.any():
        ctx.put(
            case=f"{selectivity:.1%}, over-fetch", selectivity=selectivity, plan="over-fetch", batch=0, **extra
        )  # fmt: skip
        return
    _measured(
        ctx, selectivity, "over-fetch", lambda q: search(q)[0], held, flags, bound, extra
    )  # fmt: skip


def page(cases: list[dict[str, Any]], card: dict[str, Any]) -> list[str]:
    parts = [
        "## Filtered search\n\nOne flat float32 index of the clustered rows, random rows allowed; answers checked"
        f" against float32 products with the allowed rows ({_SAMPLE} queries), and every answer of every round for"
        " rows that the filter does not allow: `filtered rows` must be 0. Over-fetch asks for the k' nearest"
        " and keeps the allowed; a query is complete when k of them are allowed, else it is asked again with twice"
        " k', up to 2,048. A mask of vecdb is copied to the card once for a filter. What is not complete then goes another way: its recall counts against it here. A bitset"
        " is made by the host for each call.\n"
    ]
    if not card.get("bitsets"):
        parts.append("This FAISS has no cuVS, so no bitsets: its searches ignore a selector.\n")
    header = ("batch", "queries/s", "p50", "p99", f"recall@{K}", "filtered rows", "")
    for selectivity in sorted({case["selectivity"] for case in cases}):
        lines = [_line(case) for case in cases if case["selectivity"] == selectivity]
        parts.append(table((f"{selectivity:.1%} allowed", *header), lines))
    return parts


def _line(case: dict[str, Any]) -> tuple[str, ...]:
    note = ""
    if "complete" in case:
        note = f"k' {case['first_k']:,} to {case['last_k']:,}, {case['complete']:.0%} complete"
    elif "placed_s" in case:
        note = f"placed in {case['placed_s'] * 1e3:.1f} ms"
    if case["batch"] == 0:
        return (case["plan"], "", "not possible", "", "", "", "", note)
    return (
        case["plan"],
        str(case["batch"]),
        rate(case),
        millis(case["p50_ms"]),
        millis(case["p99_ms"]),
        number(case["recall"], 4),
        str(case["forbidden"]),
        note,
    )
