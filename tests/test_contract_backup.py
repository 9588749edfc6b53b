"""Backups: the same promises embedded and through both clients."""

from __future__ import annotations

import datetime as dt
import random
import shutil

import grpc
import pytest
from backup_rows import NAMED, change, everything
from conftest import BACKENDS, open_backend, serving
from seeds import RUN_SEED

from vecdb.backup.manifest import MANIFEST_FILE
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_client.v1 import vecdb_pb2_grpc as pb_grpc


class Backups:
    """The verbs of backups as one backend has them, for targets below one folder."""

    def __init__(self, backend, root):
        self.backend, self.db, self.errors, self.root = backend, backend.db, backend.errors, root
        self.embedded = backend.name == "embedded"

    def at(self, name):
        return self.root / name if self.embedded else name

    def call(self, verb, name, **asked):
        if self.embedded and verb in ("list_backups", "verify_backups", "prune_backups"):
            import vecdb

            return getattr(vecdb, verb)(self.at(name), **asked)
        return getattr(self.db, verb)(self.at(name), **asked)


@pytest.fixture(params=BACKENDS)
def backups(request, tmp_path):
    settings = {} if request.param == "embedded" else {"backup_root": str(tmp_path / "backups")}
    with open_backend(request.param, tmp_path / "data", history_s=3600.0, **settings) as opened:
        yield Backups(opened, tmp_path / "backups")


def test_a_chain_is_taken_listed_verified_restored_and_pruned(backups):
    """A full backup and an increment give back everything, under a new name, while the original stays."""
    print(f"seed {RUN_SEED}")
    rng = random.Random(RUN_SEED)
    docs = backups.db.create_collection("docs", dimension=4, vectors=NAMED, description="of docs")
    for _ in range(8):
        change(docs, rng)
    told = []
    full = backups.call("backup", "a", progress=told.append)
    assert (full.kind, full.parent, full.chain) == ("full", "", full.id)
    assert told[-1].stage == "copy"
    assert told[-1].total_rows >= told[-1].rows > 0
    for _ in range(5):
        change(docs, rng)
    backups.db.set_alias("live", "docs")
    before = everything(docs)
    second = backups.call("backup", "a")
    assert (second.kind, second.parent, second.chain) == ("incremental", full.id, full.id)
    (held,) = second.collections
    assert (held.name, held.since, held.count) == (
        "docs",
        full.collections[0].sequence,
        len(before),
    )
    assert [one.id for one in backups.call("list_backups", "a")] == [full.id, second.id]
    assert backups.call("list_backups", "a")[1] == second
    report = backups.call("verify_backups", "a")
    assert report.ok
    assert report.backups == 2
    assert not report.problems
    assert not report.incomplete
    made = backups.call("restore", "a", collections={"docs": "again"})
    assert (made.backup, made.collections[0].source) == (second.id, "docs")
    again = backups.db.get_collection("again")
    assert everything(again) == before == everything(docs)
    assert again.check().ok
    assert again.info.description == "of docs"
    assert again.stats().sequence == docs.stats().sequence == made.collections[0].sequence
    assert again.upsert(["new"], [[1, 2, 3, 4]]).sequence == made.collections[0].sequence + 1
    backups.db.drop_collection("docs")
    whole = backups.call("restore", "a")
    assert dict(whole.aliases) == {"live": "docs"}
    assert everything(backups.db.get_collection("live")) == before
    third = backups.call("backup", "a", kind="full", collections=["docs"], verify=False)
    assert backups.call("prune_backups", "a", keep=1) == [full.id, second.id]
    assert [one.id for one in backups.call("list_backups", "a")] == [third.id]


def test_a_moment_comes_back_by_sequence_and_by_time(backups):
    """What was live right after a commit is restored by its number, and by a time before the next commit."""
    docs = backups.db.create_collection("docs", dimension=2)
    docs.insert(["a"], [[1, 2]])
    after_first = docs.insert(["b"], [[2, 1]]).sequence
    between = dt.datetime.now(dt.UTC)
    docs.delete(["a"])
    backups.call("backup", "t")
    backups.call("restore", "t", collections={"docs": "one"}, sequence=1)
    backups.call("restore", "t", collections={"docs": "two"}, sequence=after_first)
    backups.call("restore", "t", collections={"docs": "then"}, at=between)
    local = between.astimezone().replace(tzinfo=None)
    backups.call("restore", "t", collections={"docs": "local"}, at=local)
    names = ("one", "two", "then", "local")
    found = {name: sorted(everything(backups.db.get_collection(name))) for name in names}
    assert found == {"one": ["a"], "two": ["a", "b"], "then": ["a", "b"], "local": ["a", "b"]}
    with pytest.raises(backups.errors.BackupNotFound, match="ends at commit 3"):
        backups.call("restore", "t", collections={"docs": "x"}, sequence=99)
    with pytest.raises(backups.errors.BackupNotFound):
        backups.call("restore", "t", at=dt.datetime.now(dt.UTC) + dt.timedelta(days=1))


