"""The page of one run: what was measured on what, tables, plots, goals, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import goals, measures
from .cells import ENOUGH, NONE, SHORT, Column, figure, spread_text, systems_table, table
from .lines import Run, Spread

_KEYS = {
    "recall": ("recall", 1.0),
    "qps": ("QPS", 1.0),
    "p50_ms": ("p50 ms", 1.0),
    "p95_ms": ("p95 ms", 1.0),
    "p99_ms": ("p99 ms", 1.0),
    "rows_per_s": ("rows/s", 1.0),
    "seconds": ("s", 1.0),
    "open_s": ("open alone s", 1.0),
    "cpu_s": ("CPU s", 1.0),
    "cpu_server_s": ("of it server", 1.0),
    "cpu_callers_s": ("of it callers", 1.0),
    "memory_bytes": ("memory MiB", measures.MIB),
    "memory_server_bytes": ("of it server", measures.MIB),
    "memory_peak_bytes": ("peak MiB", measures.MIB),
    "disk_bytes": ("disk MiB", measures.MIB),
    "disk_to_raw": ("disk / raw", 1.0),
}
"""Columns of the long tables, in their order: title and unit."""
_TITLES = {
    "load": "Load",
    "load_query": "Queries while loading",
    "single": "Single queries",
    "batch": "Batches",
    "filter": "Filters",
    "update": "Upserts and deletes, then queries",
    "open": "Cold open",
    "rag": "RAG mix: 90 % queries with a filter, 8 % upserts, 2 % deletes",
    "many": "Many collections",
    "growth": "Growth",
}


def page(run: Run, plots: Mapping[str, str]) -> str:
    """Markdown. `plots` are file names by title."""
    outcomes, found = goals.beside(run), goals.places(run)
    parts = [
        f"# vecdb beside others: {run.about['dataset']['name']}, {run.about['date'][:10]}\n",
        f"`{run.about['command']}`\n",
        *described(run),
        summary(run, outcomes, found),
        *(f"![{title}]({name})\n" for title, name in plots.items()),
        "## Overview\n",
        systems_table(run, measures.usual(run)),
        _legend(run),
    ]
    if outcomes or found:
        parts.append("## Goals\n")
        parts.append("All from medians of this run; a ratio says how many times better vecdb is.\n")
        parts += [goals.served_table(outcomes)] if outcomes else []
        parts += [goals.places_table(found)] if found else []
    for workload in run.workloads:
        parts += [f"## {_TITLES.get(workload, workload)}\n", *_workload(run, workload)]
    parts += ["## Systems\n", _systems(run), *_missing(run)]
    return "\n".join(part for part in parts if part)


def summary(run: Run, outcomes: list[goals.Outcome], found: list[goals.Place]) -> str:
    text = goals.summary(outcomes, found)
    return f"{text}\n" if text else ""


def described(run: Run) -> list[str]:
    """Data set, rounds and machine, a paragraph each."""
    machine, dataset = run.about["machine"], run.about["dataset"]
    rounds = run.about["rounds"]
    packages = ", ".join(f"{one} {version}" for one, version in machine["packages"].items())
    disk = f", {machine['disk']}" if "disk" in machine else ""
    commit = run.about["commit"]
    return [
        f"{dataset['name']}: {dataset['rows']:,} rows of {dataset['dimension']} dimensions,"
        f" {dataset['queries']:,} queries, {dataset['metric']}, k = {run.about['k']}, seed"
        f" {dataset['seed']}. {dataset['structure']}. Systems in turn, {rounds}"
        f" round{'s' if rounds > 1 else ''}{_of_writes(run)}; medians, lowest and highest in brackets.\n",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB{disk},"
        f" {machine['system']}, Python {machine['python']}; {packages}; commit {commit}; load at start"
        f" {machine['load_at_start']}.\n",
        *_left_out(run),
    ]


def _of_writes(run: Run) -> str:
    loads = run.about.get("loads")
    return "" if loads is None else f" of queries and {loads} of what writes"


def _left_out(run: Run) -> list[str]:
    """Workloads that the run had no time for, and why."""
    left = run.about.get("left_out", {})
    listed = "; ".join(f"{_TITLES.get(name, name)} ({why})" for name, why in left.items())
    return [f"Left out: {listed}.\n"] if listed else []


def _legend(run: Run) -> str:
    least = min(run.about["target_recall"])
    return (
        f"Bold: the best database that reaches the recall, {least} where a title of queries names none. {SHORT}: the"
        f" recall asked for is not reached to within {ENOUGH}; what is reached stands beside. {NONE}: not measured,"
        " or the system cannot. Italics: limits, which are an index in memory and no database. Memory is resident"
        " after reopening and some queries, with pages of files that are mapped: of the server alone where there is"
        " one, elsewhere of the whole process, whose base stands below Cold open.\n"
    )


def _workload(run: Run, workload: str) -> list[str]:
    cases = run.cases(workload)
    if workload == "filter":
        cases = measures.filter_cases(run)
    if workload == "single":  # the curve has a plot, and a table of its own
        cases = [case for case in cases if " recall=" in case]
    parts = [_pivot(run, workload, cases)]
    if workload == "load":
        parts = [systems_table(run, [measures.load(), measures.ready()])]
    if workload == "open":
        parts += [_bases(run)]
    rows = [
        row
        for system in (*run.engines, *(one for one in run.systems if run.is_limit(one)))
        for case in cases
        if (row := _long_row(run, system, workload, case))
    ]
    used = [key for key in _KEYS if any(row[1].get(key) for row in rows)]
    header = ("system", "case", *(_KEYS[key][0] for key in used))
    body = [
        (names[0], names[1], *(_number(values.get(key), key) for key in used))
        for names, values in rows
    ]
    if body:
        parts += [_folded("All numbers", table(header, body))]
    if workload == "single":
        parts += [_curves(run)]
    parts += [_notes(run, workload)]
    return parts


def _pivot(run: Run, workload: str, cases: Sequence[str]) -> str:
    """The workload's main number, a column a case."""
    columns = []
    for case in cases:
        lines = [one for one in run.samples if (one["workload"], one["case"]) == (workload, case)]
        keys = {key for one in lines for key in one}
        key = next((one for one in ("qps", "rows_per_s", "seconds") if one in keys), None)
        if key == "qps":
            columns.append(measures.rate(run, f"{case} QPS", workload, case))
        elif key is not None:
            title = f"{case} {_KEYS[key][0]}".strip()
            columns.append(Column(title, workload, case, key, higher=key != "seconds"))
    return systems_table(run, columns)


