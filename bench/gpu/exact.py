"""Exact search over flat vectors on the card, by FAISS and by the engine: rates, and how near to the limits of the
card they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import bounds
from .answers import Floats, Rows, recall, scores_of
from .backend import CODES
from .plan import Context, K, Sizes
from .tables import millis, number, percent, rate, table
from .timing import timed

Search = Callable[[Floats, int], tuple[Floats, Rows]]
"""(queries, k) to scores and rows."""
_SAMPLE = 64
_CANDIDATES = 2 * K
_S_A_MILLION_NUMBERS = 1e-2
"""Making, placing twice and checking; with what the cells take, the estimate of a size."""


def needs(sizes: Sizes, rounds: int) -> list[tuple[str, float]]:
    """The cases in their order, each with the seconds that it is thought to take."""
    cells_s = 2 * len(CODES) * len(sizes.batches) * rounds * (sizes.cell_s + 0.2)
    return [
        (f"{rows:,} x {dimension}", cells_s + rows * dimension / 1e6 * _S_A_MILLION_NUMBERS)
        for rows, dimension in sizes.exact
    ]


def run(ctx: Context) -> None:
    needed = needs(ctx.sizes, ctx.task.rounds)
    for (name, needed_s), (rows, dimension) in zip(needed, ctx.sizes.exact, strict=True):
        if ctx.fits(name, 0.5 if ctx.task.tiny else needed_s):
            with ctx.attempt(name):
                _size(ctx, name, rows, dimension)


def _size(ctx: Context, name: str, rows: int, dimension: int) -> None:
    arrays, seed, largest = ctx.backend.arrays, ctx.task.seed, max(ctx.sizes.batches)
    made = arrays.made(rows, dimension, seed, 0)
    queries = arrays.host(arrays.made(4 * largest, dimension, seed, 1))
    asked = queries[:_SAMPLE]
    bound = arrays.best(asked, made, K)[0][:, -1]

    def vectors_of(found: Rows) -> Floats:
        return arrays.host(arrays.take(made, found))

    for code in CODES:
        with ctx.attempt(f"{name} {code}"):
            flat = ctx.backend.flat(dimension, code)
            flat.add_made(arrays, made)
            own = ctx.backend.own()
            own.place(arrays, made, code)
            systems: dict[str, Search] = {"FAISS": flat.search, "vecdb": own.search}
            right: dict[str, dict[str, Any]] = {}
            for system, search in systems.items():
                found = search(asked, K)[1]
                reached = recall(found, scores_of(asked, found, vectors_of), bound, K)
                more = arrays.rerank(asked, made, search(asked, _CANDIDATES)[1], K)
                ranked = recall(more, scores_of(asked, more, vectors_of), bound, K)
                right[system] = {"recall": reached, "recall_reranked": ranked}
            for batch in ctx.sizes.batches:
                for system, search in systems.items():
                    cell = _cell(ctx, search, queries, batch)
                    ctx.put(
                        case=f"{name} {code} by {batch}, {system}", system=system,
                        rows=rows, dimension=dimension, code=code, batch=batch,
                        **right[system], **cell,
                    )  # fmt: skip
            own.close()


def _cell(ctx: Context, search: Search, queries: Floats, batch: int) -> dict[str, Any]:
    parts = [queries[i : i + batch] for i in range(0, len(queries) - batch + 1, batch)]

    def call(turn: int) -> object:
        return search(parts[turn % len(parts)], K)

    return timed(call, batch, ctx.task.rounds, ctx.sizes.cell_s)


def shares(case: dict[str, Any], limits: bounds.Limits) -> dict[str, Any]:
    """The case with the shares of both limits that it reached, and the floors of its batch in seconds."""
    rows, dimension, code, batch = (case[key] for key in ("rows", "dimension", "code", "batch"))
    batch_s = batch / case["queries_per_s"]
    return {
        **case,
        "batch_s": batch_s,
        "of_bandwidth": bounds.share_of_bandwidth(rows, dimension, code, batch_s, limits),
        "of_arithmetic": bounds.share_of_arithmetic(rows, dimension, code, batch, batch_s, limits),
        "fused_s": bounds.fused_s(rows, dimension, code, batch, limits),
        "two_pass_s": bounds.two_pass_s(rows, dimension, code, batch, limits),
    }


def page(cases: list[dict[str, Any]], card: dict[str, Any]) -> list[str]:
    lines = [
        (
            f"{case['rows']:,} x {case['dimension']}, {case['code']}",
            case["system"],
            str(case["batch"]),
            rate(case),
            millis(case["p50_ms"]),
            f"{millis(case['p99_ms'])} ({case['calls']:,} calls)",
            percent(case["of_bandwidth"]),
            percent(case["of_arithmetic"]),
            number(case["recall"], 4),
            number(case["recall_reranked"], 4),
        )
        for case in cases
    ]
    header = (
        "vectors", "system", "batch", "queries/s", "p50", "p99", "of bandwidth", "of arithmetic",
        f"recall@{K}", f"{_CANDIDATES} candidates ranked by float32",
    )  # fmt: skip
    return [
        f"## Exact search\n\nk = {K}, inner product, queries from host memory and answers into it, one caller, in the"
        " process that holds the card. FAISS: `GpuIndexFlat`; vecdb: what the engine's workers call."
        " Each size: rows around 1,000 centres, made"
        f" and compared by {card.get('arrays', 'another library')}: recall against its float32 products, {_SAMPLE} queries; the last column, what a float32 ranking of"
        f" {_CANDIDATES} candidates makes of it.\n\n{bounds.FORMULAS}\n",
        table(header, lines),
    ]
