"""The measuring tools measure what they say."""

from __future__ import annotations

import json
import os
import re
import threading
import time
import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from bench import (
    clusters,
    curves,
    datasets,
    durability,
    measure,
    peers,
    serving,
    sources,
    worker,
)
from bench.children import Child, ChildFailed, Missing, Sampler
from bench.index import beside, building, dead, kinds, run, speed
from bench.sources import Condition

ROOT = Path(__file__).resolve().parent.parent


def test_clusters_are_the_same_for_the_same_seed() -> None:
    """A seed gives the same rows again, another seed others; all of unit length."""
    one, same, other = (datasets.clusters(300, 10, seed, dimension=16) for seed in (1, 1, 2))
    assert np.array_equal(one.vectors, same.vectors)
    assert one.metadata == same.metadata
    assert not np.array_equal(one.vectors, other.vectors)
    assert np.allclose(np.linalg.norm(one.queries, axis=1), 1, atol=1e-5)
    assert len(set(one.ids)) == 300


def test_the_price_of_durability_is_measured_and_written(tmp_path: Path) -> None:
    """Every level, batch and number of writers has a rate in the file and a line on the page."""
    arguments = ["--seconds", "0.02", "--rounds", "1", "--results", str(tmp_path)]
    assert durability.main([*arguments, "--folder", str(tmp_path)]) == 0
    (found,) = tmp_path.glob("*-durability.json")
    results = json.loads(found.read_text())
    measured = {(one["level"], one["batch"], one["writers"]) for one in results["cases"]}
    assert len(measured) == len(results["cases"]) == 2 * 3 * 2 + 3
    assert all(one["rows_per_s"] > 0 and one["writes_per_commit"] >= 1 for one in results["cases"])
    text = found.with_suffix(".md").read_text()
    assert len(re.findall(r"^\| [\d,]+ \|", text, re.MULTILINE)) == 6 + 5


@pytest.mark.long
def test_queries_through_the_server_are_measured_beside_echoes(tmp_path: Path) -> None:
    """Each kind of caller has a rate, and a line on the page with its share of both echoes; also callers that are
    processes of their own."""
    arguments = ["--rows", "2000", "--queries", "50", "--seconds", "0.1", "--rounds", "1"]
    wanted = ["--in-flight", "2", "--processes", "2", "--results", str(tmp_path)]
    assert serving.main([*arguments, *wanted]) == 0
    (found,) = tmp_path.glob("*-serving.json")
    results = json.loads(found.read_text())
    assert [one["kind"] for one in results["figures"]] == 2 * list(serving.KINDS)
    assert [one["processes"] for one in results["figures"]] == 5 * [1] + 5 * [2]
    half, most = results["half_load"], max(one["queries_per_s"] for one in results["figures"][3:4])
    assert half["asked"] == most / 2
    assert 0 < half["p50_ms"] <= half["p99_ms"]
    assert all(one["queries_per_s"] > 0 for one in results["figures"])
    assert results["recall"] > 0.9
    text = found.with_suffix(".md").read_text()
    lines = re.findall(r"^\| 2 \| (?:echo|vecdb), \w+(, 2 processes)? \|", text, re.MULTILINE)
    assert lines == 5 * [""] + 5 * [", 2 processes"]


@pytest.mark.long
def test_ingests_are_measured_beside_the_engine(tmp_path: Path) -> None:
    """Each way has a rate, a share of the embedded one and its parts in the file and on the page."""
    arguments = ["ingest", "--dataset", "clusters", "--rows", "1500", "--rounds", "1"]
    assert serving.main([*arguments, "--results", str(tmp_path)]) == 0
    (found,) = tmp_path.glob("*-serving-ingest.json")
    (turn,) = json.loads(found.read_text())["rounds"]
    assert list(turn) == ["embedded", "client, ingest", "client, insert", "asyncio, ingest"]
    for one in turn.values():
        assert one["rows_per_s"] > 0
        assert one["absent"] == []
        assert all(taken_s > 0 for taken_s in one["taken_s"].values())
    text = found.with_suffix(".md").read_text()
    assert re.search(r"^\| embedded \| .* \| 1\.00 \(1\.00-1\.00\) \|$", text, re.MULTILINE)


