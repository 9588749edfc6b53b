"""The search lane: who waits is searched together, nobody is lost, and large batches starve no one."""

from __future__ import annotations

import math
import os
import signal
import statistics
import threading
import time

import numpy as np
import pytest
from conftest import wait_until
from test_concurrency import run_all
from timing import once_below

import vecdb
from vecdb import errors
from vecdb.index import Found
from vecdb.search_lane import LANE, MAX_TOGETHER, SearchLane
from vecdb.search_note import Note


class PlainView:
    """A view whose answer to a query is the query itself; `gate` holds searches back."""

    is_simple, tail_rows, asks_devices_from = False, 0, math.inf

    def __init__(self):
        self.calls = []
        self.gate = threading.Event()
        self.gate.set()
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()

    def search(
        self, queries, k, *, allowed=None, exact=False, target_recall=None, trace=None, check=None,
        square=None,
    ):  # fmt: skip
        with self._lock:
            self.calls.append(len(queries))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            assert self.gate.wait(20)
            if (queries == -1).any():
                raise MemoryError("planted")
            near = np.repeat(queries[:, :1], k, axis=1)
            return Found(near, np.zeros(near.shape, np.int64), False, "plain")
        finally:
            with self._lock:
                self.at_once -= 1

    def together(self, count, k, allowed, exact, wait):
        return 0


def ask(lane, view, number, k=2, **options):
    return float(
        lane.search(view, np.full((1, 3), number, np.float32), k, **options).distances[0, 0]
    )


def in_queue(lane, view, *calls):
    """Starts calls one by one while one search is under way, so that they queue up in this order."""
    view.gate.clear()
    outcomes = [None] * (len(calls) + 1)

    def run(place, call):
        try:
            outcomes[place] = call()
        except BaseException as error:
            outcomes[place] = error

    threads = [threading.Thread(target=run, args=(0, lambda: ask(lane, view, 0)))]
    threads[0].start()
    wait_until(lambda: view.at_once == 1, "the first search began")
    for place, call in enumerate(calls, 1):
        threads.append(threading.Thread(target=run, args=(place, call)))
        threads[-1].start()
        wait_until(lambda place=place: len(lane._waiting) == place, "the next one waits")
    return threads, outcomes


def finish(view, threads):
    view.gate.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_who_waits_is_searched_together():
    """Behind a running search equal asks make one call, others follow in turn; each gets its own."""
    lane, view = SearchLane(1), PlainView()
    other = object()
    threads, outcomes = in_queue(
        lane, view,
        lambda: ask(lane, view, 1),
        lambda: ask(lane, view, 2, k=3),
        lambda: ask(lane, view, 3),
        lambda: ask(lane, view, 4, allowed=other),
        lambda: ask(lane, view, 5, exact=True),
        lambda: ask(lane, view, 6),
        lambda: ask(lane, view, 7, target_recall=0.9),
        lambda: ask(lane, view, 8, allowed=other),
    )  # fmt: skip
    finish(view, threads)
    assert outcomes == list(range(9))
    assert view.calls == [1, 3, 1, 2, 1, 1]
    assert not lane._waiting
    assert not lane._running


def test_another_view_is_another_search():
    """Queries of two views, such as before and after a commit, are never mixed."""
    lane, view, newer = SearchLane(1), PlainView(), PlainView()
    threads, outcomes = in_queue(
        lane,
        view,
        lambda: ask(lane, view, 1),
        lambda: ask(lane, newer, 2),
        lambda: ask(lane, view, 3),
    )
    finish(view, threads)
    assert outcomes == [0, 1, 2, 3]
    assert (view.calls, newer.calls) == ([1, 2], [1])


def test_a_call_takes_so_many_queries_at_most():
    """However many wait, one call takes at most MAX_TOGETHER queries."""
    lane, view = SearchLane(1), PlainView()
    queries = np.full((30, 3), 7, np.float32)
    calls = [lambda: lane.search(view, queries, 2).distances[29, 0] for _ in range(5)]
    threads, outcomes = in_queue(lane, view, *calls)
    finish(view, threads)
    assert outcomes == [0, 7, 7, 7, 7, 7]
    assert view.calls == [1, 60, 60, 30]
    assert max(view.calls) <= MAX_TOGETHER


