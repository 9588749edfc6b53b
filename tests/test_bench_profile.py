"""`python -m bench profile` tells where the time of a workload goes, by functions that the engine has."""

from __future__ import annotations

import importlib
from functools import reduce
from pathlib import Path

import pytest

from bench import profile
from bench.profile.layers import ADAPTER, BEHIND, LAYERS
from bench.profile.main import page

SMALL = ["--dataset", "clusters", "--rows", "600", "--queries", "40", "--seconds", "0.2"]


@pytest.mark.parametrize(("_", "module", "path"), [*LAYERS, *BEHIND])
def test_what_is_timed_is_there(_: str, module: str, path: str) -> None:
    """A function that is renamed would be missing from every table."""
    assert callable(reduce(getattr, path.split("."), importlib.import_module(module)))


@pytest.mark.long
@pytest.mark.parametrize("workload", profile.WORKLOADS)
def test_each_workload_has_a_table(
    workload: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the layers that the workload passes through, and with pages where a folder is named."""
    words = ["--workload", workload, *SMALL, "--cache", str(tmp_path / "sets")]
    assert profile.main([*words, "--results", str(tmp_path / "out"), "--functions", "3"]) == 0
    text = capsys.readouterr().out
    (made,) = (tmp_path / "out").glob("*.md")
    assert made.read_text() == text.rstrip("\n") + "\n"
    assert "Not timed" not in text
    assert f"| {ADAPTER} |" in text or workload == "index"
    wanted = {
        "load": ("write: check and encode", "write: commit, with its sync"),
        "single": ("search: index and rows behind it", "fetch: rows to ids"),
        "filter": ("filter: remembered, or evaluated",),
        "open": ("open: collection",),
        "update": ("write: rows into LMDB", "fetch: rows to ids"),
        "rag": ("write: commit, with its sync", "filter: remembered, or evaluated"),
    }
    assert all(f"| {name} |" in text for name in wanted.get(workload, ()))


def test_shares_are_of_the_calls() -> None:
    """What the callers waited for is whole: making the load and what goes on behind are beside it."""
    names = {name for name, *_ in (*LAYERS, *BEHIND)}
    taken_s = dict.fromkeys(names, 0.0) | {
        "write: check and encode": 3.0,
        "write: index": 1.0,
        "behind: build": 9.0,
    }
    part = {
        "part": "load", "callers": 1, "took_s": 10.0, "cpu_s": 12.0, "taken_s": taken_s,
        "calls": {name: int(taken_s[name] > 0) for name in names}, "functions": "",
    }  # fmt: skip
    about = {"cpu": "a cpu", "cores": 2, "memory_gib": 8, "system": "Linux", "python": "3.11",
             "commit": "abc", "load_at_start": 0.1}  # fmt: skip
    results = {
        "command": "python -m bench profile", "date": "2026-01-02", "machine": about, "workload": "load",
        "dataset": {"name": "clusters", "rows": 600, "dimension": 384}, "parts": [part], "absent": ["a.b"],
    }  # fmt: skip
    text = page(results)
    assert "| write: check and encode | 3.000 | 75.0 % | 1 | 3,000,000.0 |" in text
    assert "| write: index | 1.000 | 25.0 % |" in text
    assert "| behind: build | 9.000 |  |" in text
    assert "wait for the interpreter | 6.000 |" in text
    assert "not found: a.b" in text