@pytest.mark.long
def test_the_parts_of_a_query_are_measured(tmp_path: Path) -> None:
    """Every part has its time, and together they are the whole."""
    arguments = ["where", "--rows", "1000", "--seconds", "0.2", "--rounds", "1"]
    assert serving.main([*arguments, "--in-flight", "4", "--results", str(tmp_path)]) == 0
    (found,) = tmp_path.glob("*-serving-where.json")
    ((plain, full),) = json.loads(found.read_text())["rounds"]
    for case in (plain, full):
        assert case["absent"] == []
        assert case["queries"] >= case["messages"] > 0
        parts = [v for name, v in case["ms"].items() if name not in ("exchange", "echo")]
        assert min(parts) >= 0
        assert case["ms"]["engine: search"] > 0
        assert case["ms"]["query, total"] >= case["ms"]["message under way"] > 0
    assert full["ms"]["engine: fetch"] > plain["ms"]["engine: fetch"] == 0
    assert full["answer_bytes"] > plain["answer_bytes"]
    assert "| bare echo of the same bytes |" in found.with_suffix(".md").read_text()


def test_recall_counts_ties_and_nothing_else() -> None:
    """Equal distances are equally right; a wrong row, one named twice or one not allowed is not."""
    base = datasets.clusters(50, 1, 3, dimension=16)
    vectors = base.vectors.copy()
    order = np.argsort(1 - vectors @ base.queries[0])
    vectors[order[3]] = vectors[order[2]]
    data = datasets.Dataset("ties", base.ids, vectors, base.metadata, base.documents, base.queries)
    ids = [data.ids[row] for row in order]
    truth = data.truth(3)
    assert measure.recall(data, [ids[:3]], truth) == 1
    assert measure.recall(data, [[ids[0], ids[1], ids[3]]], truth) == 1
    assert measure.recall(data, [[ids[0], ids[1], ids[9]]], truth) == pytest.approx(2 / 3)
    assert measure.recall(data, [[ids[0], ids[0], ids[0]]], truth) == pytest.approx(1 / 3)
    allowed = np.zeros(50, np.bool_)
    allowed[order[[1, 5]]] = True
    filtered = data.truth(3, allowed)
    assert measure.recall(data, [[ids[1], ids[5]]], filtered) == 1
    assert measure.recall(data, [[ids[1], ids[0]]], filtered) == 0.5
    assert measure.recall(data, [[]], filtered) == 0


@pytest.fixture
def source(tmp_path: Path) -> sources.Source:
    return sources.prepare("clusters", 2_000, 30, 1, tmp_path)


def test_slices_of_the_clusters_are_the_same_for_the_same_seed(
    source: sources.Source, tmp_path: Path
) -> None:
    """A seed gives the same file again, another seed another; rows are of unit length and in order."""
    again = sources.prepare("clusters", 2_000, 30, 1, tmp_path / "again")
    other = sources.prepare("clusters", 2_000, 30, 2, tmp_path / "other")
    assert np.array_equal(source.vectors(0, 2_000), again.vectors(0, 2_000))
    assert np.array_equal(source.queries, again.queries)
    assert not np.array_equal(source.vectors(0, 2_000), other.vectors(0, 2_000))
    assert np.allclose(np.linalg.norm(source.vectors(0, 2_000), axis=1), 1, atol=1e-5)
    part = source.part(700, 900)
    assert np.array_equal(part.vectors, source.vectors(0, 2_000)[700:900])
    assert source.rows_of(part.ids) == list(range(700, 900))
    assert len(part.metadata) == len(part.documents) == 200


def test_records_of_the_clusters_have_the_shares_that_are_stated() -> None:
    """70 % nouns, 17 % with three lemmas and more, 100 rows of each lemma; columns are the records."""
    members = np.arange(50_000, dtype=np.int32) % 50
    _, metadata, documents = clusters.records(0, 50_000, 50_000, members)
    assert np.mean([one["pos"] == "noun" for one in metadata]) == pytest.approx(0.7, abs=0.01)
    assert np.mean([one["n_lemmas"] >= 3 for one in metadata]) == pytest.approx(0.17, abs=0.01)
    assert set(np.unique([one["lemma"] for one in metadata], return_counts=True)[1]) == {100}
    assert 50 < np.mean([len(text) for text in documents]) < 70
    for field in metadata[0]:
        column = clusters.column(field, 50_000, members)
        assert column.tolist() == [one[field] for one in metadata]


