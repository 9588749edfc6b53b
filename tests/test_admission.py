"""Who is served next, who is refused, and what a refused caller is told."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import Future
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import StartServer, wait_until
from seeds import RUN_SEED
from timing import once_below

import vecdb
from vecdb_client import connect, errors
from vecdb_client.v1 import vecdb_pb2 as pb
from vecdb_client.v1 import vecdb_pb2_grpc as pb_grpc
from vecdb_server.admission import Admission, give_way
from vecdb_server.fair_pool import FairPool
from vecdb_server.fair_queue import FairQueue, Who
from vecdb_server.query_stream import QueryStreams

LIMITS = {"max_concurrent": 1_000, "max_wait_s": 1.0}


def served(queue: FairQueue[str], count: int, costs: dict[str, float]) -> Counter[str]:
    """Who was served, `count` times, where work of each costs what `costs` says."""
    found: Counter[str] = Counter()
    for _ in range(count):
        job, ticket = queue.take(0.001)
        queue.settle(ticket, costs[job])
        found[job] += 1
    return found


def test_clients_take_turns_however_much_each_sends() -> None:
    """One that has sent a thousand calls gets no more turns than one that has sent ten."""
    queue: FairQueue[str] = FairQueue()
    for _ in range(1_000):
        queue.put(Who("many", ""), "many")
    for _ in range(10):
        queue.put(Who("few", ""), "few")
    assert served(queue, 20, {"many": 0.001, "few": 0.001}) == {"many": 10, "few": 10}
    assert queue.waiting == 990


def test_what_is_shared_is_time_and_not_turns() -> None:
    """Who sends calls that cost four times as much gets a quarter of the turns."""
    queue: FairQueue[str] = FairQueue()
    for _ in range(500):
        queue.put(Who("dear", ""), "dear")
        queue.put(Who("cheap", ""), "cheap")
    found = served(queue, 500, {"dear": 0.004, "cheap": 0.001})
    assert 90 <= found["dear"] <= 110


def test_collections_of_a_client_take_turns_below_it() -> None:
    """Many collections give a client no more than one, and among them each has the same."""
    queue: FairQueue[str] = FairQueue()
    for n in range(300):
        for collection in "abc":
            queue.put(Who("wide", collection), collection)
        if n < 200:
            queue.put(Who("narrow", "x"), "x")
    found = served(queue, 240, dict.fromkeys("abcx", 0.001))
    assert 118 <= found["x"] <= 122
    assert all(39 <= found[collection] <= 42 for collection in "abc")


def test_work_of_one_collection_keeps_its_order() -> None:
    """Of one client and collection the oldest work comes first; each piece comes once, whatever others send."""
    print("seed", RUN_SEED)
    rng = np.random.default_rng(RUN_SEED)
    queue: FairQueue[tuple[Who, int]] = FairQueue()
    put: dict[Who, int] = Counter()
    taken: dict[Who, int] = Counter()
    for _ in range(5_000):
        if rng.random() < 0.55 or not queue.waiting:
            who = Who(f"c{rng.integers(5)}", f"n{rng.integers(3)}")
            queue.put(who, (who, put[who]))
            put[who] += 1
        else:
            (who, number), ticket = queue.take(0.001)
            assert number == taken[who]
            taken[who] += 1
            queue.settle(ticket, float(rng.exponential(0.001)))
    while queue.waiting:
        (who, number), ticket = queue.take(0.001)
        assert number == taken[who]
        taken[who] += 1
        queue.settle(ticket, 0.001)
    assert taken == put


def test_clients_that_have_gone_are_forgotten() -> None:
    """Ten thousand clients with one call each leave nothing behind."""
    queue: FairQueue[str] = FairQueue()
    for n in range(10_000):
        queue.put(Who(f"client {n}", "docs"), "call")
        _, ticket = queue.take(0.001)
        queue.settle(ticket, 0.001)
    assert queue.clients < 600


def test_newcomers_without_end_pass_nobody_by() -> None:
    """A client is served although a new one comes for each piece of work that is done."""
    queue: FairQueue[str] = FairQueue()
    for _ in range(100):
        queue.put(Who("faithful", ""), "faithful")
    found: Counter[str] = Counter()
    for n in range(200):
        queue.put(Who(f"new {n}", ""), "new")
        found += served(queue, 1, {"faithful": 0.001, "new": 0.001})
    assert found["faithful"] >= 10


def test_a_pool_gives_results_failures_and_ends() -> None:
    """A future of the pool holds what its work gave or raised; at the end all work is done, then none is taken."""
    pool = FairPool(2, "test")

    def fail() -> None:
        raise KeyError("x")

    results = [pool.submit(pow, n, 2) for n in range(50)]
    failure = pool.submit(fail)
    assert [one.result(10) for one in results] == [n * n for n in range(50)]
    with pytest.raises(KeyError):
        failure.result(10)
    assert pool.busy == 0
    pool.shutdown()
    with pytest.raises(RuntimeError):
        pool.submit(pow, 1, 1)


def test_what_waits_when_a_pool_is_shut_down_may_be_dropped() -> None:
    """Work that no thread has begun is cancelled; what runs is waited for."""
    pool = FairPool(1, "test")
    begun, may_end = threading.Event(), threading.Event()

    def slow() -> int:
        begun.set()
        may_end.wait(10)
        return 7

    runs = pool.submit(slow)
    waits = pool.submit(pow, 2, 2)
    assert begun.wait(10)
    threading.Timer(0.1, may_end.set).start()
    pool.shutdown(wait=True, cancel_futures=True)
    assert runs.result(0) == 7
    assert waits.cancelled()


class Held:
    """A pool whose threads are all taken, with so many calls of clients that wait."""

    def __init__(self, cost_s: float = 0.01, **waiting: int) -> None:
        self.pool = FairPool(2, "held")
        self.pool.cost_s = cost_s
        self.may_end = threading.Event()
        futures: list[Future[Any]] = [self.pool.submit(self.may_end.wait, 30) for _ in range(2)]
        wait_until(lambda: self.pool.running == 2, "both threads are taken")
        for client, count in waiting.items():
            futures += [self.pool.submit_for(Who(client, ""), int) for _ in range(count)]
        self.futures = futures

    def __enter__(self) -> FairPool:
        return self.pool

    def __exit__(self, *_: object) -> None:
        self.may_end.set()
        self.pool.shutdown()


def test_a_client_alone_gets_half_of_the_places() -> None:
    """With room for 200 calls to wait, one client is refused from its hundredth on; another still enters."""
    admission = Admission(LIMITS)
    with Held(greedy=99) as pool:
        assert admission.refusal(pool, Who("greedy", ""), None, 0) is None
    with Held(greedy=100) as pool:
        refused = admission.refusal(pool, Who("greedy", ""), None, 0)
        assert refused is not None
        assert refused.details["refused"] == "share"
        assert 300 <= int(str(refused.details["retry_after_ms"])) <= 800
        assert admission.refusal(pool, Who("other", ""), None, 0) is None
    assert admission.refused()["share"] == 1


def test_calls_that_would_wait_too_long_are_refused() -> None:
    """Where all places are taken a call is refused with a delay; a newcomer's enters as long as its turn comes soon."""
    admission = Admission(LIMITS)
    with Held(a=100, b=66, c=34) as pool:
        assert (refused := admission.refusal(pool, Who("c", ""), None, 0)) is not None
        assert refused.details["refused"] == "wait"
        assert 750 <= int(str(refused.details["retry_after_ms"])) <= 1_500
        assert admission.refusal(pool, Who("new", ""), None, 0) is None
    with Held(a=100, b=100, c=100, d=100) as pool:
        assert admission.refusal(pool, Who("new", ""), None, 0) is None
    with Held(**{f"c{n}": 2 for n in range(210)}) as pool:
        assert admission.refusal(pool, Who("new", ""), None, 0) is not None


