"""The audit log: what it tells, what it never tells, and how it stays small."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from conftest import AddKey, StartServer

from vecdb_client import connect, errors
from vecdb_server import keys
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