def test_recall_of_a_source_counts_ties_and_nothing_else(source: sources.Source) -> None:
    """The right rows give 1; a wrong, a repeated, a missing and a forbidden one each cost their share."""
    near = 1 - source.queries @ source.vectors(0, source.rows).T
    right = np.argsort(near, axis=1)[:, :4]
    truth = source.truth(4)
    assert source.recall(right, truth) == 1
    assert source.recall(right[:10, ::-1], truth) == 1
    for wrong in (right[:, 0], np.argmax(near, axis=1), np.full(len(right), -1)):
        found = right.copy()
        found[:, 3] = wrong
        assert source.recall(found, truth) == pytest.approx(0.75)
    nouns = Condition("pos", "=", "noun")
    allowed = source.flags(nouns)
    filtered = np.argsort(np.where(allowed, near, np.inf), axis=1)[:, :4]
    assert source.recall(filtered, source.truth(4, nouns)) == 1
    assert source.recall(right, source.truth(4, nouns)) == pytest.approx(allowed[right].mean())


def test_rates_are_compared_at_equal_recall() -> None:
    """Between two points by the logarithm of the rate; below the first its rate, above the last none."""
    points = [
        {"setting": s, "recall": r, "queries_per_s": q}
        for s, r, q in ((1, 0.9, 1_000.0), (2, 0.94, 800.0), (3, 0.98, 200.0))
    ]
    assert curves.rate_at(points, 0.96) == pytest.approx(400)
    assert curves.rate_at(points, 0.94) == 800
    assert curves.rate_at(points, 0.5) == 1_000
    assert curves.rate_at(points, 0.99) is None
    assert curves.reaching(points, 0.93) == points[1]
    faster = [*points, {"setting": 4, "recall": 0.99, "queries_per_s": 900.0}]
    assert curves.reaching(faster, 0.93) == faster[3]
    assert curves.reaching(points, 0.99) is None


def test_a_target_is_narrowed_down_in_steps_of_the_knob() -> None:
    """Between the last setting below the target and the first that reaches it three more are asked: whole numbers of
    whole ones; none where the first already reaches it, or none does."""

    def asked(settings: list[float], target: float, needs: float) -> list[float]:
        tried = {one: float(one >= needs) for one in settings}

        def ask(setting: float) -> None:
            assert setting not in tried
            tried[setting] = float(setting >= needs)

        beside.narrow(tried, target, ask)
        return list(tried)[len(settings) :]

    assert asked([64, 128, 160], 0.99, 115) == [96, 112, 120]
    assert asked([12, 16], 0.99, 15) == [14, 15]
    assert asked([16, 17], 0.99, 17) == []
    assert asked([0.9, 0.98], 0.99, 0.95) == pytest.approx([0.94, 0.96, 0.95])
    assert asked([12, 16], 0.99, 1) == asked([12, 16], 0.99, 20) == []


def test_the_quickest_setting_is_timed_beside_the_lowest() -> None:
    """Where a higher setting is answered in another, much quicker way, it is timed too, of each system for itself."""
    recall = {
        ("a", 0.9): 0.96,
        ("a", 0.95): 0.99,
        ("a", 0.97): 1.0,
        ("b", 16.0): 0.9,
        ("b", 32.0): 0.97,
    }
    slow = {("a", 0.9): 1.0, ("a", 0.95): 5.0, ("a", 0.97): 2.0, ("b", 16.0): 0.1, ("b", 32.0): 0.2}
    assert beside.needed(recall, slow) == {("a", 0.9), ("a", 0.95), ("a", 0.97), ("b", 32.0)}
    even = dict.fromkeys(recall, 1.0) | {("a", 0.97): 0.9}
    assert beside.needed(recall, even) == {("a", 0.9), ("a", 0.95), ("b", 32.0)}


