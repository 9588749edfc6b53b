"""The plots of one run. A system has the same colour in all of them; limits are dashed and grey."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import plots
from . import measures
from .cells import Column, best
from .lines import Run

_LEAST_RECALL = 0.8
_WORST = 1e-3
"""On the radar, what is a thousand times behind the best or more lies in the middle."""
_COLOURS = (
    *("#0b5fa5", "#e07b00", "#2a9d3a", "#c9302c", "#7b4fb5", "#8c5a45", "#d45fa8", "#7f9a00"),
    *("#0fa3b1", "#444444", "#b59f00", "#5f7fd4"),
)
_LATENCIES = ("callers=1 recall=", "callers=8 recall=", "callers=32 recall=")

Draw = Callable[[Run, Any], bool]
"""Draws onto an empty figure; False where the run has nothing to draw."""


def write(run: Run, folder: Path, stem: str) -> dict[str, str]:
    """Writes the plots that the run has numbers for, as <stem>-<name>.svg; file names by title.

    Without matplotlib nothing is written, and what lies there from before is named.
    """
    found: dict[str, str] = {}
    for name, (title, width, height, draw) in PLOTS.items():
        path = folder / f"{stem}-{name}.svg"
        drawn = plots.blank(width, height)
        if drawn is not None and draw(run, drawn):
            plots.save(drawn, path)
        elif drawn is not None:
            path.unlink(missing_ok=True)
        if path.exists():
            found[title] = path.name
    return found


def there(folder: Path, stem: str) -> dict[str, str]:
    """The plots that were written before: file names by title."""
    names = {title: f"{stem}-{name}.svg" for name, (title, *_) in PLOTS.items()}
    return {title: name for title, name in names.items() if (folder / name).exists()}


def _style(run: Run, system: str) -> dict[str, Any]:
    number = list(run.systems).index(system)
    if run.is_limit(system):
        limits = [one for one in run.systems if run.is_limit(one)]
        return {
            "color": "#888888",
            "linestyle": ("--", ":", "-.")[limits.index(system) % 3],
            "marker": plots.MARKS[number % len(plots.MARKS)],
            "markersize": 3,
            "linewidth": 1,
            "label": f"{system} (limit)",
        }
    return {
        "color": _COLOURS[run.engines.index(system) % len(_COLOURS)],
        "marker": plots.MARKS[number % len(plots.MARKS)],
        "markersize": 4,
        "linewidth": 2 if system.startswith("vecdb") else 1.2,
        "label": system,
    }


def _recall(run: Run, figure: Any) -> bool:
    axes = figure.subplots()
    shown = False
    for system in run.systems:
        points = run.curve(system, "single", "callers=1")
        points = [one for one in points if one["recall"] >= _LEAST_RECALL]
        if points:
            shown = True
            rates = [one["qps"] for one in points]
            axes.plot([one["recall"] for one in points], rates, **_style(run, system))
    axes.set_yscale("log")
    axes.set_xlim(_LEAST_RECALL, 1.003)
    _label(axes, f"recall@{run.about['k']}", "queries/s", "Single queries, one caller")
    return shown


def _latency(run: Run, figure: Any) -> bool:
    target = min(run.about["target_recall"])
    present = set(run.cases("single"))
    cases = [one for head in _LATENCIES if (one := f"{head}{target}") in present]
    if not cases:
        return False
    shown = False
    for axes, case in zip(figure.subplots(1, len(cases), squeeze=False)[0], cases, strict=True):
        for system in run.systems:
            values = run.quantiles(system, "single", case)
            if values:
                shown = True
                shares = [100 * i / max(len(values) - 1, 1) for i in range(len(values))]
                style = {**_style(run, system), "marker": None}
                axes.plot(values, shares, **style)
        axes.set_xscale("log")
        _label(axes, "ms", "% of the calls answered", case)
    return shown


def _growth(run: Run, figure: Any) -> bool:
    panels = (("rows_per_s", "rows/s while loading"), ("qps", "queries/s, one caller"))
    shown = False
    for axes, (key, title) in zip(figure.subplots(1, 2), panels, strict=True):
        for system in run.systems:
            points = []
            for case in run.cases("growth"):
                rows = run.spread(system, "growth", case, "at_rows")
                value = run.spread(system, "growth", case, key)
                if rows is not None and value is not None:
                    points.append((rows.median, value.median))
            if points:
                shown = True
                across, up = zip(*sorted(points), strict=True)
                axes.plot(across, up, **_style(run, system))
        axes.set_xscale("log")
        axes.set_yscale("log")
        _label(axes, "rows in the collection", title, title)
    return shown


def _filters(run: Run, figure: Any) -> bool:
    columns = measures.filters(run)
    systems = [
        one for one in run.systems if any(column.spread(run, one) is not None for column in columns)
    ]
    if not systems:
        return False
    axes = figure.subplots()
    width = 0.8 / len(systems)
    lowest = 1.0
    for number, system in enumerate(systems):
        style = _style(run, system)
        label = style["label"]
        for place, column in enumerate(columns):
            found = column.spread(run, system)
            if found is None:
                continue
            lowest = min(lowest, found.median / 2)
            short = column.is_short(run, system)
            axes.bar(
                place + (number - (len(systems) - 1) / 2) * width,
                found.median,
                width,
                color="white" if short else style["color"],
                edgecolor=style["color"],
                hatch="//" if short else None,
                label=label,
            )
            label = None
    axes.set_xticks(range(len(columns)), [column.case for column in columns])
    axes.set_yscale("log")
    axes.set_ylim(bottom=lowest)
    _label(axes, "rows that the filter allows", "queries/s", "Filters; hatched: recall not reached")
    return True


def _radar(run: Run, figure: Any) -> bool:
    spokes = _spokes(run)
    if len(spokes) < 3:
        return False
    axes = figure.subplots(subplot_kw={"projection": "polar"})
    angles = [2 * math.pi * i / len(spokes) for i in range(len(spokes))]
    for system in run.engines:
        values = [_depth(run, column, system) for column in spokes.values()]
        if any(one is not None for one in values):
            closed = [0.0 if one is None else one for one in values]
            axes.plot([*angles, angles[0]], [*closed, closed[0]], **_style(run, system))
    axes.set_xticks(angles, list(spokes))
    axes.set_ylim(0, 1)
    steps = [i / 3 for i in range(4)]
    axes.set_yticks(steps, ["", "1/100", "1/10", "best"], fontsize=7)
    axes.set_title(
        "Share of the best, by powers of ten; recall missed or not measured: middle", fontsize=9
    )
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.05, 1))
    return True


def _spokes(run: Run) -> Mapping[str, Column]:
    """What the radar shows: of filters the rarest and the widest, of single queries the lowest target."""
    target = min(run.about["target_recall"])
    wanted = {
        "load": measures.load(),
        "1 caller": measures.rate(run, "", "single", f"callers=1 recall={target}"),
        "8 callers": measures.rate(run, "", "single", f"callers=8 recall={target}"),
        "batches": measures.rate(run, "", "batch", f"100 recall={target}"),
        "upsert": measures.upsert(),
        "open": measures.opened(),
        "disk": measures.disk(),
        "memory": measures.memory(),
    }
    cases = measures.filters(run)
    if cases:
        wanted |= {f"filter {cases[0].case}": cases[0], f"filter {cases[-1].case}": cases[-1]}
    return {title: one for title, one in wanted.items() if best(run, one) is not None}


def _depth(run: Run, column: Column, system: str) -> float | None:
    """1 for the best, a third less for each power of ten behind it; None where it does not count."""
    found, top = column.spread(run, system), best(run, column)
    if found is None or not top or not found.median or column.is_short(run, system):
        return None
    share = found.median / top if column.higher else top / found.median
    return max(0.0, 1 - math.log(share) / math.log(_WORST))


def _label(axes: Any, across: str, up: str, title: str) -> None:
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="both", alpha=0.3)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7)


PLOTS: dict[str, tuple[str, float, float, Draw]] = {
    "recall": ("Recall against queries a second", 9, 6, _recall),
    "filters": ("Filters by selectivity", 10, 5, _filters),
    "latency": ("Latency of single queries", 14, 4.5, _latency),
    "growth": ("Scaling with rows", 12, 4.5, _growth),
    "radar": ("All things in one", 9, 6, _radar),
}
"""By the end of the file's name: title, inches across and down, and what draws it."""
