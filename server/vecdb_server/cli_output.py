"""How answers are printed: for people, or one JSON object a line."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .cli_export import dumps, row_of


def json_line(value: Mapping[str, Any]) -> None:
    print(dumps(dict(value)))


def plain(value: Any) -> Any:
    """A dataclass of the interface as JSON values. `dataclasses.asdict` would copy, and it cannot
    copy the read-only mappings that some of them hold."""
    if dataclasses.is_dataclass(value):
        return {one.name: plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Columns as wide as their widest cell; numbers to the right."""
    given = list(rows)
    cells = [[_cell(value) for value in row] for row in given]
    numeric = [
        bool(given) and all(isinstance(row[i], int | float | None) for row in given)
        for i in range(len(header))
    ]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    for row in [list(header), *cells]:
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        print("  ".join(parts).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def pairs(values: Mapping[str, Any]) -> None:
    """One `name: value` a line, aligned."""
    width = max(map(len, values), default=0)
    for name, value in values.items():
        print(f"{name:<{width}}  {_cell(value)}")


def size(count: int) -> str:
    """Bytes for people: 1.5 GiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


def record_json(record: Any) -> dict[str, Any]:
    """A record or a hit, every included part of it."""
    row = row_of(record)
    if hasattr(record, "distance"):
        row["distance"] = record.distance
    if getattr(record, "group", None) is not None:
        row["group"] = record.group
    if record.vector is not None:
        row["vector"] = record.vector.tolist()
    if record.named_vectors:
        row["vectors"] = {name: vector.tolist() for name, vector in record.named_vectors.items()}
    return row


def print_record(record: Any, prefix: str = "") -> None:
    """A record or a hit on a few lines; on a terminal, long ones are cut at its width."""
    width = max(40, shutil.get_terminal_size().columns) if sys.stdout.isatty() else sys.maxsize
    print(f"{prefix}{record.id}")
    lines = []
    if record.document:
        lines.append(record.document.replace("\n", " "))
    if record.metadata:
        lines.append(dumps(record.metadata))
    if record.uri:
        lines.append(record.uri)
    if record.content is not None:
        lines.append(f"{record.content.media_type}, {size(len(record.content.data))}")
    if record.vector is not None:
        lines.append(_numbers(record.vector))
    for name, vector in (record.named_vectors or {}).items():
        lines.append(f"{name}: {_numbers(vector)}")
    indent = " " * max(len(prefix), 4)
    for line in lines:
        print(indent + _cut(line, width - len(indent)))


def _numbers(vector: Any) -> str:
    return json.dumps([round(float(x), 4) for x in vector])


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
