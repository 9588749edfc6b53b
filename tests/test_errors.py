"""Errors survive the way over the wire, and every one that a caller can provoke is provoked."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import vecdb
from vecdb import errors as engine_errors
from vecdb_client import connect, errors
from vecdb_client.transport import ERROR_KEY, read_error
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_client.v1 import vecdb_pb2_grpc as pb_grpc
from vecdb_server import status
from vecdb_server.server import Server

REASONS = sorted(engine_errors._BY_REASON)


class Failed(grpc.RpcError):
    """What a client sees of a failed call."""

    def __init__(self, code: Any, text: str, trailing: Any = ()) -> None:
        super().__init__(text)
        self._seen = (code, text, trailing)

    def code(self) -> Any:
        return self._seen[0]

    def details(self) -> str:
        return self._seen[1]

    def trailing_metadata(self) -> Any:
        return self._seen[2]


def there_and_back(error: Any) -> errors.VecdbError:
    """The client's error for an error of the engine."""
    trailing = ((ERROR_KEY, status.encoded(error)),)
    return read_error(Failed(status.code_of(error), error.message, trailing), "here:1")


@pytest.mark.parametrize("reason", REASONS)
def test_every_error_has_a_status_and_comes_back(reason: str) -> None:
    """Each class of the tree has a status, and the client rebuilds class, message and details."""
    kind = engine_errors.by_reason(reason)
    details: Any = {"ids": ["a", "b"], "position": 3, "path": "$.x", "limit": None, "share": 0.5}
    error = kind("what, expected, to do: äöü", **details)
    assert status.code_of(error) not in (None, grpc.StatusCode.OK)
    found = there_and_back(error)
    assert type(found) is errors.by_reason(reason)
    assert found.reason == reason
    assert found.message == error.message
    assert dict(found.details) == details


def test_the_client_has_the_same_tree() -> None:
    """The client's copy has the same reasons, each with the same ancestors."""
    assert sorted(errors._BY_REASON) == REASONS
    for reason in REASONS:
        ours, theirs = errors.by_reason(reason), engine_errors.by_reason(reason)
        assert [kind.__name__ for kind in ours.__mro__] == [
            kind.__name__ for kind in theirs.__mro__
        ]


def test_an_error_of_the_clients_copy_has_the_same_status() -> None:
    """The server answers alike for its own classes and for those that the wire code raises."""
    for reason in REASONS:
        copy, own = errors.by_reason(reason)("m"), engine_errors.by_reason(reason)("m")
        assert status.code_of(copy) == status.code_of(own)
    assert status.code_of(KeyError("x")) is None


def test_long_details_are_cut_to_what_a_trailer_may_hold() -> None:
    """An error with very many ids still arrives: cut, with the true number beside it."""
    ids = [f"record-{i}" * 5 for i in range(100_000)]
    error = engine_errors.RecordExists("x" * 100_000, ids=ids, count=100_000)
    assert len(status.encoded(error)) <= 4096
    found = there_and_back(error)
    assert isinstance(found, errors.RecordExists)
    assert found.details["ids_total"] == 100_000
    assert found.details["count"] == 100_000
    kept = found.details["ids"]
    assert isinstance(kept, list)
    assert 0 < len(kept) <= 100
    assert kept == ids[: len(kept)]


