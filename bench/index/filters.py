"""How long a filter takes to evaluate: warm columns, but never a text that was evaluated before.

Each round is a fresh process, so no result is kept from the round before. `count` is the whole call, with
parsing and counting; `filter` is the evaluation alone, as `explain` gives it, where the engine does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..children import Child
from ..peers import engine
from ..sources import Source
from .plan import Plan
from .tables import count, millis, table

_TEXTS = 40
Texts = list[dict[str, Any]]


class Filtering:
    """Runs in a child."""

    def __init__(self, source: Source, folder: Path) -> None:
        self._source = source
        self._system = engine.System(source, folder, create=False)
        collection = self._system.collection
        # One of each field, so that what is made at a field's first filter is made.
        for field in ("pos", "category", "lemma"):
            collection.count({field: "none of these"})
        collection.count({"n_lemmas": {"$gte": 1_000}})

    def run(self) -> dict[str, dict[str, Any]]:
        return {name: self._timed(make()) for name, make in self._cases().items()}

    def _cases(self) -> dict[str, Callable[[], Texts]]:
        def values(field: str, rare: bool) -> list[Any]:
            names, sizes = np.unique(self._source.column(field), return_counts=True)
            # Of rare values those that are nearest to 100 rows; of others the most frequent.
            order = np.argsort(np.abs(sizes - 100) if rare else -sizes, kind="stable")
            chosen: list[Any] = names[order[: 2 * _TEXTS]].tolist()
            return chosen

        def bounds() -> Texts:
            steps = np.linspace(1.01, 4.99, 2 * _TEXTS)
            return [{"n_lemmas": {"$gte": round(float(one), 4)}} for one in steps]

        rare = "lemma" if self._source.name == "clusters" else "category"
        return {
            "equality": lambda: [{"category": one} for one in values("category", False)],
            "range": bounds,
            "rare value": lambda: [{rare: one} for one in values(rare, True)],
        }

    def _timed(self, texts: Texts) -> dict[str, Any]:
        """Half of the texts by `count`, the other half by `explain`."""
        collection: Any = self._system.collection
        explains = engine.offers(collection.query, "explain")
        counted, asked = (texts[::2], texts[1::2]) if explains else (texts, [])
        taken_s, allowed = [], []
        for text in counted:
            begun_s = time.perf_counter()
            allowed.append(collection.count(text))
            taken_s.append(time.perf_counter() - begun_s)
        query = self._source.queries[:1]
        within_us = [
            collection.query(query, k=1, filter=text, explain=True).explain.times_us["filter"]
            for text in asked
        ]
        return {
            "texts": len(texts),
            "allowed": float(np.median(allowed)),
            "count_ms": (np.array(taken_s) * 1e3).tolist(),
            "filter_ms": (np.array(within_us) / 1e3).tolist(),
        }

    def close(self) -> None:
        self._system.close()


def run(plan: Plan) -> dict[str, Any]:
    made = plan.collection()
    rounds = []
    for _ in range(plan.rounds):
        with Child("bench.index.filters:Filtering", plan.source, made.folder) as child:
            rounds.append(child.call("run"))
            child.call("close")
    found: dict[str, Any] = {}
    for name in rounds[0]:
        one: dict[str, Any] = {
            "texts": rounds[0][name]["texts"],
            "allowed": rounds[0][name]["allowed"],
        }
        for what in ("count_ms", "filter_ms"):
            taken = [value for each in rounds for value in each[name][what]]
            middles = [float(np.median(each[name][what])) for each in rounds if each[name][what]]
            if taken:
                one[what] = {
                    "p50": float(np.median(middles)),
                    "low": min(middles),
                    "high": max(middles),
                    "p99": float(np.percentile(taken, 99)),
                }
        found[name] = one
    return {"rows": plan.source.rows, "cases": found}


def page(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, one in found["cases"].items():
        line = [name, count(one["allowed"]), str(one["texts"])]
        for what in ("filter_ms", "count_ms"):
            held = one.get(what)
            line.append(
                "-"
                if held is None
                else f"{millis(held['p50'])} ({held['low']:.3f}-{held['high']:.3f}), {millis(held['p99'])}"
            )
        rows.append(line)
    header = ("filter", "rows allowed", "texts", "evaluation p50, p99", "whole `count` p50, p99")
    return [
        f"## Filters\n\n{found['rows']:,} rows, warm columns, a new text each time; medians over rounds.\n",
        table(header, rows),
    ]
