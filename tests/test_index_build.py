"""The life of an index: build, grow, save, map, swap, beside readers and writers."""

from __future__ import annotations

import errno
import io
import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from vecdb.errors import Corrupted, Internal, StorageFull
from vecdb.index import Index, IndexRecord, files, plan
from vecdb.settings import ENGINE, resolve

SEED = 20_261_125
DIMENSION = 24


def plain(queries, vectors, metric):
    """Distances in float64, by the definitions."""
    x, y = np.asarray(queries, np.float64), np.asarray(vectors, np.float64)
    if metric == "l2":
        return (x**2).sum(1)[:, None] - 2 * x @ y.T + (y**2).sum(1)[None]
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        y = y / np.linalg.norm(y, axis=1, keepdims=True)
    return 1 - x @ y.T


class Rows:
    """Stored vectors, as the store gives them, with a log of what was read."""

    def __init__(self, n, seed=SEED, storage="float32"):
        rng = np.random.default_rng(seed)
        centers = rng.standard_normal((50, DIMENSION))
        near = centers[rng.integers(0, 50, n + 300)]
        every = (near + 0.4 * rng.standard_normal(near.shape)).astype(storage)
        self.vectors, self.queries = every[:n], every[n:].astype(np.float32)
        self.reads: list[tuple[int, int]] = []

    def read(self, start, stop):
        self.reads.append((start, stop))
        return self.vectors[start:stop]


def make(kind="hnsw", metric="l2", storage="float32", target_recall=0.95, **settings):
    return Index(
        dimension=DIMENSION,
        metric=metric,
        storage=storage,
        kind=kind,
        target_recall=target_recall,
        settings=resolve(ENGINE, {"build_threads": 2, **settings}),
    )


def build(index, rows, cancel=None, progress=None):
    return index.build(
        index.view,
        rows.read,
        cancel=cancel or threading.Event(),
        progress=progress or (lambda share: None),
    )


def check(index, rows, live, k=10):
    """Exact answers of the current view are those of numpy over the live rows."""
    view = index.view
    assert view.n_live == live.sum()
    truth = np.where(
        live, plain(rows.queries[:30], rows.vectors[: len(live)], index.metric), np.inf
    )
    best = np.sort(truth, axis=1)[:, :k]
    for options in ({"exact": True}, {}):
        found = view.search(rows.queries[:30], k, **options)
        assert (found.rows[:, :k] >= 0).all()
        own = np.sort(np.take_along_axis(truth, found.rows, axis=1), axis=1)[:, :k]
        assert np.isfinite(own).all()
        right = own <= best[:, -1:] + 1e-4
        assert right.all() if options else right.mean() >= 0.9


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
@pytest.mark.parametrize(
    ("metric", "storage"), [("cosine", "float32"), ("l2", "float16"), ("ip", "float32")]
)
def test_recall_reaches_the_target_on_queries_it_never_saw(kind, metric, storage, monkeypatch):
    """The setting that calibration chose gives the promised recall on other vectors."""
    monkeypatch.setattr(plan, "exact_cost", lambda main, allowed: np.inf)
    rows = Rows(4_000, storage=storage)
    index = make(kind, metric, storage, target_recall=0.9)
    index.append(rows.vectors)
    index.publish(1)
    index.install(build(index, rows))
    truth = plain(rows.queries, rows.vectors, metric)
    settings = []
    for k, target in ((10, None), (10, 0.97), (100, 0.95), (30, 0.95)):
        found = index.view.search(rows.queries, k, target_recall=target)
        assert not found.exact
        kth = np.sort(truth, axis=1)[:, k - 1]
        own = np.take_along_axis(truth, found.rows, axis=1)[:, :k]
        recall = (own <= kth[:, None] + 1e-5).mean()
        print(kind, metric, storage, k, target, recall)
        # One per cent for the chance in 300 queries.
        assert recall >= (target or 0.9) - 0.01
        settings.append(recall)
    assert settings[0] < 1.0, "the search was not approximate, so nothing was tested"
    assert index.stats().measured_recall >= 0.9


