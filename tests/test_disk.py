"""The door of durable steps, and the points beside each of them."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys

import pytest

import vecdb
from vecdb import disk, errors, failpoints
from vecdb.store import sync_point


@pytest.fixture(autouse=True)
def switched_off():
    """Whatever a test installs is gone after it."""
    yield
    failpoints.install(None)


def recorded():
    """The list that the names of reached points go to from here on."""
    names = []
    failpoints.install(lambda name, path: names.append(name))
    return names


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    """A file is written aside, synced and renamed, in this order; after an error nothing is left."""
    names = recorded()
    with disk.written_aside(tmp_path / "a", "x") as file:
        file.write(b"content")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"content"
    steps = ["write.before", "write.after", "sync.before", "sync.after", "rename.before"]
    assert names == [f"x.{step}" for step in [*steps, "rename.after"]]
    with (
        pytest.raises(ValueError, match="stopped"),
        disk.written_aside(tmp_path / "b", "x") as file,
    ):
        file.write(b"half")
        raise ValueError("stopped")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("point", ["write.before", "write.after", "sync.before", "sync.after"])
def test_a_step_that_fails_leaves_nothing(tmp_path, point):
    """An error at any step before the rename is raised as it is, and no file stays behind."""
    failpoints.arm(f"x.{point}=error:ENOSPC")
    with (
        pytest.raises(OSError, match="No space") as caught,
        disk.written_aside(tmp_path / "a", "x") as file,
    ):
        file.write(b"content")
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_the_mark_of_a_tree_goes_last(tmp_path):
    """Stopped before any of its removals, a tree that is being removed still holds the file named last."""
    for stop in range(1, 5):
        tree = tmp_path / str(stop)
        (tree / "inner").mkdir(parents=True)
        for name in ("a", "mark", "z", "inner/b"):
            (tree / name).touch()
        left = [stop]

        def broken(name, path, left=left):
            if name == "x.remove.before":
                left[0] -= 1
            if left[0] <= 0:
                raise OSError(errno.EIO, "broken")

        failpoints.install(broken)
        disk.remove_tree(tree, "x", last="mark")
        assert (tree / "mark").exists()
        failpoints.install(None)
        disk.remove_tree(tree, "x", last="mark")
        assert not tree.exists()


def test_removing_what_is_not_there(tmp_path):
    """A tree or file that is gone already is no error."""
    disk.remove_tree(tmp_path / "none", "x", last="mark")
    disk.remove(tmp_path / "none", "x")


def test_rules_count_their_hits(tmp_path):
    """`@N` means the N-th time that a matching point is reached, `@N+` each time from there on."""
    failpoints.arm("a.*=error:EIO@2, b.?=error:ENOSPC@2+")
    seen = []
    for name in ["a.x", "b.x", "a.y", "a.z", "b.y", "c", "b.z"]:
        try:
            failpoints.reach(name, tmp_path)
            seen.append(0)
        except OSError as error:
            seen.append(error.errno)
    assert seen == [0, 0, errno.EIO, 0, errno.ENOSPC, 0, errno.ENOSPC]


@pytest.mark.parametrize(
    "text", ["a", "a=", "=kill", "a=kill@0", "a=kill@x", "a=error:ENOTHING", "a=error", "a=record:"]
)
def test_wrong_rules_are_refused(text):
    """A rule that cannot be read is an error that shows it, not a point that never fires."""
    with pytest.raises(errors.InvalidSetting, match="expected NAME=kill"):
        failpoints.arm(text)


def test_armed_by_the_environment(tmp_path):
    """The variable arms a process from its start: it records each point, and is killed at the one named."""
    code = "import sys, vecdb; vecdb.open(sys.argv[1]).create_collection('c', dimension=2)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "data")],
        env=os.environ
        | {failpoints.VARIABLE: f"*=record:{tmp_path / 'names'},catalog.commit.after=kill@3"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    names = (tmp_path / "names").read_text().split()
    assert names[-1] == "catalog.commit.after"
    assert names.count("catalog.commit.after") == 3
    assert {"create.mkdir.before", "create.touch.after", "create.commit.before"} <= set(names)


def test_a_write_at_a_place_is_whole(tmp_path, monkeypatch):
    """What the system writes in parts is written to its end, between two points, and nothing else is changed."""
    names, write = recorded(), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, bytes(data)[:3], at))
    (tmp_path / "a").write_bytes(b"0123456789abc")
    with open(tmp_path / "a", "r+b") as file:
        disk.write_at(file.fileno(), b"ABCDEFGH", 2, tmp_path / "a", "x")
    assert (tmp_path / "a").read_bytes() == b"01ABCDEFGHabc"
    assert names == ["x.write.before", "x.write.after"]


@pytest.mark.parametrize("step", ["write.before", "write.after"])
@pytest.mark.parametrize("time", [1, 2])
def test_going_back_to_a_synced_commit_is_repeated_when_it_is_cut_short(
    tmp_path, monkeypatch, step, time
):
    """At durability `interval`, after the machine went down: an error at either of the two pages that are put back keeps
    the database from opening, and the next opening puts them back as a whole."""
    with vecdb.open(
        tmp_path / "db", durability="interval", durability_interval_ms=60_000.0, device="cpu"
    ) as db:
        docs = db.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 2]])
        docs.flush()
        docs.insert(["b"], [[3, 4]])
        shutil.copytree(tmp_path / "db", tmp_path / "left")
    monkeypatch.setattr(sync_point, "boot_id", lambda: b"another")
    failpoints.arm(f"recover.{step}=error:EIO@{time}")
    with vecdb.open(tmp_path / "left", device="cpu") as db:
        with pytest.raises((OSError, errors.VecdbError)):
            db.get_collection("docs")
        failpoints.arm("")
        assert db.get_collection("docs").check().ok
        assert db.get_collection("docs").get(["a"]).ids == ["a"]


def test_folders_made_on_the_way_are_durable(tmp_path, monkeypatch):
    """The names of all that were missing above a folder are synced, each in the one that has it."""
    synced = []
    monkeypatch.setattr(disk, "sync_folder", lambda path, what: synced.append(path))
    disk.make_folder(tmp_path / "a" / "b" / "c", "x", parents=True)
    assert synced == [tmp_path / "a", tmp_path]
    disk.make_folder(tmp_path / "a" / "b" / "c", "x", parents=True, exist_ok=True)
    disk.make_folder(tmp_path / "d", "x")
    assert len(synced) == 2
