"""Recall and speed under filters, from one row in ten thousand to nearly all, and against the vectors.

The field `lemma` follows the number of a row, so that "comes before this word in the alphabet" allows a share of the rows
that has nothing to do with the vectors. Two filters have: `category` follows the clusters, so that one category is far from
nearly every query, and half of the categories bar the clusters around 616 of WordNet's 1,000 queries; of these the recall is told
apart. One thread, single queries. One half of the queries is measured, first in a process that makes nothing behind, so no filter has a
graph of its own. Then, in another, each filter is asked by the other half `_PASSES` times, and the process left to itself until it is
quiet, so what the engine makes behind for a filter that comes often is there, measured on queries of that half; and the first half is
measured again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import measure
from ..children import Child
from ..peers import engine
from ..sources import Source, State
from ..worker import K
from .plan import Plan
from .tables import count, number, table

SHARES = (0.0001, 0.001, 0.01, 0.1, 0.5, 0.99)
TARGETS = (0.95, 0.99)
_PASSES = 4
"""On a quick machine 1,000 queries lose the 0.5 s that the graph of half of WordNet is worth."""
_BEHIND_S = 120.0
"""So long at most what is made behind is waited for."""
_BUDGET_S = 10.0
"""After so long no further query of a case is asked, once `_FEWEST` were."""
_FEWEST = 200
_LAST = "\U0010ffff"

Flags = NDArray[np.bool_]


def cases(source: Source) -> dict[str, tuple[Mapping[str, Any], Flags]]:
    """Filter and rows allowed, by the name of a case."""
    lemmas, categories = source.column("lemma"), source.column("category")
    ordered, names = np.sort(lemmas), np.unique(categories)
    found: dict[str, tuple[Mapping[str, Any], Flags]] = {}
    for share in SHARES:
        at = max(round(share * source.rows), 1)
        word = str(ordered[at]) if at < source.rows else _LAST
        found[f"{share:.2%} of the rows"] = ({"lemma": {"$lt": word}}, lemmas < word)
    far, half = str(names[-1]), names[::2]
    found["one category"] = ({"category": far}, categories == far)
    found["every second category"] = (
        {"category": {"$in": half.tolist()}},
        np.isin(categories, half),
    )
    return found


class Selecting:
    """Runs in a child."""

    def __init__(self, source: Source, folder: Path, earns: bool) -> None:
        """`earns`: filters that come often get graphs, and are asked often before they are measured."""
        self._source = source
        self._earns = earns
        self._system = engine.System(source, folder, create=False, auto_build=earns)
        queries = self._system.prepare(source.queries)
        half = len(queries) // 2
        # `Source.recall` speaks of the first ones.
        self._measured, self._others = queries[:half], queries[half:]

    def run(self) -> dict[str, Any]:
        near = self._system.collection.query(self._source.queries, k=1, exact=True).ids
        nearest = np.array([self._source.rows_of(ids)[0] for ids in near])
        return {
            name: self._case(where, allowed, ~allowed[nearest])
            for name, (where, allowed) in cases(self._source).items()
            if allowed.any()
        }

    def _case(self, where: Mapping[str, Any], allowed: Flags, barred: Flags) -> dict[str, Any]:
        collection: Any = self._system.collection
        truth = self._source.truth(K, state=State(allowed))
        one: dict[str, Any] = {"rows": int(allowed.sum()), "barred": int(barred.sum()), "at": {}}
        for target in TARGETS:
            if self._earns:
                for _ in range(_PASSES):
                    self._ask(where, target, self._others)
                measure.quiet(_BEHIND_S)
            rows, taken_s = self._ask(where, target, self._measured)
            asked = len(rows)
            explain = collection.query(
                self._source.queries[:1], k=K, filter=where, target_recall=target, explain=True
            ).explain
            one["at"][str(target)] = {
                "asked": asked,
                "recall": self._source.recall(rows, truth),
                "recall_where_barred": self._of_barred(rows, truth, barred[:asked]),
                "queries_per_s": asked / sum(taken_s),
                "p99_ms": 1e3 * float(np.percentile(taken_s, 99)),
                "plan": explain.plan,
            }
        return one

    def _of_barred(self, rows: NDArray[np.int64], truth: Any, barred: Flags) -> float | None:
        """Recall of the queries whose nearest row is not allowed; None where there is no such query."""
        if not barred.any():
            return None
        only = np.where(barred[:, np.newaxis], rows, -1)
        return self._source.recall(only, truth) * len(rows) / int(barred.sum())

    def _ask(
        self, where: Mapping[str, Any], target: float, queries: Sequence[Any]
    ) -> tuple[NDArray[np.int64], list[float]]:
        """Rows found by the first of these, -1 where there are fewer than `K`, and what each call took."""
        answers: list[Any] = []
        taken_s: list[float] = []
        end_s = time.perf_counter() + _BUDGET_S
        for vector in queries:
            if len(answers) >= _FEWEST and time.perf_counter() > end_s:
                break
            begun_s = time.perf_counter()
            ids, _ = self._system.query(vector, K, where, target)
            taken_s.append(time.perf_counter() - begun_s)
            answers.append(ids)
        rows = np.full((len(answers), K), -1, np.int64)
        for row, ids in zip(rows, answers, strict=True):
            found = self._source.rows_of(list(ids))
            row[: len(found)] = found
        return rows, taken_s

    def close(self) -> None:
        self._system.close()


def run(plan: Plan) -> dict[str, Any]:
    made = plan.served()
    found: dict[bool, dict[str, Any]] = {}
    for earns in (False, True):
        with Child(
            "bench.index.selective:Selecting", plan.source, made.folder, earns, one_core=True
        ) as child:
            found[earns] = child.call("run")
            child.call("close")
    cases = found[True]
    for name, one in cases.items():
        for target, at in one["at"].items():
            at["before"] = found[False][name]["at"][target]
    return {"index": f"{made.kind}/{made.quantization}", "cases": cases}


def page(found: dict[str, Any]) -> list[str]:
    rows = []
    for name, one in found["cases"].items():
        line = [name, count(one["rows"])]
        for at in one["at"].values():
            both = (at["before"], at)
            barred = [state["recall_where_barred"] for state in both]
            line += [
                _two(number(state["recall"], 4) for state in both),
                "" if None in barred or name[0].isdigit() else _two(number(x, 4) for x in barred),
                _two(count(state["queries_per_s"]) for state in both),
                _two(number(state["p99_ms"]) for state in both),
                _two(state["plan"] for state in both),
            ]
        rows.append(line)
    heads = ["filter", "rows allowed"]
    for target in TARGETS:
        heads += [f"recall@{K} at {target}", "who ask where it is barred"]
        heads += ["queries/s", "p99, ms", "plan"]
    return [
        f"## Recall under filters\n\n{found['index']}, one thread, single queries: half of the set's, before a filter has a graph of its own, and after"
        f" the other half have asked with it {_PASSES} times, and then nothing until what is made behind was there, or for {_BEHIND_S:g} s;"
        " one value where the two are the same. The first filters compare words, which have nothing to do with the vectors; categories follow the clusters.\n",
        table(heads, rows),
    ]


def _two(states: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(states))
