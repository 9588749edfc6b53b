"""Pages, plots and README's part say what the lines of a run say."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bench import report
from bench.report import goals, lines, readme
from bench.report.cells import NONE, Column, best, cell

ROOT = Path(__file__).resolve().parent.parent


def about(**changed: Any) -> dict[str, Any]:
    return {
        "kind": "run",
        "schema": 1,
        "date": "2026-01-02T03:04:05+00:00",
        "command": "python -m bench run --dataset wordnet",
        "commit": "abc1234",
        "machine": {
            "cpu": "a cpu", "cores": 2, "memory_gib": 8, "system": "Linux", "python": "3.11",
            "packages": {"vecdb": "0.1.0"}, "disk": "ext4", "load_at_start": 0.1,
        },
        "dataset": {
            "name": "wordnet", "rows": 1_000, "dimension": 384, "queries": 100, "metric": "cosine",
            "seed": 1, "structure": "real",
        },
        "k": 10,
        "rounds": 3,
        "target_recall": [0.95, 0.99],
        **changed,
    }  # fmt: skip


def system(name: str, role: str = "engine") -> dict[str, Any]:
    return {
        "kind": "system", "system": name, "version": "1.2", "transport": "embedded",
        "durability": f"{name} syncs", "settings": {"M": 16}, "role": role,
    }  # fmt: skip


def samples(
    name: str, workload: str, case: str, key: str, values: Sequence[float], **more: Any
) -> list[dict[str, Any]]:
    """A sample a round."""
    return [
        {"kind": "sample", "system": name, "workload": workload, "case": case, "round": turn,
         key: value, **more}
        for turn, value in enumerate(values)
    ]  # fmt: skip


def everything() -> list[dict[str, Any]]:
    """A run in which vecdb is 20 times Chroma's server in loading, less elsewhere, and one system fails."""
    single, rare = "callers=1 recall=0.95", "0.07 %"
    return [
        about(),
        *map(system, ("vecdb", "vecdb-grpc", "chroma", "chroma-server", "zvec")),
        system("faiss-hnsw", "limit"),
        {"kind": "skipped", "system": "pgvector", "reason": "no server | none"},
        {"kind": "failed", "system": "zvec", "workload": "update", "case": "", "round": 0,
         "reason": "it\nfell over"},
        *samples("vecdb", "load", "", "rows_per_s", [900, 1_000, 1_700]),
        *samples("vecdb-grpc", "load", "", "rows_per_s", [400, 420, 380]),
        *samples("chroma-server", "load", "", "rows_per_s", [20, 20, 19]),
        *samples("chroma", "load", "", "rows_per_s", [30]),
        *samples("faiss-hnsw", "load", "", "rows_per_s", [9_000]),
        *samples("zvec", "load", "", "rows_per_s", [1_200, 1_200]),
        *samples("vecdb", "single", single, "qps", [500, 510], recall=0.951,
                 latency_ms=[1.0, 2.0, 9.0]),
        *samples("vecdb-grpc", "single", single, "qps", [300], recall=0.97),
        *samples("chroma-server", "single", single, "qps", [100], recall=0.96),
        *samples("chroma", "single", single, "qps", [9_999], recall=0.80),
        *samples("faiss-hnsw", "single", single, "qps", [70_000], recall=0.99),
        *samples("vecdb-grpc", "filter", rare, "qps", [60], recall=0.9),
        *samples("chroma-server", "filter", rare, "qps", [1], recall=1.0),
        *samples("vecdb-grpc", "open", "", "seconds", [0.25], memory_bytes=900 * 2**20,
                 memory_server_bytes=100 * 2**20, disk_to_raw=1.5),
        *samples("chroma-server", "open", "", "seconds", [1.0], memory_bytes=900 * 2**20,
                 memory_server_bytes=200 * 2**20, disk_to_raw=2.0),
        *(one for recall, qps in ((0.9, 900), (0.97, 500)) for one in
          samples("vecdb", "single", "callers=1", "qps", [qps], recall=recall, setting=recall)),
    ]  # fmt: skip


