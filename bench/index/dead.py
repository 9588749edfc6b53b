"""What dead rows of the main index cost queries, and what building it anew costs: what `index_dead_share` stands on.

Rows are deleted at random, share by share, from an index that is never built anew. At each share a copy of the
collection is built anew from what is left; both are open in processes of their own and take turns.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .. import peers
from ..children import Child
from ..sources import State, Truth
from ..worker import QUERY_BATCH, Case, K
from .plan import WORKER, Plan
from .tables import count, mib, number, table

KINDS = (("hnsw", "none"), ("ivf", "sq8"))
SHARES = (0.0, 0.1, 0.25, 0.5)
TARGETS = (0.95, 0.99)
SHAPES = {False: "single", True: f"batches of {QUERY_BATCH}"}
_NAME = "dead"
_NEVER, _AT_ONCE = 1.0, 0.01
_BUDGET_S = 0.5


def run(plan: Plan) -> dict[str, Any]:
    return {"kinds": {f"{kind}/{code}": _kind(plan, kind, code) for kind, code in KINDS}}


def _kind(plan: Plan, kind: str, code: str) -> list[dict[str, Any]]:
    rows = plan.source.rows
    order = np.random.default_rng(rows).permutation(rows)
    folder, copy = plan.folder / f"dead-{kind}", plan.folder / f"dead-{kind}-anew"
    found: list[dict[str, Any]] = []
    live = np.ones(rows, np.bool_)
    with Child(WORKER, plan.source) as child:
        _open(child, folder, _NEVER, create=True, index=kind, quantization=code)
        child.call("fill", _NAME)
        first_s = child.call("finish", _NAME)
        for share in SHARES:
            gone = order[int(live.size - live.sum()) : round(share * rows)]
            line: dict[str, Any] = {"share": share, "build_s": first_s}
            if len(gone):
                child.call("delete", _NAME, gone)
                live[gone] = False
                child.call("close", _NAME)
                shutil.copytree(folder, copy)
                _open(child, folder, _NEVER)
            truth = plan.source.truth(K, state=State(live.copy()) if len(gone) else None)
            with Child(WORKER, plan.source) as other:
                asked = {"with": child}
                if len(gone):
                    _open(other, copy, _AT_ONCE)
                    line["build_s"] = other.call("finish", _NAME)
                    asked["anew"] = other
                line |= _asked(plan, asked, truth)
            shutil.rmtree(copy, ignore_errors=True)
            plan.say(f"  {kind}/{code}, {share:.0%} dead: {line['build_s']:.1f} s to build")
            found.append(line)
    shutil.rmtree(folder)
    return found


def _open(
    child: Child, folder: Path, dead_share: float, *, create: bool = False, **options: str
) -> None:
    settings = {"auto_build": False, "index_dead_share": dead_share, **options}
    child.call("open", _NAME, peers.VECDB.module, folder, create, settings)


def _asked(plan: Plan, asked: dict[str, Child], truth: Truth) -> dict[str, Any]:
    """Recall, rates and memory of those that are asked, which take turns."""
    cases = {(batched, target): Case(target, batched=batched, budget_s=_BUDGET_S)
             for batched in SHAPES for target in TARGETS}  # fmt: skip
    found: dict[str, Any] = {name: {} for name in asked}
    for name, child in asked.items():
        found[name]["index_memory_bytes"] = child.call("stats", _NAME)["memory_bytes"]
        for target in TARGETS:
            answers = child.call("answers", _NAME, cases[False, target])
            found[name][f"recall_{target}"] = plan.source.recall(answers, truth)
    rates: dict[tuple[str, bool, float], list[float]] = {}
    for turned in range(2 * plan.rounds):
        for (batched, target), case in cases.items():
            for name in list(asked)[:: -1 if turned % 2 else 1]:
                taken = asked[name].call("rate", _NAME, case)
                rates.setdefault((name, batched, target), []).append(taken.queries_per_s)
    for (name, batched, target), seen in rates.items():
        found[name][f"{SHAPES[batched]}_{target}"] = median(seen)
    return found


def page(found: dict[str, Any]) -> list[str]:
    parts = [
        "## Dead rows\n\nRows deleted at random from an index that is not built anew; with an arrow, the same rows in"
        " one built anew, which takes turns with it. Queries/s at the target, recall@10 among the live rows.\n"
    ]
    for kind, lines in found["kinds"].items():
        header = (
            f"{kind}: dead", "building takes", "index in memory",
            *(f"recall at {target}" for target in TARGETS),
            *(f"{shape} at {target}" for shape in SHAPES.values() for target in TARGETS),
        )  # fmt: skip
        rows = []
        for line in lines:
            old, new = line["with"], line.get("anew")
            figures = [(mib, "index_memory_bytes")]
            figures += [(lambda value: number(value, 3), f"recall_{target}") for target in TARGETS]
            figures += [
                (count, f"{shape}_{target}") for shape in SHAPES.values() for target in TARGETS
            ]
            cells = [
                write(old[name]) + (f" -> {write(new[name])}" if new else "")
                for write, name in figures
            ]
            rows.append((f"{line['share']:.0%}", f"{line['build_s']:.1f} s", *cells))
        parts.append(table(header, rows))
    return parts
