"""`python -m bench run`: every workload is played and recorded, faults show, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bench_planted
import numpy as np
import pytest
from seeds import RUN_SEED

from bench.run import asking, main, plan
from bench.run.host import Host
from bench.run.lines import Lines, fault
from bench.run.plan import WORKLOADS, Entry
from bench.run.tree import members
from bench.run.tuning import Tuning
from bench.sources import prepare

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    "--dataset", "clusters", "--rows", "1500", "--queries", "60", "--rounds", "1", "--loads", "1", "--seconds", "0.05",
    "--callers", "1,4", "--mix-seconds", "0.3", "--load-query-rows", "1200", "--many", "3x100",
    "--growth", "500,1500", "--seed", str(RUN_SEED),
]  # fmt: skip

Line = dict[str, Any]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sets")


def run(folder: Path, cache: Path, *words: str) -> list[Line]:
    """The lines of a run that ended by itself."""
    code = main([*SMALL, "--cache", str(cache), "--out", str(folder), *words])
    assert code == 0
    (file,) = folder.glob("*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def runs(pid: int) -> bool:
    """Whether a process is there and has not ended; one that ended may wait to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def of(lines: list[Line], kind: str, **values: Any) -> list[Line]:
    return [
        one
        for one in lines
        if one["kind"] == kind and all(one.get(name) == value for name, value in values.items())
    ]


@pytest.mark.long
def test_every_workload_of_every_system_is_recorded(tmp_path: Path, cache: Path) -> None:
    """The engine, the server and a limit play all workloads; lines keep to the schema, exact answers have recall 1."""
    systems = ("vecdb", "vecdb-grpc", "faiss-hnsw")
    lines = run(tmp_path, cache, "--systems", ",".join(systems), "--workloads", ",".join(WORKLOADS))
    assert [fault(line) for line in lines if fault(line)] == []
    assert of(lines, "failed") == []
    assert lines[0]["kind"] == "run"
    assert lines[0]["dataset"]["rows"] == 1500
    assert [one["system"] for one in of(lines, "system")] == list(systems)
    for name in systems[:2]:
        for workload in WORKLOADS:
            samples = of(lines, "sample", system=name, workload=workload)
            assert samples, (name, workload)
            # 1,500 rows are compared one by one: whatever is asked is right.
            assert all(one.get("recall", 1.0) > 0.999 for one in samples), (name, workload)
            assert all(one["cpu_s"] >= 0 and one["memory_bytes"] > 0 for one in samples)
        (beside,) = of(lines, "sample", system=name, workload="load_query")
        assert (beside["rows"], beside["recall"] > 0.999) == (1200, True)
        cases = {one["case"] for one in of(lines, "sample", system=name, workload="single")}
        assert cases == {"callers=1"} | {
            f"callers={callers} recall={target}" for callers in (1, 4) for target in plan.TARGETS
        }
        assert (
            len({one["case"] for one in of(lines, "sample", system=name, workload="filter")}) >= 4
        )
    served = of(lines, "sample", system="vecdb-grpc", workload="single")
    assert all(one["memory_server_bytes"] < one["memory_bytes"] for one in served)
    limit = {one["workload"] for one in of(lines, "skipped", system="faiss-hnsw")}
    assert {"filter", "update", "rag", "many"} <= limit
    assert of(lines, "sample", system="faiss-hnsw", workload="growth", at_rows=1500)


