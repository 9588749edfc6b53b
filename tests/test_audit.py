"""The audit log: what it tells, what it never tells, and how it stays small."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import AddKey, StartServer, wait_until

from vecdb.backup import taking
from vecdb_client import connect, errors
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_server import arrivals, keys
from vecdb_server.audit import AuditLog


def test_the_audit_log(start: StartServer, add: AddKey, keys_file: Path, tmp_path: Path) -> None:
    """Changes and refusals are told with key, peer, count, sequence and outcome; reads and contents are not."""
    root, reader = add("admin"), add("read")
    log = tmp_path / "audit.jsonl"
    server = start(keys_file=str(keys_file), audit_log=str(log))
    with connect(server.address, api_key=root) as admin:
        docs = admin.create_collection("docs", dimension=2)
        docs.insert(["very-private-id"], [[1, 2]], documents=["very private text"])
        docs.query([1, 2], filter={"very": "private"})
        list(docs.ingest([(["b"], [[1, 2]]), (["c"], [[1, 2]])]))
        with pytest.raises(errors.RecordExists):
            docs.insert(["b"], [[1, 2]])
        admin.set_alias("live", "docs")
        admin.get_collection("live").delete(["b"])
    with connect(server.address, api_key=reader) as client, pytest.raises(errors.PermissionDenied):
        client.get_collection("docs").delete(filter={})
    with connect(server.address) as client, pytest.raises(errors.Unauthenticated):
        client.list_collections()
    text = log.read_text()
    assert "very" not in text
    assert root[15:] not in text
    assert reader[15:] not in text
    lines = [json.loads(line) for line in text.splitlines()]
    ids = [keys.parsed(key)[0] for key in (root, reader)]  # type: ignore[index]
    told = [
        (e["key"], e["method"], e["collection"], e["count"], e["sequence"], e["code"])
        for e in lines
    ]
    assert told == [
        (ids[0], "CreateCollection", "docs", 0, 0, "OK"),
        (ids[0], "Insert", "docs", 1, 1, "OK"),
        (ids[0], "Ingest", "docs", 1, 2, "OK"),
        (ids[0], "Ingest", "docs", 1, 3, "OK"),
        (ids[0], "Insert", "docs", 0, 0, "ALREADY_EXISTS"),
        (ids[0], "SetAlias", "docs", 0, 0, "OK"),
        (ids[0], "Delete", "docs", 1, 4, "OK"),
        (ids[1], "Delete", "docs", 0, 0, "PERMISSION_DENIED"),
        ("", "ListCollections", "", 0, 0, "UNAUTHENTICATED"),
    ]
    assert all("127.0.0.1" in e["peer"] and e["time"].endswith("+00:00") for e in lines)
    assert lines[4]["reason"] == "RECORD_EXISTS"
    assert lines[5]["alias"] == "live"


def test_every_change_of_keys_is_told(
    start: StartServer, add: AddKey, keys_file: Path, tmp_path: Path
) -> None:
    """Ids of keys that came, went, were rotated, and changed in another way, such as their grants; a file that was
    only written again is no change."""
    first, log = keys.parsed(add("read"))[0], tmp_path / "audit.jsonl"  # type: ignore[index]
    server = start(keys_file=str(keys_file), audit_log=str(log))

    def told(change: Callable[[], Any]) -> dict[str, list[str]]:
        before = len(log.read_text().splitlines())
        change()
        assert server.reload() == ["keys"]
        lines = [json.loads(line) for line in log.read_text().splitlines()[before:]]
        assert len(lines) <= 1
        for line in lines:
            assert line.pop("event") == "keys changed"
            assert line.pop("time")
        return {what: ids for line in lines for what, ids in line.items() if ids}

    def edit(old: str, new: str) -> None:
        text = keys_file.read_text()
        assert old in text
        keys_file.write_text(text.replace(old, new) + " ")

    now_s, others = time.time(), list[str]()
    assert told(lambda: others.append(add("write"))) == {
        "came": [second := keys.parsed(others[0])[0]]  # type: ignore[index]
    }
    assert told(lambda: keys.rotate(keys_file, first, now_s, 3_600, None)) == {"rotated": [first]}
    assert told(lambda: edit('"write"', '"admin"')) == {"changed": [second]}
    assert told(lambda: edit('"note": ""', '"note": "theirs"')) == {
        "changed": sorted([first, second])
    }
    assert told(lambda: keys.revoke(keys_file, second, now_s)) == {"went": [second]}
    assert told(lambda: edit("\n", "\n\n")) == {}
    # By hand everything may be changed at once.
    assert told(lambda: edit('"read"', '"admin"')) == {"changed": [first]}


def test_keys_that_change_in_several_ways_are_told_of_each() -> None:
    """More rights are never hidden behind a rotation, or behind a key that comes back into force."""
    read, admin = keys.Grant("read", "*"), keys.Grant("admin", "*")
    old, new = keys.Secret(b"a" * 32, 50.0), keys.Secret(b"b" * 32)
    before = keys.Key("k", (read,), (old,))
    for after, now_s, wanted in (
        (replace(before, secrets=(old, new)), 10.0, {"rotated"}),
        (replace(before, secrets=(old, new)), 60.0, {"came", "rotated"}),
        (replace(before, secrets=(new,), grants=(admin,)), 10.0, {"rotated", "changed"}),
        (replace(before, secrets=(new,), grants=(admin,)), 60.0, {"came", "rotated", "changed"}),
        (replace(before, revoked_s=5.0), 10.0, {"went"}),
        (replace(before, revoked_s=5.0, grants=()), 10.0, {"went", "changed"}),
        (replace(before, secrets=(replace(old, expires_s=None),)), 10.0, {"changed"}),
        (replace(before, secrets=(replace(old, expires_s=None),)), 60.0, {"came"}),
        (before, 60.0, set()),
    ):
        found = keys.differences({"k": before}, {"k": after}, now_s)
        assert {what for what, ids in found.items() if ids} == wanted


def test_a_stranger_cannot_fill_the_audit_log(
    start: StartServer, add: AddKey, keys_file: Path, tmp_path: Path
) -> None:
    """Refusals beyond 50 a second are counted and not written, and files are turned over and bounded."""
    add("read")
    log = tmp_path / "audit.jsonl"
    server = start(keys_file=str(keys_file), audit_log=str(log))
    with connect(server.address) as client:
        began_s = time.monotonic()
        for _ in range(400):
            with pytest.raises(errors.Unauthenticated):
                client.list_collections()
        seconds = time.monotonic() - began_s
    lines = log.read_text().splitlines()
    assert len(lines) <= 52 * (int(seconds) + 2)
    small = AuditLog(tmp_path / "small", 1_000, 3)
    for i in range(100):
        small.write(number=i)
    small.close()
    files = sorted(one.name for one in tmp_path.glob("small*"))
    assert files == ["small", "small.1", "small.2"]
    assert all((tmp_path / name).stat().st_size <= 1_000 for name in files)
    newest = [
        json.loads(x)["number"]
        for n in reversed(files)
        for x in (tmp_path / n).read_text().splitlines()
    ]
    assert newest == list(range(100 - len(newest), 100))


def test_a_slow_disk_of_the_audit_log_keeps_no_call_waiting(
    start: StartServer,
    add: AddKey,
    keys_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While the line of a stranger's call is not written yet, others are answered; of strangers beyond those that wait for
    their line, each is refused at once and counted."""
    reader, log = add("read"), tmp_path / "audit.jsonl"
    server = start(keys_file=str(keys_file), audit_log=str(log))
    writing, release = threading.Event(), threading.Event()
    append = AuditLog._append

    def slow(self: Any, fields: dict[str, Any]) -> None:
        writing.set()
        assert release.wait(60)
        append(self, fields)

    monkeypatch.setattr(AuditLog, "_append", slow)
    try:
        with (
            connect(server.address, api_key=reader, retry_s=0) as client,
            connect(server.address, retry_s=0) as stranger,
        ):
            stub: Any = stranger._connection._stub
            asked = [
                stub.ListCollections.future(pb.ListCollectionsRequest(), timeout=60)
                for _ in range(arrivals.MOST_REFUSALS + 10)
            ]
            assert writing.wait(30)
            client.list_collections(timeout_s=20)
            wait_until(lambda: sum(one.done() for one in asked) == 10, "ten are refused at once")
            client.list_collections(timeout_s=20)
            release.set()
            for one in asked:
                assert one.exception().code() is grpc.StatusCode.UNAUTHENTICATED
    finally:
        release.set()
    server.stop()
    server.stop = lambda: True
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    told = sum(line.get("method") == "ListCollections" for line in lines)
    assert told + sum(line.get("count", 0) for line in lines if "event" in line) == len(asked)


