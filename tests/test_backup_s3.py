"""Backups in an S3 bucket that is reached by HTTP: the promises of a folder, by a URL, a store object, the command line and a
server."""

from __future__ import annotations

import datetime as dt
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from backup_rows import NAMED, change, commands, everything, filled, two_collections
from conftest import serving, wait_until
from s3_door import LEAST_PART_BYTES
from s3_server import S3, s3_server
from seeds import RUN_SEED

import vecdb
from vecdb import errors
from vecdb.backup import taking
from vecdb.backup.manifest import MANIFEST_FILE
from vecdb.backup.target import open_target

obstore = pytest.importorskip("obstore")
ROOT = Path(__file__).resolve().parent.parent
URL = "s3://bucket/deep/er"
LITTER = {
    # A folder as consoles make it, a file of somebody, and what lies beside the prefix.
    "deep/er/": b"",
    "deep/er/readme.txt": b"ours",
    "deep/er/notes/of/mine": b"ours",
    "deep/er-not/20260131T021500.123456Z-1f2e3d4c/manifest.json": b"theirs",
}


@pytest.fixture
def s3(monkeypatch) -> Iterator[S3]:
    with s3_server() as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture
def db(tmp_path):
    with vecdb.open(tmp_path / "db", auto_build=False) as opened:
        yield opened


@pytest.fixture(params=["url", "object"])
def target(request, s3):
    """The same place by its address and as a store object."""
    return URL if request.param == "url" else s3.store("deep/er")


def keys_of(s3, backup):
    return [key for key in s3.objects if f"/{backup}/" in key]


def test_the_endpoint_is_as_strict_as_s3(s3):
    """What the other tests stand on: signatures, ranges, conditions, pages, folders, uploads in parts."""
    store = s3.store("p")
    data = random.Random(RUN_SEED).randbytes(LEAST_PART_BYTES + 1_000)
    obstore.put(store, "a", b"0123456789")
    assert bytes(obstore.get_range(store, "a", start=2, length=3)) == b"234"
    assert bytes(obstore.get(store, "a", options={"range": {"suffix": 2}}).bytes()) == b"89"
    assert obstore.head(store, "a")["size"] == 10
    with pytest.raises(obstore.exceptions.AlreadyExistsError):
        obstore.put(store, "a", b"other", mode="create", use_multipart=False)
    told = obstore.head(store, "a")
    obstore.put(store, "a", b"newer", mode={"e_tag": told["e_tag"]}, use_multipart=False)
    with pytest.raises(obstore.exceptions.PreconditionError):
        obstore.put(store, "a", b"late", mode={"e_tag": told["e_tag"]}, use_multipart=False)
    obstore.put(store, "big", data, use_multipart=True, chunk_size=LEAST_PART_BYTES)
    assert (s3.calls["UploadPart"], s3.uploads) == (2, {})
    assert bytes(obstore.get(store, "big").bytes()) == s3.objects["p/big"] == data
    with pytest.raises(obstore.exceptions.GenericError, match="EntityTooSmall"):
        obstore.put(store, "small", data, use_multipart=True, chunk_size=1 << 20)
    assert s3.uploads == {}
    s3.page_keys = 2
    for n in range(5):
        obstore.put(store, f"f/{n}", b"x")
    assert [one["path"] for page in obstore.list(store) for one in page] == [
        "a", "big", *(f"f/{n}" for n in range(5))
    ]  # fmt: skip
    assert s3.calls["ListObjectsV2"] == 4
    within = obstore.list_with_delimiter(store)
    assert within["common_prefixes"] == ["f"]
    assert [one["path"] for one in within["objects"]] == ["a", "big"]
    obstore.delete(store, ["a", "f/1", "not-there"])
    assert sorted(s3.objects) == ["p/big", "p/f/0", "p/f/2", "p/f/3", "p/f/4"]
    with pytest.raises(FileNotFoundError):
        obstore.get(store, "a")
    for wrong in ("secret_access_key", "access_key_id", "session_token"):
        with pytest.raises(obstore.exceptions.BaseError):
            obstore.get(s3.store("p", **{wrong: "wrong"}), "big")


