"""A real Prometheus takes our configuration, reads a real server, and has data for the dashboard and the alerts."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import StartServer, wait_until
from test_deploy import DEPLOY, expressions

from tools import dashboard
from vecdb_client import connect, errors

FOLDER = DEPLOY / "prometheus"
RULES = FOLDER / "vecdb.rules.yml"
OF_OTHERS = r"vecdb_device_(?!taken_over)|vecdb_read_process_(cpu|resident)"
"""Of what this server has none: GPUs and reading processes."""


def tool(name: str) -> str:
    """Where a program of Prometheus is."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian's package prometheus has it)")
    return found


def test_the_configuration_and_the_rules_are_such() -> None:
    """promtool finds no fault in the configuration, nor in the alerts that it names."""
    for kind, file in (("config", FOLDER / "prometheus.yml"), ("rules", RULES)):
        done = subprocess.run(
            [tool("promtool"), "check", kind, str(file)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    assert "9 rules found" in done.stdout


def test_the_metrics_pass_the_linter_of_prometheus(start: StartServer) -> None:
    """promtool finds nothing wrong with names, kinds and help of what the server shows of itself."""
    with connect(start().address) as client:
        client.create_collection("docs", dimension=4)
        text = client.metrics()
    done = subprocess.run(
        [tool("promtool"), "check", "metrics"],
        input=text, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# What fires each alert, and what does not: series a minute apart, from 0.
FIRES = {
    "VecdbDown": ('up{job="vecdb"}', "0x60", "1x60"),
    "VecdbFailing": ('vecdb_calls_seconds_count{code="INTERNAL"}', "0+1x60", "5x60"),
    "VecdbMapNearlyFull": ("vecdb_map_used_bytes", "95x60", "89x60"),
    "VecdbReadersNearlyUsedUp": ("vecdb_map_readers", "81x60", "79x60"),
    "VecdbOverloaded": ("vecdb_calls_refused_total", "0+6x60", "0+3x60"),
    "VecdbIndexFails": ("vecdb_index_failed", "1x60", "0x60"),
    "VecdbRecallBelowTarget": ("vecdb_index_audited_recall", "0.94x60", "0.96x60"),
    "VecdbReadProcessesDie": ("vecdb_read_process_restarts_total", "0+1x60", "0x60"),
    "VecdbDeviceDown": ('vecdb_device_state{state="down"}', "1x60", "0x60"),
}
BESIDE = {
    "VecdbMapNearlyFull": {"vecdb_map_limit_bytes": "100x60"},
    "VecdbReadersNearlyUsedUp": {"vecdb_map_max_readers": "100x60"},
    "VecdbOverloaded": {'vecdb_calls_seconds_count{code="OK"}': "0+500x60"},
    "VecdbRecallBelowTarget": {
        "vecdb_index_target_recall": "0.95x60",
        "vecdb_index_audited_queries_total": "200x60",
    },
}


@pytest.mark.parametrize("alert", FIRES)
def test_an_alert_fires_when_it_should_and_else_does_not(alert: str, tmp_path: Path) -> None:
    """Each alert fires for the figures that it is about, and not for those just this side of its bound."""
    name, over, under = FIRES[alert]
    tests = []
    for values, fires in ((over, True), (under, False)):
        series = {name: values, **BESIDE.get(alert, {})}
        tests.append({
            "interval": "1m",
            "input_series": [{"series": one, "values": given} for one, given in series.items()],
            "promql_expr_test": [{
                "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)',
                "eval_time": "50m",
                "exp_samples": [{"labels": "{}", "value": int(fires)}],
            }],
        })  # fmt: skip
    file = tmp_path / "tests.yml"  # JSON is YAML
    file.write_text(json.dumps({"rule_files": [str(RULES)], "tests": tests}))
    done = subprocess.run(
        [tool("promtool"), "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried() -> None:
    """The list above names all alerts there are."""
    assert set(re.findall(r"alert: (\w+)", RULES.read_text())) == set(FIRES)


# --- a Prometheus that runs


class Running:
    """A Prometheus that reads one server each second."""

    def __init__(self, address: str) -> None:
        self._address = address

    def get(self, path: str, **given: str) -> Any:
        """`data` of an answer of its HTTP API."""
        query = urllib.parse.urlencode(given)
        with urllib.request.urlopen(f"http://{self._address}{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def is_up(self) -> bool:
        """Whether it has read the server."""
        try:
            found = self.get("/api/v1/query", query='up{job="vecdb"} == 1')["result"]
        except (urllib.error.URLError, ConnectionError):
            return False
        return bool(found)

    def values(self, expression: str) -> list[float]:
        """What an expression is now, without what is not a number."""
        found = self.get("/api/v1/query", query=expression)["result"]
        return [value for one in found if (value := float(one["value"][1])) == value]


@contextlib.contextmanager
def prometheus(folder: Path, port: int) -> Iterator[Running]:
    """Our configuration and rules, but for the name of the server and how often it is read."""
    program = tool("prometheus")
    folder.mkdir()
    text = (FOLDER / "prometheus.yml").read_text()
    assert "[vecdb:7701]" in text
    text = text.replace("[vecdb:7701]", f"[127.0.0.1:{port}]").replace(": 10s", ": 1s")
    (folder / "prometheus.yml").write_text(text)
    shutil.copy(RULES, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own = f"127.0.0.1:{free.getsockname()[1]}"
    process = subprocess.Popen(
        [program, f"--config.file={folder}/prometheus.yml", f"--web.listen-address={own}",
         f"--storage.tsdb.path={folder}/data", "--log.level=error"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        running = Running(own)
        wait_until(running.is_up, "Prometheus has read the server", 60)
        yield running
    finally:
        process.terminate()
        process.wait(30)


def written(expression: str) -> str:
    """An expression as Grafana sends it, with all instances and collections."""
    filled = expression.replace("$__rate_interval", "10s")
    return filled.replace("$instance", ".*").replace("$collection", ".*")


@pytest.mark.long
def test_the_dashboard_has_data(start: StartServer, tmp_path: Path) -> None:
    """Each expression of the dashboard that is not about GPUs, reading processes or a running build has figures from a server
    that is used, its variables have values, and the alerts are evaluated without a fault."""
    tool("prometheus")
    server = start(metrics_address="127.0.0.1:0", audit_share=1.0, exact_max_scalars=1_000,
                   worker_threads=1, max_wait_s=0.01)  # fmt: skip
    ended = threading.Event()
    vectors = np.random.default_rng(1).standard_normal((2_000, 16), dtype=np.float32)

    def use(number: int) -> None:
        with connect(server.address, retry_s=0) as client:
            docs = None
            for i in itertools.count():
                if ended.is_set():
                    return
                with contextlib.suppress(errors.ResourceExhausted):
                    # Refused as any call may be, on a server with so little room.
                    docs = docs or client.get_collection("docs")
                    docs.query(vectors[i % 2_000], k=5)
                    docs.upsert([f"w{number}"], vectors[:1])
                    docs.get(filter={"$document": {"$regex": "x$"}}, limit=10)
                    docs.update([f"w{number}"], metadata=[{"i": i}])
                    docs.delete([f"w{number}"])
                    docs.insert([f"w{number}"], vectors[:1])
                with contextlib.suppress(errors.NotFound, errors.ResourceExhausted):
                    client.get_collection("missing")

    with connect(server.address) as client:
        docs = client.create_collection("docs", dimension=16, index="hnsw")
        docs.insert([f"r{i}" for i in range(2_000)], vectors, documents=["text"] * 2_000)
        docs.build_index()
    users = [threading.Thread(target=use, args=(i,)) for i in range(6)]
    for user in users:
        user.start()
    try:
        assert server.metrics_port is not None
        with prometheus(tmp_path / "prometheus", server.metrics_port) as running:
            shown = expressions(json.loads(dashboard.FILE.read_text()))
            asked = [one for one in shown if not one.startswith(("label_values", "prometheus"))]
            of_others = {one for one in asked if re.search(OF_OTHERS, one)}
            parts = [part for one in asked if one not in of_others
                     for part in written(one).replace(" == 1", "").split(" and ")]  # fmt: skip
            assert len(parts) > 30
            missing: list[str] = []

            def all_there() -> bool:
                missing[:] = [one for one in parts if not running.values(one)]
                return not missing

            with contextlib.suppress(AssertionError):
                wait_until(all_there, "figures for all", 40)
            assert missing == []
            for expression in of_others:
                assert running.values(written(expression)) == []
            labels = re.findall(r"label_values\((\w+), (\w+)\)", " ".join(shown))
            assert len(labels) == 2
            for name, label in labels:
                query = {"match[]": name}
                assert running.get(f"/api/v1/label/{label}/values", **query), name
            (group,) = running.get("/api/v1/rules")["groups"]
            assert len(group["rules"]) == len(FIRES)
            assert {rule["health"] for rule in group["rules"]} == {"ok"}
    finally:
        ended.set()
        for user in users:
            user.join()
