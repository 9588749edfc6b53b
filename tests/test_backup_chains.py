"""What a backup may continue: only what the collection still is, and only where all of it is still there."""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from backup_rows import everything, filled
from test_format import unpacked

import vecdb
from vecdb import errors, failpoints
from vecdb.backup import taking
from vecdb.backup.target import FolderTarget
from vecdb.layout import META_EPOCHS
from vecdb.store import epoch_of, epochs, sync_point

OPENED = {"auto_build": False, "history_s": 0.0}
SAVED = Path(__file__).parent / "data" / "format-1.tar.gz"


def goes_on(folder, target, *, compacts=True, width=4):
    """Writes three commits, of which the last rows are compacted away, and backs up; the part of docs. It is continued
    by another, and what the collection then holds is what is restored."""
    with vecdb.open(folder, **OPENED) as db:
        docs = db.get_collection("docs")
        docs.insert(["new1", "new2"], np.full((2, width), 5.0))
        docs.insert(["gone"], np.full((1, width), 7.0))
        docs.delete(["gone"])
        if compacts:
            assert docs.compact().purged_rows
        made = {part.name: part for part in db.backup(target).collections}
        docs.delete(["new2"])
        after = {part.name: part for part in db.backup(target, kind="incremental").collections}
        assert after["docs"].since == made["docs"].sequence
        held = everything(docs)
    assert vecdb.verify_backups(target).problems == []
    restored = folder.parent / "restored"
    vecdb.restore(target, restored)
    with vecdb.open(restored, auto_build=False) as db:
        assert everything(db.get_collection("docs")) == held
        assert db.get_collection("docs").check().ok
    return made["docs"]


@pytest.mark.parametrize("shown_by", ["nothing in the log", "equal times in the log"])
def test_files_that_were_set_back_and_went_another_way(
    data_folder, tmp_path, monkeypatch, shown_by
):
    """A copy that was put in the place of what was backed up is told from it, whether or not the log can tell."""
    if shown_by == "equal times in the log":  # as while the clock is behind them
        monkeypatch.setattr("vecdb.store.collection_store.time.time_ns", lambda: 10**18)
    with vecdb.open(data_folder, **OPENED) as db:
        filled(db, rows=20)
    shutil.copytree(data_folder, tmp_path / "copy")
    with vecdb.open(data_folder, **OPENED) as db:
        db.get_collection("docs").insert(["lost1", "lost2"], np.ones((2, 4)))
        db.backup(tmp_path / "b")
    shutil.rmtree(data_folder)
    (tmp_path / "copy").rename(data_folder)
    part = goes_on(data_folder, tmp_path / "b", compacts=shown_by == "nothing in the log")
    assert part.since == 0


def test_commits_that_a_power_cut_took(data_folder, tmp_path, monkeypatch):
    """What a process that only reads has backed up, and a power cut has taken, is not continued."""
    lazy = {**OPENED, "durability": "interval", "durability_interval_ms": 60_000}
    with vecdb.open(data_folder, **OPENED) as db:
        filled(db, rows=20)
    with vecdb.open(data_folder, **lazy) as db:
        docs = db.get_collection("docs")
        docs.insert(["lost1", "lost2"], np.ones((2, 4)))
        assert docs.stats().synced_sequence == 1
        shutil.copytree(data_folder, tmp_path / "cut")
    with vecdb.open(tmp_path / "cut", read_only=True) as reader:
        assert reader.backup(tmp_path / "b").collections[0].sequence == 2
    monkeypatch.setattr(sync_point, "boot_id", lambda: b"another")
    assert goes_on(tmp_path / "cut", tmp_path / "b").since == 0


def test_a_backup_holds_nothing_that_a_power_cut_takes(data_folder, tmp_path):
    """With durability `interval` all that is backed up is on the disk before it is copied."""
    with vecdb.open(
        data_folder, **OPENED, durability="interval", durability_interval_ms=60_000
    ) as db:
        docs = filled(db, rows=20)
        docs.insert(["more"], np.ones((1, 4)))
        assert docs.stats().synced_sequence < 2
        seen = []
        db.backup(tmp_path / "b", progress=lambda _: seen.append(docs.stats().synced_sequence))
        assert seen[0] == 2


def test_a_commit_that_is_seen_before_it_has_come_back_is_synced_too(data_folder, monkeypatch):
    """Readers see a commit while its thread waits to run on: whoever flushes then waits for it."""
    seen, goes_on_again = threading.Event(), threading.Event()

    def hook(name, _):
        if name == "rows.commit.after":
            seen.set()
            assert goes_on_again.wait(60)

    with vecdb.open(
        data_folder, **OPENED, durability="interval", durability_interval_ms=60_000
    ) as db:
        docs = filled(db, rows=20)
        docs.flush()
        synced = []

        def flush():
            docs._core.store.flush()
            synced.append(docs._core.store.synced_sequence)

        with monkeypatch.context() as patch:
            patch.setattr(failpoints, "hook", hook)
            threads = [threading.Thread(target=docs.insert, args=(["more"], np.ones((1, 4))))]
            threads[0].start()
            assert seen.wait(60)
            threads.append(threading.Thread(target=flush))
            threads[1].start()
            threads[1].join(0.2)
            goes_on_again.set()
            for thread in threads:
                thread.join(60)
        assert synced == [2]


