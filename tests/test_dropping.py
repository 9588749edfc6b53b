"""A drop that is cut short leaves a folder that the next opening removes, whatever else is under way."""

from __future__ import annotations

import errno
import os
import shutil
import threading

import pytest

import vecdb
from vecdb import failpoints, layout
from vecdb.collection_files import sweep_files
from vecdb.errors import Closed, CollectionNotFound, StorageFull

CUT_SHORT = "catalog.commit.after"
"""The point at which the catalog has forgotten the name and the folder is still there."""


@pytest.fixture
def dropped(data_folder, tmp_path):
    """Drops `docs` of an open database while `meanwhile` is done, once its folder is marked; the names in `collections` of
    what a kill would have left, after the next opening."""
    left = tmp_path / "left"

    def drop(db, meanwhile):
        def reached(name, path):
            if name == "drop.sync-folder.after" and not left.exists():
                meanwhile()
            elif name == CUT_SHORT:
                shutil.copytree(data_folder, left)

        before = failpoints.install(reached)
        try:
            db.drop_collection("docs")
        finally:
            failpoints.install(before)
        with vecdb.open(left, device="cpu") as again:
            assert again.collection_names() == []
            return [path.name for path in (left / layout.COLLECTIONS_FOLDER).iterdir()]

    return drop


def test_a_build_that_ends_beside_a_drop(data_folder, dropped):
    """It sweeps the files of indexes that were replaced, and leaves the mark of the drop."""
    with vecdb.open(data_folder, device="cpu", auto_build=False) as db:
        docs = db.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 2]])
        stray = docs._core.store.folder / "index-0123456789abcdef.rows"
        stray.touch()
        assert dropped(db, lambda: sweep_files(docs._core)) == []
        assert not stray.exists()


def test_an_opening_beside_a_drop(data_folder, dropped):
    """Whoever opens the collection while it is dropped waits, and finds it gone; the mark stays."""
    with vecdb.open(data_folder, device="cpu") as db:
        db.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
    said = []

    def look():
        try:
            db.get_collection("docs").count()
        except (Closed, CollectionNotFound) as error:
            said.append(error)

    looking = threading.Thread(target=look)

    def meanwhile():
        looking.start()
        looking.join(0.3)  # it must not end: with the mark gone it would

    with vecdb.open(data_folder, device="cpu") as db:
        assert dropped(db, meanwhile) == []
        looking.join(30)
        assert len(said) == 1


def test_an_opening_before_the_folder_goes(data_folder, monkeypatch):
    """Between the commit that forgets the name and the removal nobody opens what is about to go."""
    with vecdb.open(data_folder, device="cpu") as db:
        db.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
    answers = []
    with vecdb.open(data_folder, device="cpu") as db:
        token = db._catalog.names().collections["docs"]
        remove = db._discard

        def look():
            try:
                answers.append(db._collection("docs", token).count())
            except CollectionNotFound as error:
                answers.append(type(error))

        looking = threading.Thread(target=look)

        def later(*given):
            looking.start()
            looking.join(0.3)  # it must not end
            remove(*given)

        monkeypatch.setattr(db, "_discard", later)
        db.drop_collection("docs")
        looking.join(30)
    assert answers == [CollectionNotFound]


def test_an_opening_where_the_folder_cannot_go_whole(data_folder, monkeypatch):
    """What a drop could not remove is opened by nobody, also where its data file is left."""
    with vecdb.open(data_folder, device="cpu") as db:
        db.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
        token = db._catalog.names().collections["docs"]
        monkeypatch.setattr(db, "_remove", lambda *given: None)
        db.drop_collection("docs")
        assert (db._folder(token) / layout.DATA_FILE).is_file()
        for call in (lambda: db._collection("docs", token), lambda: db._info("docs", token)):
            with pytest.raises(CollectionNotFound):
                call()
        assert (db._folder(token) / layout.UNNAMED_FILE).is_file()


@pytest.mark.parametrize("point", ["drop.sync-folder.before", "catalog.commit.before"])
def test_a_drop_that_is_refused_leaves_no_mark(data_folder, point):
    """The collection lives on, and its folder does not bear the mark of what is litter: a repair that finds no catalog
    keeps its records."""
    seen = []

    def full(name, path):
        if name == point and not seen:
            seen.append(name)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with vecdb.open(data_folder, device="cpu") as db:
        docs = db.create_collection("docs", dimension=2)
        before = failpoints.install(full)
        try:
            with pytest.raises(StorageFull):
                db.drop_collection("docs")
        finally:
            failpoints.install(before)
        docs.insert(["a"], [[1, 2]])
        folder = docs._core.store.folder
        assert not (folder / layout.UNNAMED_FILE).exists()
    shutil.rmtree(data_folder / layout.CATALOG_FOLDER)
    assert vecdb.check(data_folder, repair=True)[0].repaired
    with vecdb.open(data_folder, device="cpu") as db:
        assert db.get_collection(f"recovered-{folder.name}").count() == 1


def test_the_end_of_a_mark_is_durable(data_folder):
    """A power cut does not bring back the mark of a collection that was made, or whose drop was refused."""
    with vecdb.open(data_folder, device="cpu") as db:
        steps = []
        before = failpoints.install(lambda name, path: steps.append((name, path.name)))
        try:
            docs = db.create_collection("docs", dimension=2)
        finally:
            failpoints.install(before)
        token = docs._core.store.folder.name
        assert steps[-1] == ("create.sync-folder.after", token)
        assert ("create.remove.after", layout.UNNAMED_FILE) in steps[-4:]
