"""Start, health, logs, drain and exit of the server, in this process and in one of its own."""

from __future__ import annotations

import io
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import StartServer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from server_process import spawn
from some_devices import SomeDevices

import vecdb
from vecdb.errors import DatabaseLocked, InvalidSetting
from vecdb_client import connect, errors
from vecdb_server import logs
from vecdb_server.server import SERVICE_NAME, Server
from vecdb_server.serving import serve

ROOT = Path(__file__).resolve().parents[1]
MIB = 1024 * 1024


def test_health_and_reflection_answer(start: StartServer) -> None:
    """Standard health and reflection services answer, and name the service."""
    server = start()
    with grpc.insecure_channel(server.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call,unused-ignore]
        for name in ("", SERVICE_NAME):
            answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[no-untyped-call,unused-ignore]
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        answer = next(reflection.ServerReflectionInfo(iter([question]), timeout=5))
        names = {service.name for service in answer.list_services_response.service}
        assert {SERVICE_NAME, "grpc.health.v1.Health"} <= names


def test_a_watcher_of_health_hears_of_the_stop_and_does_not_delay_it(start: StartServer) -> None:
    """When the server stops, watchers are told NOT_SERVING first, and nobody waits for them."""
    server = Server({"data": str(Path(start().settings["data"]).parent / "other"), "port": 0})
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call,unused-ignore]
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME), timeout=20)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        started_s = time.monotonic()
        assert server.stop()
        assert time.monotonic() - started_s < 10
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_folder_serves_one_server(start: StartServer) -> None:
    """A second server on the same folder is refused and leaves the first one serving."""
    first = start()
    with pytest.raises(DatabaseLocked):
        Server({"data": first.settings["data"], "port": 0}).start()
    with connect(first.address) as client:
        assert client.list_collections() == []


def test_a_port_serves_one_server(start: StartServer, tmp_path: Path) -> None:
    """A port that is taken is InvalidSetting, and the folder is free again afterwards."""
    first = start()
    folder = str(tmp_path / "second")
    with pytest.raises(InvalidSetting, match=str(first.port)):
        Server({"data": folder, "port": first.port}).start()
    vecdb.open(folder).close()


def test_a_stopped_server_is_unavailable(start: StartServer, tmp_path: Path) -> None:
    """After the stop a call is Unavailable and names the address; its folder can be opened."""
    server = Server({"data": str(tmp_path / "db"), "port": 0})
    server.start()
    with connect(server.address, retry_s=0.5) as client:
        client.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
        assert server.stop()
        with pytest.raises(errors.Unavailable, match=server.address):
            client.create_collection("more", dimension=2)
    with vecdb.open(tmp_path / "db") as database:
        assert database.get_collection("docs").count() == 1


