"""How much a stranger may ask for, and that no name of his ever becomes a path."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import StartServer, wait_until
from timing import once_below, seconds

from vecdb.errors import InvalidFilter
from vecdb.parsed_filters import parsed
from vecdb_client import connect, errors
from vecdb_client.transport import read_error
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_client.v1 import vecdb_pb2_grpc as pb_grpc
from vecdb_server.limits import Limits
from vecdb_server.settings import SETTINGS, load


def test_each_limit_is_kept(start: StartServer) -> None:
    """One more than a setting allows is refused by name of the setting; as much as it allows is not."""
    server = start(
        max_batch_records=3, max_k=5, max_filter_bytes=200, max_filter_depth=3, max_regex_patterns=1,
        max_regex_bytes=8, max_metadata_bytes=20, max_name_chars=6, max_collections=2,
    )  # fmt: skip
    deep: dict[str, Any] = {"a": 1}
    for _ in range(2):
        deep = {"$not": deep}
    with connect(server.address) as db:
        docs = db.create_collection("sixsix", dimension=2)
        docs.insert(["a", "b", "c"], np.ones((3, 2)), metadata=[{"k": "x" * 10}] * 3)
        docs.query([1, 1], k=5, filter=deep)
        docs.query(np.ones((4, 2)), k=5)
        assert docs.get(list("abc")).ids == ["a", "b", "c"]
        assert docs.delete(list("xyz")).count == 0
        docs.query([1, 1], k=5, max_distance=3.0)
        docs.count({"k": {"$regex": "x" * 8}})
        db.create_collection("second", dimension=2)
        refused = [
            ("max_batch_records", lambda: docs.upsert(list("abcd"), np.ones((4, 2)))),
            ("max_batch_records", lambda: list(docs.ingest([(list("abcd"), np.ones((4, 2)))]))),
            ("max_batch_records", lambda: docs.get(list("abcd"))),
            ("max_batch_records", lambda: docs.delete(list("abcd"))),
            ("max_metadata_bytes", lambda: docs.upsert(["a"], [[1, 2]], metadata=[{"k": "x" * 14}])),
            ("max_metadata_bytes", lambda: docs.update(["a"], metadata=[{"k": "x" * 14}])),
            ("max_k", lambda: docs.query([1, 1], k=6)),
            ("max_k", lambda: docs.query([1, 1], max_distance=1.0)),
            ("max_k", lambda: docs.query([1, 1], mmr_lambda=0.5, mmr_candidates=6, k=2)),
            ("max_filter_depth", lambda: docs.query([1, 1], k=5, filter={"$not": deep})),
            ("max_filter_depth", lambda: docs.get(filter={"$not": deep})),
            ("max_filter_depth", lambda: list(docs.scan(filter={"$not": deep}))),
            ("max_filter_depth", lambda: docs.delete(filter={"$not": deep})),
            ("max_filter_bytes", lambda: docs.count({"a": {"$in": ["x" * 50] * 4}})),
            ("max_regex_bytes", lambda: docs.count({"k": {"$regex": "x" * 9}})),
            ("max_regex_patterns", lambda: docs.count({"k": {"$regex": "x"}, "l": {"$regex": "x"}})),
            ("max_name_chars", lambda: db.create_collection("sevense", dimension=2)),
            ("max_name_chars", lambda: db.rename_collection("second", "sevense")),
            ("max_name_chars", lambda: db.set_alias("sevense", "second")),
            ("max_name_chars", lambda: db.restore(collections={"second": "sevense"})),
            ("max_collections", lambda: db.create_collection("third", dimension=2)),
        ]  # fmt: skip
        for setting, call in refused:
            with pytest.raises((errors.LimitExceeded, errors.InvalidFilter), match=setting):
                call()
        assert docs.count() == 3
        db.drop_collection("second")
        db.create_collection("third", dimension=2)


@pytest.mark.parametrize("moment", [2**63 - 1, -(2**63), 5])
def test_the_time_of_making_is_the_servers(start: StartServer, moment: int) -> None:
    """A request's own `created_at_us` is passed over, also where it is a moment that no calendar has."""
    with grpc.insecure_channel(start().address) as channel:
        stub: Any = pb_grpc.VecdbServiceStub(channel)
        asked = pb.Collection(name="docs", dimension=2, created_at_us=moment)
        made = stub.CreateCollection(pb.CreateCollectionRequest(collection=asked), timeout=10)
        assert abs(made.collection.created_at_us / 1e6 - time.time()) < 60


