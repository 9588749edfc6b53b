"""What a running server takes up without a restart, and what it tells systemd."""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import AddKey, StartServer, wait_until
from server_process import spawn

from vecdb.errors import InvalidSetting
from vecdb_client import connect, errors
from vecdb_server import keys, serving
from vecdb_server.notify import notify
from vecdb_server.settings import SETTINGS, load


class Lines:
    """Standard error of a process, line by line as JSON."""

    def __init__(self, process: Any) -> None:
        self._lines: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(process.stderr,), daemon=True).start()

    def _read(self, stream: Any) -> None:
        for line in stream:
            self._lines.put(json.loads(line))

    def until(self, message: str) -> dict[str, Any]:
        """The next line with this message."""
        while True:
            line: dict[str, Any] = self._lines.get(timeout=60)
            if line["message"].startswith(message):
                return line


def test_sighup_takes_up_what_may_change(tmp_path: Path) -> None:
    """After SIGHUP the settings of the file hold that may change; the others are named in the log and wait. A file
    that is wrong changes nothing."""
    file = tmp_path / "vecdb.toml"
    file.write_text("max_k = 100\nlog_format = 'json'\n")
    process, address = spawn(tmp_path / "db", "--config", str(file))
    lines = Lines(process)
    try:
        with connect(address) as client:
            docs = client.create_collection("docs", dimension=2)
            docs.insert(["a"], [[1, 2]])
            docs.query([1, 2], k=100)
            file.write_text("max_k = 5\nlog_format = 'json'\nwrite_threads = 3\n")
            process.send_signal(signal.SIGHUP)
            assert lines.until("settings that")["changed"] == "write_threads"
            assert lines.until("read again")["changed"] == "max_k"
            with pytest.raises(errors.LimitExceeded, match="max_k"):
                docs.query([1, 2], k=6)
            for wrong in ("max_k = 'many'", "max_k = ", "maximal_k = 7"):
                file.write_text(wrong)
                process.send_signal(signal.SIGHUP)
                assert str(file) in lines.until("not all was taken up")["message"]
            docs.query([1, 2], k=5)
            with pytest.raises(errors.LimitExceeded, match="max_k"):
                docs.query([1, 2], k=6)
            process.send_signal(signal.SIGTERM)
            lines.until("stopped")
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_flags_and_environment_still_win_after_a_reload(tmp_path: Path) -> None:
    """A reload looks where the start has looked, in the same order."""
    file = tmp_path / "vecdb.toml"
    file.write_text("max_k = 100\nlog_format = 'json'\n")
    process, address = spawn(tmp_path / "db", "--config", str(file), "--max-k", "7")
    lines = Lines(process)
    try:
        file.write_text("max_k = 5\nlog_format = 'json'\n")
        process.send_signal(signal.SIGHUP)
        assert lines.until("read again")["changed"] == "nothing"
        with connect(address) as client:
            docs = client.create_collection("docs", dimension=2)
            docs.insert(["a"], [[1, 2]])
            docs.query([1, 2], k=7)
    finally:
        process.kill()
        process.wait()


def other(row: Any) -> Any:
    """A value that a setting may have and does not."""
    if row.choices:
        return next(one for one in row.choices if one != row.default)
    if row.kind is bool:
        return not row.default
    if row.kind is str:
        return {"log_level": "error", "log_format": "json"}.get(row.name, "other")
    return row.kind(row.high if row.default != row.high else row.low)


@pytest.mark.parametrize("row", [row for row in SETTINGS if row.reload], ids=lambda row: row.name)
def test_each_setting_that_says_so_may_change(start: StartServer, row: Any) -> None:
    """A setting marked as taken up on SIGHUP is."""
    server = start()
    wanted = load({**server.settings, **server._engine_settings, row.name: other(row)}, {})
    assert server.reload(wanted) == [row.name]
    assert server.settings[row.name] == other(row)
    assert server.reload(wanted) == []


def test_a_setting_out_of_range_is_not_taken_up(start: StartServer) -> None:
    """A reload checks as the start does."""
    server = start()
    with pytest.raises(InvalidSetting, match="max_wait_s"):
        server.reload({**server.settings, **server._engine_settings, "max_wait_s": -1.0})
    assert server.settings["max_wait_s"] == 1.0


