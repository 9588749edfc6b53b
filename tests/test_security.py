"""A server on a network: encryption, keys, rights, the audit log, and what is refused without them."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import pytest
from authority import Authority
from conftest import AddKey, StartServer, wait_until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import vecdb
from vecdb.errors import InvalidSetting
from vecdb_client import Tls, aio, connect, errors
from vecdb_client.v1 import vecdb_pb2
from vecdb_server import access, keys

METHODS = [m.name for m in vecdb_pb2.DESCRIPTOR.services_by_name["VecdbService"].methods]


def test_every_call_has_a_role() -> None:
    """No RPC of the contract is without an entry in the table of roles, and none there is unknown."""
    assert sorted(access.ROLE_OF) == sorted(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_without_a_key_nothing_is_answered(
    start: StartServer, add: AddKey, keys_file: Path, method: str
) -> None:
    """Each RPC is UNAUTHENTICATED without a key, with a wrong one, and with nonsense."""
    key = add("admin")
    server = start(keys_file=str(keys_file))
    path = f"/vecdb.v1.VecdbService/{method}"
    streams = method in ("Ingest", "QueryStream")
    with grpc.insecure_channel(server.address) as channel:
        for value in (
            None,
            "",
            "Bearer",
            f"Bearer {key[:-1]}.",
            f"Basic {key}",
            key,
            "Bearer " + "x" * 4_000,
        ):
            metadata = None if value is None else (("authorization", value),)
            with pytest.raises(grpc.RpcError) as caught:
                if streams:
                    list(channel.stream_stream(path)(iter([b""]), metadata=metadata, timeout=10))
                elif method in ("Scan", "BackupDatabase", "VerifyBackups", "RestoreBackup"):
                    list(channel.unary_stream(path)(b"", metadata=metadata, timeout=10))
                else:
                    channel.unary_unary(path)(b"", metadata=metadata, timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED, value
            assert key not in (caught.value.details() or "")


def test_backups_are_for_admins_of_everything(
    start: StartServer, add: AddKey, keys_file: Path, tmp_path: Path
) -> None:
    """A key that is an admin's of some collections takes, sees, restores and removes no backup."""
    root, some = add("admin"), add("admin:docs*", "write:*")
    server = start(keys_file=str(keys_file), backup_root=str(tmp_path / "backups"))
    with (
        connect(server.address, api_key=root) as admin,
        connect(server.address, api_key=some) as other,
    ):
        admin.create_collection("docs", dimension=2).insert(["x"], [[1, 2]])
        admin.backup("nightly")
        for call in (
            lambda: other.backup("nightly"),
            lambda: other.list_backups("nightly"),
            lambda: other.verify_backups("nightly"),
            lambda: other.restore("nightly", collections={"docs": "docs2"}),
            lambda: other.prune_backups("nightly", keep=1),
        ):
            with pytest.raises(errors.PermissionDenied, match="admin:"):
                call()
        assert len(admin.list_backups("nightly")) == 1


def test_roles_and_patterns(start: StartServer, add: AddKey, keys_file: Path) -> None:
    """A key may do what its role says on what its pattern names, and sees nothing else."""
    root, reader, writer = add("admin"), add("read:docs-*"), add("write:docs-a", "read:own*")
    server = start(keys_file=str(keys_file))
    with (
        connect(server.address, api_key=root) as admin,
        connect(server.address, api_key=reader) as reads,
        connect(server.address, api_key=writer) as writes,
    ):
        for name in ("docs-a", "docs-b", "secret"):
            admin.create_collection(name, dimension=2).insert(["x"], [[1, 2]])
        admin.set_alias("docs-live", "secret")
        admin.set_alias("current", "docs-a")
        assert [c.name for c in reads.list_collections()] == ["docs-a", "docs-b"]
        assert reads.server_info().collections == 2
        assert reads.list_aliases() == {"current": "docs-a"}
        assert reads.get_collection("current").count() == 1
        docs = reads.get_collection("docs-b")
        assert docs.query([1, 2]).ids == [["x"]]
        assert len(list(docs.scan())) == 1
        for forbidden in (
            lambda: docs.insert(["y"], [[1, 2]]),
            lambda: list(docs.ingest([(["y"], [[1, 2]])])),
            lambda: docs.delete(filter={}),
            lambda: docs.check(),
            lambda: docs.compact(),
            lambda: reads.get_collection("secret"),
            lambda: reads.get_collection("docs-live"),  # an alias gives no right
            lambda: reads.get_collection("nowhere"),  # nor does it say what exists
            lambda: reads.drop_collection("docs-a"),
            lambda: writes.create_collection("docs-a2", dimension=2),
            lambda: writes.rename_collection("docs-a", "own"),
            lambda: writes.set_alias("own", "docs-a"),
            lambda: writes.drop_alias("current"),
            lambda: writes.get_collection("docs-b"),
        ):
            with pytest.raises(errors.PermissionDenied):
                forbidden()
        with pytest.raises(errors.CollectionNotFound):
            reads.get_collection("docs-none")
        assert writes.get_collection("docs-a").insert(["y"], [[1, 2]]).count == 1
        assert admin.get_collection("secret").count() == 1


