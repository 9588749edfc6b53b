"""What somebody else has put into the folder of a database: opening, checking and repairing remove none of it, and nothing
outside."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import vecdb
from vecdb import disk, errors, layout
from vecdb.repairing import check
from vecdb.store import vacuum

OPENED = {"auto_build": False, "device": "cpu"}
ASIDE = layout.COMPACTING_PREFIX + "0123456789abcdef"


def _open(folder: Path) -> None:
    with vecdb.open(folder, **OPENED) as db:  # type: ignore[arg-type]
        assert db.get_collection("docs").count() == 1


def _repair(folder: Path) -> None:
    check(folder, repair=True)
    _open(folder)


@pytest.fixture
def made(data_folder: Path) -> Path:
    """The folder of the only collection of a database."""
    with vecdb.open(data_folder, **OPENED) as db:  # type: ignore[arg-type]
        db.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
    return next((data_folder / layout.COLLECTIONS_FOLDER).iterdir())


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that is no business of the database, with a file and a folder in it."""
    folder = tmp_path / "outside"
    (folder / "within").mkdir(parents=True)
    for path in (folder / "theirs.txt", folder / "within" / "more.txt", folder / layout.DATA_FILE):
        path.write_text("kept")
    return folder


def _all(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*")}


@pytest.mark.parametrize("use", [_open, _repair])
def test_what_others_have_put_there_stays(
    data_folder: Path, made: Path, outside: Path, use: Callable[[Path], None]
) -> None:
    """Folders beside those of the collections, whole and empty, a collection set aside by hand, files beside the data file,
    and links to elsewhere with names like ours: all is there afterwards."""
    root = data_folder / layout.COLLECTIONS_FOLDER
    (root / "mydir").mkdir()
    (root / "mydir" / "notes.txt").write_text("kept")
    for name in ("lost+found", "2024", "cafe", "0123456789abcdef0"):
        (root / name).mkdir()
    (root / "link").symlink_to(outside)
    (root / "0123456789abcde0").symlink_to(outside / "within")
    if use is _open:  # a repair refuses to begin where it may not write into all that is there
        (root / "nowhere").symlink_to("/nowhere/at/all")
        (root / "loop").symlink_to("loop")
    shutil.copytree(made, root / "0123456789abcdef")
    os.rename(
        root / "0123456789abcdef" / layout.DATA_FILE, root / "0123456789abcdef" / "data.mdb.keep"
    )
    for name in ("data.mdb.bak", "README", "index.faiss", "index-0123456789abcdef.rows.old"):
        (made / name).write_text("kept")
    (made / (layout.COMPACTING_PREFIX + "notes")).mkdir()
    (made / (layout.COMPACTING_PREFIX + "link")).symlink_to(outside)
    before = _all(data_folder, outside)
    use(data_folder)
    assert before - _all(data_folder, outside) == set()


@pytest.mark.parametrize("name", [ASIDE, layout.COMPACTED_FOLDER])
@pytest.mark.parametrize("use", [_open, _repair])
def test_of_a_link_in_place_of_a_copy_only_the_link_goes(
    data_folder: Path, made: Path, outside: Path, name: str, use: Callable[[Path], None]
) -> None:
    """A link that has the name of a copy of ours is unlinked, and what it leads to neither removed nor moved in."""
    (made / name).symlink_to(outside)
    before = _all(outside)
    use(data_folder)
    assert not os.path.lexists(made / name)
    assert _all(outside) == before


def test_a_link_to_a_marked_folder_is_unlinked(data_folder: Path, made: Path) -> None:
    """A link to a collection that is named and still bears the mark, as a crash leaves it: the collection stays."""
    (made / layout.UNNAMED_FILE).touch()
    link = made.with_name("link")
    link.symlink_to(made.name)
    _open(data_folder)
    assert not os.path.lexists(link)


def test_of_a_dropped_collection_that_is_a_link_the_link_goes(
    data_folder: Path, made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its folder lies elsewhere, where nothing is removed; the log says so, and the name is free."""
    moved = tmp_path / "elsewhere"
    shutil.move(made, moved)
    made.symlink_to(moved)
    with vecdb.open(data_folder, **OPENED) as db:  # type: ignore[arg-type]
        assert db.get_collection("docs").count() == 1
        with caplog.at_level(logging.WARNING, "vecdb"):
            db.drop_collection("docs")
        assert f"{made} is a link: it is removed" in caplog.text
        assert db.create_collection("docs", dimension=2).count() == 0
    assert not os.path.lexists(made)
    assert (moved / layout.DATA_FILE).is_file()
    assert not (moved / layout.UNNAMED_FILE).exists()  # whoever puts it back finds no litter


def test_a_tree_that_is_a_link(tmp_path: Path, outside: Path) -> None:
    """Nothing is removed through a link, whatever stands in the folder that it leads to."""
    (outside / "mark").touch()
    before = _all(outside)
    link = tmp_path / "link"
    for last in (None, "mark"):
        link.symlink_to(outside)
        disk.remove_tree(link, "test", last=last)
        assert not os.path.lexists(link)
    assert _all(outside) == before


def test_what_has_our_names_is_still_swept(data_folder: Path, made: Path) -> None:
    """Files of indexes that nothing names, with side files and incomplete ones, what a way back has left, incomplete copies:
    all that a crash can leave goes. So do empty folders with a name of ours, and marked ones."""
    for name in (
        "index-0123456789abcdef.faiss", "index-0123456789abcdef.rows.tmp",
        "index-0123456789abcdef.codes", "index-0123456789abcdef.faiss.filter-0123456789abcdef",
        "index-0123456789abcdef.faiss.filter-0123456789abcdef.tmp", layout.GOING_FILE,
        layout.KEPT_FILE.format(1) + ".tmp",
    ):  # fmt: skip
        (made / name).write_text("litter")
    (made / ASIDE).mkdir()
    (made / ASIDE / layout.DATA_FILE).write_text("litter")
    root = data_folder / layout.COLLECTIONS_FOLDER
    (root / "0123456789abcdef").mkdir()
    (root / "marked").mkdir()
    (root / "marked" / "anything").touch()
    (root / "marked" / layout.UNNAMED_FILE).touch()
    _open(data_folder)
    assert {path.name for path in made.iterdir()} == {layout.DATA_FILE, layout.LMDB_LOCK_FILE}
    assert list(root.iterdir()) == [made]


def test_a_folder_that_is_called_like_the_mark(data_folder: Path, made: Path) -> None:
    """The mark is a file: a folder of this name says nothing."""
    other = made.with_name("0123456789abcdef")
    (other / layout.UNNAMED_FILE).mkdir(parents=True)
    _open(data_folder)
    assert (other / layout.UNNAMED_FILE).is_dir()


def test_a_folder_that_may_not_be_looked_into(
    data_folder: Path, made: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As `lost+found` of a disk that is mounted there: it is told of in the log and left, and the database opens."""
    secret = made.with_name("lost+found")
    secret.mkdir()
    lstat = os.lstat

    def refused(path: os.PathLike[str] | str) -> os.stat_result:
        if Path(path).parent == secret:
            raise PermissionError(13, "Permission denied", str(path))
        return lstat(path)

    monkeypatch.setattr(os, "lstat", refused)
    with caplog.at_level(logging.WARNING, "vecdb"):
        _open(data_folder)
    assert secret.is_dir()
    assert f"{secret} cannot be looked into" in caplog.text


def test_a_copy_that_is_a_link_is_no_copy(made: Path, outside: Path) -> None:
    """Whatever has the name of a whole copy and is a link was not made by us."""
    (made / layout.COMPACTED_FOLDER).symlink_to(outside)
    assert vacuum.whole_copy(made) is None


@pytest.mark.parametrize("name", [layout.CATALOG_FOLDER, layout.CATALOG_ASIDE])
def test_a_folder_called_as_ours_with_files_of_others(tmp_path: Path, name: str) -> None:
    """What lies in a folder that is called as that of a catalog keeps a new database out, as any other file does."""
    theirs = tmp_path / "project" / name / "theirs.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("kept")
    with pytest.raises(errors.Corrupted, match=f"{name}/theirs.txt"):
        vecdb.open(tmp_path / "project", device="cpu")
    assert theirs.read_text() == "kept"


def test_a_catalog_set_aside_in_its_folder_stays(data_folder: Path, made: Path) -> None:
    """Whoever gives the file of the catalog another name has it still when the names are made anew."""
    catalog = data_folder / layout.CATALOG_FOLDER
    before = (catalog / layout.DATA_FILE).read_bytes()
    os.rename(catalog / layout.DATA_FILE, catalog / "data.mdb.damaged")
    check(data_folder, repair=True)
    assert (catalog / "data.mdb.damaged").read_bytes() == before
    with vecdb.open(data_folder, **OPENED) as db:  # type: ignore[arg-type]
        (name,) = db.collection_names()
        assert name.startswith("recovered-")
        assert db.get_collection(name).count() == 1


def test_no_catalog_is_made_over_files_of_others(data_folder: Path, made: Path) -> None:
    """Where a catalog is made before it takes its place, files of others are told of, and stay."""
    (data_folder / layout.CATALOG_FOLDER / layout.DATA_FILE).unlink()
    theirs = data_folder / layout.CATALOG_ASIDE / "theirs.txt"
    theirs.parent.mkdir()
    theirs.write_text("kept")
    with pytest.raises(errors.Corrupted, match="move it away"):
        check(data_folder, repair=True)
    assert theirs.read_text() == "kept"
    theirs.unlink()
    check(data_folder, repair=True)
    with vecdb.open(data_folder, **OPENED) as db:  # type: ignore[arg-type]
        assert len(db.collection_names()) == 1


def test_a_catalog_that_is_a_link_to_nothing_of_ours(tmp_path: Path, outside: Path) -> None:
    """A link in place of the catalog is told of, and what it leads to stays as it is."""
    (outside / layout.DATA_FILE).unlink()
    before = _all(outside)
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / layout.CATALOG_FOLDER).symlink_to(outside)
    with pytest.raises(errors.Corrupted):
        vecdb.open(tmp_path / "db", device="cpu")
    shutil.rmtree(outside)
    outside.mkdir()
    with pytest.raises(errors.Corrupted, match="is a link"):
        vecdb.open(tmp_path / "db", device="cpu")
    assert _all(outside) == set()
    assert before
