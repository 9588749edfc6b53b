"""Something else where a file or folder of ours belongs: a folder, a pipe, a link that leads nowhere. Opening says which
path it is and what to do, never waits for a pipe, and works again once it was moved away."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecdb
from vecdb.errors import Corrupted, VecdbError
from vecdb.repairing import check

_LIMIT_S = 30


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "of somebody").write_text("kept")


def _file(path: Path) -> None:
    path.write_text("of somebody")


KINDS: dict[str, Callable[[Path], None]] = {
    "a folder": _folder,
    "a pipe": os.mkfifo,
    "a link that leads nowhere": lambda path: path.symlink_to("/nowhere/at/all"),
    "a link that leads to itself": lambda path: path.symlink_to(path.name),
    "a file": _file,
}
FOR_FILES = [kind for kind in KINDS if kind != "a file"]
FOR_FOLDERS = [kind for kind in KINDS if kind != "a folder"]
WAYS: dict[str, dict[str, Any]] = {
    "write": {},
    "interval": {"durability": "interval"},
    "read": {"read_only": True},
}


@pytest.fixture(scope="module")
def made() -> Iterator[Path]:
    """A database of two collections, one with a graph; closed."""
    with tempfile.TemporaryDirectory(prefix="vecdb-tests-") as root:
        path = Path(root) / "data"
        vectors = np.random.default_rng(1).standard_normal((2_000, 8)).astype(np.float32)
        with vecdb.open(path) as db:
            docs = db.create_collection("docs", dimension=8, index="hnsw")
            docs.insert([str(i) for i in range(len(vectors))], vectors)
            docs.build_index()
            db.create_collection("other", dimension=2).insert(["a"], [[1.0, 2.0]])
        yield path


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "data")


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fails a test that waits for a pipe."""

    def late(*_: object) -> None:
        raise AssertionError(f"not within {seconds} s: it waits for the other end of a pipe")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def docs_folder(data: Path) -> Path:
    """The folder of the collection that has a graph."""
    (found,) = [one.parent for one in (data / "collections").glob("*/index-*.faiss")]
    return found


def plant(path: Path, kind: str) -> Callable[[], None]:
    """Puts something else in place of what is there; gives what puts the old thing back."""
    # Outside of the database, for which it would be a file of somebody else.
    kept = next(one for one in path.parents if one.name == "data").parent / (path.name + ".kept")
    there = os.path.lexists(path)
    if there:
        path.rename(kept)
    KINDS[kind](path)

    def back() -> None:
        if path.is_dir() and not path.is_symlink():
            assert (path / "of somebody").read_text() == "kept", "what was there was touched"
            shutil.rmtree(path)
        else:
            path.unlink()
        if there:
            kept.rename(path)

    return back


def must_say(error: VecdbError | str, path: Path, kind: str) -> None:
    text = error if isinstance(error, str) else error.message
    assert f"{path} is {kind}, where a f" in text
    assert "move it away" in text


def must_work(data: Path) -> None:
    with vecdb.open(data) as db:
        assert [one.error for one in db.list_collections()] == [None, None]
        docs = db.get_collection("docs")
        assert docs.count() == 2_000
        docs.upsert(["more"], [[1.0] * 8])
        assert docs.check().ok


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", FOR_FILES)
@pytest.mark.parametrize(
    "name", ["vecdb.lock", "catalog/data.mdb", "catalog/lock.mdb", "catalog/sync.point"]
)
def test_in_place_of_a_file_of_the_database(data: Path, name: str, kind: str, way: str):
    """Opening is Corrupted and changes nothing. Who only reads needs no lock of the folder."""
    path = data / name
    back = plant(path, kind)
    with at_most(_LIMIT_S):
        if name == "vecdb.lock" and way == "read":
            with vecdb.open(data, read_only=True) as db:
                assert db.get_collection("other").count() == 1
        else:
            with pytest.raises(Corrupted) as raised:
                vecdb.open(data, **WAYS[way])
            must_say(raised.value, path, kind)
            assert raised.value.details["file"] == str(path)
    back()
    must_work(data)


@pytest.mark.parametrize("way", ["write", "read"])
@pytest.mark.parametrize("kind", FOR_FOLDERS)
@pytest.mark.parametrize("name", ["catalog", "collections"])
def test_in_place_of_a_folder_of_the_database(data: Path, name: str, kind: str, way: str):
    """The same of folders, in which nothing can be made then."""
    back = plant(data / name, kind)
    with at_most(_LIMIT_S), pytest.raises(Corrupted) as raised:
        vecdb.open(data, **WAYS[way])
    must_say(raised.value, data / name, kind)
    back()
    must_work(data)


