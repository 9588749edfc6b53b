"""The life of an index: build, grow, swap, beside readers and writers."""

from __future__ import annotations

import errno
import os
import threading

import numpy as np
import pytest
from index_rows import (
    DIMENSION,
    Rows,
    build,
    check_index,
    filled,
    hits,
    make_index,
    plain,
)

from vecdb.errors import Internal
from vecdb.index import index as index_module
from vecdb.index import plan


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "metric", "storage", "quantization"),
    [
        ("hnsw", "cosine", "float32", "none"),
        ("hnsw", "l2", "float16", "none"),
        ("hnsw", "ip", "float32", "none"),
        ("ivf", "cosine", "float32", "none"),
        ("ivf", "l2", "float16", "none"),
        ("ivf", "ip", "float32", "none"),
        ("hnsw", "l2", "float32", "sq8"),
        ("hnsw", "cosine", "uint8", "none"),
        ("hnsw", "hamming", "binary", "none"),
        ("ivf", "ip", "float16", "sq4"),
        ("ivf", "l2", "float32", "pq4"),
        ("ivf", "ip", "float32", "pq8"),
        ("ivf", "l2", "int8", "none"),
    ],
)
def test_recall_reaches_the_target_on_queries_it_never_saw(
    kind, metric, storage, quantization, monkeypatch
):
    """The setting that calibration chose gives the promised recall on other vectors."""
    monkeypatch.setattr(plan, "exact_cost", lambda *_: np.inf)
    rows = Rows(4_000, storage=storage)
    index = filled(rows, kind, metric, quantization, target_recall=0.9)
    index.install(build(index))
    truth = plain(rows.queries, rows.vectors, metric)
    settings = []
    for k, target in ((10, None), (10, 0.97), (100, 0.95), (30, 0.95)):
        found = index.view.search(rows.queries, k, target_recall=target)
        assert not found.exact
        recall = hits(truth, found, k).mean()
        print(kind, metric, storage, quantization, k, target, recall)
        # One per cent for the chance in 300 queries.
        assert recall >= (target or 0.9) - 0.01
        settings.append(recall)
    assert settings[0] < 1.0, "the search was not approximate, so nothing was tested"
    assert index.stats().measured_recall >= 0.9


def test_rows_that_come_and_go_during_a_build():
    """Appends, updates and deletes while a build runs are all seen after it is swapped in."""
    rows = Rows(5_000)
    live = np.zeros(5_000, np.bool_)
    index = make_index(rows, metric="cosine")
    index.append(rows.vectors[:3_000])
    live[:3_000] = True
    index.kill(np.arange(0, 3_000, 10))
    live[np.arange(0, 3_000, 10)] = False
    index.publish(1)
    reading, go_on = threading.Event(), threading.Event()
    built = []

    def wait(start, stop):
        reading.set()
        assert go_on.wait(30)

    rows.before_read = wait
    thread = threading.Thread(target=lambda: built.append(build(index)))
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
    check_index(index, rows, live[:4_500])
    check_old = before.search(rows.queries[:5], 10, exact=True)
    again = index.view.search(rows.queries[:5], 10, exact=True)
    np.testing.assert_array_equal(check_old.rows, again.rows)
    live[4_500:] = True
    live[np.arange(22, 2_000, 10)] = False
    live[np.arange(4_000, 5_000, 3)] = False
    index.publish(3)
    check_index(index, rows, live)
    stats = index.stats()
    assert stats.indexed_rows == 2_700
    assert stats.tail_rows == 2_000


@pytest.mark.long
@pytest.mark.parametrize(
    ("metric", "storage", "quantization"),
    [
        ("l2", "float32", "none"),
        ("l2", "float16", "none"),
        ("cosine", "float32", "sq8"),
        ("ip", "float32", "sq4"),
        ("ip", "int8", "none"),
        ("cosine", "uint8", "none"),
        ("hamming", "binary", "none"),
    ],
)
@pytest.mark.parametrize("mapped", [False, True])
def test_a_graph_grows_by_its_fresh_rows_only(metric, storage, quantization, mapped, tmp_path):
    """A second build reads fresh rows only, also when the first one was mapped from a file."""
    rows = Rows(4_000, storage=storage)
    index = make_index(rows, metric=metric, quantization=quantization)
    index.append(rows.vectors[:2_500])
    index.publish(1)
    first = build(index)
    if mapped:
        record = index.save(first, tmp_path)
        index = make_index(rows, metric=metric, quantization=quantization)
        first = index.load(record, tmp_path)
    index.install(first)
    start = index.view.n_rows or 2_500
    index.append(rows.vectors[start:])
    dead = np.arange(0, 4_000, 9)
    index.kill(dead)
    index.publish(2)
    rows.reads.clear()
    before, codes = first.main.rows.copy(), first.main.block.take(np.arange(2_500))
    second = build(index)
    if not first.main.lossy:
        assert min(start for start, _ in rows.reads) >= 2_500
    assert second.rows == 2_500 + 1_500 - np.count_nonzero(dead >= 2_500)
    index.install(second)
    live = np.ones(4_000, np.bool_)
    live[dead] = False
    check_index(index, rows, live)
    assert index.stats().tail_rows == 0
    assert index.stats().dead_rows == np.count_nonzero(dead < 2_500)
    np.testing.assert_array_equal(first.main.rows, before)
    np.testing.assert_array_equal(first.main.block.take(np.arange(2_500)), codes)
    np.testing.assert_array_equal(second.main.block.take(np.arange(2_500)), codes)


