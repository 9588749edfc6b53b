"""The measurement of a card, as far as it can be shown without one: a dry run on the CPU, and its parts."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import __main__ as commands
from bench import measure
from bench.gpu import (
    backend,
    bounds,
    budget,
    exact,
    goals,
    plan,
    run,
    served,
    timing,
)

pytestmark = pytest.mark.long

LIMITS = {"bandwidth": 4e12, "float32": 50e12, "float16": 800e12}


@dataclass(frozen=True)
class Dry:
    code: int
    results: dict[str, Any]
    page: str
    lines: list[dict[str, Any]]

    def cases(self, part: str) -> list[dict[str, Any]]:
        return [one for one in self.results["parts"][part] if one["kind"] == "case"]


def started(folder: Path, *words: str) -> Dry:
    code = run.main(
        [
            "--backend",
            "cpu",
            "--rounds",
            "1",
            "--folder",
            str(folder),
            "--results",
            str(folder),
            *words,
        ]
    )
    (path,) = folder.glob("*-gpu-dry*.json")
    page = path.with_suffix(".md").read_text()
    return Dry(code, json.loads(path.read_text()), page, plan.read(path.with_suffix(".jsonl")))


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> Dry:
    """All parts over small sets, once."""
    return started(tmp_path_factory.mktemp("dry"))


@pytest.mark.long
def test_every_part_measures_and_stands_on_the_page(dry: Dry) -> None:
    """All parts end well, each has its lines in all three files and its chapter, the goals come first."""
    assert dry.code == 0
    assert dry.results["failed"] == {}
    assert set(dry.results["parts"]) == set(run.PARTS) - run.WHEN_NAMED
    assert not [one for one in dry.lines if one["kind"] in ("failed", "left out")]
    for part in dry.results["parts"]:
        assert dry.cases(part), part
    titles = [line for line in dry.page.splitlines() if line.startswith("## ")]
    assert titles == [
        "## Goals",
        "## Limits",
        "## Exact search",
        "## Insert to visible",
        "## Search of what the card does not hold",
        "## Filtered search",
        "## k-means",
        "## Lists and graphs",
    ]
    assert "A dry run on the CPU" in dry.page
    assert dry.results["date"][:10] in dry.page
    assert len(dry.lines) == 1 + sum(map(len, dry.results["parts"].values()))  # and the card


def test_exact_search_through_the_engine_is_measured_beside_the_cpu(tmp_path: Path) -> None:
    """Where it is named, the part asks the CPU, the card and a server for the same rows, in each batch, and they answer alike;
    the page says how many times the CPU's rate each reached, and the commit that was told."""
    dry = started(tmp_path, "--only", "served", "--commit", "1234abc")
    assert dry.code == 0
    cases = dry.cases("served")
    assert [(one["way"], one["batch"]) for one in cases] == [
        (way, batch) for way in served.WAYS for batch in plan.TINY.batches
    ]
    for one in cases:
        assert one["device"] == ("cpu" if one["way"] == served.CPU else "gpu:0")
        assert one["same"] >= 0.99
        assert one["queries_per_s"] > 0
    assert "## Exact search through the engine" in dry.page
    assert "1.00 x" in dry.page
    assert "commit 1234abc" in dry.page
    assert dry.results["machine"]["commit"] == "1234abc"


def test_exact_search_is_measured_in_every_cell_and_right(dry: Dry) -> None:
    """Each size by each type and batch, with rates, p99, recall, and shares of limits of the same run."""
    sizes = plan.TINY
    cells = dry.results["exact"]
    found = {
        (one["rows"], one["dimension"], one["code"], one["batch"], one["system"]) for one in cells
    }
    wanted = {
        (r, d, c, b, s)
        for r, d in sizes.exact
        for c in backend.CODES
        for b in sizes.batches
        for s in ("FAISS", "vecdb")
    }
    assert found == wanted
    for cell in cells:
        assert cell["queries_per_s"] > 0
        assert cell["p99_ms"] >= cell["p50_ms"] > 0
        assert cell["calls"] >= 1
        assert cell["recall"] >= (0.999 if cell["code"] == "float32" else 0.98)
        assert cell["recall_reranked"] >= 0.999
        seconds = cell["batch"] / cell["queries_per_s"]
        numbers = cell["rows"] * cell["dimension"]
        moved = numbers * bounds.BYTES[cell["code"]] / seconds
        assert cell["of_bandwidth"] == pytest.approx(moved / dry.results["limits"]["bandwidth"])
        if cell["code"] == "float32":
            done = 2 * numbers * cell["batch"] / seconds
            assert cell["of_arithmetic"] == pytest.approx(done / dry.results["limits"]["float32"])


