"""`python -m bench backup`: how fast backups are, and what they cost those who read and write meanwhile.

One process fills a collection, waits until all is indexed, and then asks single queries in one thread and
writes one record every 10 ms in another: quiet, while full backups run one after another, and while all but the
last of these are pruned. Until then all are kept: removing one counts as what pruning costs, not as what the next
backup does. The rate of the disk is measured by files of the same size, written and synced like those of a backup.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import vecdb
from vecdb.backup.sink import FILE_BYTES

from . import measure
from .sources import DATASETS, Source, WordNet, prepare

RESULTS = Path(__file__).resolve().parent / "results"
_BATCH = 1_000
_WRITE_PAUSE_S = 0.01


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    folder = args.folder or Path(tempfile.gettempdir()) / "vecdb-bench"
    machine = measure.machine()
    source = prepare(args.dataset, args.rows, 1_000, 1, folder)
    date = dt.datetime.now(dt.UTC)
    with tempfile.TemporaryDirectory(prefix="backup-", dir=folder) as made:
        figures = run(source, Path(made), args.seconds)
    name = f"{date:%Y-%m-%d}-backup-{source.name}-{source.rows}"
    results = {
        "command": shlex.join(["python", "-m", "bench", "backup", *argv]),
        "date": date.isoformat(timespec="seconds"),
        "machine": machine,
        "dataset": {
            "name": source.name,
            "rows": source.rows,
            "dimension": source.dimension,
        },
        **figures,
    }
    text = page(results)
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / f"{name}.json").write_text(
        json.dumps(results, indent=1) + "\n", encoding="utf-8"
    )
    (args.results / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench backup", description=__doc__)
    usual = "wordnet" if WordNet.available() else "clusters"
    parser.add_argument("--dataset", choices=DATASETS, default=usual)
    parser.add_argument("--rows", type=int, help="default: all of WordNet, 1,000,000 in clusters")
    parser.add_argument(
        "--seconds",
        type=float,
        default=15.0,
        help="how long latencies are watched, which takes room for all backups of that time; 0: not at all, "
        "and nothing is indexed",
    )
    parser.add_argument("--folder", type=Path, help="where data sets and databases are made")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser


def run(source: Source, folder: Path, seconds: float) -> dict[str, Any]:
    """All figures. Rates are of the bytes of a backup."""
    target = folder / "backups"
    with vecdb.open(folder / "db", auto_build=seconds > 0) as database:
        docs = database.create_collection("docs", dimension=source.dimension)
        for start in range(0, source.rows, _BATCH):
            part = source.part(start, min(start + _BATCH, source.rows))
            docs.insert(part.ids, part.vectors, metadata=part.metadata, documents=part.documents)
        if seconds:
            docs.build_index()
        while docs.stats().index.building:
            time.sleep(0.2)
        figures: dict[str, Any] = {"disk_mb_s": [], "full_mb_s": [], "unverified_mb_s": []}
        for _ in range(3):
            figures["disk_mb_s"].append(_disk(folder, source.raw_bytes))
            for name, verify in (("full_mb_s", True), ("unverified_mb_s", False)):
                began_s = time.perf_counter()
                info = database.backup(target, kind="full", verify=verify)
                figures[name].append(info.bytes / 1e6 / (time.perf_counter() - began_s))
                shutil.rmtree(target / info.id)
        figures["bytes"] = info.bytes
        if seconds:
            figures |= _beside(database, source, target, seconds)
        database.backup(target, kind="full")
        fresh = source.part(0, source.rows // 100)
        docs.upsert(fresh.ids, fresh.vectors, metadata=fresh.metadata, documents=fresh.documents)
        began_s = time.perf_counter()
        info = database.backup(target)
        figures["increment_s"], figures["increment_bytes"] = (
            time.perf_counter() - began_s,
            info.bytes,
        )
    for name, work in (
        ("verify_s", lambda: vecdb.verify_backups(target)),
        ("restore_s", lambda: vecdb.restore(target, folder / "restored")),
    ):
        began_s = time.perf_counter()
        work()
        figures[name] = time.perf_counter() - began_s
    return figures


def _beside(
    database: vecdb.Database, source: Source, target: Path, seconds: float
) -> dict[str, Any]:
    """Latencies quiet, while full backups run, and while these are pruned; and the rates of the backups."""
    figures: dict[str, Any] = {}
    docs = database.get_collection("docs")
    with _traffic(docs, source) as latencies:
        time.sleep(seconds)
        figures["quiet"] = latencies()
        end_s, rates = time.perf_counter() + seconds, []
        while time.perf_counter() < end_s:
            began_s = time.perf_counter()
            info = database.backup(target, kind="full")
            rates.append(info.bytes / 1e6 / (time.perf_counter() - began_s))
        figures["beside"] = latencies()
        figures["beside_mb_s"] = rates
        began_s = time.perf_counter()
        gone = vecdb.prune_backups(target, keep=1)
        figures["pruned"] = {"backups": len(gone), "took_s": time.perf_counter() - began_s}
        if gone:
            figures["pruning"] = latencies()
    shutil.rmtree(target)
    return figures


def _disk(folder: Path, size: int) -> float:
    """MB/s of files written one after another, each synced."""
    block = os.urandom(FILE_BYTES)
    count = max(1, size // FILE_BYTES)
    began_s = time.perf_counter()
    for number in range(count):
        with (folder / f"raw-{number}").open("wb") as file:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
    took_s = time.perf_counter() - began_s
    for number in range(count):
        (folder / f"raw-{number}").unlink()
    return count * FILE_BYTES / 1e6 / took_s


@contextmanager
def _traffic(docs: vecdb.Collection, source: Source) -> Iterator[Callable[[], dict[str, Any]]]:
    """Queries and writes in two threads; gives a function for the figures since its last call."""
    stop = threading.Event()
    seen: dict[str, list[float]] = {"query": [], "write": []}
    queries = source.queries

    def watched(name: str, work: Callable[[int], object], pause_s: float) -> None:
        number = 0
        while not stop.is_set():
            began_s = time.perf_counter()
            work(number % len(queries))
            seen[name].append(time.perf_counter() - began_s)
            number += 1
            if pause_s:
                time.sleep(pause_s)

    def ask(n: int) -> object:
        return docs.query(queries[n : n + 1], k=10)

    def write(n: int) -> object:
        return docs.upsert([f"written-{n}"], queries[n : n + 1])

    threads = [
        threading.Thread(target=watched, args=("query", ask, 0.0)),
        threading.Thread(target=watched, args=("write", write, _WRITE_PAUSE_S)),
    ]

    def since() -> dict[str, Any]:
        found = {}
        for name in seen:
            times, seen[name] = np.array(seen[name]) * 1e3, []
            p50, p99 = np.percentile(times, [50, 99])
            found[name] = {
                "calls": len(times),
                "p50_ms": float(p50),
                "p99_ms": float(p99),
                "max_ms": float(times.max()),
            }
        return found

    for thread in threads:
        thread.start()
    try:
        time.sleep(1.0)
        since()
        yield since
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def page(results: dict[str, Any]) -> str:
    machine, dataset = results["machine"], results["dataset"]

    def middle(name: str) -> str:
        return f"{float(np.median(results[name])):,.0f} MB/s"

    lines = [
        f"# Backups, measured {results['date'][:10]}\n",
        f"`{results['command']}`\n",
        f"{dataset['name']}: {dataset['rows']:,} rows of {dataset['dimension']} dimensions, "
        f"{results['bytes'] / 1e6:,.0f} MB a full backup.\n",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}, "
        f"Python {machine['python']}; commit {machine['commit']}.\n",
        "| | |\n| --- | ---: |",
        f"| the disk: files of the same size, written and synced | {middle('disk_mb_s')} |",
        f"| full backup, read back | {middle('full_mb_s')} |",
        f"| full backup, not read back | {middle('unverified_mb_s')} |",
        *(
            [f"| full backup beside queries and writes | {middle('beside_mb_s')} |"]
            if "beside" in results
            else []
        ),
        f"| incremental, a hundredth of the rows written again | {results['increment_s']:.2f} s, "
        f"{results['increment_bytes'] / 1e6:,.1f} MB |",
        f"| verify both | {results['verify_s']:.1f} s |",
        f"| restore both | {results['restore_s']:.1f} s |",
    ]
    if "beside" not in results:
        return "\n".join(lines) + "\n"
    lines += [
        "\n| one thread each | calls | p50 | p99 | longest |\n| --- | ---: | ---: | ---: | ---: |",
    ]
    pruned = results["pruned"]
    moments = {
        "quiet": "quiet",
        "beside": "while backups run",
        "pruning": f"while {pruned['backups']} of them are pruned, {pruned['took_s']:.1f} s",
    }
    for name in ("query", "write"):
        for when in (one for one in moments if one in results):
            one = results[when][name]
            lines.append(
                f"| {name}, {moments[when]} | {one['calls']:,} | {one['p50_ms']:.2f} ms | {one['p99_ms']:.2f} ms | "
                f"{one['max_ms']:.1f} ms |"
            )
    return "\n".join(lines) + "\n"
