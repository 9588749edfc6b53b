"""What `deploy/` holds agrees with the server: metrics, settings, commands, and what linters say of it."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import StartServer
from server_process import environment

from tools import dashboard
from vecdb_client import connect
from vecdb_server.metrics import METRICS, PREFIX
from vecdb_server.settings import ENV_PREFIX, SETTINGS

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "docker/Dockerfile").read_text()
UNIT = DEPLOY / "systemd/vecdb.service"
NAMES = {row.name for row in SETTINGS}
SAMPLES = {PREFIX + row.name for row in METRICS if row.kind != "histogram"} | {
    f"{PREFIX}{row.name}_{part}"
    for row in METRICS
    if row.kind == "histogram"
    for part in ("bucket", "sum", "count")
}
LABELS = {PREFIX + row.name: set(row.labels) for row in METRICS}


def expressions(value: Any) -> list[str]:
    """Every expression of Prometheus in a dashboard."""
    if isinstance(value, dict):
        found = [value[name] for name in ("expr", "query") if isinstance(value.get(name), str)]
        return found + [one for inner in value.values() for one in expressions(inner)]
    return [one for inner in value for one in expressions(inner)] if isinstance(value, list) else []


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:vecdb|process)_[a-z_]+\b", expression))


def of_process(start: StartServer) -> set[str]:
    with connect(start().address) as client:
        text = client.metrics()
    return {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE process_")}


def test_every_metric_of_the_dashboard_exists(start: StartServer) -> None:
    """The dashboard and the alerts ask for metrics that the server shows, by labels that these have."""
    there = SAMPLES | of_process(start)
    asked = expressions(json.loads(dashboard.FILE.read_text()))
    rules = (DEPLOY / "prometheus/vecdb.rules.yml").read_text()
    assert len(asked) > 30
    for expression in asked:
        assert names_in(expression) <= there, expression
    alerts = {name for name in names_in(rules) if name != "vecdb_rules"}
    assert len(alerts) > 8
    assert alerts <= there
    for expression in asked:
        for name, inside in re.findall(r"(vecdb_[a-z_]+)\{([^}]*)\}", expression):
            family = name if name in LABELS else re.sub(r"_(bucket|sum|count)$", "", name)
            assert set(re.findall(r"(\w+)(?:=~|!=|=)", inside)) <= LABELS[family] | {"instance"}


def test_every_metric_is_shown_or_needs_no_picture() -> None:
    """A metric that nobody looks at in the dashboard or in alerts is one of those that are for other uses."""
    asked = " ".join(expressions(json.loads(dashboard.FILE.read_text())))
    asked += (DEPLOY / "prometheus/vecdb.rules.yml").read_text()
    unseen = {row.name for row in METRICS if PREFIX + row.name not in asked}
    assert unseen == {
        "start_time_seconds", "sequence", "map_size_bytes", "index_info", "index_rows",
        "index_dead_rows", "index_device_bytes", "index_age_seconds", "index_audited_recall_low",
        "device_total_bytes", "device_placements", "device_batches_total",
    }  # fmt: skip


def test_the_dashboard_is_what_its_table_makes() -> None:
    """The committed file is fresh."""
    assert dashboard.main(["--check"]) == 0, "run make stubs"


def instructions(kind: str) -> list[str]:
    """Instructions of the Dockerfile, each on one line."""
    text = re.sub(r"\\\n\s*", "", "\n".join(
        line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")
    ))  # fmt: skip
    return [line.split(" ", 1)[1] for line in text.splitlines() if line.startswith(kind + " ")]


def test_the_dockerfile_passes_its_linter() -> None:
    """hadolint finds nothing."""
    linter = shutil.which("hadolint", path=os.path.dirname(sys.executable))
    if linter is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(
        [linter, str(DEPLOY / "docker/Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_sets_settings_that_there_are() -> None:
    """Every VECDB_ variable of the image and of compose is a setting, or one that commands read."""
    given = set(re.findall(r"\b(VECDB_[A-Z_]+)\b", "\n".join(instructions("ENV"))))
    given |= set(
        re.findall(r"^\s+(VECDB_[A-Z_]+):", (DEPLOY / "docker/compose.yaml").read_text(), re.M)
    )
    assert len(given) >= 6
    assert {name.removeprefix(ENV_PREFIX).lower() for name in given} <= NAMES


def test_the_image_installs_extras_that_there_are() -> None:
    """Each extra of the Dockerfile, and each that its FAISS may be, is one of that package, whose versions are pinned."""
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text().lower(), re.M))
    install = next(run for run in instructions("RUN") if "./server" in run)
    named = re.findall(r'"(\.[\w/]*)\[([^\]]*)\]"', install)
    assert [package for package, _ in named] == [".", "./server"]
    (choices,) = re.findall(r"FAISS is one of the extras (.*?)\. ", DOCKERFILE)
    for package, extras in named:
        project = tomllib.loads((ROOT / package / "pyproject.toml").read_text())["project"]
        there = project["optional-dependencies"]
        wanted = extras.replace("${FAISS}", re.sub(r" ?\(.*?\)", "", choices)).split(",")
        assert len(wanted) >= 1
        for extra in wanted:
            for needed in there[extra.strip()]:
                assert re.split(r"[><=; \[]", needed.lower())[0] in pinned, needed


@pytest.mark.long
def test_the_image_copies_what_its_commands_need(tmp_path: Path) -> None:
    """From nothing but what the Dockerfile copies the three packages are built and installed, and its commands
    run, with its environment."""
    source = tmp_path / "src"
    for names in instructions("COPY"):
        *paths, target = names.split()
        if paths[0].startswith("--from"):
            continue
        for path in paths:
            there = source / (path if target != "./" else Path(path).name)
            there.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / path).is_dir():
                unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
                shutil.copytree(ROOT / path, there, ignore=unwanted)
            else:
                shutil.copy(ROOT / path, there)
    allowed = (DEPLOY / "docker/Dockerfile.dockerignore").read_text().split()
    assert {f"!{path}" for names in instructions("COPY") if "--from" not in names
            for path in names.split()[:-1]} <= set(allowed)  # fmt: skip
    (install,) = [run for run in instructions("RUN") if "./server" in run]
    packages = re.findall(r'"?(\.(?:/\w+)*)(?:\[[^\]]*\])?"?(?= |$)', install.split("isolation")[1])
    assert packages == [".", "./clients/python", "./server"]
    # What they need is installed where the test runs; the rest is the same command.
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps",
         "--no-build-isolation", "--no-index", "--target", str(tmp_path / "site"), *packages],
        cwd=source, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    entry, default = json.loads(instructions("ENTRYPOINT")[0]), json.loads(instructions("CMD")[0])
    assert entry == ["vecdb"]
    variables = dict(re.findall(r"(VECDB_\w+)=(\S+)", instructions("ENV")[0]))
    variables |= {"VECDB_DATA": str(tmp_path / "data"), "VECDB_PORT": "0",
                  "VECDB_METRICS_ADDRESS": "127.0.0.1:0"}  # fmt: skip
    own = {**os.environ, **variables, "PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-m", "vecdb_server", *default]
    refused = subprocess.run(
        command, capture_output=True, text=True, env=own, cwd=tmp_path, timeout=60, check=False
    )
    assert refused.returncode == 2
    assert "insecure_listen_on_the_network" in refused.stderr
    own["VECDB_INSECURE_LISTEN_ON_THE_NETWORK"] = "true"
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=own, cwd=tmp_path
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("vecdb "), line
        (check,) = instructions("HEALTHCHECK")
        words = json.loads(check.split("CMD ")[1])
        port = line.rsplit(":", 1)[1].strip()
        probe = subprocess.run(
            [sys.executable, "-m", "vecdb_server", *words[1:]],
            env={**own, "VECDB_SERVER": f"127.0.0.1:{port}"}, cwd=tmp_path, timeout=60, check=False,
        )  # fmt: skip
        assert probe.returncode == 0
    finally:
        process.terminate()
        process.wait(30)
    assert process.returncode == 0


def test_compose_and_its_services_agree() -> None:
    """What compose mounts is there or is declared as a volume, and each service is asked at the name and port it has."""
    compose = DEPLOY / "docker/compose.yaml"
    text = compose.read_text()
    services, _, declared = text.partition("\nvolumes:\n")
    names = set(re.findall(r"^  (\w+):$", services, re.MULTILINE))
    assert names == {"vecdb", "prometheus", "grafana"}
    mounted = re.findall(r"^      - ([\w./]+):/[\w./]+(?::ro)?$", services, re.MULTILINE)
    folders = {one for one in mounted if one.startswith("..")}
    assert len(folders) == 3
    assert all((compose.parent / folder).is_dir() for folder in folders)
    assert set(mounted) - folders == set(re.findall(r"^  (\w+):$", declared, re.MULTILINE))
    context, dockerfile = (re.findall(rf"{name}: (\S+)$", text, re.MULTILINE)[0]
                           for name in ("context", "dockerfile"))  # fmt: skip
    assert (compose.parent / context / dockerfile).samefile(DEPLOY / "docker/Dockerfile")
    (image_port,) = re.findall(r"VECDB_METRICS_ADDRESS=\S*:(\d+)", DOCKERFILE)
    scraped = (DEPLOY / "prometheus/prometheus.yml").read_text()
    assert re.findall(r"targets: \[(.*)\]", scraped) == [f"vecdb:{image_port}"]
    (source,) = re.findall(
        r"url: http://(\w+):9090",
        (DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text(),
    )
    assert source in names
    for needed in re.findall(r"depends_on: \[(\w+)\]", services):
        assert needed in names


def test_compose_takes_its_file(tmp_path: Path) -> None:
    """Docker's own program reads the file, and refuses it without a password for Grafana."""
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose is not installed")
    # Version 1, which Debian has, does not know the line `name`.
    text = re.sub(r"^name: .*\n", "", (DEPLOY / "docker/compose.yaml").read_text(), flags=re.M)
    file = tmp_path / "compose.yaml"
    file.write_text(text)
    command = [program, "-f", str(file), "--project-directory", str(DEPLOY / "docker"), "config"]
    bare = {name: value for name, value in os.environ.items() if name != "GRAFANA_PASSWORD"}
    for given in ({}, {"GRAFANA_PASSWORD": "x"}):
        done = subprocess.run(
            command, capture_output=True, text=True, env={**bare, **given}, check=False
        )
        assert (done.returncode == 0) == bool(given), done.stderr
    assert str(DEPLOY / "prometheus") in done.stdout