def test_what_was_restored_is_continued(data_folder, tmp_path):
    """A restored collection has an empty log: the second backup of it holds what came since, also where nothing did."""
    with vecdb.open(data_folder, **OPENED) as db:
        filled(db, rows=20)
        db.backup(tmp_path / "b")
    vecdb.restore(tmp_path / "b", tmp_path / "restored")
    with vecdb.open(tmp_path / "restored", **OPENED) as db:
        parts = [db.backup(tmp_path / "c").collections[0] for _ in range(2)]
        db.get_collection("docs").insert(["new"], np.ones((1, 4)))
        parts.append(db.backup(tmp_path / "c").collections[0])
    assert [(part.since, part.sequence) for part in parts] == [(0, 1), (1, 1), (1, 2)]
    assert vecdb.verify_backups(tmp_path / "c").problems == []
    kinds = [info.kind for info in vecdb.list_backups(tmp_path / "c")]
    assert kinds == ["full", "incremental", "incremental"]


def test_what_no_epoch_tells_is_continued_while_nothing_is_written(data_folder, tmp_path):
    """As of a collection that an earlier version has written and compacted: it is copied once, and once more when this one
    has written."""
    with vecdb.open(data_folder, **OPENED) as db:
        docs = filled(db, rows=20)
        docs.insert(["gone"], np.ones((1, 4)))
        docs.delete(["gone"])
        docs.compact()
        env = docs._core.store._env
        env.write(lambda txn: txn.delete(META_EPOCHS, db=env.table("meta")), "rows")
    with vecdb.open(data_folder, **OPENED) as db:
        since = [db.backup(tmp_path / "b").collections[0].since for _ in range(2)]
        db.get_collection("docs").insert(["new"], np.ones((1, 4)))
        since += [db.backup(tmp_path / "b").collections[0].since for _ in range(2)]
    assert since == [0, 3, 0, 4]


def test_a_backup_fails_where_its_commits_cannot_be_synced(data_folder, tmp_path, monkeypatch):
    """What cannot be brought to the disk is in no backup: the call says so, and writes nothing."""
    with vecdb.open(data_folder, **OPENED) as db:
        docs = filled(db, rows=20)

        def fails():
            raise errors.ReadOnly("syncing failed")

        with monkeypatch.context() as patched:
            patched.setattr(docs._core.store, "flush", fails)
            with pytest.raises(errors.ReadOnly, match="syncing failed"):
                db.backup(tmp_path / "b")
        assert vecdb.list_backups(tmp_path / "b") == []


def test_a_downgrade_is_not_continued(tmp_path):
    """The older file that `downgrade` puts back is not what the newer one was, whatever was written to it since."""
    folder = unpacked(SAVED, tmp_path)
    with vecdb.open(folder, **OPENED) as db:
        db.get_collection("docs").insert(["lost1", "lost2"], np.ones((2, 4)))
        db.backup(tmp_path / "b")
    assert vecdb.downgrade(folder)[0].format == 1
    assert goes_on(folder, tmp_path / "b").since == 0


def test_what_was_compacted_is_continued(data_folder, tmp_path):
    """However often it was opened, vacuumed and backed up between: what only went on needs no full backup."""
    with vecdb.open(data_folder, **OPENED) as db:
        filled(db, rows=20)
    since = []
    for n in range(3):
        with vecdb.open(data_folder, **OPENED) as db:
            docs = db.get_collection("docs")
            docs.upsert([f"r{n}"], np.ones((1, 4)))
            since.append(db.backup(tmp_path / "b").collections[0].since)
            docs.upsert([f"r{n}"], np.full((1, 4), 2.0))
            docs.compact()
            with docs._core.read() as reader:
                assert next(reader.log(0), None) is None
            since.append(db.backup(tmp_path / "b").collections[0].since)
    assert since == [0, 2, 3, 4, 5, 6]
    assert goes_on(data_folder, tmp_path / "b").since == 7


def test_epochs_are_bounded_and_a_damaged_record_names_none(data_folder, monkeypatch):
    """The newest openings are remembered; a record that fails its checksum is begun anew."""
    monkeypatch.setattr(epochs, "MOST", 3)
    with vecdb.open(data_folder, **OPENED) as db:
        filled(db, rows=2)
    for n in range(5):
        with vecdb.open(data_folder, **OPENED) as db:
            docs = db.get_collection("docs")
            docs.upsert(["r0"], np.full((1, 4), n + 1.0))
            docs.upsert(["r1"], np.full((1, 4), n + 1.0))
    with vecdb.open(data_folder, **OPENED) as db:
        store = db.get_collection("docs")._core.store
        with store.read() as reader:
            names = [epoch_of(reader, sequence) for sequence in range(13)]
        assert names[:6] == [""] * 6
        assert len(set(names[6:])) == 3
        assert names[6::2][:3] == names[7::2][:3]
        damaged = b"\0" * 20
        store._env.write(
            lambda txn: txn.put(META_EPOCHS, damaged, db=store._env.table("meta")), "rows"
        )
        with store.read() as reader:
            assert epoch_of(reader, 11) == ""
        db.get_collection("docs").upsert(["r0"], np.ones((1, 4)))
        with store.read() as reader:
            assert (epoch_of(reader, 11), len(epoch_of(reader, 12))) == ("", 16)
        assert db.get_collection("docs").check().ok


