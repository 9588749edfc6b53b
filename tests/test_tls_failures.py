"""A client that cannot agree with a server on TLS says so at once, and waits for one that only restarts."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from authority import Authority
from conftest import StartServer, event_loop_thread

from vecdb_client import Tls, aio, connect, errors
from vecdb_server.server import Server

PAST = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
LONG_S = 600.0


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    folder = tmp_path / "stranger"
    folder.mkdir()
    return Authority(folder)


def attempts_until_told(address: str, tls: Tls | bool, expected: str) -> list[int]:
    """How often both clients have called until they raised what was expected."""
    seen: list[int] = []

    def told(report: Any) -> None:
        seen.append(report.attempts)

    given: Any = {"tls": tls, "timeout_s": LONG_S, "retry_s": LONG_S, "on_call": told}

    async def asynchronous() -> None:
        async with aio.connect(address, **given) as db:
            await db.list_collections()

    with (
        connect(address, **given) as client,
        pytest.raises(errors.TlsFailed, match=expected) as caught,
    ):
        client.list_collections()
    assert isinstance(caught.value, errors.Unavailable)
    assert address in caught.value.message
    with pytest.raises(errors.TlsFailed, match=expected):
        asyncio.run(asynchronous())
    return seen


@pytest.mark.parametrize(
    ("asks", "expected"),
    [
        (lambda own, other: True, r"of no authority that is trusted here; give Tls\(ca="),
        (lambda own, other: Tls(ca=other), r"of no authority that is trusted here; give Tls\(ca="),
        (lambda own, other: Tls(own, server_name="db.example"), r"not for that name.*server_name"),
    ],
    ids=["no authority", "another authority", "another name"],
)
def test_a_server_that_is_not_trusted_is_not_asked_again(
    start: StartServer,
    authority: Authority,
    stranger: Authority,
    asks: Callable[[Path, Path], Tls | bool],
    expected: str,
) -> None:
    """However long a client may repeat its calls: one attempt, and words that name the certificate and what to do."""
    cert, key = authority.issue("server", "127.0.0.1")
    server = start(tls_cert=cert, tls_key=key)
    tls = asks(authority.ca, stranger.ca)
    assert attempts_until_told(server.address, tls, expected) == [1, 1]


def test_a_server_without_tls_is_not_asked_again(start: StartServer, authority: Authority) -> None:
    """By a client with TLS, which is told to do without, or that something else listens there."""
    found = attempts_until_told(
        start().address, Tls(authority.ca), "speaks no TLS; .* without `tls`"
    )
    assert found == [1, 1]


@pytest.mark.parametrize(
    ("begins", "ends", "expected"),
    [
        (PAST, PAST + DAY, "has expired; have it renewed"),
        (datetime.datetime.now(datetime.UTC) + DAY, None, "is not valid yet; set"),
    ],
    ids=["over", "to come"],
)
def test_a_certificate_of_another_time_is_called_so(
    start: StartServer, authority: Authority, tmp_path: Path, begins: Any, ends: Any, expected: str
) -> None:
    """One that has expired, and one that is not valid yet, by our clock."""
    ends = ends or begins + DAY
    made = authority._ca.issue_cert("127.0.0.1", not_before=begins, not_after=ends)
    cert, key = tmp_path / "time.pem", tmp_path / "time.key"
    cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    key.write_bytes(made.private_key_pem.bytes())
    server = start(tls_cert=str(cert), tls_key=str(key))
    assert attempts_until_told(server.address, Tls(authority.ca), expected) == [1, 1]


@pytest.fixture
def asking(authority: Authority) -> Iterator[str]:
    """The address of something that wants a certificate of a client, and says in TLS 1.2 what it thinks of it."""
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(*authority.issue("server", "127.0.0.1"))
    shown.load_verify_locations(str(authority.ca))
    shown.verify_mode = ssl.CERT_REQUIRED
    shown.maximum_version = ssl.TLSVersion.TLSv1_2
    shown.set_alpn_protocols(["h2"])
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    one, _ = door.accept()
                    with suppress(OSError), shown.wrap_socket(one, server_side=True):
                        pass

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{door.getsockname()[1]}"


@pytest.mark.parametrize("shows", [False, True], ids=["none", "of a stranger"])
def test_a_client_whose_certificate_is_refused_is_told_so(
    asking: str, authority: Authority, stranger: Authority, shows: bool
) -> None:
    """Where the other side says so, as proxies do: once more the certificate is named, now the client's own."""
    own = stranger.issue("client", "me@example.org") if shows else (None, None)
    expected = r"does not take this client's certificate, or wants one; give Tls\(cert="
    assert attempts_until_told(asking, Tls(authority.ca, *own), expected) == [1, 1]


Ask = Callable[[], Future[Any]]


@pytest.fixture(params=["sync", "asyncio"])
def asks(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Callable[[str], Ask]]:
    """Gives what begins a call, by a client of an address that may repeat calls for long."""
    given: Any = {"tls": Tls(authority.ca), "timeout_s": LONG_S, "retry_s": LONG_S}
    with ExitStack() as stack:
        if request.param == "sync":
            pool = stack.enter_context(ThreadPoolExecutor())

            def synchronous(address: str) -> Ask:
                client = stack.enter_context(connect(address, **given))
                return lambda: pool.submit(client.list_collections)

            yield synchronous
            return
        loop = stack.enter_context(event_loop_thread())

        def asynchronous(address: str) -> Ask:
            client = aio.connect(address, **given)
            stack.callback(
                lambda: asyncio.run_coroutine_threadsafe(client.close(), loop).result(60)
            )
            return lambda: asyncio.run_coroutine_threadsafe(client.list_collections(), loop)

        yield asynchronous


def test_a_restart_is_waited_for_and_a_wrong_certificate_behind_it_is_not(
    asks: Callable[[str], Ask], authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    """A call waits while nobody listens and is answered by the next server; where that shows the certificate of another
    authority, the call ends then, long before its time is over."""
    right, wrong = (one.issue("server", "127.0.0.1") for one in (authority, stranger))
    settings: dict[str, Any] = {"data": str(tmp_path / "db"), "port": 0, "drain_timeout_s": 5.0}

    def started(files: tuple[str, str]) -> Server:
        server = Server({**settings, "tls_cert": files[0], "tls_key": files[1]})
        server.start()
        settings["port"] = server.port
        return server

    server = started(right)
    ask = asks(server.address)
    assert ask().result(60) == []
    for files in (right, wrong):
        assert server.stop()
        waits = ask()
        time.sleep(0.5)
        assert not waits.done(), "nobody is there"
        server = started(files)
        if files is right:
            assert waits.result(120) == []
    with pytest.raises(errors.TlsFailed, match="of no authority that is trusted here"):
        waits.result(120)
    assert server.stop()
