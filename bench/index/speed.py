"""Recall and rate of vecdb beside raw FAISS with the same kind of index, by one thread and by all cores.

All are open in one process and take turns, setting by setting, in every round. vecdb is asked with
`target_recall`, FAISS with efSearch or nprobe; they are compared at the recall that vecdb measurably has (FAISS's rate
between the two nearest points of its curve). FAISS alone has two indexes: the very index that vecdb saved, where
they are also compared at the setting that vecdb says it took, and one as users build it.
"""

from __future__ import annotations

import os
from typing import Any

from .. import curves, peers, plots
from ..children import Child
from ..worker import QUERY_BATCH, Case, K
from .plan import WORKER, Plan
from .tables import count, millis, number, picture, rate, table

TARGETS = (0.8, 0.9, 0.95, 0.97, 0.99)
SHOWN = (0.95, 0.99)
_EFS = (2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_LEAST, _ENOUGH = 0.8, 0.997
_OWN = peers.VECDB.name


def run(plan: Plan) -> dict[str, Any]:
    made = plan.served()
    built = peers.RAW_LISTS if made.kind == "ivf" else peers.RAW
    raws = {built: plan.raw(built)["folder"], peers.SAVED: made.folder}
    cores = len(os.sched_getaffinity(0))
    found: dict[str, Any] = {
        "index": f"{made.kind}/{made.quantization}",
        "same": peers.SAVED.name,
        "cases": {},
    }
    for one_core in (True, False):
        threads = "one thread" if one_core else f"{cores} cores"
        with Child(WORKER, plan.source, one_core=one_core) as child:
            child.call("open", _OWN, peers.VECDB.module, made.folder, False, {})
            for peer, folder in raws.items():
                child.call("open", peer.name, peer.module, folder, False, {})
            for batched in (False, True):
                shape = f"batches of {QUERY_BATCH}" if batched else "single queries"
                # A batch spreads over the cores by itself.
                callers = 1 if one_core or batched else cores
                case = f"{threads}, {shape}" + ("" if callers == 1 else f", {callers} callers")
                plan.say(f"  {case}")
                found["cases"][case] = _case(plan, child, batched, callers, list(raws))
    panels = {
        f"{plan.source.name}, {case}": {_OWN: one["vecdb"], **one["raw"]}
        for case, one in found["cases"].items()
    }
    found["plot"] = plots.recall_rate(plan.results / f"{plan.name}-speed.svg", panels)
    return found


def _case(
    plan: Plan, child: Child, batched: bool, callers: int, raws: list[peers.Peer]
) -> dict[str, Any]:
    same = peers.SAVED.name
    truth = plan.source.truth(K)

    def recall(name: str, setting: float) -> float:
        answers = child.call("answers", name, Case(setting, batched=batched))
        return plan.source.recall(answers, truth)

    explained = {target: child.call("explained", _OWN, target) for target in TARGETS}
    took = {one["setting"] for one in explained.values() if one.get("setting")}
    reached = {(_OWN, target): recall(_OWN, target) for target in TARGETS}
    turns: list[tuple[str, float]] = []
    for peer in raws:
        wanted = took if peer.name == same else set()
        for ef in sorted({*_EFS, *wanted}):
            known = reached[peer.name, ef] = recall(peer.name, ef)
            if known >= _LEAST or ef in wanted or ef == _EFS[-1]:
                turns.append((peer.name, ef))
            if known >= _ENOUGH and ef > max(wanted, default=0):
                break
    # By recall, so that the three take turns and what is compared is near in time.
    turns = sorted(
        [*turns, *((_OWN, target) for target in TARGETS)], key=lambda turn: reached[turn]
    )
    seen: dict[tuple[str, float], list[Any]] = {turn: [] for turn in turns}
    for _ in range(plan.rounds):
        for name, setting in turns:
            case = Case(setting, batched=batched, callers=callers)
            seen[name, setting].append(child.call("rate", name, case))
    lines: dict[str, list[curves.Point]] = {_OWN: [], same: []}
    for name, setting in sorted(turns):
        point = curves.point(setting, reached[name, setting], seen[name, setting])
        lines.setdefault(name, []).append(point)
    own = lines.pop(_OWN)
    for point in own:
        point["explained"] = explained[point["setting"]]
        point["beside"] = {name: _beside(point, points) for name, points in lines.items()}
    return {"vecdb": own, "raw": lines}


def _beside(point: curves.Point, raw: list[curves.Point]) -> dict[str, Any]:
    """A point of vecdb beside a curve: at the same recall, and at the same efSearch where there is one."""
    equal = curves.rate_at(raw, point["recall"])
    ef = point["explained"].get("setting")
    there = next((one["queries_per_s"] for one in raw if one["setting"] == ef), None)
    return {
        "at_recall": equal,
        "ratio_at_recall": curves.ratio(point["queries_per_s"], equal),
        "at_setting": there,
        "ratio_at_setting": curves.ratio(point["queries_per_s"], there),
    }


def page(found: dict[str, Any]) -> list[str]:
    parts = [
        f"## Speed beside raw FAISS\n\nvecdb with {found['index']}, ids only, and FAISS alone in the same"
        f" process, in turns. {peers.SAVED.name}: the same links, the same codes and the same vectors, read from"
        f" vecdb's files; {peers.REFINED} candidates an answer are ranked again by float32 in memory."
        f" {peers.RAW.name}: a graph built and walked over float32; {peers.RAW_LISTS.name}: lists that FAISS"
        " has trained itself. Ratios are of vecdb's rate to that of FAISS"
        " at the recall that vecdb reached. Times are of a call.\n"
    ]
    for case, one in found["cases"].items():
        rows = []
        for point in one["vecdb"]:
            if point["setting"] in SHOWN:
                rows += _lines(point, one["raw"], found["same"])
        header = (
            f"{case}: target", "system", "recall@10", "queries/s", "p50 / p99", "vecdb to it", "setting",
            "at that setting",
        )  # fmt: skip
        parts.append(table(header, rows))
    return parts + picture(found["plot"])


def _lines(
    point: curves.Point, raw: dict[str, list[curves.Point]], same: str
) -> list[tuple[str, ...]]:
    """vecdb at one target, and each raw index at the recall that it reached."""
    target, recall = f"{point['setting']}", number(point["recall"], 4)
    ef = str(point["explained"].get("setting") or "-")
    lines: list[tuple[str, ...]] = [(target, _OWN, recall, rate(point), _times(point), "", ef, "")]
    for name, points in raw.items():
        beside = point["beside"][name]
        said = f"{name} (same index)" if name == same else name
        ratio = number(beside["ratio_at_recall"])
        times = _times(curves.reaching(points, point["recall"]))
        at_ef = number(beside["ratio_at_setting"]) if name == same else ""
        lines.append((target, said, recall, count(beside["at_recall"]), times, ratio, "", at_ef))
    return lines


def _times(point: curves.Point | None) -> str:
    return "-" if point is None else f"{millis(point['p50_ms'])} / {millis(point['p99_ms'])}"