def test_warming_asks_and_waits_until_the_process_is_quiet(source: sources.Source) -> None:
    """All queries are asked with the filter, and what they set off in the background is waited for."""
    asked = []

    class Busy:
        settings = (1, 2, 3)

        def prepare(self, queries: datasets.Vectors) -> list[int]:
            return list(range(len(queries)))

        def where(self, condition: Condition) -> str:
            return str(condition)

        def query(self, vector: int, k: int, where: str, setting: float) -> None:
            asked.append((vector, where, setting))

    def burn() -> None:
        end_s = time.monotonic() + 0.6
        while time.monotonic() < end_s:
            sum(range(1_000))

    one = worker.Worker(source)
    one._systems["it"] = Busy()
    behind = threading.Thread(target=burn)
    behind.start()
    waited_s = one.warm("it", Condition("pos", "=", "noun"), 70, 20.0)
    assert not behind.is_alive()
    assert 1.0 <= waited_s < 20.0
    assert len(asked) == 70
    assert set(asked) == {(i, "pos = noun", 2) for i in range(30)}


def test_a_child_answers_raises_and_is_pinned() -> None:
    """Results come back, errors come as text, a missing package as such, and one core is one core."""
    with Child("collections:deque", [1, 2, 3]) as child, Sampler(child.pid) as sampler:
        assert child.call("pop") == 3
        child.call("clear")
        with pytest.raises(ChildFailed, match="IndexError"):
            child.call("pop")
    assert sampler.peak["anonymous"] > 0
    with pytest.raises(Missing, match="no_such_package"):
        Child("no_such_package:Thing")
    with Child("concurrent.futures:ThreadPoolExecutor", 1, one_core=True) as child:
        assert len(os.sched_getaffinity(child.pid)) == 1


@pytest.mark.long
def test_the_index_is_measured_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part gives numbers and stands on the page; the stages that are timed exist in the engine."""
    monkeypatch.setattr(kinds, "QUANTIZATIONS", ("none", "sq8"))
    monkeypatch.setattr(building, "_QUIET_S", 0.1)
    monkeypatch.setattr(building, "_WARM_S", 0.1)
    monkeypatch.setattr(speed, "_CLOSE_ROUNDS", 2)
    monkeypatch.setattr(speed, "_QUIET_S", 0.1)
    words = ["--dataset", "clusters", "--rows", "3000", "--queries", "50", "--rounds", "1"]
    words += ["--folder", str(tmp_path / "folder"), "--results", str(tmp_path)]
    assert run.main(words) == 0
    (path,) = tmp_path.glob("*-index-clusters-3000.json")
    results = json.loads(path.read_text())
    assert results["failed"] == {}
    parts = results["parts"]
    assert set(parts) == set(run.PARTS) - {"codes", "peers", "dead"}
    assert parts["insert"]["not_timed"] == []
    assert parts["insert"]["shares"]["LMDB transaction"] > 0
    (beside,) = parts["insert"]["beside"].values()
    assert {f"{name}_{age}_rate" for name in ("vecdb", "bare") for age in ("grown", "fresh")} < set(
        beside
    )
    assert min(beside.values()) > 0
    assert len(parts["speed"]["cases"]) == 4
    raws = {peers.RAW.name, peers.SAVED.name}
    assert parts["speed"]["same"] == peers.SAVED.name
    for case in parts["speed"]["cases"].values():
        assert set(case["raw"]) == raws
        for name, points in case["raw"].items():
            assert max(point["recall"] for point in points) > 0.95, name
        for point in case["vecdb"]:
            assert set(point["beside"]) == raws
            if point["setting"] in speed.SHOWN:
                same = point["beside"][peers.SAVED.name]
                assert len(same["ratios_at_recall"]) == 2
            assert point["queries_per_s"] > 0
            assert point["recall"] > point["setting"] - 0.1
    assert {"exact/none", "hnsw/none", "ivf/none"} <= set(parts["kinds"]["kinds"])
    built = parts["memory"]["collections"]["auto"]["building"]
    assert built["total"] >= built["anonymous"] > 0
    assert parts["disk"]["loaded"]["store_bytes"] > results["dataset"]["raw_bytes"]
    assert parts["building"]["phases"]["during the build"]["calls"] > 0
    selected = parts["selective"]["cases"]
    # A lemma has 100 rows: of 3,000 rows no smaller share can be told apart.
    assert {"10.00% of the rows", "50.00% of the rows", "one category"} < set(selected)
    for case in selected.values():
        for target, at in case["at"].items():
            for state in (at, at["before"]):
                assert state["recall"] >= float(target) - 0.03
                assert state["asked"] == 25, "half of the queries: the others have warmed"
            assert at["before"]["plan"] != "side-graph"
    assert 0 < selected["every second category"]["barred"] < 50
    first = parts["building"]["first"]
    assert first["phases"]["during the first build"]["calls"] >= building._FEWEST_CALLS
    assert first["phases"]["quiet with the index"]["p99_ms"] > 0
    assert "/" in first["index"]
    page = path.with_suffix(".md").read_text()
    for title in (
        "Insert",
        "Memory",
        "Speed",
        "Kinds",
        "Filters",
        "Open",
        "Disk",
        "Queries during",
    ):
        assert f"## {title}" in page
    drawn = {plot.name for plot in tmp_path.glob("*.svg")}
    assert (len(drawn) == 2) == (find_spec("matplotlib") is not None)


@pytest.mark.long
def test_dead_rows_are_measured_beside_an_index_built_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each share both answer from the rows that are left, and only the one built anew has forgotten the others."""
    monkeypatch.setattr(dead, "KINDS", (("ivf", "sq8"),))
    monkeypatch.setattr(dead, "SHARES", (0.0, 0.4))
    monkeypatch.setattr(dead, "_BUDGET_S", 0.05)
    words = ["--dataset", "clusters", "--rows", "3000", "--queries", "50", "--rounds", "1"]
    words += ["--folder", str(tmp_path / "folder"), "--results", str(tmp_path), "--only", "dead"]
    assert run.main(words) == 0
    (path,) = tmp_path.glob("*-index-clusters-3000-dead.json")
    found = json.loads(path.read_text())["parts"]["dead"]["kinds"]
    whole, less = found["ivf/sq8"]
    assert "anew" not in whole
    for one in (whole["with"], less["with"], less["anew"]):
        assert one["recall_0.95"] > 0.85
        assert one["single_0.95"] > 0
    assert less["anew"]["index_memory_bytes"] < less["with"]["index_memory_bytes"]
    assert "## Dead rows" in path.with_suffix(".md").read_text()


