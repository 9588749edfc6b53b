"""The lives of reading processes: killed ones, those of a killed writer, ctrl-C, and what they leave behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import StartServer, wait_until
from server_process import ROOT, environment, spawn
from test_read_processes import calls, reader

import vecdb
from vecdb.errors import Unavailable
from vecdb_client import aio, connect
from vecdb_server.readers import keeper
from vecdb_server.server import Server


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def children(pid: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def test_a_reader_that_is_killed_is_replaced(start: StartServer) -> None:
    """Its clients go on with the others, and what it has counted stays counted."""
    server = start(read_processes=1)
    assert server.readers is not None
    with connect(server.address) as client:
        client.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
    with connect(reader(server)) as client:
        assert client.get_collection("docs").count() == 1
    assert calls(server, "reader-1")["Count/OK"] == 1
    (pid,) = server.readers.pids
    os.kill(pid, signal.SIGKILL)
    with connect(server.address) as client:
        assert client.get_collection("docs").count() == 1
    wait_until(lambda: server.readers.restarts == 1 and server.readers.up == 1, "a new reader", 60)
    assert server.readers.pids != [pid]
    assert calls(server, "reader-1")["Count/OK"] >= 1, "counters never fall"
    with connect(reader(server)) as client:
        assert client.get_collection("docs").count() == 1


def _serving_with_readers(folder: Path, *flags: str) -> tuple[Any, str, list[int]]:
    process, address = spawn(folder, "--read-processes", "2", *flags)
    found = children(process.pid)
    assert len(found) == 2
    return process, address, found


@pytest.mark.long
@pytest.mark.parametrize("durability", ["commit", "interval"])
def test_readers_end_with_a_writer_that_is_killed(tmp_path: Path, durability: str) -> None:
    """They hold the folder no longer than it: a new server starts, and has all that was acknowledged."""
    flags = ("--durability", durability)
    process, address, readers = _serving_with_readers(tmp_path / "db", *flags)
    try:
        with connect(address) as client:
            client.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
        process.kill()
        process.wait()
        wait_until(lambda: all(map(gone, readers)), "the end of the readers", 10)
    finally:
        process.kill()
        process.communicate()
    process, address, readers = _serving_with_readers(tmp_path / "db", *flags)
    try:
        with connect(address) as client:
            assert client.get_collection("docs").count() == 1
    finally:
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    wait_until(lambda: all(map(gone, readers)), "the end of the readers", 10)


def test_ctrl_c_ends_all_in_order(tmp_path: Path) -> None:
    """A terminal sends SIGINT to every process of the group; the readers leave it to the writer."""
    command = [sys.executable, "-m", "vecdb_server", "serve", "--data", str(tmp_path / "db")]
    process = subprocess.Popen(
        [*command, "--port", "0", "--read-processes", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        readers = children(process.pid)
        with connect(address) as client:
            client.create_collection("docs", dimension=2)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert all(map(gone, readers))


def test_a_call_that_nobody_waits_for_stops_in_the_writer(start: StartServer) -> None:
    """A deadline travels with what is passed on, and so does the end of a client."""
    server = start(read_processes=1)
    with connect(reader(server)) as client:
        client.create_collection("docs", dimension=2)

    async def leaves() -> None:
        async with aio.connect(reader(server)) as client:
            docs = await client.get_collection("docs")
            endless = asyncio.ensure_future(_ingest_for_ever(docs))
            await asyncio.sleep(0.5)
            endless.cancel()
            with pytest.raises(asyncio.CancelledError):
                await endless

    asyncio.run(leaves())
    wait_until(lambda: server._pools.long.busy == 0, "the end of the call in the writer", 10)
    with connect(server.address) as client:
        count = client.get_collection("docs").count()
        assert count > 0
        time.sleep(0.2)
        assert client.get_collection("docs").count() == count


async def _ingest_for_ever(docs: Any) -> None:
    async def batches() -> Any:
        number = 0
        while True:
            yield [f"id{number}"], [[number, 1.0]]
            number += 1

    async for _ in docs.ingest(batches()):
        pass


def test_readers_that_cannot_start_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server does not start without them, says why, and leaves the folder free."""
    monkeypatch.setattr(keeper.sys, "executable", str(tmp_path / "no python"))
    server = Server({"data": str(tmp_path / "db"), "port": 0, "read_processes": 2})
    with pytest.raises(Unavailable, match="reader-1 cannot serve: it cannot be started"):
        server.start()
    with vecdb.open(tmp_path / "db") as database:
        assert database.list_collections() == [], "the folder is free again"


def test_readers_share_a_unix_folder_with_nobody(start: StartServer) -> None:
    """Only this user may enter it: what comes over its sockets is believed."""
    server = start(read_processes=1)
    folder = Path(reader(server).removeprefix("unix:")).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    assert ROOT not in folder.parents
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(str(folder / "writer"))


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test leaves the folder behind in which writer and readers meet."""
    # Short, because the address of a unix socket is; other tests run beside these.
    folder = Path(tempfile.mkdtemp(prefix="left-"))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    left = list(folder.iterdir())
    shutil.rmtree(folder)
    assert not left
