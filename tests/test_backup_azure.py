"""Backups in a container of Azure's blob store, as its own emulator serves it over HTTP: the promises of a folder."""

from __future__ import annotations

import base64
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
from azurite_server import KEY, Azurite, azurite
from backup_rows import NAMED, change, commands, everything, filled, two_collections
from seeds import RUN_SEED

import vecdb
from vecdb import errors
from vecdb.backup.manifest import MANIFEST_FILE
from vecdb.backup.store_errors import in_our_words
from vecdb.backup.target import open_target

obstore = pytest.importorskip("obstore")
ROOT = Path(__file__).resolve().parent.parent
URL = "az://container/deep/er"


@pytest.fixture
def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Azurite]:
    with azurite(tmp_path / "azurite") as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.fixture
def db(tmp_path: Path) -> Iterator[vecdb.Database]:
    with vecdb.open(tmp_path / "db", auto_build=False) as opened:
        yield opened


def paths(azure: Azurite, prefix: str = "") -> set[str]:
    """All blobs of the container."""
    return {one["path"] for page in obstore.list(azure.store(prefix)) for one in page}


@pytest.mark.parametrize("way", ["url", "object"])
def test_a_chain_in_a_container(azure, db, tmp_path, way):
    """Full, increments, list, verify, restore of the newest, by commit and by time, and prune, beside blobs of others, which
    stay."""
    print(f"seed {RUN_SEED}")
    target = URL if way == "url" else azure.store()
    litter = {"deep/er/readme.txt", "deep/er/notes/of/mine", "deep/er-not/x"}
    for name in litter:
        obstore.put(azure.store(""), name, b"ours")
    rng = random.Random(RUN_SEED)
    docs = db.create_collection("docs", dimension=4, vectors=NAMED)
    for _ in range(6):
        change(docs, rng)
    assert vecdb.list_backups(target) == []
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
    ):
        db.restore(target, collections={"docs": name}, **asked)
        assert everything(db.get_collection(name)) == want
    vecdb.restore(target, tmp_path / "new")
    last = db.backup(target, kind="full", collections=["docs"])
    assert vecdb.prune_backups(target, keep=1) == [one.id for one in (full, *held)]
    assert vecdb.list_backups(target) == [last]
    assert {path for path in paths(azure) if f"/{last.id}/" not in path} == litter


def test_what_was_changed_or_is_gone_is_named(azure, db):
    """A blob that was changed, cut or removed is in what verify says; a blob that is gone already is deleted once more
    without an error."""
    filled(db, rows=50)
    made = db.backup(URL)
    (chunk,) = (path for path in paths(azure) if path.endswith("000001.chunk"))
    whole = bytes(obstore.get(azure.store(""), chunk).bytes())
    for data in (whole[:-1], bytes([whole[0] ^ 1]) + whole[1:]):
        obstore.put(azure.store(""), chunk, data)
        assert ["000001.chunk" in one for one in vecdb.verify_backups(URL).problems] == [True]
    obstore.delete(azure.store(""), chunk)
    assert ["000001.chunk" in one for one in vecdb.verify_backups(URL).problems] == [True]
    open_target(URL).delete(f"{made.id}/000001.chunk")
    with pytest.raises(errors.BackupNotFound):
        open_target(URL).read(f"{made.id}/000001.chunk", 100)


@pytest.mark.parametrize(("way", "after"), [("up", 0), ("up", 3_000), ("down", 0), ("down", 100)])
def test_connections_that_break_off(azure, db, tmp_path, way, after):
    """Before a byte, in the middle of a blob that is sent, before an answer and in the middle of one: calls are repeated, and
    what comes back is what was there."""
    filled(db, rows=5_000)
    target = azure.store(retries=20)
    azure.cuts += [(way, after)] * 3
    db.backup(target)
    azure.cuts += [(way, after)] * 3
    assert vecdb.verify_backups(target).ok
    azure.cuts += [(way, after)] * 3
    vecdb.restore(target, tmp_path / "new")
    with vecdb.open(tmp_path / "new", read_only=True) as new:
        assert everything(new.get_collection("docs")) == everything(db.get_collection("docs"))


