"""Single queries while an index is built in the same process, beside the same queries when all is quiet.

The collection is indexed and open in a process of its own, one caller asks all queries over and over. Then 2 %
fresh rows come, which are searched exactly until the next build, so they cost time of their own: quiet is measured
before and after they came. Then a build is started that takes them in, and the caller asks on until it is done.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import clusters
from ..children import Child
from ..peers import engine
from ..sources import Source
from ..worker import BATCH, K
from .plan import Plan
from .tables import count, millis, number, table

_FRESH = 0.02
_LEAST_FRESH = 1_500
_QUIET_S = 4.0


class Asking:
    """Runs in a child."""

    def __init__(self, source: Source, folder: Path, quiet_s: float) -> None:
        self._source = source
        self._quiet_s = quiet_s
        self._system = engine.System(source, folder, create=False, auto_build=False)
        self._queries = self._system.prepare(source.queries)
        self._ask(lambda: False)  # once through, so that everything is there

    def run(self, target: float) -> dict[str, Any]:
        self._target = target
        indexed = self._quiet()
        fresh = self._insert()
        tail = self._quiet()
        done = threading.Event()
        failed: list[BaseException] = []

        def build() -> None:
            try:
                self._system.finish()
            except BaseException as error:
                failed.append(error)
            finally:
                done.set()

        started_s = time.perf_counter()
        thread = threading.Thread(target=build)
        thread.start()
        during = self._ask(lambda: not done.is_set())
        thread.join()
        if failed:
            raise failed[0]
        built_s = time.perf_counter() - started_s
        after = self._quiet()
        return {
            "fresh": fresh,
            "build_s": built_s,
            "quiet": indexed,
            "quiet with fresh rows": tail,
            "during the build": during,
            "quiet after it": after,
        }

    def close(self) -> None:
        self._system.close()

    _target = 0.95

    def _quiet(self) -> dict[str, float]:
        end_s = time.perf_counter() + self._quiet_s
        return self._ask(lambda: time.perf_counter() < end_s)

    def _ask(self, more: Callable[[], bool]) -> dict[str, float]:
        """Asks all queries once, and on while `more()`; milliseconds of the calls."""
        taken_s: list[float] = []
        while not taken_s or more():
            for vector in self._queries:
                begun_s = time.perf_counter()
                self._system.query(vector, K, None, self._target)
                taken_s.append(time.perf_counter() - begun_s)
                if not more() and len(taken_s) > 100:
                    break
        p50_s, p99_s = np.percentile(taken_s, [50, 99])
        return {"calls": len(taken_s), "p50_ms": float(p50_s) * 1e3, "p99_ms": float(p99_s) * 1e3}

    def _insert(self) -> int:
        """Rows near stored ones, under ids that nobody has."""
        rng = np.random.default_rng(time.time_ns())
        rows = max(int(self._source.rows * _FRESH), _LEAST_FRESH)
        unique = f"fresh-{time.time_ns()}"
        for start in range(0, rows, BATCH):
            size = min(BATCH, rows - start)
            at = int(rng.integers(max(self._source.rows - size, 1)))
            part = self._source.part(at, min(at + size, self._source.rows))
            noise = rng.standard_normal(part.vectors.shape, np.float32)
            vectors = part.vectors + noise * np.float32(0.3 / np.sqrt(self._source.dimension))
            self._system.collection.insert(
                [f"{unique}-{start + i}" for i in range(len(part.ids))],
                clusters.unit(vectors),
                metadata=part.metadata,
                documents=part.documents,
            )
        return rows


def run(plan: Plan) -> dict[str, Any]:
    made = plan.served()
    quiet_s = min(_QUIET_S, plan.source.rows / 5_000)
    # The others find the collection as it was.
    folder = made.folder.with_name(made.folder.name + "-growing")
    rounds = []
    for _ in range(plan.rounds if plan.loads > 1 else 2):
        if not folder.exists():
            shutil.copytree(made.folder, folder)
        with Child("bench.index.building:Asking", plan.source, folder, quiet_s) as child:
            rounds.append(child.call("run", 0.95))
            child.call("close")
        plan.say(f"  p99 quiet {rounds[-1]['quiet with fresh rows']['p99_ms']:.2f} ms, during"
                 f" {rounds[-1]['during the build']['p99_ms']:.2f} ms")  # fmt: skip
    phases = [name for name, value in rounds[0].items() if isinstance(value, dict)]
    found: dict[str, Any] = {
        name: {
            what: float(np.median([one[name][what] for one in rounds]))
            for what in ("calls", "p50_ms", "p99_ms")
        }
        for name in phases
    }
    during = found["during the build"]["p99_ms"]
    return {
        "index": f"{made.kind}/{made.quantization}",
        "fresh": rounds[0]["fresh"],
        "build_s": float(np.median([one["build_s"] for one in rounds])),
        "phases": found,
        "p99_to_quiet": during / found["quiet"]["p99_ms"],
        "p99_to_quiet_with_fresh_rows": during / found["quiet with fresh rows"]["p99_ms"],
        "rounds": rounds,
    }


def page(found: dict[str, Any]) -> list[str]:
    rows = [
        (name, count(one["calls"]), millis(one["p50_ms"]), millis(one["p99_ms"]))
        for name, one in found["phases"].items()
    ]
    return [
        f"## Queries during a build\n\n{found['index']}, one caller, single queries, target 0.95;"
        f" {found['fresh']:,} fresh rows taken in by a build of {found['build_s']:.1f} s;"
        f" medians of {len(found['rounds'])} rounds.\n",
        table(("", "calls", "p50", "p99"), rows),
        f"p99 during the build to quiet: {number(found['p99_to_quiet_with_fresh_rows'])} with the same fresh"
        f" rows, {number(found['p99_to_quiet'])} without them.\n",
    ]
