"""What every adapter of `bench run` keeps to, held against a plain model of 500 rows.

    python tests/adapter_contract.py SYSTEM FOLDER

runs it in the environment of that Python and prints, as JSON, what was wrong by verb. It needs nothing of pytest, so
that an environment with nothing but the systems can run it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.children import members
from bench.peers.base import Unsupported
from bench.run.changes import renewed
from bench.run.plan import SYSTEMS, K
from bench.sources import Condition, Source, prepare

ROWS, QUERIES, BATCH, CHANGED, SEED = 500, 20, 200, 20, 3
ENOUGH = 0.99
"""Recall at the highest setting of 500 rows: any graph finds all of them but for a tie."""
RARE = Condition("n_lemmas", ">=", 6)
"""Fewer rows than are asked for."""
ABSENT, KILLED = 5, 9
"""Codes of the end: what is needed is not here; the child that was to be killed went on instead."""


class Model:
    """Every row as it should be, compared one by one."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.vectors = source.vectors(0, ROWS)
        self.live = np.zeros(ROWS, np.bool_)

    def allowed(self, condition: Condition | None) -> np.ndarray[Any, Any]:
        flags = self.live.copy()
        if condition is not None:
            values = self.source.column(condition.field)
            flags &= values == condition.value if condition.op == "=" else values >= condition.value
        return flags

    def faults(self, query: int, rows: list[int], flags: np.ndarray[Any, Any]) -> list[str]:
        """What is wrong with an answer, but for rows that are not near enough."""
        found = []
        if len(set(rows)) < len(rows):
            found.append(f"query {query} has a row twice")
        if wrong := [row for row in rows if not flags[row]]:
            found.append(f"query {query} has rows that are not allowed: {wrong}")
        if len(rows) != (wanted := min(K, int(flags.sum()))):
            found.append(f"query {query} has {len(rows)} rows, {wanted} are there")
        near = self.distances(query)[rows]
        if np.any(np.diff(near) < -1e-3):
            found.append(f"query {query} is not in the order of the distances: {near.tolist()}")
        return found

    def distances(self, query: int) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = 1 - self.vectors @ self.source.queries[query]
        return found

    def right(self, query: int, rows: list[int], flags: np.ndarray[Any, Any]) -> int:
        """How many of the rows are among the nearest that are allowed; ties are right."""
        near = self.distances(query)
        allowed = np.sort(near[flags])
        if not len(allowed):
            return 0
        bound = allowed[min(K, len(allowed)) - 1] + 1e-5
        return sum(bool(flags[row] and near[row] <= bound) for row in set(rows))


