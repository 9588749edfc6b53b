"""A device that hangs, or is at something long: deadlines are kept, and nobody waits who does not ask it."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from device_here import device, place, until, vectors
from device_lists_here import devices_are_asked, listed, queries_near
from on_devices import QUERIES, check, filled, opened, placed, using, wait_for
from server_process import spawn
from test_device_served import workers

import vecdb_client
from vecdb.device.worker import Worker
from vecdb.errors import Cancelled, DeadlineExceeded, DeviceLost, LimitExceeded
from vecdb.search_lane import CORES
from vecdb.stopping import while_wanted
from vecdb.turns import Wait
from vecdb_server.admission import Admission
from vecdb_server.fair_pool import FairPool, lend
from vecdb_server.metrics import Metrics

__all__ = ["devices_are_asked"]

PATIENT = {"device_timeout_s": 300.0}
"""A worker that hangs is left alone for longer than a test here takes; without what is tested it takes as long."""


@pytest.fixture
def devices(monkeypatch):
    return using("stand-in", monkeypatch)


def the_device(database):
    (one,) = database.devices.placements.devices
    return one


@contextmanager
def hanging(pid):
    """The worker process does nothing meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Calls:
    """Calls in threads of their own; what came of each."""

    def __init__(self, *calls):
        self.outcomes = [None] * len(calls)
        self.threads = [threading.Thread(target=self._run, args=one) for one in enumerate(calls)]
        for thread in self.threads:
            thread.start()

    def _run(self, place, call):
        try:
            self.outcomes[place] = call()
        except BaseException as error:
            self.outcomes[place] = error

    def ended(self):
        for thread in self.threads:
            thread.join(120)
            assert not thread.is_alive()
        return self.outcomes


@pytest.mark.parametrize("part", [None, 30])
def test_a_deadline_holds_while_a_device_hangs(tmp_path, devices, part):
    """A query ends at its deadline, or when nobody wants it any more, whatever the device does, in its search or while it is told of
    a filter; afterwards the device goes on, and what came too late is nobody's answer."""
    devices()
    with opened(tmp_path, **PATIENT) as database:
        made, rows = filled(database)
        placed(made)
        live = np.ones(len(rows), np.bool_)
        ask = None if part is None else {"part": {"$lt": part}}
        with hanging(the_device(database)._worker.pid):
            with pytest.raises(DeadlineExceeded):
                made.query(QUERIES, k=10, filter=ask, timeout_s=0.3)
            wanted = iter([True] * 3)
            with while_wanted(lambda: next(wanted, False)), pytest.raises(Cancelled):
                made.query(QUERIES, k=10, filter=ask)
        check(made, QUERIES, live, rows, "l2", part=part)
        check(made, QUERIES + 1, live, rows, "l2", part=part)


def test_a_deadline_holds_for_lists_of_a_device_that_hangs(tmp_path, devices):
    """The same of lists."""
    devices()
    with opened(tmp_path, **PATIENT) as database:
        made, rows = listed(database)
        queries = queries_near(rows)
        before = made.query(queries, k=10)
        with hanging(the_device(database)._worker.pid), pytest.raises(DeadlineExceeded):
            made.query(queries, k=10, timeout_s=0.3)
        after = made.query(queries, k=10, explain=True)
        assert (after.ids, after.explain.device) == (before.ids, "gpu:0")


def test_a_device_that_hangs_holds_up_nobody_else(tmp_path, devices):
    """More callers than there are cores wait for the device at once, and a collection of the CPU is searched meanwhile."""
    devices()
    with opened(tmp_path, **PATIENT) as database:
        made, rows = filled(database)
        other = database.create_collection("other", dimension=16, metric="l2", device="cpu")
        other.insert([f"r{i}" for i in range(len(rows))], rows)
        placed(made)
        with hanging(the_device(database)._worker.pid):
            calls = Calls(*[
                lambda k=k: made.query(QUERIES[:1], k=k, explain=True) for k in range(1, CORES + 4)
            ])  # fmt: skip
            # All but the one whose call the worker was sent.
            wait_for(lambda: database.devices.stats()[0].queued == CORES + 2)
            assert other.query(rows[5], k=1).ids == [["r5"]]
            assert calls.outcomes == [None] * (CORES + 3)
        assert [one.explain.device for one in calls.ended()] == ["gpu:0"] * (CORES + 3)