def test_refusals_that_wait_for_their_line_when_a_server_ends_are_counted(
    start: StartServer,
    add: AddKey,
    keys_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that ends while a slow disk has the line of one refusal writes no more of them, and their number."""
    add("read")
    log, append, refused = tmp_path / "audit.jsonl", AuditLog._append, 20
    server = start(keys_file=str(keys_file), audit_log=str(log))
    release = threading.Event()

    def slow(self: Any, fields: dict[str, Any]) -> None:
        assert release.wait(60)
        append(self, fields)

    monkeypatch.setattr(AuditLog, "_append", slow)
    monkeypatch.setattr("vecdb_server.server._GRACE_S", 60.0)
    refusing = server._pools.refusals
    ending = threading.Thread(target=server.stop)
    try:
        with connect(server.address, retry_s=0) as stranger:
            stub: Any = stranger._connection._stub
            asked = [
                stub.ListCollections.future(pb.ListCollectionsRequest(), timeout=60)
                for _ in range(refused)
            ]
            wait_until(lambda: refusing.busy == refused, "all wait for their line")
            ending.start()
            wait_until(lambda: refusing.ended, "the server ends")
            release.set()
            ending.join(60)
            assert all(one.exception() is not None for one in asked)
    finally:
        release.set()
    server.stop = lambda: True
    (told, counted) = [json.loads(line) for line in log.read_text().splitlines()]
    assert told["method"] == "ListCollections"
    assert counted["count"] == refused - 1


def test_a_backup_is_one_line(
    start: StartServer,
    add: AddKey,
    keys_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A call that tells its progress on a stream has one line, when it has ended, and so has one that is given up."""
    root, log = add("admin"), tmp_path / "audit.jsonl"
    server = start(
        keys_file=str(keys_file), audit_log=str(log), backup_root=str(tmp_path / "backups")
    )
    said: list[Any] = []
    gone, finish = threading.Event(), taking._finish

    def give_up(progress: Any) -> None:
        raise ValueError("given up")

    def finish_late(*given: Any, **named: Any) -> None:
        # So small a backup would else have ended before its server hears that nobody wants it.
        assert gone.wait(10)
        time.sleep(0.5)
        finish(*given, **named)

    with connect(server.address, api_key=root) as admin:
        docs = admin.create_collection("docs", dimension=2)
        docs.insert([f"r{i}" for i in range(100)], [[i, 1] for i in range(100)])
        log.write_text("")
        admin.backup("nightly", progress=said.append)
        assert len(said) > 1
        monkeypatch.setattr(taking, "_finish", finish_late)
        with pytest.raises(ValueError, match="given up"):
            admin.backup("nightly", kind="full", progress=give_up)
        gone.set()
        wait_until(lambda: len(log.read_text().splitlines()) == 2, "both are told")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(e["method"], e["code"]) for e in lines] == [
        ("BackupDatabase", "OK"),
        ("BackupDatabase", "CANCELLED"),
    ]