@pytest.mark.long
def test_faults_of_a_system_show(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost rows, wrong answers, errors, a child that ends and one that hangs are recorded, and the other systems are still measured."""
    faults = ("none", "loses", "wrong", "raises", "ends", "hangs")
    for name in faults:
        monkeypatch.setitem(plan.SYSTEMS, name, Entry("bench_planted", (("fault", name),)))
    words = ["--patience", "5"]
    lines = run(
        tmp_path,
        cache,
        "--systems",
        ",".join(faults),
        "--workloads",
        "load,open,single,batch",
        *words,
    )
    assert [fault(line) for line in lines if fault(line)] == []
    recalls = {
        name: [one["recall"] for one in of(lines, "sample", system=name, workload="single")]
        for name in faults
    }
    assert min(recalls["none"]) == 1.0
    assert max(recalls["wrong"]) < 0.1
    assert of(lines, "failed", system="none") == of(lines, "failed", system="wrong") == []
    (lost,) = of(lines, "failed", system="loses")
    assert lost["reason"] == "it counts 1200 rows, 1500 were acknowledged"
    assert not recalls["loses"]
    (raised,) = of(lines, "failed", system="raises")
    assert "no answer today" in raised["reason"]
    (ended,) = of(lines, "failed", system="ends")
    assert "exit code 3" in ended["reason"]
    (hung,) = of(lines, "failed", system="hangs")
    assert "no answer for 5 s" in hung["reason"]


@pytest.mark.long
def test_a_failure_stands_once_and_where_it_happened(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error goes by its kind, not by its words; a child that ends in one workload spoils no other."""
    for name in ("says", "stops"):
        monkeypatch.setitem(plan.SYSTEMS, name, Entry("bench_planted", (("fault", name),)))
    words = ["--systems", "says,stops", "--workloads", "load,single,batch,filter"]
    lines = run(tmp_path, cache, *words)
    (said,) = of(lines, "failed", system="says")
    assert (said["workload"], said["reason"]) == (
        "batch",
        "RuntimeError: Unsupported: no answer, the child ended",
    )
    # It can be asked on: what it has not is skipped, by the reason that it gives.
    assert [(one["workload"], one["reason"]) for one in of(lines, "skipped")] == [
        ("filter", "it holds no metadata to filter by")
    ]
    (stopped,) = of(lines, "failed", system="stops")
    assert (stopped["workload"], stopped["case"]) == ("batch", "")
    assert "exit code 3" in stopped["reason"]
    for name in ("says", "stops"):
        assert of(lines, "sample", system=name, workload="single")


@pytest.mark.long
def test_what_runs_outside_is_not_weighed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a server that is not ours no memory, CPU or disk is told, nor how soon it opens: it runs already."""
    for name, module in (("inside", "bench_planted"), ("outside", "bench_planted_outside")):
        monkeypatch.setitem(plan.SYSTEMS, name, Entry(module))
    words = ["--systems", "inside,outside", "--workloads", "load,open,single"]
    lines = run(tmp_path, cache, *words)
    assert of(lines, "failed") == []

    def weighed(name: str) -> set[str]:
        keys = {key for one in of(lines, "sample", system=name) for key in one}
        return {key for key in keys if key.startswith(("memory", "cpu", "disk"))}

    assert {"memory_bytes", "cpu_s", "disk_bytes"} <= weighed("inside")
    assert weighed("outside") == set()
    (skipped,) = of(lines, "skipped")
    assert (skipped["system"], skipped["workload"]) == ("outside", "open")
    assert of(lines, "sample", system="outside", workload="single")


def test_opening_weighs_the_system_alone(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer after opening is not turned into rows: the map of ids that this takes is the load's."""
    source = prepare("clusters", 1_500, 60, RUN_SEED, cache)
    host = Host(source, "bench_planted", {})
    host.describe()
    host.open(tmp_path / "data", True)
    host.load(0, source.rows, 60.0)
    host.close(True)
    monkeypatch.setattr(bench_planted.System, "rows", None)
    assert all(seconds > 0 for seconds in host.reopen(tmp_path / "data", 1.0))


def test_batches_all_have_the_same_size(tmp_path: Path) -> None:
    """A rate counts as many queries as were asked: what fills no batch is left out."""
    sizes: list[int] = []

    class Batches:
        def batch(self, queries: Any, k: int, setting: float) -> Any:
            sizes.append(len(queries))
            return [[0]] * len(queries)

    for count, size in ((250, 100), (60, 60)):
        sizes.clear()
        queries = np.zeros((count, 2), np.float32)
        asking.ask(Batches(), queries, [], asking.Case(0.0, batched=True, budget_s=0.01))
        assert set(sizes) == {size}


def test_a_system_that_is_not_installed_is_skipped(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named with the package that is missing, and the others are measured."""
    monkeypatch.setitem(plan.SYSTEMS, "absent", Entry("no_such_adapter"))
    monkeypatch.setitem(plan.SYSTEMS, "present", Entry("bench_planted"))
    lines = run(tmp_path, cache, "--systems", "absent,present", "--workloads", "load")
    (skipped,) = of(lines, "skipped")
    assert (skipped["system"], skipped["reason"]) == ("absent", "no_such_adapter is not installed")
    assert of(lines, "sample", system="present", workload="load", case="")


def test_an_interrupt_leaves_a_readable_file_and_no_process(tmp_path: Path, cache: Path) -> None:
    """After Ctrl-C amid a load through a server, every line can be read and nothing that was started runs on."""
    words = [
        sys.executable, "-m", "bench", "run", *SMALL, "--rows", "20000", "--systems", "vecdb-grpc",
        "--cache", str(cache), "--out", str(tmp_path), "--work", str(tmp_path),
        "--growth", "1500,20000", "--workloads", "growth",
    ]  # fmt: skip
    paths = os.pathsep.join(str(ROOT / one) for one in (".", "server", "clients/python"))
    process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths})
    try:
        until_s = time.monotonic() + 120
        while len(started := members(process.pid)) < 3 or not list(
            tmp_path.glob("vecdb-bench-*/*")
        ):
            assert process.poll() is None
            assert time.monotonic() < until_s
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
    until_s = time.monotonic() + 10
    while left := [pid for pid in started if runs(pid)]:
        assert time.monotonic() < until_s, left
        time.sleep(0.05)
    (file,) = tmp_path.glob("*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["kind"] for line in lines[:2]] == ["run", "system"]
    assert not list(tmp_path.glob("vecdb-bench-*"))


def test_lines_that_break_the_schema_are_refused(tmp_path: Path) -> None:
    """A missing key, a key that nobody knows and a value of the wrong type raise; a second run takes a new file."""
    with Lines(tmp_path / "run.jsonl") as lines, Lines(tmp_path / "run.jsonl") as others:
        assert lines.path != others.path
        about = {"system": "vecdb", "workload": "load", "case": "", "round": 0}
        lines.write("sample", **about, qps=1.5)
        with pytest.raises(ValueError, match="lacks round"):
            lines.write("sample", **{k: v for k, v in about.items() if k != "round"})
        with pytest.raises(ValueError, match="has no speed"):
            lines.write("sample", **about, speed=1)
        with pytest.raises(ValueError, match="qps"):
            lines.write("sample", **about, qps="fast")
        with pytest.raises(ValueError, match="kind"):
            lines.write("smaple", **about)
        assert len(lines.path.read_text().splitlines()) == 1


@pytest.mark.parametrize("target", [0.3, 0.5, 0.95, 1.0])
def test_the_least_setting_that_reaches_a_recall_is_found(target: float) -> None:
    """By halving, with few measurements, whatever was measured before; the best one where none reaches it."""
    settings = [float(one) for one in range(1, 25)]
    asked: list[float] = []

    def measure(setting: float) -> dict[str, Any]:
        asked.append(setting)
        return {"recall": 1 - 0.7 / setting}

    tuning = Tuning(settings, measure)
    tuning.spread()
    found, reached = tuning.reaching(target)
    right = [one for one in settings if 1 - 0.7 / one >= target]
    assert reached == bool(right)
    assert found == (right[0] if right else settings[-1])
    assert len(asked) == len(set(asked)) <= 12
