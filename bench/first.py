"""The first measurement: insert, index, query, filter, reopen; embedded, over gRPC and raw FAISS.

All systems take the same rows in the same process and hour, in interleaved rounds: each round runs
every case of every system once, so that a slow minute of the machine hits all alike. Numbers are
medians over the rounds.
"""

from __future__ import annotations

import argparse
import datetime as dt
import shlex
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import datasets, measure, report, systems
from .datasets import Dataset
from .systems import System

BATCH = 1_000
QUERY_BATCH = 100
CALLERS = 8
K = 10
RESULTS = Path(__file__).resolve().parent / "results"

Case = Callable[[System], measure.Rate]


def say(text: str) -> None:
    print(text, flush=True)


def fill(system: System, dataset: Dataset) -> dict[str, float]:
    """Inserts everything in batches of 1,000 and waits for the index."""
    rows = len(dataset.ids)
    started_s = time.perf_counter()
    for start in range(0, rows, BATCH):
        system.insert(dataset, start, min(start + BATCH, rows))
    inserted_s = time.perf_counter() - started_s
    system.ready()
    ready_s = time.perf_counter() - started_s
    return {"insert_rows_per_s": rows / inserted_s, "insert_s": inserted_s, "ready_s": ready_s}


def fill_rounds(
    dataset: Dataset, folder: Path, rounds: int
) -> tuple[dict[str, dict[str, float]], list[System]]:
    """Medians of `fill` for each system, and the systems of the last round, still open."""
    dimension = dataset.vectors.shape[1]
    makers: list[Callable[[Path], System]] = [
        lambda path: systems.Embedded(path / "embedded", dimension),
        lambda path: systems.Served(path / "served", dimension),
        lambda _: systems.faiss_flat(dataset),
        lambda _: systems.faiss_hnsw(dataset),
    ]
    seen: dict[str, list[dict[str, float]]] = {}
    kept: list[System] = []
    for number in range(rounds):
        for make in makers:
            path = folder / f"round-{number}"
            path.mkdir(exist_ok=True)
            system = make(path)
            result = fill(system, dataset)
            seen.setdefault(system.name, []).append(result)
            say(f"  round {number + 1}: {system.name}: {result['insert_rows_per_s']:,.0f} rows/s,"
                f" ready after {result['ready_s']:.1f} s")  # fmt: skip
            if number == rounds - 1:
                kept.append(system)
            else:
                system.close()
    medians = {
        name: {key: statistics.median(one[key] for one in results) for key in results[0]}
        for name, results in seen.items()
    }
    return medians, kept


