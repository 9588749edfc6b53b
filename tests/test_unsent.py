"""Callers that send their request late, slowly or never keep no other from an answer."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import StartServer, wait_until
from slow_way import SlowWay

from vecdb_client import connect, errors, wire
from vecdb_client.transport import read_error
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_server import awaited
from vecdb_server.fair_pool import FairPool
from vecdb_server.fair_queue import Who

SERVICE = "/vecdb.v1.VecdbService/"


class Silent:
    """Calls that are opened and send nothing, each `connections` th on the same connection."""

    def __init__(self, address: str, connections: int) -> None:
        self._stack = ExitStack()
        self._said: list[queue.SimpleQueue[Any]] = []
        own = [("grpc.use_local_subchannel_pool", 1)]
        self.channels = [
            self._stack.enter_context(grpc.insecure_channel(address, options=own))
            for _ in range(connections)
        ]
        self.calls: list[Any] = []

    def open(self, method: str, count: int, *, streams: bool = False) -> list[Any]:
        """So many calls of a method."""
        made = []
        for n in range(count):
            channel = self.channels[n % len(self.channels)]
            said: queue.SimpleQueue[Any] = queue.SimpleQueue()
            self._said.append(said)
            given = iter(said.get, None)
            if streams:
                made.append(channel.stream_stream(SERVICE + method)(given))
            else:
                made.append(channel.stream_unary(SERVICE + method).future(given))
        self.calls += made
        return made

    def close(self) -> None:
        for call in self.calls:
            call.cancel()
        for said in self._said:
            said.put(None)
        self._stack.close()


@pytest.fixture
def silent(start: StartServer) -> Iterator[Callable[..., tuple[Any, Silent]]]:
    """Starts a server with some settings; it, and callers who say nothing."""
    came: list[Silent] = []

    def come(connections: int = 1, **settings: Any) -> tuple[Any, Silent]:
        server = start(**settings)
        came.append(Silent(server.address, connections))
        return server, came[-1]

    yield come
    for one in came:
        one.close()


def ended(call: Any) -> errors.VecdbError:
    """The error that a call was ended with."""
    wait_until(call.done, "it is over")
    return read_error(call, "")


def unsent(server: Any, reason: str) -> int:
    return int(server._observing.metrics.of_this_process().unsent[reason])


@pytest.mark.parametrize("connections", [2, 80])
def test_silent_callers_keep_nobody_from_an_answer(
    silent: Callable[..., tuple[Any, Silent]], connections: int
) -> None:
    """While 80 calls of reads and as many of writes say nothing, from a few connections or each from its own, another
    client's are all answered without a repetition, and some of the silent are ended for it and counted."""
    server, them = silent(connections, worker_threads=2, write_threads=2, request_wait_s=0.05)
    with connect(server.address, retry_s=0) as client:
        docs = client.create_collection("docs", dimension=2)
        for method in ("Query", "Insert"):
            them.open(method, 80)
        pools = server._pools
        wait_until(lambda: pools.reads.busy + pools.writes.busy > 100, "they are in")
        for n in range(10):
            docs.insert([str(n)], [[n, 1]])
            assert docs.count() == n + 1
        text = client.metrics()
    assert unsent(server, "room") > 0
    assert 'vecdb_calls_unsent_total{reason="room"}' in text
    over = [call for call in them.calls if call.done()]
    told = {ended(call).details.get("setting") for call in over if is_late(call)}
    assert told == {"request_wait_s"}


def is_late(call: Any) -> bool:
    return call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_few_silent_callers_are_left_alone(silent: Callable[..., tuple[Any, Silent]]) -> None:
    """As long as others get threads in their place, calls that wait for their request go on, whatever runs beside
    them; once it comes they are answered."""
    server, them = silent(worker_threads=2, request_wait_s=0.05)
    calls = them.open("ListCollections", 8)
    wait_until(lambda: len(server._pools.reads._aside) == 8, "they have stepped aside")
    with connect(server.address, retry_s=0) as client:
        docs = client.create_collection("docs", dimension=2)
        for _ in range(50):
            assert docs.count() == 0
        time.sleep(0.3)
        assert docs.count() == 0
    assert unsent(server, "room") == unsent(server, "limit") == 0
    for said in them._said:
        said.put(b"")
        said.put(None)
    for call in calls:
        wait_until(call.done, "it is answered")
        assert call.code() is grpc.StatusCode.OK
    wait_until(lambda: len(server._pools.reads._pool_threads) <= 2, "the threads more have ended")
    assert not server._pools.reads._aside


