"""What a server goes through without letting go of its callers: no threads, a reading process that cannot be started for a
while, names that stand for others."""

from __future__ import annotations

import socket
import threading
from typing import Any

import grpc
import pytest
from conftest import AddKey, StartServer, wait_until
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vecdb_client import connect, errors
from vecdb_server.readers import keeper

SERVING = health_pb2.HealthCheckResponse.SERVING


def test_a_call_that_finds_no_thread_is_refused_and_the_next_ones_are_answered(
    start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of a pool that has none yet: what its pool raised ended the thread that every message goes through."""
    server = start()
    begin = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name.startswith("vecdb-long"):
            raise RuntimeError("can't start new thread")
        begin(thread)

    with connect(server.address, retry_s=0) as client:
        docs = client.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 2]])
        monkeypatch.setattr(threading.Thread, "start", refused)
        for _ in range(2):
            with pytest.raises(errors.ResourceExhausted, match="no thread"):
                list(docs.scan())
            assert docs.count() == 1
        monkeypatch.setattr(threading.Thread, "start", begin)
        assert [one.ids for one in docs.scan()] == [["a"]]
    assert server.stop()
    server.stop = lambda: True


def test_a_keeper_that_meets_a_fault_goes_on(
    monkeypatch: pytest.MonkeyPatch, start: StartServer
) -> None:
    """Without descriptors for a moment a reading process is started later, and not never."""
    pair, refused = socket.socketpair, []

    def no_pair(*given: Any) -> Any:
        if len(refused) < 2:
            refused.append(given)
            raise OSError(24, "Too many open files")
        return pair(*given)

    server = start(read_processes=1)
    assert server.readers is not None
    process = server.readers._processes[0]
    wait_until(lambda: process.is_ready, "it is up")
    monkeypatch.setattr(keeper.socket, "socketpair", no_pair)
    process.running.kill()
    wait_until(lambda: len(refused) == 2 and process.is_ready, "it is up again", 60)


def test_health_asks_for_the_collection_behind_an_alias(
    start: StartServer, add: AddKey, keys_file: Any
) -> None:
    """As every other call does: who may read that one is told of it, and nobody else."""
    reader, stranger = add("read:docs*"), add("read:live*")
    server = start(keys_file=str(keys_file))
    server._database.create_collection("docs-2", dimension=2)
    server._database.set_alias("live", "docs-2")
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest(service="collection/live")
        header = [("authorization", f"Bearer {reader}")]
        assert stub.Check(asked, metadata=header, timeout=10).status == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(asked, metadata=[("authorization", f"Bearer {stranger}")], timeout=10)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