def test_every_limit_is_a_setting_with_bounds() -> None:
    """Each setting `max_...` has a lowest and a highest value, and the default is what the engine takes."""
    found = [row for row in SETTINGS if row.name.startswith("max_")]
    assert len(found) >= 14
    assert all(row.low is not None and row.high is not None for row in found)
    Limits(load({}, {})).check("Query", pb.QueryRequest(k=10_000, filter="{}"))


def test_a_pattern_that_backtracks_elsewhere_costs_little(start: StartServer) -> None:
    """A pattern that takes others exponential time takes time linear in the text."""
    with connect(start().address) as db:
        docs = db.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 2]], documents=["a" * 5_000_000])
        began_s = time.monotonic()
        assert docs.count({"$document": {"$regex": "^(a+)+(a*)*$b|(a|aa)+$c"}}) == 0
        assert time.monotonic() - began_s < 10


def test_a_name_given_twice_among_very_many_is_found_at_once() -> None:
    """A filter of as many names as it can hold, of which the last comes twice, takes no longer than another."""
    text = "{" + ",".join(f'"{i:x}":1' for i in range(90_000)) + ',"15f8f":1}'

    def parse_it() -> None:
        with pytest.raises(InvalidFilter, match="given twice"):
            parsed(text)

    # Minutes while each name was counted among all, and no other thread went on meanwhile.
    once_below(5.0, lambda: seconds(parse_it), tries=2)