# --- systemd


class Systemd:
    """A socket as systemd gives one to a service of Type=notify."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(20)

    def next(self) -> list[str]:
        return self.socket.recv(4_096).decode().splitlines()

    def close(self) -> None:
        self.socket.close()


def test_systemd_is_told_when_the_server_is_ready_reloads_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """READY=1 comes when calls are answered, RELOADING=1 with a time and READY=1 around a reload, STOPPING=1 at the
    end."""
    systemd = Systemd(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.path)
    process, address = spawn(tmp_path / "db")
    try:
        ready = systemd.next()
        assert ready[0] == "READY=1"
        assert address in ready[1]
        with connect(address) as client:
            assert client.list_collections() == []
        before_us = time.monotonic_ns() // 1_000
        process.send_signal(signal.SIGHUP)
        reloads, moment = systemd.next()
        assert reloads == "RELOADING=1"
        name, _, value = moment.partition("=")
        assert name == "MONOTONIC_USEC"
        assert before_us <= int(value) <= time.monotonic_ns() // 1_000
        assert systemd.next() == ["READY=1"]
        process.send_signal(signal.SIGTERM)
        assert systemd.next()[0] == "STOPPING=1"
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
        systemd.close()


def test_nobody_to_tell_is_no_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without systemd, and with a socket that is gone, a server goes on."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify("READY=1") is False
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert notify("READY=1") is False
    name = f"@vecdb-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract:
        abstract.bind("\0" + name[1:])
        abstract.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert notify("READY=1", "STATUS=x") is True
        assert abstract.recv(100) == b"READY=1\nSTATUS=x"


def test_what_the_log_shows_changes_beside_a_file_that_is_wrong(
    start: StartServer, add: AddKey, keys_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed log level holds after SIGHUP, also when the file of keys cannot be used."""
    add("read:docs")
    server = start(keys_file=str(keys_file))
    keys_file.write_text("no keys")
    shown: list[Any] = []
    monkeypatch.setattr(serving.logs, "configure", lambda *given: shown.append(given))
    wanted = {**server.settings, **server._engine_settings, "log_level": "debug"}
    serving._reload(server, lambda: wanted)
    assert server.settings["log_level"] == "debug"
    assert shown == [("debug", "text")]


def test_many_signals_in_a_row_are_all_taken(tmp_path: Path) -> None:
    """However close signals come, the server reads again and ends as it was told."""
    process, _ = spawn(tmp_path / "db", "--log-format", "json")
    lines = Lines(process)
    try:
        for _ in range(200):
            process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        lines.until("read again")
        lines.until("stopped")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_two_reloads_at_once_do_no_harm(start: StartServer, caplog: Any) -> None:
    """Reloads from several threads leave one of the settings that were asked for."""
    server = start()
    caplog.set_level(logging.INFO)
    base = {**server.settings, **server._engine_settings}
    callers = [
        threading.Thread(target=server.reload, args=({**base, "max_k": k},)) for k in range(1, 9)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(10)
    wait_until(lambda: 1 <= server.settings["max_k"] <= 8, "one of them holds")


def test_calls_go_on_while_changed_keys_are_read(
    start: StartServer, add: AddKey, keys_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes to read a changed file of keys, calls are answered by the keys before; a reload that is asked
    for meanwhile ends when the new ones hold."""
    first = add("read")
    server = start(keys_file=str(keys_file))
    reading, release = threading.Event(), threading.Event()
    load = keys.load

    def slow(path: Path) -> Any:
        if threading.current_thread() is not threading.main_thread():
            reading.set()
            assert release.wait(60)
        return load(path)

    monkeypatch.setattr(keys, "load", slow)
    try:
        second = add("read")
        with (
            connect(server.address, api_key=first, retry_s=0) as old,
            connect(server.address, api_key=second, retry_s=0) as new,
        ):
            while not reading.is_set():
                old.list_collections(timeout_s=20)
            old.list_collections(timeout_s=20)
            with pytest.raises(errors.Unauthenticated):
                new.list_collections(timeout_s=20)
            threading.Timer(0.2, release.set).start()
            assert server.reload() == ["keys"]
            new.list_collections()
            assert server.reload() == []
    finally:
        release.set()
