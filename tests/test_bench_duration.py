"""A run of `bench run` lasts about as long as it may, says what it leaves out, and plays what writes in rounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_bench_run import Line, of, run

from bench.report import lines as reported
from bench.report import page
from bench.run import duration, plan
from bench.run.plan import WORKLOADS, Entry, Plan

USUAL = Plan(tuple(plan.SYSTEMS), frozenset(), Path())
HOURS = 3_600.0


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sets")


def test_a_usual_run_has_every_workload() -> None:
    """All systems over a set as large as WordNet: nothing is left out of the two hours, and all of it is counted."""
    found = duration.chosen(USUAL, 117_000, len(USUAL.systems), 2 * HOURS)
    assert found.workloads == list(WORKLOADS)
    assert found.plan.workloads == set(WORKLOADS)
    assert found.left_out == {}
    assert found.seconds <= 2 * HOURS
    total_s = duration.total_s(USUAL, WORKLOADS, 117_000, len(USUAL.systems))
    assert found.seconds == pytest.approx(total_s)


def test_what_does_not_fit_is_left_out_with_its_reason() -> None:
    """The least time has the load alone; with more of it there is more, each workload that is missing says why."""
    seen = set()
    for minutes in (1, 20, 40, 80, 160):
        found = duration.chosen(USUAL, 117_000, len(USUAL.systems), minutes * 60)
        assert found.workloads[0] == "load"
        assert set(found.workloads) | set(found.left_out) == set(WORKLOADS)
        assert all(f"of {minutes} min in all" in why for why in found.left_out.values())
        assert found.seconds <= minutes * 60 or found.workloads == ["load"]
        assert seen <= set(found.workloads)
        seen = set(found.workloads)
    assert seen == set(WORKLOADS)


def test_a_large_set_is_loaded_less_often() -> None:
    """Where three loads of a million rows take the time, one leaves room to ask; the run says so."""
    found = duration.chosen(USUAL, 1_000_000, len(USUAL.systems), 3 * HOURS)
    assert found.plan.loads == 1
    assert "1 of 3 rounds of what writes" in found.left_out["load"]
    assert {"load", "single", "filter"} <= found.plan.workloads
    assert "growth" in found.left_out


def test_more_rows_and_rounds_take_longer() -> None:
    """No workload is estimated as shorter for more of either."""
    more = replace(USUAL, rounds=6, loads=6, long_rounds=2)
    for name in WORKLOADS:
        few, many = (duration.seconds_of(USUAL, name, rows) for rows in (20_000, 200_000))
        assert 0 < few <= many < duration.seconds_of(more, name, 200_000)


def written(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> list[Line]:
    monkeypatch.setitem(plan.SYSTEMS, "one", Entry("bench_planted_writes"))
    monkeypatch.setitem(plan.SYSTEMS, "other", Entry("bench_planted_writes"))
    return run(folder, cache, "--systems", "one,other", *words)


@pytest.mark.long
def test_what_writes_has_rounds(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Systems load and change what they have loaded in turn; each round begins with all rows, so that rounds agree."""
    words = ["--workloads", "load,single,update", "--loads", "2"]
    found = written(tmp_path, cache, monkeypatch, *words)
    assert of(found, "failed") == []
    turns: list[tuple[Any, ...]] = [
        (one["round"], one["system"], one["workload"], one["case"])
        for one in of(found, "sample")
        if one["workload"] != "single"
    ]
    loads = [(name, "load", case) for name in ("one", "other") for case in ("", "ready")]
    changes = [
        (name, "update", case)
        for name in ("one", "other")
        for case in ("upsert", "delete", "query")
    ]
    assert turns == [(turn, *one) for turn in (0, 1) for one in (*loads, *changes)]
    for one in of(found, "sample", workload="update", case="query"):
        assert one["recall"] == 1.0
    assert len({one["rows"] for one in of(found, "sample", workload="update", case="upsert")}) == 1


@pytest.mark.long
def test_what_is_only_asked_needs_one_load(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds of what writes are none of single queries."""
    monkeypatch.setattr("bench.run.writes.load", loads := Loads())
    written(tmp_path, cache, monkeypatch, "--workloads", "single", "--loads", "3")
    assert loads.names == ["one", "other"]


class Loads:
    """Counts loads and has them fail, so that nothing more is done."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, session: Any, *_: Any) -> bool:
        self.names.append(session.name)
        return False


@pytest.mark.long
def test_every_write_says_how_long_its_calls_took(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loads, upserts, deletes and growth have percentiles of their calls, memory, CPU and bytes on the disk; what is asked
    has recall."""
    words = ["--workloads", "load,open,single,update,load_query,growth"]
    found = written(tmp_path, cache, monkeypatch, *words)
    assert of(found, "failed") == []
    for one in of(found, "sample"):
        assert {"memory_bytes", "memory_peak_bytes", "cpu_s", "disk_bytes", "disk_to_raw"} <= set(
            one
        ), one
        if "rows_per_s" in one or "qps" in one:
            assert one["p50_ms"] <= one["p95_ms"] <= one["p99_ms"]
        if "qps" in one or one["workload"] == "open":
            assert one["recall"] == 1.0


@pytest.mark.long
def test_the_default_run_says_what_it_has_left_out(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the terminal, in the file and on the page."""
    found = written(tmp_path, cache, monkeypatch, "--minutes", "0.1", "--rows", "300")
    assert "load" in {one["workload"] for one in of(found, "sample")}
    left = found[0]["left_out"]
    assert "many" in left
    said = capsys.readouterr().err
    assert f"left out: many, {left['many']}" in said
    (file,) = tmp_path.glob("*.jsonl")
    text = page(reported.read(file), {})
    assert f"Many collections ({left['many']})" in text
    assert "1 round of queries and 1 of what writes" in text