class Checks:
    """One system over the set. `faults` is what was wrong, by verb; what a system cannot is in `without`."""

    def __init__(self, name: str, folder: Path, cache: Path) -> None:
        entry = SYSTEMS[name]
        self.adapter = importlib.import_module(entry.module).System
        self.adapter.look()
        self.options, self.folder = dict(entry.options), folder / "data"
        self.source = prepare("clusters", ROWS, QUERIES, SEED, cache)
        self.model = Model(self.source)
        self.faults: dict[str, list[str]] = {}
        self.without: list[str] = []

    def run(self) -> None:
        self._open(create=True)
        try:
            for name in (
                "load",
                "count",
                "query",
                "batch",
                "filter",
                "durable",
                "another",
                "joined",
            ):
                self._verb(name, getattr(self, f"_{name}"))
            for name in ("upsert", "delete"):
                self._verb(name, getattr(self, f"_{name}"))
                self._verb(f"query after {name}", self._query)
                self._verb(f"count after {name}", self._count)
            if hasattr(self.system, "save"):
                self.system.save()
        finally:
            self.system.close()
        self._open(create=False)
        try:
            self._tune()
            for name in ("count", "query", "filter"):
                self._verb(f"{name} after opening", getattr(self, f"_{name}"))
        finally:
            self.system.close()

    def _open(self, *, create: bool) -> None:
        self.system = self.adapter(self.source, self.folder, create=create, **self.options)
        self.natives = self.system.prepare(self.source.queries)

    def _tune(self) -> None:
        self.setting = self.adapter.settings[-1]
        self.system.tune(self.setting)

    def _verb(self, name: str, check: Callable[[], list[str]]) -> None:
        try:
            found = check()
        except Unsupported as error:
            # A database has all verbs; a limit says what it has not.
            found = [] if self.adapter.role == "limit" else [f"Unsupported: {error}"]
            self.without.append(name)
        except Exception as error:
            found = [f"{type(error).__name__}: {error}"]
        self.faults[name] = found

    def _load(self) -> list[str]:
        load(self.system, self.source)
        self.model.live[:] = True
        self.system.ready()
        self._tune()
        return [] if self.adapter.version() and self.adapter.durability else ["it is not described"]

    def _count(self) -> list[str]:
        count, wanted = self.system.count(), int(self.model.live.sum())
        return [] if count == wanted else [f"it counts {count} rows, {wanted} are there"]

    def _query(self) -> list[str]:
        return self._asked(None)

    def _filter(self) -> list[str]:
        found = []
        for condition in (*self.source.conditions(), RARE):
            found += [f"{condition}: {one}" for one in self._asked(condition)]
        return found

    def _asked(self, condition: Condition | None) -> list[str]:
        where = None if condition is None else self.system.where(condition)
        flags, found, right = self.model.allowed(condition), [], 0
        for number, native in enumerate(self.natives):
            ids, values = self.system.query(native, K, where, self.setting)
            rows = list(self.system.rows(ids))
            found += self.model.faults(number, rows, flags)
            found += self._values(number, rows, np.asarray(values, float)[: len(rows)])
            right += self.model.right(number, rows, flags)
        return found + self._recall(right, flags)

    def _values(self, number: int, rows: list[int], values: np.ndarray[Any, Any]) -> list[str]:
        """Distances are 1 - cos and rise; where a system gives likeness instead it is cos, and falls."""
        near = self.model.distances(number)[rows]
        if len(values) == len(rows) and any(
            np.allclose(values, one, atol=2e-3) for one in (near, 1 - near)
        ):
            return []
        return [f"query {number} says {values.tolist()}, which are {near.tolist()}"]

    def _recall(self, right: int, flags: np.ndarray[Any, Any]) -> list[str]:
        wanted = QUERIES * min(K, int(flags.sum()))
        return [] if right >= ENOUGH * wanted else [f"recall is {right / wanted:.3f}"]

    def _batch(self) -> list[str]:
        flags, found, right = self.model.allowed(None), [], 0
        answers = self.system.batch(self.source.queries, K, self.setting)
        for number, ids in enumerate(answers):
            rows = list(self.system.rows(ids))
            found += self.model.faults(number, rows, flags)
            right += self.model.right(number, rows, flags)
        if len(answers) != QUERIES:
            found.append(f"{len(answers)} answers to {QUERIES} queries")
        return found + self._recall(right, flags)

    def _upsert(self) -> list[str]:
        numbers = list(range(0, ROWS, ROWS // CHANGED))
        part = renewed(self.source, numbers, [1] * len(numbers))
        self.system.upsert(numbers, part)
        self.model.vectors[numbers] = part.vectors
        return self._each(numbers, part.vectors, there=True)

    def _delete(self) -> list[str]:
        numbers = list(range(1, ROWS, ROWS // CHANGED))
        ids = [self.source.records(row, row + 1)[0][0] for row in numbers]
        self.system.delete(numbers, ids)
        self.model.live[numbers] = False
        return self._each(numbers, self.model.vectors[numbers], there=False)

    def _each(self, numbers: list[int], vectors: Any, *, there: bool) -> list[str]:
        """Whether each row is the first answer to its own vector, or none of the answers."""
        found = []
        for row, native in zip(numbers, self.system.prepare(vectors), strict=True):
            ids, values = self.system.query(native, K, None, self.setting)
            rows = list(self.system.rows(ids))
            if there and (not rows or rows[0] != row):
                found.append(f"row {row} is not the nearest to its new vector: {rows}")
            elif there and min(abs(values[0]), abs(values[0] - 1)) > 2e-3:
                found.append(f"row {row} is {values[0]} from its new vector")
            if not there and row in rows:
                found.append(f"row {row} was deleted and is an answer")
        return found

    def _durable(self) -> list[str]:
        """What it says of itself is so."""
        wanted, there = self.adapter.durable, self.system.in_force()
        return [] if there == wanted else [f"{there} is in force, {wanted} was claimed"]

    def _joined(self) -> list[str]:
        """A server is asked and written through another connection, whose end is not the server's."""
        if not self.adapter.apart:
            return []
        one = self.adapter.joined(self.source, self.system.link())
        try:
            numbers, flags = [7], self.model.allowed(None)
            part = renewed(self.source, numbers, [1])
            one.upsert(numbers, part)
            self.model.vectors[numbers] = part.vectors
            found, right = self._each(numbers, part.vectors, there=True), 0
            for number, native in enumerate(one.prepare(self.source.queries)):
                rows = list(one.rows(one.query(native, K, None, self.setting)[0]))
                found += self.model.faults(number, rows, flags)
                right += self.model.right(number, rows, flags)
        finally:
            one.close()
        return found + self._recall(right, flags)

    def _another(self) -> list[str]:
        """A collection beside this one has its own rows alone."""
        one = self.system.another("beside")
        one.insert(0, self.source.part(0, 50))
        ids = one.query(self.natives[0], K, None, self.setting)[0]
        rows = set(one.rows(ids))
        return [] if len(rows) == K and max(rows) < 50 else [f"of its 50 rows it finds {rows}"]


def load(system: Any, source: Source) -> None:
    for start in range(0, ROWS, BATCH):
        system.insert(start, source.part(start, min(start + BATCH, ROWS)))


def loaded_and_killed(name: str, folder: Path) -> None:
    """Loads, and is killed with all that it has started as soon as the last row is acknowledged."""
    entry = SYSTEMS[name]
    adapter = importlib.import_module(entry.module).System
    adapter.look()
    source = prepare("clusters", ROWS, QUERIES, SEED, folder / "sets")
    load(adapter(source, folder / "killed", create=True, **dict(entry.options)), source)
    for pid in reversed(members(os.getpid())):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # ended with what was killed before it


def survives(name: str, folder: Path) -> list[str]:
    """What was acknowledged is there after its process was killed."""
    words = [sys.executable, __file__, name, str(folder), "--be-killed"]
    # It finds what this process finds, whoever has set its path.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(words, stdin=subprocess.DEVNULL, env=env, check=False, timeout=240)
    if done.returncode != -signal.SIGKILL:
        return [f"the loading process ended with code {done.returncode}"]
    entry = SYSTEMS[name]
    source = prepare("clusters", ROWS, QUERIES, SEED, folder / "sets")
    adapter = importlib.import_module(entry.module).System
    try:
        system = adapter(source, folder / "killed", create=False, **dict(entry.options))
    except Exception as error:
        return [f"it cannot be opened after a kill: {error}"]
    try:
        count = system.count()
    finally:
        system.close()
    return [] if count == ROWS else [f"{count} of {ROWS} acknowledged rows are there after a kill"]


def checked(name: str, folder: Path) -> dict[str, list[str]]:
    """What is wrong with a system, by verb. Raises Unsupported or ModuleNotFoundError where it is not here."""
    checks = Checks(name, folder, folder / "sets")
    checks.run()
    if checks.adapter.role == "engine":
        checks.faults["survives a kill"] = survives(name, folder)
    return checks.faults


if __name__ == "__main__":
    if sys.argv[3:] == ["--be-killed"]:
        loaded_and_killed(sys.argv[1], Path(sys.argv[2]))
        sys.exit(KILLED)
    try:
        print(json.dumps(checked(sys.argv[1], Path(sys.argv[2]))), flush=True)
    except (Unsupported, ModuleNotFoundError) as missing:
        print(json.dumps({"absent": [str(missing)]}))
        sys.exit(ABSENT)
