"""Counts of one process that serves calls, so that those of several can be added up."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Mapping

import msgspec

from vecdb.tally import SECONDS, SIZES, Counted

_NO_SECONDS = Counted((0,) * (len(SECONDS) + 1), 0.0)
_NO_SIZES = Counted((0,) * (len(SIZES) + 1), 0.0)


class PoolFigures(msgspec.Struct, frozen=True):
    """One pool of threads."""

    running: int = 0
    waiting: int = 0
    clients: int = 0
    waits: Counted = _NO_SECONDS


class CallFigures(msgspec.Struct, frozen=True):
    """What a process has counted since it began, and what it does at this moment."""

    calls: dict[str, Counted] = {}
    """By method and status, as `key` writes them."""
    pools: dict[str, PoolFigures] = {}
    refused: dict[str, int] = {}
    slow_queries: int = 0
    batch_queries: Counted = _NO_SIZES
    search_waiting: int = 0
    cpu_s: float = 0.0
    resident_bytes: int = 0
    """Of reading processes; Prometheus's own collector shows them of the writer."""
    unsent: dict[str, int] = {}
    """Calls whose request had not come, by why they were ended."""

    def ended(self) -> CallFigures:
        """What is left of it when its process has ended: what only grows."""
        pools = {name: PoolFigures(waits=pool.waits) for name, pool in self.pools.items()}
        return CallFigures(
            self.calls,
            pools,
            self.refused,
            self.slow_queries,
            self.batch_queries,
            cpu_s=self.cpu_s,
            unsent=self.unsent,
        )


def key(method: str, code: str) -> str:
    return f"{method}/{code}"


def method_and_code(of: str) -> tuple[str, str]:
    method, _, code = of.rpartition("/")
    return method, code


def total(several: Iterable[CallFigures]) -> CallFigures:
    """All of them as if one process had counted."""
    calls: dict[str, Counted] = {}
    pools: dict[str, PoolFigures] = {}
    refused: dict[str, int] = {}
    unsent: dict[str, int] = {}
    slow, batches, waiting, cpu_s, resident = 0, _NO_SIZES, 0, 0.0, 0
    for one in several:
        for name, counted in one.calls.items():
            calls[name] = added(calls[name], counted) if name in calls else counted
        for name, pool in one.pools.items():
            pools[name] = _pooled(pools[name], pool) if name in pools else pool
        _add(refused, one.refused)
        _add(unsent, one.unsent)
        slow += one.slow_queries
        batches = added(batches, one.batch_queries)
        waiting += one.search_waiting
        cpu_s += one.cpu_s
        resident += one.resident_bytes
    return CallFigures(calls, pools, refused, slow, batches, waiting, cpu_s, resident, unsent)


def added(one: Counted, other: Counted) -> Counted:
    """Two counts of the same bounds."""
    counts = tuple(a + b for a, b in zip(one.counts, other.counts, strict=True))
    return Counted(counts, one.total + other.total)


def _pooled(one: PoolFigures, other: PoolFigures) -> PoolFigures:
    return PoolFigures(
        one.running + other.running,
        one.waiting + other.waiting,
        one.clients + other.clients,
        added(one.waits, other.waits),
    )


def _add(sums: dict[str, int], more: Mapping[str, int]) -> None:
    for name, count in more.items():
        sums[name] = sums.get(name, 0) + count


def of_this_process() -> tuple[float, int]:
    """CPU seconds so far, and resident bytes now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    return used.ru_utime + used.ru_stime, pages * os.sysconf("SC_PAGE_SIZE")
