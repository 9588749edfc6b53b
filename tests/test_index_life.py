"""Builds that do not end well, memory that is shared, codes chosen by memory, growth in many steps."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from index_rows import (
    DIMENSION,
    Rows,
    Stop,
    build,
    check_index,
    each_once,
    filled,
    hits,
    make_index,
    plain,
    selection,
    small_steps,
)

from vecdb.errors import LimitExceeded
from vecdb.index import index as index_module
from vecdb.index.blocks import FloatBlock

SEED = 20_261_126
KINDS = [
    ("hnsw", "l2", "float32", "none"),
    ("hnsw", "cosine", "float32", "sq4"),
    ("hnsw", "ip", "int8", "none"),
    ("hnsw", "hamming", "binary", "none"),
    ("ivf", "cosine", "float16", "none"),
    ("ivf", "l2", "float32", "pq4"),
    ("ivf", "cosine", "float32", "pq8"),
    ("exact", "l2", "float32", "sq8"),
]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    small_steps(monkeypatch)
    monkeypatch.setattr(index_module, "LEAST_FRESH_ROWS", 1_000)


def looks(pieces):
    """The memory that each float piece looks at, None for one that owns its vectors."""
    return [piece.block.vectors.base for piece in pieces if isinstance(piece.block, FloatBlock)]


def in_arena(index, arena):
    return [base for base in looks(index.view.pieces) if base is arena.vectors.base]


def arena_like(base):
    """Whether memory is larger than that of any piece."""
    return base is not None and base.nbytes > 4_000 * DIMENSION * 4


@pytest.mark.long
@pytest.mark.parametrize(("kind", "metric", "storage", "quantization"), KINDS)
def test_a_build_cancelled_anywhere_can_be_made_again(kind, metric, storage, quantization):
    """After builds cancelled at random shares, first and later ones, answers and the next build are right."""
    rng = np.random.default_rng(SEED)
    rows = Rows(4_000, storage=storage)
    index = make_index(rows, kind, metric, quantization)
    index.append(rows.vectors[:2_500])
    live = np.ones(2_500, np.bool_)
    index.publish(1)
    for sequence in (2, 3):
        for share in rng.random(2):
            dead = rng.choice(len(live), 20)
            index.kill(dead)
            live[dead] = False
            index.publish(sequence)
            stop = Stop(share)
            assert build(index, stop.cancel, stop) is None
            assert stop.shares == sorted(stop.shares)
            check_index(index, rows, live)
        built = build(index)
        assert built is not None
        index.install(built)
        assert index.view.pieces == ()
        check_index(index, rows, live)
        if sequence == 2:
            index.append(rows.vectors[2_500:])
            live = np.concatenate([live, np.ones(1_500, np.bool_)])
            index.publish(3)
    assert index.stats().indexed_rows + index.stats().tail_rows >= live.sum()


@pytest.mark.long
@pytest.mark.parametrize(("kind", "metric", "storage", "quantization"), KINDS)
def test_a_build_whose_source_fails_changes_nothing(kind, metric, storage, quantization):
    """An error at any read reaches the caller, answers stay right, and the next build succeeds."""
    rows = Rows(2_500, storage=storage)
    index = filled(rows, kind, metric, quantization)
    assert build(index) is not None
    reads = len(rows.reads)
    for failing in {0, reads // 3, 2 * reads // 3, reads - 1}:
        rows.reads.clear()

        def fail(start, stop, failing=failing):
            if len(rows.reads) == failing + 1:
                raise OSError(errno.EIO, "the disk is gone")

        rows.before_read = fail
        with pytest.raises(OSError, match="the disk is gone"):
            build(index)
        rows.before_read = lambda start, stop: None
        assert index.view.main is None
        check_index(index, rows, np.ones(2_500, np.bool_))
    index.install(build(index))
    check_index(index, rows, np.ones(2_500, np.bool_))


@pytest.mark.long
@pytest.mark.parametrize(("kind", "metric", "storage", "quantization"), KINDS)
def test_a_build_beyond_its_budget_is_refused(kind, metric, storage, quantization):
    """Without enough build_memory_bytes a build is LimitExceeded, and nothing was read or changed."""
    rows = Rows(3_000, storage=storage)
    index = make_index(rows, kind, metric, quantization, build_memory_bytes=5_000)
    index.append(rows.vectors[:2_000])
    view = index.publish(1)
    with pytest.raises(LimitExceeded, match="build_memory_bytes") as refused:
        build(index)
    assert index.view is view
    assert rows.reads == []
    assert refused.value.details["limit"] == 5_000
    needed = refused.value.details["needed"]
    index.settings = {**index.settings, "build_memory_bytes": needed - 1}
    with pytest.raises(LimitExceeded):
        build(index)
    index.settings = {**index.settings, "build_memory_bytes": needed}
    first = build(index)
    index.install(first)
    index.append(rows.vectors[2_000:])
    view = index.publish(2)
    index.settings = {**index.settings, "build_memory_bytes": 5_000}
    rows.reads.clear()
    with pytest.raises(LimitExceeded, match="3,000 rows"):
        build(index)
    assert index.view is view
    assert rows.reads == []
    check_index(index, rows, np.ones(3_000, np.bool_))


@pytest.mark.long
@pytest.mark.parametrize("quantization", ["none", "sq8", "pq4", "pq8"])
def test_lists_grow_until_they_are_too_few(quantization):
    """Fresh rows go into the lists there are; at more than twice the rows new lists are trained."""
    rows = Rows(6_000)
    index = make_index(rows, "ivf", "l2", quantization)
    lists, held = [], np.empty(0, np.int64)
    for step, stop in enumerate((2_000, 2_500, 2_900, 6_000), 1):
        index.append(rows.vectors[len(index.view.live_mask()) : stop])
        index.publish(step)
        index.install(build(index))
        main = index.view.main
        lists.append(int(main.index.nlist))
        if lists[-1] == lists[0]:
            np.testing.assert_array_equal(main.rows[: held.size], held)
        held = main.rows
        check_index(index, rows, np.ones(stop, np.bool_))
    assert lists[0] == lists[1] == lists[2] < lists[3]


def test_growing_past_the_memory_limit_changes_the_code():
    """An index that would outgrow index_memory_bytes is built anew with smaller codes."""
    rows = Rows(4_000)
    index = make_index(rows, index_memory_bytes=600_000)
    index.append(rows.vectors[:2_000])
    index.publish(1)
    index.install(build(index))
    assert index.stats().quantization == "none"
    index.append(rows.vectors[2_000:])
    index.publish(2)
    index.install(build(index))
    assert index.stats().quantization != "none"
    assert index.view.main.nbytes <= 660_000
    check_index(index, rows, np.ones(4_000, np.bool_))


@pytest.mark.long
@pytest.mark.parametrize(
    ("metric", "storage", "quantization"),
    [
        ("cosine", "float32", "none"),
        ("l2", "float32", "sq8"),
        ("l2", "float16", "none"),
        ("hamming", "binary", "none"),
    ],
)
def test_an_index_that_grows_in_many_steps_stays_right(metric, storage, quantization):
    """Five extensions with updates and deletes in between keep answers right and recall near target."""
    rng = np.random.default_rng(SEED)
    rows = Rows(6_600, storage=storage)
    index = make_index(rows, "hnsw", metric, quantization)
    live = np.zeros(0, np.bool_)
    truth = plain(rows.queries, rows.vectors, metric)
    for step in range(1, 7):
        index.append(rows.vectors[len(live) : 1_100 * step])
        live = np.concatenate([live, np.ones(1_100, np.bool_)])
        dead = rng.choice(len(live), 40)
        index.kill(dead)
        live[dead] = False
        index.publish(step)
        if step > 1:
            held = index.view.main.rows
        index.install(build(index))
        if step > 1:
            np.testing.assert_array_equal(index.view.main.rows[: held.size], held)
        check_index(index, rows, live)
        allowed = np.where(live, truth[:, : len(live)], np.inf)
        assert hits(allowed, index.view.search(rows.queries, 10), 10).mean() >= 0.94
    stats = index.stats()
    assert stats.indexed_rows - stats.dead_rows == live.sum()
    assert stats.tail_rows == 0
    assert stats.built_at_sequence == 6


def test_a_grown_index_shares_the_memory_of_the_one_before():
    """An extension writes its vectors behind those that serve already, and copies none of these."""
    rows = Rows(4_000)
    index = make_index(rows)
    index.append(rows.vectors[:2_000])
    index.publish(1)
    first = build(index)
    index.install(first)
    old_view = index.view
    expected = old_view.search(rows.queries, 10)
    for stop in (3_000, 4_000):
        index.append(rows.vectors[stop - 1_000 : stop])
        index.publish(stop)
        built = build(index)
        assert built.main.arena is first.main.arena
        assert np.shares_memory(built.main.block.vectors, first.main.block.vectors)
        assert built.main.block.vectors.ctypes.data == first.main.block.vectors.ctypes.data
        index.install(built)
    assert first.main.arena.used == 4_000
    again = old_view.search(rows.queries, 10)
    np.testing.assert_array_equal(expected.rows, again.rows)
    np.testing.assert_array_equal(expected.distances, again.distances)
    check_index(index, rows, np.ones(4_000, np.bool_))


def test_a_cancelled_extension_does_not_write_over_what_serves():
    """Vectors that a cancelled build left behind the old ones stay valid for the tail that looks at them."""
    rows = Rows(5_000)
    index = make_index(rows)
    index.append(rows.vectors[:2_000])
    index.publish(1)
    index.install(build(index))
    arena = index.view.main.arena
    index.append(rows.vectors[2_000:4_000])
    index.publish(2)
    stop = Stop(0.6)
    assert build(index, stop.cancel, stop) is None
    looking = in_arena(index, arena)
    assert looking, "nothing was handed over, so nothing is tested"
    assert arena.used > 2_000
    index.append(rows.vectors[4_000:])
    index.publish(3)
    again = build(index)
    assert again.main.arena is not arena
    index.install(again)
    check_index(index, rows, np.ones(5_000, np.bool_))
    assert not in_arena(index, arena)


def test_the_tail_looks_at_the_arena_while_a_build_fills_it():
    """During a build full pieces of the tail become looks at the arena, and their own memory is let go."""
    rows = Rows(6_000)
    index = make_index(rows)
    index.append(rows.vectors)
    dead = np.arange(0, 6_000, 3)
    index.kill(dead)
    index.publish(1)
    live = np.ones(6_000, np.bool_)
    live[dead] = False
    before = looks(index.view.pieces)
    counts = []

    def progress(share):
        now = looks(index.view.pieces)
        arenas = {id(base) for base in now if arena_like(base)}
        assert len(arenas) <= 1
        counts.append(sum(map(arena_like, now)))
        if len(counts) % 8 == 0:
            check_index(index, rows, live)

    built = build(index, progress=progress)
    assert counts == sorted(counts)
    assert counts[0] <= 1
    assert counts[-1] >= 20, "of 24 pieces most are handed over before the build ends"
    assert len(in_arena(index, built.main.arena)) == counts[-1]
    assert built.main.arena.vectors.ctypes.data % 64 == 0, (
        "no vector lies across a cache line more than it must"
    )
    own = [
        piece.block.n
        for piece in index.view.pieces
        if piece.block.vectors.base is not built.main.arena.vectors.base
    ]
    # What is left: the buffer, rows kept back for calibration, dead rows. None of it is a whole copy.
    assert sum(own) <= 256 + 1_024 + len(dead)
    assert len(before) == 24
    check_index(index, rows, live)
    index.install(built)
    assert index.view.pieces == ()
    check_index(index, rows, live)


def test_pieces_put_together_after_a_hand_over_lose_no_row():
    """Handed-over pieces whose rows mostly die are joined, and filters as lists still find every row."""
    rng = np.random.default_rng(SEED)
    rows = Rows(4_000)
    index = filled(rows)
    stop = Stop(0.7)
    assert build(index, stop.cancel, stop) is None
    live = np.ones(4_000, np.bool_)
    for sequence in range(2, 8):
        dead = rng.choice(4_000, 900, replace=False)
        index.kill(dead)
        live[dead] = False
        view = index.publish(sequence)
        held = [piece for piece in view.pieces if piece.rows is not None]
        assert held
        assert all((np.diff(piece.rows) > 0).all() for piece in held)
        asked = np.sort(rng.choice(4_000, 1_500, replace=False))
        mask = np.isin(np.arange(4_000), asked)
        truth = np.where(live & mask, plain(rows.queries[:20], rows.vectors, "l2"), np.inf)
        for as_list in (True, False):
            chosen = selection(mask, as_list)
            found = view.search(rows.queries[:20], 10, allowed=chosen, exact=True)
            assert (hits(truth, found, 10) == 1.0).all()


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize(("piece_rows", "step_rows"), [(200, 256), (256, 200), (256, 256)])
def test_a_row_is_handed_over_once_however_steps_and_pieces_lie(
    monkeypatch, metric, piece_rows, step_rows
):
    """During a build, after one that was given up, during the next one over the same tail, and while rows die."""
    small_steps(monkeypatch, piece_rows, step_rows)
    rng = np.random.default_rng(SEED)
    rows = Rows(4_000)
    index = filled(rows, metric=metric)
    live = np.ones(4_000, np.bool_)
    sequence = 1
    for share in (0.5, 0.7, 0.8, None):
        calls = 0

        def asked(done):
            nonlocal calls, sequence
            calls += 1
            each_once(index.view, live)
            if calls % 5 == 0:
                dying = rng.choice(np.flatnonzero(live), 40, replace=False)
                index.kill(dying)
                live[dying] = False
                sequence += 1
                index.publish(sequence)
                check_index(index, rows, live)

        if share is None:
            built = build(index, progress=asked)
            index.install(built)
        else:
            stop = Stop(share)
            watched = lambda done, stop=stop: (asked(done), stop(done))  # noqa: E731
            assert build(index, stop.cancel, watched) is None
        assert calls > 5
        check_index(index, rows, live)


def test_a_tail_that_grows_from_within_a_piece_is_handed_over_once(monkeypatch):
    """A main index that ends inside of a piece, and a tail behind it that fills pieces of its own."""
    small_steps(monkeypatch, 256, 200)
    rows = Rows(6_000)
    index = make_index(rows, metric="l2")
    index.append(rows.vectors[:2_100])
    index.publish(1)
    index.install(build(index))
    index.append(rows.vectors[2_100:])
    index.publish(2)
    live = np.ones(6_000, np.bool_)
    for share in (0.4, 0.9, None):
        stop = Stop(2.0 if share is None else share)
        watched = lambda done, stop=stop: (each_once(index.view, live), stop(done))  # noqa: E731
        built = build(index, stop.cancel, watched)
        check_index(index, rows, live)
        if share is None:
            index.install(built)
    assert index.view.pieces == ()
    check_index(index, rows, live)


MANY_BUILDS = """
import gc, sys
sys.path[:0] = sys.argv[1:]
from index_rows import Rows, Stop, build, filled

for storage in ("float32", "binary"):
    rows = Rows(1_200, storage=storage)
    for number in range(5):
        index = filled(rows, metric="hamming" if storage == "binary" else "l2")
        stop = Stop(0.0)
        assert build(index, stop.cancel, stop) is None
        del index
        gc.collect()
print("alive")
"""


def test_many_builds_leave_faiss_whole():
    """Indexes that are built, cancelled and let go of, again and again, do not take FAISS down."""
    here = Path(__file__).resolve().parent
    done = subprocess.run(
        [sys.executable, "-c", MANY_BUILDS, str(here), str(here.parent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    assert done.stdout == "alive\n"