def test_a_running_call_ends_before_the_server(
    start: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that runs when the server is told to stop still gets its answer."""
    server = Server({"data": str(tmp_path / "db"), "port": 0})
    server.start()
    entered, release = threading.Event(), threading.Event()
    count_at = vecdb.Collection.count_at

    def slow(self: Any, *args: Any, **keywords: Any) -> Any:
        entered.set()
        assert release.wait(10)
        return count_at(self, *args, **keywords)

    monkeypatch.setattr(vecdb.Collection, "count_at", slow)
    answers: list[Any] = []
    with connect(server.address) as client:
        docs = client.create_collection("docs", dimension=2)
        caller = threading.Thread(target=lambda: answers.append(docs.count()))
        caller.start()
        assert entered.wait(10)
        stopped: list[bool] = []
        stopper = threading.Thread(target=lambda: stopped.append(server.stop()))
        stopper.start()
        time.sleep(0.2)
        assert not stopped
        release.set()
        caller.join(10)
        stopper.join(10)
    assert answers == [0]
    assert stopped == [True]


# --- logs


def lines_of(form: str, use: Callable[[logging.Logger], None]) -> str:
    stream = io.StringIO()
    logs.configure("debug", form, stream)
    use(logging.getLogger("vecdb.server"))
    return stream.getvalue()


def test_logs_for_machines_are_one_object_a_line(start: StartServer) -> None:
    """In JSON each line is an object; a call is logged with method, code and milliseconds."""
    server = start()

    def use(log: logging.Logger) -> None:
        with connect(server.address) as client:
            client.list_collections()
            with pytest.raises(errors.CollectionNotFound):
                client.get_collection("none")
        try:
            raise KeyError("x")
        except KeyError:
            log.exception("two\nlines")

    lines = [json.loads(line) for line in lines_of("json", use).splitlines()]
    called = {line["method"]: line for line in lines if line["message"] == "call"}
    assert called["ListCollections"]["code"] == "OK"
    assert called["GetCollection"]["code"] == "NOT_FOUND"
    assert called["ListCollections"]["ms"] >= 0
    assert lines[-1]["message"] == "two\nlines"
    assert "KeyError" in lines[-1]["trace"]
    assert {line["level"] for line in lines} == {"debug", "error"}


def test_logs_for_people_name_their_fields() -> None:
    """In text a line has time, level, message and fields."""
    text = lines_of("text", lambda log: log.info("serving", extra={"address": "here:1"}))
    assert text.endswith(" info    serving address=here:1\n")


@pytest.mark.parametrize(
    ("setting", "there", "found", "used"),
    [
        ("auto", False, "none", "cpu"),
        ("cpu", False, "not looked for", "cpu"),
        ("gpu:0,1", True, "gpu:0,gpu:1,gpu:2", "gpu:0,gpu:1"),
    ],
)
def test_the_log_says_what_searches(
    start: StartServer,
    setting: str,
    there: bool,
    found: str,
    used: str,
) -> None:
    """At its start the server logs one line: which devices it found, and which it uses."""
    given = (lambda options: SomeDevices()) if there else None
    lines = lines_of("json", lambda _: start(device=setting, devices=given)).splitlines()
    (line,) = [one for one in map(json.loads, lines) if one["message"] == "devices"]
    assert (line["device"], line["found"], line["used"]) == (setting, found, used)
    assert line["level"] == "info"


@pytest.mark.parametrize(("device", "there"), [("auto", 2), ("auto", 0), ("cpu", 2)])
def test_gpus_that_reading_processes_leave_idle_are_told_of(
    start: StartServer, monkeypatch: pytest.MonkeyPatch, device: str, there: int
) -> None:
    """With `read_processes` and `auto` the CPU searches: where there are GPUs the log warns, once."""
    monkeypatch.setenv("VECDB_STAND_IN_DEVICES", str(there))
    lines = lines_of("json", lambda _: start(device=device, read_processes=1)).splitlines()
    told = [one for one in map(json.loads, lines) if "not used" in one["message"]]
    expected = [("warning", "gpu:0,gpu:1")] if device == "auto" and there else []
    assert [(one["level"], one["unused"]) for one in told] == expected


# --- a real process


def test_a_server_without_its_gpu_does_not_start(tmp_path: Path) -> None:
    """Told to use a GPU that is not there, the command ends with a clear message."""
    with pytest.raises(AssertionError, match="gpu:9"):
        spawn(tmp_path / "db", "--device", "gpu:9")


def test_sigterm_drains_and_what_was_acknowledged_is_there(tmp_path: Path) -> None:
    """SIGTERM ends a process with code 0; every acknowledged record is there afterwards."""
    process, address = spawn(tmp_path / "db", "--log-format", "json", "--drain-timeout-s", "1")
    acknowledged = 0
    try:
        # No server comes back here.
        with connect(address, retry_s=0) as client:
            docs = client.create_collection("docs", dimension=4)

            def batches() -> Iterator[Any]:
                for i in range(1_000_000):
                    yield [f"r{i}"], np.ones((1, 4))
                    if i == 200:
                        process.send_signal(signal.SIGTERM)
                    if i > 200:
                        time.sleep(0.02)

            with pytest.raises(errors.VecdbError) as caught:
                for ack in docs.ingest(batches()):
                    acknowledged += ack.count
        assert isinstance(caught.value, errors.Unavailable | errors.Cancelled)
        assert caught.value.details["acknowledged"] == acknowledged
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert [json.loads(line)["message"] for line in err.splitlines()][-1] == "stopped"
    assert acknowledged >= 190
    with vecdb.open(tmp_path / "db") as database:
        docs_after = database.get_collection("docs")
        # What was under way may have been written without its acknowledgement arriving.
        assert acknowledged <= docs_after.count() <= acknowledged + 4
        assert docs_after.check().ok


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    """While a drain waits for a running stream, a second signal does not."""
    process, address = spawn(tmp_path / "db", "--drain-timeout-s", "60")
    try:
        with connect(address) as client:
            docs = client.create_collection("docs", dimension=4)
            docs.insert(
                [f"r{i}" for i in range(200)], np.ones((200, 4)), documents=["d" * 50_000] * 200
            )
            scan = docs.scan(batch_size=1)
            next(scan)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=10)
            scan.close()
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    with vecdb.open(tmp_path / "db") as database:
        assert database.get_collection("docs").count() == 200


def test_exit_codes_of_a_refused_start(
    start: StartServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad setting exits with 2, a folder that cannot be used with 3; one line says why."""
    running = start()
    (tmp_path / "file").write_text("x")
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "letter.txt").write_text("x")
    cases: list[tuple[int, dict[str, Any], str]] = [
        (2, {"port": 70_000}, "port"),
        (2, {"prot": 1}, "prot"),
        (2, {"data": str(tmp_path / "new"), "port": running.port}, str(running.port)),
        (2, {"data": str(tmp_path / "new"), "host": "203.0.113.1", "port": 0}, "203.0.113.1"),
        (3, {"data": running.settings["data"], "port": 0}, "process"),
        (3, {"data": str(tmp_path / "file"), "port": 0}, "file"),
        (3, {"data": str(tmp_path / "strange"), "port": 0}, "letter.txt"),
    ]
    for code, given, named in cases:
        assert serve(given) == code, given
        err = capsys.readouterr().err
        assert named in err, given
        last = err.strip().splitlines()[-1]
        assert last.startswith("vecdb: ")