def test_a_chain_in_a_bucket(s3, db, target, tmp_path, monkeypatch):
    """Full, increments, list, verify, restore of the newest, by commit and by time, and prune; in pages of three objects,
    with other objects beside and below the prefix, which stay. What is large goes by a process of its own where that can
    open the target."""
    print(f"seed {RUN_SEED}")
    s3.page_keys = 3
    s3.objects.update(LITTER)
    rng = random.Random(RUN_SEED)
    docs = db.create_collection("docs", dimension=4, vectors=NAMED)
    for _ in range(6):
        change(docs, rng)
    assert vecdb.list_backups(target) == []
    with monkeypatch.context() as large:
        large.setattr(taking, "SMALL_BYTES", -1)
        full = db.backup(target)
    moment, sequence, then = dt.datetime.now(dt.UTC), docs.stats().sequence, everything(docs)
    held = []
    for _ in range(2):
        for _ in range(3):
            change(docs, rng)
        held.append(db.backup(target))
    assert [one.kind for one in (full, *held)] == ["full", "incremental", "incremental"]
    assert vecdb.list_backups(target) == [full, *held]
    report = vecdb.verify_backups(target)
    assert (report.ok, report.backups, report.incomplete) == (True, 3, [])
    for name, asked, want in (
        ("newest", {}, everything(docs)),
        ("commit", {"sequence": sequence}, then),
        ("time", {"at": moment}, then),
        ("named", {"backup": full.id}, then),
    ):
        db.restore(target, collections={"docs": name}, **asked)
        assert everything(db.get_collection(name)) == want
    vecdb.restore(target, tmp_path / "new")
    last = db.backup(target, kind="full", collections=["docs"])
    assert vecdb.prune_backups(target, keep=1) == [one.id for one in (full, *held)]
    assert vecdb.list_backups(target) == [last]
    assert {key for key in s3.objects if f"/{last.id}/" not in key} == set(LITTER)
    assert s3.uploads == {}


def test_a_chain_whose_full_backup_is_gone(s3, db, caplog):
    """Where a rule of the bucket took the full backup, an increment is refused by name, and `auto` begins anew, in full."""
    docs = filled(db, rows=50)
    first = db.backup(URL)
    docs.delete(["r1"])
    second = db.backup(URL)
    for key in keys_of(s3, first.id):
        del s3.objects[key]
    with pytest.raises(errors.BackupDamaged, match=first.id):
        db.backup(URL, kind="incremental")
    third = db.backup(URL)
    assert (third.kind, first.id in caplog.text) == ("full", True)
    assert [first.id in problem for problem in vecdb.verify_backups(URL).problems] == [True]
    with pytest.raises(errors.BackupDamaged, match=first.id):
        db.restore(URL, backup=second.id, collections={"docs": "x"})
    db.restore(URL, collections={"docs": "again"})
    assert everything(db.get_collection("again")) == everything(docs)


def test_a_file_goes_in_one_call(s3):
    """However large a file is, no upload in parts is begun that a killed writer would leave, unseen and paid for."""
    data = random.Random(RUN_SEED).randbytes(2 * LEAST_PART_BYTES + 7)
    opened = open_target(URL)
    opened.write("20260131T021500.123456Z-1f2e3d4c/000001.chunk", [data[:9], data[9:]])
    assert s3.calls == {"PutObject": 1}
    assert list(s3.objects.values()) == [data]


@pytest.mark.long
def test_files_of_their_real_size(s3, db, tmp_path):
    """Files of 16 MiB, copied by another process, whose calls break off in the middle of the bytes in both directions, or are
    not heard of: all are repeated, and what comes back is what was there."""
    rows = np.random.default_rng(RUN_SEED).standard_normal((20_000, 512)).astype(np.float32)
    db.create_collection("docs", dimension=512).insert([str(n) for n in range(len(rows))], rows)
    for call in ("PutObject", "GetObject"):
        for how in ("cut", "slow_down", "unheard"):
            s3.plant(call, how, 1, key=".chunk")
    made = db.backup(URL)
    assert (made.files > 3, s3.uploads) == (True, {})
    assert not [fault for fault in s3.faults if fault.left]
    for how in ("cut", "cut", "unheard"):
        s3.plant("GetObject", how, 1, key=".chunk")
    assert vecdb.verify_backups(URL).ok
    assert not [fault for fault in s3.faults if fault.left]
    vecdb.restore(URL, tmp_path / "new")
    with vecdb.open(tmp_path / "new", read_only=True) as new:
        found = new.get_collection("docs").get(["7", "19999"], include=["vector"])
        assert np.array_equal(found.vectors, rows[[7, 19_999]])
        assert new.get_collection("docs").check().ok