def test_a_request_that_repeats_itself_is_refused_before_it_is_spread(start: StartServer) -> None:
    """Parts of a record named a hundred thousand times, and more ids than any call takes, are refused at once."""
    with grpc.insecure_channel(start().address) as channel:
        stub: Any = pb_grpc.VecdbServiceStub(channel)
        made = pb.Collection(name="docs", dimension=2)
        stub.CreateCollection(pb.CreateCollectionRequest(collection=made), timeout=10)
        one = pb.Vectors(data=b"\0\0\x80\x3f" * 2, count=1, dimension=2)
        much, many = [pb.INCLUDE_URI] * 100_000, ["x"] * 100_001
        query = pb.QueryRequest(collection="docs", vectors=one, include=much)
        for call, request, reason in (
            (stub.Query, query, "INVALID_QUERY"),
            (stub.Get, pb.GetRequest(collection="docs", include=much), "INVALID_QUERY"),
            (stub.Query, pb.QueryRequest(collection="docs", ids=many), "INVALID_BATCH"),
            (stub.Get, pb.GetRequest(collection="docs", ids=many), "INVALID_BATCH"),
            (stub.Delete, pb.DeleteRequest(collection="docs", ids=many), "INVALID_BATCH"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call(request, timeout=20)
            refused = read_error(caught.value, "")
            assert refused.reason == reason, refused
        alike = pb.StreamedQuery(query=query)
        streamed = stub.QueryStream(iter([pb.QueryStreamRequest(queries=[alike] * 2)]), timeout=20)
        assert b"INVALID_QUERY" in next(streamed).answers[0].error.error


def test_a_client_does_not_fill_the_log(
    start: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A slow query is told in a line of bounded length, whatever its texts and lists are."""
    with grpc.insecure_channel(start(slow_query_s=1e-6).address) as channel:
        stub: Any = pb_grpc.VecdbServiceStub(channel)
        made = pb.Collection(name="docs", dimension=2)
        stub.CreateCollection(pb.CreateCollectionRequest(collection=made), timeout=10)
        request = pb.QueryRequest(
            collection="docs", ids=["x"], include=[pb.INCLUDE_URI] * 60, vector_name="n" * 100_000,
            filter=json.dumps({"t": "x" * 100_000}),
        )  # fmt: skip
        with pytest.raises(grpc.RpcError):
            stub.Query(request, timeout=20)
    (told,) = [one for one in caplog.records if one.message == "slow query"]
    held: Any = told.__dict__
    assert len(held["vector_name"]) + len(held["filter"]) + len(held["include"]) < 2_000


def test_connections_of_one_host_are_bounded(start: StartServer) -> None:
    """Beyond `max_connections_per_peer` a further connection's calls are refused until one is quiet."""
    server = start(max_connections_per_peer=2)
    with connect(server.address) as filled:
        docs = filled.create_collection("docs", dimension=2)
        docs.insert(
            [f"r{i}" for i in range(200)], np.ones((200, 2)), documents=["d" * 50_000] * 200
        )
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(server.address, options=options) for _ in range(3)]
    stubs: list[Any] = [pb_grpc.VecdbServiceStub(channel) for channel in channels]
    scans = []
    request = pb.ScanRequest(collection="docs", batch_size=1, include=[pb.INCLUDE_DOCUMENT])
    for stub in stubs[:2]:
        scans.append(stub.Scan(request, timeout=600))
        next(scans[-1])
    with pytest.raises(grpc.RpcError) as caught:
        stubs[2].ListCollections(pb.ListCollectionsRequest(), timeout=10)
    refused = read_error(caught.value, "")
    assert isinstance(refused, errors.ResourceExhausted)
    assert "max_connections_per_peer" in refused.message
    stubs[0].ListCollections(pb.ListCollectionsRequest(), timeout=10)
    scans[0].cancel()

    def answered() -> bool:
        try:
            stubs[2].ListCollections(pb.ListCollectionsRequest(), timeout=10)
        except grpc.RpcError:
            return False
        return True

    wait_until(answered, "a place is free again")
    for channel in channels:
        channel.close()


def test_connections_are_bounded(start: StartServer) -> None:
    """Beyond `max_connections` a further connection is not served; the others go on."""
    server = start(max_connections=2)
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(server.address, options=options) for _ in range(3)]
    stubs: list[Any] = [pb_grpc.VecdbServiceStub(channel) for channel in channels]
    for stub in stubs[:2]:
        stub.ListCollections(pb.ListCollectionsRequest(), timeout=10)
    with pytest.raises(grpc.RpcError):
        stubs[2].ListCollections(pb.ListCollectionsRequest(), timeout=2)
    for stub in stubs[:2]:
        stub.ListCollections(pb.ListCollectionsRequest(), timeout=10)
    for channel in channels:
        channel.close()


# --- no name becomes a path -----------------------------------------------------------------------

MARK = "zzqq"
NAMES = [
    f"../{MARK}", f"../../{MARK}", f"/tmp/{MARK}", f"/{MARK}", f"./{MARK}", f"a/../../{MARK}", f"{MARK}/x",
    f"..\\{MARK}", f"C:\\{MARK}", f"{MARK}\0x", f"\0{MARK}", f"{MARK}\n", f"..{MARK}", f"{MARK}..", f".{MARK}",
    f"\u2025/{MARK}", f"\uff0e\uff0e\uff0f{MARK}", f"..\u2215{MARK}", f"%2e%2e%2f{MARK}", f"~{MARK}", f"~/{MARK}",
    f"$HOME/{MARK}", f"`{MARK}`", f"{MARK}\u202egnp", f"{MARK}\u0301", f"file:///{MARK}", f"{MARK};ls", f"-{MARK}",
    f"{MARK}*", f"con.{MARK}", MARK, f"{MARK}.mdb", "x" * 100 + MARK,
]  # fmt: skip
_watched: list[list[str]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched and event.split(".")[0] in ("open", "os", "shutil", "pathlib", "glob", "tempfile"):
        _watched[-1].extend(
            os.fsdecode(one) for one in arguments if isinstance(one, (str, bytes, os.PathLike))
        )


@contextmanager
def watched() -> Iterator[list[str]]:
    """Every path that Python hands to the system meanwhile, in any thread of this process."""
    if not getattr(sys, "vecdb_test_hook", False):
        sys.addaudithook(_hook)  # cannot be taken away again, so it is set once
        sys.vecdb_test_hook = True  # type: ignore[attr-defined]
    paths: list[str] = []
    _watched.append(paths)
    try:
        yield paths
    finally:
        _watched.pop()


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def requests_with(name: str) -> Iterator[tuple[str, Any]]:
    """A request of every RPC with `name` wherever a text goes."""
    vectors = pb.Vectors(data=b"\0\0\x80\x3f" * 2, count=1, dimension=2)
    records = pb.RecordBatch(
        ids=[name], vectors=vectors, metadata=[b"{}"], documents=pb.TextColumn(values=[name]),
        uris=pb.TextColumn(values=[f"file:///{name}"]),
        contents=pb.ContentColumn(values=[b"x"], media_types=[name]),
        named_vectors=[pb.NamedVectors(name=name, vectors=vectors)],
    )  # fmt: skip
    made = pb.Collection(
        name=name, dimension=2, schema={name: "int"}, description=name, device=name,
        vectors=[pb.VectorField(name=name, dimension=2)],
    )  # fmt: skip
    yield "GetServerInfo", pb.GetServerInfoRequest()
    yield "GetMetrics", pb.GetMetricsRequest()
    yield "CreateCollection", pb.CreateCollectionRequest(collection=made)
    yield (
        "CreateCollection",
        pb.CreateCollectionRequest(collection=pb.Collection(name=name, dimension=2)),
    )
    yield "GetCollection", pb.GetCollectionRequest(name=name)
    yield "ListCollections", pb.ListCollectionsRequest()
    yield "RenameCollection", pb.RenameCollectionRequest(name="docs", new_name=name)
    yield "RenameCollection", pb.RenameCollectionRequest(name=name, new_name="docs")
    yield "SetAlias", pb.SetAliasRequest(alias=name, collection="docs")
    yield "SetAlias", pb.SetAliasRequest(alias="al", collection=name)
    yield "ListAliases", pb.ListAliasesRequest()
    for target in (name, "docs"):
        yield "Insert", pb.InsertRequest(collection=target, records=records, request_id=name[:60])
        yield "Upsert", pb.UpsertRequest(collection=target, records=records)
        yield "Update", pb.UpdateRequest(collection=target, records=records)
        yield "Ingest", pb.IngestRequest(collection=target, records=records)
        yield "Get", pb.GetRequest(collection=target, ids=[name])
        yield "Get", pb.GetRequest(collection=target, order_by=name, cursor=name, filter=name)
        yield (
            "Query",
            pb.QueryRequest(collection=target, vectors=vectors, vector_name=name, group_by=name),
        )
        yield "Query", pb.QueryRequest(collection=target, ids=[name], filter=f'{{"id": "{MARK}"}}')
        alike = pb.QueryRequest(collection=target, vectors=vectors, filter=name)
        yield "QueryStream", pb.QueryStreamRequest(queries=[pb.StreamedQuery(query=alike)] * 2)
        yield "Count", pb.CountRequest(collection=target, filter=f'{{"{MARK}/../x": 1}}')
        yield "Scan", pb.ScanRequest(collection=target, cursor=name)
        yield "GetStats", pb.GetStatsRequest(collection=target)
        yield "Check", pb.CheckRequest(collection=target)
        yield "BuildIndex", pb.BuildIndexRequest(collection=target, wait=True)
        yield "CancelBuild", pb.CancelBuildRequest(collection=target)
        yield "Flush", pb.FlushRequest(collection=target)
        yield "Compact", pb.CompactRequest(collection=target, wait=True)
        yield "Delete", pb.DeleteRequest(collection=target, ids=[name])
    yield "BackupDatabase", pb.BackupDatabaseRequest(target=name, collections=["docs"])
    yield "BackupDatabase", pb.BackupDatabaseRequest(target="kept", collections=[name])
    yield "ListBackups", pb.ListBackupsRequest(target=name)
    yield "VerifyBackups", pb.VerifyBackupsRequest(target=name, backup=name)
    yield "VerifyBackups", pb.VerifyBackupsRequest(target="kept", backup=name)
    yield "RestoreBackup", pb.RestoreBackupRequest(target=name, backup=name)
    yield "RestoreBackup", pb.RestoreBackupRequest(target="kept", collections={"docs": name})
    yield "RestoreBackup", pb.RestoreBackupRequest(target="kept", backup=name)
    yield "PruneBackups", pb.PruneBackupsRequest(target=name, keep=1)
    yield "DropAlias", pb.DropAliasRequest(alias=name)
    yield "DropCollection", pb.DropCollectionRequest(name=name)


def test_no_text_of_a_client_becomes_a_path(start: StartServer, tmp_path: Path) -> None:
    """Names that climb, name devices or trick by Unicode, in every text of every RPC, reach no file."""
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "precious").write_text("stays")
    server = start(data=str(tmp_path / "db"), device="cpu", backup_root=str(tmp_path / "backups"))
    methods = {m.name for m in pb.DESCRIPTOR.services_by_name["VecdbService"].methods}
    assert {method for method, _ in requests_with("x")} == methods
    allowed = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND,
               grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.FAILED_PRECONDITION}  # fmt: skip
    seen = []
    with grpc.insecure_channel(server.address) as channel, watched() as paths:
        stub: Any = pb_grpc.VecdbServiceStub(channel)
        for name in NAMES:
            stub.CreateCollection(
                pb.CreateCollectionRequest(
                    collection=pb.Collection(name="docs", dimension=2), exist_ok=True
                )
            )
            for method, request in requests_with(name):
                call = getattr(stub, method)
                try:
                    if method in ("Ingest", "QueryStream"):
                        list(call(iter([request]), timeout=30))
                    elif method in ("Scan", "BackupDatabase", "VerifyBackups", "RestoreBackup"):
                        list(call(request, timeout=30))
                    else:
                        call(request, timeout=30)
                except grpc.RpcError as error:
                    seen.append((error.code(), method, name))
    assert not [one for one in seen if one[0] not in allowed]
    database = str(tmp_path / "db")
    assert [p for p in paths if database in p], "nothing was watched"
    # Folders of backups are named by admins, in letters that cannot leave the root of backups.
    backups = re.compile(re.escape(str(tmp_path / "backups")) + r"/[A-Za-z0-9][A-Za-z0-9_.-]*")
    kept = [backups.sub("", p) for p in paths]
    assert not [p for p in kept if MARK in p]
    assert not [p for p in tree(tmp_path) if MARK in backups.sub("", str(tmp_path / p))]
    for path in tree(tmp_path / "db" / "collections"):
        assert all(part.replace("-", "").isalnum() for part in Path(path).parts[:1]), path
    assert tree(tmp_path / "beside") == {"precious"}
    assert (tmp_path / "beside" / "precious").read_text() == "stays"


def test_nothing_of_a_client_is_run_as_code() -> None:
    """No module of engine, server or client imports pickle or calls eval, exec or the like."""
    import ast

    root = Path(__file__).resolve().parent.parent
    files = [
        path
        for folder in ("vecdb", "server/vecdb_server", "clients/python/vecdb_client")
        for path in (root / folder).rglob("*.py")
        if "v1" not in path.parts
    ]
    assert len(files) > 100
    wrong = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = [f"{node.func.id}()"]
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                names = ["pickle"] if getattr(node.value, "value", True) else []
            bad = {
                "pickle",
                "marshal",
                "shelve",
                "dill",
                "cloudpickle",
                "eval()",
                "exec()",
                "compile()",
            }
            wrong += [f"{path.name}: {name}" for name in names if name in bad]
    assert not wrong
