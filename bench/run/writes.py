"""The workloads that write: loads, updates and deletes, the mix, many collections, growth."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..sources import Condition, Source, State
from .asking import BATCH, Case, figures, latencies
from .changes import DELETED, Changes
from .mixture import Mix, together
from .plan import TARGETS, Plan
from .queries import Chosen, usual
from .session import Session
from .tuning import Tuning

_SHARE = 0.1
"""Of all rows: so many are upserted, as many others deleted, at most 20,000 each."""
_AT_MOST = 20_000
_MIXED = (1, 8)
_TENANTS, _TENANT_ROWS, _JUDGED = 50, 20, 3
_SEED = 7

Tenants = list[tuple[Condition, NDArray[np.int64]]]
"""Each tenant's filter and rows."""


def load(session: Session, plan: Plan, folder: Path) -> bool:
    """Loads everything and waits until it is indexed; False where rows are missing at the end."""
    rows, kept = session.source.rows, "load" in plan.workloads
    session.open(folder)
    (done, calls_s), took = session.watched("load", 0, rows, plan.load_seconds)
    seconds = sum(calls_s)
    if kept:
        session.sample(
            "load", "", **_rate(done, calls_s), seconds=seconds, **took, **session.disk(folder)
        )
    if done < rows:
        session.failed("load", "", f"{done} of {rows} rows were loaded in {seconds:.0f} s")
        return False
    ready_s, took = session.watched("ready")
    count = session.call("count")
    session.call("close", True)
    if kept:
        session.sample("load", "ready", seconds=ready_s, **took, **session.disk(folder))
    if count not in (None, rows):
        session.failed("load", "ready", f"it counts {count} rows, {rows} were acknowledged")
        return False
    return True


def _rate(rows: int, calls_s: list[float]) -> dict[str, Any]:
    """Rows a second of calls that write, and how long each took."""
    return {"rows_per_s": rows / max(sum(calls_s), 1e-9), "rows": rows, **latencies(calls_s)}


