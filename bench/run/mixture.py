"""Two workloads that are played inside the child: the mix of a retrieval application, and many collections."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class Mix:
    """What is played: the setting of queries, what is live by row before it, and each tenant with its rows."""

    setting: float
    versions: dict[int, int]
    tenants: list[tuple[Condition, NDArray[np.int64]]]


@dataclass(slots=True)
class Played:
    """What one caller did: how long its queries took, how often it wrote, and what has become of the rows."""

    queried_s: list[float] = field(default_factory=list)
    upserts: int = 0
    deletes: int = 0
    changed: dict[int, int] = field(default_factory=dict)


def play(
    system: Any, source: Source, natives: Any, mix: Mix, caller: int, callers: int, end_s: float
) -> Played:
    """One of several callers asks with a tenant's filter, upserts one row or deletes one, until a moment.

    The r-th tenant is drawn with a weight of 1 / r. A row is changed by one caller only, so that what is live at the
    end is known.
    """
    tenants = mix.tenants
    shares = 1 / np.arange(1, len(tenants) + 1) ** _ZIPF
    shares /= shares.sum()
    wheres = [system.where(condition) for condition, _ in tenants]
    rng = np.random.default_rng([_SEED, caller])
    own = [rows[rows % callers == caller] for _, rows in tenants]
    played = Played()
    while time.perf_counter() < end_s:
        tenant = int(rng.choice(len(tenants), p=shares))
        what = rng.random()
        if what < QUERIES or not len(own[tenant]):
            number = int(rng.integers(len(natives)))
            begun_s = time.perf_counter()
            system.query(natives[number], K, wheres[tenant], mix.setting)
            played.queried_s.append(time.perf_counter() - begun_s)
            continue
        row = int(rng.choice(own[tenant]))
        if what < QUERIES + UPSERTS:
            version = max(played.changed.get(row, mix.versions.get(row, 0)), 0) + 1
            system.upsert([row], renewed(source, [row], [version]))
            played.changed[row] = version
            played.upserts += 1
        else:
            system.delete([row], source.records(row, row + 1)[0])
            played.changed[row] = DELETED
            played.deletes += 1
    return played


def mix(
    system: Any, source: Source, natives: Any, asked: Mix, callers: int, budget_s: float
) -> tuple[dict[str, Any], dict[int, int]]:
    """The mix from threads: its figures, and the versions of the rows that were changed."""
    done: list[Played] = []
    failed: list[BaseException] = []

    def work(caller: int, end_s: float) -> None:
        try:
            done.append(play(system, source, natives, asked, caller, callers, end_s))
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
    return together(done, took_s)


def together(done: Sequence[Played], took_s: float) -> tuple[dict[str, Any], dict[int, int]]:
    """Figures of all callers, and the versions of the rows that they changed."""
    queried_s = [taken_s for one in done for taken_s in one.queried_s]
    upserts, deletes = sum(one.upserts for one in done), sum(one.deletes for one in done)
    changed = {row: version for one in done for row, version in one.changed.items()}
    operations = len(queried_s) + upserts + deletes
    found = figures(queried_s, took_s) if queried_s else {}
    note = (
        f"{operations} operations: {len(queried_s)} queries, {upserts} upserts, {deletes} deletes"
    )
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