@pytest.mark.parametrize("kind", FOR_FOLDERS)
@pytest.mark.parametrize("name", ["catalog-new", "collections", "catalog"])
def test_in_place_of_a_folder_that_a_new_database_needs(tmp_path: Path, name: str, kind: str):
    """Nothing is made then, and all is once it was moved away."""
    data = tmp_path / "data"
    data.mkdir()
    back = plant(data / name, kind)
    with at_most(_LIMIT_S), pytest.raises(Corrupted) as raised:
        vecdb.open(data)
    must_say(raised.value, data / name, kind)
    back()
    with vecdb.open(data) as db:
        db.create_collection("docs", dimension=2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", FOR_FILES)
@pytest.mark.parametrize("name", ["data.mdb", "lock.mdb", "sync.point"])
def test_in_place_of_a_file_of_a_collection(data: Path, name: str, kind: str, way: str):
    """Opening the collection is Corrupted, the list tells, the others serve, and it can be dropped."""
    path = docs_folder(data) / name
    back = plant(path, kind)
    with at_most(_LIMIT_S), vecdb.open(data, **WAYS[way]) as db:
        with pytest.raises(Corrupted, match="collection 'docs'") as raised:
            db.get_collection("docs")
        must_say(raised.value, path, kind)
        docs, other = db.list_collections()
        must_say(docs.error, path, kind)
        assert other.error is None
        assert db.get_collection("other").count() == 1
    back()
    must_work(data)
    plant(path, kind)
    with at_most(_LIMIT_S), vecdb.open(data) as db:
        db.drop_collection("docs")
        assert [one.name for one in db.list_collections()] == ["other"]
        assert len(list((data / "collections").iterdir())) == 1


@pytest.mark.parametrize("kind", FOR_FILES)
@pytest.mark.parametrize("end", [".faiss", ".rows"])
def test_in_place_of_a_file_of_an_index(data: Path, end: str, kind: str):
    """No record is lost: search is exact until the index is built again."""
    (path,) = docs_folder(data).glob(f"index-*{end}")
    plant(path, kind)
    with at_most(_LIMIT_S), vecdb.open(data) as db:
        docs = db.get_collection("docs")
        (problem,) = docs.check().problems
        assert path.name in problem
        assert docs.query([1.0] * 8, k=3, explain=True).explain.plan == "exact"
        docs.build_index()
        assert docs.check().ok
    must_work(data)


@pytest.mark.parametrize("kind", FOR_FILES)
def test_in_place_of_a_graph_for_a_filter(data: Path, kind: str):
    """It is no graph: removed where that can be, named by `check` where not, and never waited for."""
    (graph,) = docs_folder(data).glob("index-*.faiss")
    path = graph.with_name(graph.name + ".filter-0123456789abcdef")
    plant(path, kind)
    with at_most(_LIMIT_S), vecdb.open(data) as db:
        docs = db.get_collection("docs")
        assert docs.query([1.0] * 8, k=3, explain=True).explain.plan == "graph"
        if kind == "a folder":
            must_say(docs.check().problems[0], path, kind)
            shutil.rmtree(path)
        assert not os.path.lexists(path)
    must_work(data)


@pytest.mark.parametrize("kind", KINDS)
def test_in_place_of_the_mark_of_a_folder_without_a_name(data: Path, kind: str):
    """Neither an opening nor a drop minds, and a drop leaves nothing."""
    plant(docs_folder(data) / "unnamed", kind)
    must_work(data)
    with at_most(_LIMIT_S), vecdb.open(data) as db:
        db.drop_collection("docs")
        assert len(list((data / "collections").iterdir())) == 1


@pytest.mark.parametrize("repair", [False, True])
@pytest.mark.parametrize("kind", FOR_FILES)
@pytest.mark.parametrize(
    "name", ["vecdb.lock", "catalog/data.mdb", "data.mdb", "lock.mdb", "sync.point"]
)
def test_check_and_repair_tell_and_touch_nothing(data: Path, name: str, kind: str, repair: bool):
    """What is in the place of a file may be all that somebody has: a repair removes none of it."""
    whole = name in ("vecdb.lock", "catalog/data.mdb")
    path = data / name if whole else docs_folder(data) / name
    back = plant(path, kind)
    with at_most(_LIMIT_S):
        try:
            told = [
                problem
                for one in check(data, repair=repair)
                for problem in (*one.problems, *one.done)
            ]
        except Corrupted as error:
            assert whole, "one collection kept the others from being checked"
            told = [error.message]
    must_say(" ".join(told), path, kind)
    back()
    must_work(data)
    assert all(one.ok for one in check(data))


@pytest.mark.parametrize("name", ["data.mdb", "vecdb.lock"])
def test_links_to_files_are_followed(data: Path, tmp_path: Path, name: str):
    """Who has put a file on another disk may go on."""
    path = data / name if name == "vecdb.lock" else docs_folder(data) / name
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    must_work(data)


def test_sockets_and_devices_are_told_apart(data: Path):
    """The message says what is there, whatever that is."""
    from vecdb import disk

    with pytest.raises(Corrupted, match="/dev/null is a device, where a file belongs; do so"):
        disk.must_be_file(Path("/dev/null"), "do so")
    assert not disk.must_be_file(data / "vecdb.lock" / "below a file", "do so")
    assert disk.must_be_file(data / "vecdb.lock", "do so")
    assert disk.must_be_folder(data, "do so")


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("kind", ["folder", "file", "second name"])
def test_two_collections_never_share_a_file(data: Path, kind: str, read_only: bool) -> None:
    """Where a link leads one to the file of the other, it is refused in words that name both, whichever is opened first;
    where both are the same name of the file, both are. Check says so too, and links that lead elsewhere harm nobody."""
    with vecdb.open(data) as db:
        own, other = (db.get_collection(n)._core.store.folder for n in ("docs", "other"))
    os.link(own / "data.mdb", data.parent / "kept")
    if kind == "folder":
        shutil.move(other, data.parent / "moved")
        other.symlink_to(own.name)
    else:
        (other / "data.mdb").unlink()
        link = os.symlink if kind == "file" else os.link
        link(own / "data.mdb", other / "data.mdb")
    with vecdb.open(data, read_only=read_only, auto_build=False) as db:
        for _ in range(2):
            with pytest.raises(Corrupted, match="share it") as refused:
                db.get_collection("other")
            assert refused.value.details["other"] == "docs"
            if kind == "second name":
                with pytest.raises(Corrupted, match="share it"):
                    db.get_collection("docs")
            else:
                assert db.get_collection("docs").count() == 2_000
    found = {one.collection: one for one in check(data)}
    assert "share it" in found["other"].problems[0]
    (other if kind == "folder" else other / "data.mdb").unlink()
    with vecdb.open(data, auto_build=False) as db:
        assert db.get_collection("docs").count() == 2_000
