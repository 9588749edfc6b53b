"""How numbers are written on the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def rate(point: dict[str, Any] | None) -> str:
    """Median of the rounds, lowest and highest in brackets."""
    if point is None:
        return "not reached"
    low, high = point["queries_per_s_low"], point["queries_per_s_high"]
    return f"{point['queries_per_s']:,.0f} ({low:,.0f}-{high:,.0f})"


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def millis(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} ms"


def mib(value: float) -> str:
    return f"{value / 2**20:,.0f} MiB"


def picture(name: str | None) -> list[str]:
    """The line that shows a plot that lies beside the page; nothing where there is none."""
    return [] if name is None else [f"![{name.removesuffix('.svg')}]({name})\n"]
