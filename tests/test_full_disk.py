"""What is seldom done, on a disk that is full: upgrades and repairs are refused, change nothing, and can be done later."""

from __future__ import annotations

import faults
import numpy as np
import pytest
from test_damage import data_file, spoil
from test_format import SAVED, formats, unpacked
from test_repair import digests, problems

import vecdb
from vecdb import errors


def counts(db):
    return [db.get_collection(info.name).count() for info in db.list_collections()]


def test_an_upgrade_on_a_full_disk(tmp_path):
    """Without room for the copy an older collection is StorageFull for who would write, and read by who would not; with
    room it is upgraded."""
    with faults.small_disk(tmp_path / "disk") as disk:
        old = unpacked(SAVED[0], disk)
        with vecdb.open(old, read_only=True) as db:
            names, before = [info.name for info in db.list_collections()], counts(db)
        faults.fill(disk)
        with vecdb.open(old, auto_build=False) as db:
            for name in names:
                with pytest.raises(errors.StorageFull, match="keep_old_format"):
                    db.get_collection(name)
        assert formats(old) == {1}
        assert not list(old.rglob("data.format-*"))
        with vecdb.open(old, read_only=True) as db:
            assert counts(db) == before
        faults.free(disk)
        with vecdb.open(old, auto_build=False) as db:
            assert counts(db) == before
        assert formats(old) == {2}


def test_a_repair_on_a_full_disk(tmp_path):
    """Without room for the new file a repair says so, changes no byte and leaves no litter; with room it is done, and
    names what is lost."""
    with faults.small_disk(tmp_path / "disk") as disk:
        with vecdb.open(disk / "db", auto_build=False) as db:
            docs = db.create_collection("docs", dimension=64)
            ids = [f"r{n}" for n in range(4_000)]
            vectors = np.random.default_rng(0).random((4_000, 64), np.float32)
            docs.insert(ids, vectors, documents=[f"words of {i}." for i in ids])
        path = data_file(disk / "db")
        spoil(path, path.read_bytes().index(b"words of r77."))
        before = digests(disk / "db")
        # Neither for the list of what is lost; for that, but not for the new file.
        for room in (0, 64 << 10):
            faults.fill(disk, but=room)
            _, docs = vecdb.check(disk / "db", repair=True)
            assert not docs.repaired
            assert "no space left" in docs.done[0]
            faults.free(disk)
            assert digests(disk / "db") == before
        assert not [p for p in path.parent.iterdir() if p.name not in ("data.mdb", "lock.mdb")]
        _, docs = vecdb.check(disk / "db", repair=True)
        assert docs.repair.lost == ("r77",)
        assert not problems(vecdb.check(disk / "db"))
