"""A list tells of all collections, whatever the files of one of them are like."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import BACKENDS, Run, StartServer, open_backend

import vecdb
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_client.v1 import vecdb_pb2_grpc as pb_grpc

UNKNOWN = {"name": "hurt", "error": None} | {
    one.name: None
    for one in dataclasses.fields(vecdb.CollectionInfo)
    if one.name not in ("name", "error")
}


def _drop_file(folder: Path) -> None:
    (folder / "data.mdb").unlink()


def _cut(folder: Path) -> None:
    os.truncate(folder / "data.mdb", 5_000)


def _zero_settings(folder: Path) -> None:
    """All pages but the meta pages, so that the file opens and its tables do not."""
    path = folder / "data.mdb"
    data = path.read_bytes()
    path.write_bytes(data[:8_192] + bytes(len(data) - 8_192))


DAMAGES = {"folder": shutil.rmtree, "file": _drop_file, "cut off": _cut, "zeros": _zero_settings}


def _three_of_which_one_is_damaged(data_folder: Path, how: str) -> None:
    with vecdb.open(data_folder) as db:
        for name in ("a", "hurt", "z"):
            db.create_collection(name, dimension=2, description=f"of {name}").insert(
                ["x"], [[1.0, 2.0]]
            )
        db.set_alias("alias", "hurt")
        token = db._catalog.names().collections["hurt"]
    DAMAGES[how](data_folder / "collections" / token)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", BACKENDS)
def test_a_damaged_collection_is_listed_among_the_others(name: str, how: str, data_folder: Path):
    """It has its name and what is wrong; the others are as they were; opening it is the typed error, and once it was
    dropped the list is without it."""
    _three_of_which_one_is_damaged(data_folder, how)
    with open_backend(name, data_folder) as backend:
        a, hurt, z = backend.db.list_collections()
        assert (a.name, a.dimension, a.description, a.error) == ("a", 2, "of a", None)
        assert (z.name, z.error) == ("z", None)
        assert dataclasses.asdict(hurt) == UNKNOWN | {"error": hurt.error}
        assert "collection 'hurt'" in hurt.error
        with pytest.raises(backend.errors.Corrupted, match="collection 'hurt'"):
            backend.db.get_collection("alias")
        with pytest.raises(backend.errors.Corrupted, match="collection 'hurt'"):
            backend.db.create_collection("hurt", dimension=2, exist_ok=True)
        if name != "embedded":
            assert backend.db.server_info().collections == 3
        assert backend.db.list_aliases() == {"alias": "hurt"}
        backend.db.drop_collection("hurt")
        assert [(i.name, i.error) for i in backend.db.list_collections()] == [
            ("a", None), ("z", None)
        ]  # fmt: skip


def test_a_process_that_reads_lists_a_damaged_collection_too(data_folder: Path):
    """Beside no writer: the damage is told as a writer tells it."""
    _three_of_which_one_is_damaged(data_folder, "cut off")
    with vecdb.open(data_folder, read_only=True) as db:
        listed = [(info.name, info.error is None) for info in db.list_collections()]
    assert listed == [("a", True), ("hurt", False), ("z", True)]


def test_a_collection_that_this_process_may_not_read_is_listed(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whatever the system answers: here by a stand-in, since root may read everything."""
    _three_of_which_one_is_damaged(data_folder, "cut off")
    with vecdb.open(data_folder) as db:
        real = type(db)._open_store

        def refusing(self: Any, name: str, token: str) -> Any:
            if name == "hurt":
                raise OSError(5, "Input/output error", "data.mdb")
            return real(self, name, token)

        monkeypatch.setattr(type(db), "_open_store", refusing)
        errors = {info.name: info.error for info in db.list_collections()}
    assert errors == {"a": None, "hurt": "[Errno 5] Input/output error: 'data.mdb'", "z": None}


