"""The command: runs the workload in a child and prints a table of its layers."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..children import Child
from ..index.tables import table
from ..serving import pages
from ..sources import CACHE, prepare
from .layers import BEHIND, LAYERS
from .workloads import WORKLOADS

_IN_CALLS = tuple(dict.fromkeys(name for name, *_ in LAYERS))
_BEHIND = tuple(dict.fromkeys(name for name, *_ in BEHIND))
_REST = "between the calls: the load is made, callers wait for the interpreter"


def main(arguments: Sequence[str]) -> int:
    """Prints the page, and writes it with the numbers where a folder is named; 0."""
    parser = argparse.ArgumentParser(
        prog="python -m bench profile",
        description="Where the time of one workload of vecdb, embedded, goes by layer. Through the server: "
        "python -m bench serving where (queries) and python -m bench serving ingest (loads).",
    )
    add: Any = parser.add_argument
    add("--workload", choices=WORKLOADS, required=True)
    add(
        "--dataset",
        default="wordnet",
        help="wordnet, clusters, or a .npy, HDF5, Parquet or fvecs file",
    )
    add("--rows", type=int, help="at most so many; default: all")
    add("--queries", type=int, default=1_000)
    add("--seed", type=int, default=1)
    add("--callers", type=int, default=1, help="threads that ask; default 1")
    add("--recall", type=float, default=0.95, help="that queries ask for; default 0.95")
    add("--seconds", type=float, default=3.0, help="of each part that asks; default 3")
    add("--functions", type=int, default=0, metavar="N",
        help="also the N functions with the most time of their own, by cProfile, which slows all of them; one caller")  # fmt: skip
    add("--cache", type=Path, default=CACHE, help="folder of data sets")
    add("--work", type=Path, help="folder of the database; default: the system's for such")
    add("--results", type=Path, help="folder for page and numbers; default: they are printed only")
    args = parser.parse_args(arguments)
    source = prepare(args.dataset, args.rows, args.queries, args.seed, args.cache)
    results = pages.begun("profile", *arguments)
    results["dataset"] = source.described()
    results["workload"] = args.workload
    with tempfile.TemporaryDirectory(prefix="vecdb-bench-", dir=args.work) as folder:
        given = (source, Path(folder), args.recall, args.callers, args.seconds)
        with Child("bench.profile.workloads:Profiled", *given, group=True) as child:
            results["parts"] = child.call("run", args.workload, args.functions)
            results["absent"] = child.call("absent")
    text = page(results)
    if args.results is None:
        print(text)
    else:
        pages.save(
            args.results, f"profile-{args.workload}-{source.name}-{source.rows}", results, text
        )
    return 0


def page(results: dict[str, Any]) -> str:
    """Markdown of what `main` has measured."""
    data = results["dataset"]
    parts = [
        f"{data['name']}: {data['rows']:,} rows of {data['dimension']} dimensions; vecdb embedded, without audits of live "
        "queries. Seconds of the calls by layer, all callers together, each without those inside it; the clocks take some 0.5 us a "
        "call. What is done behind takes a core and no caller's time.\n"
    ]
    for one in results["parts"]:
        parts += [_heading(one), _layers(one)]
        if one["functions"]:
            parts.append(f"```\n{one['functions']}\n```\n")
    if results["absent"]:
        parts.append(f"Not timed, because not found: {', '.join(results['absent'])}.\n")
    return pages.page(f"Where the time goes: {results['workload']}", results, parts)


def _heading(one: dict[str, Any]) -> str:
    callers = "" if one["callers"] == 1 else f", {one['callers']} callers"
    took = f"{one['took_s']:.3f} s{callers}, {one['cpu_s']:.3f} s of the processor"
    return f"## {one['part']}\n\n{took}.\n"


def _layers(one: dict[str, Any]) -> str:
    """The layers that took any time, the longest first; then the rest, then what went on behind."""
    taken_s, calls = one["taken_s"], one["calls"]
    whole_s = sum(taken_s[name] for name in _IN_CALLS)
    asked = sorted((name for name in _IN_CALLS if calls[name]), key=lambda name: -taken_s[name])
    rows = [_row(name, taken_s[name], calls[name], whole_s) for name in asked]
    rows.append(_row(_REST, max(one["callers"] * one["took_s"] - whole_s, 0.0), 0, None))
    rows += [_row(name, taken_s[name], calls[name], None) for name in _BEHIND if calls[name]]
    return table(("layer", "s", "share", "calls", "us a call"), rows)


def _row(name: str, taken_s: float, calls: int, whole_s: float | None) -> tuple[str, ...]:
    share = "" if whole_s is None else f"{100 * taken_s / whole_s:.1f} %"
    each = f"{1e6 * taken_s / calls:,.1f}" if calls else ""
    return name, f"{taken_s:.3f}", share, f"{calls:,}" if calls else "", each
