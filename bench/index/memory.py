"""Resident memory while inserting, while building and at rest, as multiples of the raw vectors.

Each collection is filled by a process of its own that reads the rows in slices of 1,000 by plain reads. It is
watched from outside every 50 ms; what it took after its imports is subtracted. At rest is a second after
the build in that process, and again in a fresh one that opened the collection and answered all queries.
"""

from __future__ import annotations

from typing import Any

from ..children import Child, ChildFailed, settled
from ..worker import Case
from .plan import WORKER, Plan
from .tables import table

QUANTIZATIONS = ("auto", "sq8", "sq4")


def run(plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for quantization in QUANTIZATIONS:
        try:
            made = plan.collection("auto", quantization)
        except ChildFailed as refusal:
            refused[quantization] = str(refusal).strip().splitlines()[-1]
            continue
        with Child(WORKER, plan.source) as child:
            child.call("load", "engine")
            bare = settled(child.pid, 0)
            child.call("open", "it", "engine", made.folder, False, {})
            child.call("rate", "it", Case(0.95, budget_s=10))
            child.call("settle")
            reopened = settled(child.pid, plan.settle_s)
            child.call("close", "it")
        figures = made.figures
        found[quantization] = {
            "index": f"{made.kind}/{made.quantization}",
            "bare": figures["bare"],
            "inserting": _over(figures["peak_inserting"], figures["bare"]),
            "building": _over(figures["peak_building"], figures["bare"]),
            "rest": _over(figures["rest"], figures["bare"]),
            "reopened": _over(reopened, bare),
        }
    return {"raw_bytes": plan.source.raw_bytes, "collections": found, "refused": refused}


def _over(seen: dict[str, int], bare: dict[str, int]) -> dict[str, int]:
    return {name: seen[name] - bare[name] for name in seen}


def page(found: dict[str, Any]) -> list[str]:
    raw = found["raw_bytes"]
    rows = []
    for name, one in found["collections"].items():
        line = [f"{name}: {one['index']}"]
        for phase in ("inserting", "building", "rest", "reopened"):
            seen = one[phase]
            line.append(
                f"{seen['anonymous'] / raw:.2f} + {seen['file'] / raw:.2f}; {seen['total'] / raw:.2f}"
            )
        rows.append(line)
    header = (
        "quantization", "peak inserting (builds run behind)", "peak of the last build", "at rest after it", "at rest, opened again",
    )  # fmt: skip
    parts = [
        f"## Memory\n\nMultiples of the raw vectors ({raw / 2**20:,.0f} MiB), anonymous + backed by"
        " files (pages of the store and of the index, which the kernel takes back when it needs them),"
        " over the bare process; behind it all that is resident. At peaks each of the three is its own highest.\n",
        table(header, rows),
    ]
    parts += [f"{name}: refused ({why}).\n" for name, why in found["refused"].items()]
    return parts
