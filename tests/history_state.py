"""What a collection holds after each commit, in plain Python, and whether one answer is of that moment.

For `history.py`, which finds out which moments an answer may be of.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from plain_filter import look_up, matches
from plain_search import plain_distances

ROUNDING = 2e-5
"""Of a float32 distance, as a share of the largest one."""


class Wrong(Exception):
    """Why one call does not fit one state."""


class Space(NamedTuple):
    """Vectors of a field: numbers (packed bits: bytes) each, metric, and the dtype that is stored."""

    width: int
    metric: str
    dtype: str = "float32"


class Versions:
    """All versions of records that the writes made, by number; they never change."""

    def __init__(self, spaces: Mapping[str, Space]) -> None:
        self.spaces = spaces
        self.ids: list[str] = []
        self.metadata: list[dict[str, Any]] = []
        self.documents: list[str | None] = []
        self.made_by: list[tuple[int, int, int]] = []
        """Commit, number of the call, and place in its batch."""
        self.vectors = {n: np.zeros((1_024, s.width), s.dtype) for n, s in spaces.items()}
        self.present = {n: np.zeros(1_024, np.bool_) for n in spaces}
        self._matching: dict[str, Any] = {}
        self._groups: dict[str, list[list[Any]]] = defaultdict(list)

    def add(
        self,
        record_id: str,
        vectors: Mapping[str, Any],
        metadata: dict[str, Any],
        document: str | None,
        made_by: tuple[int, int, int],
    ) -> int:
        n = len(self.ids)
        self.ids.append(record_id)
        self.metadata.append(metadata)
        self.documents.append(document)
        self.made_by.append(made_by)
        for name, held in self.vectors.items():
            if n == len(held):
                self.vectors[name] = np.concatenate([held, np.zeros_like(held)])
                self.present[name] = np.concatenate([self.present[name], np.zeros(n, np.bool_)])
            if vectors.get(name) is not None:
                self.vectors[name][n] = vectors[name]
                self.present[name][n] = True
        return n

    def matching(self, expression: Mapping[str, Any]) -> Any:
        """Whether each version matches a filter."""
        text = json.dumps(expression, sort_keys=True)
        held = self._matching.get(text, np.zeros(0, np.bool_))
        if len(held) < len(self.ids):
            more = [
                matches(expression, self.ids[n], self.metadata[n], self.documents[n])
                for n in range(len(held), len(self.ids))
            ]
            held = self._matching[text] = np.concatenate([held, np.array(more, np.bool_)])
        return held

    def groups(self, path: str) -> list[list[Any]]:
        """The groups that each version is in."""
        held = self._groups[path]
        for metadata in self.metadata[len(held) :]:
            value = look_up(metadata, path)
            found = value if isinstance(value, list) else [value]
            held.append([v for v in dict.fromkeys(found) if v is not None])
        return held


class State:
    """What the collection holds after a commit: id to version."""

    def __init__(self, versions: Versions, of: dict[str, int]) -> None:
        self.versions = versions
        self.of = of
        self._vectors: dict[str, Any] = {}

    @cached_property
    def live(self) -> Any:
        """Versions, ascending."""
        return np.sort(np.fromiter(self.of.values(), np.int64, len(self.of)))

    def allowed(self, expression: Mapping[str, Any] | None) -> Any:
        """Whether each of `live` matches."""
        if expression is None:
            return np.ones(len(self.live), np.bool_)
        return self.versions.matching(expression)[self.live]

    def distances(self, queries: Any, name: str) -> Any:
        """(q, n) float64 to the vectors of `live`; infinity where one has none."""
        metric = self.versions.spaces[name].metric
        if name not in self._vectors:
            gathered = self.versions.vectors[name][self.live]
            self._vectors[name] = gathered if metric == "hamming" else gathered.astype(np.float64)
        near = distances(queries, self._vectors[name], metric)
        near[:, ~self.versions.present[name][self.live]] = np.inf
        return near


def distances(queries: Any, vectors: Any, metric: str) -> Any:
    """(q, n) float64; hamming takes packed bits."""
    if metric == "hamming":
        return plain_distances(queries, vectors, metric)
    q, v = np.asarray(queries, np.float64), vectors
    if metric == "l2":
        return (q**2).sum(1)[:, None] - 2 * q @ v.T + np.einsum("nd,nd->n", v, v)[None]
    if metric == "cosine":
        q = q / np.linalg.norm(q, axis=1, keepdims=True)
        return 1 - (q @ v.T) / np.maximum(np.sqrt(np.einsum("nd,nd->n", v, v)), 1e-30)
    return 1 - q @ v.T


def judge(call: Any, state: State) -> list[float]:
    """Raises Wrong unless the answer is that of the state; recalls of approximate queries."""
    if call.verb == "query":
        return _judge_query(call, state)
    if call.verb in ("count", "stats"):
        expected = int(state.allowed(call.asked.get("filter")).sum())
        if call.answer != expected:
            raise Wrong(f"counted {call.answer} at commit {call.sequence}, and it was {expected}")
        return []
    parts = call.answer if isinstance(call.answer, list) else [call.answer]
    if any(part.sequence != call.sequence for part in parts):
        raise Wrong("its parts name several commits")
    numbers = state.live[state.allowed(call.asked.get("filter"))].tolist()
    of = {state.versions.ids[n]: n for n in numbers}
    got = [i for part in parts for i in part.ids]
    wanted = [i for i in call.asked.get("ids") or of if i in of]
    _same_ids(got, wanted, state)
    if "ids" in call.asked:
        in_order = got == wanted
    else:
        made = [state.versions.made_by[of[i]] for i in got]
        in_order = all(
            a[0] <= b[0] and (a[1] != b[1] or a[2] < b[2]) for a, b in itertools.pairwise(made)
        )
    if not in_order:
        raise Wrong("records are out of order")
    for part in parts:
        _same_content([of[i] for i in part.ids], part, None, state.versions)
    return []


def judge_refusal(call: Any, state: State, *, purged: bool = False) -> None:
    """Raises Wrong unless the state gives the reason to refuse. `purged`: what an earlier moment shows may be gone.

    The details of a refusal name the records that are the reason, or some of them, and how many these are.
    """
    verb, ids, of = call.verb, call.asked.get("ids") or (), state.of
    present = state.versions.present[call.asked.get("vector_name") or ""]
    reasons: dict[str, Callable[[], list[str]]] = {
        "RecordExists": lambda: [i for i in ids if verb == "insert" and i in of],
        "RecordNotFound": lambda: [i for i in ids if verb in ("update", "query") and i not in of],
        "InvalidQuery": lambda: [
            i for i in ids if verb == "query" and i in of and not present[of[i]]
        ],
        "InvalidCursor": lambda: [verb] if purged and verb in ("scan", "pages") else [],
    }
    found = reasons[call.refusal]()
    if not found:
        raise Wrong(f"there is no reason for {call.refusal}")
    if others := set(call.answer.get("ids", ())) - set(found):
        raise Wrong(f"{call.refusal} names {min(others)!r}, which is no reason for it")
    if call.answer.get("count", len(found)) != len(found):
        raise Wrong(f"{call.refusal} is told for {call.answer['count']} records, not {len(found)}")


def _same_ids(got: Sequence[str], wanted: Sequence[str], state: State) -> None:
    """The same ids, each once, in any order."""
    if len(set(got)) < len(got):
        twice = next(i for i in got if got.count(i) > 1)
        raise Wrong(f"{twice!r} is there twice")
    for record_id in set(got) - set(wanted):
        _no_ghost(record_id, state)
        raise Wrong(f"{record_id!r} does not match")
    for record_id in set(wanted) - set(got):
        raise Wrong(f"{record_id!r} is missing")


def _no_ghost(record_id: str, state: State) -> int:
    """The live version of a record."""
    number = state.of.get(record_id)
    if number is None:
        known = record_id in state.versions.ids
        raise Wrong(f"{record_id!r} was {'not live' if known else 'never written'} at that moment")
    return number


def _same_content(numbers: list[int], held: Any, query: int | None, versions: Versions) -> None:
    """The included columns are those of the versions; `query` picks from nested ones."""

    def part(column: Any) -> Any:
        return column if column is None or query is None else column[query]

    def compare(what: str, given: Any, wanted: Any) -> None:
        if np.array_equal(given, wanted) if isinstance(wanted, np.ndarray) else given == wanted:
            return
        for n, ours, own in zip(numbers, given if given is not None else (), wanted, strict=False):
            if not np.array_equal(ours, own) if isinstance(own, np.ndarray) else ours != own:
                raise Wrong(f"{what} of {versions.ids[n]!r} is {ours}, and it was {own}")

    compare("metadata", part(held.metadata), [versions.metadata[n] for n in numbers])
    compare("document", part(held.documents), [versions.documents[n] for n in numbers])
    compare("vector", part(held.vectors), versions.vectors[""][numbers])
    for name in held.named_vectors or {}:
        present = versions.present[name][numbers]
        compare(f"presence of {name}", part(held.named_present[name]), present)
        there = [n for n, held_it in zip(numbers, present.tolist(), strict=True) if held_it]
        given = part(held.named_vectors[name])[present]
        if not np.array_equal(given, versions.vectors[name][there]):
            raise Wrong(f"vectors {name} are others")


def _judge_query(call: Any, state: State) -> list[float]:
    asked, answer, versions = call.asked, call.answer, state.versions
    name = asked.get("vector_name") or ""
    if asked.get("ids") is None:
        queries = np.atleast_2d(asked["vectors"])
    else:
        own = [_no_ghost(i, state) for i in asked["ids"]]
        queries = versions.vectors[name][own]
    near = state.distances(queries, name)
    near[:, ~state.allowed(asked.get("filter"))] = np.inf
    if asked.get("ids") is not None:
        near[np.arange(len(own)), np.searchsorted(state.live, own)] = np.inf
    found = [_Found(near[i], i, answer, state) for i in range(len(queries))]
    if asked.get("group_by"):
        for one in found:
            one.judge_groups(
                asked["group_by"],
                asked["k"],
                asked.get("group_size") or 1,
                bool(asked.get("exact")),
            )
    elif asked.get("max_distance") is not None:
        for one in found:
            one.judge_range(asked["max_distance"])
    else:
        recalls = [one.recall(asked["k"]) for one in found]
        if not asked.get("exact"):
            return recalls
        if min(recalls) < 1.0:
            raise Wrong(f"an exact answer missed nearer records: recall {min(recalls)}")
    return []


class _Found:
    """The answer to one query vector: live, allowed, and with the right distances and content."""

    def __init__(self, near: Any, query: int, answer: Any, state: State) -> None:
        self.near = near
        """To all of `state.live`, infinity where one may not answer."""
        self.ids = answer.ids[query]
        self.groups = None if answer.groups is None else answer.groups[query]
        self.versions, self.live = state.versions, state.live
        numbers = [_no_ghost(i, state) for i in self.ids]
        self.places = np.searchsorted(self.live, numbers)
        self.own = near[self.places]
        self.rounding = ROUNDING * max(1.0, float(np.abs(near[np.isfinite(near)]).max(initial=0)))
        given = answer.distances[query]
        for i, told, true in zip(self.ids, given, self.own, strict=False):
            if not np.isfinite(true):
                raise Wrong(f"{i!r} must not answer: it does not match, or has no vector, or asks")
            if not abs(told - true) <= self.rounding:
                raise Wrong(f"{i!r} is said to be {told} away, and its vector was {true} away")
        if not np.isnan(given[len(self.ids) :]).all():
            raise Wrong("there are distances behind the last answer")
        _same_content(numbers, answer, query, self.versions)

    def expect_order(self) -> None:
        if len(set(self.ids)) < len(self.ids):
            raise Wrong("a record answers twice")
        if (self.own[1:] < self.own[:-1] - 2 * self.rounding).any():
            raise Wrong("answers are not nearest first")

    def recall(self, k: int) -> float:
        """Share of the k nearest, ties and rounding aside."""
        self.expect_order()
        can = min(k, int(np.isfinite(self.near).sum()))
        if len(self.ids) != can:
            raise Wrong(f"{len(self.ids)} answers, though {can} of {k} can be given")
        if not can:
            return 1.0
        worst = np.partition(self.near, can - 1)[can - 1]
        return float((self.own <= worst + 2 * self.rounding).mean())

    def judge_range(self, bound: float) -> None:
        """All that are within, nothing beyond; either at the bound itself."""
        self.expect_order()
        surely = set(np.flatnonzero(self.near < bound - self.rounding).tolist())
        if missing := surely - set(self.places.tolist()):
            lost = self.versions.ids[self.live[missing.pop()]]
            raise Wrong(f"{lost!r} lies within {bound} and is missing")
        if (self.own > bound + self.rounding).any():
            raise Wrong(f"an answer lies beyond {bound}")

    def judge_groups(self, path: str, k: int, size: int, exact: bool) -> None:
        """k groups where there are so many, each with as many hits as it has; exact: the best ones."""
        every = self.versions.groups(path)
        members: dict[Any, list[float]] = defaultdict(list)
        for place in np.argsort(self.near, kind="stable")[: np.isfinite(self.near).sum()].tolist():
            for value in every[self.live[place]]:
                members[value].append(self.near[place])
        hits: dict[Any, list[float]] = defaultdict(list)
        for i, place, value in zip(self.ids, self.places.tolist(), self.groups, strict=True):
            if value not in every[self.live[place]]:
                raise Wrong(f"{i!r} is not in group {value!r}")
            hits[value].append(self.near[place])
        if len(set(zip(self.ids, self.groups, strict=True))) < len(self.ids):
            raise Wrong("a record is twice in its group")
        if len(hits) != min(k, len(members)):
            raise Wrong(f"{len(hits)} groups, though {min(k, len(members))} can be given")
        for value, own in hits.items():
            can = members[value][:size]
            if len(own) != len(can):
                raise Wrong(f"{len(own)} hits in group {value!r}, though {len(can)} can be given")
            if exact and self._apart(own, can):
                raise Wrong(f"group {value!r} has other hits that are nearer")
        firsts = [own[0] for own in hits.values()]
        best = sorted(own[0] for own in members.values())[: len(hits)]
        if exact and self._apart(firsts, best):
            raise Wrong("other groups are nearer, or groups are out of order")

    def _apart(self, some: list[float], others: list[float]) -> bool:
        return not np.allclose(some, others, rtol=0.0, atol=2 * self.rounding)