def test_rows_that_come_and_go_during_a_build():
    """Appends, updates and deletes while a build runs are all seen after it is swapped in."""
    rows = Rows(5_000)
    live = np.zeros(5_000, np.bool_)
    index = make(metric="cosine")
    index.append(rows.vectors[:3_000])
    live[:3_000] = True
    index.kill(np.arange(0, 3_000, 10))
    live[np.arange(0, 3_000, 10)] = False
    index.publish(1)
    reading, go_on = threading.Event(), threading.Event()
    built = []

    def read(start, stop):
        reading.set()
        assert go_on.wait(30)
        return rows.vectors[start:stop]

    def run():
        built.append(
            index.build(index.view, read, cancel=threading.Event(), progress=lambda share: None)
        )

    thread = threading.Thread(target=run)
    thread.start()
    assert reading.wait(30)
    index.append(rows.vectors[3_000:4_500])
    live[3_000:4_500] = True
    dead = np.arange(1, 4_000, 7)
    index.kill(dead)
    live[dead] = False
    index.publish(2)
    go_on.set()
    thread.join(60)
    # Not published yet: must not show through the swap.
    index.append(rows.vectors[4_500:])
    index.kill(np.arange(22, 2_000, 10))
    index.kill(np.arange(4_000, 5_000, 3))
    assert built[0].high_water == 3_000
    assert built[0].rows == 2_700
    before = index.view
    index.install(built[0])
    assert index.view is not before
    assert index.view.sequence == 2
    check(index, rows, live[:4_500])
    check_old = before.search(rows.queries[:5], 10, exact=True)
    again = index.view.search(rows.queries[:5], 10, exact=True)
    np.testing.assert_array_equal(check_old.rows, again.rows)
    live[4_500:] = True
    live[np.arange(22, 2_000, 10)] = False
    live[np.arange(4_000, 5_000, 3)] = False
    index.publish(3)
    check(index, rows, live)
    stats = index.stats()
    assert stats.indexed_rows == 2_700
    assert stats.tail_rows == 2_000


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_graph_grows_by_its_fresh_rows_only(storage, mapped, tmp_path):
    """A second build reads fresh rows only, also when the first one was mapped from a file."""
    rows = Rows(4_000, storage=storage)
    index = make(storage=storage)
    index.append(rows.vectors[:2_500])
    index.publish(1)
    first = build(index, rows)
    if mapped:
        record = index.save(first, tmp_path)
        index = make(storage=storage)
        first = index.load(record, tmp_path, rows.read)
    index.install(first)
    start = index.view.n_rows or 2_500
    index.append(rows.vectors[start:])
    dead = np.arange(0, 4_000, 9)
    index.kill(dead)
    index.publish(2)
    rows.reads.clear()
    second = build(index, rows)
    assert min(start for start, _ in rows.reads) >= 2_500
    assert second.rows == 2_500 + 1_500 - np.count_nonzero(dead >= 2_500)
    index.install(second)
    live = np.ones(4_000, np.bool_)
    live[dead] = False
    check(index, rows, live)
    assert index.stats().tail_rows == 0
    assert index.stats().dead_rows == np.count_nonzero(dead < 2_500)


def test_many_dead_rows_cause_a_build_anew():
    """Beyond the dead share a build leaves the dead rows out."""
    rows = Rows(3_000)
    index = make(index_dead_share=0.2)
    index.append(rows.vectors)
    index.publish(1)
    index.install(build(index, rows))
    assert not index.wants_build()
    live = np.ones(3_000, np.bool_)
    live[::3] = False
    index.kill(np.flatnonzero(~live))
    index.publish(2)
    assert index.wants_build()
    again = build(index, rows)
    assert again.rows == 2_000
    index.install(again)
    check(index, rows, live)
    assert index.stats().dead_rows == 0
    assert not index.wants_build()
    assert build(index, rows) is None, "there is nothing left to build"


def test_when_a_build_is_wanted():
    """By kind, size, fresh rows and dead rows, as the settings say."""
    rows = Rows(1_100)
    none = make("exact")
    few, auto = make("hnsw"), make("auto", exact_max_scalars=1_000 * DIMENSION)
    for index in (none, few, auto):
        index.append(rows.vectors[:999])
        index.publish(1)
        assert not index.wants_build()
        assert build(index, rows) is None
        index.append(rows.vectors[999:1_000])
        index.publish(2)
    assert not none.wants_build()
    assert few.wants_build()
    assert not auto.wants_build()
    auto.append(rows.vectors[1_000:])
    auto.publish(3)
    assert auto.wants_build()
    auto.install(build(auto, rows))
    assert auto.stats().kind == "hnsw"
    assert not auto.wants_build()
    auto.append(np.ones((9_999, DIMENSION), np.float32))
    auto.publish(4)
    assert not auto.wants_build()
    auto.append(np.ones((1, DIMENSION), np.float32))
    assert not auto.wants_build()
    auto.publish(5)
    assert auto.wants_build()


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
@pytest.mark.parametrize("after", [0.0, 0.3, 0.95])
def test_a_cancelled_build_leaves_everything_as_it_was(kind, after):
    """Cancelling at any share of the work gives None and changes nothing."""
    rows = Rows(4_000)
    index = make(kind)
    index.append(rows.vectors)
    view = index.publish(1)
    cancel, shares = threading.Event(), []

    def progress(share):
        shares.append(share)
        if share >= after:
            cancel.set()

    if after == 0.0:
        cancel.set()
    priority = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert build(index, rows, cancel, progress) is None
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == priority
    assert index.view is view
    check(index, rows, np.ones(4_000, np.bool_))


