"""Single queries while an index is built in the same process, beside the same queries when all is quiet.

A build that takes fresh rows in: the collection is indexed and open in a process of its own, one caller asks all queries
over and over. Then 2 % fresh rows come, which are searched exactly until the next build, so they cost time of
their own: quiet is measured before and after they came. Then a build is started, and the caller asks on until it is done.

The first build: all rows are there, durable and in no index, so that every one is compared, and that is what quiet is. The
caller asks on until a build has reached the target, and again when all is quiet. Where lists serve then that are yet to be
compared with a graph, the build of that one is started, as the engine does by itself where it builds by itself, and the caller asks
while it goes on, for a minute at most. Whether one was tried is on the page.
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
_FEWEST_CALLS = 200
"""p99 of fewer is the slowest or second of them."""
_TRIED_S = 60.0
_LOOK_S = 0.02
_WARM_S = 20.0
_STEADY = 1.2
"""Queries are warm when p99 of a pass over all is no more below that of the pass before."""


class Asking:
    """Runs in a child."""

    def __init__(self, source: Source, folder: Path, quiet_s: float) -> None:
        self._source = source
        self._quiet_s = quiet_s
        self._system = engine.System(source, folder, create=False, auto_build=False)
        self._queries = self._system.prepare(source.queries)
        self._warm()

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

    def _warm(self) -> None:
        """Asks until the pages are there that these queries need: a collection just opened reads them one by one."""
        end_s = time.perf_counter() + _WARM_S
        all_of_them = max(len(self._queries), _FEWEST_CALLS)
        before_ms = self._ask(lambda: False, all_of_them)["p99_ms"]
        while time.perf_counter() < end_s:
            now_ms = self._ask(lambda: False, all_of_them)["p99_ms"]
            if now_ms * _STEADY >= before_ms:
                return
            before_ms = now_ms

    def _quiet(self) -> dict[str, float]:
        end_s = time.perf_counter() + self._quiet_s
        return self._ask(lambda: time.perf_counter() < end_s)

    def _ask(self, more: Callable[[], bool], least: int = _FEWEST_CALLS) -> dict[str, float]:
        """Asks the queries in turn, `least` at least, and on while `more()`; milliseconds of the calls."""
        taken_s: list[float] = []
        while len(taken_s) < least or more():
            for vector in self._queries:
                begun_s = time.perf_counter()
                self._system.query(vector, K, None, self._target)
                taken_s.append(time.perf_counter() - begun_s)
                if len(taken_s) >= least and not more():
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


class First(Asking):
    """Runs in a child."""

    def __init__(self, source: Source, folder: Path, quiet_s: float) -> None:
        self._source = source
        self._quiet_s = quiet_s
        self._system = engine.System(source, folder, create=True, auto_build=False)
        self._queries = self._system.prepare(source.queries)
        for start in range(0, source.rows, BATCH):
            self._system.insert(start, source.part(start, min(start + BATCH, source.rows)))

    def run(self, target: float) -> dict[str, Any]:
        self._target = target
        found: dict[str, Any] = {"before any index": self._quiet()}
        started_s = time.perf_counter()
        self._system.collection.build_index(wait=False)
        found["during the first build"] = self._ask(lambda: not self._serves() and self._builds())
        if not self._serves():
            self._system.finish()  # Raises what the build has failed with.
        found["served_s"] = time.perf_counter() - started_s
        self._wait()
        self._warm()
        found["quiet with the index"] = self._quiet()
        index = self._system.stats().index
        found["index"] = f"{index.kind}/{index.quantization}"
        if self._unfinished():
            found["while a graph is tried"] = self._tried()
        return found

    def _tried(self) -> dict[str, float]:
        collection = self._system.collection
        collection.build_index(wait=False)
        end_s = time.perf_counter() + _TRIED_S
        seen = self._ask(lambda: time.perf_counter() < end_s and self._builds())
        stopped = collection.cancel_build()
        self._wait()
        if self._unfinished() and not stopped:
            raise RuntimeError(f"no graph was tried: {self._system.stats().index.last_error}")
        return seen

    def _wait(self) -> None:
        while self._builds():
            time.sleep(_LOOK_S)

    def _unfinished(self) -> bool:
        """Whether lists serve that are yet to be compared with a graph."""
        return bool(self._system.collection._core.all_fields[0].index.unfinished())

    def _serves(self) -> bool:
        return bool(self._system.stats().index.indexed_rows >= self._source.rows)

    def _builds(self) -> bool:
        return bool(self._system.stats().index.building)


def run(plan: Plan) -> dict[str, Any]:
    found = _taken_in(plan)
    found["first"] = _first(plan)
    return found


def _first(plan: Plan) -> dict[str, Any]:
    rounds = []
    folder = plan.folder / "first-build"
    for _ in range(plan.loads):
        with Child("bench.index.building:First", plan.source, folder, _QUIET_S) as child:
            rounds.append(child.call("run", 0.95))
            child.call("close")
        shutil.rmtree(folder)
        plan.say(f"  p99 before any index {rounds[-1]['before any index']['p99_ms']:.2f} ms, during the"
                 f" first build {rounds[-1]['during the first build']['p99_ms']:.2f} ms")  # fmt: skip
    phases = _medians(rounds)
    found = {
        "index": rounds[0]["index"],
        "served_s": float(np.median([one["served_s"] for one in rounds])),
        "phases": phases,
        "p99_to_quiet": phases["during the first build"]["p99_ms"]
        / phases["before any index"]["p99_ms"],
        "rounds": rounds,
    }
    if "while a graph is tried" in phases:
        found["p99_tried_to_quiet"] = (
            phases["while a graph is tried"]["p99_ms"] / phases["quiet with the index"]["p99_ms"]
        )
    return found


def _medians(rounds: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    phases = [name for name, value in rounds[0].items() if isinstance(value, dict)]
    return {
        name: {
            what: float(np.median([one[name][what] for one in rounds if name in one]))
            for what in ("calls", "p50_ms", "p99_ms")
        }
        for name in phases
    }


def _taken_in(plan: Plan) -> dict[str, Any]:
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
    found = _medians(rounds)
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
    first = found["first"]
    tried = " No graph was tried behind: what serves then is what stays."
    if "p99_tried_to_quiet" in first:
        tried = (
            f" While a graph is tried behind these lists, {number(first['p99_tried_to_quiet'])} times that of the lists"
            " when nothing is built."
        )
    return [
        f"## Queries during a build\n\n{found['index']}, one caller, single queries, target 0.95;"
        f" {found['fresh']:,} fresh rows taken in by a build of {found['build_s']:.1f} s;"
        f" medians of {len(found['rounds'])} rounds.\n",
        _table(found["phases"]),
        f"p99 during the build to quiet: {number(found['p99_to_quiet_with_fresh_rows'])} with the same fresh"
        f" rows, {number(found['p99_to_quiet'])} without them.\n",
        f"The first build, before which every row is compared ({first['index']} after {first['served_s']:.1f} s;"
        f" medians of {len(first['rounds'])} round(s)):\n",
        _table(first["phases"]),
        f"p99 during the first build to quiet: {number(first['p99_to_quiet'])}.{tried}\n",
    ]


def _table(phases: dict[str, dict[str, float]]) -> str:
    rows = [
        (name, count(one["calls"]), millis(one["p50_ms"]), millis(one["p99_ms"]))
        for name, one in phases.items()
    ]
    return table(("", "calls", "p50", "p99"), rows)
