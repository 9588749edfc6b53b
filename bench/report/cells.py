"""Tables: a row a system, a column a number, with spread, the best in bold, and a dash where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .lines import Run, Spread

NONE = "\u2013"
SHORT = "¹"
"""Marks a rate at which the recall that was asked for is not reached."""
ENOUGH = 0.005
"""A recall this little below its target counts as reaching it: rounds differ by as much."""

_SIZES = ("disk_bytes", "disk_to_raw")


@dataclass(frozen=True, slots=True)
class Column:
    """One number of one case. `scale` makes the unit of the title out of what the file has."""

    title: str
    workload: str
    case: str
    key: str
    higher: bool = True
    scale: float = 1.0
    target: float | None = None
    """The recall that the rate is meant for; rates below it are marked and are never the best."""
    instead: str | None = None
    """A key that is taken first, where a system has it."""
    after: str | None = None
    """A case of the same workload whose number comes on top: what one waits for before this one."""
    raw: bool = False
    """As a share of the raw vectors of the case, whose bytes are told by its disk's."""

    def spread(self, run: Run, system: str) -> Spread | None:
        found = None
        for key in (self.instead, self.key):
            if key is not None and found is None:
                found = run.spread(system, self.workload, self.case, key)
        if found is None:
            return None
        values = [found.median, found.low, found.high]
        if self.after is not None:
            before = run.spread(system, self.workload, self.after, self.key)
            if before is None:
                return None
            values = [values[0] + before.median, values[1] + before.low, values[2] + before.high]
        if self.raw:
            sizes = [run.spread(system, self.workload, self.case, key) for key in _SIZES]
            if sizes[0] is None or sizes[1] is None or not sizes[0].median:
                return None
            values = [one * sizes[1].median / sizes[0].median for one in values]
        middle, low, high = (one * self.scale for one in values)
        return Spread(middle, low, high, found.count)

    def recall(self, run: Run, system: str) -> float | None:
        found = run.spread(system, self.workload, self.case, "recall")
        return None if found is None else found.median

    def is_short(self, run: Run, system: str) -> bool:
        """Whether the recall that was asked for is not reached."""
        reached = self.recall(run, system)
        return self.target is not None and reached is not None and reached < self.target - ENOUGH


def figure(value: float) -> str:
    """Three digits that count; whole numbers from 100 on."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):g}"


def spread_text(found: Spread) -> str:
    middle = figure(found.median)
    if found.count < 2 or figure(found.low) == figure(found.high):
        return middle
    return f"{middle} ({figure(found.low)}-{figure(found.high)})"


def best(run: Run, column: Column) -> float | None:
    """The best median of the databases that reach the recall; None where none does."""
    found = [
        one.median
        for system in run.engines
        if (one := column.spread(run, system)) is not None and not column.is_short(run, system)
    ]
    if not found:
        return None
    return max(found) if column.higher else min(found)


def cell(run: Run, column: Column, system: str, spread: bool = True) -> str:
    """What one system has in one column."""
    found = column.spread(run, system)
    if found is None:
        return "failed" if run.has_failed(system, column.workload, column.case) else NONE
    text = spread_text(found) if spread else figure(found.median)
    if column.is_short(run, system):
        reached = column.recall(run, system)
        return f"{text}{SHORT} at {reached:.2f}"
    if not run.is_limit(system) and found.median == best(run, column):
        text = f"**{text}**"
    if run.has_failed(system, column.workload, column.case):
        text += ", and failed"
    return text


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def systems_table(run: Run, columns: Sequence[Column], spread: bool = True) -> str:
    """A row for each system that has any of the numbers, databases first, then limits in italics; a column for each
    number that any system has, or failed to give."""
    columns = [
        column
        for column in columns
        if any(cell(run, column, system, spread) != NONE for system in run.systems)
    ]
    rows = []
    for system in (*run.engines, *(one for one in run.systems if run.is_limit(one))):
        cells = [cell(run, column, system, spread) for column in columns]
        if any(one != NONE for one in cells):
            rows.append((f"*{system}*" if run.is_limit(system) else system, *cells))
    return table(("system", *(column.title for column in columns)), rows) if rows else ""