@pytest.mark.parametrize("lost", ["a backup", "a manifest", "a file", "the end of a file", "a bit"])
def test_a_chain_that_is_not_whole_is_not_continued(data_folder, tmp_path, caplog, lost):
    """Where anything is gone that an increment would need, `auto` takes a full backup and says why, and
    `incremental` says what is missing and what to do."""
    with vecdb.open(data_folder, **OPENED) as db:
        docs = filled(db, rows=20)
        first = db.backup(tmp_path / "b").id
        docs.delete(["r1"])
        db.backup(tmp_path / "b")
        folder = tmp_path / "b" / first
        chunk = next(folder.glob("*.chunk"))
        if lost == "a backup":
            shutil.rmtree(folder)
        elif lost == "a manifest":
            (folder / "manifest.json").unlink()
        elif lost == "a file":
            chunk.unlink()
        elif lost == "the end of a file":
            chunk.write_bytes(chunk.read_bytes()[:-1])
        else:
            manifest = folder / "manifest.json"
            manifest.write_bytes(manifest.read_bytes().replace(b'"docs"', b'"dots"', 1))
        docs.delete(["r2"])
        with pytest.raises(errors.BackupDamaged, match=f"{first}.*take a full backup"):
            db.backup(tmp_path / "b", kind="incremental")
        with caplog.at_level(logging.WARNING, "vecdb"):
            info = db.backup(tmp_path / "b")
        assert info.kind == "full"
        assert first in caplog.text
        docs.delete(["r3"])
        assert db.backup(tmp_path / "b", kind="incremental").parent == info.id
        db.restore(tmp_path / "b", collections={"docs": "again"})
        assert everything(db.get_collection("again")) == everything(docs)


@pytest.mark.parametrize("told_by", ["the epoch", "the repair"])
@pytest.mark.parametrize("writes", [0, 1])
def test_a_repair_is_not_continued(data_folder, tmp_path, monkeypatch, told_by, writes):
    """After a repair that has left a record out the collection is taken in full, also when the backup before is of
    a version that named no epochs."""
    with vecdb.open(data_folder, **OPENED) as db:
        docs = db.create_collection("docs", dimension=4)
        names = [f"r{n}" for n in range(20)]
        docs.insert(names, np.eye(20, 4) + 1, documents=[f"DOCUMENT-{n:04d}" for n in range(20)])
        docs.upsert(["r1"], np.ones((1, 4)))
        with monkeypatch.context() as patched:
            if told_by == "the repair":
                patched.setattr(taking, "epoch_of", lambda *_: "")
            db.backup(tmp_path / "b")
        path = docs._core.store.folder / "data.mdb"
    path.write_bytes(path.read_bytes().replace(b"DOCUMENT-0007", b"NO-LONGER-IT!"))
    assert any(one.repaired for one in vecdb.check(data_folder, repair=True))
    with vecdb.open(data_folder, **OPENED) as db:
        docs = db.get_collection("docs")
        assert docs.count() == 19
        for n in range(writes):
            docs.insert([f"new{n}"], np.ones((1, 4)))
        assert db.backup(tmp_path / "b").collections[0].since == 0
        assert vecdb.verify_backups(tmp_path / "b").problems == []
        db.restore(tmp_path / "b", collections={"docs": "again"})
        assert everything(db.get_collection("again")) == everything(docs)


def test_what_prune_takes_while_a_manifest_is_written(data_folder, tmp_path, monkeypatch):
    """An increment whose chain is pruned behind the last look at it, before others see the increment, is none."""
    with vecdb.open(data_folder, **OPENED) as db:
        docs = filled(db, "docs", rows=20)
        filled(db, "other", rows=20)
        db.backup(tmp_path / "b", collections=["docs"])
        kept = db.backup(tmp_path / "b", collections=["other"], kind="full").id
        docs.delete(["r1"])
        write = FolderTarget.write

        def racing(target, path, parts):
            if path.endswith("manifest.json"):
                assert len(vecdb.prune_backups(tmp_path / "b", keep=1)) == 1
            return write(target, path, parts)

        with monkeypatch.context() as patched:
            patched.setattr(FolderTarget, "write", racing)
            with pytest.raises(errors.Unavailable, match="was removed while"):
                db.backup(tmp_path / "b", collections=["docs"])
        assert [one.id for one in vecdb.list_backups(tmp_path / "b")] == [kept]
        assert vecdb.verify_backups(tmp_path / "b").ok
