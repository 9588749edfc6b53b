"""Collections of the engine for the parts that measure through it; and from insert to visible: a durable insert into a collection that
lies on the card, then a query that must find one of the rows. Worker, store and ids are between, as for every user."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from .answers import Floats
from .plan import Context, K
from .timing import figures

_LOADED = 10_000
_PLACED_S = 60.0
_POLLED_S = 0.02
_MOST = 0.9
"""Share of the vectors, as float32, from which on they count as placed."""
SETTINGS: dict[str, Any] = {"audit_share": 0.0, "exact_max_scalars": 1_000}
"""Of the engine: nothing is answered twice, and all but the smallest lies on the card."""


def pretend(ctx: Context) -> None:
    """A dry run pretends a device, for this process and those that it starts."""
    if ctx.backend.name != "gpu":
        os.environ["VECDB_STAND_IN_DEVICES"] = "1"


def opened(folder: Path, device: str = "auto") -> Any:
    """A database of the engine in a folder, new or not."""
    # Here, since other parts do without the engine, which takes its time to load.
    import vecdb

    return vecdb.open(folder, device=device, **SETTINGS)


def load(ctx: Context, collection: Any, rows: int, dimension: int) -> None:
    """Inserts made vectors, r0 and so on."""
    arrays, seed = ctx.backend.arrays, ctx.task.seed
    for start in range(0, rows, _LOADED):
        count = min(_LOADED, rows - start)
        part = arrays.host(arrays.made(count, dimension, seed, 100 + start))
        collection.insert([f"r{start + i}" for i in range(count)], part)


def visible(ctx: Context, rows: int, dimension: int, batches: list[Floats]) -> dict[str, Any]:
    """Loads `rows`, waits until a device has them, then inserts each batch and asks for one row of it.

    Milliseconds of inserts and of queries, how many found their row, which device answered, and how long loading and
    placing took. RuntimeError when nothing is placed in time. A dry run pretends a device.
    """
    pretend(ctx)
    with (
        tempfile.TemporaryDirectory(dir=ctx.folder) as folder,
        opened(Path(folder) / "db") as database,
    ):
        made = database.create_collection(
            "rows", dimension=dimension, metric="cosine", index="exact", device="gpu"
        )
        begun_s = time.perf_counter()
        load(ctx, made, rows, dimension)
        loaded_s = time.perf_counter()
        # While rows come in, what is on the card is placed anew now and then: until all are, the host compares the others.
        while made.stats().index.device_bytes < _MOST * 4 * rows * dimension:
            if time.perf_counter() > loaded_s + _PLACED_S:
                note = made.stats().index.device_note
                raise RuntimeError(f"not on a device after {_PLACED_S:g} s: {note or 'no reason'}")
            time.sleep(_POLLED_S)
        placed_s = time.perf_counter()
        add_ms, search_ms, seen = [], [], 0
        devices = set()
        for number, batch in enumerate(batches):
            wanted = number * 37 % len(batch)
            ids = [f"b{number}-{i}" for i in range(len(batch))]
            before_s = time.perf_counter()
            made.insert(ids, batch)
            added_s = time.perf_counter()
            found = made.query(batch[wanted][None], k=K, explain=True)
            done_s = time.perf_counter()
            seen += ids[wanted] in found.ids[0]
            if found.explain is not None:
                devices.add(found.explain.device)
            add_ms.append((added_s - before_s) * 1e3)
            search_ms.append((done_s - added_s) * 1e3)
    return {
        "loaded_s": loaded_s - begun_s,
        "placed_s": placed_s - loaded_s,
        "devices": sorted(devices),
        **figures(batches, seen, add_ms, search_ms),
    }
