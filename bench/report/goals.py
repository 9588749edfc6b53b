"""How far vecdb is from what it is meant to reach: beside Chroma's server, and among embedded databases."""

from __future__ import annotations

from dataclasses import dataclass

from . import measures
from .cells import NONE, Column, figure, table
from .lines import Run

SERVED, EMBEDDED = "vecdb-grpc", "vecdb"
CHROMA_SERVER = "chroma-server"
PEERS = ("chroma", "qdrant-edge", "lancedb", "milvus-lite", "zvec")


@dataclass(frozen=True, slots=True)
class Goal:
    """How many times better than the other a number is to be."""

    column: Column
    asked: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """`ratio` is how many times better vecdb is; None where one of both was not measured."""

    goal: Goal
    mine: str
    other: str
    ratio: float | None
    met: bool | None
    why: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where vecdb stands among the embedded databases in one row; `place` None where it was not measured
    or misses the recall."""

    column: Column
    place: int | None
    count: int
    mine: str
    best: str
    ratio: float | None
    why: str


def goals(run: Run) -> list[Goal]:
    found = [Goal(measures.load(), 20)]
    for column in measures.singles(run):
        if column.case.startswith("callers=1 "):
            found.append(Goal(column, 4))
        if column.case.startswith("callers=8 "):
            found.append(Goal(column, 10))
    found += [Goal(column, 50) for column in measures.filters(run)]
    found.append(Goal(measures.upsert(), 30))
    found += [Goal(measures.memory(), 2), Goal(measures.disk(), 2), Goal(measures.opened(), 4)]
    return found


def beside(run: Run, other: str = CHROMA_SERVER, mine: str = SERVED) -> list[Outcome]:
    """Each goal against `other`, from medians of this run; nothing where one of both is not in the run.

    A peer that misses the recall had it easier, so a ratio against it counts; vecdb missing the recall
    meets no goal.
    """
    if mine not in run.systems or other not in run.systems:
        return []
    return [_outcome(run, goal, mine, other) for goal in goals(run)]


def _outcome(run: Run, goal: Goal, mine: str, other: str) -> Outcome:
    column = goal.column
    here, there = column.spread(run, mine), column.spread(run, other)
    first, second = (NONE if one is None else figure(one.median) for one in (here, there))
    if here is None or there is None:
        missing = [name for name, one in ((mine, here), (other, there)) if one is None]
        return Outcome(goal, first, second, None, None, f"not measured: {', '.join(missing)}")
    ratio = _ratio(column, here.median, there.median)
    if column.is_short(run, mine):
        return Outcome(goal, first, second, ratio, False, f"recall {column.recall(run, mine):.3f}")
    why = ""
    if column.is_short(run, other):
        why = f"{other} reaches recall {column.recall(run, other):.3f} only"
    return Outcome(goal, first, second, ratio, ratio >= goal.asked, why)


def _ratio(column: Column, mine: float, other: float) -> float:
    """How many times better `mine` is."""
    above, below = (mine, other) if column.higher else (other, mine)
    return above / below if below else float("inf")


def places(run: Run, mine: str = EMBEDDED) -> list[Place]:
    """vecdb among the embedded databases, a row for each of `measures.usual` that it or one of them has."""
    if mine not in run.systems:
        return []
    peers = [one for one in PEERS if one in run.systems]
    found = [_place(run, column, mine, peers) for column in measures.usual(run)] if peers else []
    return [one for one in found if one.count or one.mine != NONE]


def _place(run: Run, column: Column, mine: str, peers: list[str]) -> Place:
    here = column.spread(run, mine)
    text = NONE if here is None else figure(here.median)
    ranked = {
        peer: one.median
        for peer in peers
        if (one := column.spread(run, peer)) is not None and not column.is_short(run, peer)
    }
    left = [
        f"{peer} misses the recall"
        for peer in peers
        if column.spread(run, peer) is not None and peer not in ranked
    ]
    best = (max if column.higher else min)(ranked, key=lambda one: ranked[one], default=None)
    best_text = NONE if best is None else f"{figure(ranked[best])} ({best})"
    if here is None or column.is_short(run, mine):
        words = "not measured" if here is None else f"recall {column.recall(run, mine):.3f}"
        return Place(column, None, len(ranked), text, best_text, None, words)
    ahead = [one for one in ranked.values() if _ratio(column, here.median, one) < 1]
    ratio = None if best is None else _ratio(column, here.median, ranked[best])
    return Place(column, len(ahead) + 1, len(ranked), text, best_text, ratio, "; ".join(left))


def served_table(outcomes: list[Outcome]) -> str:
    words = {True: "met", False: "**not met**", None: NONE}
    rows = [
        (
            one.goal.column.title,
            one.mine,
            one.other,
            f"{one.goal.asked:g} x",
            NONE if one.ratio is None else f"{figure(one.ratio)} x",
            words[one.met] + (f" ({one.why})" if one.why else ""),
        )
        for one in outcomes
    ]
    return table(("beside Chroma's server", "vecdb", "Chroma", "asked", "measured", ""), rows)


def places_table(found: list[Place]) -> str:
    rows = []
    for one in found:
        place = NONE if one.place is None else f"{one.place} of {one.count + 1}"
        if one.place is not None and one.place > 1:
            place = f"**{place}**"
        note = f" ({one.why})" if one.why else ""
        ratio = NONE if one.ratio is None else f"{figure(one.ratio)} x"
        rows.append((one.column.title, one.mine, one.best, ratio, place + note))
    return table(("embedded", "vecdb", "best other", "vecdb / it", "place"), rows)


def summary(outcomes: list[Outcome], found: list[Place]) -> str:
    """How many goals are met, and which are not, in a sentence or two."""
    parts = []
    if outcomes:
        judged = [one for one in outcomes if one.met is not None]
        missed = [
            f"{one.goal.column.title} ({figure(one.ratio or 0)} x of {one.goal.asked:g} x)"
            for one in judged
            if not one.met
        ]
        text = f"Beside Chroma's server {len(judged) - len(missed)} of {len(judged)} goals are met"
        text += f"; not met: {', '.join(missed)}" if missed else ""
        unknown = [one.goal.column.title for one in outcomes if one.met is None]
        parts.append(text + (f"; not measured: {', '.join(unknown)}." if unknown else "."))
    if found:
        behind = [f"{one.column.title} ({_who(one)})" for one in found if one.place != 1]
        first = len(found) - len(behind)
        text = f"Among embedded databases vecdb is first in {first} of {len(found)} rows"
        parts.append(text + (f"; not first: {', '.join(behind)}." if behind else "."))
    return " ".join(parts)


def _who(place: Place) -> str:
    """Why vecdb is not first."""
    if place.place is None:
        return place.why
    name = place.best.partition("(")[2].rstrip(")")
    return f"behind {name}, {figure(place.ratio or 0)} x of it"
