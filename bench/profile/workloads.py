"""The workloads as they are profiled: in a child, by the verbs of `bench run`, with the clocks in the engine."""

from __future__ import annotations

import cProfile
import io
import pstats
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..run.asking import Case
from ..run.host import Host
from ..run.mixture import Mix
from ..run.plan import K
from ..run.writes import tenants_of
from ..sources import Source
from ..stages import Stages
from .layers import BEHIND, LAYERS

WORKLOADS = (
    "load",
    "index",
    "load_query",
    "single",
    "batch",
    "filter",
    "open",
    "update",
    "rag",
    "many",
)
"""Growth is loads and single queries at several sizes: `--rows`."""
_LONG_S = 86_400.0
_MANY_ROWS = 1_000

Parts = list[dict[str, Any]]


class Profiled:
    """Runs in a child: one database, and what each part of a workload took by layer."""

    def __init__(
        self, source: Source, folder: Path, recall: float, callers: int, seconds: float
    ) -> None:
        self._source, self._folder = source, folder
        self._recall, self._callers, self._seconds = recall, callers, seconds
        self._host = Host(source, "bench.peers.engine", {})
        self._host.describe()
        self._stages = Stages((*LAYERS, *BEHIND))
        self._functions = 0
        self._parts: Parts = []

    def run(self, workload: str, functions: int) -> Parts:
        """Figures of each part; `functions`: so many of those with the most time of their own, for one caller."""
        self._functions = functions
        play: Callable[[], None] = getattr(self, f"_{workload}")
        fresh = workload in ("load", "load_query", "many")
        self._host.open(self._folder / "data", True)
        if not fresh:
            self._host.load(0, self._source.rows, _LONG_S)
            if workload != "index":
                self._host.ready()
                self._settled()
        play()
        self._host.close()
        return self._parts

    def absent(self) -> list[str]:
        """Functions that were to be timed and were not found."""
        return self._stages.absent

    @contextmanager
    def _part(self, name: str, callers: int = 1) -> Iterator[None]:
        profile = cProfile.Profile() if self._functions and callers == 1 else None
        self._stages.reset()
        begun_s, used_s = time.perf_counter(), time.process_time()
        if profile is not None:
            profile.enable()
        try:
            yield
        finally:
            if profile is not None:
                profile.disable()
        took_s = time.perf_counter() - begun_s
        self._parts.append(
            {
                "part": name,
                "callers": callers,
                "took_s": took_s,
                "cpu_s": time.process_time() - used_s,
                "taken_s": self._stages.taken_s,
                "calls": self._stages.calls,
                "functions": "" if profile is None else _most(profile, self._functions),
            }
        )

    def _settled(self) -> None:
        """Fills caches, and lets what is done behind end: neither is what is asked about."""
        self._host.settle(self._recall)

    def _case(self, **more: Any) -> Case:
        return Case(self._recall, budget_s=self._seconds, least=20, **more)

    def _load(self) -> None:
        with self._part("load"):
            self._host.load(0, self._source.rows, _LONG_S)

    def _index(self) -> None:
        with self._part("until all is indexed"):
            self._host.ready()

    def _load_query(self) -> None:
        with self._part("load, and one caller who asks", 2):
            self._host.load_and_ask(self._recall, _LONG_S)

    def _single(self) -> None:
        with self._part("single queries", self._callers):
            self._host.ask(self._case(callers=self._callers))

    def _batch(self) -> None:
        with self._part("batches of 100"):
            self._host.ask(self._case(batched=True))

    def _filter(self) -> None:
        for condition in self._source.conditions():
            case = self._case(condition=condition, callers=self._callers)
            self._host.ask(case)  # makes what is kept for a filter that is asked often
            with self._part(f"filter {self._source.case(condition)}", self._callers):
                self._host.ask(case)

    def _open(self) -> None:
        self._host.close()
        with self._part("open, to the first answer"):
            self._host.reopen(self._folder / "data", self._recall)

    def _update(self) -> None:
        count = max(self._source.rows // 10, 1)
        with self._part("upsert a tenth"):
            self._host.upsert(list(range(count)), _LONG_S)
        with self._part("delete a tenth"):
            self._host.delete(list(range(count, 2 * count)), _LONG_S)
        with self._part("single queries after it", self._callers):
            self._host.ask(self._case(callers=self._callers))

    def _rag(self) -> None:
        tenants = tenants_of(self._source)
        with self._part("mix of queries and writes", self._callers):
            self._host.mix(Mix(self._recall, {}, tenants), self._callers, self._seconds)

    def _many(self) -> None:
        rows = min(_MANY_ROWS, self._source.rows)
        with self._part(f"collections of {rows} rows, then queries to them (k = {K})"):
            self._host.many(_MANY_ROWS, rows, self._seconds)


def _most(profile: cProfile.Profile, count: int) -> str:
    said = io.StringIO()
    pstats.Stats(profile, stream=said).strip_dirs().sort_stats("tottime").print_stats(count)
    return said.getvalue().strip()
