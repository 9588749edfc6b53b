"""What a collection answers, compared with what it holds: counts, and the nearest records by every way of asking."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from crash import records
from crash.model import Held
from crash.wrong import Wrong

QUERIES = 12
K = 10
LEAST_RECALL = 0.85
"""Of the mean over some queries at target 0.95, where the index holds hundreds of rows."""

AS_NEAR = {"l2": 1e-6, "cosine": 2e-6}
"""Distances that differ by no more are the same. Those of l2 are whole 4,096ths, which float32 holds exactly."""

UNLINKED = 0.005
"""Of the rows of a graph at most so many are found by no walk, or two. Graphs of 1,200 and 1,300 such rows had one."""


@dataclass(frozen=True)
class Asked:
    """One field of a collection, what is asked of it, and how far each record is."""

    what: str
    docs: Any
    field: str | None
    metric: str
    queries: Any
    distances: Any
    """(queries, records); infinite where a record must not be found."""
    place: dict[str, int]
    where: Any


def compare(name: str, docs: Any, held: Held) -> None:
    """Counts and nearest records, by a filter too, against the model. Raises Wrong."""
    numbers = np.array(sorted(held.records), np.int64)
    states = np.array([held.records[n] for n in numbers.tolist()], np.int64).reshape(-1, 4)
    stats = docs.stats()
    if docs.count() != len(numbers) or stats.count != len(numbers):
        raise Wrong(f"{name}: count {docs.count()}, stats {stats.count}, there are {len(numbers)}")
    three = numbers[numbers % 7 == 3]
    if docs.count({"n": 3}) != len(three):
        raise Wrong(f"{name}: a filter counts {docs.count({'n': 3})}, {len(three)} match")
    settings = records.SHAPES[held.shape]
    place = {f"r{n}": i for i, n in enumerate(numbers.tolist())}
    fields = [(None, settings["metric"], states[:, 0])]
    if "vectors" in settings:
        fields.append(("title", "l2", states[:, 1]))
    for field, metric, versions in fields:
        made = partial(records.stored, held.shape, title=field is not None)
        queries = made(np.arange(QUERIES) + 10_000, np.full(QUERIES, 1))
        distances = _distances(queries, made(numbers, versions), metric)
        distances[:, versions == 0] = np.inf
        for where, far in (
            (None, distances),
            ({"n": 3}, np.where(numbers % 7 == 3, distances, np.inf)),
        ):
            what = f"{name}{f' {field}' if field else ''}{' filtered' if where else ''}"
            _compare_queries(Asked(what, docs, field, metric, queries, far, place, where))
        _compare_walks(f"{name}{f' {field}' if field else ''}", docs._core, field, queries)


def _distances(queries: Any, stored: Any, metric: str) -> Any:
    queries, stored = queries.astype(np.float64), stored.astype(np.float64)
    if metric == "cosine":
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        stored = stored / np.maximum(np.linalg.norm(stored, axis=1, keepdims=True), 1e-30)
        return 1 - queries @ stored.T
    return ((queries[:, None, :] - stored[None, :, :]) ** 2).sum(-1)


def _compare_queries(asked: Asked) -> None:
    """Exact answers, those at a target of 1 and those at the default target: of the first two every id and distance is right,
    of the last every distance."""
    best = np.sort(asked.distances, axis=1)[:, :K]
    wanted = [int(np.isfinite(row).sum()) for row in best]
    near = AS_NEAR[asked.metric]
    for way in ({"exact": True}, {"target_recall": 1.0}, {}):
        answer = asked.docs.query(
            asked.queries, k=K, filter=asked.where, vector_name=asked.field, **way
        )
        said, hits = f"{asked.what}, {way or 'default target'}", 0
        for q, ids in enumerate(answer.ids):
            if len(ids) != wanted[q] or len({*ids}) != len(ids) or not {*ids} <= {*asked.place}:
                raise Wrong(f"{said}: query {q} gives {ids}, {wanted[q]} are there")
            true = asked.distances[q, [asked.place[i] for i in ids]]
            told = answer.distances[q, : len(ids)]
            if not np.allclose(told, true, rtol=0, atol=near):
                raise Wrong(f"{said}: query {q} gives distances {told} for {ids}, true are {true}")
            # Of records that are as far as each other any may come first, or be the last.
            if way and not np.allclose(true, best[q, : len(ids)], rtol=0, atol=near):
                raise Wrong(f"{said}: {ids} at {true} to query {q}; nearest are {best[q]}")
            hits += int((true <= best[q, len(ids) - 1] + near).sum()) if ids else 0
        if hits < LEAST_RECALL * sum(wanted):
            raise Wrong(f"{said}: recall {hits / sum(wanted):.3f}")


def _compare_walks(name: str, core: Any, field: str | None, queries: Any) -> None:
    """The index itself, without the tail: lists that are all probed give each row of it at its distance; so does a walk as wide as
    the graph, but for rows that no other points to, of which every graph has a few."""
    number = next(one for one in core.all_fields if one.name == (field or ""))
    main = number.index.view.main
    if main is None or main.kind == "flat":
        return
    depth = int(main.index.nlist) if main.kind == "ivf" else main.n
    keys, positions = main.search(queries, main.n, depth)
    true_keys, rows = main.exact(queries, main.n, None)
    unlinked = 0 if main.kind == "ivf" else max(2, int(UNLINKED * main.n))
    for q in range(QUERIES):
        found = positions[q] >= 0
        there = positions[q][found]
        missing = main.n - len({*there.tolist()})
        if missing > unlinked or len({*there.tolist()}) != len(there):
            raise Wrong(f"{name}: {missing} of {main.n} rows are found by no walk of the index")
        true = np.empty(main.n)
        true[rows[q]] = true_keys[q]
        if not np.allclose(keys[q][found], true[there], rtol=0, atol=1e-5):
            raise Wrong(f"{name}: the index gives query {q} other distances than its rows have")
