"""Which card there is, and whether FAISS and the array library work on it together.

Runs in a child, so that the process that starts all parts never touches CUDA, and outlives what aborts.
"""

from __future__ import annotations

import subprocess
from typing import Any

from .answers import recall, scores_of
from .backend import NoCard
from .plan import Context, K

_ROWS, _DIMENSION = 1_000, 32
_ASKED = "name,memory.total,driver_version,clocks.max.sm,power.limit"


def run(ctx: Context) -> None:
    try:
        about = ctx.backend.about()
    except NoCard as why:
        ctx.put("no card", why=str(why))
        return
    if ctx.backend.name == "gpu":
        about |= _driver_says()
    about["recall_of_the_probe"] = _searched(ctx)
    ctx.put("card", **about)


def _searched(ctx: Context) -> float:
    """Recall of a small exact search: both libraries have computed something in this process."""
    arrays = ctx.backend.arrays
    made = arrays.made(_ROWS, _DIMENSION, ctx.task.seed, 0)
    queries = arrays.host(arrays.made(16, _DIMENSION, ctx.task.seed, 1))
    flat = ctx.backend.flat(_DIMENSION, "float32")
    flat.add_made(arrays, made)
    found = flat.search(queries, K)[1]
    scores = scores_of(queries, found, lambda rows: arrays.host(arrays.take(made, rows)))
    return recall(found, scores, arrays.best(queries, made, K)[0][:, -1], K)


def _driver_says() -> dict[str, Any]:
    words = ["nvidia-smi", "-i", "0", f"--query-gpu={_ASKED}", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return {"driver_said_nothing": f"{type(error).__name__}"}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if len(values) != len(_ASKED.split(",")):
        return {"driver_said_nothing": done.stdout.strip()[:100]}
    device, memory, driver, clock, power = values
    return {"device": device, "memory": memory, "driver": driver, "clock": clock, "power": power}
