"""The command line of `python -m bench index`: parts, results, the page."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import shlex
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import measure
from ..clusters import DIMENSION
from ..sources import DATASETS, WordNet, prepare
from . import (
    beside,
    building,
    codes,
    dead,
    filters,
    indexed,
    insert,
    kinds,
    memory,
    selective,
    space,
    speed,
)
from .plan import Plan

RESULTS = Path(__file__).resolve().parent.parent / "results"

Run = Callable[[Plan], dict[str, Any]]
Page = Callable[[dict[str, Any]], list[str]]

PARTS: dict[str, tuple[Run, Page]] = {
    "insert": (insert.run, insert.page),
    "indexed": (indexed.run, indexed.page),
    "memory": (memory.run, memory.page),
    "speed": (speed.run, speed.page),
    "kinds": (kinds.run, kinds.page),
    "codes": (codes.run, codes.page),
    "filters": (filters.run, filters.page),
    "selective": (selective.run, selective.page),
    "open": (space.run_open, space.page_open),
    "disk": (space.run_disk, space.page_disk),
    "building": (building.run, building.page),
    "peers": (beside.run, beside.page),
    "dead": (dead.run, dead.page),
}
"""In the order they run and stand on the page."""
_REAL = ("codes", "peers")
_ASKED_FOR = ("dead",)
"""Only where named: many builds."""


def say(text: str) -> None:
    print(text, flush=True)


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    # Peers and codes are compared on real embeddings.
    left_out = _ASKED_FOR if args.dataset == "wordnet" else (*_REAL, *_ASKED_FOR)
    usual = [part for part in PARTS if part not in left_out]
    parts = args.only or usual
    folder = args.folder or Path(tempfile.gettempdir()) / "vecdb-bench"
    machine = measure.machine()
    source = prepare(args.dataset, args.rows, args.queries, args.seed, folder, args.dimension)
    say(f"{source.name}: {source.rows:,} rows, {source.dimension} dimensions,"
        f" {len(source.queries)} queries")  # fmt: skip
    date = dt.datetime.now(dt.UTC)
    size = [] if args.rows is None else [str(source.rows)]
    if args.dimension != DIMENSION:
        size.append(f"d{args.dimension}")
    name = "-".join([f"{date:%Y-%m-%d}", "index", args.dataset, *size, *(args.only or ())])
    results: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "bench", "index", *argv]),
        "date": date.isoformat(timespec="seconds"),
        "machine": machine,
        "dataset": {
            "name": source.name,
            "rows": source.rows,
            "dimension": source.dimension,
            "queries": len(source.queries),
            "seed": args.seed,
            "raw_bytes": source.raw_bytes,
        },
        "rounds": args.rounds,
        "k": 10,
        "parts": {},
        "failed": {},
        "part_s": {},
    }
    with tempfile.TemporaryDirectory(prefix="run-", dir=folder) as run_folder:
        plan = Plan(
            source, Path(run_folder), args.results, name, args.rounds, say, args.take_memory
        )
        for part in parts:
            say(f"{part}")
            started_s = time.perf_counter()
            try:
                results["parts"][part] = PARTS[part][0](plan)
            except Exception as error:  # the other parts are worth having
                results["failed"][part] = f"{type(error).__name__}: {error}"
                say(traceback.format_exc())
            results["part_s"][part] = round(time.perf_counter() - started_s, 1)
            # After every part: a long run that breaks off leaves what it has.
            text = write(args.results, name, results)
    say(f"\n{text}\nwritten to {args.results / name}.json and .md")
    return 1 if results["failed"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench index", description=__doc__)
    usual = "wordnet" if WordNet.available() else "clusters"
    parser.add_argument("--dataset", choices=DATASETS, default=usual)
    parser.add_argument(
        "--rows", type=int, help="rows to take; default: all of WordNet, 1,000,000 in clusters"
    )
    parser.add_argument("--dimension", type=int, default=DIMENSION, help="of clusters")
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", choices=tuple(PARTS), action="append", help="this part; may be given again"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="where data sets are kept and databases made; default: below the system's own",
    )
    parser.add_argument(
        "--take-memory",
        action="store_true",
        help="have cached pages hold all memory before inserts: for a virtual machine that gets its memory"
        " late; see bench/host_memory.py",
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser


def write(folder: Path, name: str, results: dict[str, Any]) -> str:
    """Writes <name>.json and <name>.md into `folder`; the text of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    text = page(results)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return text


def page(results: dict[str, Any]) -> str:
    machine, dataset = results["machine"], results["dataset"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    origin = ""
    if dataset["name"].startswith("clusters"):
        origin = f" made by `bench/clusters.py` with seed {dataset['seed']} (a Gaussian mixture on the sphere),"
    parts = [
        f"# The index, measured {results['date'][:10]}\n",
        f"`{results['command']}`\n",
        f"{dataset['name']}: {dataset['rows']:,} rows of {dataset['dimension']} dimensions,{origin}"
        f" {dataset['queries']:,} held-out queries, k = {results['k']}, cosine; medians of"
        f" {results['rounds']} interleaved rounds, lowest and highest in brackets.\n",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB,"
        f" {machine['system']}, Python {machine['python']}; {versions}; commit {machine['commit']};"
        f" load at start {machine['load_at_start']}.\n",
    ]
    for part, (_, show) in PARTS.items():
        if part in results["parts"]:
            parts += show(results["parts"][part])
        if part in results["failed"]:
            parts.append(f"## {part}\n\nFailed: {results['failed'][part].splitlines()[-1]}\n")
    return "\n".join(parts)
