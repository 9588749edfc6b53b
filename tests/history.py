"""Histories of concurrent calls, and a judge of them: could one collection have given these answers?

Each thread calls through a `Recorder` of its own. Afterwards `check` replays the acknowledged writes
in the order of their commits and holds every answer against what the collection held at the commit that
the answer names; an answer that names none must agree with some commit between call and return.

Writes that share a commit have no order that an acknowledgement could tell. Every order that explains
their counts is carried along, until a later answer rules it out.

Plain Python and numpy: it knows nothing of the engine but the names of its verbs.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from history_order import Newest, Window, apart
from history_state import Space, State, Versions, Wrong, judge, judge_refusal

WRITES = ("insert", "upsert", "update", "delete")
_MOST_STATES = 256
_SHOWN_WRITES = 12


class Violation(AssertionError):
    """A history that no collection could have. The message says why, and what happened nearby."""


@dataclass
class Call:
    """One call: what was asked of which verb, when, and what came back."""

    thread: str
    verb: str
    asked: dict[str, Any]
    start: float
    end: float
    answer: Any
    sequence: int | None
    """The commit that the answer names."""
    refusal: str = ""
    """Name of the error's class; then `answer` holds its details."""
    number: int = -1
    """Place among all calls, by start; set by `check`."""

    def __str__(self) -> str:
        answer = f"refused: {self.refusal} {_short(self.answer)}" if self.refusal else self.shown
        asked = ", ".join(
            f"{k}={_short(v, 2 if k == 'metadata' else 8)}"
            for k, v in self.asked.items()
            if k not in ("documents", "named_vectors")
        )
        return (
            f"call {self.number} of {self.thread}, {self.start:.6f} to {self.end:.6f}: "
            f"{self.verb}({asked}) -> {answer}"
        )

    @property
    def shown(self) -> str:
        if self.verb in WRITES:
            return f"commit {self.sequence}, count {self.answer.count}"
        held = self.answer if isinstance(self.answer, int) else _ids_of(self.answer)
        return f"commit {self.sequence}: {_short(held)}"


class Recorder:
    """The verbs of a collection for one thread. `calls` may be shared: appending is atomic.

    `refusals` names the classes of errors that are answers too, as when an id exists already.
    """

    def __init__(
        self, collection: Any, calls: list[Call], thread: str = "", refusals: Sequence[str] = ()
    ) -> None:
        self.collection = collection
        self.calls = calls
        self.thread = thread or threading.current_thread().name
        self.refusals = refusals
        self.last: Call | None = None
        """The newest call of this recorder."""

    def call(self, verb: str, **asked: Any) -> Any:
        """Calls a verb with these keywords and records it; the answer, None where it was refused.

        `pages` is `get` page by page to the end; `scan` gives a list of all its batches.
        """
        run = _RUNS.get(verb, _one)
        start = time.monotonic()
        try:
            answer, sequence = run(self.collection, verb, asked)
            refusal = ""
        except Exception as error:
            refusal = type(error).__name__
            if refusal not in self.refusals:
                raise
            answer, sequence = dict(getattr(error, "details", {})), None
        end = time.monotonic()
        self.last = Call(self.thread, verb, asked, start, end, answer, sequence, refusal=refusal)
        self.calls.append(self.last)
        return None if refusal else answer


def _one(collection: Any, verb: str, asked: Mapping[str, Any]) -> tuple[Any, int]:
    answer = getattr(collection, verb)(**asked)
    return answer, answer.sequence


def _count(collection: Any, _: str, asked: Mapping[str, Any]) -> tuple[int, int | None]:
    if hasattr(collection, "count_at"):
        counted: tuple[int, int] = collection.count_at(**asked)
        return counted
    return collection.count(**asked), None


def _stats(collection: Any, _: str, asked: Mapping[str, Any]) -> tuple[int, int]:
    stats = collection.stats(**asked)
    return stats.count, stats.sequence


def _scan(collection: Any, _: str, asked: Mapping[str, Any]) -> tuple[list[Any], int]:
    batches = list(collection.scan(**asked))
    return batches, batches[0].sequence


def _pages(collection: Any, _: str, asked: Mapping[str, Any]) -> tuple[list[Any], int]:
    pages = [collection.get(**asked)]
    while pages[-1].cursor is not None:
        pages.append(collection.get(**asked, cursor=pages[-1].cursor))
    return pages, pages[0].sequence


_RUNS: dict[str, Callable[..., tuple[Any, int | None]]] = {
    "count": _count, "stats": _stats, "scan": _scan, "pages": _pages,
}  # fmt: skip


@dataclass
class Report:
    """What was checked. `recalls` of approximate queries by vector field, one number a query."""

    reads: int = 0
    writes: int = 0
    commits: int = 0
    refusals: int = 0
    most_orders: int = 1
    """States that were carried along at once, because writes shared a commit."""
    most_shared: int = 0
    """Writes that shared one commit."""
    recalls: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def recall(self, name: str = "") -> float:
        return float(np.mean(self.recalls[name])) if self.recalls[name] else 1.0


