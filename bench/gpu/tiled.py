"""Exact search of a collection that the card does not hold: streamed through it from the store, as the engine does, and
against the rate of the bus."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from .answers import Floats
from .bounds import Limits
from .plan import Context, K, Sizes
from .tables import millis, percent, rate, table
from .timing import timed

_LOADED = 10_000
_S_A_MILLION_NUMBERS = 0.06
"""Loading at 60,000 rows of 384 a second, and reading them some times."""
_SHARE = 0.5
"""Of the seconds of other cells: each call takes all rows through the bus, and there are few to be had in more."""
_BUDGET_BYTES = 1
"""What the engine may place on the card: nothing fits, so that all is streamed."""
STORE, MEMORY = "from the store", "from memory"


def needs(sizes: Sizes, rounds: int) -> list[tuple[str, float]]:
    """The one case, with the seconds that it is thought to take."""
    rows, dimension = sizes.tiled
    cells_s = 2 * (1 + rounds) * _SHARE * sizes.cell_s
    return [(f"{rows:,} x {dimension}", cells_s + rows * dimension / 1e6 * _S_A_MILLION_NUMBERS)]


def run(ctx: Context) -> None:
    ((name, needed_s),) = needs(ctx.sizes, ctx.task.rounds)
    if ctx.fits(name, 0.5 if ctx.task.tiny else needed_s):
        with ctx.attempt(name):
            _measure(ctx, name)


def _measure(ctx: Context, name: str) -> None:
    if ctx.backend.name != "gpu":
        os.environ["VECDB_STAND_IN_DEVICES"] = "1"
    # Here, since other parts do without the engine, which takes its time to load.
    import vecdb
    from vecdb.index import tiled

    arrays, seed, (rows, dimension) = ctx.backend.arrays, ctx.task.seed, ctx.sizes.tiled
    settings: dict[str, Any] = {"audit_share": 0.0, "exact_max_scalars": 1_000, "device": "gpu"}
    with (
        tempfile.TemporaryDirectory(dir=ctx.folder) as folder,
        vecdb.open(
            Path(folder) / "db", device_memory_bytes=_BUDGET_BYTES, auto_build=False, **settings
        ) as database,
    ):
        made = database.create_collection("rows", dimension=dimension, metric="ip", index="exact")
        first: Floats = np.empty((0, dimension), np.float32)
        for start in range(0, rows, _LOADED):
            count = min(_LOADED, rows - start)
            part = arrays.host(arrays.made(count, dimension, seed, 100 + start))
            part /= np.linalg.norm(part, axis=1, keepdims=True)
            made.insert([f"r{start + i}" for i in range(count)], part)
            first = part if not start else first
        opened: Any = database.devices
        (device,) = opened.placements.devices
        plans: set[str] = set()

        def stored(queries: Floats) -> Any:
            found: Any = made.query(queries, k=K, exact=True, explain=True)
            plans.add(found.explain.plan)
            return found.ids

        tile = np.resize(first, (device.tile_bytes // (4 * dimension), dimension))
        tile = tile[: max(1, min(len(tile), rows))]

        def sent(queries: Floats) -> Any:
            return device.compare(queries, tile, K, "ip")

        # Whether the engine would go this way is said beside what it takes, and must not keep it from being measured.
        pays = tiled.Tiled._pays
        chosen: list[bool] = []

        def always(own: Any, *words: Any) -> bool:
            chosen.append(pays(own, *words))
            return True

        with (
            mock.patch.object(tiled.Tiled, "_pays", always),
            mock.patch.object(tiled, "LEAST_PAIRS", 1),
        ):
            # The largest only: a tile crosses the bus for one batch, and few queries never pay that.
            batch = max(ctx.sizes.batches)
            queries = np.resize(first, (batch, dimension))
            hits = [ids[0] == f"r{i % len(first)}" for i, ids in enumerate(stored(queries))]
            # The tile is the first rows over and over.
            nearest = np.asarray(sent(queries)[1])[:, 0] % len(first)
            own = nearest[: len(tile)] == np.arange(min(batch, len(tile))) % len(first)
            for how, moved, call, right, told in (
                (STORE, rows, stored, hits, {"plans": sorted(plans), "chosen": chosen[-1]}),
                # No plan of the engine has a part in it.
                (MEMORY, len(tile), sent, own, {"plans": [], "chosen": None}),
            ):
                ctx.put(
                    case=f"{name} by {batch}, {how}", rows=moved, dimension=dimension,
                    batch=batch, how=how, first=float(np.mean(right)), **told,
                    **_cell(ctx, call, queries),
                )  # fmt: skip


def _cell(ctx: Context, call: Callable[[Floats], Any], queries: Floats) -> dict[str, Any]:
    seconds = _SHARE * ctx.sizes.cell_s
    return timed(lambda _: call(queries), len(queries), ctx.task.rounds, seconds)


def shares(case: dict[str, Any], limits: Limits) -> dict[str, Any]:
    """The case with the bytes of vectors that went through the card in a second, and their share of the bus."""
    moved = case["rows"] * case["dimension"] * 4
    bytes_per_s = moved * case["queries_per_s"] / case["batch"]
    bus = limits.get("upload")
    return {**case, "bytes_per_s": bytes_per_s, "of_bus": bytes_per_s / bus if bus else None}


def page(cases: list[dict[str, Any]], card: dict[str, Any]) -> list[str]:
    lines = [
        (
            f"{case['rows']:,} x {case['dimension']}, {case['how']}",
            str(case["batch"]),
            rate(case),
            millis(case["p50_ms"]),
            f"{case['bytes_per_s'] / 1e9:,.2f}",
            percent(case["of_bus"]),
            ", ".join(case["plans"]),
            {True: "yes", False: "no", None: ""}[case["chosen"]],
            percent(case["first"]),
        )
        for case in cases
    ]
    header = (
        "float32 vectors", "batch", "queries/s", "p50", "GB/s", "of the bus", "plan",
        "chosen by the engine", "own row first",
    )  # fmt: skip
    return [
        "## Search of what the card does not hold\n\nk = 10, inner product of unit vectors; the engine may place nothing,"
        " so all rows cross the bus once a batch, in tiles. From the store: the whole query, reading and ranking again"
        " included. From memory: one call of a worker with vectors that are at hand, tile by tile. The bus is the best"
        " upload that this run measured (chapter Limits).\n",
        table(header, lines),
    ]