def plain_cases(dataset: Dataset) -> dict[str, Case]:
    """Queries without a filter: one caller, batches, eight callers."""
    queries = dataset.queries
    count = len(queries)

    def single(system: System) -> measure.Rate:
        return measure.rate(lambda i: system.query(queries[i : i + 1], K), count)

    def batch(system: System) -> measure.Rate:
        def call(i: int) -> object:
            return system.query(queries[i * QUERY_BATCH : (i + 1) * QUERY_BATCH], K)

        return measure.rate(call, max(count // QUERY_BATCH, 1), weight=min(count, QUERY_BATCH))

    def callers(system: System) -> measure.Rate:
        return measure.rate(lambda i: system.query(queries[i : i + 1], K), count, callers=CALLERS)

    return {
        "single, 1 caller": single,
        f"batch of {QUERY_BATCH}, 1 caller": batch,
        f"single, {CALLERS} callers": callers,
    }


def filters(dataset: Dataset, seed: int) -> dict[str, tuple[list[Any], NDArray[np.bool_]]]:
    """Name to one filter a query and the rows it allows: one row of flags, or one a query."""
    pos = np.array([row["pos"] for row in dataset.metadata])
    category = np.array([row["category"] for row in dataset.metadata])
    count = len(dataset.queries)
    names, sizes = np.unique(category, return_counts=True)
    rare = names[np.argsort(sizes)[len(names) // 4]]
    rng = np.random.default_rng(seed)
    pairs = [rng.choice(names, 2, replace=False).tolist() for _ in range(count)]
    own = np.array([np.isin(category, pair) for pair in pairs])
    return {
        "filter pos = noun": ([{"pos": "noun"}] * count, pos == "noun"),
        "filter of one rare category": ([{"category": str(rare)}] * count, category == rare),
        "another filter each, 2 categories": ([{"category": {"$in": pair}} for pair in pairs], own),
    }


def filter_case(dataset: Dataset, wheres: Sequence[Any]) -> Case:
    def case(system: System) -> measure.Rate:
        return measure.rate(
            lambda i: system.query(dataset.queries[i : i + 1], K, wheres[i]), len(wheres)
        )

    return case


def found_with(system: System, dataset: Dataset, wheres: Sequence[Any]) -> list[list[str]]:
    return [system.query(dataset.queries[i : i + 1], K, where)[0] for i, where in enumerate(wheres)]


def query_rounds(
    dataset: Dataset, opened: Sequence[System], rounds: int, seed: int, target: float
) -> dict[str, dict[str, dict[str, Any]]]:
    """Case to system to its numbers, recall included."""
    truth = dataset.truth(K)
    cases: dict[str, tuple[Case, bool]] = {
        name: (case, False) for name, case in plain_cases(dataset).items()
    }
    recalls: dict[tuple[str, str], float] = {}
    notes: dict[tuple[str, str], Any] = {}
    for system in opened:
        if isinstance(system, systems.RawFaiss) and "HNSW" in system.name:
            ef = systems.tune_hnsw(system, dataset, truth, K, target)
            notes.update({(name, system.name): {"efSearch": ef} for name in cases})
        found = system.query(dataset.queries, K)
        one_by_one = found_with(system, dataset, [None] * len(dataset.queries))
        for name in cases:
            answers = found if name.startswith("batch") else one_by_one
            recalls[name, system.name] = measure.recall(dataset, answers, truth)
    cases["with metadata and document, 1 caller"] = (_fetching(dataset), True)
    for name, (wheres, allowed) in filters(dataset, seed).items():
        cases[name] = (filter_case(dataset, wheres), True)
        filtered = dataset.truth(K, allowed)
        for system in opened:
            if not isinstance(system, systems.RawFaiss):
                answers = found_with(system, dataset, wheres)
                recalls[name, system.name] = measure.recall(dataset, answers, filtered)
                notes[name, system.name] = {"allowed": float(allowed.mean())}
    seen: dict[tuple[str, str], list[measure.Rate]] = {}
    for number in range(rounds):
        say(f"  round {number + 1} of {rounds}")
        for name, (case, only_vecdb) in cases.items():
            for system in opened:
                if not (only_vecdb and isinstance(system, systems.RawFaiss)):
                    seen.setdefault((name, system.name), []).append(case(system))
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for (name, system_name), rates in seen.items():
        table.setdefault(name, {})[system_name] = {
            **measure.median(rates),
            "recall": recalls.get((name, system_name)),
            **notes.get((name, system_name), {}),
        }
    return table


def _fetching(dataset: Dataset) -> Case:
    def case(system: System) -> measure.Rate:
        include = ("metadata", "document")
        return measure.rate(
            lambda i: system.query(dataset.queries[i : i + 1], K, None, include),
            len(dataset.queries),
        )

    return case


def sizes(dataset: Dataset, opened: Sequence[System]) -> dict[str, dict[str, float]]:
    """Disk and memory of each vecdb that is open."""
    raw = dataset.vectors.nbytes
    found: dict[str, dict[str, float]] = {}
    for system in opened:
        if isinstance(system, systems.Embedded | systems.Served):
            stats = system.stats()
            disk = measure.folder_bytes(system.folder)
            found[system.name] = {
                "disk_bytes": disk,
                "disk_to_raw": disk / raw,
                "index_memory_bytes": stats.index.memory_bytes,
                "index_file_bytes": stats.index.file_bytes,
                "indexed_rows": stats.index.indexed_rows,
            }
            if isinstance(system, systems.Served):
                found[system.name]["process_memory_bytes"] = system.memory_bytes()
    return found


def run(args: argparse.Namespace, command: str) -> dict[str, Any]:
    machine = measure.machine()
    dataset = datasets.load(args.rows, args.queries, args.seed)
    rows, dimension = dataset.vectors.shape
    say(f"{dataset.name}: {rows:,} rows, {dimension} dimensions, {len(dataset.queries)} queries")
    with tempfile.TemporaryDirectory(prefix="vecdb-bench-", dir=args.folder) as name:
        folder = Path(name)
        say("insert, and wait for the index")
        inserts, opened = fill_rounds(dataset, folder, args.rounds)
        say("query")
        queries = query_rounds(dataset, opened, args.rounds, args.seed, args.target_recall)
        space = sizes(dataset, opened)
        for system in opened:
            system.close()
        path = folder / f"round-{args.rounds - 1}" / "embedded"
        reopened = [systems.reopened_in_s(path, dataset, K) for _ in range(args.rounds)]
    return {
        "command": command,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "dataset": {
            "name": dataset.name,
            "rows": rows,
            "dimension": dimension,
            "queries": len(dataset.queries),
            "seed": args.seed,
            "raw_bytes": dataset.vectors.nbytes,
        },
        "rounds": args.rounds,
        "target_recall": args.target_recall,
        "k": K,
        "insert": inserts,
        "query": queries,
        "space": space,
        "reopen": {
            "open_s": statistics.median(one[0] for one in reopened),
            "first_answer_s": statistics.median(one[1] for one in reopened),
        },
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench first", description=__doc__)
    parser.add_argument("--rows", type=int, help="rows to take; default: all of the set")
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target-recall", type=float, default=0.95)
    parser.add_argument(
        "--folder", type=Path, help="where databases are made; default: the system's"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    results = run(args, shlex.join(["python", "-m", "bench", "first", *argv]))
    name = f"{results['date'][:10]}-first"
    text = report.write(args.results, name, results)
    say(f"\n{text}\nwritten to {args.results / name}.json and .md")
    return 0
