"""Health and reflection, which no client of ours needs: whatever is done to them takes nothing from the others."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import StartServer, wait_until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from timing import once_below, seconds

from vecdb.errors import ResourceExhausted
from vecdb_client import connect, errors
from vecdb_client.transport import read_error
from vecdb_server import pools, silence
from vecdb_server.server import Server

LIST = reflection_pb2.ServerReflectionRequest(list_services="")
Asked = tuple[Any, Callable[[Any], None]]


class Strangers:
    """Connections of their own to one server, and calls on them that their clients leave open."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stack = ExitStack()
        self._open: list[queue.SimpleQueue[Any]] = []
        self._calls: list[Any] = []
        """A call that nobody holds is cancelled."""

    def connection(self) -> Any:
        # Those of one process share a connection, unless they ask for one of their own.
        own = [("grpc.use_local_subchannel_pool", 1)]
        return self._stack.enter_context(grpc.insecure_channel(self._address, options=own))

    def reflection(self, channel: Any) -> Asked:
        """(the answers, how to ask) of a stream that stays open."""
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        said = self._said()
        return self._kept(stub.ServerReflectionInfo(iter(said.get, None))), said.put

    def silent_check(self, channel: Any) -> Any:
        """A call of Check whose request never comes."""
        check = channel.stream_unary("/grpc.health.v1.Health/Check")
        return self._kept(check.future(iter(self._said().get, None)))

    def silent_watch(self, channel: Any) -> Any:
        """The same of Watch."""
        watch = channel.stream_stream("/grpc.health.v1.Health/Watch")
        return self._kept(watch(iter(self._said().get, None)))

    def _kept(self, call: Any) -> Any:
        self._calls.append(call)
        return call

    def _said(self) -> queue.SimpleQueue[Any]:
        said: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._open.append(said)
        return said

    def close(self) -> None:
        for said in self._open:
            said.put(None)
        self._stack.close()


@pytest.fixture
def strangers(start: StartServer) -> Iterator[Callable[..., tuple[Any, Strangers]]]:
    """Starts a server with some settings; it, and strangers who come to it."""
    came: list[Strangers] = []

    def come(**settings: Any) -> tuple[Any, Strangers]:
        server = start(**settings)
        came.append(Strangers(server.address))
        return server, came[-1]

    yield come
    for one in came:
        one.close()


def refused(error: Any) -> errors.VecdbError:
    """What a call was refused with, which is for load and names a delay."""
    found = read_error(error, "")
    assert isinstance(found, errors.ResourceExhausted)
    assert 20 <= int(str(found.details["retry_after_ms"])) <= 5_000
    return found


def check(channel: Any, timeout_s: float = 30) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call,unused-ignore]
    return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s).status)


