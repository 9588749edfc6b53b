"""From the first insert to all indexed at target, with the engine's defaults, beside FAISS's build alone."""

from __future__ import annotations

from statistics import median
from typing import Any

from .. import peers
from .plan import Plan


def run(plan: Plan) -> dict[str, Any]:
    made = plan.collection()
    raw = peers.same_kind(made.kind, made.quantization)
    builds = plan.builds(raw)
    ready_s, raw_s = (median(times) for times in zip(*builds, strict=True))
    return {
        "builds": builds,
        "ready_s": ready_s,
        "finished_s": made.figures["finished_s"],
        "ready_index": f"{made.kind}/{made.quantization}",
        "defaults_rows_per_s": plan.source.rows / made.figures["insert_s"],
        "raw": raw.name,
        "raw_build_s": raw_s,
        "ready_ratio": ready_s / raw_s,
    }


def page(found: dict[str, Any]) -> list[str]:
    return [
        "## Indexed\n\nWith the engine's defaults, which build behind the inserts:"
        f" {found['defaults_rows_per_s']:,.0f} rows/s, all indexed at target {found['ready_s']:.1f} s after"
        f" the first insert, and with nothing left to build ({found['ready_index']}) after"
        f" {found['finished_s']:.1f} s; {found['raw']} alone builds in {found['raw_build_s']:.1f} s:"
        f" {found['ready_ratio']:.2f} times. Medians of {len(found['builds'])} load(s); the rate is that of"
        " the first.\n"
    ]