def test_a_turn_without_descriptors_harms_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no new file can be opened, the log goes on later, has lost no older file, and touches no other's."""
    log = AuditLog(tmp_path / "log", 100, 3)
    for number in range(6):
        log.write(number=number)
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert len(kept) == 3
    really = os.open

    def none_left(*given: Any, **named: Any) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", none_left)
    for _ in range(3):
        log.write(event="x" * 60)
    monkeypatch.setattr(os, "open", really)
    with (tmp_path / "other").open("w") as other:
        log.write(event="y" * 60)
        other.write("its own")
    log.close()
    assert (tmp_path / "other").read_text() == "its own"
    assert "y" * 60 in (tmp_path / "log").read_text()
    assert (tmp_path / "log.1").read_text() == kept["log"]
    assert (tmp_path / "log.2").read_text() == kept["log.1"]


def test_a_line_that_was_written_in_part_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the disk takes half a line, or a power cut left one, the next begins a line of its own; the log tells of it."""
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(path, 1 << 20, 2)
    audit.write(count=1)
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda file, data: write(file, data[:9]))
        audit.write(count=2)
    assert "only a part" in caplog.text
    audit.write(count=3)
    audit.write(count=4)
    audit.close()
    with path.open("ab") as file:
        file.write(b'{"time": "20')
    again = AuditLog(path, 1 << 20, 2)
    again.write(count=5)
    again.close()
    found = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line)["count"])
    assert found == [1, 3, 4, 5]
    assert len(path.read_text().splitlines()) == 6
