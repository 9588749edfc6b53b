"""The plots of one run. A system has the same colour in all of them; limits are dashed and grey."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import plots
from . import measures
from .lines import Run

_LEAST_RECALL = 0.8
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
}
"""By the end of the file's name: title, inches across and down, and what draws it."""
