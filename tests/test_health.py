"""Health over real sockets: who hears of what, and that no watcher holds up anybody else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from conftest import AddKey, StartServer, wait_until
from grpc_health.v1 import health_pb2, health_pb2_grpc

import vecdb
from vecdb_client import connect
from vecdb_server import silence
from vecdb_server.health import Health
from vecdb_server.server import SERVICE_NAME

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@contextmanager
def stub_of(address: str) -> Iterator[Any]:
    with grpc.insecure_channel(address) as channel:
        yield health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call,unused-ignore]


def request(name: str) -> Any:
    return health_pb2.HealthCheckRequest(service=name)


def asked(address: str, name: str, metadata: Any = None) -> Any:
    with stub_of(address) as stub:
        return stub.Check(request(name), timeout=10, metadata=metadata).status


class Watch:
    """gRPC's context of a watch, as far as health uses it. `left` before it began: nobody is told when it ends."""

    def __init__(self, port: int = 1, *, left: bool = False) -> None:
        self._port = port
        self._left = left
        self._callbacks: list[Callable[[], None]] = []
        self.cancelled = threading.Event()

    def peer(self) -> str:
        return f"ipv4:127.0.0.{self._port}:1234"

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        if not self._left:
            self._callbacks.append(callback)
        return not self._left

    def leave(self) -> None:
        for callback in self._callbacks:
            callback()

    def cancel(self) -> None:
        self.cancelled.set()
        self.leave()


def statuses(told: list[Any]) -> list[int]:
    return [message.status for message in told]


def test_a_collection_serves_once_it_is_loaded(start: StartServer, tmp_path: Any) -> None:
    """Health of a collection says NOT_SERVING until it is in memory, which asking brings about; unknown ones are
    NOT_FOUND."""
    with vecdb.open(tmp_path / "db") as database:
        database.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
    server = start()
    assert asked(server.address, "") == SERVING
    assert asked(server.address, "collection/docs") == NOT_SERVING
    wait_until(lambda: asked(server.address, "collection/docs") == SERVING, "it is loaded")
    for name in ("collection/none", "none"):
        with pytest.raises(grpc.RpcError) as caught:
            asked(server.address, name)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_a_watcher_hears_of_a_collection(start: StartServer) -> None:
    """Watching a collection tells when it comes and when the server stops."""
    server = start()
    with stub_of(server.address) as stub:
        watch = stub.Watch(request("collection/docs"), timeout=30)
        assert next(watch).status == UNKNOWN
        with connect(server.address) as client:
            client.create_collection("docs", dimension=2)
        assert next(watch).status == SERVING
        threading.Thread(target=server._health.close).start()
        assert next(watch).status == NOT_SERVING
        watch.cancel()


def test_once_it_ends_nothing_is_served(start: StartServer) -> None:
    """From then on who asks, and who begins to watch, is told so."""
    server = start()
    server._health.close()
    for name in ("", SERVICE_NAME, "collection/docs"):
        assert asked(server.address, name) == NOT_SERVING
        with stub_of(server.address) as stub:
            assert next(stub.Watch(request(name), timeout=30)).status == NOT_SERVING


def test_nothing_stays_of_watchers_that_have_gone(start: StartServer) -> None:
    """Strangers choose the names that they watch; a name that nobody watches any more is forgotten."""
    server = start()
    names = {f"collection/none-{i}" for i in range(20)}
    with stub_of(server.address) as stub:
        watches = [stub.Watch(request(name), timeout=600) for name in names]
        for watch in watches:
            next(watch)
        wait_until(lambda: set(server._health.watched) == names, "they are kept")
    wait_until(lambda: not server._health.watched, "they are forgotten")


def test_a_watcher_who_has_left_already_is_not_kept(start: StartServer) -> None:
    """Who hangs up before the server asks to be told of it is forgotten like the others."""
    health, told = start()._health, []
    for name in ("", "collection/none", "unknown"):
        health.Watch(request(name), Watch(left=True), told.append)
    assert not told
    assert not health.watched


def test_a_watcher_who_leaves_while_it_is_told_is_not_kept(start: StartServer) -> None:
    """Nobody would take it away again."""
    health, context = start()._health, Watch()
    health.Watch(request(""), context, lambda _: context.leave())
    assert not health.watched


def test_names_that_are_unknown_are_not_kept(start: StartServer) -> None:
    """Who watches what this server does not know is told so, and the name is not kept, however long it is."""
    server = start()
    with stub_of(server.address) as stub:
        watch = stub.Watch(request("x" * 100_000), timeout=30)
        assert next(watch).status == UNKNOWN
        assert not server._health.watched
        watch.cancel()


def test_health_tells_strangers_no_names(start: StartServer, add: AddKey, keys_file: Any) -> None:
    """Where keys are asked for, a collection is unknown to whoever may not read it, and its name is not kept."""
    reader, stranger = add("read:docs"), add("read:other")
    server = start(keys_file=str(keys_file))
    assert server._database is not None
    server._database.create_collection("docs", dimension=2)
    assert asked(server.address, "") == SERVING
    header = [("authorization", f"Bearer {reader}")]
    assert asked(server.address, "collection/docs", header) == SERVING
    for metadata in (None, [("authorization", f"Bearer {stranger}")]):
        with pytest.raises(grpc.RpcError) as caught:
            asked(server.address, "collection/docs", metadata)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
        with stub_of(server.address) as stub:
            watch = stub.Watch(request("collection/docs"), timeout=30, metadata=metadata)
            assert next(watch).status == UNKNOWN
            assert not server._health.watched


# --- one watcher against the others