def test_a_call_that_cannot_be_in_time_is_refused_at_once() -> None:
    """Nothing is begun for a caller who will have gone before its turn; others that wait beyond their turns
    are no reason to refuse it."""
    admission = Admission(LIMITS)
    with Held(a=50) as pool:
        assert admission.refusal(pool, Who("a", ""), 0.3, 0) is None
        assert (refused := admission.refusal(pool, Who("a", ""), 0.2, 0)) is not None
        assert refused.details["refused"] == "deadline"
        assert admission.refusal(pool, Who("b", ""), 0.2, 0) is None
        assert admission.refusal(pool, Who("b", ""), 0.005, 0) is not None


def test_work_is_done_where_the_system_gives_no_more_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pool goes on with the threads that it has; without any, who brings work is told, and none stays."""

    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool = FairPool(4, "few")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        with pytest.raises(RuntimeError, match="new thread"):
            pool.submit(int)
    assert pool.busy == 0
    assert pool.submit(int).result(10) == 0
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        done = [pool.submit(time.sleep, 0.01) for _ in range(20)]
    for one in done:
        one.result(10)
    pool.shutdown(wait=True)


def test_a_client_that_reads_slowly_keeps_no_stream_waiting() -> None:
    """Answers that lie unread neither count as queries under way nor make queries look costly."""
    streams = QueryStreams(Admission({"max_wait_s": 0.01}))
    queries = [pb.StreamedQuery(query=pb.QueryRequest(collection=f"c{i}")) for i in range(4)]

    def message(answer: Any) -> Any:
        return streams._message(queries, None, answer, 1 << 20, lambda *_: None)

    quick = lambda *_: pb.QueryResponse()  # noqa: E731
    slow = message(quick)
    sent = [next(slow) for _ in range(4)]
    time.sleep(0.3)
    slow.close()
    unread = message(quick)
    sent += [next(unread) for _ in range(4)]
    for _ in range(20):
        sent += list(message(quick))
    assert not any(one.HasField("error") for response in sent for one in response.answers)
    assert streams.answering == 1
    unread.close()
    assert streams.answering == 0
    assert streams._under_way == 0


def test_changed_limits_are_kept_from_then_on() -> None:
    """Limits are read at each call."""
    limits = dict(LIMITS)
    admission = Admission(limits)
    with Held() as pool:
        assert admission.refusal(pool, Who("a", ""), None, 999) is None
        limits["max_concurrent"] = 999
        refused = admission.refusal(pool, Who("a", ""), None, 999)
    assert refused is not None
    assert refused.details["refused"] == "concurrent"


def test_a_long_call_leaves_queries_four_fifths_of_the_time() -> None:
    """It rests while queries wait, at most four times what its step took; not at all when none waits."""
    once_below(0.02, lambda: give_way(0.01, lambda: False))
    begun = time.monotonic()
    assert 0.12 <= give_way(0.03, lambda: True) <= time.monotonic() - begun
    once_below(0.2, lambda: give_way(0.03, lambda: True))
    once_below(0.02, lambda: give_way(100.0, lambda: True, wanted=lambda: False))


# --- over the wire


def test_a_refusal_names_its_delay_and_reads_no_request(
    start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused call gets RESOURCE_EXHAUSTED with the delay as trailing metadata; handlers never see it, and a
    client of ours waits and is answered."""
    server = start(max_concurrent=1, worker_threads=1)
    entered, release = threading.Event(), threading.Event()
    seen = []
    count_at = vecdb.Collection.count_at

    def slow(self: Any, *args: Any, **keywords: Any) -> Any:
        seen.append(1)
        entered.set()
        assert release.wait(20)
        return count_at(self, *args, **keywords)

    with connect(server.address) as client:
        docs = client.create_collection("docs", dimension=2)
        monkeypatch.setattr(vecdb.Collection, "count_at", slow)
        caller = threading.Thread(target=docs.count)
        caller.start()
        assert entered.wait(10)
        with grpc.insecure_channel(server.address) as channel:
            stub: Any = pb_grpc.VecdbServiceStub(channel)  # type: ignore[no-untyped-call,unused-ignore]
            for method, request in (
                (stub.Count, pb.CountRequest(collection="docs")),
                (stub.Insert, pb.InsertRequest(collection="docs")),
                (stub.GetStats, pb.GetStatsRequest(collection="docs")),
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    method(request, timeout=10)
                error: Any = caught.value
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                trailing = dict(error.trailing_metadata())
                assert 20 <= int(trailing["vecdb-retry-after-ms"]) <= 5_000
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.Scan(pb.ScanRequest(collection="docs"), timeout=10))
            assert "vecdb-retry-after-ms" in dict(caught.value.trailing_metadata())  # type: ignore[attr-defined]
        assert len(seen) == 1
        threading.Timer(0.3, release.set).start()
        assert docs.count() == 0
        caller.join(10)
    # An answer is on its way a moment before its thread is free.
    wait_until(lambda: server._pools.running() == 0, "the threads are free")


