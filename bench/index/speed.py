"""Recall and rate of vecdb beside raw FAISS with the same graph, by one thread and by all cores.

Both are open in one process and take turns, setting by setting, in every round. vecdb is asked with
`target_recall`, FAISS with efSearch; they are compared at the recall that vecdb measurably has (FAISS's rate
between the two nearest points of its curve) and, where vecdb says which efSearch it took, at the same efSearch.
"""

from __future__ import annotations

import os
from typing import Any

from .. import curves, peers, plots
from ..children import Child
from ..worker import QUERY_BATCH, Case, K
from .plan import WORKER, Plan
from .tables import count, millis, number, picture, rate, table

TARGETS = (0.8, 0.9, 0.95, 0.97, 0.99, 0.995)
SHOWN = (0.95, 0.99)
_EFS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_LEAST, _ENOUGH = 0.8, 0.997


def run(plan: Plan) -> dict[str, Any]:
    made, raw = plan.hnsw(), plan.raw()
    cores = len(os.sched_getaffinity(0))
    found: dict[str, Any] = {"index": f"{made.kind}/{made.quantization}", "cases": {}}
    for one_core in (True, False):
        threads = "one thread" if one_core else f"{cores} cores"
        with Child(WORKER, plan.source, one_core=one_core) as child:
            child.call("open", "vecdb", "engine", made.folder, False, {})
            child.call("open", "raw", peers.RAW.module, raw["folder"], False, {})
            for batched in (False, True):
                shape = f"batches of {QUERY_BATCH}" if batched else "single queries"
                # A batch spreads over the cores by itself.
                callers = 1 if one_core or batched else cores
                case = f"{threads}, {shape}" + ("" if callers == 1 else f", {callers} callers")
                plan.say(f"  {case}")
                found["cases"][case] = _case(plan, child, batched, callers)
    panels = {
        f"{plan.source.name}, {case}": {"vecdb": one["vecdb"], peers.RAW.name: one["raw"]}
        for case, one in found["cases"].items()
    }
    found["plot"] = plots.recall_rate(plan.results / f"{plan.name}-speed.svg", panels)
    return found


def _case(plan: Plan, child: Child, batched: bool, callers: int) -> dict[str, Any]:
    truth = plan.source.truth(K)

    def recall(name: str, setting: float) -> float:
        answers = child.call("answers", name, Case(setting, batched=batched))
        return plan.source.recall(answers, truth)

    explained = {target: child.call("explained", "vecdb", target) for target in TARGETS}
    own = {target: recall("vecdb", target) for target in TARGETS}
    same = {one["setting"] for one in explained.values() if one.get("setting")}
    bare: dict[float, float] = {}
    for ef in sorted({*_EFS, *same}):
        bare[ef] = recall("raw", ef)
        if bare[ef] >= _ENOUGH and ef > max(same, default=0):
            break
    keep = [ef for ef in bare if bare[ef] >= _LEAST or ef in same] or list(bare)
    turns = [("raw", ef) for ef in keep]
    step = max(1, len(turns) // len(TARGETS))
    for place, target in enumerate(TARGETS):
        turns.insert(place * (step + 1), ("vecdb", target))
    seen: dict[tuple[str, float], list[Any]] = {turn: [] for turn in turns}
    for _ in range(plan.rounds):
        for name, setting in turns:
            case = Case(setting, batched=batched, callers=callers)
            seen[name, setting].append(child.call("rate", name, case))
    raw = [curves.point(ef, bare[ef], seen["raw", ef]) for ef in keep]
    vecdb = []
    for target in TARGETS:
        one = curves.point(target, own[target], seen["vecdb", target])
        ef = explained[target].get("setting")
        equal = curves.rate_at(raw, one["recall"])
        beside = next((other for other in raw if other["setting"] == ef), None)
        vecdb.append({
            **one,
            "explained": explained[target],
            "raw_at_recall": equal,
            "ratio_at_recall": curves.ratio(one["queries_per_s"], equal),
            "raw_at_setting": beside and beside["queries_per_s"],
            "ratio_at_setting": beside and one["queries_per_s"] / beside["queries_per_s"],
        })  # fmt: skip
    return {"vecdb": vecdb, "raw": raw}


def page(found: dict[str, Any]) -> list[str]:
    parts = [
        f"## Speed beside raw FAISS\n\nvecdb with {found['index']}, ids only; {peers.RAW.name} in the"
        " same process, in turns. Times are of a call.\n"
    ]
    for case, one in found["cases"].items():
        rows = []
        for point in one["vecdb"]:
            if point["setting"] not in SHOWN:
                continue
            near = curves.reaching(one["raw"], point["recall"])
            rows.append((
                f"{point['setting']}",
                number(point["recall"], 4),
                rate(point),
                f"{millis(point['p50_ms'])} / {millis(point['p99_ms'])}",
                count(point["raw_at_recall"]),
                "-" if near is None else f"{millis(near['p50_ms'])} / {millis(near['p99_ms'])}",
                number(point["ratio_at_recall"]),
                str(point["explained"].get("setting") or "-"),
                number(point["ratio_at_setting"]),
            ))  # fmt: skip
        header = (
            f"{case}: target", "recall@10", "vecdb queries/s", "p50 / p99", "FAISS at that recall",
            "p50 / p99", "ratio", "efSearch", "ratio at that efSearch",
        )  # fmt: skip
        parts.append(table(header, rows))
    return parts + picture(found["plot"])