def test_who_may_not_read_a_collection_is_told_nothing_of_it(
    start: StartServer, add: AddKey, keys_file: Path, tmp_path: Path
) -> None:
    """Whether a name is free, a collection's, an alias of one or of one that cannot be opened: a key without rights
    hears the same, with the name that it gave; and nothing is opened for it."""
    root, other = add("admin"), add("admin:docs*")
    server = start(keys_file=str(keys_file), data=str(tmp_path / "db"))
    with connect(server.address, api_key=root) as admin:
        for name in ("secret", "broken", "docs"):
            admin.create_collection(name, dimension=2)
        admin.set_alias("pub", "secret")
        admin.set_alias("docs-al", "secret")
    server.stop()
    with vecdb.open(tmp_path / "db") as database:
        broken = database.get_collection("broken")._core.store.folder
    (broken / "data.mdb").write_bytes(b"no database")
    server = start(keys_file=str(keys_file), data=str(tmp_path / "db"))
    with connect(server.address, api_key=other) as mine:

        def said(call: Any, name: str) -> str:
            with pytest.raises(errors.PermissionDenied) as caught:
                call(name)
            return str(caught.value).replace(name, "?")

        names = ("nothing", "secret", "pub", "broken")
        assert len({said(mine.get_collection, name) for name in names}) == 1
        assert "secret" not in said(mine.get_collection, "docs-al")
        assert "secret" not in said(lambda name: mine.set_alias(name, "docs"), "docs-al")
        assert "secret" not in said(mine.drop_alias, "docs-al")
        database = server._database
        assert database is not None
        assert not any(database.is_loaded(name) for name in ("secret", "broken"))


def test_an_alias_is_taken_from_nobody(start: StartServer, add: AddKey, keys_file: Path) -> None:
    """Whoever administers some collections can neither move nor drop an alias of others."""
    root, team = add("admin"), add("admin:team-*", "admin:shared")
    server = start(keys_file=str(keys_file))
    with (
        connect(server.address, api_key=root) as admin,
        connect(server.address, api_key=team) as mine,
    ):
        admin.create_collection("other", dimension=2)
        mine.create_collection("team-a", dimension=2)
        admin.set_alias("shared", "other")
        for forbidden in (
            lambda: mine.set_alias("shared", "team-a"),
            lambda: mine.drop_alias("shared"),
            lambda: mine.set_alias("team-x", "other"),
            lambda: mine.rename_collection("team-a", "elsewhere"),
        ):
            with pytest.raises(errors.PermissionDenied):
                forbidden()
        assert admin.list_aliases() == {"shared": "other"}


def test_of_two_admins_at_once_neither_takes_an_alias_that_is_not_theirs(tmp_path: Path) -> None:
    """An alias that comes to stand for another's collection while it is asked for is not moved away from it."""
    team = keys.Key("k", (keys.Grant("admin", "team-*"), keys.Grant("admin", "shared")), ())
    with vecdb.open(tmp_path / "db") as database, ThreadPoolExecutor(1) as pool:
        for name in ("other", "team-a"):
            database.create_collection(name, dimension=2)
        guarded = access.GuardedDatabase(database)
        roots: list[Future[None]] = []
        listed, here = database.list_aliases, threading.get_ident()

        def listed_slowly() -> dict[str, str]:
            found = listed()
            if threading.get_ident() == here:
                roots.append(pool.submit(guarded.set_alias, "shared", "other"))
                wait(roots, timeout=0.5)
            return found

        with mock.patch.object(database, "list_aliases", listed_slowly):
            token = access.CALLER.set(access.Caller("SetAlias", team, "peer"))
            try:
                guarded.set_alias("shared", "team-a")
            finally:
                access.CALLER.reset(token)
        roots[0].result(timeout=10)
        assert database.list_aliases() == {"shared": "other"}


