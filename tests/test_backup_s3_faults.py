"""Backups beside a bucket that fails: what is told to be taken verifies, what was not counts as none, and errors say what
to do, without secrets."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from backup_rows import everything, filled
from conftest import wait_until
from s3_door import KEY, SECRET, TOKEN
from s3_server import S3, s3_server

import vecdb
from vecdb import errors
from vecdb.backup.manifest import MANIFEST_FILE
from vecdb.backup.store_errors import in_our_words

pytest.importorskip("obstore")
CALLS = ("PutObject", "GetObject", "ListObjectsV2", "DeleteObjects")


@pytest.fixture
def s3() -> Iterator[S3]:
    with s3_server() as made:
        yield made


@pytest.fixture
def db(tmp_path, monkeypatch):
    # Several files a backup.
    monkeypatch.setattr("vecdb.backup.sink.FILE_BYTES", 2_000)
    monkeypatch.setattr("vecdb.backup.copying._GROUP_BYTES", 2_000)
    with vecdb.open(tmp_path / "db", auto_build=False) as opened:
        filled(opened, rows=200)
        yield opened


@contextmanager
def refused(kind, match):
    """The block raises just this, and nothing that is shown of it, causes neither, holds a secret."""
    with pytest.raises(kind, match=match) as caught:
        yield
    assert type(caught.value) is kind
    shown = "".join(traceback.format_exception(caught.value))
    assert not [secret for secret in (KEY, SECRET, TOKEN, "pass-word") if secret in shown]


def goes_round(db, target, tmp_path):
    """Everything that is done with backups; each must succeed."""
    docs = db.get_collection("docs")
    first = db.backup(target)
    docs.upsert(["r1"], np.ones((1, 4)))
    second = db.backup(target)
    assert second.parent == first.id
    report = vecdb.verify_backups(target)
    assert (report.ok, report.backups, report.incomplete) == (True, 2, [])
    vecdb.restore(target, tmp_path / "new")
    with vecdb.open(tmp_path / "new", read_only=True) as other:
        assert everything(other.get_collection("docs")) == everything(docs)
    third = db.backup(target, kind="full")
    assert vecdb.prune_backups(target, keep=1) == [first.id, second.id]
    assert vecdb.list_backups(target) == [third]


@pytest.mark.parametrize("how", ["slow_down", "cut", "unheard"])
def test_what_passes_is_overcome(s3, db, tmp_path, how):
    """Throttled, cut off in the middle or not heard of twice at each verb: the calls are repeated, and all succeeds."""
    for call in CALLS:
        s3.plant(call, how, 2)
    goes_round(db, s3.store("p"), tmp_path)
    assert not [fault for fault in s3.faults if fault.left]


def test_a_url_overcomes_it_too(s3, db, monkeypatch):
    """What is opened by a URL repeats calls by itself, and how long it waits is told by the environment."""
    for name, value in {**s3.environment, "AWS_TIMEOUT": "1s"}.items():
        monkeypatch.setenv(name, value)
    for call, how, times in (
        ("PutObject", "slow_down", 2),
        ("ListObjectsV2", "slow_down", 2),
        ("GetObject", "slow", 1),
    ):
        s3.plant(call, how, times)
    made = db.backup("s3://bucket/p")
    assert vecdb.list_backups("s3://bucket/p") == [made]
    assert not [fault for fault in s3.faults if fault.left]


def test_an_answer_that_does_not_come_is_not_waited_for(s3, db, tmp_path):
    """A call without an answer ends after the time of the store object, and is repeated."""
    for call in ("PutObject", "GetObject"):
        s3.plant(call, "slow", 1)
    goes_round(db, s3.store("p", retries=10, timeout_s=1.0), tmp_path)
    assert not [fault for fault in s3.faults if fault.left]


UNANSWERED = ("timeout", "cut", "unheard")
LASTING = [
    ("PutObject", "slow_down", errors.Unavailable, "SlowDown.*repeat the call"),
    ("PutObject", "timeout", errors.Unavailable, "GatewayTimeout.*repeat the call"),
    ("PutObject", "cut", errors.Unavailable, "cannot be used.*repeat the call"),
    ("PutObject", "unheard", errors.Unavailable, "cannot be used.*repeat the call"),
    ("PutObject", "denied", errors.Unavailable, "AccessDenied.*keys in the environment"),
    ("PutObject", "mismatch", errors.Unavailable, "SignatureDoesNotMatch.*keys in the environment"),
    ("PutObject", "no_bucket", errors.Unavailable, "NoSuchBucket.*make the bucket"),
    ("PutObject", "no_key", errors.Unavailable, "make the bucket"),
    ("PutObject", "full", errors.StorageFull, "is full.*free space"),
    ("PutObject", "flipped", errors.BackupDamaged, "not hold what was just written"),
    ("PutObject", "short", errors.BackupDamaged, "not hold what was just written"),
    ("GetObject", "slow_down", errors.Unavailable, "SlowDown"),
    ("GetObject", "cut", errors.Unavailable, "cannot be used"),
    ("GetObject", "denied", errors.Unavailable, "AccessDenied.*keys in the environment"),
    ("GetObject", "no_bucket", errors.Unavailable, "NoSuchBucket.*make the bucket"),
    ("ListObjectsV2", "slow_down", errors.Unavailable, "SlowDown"),
    ("ListObjectsV2", "cut", errors.Unavailable, "list response body"),
    ("ListObjectsV2", "denied", errors.Unavailable, "AccessDenied.*keys in the environment"),
    (
        "ListObjectsV2",
        "mismatch",
        errors.Unavailable,
        "SignatureDoesNotMatch.*keys in the environment",
    ),
    ("ListObjectsV2", "no_bucket", errors.Unavailable, "NoSuchBucket.*make the bucket"),
]


@pytest.mark.parametrize(("call", "how", "kind", "match"), LASTING)
def test_what_lasts_ends_a_backup(s3, db, call, how, kind, match):
    """At any verb, for one file and for the manifest: a typed error that says what to do. The backup before is as it was,
    nothing counts beside it that is not whole, and when the store is well again the next one continues it."""
    target = s3.store("p")
    before = db.backup(target)
    for key in ("000002.chunk", MANIFEST_FILE) if call != "ListObjectsV2" else ("",):
        held = dict(s3.objects)
        db.get_collection("docs").upsert([f"r{n}" for n in range(99)], np.ones((99, 4)))
        s3.plant(call, how, key=key)
        with refused(kind, match):
            db.backup(target)
        s3.mend()
        newest = vecdb.list_backups(target)[-1]
        if key == MANIFEST_FILE and call == "PutObject" and how in UNANSWERED:
            # It may have come, or come yet, so its files are left.
            assert (newest == before) == (how != "unheard")
        else:
            assert s3.objects == held
            assert newest == before
        before = db.backup(target)
        assert before.parent == newest.id
    report = vecdb.verify_backups(target)
    assert (report.ok, len(report.incomplete)) == (
        True,
        int(call == "PutObject" and how in ("cut", "timeout")),
    )


@pytest.mark.parametrize("key", ["000001.chunk", MANIFEST_FILE])
def test_a_store_that_goes_away(s3, db, key):
    """From the middle of a backup on nobody answers, though the object has come: what is left is whole, or counts as none;
    and that is known soon."""
    target = s3.store("p")
    before = db.backup(target)
    db.get_collection("docs").upsert(["r1"], np.ones((1, 4)))
    s3.plant("PutObject", "gone", 1, key=key)
    s3.calls.clear()
    with refused(errors.Unavailable, "repeat the call"):
        db.backup(target)
    assert (
        s3.calls.total() < 60
    )  # each is repeated, for as long as the store object says, and no other follows
    s3.mend()
    found = vecdb.list_backups(target)
    assert found[0] == before
    report = vecdb.verify_backups(target)
    assert report.ok, report.problems
    assert (len(found), len(report.incomplete)) == ((2, 0) if key == MANIFEST_FILE else (1, 1))


def test_a_manifest_that_comes_late(s3, db):
    """What a store was sent and has not answered for it may do when the backup has failed: then that is whole, not a
    manifest without its files."""
    target = s3.store("p")
    fault = s3.plant("PutObject", "late", key=MANIFEST_FILE)
    with refused(errors.Unavailable, "repeat the call"):
        db.backup(target)
    assert vecdb.list_backups(target) == []
    fault.released.set()
    wait_until(lambda: any(MANIFEST_FILE in key for key in s3.objects), "it has come")
    report = vecdb.verify_backups(target)
    assert (report.ok, report.backups, report.incomplete) == (True, 1, [])
    db.restore(target, collections={"docs": "again"})
    assert everything(db.get_collection("again")) == everything(db.get_collection("docs"))


def test_a_store_that_is_gone(db):
    """Where nobody listens each verb says so, soon."""
    s3 = S3()
    s3.close()
    target = s3.store("p", retries=2)
    for call in (
        lambda: db.backup(target),
        lambda: vecdb.list_backups(target),
        lambda: vecdb.verify_backups(target),
        lambda: vecdb.prune_backups(target, keep=1),
        lambda: db.restore(target, collections={"docs": "x"}),
    ):
        with refused(
            errors.Unavailable, "S3Store cannot be used.*see that the store can be reached"
        ):
            call()


def test_what_was_not_read_back_is_found_later(s3, db):
    """Without reading back a wrong bit is taken, and told by verification; an object that is cut short is seen in the list,
    so that its backup fails."""
    target = s3.store("p")
    s3.plant("PutObject", "flipped", 1, key="000002.chunk")
    made = db.backup(target, verify=False)
    (problem,) = vecdb.verify_backups(target).problems
    assert f"{made.id}/000002.chunk" in problem
    s3.plant("PutObject", "short", 1, key="000002.chunk")
    with refused(errors.Unavailable, "000002.chunk"):
        db.backup(target, verify=False, kind="full")
    assert vecdb.list_backups(target) == [made]


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("slow_down", "SlowDown"),
        ("cut", "cannot be used"),
        ("denied", "AccessDenied"),
        ("mismatch", "Signature"),
    ],
)
def test_a_store_that_does_not_answer_is_no_damage(s3, db, tmp_path, how, match):
    """Verification that cannot read a file for want of an answer ends with that at once, instead of calling each
    file damaged after minutes; restoring makes nothing."""
    target = s3.store("p")
    db.backup(target)
    s3.plant("GetObject", how, key=".chunk")
    s3.calls.clear()
    with refused(errors.Unavailable, match):
        vecdb.verify_backups(target)
    assert s3.calls["GetObject"] < 20
    with refused(errors.Unavailable, match):
        vecdb.restore(target, tmp_path / "new")
    with refused(errors.Unavailable, match):
        db.restore(target, collections={"docs": "again"})
    assert [info.name for info in db.list_collections()] == ["docs"]
    assert [path.name for path in tmp_path.iterdir()] == ["db"]
    s3.mend()
    assert vecdb.verify_backups(target).ok


@pytest.mark.parametrize(
    ("call", "key", "how", "match"),
    [
        ("DeleteObjects", "", "denied", "AccessDenied.*delete objects"),
        ("DeleteObjects", "", "slow_down", "SlowDown"),
        ("DeleteObjects", "", "no_key", "is there and cannot be deleted"),
        ("DeleteObjects.key", MANIFEST_FILE, "denied", "AccessDenied"),
        ("DeleteObjects.key", "000002.chunk", "denied", "AccessDenied"),
    ],
)
def test_what_cannot_be_deleted(s3, db, call, key, how, match):
    """Prune says so, and what is left verifies; when it may, it goes on where it ended."""
    target = s3.store("p")
    old = db.backup(target)
    kept = db.backup(target, kind="full")
    s3.plant(call, how, key=key)
    with refused(errors.Unavailable, match):
        vecdb.prune_backups(target, keep=1)
    s3.mend()
    report = vecdb.verify_backups(target)
    assert (report.ok, report.incomplete) == (True, [old.id] if "chunk" in key else [])
    assert vecdb.prune_backups(target, keep=1, incomplete_older_than_s=0.0) == [old.id]
    assert vecdb.list_backups(target) == [kept]
    assert {name.split("/")[1] for name in s3.objects} == {kept.id}


def test_keys_that_may_not_delete(s3, db):
    """Backups are taken without the right to delete; what one that fails leaves is litter, and its own error is told."""
    target = s3.store("p")
    s3.plant("DeleteObjects", "denied")
    made = db.backup(target)
    s3.plant("PutObject", "slow_down", key="000002.chunk")
    with refused(errors.Unavailable, "SlowDown"):
        db.backup(target, kind="full")
    report = vecdb.verify_backups(target)
    assert (report.ok, report.backups, len(report.incomplete)) == (True, 1, 1)
    assert vecdb.list_backups(target) == [made]


def test_a_list_that_is_behind(s3, db):
    """A bucket that does not list what it holds has no backup taken; one whose list lacks the newest backup has the one before
    continued once more, and both can be restored."""
    target = s3.store("p")
    docs = db.get_collection("docs")
    s3.plant("ListObjectsV2", "stale")
    with refused(errors.Unavailable, "does not list what it holds"):
        db.backup(target)
    s3.mend()
    first = db.backup(target)
    behind = s3.plant("ListObjectsV2", "stale", 0)
    held = []
    for n in (1, 2):
        docs.upsert([f"r{n}"], np.full((1, 4), n))
        behind.left = 1  # what is looked for first
        made = db.backup(target)
        assert made.parent == first.id
        held.append((made.id, everything(docs)))
    assert vecdb.verify_backups(target).ok
    for n, (backup, want) in enumerate(held):
        db.restore(target, backup=backup, collections={"docs": f"x{n}"})
        assert everything(db.get_collection(f"x{n}")) == want


def test_an_object_whose_name_no_list_takes(s3, db):
    """One object with an empty folder in its name keeps the store's client from listing: its name and the way out are told."""
    s3.objects["p/odd//name"] = b""
    with refused(errors.Unavailable, "odd//name.*remove that object, or give backups a prefix"):
        db.backup(s3.store("p"))


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("AWS_SECRET_ACCESS_KEY", "another", "SignatureDoesNotMatch.*keys in the environment"),
        ("AWS_ACCESS_KEY_ID", "another", "InvalidAccessKeyId.*keys in the environment"),
        ("AWS_ALLOW_HTTP", "false", "AWS_ALLOW_HTTP=true"),
        ("AWS_ENDPOINT", "http://user:pass-word@", "cannot be used"),
    ],
)
def test_an_environment_that_is_wrong(s3, db, monkeypatch, name, value, match):
    """What is told of a bucket that cannot be used so names the way out, and neither keys nor passwords nor what was signed."""
    wrong = {name: value + s3.endpoint.removeprefix("http://") if "@" in value else value}
    for key, given in {**s3.environment, **wrong}.items():
        monkeypatch.setenv(key, given)
    if "@" in value:
        s3.plant("*", "denied")
    for call in (lambda: db.backup("s3://bucket/p"), lambda: vecdb.list_backups("s3://bucket/p")):
        with refused(errors.Unavailable, match):
            call()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "Error performing GET https://a.example/c/d?se=2026&sig=pass-word in 1ms, after 2 retries  - HTTP error: no",
            "GET https://a.example/c/d in 1ms, after 2 retries - HTTP error: no",
        ),
        (
            'at https://user:pass-word@a.example/: <?xml version="1.0"?>\n<Error>\n<Code>No</Code>\n<Message>It is\nno.'
            "</Message>\n<StringToSign>pass-word</StringToSign></Error>\n\nDebug source:\npass-word",
            "at https://a.example/: No: It is no.",
        ),
        ("one line\n\nDebug source:\nGeneric { pass-word }", "one line"),
        ("x" * 10_000, "x" * 600),
    ],
)
def test_what_a_store_says_is_told_without_secrets(said, told):
    """Of addresses neither user nor query, of an answer its code and message only, and one line of bounded length."""
    from obstore.exceptions import GenericError

    with refused(errors.Unavailable, re.escape(told)), in_our_words("place"):
        raise GenericError(said)
