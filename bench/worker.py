"""What runs in a child: systems opened side by side, filled, asked and timed there."""

from __future__ import annotations

import gc
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import measure, peers
from .sources import Condition, Source

K = 10
BATCH = 1_000
QUERY_BATCH = 100


@dataclass(frozen=True, slots=True)
class Case:
    """How a system is asked: at which setting, under which filter, in which shape."""

    setting: float
    condition: Condition | None = None
    batched: bool = False
    callers: int = 1
    queries: int = 1_000_000
    """At most so many of the set's queries."""
    budget_s: float = 1.5


class Worker:
    """Systems by name, over one data set. Times are taken here, beside the system."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._systems: dict[str, Any] = {}
        self._prepared: dict[str, Any] = {}

    def load(self, module: str) -> None:
        """Imports an adapter and reads a first slice, so that the bare process can be weighed."""
        peers.load(module)
        self._source.part(0, BATCH)

    def open(
        self, name: str, module: str, folder: Path, create: bool, options: dict[str, Any]
    ) -> float:
        """Seconds it took."""
        made = peers.load(module)
        started_s = time.perf_counter()
        self._systems[name] = made(self._source, folder, create=create, **options)
        return time.perf_counter() - started_s

    def fill(self, name: str, batch: int = BATCH) -> dict[str, float]:
        """Inserts everything; `insert_s` without the making of the batches, `wall_s` with it."""
        system, rows = self._systems[name], self._source.rows
        batches_s = []
        started_s = time.perf_counter()
        for start in range(0, rows, batch):
            part = self._source.part(start, min(start + batch, rows))
            begun_s = time.perf_counter()
            system.insert(start, part)
            batches_s.append(time.perf_counter() - begun_s)
        return {"insert_s": sum(batches_s), "wall_s": time.perf_counter() - started_s}

    def delete(self, name: str, rows: NDArray[np.int64]) -> None:
        """Deletes these rows, a batch at a time."""
        ids: list[str] = []
        for start in range(0, self._source.rows, BATCH):
            ids += self._source.records(start, min(start + BATCH, self._source.rows))[0]
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH].tolist()
            self._systems[name].delete(some, [ids[row] for row in some])

    def ready(self, name: str) -> float:
        """Seconds until all rows were indexed."""
        started_s = time.perf_counter()
        self._systems[name].ready()
        return time.perf_counter() - started_s

    def finish(self, name: str) -> float:
        """Seconds until vecdb had nothing left to build."""
        started_s = time.perf_counter()
        self._systems[name].finish()
        return time.perf_counter() - started_s

    def save(self, name: str) -> None:
        self._systems[name].save()

    def settings(self, name: str) -> list[float]:
        return list(self._systems[name].settings)

    def stats(self, name: str) -> dict[str, Any]:
        """Numbers of vecdb's index."""
        found: dict[str, Any] = asdict(self._systems[name].stats().index)
        return found

    def explained(self, name: str, setting: float) -> dict[str, Any]:
        found: dict[str, Any] = self._systems[name].explained(self._source.queries[:1], K, setting)
        return found

    def warm(self, name: str, condition: Condition, calls: int, limit_s: float) -> float:
        """Asks `calls` queries with a filter, then waits until the process is quiet, at most `limit_s`.

        So caches are filled, and what a system makes in the background for a filter that is asked
        often is there. Seconds it waited.
        """
        system, queries = self._systems[name], self._native(name)
        where, setting = system.where(condition), system.settings[len(system.settings) // 2]
        for i in range(calls):
            system.query(queries[i % len(queries)], K, where, setting)
        return self.quiet(limit_s)

    def quiet(self, limit_s: float) -> float:
        """Waits until nothing is computed behind any more, at most `limit_s`. Seconds it waited."""
        return measure.quiet(limit_s)

    def answers(self, name: str, case: Case) -> NDArray[np.int64]:
        """(q, k) rows that the system finds, -1 where it finds fewer."""
        system = self._systems[name]
        queries = self._source.queries[: case.queries]
        if case.batched:
            parts = [queries[i : i + QUERY_BATCH] for i in range(0, len(queries), QUERY_BATCH)]
            found = [ids for part in parts for ids in system.batch(part, K, case.setting)]
        else:
            where = None if case.condition is None else system.where(case.condition)
            found = [
                system.query(one, K, where, case.setting)[0]
                for one in self._native(name)[: len(queries)]
            ]
        rows = np.full((len(found), K), -1, np.int64)
        for line, ids in zip(rows, found, strict=True):
            numbers = system.rows(ids)
            line[: len(numbers)] = numbers
        return rows

    def rate(self, name: str, case: Case) -> measure.Rate:
        system = self._systems[name]
        setting = case.setting
        if case.batched:
            queries = self._source.queries[: case.queries]
            count = max(len(queries) // QUERY_BATCH, 1)
            return measure.rate(
                lambda i: system.batch(
                    queries[i * QUERY_BATCH : (i + 1) * QUERY_BATCH], K, setting
                ),
                count,
                callers=case.callers,
                weight=min(QUERY_BATCH, len(queries)),
                budget_s=case.budget_s,
            )
        native = self._native(name)
        where = None if case.condition is None else system.where(case.condition)
        return measure.rate(
            lambda i: system.query(native[i], K, where, setting),
            min(len(native), case.queries),
            callers=case.callers,
            budget_s=case.budget_s,
        )

    def first(self, name: str) -> tuple[float, NDArray[np.int64]]:
        """Seconds of one query, without preparing it, and the rows it finds."""
        system, vector = self._systems[name], self._source.queries[:1]
        started_s = time.perf_counter()
        ids = system.query(vector, K, None, 0.95)[0]
        taken_s = time.perf_counter() - started_s
        return taken_s, np.array([system.rows(ids)], np.int64)

    def settle(self) -> None:
        gc.collect()

    def close(self, name: str) -> None:
        self._systems.pop(name).close()
        self._prepared.pop(name, None)

    def _native(self, name: str) -> Any:
        if name not in self._prepared:
            self._prepared[name] = self._systems[name].prepare(self._source.queries)
        return self._prepared[name]
