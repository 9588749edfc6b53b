"""What runs in a child: one system over one data set, opened, filled, asked and changed there.

The load is made here. An embedded system shares the process with it, a server has one of its own.
"""

from __future__ import annotations

import gc
import importlib
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..peers.base import Unsupported
from ..sources import Source
from . import asking, mixture
from .asking import BATCH, Case
from .changes import renewed
from .plan import K

_SETTLING, _SETTLING_S = 200, 1.0


class Host:
    """`module` has the adapter's class `System`, which is opened with `options`."""

    def __init__(self, source: Source, module: str, options: dict[str, Any]) -> None:
        self._source, self._module, self._options = source, module, options
        self._system: Any = None
        self._natives: Any = None

    def describe(self) -> dict[str, Any]:
        """The system in words. Imports its packages, so that no later time has that in it."""
        begun_s = time.perf_counter()
        self._adapter = importlib.import_module(self._module).System
        self._adapter.look()
        for name in self._adapter.packages:
            importlib.import_module(name)
        return {
            "version": self._adapter.version(),
            "transport": self._adapter.transport,
            "durability": self._adapter.durability,
            "settings": dict(self._adapter.chosen),
            "role": self._adapter.role,
            "outside": self._adapter.outside,
            "apart": self._adapter.apart,
            "callers": self._adapter.callers,
            "import_s": round(time.perf_counter() - begun_s, 3),
        }

    def open(self, folder: Path, create: bool) -> float:
        """Seconds it took, with the start of its server."""
        begun_s = time.perf_counter()
        self._system = self._adapter(self._source, folder, create=create, **self._options)
        return time.perf_counter() - begun_s

    def reopen(self, folder: Path, setting: float) -> tuple[float, float]:
        """Seconds until it was open again, and of the first query. Raises LookupError where that finds nothing."""
        opened_s = self.open(folder, False)
        vector = self._system.prepare(self._source.queries[:1])[0]
        begun_s = time.perf_counter()
        ids = self._system.query(vector, K, None, setting)[0]
        taken_s = time.perf_counter() - begun_s
        # Ids are not made into rows: what that takes would be weighed as the system's memory.
        if not len(ids):
            raise LookupError("the first query found nothing")
        return opened_s, taken_s

    def settle(self, setting: float) -> None:
        """Asks some queries and waits: a system may read behind its first answer, which counts as its memory too."""
        for native in self._system.prepare(self._source.queries[:_SETTLING]):
            self._system.query(native, K, None, setting)
        gc.collect()
        time.sleep(_SETTLING_S)

    def settings(self) -> list[float]:
        return list(self._adapter.settings)

    def load(self, start: int, stop: int, budget_s: float) -> tuple[int, list[float]]:
        """Inserts rows in batches until the budget is spent; rows inserted and the seconds of each call."""
        taken_s: list[float] = []
        done = start
        while done < stop and sum(taken_s) < budget_s:
            end = min(done + BATCH, stop)
            part = self._source.part(done, end)
            begun_s = time.perf_counter()
            self._system.insert(done, part)
            taken_s.append(time.perf_counter() - begun_s)
            done = end
        return done - start, taken_s

    def ready(self) -> float:
        """Seconds until all rows were indexed."""
        begun_s = time.perf_counter()
        self._system.ready()
        return time.perf_counter() - begun_s

    def load_and_ask(self, setting: float, budget_s: float) -> dict[str, Any]:
        """One caller asks while everything is inserted."""
        natives = self._prepared()
        taken_s: list[float] = []
        over = threading.Event()
        self._system.tune(setting)

        def ask() -> None:
            while not over.is_set():
                begun_s = time.perf_counter()
                self._system.query(natives[len(taken_s) % len(natives)], K, None, setting)
                taken_s.append(time.perf_counter() - begun_s)

        first, _ = self.load(0, min(BATCH, self._source.rows), budget_s)
        caller = threading.Thread(target=ask)
        begun_s = time.perf_counter()
        caller.start()
        try:
            done, calls_s = self.load(first, self._source.rows, budget_s)
        finally:
            over.set()
            caller.join()
        took_s = time.perf_counter() - begun_s
        asked = asking.figures(taken_s, took_s) if taken_s else {}
        return {**asked, "rows_per_s": done / max(sum(calls_s), 1e-9), "rows": first + done}

    def count(self) -> int | None:
        """None where the system does not count."""
        try:
            return int(self._system.count())
        except Unsupported:
            return None

    def tune(self, setting: float) -> None:
        self._system.tune(setting)

    def ask(self, case: Case) -> tuple[dict[str, Any], NDArray[np.int64]]:
        """Figures of one pass, and the rows that the first queries found."""
        queries = self._source.queries
        gc.collect()
        asked = asking.ask(self._system, queries, self._prepared(), case)
        weight = min(asking.QUERY_BATCH, len(queries)) if case.batched else 1
        found = asking.as_rows(self._system, asked, batched=case.batched)
        return asking.figures(asked.taken_s, asked.took_s, weight), found

    def upsert(self, numbers: list[int], budget_s: float) -> tuple[dict[int, int], list[float]]:
        """Moves these rows; what has become of them and the seconds of each call."""
        taken_s: list[float] = []
        versions: dict[int, int] = {}
        for start in range(0, len(numbers), BATCH):
            part = numbers[start : start + BATCH]
            rows = renewed(self._source, part, [1] * len(part))
            begun_s = time.perf_counter()
            self._system.upsert(part, rows)
            taken_s.append(time.perf_counter() - begun_s)
            versions.update(dict.fromkeys(part, 1))
            if sum(taken_s) > budget_s:
                break
        return versions, taken_s

    def delete(self, numbers: list[int], budget_s: float) -> tuple[list[int], list[float]]:
        """Deletes these rows; those that are gone and the seconds of each call."""
        taken_s: list[float] = []
        gone: list[int] = []
        for start in range(0, len(numbers), BATCH):
            part = numbers[start : start + BATCH]
            ids = [self._source.records(row, row + 1)[0][0] for row in part]
            begun_s = time.perf_counter()
            self._system.delete(part, ids)
            taken_s.append(time.perf_counter() - begun_s)
            gone += part
            if sum(taken_s) > budget_s:
                break
        return gone, taken_s

    def mix(
        self, asked: mixture.Mix, callers: int, budget_s: float
    ) -> tuple[dict[str, Any], dict[int, int]]:
        """The mix of a retrieval application; see `mixture`."""
        natives = self._prepared()
        return mixture.mix(self._system, self._source, natives, asked, callers, budget_s)

    def link(self) -> Any:
        """What callers in other processes connect by."""
        return self._system.link()

    def rows(self, answers: dict[int, Any]) -> NDArray[np.int64]:
        """Rows of what callers in other processes were answered, by the number of the query."""
        return asking.as_rows(self._system, asking.Asked(answers), batched=False)

    def many(self, collections: int, rows: int, budget_s: float) -> dict[str, Any]:
        """So many collections of so many rows each; see `mixture`."""
        return mixture.many(self._system, self._source, collections, rows, budget_s)

    def close(self, save: bool = False) -> None:
        if self._system is not None:
            system, self._system = self._system, None
            if save and hasattr(system, "save"):
                system.save()
            system.close()

    def _prepared(self) -> Any:
        if self._natives is None:
            self._natives = self._system.prepare(self._source.queries)
        return self._natives
