"""Exact search as users ask for it: one collection on the card and on the CPU, embedded and over gRPC.

What the part `exact` measures is the card's call alone. Here ids come back, and worker, queue, search lane and, over gRPC, server and
client are between. All ways ask the same folder one after another, so only who answers differs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from . import engine
from .answers import Floats
from .plan import Context, K, Sizes
from .tables import millis, number, percent, rate, table
from .timing import timed

CPU, CARD, GRPC = "CPU, embedded", "card, embedded", "card, over gRPC"
WAYS = (CPU, CARD, GRPC)
"""In the order they are measured; the first says what is right."""
_S_A_MILLION_NUMBERS = 0.06
_BEGIN_S = 20.0
"""Starting a worker or a server, and placing."""
_END_S = 30.0
Query = Callable[[Floats], Any]


def needs(sizes: Sizes, rounds: int) -> list[tuple[str, float]]:
    """The one case, with the seconds that it is thought to take."""
    rows, dimension = sizes.engine
    cells_s = len(WAYS) * len(sizes.batches) * (1 + rounds) * (sizes.cell_s + 1)
    loading_s = rows * dimension / 1e6 * _S_A_MILLION_NUMBERS
    return [(f"{rows:,} x {dimension} float32", cells_s + loading_s + 2 * _BEGIN_S)]


def run(ctx: Context) -> None:
    ((name, needed_s),) = needs(ctx.sizes, ctx.task.rounds)
    if ctx.fits(name, 0.5 if ctx.task.tiny else needed_s):
        with ctx.attempt(name):
            _measure(ctx, name)


def _measure(ctx: Context, name: str) -> None:
    rows, dimension = ctx.sizes.engine
    arrays, seed = ctx.backend.arrays, ctx.task.seed
    largest = max(ctx.sizes.batches)
    queries = arrays.host(arrays.made(4 * largest, dimension, seed, 1))
    engine.pretend(ctx)
    with tempfile.TemporaryDirectory(dir=ctx.folder) as made:
        folder = Path(made) / "db"
        with engine.opened(folder, "cpu") as database:
            collection = database.create_collection(
                "rows", dimension=dimension, metric="ip", index="exact"
            )
            engine.load(ctx, collection, rows, dimension)
        right: list[set[str]] = []
        for way in WAYS:
            with _asked(folder, way) as (query, device):
                found = [set(ids) for ids in query(queries[:largest]).ids]
                right = right or found
                same = np.mean([len(a & b) / len(a) for a, b in zip(right, found, strict=True)])
                for batch in ctx.sizes.batches:
                    parts = [
                        queries[i : i + batch] for i in range(0, len(queries) - batch + 1, batch)
                    ]

                    def call(
                        turn: int, query: Query = query, parts: list[Floats] = parts
                    ) -> object:
                        return query(parts[turn % len(parts)])

                    ctx.put(
                        case=f"{name} by {batch}, {way}", way=way, device=device, batch=batch, same=float(same),
                        **timed(call, batch, ctx.task.rounds, ctx.sizes.cell_s),
                    )  # fmt: skip


@contextmanager
def _asked(folder: Path, way: str) -> Iterator[tuple[Query, str]]:
    """What queries in this way, and the device that answers; RuntimeError where the card does not in time."""
    if way == GRPC:
        with _server(folder) as client:
            yield _ready(client.get_collection("rows"), way)
        return
    with engine.opened(folder, "cpu" if way == CPU else "gpu") as database:
        yield _ready(database.get_collection("rows"), way)


def _ready(collection: Any, way: str) -> tuple[Query, str]:
    end_s = time.perf_counter() + _BEGIN_S
    while way != CPU and collection.stats().index.device == "cpu":
        if time.perf_counter() > end_s:
            note = collection.stats().index.device_note
            raise RuntimeError(f"not on a device after {_BEGIN_S:g} s: {note or 'no reason'}")
        time.sleep(0.02)
    return lambda queries: collection.query(queries, k=K), str(collection.stats().index.device)


@contextmanager
def _server(folder: Path) -> Iterator[Any]:
    """A client of a server in a process of its own."""
    import vecdb_client

    words = [sys.executable, "-m", "vecdb_server", "serve", "--data", str(folder), "--port", "0"]
    words += ["--device", "gpu", "--audit-share", "0"]
    words += ["--exact-max-scalars", str(engine.SETTINGS["exact_max_scalars"])]
    paths = os.pathsep.join(map(os.path.abspath, sys.path))
    process = subprocess.Popen(
        words, env={**os.environ, "PYTHONPATH": paths}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = process.stdout.readline().split()
        if not said:
            raise RuntimeError(f"the server ended with {process.wait()}")
        with vecdb_client.connect(said[-1]) as client:
            yield client
    finally:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def page(cases: list[dict[str, Any]], card: dict[str, Any]) -> list[str]:
    base = {case["batch"]: case["queries_per_s"] for case in cases if case["way"] == CPU}
    lines = [
        (
            case["way"],
            case["device"],
            str(case["batch"]),
            rate(case),
            millis(case["p50_ms"]),
            f"{millis(case['p99_ms'])} ({case['calls']:,} calls)",
            f"{number(case['queries_per_s'] / base[case['batch']], 2)} x",
            percent(case["same"]),
        )
        for case in cases
    ]
    header = (
        "who answers", "device", "batch", "queries/s", "p50", "p99", "of the CPU's rate", "the CPU's ids",
    )  # fmt: skip
    return [
        f"## Exact search through the engine\n\nk = {K}, inner product, float32, one caller. The same database, opened by each: all threads of"
        " the CPU, the card embedded, and the card behind a server on this machine. The last column: share of the ids that are"
        " the CPU's too; where rows are equally near within float32 they may be others.\n",
        table(header, lines),
    ]
