"""A copy that was declared whole and is not in its place yet: it takes the place of the file that it was made of, and of no
other."""

from __future__ import annotations

import shutil

import lmdb
import pytest
import store_rows
from store_rows import filled, names

from vecdb import errors, layout
from vecdb.store import file_problems, settle


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


def _pending(folder, monkeypatch, **more):
    """A store that was closed between two files: (what it holds, the folder of the copy)."""
    store, model = filled(folder, 300)
    store_rows.put(store, {"r1": 1, **more})
    store_rows.purge(store)
    model |= more
    store_rows.close_between(store, monkeypatch)
    return model, folder / layout.COMPACTED_FOLDER


def _problems(folder):
    return file_problems(folder, lambda _: store_rows.PLAIN, store_rows.OPTIONS)


def _read(folder):
    store = store_rows.reopen(folder, read_only=True)
    try:
        with store.read() as reader:
            return reader.state()
    finally:
        store.close()


def _flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0xFF
    path.write_bytes(raw)


def _holds(folder, model):
    store = store_rows.reopen(folder)
    store_rows.assert_holds(store, model)
    store.close()
    assert store_rows.files(folder) == {layout.DATA_FILE, layout.LMDB_LOCK_FILE}


def _refused(folder):
    """Opening, check and repair name both files, and nothing has changed."""
    before = {p: p.read_bytes() for p in folder.rglob(layout.DATA_FILE)}
    for call in (store_rows.reopen, settle):
        with pytest.raises(errors.Corrupted, match="is not made of") as caught:
            call(folder)
        assert "Move " in caught.value.message
    (problem,) = _problems(folder)
    assert problem == caught.value.message
    assert {p: p.read_bytes() for p in folder.rglob(layout.DATA_FILE)} == before
    return problem


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("finish", [store_rows.reopen, settle])
def test_beside_its_source_it_is_moved_in(folder, monkeypatch, noted, finish):
    """As a crash leaves it, with the note of its source and as earlier versions made it; whatever else came into its folder."""
    model, made = _pending(folder, monkeypatch)
    whole = (made / layout.DATA_FILE).read_bytes()
    assert _problems(folder) == []
    if not noted:
        (made / layout.COPIED_FROM_FILE).unlink()
    (made / ".nfs0001").touch()
    opened = finish(folder)
    if opened is not None:
        opened.close()
    assert (folder / layout.DATA_FILE).read_bytes() == whole
    _holds(folder, model)


@pytest.mark.parametrize("noted", [True, False])
def test_beside_a_newer_file_it_is_refused(folder, monkeypatch, noted):
    """An older copy, as a copy of the folder over another leaves it, does not take the place of what was acknowledged since."""
    model, made = _pending(folder, monkeypatch)
    kept = folder.with_name("kept")
    shutil.copytree(made, kept)
    if not noted:
        (kept / layout.COPIED_FROM_FILE).unlink()
    store = store_rows.reopen(folder)
    store_rows.put(store, names(50_000, 20))
    store.close()
    shutil.copytree(kept, made)
    problem = _refused(folder)
    state = _read(folder)
    assert f"commit {state.sequence} with {state.live} records" in problem
    assert f"commit {state.sequence - 1} with {state.live - 20} records" in problem
    shutil.rmtree(made)
    _holds(folder, model | names(50_000, 20))


@pytest.mark.parametrize("noted", [True, False])
def test_that_of_another_collection_is_refused(folder, monkeypatch, noted):
    """Though it has as many commits and records."""
    model, made = _pending(folder, monkeypatch, r2=8)
    _holds(folder, model)
    _, other = _pending(folder.with_name("other"), monkeypatch, r2=7)
    shutil.copytree(other, made)
    if not noted:
        (made / layout.COPIED_FROM_FILE).unlink()
    assert _read(folder)[:3] == _read(made)[:3]
    _refused(folder)


def test_what_the_note_says_counts_more_than_what_the_tables_hold(folder, monkeypatch):
    """A file that was written to since, and holds what the copy holds, is not its source: nothing may have been."""
    _, made = _pending(folder, monkeypatch)
    for noted in (True, False):
        if not noted:
            (made / layout.COPIED_FROM_FILE).unlink()
        kept = folder.with_name(f"kept-{noted}")
        shutil.copytree(made, kept)
        shutil.rmtree(made)
        environment = lmdb.open(str(folder), max_dbs=16)
        with environment.begin(write=True) as transaction:
            transaction.delete(b"nothing of ours")
            transaction.put(b"nothing of ours", b"")
        environment.close()
        shutil.copytree(kept, made)
        if noted:
            _refused(folder)
        else:
            assert _problems(folder) == []


def test_beside_a_source_that_was_damaged_since(folder, monkeypatch):
    """The copy is whole all the same, as that of a repair is beside the damaged file that it was made of."""
    model, made = _pending(folder, monkeypatch)
    _flip(folder / layout.DATA_FILE, 5 * 4_096 + 12)
    assert made.is_dir()
    _holds(folder, model)


@pytest.mark.parametrize("noted", [True, False])
def test_beside_a_damaged_file_of_which_nobody_knows(folder, monkeypatch, noted):
    """Where the note does not speak of it, the damaged one may be the newer: it is for people to say. What an earlier version
    has repaired has no note, and is moved in."""
    model, made = _pending(folder, monkeypatch)
    if not noted:
        (made / layout.COPIED_FROM_FILE).unlink()
    for page in (0, 1):
        _flip(folder / layout.DATA_FILE, page * 4_096 + 20)
    if noted:
        assert "data.mdb is damaged" in _refused(folder)
    else:
        _holds(folder, model)


def test_a_damaged_copy_is_named(folder, monkeypatch):
    """A check looks at the copy that will be served, not only at the file that goes; a repair keeps the sound one."""
    model, made = _pending(folder, monkeypatch)
    _flip(made / layout.DATA_FILE, 4_096 + 20)
    problems = _problems(folder)
    assert problems
    assert all(one.startswith(f"{made}, which is to take the place of") for one in problems)
    settle(folder)
    _holds(folder, model)
