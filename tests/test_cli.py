"""The command line: every command, its output for people and for machines, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, rows_file

import vecdb
from vecdb_server import __main__ as command_line
from vecdb_server import cli
from vecdb_server.settings import SETTINGS

DIMENSION = 8


def test_a_collection_from_creation_to_drop(run: Run) -> None:
    """create, list, rename, alias and drop do what they say, and list shows it."""
    made = run("create", "docs", "--dimension", "8", "--metric", "l2", "--schema",
               '{"n": "int"}', "--description", "first", "--json")  # fmt: skip
    assert made.code == 0, made.err
    assert made.lines[0]["metric"] == "l2"
    assert made.lines[0]["schema"] == {"n": "int"}
    assert run("create", "docs", "--dimension", "8").code == 1
    assert run("rename", "docs", "texts").code == 0
    assert run("alias", "live", "texts").code == 0
    assert run("alias", "--json").lines == [{"live": "texts"}]
    (listed,) = run("list", "--json").lines
    assert (listed["name"], listed["aliases"], listed["count"]) == ("texts", ["live"], 0)
    people = run("list").out
    assert "texts" in people
    assert "first" in people
    assert run("alias", "live", "--drop").code == 0
    assert run("drop", "texts").code == 0
    assert run("list", "--json").lines == []


def test_query_by_vector_by_file_and_by_id(run: Run, tmp_path: Path) -> None:
    """The three ways to ask agree with numpy and with each other; filter and bounds are passed on."""
    source = rows_file(tmp_path, 50)
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    vectors = np.array([row["vector"] for row in rows], np.float32)
    assert run("import", "docs", str(source), "--create", "--metric", "l2").code == 0
    np.save(tmp_path / "q.npy", vectors[[3, 9]])
    expected = np.argsort(((vectors - vectors[3]) ** 2).sum(1))[:4]

    (by_vector,) = run("query", "docs", "--vector", json.dumps(vectors[3].tolist()), "--k", "4",
                       "--json").lines  # fmt: skip
    assert [hit["id"] for hit in by_vector["hits"]] == [f"r{i}" for i in expected]
    assert by_vector["hits"][0]["distance"] == pytest.approx(0, abs=1e-5)
    both = run("query", "docs", "--vectors", str(tmp_path / "q.npy"), "--k", "4", "--json").lines
    assert both[0] == by_vector
    assert both[1]["hits"][0]["id"] == "r9"
    row = run("query", "docs", "--vectors", str(tmp_path / "q.npy"), "--row", "1", "--json").lines
    assert row[0]["hits"][0]["id"] == "r9"
    (by_id,) = run("query", "docs", "--id", "r3", "--k", "3", "--json", "--exact").lines
    assert [hit["id"] for hit in by_id["hits"]] == [f"r{i}" for i in expected[1:]]
    filtered = run("query", "docs", "--id", "r3", "--filter", '{"even": false}', "--json",
                   "--include", "metadata").lines[0]["hits"]  # fmt: skip
    assert filtered
    assert all(hit["metadata"]["even"] is False for hit in filtered)
    near = run("query", "docs", "--id", "r3", "--max-distance", "0", "--json").lines[0]["hits"]
    assert near == []
    people = run("query", "docs", "--id", "r3", "--k", "2").out
    assert f"r{expected[1]}" in people
    assert "\x1b" not in people


def test_get_by_ids_by_filter_and_page_by_page(run: Run, tmp_path: Path) -> None:
    """get returns what is asked for, says which ids are missing, and how to go on."""
    assert run("import", "docs", str(rows_file(tmp_path, 30)), "--create").code == 0
    done = run("get", "docs", "r5", "r1", "--json")
    assert [row["id"] for row in done.lines] == ["r5", "r1"]
    done = run("get", "docs", "r5", "nobody", "--json")
    assert done.code == 1
    assert "nobody" in done.err
    assert [row["id"] for row in done.lines] == ["r5"]
    page = run("get", "docs", "--filter", '{"n": {"$gte": 10}}', "--order-by=-n", "--limit", "15",
               "--json")  # fmt: skip
    assert [row["metadata"]["n"] for row in page.lines] == list(range(29, 14, -1))
    cursor = page.err.split("'")[1]
    rest = run("get", "docs", "--filter", '{"n": {"$gte": 10}}', "--order-by=-n", "--cursor",
               cursor, "--json")  # fmt: skip
    assert [row["metadata"]["n"] for row in rest.lines] == list(range(14, 9, -1))
    assert "text 5" in run("get", "docs", "r5").out


def test_delete_count_stats_and_check(run: Run, tmp_path: Path) -> None:
    """delete says how many, count agrees, stats has the numbers, check finds nothing."""
    assert run("import", "docs", str(rows_file(tmp_path, 30)), "--create").code == 0
    assert run("delete", "docs", "r0", "r1", "nobody", "--json").lines[0]["count"] == 2
    assert run("delete", "docs", "--filter", '{"n": {"$lt": 10}}').out == "8 deleted\n"
    assert run("count", "docs", "--json").lines == [{"count": 20}]
    assert run("count", "docs", "--filter", '{"even": true}').out == "10\n"
    (stats,) = run("stats", "docs", "--json").lines
    assert stats["count"] == 20
    assert stats["fields"]["deep.er.value"] > 0
    assert stats["index"]["kind"] == "exact"
    assert "deep.er.value" in run("stats", "docs").out
    assert run("check", "--json").lines == [
        {"collection": "docs", "ok": True, "records": 20, "problems": []}
    ]
    assert run("check", "docs").out == "docs: 20 records, ok\n"


def test_check_that_finds_problems_exits_with_4(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 4 is for problems, each on a line of its own."""
    with vecdb.open(data_folder) as db:
        db.create_collection("docs", dimension=2)
    report = vecdb.CheckReport(ok=False, records=3, problems=["row 1 is gone", "row 2 too"])
    monkeypatch.setattr(vecdb.Collection, "check", lambda self: report)
    assert command_line.main(["check", "--data", str(data_folder)]) == 4
    assert "  row 2 too\n" in capsys.readouterr().out


