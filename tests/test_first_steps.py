"""What somebody is told who tries it for the first time, and errs."""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from authority import Authority
from conftest import Backend, StartServer

import vecdb
from vecdb.errors import DatabaseNotFound, InvalidSetting
from vecdb_client import Tls, aio, connect, errors
from vecdb_server.__main__ import main
from vecdb_server.server import Server


@pytest.mark.parametrize(
    ("serves_tls", "asks", "expected"),
    [
        (True, lambda own, other: None, "or one with TLS, which wants tls=True or Tls"),
        (True, lambda own, other: Tls(ca=other), "is of no authority that is trusted here"),
        (True, lambda own, other: Tls(ca=own, server_name="db.example"), "is not for that name"),
        (False, lambda own, other: Tls(ca=own), "speaks no TLS"),
    ],
    ids=["no tls", "another authority", "another name", "tls for none"],
)
def test_a_connection_that_cannot_be_made_says_why(
    start: StartServer,
    tmp_path: Path,
    serves_tls: bool,
    asks: Callable[[Path, Path], Tls | None],
    expected: str,
) -> None:
    """Client and server that differ in TLS, authority or name say so, by both clients, and not only that nobody answers."""
    folders = tmp_path / "own", tmp_path / "other"
    for folder in folders:
        folder.mkdir()
    own, other = map(Authority, folders)
    cert, key = own.issue("server", "127.0.0.1")
    server = start(**({"tls_cert": cert, "tls_key": key} if serves_tls else {}))
    tls = asks(own.ca, other.ca)

    async def asynchronous() -> None:
        async with aio.connect(server.address, tls=tls, retry_s=0) as db:
            await db.list_collections()

    with (
        connect(server.address, tls=tls, retry_s=0) as client,
        pytest.raises(errors.Unavailable, match=expected),
    ):
        client.list_collections()
    with pytest.raises(errors.Unavailable, match=expected):
        asyncio.run(asynchronous())


def test_nobody_there_is_called_so() -> None:
    """A port where nothing listens is told without a word of TLS."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with connect(address, retry_s=0) as client, pytest.raises(errors.Unavailable) as caught:
        client.list_collections()
    assert caught.value.message.startswith(f"no server answers at {address}; is `vecdb serve`")


def test_a_port_that_is_taken_says_what_to_do(start: StartServer, tmp_path: Path) -> None:
    """A second server on the port of another names the cause and the way out."""
    second = Server({"data": str(tmp_path / "second"), "port": start().port})
    with pytest.raises(
        InvalidSetting, match=r"in use; another server may run there\. Choose another port"
    ):
        second.start()


@pytest.mark.parametrize("kind", ["a file", "a link that leads nowhere"])
def test_a_file_in_place_of_the_folder_is_called_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    """Opening it, to write or to read, says what it is, changes nothing, and is an error of ours; a server ends with 3."""
    path = tmp_path / "notes.txt"
    if kind == "a file":
        path.write_text("mine")
    else:
        path.symlink_to("/nowhere/at/all")
    for read_only in (False, True):
        with pytest.raises(DatabaseNotFound, match="is no folder; give an empty folder"):
            vecdb.open(path, read_only=read_only)
    assert main(["serve", "--data", str(path), "--port", "0"]) == 3
    assert "is no folder" in capfd.readouterr().err
    assert os.path.lexists(path)
    assert kind != "a file" or path.read_text() == "mine"


def test_a_name_that_is_taken_says_how_to_open_it(backend: Backend) -> None:
    """Who runs a program twice is told of `get_collection` and `exist_ok`; who takes the name of an alias is not."""
    backend.db.create_collection("docs", dimension=2)
    with pytest.raises(
        backend.errors.CollectionExists, match="get_collection, or with exist_ok=True"
    ):
        backend.db.create_collection("docs", dimension=2)
    backend.db.set_alias("also", "docs")
    with pytest.raises(backend.errors.CollectionExists) as caught:
        backend.db.create_collection("also", dimension=2)
    assert "exist_ok" not in str(caught.value)


def test_records_that_exist_are_counted_in_words(backend: Backend) -> None:
    """One exists, more exist."""
    docs = backend.db.create_collection("docs", dimension=2)
    docs.insert(["a", "b", "c"], np.ones((3, 2)))
    with pytest.raises(backend.errors.RecordExists, match=r"^record 'a' exists already"):
        docs.insert(["a"], np.ones((1, 2)))
    with pytest.raises(backend.errors.RecordExists, match=r"^records 'a' and 2 more exist already"):
        docs.insert(["a", "b", "c"], np.ones((3, 2)))


def test_a_schema_names_its_field_as_it_was_given(backend: Backend) -> None:
    """In the message and as `path` in the details."""
    with pytest.raises(
        backend.errors.InvalidSetting, match="schema field year: type must be"
    ) as caught:
        backend.db.create_collection("docs", dimension=2, schema={"year": "integer"})
    assert caught.value.details["path"] == "year"


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("-inf")])
def test_no_number_is_called_so(start: StartServer, value: Any) -> None:
    """The clients name what JSON has no word for, in metadata and in filters, and where it stands."""
    with connect(start().address) as client:
        docs = client.create_collection("docs", dimension=2)
        with pytest.raises(errors.InvalidMetadata, match=f"at 'x.y': {value} is no number"):
            docs.insert(["a"], np.ones((1, 2)), metadata=[{"x": {"y": value}}])
        with pytest.raises(errors.InvalidFilter, match=f"year.*: {value} is no number"):
            docs.count({"year": {"$gt": value}})
