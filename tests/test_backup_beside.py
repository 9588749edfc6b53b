"""Backups beside what changes meanwhile: a prune, an increment, a catalog that is put back; and beside what others have there."""

from __future__ import annotations

import os
import shutil

import pytest
from backup_rows import everything, filled

import vecdb
from vecdb import layout
from vecdb.backup import retention
from vecdb.backup.target import FolderTarget

OPENED = {"auto_build": False, "device": "cpu"}


def test_what_nobody_may_look_into_is_passed_over(data_folder, tmp_path, monkeypatch):
    """A target may be the top folder of a disk, with a lost+found that only root may read."""
    lost = tmp_path / "b" / "lost+found"
    lost.mkdir(parents=True)
    scandir = os.scandir

    def looked(path):
        if os.fspath(path) == str(lost):
            raise PermissionError(13, "Permission denied", str(lost))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", looked)
    with vecdb.open(data_folder, **OPENED) as db:
        filled(db, rows=20)
        made = db.backup(tmp_path / "b").id
        assert [one.id for one in vecdb.list_backups(tmp_path / "b")] == [made]
        assert vecdb.verify_backups(tmp_path / "b").ok
        db.restore(tmp_path / "b", collections={"docs": "again"})
        assert vecdb.prune_backups(tmp_path / "b", keep=1) == []


@pytest.mark.parametrize("gone", ["folder", "file"])
def test_backups_are_seen_while_another_goes(data_folder, tmp_path, monkeypatch, gone):
    """What is removed between two looks is not there; all others are."""
    with vecdb.open(data_folder, **OPENED) as db:
        filled(db, rows=20)
        ids = [db.backup(tmp_path / "b", kind="full").id for _ in range(3)]
    scandir = os.scandir

    def looked(path):
        found = list(scandir(path)) if gone == "file" else None
        if not isinstance(path, int) and os.path.basename(path) == ids[1]:
            os.rename(path, tmp_path / "gone")
        return scandir(path) if found is None else iter(found)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", looked)
        found = FolderTarget(tmp_path / "b").backups()
    assert [one for one in ids if found.get(one)] == [ids[0], ids[2]]
    assert [one.id for one in vecdb.list_backups(tmp_path / "b")] == [ids[0], ids[2]]


def test_a_chain_that_is_continued_while_others_are_pruned_stays(
    data_folder, tmp_path, monkeypatch
):
    """An increment that is acknowledged while another chain is removed keeps its own: it is the newest."""
    target = tmp_path / "b"
    with vecdb.open(data_folder, **OPENED) as db:
        docs = filled(db, "docs", rows=20)
        filled(db, "other", rows=20)
        old = db.backup(target, kind="full").id
        full = db.backup(target, collections=["docs"], kind="full").id
        kept = db.backup(target, collections=["other"], kind="full").id
        made = []

        def slowly(opened, backup):
            remove(opened, backup)
            if not made:
                docs.delete(["r1"])
                made.append(db.backup(target, collections=["docs"], kind="incremental").id)

        remove = retention.remove
        monkeypatch.setattr(retention, "remove", slowly)
        assert vecdb.prune_backups(target, keep=1) == [old]
        monkeypatch.undo()
        assert [one.id for one in vecdb.list_backups(target)] == [full, kept, *made]
        assert vecdb.verify_backups(target).ok
        db.restore(target, collections={"docs": "again"})
        assert everything(db.get_collection("again")) == everything(docs)
        assert set(vecdb.prune_backups(target, keep=1)) == {kept}


def test_what_was_restored_is_no_litter(data_folder, tmp_path):
    """A catalog of before, put in place of a lost one, names a restored collection as little as one that was made; both
    stay, also where nobody has opened them."""
    with vecdb.open(data_folder, **OPENED) as db:
        filled(db, rows=20)
        db.backup(tmp_path / "b")
    shutil.copytree(data_folder / layout.CATALOG_FOLDER, tmp_path / "before")
    with vecdb.open(data_folder, **OPENED) as db:
        db.restore(tmp_path / "b", collections={"docs": "again"})
    folders = {path.name for path in (data_folder / layout.COLLECTIONS_FOLDER).iterdir()}
    assert len(folders) == 2
    shutil.rmtree(data_folder / layout.CATALOG_FOLDER)
    shutil.copytree(tmp_path / "before", data_folder / layout.CATALOG_FOLDER)
    with vecdb.open(data_folder, **OPENED) as db:
        assert db.collection_names() == ["docs"]
    assert {path.name for path in (data_folder / layout.COLLECTIONS_FOLDER).iterdir()} == folders
    for path in (data_folder / layout.COLLECTIONS_FOLDER).iterdir():
        assert not (path / layout.UNNAMED_FILE).exists()
