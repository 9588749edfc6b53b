"""How things are measured: recall, rates, percentiles, and on which machine."""

from __future__ import annotations

import math
import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .datasets import ROOT, Dataset, Truth

PACKAGES = (
    "vecdb",
    "faiss-cpu",
    "faiss-gpu",
    "numpy",
    "lmdb",
    "isal",
    "grpcio",
    "protobuf",
    "qdrant-edge-py",
    "zvec",
)
_LOOK_S, _QUIET_LOOKS, _BUSY_SHARE = 0.25, 4, 0.1
"""A process is quiet when it took less than this share of a core in so many looks, one after another."""


@dataclass(frozen=True, slots=True)
class Rate:
    """One round of calls. Times of single calls are in milliseconds."""

    queries_per_s: float
    p50_ms: float
    p99_ms: float


def recall(dataset: Dataset, found: Sequence[Sequence[str]], truth: Truth) -> float:
    """recall@k with ties: an answer counts when its row is no farther than the true k-th one.

    Distances are computed here from the rows that were named, so a system cannot flatter itself; a
    row that is not allowed does not count, and one that is named twice counts once.
    """
    row_of = {record_id: row for row, record_id in enumerate(dataset.ids)}
    hits = 0
    for query, ids in enumerate(found):
        rows = [row_of[record_id] for record_id in dict.fromkeys(ids)]
        distances = 1 - dataset.vectors[rows] @ dataset.queries[query]
        right = (distances <= truth.bounds[query] + 1e-5) & truth.allows(query, rows)
        hits += min(int(right.sum()), int(truth.wanted[query]))
    return hits / max(int(truth.wanted.sum()), 1)


def rate(
    call: Callable[[int], object],
    count: int,
    *,
    callers: int = 1,
    weight: int = 1,
    budget_s: float = math.inf,
) -> Rate:
    """Runs `call(i)` for i in 0..count-1 from `callers` threads; each call is `weight` queries.

    Calls that have not begun after `budget_s` are left out, but for the first.
    """
    taken_s = np.zeros(count)
    numbers = iter(range(count))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            begun_s = time.perf_counter()
            if number is None or (number and begun_s > end_s):
                return
            call(number)
            taken_s[number] = time.perf_counter() - begun_s

    started_s = time.perf_counter()
    end_s = started_s + budget_s
    if callers == 1:
        work()
    else:
        with ThreadPoolExecutor(callers) as pool:
            for done in [pool.submit(work) for _ in range(callers)]:
                done.result()
    elapsed_s = time.perf_counter() - started_s
    taken_s = taken_s[taken_s > 0]
    p50_s, p99_s = np.percentile(taken_s, [50, 99])
    return Rate(len(taken_s) * weight / elapsed_s, float(p50_s) * 1e3, float(p99_s) * 1e3)


def median(rounds: Sequence[Rate]) -> dict[str, float]:
    """The median of each number over the rounds, with the lowest and highest rate seen."""
    columns = {name: [asdict(one)[name] for one in rounds] for name in asdict(rounds[0])}
    middle = {name: statistics.median(values) for name, values in columns.items()}
    low, high = min(columns["queries_per_s"]), max(columns["queries_per_s"])
    return {**middle, "queries_per_s_low": low, "queries_per_s_high": high}


def folder_bytes(folder: Path) -> int:
    """Bytes that a folder takes on disk; a sparse file counts what is written."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def resident_bytes(pid: int | None = None) -> int:
    """Resident memory of a process that is not backed by a file, so without LMDB's map; Linux."""
    status = Path(f"/proc/{pid or os.getpid()}/status")
    if not status.exists():
        return 0
    for line in status.read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def quiet(limit_s: float) -> float:
    """Waits until this process computes nothing behind any more, at most `limit_s`. Seconds it waited."""
    begun_s = time.perf_counter()
    looks = 0
    while looks < _QUIET_LOOKS and time.perf_counter() < begun_s + limit_s:
        used_s = time.process_time()
        time.sleep(_LOOK_S)
        busy = time.process_time() - used_s > _BUSY_SHARE * _LOOK_S
        looks = 0 if busy else looks + 1
    return time.perf_counter() - begun_s


def machine() -> dict[str, Any]:
    """What a reader needs to judge the numbers; nothing that names a host or a person."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": versions,
        "commit": _commit(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "none") + (
        " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    )