def test_keys_change_without_a_restart(start: StartServer, add: AddKey, keys_file: Path) -> None:
    """Keys added, rotated, revoked or expired count within a second or two, on connections that stand too."""
    first = add("read")
    server = start(keys_file=str(keys_file))
    with connect(server.address, api_key=first) as old:
        old.list_collections()
        key_id = keys.parsed(first)[0]  # type: ignore[index]
        _, second = keys.rotate(keys_file, key_id, time.time(), 0.0, None)
        assert server.reload() == ["keys"]
        with pytest.raises(errors.Unauthenticated):
            old.list_collections()
    brief = add("read", ends_in_s=3.0)
    with (
        connect(server.address, api_key=second) as new,
        connect(server.address, api_key=brief) as b,
    ):
        new.list_collections()

        def refused(client: Any) -> bool:
            try:
                client.list_collections()
            except errors.Unauthenticated:
                return True
            return False

        wait_until(lambda: not refused(b), "a new key is known by itself", 4)
        wait_until(lambda: refused(b), "an expired key is refused", 6)
        keys.revoke(keys_file, key_id, time.time())
        wait_until(lambda: refused(new), "a revoked key is refused", 4)
    keys_file.write_text("{")
    with pytest.raises(InvalidSetting, match="JSON"):
        server.reload()


def test_health_is_open_and_reflection_is_not(
    start: StartServer, add: AddKey, keys_file: Path
) -> None:
    """With keys set, a load balancer still sees health; the contract is shown to holders of a key only."""
    key = add("read:nothing")
    server = start(keys_file=str(keys_file))
    with grpc.insecure_channel(server.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = health.Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.ServerReflectionInfo(iter([asked]), timeout=10))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        metadata = (("authorization", f"Bearer {key}"),)
        (found,) = stub.ServerReflectionInfo(iter([asked]), timeout=10, metadata=metadata)
        assert "vecdb.v1.VecdbService" in [s.name for s in found.list_services_response.service]


def test_the_network_is_not_listened_on_by_accident(
    start: StartServer, add: AddKey, keys_file: Path, authority: Authority
) -> None:
    """Beyond loopback a server wants TLS and keys or client certificates, or a word that says otherwise."""
    add("read")
    cert, key = authority.issue("server", "127.0.0.1")
    tls = {"tls_cert": cert, "tls_key": key}
    for given in ({}, tls, {"keys_file": str(keys_file)}):
        with pytest.raises(InvalidSetting, match="insecure_listen_on_the_network"):
            start(host="0.0.0.0", **given)
    for given in (
        {**tls, "keys_file": str(keys_file)},
        {**tls, "tls_client_ca": str(authority.ca)},
        {"insecure_listen_on_the_network": True},
    ):
        server = start(
            host="0.0.0.0",
            data=str(keys_file.parent / f"db{len(given)}{'tls_client_ca' in given}"),
            **given,
        )
        assert server.port


def test_tls_and_keys(
    start: StartServer, add: AddKey, keys_file: Path, authority: Authority
) -> None:
    """Both clients talk over TLS with a key; without TLS, or with another authority, they are not answered."""
    cert, key = authority.issue("server", "127.0.0.1")
    text = add("admin")
    server = start(tls_cert=cert, tls_key=key, keys_file=str(keys_file))
    tls = Tls(ca=authority.ca)
    with connect(server.address, api_key=text, tls=tls, retry_s=5) as client:
        docs = client.create_collection("docs", dimension=2)
        assert docs.insert(["a"], [[1, 2]]).count == 1

    async def asynchronous() -> list[list[str]]:
        async with aio.connect(server.address, api_key=text, tls=tls) as db:
            found = await (await db.get_collection("docs")).query([1, 2])
            ids: list[list[str]] = found.ids
            return ids

    assert asyncio.run(asynchronous()) == [["a"]]
    other = authority.ca.parent / "other"
    other.mkdir()
    for wrong in (
        None,
        Tls(ca=Authority(other).ca),
        Tls(ca=authority.ca, server_name="elsewhere.example"),
    ):
        with (
            connect(server.address, tls=wrong, api_key=text, retry_s=0, timeout_s=5) as client,
            pytest.raises((errors.Unavailable, errors.DeadlineExceeded)),
        ):
            client.list_collections()