BACKUP = """
import sys, vecdb
from vecdb.backup import copying, sink
sink.FILE_BYTES = copying._GROUP_BYTES = 2_000
with vecdb.open(sys.argv[1], auto_build=False) as db:
    db.backup(sys.argv[2])
"""


@pytest.mark.parametrize(
    ("key", "how"),
    [
        (MANIFEST_FILE, "slow"),
        pytest.param("000001.chunk", "slow", marks=pytest.mark.long),
        pytest.param("000002.chunk", "held", marks=pytest.mark.long),
        pytest.param(MANIFEST_FILE, "held", marks=pytest.mark.long),
    ],
)
def test_a_writer_that_is_killed(s3, tmp_path, key, how):
    """A process killed while an object is on its way leaves a whole backup, or litter that counts as none and is pruned;
    the next backup is whole."""
    print(f"seed {RUN_SEED}")
    with vecdb.open(tmp_path / "db", auto_build=False) as db:
        held = two_collections(db, random.Random(RUN_SEED), 6)
    fault = s3.plant("PutObject", how, 1, key=key)
    writer = subprocess.Popen(
        [sys.executable, "-P", "-c", BACKUP, tmp_path / "db", URL],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        wait_until(lambda: fault.left == 0, f"{key} is on its way")
        if how == "held":
            wait_until(lambda: any(key in name for name in s3.objects), "it has come")
    finally:
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
    s3.mend()
    report = vecdb.verify_backups(URL)
    assert report.ok, report.problems
    whole = (key, how) == (MANIFEST_FILE, "held")
    assert (report.backups, len(report.incomplete)) in ([(1, 0)] if whole else [(0, 1), (0, 0)])
    with vecdb.open(tmp_path / "db", auto_build=False) as db:
        db.backup(URL)
    vecdb.restore(URL, tmp_path / "new")
    with vecdb.open(tmp_path / "new", read_only=True) as db:
        assert {name: everything(db.get_collection(name)) for name in held} == held
    assert vecdb.prune_backups(URL, keep=9, incomplete_older_than_s=0.0) == report.incomplete
    assert (vecdb.verify_backups(URL).incomplete, s3.uploads) == ([], {})


def test_the_commands_with_a_bucket(s3, tmp_path, capsys):
    """backup, backups, verify, restore and prune take the URL, and what they need beside from the environment."""

    call = commands(URL, tmp_path, capsys)
    code, text = call("backup", URL, "--data", tmp_path / "db", "--kind", "full", "--keep", 2)
    assert (code, "removed" in text) == (0, False)
    assert call("prune", URL, "--keep", 1)[1].count("removed") == 2
    assert len(vecdb.list_backups(URL)) == 1
    (chunk,) = (key for key in s3.objects if key.endswith("000001.chunk"))
    s3.objects[chunk] = s3.objects[chunk][:-1] + b"\0\0"
    code, text = call("verify", URL)
    assert (code, "000001.chunk" in text) == (4, True)
    s3.plant("GetObject", "denied")
    code, text = call("verify", URL)
    assert (code, "AccessDenied" in text, "look at the keys" in text) == (5, True, True)


def test_a_server_with_a_bucket(s3, tmp_path, short_retries):
    """Names of a client lie below the backup_root of the server, a URL here. What its bucket refuses is told without secrets."""
    import vecdb_client

    with (
        serving(tmp_path / "db", backup_root="s3://bucket/root/") as address,
        vecdb_client.connect(address) as client,
    ):
        client.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
        made = client.backup("nightly")
        assert all(key.startswith(f"root/nightly/{made.id}/") for key in s3.objects)
        assert client.verify_backups("nightly").ok
        client.restore("nightly", collections={"docs": "again"})
        assert client.get_collection("again").count() == 1
        s3.plant("*", "mismatch")
        with pytest.raises(
            vecdb_client.errors.Unavailable, match="SignatureDoesNotMatch"
        ) as refused:
            client.list_backups("nightly")
        assert "token-of-tests" not in str(refused.value)
