"""The documents tell the truth: their examples run, their tables agree with the code."""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import serving

import vecdb
from vecdb import errors
from vecdb.filters import parse
from vecdb.repair_types import RepairStats
from vecdb.settings import ENGINE
from vecdb.types import (
    AuditStats,
    CollectionStats,
    CurvePoint,
    DeviceStats,
    Explain,
    IndexStats,
)
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_server.access import ROLE_OF
from vecdb_server.admission import Admission
from vecdb_server.metrics import METRICS, PREFIX
from vecdb_server.pools import Pools
from vecdb_server.query_stream import QueryStreams
from vecdb_server.settings import SERVER

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
REFERENCE = (ROOT / "docs/reference.md").read_text()
SETTINGS = REFERENCE.split("## Settings")[1].split("\n## ")[0]
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
PROTO = (ROOT / "proto/vecdb/v1/vecdb.proto").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = (
    "vecdb",
    "proto",
    "clients",
    "server",
    "tests",
    "bench",
    "deploy",
    "docs",
    "examples",
    "tools",
)
MESSAGES = {CollectionStats: "GetStatsResponse"}
"""Names of messages that are not those of their dataclasses."""
NEEDS_SERVER = "# server: running\n"


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run_python(code, folder):
    """Runs one example as a user would, in an empty folder and a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / p) for p in (".", "server", "clients/python"))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_embedded_examples_run(tmp_path):
    """What README shows for embedded use works as it stands, one example after the other."""
    examples = [b for b in blocks(README, "python") if NEEDS_SERVER not in b]
    assert len(examples) == 2
    assert "Moos am Stein" in run_python("\n".join(examples), tmp_path)


def test_the_client_examples_run(tmp_path):
    """What README shows for the clients works as it stands, one example after the other."""
    examples = [b for b in blocks(README, "python") if NEEDS_SERVER in b]
    assert len(examples) == 2
    with serving(tmp_path / "data") as address:
        code = "\n".join(examples).replace("127.0.0.1:7700", address)
        code += "\nassert len(hits.ids[0]) == 10 and hits.distances.shape == (2, 10)\n"
        code += "assert hits.metadata[0][0]['shelf'] in (0, 1)\n"
        assert run_python(code, tmp_path) == "100 1000\n"


def test_readme_can_be_followed_in_one_folder(tmp_path, monkeypatch):
    """The demo, the embedded examples and those of the client stand in nobody's way, one after the other: the server takes
    the database that the embedded ones have left in ./data."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    demo = importlib.import_module("demo")
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    assert demo.fresh_folder().is_dir()
    examples = blocks(README, "python")
    run_python("\n".join(b for b in examples if NEEDS_SERVER not in b), tmp_path)
    with serving(tmp_path / "data") as address:
        code = "\n".join(b for b in examples if NEEDS_SERVER in b)
        assert run_python(code.replace("127.0.0.1:7700", address), tmp_path) == "100 1000\n"


def test_the_command_line_examples_run(tmp_path):
    """Every line of the command-line example does what it says, on the sample."""
    (commands,) = [b for b in blocks(README, "sh") if "vecdb import" in b]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    outputs = []
    with serving(tmp_path / "data") as address:
        for line in commands.splitlines():
            arguments = shlex.split(line, comments=True)
            assert arguments[0] == "vecdb"
            done = subprocess.run(
                [sys.executable, "-m", "vecdb_server", *arguments[1:]],
                cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
                env={**os.environ, "VECDB_SERVER": address, "PYTHONPATH": os.pathsep.join(str(ROOT / p) for p in (".", "server", "clients/python"))},
            )  # fmt: skip
            assert done.returncode == 0, (line, done.stderr)
            outputs.append(done.stdout)
    assert len(outputs) == 8
    assert "entity" in outputs[1]
    assert outputs[7] == "serving\n"
    assert (tmp_path / "words.jsonl.gz").stat().st_size > 1_000_000


def test_the_docstring_of_the_package_is_an_example(tmp_path):
    """The example in `help(vecdb)` runs."""
    lines = vecdb.__doc__.splitlines()
    code = "\n".join(line[4:] for line in lines if line.startswith("    "))
    assert run_python(code, tmp_path).startswith("['a']")


def test_filters_in_the_docs_are_filters():
    """Every JSON block of README is a filter that parses."""
    for block in blocks(README, "json"):
        parse(block)


@pytest.mark.parametrize("row", [*ENGINE, *SERVER], ids=lambda row: row.name)
def test_settings_are_documented_as_they_are(row):
    """The reference names each setting with its default and its sentence."""
    (line,) = [x for x in SETTINGS.splitlines() if x.startswith(f"| `{row.name}` |")]
    default = (
        str(row.default).lower()
        if isinstance(row.default, bool)
        else f"{row.default:,}"
        if isinstance(row.default, int)
        else str(row.default)
    )
    assert line.split("|")[3].strip() == default
    assert row.doc in line


