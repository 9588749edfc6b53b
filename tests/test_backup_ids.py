"""Verification knows when an id is live in two rows, wherever these lie in a chain."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest
from backup_rows import change, filled
from blake3 import blake3
from seeds import RUN_SEED
from test_backup_damage import collection, ids_of, rewrite

import vecdb
from vecdb import errors
from vecdb.backup import chunk
from vecdb.backup.live_ids import LiveIds
from vecdb.store import Shape, StoredRows, checksums

SHAPE = Shape(4, "float32", ())


@pytest.fixture
def db(data_folder):
    with vecdb.open(data_folder, auto_build=False, history_s=0.0) as opened:
        yield opened


def rename_last(target, backup, record_id):
    """The last row that a backup holds gets another id, with all checksums and digests right."""
    path = max((target / backup).glob("*.chunk"), key=lambda p: (b"vectors:0" in p.read_bytes(), p))
    *first, last = chunk.groups(path.read_bytes())
    pieces = [chunk.unpack_rows(group, SHAPE) for group in (*first, last)]
    pieces[-1].rows.ids[-1] = record_id
    packed = [chunk.MAGIC]
    for piece in pieces:
        sums = np.array(checksums(piece.rows), np.uint32)
        packed += chunk.pack_rows(StoredRows(piece.first, piece.end, piece.held, piece.rows, sums))
    data = b"".join(bytes(memoryview(part).cast("B")) for part in packed)
    path.write_bytes(data)

    def change_it(manifest):
        file = next(f for f in collection(manifest)["rows"] if f["name"] == path.name)
        file.update(bytes=len(data), blake3=blake3(data).hexdigest())

    rewrite(target, backup, change_it)


def refused(target, tmp_path, backup):
    (problem,) = vecdb.verify_backups(target).problems
    assert backup in problem
    assert "is in two live rows" in problem
    with pytest.raises(errors.BackupDamaged, match="in two live rows"):
        vecdb.restore(target, tmp_path / "new", backup=backup)


def test_an_id_of_two_backups(db, tmp_path):
    """Live in the full backup and in an increment it is told, though each file is as it was written; the id of a record
    that had been deleted before may come again."""
    docs = filled(db, rows=50)
    db.backup(tmp_path / "b")
    docs.delete(["r3"])
    db.backup(tmp_path / "b")
    docs.insert(["last"], np.ones((1, 4)))
    last = db.backup(tmp_path / "b").id
    rename_last(tmp_path / "b", last, b"r3")
    assert vecdb.verify_backups(tmp_path / "b").ok
    vecdb.restore(tmp_path / "b", tmp_path / "fine")
    rename_last(tmp_path / "b", last, b"r4")
    refused(tmp_path / "b", tmp_path, last)


def test_an_id_of_two_groups(db, tmp_path, monkeypatch):
    """Rows of one backup that are checked one piece after the other are compared all the same."""
    monkeypatch.setattr("vecdb.backup.copying._GROUP_BYTES", 1_000)
    filled(db, rows=300)
    only = db.backup(tmp_path / "b").id
    rename_last(tmp_path / "b", only, b"r0")
    refused(tmp_path / "b", tmp_path, only)


def test_two_backups_that_continue_the_same(db, tmp_path):
    """Of each the ids are compared with those of the backups that it goes back to, not with those of the other one."""
    docs = filled(db, rows=20)
    db.backup(tmp_path / "b")
    shutil.copytree(tmp_path / "b", tmp_path / "other")
    docs.insert(["more"], np.ones((1, 4)))
    db.backup(tmp_path / "b")
    docs.delete(["r1"])
    second = db.backup(tmp_path / "other").id
    shutil.copytree(tmp_path / "other" / second, tmp_path / "b" / second)
    assert vecdb.verify_backups(tmp_path / "b").ok
    rename_last(tmp_path / "b", second, b"r1")
    assert vecdb.verify_backups(tmp_path / "b").ok
    rename_last(tmp_path / "b", second, b"r2")
    refused(tmp_path / "b", tmp_path, second)


def test_sound_chains_have_no_such_id(db, tmp_path, monkeypatch):
    """Whatever is written, replaced and deleted between backups, nothing is told of it."""
    print(f"seed {RUN_SEED}")
    monkeypatch.setattr("vecdb.backup.live_ids._ROWS_TOGETHER", 1)
    rng = random.Random(RUN_SEED)
    docs = db.create_collection("docs", dimension=4, vectors={"small": {"dimension": 2}})
    for _ in range(6):
        for _ in range(3):
            change(docs, rng, ids=20)
        db.backup(tmp_path / "b", kind=rng.choice(["auto", "auto", "full"]))
    report = vecdb.verify_backups(tmp_path / "b")
    assert (report.problems, report.backups) == ([], len(ids_of(tmp_path / "b")))


@pytest.mark.parametrize("together", [1, 7, 1 << 20])
def test_pairs_of_rows_with_one_id(together, monkeypatch):
    """What a plain dictionary finds is found, in whatever pieces rows come; of the dead nothing is remembered."""
    print(f"seed {RUN_SEED}")
    monkeypatch.setattr("vecdb.backup.live_ids._ROWS_TOGETHER", together)
    rng = random.Random(f"{RUN_SEED}{together}")
    ids, by_id, row = LiveIds(), {}, 0
    live = np.ones(10_000, np.bool_)
    for _ in range(20):
        dead = rng.sample(sorted(by_id), len(by_id) // 3)
        for one in dead:
            live[by_id.pop(one)] = False
        ids.keep(live)
        assert ids.met() == []
        twice = rng.random() < 0.3 and by_id
        fresh = [b"%d" % n for n in rng.sample(range(1_000), 40) if b"%d" % n not in by_id]
        if twice:
            again = rng.choice(sorted(by_id))
            fresh.insert(rng.randrange(len(fresh)), again)
        rows = np.arange(row, row + len(fresh))
        row += len(fresh)
        cut = rng.randrange(len(fresh))
        ids.add(fresh[:cut], rows[:cut])
        ids.add(fresh[cut:], rows[cut:])
        if twice:
            second = int(rows[fresh.index(again)])
            assert ids.met() == [(by_id[again], second)]
            live[by_id.pop(again)] = False
        by_id |= dict(zip(fresh, rows.tolist(), strict=True))
    assert ids.met() == []
