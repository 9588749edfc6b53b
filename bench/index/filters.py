"""How long a filter takes to evaluate: warm columns, but never a text that was evaluated before.

Each round is a fresh process, so no result is kept from the round before. `count` is the whole call, with
parsing and counting; `filter` is the evaluation alone, as `explain` gives it.
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
_RARE_ROWS = 100
"""A value that at most so many rows have is rare; those that come nearest to it are taken."""
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
            if rare and (few := sizes <= _RARE_ROWS).any():
                names, sizes = names[few], sizes[few]
            order = np.argsort(-sizes, kind="stable")
            chosen: list[Any] = names[order[: 2 * _TEXTS]].tolist()
            return chosen

        def bounds() -> Texts:
            steps = np.linspace(1.01, 4.99, 2 * _TEXTS)
            return [{"n_lemmas": {"$gte": round(float(one), 4)}} for one in steps]

        return {
            "equality": lambda: [{"category": one} for one in values("category", False)],
            "range": bounds,
            "rare value": lambda: [{"lemma": one} for one in values("lemma", True)],
        }

    def _timed(self, texts: Texts) -> dict[str, Any]:
        """Half of the texts by `count`, the other half by `explain`."""
        collection: Any = self._system.collection
        counted, asked = texts[::2], texts[1::2]
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
            "allowed_low": min(allowed),
            "allowed_high": max(allowed),
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
            what: rounds[0][name][what]
            for what in ("texts", "allowed", "allowed_low", "allowed_high")
        }
        for what in ("count_ms", "filter_ms"):
            taken = [value for each in rounds for value in each[name][what]]
            middles = [float(np.median(each[name][what])) for each in rounds]
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
        allowed = f"{count(one['allowed'])} ({one['allowed_low']:,}-{one['allowed_high']:,})"
        line = [name, allowed, str(one["texts"])]
        for what in ("filter_ms", "count_ms"):
            held = one[what]
            spread = f"({held['low']:.3f}-{held['high']:.3f})"
            line.append(f"{millis(held['p50'])} {spread}, {millis(held['p99'])}")
        rows.append(line)
    header = ("filter", "rows allowed", "texts", "evaluation p50, p99", "whole `count` p50, p99")
    return [
        f"## Filters\n\n{found['rows']:,} rows, warm columns, a new text each time; medians over rounds."
        " Rare values are lemmas; beside the median of the rows allowed their lowest and highest.\n",
        table(header, rows),
    ]
