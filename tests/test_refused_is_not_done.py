"""What a fault of the machine refuses has a typed error, and is not done: names, restores, checks, the way back."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import threading
from contextlib import contextmanager

import faults
import numpy as np
import pytest

import vecdb
from vecdb import errors, failpoints, layout

SETTINGS = {"auto_build": False, "device": "cpu", "history_s": 0.0}
TYPED = (errors.ReadOnly, errors.StorageFull, errors.LimitExceeded, errors.Unavailable)


@pytest.fixture
def db(data_folder):
    """A database with a collection of two records."""
    with vecdb.open(data_folder, **SETTINGS) as db:
        db.create_collection("docs", dimension=2).insert(["a", "b"], [[1, 2], [3, 4]])
        yield db


def folders(db):
    """Those of collections, but for what the next opening sweeps: without a file it could not be removed."""
    return {
        path.name
        for path in (db.path / layout.COLLECTIONS_FOLDER).iterdir()
        if path.name in db._catalog.names().of
        or ((path / layout.DATA_FILE).exists() and not (path / layout.UNNAMED_FILE).exists())
    }


@contextmanager
def fails_at(strikes, code):
    """The point that is reached as the `strikes`-th has an error; gives the names of those that were."""
    seen = []

    def reached(name, path):
        seen.append(name)
        if len(seen) == strikes + 1:
            raise OSError(code, os.strerror(code), str(path))

    before = failpoints.install(reached)
    try:
        yield seen
    finally:
        failpoints.install(before)


def in_a_thread(work):
    """`work` in a thread that is held to the modes of files, and what it raised."""
    raised = []

    def run():
        faults.obey_modes()
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    return raised[0] if raised else None


@contextmanager
def mode(root, bits):
    """Gives all folders below `root` these bits, and the old ones back."""
    held = [name for name, _, _ in os.walk(root)]
    for name in reversed(held):
        os.chmod(name, bits)
    try:
        yield
    finally:
        for name in held:
            os.chmod(name, 0o700)


@pytest.mark.parametrize("verb", ["create", "restore"])
def test_a_name_is_there_or_was_refused(db, tmp_path, verb):
    """With each number of files that may still be opened: a refused collection has no name and leaves no folder."""
    db.backup(tmp_path / "backups")
    before, outcomes = folders(db), set()
    for files in range(14):
        error = None
        with faults.no_more_files(but=files):
            try:
                if verb == "create":
                    db.create_collection("new", dimension=2)
                else:
                    db.restore(tmp_path / "backups", collections={"docs": "new"})
            except TYPED as raised:
                error = raised
        assert ("new" in db.collection_names()) == (error is None), f"{files} files: {error}"
        outcomes.add(error is None)
        if error is None:
            assert db.get_collection("new").check().ok
            db.drop_collection("new")
        assert folders(db) == before
    assert outcomes == {True, False}


@pytest.mark.parametrize("verb", ["create", "drop", "open"])
def test_a_disk_that_fails_is_told_in_our_words(db, data_folder, verb):
    """EIO at each step of a change of names, or of an opening, before its commit or at it: `Internal`, with what the system
    says, or done all the same; a second try succeeds."""
    work, undo = {
        "create": (
            lambda: db.create_collection("new", dimension=2), lambda: db.drop_collection("new"),
        ),
        "drop": (
            lambda: db.drop_collection("new"), lambda: db.create_collection("new", dimension=2),
        ),
        "open": (lambda: vecdb.open(data_folder, **SETTINGS).close(), lambda: None),
    }[verb]  # fmt: skip
    if verb == "drop":
        undo()
    if verb == "open":
        db.close()
    with fails_at(-1, errno.EIO) as points:
        work()
    undo()
    told = {}
    for strikes in sorted(set(map(points.index, points))):
        try:
            with fails_at(strikes, errno.EIO):
                work()
        except errors.Internal as error:
            told[points[strikes]] = error.message
            work()
        undo()
    assert all(os.strerror(errno.EIO) in message for message in told.values())
    first = {"create": "create.mkdir", "drop": "drop.touch", "open": "database.mkdir"}[verb]
    assert told.keys() >= {f"{first}.before", f"{first}.after"}


@pytest.mark.parametrize("verb", ["create", "restore", "drop", "rename", "alias"])
def test_a_change_of_names_that_fails_at_any_step(db, tmp_path, verb):
    """An error at each point there is: the change is refused and not done, or done and not refused, and no folder is left
    that nothing names; a second try succeeds."""
    db.backup(tmp_path / "backups")
    work, undo, is_done = {
        "create": (
            lambda: db.create_collection("new", dimension=2), lambda: db.drop_collection("new"),
            lambda: "new" in db.collection_names(),
        ),
        "restore": (
            lambda: db.restore(tmp_path / "backups", collections={"docs": "new"}),
            lambda: db.drop_collection("new"), lambda: "new" in db.collection_names(),
        ),
        "drop": (
            lambda: db.drop_collection("new"), lambda: db.create_collection("new", dimension=2),
            lambda: "new" not in db.collection_names(),
        ),
        "rename": (
            lambda: db.rename_collection("docs", "new"), lambda: db.rename_collection("new", "docs"),
            lambda: "new" in db.collection_names(),
        ),
        "alias": (
            lambda: db.set_alias("new", "docs"), lambda: db.drop_alias("new"),
            lambda: "new" in db.list_aliases(),
        ),
    }[verb]  # fmt: skip
    if verb == "drop":
        undo()
    with fails_at(-1, 13) as points:
        work()
    undo()
    # Each point where it comes first, and where it comes last.
    last = {name: n for n, name in enumerate(points)}
    for strikes in sorted({*last.values(), *map(points.index, last)}):
        with fails_at(strikes, 13) as seen:
            error = None
            try:
                work()
            except errors.ReadOnly as raised:
                error = raised
        assert is_done() == (error is None), f"{seen[-1]}: {error}"
        if error is not None:
            work()
        undo()
    names = len(db.collection_names())
    assert len(folders(db)) == names
    for name in db.collection_names():
        report = db.get_collection(name).check()
        assert report.ok, report.problems
        assert not (db.get_collection(name)._core.store.folder / layout.UNNAMED_FILE).exists()


def test_a_restore_without_permission(db, tmp_path):
    """It is ReadOnly, into an open database and into a new one, and makes nothing."""
    db.backup(tmp_path / "backups")
    outside = tmp_path / "outside"
    outside.mkdir()
    before = folders(db)
    with mode(db.path, 0o500), mode(outside, 0o500):
        for work in (
            lambda: db.restore(tmp_path / "backups", collections={"docs": "new"}),
            lambda: vecdb.restore(tmp_path / "backups", outside / "new"),
        ):
            assert isinstance(error := in_a_thread(work), errors.ReadOnly), error
    assert folders(db) == before
    assert not list(outside.iterdir())
    assert db.restore(tmp_path / "backups", collections={"docs": "new"}).collections[0].count == 2


def test_a_new_database_without_files(db, tmp_path):
    """`vecdb.restore` where no file can be opened is refused in our words, whatever it meets first, and makes nothing."""
    db.backup(tmp_path / "backups")
    (tmp_path / "outside").mkdir()
    vecdb.restore(tmp_path / "backups", tmp_path / "warm")
    for files in range(4):
        with faults.no_more_files(but=files), pytest.raises(TYPED):
            vecdb.restore(tmp_path / "backups", tmp_path / "outside" / "new")
    assert not list((tmp_path / "outside").iterdir())


def test_a_folder_that_nobody_may_enter(data_folder):
    """`check`, `downgrade` and `discard_kept` of a folder of mode 000 say so in our words."""
    with vecdb.open(data_folder, **SETTINGS) as db:
        db.create_collection("docs", dimension=2)
    with mode(data_folder, 0):
        for work in (vecdb.check, vecdb.downgrade, vecdb.discard_kept):
            error = in_a_thread(lambda work=work: work(data_folder))
            assert isinstance(error, errors.ReadOnly), error
            assert str(data_folder) in str(error)
    assert [one.problems for one in vecdb.check(data_folder)] == [(), ()]


def test_verbs_that_are_loaded_when_no_file_can_be_opened(data_folder):
    """The parts of vecdb that are imported when they are asked for: LimitExceeded while none can be loaded, then as ever."""
    code = """
        import faults, sys, vecdb
        from vecdb import errors
        with vecdb.open(sys.argv[1], auto_build=False, device="cpu") as db:
            db.create_collection("docs", dimension=2)
        for name in ("check", "downgrade", "discard_kept", "restore"):
            try:
                with faults.no_more_files():
                    getattr(vecdb, name)(sys.argv[1])
            except errors.LimitExceeded as error:
                print(name, "ulimit -n" in str(error))
        print(vecdb.discard_kept(sys.argv[1]), [one.problems for one in vecdb.check(sys.argv[1])])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(data_folder)],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    names = ("check", "downgrade", "discard_kept", "restore")
    expected = [*(f"{name} True" for name in names), "0 [(), ()]"]
    assert done.stdout.splitlines() == expected, done.stderr


