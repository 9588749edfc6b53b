"""vecdb beside other embedded systems: one thread, single queries, ids and distances, at equal recall.

Each system has a process of its own, filled with all cores and opened again pinned to one core. Its knob is
turned until the recall is reached, in smaller and smaller steps; then all systems are timed in turns, round by round.
Filters are asked many times before, see `_warm`. A system that is not installed is left out.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import curves, peers, plots
from ..children import Child, Missing
from ..sources import Condition
from ..worker import Case, K
from .plan import WORKER, Plan
from .tables import millis, number, picture, rate, table

TARGETS = (0.95, 0.99)
_LEAST, _ENOUGH = 0.85, 0.996
_HALVINGS = 3
"""Settings tried between the lowest that reaches a target and the one below it."""
_QUICKER = 0.8
"""A system may answer in another way at a higher setting. One that took less than this share of the time is timed too."""
_QUERIES_FILTERED = 400
_WARM_QUERIES, _WARM_WAIT_S = 3_000, 30.0
"""More than the 512 after which vecdb makes a graph of its own for a filter, in the background."""


def run(plan: Plan) -> dict[str, Any]:
    loads, skipped = _fill(plan)
    there = [peer for peer in plan.peers if peer.name not in skipped]
    opened: dict[str, Child] = {}
    try:
        for peer in there:
            child = opened[peer.name] = Child(WORKER, plan.source, one_core=True)
            folder = loads[peer.module]["folder"]
            if peer.options:
                # Two processes cannot both have it open, one of them for writing.
                folder = shutil.copytree(folder, folder.with_name(folder.name + "-copy"))
            child.call("open", "it", peer.module, folder, False, dict(peer.options))
        plain = _asked(plan, opened, None)
        filtered = {}
        unfiltered = {peer.name for peer in peers.RAWS}
        able = {name: child for name, child in opened.items() if name not in unfiltered}
        for condition in plan.source.conditions():
            plan.say(f"  filter {condition}")
            share = float(np.mean(plan.source.flags(condition)))
            waited_s = _warm(able, condition)
            asked = _asked(plan, able, condition)
            filtered[str(condition)] = {"allowed": share, "warm_wait_s": waited_s, **asked}
    finally:
        for child in opened.values():
            child.close()
    title = f"{plan.source.name}, embedded, one thread, single queries, ids and distances"
    path = plan.results / f"{plan.name}-peers.svg"
    return {
        "loads": {module: {k: v for k, v in one.items() if k != "folder"} for module, one in loads.items()},
        "skipped": skipped,
        "plain": plain,
        "filtered": filtered,
        "plot": plots.recall_rate(path, {title: plain["curves"]}),
    }  # fmt: skip


def _fill(plan: Plan) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Each module once, one after another; which systems are left out, and why."""
    loads: dict[str, dict[str, Any]] = {}
    skipped: dict[str, str] = {}
    missing: dict[str, str] = {}
    for peer in plan.peers:
        if peer.module in loads:
            continue
        if peer.module in missing:
            skipped[peer.name] = missing[peer.module]
            continue
        try:
            loads[peer.module] = {"name": peer.name, **_load(plan, peer.module)}
        except Missing as why:
            skipped[peer.name] = missing[peer.module] = str(why)
            plan.say(f"  {peer.name} left out: {why}")
    return loads, skipped


def _load(plan: Plan, module: str) -> dict[str, Any]:
    rows = plan.source.rows
    if module == peers.VECDB.module:
        made = plan.collection()
        rate_ = rows / made.figures["insert_s"]
        ready_s = made.figures["ready_s"]
        return {"folder": made.folder, "insert_rows_per_s": rate_, "ready_s": ready_s}
    raws = {peer.module: peer for peer in peers.RAWS}
    if module in raws:
        raw = plan.raw(raws[module])
        ready_s = raw["build_s"]
        return {"folder": raw["folder"], "insert_rows_per_s": rows / ready_s, "ready_s": ready_s}
    folder: Path = plan.folder / f"peer-{module}"
    with Child(WORKER, plan.source) as child:
        child.call("open", "it", module, folder, True, {})
        filled = child.call("fill", "it")
        ready_s = filled["wall_s"] + child.call("ready", "it")
        child.call("close", "it")
    plan.say(f"  {module}: indexed after {ready_s:.1f} s")
    return {
        "folder": folder,
        "insert_rows_per_s": rows / filled["insert_s"],
        "ready_s": ready_s,
    }


def _warm(opened: dict[str, Child], condition: Condition) -> dict[str, float]:
    """All systems alike: many queries with this filter, then a wait until the process is quiet.

    Seconds that each waited.
    """
    return {
        name: child.call("warm", "it", condition, _WARM_QUERIES, _WARM_WAIT_S)
        for name, child in opened.items()
    }


