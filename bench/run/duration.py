"""How long a run takes about, and which workloads fit into the time that it may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .plan import LOADED, TARGETS, WORKLOADS, Plan

_ROWS_PER_S = 3_000
"""Of loading and indexing together: about the mean of the systems of the recorded runs on two cores."""
_CHANGED_PER_S = 1_500
_PASS = 1.3
"""A pass of queries takes its budget, and so much with recall and all around it."""
_START_S = 3.0
_CURVE, _TUNED, _TUNED_MIX, _FILTERS = 12, 6, 3, 5
"""Passes that are made to draw the curve, and to find one setting, also of the mix, whose filters leave so little that
most systems reach the recall at the first; filters of a set."""
_CHANGED, _CHANGED_AT_MOST = 0.1, 20_000


@dataclass(slots=True)
class Choice:
    """Workloads that are played, in `plan`, and why others are not. `seconds` is what the former take about."""

    plan: Plan
    workloads: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def chosen(plan: Plan, rows: int, systems: int, budget_s: float) -> Choice:
    """All workloads in their order but for those with which the run would take longer than the budget.

    The load is always played, as most others need it; where its rounds would take more than half of the budget, there
    are fewer of them.
    """
    found = Choice(plan)
    while plan.loads > 1 and 2 * systems * seconds_of(plan, "load", rows) > budget_s:
        plan = replace(plan, loads=plan.loads - 1)
    if plan.loads < found.plan.loads:
        seconds = systems * seconds_of(found.plan, "load", rows)
        found.left_out["load"] = (
            f"{plan.loads} of {found.plan.loads} rounds of what writes are played, as all loads take about "
            f"{_minutes(seconds)}, of {_minutes(budget_s)} in all"
        )
    for name in WORKLOADS:
        seconds = systems * seconds_of(plan, name, rows)
        if name != "load" and found.seconds + seconds > budget_s:
            found.left_out[name] = (
                f"it takes about {_minutes(seconds)} beside the {_minutes(found.seconds)} of the others, of "
                f"{_minutes(budget_s)} in all"
            )
        else:
            found.workloads.append(name)
            found.seconds += seconds
    found.plan = replace(plan, workloads=frozenset(found.workloads))
    return found


def total_s(plan: Plan, workloads: Sequence[str], rows: int, systems: int) -> float:
    """Of all systems together; with the load that others need."""
    played = {*workloads, *(("load",) if LOADED & set(workloads) else ())}
    return systems * sum(seconds_of(plan, name, rows) for name in played)


def seconds_of(plan: Plan, workload: str, rows: int) -> float:
    """Of one system in all rounds. A guess: systems differ by a factor of ten."""
    one_pass = _PASS * plan.seconds
    targets, rounds, loads = len(TARGETS), plan.rounds, plan.loads
    if workload == "load":
        return loads * (min(rows / _ROWS_PER_S, plan.load_seconds) + _START_S)
    if workload == "single":
        return rounds * _START_S + one_pass * (_CURVE + targets * len(plan.callers) * rounds)
    if workload == "batch":
        return one_pass * targets * (1 + rounds)
    if workload == "filter":
        return one_pass * _FILTERS * (_TUNED + 1 + rounds)
    if workload == "open":
        return rounds * (_START_S + one_pass)
    if workload == "update":
        changed = min(_CHANGED * rows, _CHANGED_AT_MOST) / _CHANGED_PER_S
        return loads * (_START_S + 2 * min(changed, plan.write_seconds) + one_pass)
    if workload == "rag":
        return 1.5 * one_pass * _TUNED_MIX + loads * 2 * (plan.mix_seconds + 1.5 * one_pass)
    if workload == "load_query":
        part = min(rows, plan.load_query_rows) / _ROWS_PER_S
        return loads * (_START_S + min(part, plan.load_seconds) + one_pass)
    if workload == "many":
        count = plan.many[0] * plan.many[1] / _ROWS_PER_S
        return plan.long_rounds * (_START_S + min(count, plan.many_seconds))
    sizes = [one for one in plan.growth if one <= rows]
    loading = min(max(sizes, default=0) / _ROWS_PER_S, plan.load_seconds)
    return plan.long_rounds * (_START_S + loading + len(sizes) * _TUNED * one_pass)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min"