def test_idle_streams_of_reflection_take_nothing_from_others(
    strangers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of forty that one client leaves open two are taken, the others refused with a delay; calls that may last
    have all their threads."""
    monkeypatch.setattr(silence, "IDLE_S", 600)
    server, them = strangers(stream_threads=1)
    channel, refusals = them.connection(), list[str]()
    for _ in range(40):
        answers, ask = them.reflection(channel)
        ask(LIST)
        try:
            next(answers)
        except grpc.RpcError as error:
            refusals.append(refused(error).message)
    assert len(refusals) == 38
    assert all("reflection" in one for one in refusals)
    assert server._pools.reflection.busy == 2
    assert server._pools.long.busy == server._pools.running() == 0
    with connect(server.address, retry_s=0) as client:
        docs = client.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 2]])
        assert [list(batch.ids) for batch in docs.scan()] == [["a"]]
        text = client.metrics()
    assert 'vecdb_calls_running{pool="reflection"} 2.0' in text
    assert 'vecdb_calls_refused_total{reason="threads"} 0.0' not in text


def test_an_idle_stream_of_reflection_goes_for_another(
    strangers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who comes when all threads are taken ends the stream that was silent longest, also one that leaves its
    answers unread; one that has just asked stays."""
    server, them = strangers()
    monkeypatch.setattr(silence, "IDLE_S", 0.05)
    (unread, ask_unread), (first, ask) = (them.reflection(them.connection()) for _ in range(2))
    ask_unread(LIST)
    next(unread)
    for _ in range(2_000):
        ask_unread(LIST)  # more answers than the connection holds
    times: list[Any] = [None]

    def is_still() -> bool:
        # What it has asked is read at last: from then on it is silent, for longer than the other.
        times.append(dict(server._pools.reflecting._since))
        threading.Event().wait(0.2)
        return times[-1] == dict(server._pools.reflecting._since)

    wait_until(is_still, "all that is read of it is read")
    monkeypatch.setattr(silence, "IDLE_S", 600)
    ask(LIST)
    next(first)
    third, ask_third = them.reflection(them.connection())
    ask_third(LIST)
    with pytest.raises(grpc.RpcError) as caught:
        next(third)
    refused(caught.value)
    monkeypatch.setattr(silence, "IDLE_S", 0.05)
    pause = threading.Event()

    def answered() -> bool:
        ask(LIST)
        next(first)
        newest, ask_newest = them.reflection(them.connection())
        ask_newest(LIST)
        try:
            return bool(next(newest).list_services_response.service)
        except grpc.RpcError:
            return pause.wait(0.05)

    wait_until(answered, "the other stream has gone")
    ask(LIST)
    assert next(first).list_services_response.service
    assert server._pools.reflection.busy <= 2


def test_reflection_counts_among_the_connections_of_a_host(strangers: Any) -> None:
    """Its calls are under way like others: with one connection a host, a second one's calls are refused."""
    server, them = strangers(max_connections_per_peer=1)
    answers, ask = them.reflection(them.connection())
    ask(LIST)
    next(answers)
    with (
        connect(server.address, retry_s=0) as client,
        pytest.raises(errors.ResourceExhausted, match="max_connections_per_peer") as caught,
    ):
        client.list_collections()
    assert 500 <= caught.value.details["retry_after_ms"] <= 2_000
    others, ask_others = them.reflection(them.connection())
    ask_others(LIST)
    with pytest.raises(grpc.RpcError) as ended:
        next(others)
    assert "max_connections_per_peer" in refused(ended.value).message
    answers.cancel()
    with connect(server.address, retry_s=20) as client:
        assert client.list_collections() == []


def test_idle_reflection_does_not_delay_a_stop(tmp_path: Path) -> None:
    """A stream that has nothing to do is no running call."""

    folders = iter(range(5))

    def stopped() -> float:
        server = Server({"data": str(tmp_path / f"{next(folders)}"), "port": 0})
        server.start()
        them = Strangers(server.address)
        answers, ask = them.reflection(them.connection())
        ask(LIST)
        next(answers)
        took_s = seconds(server.stop)
        with pytest.raises(grpc.RpcError):
            next(answers)
        them.close()
        return took_s

    once_below(5, stopped)


def test_who_asks_for_health_and_sends_no_request_is_ended(
    strangers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a thread of health nor one of reads is kept by calls whose request never comes, though nobody needs
    a key for them."""
    monkeypatch.setattr(silence, "IDLE_S", 600)
    server, them = strangers(worker_threads=1)
    channel = them.connection()
    silent = [them.silent_check(channel) for _ in range(6)]
    silent += [them.silent_watch(channel) for _ in range(6)]
    wait_until(lambda: server._pools.health.busy == 12, "they are in")
    assert server._pools.reads.busy == 0
    monkeypatch.setattr(silence, "IDLE_S", 0.2)
    assert check(them.connection()) == health_pb2.HealthCheckResponse.SERVING
    with connect(server.address, retry_s=0) as client:
        assert client.list_collections() == []
    wait_until(lambda: server._pools.health.busy == 0, "they are ended")
    assert all(one.code() is grpc.StatusCode.CANCELLED for one in silent)
    wait_until(lambda: not server._pools.asking._looks, "nobody looks for silent calls")


def test_calls_of_health_are_bounded(strangers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four places one connection gets two, and is refused with a delay beyond; another is answered."""
    monkeypatch.setattr(silence, "IDLE_S", 600)
    monkeypatch.setattr(pools, "HEALTH_CALLS", 4)
    server, them = strangers()
    channel = them.connection()
    for _ in range(2):
        them.silent_check(channel)
    wait_until(lambda: server._pools.health.busy == 2, "they are in")
    for ask in (check, lambda one: them.silent_check(one).result(30)):
        with pytest.raises(grpc.RpcError) as caught:
            ask(channel)
        assert "calls of health" in refused(caught.value).message
    assert check(them.connection()) == health_pb2.HealthCheckResponse.SERVING
    assert server._pools.running() == 0


def test_watches_of_health_are_bounded(strangers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four places one host gets two, whatever its connections; one that ends makes room for the next."""
    monkeypatch.setattr(pools, "HEALTH_WATCHES", 4)
    server, them = strangers()

    def watch() -> Any:
        stub: Any = health_pb2_grpc.HealthStub(them.connection())  # type: ignore[no-untyped-call,unused-ignore]
        return stub.Watch(health_pb2.HealthCheckRequest())

    kept = [watch() for _ in range(2)]
    assert [next(one).status for one in kept] == [health_pb2.HealthCheckResponse.SERVING] * 2
    with pytest.raises(grpc.RpcError) as caught:
        next(watch())
    assert "watches of health" in refused(caught.value).message
    kept[0].cancel()
    wait_until(lambda: len(server._pools.watches) == 1, "its place is free")
    assert next(watch()).status == health_pb2.HealthCheckResponse.SERVING
    assert len(server._pools.watches) == 2


def test_places_are_shared_among_hosts() -> None:
    """Where one host holds its half, another gets half of the rest."""
    from vecdb_server.admission import Admission
    from vecdb_server.silence import Watches

    admission = Admission({})
    watches = Watches(lambda mine, taken: admission.refusal_of_few(mine, taken, 8, "watches"))
    leave: list[Callable[[], None]] = []

    class From:
        def __init__(self, peer: str) -> None:
            self.peer = lambda: peer

        def add_callback(self, callback: Callable[[], None]) -> bool:
            leave.append(callback)
            return True

    def enters(host: str) -> int:
        for number in range(9):
            try:
                watches.enter(From(f"ipv4:{host}:{number}"))
            except ResourceExhausted:
                return number
        return 9

    assert np.array([enters(host) for host in "abcd"]).tolist() == [4, 2, 1, 1]
    assert enters("e") == 0
    for one in leave:
        one()
    assert len(watches) == 0
    assert not watches._hosts