def check(calls: Sequence[Call], spaces: Mapping[str, Space], seed: object = "") -> Report:
    """Raises Violation unless a collection could have answered so; `spaces[""]` is the own vector.

    The collection was empty before the first call, and nobody else wrote to it.
    """
    return _Judge(calls, spaces, seed).run()


class _Judge:
    def __init__(self, calls: Sequence[Call], spaces: Mapping[str, Space], seed: object) -> None:
        self.calls = sorted(calls, key=lambda call: call.start)
        for number, call in enumerate(self.calls):
            call.number = number
        self.seed = seed
        self.versions = Versions(spaces)
        self.report = Report()
        self._made: dict[Any, int] = {}
        self._writes: dict[int, list[Call]] = defaultdict(list)
        self._idle: dict[int, list[Call]] = defaultdict(list)
        """Deletes that found nothing; they name the commit that they saw."""
        self._named: dict[int, list[Call]] = defaultdict(list)
        self._unnamed: dict[int, list[Window]] = defaultdict(list)
        """By the earliest commit they may have seen."""
        done = [call for call in self.calls if call.verb in WRITES and not call.refusal]
        for call in done:
            (self._writes if call.answer.count else self._idle)[call.sequence].append(call)
        self._ended = Newest((call.end, call.sequence) for call in done)
        self._begun = Newest((call.start, call.sequence) for call in done if call.answer.count)

    def run(self) -> Report:
        self._order()
        states = [State(self.versions, {})]
        waiting: list[Window] = []
        for commit in range(max(self._writes, default=0) + 1):
            if commit:
                states = self._commit(commit, states)
            for call in self._named[commit]:
                states = self._answered(call, states)
            waiting = [
                window
                for window in waiting + self._unnamed[commit]
                if not self._could_be(window, states, commit)
            ]
        return self.report

    # -- which commits an answer may be of

    def _order(self) -> None:
        seen: dict[str, int] = defaultdict(int)
        for call in self.calls:
            acknowledged, newest = self._ended.before(call.start), self._begun.until(call.end)
            oldest = max(acknowledged, seen[call.thread], call.asked.get("min_sequence") or 0)
            if call.sequence is None:
                self._unnamed[oldest].append(Window(call, oldest, newest))
                self.report.refusals += bool(call.refusal)
                self.report.reads += not call.refusal
                continue
            changes = call.verb in WRITES and call.answer.count > 0
            if call.sequence > newest:
                self._fail(f"names commit {call.sequence}, which no write had begun by then", call)
            if call.sequence < oldest + changes:
                why = "had been acknowledged before it began"
                if oldest > acknowledged:
                    why = (
                        "its own thread had seen" if oldest == seen[call.thread] else "it asked for"
                    )
                self._fail(f"names commit {call.sequence}, though {why} commit {oldest}", call)
            seen[call.thread] = call.sequence
            if call.verb not in WRITES:
                self._named[call.sequence].append(call)

    # -- writes

    def _commit(self, commit: int, states: list[State]) -> list[State]:
        group, idle = self._writes[commit], self._idle[commit]
        if not group:
            self._fail(f"no write was told commit {commit}, though there are later ones", at=commit)
        self.report.commits += 1
        self.report.writes += len(group) + len(idle)
        found: list[State] = []
        wrong: list[Wrong] = []
        for state in states:
            # Whoever shares nothing with the others can stand anywhere.
            fixed = not idle and apart(group)
            for of in self._orders(state.of, group, idle, wrong, fixed=fixed):
                if all(of != other.of for other in found):
                    found.append(State(self.versions, of))
        if not found:
            self._fail(str(wrong[0]), *group, *idle)
        if len(found) > _MOST_STATES:
            raise RuntimeError("too many orders to follow: reads must tell more of what is written")
        self.report.most_orders = max(self.report.most_orders, len(found))
        self.report.most_shared = max(self.report.most_shared, len(group) + len(idle))
        return found

    def _orders(
        self,
        of: dict[str, int],
        group: list[Call],
        idle: list[Call],
        wrong: list[Wrong],
        *,
        fixed: bool,
    ) -> list[dict[str, int]]:
        """What the collection may hold after the writes of a commit, in every order that explains their counts.

        Step by step: after some of the writes, in whatever order, only the different outcomes are kept.
        """
        nothing = {call.number: call for call in idle}
        """Deletes that found nothing: such a moment must come for each."""

        def unexplained(numbers: Iterable[int], held: dict[str, int]) -> tuple[int, ...]:
            return tuple(n for n in numbers if self._doomed(nothing[n], held))

        layer = {frozenset[int](): [(of, unexplained(nothing, of))]}
        for step in range(len(group)):
            after: dict[frozenset[int], list[tuple[dict[str, int], tuple[int, ...]]]] = defaultdict(
                list
            )
            for done, outcomes in layer.items():
                for place in [step] if fixed else set(range(len(group))) - done:
                    for held, left in outcomes:
                        try:
                            new = self._after(group[place], held)
                        except Wrong as error:
                            wrong.append(error)
                            continue
                        outcome = new, unexplained(left, new)
                        if outcome not in after[done | {place}]:
                            after[done | {place}].append(outcome)
            layer = after
        found = []
        for new, left in [outcome for outcomes in layer.values() for outcome in outcomes]:
            if left:
                wrong.append(
                    Wrong(f"call {left[0]} deleted nothing, though what it names was stored")
                )
            else:
                found.append(new)
        return found

    def _after(self, call: Call, of: dict[str, int]) -> dict[str, int]:
        """Id to version after a write."""
        of = dict(of)
        if call.verb == "delete":
            doomed = self._doomed(call, of)
            for record_id in doomed:
                del of[record_id]
            count = len(doomed)
        else:
            ids = call.asked["ids"]
            count = len(ids)
            held = [i for i in ids if i in of]
            if call.verb == "insert" and held:
                raise Wrong(f"call {call.number} was acknowledged, though {held[0]!r} was stored")
            if call.verb == "update" and len(held) < count:
                lost = next(i for i in ids if i not in of)
                raise Wrong(f"call {call.number} was acknowledged, though {lost!r} was not stored")
            for place, record_id in enumerate(ids):
                before = of.pop(record_id) if call.verb == "update" else None
                key = (call.number, place, before)
                if key not in self._made:
                    self._made[key] = self._version(call, place, before)
                of[record_id] = self._made[key]
        if call.answer.count != count:
            raise Wrong(f"call {call.number} counted {call.answer.count}, and it was {count}")
        return of

    def _doomed(self, call: Call, of: Mapping[str, int]) -> list[str]:
        ids, expression = call.asked.get("ids"), call.asked.get("filter")
        names = list(of) if ids is None else [i for i in ids if i in of]
        if expression is not None:
            keep = self.versions.matching(expression)
            names = [i for i in names if keep[of[i]]]
        return names

    def _version(self, call: Call, place: int, before: int | None) -> int:
        asked, held = call.asked, self.versions

        def given(part: str) -> Any:
            return None if asked.get(part) is None else asked[part][place]

        vectors = {"": given("vectors")}
        for name, column in (asked.get("named_vectors") or {}).items():
            vectors[name] = column[place]
        metadata, document = dict(given("metadata") or {}), given("documents")
        if before is not None:
            for name in held.spaces:
                if vectors.get(name) is None and held.present[name][before]:
                    vectors[name] = held.vectors[name][before]
            merged = {**held.metadata[before], **metadata}
            metadata = {k: v for k, v in merged.items() if v is not None}
            document = held.documents[before] if document is None else document
        made_by = (call.sequence or 0, call.number, place)
        return held.add(asked["ids"][place], vectors, metadata, document, made_by)

    # -- answers

    def _answered(self, call: Call, states: list[State]) -> list[State]:
        """The states that explain an answer."""
        fits, wrong, recalls = [], [], []
        for state in states:
            try:
                recalls.append(judge(call, state))
                fits.append(state)
            except Wrong as error:
                wrong.append(error)
        if not fits:
            self._fail(str(wrong[0]), call)
        self.report.reads += 1
        self.report.recalls[call.asked.get("vector_name") or ""] += recalls[0]
        return fits

    def _could_be(self, window: Window, states: list[State], commit: int) -> bool:
        """Whether an answer that names no commit can be of this one; Violation if it was the last."""
        call, wrong = window.call, None
        beside = self._writes[commit] if commit > window.first else []
        for state in states:
            try:
                if call.refusal:
                    judge_refusal(call, state, beside)
                else:
                    judge(call, state)
                return True
            except Wrong as error:
                wrong = error
        if commit >= window.last:
            self._fail(f"fits no commit that it may have seen; of commit {commit}: {wrong}", call)
        return False

    def _fail(self, why: str, *calls: Call, at: int | None = None) -> NoReturn:
        begin = min((call.start for call in calls), default=0.0)
        end = max((call.end for call in calls), default=0.0)
        commits = {call.sequence for call in calls if call.sequence is not None} | {at or 0}
        near = [
            write
            for commit, group in sorted(self._writes.items())
            for write in group
            if (write.start <= end and write.end >= begin)
            or any(commit - 2 <= one <= commit + 1 for one in commits)
            or any(repr(i) in why for i in write.asked.get("ids") or ())
        ]
        raise Violation(
            "\n".join(
                [
                    f"seed {self.seed}: {why}",
                    *[f"  {call}" for call in calls],
                    "writes nearby:",
                    *[f"  {write}" for write in near[-_SHOWN_WRITES:]],
                ]
            )
        )


def _ids_of(answer: Any) -> Any:
    parts = answer if isinstance(answer, list) else [answer]
    return [i for part in parts for i in part.ids]


def _short(value: Any, most: int = 8) -> str:
    """A value for people: long ones cut, arrays by their shape."""
    if isinstance(value, np.ndarray):
        return f"array{value.shape}"
    if isinstance(value, list) and len(value) > most:
        return f"[{', '.join(_short(v) for v in value[:most])}, ... {len(value)} in all]"
    if isinstance(value, list):
        return f"[{', '.join(_short(v) for v in value)}]"
    text = repr(value)
    return text if len(text) <= 120 else text[:120] + "..."


__all__ = ["Call", "Recorder", "Report", "Space", "Violation", "check"]
