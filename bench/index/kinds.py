"""Every kind and quantization that the engine offers, side by side: what `auto` picks from."""

from __future__ import annotations

from typing import Any

from .. import curves, plots
from ..children import Child, ChildFailed
from ..worker import Case, K
from .plan import WORKER, Made, Plan
from .tables import mib, number, picture, rate, table

KINDS = ("hnsw", "ivf")
"""Besides exact, which compares the stored vectors themselves and has nothing to quantize."""
QUANTIZATIONS = ("none", "float16", "sq8", "sq4", "pq4", "pq8")
TARGETS = (0.9, 0.95, 0.97, 0.99)
SHOWN = (0.95, 0.99)
_QUERIES = 500
_ROWS_FOR_ALL = 200_000
"""A set with more rows shows only what the other parts have built anyway."""


def run(plan: Plan) -> dict[str, Any]:
    made = _collections(plan)
    truth = plan.source.truth(K)
    found = {name: _figures(one) for name, one in made.items()}
    with Child(WORKER, plan.source, one_core=True) as child:
        for name, one in made.items():
            child.call("open", name, "engine", one.folder, False, {})
        cases = [
            (name, batched, target)
            for batched in (False, True)
            for target in TARGETS
            for name, one in made.items()
            if one.kind != "exact" or target == TARGETS[-1]
        ]
        # Singles and batches take the same walk, so recall is measured once, by the faster of them.
        recall = {
            (name, target): plan.source.recall(
                child.call("answers", name, Case(target, batched=True)), truth
            )
            for name, batched, target in cases
            if batched
        }
        seen: dict[tuple[str, bool, float], list[Any]] = {case: [] for case in cases}
        for number_ in range(plan.rounds):
            plan.say(f"  round {number_ + 1} of {plan.rounds}")
            for name, batched, target in cases:
                case = Case(target, batched=batched, queries=_QUERIES, budget_s=0.5)
                seen[name, batched, target].append(child.call("rate", name, case))
    for (name, batched, target), rounds in seen.items():
        found[name]["batch" if batched else "single"].append(
            curves.point(target, recall[name, target], rounds)
        )
    panels = {
        f"{plan.source.name}, vecdb, one thread, {title}": {
            name: one[shape] for name, one in found.items()
        }
        for shape, title in (("single", "single queries"), ("batch", "batches of 100"))
    }
    plot = plots.recall_rate(plan.results / f"{plan.name}-kinds.svg", panels)
    return {"kinds": found, "plot": plot}


def _collections(plan: Plan) -> dict[str, Made]:
    made: dict[str, Made] = {}
    wanted = [("auto", "auto"), ("auto", "sq8"), ("auto", "sq4")]
    if plan.source.rows <= _ROWS_FOR_ALL:
        wanted = [("auto", "auto"), ("exact", "none")]
        wanted += [(kind, quantization) for kind in KINDS for quantization in QUANTIZATIONS]
    for index, quantization in wanted:
        try:
            one = plan.collection(index, quantization)
        except ChildFailed as refusal:
            plan.say(f"  {index}/{quantization}: {str(refusal).strip().splitlines()[-1]}")
            continue
        name = f"{one.kind}/{one.quantization}"
        # A refusal may be silent: what was built decides, and each is shown once.
        if all(one.folder != other.folder for other in made.values()) and name not in made:
            made[name] = one
    return made


def _figures(made: Made) -> dict[str, Any]:
    figures = made.figures
    return {
        "single": [],
        "batch": [],
        "ready_s": figures["ready_s"],
        "index_memory_bytes": figures["index"]["memory_bytes"],
        "index_file_bytes": figures["index"]["file_bytes"],
        "rest_anonymous_bytes": figures["rest"]["anonymous"] - figures["bare"]["anonymous"],
        "peak_anonymous_bytes": figures["peak_building"]["anonymous"]
        - figures["bare"]["anonymous"],
    }


def page(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, one in found["kinds"].items():
        line = [name, f"{one['ready_s']:.1f} s", mib(one["index_memory_bytes"])]
        line += [mib(one["index_file_bytes"]), mib(one["peak_anonymous_bytes"])]
        for shape in ("single", "batch"):
            for target in SHOWN:
                point = curves.reaching(
                    [p for p in one[shape] if p["setting"] >= target], target
                ) or curves.reaching(one[shape], target)
                line.append(
                    rate(point)
                    if point is None
                    else f"{rate(point)} at {number(point['recall'], 3)}"
                )
        rows.append(line)
    header = (
        "kind/quantization", "first insert to indexed", "index in memory", "index file", "peak anonymous",
        "single at 0.95", "single at 0.99", "batch at 0.95", "batch at 0.99",
    )  # fmt: skip
    parts = [
        "## Kinds and quantizations\n\nvecdb, one thread, queries/s at the recall that was measured;"
        " peak memory while building, without the bare process.\n",
        table(header, rows),
    ]
    return parts + picture(found["plot"])