def test_no_filtered_row_comes_back_and_plans_are_right(dry: Dry) -> None:
    """Five selectivities by all plans: none lets a filtered row through, exact plans find the right rows."""
    cases = dry.cases("filters")
    assert {one["selectivity"] for one in cases} == {0.001, 0.01, 0.1, 0.5, 0.99}
    for one in cases:
        if one["batch"]:
            assert one["forbidden"] == 0, one["case"]
        if one["plan"] not in ("bitset, graph", "over-fetch"):
            assert one["recall"] >= 0.999, one["case"]
        if one["plan"] == "over-fetch" and one["complete"] == 1:
            assert one["recall"] >= 0.999, one["case"]
    assert len({one["plan"] for one in cases}) == 7


def test_what_is_inserted_is_visible(dry: Dry) -> None:
    """Every search after an add finds the row that was added: in the whole, in an index beside it, and through the engine,
    where a device answers."""
    cases = dry.cases("insert")
    assert len(cases) == 2 * len(plan.TINY.insert) + 1
    assert cases[-1]["devices"] == ["gpu:0"]
    for one in cases:
        assert one["visible"] == one["times"] > 0
        assert one["p99_ms"] >= one["p50_ms"] > 0


def test_what_does_not_fit_is_streamed_and_measured_against_the_bus(dry: Dry) -> None:
    """Batches go through the device tile by tile, from the store and from memory, with right answers and shares of the
    upload that the same run measured."""
    cases = dry.results["tiled"]
    assert [one["how"] for one in cases] == ["from the store", "from memory"]
    for one in cases:
        assert one["batch"] == max(plan.TINY.batches)
        of_engine = one["how"] == "from the store"
        assert one["plans"] == ["tiled"] * of_engine
        assert isinstance(one["chosen"], bool) == of_engine
        assert one["first"] == 1.0
        moved = one["rows"] * one["dimension"] * 4 * one["queries_per_s"] / one["batch"]
        assert one["bytes_per_s"] == pytest.approx(moved)
        assert one["of_bus"] == pytest.approx(moved / dry.results["limits"]["upload"])


def test_kmeans_on_both_sides_comes_to_the_same(dry: Dry) -> None:
    """With the same seed and rounds the objective is the same."""
    cases = dry.cases("kmeans")
    cpu = next(one for one in cases if one["cpu"])
    card = next(
        one
        for one in cases
        if not one["cpu"] and (one["lists"], one["rounds"]) == (cpu["lists"], cpu["rounds"])
    )
    assert card["objective"] == pytest.approx(cpu["objective"], rel=0.01)


def test_kinds_reach_their_recall_on_the_card_and_on_the_cpu(dry: Dry) -> None:
    """Every kind has a rate at both targets in every batch, at a recall that was measured."""
    cases = dry.cases("kinds")
    assert len({(one["index"], one["where"]) for one in cases}) == 9
    assert {one["where"] for one in cases} == {"card", "CPU"}
    for one in cases:
        assert one["batch"] in plan.TINY.batches, one["case"]
        assert one["recall"] >= one["target"]
        assert one["queries_per_s"] > 0
    assert any(one["candidates"] > 10 for one in cases)


def module(name: str, source: str, folder: Path) -> types.ModuleType:
    path = folder / f"{name}.py"
    path.write_text(
        source + "\n\ndef page(cases, card):\n    return [f'## {len(cases)} kept\\n']\n"
    )
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


ABORTS = """
import os, resource


def run(ctx):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctx.put(case="before")
    os.abort()
"""
HANGS = """
import time


def run(ctx):
    ctx.put(case="before")
    time.sleep(600)
"""
WORKS = """
def run(ctx):
    with ctx.attempt("raises"):
        raise MemoryError("the card is full")
    ctx.put(case="after")
"""


