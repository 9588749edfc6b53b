"""Asking a system for a while, from one caller or several, and what that took."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..sources import Condition
from .plan import K

QUERY_BATCH = 100
BATCH = 1_000
"""Rows of a call that loads."""
WARM_CALLS = 3
_WARM_SHARE = 0.1
_LONGEST = 8.0
"""A pass ends after so many budgets, however few calls it made."""


@dataclass(frozen=True, slots=True)
class Case:
    """How a system is asked. `least`: calls that are made even after the budget, within eight of them."""

    setting: float
    condition: Condition | None = None
    callers: int = 1
    batched: bool = False
    budget_s: float = 1.5
    least: int = 50


@dataclass(slots=True)
class Asked:
    """Answers by the number of the call, and the time of each call."""

    answers: dict[int, Any] = field(default_factory=dict)
    taken_s: list[float] = field(default_factory=list)
    took_s: float = 0.0


def figures(taken_s: Sequence[float], took_s: float, weight: int = 1) -> dict[str, Any]:
    """Queries a second, percentiles and the whole distribution of the calls, in ms."""
    return {"qps": len(taken_s) * weight / took_s, **latencies(taken_s)}


def latencies(taken_s: Sequence[float]) -> dict[str, Any]:
    """Percentiles and the whole distribution of calls, in ms; nothing of none."""
    if not len(taken_s):
        return {}
    quantiles = np.percentile(np.asarray(taken_s) * 1e3, np.arange(101)).round(4).tolist()
    return {
        "p50_ms": quantiles[50],
        "p95_ms": quantiles[95],
        "p99_ms": quantiles[99],
        "latency_ms": quantiles,
        "calls": len(taken_s),
    }


class Pass:
    """One pass over numbered calls: caller c makes the calls c, c + callers and so on, and begins anew at the end."""

    def __init__(self, count: int, case: Case) -> None:
        self._count, self._case = count, case
        self.asked = Asked()

    def blocking(self, call: Callable[[int], Any]) -> Asked:
        """From threads; from this one alone where there is one caller."""
        for number in range(min(WARM_CALLS, self._count)):
            call(number)
        begun_s = time.perf_counter()
        if self._case.callers == 1:
            self.ask(call, 0, begun_s)
        else:
            self._threads(call, begun_s)
        self.asked.took_s = time.perf_counter() - begun_s
        return self.asked

    def _threads(self, call: Callable[[int], Any], begun_s: float) -> None:
        failed: list[BaseException] = []

        def work(first: int) -> None:
            try:
                self.ask(call, first, begun_s)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(self._case.callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]

    def ask(self, call: Callable[[int], Any], first: int, begun_s: float) -> None:
        """What one caller does, from a moment on."""
        number, answers, taken_s = first, self.asked.answers, []
        while self._goes_on(number, (started_s := time.perf_counter()) - begun_s):
            found = call(number % self._count)
            taken_s.append(time.perf_counter() - started_s)
            if number < self._count:
                answers[number] = found
            number += self._case.callers
        self.asked.taken_s.extend(taken_s)

    async def waiting(self, call: Callable[[int], Any]) -> Asked:
        """From tasks of asyncio; `call` gives an awaitable."""
        warm_s = _WARM_SHARE * self._case.budget_s
        await self._tasks(call, time.perf_counter() + warm_s - self._case.budget_s, least=False)
        self.asked = Asked()
        begun_s = time.perf_counter()
        await self._tasks(call, begun_s, least=True)
        self.asked.took_s = time.perf_counter() - begun_s
        return self.asked

    async def _tasks(self, call: Callable[[int], Any], begun_s: float, *, least: bool) -> None:
        async def ask(first: int) -> None:
            number = first
            while self._goes_on(
                number if least else self._case.least,
                (started_s := time.perf_counter()) - begun_s,
            ):
                found = await call(number % self._count)
                self.asked.taken_s.append(time.perf_counter() - started_s)
                if number < self._count:
                    self.asked.answers[number] = found
                number += self._case.callers

        await asyncio.gather(*[ask(i) for i in range(self._case.callers)])

    def _goes_on(self, number: int, spent_s: float) -> bool:
        if spent_s < self._case.budget_s:
            return True
        return number < min(self._case.least, self._count) and (
            spent_s < _LONGEST * self._case.budget_s
        )


def ask(system: Any, queries: Any, natives: Sequence[Any], case: Case) -> Asked:
    """Asks by `case`, whose setting holds already; answers are ids as the system gives them, of a batch a list of
    those."""
    where = None if case.condition is None else system.where(case.condition)
    if case.batched:
        # Whole batches only, so that each call weighs the same.
        size = min(QUERY_BATCH, len(queries))
        parts = [queries[i : i + size] for i in range(0, len(queries) - size + 1, size)]
        return Pass(len(parts), case).blocking(lambda i: system.batch(parts[i], K, case.setting))
    one_pass = Pass(len(natives), case)
    if case.callers == 1 or system.callers == "threads":
        return one_pass.blocking(lambda i: system.query(natives[i], K, where, case.setting)[0])

    async def ids(number: int) -> Any:
        return (await system.ask(natives[number], K, where, case.setting))[0]

    async def run() -> Asked:
        await system.begin()
        try:
            return await one_pass.waiting(ids)
        finally:
            await system.end()

    return asyncio.run(run())


def as_rows(system: Any, asked: Asked, *, batched: bool) -> np.ndarray[Any, Any]:
    """(q, K) rows of the first queries that all have an answer; -1 where fewer were found."""
    lines: list[Any] = []
    for number in range(len(asked.answers)):
        if number not in asked.answers:
            break
        found = asked.answers[number]
        lines.extend(found if batched else [found])
    rows = np.full((len(lines), K), -1, np.int64)
    for line, ids in zip(rows, lines, strict=True):
        numbers = list(system.rows(ids))[:K]
        line[: len(numbers)] = numbers
    return rows