def test_no_setting_is_documented_that_is_none():
    """The tables of settings hold no others."""
    documented = re.findall(r"^\| `([a-z_]+)` \|", SETTINGS, re.MULTILINE)
    assert sorted(documented) == sorted(row.name for row in [*ENGINE, *SERVER])


@pytest.mark.parametrize(
    "kind",
    [Explain, CollectionStats, IndexStats, CurvePoint, AuditStats, DeviceStats, RepairStats],
)
def test_what_explain_and_stats_say_is_documented(kind):
    """The reference names every field of `explain` and of `stats` with its index and devices, and each has a sentence in the
    contract."""
    section = REFERENCE.split("## What explain and stats say")[1].split("\n## ")[0]
    message = re.search(
        rf"^message {MESSAGES.get(kind, kind.__name__)} \{{\n(.*?)^\}}",
        PROTO,
        re.DOTALL | re.MULTILINE,
    )
    assert message is not None
    for field in dataclasses.fields(kind):
        assert f"`{field.name}`" in section, field.name
        assert re.search(rf"  // [^\n]+\n  [^/\n]*\b{field.name}(_us)?\b", message[1]), field.name


def test_all_errors_are_documented():
    """The reference's table of errors names every class of the tree, and no other."""
    section = REFERENCE.split("## Errors")[1].split("\n## ")[0]
    named = {
        n
        for n in re.findall(r"`([A-Z][A-Za-z]+)`", section)
        if n not in ("VecdbError", "ValueError", "LookupError", "TimeoutError")
    }
    assert named == set(errors.__all__) - {"VecdbError", "by_reason"}


def test_roles_are_documented_as_they_are():
    """The page of operations lists every RPC of the contract once, beside the role that may call it."""
    rows = re.findall(
        r"^\| (?:`(read|write|admin)`(?: on `\*`)?|any key) \| (.*) \|$", OPERATIONS, re.MULTILINE
    )
    listed = [(rpc, role) for role, text in rows for rpc in re.findall(r"\b[A-Z]\w+", text)]
    assert sorted(listed) == sorted(ROLE_OF.items())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_the_docs_are_there(page):
    """Whatever looks like a path of the project, a file of it, or a test, is one."""
    text = page.read_text()
    files = [*ROOT.glob("*"), *(p for folder in FOLDERS for p in (ROOT / folder).rglob("*"))]
    for path in set(re.findall(rf"(?<![\w/])((?:{'|'.join(FOLDERS)})/[\w./-]*\w)", text)):
        assert (ROOT / path).exists(), path
    for name in set(re.findall(r"`([\w./-]+\.(?:py|md|cu|proto))`", text)):
        assert any(path.as_posix().endswith("/" + name.removeprefix("../")) for path in files), name
    tests = [path for path in files if path.name.startswith("test_") and path.suffix == ".py"]
    known = {path.stem for path in tests}.union(
        *(re.findall(r"def (test_\w+)", path.read_text()) for path in tests)
    )
    assert not set(re.findall(r"`(test_\w+)`", text)) - known


def test_the_settings_that_a_reload_takes_up_are_named():
    """The reference names all settings that a running server takes up, and no others."""
    (sentence,) = re.findall(
        r"Taken up by a running server on SIGHUP.*?; and changed keys", REFERENCE, re.DOTALL
    )
    named = re.findall(r"`([a-z_]+)`", sentence)
    assert named == [row.name for row in [*SERVER, *ENGINE] if row.reload]


def test_all_metrics_are_documented_as_they_are():
    """The operations page has a line for each metric with its kind, labels and sentence, and for no other."""
    section = OPERATIONS.split("### Metrics")[1].split("\n### ")[0]
    lines = re.findall(r"^\| `(vecdb_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", section, re.MULTILINE)
    assert [
        (name, kind, re.findall(r"`(\w+)`", labels), doc) for name, kind, labels, doc in lines
    ] == [(PREFIX + row.name, row.kind, list(row.labels), row.doc) for row in METRICS]


def test_all_calls_are_documented():
    """The operations page has a line for each RPC, with the role that it needs and the threads that serve it."""
    section = OPERATIONS.split("## Calls")[1].split("\n## ")[0]
    lines = re.findall(r"^\| `(\w+)` \| ([\w ]+) \| (\w+) \| .+ \|$", section, re.MULTILINE)
    methods = pb.DESCRIPTOR.services_by_name["VecdbService"].methods
    assert [name for name, _, _ in lines] == [method.name for method in methods]
    pools = Pools(1, 1, 1, 1, QueryStreams(Admission({})), Admission({}))
    names = {"read": "read", "write": "write", "long": "long", "stream": "queries"}
    for (name, role, threads), method in zip(lines, methods, strict=True):
        assert role.split()[0] == (ROLE_OF[name] or "any"), name
        assert threads == names[pools.of(name, streams=method.server_streaming).name], name
    pools.shutdown(wait=True)