def test_a_part_that_aborts_or_hangs_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An abort, a hang and an exception are named on the page, what was measured before them stays."""
    monkeypatch.syspath_prepend(tmp_path)
    parts = {
        name: (module(name, source, tmp_path), 1.0)
        for name, source in (("aborts", ABORTS), ("hangs", HANGS), ("works", WORKS))
    }
    monkeypatch.setattr(run, "PARTS", parts)
    monkeypatch.setattr(budget, "GRACE_S", 0.5)
    done = started(tmp_path, "--seconds", "4")
    assert done.code == 1
    assert "SIGABRT" in done.results["failed"]["aborts"]
    assert "killed" in done.results["failed"]["hangs"]
    assert "works" not in done.results["failed"]
    kept = {part: [one["case"] for one in done.cases(part)] for part in parts}
    assert kept == {"aborts": ["before"], "hangs": ["before"], "works": ["after"]}
    assert "SIGABRT" in done.page
    assert "Failed: raises: MemoryError: the card is full" in done.page


def test_without_a_card_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 3, what is missing, and how to do a dry run; no results are written."""
    if _card():
        pytest.skip("there is a card")
    assert run.main(["--results", str(tmp_path)]) == run.NO_CARD
    said = capsys.readouterr().out
    assert "no GPU: " in said
    assert "--backend cpu" in said
    assert not list(tmp_path.iterdir())


def _card() -> bool:
    faiss = importlib.import_module("faiss")
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def test_too_little_time_leaves_the_largest_out(tmp_path: Path) -> None:
    """Cases that do not fit are named with the time they need; what fits is measured."""
    context = given_task(tmp_path, seconds=10.0)
    assert context.fits("small", 1.0)
    assert not context.fits("large", 100.0)
    (line,) = plan.read(Path(context.task.lines))
    assert (line["kind"], line["name"]) == ("left out", "large")
    assert "100 s needed" in line["why"]
    for sizes in (plan.FULL, plan.TINY):
        numbers = [rows * dimension for rows, dimension in sizes.exact]
        assert numbers == sorted(numbers)
    done = started(tmp_path, "--seconds", "0", "--only", "exact")
    assert done.code == 0
    left_out = [one["name"] for one in done.lines if one["kind"] == "left out"]
    assert left_out == [f"{rows:,} x {dimension}" for rows, dimension in plan.TINY.exact]
    assert "Left out: 4,000 x 64" in done.page
    assert set(done.results["parts"]) == {"limits", "exact"}


def given_task(folder: Path, seconds: float = 60.0) -> plan.Context:
    lines = str(folder / "lines.jsonl")
    task = plan.Task(
        "exact", exact.__name__, "cpu", "numpy", True, 1, 1, seconds, str(folder), lines
    )
    return plan.Context(task)


def test_formulas() -> None:
    """Bytes, operations, shares and floors come to what was computed by hand."""
    assert bounds.bytes_read(1_000_000, 384, "float16") == 768_000_000
    assert bounds.operations(1_000_000, 384, 1024) == 786_432_000_000
    shape = (1_000_000, 384, "float16")
    assert bounds.share_of_bandwidth(*shape, 0.384e-3, LIMITS) == pytest.approx(0.5)
    assert bounds.share_of_arithmetic(*shape, 1024, 1.96608e-3, LIMITS) == pytest.approx(0.5)
    assert bounds.fused_s(*shape, 1, LIMITS) == pytest.approx(0.192e-3)
    assert bounds.fused_s(*shape, 1024, LIMITS) == pytest.approx(0.98304e-3)
    scores_s = 8 * 1e6 * 1024 / 4e12
    assert bounds.two_pass_s(*shape, 1024, LIMITS) == pytest.approx(0.98304e-3 + scores_s)
    for unknown in ({}, {"bandwidth": 4e12}):
        assert bounds.fused_s(*shape, 1, unknown) is None
        assert bounds.share_of_arithmetic(*shape, 1, 1.0, unknown) is None
    cases = [
        {"limit": "bandwidth", "rate": 3.0},
        {"limit": "bandwidth", "rate": 4.0},
        {"rate": 9.0},
    ]
    assert bounds.limits_of(cases) == {"bandwidth": 4.0}


