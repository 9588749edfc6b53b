"""The adapters of `bench run` keep to one contract: of every system that is installed where `make bench` installs it, and of
those that need no more than the project itself."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import adapter_contract
import pytest
from adapter_contract import ABSENT, Checks

from bench.children import members
from bench.peers import engine
from bench.run.plan import SYSTEMS

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parent.parent
OWN = ("vecdb", "faiss-hnsw", "faiss-hnsw-sq8")
"""Systems that .venv has, but for the server, which takes longer to start."""
BENCH = Path(os.environ.get("VECDB_BENCH_PYTHON", ROOT / ".venv-bench/bin/python"))
LIMIT_S = 280
WITHOUT = {"filter", "another", "upsert", "delete"}
"""What an index of FAISS has not."""


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sets")


def wrong(faults: dict[str, list[str]]) -> dict[str, list[str]]:
    return {verb: found for verb, found in faults.items() if found}


@pytest.mark.parametrize("name", OWN)
def test_adapters_of_the_project_keep_the_contract(name: str, tmp_path: Path, sets: Path) -> None:
    """Every verb agrees with a plain model, before and after changes and opening anew."""
    checks = Checks(name, tmp_path, sets)
    checks.run()
    assert wrong(checks.faults) == {}
    assert {"query", "batch", "count after opening", "query after opening"} <= set(checks.faults)
    named = {verb.removesuffix(" after opening") for verb in checks.without}
    assert named == (set() if name == "vecdb" else WITHOUT)


@pytest.mark.long
@pytest.mark.parametrize("name", SYSTEMS)
def test_adapters_of_what_is_measured_keep_the_contract(name: str, tmp_path: Path) -> None:
    """Every verb agrees with a plain model, and what a database has acknowledged is there after a kill, in the
    environment of `make bench`."""
    if not BENCH.exists():
        pytest.skip(f"{name}: .venv-bench is not here, which `make bench` makes")
    report(name, BENCH, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", ["vecdb", "vecdb-grpc"])
def test_vecdb_keeps_the_contract_where_nothing_else_is(name: str, tmp_path: Path) -> None:
    """Embedded and served, in the environment of the tests; acknowledged rows are there after a kill."""
    report(name, Path(sys.executable), tmp_path)


def report(name: str, python: Path, folder: Path) -> None:
    """Runs the contract in a process of its own and asserts that nothing is wrong; skips what is not installed."""
    paths = os.pathsep.join(str(ROOT / one) for one in (".", "server", "clients/python"))
    paths = os.pathsep.join(filter(None, (paths, os.environ.get("PYTHONPATH", ""))))
    words = [str(python), str(ROOT / "tests/adapter_contract.py"), name, str(folder)]
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, errors = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        for pid in reversed(members(process.pid)):
            os.kill(pid, signal.SIGKILL)
        raise
    lines = said.strip().splitlines()
    assert lines, errors[-2000:]
    found: dict[str, list[str]] = json.loads(lines[-1])
    if process.returncode == ABSENT:
        pytest.skip(f"{name} is not installed: {found['absent'][0]}")
    assert process.returncode == 0, errors[-2000:]
    assert wrong(found) == {}
    if name not in ("faiss-hnsw", "faiss-hnsw-sq8", "hnswlib", "usearch"):
        assert "survives a kill" in found


def no_filter(system: Any, condition: Any) -> None:
    """Every row is allowed."""


def nothing(*_: Any) -> None:
    """A write that is taken and forgotten."""


def the_same(system: Any, name: str) -> Any:
    """No collection of its own."""
    made = copy.copy(system)
    made.insert = nothing
    return made


def reversed_rows(system: Any, vector: Any, k: int, where: Any, setting: float) -> Any:
    """The nearest rows in an order that is not theirs."""
    found = system.collection.query(vector, k=k, filter=where, target_recall=setting)
    return found.ids[0][::-1], found.distances[0][::-1]


def halves(system: Any, vector: Any, k: int, where: Any, setting: float) -> Any:
    """Fewer rows than there are."""
    found = system.collection.query(vector, k=k, filter=where, target_recall=setting)
    return found.ids[0][: k // 2], found.distances[0][: k // 2]


@pytest.mark.parametrize(
    ("verb", "instead", "seen"),
    [
        ("where", no_filter, {"filter"}),
        ("upsert", nothing, {"upsert"}),
        ("delete", nothing, {"delete", "query after delete", "count after delete"}),
        ("count", lambda _: 7, {"count", "count after opening"}),
        ("query", reversed_rows, {"query", "filter"}),
        ("query", halves, {"query", "filter"}),
        ("in_force", lambda _: {"durability": "interval"}, {"durable"}),
        ("another", the_same, {"another"}),
    ],
)
def test_the_contract_sees_faults(
    verb: str,
    instead: Any,
    seen: set[str],
    tmp_path: Path,
    sets: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An adapter that forgets a filter, a write or a row, orders wrongly or claims too much is found out, by the verb."""
    monkeypatch.setattr(engine.System, verb, instead)
    checks = Checks("vecdb", tmp_path, sets)
    checks.run()
    assert seen <= set(wrong(checks.faults))


def test_rows_that_a_kill_takes_are_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit keeps nothing before it is saved: the contract says so."""
    (found,) = adapter_contract.survives("faiss-hnsw", tmp_path)
    assert "cannot be opened after a kill" in found