def test_a_failure_is_met_by_whom_it_concerns():
    """When a call for several fails, the others are searched again and get their answers."""
    lane, view = SearchLane(1), PlainView()
    threads, outcomes = in_queue(
        lane, view, *[lambda n=n: ask(lane, view, n) for n in (-1, 1, 2, -1, 3)]
    )
    finish(view, threads)
    assert [outcomes[n] for n in (2, 3, 5)] == [1, 2, 3]
    assert [type(outcomes[n]) for n in (1, 4)] == [MemoryError, MemoryError]
    assert not lane._running
    assert ask(lane, view, 9) == 9


def test_a_deadline_passes_in_the_queue():
    """Who waits too long leaves the queue with DeadlineExceeded, and the others are served."""
    lane, view = SearchLane(1), PlainView()
    threads, outcomes = in_queue(
        lane, view,
        lambda: ask(lane, view, 1),
        lambda: ask(lane, view, 2, end=time.monotonic() + 0.05),
        lambda: ask(lane, view, 3),
    )  # fmt: skip
    threads[2].join(10)
    assert isinstance(outcomes[2], errors.DeadlineExceeded)
    finish(view, threads)
    assert (outcomes[0], outcomes[1], outcomes[3]) == (0, 1, 3)
    assert view.calls == [1, 2]


def test_a_deadline_passes_in_a_search():
    """A search that looks at the time is given the deadline of its caller, and gives its place back."""

    class Long(PlainView):
        def search(self, *args, check, **options):
            for _ in range(1_000):
                check()
                time.sleep(0.002)

    lane = SearchLane(1)
    for note in (None, Note()):
        with pytest.raises(errors.DeadlineExceeded):
            ask(lane, Long(), 1, end=time.monotonic() + 0.05, note=note)
        assert not lane._running


def test_an_interrupted_search_gives_its_place_back():
    """Ctrl-C in the main thread, in the queue or in a search, leaves the lane free for others."""
    lane, view = SearchLane(1), PlainView()
    threads, outcomes = in_queue(lane, view)
    killer = threading.Timer(
        0.2, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)
    )
    killer.start()
    with pytest.raises(KeyboardInterrupt):
        ask(lane, view, 1)
    assert not lane._waiting
    finish(view, threads)
    assert outcomes == [0]

    class Interrupted(PlainView):
        def search(self, *args, **options):
            raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            ask(lane, Interrupted(), 1)
    assert not lane._running
    assert ask(lane, view, 5) == 5