def test_a_collection_that_is_dropped_meanwhile_is_left_out(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Another thread drops one between the names and its settings."""
    with vecdb.open(data_folder) as db:
        for name in ("a", "b"):
            db.create_collection(name, dimension=2)
    with vecdb.open(data_folder) as db:
        real = type(db)._open_store

        def dropping(self: Any, name: str, token: str) -> Any:
            if name == "b":
                monkeypatch.setattr(type(db), "_open_store", real)
                raise vecdb.errors.CollectionNotFound("dropped")
            return real(self, name, token)

        monkeypatch.setattr(type(db), "_open_store", dropping)
        assert [info.name for info in db.list_collections()] == ["a"]


def test_a_closed_database_lists_nothing(data_folder: Path):
    """Closed is no fault of a collection."""
    with vecdb.open(data_folder) as db:
        db.create_collection("a", dimension=2)
    for call in (db.list_collections, db.collection_names):
        with pytest.raises(vecdb.errors.Closed):
            call()


def test_what_only_a_server_says_is_passed_over(start: StartServer):
    """A request to make a collection that says it cannot be opened makes it (hypothesis seed 10474633)."""
    with grpc.insecure_channel(start().address) as channel:
        stub: Any = pb_grpc.VecdbServiceStub(channel)
        wanted = pb.Collection(name="docs", dimension=2, error="gone")
        stub.CreateCollection(pb.CreateCollectionRequest(collection=wanted))
        (info,) = stub.ListCollections(pb.ListCollectionsRequest()).collections
    assert (info.name, info.dimension, info.error) == ("docs", 2, "")


def test_names_open_nothing(data_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Names are the catalog's: no file of a collection is looked at."""
    _three_of_which_one_is_damaged(data_folder, "file")
    with vecdb.open(data_folder) as db:
        monkeypatch.setattr(type(db), "_open_store", lambda *_: pytest.fail("opened"))
        assert db.collection_names() == ["a", "hurt", "z"]


def test_settings_are_stored_without_the_error(data_folder: Path):
    """It is of a moment: files are the same as before there was such a field."""
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=2)
        assert b"error" not in docs._core.store.settings


@pytest.fixture
def damaged(data_folder: Path) -> Path:
    """Asked for before `run`, whose server opens the folder."""
    _three_of_which_one_is_damaged(data_folder, "cut off")
    return data_folder


def test_the_command_line_lists_and_checks_the_others(damaged: Path, run: Run):
    """`list` and `check` name the damaged one, tell of the others, and end with code 4."""
    told = run("list", "--json")
    assert told.code == 4
    listed = {line["name"]: line for line in told.lines}
    assert list(listed) == ["a", "hurt", "z"]
    assert (listed["a"]["error"], listed["a"]["count"]) == (None, 1)
    assert "collection 'hurt'" in listed["hurt"]["error"]
    assert (listed["hurt"]["count"], listed["hurt"]["dimension"]) == (None, None)
    assert listed["hurt"]["aliases"] == ["alias"]
    people = run("list")
    assert people.code == 4
    (row,) = [line for line in people.out.splitlines() if line.startswith("hurt")]
    assert row.split()[1:3] == ["-", "-"]
    assert "error: collection 'hurt'" in row
    checked = run("check", "--json")
    assert checked.code == 4
    assert [(line["collection"], line["ok"]) for line in checked.lines] == [
        ("a", True), ("hurt", False), ("z", True)
    ]  # fmt: skip
    assert "collection 'hurt'" in checked.lines[1]["problems"][0]
    assert "hurt: cannot be opened" in run("check").out
    assert run("check", "hurt").code == 1
    assert run("drop", "hurt").code == 0
    assert (run("list").code, run("check").code) == (0, 0)


def test_a_list_shows_what_only_counting_finds(
    data_folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
):
    """The settings of a collection may be whole while its rows are not: seen when it is loaded."""
    assert run("create", "a", "--dimension", "2").code == 0
    assert run("create", "b", "--dimension", "2").code == 0
    real = vecdb.Database.get_collection

    def damaged(self: Any, name: str) -> Any:
        if name == "a":
            raise vecdb.errors.Corrupted("collection 'a': rows are gone")
        return real(self, name)

    monkeypatch.setattr(vecdb.Database, "get_collection", damaged)
    told = run("list", "--json")
    assert told.code == 4
    assert [(line["count"], line["error"], line["dimension"]) for line in told.lines] == [
        (None, "collection 'a': rows are gone", 2), (0, None, 2)
    ]  # fmt: skip


def test_a_list_passes_on_what_no_collection_is_to_blame_for(
    data_folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
):
    """That the server is gone, or the call took too long, is said as ever."""
    assert run("create", "a", "--dimension", "2").code == 0

    def late(*_: Any, **__: Any) -> int:
        raise vecdb.errors.DeadlineExceeded("took too long")

    monkeypatch.setattr(vecdb.Database, "get_collection", late)
    told = run("list", "--json")
    assert (told.code, told.out) == (1, "")
    assert "took too long" in told.err
