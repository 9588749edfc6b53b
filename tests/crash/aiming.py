"""Which kill comes next: how, at which failpoint, with which settings."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

from crash import striking
from crash.tally import Case, Tally

RARE: dict[str, Any] = {"max_open_collections": 1, "history_s": 3_600.0}
"""Settings that each third case has: files are let go of and opened again; what is dead is kept."""
STEPS = 30
"""Operations of a counted case, at most."""
FIRST = ("database.", "catalog.mkdir", "catalog.r", "catalog.sync-folder")
"""Points that are reached when a database is made: for these it is made anew."""
NOT_SERVED = (
    "repair.", "keep.", "upgrade.", "downgrade.", "restore.mkdir", "restore.touch", "restore.rename", "damage.",
)  # fmt: skip
"""Points that no server reaches."""
LEFT_BY = {
    "catalog.remove": ("catalog.rename.before", "catalog.sync-folder.before"),
    "catalog.rmdir": ("catalog.mkdir.after", "catalog.rename.before"),
    "sweep.rmdir": ("create.mkdir.after", "create.touch.before", "drop.rmdir.before"),
    "sweep.sync-folder": ("create.remove.before", "drop.touch.after", "drop.sync-folder.after"),
}
"""Points that only an opening reaches which finds what a kill at one of these others has left."""
READERS = 0.1
"""Share of servers that have a process beside them that reads."""
MISSES = 4
"""So many kills that were aimed at a point in vain count as much as one there: what is hard to strike is tried more often,
and what cannot be struck does not take all."""


class Aiming:
    """Draws one case after the other. Arguments are those of `Campaign`, which says what they mean; `interval` is the durability."""

    def __init__(
        self,
        tally: Tally,
        ways: tuple[str, ...],
        aim: float,
        cuts: float,
        points: tuple[str, ...],
        *,
        copiers: float,
        counted: bool,
        interval: bool,
    ) -> None:
        self._tally = tally
        self._ways = ways
        self._aim = 1.0 if counted else aim
        self._cuts = 0.0 if counted else cuts
        self._points = points
        self._copiers = copiers
        self._counted = counted
        self._interval = interval
        self._tried: Counter[tuple[str, str]] = Counter()
        """Cases aimed at each failpoint, by what was to strike there: a kill, a power cut, the kill of a copying process."""
        self._next: Case | None = None
        """The case for which the one before was to leave something."""
        self._last: Case | None = None

    def drawn(self, rng: random.Random) -> Case:
        """The next case; the one before has ended."""
        waiting, last = self._next, self._last
        self._next = None
        if waiting is not None and last is not None and last.died_at == last.point:
            self._last = waiting
            return waiting
        self._last = case = self._any(rng)
        left_by = LEFT_BY.get(case.point.rpartition(".")[0])
        if left_by is not None:
            self._next = Case(
                case.way, case.seed, case.point, power_cut=case.power_cut, steps=case.steps, opening=True,
            )  # fmt: skip
            # What a power cut takes may be just that.
            case.point, case.hit, case.power_cut = rng.choice(left_by), 1, False
        return case

    def _any(self, rng: random.Random) -> Case:
        case = Case(rng.choice(self._ways), rng.randrange(1 << 30))
        case.power_cut = rng.random() < self._cuts
        tally = self._tally
        if rng.random() < self._aim and (self._points or tally.hits):
            among = [
                name
                for name in self._points or tally.hits
                if case.way == "embedded" or not name.startswith(NOT_SERVED)
            ]
            what, struck = ("cut", tally.cut_points) if case.power_cut else ("kill", tally.points)
            case.point = self._fewest(among, what, struck, rng) if among else ""
            case.hit = 1 if case.point.startswith(FIRST) else rng.choice([1, 1, 1, 2, 3, 5])
        if self._counted:
            case.steps = rng.randrange(4, STEPS)
        elif not case.power_cut and not self._interval:
            # What another process syncs, no simulated disk would know; nor would it know of boots that are pretended.
            often = 5 if case.point.startswith("backup") else 1
            case.copiers = rng.random() < self._copiers * often
        if not self._counted:
            case.settings = {name: at for name, at in RARE.items() if rng.random() < 0.3}
            # At `interval` nobody opens a folder for writing while processes that read have not noticed the kill; they would
            # go on in the files that a power cut takes away, too.
            alone = case.way != "server" or case.power_cut or self._interval
            if not alone and rng.random() < READERS:
                case.settings["read_processes"] = 1
        if case.copiers and rng.random() < 0.7:
            among = [*striking.COPYING, ""]
            case.copier_point = self._fewest(among, "copier", tally.copier_points, rng)
            case.copier_hit = rng.choice([1, 1, 1, 2])
            case.copier_after_s = 0.0 if case.copier_point else rng.uniform(0.1, 0.9)
        return case

    def _fewest(
        self, among: list[str], what: str, struck: Mapping[str, int], rng: random.Random
    ) -> str:
        """The point that was struck least."""

        def so_far(name: str) -> tuple[float, float]:
            return struck.get(name, 0) + self._tried[what, name] / MISSES, rng.random()

        found = min(sorted(among), key=so_far)
        self._tried[what, found] += 1
        return found
