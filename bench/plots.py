"""Plots of recall against rate, as SVG. Needs matplotlib; without it there are no plots."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .curves import Point

MARKS = "osD^vPX*<>dph8H"
_LEAST_RECALL = 0.8


def recall_rate(path: Path, panels: Mapping[str, Mapping[str, Sequence[Point]]]) -> str | None:
    """Writes a panel a title: recall@10 across, queries/s up by logarithm, a line a system.

    The name of the file; None without matplotlib.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    drawn = blank(7 * columns, 4.5 * rows)
    if drawn is None:
        return None
    axes = drawn.subplots(rows, columns, squeeze=False).flat
    for place, (title, curves) in zip(axes, panels.items(), strict=False):
        _panel(place, title, curves)
    return save(drawn, path)


def blank(width: float, height: float) -> Any | None:
    """An empty figure of so many inches; None without matplotlib."""
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
        figure: Any = importlib.import_module("matplotlib.figure")
    except ModuleNotFoundError:
        return None
    # The same measurement gives the same file, with its words as text.
    matplotlib.rcParams.update({"svg.hashsalt": "vecdb", "svg.fonttype": "none"})
    return figure.Figure(figsize=(width, height), layout="constrained")


def save(drawn: Any, path: Path) -> str:
    """Writes the figure as SVG; the name of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, metadata={"Date": None})
    return path.name


def _panel(axes: Any, title: str, curves: Mapping[str, Sequence[Point]]) -> None:
    for number, (name, points) in enumerate(curves.items()):
        shown = sorted(
            (one for one in points if one["recall"] >= _LEAST_RECALL), key=lambda one: one["recall"]
        )
        axes.plot(
            [one["recall"] for one in shown],
            [one["queries_per_s"] for one in shown],
            marker=MARKS[number % len(MARKS)],
            markersize=4,
            linewidth=1.2,
            label=name,
        )
    axes.set_yscale("log")
    axes.set_xlim(_LEAST_RECALL, 1.003)
    axes.set_xlabel("recall@10")
    axes.set_ylabel("queries/s")
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize=8)
