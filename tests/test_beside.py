"""What lies beside the file of a collection: files of older formats that were kept, and the sync point. Damage to them
is named before they are needed, and nothing sound is given away for them."""

from __future__ import annotations

import errno
import os
import shutil

import numpy as np
import pytest
from test_format import SAVED, content, formats, unpacked, upgraded

import vecdb
from vecdb import disk, downgrading, layout
from vecdb.errors import Corrupted, LimitExceeded
from vecdb.store import sync_point
from vecdb_server import __main__ as command_line


@pytest.fixture
def old(tmp_path):
    """A database that was upgraded from format 1, and written since."""
    folder = unpacked(SAVED[0], tmp_path)
    upgraded(folder)
    with vecdb.open(folder, auto_build=False) as db:
        db.get_collection("docs").insert(["new"], [[1, 1, 1, 1]])
    return folder


def kept_files(folder):
    return sorted(folder.rglob("data.format-1.mdb"), key=lambda path: -path.stat().st_size)


@pytest.mark.parametrize("how", ["page", "row", "cut off", "another file"])
def test_a_damaged_kept_file_is_named_and_never_put_back(old, how, capsys):
    """Every check names it, a downgrade is refused before any collection is changed, a repair leaves all as it is, and
    without it all is well again."""
    path = kept_files(old)[0]
    raw = bytearray(path.read_bytes())
    if how == "page":
        raw[2 * 4_096 : 2 * 4_096 + 64] = b"\xff" * 64
    elif how == "row":
        text = "grün".encode()
        at = raw.find(text)
        while at >= 0:
            raw[at] ^= 1
            at = raw.find(text, at)
    elif how == "another file":
        raw = (path.parent / layout.DATA_FILE).read_bytes()
    path.write_bytes(raw[: len(raw) // 2] if how == "cut off" else raw)
    before = content(old)
    for repair in (False, True):
        docs = next(one for one in vecdb.check(old, repair=repair) if one.collection == "docs")
        (problem,) = docs.problems
        assert str(path) in problem
        assert "damaged" in problem
        assert (docs.ok, docs.repaired, docs.repair) == (False, False, None)
    with vecdb.open(old, read_only=True) as db:
        assert [str(path) in one for one in db.get_collection("docs").check().problems] == [True]
        assert db.get_collection("half").check().ok
    assert command_line.main(["check", "--data", str(old)]) == 4
    assert str(path) in capsys.readouterr().out
    with pytest.raises(Corrupted, match=r"'docs' cannot go back to format 1.*--discard") as raised:
        vecdb.downgrade(old)
    assert raised.value.details["collection"] == "docs"
    assert formats(old) == {layout.COLLECTION_FORMAT}
    assert content(old) == before
    assert len(kept_files(old)) == 2
    vecdb.discard_kept(old)
    assert all(one.ok for one in vecdb.check(old))


def test_sound_kept_files_are_nothing_to_tell_of(old):
    """A check of a database that can go back finds nothing, and changes nothing in its folder."""
    before = sorted(old.rglob("*"))
    assert all(one.ok for one in vecdb.check(old))
    assert sorted(old.rglob("*")) == before
    assert {one.format for one in vecdb.downgrade(old)} == {1}


def test_a_way_back_that_fails_at_its_end_is_undone(old, monkeypatch):
    """The newer file stays until the older one was opened: where that fails, both are where they were."""
    before, seen = content(old), downgrading._seen
    names = {path: path.stat().st_ino for path in old.rglob("data*.mdb")}
    calls = iter(range(100))

    def fails(made, *, read_only):
        if next(calls) == 4:  # after two looks at each of two collections
            raise LimitExceeded("no memory")
        return seen(made, read_only=read_only)

    with monkeypatch.context() as patched:
        patched.setattr(downgrading, "_seen", fails)
        with pytest.raises(LimitExceeded):
            vecdb.downgrade(old)
    assert {path: path.stat().st_ino for path in old.rglob("data*.mdb")} == names
    assert content(old) == before
    assert {one.format for one in vecdb.downgrade(old)} == {1}
    assert not [*old.rglob("data.*.mdb")]
    assert "new" not in content(old)["docs"][0][0]


def test_a_way_back_without_hard_links(old, monkeypatch):
    """File systems that have none can go back too."""

    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert {one.format for one in vecdb.downgrade(old)} == {1}
    assert formats(old) == {1}


def test_what_a_crash_leaves_of_a_way_back_goes_at_the_next_opening(old):
    """The newer file that was kept for the moment is removed, and does not come back."""
    made = kept_files(old)[0].parent
    disk.link(made / layout.DATA_FILE, made / layout.GOING_FILE, "test")
    assert all(one.ok for one in vecdb.check(old))
    upgraded(old)
    assert not (made / layout.GOING_FILE).exists()


@pytest.fixture
def unsynced(tmp_path):
    """The files of a database as a process leaves them that is killed at durability `interval`; its sync point."""
    settings = {"durability": "interval", "durability_interval_ms": 20, "auto_build": False}
    with vecdb.open(tmp_path / "open", **settings) as db:
        docs = db.create_collection("docs", dimension=4)
        for n in range(2):  # each slot has had its turn
            docs.insert([f"r{n}"], np.ones((1, 4)))
            docs.flush()
        docs.insert(["last"], np.ones((1, 4)))
        shutil.copytree(tmp_path / "open", tmp_path / "left")
    (path,) = (tmp_path / "left").rglob(layout.SYNC_POINT_FILE)
    return tmp_path / "left", path


def test_a_damaged_sync_point_is_named(unsynced):
    """A flipped bit in either slot, or one that is cut off: `check` says which, beside the database and offline, and
    opening for writing makes it anew."""
    left, path = unsynced
    assert all(one.ok for one in vecdb.check(left))
    whole = path.read_bytes()
    size = len(whole) // 2
    damaged = {
        "slot 0 fails": bytes([*whole[:20], whole[20] ^ 1, *whole[21:]]),
        "slot 1 fails": bytes([*whole[: size + 100], whole[size + 100] ^ 1, *whole[size + 101 :]]),
        "slot 1 is cut off": whole[:size],
        "slot 0 fails its checksum and slot 1 is cut off": whole[:100],
    }
    for said, raw in damaged.items():
        path.write_bytes(raw)
        (problem,) = vecdb.check(left)[1].problems
        assert said in problem
        assert str(path) in problem
        with vecdb.open(left, read_only=True) as db:
            assert [said in one for one in db.get_collection("docs").check().problems] == [True]
    with vecdb.open(left) as db:
        assert sorted(db.get_collection("docs").get().ids) == ["last", "r0", "r1"]
    assert not path.exists()
    assert all(one.ok for one in vecdb.check(left))


def test_a_sync_point_without_a_point_is_sound(unsynced):
    """So it begins: without a byte, of zeros, and with one point."""
    left, path = unsynced
    whole = path.read_bytes()
    size = len(whole) // 2
    for raw in (
        b"",
        bytes(2 * size),
        bytes(100),
        bytes(size) + whole[size:],
        whole[:size] + bytes(size),
    ):
        path.write_bytes(raw)
        assert sync_point.faults(path.parent) == []
    assert all(one.ok for one in vecdb.check(left))


def test_a_sync_point_that_is_written_meanwhile_is_looked_at_again(unsynced, monkeypatch):
    """Half a slot that is whole a moment later is no fault."""
    _, path = unsynced
    whole = path.read_bytes()
    path.write_bytes(whole[:50] + bytes(50) + whole[100:])
    assert sync_point.faults(path.parent)
    monkeypatch.setattr(sync_point.time, "sleep", lambda _: path.write_bytes(whole))
    assert sync_point.faults(path.parent) == []
