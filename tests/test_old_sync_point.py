"""A sync point that does not lead to whole pages: an older one beside a newer file, or one whose pages are damaged. Nothing is
undone for it, and a repair takes what is less damaged."""

from __future__ import annotations

import errno
import shutil

import pytest
import store_rows
from store_rows import names

from vecdb import errors, layout
from vecdb.store import pages, settle, sync_point

LAZY = {"durability": "interval", "durability_interval_ms": 60_000.0}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for a store; whoever opens it for writing finds that the machine was started anew."""
    monkeypatch.setattr(sync_point, "boot_id", lambda: b"one")
    return tmp_path / "store"


def _flushed(folder):
    """An open store with two synced commits, and what it holds."""
    store_rows.create(folder).close()
    store = store_rows.reopen(folder, **LAZY)
    model = names(0, 200)
    store_rows.put(store, model)
    store.flush()
    return store, model


def _metas(folder):
    return [meta.transaction for meta in pages.PageFile(folder / layout.DATA_FILE).metas()]


def _leaves(folder, meta):
    """Pages of the table `ids` at a commit; all of a meta of LMDB, or None for the newest."""
    file = pages.PageFile(folder / layout.DATA_FILE)
    main = pages.Tree.parse(meta, 24 + pages.TREE_BYTES)[0] if meta else file.metas()[0].main
    trees = file.subtrees(file.walk(main, pages.MAIN).entries)
    return set(file.walk(trees["ids"], "ids").entries.pages.tolist())


def _zero(folder, page):
    with open(folder / layout.DATA_FILE, "r+b") as file:
        file.seek(page * 4_096)
        file.write(bytes(4_096))


def test_an_older_one_whose_pages_were_written_over(folder, monkeypatch):
    """Opening is refused and changes no byte, though both meta pages were to be overwritten; a repair goes on with the file,
    of which nothing is lost."""
    store, model = _flushed(folder)
    old = folder.with_name("old.point")
    shutil.copy(folder / layout.SYNC_POINT_FILE, old)
    for turn in range(8):
        more = names(1_000 + 100 * turn, 100)
        store_rows.put(store, more)
        store.flush()
        model |= more
    store.close()
    shutil.copy(old, folder / layout.SYNC_POINT_FILE)
    monkeypatch.setattr(sync_point, "boot_id", lambda: b"another")
    whole = (folder / layout.DATA_FILE).read_bytes()
    for _ in range(2):
        with pytest.raises(errors.Corrupted, match=r"leads to LMDB transaction.*--repair"):
            store_rows.reopen(folder)
        assert (folder / layout.DATA_FILE).read_bytes() == whole
    assert old.read_bytes() == (folder / layout.SYNC_POINT_FILE).read_bytes()
    settle(folder)
    assert not (folder / layout.SYNC_POINT_FILE).exists()
    store = store_rows.reopen(folder)
    store_rows.assert_holds(store, model)
    store.close()


@pytest.mark.parametrize("worse", ["the file", "the point"])
def test_a_repair_takes_what_is_less_damaged(folder, monkeypatch, worse):
    """After a power cut, where pages are damaged besides, it goes back to the synced commit, unless the file as it is has
    fewer such pages."""
    store, _ = _flushed(folder)
    for turn in range(3):
        store_rows.put(store, names(5_000 + 300 * turn, 300))
    left = folder.with_name("left")
    shutil.copytree(folder, left)
    store.close()
    point = sync_point.newest(left)
    newest = max(_metas(left))
    assert newest > point.transaction
    here, there = _leaves(left, None), _leaves(left, point.meta)
    shared, only = (here & there, here - there) if worse == "the file" else (set(), there - here)
    damaged = [*sorted(shared)[:1], *sorted(only)[:2]]
    assert only
    for page in damaged:
        _zero(left, page)
    if worse == "the file" and not shared:
        _zero(left, min(there))
    monkeypatch.setattr(sync_point, "boot_id", lambda: b"another")
    with pytest.raises(errors.Corrupted, match="leads to LMDB transaction"):
        store_rows.reopen(left)
    settle(left)
    assert max(_metas(left)) == (point.transaction if worse == "the file" else newest)


def test_one_that_leads_to_whole_pages_is_gone_back_to(folder, monkeypatch):
    """Whatever the file says by itself, of which both metas may be damaged."""
    store, model = _flushed(folder)
    store_rows.put(store, names(5_000, 300))
    left = folder.with_name("left")
    shutil.copytree(folder, left)
    store.close()
    with open(left / layout.DATA_FILE, "r+b") as file:
        for page in (0, 1):
            file.seek(page * 4_096 + 16)
            file.write(bytes(layout.LMDB_META.size))
    monkeypatch.setattr(sync_point, "boot_id", lambda: b"another")
    store = store_rows.reopen(left)
    store_rows.assert_holds(store, model)
    store.close()


def test_one_that_cannot_be_removed_is_removed_later(folder, monkeypatch):
    """A sync point that outlives its removal is tried again by whoever needs it gone, and by the end."""
    store, model = _flushed(folder)
    point = folder / layout.SYNC_POINT_FILE
    assert point.is_file()

    def refused(path):
        raise OSError(errno.EROFS, "read-only")

    forget = sync_point.forget
    monkeypatch.setattr(sync_point, "forget", refused)
    with pytest.raises(errors.Internal):
        store.vacuum()
    with pytest.raises(errors.Internal):
        store.vacuum()
    assert point.is_file()
    monkeypatch.setattr(sync_point, "forget", forget)
    store.close()
    assert not point.exists()
    monkeypatch.setattr(sync_point, "boot_id", lambda: b"two")
    store = store_rows.reopen(folder, **LAZY)
    store_rows.assert_holds(store, model)
    store.close()
