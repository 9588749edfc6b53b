"""How numbers are written on the page: as in `bench.index.tables`, whose package loads the engine.

This measurement needs FAISS and numpy only, so that it runs on a lent machine where nothing can be installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def rate(point: dict[str, Any]) -> str:
    """Median of the rounds, lowest and highest in brackets."""
    low, high = point["queries_per_s_low"], point["queries_per_s_high"]
    return f"{point['queries_per_s']:,.0f} ({low:,.0f}-{high:,.0f})"


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def millis(value: float) -> str:
    return f"{value:.3f} ms"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
