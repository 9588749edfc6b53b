"""What a file of JSON lines that `python -m bench run` wrote says, and the medians of its samples."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..run.lines import SCHEMA, fault

Line = dict[str, Any]


class BadRun(ValueError):
    """A file holds no run. The message says where and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A number over the rounds of one system: median, lowest, highest, and how many there were."""

    median: float
    low: float
    high: float
    count: int

    @staticmethod
    def of(values: Iterable[float]) -> Spread | None:
        """None without a value."""
        found = list(values)
        if not found:
            return None
        return Spread(statistics.median(found), min(found), max(found), len(found))


class Run:
    """One run. Systems, workloads and cases come in the order in which the file has them first."""

    def __init__(self, lines: Iterable[Line]) -> None:
        held = list(lines)
        self.about: Line = next(line for line in held if line["kind"] == "run")
        self.systems: dict[str, Line] = {
            line["system"]: line for line in held if line["kind"] == "system"
        }
        self.skipped = [line for line in held if line["kind"] == "skipped"]
        self.failed = [line for line in held if line["kind"] == "failed"]
        self.samples = [line for line in held if line["kind"] == "sample"]
        for line in (*self.failed, *self.samples):
            self.systems.setdefault(line["system"], {"system": line["system"]})

    @cached_property
    def engines(self) -> list[str]:
        return [name for name in self.systems if not self.is_limit(name)]

    def is_limit(self, system: str) -> bool:
        """Whether it is no database: an index in memory and nothing else."""
        return bool(self.systems[system].get("role") == "limit")

    def cases(self, workload: str) -> list[str]:
        lines = (*self.samples, *self.failed)
        return list(dict.fromkeys(one["case"] for one in lines if one["workload"] == workload))

    @cached_property
    def workloads(self) -> list[str]:
        return list(dict.fromkeys(one["workload"] for one in self.samples))

    @cached_property
    def _by_case(self) -> dict[tuple[str, str, str], list[Line]]:
        found: dict[tuple[str, str, str], list[Line]] = {}
        for one in self.samples:
            found.setdefault((one["system"], one["workload"], one["case"]), []).append(one)
        return found

    def of(self, system: str, workload: str, case: str) -> list[Line]:
        """Samples of all rounds."""
        return self._by_case.get((system, workload, case), [])

    def spread(self, system: str, workload: str, case: str, key: str) -> Spread | None:
        """Of one number over the rounds; None where nothing was measured."""
        return Spread.of(one[key] for one in self.of(system, workload, case) if key in one)

    def has_failed(self, system: str, workload: str, case: str) -> bool:
        """Whether this case, or the workload as a whole, failed in a round."""
        return any(
            (one["system"], one["workload"]) == (system, workload) and one["case"] in ("", case)
            for one in self.failed
        )

    def curve(self, system: str, workload: str, case: str) -> list[Line]:
        """A point a setting, by rising recall: setting, recall and qps, medians over the rounds."""
        by_setting: dict[float, list[Line]] = {}
        for one in self.of(system, workload, case):
            if {"setting", "recall", "qps"} <= one.keys():
                by_setting.setdefault(one["setting"], []).append(one)
        points = [
            {
                "setting": setting,
                "recall": statistics.median(one["recall"] for one in found),
                "qps": statistics.median(one["qps"] for one in found),
            }
            for setting, found in by_setting.items()
        ]
        return sorted(points, key=lambda one: one["recall"])

    def quantiles(self, system: str, workload: str, case: str) -> list[float]:
        """Latency in ms at 0 % … 100 % of the calls, medians over the rounds; empty without any."""
        found = [
            one["latency_ms"] for one in self.of(system, workload, case) if "latency_ms" in one
        ]
        return [statistics.median(values) for values in zip(*found, strict=True)]


def read(path: Path, warn: Callable[[str], None] = print) -> Run:
    """The run of a file. A last line that is cut off, as after a crash, is left out with a word.

    Raises BadRun where the file cannot be read, a line is no JSON or not of the schema, or no line tells of
    the run.
    """
    try:
        texts = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BadRun(f"{path} cannot be read: {error}") from None
    lines: list[Line] = []
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            if number == len(texts):
                warn(f"{path.name}: the last line is cut off and left out")
                continue
            raise BadRun(f"line {number} of {path.name} is no JSON: {error}") from None
        wrong = fault(line) if isinstance(line, dict) else "it is no object"
        if wrong is not None:
            raise BadRun(f"line {number} of {path.name}: {wrong}; schema {SCHEMA} was expected")
        lines.append(line)
    if not any(line["kind"] == "run" for line in lines):
        raise BadRun(f"{path.name} has no line of kind run: it is not from python -m bench run")
    return Run(lines)
