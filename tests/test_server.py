"""Deadlines, limits and fairness of the server, over real sockets."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import StartServer, wait_until
from timing import once_below, seconds

import vecdb
from vecdb_client import connect, errors
from vecdb_client.transport import read_error
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_server import status
from vecdb_server.admission import Admission
from vecdb_server.guard import Guard
from vecdb_server.limits import Limits, Peers
from vecdb_server.pools import Pools
from vecdb_server.query_stream import QueryStreams

ROOT = Path(__file__).resolve().parents[1]
MIB = 1024 * 1024


class LateContext:
    """A call whose deadline has passed."""

    def __init__(self) -> None:
        self.trailing: Any = None
        self.code: Any = None

    def time_remaining(self) -> float:
        return 0.0

    def is_active(self) -> bool:
        return True

    def set_trailing_metadata(self, trailing: Any) -> None:
        self.trailing = trailing

    def abort(self, code: Any, text: str) -> None:
        self.code = code
        raise ConnectionAbortedError


class Unwatched:
    """Watches nothing."""

    def call(self, method: str, context: Any) -> Any:
        return nullcontext()

    def ended(self, method: str, code: Any, took_s: float) -> None:
        """Counts nothing."""


def test_a_late_call_is_not_executed() -> None:
    """A call that waited past its deadline is refused without running."""
    admission = Admission({"max_concurrent": 1, "max_wait_s": 1.0})
    pools = Pools(1, 1, 1, 1, QueryStreams(admission), admission)
    guard = Guard(None, None, Limits({}), Peers(1))
    border = status.Border(pools, MIB, guard, Unwatched())
    ran: list[Any] = []
    for wrap in (border._unary, partial(border._stream, one=True)):
        context = LateContext()
        with pytest.raises(ConnectionAbortedError):
            list(wrap("Insert", lambda *_: ran.append(1))(iter([pb.InsertRequest()]), context))
        assert context.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert json.loads(context.trailing[0][1])["reason"] == "DEADLINE_EXCEEDED"
    assert not ran


def test_reads_that_wait_leave_room_for_others(start: StartServer) -> None:
    """However many reads wait for a commit that does not come, other reads are answered."""
    server = start(worker_threads=2)

    def beside_those(docs: Any) -> float:
        outcomes: list[type[BaseException]] = []

        def wait_in_vain() -> None:
            try:
                docs.count(min_sequence=99, timeout_s=1.5)
            except errors.VecdbError as error:
                outcomes.append(type(error))

        def others() -> None:
            assert docs.count() <= 1
            assert docs.upsert(["a"], [[1, 2]]).sequence >= 1

        callers = [threading.Thread(target=wait_in_vain) for _ in range(6)]
        for caller in callers:
            caller.start()
        wait_until(lambda: server._pools.reads.busy > 0, "one waits")
        time.sleep(0.3)
        took_s = seconds(others)
        for caller in callers:
            caller.join(20)
        assert len(outcomes) == 6
        assert set(outcomes) <= {errors.DeadlineExceeded, errors.Unavailable}
        assert errors.DeadlineExceeded in outcomes
        return took_s

    with connect(server.address, timeout_s=20) as client:
        docs = client.create_collection("docs", dimension=2)
        once_below(1.0, lambda: beside_those(docs))


def test_a_read_waits_for_a_commit_that_comes(start: StartServer) -> None:
    """`min_sequence` of a commit that follows soon is answered once it is there."""
    server = start()
    with connect(server.address) as client:
        docs = client.create_collection("docs", dimension=2)
        answers: list[int] = []
        reader = threading.Thread(target=lambda: answers.append(docs.count(min_sequence=1)))
        reader.start()
        time.sleep(0.2)
        assert not answers
        docs.insert(["a"], [[1, 2]])
        reader.join(10)
    assert answers == [1]


def filled(client: Any, rows: int, document_bytes: int = 0) -> Any:
    docs = client.create_collection("docs", dimension=4, metric="l2")
    documents = ["d" * document_bytes] * rows if document_bytes else None
    ids = [f"r{i}" for i in range(rows)]
    # Small messages, so that servers with a low message limit take them too.
    docs.insert(ids, np.ones((rows, 4)), documents=documents, batch_size=10)
    return docs


def test_a_cancelled_scan_frees_its_thread(start: StartServer) -> None:
    """When a client leaves a scan, its thread on the server is free again."""
    server = start()
    with connect(server.address) as client:
        docs = filled(client, 200, document_bytes=50_000)
        scan = docs.scan(batch_size=1)
        assert len(next(scan)) == 1
        assert server._pools.long.busy == 1
        scan.close()
        wait_until(lambda: server._pools.long.busy == 0, "the thread is free")


def test_a_scan_ends_at_its_deadline(start: StartServer) -> None:
    """A scan that nobody reads on ends at its deadline on both sides."""
    server = start()
    with connect(server.address) as client:
        docs = filled(client, 200, document_bytes=50_000)
        scan = docs.scan(batch_size=1, timeout_s=0.5)
        next(scan)
        time.sleep(0.6)
        with pytest.raises(errors.DeadlineExceeded):
            list(scan)
        wait_until(lambda: server._pools.long.busy == 0, "the thread is free")


def test_streams_beyond_the_limit_are_refused_and_queries_go_on(start: StartServer) -> None:
    """When all stream threads are taken, the next stream is refused at once; queries are answered."""
    server = start(stream_threads=2)
    with connect(server.address, retry_s=0) as client:
        docs = filled(client, 200, document_bytes=50_000)
        scans = [docs.scan(batch_size=1) for _ in range(2)]
        for scan in scans:
            next(scan)
        with pytest.raises(errors.ResourceExhausted, match="stream_threads"):
            list(docs.scan())
        with pytest.raises(errors.ResourceExhausted, match="stream_threads"):
            docs.check()
        assert docs.query([1, 1, 1, 1], k=3).ids[0]
        for scan in scans:
            scan.close()
        wait_until(lambda: server._pools.long.busy == 0, "the threads are free")
        assert sum(len(page) for page in docs.scan()) == 200


def test_a_scan_message_is_a_few_mib_whatever_was_asked_for(start: StartServer) -> None:
    """A scan of large records comes in messages of a few MiB, each record once and in order."""
    server = start()
    with connect(server.address) as client:
        docs = filled(client, 120, document_bytes=200_000)
        docs.insert(["huge"], np.ones((1, 4)), documents=["h" * 15 * MIB])
        stream = client._connection.method("Scan")(
            pb.ScanRequest(collection="docs", include=[pb.INCLUDE_DOCUMENT], batch_size=10_000)
        )
        answers = list(stream)
        sizes = [answer.ByteSize() for answer in answers if list(answer.records.ids) != ["huge"]]
        assert max(sizes) <= 8 * MIB + 1024
        assert [i for answer in answers for i in answer.records.ids] == [
            *(f"r{i}" for i in range(120)),
            "huge",
        ]
        assert {answer.sequence for answer in answers} == {docs.stats().sequence}
        assert [bool(answer.cursor) for answer in answers] == [True] * (len(answers) - 1) + [False]


def test_named_vectors_make_messages_of_a_scan_smaller(start: StartServer) -> None:
    """Wide named vectors are counted when a scan is cut into messages."""
    server = start()
    with connect(server.address, timeout_s=60) as client:
        fields = {name: {"dimension": 4_000} for name in ("title", "body")}
        docs = client.create_collection("wide", dimension=2, vectors=fields)
        wide = np.ones((400, 4_000), np.float32)
        ids = [f"r{i}" for i in range(400)]
        docs.insert(ids, np.ones((400, 2)), named_vectors={"title": wide, "body": wide})
        pages = list(docs.scan(include=["named_vectors"], batch_size=10_000))
    assert [len(page) for page in pages] == [131, 131, 131, 7]
    assert sum(page.named_present["title"].sum() for page in pages) == 400


@pytest.mark.parametrize("verb", ["compact", "build_index"])
def test_long_care_takes_no_thread_of_queries(
    start: StartServer, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compaction and builds run beside queries, however few threads answer those."""
    server = start(worker_threads=1, stream_threads=1)
    begun, may_end = threading.Event(), threading.Event()
    original = getattr(vecdb.Collection, verb)

    def slow(self: Any, **given: Any) -> Any:
        begun.set()
        may_end.wait(20)
        return original(self, **given)

    monkeypatch.setattr(vecdb.Collection, verb, slow)
    with connect(server.address, timeout_s=20, retry_s=0) as client:
        docs = filled(client, 10)
        caller = threading.Thread(target=getattr(docs, verb))
        caller.start()
        assert begun.wait(10)
        assert docs.count() == 10
        assert docs.cancel_build() is False
        with pytest.raises(errors.ResourceExhausted):
            getattr(docs, verb)()
        may_end.set()
        caller.join(20)


