"""What strangers send who follow no rule of HTTP/2: an honest client goes on being answered, memory is bounded, and the server
stops in time."""

from __future__ import annotations

import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from authority import Authority
from conftest import StartServer, wait_until
from raw_http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW,
    PING,
    RST_STREAM,
    SETTINGS,
    Raw,
    call,
    frame,
    header,
    message,
    setting,
)
from server_process import resident_bytes, spawn

from vecdb_client import Tls, connect
from vecdb_client.v1 import vecdb_pb2 as pb

pytestmark = pytest.mark.long

MIB = 1 << 20
FLOOD_S = 0.5
MOST_MORE_BYTES = 400 * MIB
"""gRPC's own buffers and calls under way; a flood that is kept takes more than this a second."""


def rapid(stream: int) -> bytes:
    end = frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
    return frame(HEADERS, END_HEADERS, stream, call("Query")) + end


def continued(stream: int) -> bytes:
    if stream == 1:
        return frame(HEADERS, 0, 1, call("Query"))
    return frame(CONTINUATION, 0, 1, header(f"x-{stream}", "y" * 16_000))


def continued_empty(stream: int) -> bytes:
    first = frame(HEADERS, 0, 1, call("Query")) if stream == 1 else b""
    return first + 100 * frame(CONTINUATION, 0, 1)


def empty_data(stream: int) -> bytes:
    first = frame(HEADERS, END_HEADERS, 1, call("Ingest")) if stream == 1 else b""
    return first + 100 * frame(DATA, 0, 1)


def large(stream: int) -> bytes:
    headers = call("Query") + header("x-large", "y" * 15_000)
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, headers)


FLOODS: dict[str, Callable[[int], bytes]] = {
    "reset at once": rapid,
    "headers without end": continued,
    "empty continuations": continued_empty,
    "empty data": empty_data,
    "large headers": large,
    "settings": lambda stream: 100 * frame(SETTINGS, 0, 0, setting(3, 100 + stream % 5)),
    "pings": lambda stream: 100 * frame(PING, 0, 0, b"12345678"),
    "frames of no kind": lambda stream: 100 * frame(200, 0, 0, b"x" * 100),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    process, address = spawn(tmp_path_factory.mktemp("strangers") / "db")
    with connect(address, timeout_s=30) as client:
        docs = client.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 1]])
    yield process, address
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(90) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    finally:
        process.communicate()


@pytest.mark.parametrize("name", FLOODS)
def test_others_are_answered_beside_a_flood(served: tuple[Any, str], name: str) -> None:
    """Over a standing connection meanwhile, and over a new one afterwards; what the flood brought is not kept."""
    process, address = served
    make, before = FLOODS[name], resident_bytes(process)
    with connect(address, timeout_s=30) as client, Raw(address) as raw:
        docs = client.get_collection("docs")
        end_s, stream, answered = time.monotonic() + FLOOD_S, 1, 0
        while time.monotonic() < end_s and stream < 20_000:
            for _ in range(50):
                taken = raw.send(make(stream))
                stream += 2
            assert docs.query([1, 1], k=1).ids == [["a"]]
            answered += 1
            if not taken:
                break
        assert answered
    with connect(address, timeout_s=30) as client:
        assert client.get_collection("docs").count() == 1
    assert resident_bytes(process) - before < MOST_MORE_BYTES


def test_connections_that_say_nothing(served: tuple[Any, str]) -> None:
    """Hundreds that send nothing, half a preface or another protocol keep no newcomer out."""
    process, address = served
    host, _, port = address.rpartition(":")
    before, idle = resident_bytes(process), []
    try:
        for n in range(300):
            idle.append(socket.create_connection((host, int(port)), 10))
            idle[-1].sendall((b"", b"PRI * HTTP/2.0\r\n", b"GET / HTTP/1.1\r\n\r\n")[n % 3])
        with connect(address, timeout_s=30) as client:
            assert client.get_collection("docs").count() == 1
    finally:
        for one in idle:
            one.close()
    assert resident_bytes(process) - before < MOST_MORE_BYTES