def test_a_watcher_may_leave_while_another_is_told(start: StartServer) -> None:
    """gRPC tells of one that leaves in the thread that every message of the server goes through, so it must not
    wait for what is being sent: once it did, and the server answered nobody any more."""
    health = start()._health
    leaving = [Watch(port) for port in (1, 2)]
    for context in leaving:
        health.Watch(request(""), context, lambda _: None)
    in_time: list[bool] = []

    def while_it_is_sent(_: Any) -> None:
        # As gRPC does: nothing is sent before its own thread is free.
        thread = threading.Thread(target=leaving.pop().leave, daemon=True)
        thread.start()
        thread.join(20)
        in_time.append(not thread.is_alive())

    health.Watch(request(""), Watch(3), while_it_is_sent)
    assert in_time == [True]
    health.set("", NOT_SERVING)
    wait_until(lambda: len(in_time) == 2, "the change is told")
    assert in_time == [True, True]
    assert health.watched == {"": 1}


def test_who_reads_nothing_is_ended_and_holds_up_nobody(
    start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sent to a watcher who reads nothing never gets out. Watchers of hosts with fewer watches hear first,
    the others after it was ended."""
    monkeypatch.setattr(silence, "IDLE_S", 600)
    health = start()._health
    told: dict[str, list[Any]] = {"few": [], "many": []}
    stuck: list[Watch] = []

    def reads_nothing(context: Watch) -> Callable[[Any], None]:
        def send(_: Any) -> None:
            # The first message finds room.
            if context in stuck:
                assert context.cancelled.wait(60)
            stuck.append(context)

        return send

    for context in (Watch(2), Watch(2)):
        health.Watch(request(""), context, reads_nothing(context))
    health.Watch(request(""), Watch(2), told["many"].append)
    health.Watch(request(""), Watch(1), told["few"].append)
    silent = stuck[:]
    health.set("", NOT_SERVING)
    wait_until(lambda: len(told["few"]) == 2, "who has few watches hears")
    assert not any(context.cancelled.is_set() for context in silent)
    monkeypatch.setattr(silence, "IDLE_S", 0.3)
    wait_until(lambda: len(told["many"]) == 2, "the others hear")
    wait_until(lambda: all(context.cancelled.is_set() for context in silent), "they are ended")
    assert statuses(told["few"]) == statuses(told["many"]) == [SERVING, NOT_SERVING]
    wait_until(lambda: health.watched == {"": 2}, "they are forgotten")


def test_a_watcher_that_cannot_be_told_costs_the_others_nothing(
    start: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of gRPC while one is told is logged; the next one is told, now and later."""
    health, told = start()._health, []

    def fails(_: Any) -> None:
        raise ValueError("the call is no more")

    health.Watch(request(""), Watch(1), fails)
    health.Watch(request(""), Watch(2), told.append)
    for status in (NOT_SERVING, SERVING):
        health.set("", status)
        wait_until(lambda status=status: told[-1].status == status, "the other hears")


def test_without_a_thread_the_next_watcher_has_one(
    start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system that gives no more threads costs watchers their news for a while, and the server nothing."""
    server = start()
    health, told = server._health, []
    with monkeypatch.context() as lacking:

        def refused(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        lacking.setattr(threading.Thread, "start", refused)
        health.Watch(request(""), Watch(1), told.append)
        health.close()
    health._closed.clear()
    health.Watch(request(""), Watch(2), lambda _: None)
    health.set("", NOT_SERVING)
    wait_until(lambda: statuses(told)[-1:] == [NOT_SERVING], "it hears all the same")


@pytest.mark.long
def test_watchers_come_and_go_while_there_is_news(start: StartServer) -> None:
    """Thousands of watches that end at any moment, while what they watch changes: the server answers, keeps nothing,
    and stops in time. It stood still
    at once when they were told under a lock."""
    server = start()
    health: Health = server._health
    ended = threading.Event()

    def news() -> None:
        while not ended.is_set():
            for status in (NOT_SERVING, SERVING):
                health.set(SERVICE_NAME, status)
                time.sleep(0.001)

    thread = threading.Thread(target=news)
    thread.start()
    try:
        until_s = time.monotonic() + 6
        while time.monotonic() < until_s:
            with stub_of(server.address) as stub:
                watches = [stub.Watch(request(SERVICE_NAME), timeout=60) for _ in range(20)]
                for watch in watches[::2]:
                    next(watch)
    finally:
        ended.set()
        thread.join()
    assert asked(server.address, "") == SERVING
    wait_until(lambda: not health.watched, "they are forgotten")


@pytest.mark.long
def test_a_watcher_over_the_wire_who_reads_nothing(start: StartServer) -> None:
    """Its window of 64 KiB fills with news; then it is ended, and another one hears of all that comes."""
    server = start()
    health: Health = server._health
    # Without this gRPC widens the window.
    narrow = [("grpc.http2.bdp_probe", 0)]
    with grpc.insecure_channel(server.address, options=narrow) as channel:
        silent: Any = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call,unused-ignore]
        unread = silent.Watch(request(SERVICE_NAME), timeout=300)
        next(unread)
        with stub_of(server.address) as other:
            heard = other.Watch(request(SERVICE_NAME), timeout=300)
            assert next(heard).status == SERVING
            wait_until(lambda: health.watched == {SERVICE_NAME: 2}, "both are kept")
            changes = 0
            while health.watched == {SERVICE_NAME: 2}:
                for status in (NOT_SERVING, SERVING):
                    health.set(SERVICE_NAME, status)
                    assert next(heard).status == status
                    changes += 1
                assert changes < 100_000
        assert changes > 1_000