@pytest.mark.parametrize("read_only", [False, True])
def test_a_collection_whose_folder_may_not_be_entered_is_not_called_dropped(data_folder, read_only):
    """One whose files are closed, or looked for, says that the permission is missing; one that was removed, that it has
    gone. With the permission back all goes on."""
    with vecdb.open(data_folder, **SETTINGS) as db:
        for name in ("one", "two"):
            db.create_collection(name, dimension=2).insert(["a"], [[1, 2]], documents=["text"])
    with vecdb.open(
        data_folder, read_only=read_only, max_open_collections=1, auto_build=False, device="cpu"
    ) as db:
        one, two = db.get_collection("one"), db.get_collection("two")

        def read():
            return one.get(["a"], include=["document"]).documents

        def rests():
            for each in (one, two, two):
                each.get(["a"], include=["document"])
            return one._core.store._env._env is None

        assert rests()
        folder = one._core.store.folder
        with mode(folder, 0):
            error = in_a_thread(read)
        assert isinstance(error, errors.ReadOnly), error
        assert "ermission" in str(error)
        assert read() == ["text"]
        assert rests()
        os.rename(folder, folder.with_name("elsewhere"))
        with pytest.raises(errors.Closed, match="has gone"):
            read()
        os.rename(folder.with_name("elsewhere"), folder)
        assert read() == ["text"]
        np.testing.assert_array_equal(one.get(["a"], include=["vector"]).vectors.shape, (1, 2))
