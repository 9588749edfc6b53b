"""Which card there is; runs in a child, so that the process that starts all parts never touches CUDA."""

from __future__ import annotations

import subprocess
from typing import Any

from .backend import NoCard
from .plan import Context

_ASKED = "name,memory.total,driver_version,clocks.max.sm,power.limit"


def run(ctx: Context) -> None:
    try:
        about = ctx.backend.about()
    except NoCard as why:
        ctx.put("no card", why=str(why))
        return
    if ctx.backend.name == "gpu":
        about |= _driver_says()
    ctx.put("card", **about)


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
