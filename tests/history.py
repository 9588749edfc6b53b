"""Histories of concurrent calls, and a judge of them: could one collection have given these answers?

Each thread calls through a `Recorder` of its own. Afterwards `check` replays the acknowledged writes
in the order of their commits and holds every answer against what the collection held at the commit that
the answer names; answers that name none must agree with commits between call and return, in one order with
all others (`history_order.py` says what is known of it).

Writes that share a commit have no order that an acknowledgement could tell. Every order that explains
their counts is carried along, until a later answer rules it out.

Plain Python and numpy: it knows nothing of the engine but the names of its verbs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from history_calls import Call, Recorder
from history_order import WRITES, Window, apart, changes, windows
from history_state import Space, State, Versions, Wrong, judge, judge_refusal

_MOST_STATES = 256
_SHOWN_WRITES = 12


class Violation(AssertionError):
    """A history that no collection could have. The message says why, and what happened nearby."""


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


def check(
    calls: Sequence[Call], spaces: Mapping[str, Space], seed: object = "", *, purges: bool = False
) -> Report:
    """Raises Violation unless a collection could have answered so; `spaces[""]` is the own vector.

    The collection was empty before the first call, and nobody else wrote to it. `purges`: dead records may
    lose their content meanwhile, so that a scan may come too late for it.
    """
    return _Judge(calls, spaces, seed, purges).run()


class _Judge:
    def __init__(
        self, calls: Sequence[Call], spaces: Mapping[str, Space], seed: object, purges: bool
    ) -> None:
        self.calls = sorted(calls, key=lambda call: call.start)
        for number, call in enumerate(self.calls):
            call.number = number
        self.seed, self.purges = seed, purges
        self.versions = Versions(spaces)
        self.report = Report()
        self._made: dict[Any, int] = {}
        self._writes: dict[int, list[Call]] = defaultdict(list)
        self._idle: dict[int, list[Call]] = defaultdict(list)
        """Deletes that found nothing; they name the commit that they saw."""
        self._behind: set[int] = set()
        """Those of them that came when that commit had been made."""
        self._named: dict[int, list[Call]] = defaultdict(list)
        self._unnamed: dict[int, list[Window]] = defaultdict(list)
        """By the earliest commit they may have seen."""
        for call in self.calls:
            if call.verb in WRITES and not call.refusal:
                (self._writes if changes(call) else self._idle)[call.sequence].append(call)

    def run(self) -> Report:
        self._order()
        states = [State(self.versions, {})]
        waiting: list[Window] = []
        for commit in range(max(self._writes, default=0) + 1):
            inside: list[State] = []
            if commit:
                refused = any(w.call.refusal and w.call.verb in WRITES for w in waiting)
                states, inside = self._commit(commit, states, refused)
            for call in self._named[commit]:
                states = self._answered(call, states)
            waiting = self._later(waiting, self._unnamed[commit], states, inside, commit)
        return self.report

    # -- which commits an answer may be of

    def _order(self) -> None:
        for window in windows(self.calls):
            call, first, last, why = window
            if call.sequence is None:
                if first > last:
                    self._fail(
                        f"can be of no commit after {last}, though {why} commit {first}", call
                    )
                self._unnamed[first].append(window)
                self.report.refusals += bool(call.refusal)
                self.report.reads += not call.refusal
                continue
            if call.sequence > last:
                self._fail(f"names commit {call.sequence}, which no write had begun by then", call)
            if call.sequence < first + changes(call):
                self._fail(f"names commit {call.sequence}, though {why} commit {first}", call)
            if call.verb not in WRITES:
                self._named[call.sequence].append(call)
            elif call.sequence == first:
                # The commit is one moment for all, and it was there: only what followed it can have been seen.
                self._behind.add(call.number)

    # -- writes

    def _commit(
        self, commit: int, states: list[State], refused: bool
    ) -> tuple[list[State], list[State]]:
        """The states after a commit, and, where a refused write may have met them, those between its writes."""
        group, idle = self._writes[commit], self._idle[commit]
        if not group:
            self._fail(f"no write was told commit {commit}, though there are later ones", at=commit)
        self.report.commits += 1
        self.report.writes += len(group) + len(idle)
        found: list[State] = []
        inside: list[State] = []
        wrong: list[Wrong] = []
        for state in states:
            # Whoever shares nothing with the others can stand anywhere.
            fixed = not idle and not refused and apart(group)
            for of in self._orders(state.of, group, idle, wrong, inside, fixed=fixed):
                if all(of != other.of for other in found):
                    found.append(State(self.versions, of))
        if not found:
            self._fail(str(wrong[0]), *group, *idle)
        if len(found) > _MOST_STATES:
            raise RuntimeError("too many orders to follow: reads must tell more of what is written")
        self.report.most_orders = max(self.report.most_orders, len(found))
        self.report.most_shared = max(self.report.most_shared, len(group) + len(idle))
        return found, inside if refused else []

    def _orders(
        self,
        of: dict[str, int],
        group: list[Call],
        idle: list[Call],
        wrong: list[Wrong],
        inside: list[State],
        *,
        fixed: bool,
    ) -> list[dict[str, int]]:
        """What the collection may hold after the writes of a commit, in every order that explains their counts.

        Step by step: after some of the writes, in whatever order, only the different outcomes are kept; `inside`
        gets those after some but not all.
        """
        nothing = {call.number: call for call in idle if call.number not in self._behind}
        """Deletes that found nothing: such a moment must come for each, or be the last for those that came behind."""

        def unexplained(numbers: Iterable[int], held: dict[str, int]) -> tuple[int, ...]:
            return tuple(n for n in numbers if self._doomed(nothing[n], held))

        layer = {frozenset[int](): [(of, unexplained(nothing, of))]}
        for step in range(len(group)):
            if step:
                inside += [State(self.versions, held) for o in layer.values() for held, _ in o]
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
            behind = (c.number for c in idle if c.number in self._behind and self._doomed(c, new))
            if bad := [*left, *behind]:
                wrong.append(
                    Wrong(f"call {bad[0]} deleted nothing, though what it names was stored")
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

    def _later(
        self,
        waiting: list[Window],
        new: list[Window],
        states: list[State],
        inside: list[State],
        commit: int,
    ) -> list[Window]:
        """The answers that name no commit and are of a later one than this; Violation if one cannot be.

        Each is given the first commit that explains it, and that is not before those of the answers that had ended when
        it began. Whatever commits the answers are truly of, none is before the one that it is given here: so where
        these are too late, all are.
        """
        met = min((window.call.end for window in waiting), default=math.inf)
        ended = math.inf
        later = []
        for window in sorted([*waiting, *new], key=lambda window: window.call.number):
            call, wrong = window.call, Wrong("only later ones fit an answer that ended before it")
            if call.start <= ended:
                # A refused write may stand between the writes of a commit. That is one moment, in which all calls last
                # that stand there, and what had ended before is of an earlier commit. Reads never see it.
                between = call.verb in WRITES and window.first < commit and call.start <= met
                fit = self._unfit(window, [*states, *(inside if between else ())], commit)
                if fit is None:
                    continue
                wrong = fit
            if commit >= window.last:
                why = f"fits no commit that it may have seen; of commit {commit}: {wrong}"
                self._fail(why, call)
            later.append(window)
            ended = min(ended, call.end)
        return later

    def _unfit(self, window: Window, states: list[State], commit: int) -> Wrong | None:
        """Why no state explains an answer."""
        call, wrong = window.call, None
        for state in states:
            try:
                if call.refusal:
                    # What goes on from an earlier moment can come too late for it once there is another.
                    judge_refusal(call, state, purged=self.purges and commit > window.first)
                else:
                    judge(call, state)
                return None
            except Wrong as error:
                wrong = error
        return wrong

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


__all__ = ["WRITES", "Call", "Recorder", "Report", "Space", "Violation", "check"]
