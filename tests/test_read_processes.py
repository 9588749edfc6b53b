"""Reading processes beside the writer: the same answers on the same port, whoever of them is asked."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import AddKey, StartServer, wait_until
from seeds import RUN_SEED

from vecdb.errors import InvalidSetting
from vecdb_client import connect, errors
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_client.v1 import vecdb_pb2_grpc as pb_grpc
from vecdb_server.readers.forwarded import CERTIFICATE_KEY, PEER_KEY, origin
from vecdb_server.server import Server


def reader(server: Server, number: int = 1) -> str:
    """The address of one reading process alone."""
    assert server.readers is not None
    return server.readers.address(f"reader-{number}")


def calls(server: Server, name: str) -> dict[str, int]:
    """Calls that a reading process has answered, by method and status."""
    assert server.readers is not None
    found = server.readers.figures()[name].calls
    return {of: counted.observations for of, counted in found.items()}


def test_one_port_and_many_processes(start: StartServer) -> None:
    """The kernel deals out connections; every verb works on each, and what is acknowledged is seen on all."""
    server = start(read_processes=2)
    written = 0
    with connect(server.address) as first:
        first.create_collection("docs", dimension=2)
    for turn in range(200):
        with connect(server.address) as client:
            docs = client.get_collection("docs")
            docs.insert([f"a{turn}"], [[turn, 1.0]], metadata=[{"turn": turn}])
            written += 1
            assert docs.count() == written
            assert docs.query([turn, 1.0], k=1).ids[0] is not None
            assert docs.get([f"a{turn}"]).metadata[0] == {"turn": turn}
            assert docs.update([f"a{turn}"], metadata=[{"turn": -turn}]).count == 1
        if turn % 10 == 9 and all("Count/OK" in calls(server, f"reader-{n}") for n in (1, 2)):
            break
    else:
        pytest.fail("200 connections, and not one came to each reading process")
    with connect(server.address) as client:
        text = client.metrics()
    (counted,) = [
        line for line in text.splitlines() if line.startswith("vecdb_calls_seconds_count")
        and 'method="Count"' in line
    ]  # fmt: skip
    assert float(counted.split()[-1]) == written, "those of all processes together"
    (inserts,) = [
        line for line in text.splitlines() if line.startswith("vecdb_calls_seconds_count")
        and 'method="Insert"' in line
    ]  # fmt: skip
    assert float(inserts.split()[-1]) == written, "what is passed on is counted once"
    assert "vecdb_read_processes 2.0" in text


def test_a_reader_passes_on_what_is_no_read(start: StartServer) -> None:
    """Writes, streams of them, names, checks and builds by way of a reader; errors keep their details."""
    server = start(read_processes=1)
    with connect(reader(server)) as client, connect(server.address) as other:
        docs = client.create_collection("docs", dimension=2)
        assert docs.insert(["a", "b"], [[1, 2], [3, 4]]).sequence == 1
        with pytest.raises(errors.RecordExists) as refused:
            docs.insert(["c", "a"], [[1, 2], [3, 4]])
        assert refused.value.details["ids"] == ["a"]
        told = list(docs.ingest([(["c"], [[5, 6]]), (["d", "e"], [[7, 8], [9, 1]])]))
        assert [one.count for one in told] == [1, 2]
        assert sorted(id for records in docs.scan() for id in records.ids) == [
            "a",
            "b",
            "c",
            "d",
            "e",
        ]
        assert docs.delete(filter={}).count == 5
        assert other.get_collection("docs").count() == docs.count() == 0
        client.rename_collection("docs", "papers")
        client.set_alias("live", "papers")
        assert client.get_collection("live").name == "papers"
        client.drop_collection("papers")
        with pytest.raises(errors.CollectionNotFound):
            client.get_collection("live").count()
        with pytest.raises(errors.CollectionNotFound):
            docs.query([1, 2])
    own = calls(server, "reader-1")
    assert {of.split("/")[0] for of in own} <= {"Query", "QueryStream", "Get", "Count", "Scan"}


def test_a_query_sees_what_was_acknowledged(start: StartServer) -> None:
    """Writers at the writer, reads at a reader: each read shows at least what was acknowledged before it began,
    and never less than one before on its connection."""
    server = start(read_processes=1)
    rng, acknowledged, stop = np.random.default_rng(RUN_SEED), [0], threading.Event()
    vectors = rng.standard_normal((400, 4), dtype=np.float32)
    with connect(server.address) as client, connect(reader(server)) as asks:
        docs = client.create_collection("docs", dimension=4)

        def write() -> None:
            for n, vector in enumerate(vectors):
                docs.upsert([f"id{n}"], [vector])
                acknowledged[0] = n + 1
            stop.set()

        writer = threading.Thread(target=write)
        writer.start()
        seen, looked = 0, 0
        copy = asks.get_collection("docs")
        while not stop.is_set():
            before = acknowledged[0]
            found = copy.count()
            assert found >= max(before, seen)
            seen = found
            if before:
                near = copy.query(vectors[before - 1], k=1, exact=True)
                assert near.ids[0][0] == f"id{before - 1}"
                looked += 1
        writer.join()
        assert copy.count() == len(vectors)
    assert looked > 5


def test_what_one_process_has_shown_the_others_show(start: StartServer) -> None:
    """A write that is not acknowledged yet, and was seen by way of one process, is not missing by way of another."""
    server = start(read_processes=1)
    assert server.readers is not None
    at_writer = server.readers.writer
    with connect(server.address) as client:
        client.create_collection("docs", dimension=2)
    assert server._database is not None
    lane = server._database.get_collection("docs")._core._lane
    publish, go_on = lane._publish, threading.Event()
    seen: list[str | None] = []

    def held_back(*args: Any) -> None:
        assert go_on.wait(30)
        publish(*args)

    def ask(address: str) -> str | None:
        with connect(address) as client:
            ids: list[str] = client.get_collection("docs").query([1.0, 0.0], k=1).ids[0]
            return ids[0] if ids else None

    lane._publish = held_back
    try:
        with connect(at_writer) as client:
            docs = client.get_collection("docs")
            writer = threading.Thread(target=lambda: docs.insert(["a"], [[1.0, 0.0]]))
            writer.start()
            wait_until(lambda: ask(reader(server)) == "a", "the reader shows the commit")
            asked = threading.Thread(target=lambda: seen.append(ask(at_writer)))
            asked.start()
            asked.join(0.3)
            assert asked.is_alive(), seen
            go_on.set()
            writer.join(30)
            asked.join(30)
    finally:
        go_on.set()
        lane._publish = publish
    assert seen == ["a"]
    assert ask(reader(server)) == "a"


def test_readers_follow_new_files(start: StartServer) -> None:
    """An index that the writer built, and a file that it has written anew."""
    server = start(read_processes=1, exact_max_scalars=0, history_s=0.0)
    rng = np.random.default_rng(RUN_SEED)
    vectors = rng.standard_normal((1_000, 8), dtype=np.float32)
    with connect(server.address) as client, connect(reader(server)) as asks:
        docs = client.create_collection("docs", dimension=8, index="hnsw")
        docs.insert([f"id{n}" for n in range(1_000)], vectors)
        copy = asks.get_collection("docs")
        assert copy.query(vectors[5], k=1).ids[0][0] == "id5"
        docs.build_index()
        # Nothing else was committed: the index alone is news, and no query waits for it.
        wait_until(
            lambda: copy.query(vectors[6], k=1, explain=True).explain.kind == "hnsw", "the index"
        )
        assert copy.query(vectors[6], k=1).ids[0][0] == "id6"
        docs.delete([f"id{n}" for n in range(500)])
        docs.compact()
        assert copy.count() == 500
        assert copy.query(vectors[700], k=1).ids[0][0] == "id700"
        assert copy.query(vectors[6], k=1).ids[0][0] != "id6"


def test_what_a_reader_lets_nobody_do(
    start: StartServer, add: AddKey, keys_file: Path, tmp_path: Path
) -> None:
    """Keys and rights hold in every process, and one audit log has what any of them refused or did."""
    log = tmp_path / "audit.jsonl"
    root, reads = add("admin"), add("read:docs")
    server = start(keys_file=str(keys_file), audit_log=str(log), read_processes=1)
    with connect(reader(server), api_key=root) as admin:
        admin.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
        admin.create_collection("other", dimension=2)
    with connect(reader(server), api_key=reads) as client:
        docs = client.get_collection("docs")
        assert docs.count() == 1
        with pytest.raises(errors.PermissionDenied):
            docs.delete(["a"])
    with connect(reader(server)) as client, pytest.raises(errors.Unauthenticated):
        client.list_collections()
    with grpc.insecure_channel(reader(server)) as channel:
        stub: Any = pb_grpc.VecdbServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Count(
                pb.CountRequest(collection="other"),
                metadata=[("authorization", f"Bearer {reads}")],
            )
        assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED

    def told() -> list[tuple[str, str]]:
        return [
            (line["method"], line["code"]) for line in map(json.loads, log.read_text().splitlines())
        ]

    wait_until(lambda: len(told()) == 6, "six lines", 10)
    assert sorted(told()) == [
        ("Count", "PERMISSION_DENIED"),
        ("CreateCollection", "OK"),
        ("CreateCollection", "OK"),
        ("Delete", "PERMISSION_DENIED"),
        ("Insert", "OK"),
        ("ListCollections", "UNAUTHENTICATED"),
    ]


def test_the_audit_log_knows_whose_call_was_passed_on(
    start: StartServer, tmp_path: Path, authority: Any
) -> None:
    """Address and certificate of the client, not of the reader; a client that claims another is not believed."""
    log = tmp_path / "audit.jsonl"
    cert, key = authority.issue("server", "localhost")
    own_cert, own_key = authority.issue("client", "client.test", common_name="ann")
    server = start(
        read_processes=1,
        audit_log=str(log),
        tls_cert=cert,
        tls_key=key,
        tls_client_ca=str(authority.ca),
    )
    lied = [(PEER_KEY, b"ipv4:9.9.9.9:9"), (CERTIFICATE_KEY, b"somebody else")]
    credentials = grpc.ssl_channel_credentials(
        *(Path(name).read_bytes() for name in (authority.ca, own_key, own_cert))
    )
    request = pb.CreateCollectionRequest(collection=pb.Collection(name="docs", dimension=2))
    for _ in range(60):
        # A connection of its own each time: it comes to the writer or to the reader.
        with grpc.secure_channel(
            server.address.replace("127.0.0.1", "localhost"),
            credentials,
            options=[("grpc.use_local_subchannel_pool", 1)],
        ) as channel:
            stub: Any = pb_grpc.VecdbServiceStub(channel)
            done = stub.CreateCollection.future(request, metadata=lied)
            assert done.code() in (grpc.StatusCode.OK, grpc.StatusCode.ALREADY_EXISTS), done
            stub.Count(pb.CountRequest(collection="docs"))
        if calls(server, "reader-1").get("Count/OK", 0) >= 2:
            break
    else:
        pytest.fail("no connection came to the reader")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) > 1
    assert {line["certificate"] for line in lines} == {"ann"}
    assert {line["peer"].split(":")[0] for line in lines} <= {"ipv4", "ipv6"}
    assert not any("9.9.9.9" in line["peer"] for line in lines)


def test_only_a_reader_is_believed() -> None:
    """What a call says of its caller counts where it comes over the socket of the readers, nowhere else."""
    metadata = [(PEER_KEY, b"ipv4:1.2.3.4:5"), (CERTIFICATE_KEY, b"ann")]
    assert origin("unix:", metadata) == ("ipv4:1.2.3.4:5", "ann")
    assert origin("unix:", []) == ("unix:", "")
    assert origin("ipv4:9.8.7.6:1", metadata) == ("ipv4:9.8.7.6:1", None)


def test_settings_and_keys_are_taken_up_by_all(
    start: StartServer, add: AddKey, keys_file: Path
) -> None:
    """SIGHUP's work reaches readers: a lower limit, and a key that came later."""
    first = add("admin")
    server = start(keys_file=str(keys_file), read_processes=1)
    with connect(reader(server), api_key=first) as client:
        docs = client.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 2]])
        assert docs.query([1, 2], k=50).ids[0]
        second = add("read")
        wanted = {**server.settings, **server._engine_settings, "max_k": 10}
        assert server.reload(wanted) == ["max_k", "keys"]

        def refuses() -> bool:
            try:
                docs.query([1, 2], k=50)
            except errors.LimitExceeded:
                return True
            return False

        wait_until(refuses, "the limit at the reader", 10)
    with connect(reader(server), api_key=second) as client:
        assert client.get_collection("docs").count() == 1


def test_a_port_in_use_is_not_shared(start: StartServer, tmp_path: Path) -> None:
    """Reading processes share a port; another server, even of the same kind, does not get part of the calls."""
    first = start(read_processes=1)
    for processes in (0, 1):
        server = Server(
            {"data": str(tmp_path / "other"), "port": first.port, "read_processes": processes}
        )
        with pytest.raises(InvalidSetting, match="cannot listen"):
            server.start()


def test_reading_processes_search_on_the_cpu(start: StartServer, tmp_path: Path) -> None:
    """GPUs that are named are refused, `auto` means the CPU."""
    with pytest.raises(InvalidSetting, match="do not go together"):
        Server({"data": str(tmp_path), "read_processes": 1, "device": "gpu"})
    server = start(read_processes=1)
    with connect(server.address) as client:
        docs = client.create_collection("docs", dimension=2)
        assert docs.stats().index.device == "cpu"