def test_who_sends_nothing_for_too_long_is_ended(silent: Callable[..., tuple[Any, Silent]]) -> None:
    """Alone on a server, a call that has sent nothing for `max_request_s` ends with words, an Ingest as well, whatever
    its pool."""
    server, them = silent(max_request_s=0.1)
    calls = [*them.open("Query", 1), *them.open("Insert", 1)]
    calls += them.open("Scan", 1, streams=True) + them.open("Ingest", 1, streams=True)
    for call in calls:
        error = ended(call)
        assert isinstance(error, errors.DeadlineExceeded)
        assert error.details["setting"] == "max_request_s"
        assert "had not come" in error.message
    assert unsent(server, "limit") == 4
    wait_until(lambda: server._pools.running() == 0, "their threads are free")


def test_an_ingest_that_falls_silent_is_ended(start: StartServer) -> None:
    """Between two batches a client may wait for `max_request_s`; what was acknowledged before stays, and is told."""
    server = start(max_request_s=1.0)
    with connect(server.address, retry_s=0) as client:
        docs = client.create_collection("docs", dimension=2)

        def batches() -> Iterator[Any]:
            for n in range(6):
                yield {"ids": [str(n)], "vectors": [[n, 1]]}
            wait_until(lambda: unsent(server, "limit") == 1, "the server waits no longer")
            yield {"ids": ["late"], "vectors": [[1, 1]]}

        with pytest.raises(errors.DeadlineExceeded) as caught:
            for _ in docs.ingest(batches()):
                pass
        assert caught.value.details["setting"] == "max_request_s"
        assert 6 == docs.count() >= caught.value.details["acknowledged"] > 0


def test_silent_calls_that_may_last_go_for_another(
    silent: Callable[..., tuple[Any, Silent]],
) -> None:
    """Where all threads of long calls are kept by calls that send nothing, who comes ends one and is served; one that
    has not been silent for long stays."""
    server, them = silent(3, stream_threads=4, request_wait_s=600)
    calls = [*them.open("Scan", 3, streams=True), *them.open("Ingest", 3, streams=True)]
    wait_until(lambda: len(server._pools.long._aside) == 4, "all threads are taken")
    with connect(server.address, retry_s=0) as client:
        docs = client.create_collection("docs", dimension=2)
        with pytest.raises(errors.ResourceExhausted, match="stream_threads"):
            list(docs.scan())
        docs.insert(["a"], [[1, 2]])
    server.settings["request_wait_s"] = 0.05
    with connect(server.address, retry_s=20) as client:
        assert [list(page.ids) for page in client.get_collection("docs").scan()] == [["a"]]
    assert unsent(server, "room") == 1
    found = [call for call in calls if not call.is_active() and is_late(call)]
    assert len(found) == 1


def test_a_slow_upload_of_much_passes(start: StartServer) -> None:
    """A message that takes twenty times `request_wait_s` to come is taken, while others call and are answered."""
    server = start(write_threads=1, request_wait_s=0.05)
    way = SlowWay(server.address, 400_000)
    with connect(server.address, retry_s=0) as near, connect(way.address, retry_s=0) as far:
        docs = near.create_collection("docs", dimension=100)
        slow = far.get_collection("docs")
        rows = np.ones((800, 100), np.float32)
        ids = [f"s{n}" for n in range(len(rows))]
        upload = threading.Thread(target=lambda: slow.insert(ids, rows), daemon=True)
        upload.start()
        wait_until(lambda: bool(server._pools.writes._aside), "it is on its way")
        n = 0
        while upload.is_alive():
            docs.insert([str(n)], rows[:1])
            n += 1
        assert n > 1
        assert docs.count() == len(rows) + n
    assert unsent(server, "room") == unsent(server, "limit") == 0
    way.close()


def test_a_trickle_counts_as_silence(start: StartServer) -> None:
    """A request that comes some bytes at a time is ended as one that does not come."""
    server = start(max_request_s=0.4)
    way = SlowWay(server.address, 20_000)
    with connect(server.address) as near, connect(way.address, retry_s=20) as far:
        near.create_collection("docs", dimension=100)
        slow = far.get_collection("docs")
        with pytest.raises(errors.DeadlineExceeded, match="max_request_s"):
            slow.insert(["a"] * 1, np.ones((1, 100)), contents=[b"x" * 60_000])
        assert near.get_collection("docs").count() == 0
    way.close()


def test_both_times_are_taken_up_by_a_reload(silent: Callable[..., tuple[Any, Silent]]) -> None:
    """A call that waits already is ended by the time that is set now."""
    server, them = silent()
    (call,) = them.open("Query", 1)
    wait_until(lambda: len(server._pools.reads._aside) == 1, "it waits")
    wanted = {**server.settings, **server._engine_settings, "max_request_s": 0.1}
    assert server.reload(wanted) == ["max_request_s"]
    assert ended(call).details["setting"] == "max_request_s"