def test_mutual_tls(start: StartServer, authority: Authority, tmp_path: Path) -> None:
    """With `tls_client_ca` only clients with a certificate of it are served, and the audit log names them."""
    cert, key = authority.issue("server", "127.0.0.1")
    log = tmp_path / "audit.jsonl"
    server = start(tls_cert=cert, tls_key=key, tls_client_ca=str(authority.ca), audit_log=str(log))
    own, own_key = authority.issue("client", "shop@example.org", common_name="shop")
    with connect(server.address, tls=Tls(authority.ca, own, own_key)) as client:
        client.create_collection("docs", dimension=2)
    assert json.loads(log.read_text().splitlines()[0])["certificate"] == "shop"
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    theirs, their_key = Authority(stranger).issue("client", "shop@example.org", common_name="shop")
    for tls in (Tls(authority.ca), Tls(authority.ca, theirs, their_key)):
        with (
            connect(server.address, tls=tls, retry_s=0, timeout_s=5) as client,
            pytest.raises((errors.Unavailable, errors.DeadlineExceeded)),
        ):
            client.list_collections()


def test_a_renewed_certificate_is_taken_up(start: StartServer, authority: Authority) -> None:
    """New connections get the certificate that lies in the files now; damaged files change nothing."""
    cert, key = authority.issue("server", "127.0.0.1")
    server = start(tls_cert=cert, tls_key=key)

    def served() -> str:
        return ssl.get_server_certificate(("127.0.0.1", server.port), timeout=5)

    before = served()
    assert served() == before
    authority.issue("server", "127.0.0.1")
    assert server.reload() == ["certificates"]
    after = served()
    assert after != before
    with connect(server.address, tls=Tls(ca=authority.ca)) as client:
        assert client.list_collections() == []
    Path(key).write_text("-----BEGIN nonsense")
    with pytest.raises(InvalidSetting, match="no certificate"):
        server.reload()
    assert served() == after


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"tls_cert": "x.pem"}, "tls_key"),
        ({"tls_client_ca": "x.pem"}, "tls_cert"),
        ({"tls_cert": "none.pem", "tls_key": "none.key"}, "none.pem"),
        ({"keys_file": "none.json"}, "none.json"),
        ({"audit_log": "none/audit"}, "none/audit"),
    ],
)
def test_files_that_cannot_be_used_stop_the_start(
    start: StartServer, given: Any, named: str
) -> None:
    """A server does not start without the safety that it was told to have."""
    with pytest.raises(InvalidSetting, match=named):
        start(**given)


def test_a_key_does_not_travel_in_the_open() -> None:
    """A client refuses to send a key unencrypted to another machine, unless it is told to."""
    for target in ("db.example:7700", "10.0.0.7", "[2001:db8::1]:7700"):
        with pytest.raises(errors.InvalidSetting, match="unencrypted"):
            connect(target, api_key="k")
        connect(target, api_key="k", tls=True).close()
        connect(target, api_key="k", send_key_unencrypted=True).close()
    for target in ("127.0.0.1", "localhost:1", "[::1]:7700", "unix:/tmp/x"):
        connect(target, api_key="k").close()
    for key in ("", "a b", "a\n", "ä"):
        with pytest.raises(errors.InvalidSetting, match="api_key"):
            connect("127.0.0.1", api_key=key)


def test_the_key_of_the_environment(
    start: StartServer, add: AddKey, keys_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VECDB_API_KEY is the key of clients that name none."""
    key = add("read")
    server = start(keys_file=str(keys_file))
    monkeypatch.setenv("VECDB_API_KEY", key)
    with connect(server.address) as client:
        assert client.list_collections() == []


def test_the_command_line_shows_keys_and_certificates(
    start: StartServer, add: AddKey, keys_file: Path, authority: Authority, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Commands take the key from a file and speak TLS by flags."""
    from vecdb_server import __main__ as command_line

    secret = tmp_path / "secret"
    secret.write_text(add("admin") + "\n")
    cert, key = authority.issue("server", "127.0.0.1")
    server = start(tls_cert=cert, tls_key=key, keys_file=str(keys_file))
    where = ["--server", server.address, "--tls-ca", str(authority.ca)]
    assert (
        command_line.main(
            ["create", "docs", "--dimension", "2", *where, "--api-key-file", str(secret)]
        )
        == 0
    )
    assert command_line.main(["list", *where]) == 1
    assert "UNAUTHENTICATED" in capsys.readouterr().err
    assert command_line.main(["list", *where, "--api-key-file", str(tmp_path / "none")]) == 2
