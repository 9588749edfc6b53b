"""Backups and restores that are killed in the middle: what is left is litter, never a manifest that lies."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from backup_rows import everything, two_collections
from seeds import RUN_SEED

import vecdb

ROOT = Path(__file__).resolve().parent.parent

BACKUP = """
import sys, vecdb
with vecdb.open(sys.argv[1], auto_build=False) as db:
    db.backup(sys.argv[2])
"""
RESTORE = """
import sys, vecdb
vecdb.restore(sys.argv[1], sys.argv[2])
"""
RESTORE_INTO = """
import sys, vecdb
with vecdb.open(sys.argv[1], auto_build=False) as db:
    db.restore(sys.argv[2], collections={"docs": "again", "more": "more-again"})
"""


def run(code, *words, failpoints=""):
    """The exit code of a process that runs `code`."""
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "server", "clients/python"))
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env={**os.environ, "PYTHONPATH": paths, "VECDB_FAILPOINTS": failpoints},
        capture_output=True,
        timeout=120,
        check=False,
    ).returncode


def steps(tmp_path, code, *words):
    """The names of the points that a run of `code` reaches, in their order."""
    record = tmp_path / "points"
    record.unlink(missing_ok=True)
    assert run(code, *words, failpoints=f"*=record:{record}") == 0
    return record.read_text().split()


@pytest.fixture
def made(tmp_path):
    """A database of two collections; its folder and what they hold."""
    with vecdb.open(tmp_path / "db", auto_build=False) as db:
        held = two_collections(db, random.Random(RUN_SEED), 6)
    return tmp_path / "db", held


def some(points, prefix, count):
    """Numbers of a few of the points that begin with `prefix`, first and last among them."""
    rng = random.Random(RUN_SEED)
    n = sum(point.startswith(prefix) for point in points)
    assert n > 2, points
    return sorted({1, n, *(rng.randrange(1, n + 1) for _ in range(count))})


@pytest.mark.long
def test_killed_while_backing_up(made, tmp_path):
    """Killed at any durable step, a backup is whole or counts as none; the next one is whole, litter is pruned."""
    print(f"seed {RUN_SEED}")
    folder, held = made
    points = steps(tmp_path, BACKUP, folder, tmp_path / "trial")
    for number in some(points, "backup.", 5):
        target = tmp_path / f"b{number}"
        assert run(BACKUP, folder, target, failpoints=f"backup.*=kill@{number}") == -9
        found = vecdb.list_backups(target)
        report = vecdb.verify_backups(target)
        assert report.ok, report.problems
        assert len(found) + len(report.incomplete) <= 1
        assert run(BACKUP, folder, target) == 0
        assert len(vecdb.list_backups(target)) == len(found) + 1
        assert vecdb.verify_backups(target).ok
        vecdb.restore(target, tmp_path / f"r{number}")
        with vecdb.open(tmp_path / f"r{number}", read_only=True) as db:
            assert {name: everything(db.get_collection(name)) for name in held} == held
        removed = vecdb.prune_backups(target, keep=9, incomplete_older_than_s=0.0)
        assert removed == list(report.incomplete)
        assert not vecdb.verify_backups(target).incomplete


@pytest.mark.long
def test_killed_while_restoring_a_database(made, tmp_path):
    """Killed at any durable step, a restored database is whole or not there; a second try makes it, and no
    litter stays."""
    print(f"seed {RUN_SEED}")
    folder, held = made
    assert run(BACKUP, folder, tmp_path / "b") == 0
    points = steps(tmp_path, RESTORE, tmp_path / "b", tmp_path / "trial")
    for number in some(points, "", 6):
        to = tmp_path / f"r{number}"
        assert run(RESTORE, tmp_path / "b", to, failpoints=f"*=kill@{number}") == -9
        if not to.exists():
            assert run(RESTORE, tmp_path / "b", to) == 0
        with vecdb.open(to) as db:
            assert {name: everything(db.get_collection(name)) for name in held} == held
            assert all(db.get_collection(name).check().ok for name in held)
        assert not list(tmp_path.glob("*.restoring-*"))


@pytest.mark.long
def test_killed_while_restoring_into_a_database(made, tmp_path):
    """Killed at any durable step, either all restored collections are there or none; what was there stays."""
    print(f"seed {RUN_SEED}")
    folder, held = made
    assert run(BACKUP, folder, tmp_path / "b") == 0
    with vecdb.open(folder) as db:
        db.drop_collection("more")
        names = ["docs"]
    points = steps(tmp_path, RESTORE_INTO, folder, tmp_path / "b")
    with vecdb.open(folder) as db:
        db.drop_collection("again")
        db.drop_collection("more-again")
    for number in some(points, "", 6):
        assert run(RESTORE_INTO, folder, tmp_path / "b", failpoints=f"*=kill@{number}") == -9
        with vecdb.open(folder, auto_build=False) as db:
            found = [info.name for info in db.list_collections()]
            assert found in (names, [*["again"], "docs", "more-again"])
            assert everything(db.get_collection("docs")) == held["docs"]
            if len(found) > 1:
                assert everything(db.get_collection("more-again")) == held["more"]
                db.drop_collection("again")
                db.drop_collection("more-again")
        assert len(list((folder / "collections").iterdir())) == 1


@pytest.mark.parametrize("code", ["ENOSPC", "EIO"])
def test_a_disk_that_fails(made, tmp_path, code, monkeypatch):
    """A full or broken disk ends a backup with a typed error; nothing of it is left, and the next one succeeds."""
    from vecdb import errors, failpoints

    folder, held = made
    with vecdb.open(folder, auto_build=False) as db:
        before = failpoints.hook
        for number in (1, 3, 6):
            failpoints.arm(f"backup.*=error:{code}@{number}")
            try:
                with pytest.raises(errors.StorageFull if code == "ENOSPC" else errors.Unavailable):
                    db.backup(tmp_path / "b")
            finally:
                failpoints.install(before)
            assert vecdb.list_backups(tmp_path / "b") == []
        db.backup(tmp_path / "b")
        assert vecdb.verify_backups(tmp_path / "b").ok
        assert {name: everything(db.get_collection(name)) for name in held} == held