def written(folder: Path, held: Sequence[dict[str, Any]], name: str = "run.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in held))
    return path


def rows_of(text: str, heading: str) -> dict[str, list[str]]:
    """Cells of the first table after a heading, by its first column."""
    table = text[text.index(heading) :]
    found = re.search(r"(^\|.*\n)+", table, re.MULTILINE)
    assert found is not None
    made = [[one.strip() for one in row.strip("|").split(" | ")] for row in found[0].splitlines()]
    header = made[0]
    return {"": header} | {row[0].strip("| "): row for row in made[2:]}


def test_medians_spread_and_the_best_are_on_the_page(tmp_path: Path) -> None:
    """The page shows the middle of the rounds, lowest and highest, and the best database in bold."""
    path = written(tmp_path, everything())
    assert report.main([str(path)]) == 0
    text = path.with_suffix(".md").read_text()
    rows = rows_of(text, "## Load")
    assert rows["vecdb"][1] == "1,000 (900-1,700)"
    assert rows["zvec"][1] == "**1,200**"
    assert rows["chroma"][1] == "30"
    # A limit is shown and is never the best.
    assert rows["*faiss-hnsw*"][1] == "9,000"
    assert list(rows)[-1] == "*faiss-hnsw*"
    for word in ("python -m bench run --dataset wordnet", "abc1234", "a cpu", "2026-01-02", "1.2"):
        assert word in text
    assert "vecdb syncs" in text
    assert "M 16" in text


def test_index_time_counts_from_the_first_row(tmp_path: Path) -> None:
    """A system that indexes while it loads is compared by both together; half of it is no number."""
    held = [
        *everything(),
        *samples("vecdb", "load", "ready", "seconds", [7, 9, 8]),
        *samples("chroma", "load", "ready", "seconds", [0.1]),
        *samples("zvec", "load", "ready", "seconds", [0.1]),
        *samples("vecdb", "load", "", "seconds", [1, 3, 2]),
        *samples("chroma", "load", "", "seconds", [90]),
    ]
    path = written(tmp_path, held)
    report.main([str(path)])
    rows = rows_of(path.with_suffix(".md").read_text(), "## Load")
    assert rows[""][2] == "load and index s"
    assert rows["vecdb"][2] == "**10 (8-12)**"
    assert rows["chroma"][2] == "90.1"
    assert rows["zvec"][2] == NONE


def test_a_rate_below_the_recall_is_shown_and_does_not_win(tmp_path: Path) -> None:
    """A system that misses the recall has its rate and what it reached beside it, and no bold."""
    path = written(tmp_path, everything())
    report.main([str(path)])
    rows = rows_of(path.with_suffix(".md").read_text(), "## Single queries")
    assert rows["chroma"][1] == "9,999¹ at 0.80"
    assert rows["vecdb"][1] == "**505 (500-510)**"


def test_what_is_missing_skipped_or_failed_is_visible(tmp_path: Path) -> None:
    """No number is a dash, a failure is named in its cell and with its reason, as is what was skipped."""
    path = written(
        tmp_path, [*everything(), *samples("vecdb", "update", "upsert", "rows_per_s", [5])]
    )
    report.main([str(path)])
    text = path.with_suffix(".md").read_text()
    overview = rows_of(text, "## Overview")
    upsert = overview[""].index("upsert rows/s")
    assert overview["zvec"][upsert] == "failed"
    assert overview["chroma"][upsert] == NONE
    assert overview["vecdb"][upsert] == "**5**"
    assert f"| zvec | update | {NONE} | 0 | it fell over |" in text
    assert "- pgvector: no server \\| none" in text


def test_ratios_to_the_server_are_judged_by_the_goals(tmp_path: Path) -> None:
    """Ratios come from medians of one run; met, missed and not measured are told apart."""
    run = lines.read(written(tmp_path, everything()))
    found = {(one.goal.column.workload, one.goal.column.case, one.goal.column.key): one
             for one in goals.beside(run)}  # fmt: skip
    load = found["load", "", "rows_per_s"]
    assert (load.goal.asked, load.ratio, load.met) == (20, 20, True)
    single = found["single", "callers=1 recall=0.95", "qps"]
    assert (single.goal.asked, single.ratio, single.met) == (4, 3, False)
    rare = found["filter", "0.07 %", "qps"]
    # 60 times as fast, and at a recall that was not asked for.
    assert (rare.ratio, rare.met, rare.why) == (60, False, "recall 0.900")
    assert found["open", "", "seconds"].ratio == 4
    assert found["open", "", "seconds"].met
    # Of the server alone, not with the process that asks.
    assert (found["open", "", "memory_bytes"].ratio, found["open", "", "memory_bytes"].met) == (
        2,
        True,
    )
    disk = found["open", "", "disk_to_raw"]
    assert (disk.ratio, disk.met) == (pytest.approx(4 / 3), False)
    upsert = found["update", "upsert", "rows_per_s"]
    assert (upsert.ratio, upsert.met) == (None, None)
    assert upsert.why == "not measured: vecdb-grpc, chroma-server"
    text = goals.summary(goals.beside(run), goals.places(run))
    assert "3 of 6 goals are met" in text
    assert "behind zvec, 0.833 x of it" in text


def test_what_vecdb_lacks_is_not_left_out_of_the_count(tmp_path: Path) -> None:
    """A row in which vecdb misses the recall or has no number is one in which it is not first."""
    held = [
        *everything(),
        *samples("vecdb", "single", "callers=8 recall=0.95", "qps", [9_999], recall=0.8),
        *samples("chroma", "single", "callers=8 recall=0.95", "qps", [1], recall=0.96),
        *samples("chroma", "update", "upsert", "rows_per_s", [3]),
    ]
    run = lines.read(written(tmp_path, held))
    text = goals.summary(goals.beside(run), goals.places(run))
    assert "vecdb is first in 1 of 4 rows; not first: " in text
    assert "QPS callers 8 recall=0.95 (recall 0.800)" in text
    assert "upsert rows/s (not measured)" in text
    assert "not measured: QPS callers 8 recall=0.95, upsert rows/s." in text


def test_what_one_waits_for_while_loading_and_among_many_collections_counts(tmp_path: Path) -> None:
    """Queries while loading, many collections and growth are in the overview and among what vecdb is ranked by, also
    where others are better; a rate below the recall is none."""
    many, size = "10 x 100", 2**20
    held = [
        *everything(),
        *samples("vecdb", "load_query", "", "qps", [300], recall=1.0, rows_per_s=9_000),
        *samples("zvec", "load_query", "", "qps", [400], recall=1.0, rows_per_s=8_000),
        *samples("chroma", "load_query", "", "qps", [900], recall=0.9, rows_per_s=7_000),
        *samples("vecdb", "many", many, "qps", [50], recall=1.0, rows_per_s=30,
                 memory_bytes=3 * size, disk_bytes=4 * size, disk_to_raw=2.0),
        *samples("zvec", "many", many, "qps", [40], recall=1.0, rows_per_s=60,
                 memory_bytes=9 * size, memory_server_bytes=size, disk_bytes=4 * size, disk_to_raw=2.0),
        *samples("vecdb", "growth", "500", "rows_per_s", [70], at_rows=500),
        *samples("vecdb", "growth", "1500", "rows_per_s", [60], at_rows=1_500),
        *samples("zvec", "growth", "1500", "rows_per_s", [90], at_rows=1_500),
        *samples("vecdb", "growth", "1500 recall=0.95", "qps", [80], at_rows=1_500, recall=0.96),
        *samples("zvec", "growth", "1500 recall=0.95", "qps", [95], at_rows=1_500, recall=0.9),
        {"kind": "failed", "system": "chroma", "workload": "growth", "case": "", "round": 0,
         "reason": "the child ended"},
    ]  # fmt: skip
    path = written(tmp_path, held)
    report.main([str(path)])
    rows = rows_of(path.with_suffix(".md").read_text(), "## Overview")

    def shown(title: str, name: str) -> str:
        return rows[name][rows[""].index(title)]

    assert shown("QPS while loading", "zvec") == "**400**"
    assert shown("QPS while loading", "chroma") == "900¹ at 0.90"
    assert shown("rows/s while asked", "vecdb") == "**9,000**"
    assert shown("collections 10 x 100 rows/s", "zvec") == "**60**"
    assert shown("collections 10 x 100 QPS", "vecdb") == "**50**"
    # 4 MiB are twice the raw vectors.
    assert (
        shown("collections 10 x 100 memory / raw", "vecdb"),
        shown("collections 10 x 100 memory / raw", "zvec"),
    ) == (
        "1.5",
        "**0.5**",
    )
    assert shown("rows/s at 1,500 rows", "zvec") == "**90**"
    assert shown("QPS at 1,500 rows", "vecdb") == "**80**"
    # What no system has is no column.
    assert "load and index s" not in rows[""]
    places = {one.column.title: one.place for one in goals.places(lines.read(path))}
    assert (places["QPS while loading"], places["rows/s while asked"]) == (2, 1)
    assert (places["collections 10 x 100 rows/s"], places["collections 10 x 100 memory / raw"]) == (
        2,
        2,
    )
    assert (places["rows/s at 1,500 rows"], places["QPS at 1,500 rows"]) == (2, 1)


def test_rates_between_writes_count_at_the_recall_alone(tmp_path: Path) -> None:
    """The mix, and queries after changes, are marked where they miss the recall, and are not the best then."""
    held = [
        *everything(),
        *samples("vecdb", "rag", "callers=1", "qps", [10], recall=0.96),
        *samples("zvec", "rag", "callers=1", "qps", [20], recall=0.85),
        *samples("vecdb", "update", "query", "qps", [11], recall=0.97),
        *samples("chroma", "update", "query", "qps", [21], recall=0.94),
    ]
    path = written(tmp_path, held)
    report.main([str(path)])
    rows = rows_of(path.with_suffix(".md").read_text(), "## Overview")
    mix, changes = rows[""].index("RAG mix callers 1"), rows[""].index("QPS after changes")
    assert (rows["vecdb"][mix], rows["zvec"][mix]) == ("**10**", "20¹ at 0.85")
    assert (rows["vecdb"][changes], rows["chroma"][changes]) == ("**11**", "21¹ at 0.94")


def test_the_base_of_what_is_embedded_stands_beside_its_memory(tmp_path: Path) -> None:
    """A process with the package imported is part of the memory of what runs in it, and of no server's."""
    mib = 2**20
    held = [one for one in everything() if one["kind"] != "system"]
    held += [
        {**system(name), "memory_base_bytes": 50 * mib} for name in ("vecdb", "vecdb-grpc", "zvec")
    ]
    held += samples("vecdb", "open", "", "seconds", [1], memory_bytes=300 * mib)
    path = written(tmp_path, held)
    report.main([str(path)])
    text = path.with_suffix(".md").read_text()
    rows = rows_of(text[text.index("## Cold open") :], "| system | memory MiB |")
    assert rows["vecdb"] == ["vecdb", "300", "50"]
    assert rows["vecdb-grpc"] == ["vecdb-grpc", "100", NONE]
    assert "zvec" not in rows


def test_a_peer_that_misses_the_recall_is_no_excuse(tmp_path: Path) -> None:
    """A goal stays met or missed by the ratio where the peer misses the recall, and that is said."""
    held = everything()
    for line in held:
        if line["kind"] == "sample" and line["system"] == "chroma-server" and "recall" in line:
            line["recall"] = 0.5
    run = lines.read(written(tmp_path, held))
    (single,) = [one for one in goals.beside(run) if one.goal.column.workload == "single"]
    assert (single.ratio, single.met) == (3, False)
    assert single.why == "chroma-server reaches recall 0.500 only"


def test_places_among_embedded_databases(tmp_path: Path) -> None:
    """A place counts those that are better and reach the recall; limits and servers are no peers."""
    run = lines.read(written(tmp_path, everything()))
    found = {(one.column.workload, one.column.case): one for one in goals.places(run)}
    load = found["load", ""]
    assert (load.place, load.count, load.best) == (2, 2, "1,200 (zvec)")
    assert load.ratio == pytest.approx(1_000 / 1_200)
    single = found["single", "callers=1 recall=0.95"]
    assert (single.place, single.count) == (1, 0)
    assert single.why == "chroma misses the recall"
    assert ("filter", "0.07 %") not in found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no line of kind run"),
        ("{\n{}\n", "line 1 of run.jsonl is no JSON"),
        ("[]\n", "line 1 of run.jsonl: it is no object"),
        ('{"kind": "sample"}\n', "line 1 of run.jsonl: a line of kind sample lacks system"),
        ('{"kind": "wish"}\n', "kind is 'wish'"),
    ],
)
def test_files_that_are_no_run_are_refused(
    tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is no run ends with code 2 and the line that is wrong, and no page."""
    path = tmp_path / "run.jsonl"
    path.write_text(text)
    assert report.main([str(path)]) == 2
    assert words in capsys.readouterr().err
    assert not path.with_suffix(".md").exists()
    assert report.main([str(tmp_path / "absent.jsonl")]) == 2


def test_a_run_that_broke_off_has_a_page_of_what_there_is(tmp_path: Path) -> None:
    """A last line that is cut off is left out with a word; a run without any sample has a page too."""
    path = written(tmp_path, everything())
    path.write_text(path.read_text()[:-20])
    said: list[str] = []
    assert len(lines.read(path, said.append).samples) == len(lines.read(path, said.append).samples)
    assert "cut off" in said[0]
    bare = written(tmp_path, [about()], "bare.jsonl")
    assert report.main([str(bare)]) == 0
    assert "a cpu" in bare.with_suffix(".md").read_text()


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_plots_are_drawn_of_what_was_measured_and_no_more(tmp_path: Path) -> None:
    """Each plot with numbers is a file that the page shows, with limits by name; the same run draws the same."""
    path = written(tmp_path, everything())
    report.main([str(path)])
    text = path.with_suffix(".md").read_text()
    drawn = sorted(one.name for one in tmp_path.glob("*.svg"))
    assert drawn == [f"run-{one}.svg" for one in ("filters", "latency", "recall")]
    assert all(f"({name})" in text for name in drawn)
    before = {name: (tmp_path / name).read_bytes() for name in drawn}
    report.main([str(path)])
    assert before == {name: (tmp_path / name).read_bytes() for name in drawn}
    assert "vecdb" in (tmp_path / "run-recall.svg").read_text()
    more = samples("vecdb", "growth", "100 recall=0.95", "qps", [5], at_rows=100, recall=0.95)
    more += samples("vecdb", "growth", "200 recall=0.95", "qps", [4], at_rows=200, recall=0.95)
    report.main([str(written(tmp_path, [*everything(), *more]))])
    assert (tmp_path / "run-growth.svg").exists()


def test_what_misses_its_recall_is_not_the_best(tmp_path: Path) -> None:
    """The best is a database that reaches the recall; a limit is shown, and never the best."""
    run = lines.read(written(tmp_path, everything()))
    single = Column("", "single", "callers=1 recall=0.95", "qps", target=0.95)
    assert best(run, single) == 505
    assert cell(run, single, "faiss-hnsw") == "70,000"


def test_readme_shows_what_report_makes_and_notices_what_is_stale(tmp_path: Path) -> None:
    """--readme rewrites the part between the markers alone; a changed file or part is found out."""
    results = tmp_path / "results"
    results.mkdir()
    path = written(results, everything())
    page = tmp_path / "README.md"
    empty = f"before\n{readme.BEGIN.format('')}\n{readme.END}\nafter\n"
    page.write_text(empty)
    assert readme.stale(page) is None
    assert report.main([str(path), "--readme", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- bench run: begin results/run.jsonl -->\n")
    assert text.endswith("<!-- bench run: end -->\nafter\n")
    assert "| zvec | **1,200** |" in text
    assert "(results/run.md)" in text
    assert readme.stale(page) is None
    assert report.main([str(path), "--readme", str(page)]) == 0
    assert page.read_text() == text
    page.write_text(text.replace("1,200", "9,200"))
    assert "something else" in str(readme.stale(page))
    page.write_text(text)
    more = samples("vecdb", "load", "", "rows_per_s", [5_000] * 9)
    written(results, [*everything(), *more])
    assert "something else" in str(readme.stale(page))
    page.write_text(empty.replace("-->\n", "-->\na number\n", 1))
    assert "names no file" in str(readme.stale(page))
    page.write_text("nothing")
    assert "no part" in str(readme.stale(page))
    assert report.main([str(path), "--readme", str(page)]) == 2
    assert page.read_text() == "nothing"


def test_the_readme_of_this_repository_is_what_its_file_gives(tmp_path: Path) -> None:
    """README's table comes from the committed file that it names, by report and not by hand."""
    assert readme.stale(ROOT / "README.md") is None
    # And the check sees a change of the file that is shown.
    copy = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", copy)
    results = written(tmp_path, everything())
    report.main([str(results), "--readme", str(copy)])
    copy.write_text(copy.read_text().replace("1,200", "1,201"))
    assert readme.stale(copy) is not None