def test_messages_that_are_too_large(start: StartServer) -> None:
    """Too large requests and answers are LimitExceeded with both sizes, whichever side finds out."""
    server = start(max_message_bytes=MIB)
    with (
        connect(server.address) as client,
        connect(server.address, max_message_bytes=10_000) as small,
    ):
        docs = filled(client, 30, document_bytes=40_000)
        with pytest.raises(errors.LimitExceeded) as caught:
            docs.upsert(["x"], np.ones((1, 4)), documents=["d" * 2 * MIB])
        assert caught.value.details["limit_bytes"] == MIB
        assert int(str(caught.value.details["given_bytes"])) > 2 * MIB
        with pytest.raises(errors.LimitExceeded) as caught:
            docs.get(limit=1000, include=["document"])
        assert caught.value.details["limit_bytes"] == MIB
        with pytest.raises(errors.LimitExceeded) as caught:
            small.get_collection("docs").get(["r1"])
        assert caught.value.details["limit_bytes"] == 10_000
        with pytest.raises(errors.LimitExceeded):
            docs.count({"a": {"$in": ["x" * 1000] * 1100}})
        with pytest.raises(errors.LimitExceeded):
            list(docs.ingest([(["x"], np.ones((1, 4)), None, ["d" * 2 * MIB])]))
        assert docs.count() == 30
        assert sum(len(page) for page in docs.scan(include=["document"])) == 30


