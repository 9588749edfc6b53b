"""Recall and rate of vecdb beside raw FAISS with the same kind of index, by one thread and by all cores.

All are open in one process and take turns, setting by setting, in every round. vecdb is asked with
`target_recall`, FAISS with efSearch or nprobe; they are compared at the recall that vecdb measurably has (FAISS's rate
between the two nearest points of its curve). FAISS alone has two indexes: the very index that vecdb saved, where
they are also compared at the setting that vecdb says it took, and one as users build it.

A round of a system lasts some tenths of a second, in which a busy machine may give it half its rate. So what is
compared on the page takes turns in many rounds more, forwards and backwards; each round gives a ratio of its own, of
rates measured within a second or two, and the median of these stands on the page.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from statistics import median
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
_CLOSE_ROUNDS = 11
"""Further rounds of what the page compares."""
_QUIET_S = 60.0
"""How long what is done behind, as vectors read after opening, is waited for."""
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
    seen: dict[Turn, list[Any]] = {turn: [] for turn in turns}
    child.call("quiet", _QUIET_S)

    def take(turn: Turn) -> float:
        name, setting = turn
        rate_ = child.call("rate", name, Case(setting, batched=batched, callers=callers))
        seen[turn].append(rate_)
        return float(rate_.queries_per_s)

    for _ in range(plan.rounds):
        for turn in turns:
            take(turn)
    names = [peer.name for peer in raws]
    close: dict[float, dict[Turn, list[float]]] = {
        target: {turn: [] for turn in _close(target, explained[target], turns, reached, names)}
        for target in SHOWN
    }
    for turned in range(_CLOSE_ROUNDS):
        for rates in close.values():
            for turn in list(rates)[:: -1 if turned % 2 else 1]:
                rates[turn].append(take(turn))
    lines: dict[str, list[curves.Point]] = {_OWN: [], same: []}
    for name, setting in sorted(turns):
        point = curves.point(setting, reached[name, setting], seen[name, setting])
        lines.setdefault(name, []).append(point)
    own = lines.pop(_OWN)
    for point in own:
        point["explained"] = explained[point["setting"]]
        point["beside"] = {name: _beside(point, points) for name, points in lines.items()}
    for target, rates in close.items():
        (point,) = (one for one in own if one["setting"] == target)
        for name, beside in point["beside"].items():
            beside |= _by_rounds(point, name, rates, reached)
    return {"vecdb": own, "raw": lines}


Turn = tuple[str, float]
"""A system at a setting."""


def _close(
    target: float,
    explained: dict[str, Any],
    turns: Sequence[Turn],
    reached: dict[Turn, float],
    raws: Sequence[str],
) -> list[Turn]:
    """What vecdb at `target` is compared with: FAISS's points on both sides of the recall that it reached, and
    that at the same setting."""
    recall, wanted = reached[_OWN, target], {(_OWN, target)}
    for name in raws:
        of_it = [turn for turn in turns if turn[0] == name]
        above = [turn for turn in of_it if reached[turn] >= recall]
        below = [turn for turn in of_it if reached[turn] < recall]
        wanted.update(above[:1], below[-1:])
        wanted.update(turn for turn in of_it if turn[1] == explained.get("setting"))
    return [turn for turn in turns if turn in wanted]


def _by_rounds(
    point: curves.Point, name: str, rates: dict[Turn, list[float]], reached: dict[Turn, float]
) -> dict[str, Any]:
    """Ratios of vecdb's rate to that of a raw index in the same round: the medians, lowest and highest."""
    own = rates[_OWN, point["setting"]]
    raw = {turn: of_it for turn, of_it in rates.items() if turn[0] == name}
    equal = [
        curves.rate_at(
            ({"recall": reached[turn], "queries_per_s": of_it[n]} for turn, of_it in raw.items()),
            point["recall"],
        )
        for n in range(len(own))
    ]
    there = raw.get((name, point["explained"].get("setting")), [])
    found: dict[str, Any] = {}
    for figure, others in (("at_recall", equal), ("at_setting", there)):
        ratios = sorted(mine / other for mine, other in zip(own, others, strict=False) if other)
        if ratios:
            found |= {f"ratio_{figure}": median(ratios), f"ratios_{figure}": ratios}
    return found


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
    lists = ""
    if found["index"].startswith("ivf"):
        lists = (
            " Of many lists vecdb finds those to probe for a single query by codes of the centroids"
            " (`vecdb/index/cells.py`), FAISS compares all centroids."
        )
    parts = [
        f"## Speed beside raw FAISS\n\nvecdb with {found['index']}, ids only, and FAISS alone in the same"
        f" process, in turns. {peers.SAVED.name}: the same links, the same codes and the same vectors, read from"
        f" vecdb's files; {peers.REFINED} candidates an answer are ranked again by float32 in memory."
        f" {peers.RAW.name}: a graph built and walked over float32; {peers.RAW_LISTS.name}: lists that FAISS"
        f" has trained itself.{lists} Ratios are of vecdb's rate to that of FAISS"
        f" at the recall that vecdb reached, medians of {_CLOSE_ROUNDS} rounds more, each with the rates of that"
        " round, lowest and highest in brackets. Times are of a call.\n"
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
        ratio = _ratio(beside, "at_recall")
        times = _times(curves.reaching(points, point["recall"]))
        at_ef = _ratio(beside, "at_setting") if name == same else ""
        lines.append((target, said, recall, count(beside["at_recall"]), times, ratio, "", at_ef))
    return lines


def _ratio(beside: dict[str, Any], figure: str) -> str:
    rounds = beside.get(f"ratios_{figure}")
    spread = f" ({number(rounds[0])}-{number(rounds[-1])})" if rounds else ""
    return number(beside[f"ratio_{figure}"]) + spread


def _times(point: curves.Point | None) -> str:
    return "-" if point is None else f"{millis(point['p50_ms'])} / {millis(point['p99_ms'])}"
