"""The file of a run: one JSON object a line, written as it comes, each held against the schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

SCHEMA = 1
_TEXT, _NUMBER, _COUNT, _MAP, _LIST = (str,), (int, float), (int,), (dict,), (list,)
_ABOUT: dict[str, tuple[type, ...]] = {
    "system": _TEXT,
    "workload": _TEXT,
    "case": _TEXT,
    "round": _COUNT,
}
NEEDED: dict[str, dict[str, tuple[type, ...]]] = {
    "run": {
        "schema": _COUNT,
        "date": _TEXT,
        "command": _TEXT,
        "commit": _TEXT,
        "machine": _MAP,
        "dataset": _MAP,
        "k": _COUNT,
        "rounds": _COUNT,
        "target_recall": _LIST,
    },
    "system": {
        "system": _TEXT,
        "version": _TEXT,
        "transport": _TEXT,
        "durability": _TEXT,
        "settings": _MAP,
        "role": _TEXT,
    },
    "skipped": {"system": _TEXT, "reason": _TEXT},
    "failed": {**_ABOUT, "reason": _TEXT},
    "sample": _ABOUT,
}
ALLOWED: dict[str, dict[str, tuple[type, ...]]] = {
    "run": {"loads": _COUNT, "left_out": _MAP},
    "system": {"memory_base_bytes": _COUNT, "import_s": _NUMBER},
    "skipped": {"workload": _TEXT},
    "sample": {
        "setting": _NUMBER,
        "recall": _NUMBER,
        "qps": _NUMBER,
        "p50_ms": _NUMBER,
        "p95_ms": _NUMBER,
        "p99_ms": _NUMBER,
        "latency_ms": _LIST,
        "rows_per_s": _NUMBER,
        "seconds": _NUMBER,
        "memory_bytes": _COUNT,
        "memory_anonymous_bytes": _COUNT,
        "memory_peak_bytes": _COUNT,
        "memory_server_bytes": _COUNT,
        "memory_server_anonymous_bytes": _COUNT,
        "disk_bytes": _COUNT,
        "disk_to_raw": _NUMBER,
        "cpu_s": _NUMBER,
        "cpu_server_s": _NUMBER,
        "cpu_callers_s": _NUMBER,
        "calls": _COUNT,
        "at_rows": _COUNT,
        "rows": _COUNT,
        "open_s": _NUMBER,
        "note": _TEXT,
    },
}


def fault(line: dict[str, Any]) -> str | None:
    """What is wrong with a line; None if nothing is."""
    kind = line.get("kind")
    if kind not in NEEDED:
        return f"kind is {kind!r}, expected one of {', '.join(NEEDED)}"
    needed, allowed = NEEDED[kind], ALLOWED.get(kind, {})
    for name in needed:
        if name not in line:
            return f"a line of kind {kind} lacks {name}"
    for name, value in line.items():
        types = needed.get(name) or allowed.get(name) or (str,)
        if name != "kind" and name not in needed and name not in allowed:
            return f"a line of kind {kind} has no {name}"
        if not isinstance(value, types) or isinstance(value, bool):
            return f"{name} of a line of kind {kind} is {value!r}"
    return None


class Lines:
    """Appends to a new file. What was written is there, whatever happens next."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, named = 1, path
        while named.exists():
            number += 1
            named = path.with_name(f"{path.stem}-{number}{path.suffix}")
        self.path = named
        self._file = named.open("x", encoding="utf-8")
        self._skipped: set[tuple[str, str]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def skip(self, system: str, workload: str, reason: str) -> None:
        """That a system cannot play a workload, said once."""
        if (system, workload) not in self._skipped:
            self._skipped.add((system, workload))
            self.write("skipped", system=system, workload=workload, reason=reason)

    def write(self, kind: str, **values: Any) -> None:
        """Raises ValueError if the line does not keep to the schema."""
        line = {"kind": kind, **values}
        wrong = fault(line)
        if wrong is not None:
            raise ValueError(wrong)
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