@pytest.mark.usefixtures("short_retries")
def test_calls_beyond_the_limit_are_refused(start: StartServer) -> None:
    """More calls at once than `max_concurrent` are ResourceExhausted, and later ones are answered."""
    server = start(max_concurrent=1)
    with connect(server.address) as client:
        docs = filled(client, 200, document_bytes=50_000)
        scan = docs.scan(batch_size=1)

        def begun() -> bool:
            # gRPC counts a call until shortly after its answer, so the insert may still be in the way.
            nonlocal scan
            try:
                return len(next(scan)) == 1
            except errors.ResourceExhausted:
                scan = docs.scan(batch_size=1)
                return False

        wait_until(begun, "the scan has begun")
        with pytest.raises(errors.ResourceExhausted):
            docs.count()
        scan.close()

        def answered() -> bool:
            try:
                return int(docs.count()) == 200
            except errors.ResourceExhausted:
                return False

        wait_until(answered, "calls are answered again")


def test_ingest_holds_a_fast_sender_back(
    start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the server does not keep up, only a bounded number of batches is taken from the sender."""
    server = start()
    gate = threading.Event()
    prepare_put = vecdb.Collection.prepare_put

    def slow(self: Any, *args: Any, **keywords: Any) -> Any:
        commit = prepare_put(self, *args, **keywords)
        return lambda: gate.wait(30) and commit()

    taken = 0

    def requests() -> Iterator[Any]:
        nonlocal taken
        for i in range(150):
            taken += 1
            records = pb.RecordBatch(
                ids=[f"r{i}"],
                vectors=pb.Vectors(data=b"\0\0\x80\x3f" * 4, count=1, dimension=4),
                documents=pb.TextColumn(values=["d" * MIB]),
            )
            yield pb.IngestRequest(collection="docs", records=records, upsert=True)

    with connect(server.address) as client:
        filled(client, 1)
        monkeypatch.setattr(vecdb.Collection, "prepare_put", slow)
        stream = client._connection.method("Ingest")(requests(), timeout=60)
        time.sleep(1.0)
        held = taken
        assert 1 <= held < 50
        time.sleep(0.3)
        assert taken == held
        gate.set()
        acknowledgements = list(stream)
        assert taken == 150
        assert [ack.count for ack in acknowledgements] == [1] * 150
        sequences = [ack.sequence for ack in acknowledgements]
        assert sequences == sorted(set(sequences))


def test_an_ingest_stays_in_one_collection(start: StartServer) -> None:
    """A later message may leave the collection out, but not name another one."""
    server = start()
    vectors = pb.Vectors(data=b"\0\0\x80\x3f" * 4, count=1, dimension=4)

    def message(name: str, record_id: str) -> Any:
        return pb.IngestRequest(
            collection=name, records=pb.RecordBatch(ids=[record_id], vectors=vectors)
        )

    with connect(server.address) as client:
        docs = filled(client, 1)
        ingest = client._connection.method("Ingest")
        assert len(list(ingest(iter([message("docs", "a"), message("", "b")]), timeout=10))) == 2
        with pytest.raises(grpc.RpcError) as caught:
            list(ingest(iter([message("docs", "c"), message("other", "d")]), timeout=10))
        assert isinstance(read_error(caught.value, ""), errors.InvalidArgument)
        with pytest.raises(grpc.RpcError) as caught:
            list(ingest(iter([message("", "e")]), timeout=10))
        assert isinstance(read_error(caught.value, ""), errors.InvalidName | errors.NotFound)
        assert docs.count() == 4


def test_garbage_on_the_port_does_no_harm(start: StartServer) -> None:
    """Bytes of no protocol, of another one, and half a handshake leave the server answering."""
    server = start()
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    offers = [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        preface[:10],
        preface,
        *(preface + rng.randbytes(2_000) for _ in range(10)),
        *(rng.randbytes(5_000) for _ in range(10)),
    ]
    with connect(server.address) as client:
        for offer in offers:
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as stranger:
                try:
                    stranger.sendall(offer)
                except ConnectionError:
                    continue  # the server may hang up at the first wrong byte
        assert client.list_collections() == []


def test_a_call_without_its_request_is_refused(start: StartServer) -> None:
    """A call that ends before its request came is INVALID_ARGUMENT; of two requests the first is answered."""
    server = start()
    path = "/vecdb.v1.VecdbService/GetServerInfo"
    with grpc.insecure_channel(server.address) as channel:
        call: Any = channel.stream_unary(path)
        with pytest.raises(grpc.RpcError) as caught:
            call(iter([]), timeout=10)
        assert isinstance(read_error(caught.value, ""), errors.InvalidArgument)
        assert pb.GetServerInfoResponse.FromString(call(iter([b"", b""]), timeout=10)).version