def test_the_first_k_of_an_overfetch_is_nearly_always_enough() -> None:
    """Of so many nearest, k are allowed in all but a few of a thousand draws; it never exceeds the most."""
    rng = np.random.default_rng(5)
    for selectivity in (0.02, 0.1, 0.5, 0.99):
        k = bounds.first_k(10, selectivity, 2048)
        drawn = rng.binomial(k, selectivity, 20_000)
        assert (drawn < 10).mean() < 0.004, selectivity
    assert bounds.first_k(10, 0.001, 2048) == 2048
    assert bounds.first_k(10, 1.0, 2048) >= 10


def test_goals_are_judged_by_the_limits_of_the_run() -> None:
    """A cell above its goal is met, one below is named with how far off it is and what a kernel would bring."""
    rows, dimension = 10_000_000, 384

    def cell(batch: int, batch_s: float) -> dict[str, Any]:
        case = {
            "case": f"by {batch}",
            "rows": rows,
            "dimension": dimension,
            "code": "float16",
            "batch": batch,
            "queries_per_s": batch / batch_s,
        }
        return exact.shares(case, LIMITS)

    verdicts = goals.judged([cell(1, 2.4e-3), cell(32, 1.0), cell(1024, 39.3216e-3)])
    single, batch = verdicts
    assert (single["limit"], single["met"]) == ("bandwidth", True)
    assert single["share"] == pytest.approx(0.8)
    assert (batch["limit"], batch["met"]) == ("arithmetic", False)
    assert batch["share"] == pytest.approx(0.25)
    assert batch["times_short"] == pytest.approx(2)
    assert batch["own_gain"] == pytest.approx(3.2)
    page = "\n".join(goals.page(verdicts, {"device": "card 0"}, bounds_only=True))
    assert "Met: 1 of 2. Farthest off: by 1024" in page
    assert "lower bounds" in page
    assert "Nothing can be said" in goals.page([], {}, bounds_only=False)[0]


def test_a_line_that_was_cut_off_does_not_hide_the_others(tmp_path: Path) -> None:
    """A process that is killed while it writes leaves whole lines readable."""
    context = given_task(tmp_path)
    context.put(case="whole", rate=1.0)
    path = Path(context.task.lines)
    path.write_text(path.read_text() + '{"part": "exact", "ki')
    assert [one["case"] for one in plan.read(path)] == ["whole"]


def test_a_round_without_time_makes_one_call() -> None:
    """A rate is never one of no calls, however short its round and slow the machine."""
    seen = measure.rate(lambda _: None, 10, budget_s=-1.0)
    assert seen.queries_per_s > 0


def test_timing_counts_the_calls_that_its_numbers_come_from() -> None:
    """Warm calls do not count, slow ones are called once a round at least."""
    asked: list[int] = []

    def call(number: int) -> None:
        asked.append(number)
        time.sleep(0.01)

    found = timing.timed(call, 8, 2, 0.001)
    assert found["calls"] == 2
    assert len(asked) == 3
    assert found["p50_ms"] >= 10
    assert found["queries_per_s"] == pytest.approx(8 / (found["p50_ms"] / 1e3), rel=0.5)


def test_a_machine_without_git_is_described_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page needs the same words of a lent machine that has only Python."""
    whole = run._machine()
    monkeypatch.setattr("bench.gpu.run.shutil.which", lambda name: None)
    assert set(run._machine()) == set(whole)


def test_the_command_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m bench gpu` is this measurement; a name that is none is refused."""
    asked: list[list[str]] = []
    monkeypatch.setattr("bench.gpu.main", lambda words: asked.append(words) or 0)
    monkeypatch.setattr(sys, "argv", ["bench", "gpu", "--only", "exact"])
    assert commands.main() == 0
    assert asked == [["--only", "exact"]]
    monkeypatch.setattr(sys, "argv", ["bench", "other"])
    assert commands.main() == 2