def test_queries_beyond_the_queue_of_a_device_are_refused(tmp_path, devices):
    """Those that find it full get LimitExceeded, with the setting and when to come again; the others their answers."""
    devices()
    room = CORES + 1
    with opened(tmp_path, device_queue=room, **PATIENT) as database:
        made, _ = filled(database)
        placed(made)
        one = the_device(database)
        with hanging(one._worker.pid):
            before = one._queue._number
            first = Calls(lambda: made.query(QUERIES[:1], k=1))
            until(lambda: one._queue._number > before and not len(one._queue))
            calls = Calls(*[
                lambda k=k: made.query(QUERIES[:1], k=k) for k in range(2, room + 2)
            ])  # fmt: skip
            wait_for(lambda: database.devices.stats()[0].queued == room)
            with pytest.raises(LimitExceeded) as refused:
                made.query(QUERIES[:1], k=50)
        assert refused.value.details["setting"] == "device_queue"
        assert refused.value.details["retry_after_ms"] == 100
        answers = [*first.ended(), *calls.ended()]
        assert [len(one.ids[0]) for one in answers] == list(range(1, room + 2))


def test_a_server_says_when_to_come_again(tmp_path, monkeypatch):
    """A client whose query finds the queue full is refused with that delay where it does not repeat, and is answered where it does."""
    monkeypatch.setenv("VECDB_STAND_IN_DEVICES", "1")
    process, address = spawn(
        tmp_path / "db", "--device", "gpu", "--exact-max-scalars", "1000", "--audit-share", "0", "--device-queue", "1",
        "--device-timeout-s", "300",
    )  # fmt: skip
    try:
        with vecdb_client.connect(address, retry_s=0) as db:
            made = db.create_collection("docs", dimension=16, metric="l2")
            rows = np.random.default_rng(7).standard_normal((3_000, 16)).astype(np.float32)
            made.insert([f"r{i}" for i in range(len(rows))], rows)
            placed(made)
            (worker,) = workers(process.pid)
            details = {}

            def patiently(i):
                # Calls of one client share a stream, on which they are answered one by one.
                with vecdb_client.connect(address, retry_s=60) as own:
                    return own.get_collection("docs").query(rows[i : i + 1], k=i + 1)

            def refused():
                """One is with the worker and one waits, sooner or later; none is kept from that by asking."""
                if made.stats().devices[0].queued:
                    try:
                        made.query(rows[9:10], k=9, timeout_s=0.5)
                    except vecdb_client.errors.LimitExceeded as error:
                        details.update(error.details)
                    except vecdb_client.errors.DeadlineExceeded:
                        time.sleep(1.0)  # it had the place itself, as none was with the worker yet
                return details

            with hanging(worker):
                calls = Calls(*[lambda i=i: patiently(i) for i in range(3)])
                wait_for(refused)
                assert made.stats().count == len(rows)  # others are answered meanwhile
            assert details["setting"] == "device_queue"
            assert details["retry_after_ms"] == 100
            found = [one.ids[0] for one in calls.ended()]
            assert [(ids[0], len(ids)) for ids in found] == [("r0", 1), ("r1", 2), ("r2", 3)]
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_a_call_that_waits_for_a_device_lends_its_thread():
    """Another has a thread of the pool meanwhile, and afterwards the pool is as large as before; a pool whose threads are the limit
    of what may be open, as those of streams, stays as it is."""
    pool, may_end = FairPool(1, "lent", None, 1), threading.Event()
    streams = FairPool(1, "streams")

    def work():
        lend(True)
        assert may_end.wait(60)
        lend(False)

    held = [pool.submit(work) for _ in range(5)]
    until(lambda: pool._at_devices == 5)
    streaming, behind = streams.submit(work), streams.submit(work)
    until(lambda: streams.running == 1)
    assert (streams._room, streams.waiting) == (1, 1)
    assert pool.submit(pow, 2, 3).result(60) == 8
    may_end.set()
    for one in (*held, streaming, behind):
        one.result(60)
    assert pool.submit(pow, 2, 3).result(60) == 8
    until(lambda: len(pool._pool_threads) <= 1 or pool.submit(pow, 2, 3).result(60) != 8)
    assert pool._at_devices == 0
    pool.shutdown()
    streams.shutdown()


