"""A server that is told to stop sends what it has answered, however slowly its clients read, within a time."""

from __future__ import annotations

import socket
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import StartServer, wait_until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from server_process import spawn
from slow_way import SlowWay

from vecdb_client import connect, errors
from vecdb_server import draining
from vecdb_server.draining import Leaving, unsent_bytes

IDS = [f"r{n}" for n in range(12)]
MIB = 1 << 20


def fill(client: Any, row_bytes: int) -> None:
    docs = client.create_collection("docs", dimension=2)
    docs.insert(IDS, np.ones((len(IDS), 2)), documents=["d" * row_bytes] * len(IDS))


def read_all(docs: Any, how: str) -> list[str]:
    if how == "scan":
        pages = docs.scan(include=["document"], batch_size=4)
        return [one for page in pages for one in page.ids]
    return [record.id for record in docs.get(IDS, include=["document"])]


def reading(address: str, how: str) -> tuple[threading.Thread, list[Any]]:
    """A thread that reads the records of docs, and where it puts their ids, in order, or the error that ended it."""
    seen: list[Any] = []

    def read() -> None:
        try:
            with connect(address, retry_s=0, timeout_s=300) as far:
                seen.append(sorted(read_all(far.get_collection("docs"), how)))
        except errors.VecdbError as error:
            seen.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread, seen


@pytest.mark.parametrize("how", ["get", "scan"])
def test_an_answer_to_a_slow_client_is_sent_whole(tmp_path: Path, how: str) -> None:
    """6 MiB, of which the buffers of no system take all at once, arrive from a server that was told to stop when the
    first of them came and the thread that had answered was free long since; then it ends."""
    process, address = spawn(tmp_path / "db", "--log-level", "error", "--drain-timeout-s", "300")
    way = SlowWay(address, MIB, answers=True)
    try:
        with connect(address) as near:
            fill(near, MIB // 2)
            reader, seen = reading(way.address, how)
            wait_until(lambda: way.passed > MIB // 4, "it comes")
            answered = 'vecdb_calls_seconds_count{code="OK",method="Get"} 1.0'
            if how == "get":
                wait_until(lambda: answered in near.metrics(), "it is answered")
        process.terminate()
        _, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, "")
        reader.join(60)
    finally:
        process.kill()
        process.wait()
        way.close()
    assert seen == [sorted(IDS)]


@pytest.mark.parametrize("how", ["get", "scan"])
def test_who_takes_nothing_keeps_no_server_for_longer_than_is_set(tmp_path: Path, how: str) -> None:
    """A client that stops reading in the middle of an answer is cut off when `drain_timeout_s` is over, and the process
    ends in order, though that client cannot be told."""
    process, address = spawn(tmp_path / "db", "--log-level", "warning", "--drain-timeout-s", "1")
    way = SlowWay(address, MIB, answers=True)
    try:
        with connect(address) as near:
            fill(near, MIB // 2)
        reader, seen = reading(way.address, how)
        wait_until(lambda: way.passed > MIB // 4, "it comes")
        way.hold()
        begun_s = time.monotonic()
        process.terminate()
        _, err = process.communicate(timeout=300)
        took_s = time.monotonic() - begun_s
        way.close()
        reader.join(90)
    finally:
        process.kill()
        process.wait()
        way.close()
    assert process.returncode == 0
    assert "calls are ended: drain_timeout_s is over" in err
    assert [type(one) for one in seen] == [errors.Unavailable]
    # It is not cut off sooner. gRPC alone would wait for 80 s until it takes the client for gone.
    assert 1.0 <= took_s < 60.0


def test_a_server_that_stops_takes_no_more_calls_and_says_so(start: StartServer) -> None:
    """While an answer is on its way others are told that the server goes, as if it had gone, so that they wait for the
    next one; health says NOT_SERVING."""
    server = start(drain_timeout_s=120.0)
    way = SlowWay(server.address, MIB, answers=True)
    with connect(server.address, retry_s=0) as near:
        fill(near, MIB // 2)
        docs = near.get_collection("docs")
        seen: list[Any] = []

        def read() -> None:
            with connect(way.address, retry_s=0) as far:
                seen.append(read_all(far.get_collection("docs"), "get"))

        reader = threading.Thread(target=read)
        reader.start()
        wait_until(lambda: way.passed > MIB // 4, "it comes")
        stopped: list[bool] = []
        stopper = threading.Thread(target=lambda: stopped.append(server.stop()))
        stopper.start()
        wait_until(server._health._closed.is_set, "it stops")
        with grpc.insecure_channel(server.address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            wait_until(lambda: _refused(docs), "calls are refused")
            for method in (docs.count, lambda: list(docs.scan()), lambda: docs.delete(["r1"])):
                with pytest.raises(errors.Unavailable, match="is stopping") as caught:
                    method()
                assert caught.value.details == {"answered": False}
            for name, status in (("vecdb.v1.VecdbService", "NOT_SERVING"), ("", "NOT_SERVING")):
                answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=30)
                assert health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status) == status
        assert not stopped, "the answer is on its way"
        way.close()
        reader.join(60)
        stopper.join(60)
    assert stopped == [True]
    assert [len(one) for one in seen] == [len(IDS)]


def _refused(docs: Any) -> bool:
    try:
        docs.count()
    except errors.Unavailable:
        return True
    return False


def test_a_connection_on_which_nothing_moves_is_not_waited_for() -> None:
    """What is left on a connection counts while it becomes another number, to its last byte; what was small from the
    start does not, and a client that has gone is given up after some seconds."""
    leaving = Leaving()
    stuck_s = draining._STUCK_S
    assert not leaving.goes_on({"a": 4_096, "b": 0}, 0.0)
    assert leaving.goes_on({"a": 4_096, "c": 9_000}, 1.0)
    assert leaving.goes_on({"a": 100, "c": 9_000}, 1.0 + stuck_s / 2)
    assert not leaving.goes_on({"c": 9_000}, 1.0 + stuck_s)
    assert leaving.goes_on({"c": 5}, 2.0 + stuck_s)
    assert leaving.goes_on({"c": 5, "d": 50_000}, 2.5 + stuck_s)
    assert not leaving.goes_on({"c": 0}, 2.5 + stuck_s)
    assert not leaving.goes_on({"c": 7}, 2.5 + stuck_s), "another answer, and a small one"


def test_what_a_connection_holds_is_known() -> None:
    """Of connections to the port alone, over IPv4 and IPv6, until the other side has read."""
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            door = socket.create_server((host, 0), family=family)
        except OSError:
            continue  # no IPv6 here
        port = door.getsockname()[1]
        with door, socket.create_connection(door.getsockname()[:2]) as far:
            near, _ = door.accept()
            with near:
                near.setblocking(False)
                sent = near.send(b"x" * 8 * MIB)
                (held,) = unsent_bytes(port).values()
                assert 0 < held <= sent
                read = 0
                while read < sent:
                    read += len(far.recv(MIB))
                wait_until(partial(_nothing_left, port), "all has gone")
                assert not any(unsent_bytes(far.getsockname()[1]).values())


def _nothing_left(port: int) -> bool:
    return set(unsent_bytes(port).values()) == {0}