def test_refusals_say_what_is_wrong(backups):
    """What cannot be done is refused by a typed error, and nothing is made of it."""
    errors = backups.errors
    docs = backups.db.create_collection("docs", dimension=2)
    docs.insert(["a"], [[1, 2]])
    with pytest.raises(errors.BackupNotFound):
        backups.call("backup", "r", kind="incremental")
    assert backups.call("list_backups", "r") == []
    with pytest.raises(errors.BackupNotFound):
        backups.call("restore", "r", collections={"docs": "new"})
    with pytest.raises(errors.CollectionNotFound):
        backups.call("backup", "r", collections=["no-such"])
    for kind, limit in (("half", None), ("auto", 0)):
        with pytest.raises(errors.InvalidArgument):
            backups.call("backup", "r", kind=kind, limit_bytes_s=limit)
    backups.call("backup", "r")
    with pytest.raises(errors.CollectionExists):
        backups.call("restore", "r")
    with pytest.raises(errors.BackupNotFound, match="no collection"):
        backups.call("restore", "r", collections=["other"])
    with pytest.raises(errors.BackupNotFound):
        backups.call("restore", "r", collections={"docs": "new"}, backup="../../etc")
    with pytest.raises(errors.InvalidName):
        backups.call("restore", "r", collections={"docs": "../new"})
    with pytest.raises(errors.InvalidQuery):
        backups.call("restore", "r", sequence=1)
    with pytest.raises(errors.InvalidArgument):
        backups.call("prune_backups", "r", keep=0)
    assert [info.name for info in backups.db.list_collections()] == ["docs"]
    assert len(list((backups.backend.folder / "collections").iterdir())) == 1


def test_a_caller_who_leaves_leaves_nothing(backups):
    """What `progress` raises ends the call, and neither files nor folders are left."""
    docs = backups.db.create_collection("docs", dimension=2)
    docs.insert(["a"], [[1, 2]])

    class Enough(Exception):
        pass

    def stop(_):
        raise Enough

    with pytest.raises(Enough):
        backups.call("backup", "left", progress=stop)
    # A server may have been through before it heard of it: then the backup is whole.
    for one in backups.call("list_backups", "left"):
        assert one.kind == "full"
    assert backups.call("verify_backups", "left").ok
    assert not backups.embedded or not any((backups.root / "left").iterdir())


@pytest.mark.parametrize("seconds", [1e11, 1e300, float("inf")])
def test_what_is_older_than_any_calendar_is_nothing(backups, seconds):
    """An interrupted backup stays when only those that are older than all times are to go."""
    backups.db.create_collection("docs", dimension=2)
    old = backups.call("backup", "a", kind="full").id
    backups.call("backup", "a", kind="full")
    left = backups.root / "a" / "20260101T000000.000000Z-00000000"
    shutil.copytree(left.with_name(old), left)
    (left / MANIFEST_FILE).unlink()
    removed = backups.call("prune_backups", "a", keep=1, incomplete_older_than_s=seconds)
    assert removed == [old]
    assert left.exists()
    assert backups.call("prune_backups", "a", keep=1) == [left.name]


@pytest.mark.parametrize("moment", [2**63 - 1, -(2**63)])
def test_a_moment_that_no_calendar_has_is_refused(moment, tmp_path):
    """A time on the wire that is none is the caller's mistake, not the server's."""
    with (
        serving(tmp_path / "data", backup_root=str(tmp_path / "root")) as address,
        grpc.insecure_channel(address) as channel,
    ):
        request = pb.RestoreBackupRequest(at_us=moment)
        with pytest.raises(grpc.RpcError) as caught:
            list(pb_grpc.VecdbServiceStub(channel).RestoreBackup(request))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("name", ["client", "aio"])
def test_no_path_of_a_client_reaches_the_disk(name, tmp_path):
    """A server takes names of folders below its backup_root only, and none where it has no such setting."""
    with open_backend(name, tmp_path / "data", backup_root=str(tmp_path / "root")) as opened:
        opened.db.create_collection("docs", dimension=2)
        for target in ("../out", "/etc", "a/b", "..", ".", "s3://x", "a\0b", "-"):
            with pytest.raises(opened.errors.InvalidName):
                opened.db.backup(target)
            with pytest.raises(opened.errors.InvalidName):
                opened.db.list_backups(target)
        opened.db.backup()
        assert len(opened.db.list_backups()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"data", "root"}
    with open_backend(name, tmp_path / "data") as opened:
        with pytest.raises(opened.errors.FailedPrecondition, match="backup_root"):
            opened.db.backup("a")
        with pytest.raises(opened.errors.FailedPrecondition, match="backup_root"):
            opened.db.restore("a")
