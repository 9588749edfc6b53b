"""What each durability level costs: rows a second by size of batch and number of writers; and group commit.

    python -m bench durability

Each figure is a fresh collection that threads of this process insert into for some seconds, rows of 384
float32 with one field of metadata; no index is built meanwhile. Rounds are interleaved, medians are given.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import json
import os
import shlex
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import vecdb

from .index.tables import table
from .measure import machine

DIMENSION = 384
LEVELS = ("commit", "interval")
BATCHES = (1, 100, 1_000)
WRITERS = (1, 8)
GROUPS = (1, 8, 16, 32, 64)
"""Writers of single rows, with `commit`: how many share one."""
SYNCS = 200


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench durability", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each figure (default 3)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--folder", type=Path, help="whose disk is measured; default: a temporary one"
    )
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        results = {
            "command": shlex.join(["python", "-m", "bench", "durability", *arguments]),
            **measure(Path(folder), args.seconds, args.rounds),
        }
    name = f"{results['date'][:10]}-durability"
    args.results.mkdir(parents=True, exist_ok=True)
    text = page(results)
    (args.results / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    (args.results / f"{name}.md").write_text(text, "utf-8")
    print(text)
    return 0


def measure(folder: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """All figures, in a folder on the disk that is meant."""
    cases = [*itertools.product(LEVELS, BATCHES, WRITERS)]
    cases += [("commit", 1, n) for n in GROUPS if n not in WRITERS]
    found: dict[tuple[str, int, int], list[dict[str, float]]] = {case: [] for case in cases}
    sync_us = [_sync_us(folder)]
    for _ in range(rounds):
        for number, case in enumerate(cases):
            found[case].append(_insert(folder / f"{len(found[case])}-{number}", *case, seconds))
    sync_us.append(_sync_us(folder))
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "sync_us": sync_us,
        "cases": [
            {
                "level": level,
                "batch": batch,
                "writers": writers,
                **{key: median(one[key] for one in each) for key in each[0]},
                "rows_per_s_all": [one["rows_per_s"] for one in each],
            }
            for (level, batch, writers), each in found.items()
        ],
    }


def _sync_us(folder: Path) -> float:
    """Median time of writing 4 KiB and `fdatasync`."""
    taken = []
    file = os.open(folder / "sync", os.O_RDWR | os.O_CREAT)
    try:
        for n in range(SYNCS):
            os.pwrite(file, os.urandom(4_096), (n % 64) * 4_096)
            begun = time.perf_counter()
            os.fdatasync(file)
            taken.append(time.perf_counter() - begun)
    finally:
        os.close(file)
    return median(taken) * 1e6


def _insert(folder: Path, level: str, batch: int, writers: int, seconds: float) -> dict[str, float]:
    """Rows a second, writes that shared a commit, and the 99th percentile of a write in ms."""
    vectors = np.random.default_rng(batch).standard_normal((batch, DIMENSION), dtype=np.float32)
    with vecdb.open(folder, durability=level, auto_build=False) as db:
        docs = db.create_collection("docs", dimension=DIMENSION)
        taken: list[list[float]] = [[] for _ in range(writers)]
        ready = threading.Barrier(writers + 1)

        def write(own: int) -> None:
            ready.wait()
            end = time.perf_counter() + seconds
            while (begun := time.perf_counter()) < end:
                first = len(taken[own]) * batch
                ids = [f"{own}-{n}" for n in range(first, first + batch)]
                docs.insert(ids, vectors, metadata=[{"writer": own}] * batch)
                taken[own].append(time.perf_counter() - begun)

        threads = [threading.Thread(target=write, args=(n,)) for n in range(writers)]
        for thread in threads:
            thread.start()
        ready.wait()
        begun = time.perf_counter()
        for thread in threads:
            thread.join()
        elapsed = time.perf_counter() - begun
        calls = [s for own in taken for s in own]
        assert docs.count() == len(calls) * batch
        return {
            "rows_per_s": len(calls) * batch / elapsed,
            "writes_per_commit": len(calls) / docs.stats().sequence,
            "p99_ms": float(np.percentile(calls, 99)) * 1e3,
        }


def page(results: dict[str, Any]) -> str:
    """The tables for people."""
    host = results["machine"]
    at = {(c["level"], c["batch"], c["writers"]): c for c in results["cases"]}

    def figure(level: str, batch: int, writers: int) -> str:
        one = at[level, batch, writers]
        return f"{one['rows_per_s']:,.0f} (p99 {one['p99_ms']:.1f} ms)"

    price = [
        (
            f"{batch:,}",
            str(writers),
            figure("commit", batch, writers),
            figure("interval", batch, writers),
            f"{at['interval', batch, writers]['rows_per_s'] / at['commit', batch, writers]['rows_per_s']:.2f}",
        )
        for batch, writers in itertools.product(BATCHES, WRITERS)
    ]
    groups = [
        (
            str(writers),
            f"{at['commit', 1, writers]['rows_per_s']:,.0f}",
            f"{at['commit', 1, writers]['writes_per_commit']:.1f}",
            f"{at['commit', 1, writers]['p99_ms']:.1f} ms",
        )
        for writers in GROUPS
    ]
    syncs = " and ".join(f"{us:,.0f}" for us in results["sync_us"])
    return "\n".join(
        [
            f"# Durability levels, {results['date'][:10]}\n",
            f"`{results['command']}`\n",
            f"{host['cpu']}, {host['cores']} cores, {host['system']}, Python {host['python']}, commit {host['commit']}, load at start"
            f" {host['load_at_start']}. Writing 4 KiB and `fdatasync`: {syncs} us before and after (median of {SYNCS}).\n",
            f"Rows of {DIMENSION} float32 a second, inserted by threads of one process; interval 100 ms.\n",
            table(("rows a batch", "writers", "commit", "interval", "interval / commit"), price),
            "\nWriters of single rows that share commits, durability `commit`:\n",
            table(("writers", "rows/s", "writes a commit", "p99 of a write"), groups),
        ]
    )