def test_a_forked_process_has_a_free_lane():
    """Searches of the parent's threads take no place in the lane of a child process."""
    view = PlainView()
    view.gate.clear()
    threads = [threading.Thread(target=ask, args=(LANE, view, 1)) for _ in range(LANE._cores + 2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: LANE._waiting, "more search than there are cores")
    child = os.fork()
    if not child:
        answered = ask(LANE, PlainView(), 2) == 2 and not LANE._running
        os._exit(0 if answered else 1)
    finish(view, threads)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_more_searches_than_cores():
    """Many callers, few cores: searches at once stay few, all are answered, calls are fewer."""
    lane, view = SearchLane(2), PlainView()
    view.search = lambda *a, plain=view.search, **o: (time.sleep(0.001), plain(*a, **o))[1]
    answers = [[] for _ in range(16)]

    def work(n):
        for i in range(40):
            answers[n].append(ask(lane, view, 1_000 * n + i))

    run_all(*[lambda n=n: work(n) for n in range(16)])
    assert answers == [[1_000 * n + i for i in range(40)] for n in range(16)]
    # Two that come at the very same time may both find the last place free.
    assert view.most_at_once <= 3
    assert len(view.calls) < 16 * 40 / 2
    assert sum(view.calls) == 16 * 40


def test_short_searches_get_more_places():
    """Single queries to a graph or lists with few fresh rows go on beside each other where others wait; behind one
    that waits they wait too."""
    lane, short, other = SearchLane(1), PlainView(), PlainView()
    short.is_simple = True
    short.gate.clear()
    threads = [threading.Thread(target=ask, args=(lane, short, n)) for n in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: short.at_once == 3, "all search at once")
    for view, options in ((other, {}), (short, {"exact": True}), (short, {})):
        threads.append(threading.Thread(target=ask, args=(lane, view, 7), kwargs=options))
        threads[-1].start()
        waiting = len(threads) - 3
        wait_until(lambda waiting=waiting: lane.waiting == waiting, "it waits")
    short.tail_rows = 1_000_000
    assert lane._places(short, np.zeros((1, 3)), False) == 1
    assert (short.at_once, other.at_once) == (3, 0)
    short.tail_rows = 0
    finish(short, threads)
    assert not lane._running
    assert not lane.waiting
    assert (len(short.calls), len(other.calls)) == (5, 1)


def test_small_queries_get_in_between_slices():
    """A large batch gives way after each slice, and its answers stay in order."""
    lane, view = SearchLane(1), PlainView()
    queries = np.arange(200, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)

    def batch():
        found = list(lane.slices(view, queries, 2))
        return np.concatenate([part.distances for part in found])[:, 0].tolist()

    threads, outcomes = in_queue(lane, view, batch, lambda: ask(lane, view, 7))
    finish(view, threads)
    assert outcomes == [0, list(range(200)), 7]
    assert view.calls[:3] == [1, 128, 1]
    assert sum(view.calls) == 202


def test_a_note_tells_of_the_batch():
    """explain learns with how many others a query was searched, and how long it waited."""
    lane, view, note = SearchLane(1), PlainView(), Note()
    threads, _ = in_queue(
        lane, view, lambda: ask(lane, view, 1), lambda: ask(lane, view, 2, note=note),
        lambda: ask(lane, view, 3),
    )  # fmt: skip
    time.sleep(0.02)
    finish(view, threads)
    assert note.batch == 3
    assert note.wait_s >= 0.02
    assert note.search_s > 0
    alone = Note()
    ask(lane, view, 1, note=alone)
    assert alone.batch == 1


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """4,000 records of 32 dimensions with an index, and queries for them."""
    rng = np.random.default_rng(6)
    centres = rng.standard_normal((30, 32)) * 2
    vectors = centres[rng.integers(0, 30, 4_200)] + rng.standard_normal((4_200, 32))
    with vecdb.open(tmp_path_factory.mktemp("lane")) as db:
        docs = db.create_collection("docs", dimension=32, index="hnsw")
        docs.insert(
            [f"r{i}" for i in range(4_000)],
            vectors[:4_000],
            metadata=[{"even": i % 2 == 0} for i in range(4_000)],
        )
        docs.build_index()
        yield docs, vectors[4_000:].astype(np.float32)


def test_answers_are_those_of_a_single_caller(words):
    """Sixteen threads of mixed queries get what one thread gets, whoever they are searched with."""
    docs, queries = words
    asked = [{}, {"k": 3}, {"filter": {"even": True}}, {"exact": True}, {"target_recall": 0.8}]
    truth = [[docs.query(q, **options) for q in queries[:60]] for options in asked]

    def work(n):
        for i in range(60):
            place = (i * 7 + n) % 60
            expected = truth[n % 5][place]
            found = docs.query(queries[place], **asked[n % 5])
            assert found.ids == expected.ids
            assert np.allclose(found.distances, expected.distances, atol=1e-5)

    run_all(*[lambda n=n: work(n) for n in range(16)])


def test_large_batches_do_not_starve_small_queries(data_folder):
    """While more large batches run than there are cores, a small query takes a small part of one's time."""
    rng = np.random.default_rng(9)
    vectors = rng.standard_normal((20_000, 128)).astype(np.float32)

    def small_to_batch():
        stop = threading.Event()
        batch_s, small_s = [], []

        def large():
            while not stop.is_set():
                begun = time.monotonic()
                docs.query(vectors[:4_000], k=10)
                batch_s.append(time.monotonic() - begun)

        def small():
            wait_until(lambda: docs.count() and threading.active_count() > 4, "batches run")
            for i in range(12):
                begun = time.monotonic()
                docs.query(vectors[i], k=10)
                small_s.append(time.monotonic() - begun)
                time.sleep(0.02)
            stop.set()

        run_all(large, large, large, large, small)
        print("batch", statistics.median(batch_s), "small", statistics.median(small_s))
        return statistics.median(small_s) / statistics.median(batch_s)

    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=128, index="exact")
        docs.insert([f"r{i}" for i in range(20_000)], vectors)
        once_below(1 / 6, small_to_batch)


def test_a_batch_that_belongs_together_is_one_call():
    """Where a view wants many queries in one call, slices are that large, however long each takes."""
    lane, view, note = SearchLane(1), PlainView(), Note()
    view.together = lambda count, k, allowed, exact, wait: min(count, 500)
    queries = np.arange(3_600, dtype=np.float32).reshape(1_200, 3)
    parts = list(lane.slices(view, queries, 2, note=note))
    assert view.calls == [500, 500, 200]
    assert (np.concatenate([part.distances for part in parts])[:, 0] == queries[:, 0]).all()
    assert note.batch == 500