def test_a_client_does_not_get_all_threads_of_streams(start: StartServer) -> None:
    """Of 8 threads one client gets 6; the next client still gets one."""
    server = start(stream_threads=8)
    # Clients of one process share a connection, unless they ask for one of their own.
    own = [("grpc.use_local_subchannel_pool", 1)]
    with (
        connect(server.address, retry_s=0) as one,
        grpc.insecure_channel(server.address, options=own) as other,
    ):
        docs = one.create_collection("docs", dimension=4)
        ids = [f"r{i}" for i in range(100)]
        docs.insert(ids, np.ones((100, 4)), documents=["d" * 50_000] * 100)
        scans = [docs.scan(batch_size=1) for _ in range(6)]
        for scan in scans:
            next(scan)
        with pytest.raises(errors.ResourceExhausted, match="one client"):
            next(docs.scan(batch_size=1))
        stub: Any = pb_grpc.VecdbServiceStub(other)  # type: ignore[no-untyped-call,unused-ignore]
        theirs = stub.Scan(pb.ScanRequest(collection="docs", batch_size=1))
        assert len(next(theirs).records.ids) == 1
        theirs.cancel()
        for scan in scans:
            scan.close()
        wait_until(lambda: server._pools.long.busy == 0, "the threads are free")


@pytest.mark.parametrize("verb", ["query", "count"])
def test_a_call_whose_client_has_gone_ends(
    start: StartServer, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """What nobody waits for any more stops at its next look around, and its thread is free."""
    from vecdb import core

    server = start(worker_threads=1)
    entered = threading.Event()
    rounds = []

    def endless(self: Any, expression: Any, moment: Any, interrupt: Any = lambda: None) -> Any:
        entered.set()
        for _ in range(2_000):
            rounds.append(1)
            interrupt()
            time.sleep(0.005)
        raise AssertionError("nobody stopped it")

    monkeypatch.setattr(core.Core, "matching", endless)
    monkeypatch.setattr(core.Core, "matched", lambda *_: None)
    with connect(server.address) as client:
        docs = client.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 2]])
        stub: Any = client._connection._stub
        vectors = pb.Vectors(data=b"\0" * 8, count=1, dimension=2)
        if verb == "query":
            request = pb.QueryRequest(collection="docs", filter='{"a": 1}', vectors=vectors, k=1)
            call = stub.Query.future(request, timeout=60)
        else:
            call = stub.Count.future(pb.CountRequest(collection="docs", filter='{"a": 1}'))
        assert entered.wait(10)
        call.cancel()
        wait_until(lambda: server._pools.reads.busy == 0, "the thread is free")
        assert len(rounds) < 1_000