def load_query(session: Session, plan: Plan, folder: Path) -> None:
    """Queries from one caller while rows are inserted, over a part of the set. Recall is that of the same setting at once
    after the last row: what was there at each moment before is not known."""
    if session.about["role"] == "limit":
        reason = "it has no locks: what is found while rows are added may be anything"
        session.lines.skip(session.name, "load_query", reason)
        return
    session.open(folder)
    settings = session.call("settings")
    setting = settings[len(settings) // 2]
    if session.apart:
        found, took = _loaded_and_asked(session, setting, plan.load_seconds)
    else:
        found, took = session.watched("load_and_ask", setting, plan.load_seconds)
    took |= session.disk(folder)
    if found["rows"] == session.source.rows:
        found["recall"] = session.asked(Case(setting, budget_s=plan.seconds, least=50))["recall"]
    session.sample("load_query", "", **found, **took)


def _loaded_and_asked(
    session: Session, setting: float, budget_s: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """As `load_and_ask` of the child, with the caller in a process of its own."""
    rows, case = session.source.rows, Case(setting)
    session.call("tune", setting)
    first, _ = session.call("load", 0, min(BATCH, rows), budget_s)
    session.begin_callers(1, case)
    with session.watch() as watch:
        session.callers("start", case)
        begun_s = time.perf_counter()
        done, calls_s = session.call("load", first, rows, budget_s)
        taken_s, used_s = session.callers("stop")
        # What is asked until they stop is counted too.
        took_s = time.perf_counter() - begun_s
    asked = figures(taken_s, took_s) if taken_s else {}
    found = {**asked, "rows_per_s": done / max(sum(calls_s), 1e-9), "rows": first + done}
    return found, session.took(watch, used_s)


def update(session: Session, plan: Plan, chosen: Chosen, changes: Changes) -> None:
    """Upserts with new vectors, deletes of other rows, then queries over what is live."""
    source = session.source
    count = max(min(int(source.rows * _SHARE), _AT_MOST), 1)
    order = np.random.default_rng(_SEED).permutation(source.rows)[: 2 * count].tolist()
    with session.attempt("update", "upsert"):
        (versions, calls_s), took = session.watched("upsert", order[:count], plan.write_seconds)
        changes.add(versions)
        session.sample(
            "update", "upsert", **_rate(len(versions), calls_s), **took, **session.disk()
        )
    with session.attempt("update", "delete"):
        (gone, calls_s), took = session.watched("delete", order[count:], plan.write_seconds)
        changes.add(dict.fromkeys(gone, DELETED))
        session.sample("update", "delete", **_rate(len(gone), calls_s), **took, **session.disk())
    if not changes.versions:
        return
    with session.attempt("update", "query"):
        case = Case(usual(session, chosen), budget_s=plan.seconds, least=100)
        session.sample("update", "query", **session.asked(case, state=changes.state(source)))
        counted, live = session.call("count"), int(changes.live(source.rows).sum())
        if counted not in (None, live):
            session.failed("update", "query", f"it counts {counted} rows, {live} are live")


def rag(session: Session, plan: Plan, chosen: Chosen, changes: Changes) -> None:
    """The mix, at the setting that reaches the first target under tenants' filters; recall is of queries with such a
    filter over what is live at its end."""
    source = session.source
    tenants = tenants_of(source)
    if not tenants:
        session.lines.skip(session.name, "rag", "the set has no tenants")
        return
    if ("rag", TARGETS[0]) not in chosen:
        with session.attempt("rag"):
            chosen["rag", TARGETS[0]] = _for_tenants(session, plan, tenants, changes.state(source))
    setting = chosen.get(("rag", TARGETS[0]))
    if setting is None:
        return
    for callers in _MIXED:
        with session.attempt("rag", f"callers={callers}"):
            asked = Mix(setting, changes.versions, tenants)
            session.call("tune", setting)
            if callers > 1 and session.apart:
                session.begin_callers(callers, Case(setting))
                with session.watch() as watch:
                    *played, used_s = session.callers("mix", asked, callers, plan.mix_seconds)
                (found, versions), took = together(*played), session.took(watch, used_s)
            else:
                (found, versions), took = session.watched("mix", asked, callers, plan.mix_seconds)
            changes.add(versions)
            recall = _of_tenants(session, plan, tenants, changes.state(source), setting)
            values = {**found, **took, **session.disk(), "recall": recall, "setting": setting}
            session.sample("rag", f"callers={callers}", **values)


def _for_tenants(session: Session, plan: Plan, tenants: Tenants, state: State) -> float:
    """The least setting that reaches the first target under their filters, or the best there is."""

    def asked(setting: float) -> dict[str, Any]:
        return {"recall": _of_tenants(session, plan, tenants, state, setting)}

    tuning = Tuning(session.call("settings"), asked)
    tuning.lowest()  # many systems compare what a filter leaves one by one, at any setting
    return tuning.reaching(TARGETS[0])[0]


def _of_tenants(
    session: Session, plan: Plan, tenants: Tenants, state: State, setting: float
) -> float:
    """Mean recall under the filters of the tenants that are asked most."""
    recalls = []
    for condition, _ in tenants[:_JUDGED]:
        case = Case(setting, condition, budget_s=plan.seconds / 2, least=20)
        recalls.append(session.asked(case, condition, state)["recall"])
    return float(np.mean(recalls))


def tenants_of(source: Source) -> Tenants:
    """Values of the field of text that most filters are on, each a tenant with its rows; in a seeded order."""
    named = [one.field for one in source.conditions() if isinstance(one.value, str)]
    if not named:
        return []
    field = max(dict.fromkeys(named), key=named.count)
    column = np.array([str(one) for one in source.column(field).tolist()])
    values, numbers = np.unique(column, return_inverse=True)
    order = np.random.default_rng(_SEED).permutation(len(values))
    rows = [(Condition(field, "=", str(values[i])), np.flatnonzero(numbers == i)) for i in order]
    return [one for one in rows if len(one[1]) >= _TENANT_ROWS][:_TENANTS]


def many(session: Session, plan: Plan, folder: Path) -> None:
    session.open(folder)
    found, took = session.watched("many", *plan.many, plan.many_seconds)
    session.call("close")
    case = f"{plan.many[0]} x {plan.many[1]}"
    raw_bytes = found["rows"] * session.source.dimension * 4
    size = session.disk(folder.parent, raw_bytes)
    session.sample("many", case, **found, **took, **size)


def growth(session: Session, plan: Plan, folder: Path) -> None:
    """Loads on and on; at each size the rate of the last rows, and queries at the first target."""
    session.open(folder)
    whole, start = session.source, 0
    for at in (one for one in plan.growth if one <= whole.rows):
        (done, calls_s), took = session.watched("load", start, at, plan.load_seconds)
        case = f"{at}"
        if done < at - start:
            session.failed("growth", case, f"{start + done} rows were reached")
            return
        size = session.disk(folder, at * whole.dimension * 4)
        session.sample("growth", case, at_rows=at, **_rate(done, calls_s), **took, **size)
        ready_s = session.call("ready")
        session.source = whole.first(at)
        try:
            asking = Case(0.0, budget_s=plan.seconds, least=50)
            tuning = Tuning(
                session.call("settings"),
                lambda setting, asking=asking: session.asked(replace(asking, setting=setting)),  # type: ignore[misc]
            )
            setting, _ = tuning.reaching(TARGETS[0])
            found = session.asked(replace(asking, setting=setting))
        finally:
            session.source = whole
        session.sample(
            "growth", f"{case} recall={TARGETS[0]}", at_rows=at, seconds=ready_s, **found
        )
        start = at