def test_the_cpu_answers_while_something_long_holds_the_device(tmp_path, devices):
    """While a graph is built there, queries do not wait for its end: the CPU answers them, with a note, and metrics count them."""
    devices()
    with opened(tmp_path, **PATIENT) as database:
        made, rows = filled(database)
        placed(made)
        live = np.ones(len(rows), np.bool_)
        one = the_device(database)
        flat = one.place_flat(16, "l2", "float32", 100, [rows[:100]])
        with hanging(one._worker.pid):
            building = Calls(lambda: one.place_graph(flat, 32))
            until(lambda: one._long is not None)
            for part in (None, 30):
                told = check(made, QUERIES, live, rows, "l2", part=part, on="cpu")
                assert told.device_note == "gpu:0 is busy for long (graph); answered by the CPU"
            assert building.outcomes == [None]
        assert building.ended()[0].bytes > 0
        check(made, QUERIES, live, rows, "l2")
        counted = Metrics(database, {}, Admission({})).text()
        assert f"vecdb_device_taken_over_queries_total {2.0 * len(QUERIES)}\n" in counted


def test_closing_waits_for_no_build_on_a_device_that_hangs(tmp_path, devices, caplog):
    """Nor does the end of a process, which closes what is open: the worker is ended, and what was placed there given up."""
    devices()
    with opened(tmp_path, **PATIENT) as database:
        one = the_device(database)
        with suppress(ProcessLookupError), hanging(one._worker.pid):
            before = one._queue._number
            filled(database)
            until(lambda: one._queue._number > before)
            begun = time.monotonic()
            database.close()
            assert time.monotonic() - begun < PATIENT["device_timeout_s"] / 2
    assert [one.message for one in caplog.records if one.levelname == "ERROR"] == []


def test_only_who_can_be_answered_elsewhere_gives_way():
    """A search without a check waits for a long request, as do those that measure a graph."""
    one = device()
    try:
        placed_ = place(one, vectors(100))

        def search(wait):
            return one.search(placed_.handle, placed_.generation, vectors(1), 3, 0, wait)

        with hanging(one._worker.pid):
            calls = Calls(lambda: one.place_graph(placed_, 32), lambda: search(Wait()))
            until(lambda: one._long is not None)
            until(lambda: len(one._queue) == 1)
            with pytest.raises(DeviceLost, match="busy for long"):
                search(Wait(check=lambda: None))
        assert calls.ended()[1][1].shape == (1, 3)
    finally:
        one.close()


def test_patience_for_what_cannot_be_cut_goes_by_its_bytes(monkeypatch):
    """A worker that hangs at a small graph, or at k-means of few rows, is ended after a minute and not after an hour; one
    that is given much may take longer."""
    asked, plain = {}, Worker.call

    def call(worker, request, timeout_s):
        asked[type(request).__name__] = timeout_s
        return plain(worker, request, timeout_s)

    monkeypatch.setattr(Worker, "call", call)
    one = device()
    try:
        placed_ = place(one, vectors(100))
        assert one.place_graph(placed_, 32).bytes > 0
        assert one.kmeans(vectors(100), 4, 1, False, 1).shape == (4, vectors(1).shape[1])
    finally:
        one.close()
    for name in ("Graph", "Kmeans"):
        assert 60 < asked[name] < 61
    assert one._patience_s(10**9) == 160
