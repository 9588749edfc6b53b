"""Two workloads that are played inside the child: the mix of a retrieval application, and many collections."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..sources import Condition, Source
from .asking import figures
from .changes import DELETED, renewed
from .plan import K

QUERIES, UPSERTS = 0.90, 0.08
"""Shares of the operations; the rest are deletes."""
_ZIPF = 1.0
_ASKED = 200
_SEED = 20


def mix(
    system: Any,
    source: Source,
    natives: Any,
    setting: float,
    callers: int,
    budget_s: float,
    versions: dict[int, int],
    tenants: list[tuple[Condition, NDArray[np.int64]]],
) -> tuple[dict[str, Any], dict[int, int]]:
    """Callers (threads) each ask with a tenant's filter, upsert one row or delete one, until the budget is spent.

    The r-th tenant is drawn with a weight of 1 / r. A row is changed by one caller only, so that what is live at the
    end is known: `versions` after it.
    """
    shares = 1 / np.arange(1, len(tenants) + 1) ** _ZIPF
    shares /= shares.sum()
    wheres = [system.where(condition) for condition, _ in tenants]
    queried_s: list[float] = []
    counts = {"upserts": 0, "deletes": 0}
    changed: dict[int, int] = {}
    failed: list[BaseException] = []

    def play(caller: int, end_s: float) -> None:
        rng = np.random.default_rng([_SEED, caller])
        own = [rows[rows % callers == caller] for _, rows in tenants]
        made: dict[int, int] = {}
        taken_s: list[float] = []
        upserts = deletes = 0
        while time.perf_counter() < end_s:
            tenant = int(rng.choice(len(tenants), p=shares))
            what = rng.random()
            if what < QUERIES or not len(own[tenant]):
                number = int(rng.integers(len(natives)))
                begun_s = time.perf_counter()
                system.query(natives[number], K, wheres[tenant], setting)
                taken_s.append(time.perf_counter() - begun_s)
                continue
            row = int(rng.choice(own[tenant]))
            if what < QUERIES + UPSERTS:
                version = max(made.get(row, versions.get(row, 0)), 0) + 1
                system.upsert([row], renewed(source, [row], [version]))
                made[row] = version
                upserts += 1
            else:
                system.delete([row], source.records(row, row + 1)[0])
                made[row] = DELETED
                deletes += 1
        queried_s.extend(taken_s)
        changed.update(made)
        counts["upserts"] += upserts
        counts["deletes"] += deletes

    def work(caller: int, end_s: float) -> None:
        try:
            play(caller, end_s)
        except BaseException as error:
            failed.append(error)

    begun_s = time.perf_counter()
    threads = [threading.Thread(target=work, args=(i, begun_s + budget_s)) for i in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = time.perf_counter() - begun_s
    if failed:
        raise failed[0]
    operations = len(queried_s) + counts["upserts"] + counts["deletes"]
    found = figures(queried_s, took_s) if queried_s else {}
    note = f"{operations} operations: {len(queried_s)} queries, {counts['upserts']} upserts, {counts['deletes']} deletes"
    return {
        **found,
        "qps": operations / took_s,
        "calls": operations,
        "note": f"{note}; qps counts operations, latency is of queries",
    }, changed


def many(
    system: Any, source: Source, collections: int, rows: int, budget_s: float
) -> dict[str, Any]:
    """Makes collections of `rows` rows until the budget is spent, then asks one after another of them."""
    held: list[tuple[Any, int]] = []
    taken_s = 0.0
    places = max(source.rows // rows, 1)
    for number in range(collections):
        start = number % places * rows
        part = source.part(start, min(start + rows, source.rows))
        begun_s = time.perf_counter()
        one = system.another(f"many-{number:05}")
        one.insert(0, part)
        taken_s += time.perf_counter() - begun_s
        held.append((one, start))
        if taken_s > budget_s:
            break
    asked_s, right = [], 0
    rng = np.random.default_rng(_SEED)
    setting = system.settings[len(system.settings) // 2]
    natives = system.prepare(source.queries)
    begun_s = time.perf_counter()
    for number in range(_ASKED):
        one, start = held[int(rng.integers(len(held)))]
        query = number % len(natives)
        started_s = time.perf_counter()
        ids = one.query(natives[query], K, None, setting)[0]
        asked_s.append(time.perf_counter() - started_s)
        vectors = source.vectors(start, min(start + rows, source.rows))
        near = vectors @ source.queries[query]
        bound = np.sort(near)[-min(K, len(near))] - 2e-6
        numbers = np.unique(np.array([*one.rows(ids)], np.int64))
        # An adapter that numbers rows itself counts within the collection, the others know the source's rows.
        inside = numbers - start if one.names_rows else numbers
        inside = inside[(inside >= 0) & (inside < len(near))]
        right += int((near[inside] >= bound).sum())
    count = sum(min(start + rows, source.rows) - start for _, start in held)
    return {
        **figures(asked_s, sum(asked_s)),
        "recall": right / (_ASKED * min(K, rows)),
        "rows_per_s": count / taken_s,
        "rows": count,
        "seconds": time.perf_counter() - begun_s,
        "note": f"{len(held)} collections of {rows} rows, made at {len(held) / taken_s:.1f} a second",
    }