def _bases(run: Run) -> str:
    """What of the memory was there before the system opened anything, which is in that of no server."""
    rows = []
    for system, about in run.systems.items():
        found = measures.memory().spread(run, system)
        base = about.get("memory_base_bytes")
        if found is not None and base is not None:
            served = run.spread(system, "open", "", "memory_server_bytes") is not None
            own = NONE if served else figure(base * measures.MIB)
            rows.append((system, spread_text(found), own))
    if not rows:
        return ""
    words = (
        "The base is the process that loads and asks, with the system's package imported and nothing opened. It is in"
        f" the memory of what is embedded, and in no server's ({NONE}).\n"
    )
    return table(("system", "memory MiB", "of it base MiB"), rows) + "\n" + words


def _long_row(
    run: Run, system: str, workload: str, case: str
) -> tuple[tuple[str, str], dict[str, Spread]] | None:
    found = {
        key: one for key in _KEYS if (one := run.spread(system, workload, case, key)) is not None
    }
    return ((system, case or NONE), found) if found else None


def _number(found: Spread | None, key: str) -> str:
    if found is None:
        return NONE
    if key == "recall":
        return f"{found.median:.4f}"
    scale = _KEYS[key][1]
    return spread_text(
        Spread(found.median * scale, found.low * scale, found.high * scale, found.count)
    )


def _curves(run: Run) -> str:
    rows = []
    for system in run.systems:
        points = run.curve(system, "single", "callers=1")
        rows += [
            (system, figure(one["setting"]), f"{one['recall']:.4f}", figure(one["qps"]))
            for one in points
        ]
    if not rows:
        return ""
    return _folded(
        "The curve: one caller, each setting that was tried",
        table(("system", "setting", "recall", "QPS"), rows),
    )


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n</details>\n"


def _notes(run: Run, workload: str) -> str:
    found: dict[str, None] = {}
    for one in run.samples:
        if one["workload"] == workload and one.get("note"):
            found[f"{one['system']}: {one['note']}"] = None
    return "".join(f"- {_plain(text)}\n" for text in found)


def _systems(run: Run) -> str:
    rows = []
    for system, about in run.systems.items():
        settings = ", ".join(f"{one} {value}" for one, value in about.get("settings", {}).items())
        words = (about.get("version"), about.get("transport"), about.get("durability"), settings)
        rows.append((system, *(_plain(str(one)) if one else NONE for one in words)))
    return table(("system", "version", "reached", "durability", "settings"), rows)


def _missing(run: Run) -> list[str]:
    """What was skipped and what failed, each with its reason."""
    parts = []
    if run.skipped:
        lines = [
            f"- {one['system']}{_of(one.get('workload'))}: {_plain(one['reason'])}"
            for one in run.skipped
        ]
        parts += ["## Skipped\n", "\n".join(lines) + "\n"]
    if run.failed:
        rows = [
            (
                one["system"],
                one["workload"],
                one["case"] or NONE,
                str(one["round"]),
                _plain(one["reason"]),
            )
            for one in run.failed
        ]
        parts += ["## Failed\n", table(("system", "workload", "case", "round", "reason"), rows)]
    return parts


def _of(workload: str | None) -> str:
    return f", {workload}" if workload else ""


def _plain(text: str) -> str:
    """One line that breaks no table."""
    return " ".join(text.split()).replace("|", "\\|")
