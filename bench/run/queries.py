"""The workloads that only ask: single queries, batches, filters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..sources import Condition
from .asking import QUERY_BATCH, Case
from .plan import TARGETS, Plan
from .session import Session
from .tuning import Tuning

Chosen = dict[tuple[str, Any], float]
"""The setting that reaches a target, by (what is asked, target); found in the first round and kept."""

_LEAST, _LEAST_FILTERED, _LEAST_BATCHES = 100, 30, 2
_LIKE = 1.5
"""Rates that differ by less are taken for the same way of answering."""


def single(session: Session, plan: Plan, chosen: Chosen) -> None:
    """One caller over the whole range of settings, then each number of callers at what reaches the targets."""
    case = Case(0.0, budget_s=plan.seconds, least=_LEAST)
    if session.turn == 0:
        settle(session, case, chosen)
        tuning = _tuning(session, case)
        tuning.spread()
        for target in TARGETS:
            chosen["single", target], _ = tuning.reaching(target)
        for found in (tuning.seen[one] for one in sorted(tuning.seen)):
            session.sample("single", "callers=1", **found)
    for target in TARGETS:
        for callers in plan.callers:
            asked = replace(case, setting=chosen["single", target], callers=callers)
            found = session.asked(asked)
            session.sample("single", f"callers={callers} recall={target}", **found)


def settle(session: Session, case: Case, chosen: Chosen) -> None:
    """Fills caches: what is measured first must not pay for what is measured later."""
    settings = session.call("settings")
    session.call("ask", replace(case, setting=settings[len(settings) // 2]))


def usual(session: Session, chosen: Chosen) -> float:
    """The setting that reaches the first target, or the middle one where none was looked for."""
    settings = session.call("settings")
    return float(chosen.get(("single", TARGETS[0]), settings[len(settings) // 2]))


def batch(session: Session, plan: Plan, chosen: Chosen) -> None:
    case = Case(0.0, batched=True, budget_s=plan.seconds, least=_LEAST_BATCHES)
    for target in TARGETS:
        if ("batch", target) not in chosen:
            chosen["batch", target] = _of_batches(session, case, target, chosen)
        found = session.asked(replace(case, setting=chosen["batch", target]))
        session.sample("batch", f"{QUERY_BATCH} recall={target}", **found)


def _of_batches(session: Session, case: Case, target: float, chosen: Chosen) -> float:
    """The setting of single queries, where it reaches the target in batches too; most systems walk the same way."""
    known = chosen.get(("single", target))
    if known is not None and session.asked(replace(case, setting=known))["recall"] >= target:
        return known
    return _tuning(session, case).reaching(target)[0]


def filters(session: Session, plan: Plan, chosen: Chosen) -> None:
    """Each filter at the setting that reaches the first target, which is settled before the first sample: all samples
    of a filter are of one setting."""
    conditions = {session.source.case(one): one for one in session.source.conditions()}
    cases = {
        name: Case(0.0, condition, budget_s=plan.seconds, least=_LEAST_FILTERED)
        for name, condition in conditions.items()
    }
    first: dict[str, dict[str, Any]] = {}
    for name, case in cases.items():
        if ("filter", name) not in chosen:
            with session.attempt("filter", name):
                # The first pass also makes what a system keeps for a filter that is asked often.
                session.call("ask", replace(case, setting=usual(session, chosen)))
                first[name] = _tuned_filter(session, case, name, chosen)
    # Some of that is made behind, while the filters after it are tuned.
    for name, seen in first.items():
        with session.attempt("filter", name):
            case = cases[name]
            now = session.asked(replace(case, setting=seen["setting"]), case.condition)
            if _answers_otherwise(seen, now):
                _tuned_filter(session, case, name, chosen)
    for name, case in cases.items():
        if ("filter", name) in chosen:
            with session.attempt("filter", name):
                case = replace(case, setting=chosen["filter", name])
                session.sample("filter", name, **session.asked(case, case.condition))


def _tuned_filter(session: Session, case: Case, name: str, chosen: Chosen) -> dict[str, Any]:
    """Keeps the setting for a filter; what was measured at it."""
    tuning = _tuning(session, case, case.condition)
    tuning.lowest()  # many systems compare what a filter leaves one by one, at any setting
    setting, _ = tuning.reaching(TARGETS[0])
    chosen["filter", name] = setting
    return next(one for one in tuning.seen.values() if one["setting"] == setting)


def _answers_otherwise(seen: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a filter is answered in another way than when its setting was found, by what was made for it since."""
    lost = now["recall"] < TARGETS[0] <= seen["recall"]
    return lost or not 1 / _LIKE < now["qps"] / seen["qps"] < _LIKE


def _tuning(session: Session, case: Case, condition: Condition | None = None) -> Tuning:
    def asked(setting: float) -> dict[str, Any]:
        return session.asked(replace(case, setting=setting), condition)

    return Tuning(session.call("settings"), asked)