def test_many_dead_rows_cause_a_build_anew():
    """Beyond the dead share a build leaves the dead rows out."""
    rows = Rows(3_000)
    index = filled(rows, index_dead_share=0.2)
    index.install(build(index))
    assert not index.wants_build()
    live = np.ones(3_000, np.bool_)
    live[::3] = False
    index.kill(np.flatnonzero(~live))
    index.publish(2)
    assert index.wants_build()
    again = build(index)
    assert again.rows == 2_000
    index.install(again)
    check_index(index, rows, live)
    assert index.stats().dead_rows == 0
    assert not index.wants_build()
    assert build(index) is None, "there is nothing left to build"


def test_when_a_build_is_wanted():
    """By kind, size, fresh rows and dead rows, as the settings say."""
    rows = Rows(1_100)
    none, coded = make_index(rows, "exact"), make_index(rows, "exact", quantization="sq8")
    few = make_index(rows, "hnsw")
    auto = make_index(rows, "auto", exact_max_scalars=1_000 * DIMENSION)
    for index in (none, few, auto, coded):
        index.append(rows.vectors[:999])
        index.publish(1)
        assert not index.wants_build()
        assert build(index) is None
        index.append(rows.vectors[999:1_000])
        index.publish(2)
    assert not none.wants_build()
    assert few.wants_build()
    assert not auto.wants_build()
    auto.append(rows.vectors[1_000:])
    auto.publish(3)
    assert auto.wants_build()
    auto.install(build(auto))
    assert auto.stats().kind == "hnsw"
    assert not auto.wants_build()
    auto.append(np.ones((9_999, DIMENSION), np.float32))
    auto.publish(4)
    assert not auto.wants_build()
    auto.append(np.ones((1, DIMENSION), np.float32))
    assert not auto.wants_build()
    auto.publish(5)
    assert auto.wants_build()
    coded.append(np.ones((8_999, DIMENSION), np.float32))
    coded.publish(3)
    assert not coded.wants_build()
    coded.append(np.ones((1, DIMENSION), np.float32))
    coded.publish(4)
    assert coded.wants_build()


@pytest.mark.parametrize(
    ("quantization", "kind"), [("sq8", "hnsw"), ("pq4", "ivf"), ("pq8", "ivf")]
)
def test_auto_builds_the_kind_that_has_the_codes(quantization, kind):
    """Kind auto makes a graph, and lists for pq4 and pq8, which no graph has."""
    index = filled(Rows(4_000), "auto", quantization=quantization, exact_max_scalars=0)
    index.install(build(index))
    assert (index.stats().kind, index.stats().quantization) == (kind, quantization)


@pytest.mark.parametrize(
    ("kind", "quantization"),
    [
        ("hnsw", "none"),
        ("ivf", "none"),
        ("hnsw", "sq4"),
        ("ivf", "pq4"),
        ("ivf", "pq8"),
        ("exact", "sq8"),
    ],
)
@pytest.mark.parametrize("after", [0.0, 0.3, 0.95])
def test_a_cancelled_build_leaves_everything_as_it_was(kind, quantization, after, monkeypatch):
    """Cancelling at any share of the work gives None and changes nothing."""
    monkeypatch.setattr(index_module, "LEAST_FRESH_ROWS", 1_000)
    rows = Rows(4_000)
    index = filled(rows, kind, quantization=quantization)
    view = index.view
    cancel, shares = threading.Event(), []

    def progress(share):
        shares.append(share)
        if share >= after:
            cancel.set()

    if after == 0.0:
        cancel.set()
    priority = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert build(index, cancel, progress) is None
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == priority
    assert index.view is view
    check_index(index, rows, np.ones(4_000, np.bool_))


def test_progress_rises_to_the_end():
    """Progress never falls, stays within 0 to 1, and comes from a thread of low priority."""
    rows = Rows(3_000)
    index = filled(rows, "ivf")
    shares, priorities = [], set()

    def progress(share):
        shares.append(share)
        priorities.add(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    assert build(index, progress=progress) is not None
    assert shares == sorted(shares)
    assert shares[0] > 0
    assert 0.95 <= shares[-1] <= 1.0 + 1e-9
    if os.getpriority(os.PRIO_PROCESS, 0) < 10:
        assert priorities == {10}


def test_an_error_while_reading_reaches_the_caller():
    """What the source raises is raised by build, and the index still serves."""
    rows = Rows(1_500)
    index = filled(rows)

    def fail(start, stop):
        raise OSError(errno.EIO, "the disk is gone")

    rows.before_read = fail
    with pytest.raises(OSError, match="the disk is gone"):
        build(index)
    check_index(index, rows, np.ones(1_500, np.bool_))


def test_a_source_of_the_wrong_width_is_told():
    """A source that gives something else than was asked for is an error, never misread."""
    rows = Rows(1_500)
    index = filled(rows)
    rows.vectors = rows.vectors[:, :-1]
    with pytest.raises(ValueError, match="expected"):
        build(index)


def test_an_old_build_cannot_replace_a_newer_one():
    """Rows that left the tail cannot be lost by installing an index that does not hold them."""
    rows = Rows(2_500)
    index = make_index(rows)
    index.append(rows.vectors[:1_500])
    old_view = index.publish(1)
    old = build(index)
    index.append(rows.vectors[1_500:])
    index.publish(2)
    index.install(build(index))
    with pytest.raises(Internal, match="cannot replace"):
        index.install(old)
    ahead = make_index(rows)
    ahead.append(rows.vectors[:10])
    ahead.publish(1)
    with pytest.raises(Internal, match="ahead"):
        ahead.install(old)
    assert old_view.n_rows == 1_500
    check_index(index, rows, np.ones(2_500, np.bool_))