# --- systemd


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    """systemd-analyze finds nothing wrong but that the command is not installed here, and little exposure."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    text = UNIT.read_text().replace("/opt/vecdb/bin/vecdb", shutil.which("true") or "/bin/true")
    unit = tmp_path / "vecdb.service"
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd judges no units offline")
    (exposure,) = re.findall(r"Overall exposure level for vecdb.service: ([\d.]+)", done.stdout)
    assert float(exposure) <= 2.0


def test_the_command_of_the_unit_is_one() -> None:
    """The command line of the unit parses, and its settings file holds settings."""
    from vecdb_server.cli import build_parser

    (command,) = re.findall(r"^ExecStart=(.*)$", UNIT.read_text(), re.MULTILINE)
    words = shlex.split(command)
    assert words[0].endswith("/vecdb")
    parsed = build_parser(words[1:]).parse_args(words[1:])
    assert str(parsed.config) == "/etc/vecdb/vecdb.toml"
    text = (DEPLOY / "systemd/vecdb.toml").read_text()
    offered = "\n".join(re.findall(r"^# (\w+ = .*)$", text, re.MULTILINE))
    for form in (text, offered):
        given = tomllib.loads(form)
        assert given
        assert set(given) <= NAMES
    for line in text.splitlines():
        if line.endswith("# *"):
            assert next(row for row in SETTINGS if row.name == line.split()[0]).reload


def test_the_server_needs_no_memory_that_is_written_and_executed(tmp_path: Path) -> None:
    """Under MemoryDenyWriteExecute=yes, as the unit has it, it starts, takes writes and answers queries by filter."""
    denied = (
        "import ctypes, os, sys\n"
        "assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'vecdb_server', *sys.argv[1:]])\n"
    )
    if ctypes.CDLL(None).prctl(66, 0, 0, 0, 0) < 0:
        pytest.skip("this kernel cannot deny it (before 6.3)")
    process = subprocess.Popen(
        [sys.executable, "-c", denied, "serve", "--data", str(tmp_path / "db"), "--port", "0",
         "--exact-max-scalars", "1000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("vecdb "), line or process.communicate()[1]
        with connect(line.split()[-1]) as client:
            docs = client.create_collection("docs", dimension=16, index="hnsw")
            rng = np.random.default_rng(1)
            vectors = rng.standard_normal((2_000, 16), dtype=np.float32)
            docs.insert(
                [f"r{i}" for i in range(2_000)],
                vectors,
                metadata=[{"t": f"x{i}"} for i in range(2_000)],
            )
            docs.build_index()
            found = docs.query(vectors[:3], k=5, filter={"t": {"$regex": "^x1"}})
            assert all(len(ids) == 5 for ids in found.ids)
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0