BACKUP = """
import os, signal, sys, vecdb
from vecdb.backup import copying, sink, target
sink.FILE_BYTES = copying._GROUP_BYTES = 2_000
write = target.StoreTarget.write
def until(self, name, parts):
    there = name.endswith(sys.argv[3])
    if not there or sys.argv[4] == "after":
        write(self, name, parts)
    if there:
        os.kill(os.getpid(), signal.SIGKILL)
target.StoreTarget.write = until
with vecdb.open(sys.argv[1], auto_build=False) as db:
    db.backup(sys.argv[2])
"""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("key", ["000002.chunk", MANIFEST_FILE])
def test_a_writer_that_is_killed(azure, tmp_path, key, moment):
    """It leaves a whole backup, or litter that counts as none and is pruned; the next backup is whole."""
    print(f"seed {RUN_SEED}")
    with vecdb.open(tmp_path / "db", auto_build=False) as db:
        held = two_collections(db, random.Random(RUN_SEED), 6)
    writer = subprocess.run(
        [sys.executable, "-P", "-c", BACKUP, tmp_path / "db", URL, key, moment],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert writer.returncode == -signal.SIGKILL
    report = vecdb.verify_backups(URL)
    assert report.ok, report.problems
    whole = (key, moment) == (MANIFEST_FILE, "after")
    # Before the second file the first may not be there either.
    assert (report.backups, len(report.incomplete)) in ([(1, 0)] if whole else [(0, 1), (0, 0)])
    with vecdb.open(tmp_path / "db", auto_build=False) as db:
        db.backup(URL)
    vecdb.restore(URL, tmp_path / "new")
    with vecdb.open(tmp_path / "new", read_only=True) as db:
        assert {name: everything(db.get_collection(name)) for name in held} == held
    assert vecdb.prune_backups(URL, keep=9, incomplete_older_than_s=0.0) == report.incomplete
    assert vecdb.verify_backups(URL).incomplete == []


def test_a_store_that_goes_and_comes_again(azure, db):
    """While it is away each verb is Unavailable; then what was acknowledged is there, and the next backup continues it."""
    docs = filled(db, rows=200)
    target = azure.store(retries=2)
    first = db.backup(target)
    azure.end()
    for call in (
        lambda: db.backup(target),
        lambda: vecdb.list_backups(target),
        lambda: vecdb.verify_backups(target),
        lambda: db.restore(target, collections={"docs": "x"}),
        lambda: vecdb.prune_backups(target, keep=1),
    ):
        with pytest.raises(errors.Unavailable, match="see that the store can be reached"):
            call()
    azure.begin()
    assert vecdb.list_backups(target) == [first]
    docs.upsert(["new"], np.ones((1, 4)))
    assert db.backup(target).parent == first.id
    assert vecdb.verify_backups(target).ok


def test_what_it_refuses_is_told_with_what_to_do(azure, db):
    """A container that is not there, a wrong key, a token that is none: what is wrong and what to do, and no secret."""
    filled(db, rows=5)
    wrong = base64.b64encode(b"not the key of it").decode()
    signed = (
        "sv=2023-11-03&ss=b&srt=sco&sp=rwdl&se=2020-01-01T00%3A00%3A00Z&sig=c2VjcmV0LW9mLXRlc3Rz"
    )
    cases = (
        ("az://nowhere/x", "make the bucket, or mend its name"),
        (azure.store(account_key=wrong), "look at the keys"),
        (azure.store(sas_key=signed), "look at the keys"),
    )
    for target, advice in cases:
        for call in (
            lambda target=target: db.backup(target),
            lambda target=target: vecdb.list_backups(target),
            lambda target=target: vecdb.verify_backups(target),
            lambda target=target: open_target(target).read("a/b", 9),
            lambda target=target: open_target(target).write("a/b", [b"c"]),
        ):
            with pytest.raises(errors.Unavailable, match=advice) as refused:
                call()
            assert not [
                one for one in (KEY, wrong, "c2VjcmV0", "rwdl") if one in str(refused.value)
            ]


@pytest.mark.parametrize("code", ["NoSuchBucket", "ContainerNotFound"])
@pytest.mark.parametrize("kind", [FileNotFoundError, obstore.exceptions.GenericError])
def test_a_container_that_is_not_there_is_no_missing_backup(code, kind):
    """However obstore tells it, for reads and writes: the target cannot be used, and what to do."""
    for writes in ("", "a/b"):
        with (
            pytest.raises(errors.Unavailable, match="make the bucket"),
            in_our_words("t", writes=writes),
        ):
            raise kind(f"Server returned 404 Not Found: <Error><Code>{code}</Code></Error>")


def test_the_commands_with_a_container(azure, tmp_path, capsys):
    """backup, backups, verify, restore and prune take the URL, and what they need beside from the environment."""

    call = commands(URL, tmp_path, capsys)
    assert call("backup", URL, "--data", tmp_path / "db", "--kind", "full")[0] == 0
    assert call("prune", URL, "--keep", 1)[1].count("removed") == 2