@pytest.mark.long
def test_peers_that_are_not_installed_are_left_out_with_a_word(tmp_path: Path) -> None:
    """Each system is either measured, with and without filters, or named as missing."""
    words = ["--dataset", "clusters", "--rows", "1200", "--queries", "20", "--rounds", "1"]
    words += ["--folder", str(tmp_path / "folder"), "--results", str(tmp_path), "--only", "peers"]
    assert run.main(words) == 0
    (path,) = tmp_path.glob("*-index-clusters-1200-peers.json")
    found = json.loads(path.read_text())["parts"]["peers"]
    measured, skipped = set(found["plain"]["curves"]), set(found["skipped"])
    assert measured | skipped == {peer.name for peer in peers.PEERS}
    assert not measured & skipped
    raws = {peer.name for peer in peers.RAWS}
    assert {peers.VECDB.name, *raws} <= measured
    for one in found["filtered"].values():
        assert set(one["curves"]) == measured - raws
        assert set(one["warm_wait_s"]) == set(one["curves"])
        assert one["best_recall"]["vecdb"] >= 0.95
    page = path.with_suffix(".md").read_text()
    assert all(f"{name} was left out" in page for name in skipped)


@pytest.mark.long
def test_codes_are_swept_to_a_recall(tmp_path: Path) -> None:
    """Every code has its size, and points that reach 0.99 once enough candidates are ranked again."""
    words = ["--dataset", "clusters", "--rows", "3000", "--queries", "20", "--rounds", "1"]
    words += ["--folder", str(tmp_path / "folder"), "--results", str(tmp_path), "--only", "codes"]
    assert run.main(words) == 0
    (path,) = tmp_path.glob("*-index-clusters-3000-codes.json")
    found = json.loads(path.read_text())["parts"]["codes"]["codes"]
    sizes = {name: one["bytes_a_row"] for name, one in found.items()}
    assert sizes["SQ8"] == 2 * sizes["SQ4"] > sizes["RaBitQ"]
    assert sizes["RaBitQ fast-scan"] >= sizes["RaBitQ"]
    assert len(found) == 6
    for one in found.values():
        assert max(point["recall"] for point in one["single"]) > 0.99
    assert "## Codes of few bits" in path.with_suffix(".md").read_text()


def test_what_is_measured_against_is_pinned() -> None:
    """constraints.txt has one exact version of every package of the extra `bench`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[<>=]", one)[0] for one in project["optional-dependencies"]["bench"]}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert wanted <= {line.partition("==")[0] for line in lines}