def test_errors_of_the_database_exit_with_1(run: Run) -> None:
    """A refusal prints its reason and its text on stderr, nothing on stdout."""
    assert run("create", "docs", "--dimension", "2").code == 0
    for words in (["count", "nobody"], ["count", "docs", "--filter", '{"a": {"$wrong": 1}}'],
                  ["create", "bad name", "--dimension", "2"], ["drop", "nobody"],
                  ["query", "docs", "--vector", "[1, 2, 3]"], ["alias", "nobody", "--drop"]):  # fmt: skip
        done = run(*words)
        assert done.code == 1, words
        assert done.out == ""
        assert done.err.startswith("vecdb: ")
        assert ": " in done.err.removeprefix("vecdb: ")


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["create", "docs"],
        ["create", "docs", "--dimension", "two"],
        ["query", "docs", "--json"],
        ["query", "docs", "--id", "a", "--vector", "[1]"],
        ["query", "docs", "--vector", "[1,"],
        ["query", "docs", "--vector", "[1]", "--row", "1"],
        ["get", "docs", "a", "--limit", "3"],
        ["delete", "docs"],
        ["alias", "a"],
        ["alias", "a", "b", "--drop"],
        ["import", "docs", "nowhere.jsonl"],
        ["import", "docs", "a.jsonl", "--skip", "-1"],
        ["create", "docs", "--dimension", "2", "--schema", "{"],
        ["export", "docs", "a.parquet"],
        ["export", "docs", "a.npy", "--include", "metadata"],
        ["list", "--data", "a", "--server", "b"],
        ["serve", "--port", "many"],
    ],
)
def test_wrong_usage_exits_with_2(
    words: list[str], data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What argparse refuses and what commands refuse before they touch a database is usage: 2."""
    with vecdb.open(data_folder) as db:
        db.create_collection("docs", dimension=1)
    if words[0] not in ("nonsense", "serve") and "--data" not in words:
        words = [*words, "--data", str(data_folder)]
    try:
        code = command_line.main(words)
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    assert capsys.readouterr().err


def test_folders_that_cannot_be_used_exit_with_3(
    data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing, in use by a writer, and not a folder: 3, for embedded commands and for serve."""
    missing = ["list", "--data", str(tmp_path / "nothing")]
    assert command_line.main(missing) == 3
    (tmp_path / "file").write_text("x")
    assert (
        command_line.main(["create", "a", "--dimension", "2", "--data", str(tmp_path / "file")])
        == 3
    )
    with vecdb.open(data_folder) as db:
        db.create_collection("docs", dimension=2)
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, vecdb\nwith vecdb.open(sys.argv[1]):\n"
         " print(1, flush=True); sys.stdin.read()", str(data_folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        words = ["create", "other", "--dimension", "2", "--data", str(data_folder)]
        assert command_line.main(words) == 3
        assert "DATABASE_LOCKED" in capsys.readouterr().err
        assert command_line.main(["list", "--data", str(data_folder)]) == 0
        assert command_line.main(["serve", "--data", str(data_folder), "--port", "0"]) == 3
    finally:
        holder.communicate()


@pytest.mark.usefixtures("short_retries")
def test_no_server_exits_with_5(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that does not answer is exit code 5; VECDB_SERVER names it as --server does."""
    assert command_line.main(["list", "--server", "127.0.0.1:1", "--timeout-s", "5"]) == 5
    assert "UNAVAILABLE" in capsys.readouterr().err
    monkeypatch.setenv("VECDB_SERVER", "127.0.0.1:2")
    assert command_line.main(["list", "--timeout-s", "5"]) == 5
    assert "127.0.0.1:2" in capsys.readouterr().err


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command has a help with an example; the list of commands names each of them."""
    parser = cli.build_parser(("serve", "create", "import"))
    (actions,) = [a for a in parser._actions if hasattr(a, "choices") and a.dest == "command"]
    assert set(actions.choices or ()) == {
        "serve", "create", "list", "drop", "rename", "alias", "import", "export", "query", "get",
        "delete", "count", "stats", "check", "compact", "cancel-build", "downgrade", "keys",
        "backup", "backups", "restore", "verify", "prune", "top", "health",
    }  # fmt: skip
    for name in actions.choices or ():
        with pytest.raises(SystemExit) as stop:
            command_line.main([name, "--help"])
        assert stop.value.code == 0
        said = capsys.readouterr().out
        assert f"example:\n  vecdb {name}" in said
        if name == "serve":
            assert all(f"--{row.name.replace('_', '-')}" in said for row in SETTINGS)
        assert name in parser.format_help()
    assert command_line.main([]) == 2
    assert "exit codes" in capsys.readouterr().err
    assert command_line.main(["--version"]) == 0
    assert vecdb.__version__ in capsys.readouterr().out


def test_short_commands_import_what_they_need_only() -> None:
    """Reading the words of a command that makes nothing loads neither engine, client nor network."""
    code = "import sys, vecdb_server.cli as cli; cli.parse(sys.argv[1:], {}); print(*sys.modules)"
    for words, needed in (
        (["list", "--data", "x"], set()),
        (["create", "docs", "--dimension", "2"], {"vecdb_client", "grpc"}),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
        )
        assert {"vecdb", "vecdb_client", "grpc", "faiss"} & set(done.stdout.split()) == needed


def test_serve_takes_flags_before_environment_before_file(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each setting comes from the first place that names it; SIGTERM ends the server with 0."""
    config = tmp_path / "vecdb.toml"
    config.write_text(f'data = "{tmp_path / "file"}"\nport = 1\nlog_format = "json"\n')
    monkeypatch.setenv("VECDB_CONFIG", str(config))
    monkeypatch.setenv("VECDB_PORT", "0")
    monkeypatch.setenv("VECDB_DATA", str(tmp_path / "environment"))
    monkeypatch.setenv("VECDB_DATTA", "misspelt")
    process = subprocess.Popen(
        [sys.executable, "-m", "vecdb_server", "serve", "--data", str(data_folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert str(data_folder) in first
    assert int(first.rsplit(":", 1)[1]) > 1
    assert data_folder.is_dir()
    assert not (tmp_path / "environment").exists()
    assert "VECDB_DATTA" in said
    assert "VECDB_DATA " not in said
    assert any(json.loads(line)["message"] == "stopped" for line in said.splitlines()[1:])
