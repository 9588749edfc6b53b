"""Backups that claim more rows than anybody has written: what a reader asks memory for."""

from __future__ import annotations

import os
import tracemalloc

import numpy as np
import pytest
from backup_rows import everything, filled
from blake3 import blake3
from test_backup_damage import collection, rewrite

import vecdb
from vecdb import errors
from vecdb.backup import chunk

BYTES = 4 << 20
ROWS = 8 * BYTES


@pytest.fixture
def target(tmp_path):
    """A full backup of two records, in one file."""
    with vecdb.open(tmp_path / "db", auto_build=False) as db:
        filled(db, rows=2)
        db.backup(tmp_path / "b")
    return tmp_path / "b"


def claim(target, make, rows=ROWS):
    """The one file is what `make` writes to it, and the manifest says that it has so many rows."""
    (folder,) = target.iterdir()
    path = folder / "000001.chunk"
    make(path)

    def change_it(manifest):
        part = collection(manifest)
        (file,) = part["rows"]
        data = path.read_bytes()
        file.update(bytes=len(data), end=rows, blake3=blake3(data).hexdigest())
        part.update(next_row=rows, base_row=rows, base_sequence=part["sequence"], history=[])

    rewrite(target, folder.name, change_it)


def empty(path):
    path.write_bytes(b"")
    os.truncate(path, BYTES)


def empty_behind_heads(path):
    """Heads of groups that name all rows, and one section that takes no room."""
    heads = [
        b"".join(chunk.pack(first, first + (1 << 20), {"sums": bytes(4)}))
        for first in range(0, ROWS, 1 << 20)
    ]
    path.write_bytes(chunk.MAGIC + b"".join(heads))
    data = path.read_bytes()
    path.write_bytes(data + bytes(BYTES - len(data)))


@pytest.mark.parametrize("make", [empty, empty_behind_heads])
def test_rows_that_no_file_holds_take_no_memory(target, tmp_path, make):
    """A file that takes no room on the disk may have the right digest and say it has eight rows a byte: it is refused
    before a byte is asked for each of them."""
    claim(target, make)
    tracemalloc.start()
    try:
        report = vecdb.verify_backups(target)
        with pytest.raises(errors.BackupDamaged):
            vecdb.restore(target, tmp_path / "new")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not report.ok
    assert most < ROWS // 2


def test_a_file_of_which_nearly_no_row_is_left(tmp_path, monkeypatch):
    """Rows that were compacted away leave a bit each, which is less than rows take: such a backup is taken, verified and
    restored like any other."""
    monkeypatch.setattr("vecdb.backup.reading._FEW_ROWS", 1_000)
    with vecdb.open(tmp_path / "db", auto_build=False, history_s=0.0) as db:
        docs = db.create_collection("docs", dimension=4)
        docs.insert([f"r{n}" for n in range(3_000)], np.ones((3_000, 4)))
        docs.delete([f"r{n}" for n in range(2_900)])
        docs.compact()
        info = db.backup(tmp_path / "b")
        (held,) = info.collections
        assert held.rows == 3_000
        assert info.bytes < 16 * held.rows
        assert vecdb.verify_backups(tmp_path / "b").ok
        db.restore(tmp_path / "b", collections={"docs": "again"})
        assert everything(db.get_collection("again")) == everything(docs)