def test_a_call_without_its_request_is_told_so(silent: Callable[..., tuple[Any, Silent]]) -> None:
    """One that ends its side before it has sent any is a bad call, soon and late."""
    server, them = silent()
    for pause_s in (0.0, 0.2):
        (call,) = them.open("Query", 1)
        time.sleep(pause_s)
        them._said[-1].put(None)
        assert isinstance(ended(call), errors.InvalidArgument)
    wait_until(lambda: server._pools.running() == 0, "their threads are free")


class Held:
    """Work of a pool that steps aside until it may end."""

    def __init__(self, pool: FairPool) -> None:
        self.pool = pool
        self.may_end = threading.Event()
        self.left: list[str] = []

    def __call__(self, name: str) -> None:
        self.pool.step_aside(time.perf_counter())
        while not self.may_end.wait(0.005):
            if self.pool.should_leave(0.02):
                self.left.append(name)
                break
        self.pool.step_back()


def test_who_sends_nothing_does_not_come_first_again() -> None:
    """A thread that another could not have meanwhile is on the bill of its client: others have their turn before its next
    call that sends nothing."""
    pool = FairPool(1, "held", None, 1)
    work = Held(pool)
    for _ in range(60):
        pool.submit_for(Who("many", ""), work, "many")
    wait_until(lambda: len(pool._aside) == 2, "threads are held")
    for _ in range(5):
        pool.submit_for(Who("other", ""), time.sleep, 0.01).result(60)
    assert pool._queue.of("many")[0] > 40
    work.may_end.set()
    pool.shutdown()


def test_who_holds_most_threads_gives_one_up_first() -> None:
    """Of clients whose calls wait, that with the most loses one when there are no more threads to lend, and no more
    than are needed."""
    pool = FairPool(1, "held", None, 3)
    work = Held(pool)
    held = [pool.submit_for(Who("one", ""), work, "one")]
    wait_until(lambda: len(pool._aside) == 1, "it waits")
    held += [pool.submit_for(Who("many", ""), work, "many") for _ in range(3)]
    wait_until(lambda: len(pool._aside) == 4, "all wait")
    assert not threading.Event().wait(0.1)
    assert work.left == []
    assert pool.submit_for(Who("other", ""), pow, 2, 3).result(60) == 8
    assert work.left == ["many"]
    work.may_end.set()
    for one in held:
        one.result(60)
    assert pool.submit_for(Who("other", ""), pow, 2, 3).result(60) == 8
    wait_until(lambda: len(pool._pool_threads) == 1, "the threads more have ended")
    assert pool.cost_s < 0.1  # what they waited is no cost of those behind them
    pool.shutdown()


def test_shutting_down_ends_threads_that_were_lent() -> None:
    """None is left, whether its work had stepped aside or not."""
    pool = FairPool(1, "lent", None, 3)
    work = Held(pool)
    held = [pool.submit_for(Who("a", ""), work, "a") for _ in range(3)]
    wait_until(lambda: len(pool._aside) == 3, "all wait")
    threading.Timer(0.05, work.may_end.set).start()
    pool.shutdown(wait=True)
    assert all(one.done() for one in held)
    assert not [one for one in threading.enumerate() if one.name.startswith("vecdb-lent")]


def test_this_grpc_can_end_calls_whose_request_does_not_come() -> None:
    """The version in use has what waiting with an end is made of; else all of the above would be off."""
    from grpc import _server

    assert awaited.can_end(_server._RequestIterator)
    assert not awaited.can_end(iter(()))
    assert not awaited.can_end(None)


def test_a_reading_process_ends_them_too(start: StartServer) -> None:
    """What it answers itself and what it passes on, an Ingest that falls silent as well; all processes count together."""
    server = start(max_request_s=1.0, read_processes=1)
    assert server.readers is not None
    them = Silent(server.readers.address("reader-1"), 1)
    with connect(server.address) as client:
        client.create_collection("docs", dimension=2)
    calls = [*them.open("Query", 1), *them.open("Insert", 1), *them.open("Ingest", 1, streams=True)]
    calls += them.open("Ingest", 1, streams=True)
    batch = pb.IngestRequest(collection="docs")
    batch.records.ids.append("a")
    batch.records.vectors.CopyFrom(wire.encode_vectors(np.ones((1, 2), np.float32)))
    them._said[-1].put(batch.SerializeToString())
    next(calls[-1])  # its acknowledgement
    for call in calls:
        assert ended(call).details["setting"] == "max_request_s"
    with connect(server.address) as client:
        assert client.get_collection("docs").count() == 1
        assert 'vecdb_calls_unsent_total{reason="limit"} 4.0' in client.metrics()
    them.close()