def test_progress_rises_to_the_end():
    """Progress never falls, stays within 0 to 1, and comes from a thread of low priority."""
    rows = Rows(3_000)
    index = make("ivf")
    index.append(rows.vectors)
    index.publish(1)
    shares, priorities = [], set()

    def progress(share):
        shares.append(share)
        priorities.add(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    assert build(index, rows, progress=progress) is not None
    assert shares == sorted(shares)
    assert shares[0] > 0
    assert 0.95 <= shares[-1] <= 1.0 + 1e-9
    if os.getpriority(os.PRIO_PROCESS, 0) < 10:
        assert priorities == {10}


def test_an_error_while_reading_reaches_the_caller():
    """What read_vectors raises is raised by build, and the index still serves."""
    rows = Rows(1_500)
    index = make()
    index.append(rows.vectors)
    index.publish(1)

    def read(start, stop):
        raise OSError(errno.EIO, "the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        index.build(index.view, read, cancel=threading.Event(), progress=lambda share: None)
    check(index, rows, np.ones(1_500, np.bool_))


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
@pytest.mark.parametrize(
    ("metric", "storage"), [("cosine", "float32"), ("cosine", "float16"), ("l2", "float16")]
)
def test_a_saved_index_answers_as_before(kind, metric, storage, tmp_path):
    """Saved, recorded as JSON, and mapped by a new process's index, it gives the same answers."""
    rows = Rows(3_000, storage=storage)
    index = make(kind, metric, storage)
    index.append(rows.vectors[:2_500])
    dead = np.arange(3, 2_500, 11)
    index.kill(dead)
    index.publish(7)
    built = build(index, rows)
    record = index.save(built, tmp_path)
    index.install(built)
    index.append(rows.vectors[2_500:])
    view = index.publish(8)
    assert sorted(os.listdir(tmp_path)) == sorted(record.files())
    assert record.file_bytes == sum((tmp_path / name).stat().st_size for name in record.files())
    assert record.high_water == 2_500
    if kind == "hnsw":
        assert record.file_bytes < 2_500 * 200, "vectors do not belong into the file"
    again = make(kind, metric, storage)
    again.install(again.load(IndexRecord.from_json(record.to_json()), tmp_path, rows.read))
    again.append(rows.vectors[2_500:])
    again.kill(dead)
    opened = again.publish(8)
    assert opened.n_rows == view.n_rows == 3_000
    assert opened.n_live == view.n_live == 3_000 - len(dead)
    for options in ({}, {"exact": True}):
        one, two = (v.search(rows.queries, 10, **options) for v in (view, opened))
        np.testing.assert_array_equal(one.rows, two.rows)
        np.testing.assert_array_equal(one.distances, two.distances)
        assert one.plan == two.plan
    assert again.stats() == index.stats()


def damage_flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def damage_truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def damage_empty(path):
    os.truncate(path, 0)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("damage", [damage_flip, damage_truncate, damage_empty, os.unlink])
def test_a_damaged_file_is_found_before_it_is_used(damage, which, tmp_path):
    """A flipped bit, a cut or a missing file is Corrupted, and names the file."""
    rows = Rows(1_200)
    index = make()
    index.append(rows.vectors)
    index.publish(1)
    record = index.save(build(index, rows), tmp_path)
    name = record.files()[which]
    damage(tmp_path / name)
    with pytest.raises(Corrupted, match=name):
        make().load(record, tmp_path, rows.read)


def test_records_that_do_not_fit_are_refused(tmp_path):
    """A record of another collection, another format or no record at all is Corrupted."""
    rows = Rows(1_200)
    index = make()
    index.append(rows.vectors)
    index.publish(1)
    record = index.save(build(index, rows), tmp_path)
    for other in (make(metric="ip"), make(storage="float16")):
        with pytest.raises(Corrupted, match="the collection has"):
            other.load(record, tmp_path, rows.read)
    with pytest.raises(Corrupted, match="does not fit"):
        make().load(replace(record, rows=7), tmp_path, rows.read)
    with pytest.raises(Corrupted, match="does not fit"):
        make().load(replace(record, high_water=100), tmp_path, rows.read)
    for data in (b"", b"{}", b"[1]", b"\xff", record.to_json()[:-9], b'{"format": 99}'):
        with pytest.raises(Corrupted, match="record"):
            IndexRecord.from_json(data)


class FullDisk(io.BufferedRandom):
    """A file on a disk that has room for `room` more bytes."""

    room = 0

    def write(self, data):
        FullDisk.room -= len(data)
        if FullDisk.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
@pytest.mark.parametrize("missing", ["all", "last byte of the graph", "last byte"])
def test_a_full_disk_leaves_no_litter(kind, missing, tmp_path, monkeypatch):
    """Saving on a full disk is StorageFull at whatever byte, and every file it began is gone."""
    rows = Rows(1_200)
    index = make(kind)
    index.append(rows.vectors)
    index.publish(1)
    built = build(index, rows)
    record = index.save(built, tmp_path)
    for name in record.files():
        (tmp_path / name).unlink()
    FullDisk.room = {
        "all": 0,
        "last byte of the graph": record.graph.size - 1,
        "last byte": record.file_bytes - 1,
    }[missing]
    monkeypatch.setattr(
        files, "open", lambda path, mode: FullDisk(io.FileIO(path, mode)), raising=False
    )
    with pytest.raises(StorageFull, match="no space left"):
        index.save(built, tmp_path)
    assert os.listdir(tmp_path) == []


def test_an_old_build_cannot_replace_a_newer_one():
    """Rows that left the tail cannot be lost by installing an index that does not hold them."""
    rows = Rows(2_500)
    index = make()
    index.append(rows.vectors[:1_500])
    old_view = index.publish(1)
    old = build(index, rows)
    index.append(rows.vectors[1_500:])
    index.publish(2)
    index.install(build(index, rows))
    with pytest.raises(Internal, match="cannot replace"):
        index.install(old)
    ahead = make()
    ahead.append(rows.vectors[:10])
    ahead.publish(1)
    with pytest.raises(Internal, match="ahead"):
        ahead.install(old)
    assert old_view.n_rows == 1_500
    check(index, rows, np.ones(2_500, np.bool_))


@pytest.mark.parametrize(("metric", "storage"), [("l2", "float32"), ("ip", "float16")])
def test_readers_beside_a_writer_and_builds(metric, storage):
    """Every answer, at any moment, is right for the view that gave it."""
    seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed)
    rng = np.random.default_rng(seed)
    rows = Rows(6_000, seed=seed, storage=storage)
    index = make(metric=metric, storage=storage)
    truth = plain(rows.queries[:8], rows.vectors, metric)
    moments: dict[int, np.ndarray] = {0: np.zeros(0, np.bool_)}
    done = threading.Event()
    failures: list[str] = []
    seen: set[tuple[int, int]] = set()

    def reader(number):
        mine = np.random.default_rng(seed + number)
        while not done.is_set() and not failures:
            view = index.view
            live = moments[view.sequence]
            allowed = None if mine.random() < 0.5 else mine.random(view.n_rows) < 0.5
            found = view.search(rows.queries[:8], 5, allowed=allowed, exact=True)
            wanted = live if allowed is None else live & allowed
            masked = np.where(wanted, truth[:, : len(live)], np.inf)
            best = np.sort(masked, axis=1)[:, :5]
            best = np.pad(best, ((0, 0), (0, 5 - best.shape[1])), constant_values=np.inf)
            near = np.where(found.rows < 0, np.inf, found.distances)
            if not (len(live) == view.n_rows and np.allclose(near, best, rtol=1e-4, atol=1e-4)):
                failures.append(f"wrong answer at commit {view.sequence}, main {view.main}")
            seen.add((view.sequence, 0 if view.main is None else view.main.high_water))

    def builder():
        while not done.is_set():
            built = build(index, rows)
            if built is not None:
                index.install(built)

    threads = [threading.Thread(target=reader, args=(i,)) for i in range(2)]
    threads.append(threading.Thread(target=builder))
    for thread in threads:
        thread.start()
    live = np.zeros(0, np.bool_)
    sequence, end = 0, time.monotonic() + 60
    while not failures and time.monotonic() < end:
        sequence += 1
        fresh = rows.vectors[len(live) : len(live) + 150]
        index.append(fresh)
        live = np.concatenate([live, np.ones(len(fresh), np.bool_)])
        dead = rng.choice(len(live), 20)
        index.kill(dead)
        live[dead] = False
        moments[sequence] = live.copy()
        index.publish(sequence)
        swaps = len({mark for _, mark in tuple(seen)})
        if len(live) == len(rows.vectors) and swaps >= 3:
            break
        time.sleep(0.02)
    done.set()
    for thread in threads:
        thread.join(60)
    assert not failures, failures[:3]
    assert index.view.main is not None
    assert len({mark for _, mark in seen}) >= 3, "readers saw too few swaps"
    check(index, rows, live)