def _asked(plan: Plan, opened: dict[str, Child], condition: Condition | None) -> dict[str, Any]:
    """Curves, and at each target the fastest of the settings that reach it."""
    queries = len(plan.source.queries) if condition is None else _QUERIES_FILTERED
    truth = plan.source.truth(K, condition)
    recall: dict[tuple[str, float], float] = {}
    took_s: dict[tuple[str, float], float] = {}
    for name, child in opened.items():
        tried: dict[float, float] = {}

        def ask(setting: float, name: str = name, child: Child = child, tried: Any = tried) -> None:
            case = Case(setting, condition, queries=queries)
            begun_s = time.perf_counter()
            found = child.call("answers", "it", case)
            took_s[name, setting] = time.perf_counter() - begun_s
            tried[setting] = recall[name, setting] = plan.source.recall(found, truth)

        for setting in child.call("settings", "it"):
            ask(setting)
            if tried[setting] >= _ENOUGH:
                break
        for target in TARGETS:
            narrow(tried, target, ask)
    turns = [turn for turn, reached in recall.items() if reached >= _LEAST]
    if condition is not None:
        turns = [t for t in turns if t in needed(recall, took_s)]
    # By setting, then system: A B A B.
    turns.sort(key=lambda turn: recall[turn])
    seen: dict[tuple[str, float], list[Any]] = {turn: [] for turn in turns}
    for _ in range(plan.rounds):
        for name, setting in turns:
            case = Case(setting, condition, queries=queries, budget_s=1.0)
            seen[name, setting].append(opened[name].call("rate", "it", case))
    lines: dict[str, list[curves.Point]] = {name: [] for name in opened}
    for (name, setting), rounds in seen.items():
        lines[name].append(curves.point(setting, recall[name, setting], rounds))
    best = {name: max((r for (n, _), r in recall.items() if n == name)) for name in opened}
    at = {
        str(target): {name: curves.reaching(points, target) for name, points in lines.items()}
        for target in TARGETS
    }
    return {"curves": lines, "at": at, "best_recall": best}


def narrow(tried: Mapping[float, float], target: float, ask: Callable[[float], None]) -> None:
    """Asks at settings halfway between the lowest that reaches the target and the one below it.

    `tried` has the recall of each setting that was asked; `ask` puts it there. Settings that were all whole numbers
    stay so.
    """
    whole = all(float(setting).is_integer() for setting in tried)
    for _ in range(_HALVINGS):
        above = min((one for one, reached in tried.items() if reached >= target), default=None)
        below = max((one for one in tried if above is not None and one < above), default=None)
        if above is None or below is None:
            return
        middle = (below + above) // 2 if whole else (below + above) / 2
        if middle == below:
            return
        ask(middle)


def needed(
    recall: Mapping[tuple[str, float], float], took_s: Mapping[tuple[str, float], float]
) -> set[tuple[str, float]]:
    """Of each system and target the lowest setting that reaches it, and the quickest where that is another by far:
    under filters only these are timed."""
    found = set()
    for name in {name for name, _ in recall}:
        for target in TARGETS:
            enough = [(n, s) for (n, s), r in recall.items() if n == name and r >= target]
            if enough:
                lowest = min(enough)
                quickest = min(enough, key=lambda turn: took_s[turn])
                found.add(lowest)
                if took_s[quickest] < _QUICKER * took_s[lowest]:
                    found.add(quickest)
    return found


def page(found: dict[str, Any]) -> list[str]:
    parts = [
        "## Beside other embedded systems\n\nOne thread, single queries, ids and distances, cosine,"
        f" M = {peers.M}, efConstruction = {peers.EF_CONSTRUCTION} wherever it can be said. Of each"
        " system the fastest setting that reaches the recall. Filter caches are warm: each filter was asked"
        f" {_WARM_QUERIES} times before, and each process left alone until it was quiet for a second,"
        f" {_WARM_WAIT_S:.0f} s at most. The insert and ready figures come from one load of each system, with"
        " all cores, vecdb's durable after each batch.\n"
    ]
    for name, why in found["skipped"].items():
        parts.append(f"{name} was left out: {why}.\n")
    parts.append(
        table(
            ("system", "insert, rows/s", "first insert to indexed"),
            [
                (one["name"], f"{one['insert_rows_per_s']:,.0f}", f"{one['ready_s']:.1f} s")
                for one in found["loads"].values()
            ],
        )
    )
    parts.append(_table("no filter", found["plain"]))
    for condition, one in found["filtered"].items():
        parts.append(_table(f"{condition} ({one['allowed']:.2%})", one))
    return parts + picture(found["plot"])


def _table(title: str, one: dict[str, Any]) -> str:
    rows = []
    for name in one["curves"]:
        line = [name]
        for target in TARGETS:
            point = one["at"][str(target)][name]
            if point is None:
                line += [f"not reached (best {one['best_recall'][name]:.3f})", "", ""]
            else:
                said = f"{number(point['recall'], 4)} at {point['setting']:g}"
                line += [rate(point), said, millis(point["p99_ms"])]
        rows.append(line)
    header = [title]
    for target in TARGETS:
        header += [f"queries/s at {target}", "recall, setting", "p99"]
    return table(header, rows)