def test_a_server_stops_with_strangers_around(tmp_path: Path) -> None:
    """Connections that say nothing, or keep calls open with a window of 0, do not keep a server from ending."""
    process, address = spawn(tmp_path / "db", "--drain-timeout-s", "0.5")
    try:
        with Raw(address, setting(INITIAL_WINDOW, 0)) as raw, Raw(address) as other:
            raw.send(frame(HEADERS, END_HEADERS, 1, call("QueryStream")))
            other.send(frame(HEADERS, 0, 1, call("Query")))
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()


def test_answers_that_nobody_takes_are_bounded(start: StartServer) -> None:
    """A client whose window is 0 asks again and again: the calls that wait longest are ended beyond eight of the largest
    messages, others get their answers."""
    server = start(max_message_bytes=MIB)
    with connect(server.address, timeout_s=30) as client:
        docs = client.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 1]], documents=["x" * (MIB // 2)])
        request = pb.GetRequest(collection="docs", ids=["a"], include=[pb.INCLUDE_DOCUMENT])
        body = message(request.SerializeToString())
        with Raw(server.address, setting(INITIAL_WINDOW, 0)) as raw:
            for n in range(60):
                stream = 2 * n + 1
                assert raw.send(
                    frame(HEADERS, END_HEADERS, stream, call("Get"))
                    + frame(DATA, END_STREAM, stream, body)
                )
            wait_until(lambda: raw.came[RST_STREAM] >= 40, "the calls that wait longest have ended")
            assert docs.get(["a"], include=["document"]).documents == ["x" * (MIB // 2)]
            assert raw.came[RST_STREAM] < 50
        assert np.all(docs.query([1, 1], k=1).ids == [["a"]])


def test_streams_that_nobody_takes_are_bounded(start: StartServer) -> None:
    """Likewise those of streams, of which each has one message under way."""
    server = start(max_message_bytes=MIB)
    with connect(server.address, timeout_s=30) as client:
        docs = client.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 1]], documents=["x" * (MIB // 2)])
        vectors = pb.Vectors(data=b"\0\0\x80\x3f" * 2, count=1, dimension=2)
        include = [pb.INCLUDE_DOCUMENT]
        query = pb.QueryRequest(collection="docs", vectors=vectors, k=1, include=include)
        asked = pb.QueryStreamRequest(queries=[pb.StreamedQuery(query=query)])
        body = message(asked.SerializeToString())
        with Raw(server.address, setting(INITIAL_WINDOW, 0)) as raw:
            for n in range(24):
                stream = 2 * n + 1
                headers = frame(HEADERS, END_HEADERS, stream, call("QueryStream"))
                assert raw.send(headers + frame(DATA, 0, stream, body))
            wait_until(
                lambda: raw.came[RST_STREAM] >= 8, "the streams that wait longest have ended"
            )
            assert docs.query([1, 1], k=1, include=["document"]).ids == [["a"]]


def test_open_handshakes(start: StartServer, tmp_path: Path) -> None:
    """Connections that begin an encrypted one and go no further keep no newcomer out."""
    authority = Authority(tmp_path)
    cert, key = authority.issue("server", "127.0.0.1")
    server = start(tls_cert=cert, tls_key=key)
    host, _, port = server.address.rpartition(":")
    begun = bytes(
        (22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3)
    )  # a record of 512 bytes, most of which never comes
    idle = []
    try:
        for n in range(300):
            idle.append(socket.create_connection((host, int(port)), 10))
            idle[-1].sendall((b"", begun, begun + bytes(20))[n % 3])
        with connect(server.address, tls=Tls(ca=authority.ca), timeout_s=30) as client:
            docs = client.create_collection("docs", dimension=2)
            docs.insert(["a"], [[1, 1]])
            assert docs.count() == 1
    finally:
        for one in idle:
            one.close()