def test_details_that_cannot_be_cut_are_dropped() -> None:
    """Details that are too long in other ways never keep the error from arriving."""
    many: Any = {f"name{i}": "v" * 400 for i in range(100)}
    found = there_and_back(engine_errors.InvalidQuery("message", **many))
    assert isinstance(found, errors.InvalidQuery)
    assert found.message == "message"


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, "failed to connect", errors.Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", errors.DeadlineExceeded),
        (grpc.StatusCode.CANCELLED, "Channel closed!", errors.Cancelled),
        (grpc.StatusCode.CANCELLED, "Locally cancelled by application!", errors.Cancelled),
        (grpc.StatusCode.CANCELLED, "CANCELLED", errors.Unavailable),  # by a server that stops
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "CLIENT: Received message larger than max (900 vs. 500)",
            errors.LimitExceeded,
        ),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "Concurrent RPC limit exceeded!",
            errors.ResourceExhausted,
        ),
        (grpc.StatusCode.UNIMPLEMENTED, "Method not found!", errors.Internal),
        (grpc.StatusCode.UNKNOWN, "?", errors.Internal),
    ],
)
def test_a_status_without_our_entry(code: Any, text: str, kind: type[Exception]) -> None:
    """What gRPC itself answers becomes the class that the status means."""
    for trailing in ((), (("other", "x"),), ((ERROR_KEY, b"no json"),)):
        found = read_error(Failed(code, text, trailing), "here:1")
        assert type(found) is kind
    if kind is errors.LimitExceeded:
        assert (found.details["given_bytes"], found.details["limit_bytes"]) == (900, 500)


def test_a_reason_of_a_later_version() -> None:
    """A reason that this client does not know is the root of the tree, with its message."""
    entry = json.dumps({"reason": "NEW_ONE", "message": "m", "details": {"a": 1}}).encode()
    found = read_error(Failed(grpc.StatusCode.UNKNOWN, "m", ((ERROR_KEY, entry),)), "here:1")
    assert type(found) is errors.VecdbError
    assert (found.message, dict(found.details)) == ("m", {"a": 1})


# --- over real sockets


class Raising:
    """A database that answers each call with the error whose reason stands as collection name."""

    devices = None
    own_name = staticmethod(str)

    def get_collection(self, name: str) -> Any:
        if name == "bug":
            raise KeyError("secret text of a bug")
        if name == "memory":
            raise MemoryError
        raise engine_errors.by_reason(name)("message of " + name, ids=["x"], position=1)

    def close(self) -> None:
        pass


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.setattr(vecdb, "Database", lambda *_, **__: Raising())
    server = Server({"data": str(tmp_path), "port": 0})
    server.start()
    yield server.address
    assert server.stop()


def test_every_error_over_grpc(raising: str) -> None:
    """Every class of the tree crosses a real connection, unary and streamed."""
    with connect(raising, timeout_s=10) as client:
        stub = pb_grpc.VecdbServiceStub(client._connection._channel)  # type: ignore[no-untyped-call,unused-ignore]
        for reason in REASONS:
            with pytest.raises(grpc.RpcError) as caught:
                stub.Count(pb.CountRequest(collection=reason), timeout=10)
            unary = read_error(caught.value, raising)
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.Scan(pb.ScanRequest(collection=reason), timeout=10))
            for found in (unary, read_error(caught.value, raising)):
                assert type(found) is errors.by_reason(reason)
                assert found.message == "message of " + reason
                assert dict(found.details) == {"ids": ["x"], "position": 1}


class Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def test_a_bug_is_internal_and_tells_no_secrets(
    raising: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unexpected exception is logged with its trace; the client sees only a number to find it."""
    kept = Kept()
    monkeypatch.setattr(status.log, "handlers", [kept])
    monkeypatch.setattr(status.log, "propagate", False)
    with connect(raising) as client:
        with pytest.raises(errors.Internal) as caught:
            client.get_collection("bug")
        with pytest.raises(errors.ResourceExhausted):
            client.get_collection("memory")
    assert "secret" not in caught.value.message
    number = caught.value.message.rsplit(" ", 1)[-1]
    logged = [record for record in kept.records if number in record.getMessage()]
    assert len(logged) == 1
    assert logged[0].exc_info is not None
    assert "secret text of a bug" in str(logged[0].exc_info[1])


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    server = Server({"data": str(tmp_path_factory.mktemp("errors") / "db"), "port": 0})
    server.start()
    with connect(server.address, timeout_s=20) as found:
        docs = found.create_collection("docs", dimension=3, schema={"year": "int"})
        docs.insert(["a", "b"], np.eye(3)[:2], metadata=[{"year": 2000}, {"n": 1}])
        found.set_alias("live", "docs")
        yield found
    assert server.stop()


ROW = np.array([[1.0, 2.0, 3.0]])

PROVOKED: list[tuple[str, type[errors.VecdbError], Any]] = [
    ("unknown collection", errors.CollectionNotFound, lambda c, d: c.get_collection("none")),
    ("drop unknown", errors.CollectionNotFound, lambda c, d: c.drop_collection("none")),
    ("unknown alias", errors.AliasNotFound, lambda c, d: c.drop_alias("none")),
    ("name taken", errors.CollectionExists, lambda c, d: c.create_collection("docs", dimension=3)),
    (
        "name taken, other settings",
        errors.CollectionExists,
        lambda c, d: c.create_collection("docs", dimension=4, exist_ok=True),
    ),
    ("alias takes a name", errors.CollectionExists, lambda c, d: c.set_alias("docs", "docs")),
    ("bad name", errors.InvalidName, lambda c, d: c.create_collection("a/b", dimension=3)),
    ("empty name", errors.InvalidName, lambda c, d: c.get_collection("")),
    ("dimension 0", errors.InvalidSetting, lambda c, d: c.create_collection("x", dimension=0)),
    (
        "dimension too large",
        errors.InvalidSetting,
        lambda c, d: c.create_collection("x", dimension=65_536),
    ),
    (
        "unknown metric",
        errors.InvalidSetting,
        lambda c, d: c.create_collection("x", dimension=3, metric="dot"),
    ),
    (
        "recall out of range",
        errors.InvalidSetting,
        lambda c, d: c.create_collection("x", dimension=3, target_recall=0.1),
    ),
    (
        "schema with an unknown type",
        errors.InvalidSetting,
        lambda c, d: c.create_collection("x", dimension=3, schema={"a": "number"}),
    ),
    ("existing id", errors.RecordExists, lambda c, d: d.insert(["new", "a"], ROW.repeat(2, 0))),
    ("id twice", errors.InvalidBatch, lambda c, d: d.upsert(["z", "z"], ROW.repeat(2, 0))),
    ("empty batch", errors.InvalidBatch, lambda c, d: d.insert([], [])),
    ("ragged batch", errors.InvalidBatch, lambda c, d: d.insert(["x"], ROW.repeat(2, 0))),
    ("no vectors", errors.InvalidBatch, lambda c, d: d.insert(["x"], None)),
    ("ragged vectors", errors.InvalidVector, lambda c, d: d.insert(["x", "y"], [[1, 2], [3]])),
    ("wrong dimension", errors.InvalidVector, lambda c, d: d.insert(["x"], [[1, 2]])),
    ("NaN", errors.InvalidVector, lambda c, d: d.insert(["x"], [[np.nan, 1, 2]])),
    ("infinity", errors.InvalidVector, lambda c, d: d.insert(["x"], [[np.inf, 1, 2]])),
    ("zero vector", errors.InvalidVector, lambda c, d: d.insert(["x"], [[0, 0, 0]])),
    ("empty id", errors.InvalidId, lambda c, d: d.insert([""], ROW)),
    ("long id", errors.InvalidId, lambda c, d: d.insert(["x" * 1025], ROW)),
    ("id with NUL", errors.InvalidId, lambda c, d: d.insert(["a\0b"], ROW)),
    (
        "metadata against the schema",
        errors.InvalidMetadata,
        lambda c, d: d.insert(["x"], ROW, metadata=[{"year": "two thousand"}]),
    ),
    (
        "metadata of a type that none is",
        errors.InvalidMetadata,
        lambda c, d: d.insert(["x"], ROW, metadata=[{"k": b"bytes"}]),
    ),
    (
        "metadata that is broken JSON",
        errors.InvalidMetadata,
        lambda c, d: d.insert(["x"], ROW, metadata=[b'{"k": ']),
    ),
    (
        "integer beyond int64",
        errors.InvalidMetadata,
        lambda c, d: d.insert(["x"], ROW, metadata=[{"k": 2**63}]),
    ),
    (
        "uri too long",
        errors.InvalidMetadata,
        lambda c, d: d.insert(["x"], ROW, uris=["u" * 8193]),
    ),
    ("update unknown", errors.RecordNotFound, lambda c, d: d.update(["none"], metadata=[{}])),
    ("clear unknown", errors.InvalidQuery, lambda c, d: d.update(["a"], clear=["id"])),
    ("clear vector", errors.InvalidQuery, lambda c, d: d.update(["a"], clear=["vector"])),
    ("delete nothing named", errors.InvalidBatch, lambda c, d: d.delete()),
    ("delete no ids", errors.InvalidBatch, lambda c, d: d.delete([], filter={"n": 1})),
    ("k of 0", errors.InvalidQuery, lambda c, d: d.query(ROW, k=0)),
    ("k too large", errors.InvalidQuery, lambda c, d: d.query(ROW, k=10_001)),
    ("k no number", errors.InvalidQuery, lambda c, d: d.query(ROW, k="5")),
    ("neither vectors nor ids", errors.InvalidQuery, lambda c, d: d.query()),
    ("both vectors and ids", errors.InvalidQuery, lambda c, d: d.query(ROW, ids=["a"])),
    ("query by unknown id", errors.RecordNotFound, lambda c, d: d.query(ids=["none"])),
    ("query of NaN", errors.InvalidVector, lambda c, d: d.query([[np.nan, 0, 1]])),
    ("query of wrong width", errors.InvalidVector, lambda c, d: d.query([[1, 2]])),
    ("NaN distance", errors.InvalidQuery, lambda c, d: d.query(ROW, max_distance=np.nan)),
    ("recall of 2", errors.InvalidQuery, lambda c, d: d.query(ROW, target_recall=2)),
    ("unknown include", errors.InvalidQuery, lambda c, d: d.query(ROW, include=["vectors"])),
    ("unknown operator", errors.InvalidFilter, lambda c, d: d.count({"a": {"$near": 1}})),
    ("filter that is no JSON", errors.InvalidFilter, lambda c, d: d.count("{")),
    ("filter that is a list", errors.InvalidFilter, lambda c, d: d.count("[1]")),
    ("bad regex", errors.InvalidFilter, lambda c, d: d.count({"a": {"$regex": "("}})),
    ("broken cursor", errors.InvalidCursor, lambda c, d: d.get(cursor="nonsense")),
    (
        "cursor of another call",
        errors.InvalidCursor,
        lambda c, d: d.get(cursor=a_cursor(d), filter={}),
    ),
    ("limit of 0", errors.InvalidQuery, lambda c, d: d.get(limit=0)),
    ("limit too large", errors.InvalidQuery, lambda c, d: d.get(limit=10_001)),
    ("limit with ids", errors.InvalidQuery, lambda c, d: d.get(["a"], limit=5)),
    ("slice out of range", errors.InvalidQuery, lambda c, d: list(d.scan(slice_index=2, slices=2))),
    ("batch size of 0", errors.InvalidQuery, lambda c, d: list(d.scan(batch_size=0))),
    (
        "commit that never comes",
        errors.DeadlineExceeded,
        lambda c, d: d.count(min_sequence=10**9, timeout_s=0.3),
    ),
]


def a_cursor(docs: Any) -> str:
    """A cursor of another verb."""
    return str(next(iter(docs.scan(batch_size=1))).cursor)


@pytest.mark.parametrize(
    ("kind", "call"), [case[1:] for case in PROVOKED], ids=[case[0] for case in PROVOKED]
)
def test_bad_input_is_refused_with_its_class(client: Any, kind: Any, call: Any) -> None:
    """Every kind of bad input is refused with its own class, and nothing of it is written."""
    docs = client.get_collection("live")
    before = (docs.count(), docs.stats().sequence, [c.name for c in client.list_collections()])
    with pytest.raises(kind) as caught:
        call(client, docs)
    assert type(caught.value) is kind
    assert len(caught.value.message) > 15
    after = (docs.count(), docs.stats().sequence, [c.name for c in client.list_collections()])
    assert after == before
    assert docs.check().ok


RAW: list[tuple[str, type[errors.VecdbError], str, Any]] = [
    ("no name", errors.InvalidName, "CreateCollection", pb.CreateCollectionRequest()),
    (
        "metric of a later version",
        errors.InvalidSetting,
        "CreateCollection",
        pb.CreateCollectionRequest(collection=pb.Collection(name="x", dimension=3, metric=9)),  # type: ignore[arg-type]
    ),
    (
        "unspecified include",
        errors.InvalidQuery,
        "Get",
        pb.GetRequest(collection="docs", include=[0]),  # type: ignore[list-item]
    ),
    ("no records", errors.InvalidBatch, "Insert", pb.InsertRequest(collection="docs")),
    (
        "vectors of a wrong length",
        errors.InvalidVector,
        "Query",
        pb.QueryRequest(collection="docs", vectors=pb.Vectors(data=b"abc", count=1, dimension=3)),
    ),
    (
        "vector name of a later version",
        errors.InvalidQuery,
        "Query",
        pb.QueryRequest(collection="docs", vector_name="title"),
    ),
    (
        "named vectors",
        errors.InvalidVector,
        "Upsert",
        pb.UpsertRequest(
            collection="docs",
            records=pb.RecordBatch(ids=["x"], named_vectors=[pb.NamedVectors(name="n")]),
        ),
    ),
    (
        "columns of unequal length",
        errors.InvalidBatch,
        "Update",
        pb.UpdateRequest(
            collection="docs", records=pb.RecordBatch(ids=["a"], metadata=[b"{}", b"{}"])
        ),
    ),
    ("delete of everything by omission", errors.InvalidBatch, "Delete", pb.DeleteRequest(collection="docs")),
    ("unknown collection", errors.CollectionNotFound, "GetStats", pb.GetStatsRequest(collection="x")),
    ("unknown collection", errors.CollectionNotFound, "Check", pb.CheckRequest(collection="x")),
    ("unknown collection", errors.CollectionNotFound, "BuildIndex", pb.BuildIndexRequest(collection="x")),
    ("rename unknown", errors.CollectionNotFound, "RenameCollection", pb.RenameCollectionRequest(name="x", new_name="y")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "rpc", "request_message"),
    [case[1:] for case in RAW],
    ids=[f"{c[2]}: {c[0]}" for c in RAW],
)
def test_raw_requests_that_no_client_of_ours_sends(
    client: Any, kind: Any, rpc: str, request_message: Any
) -> None:
    """Requests of clients in other languages are judged by the same classes."""
    with pytest.raises(grpc.RpcError) as caught:
        client._connection.method(rpc)(request_message, timeout=10)
    assert type(read_error(caught.value, "")) is kind


def test_bytes_that_are_no_message(client: Any) -> None:
    """A request that cannot be parsed is InvalidArgument, unary and streamed, and does no harm."""
    channel = client._connection._channel
    prefix = "/vecdb.v1.VecdbService/"
    garbage = b"\xff\xff\xff\xff\xff"
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(prefix + "Query")(garbage, timeout=10)
    assert type(read_error(caught.value, "")) is errors.InvalidArgument
    with pytest.raises(grpc.RpcError) as caught:
        list(channel.unary_stream(prefix + "Scan")(garbage, timeout=10))
    assert type(read_error(caught.value, "")) is errors.InvalidArgument
    with pytest.raises(grpc.RpcError) as caught:
        list(channel.stream_stream(prefix + "Ingest")(iter([garbage]), timeout=10))
    assert type(read_error(caught.value, "")) is errors.InvalidArgument
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(prefix + "NoSuchCall")(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert client.get_collection("docs").count() == 2
