"""Readers beside a writer, builds, hand-overs and swaps: each answer is right for the view that gave it."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest
from index_rows import Rows, build, check_index, hits, make_index, plain, selection, small_steps

from vecdb.index import index as index_module

KINDS = [
    ("hnsw", "l2", "float32", "none"),
    ("hnsw", "ip", "float16", "none"),
    ("hnsw", "cosine", "float32", "sq8"),
    ("hnsw", "hamming", "binary", "none"),
    ("ivf", "l2", "float32", "pq4"),
    ("ivf", "ip", "float32", "pq8"),
    ("exact", "cosine", "float32", "sq4"),
]


class Run:
    """One index under work by several threads, and the truth about each of its commits."""

    def __init__(self, kind, metric, storage, quantization, seed):
        self.rng = np.random.default_rng(seed)
        self.rows = Rows(6_000, seed=seed, storage=storage)
        self.index = make_index(self.rows, kind, metric, quantization)
        self.queries = self.rows.queries[:8]
        self.truth = plain(self.queries, self.rows.vectors, metric)
        # float32 sums of products of this size.
        self.tolerance = 1e-5 * max(1.0, float(np.abs(self.truth).max()) / 50)
        self.moments = {0: np.zeros(0, np.bool_)}
        self.live = self.moments[0]
        self.done = threading.Event()
        self.failures = []
        self.marks = set()
        self.looks = 0
        self.usual = []

    def guarded(self, work):
        def run():
            try:
                work()
            except BaseException as error:  # told by the test, not lost in a thread
                self.failures.append(repr(error))
                raise

        return threading.Thread(target=run)

    def read(self, seed):
        mine = np.random.default_rng(seed)
        while not self.done.is_set() and not self.failures:
            view = self.index.view
            live = self.moments[view.sequence]
            assert len(live) == view.n_rows
            share = mine.choice([0.02, 0.5, 1.0])
            mask = None if share == 1.0 else mine.random(view.n_rows) < share
            chosen = None if mask is None else selection(mask, as_list=bool(mine.integers(2)))
            exact = bool(mine.integers(2))
            found = view.search(self.queries, 5, allowed=chosen, exact=exact)
            wanted = live if mask is None else live & mask
            self.check(view, found, np.where(wanted, self.truth[:, : len(live)], np.inf), exact)
            self.marks.add(0 if view.main is None else view.main.high_water)
            self.looks += sum(
                getattr(getattr(piece.block, "vectors", None), "base", None) is not None
                and piece.block.vectors.base.nbytes > 1_000 * piece.block.vectors.strides[0]
                for piece in view.pieces
            )

    def check(self, view, found, truth, exact):
        count = min(5, int(np.isfinite(truth[:1]).sum()))
        rows, near = found.rows[:, :count], found.distances[:, :count]
        assert (rows >= 0).all(), f"too few answers at commit {view.sequence}"
        assert (found.rows[:, count:] == -1).all()
        if not count:
            return
        own = np.take_along_axis(truth, rows, axis=1)
        assert np.isfinite(own).all(), f"a row that may not answer at commit {view.sequence}"
        np.testing.assert_allclose(near, own, rtol=1e-4, atol=self.tolerance)
        right = hits(truth, found, 5)
        if exact:
            assert (right == 1.0).all(), f"wrong answer at commit {view.sequence}"
        else:
            self.usual.append(right.mean())

    def builds(self):
        """Builds one after the other; every third is cancelled on its way."""
        number = 0
        while not self.done.is_set():
            number += 1
            cancel = threading.Event()
            stop_at = 0.5 if number % 3 == 0 else 2.0

            def progress(share, cancel=cancel, stop_at=stop_at):
                if share >= stop_at:
                    cancel.set()

            built = build(self.index, cancel, progress)
            if built is not None:
                self.index.install(built)
            else:
                time.sleep(0.005)

    def commit(self, sequence):
        """Rows wait for the readers to have seen the swaps before, or a slow machine would have but one of them."""
        end = (1_000, 3_500, len(self.rows.vectors))[min(len(self.marks), 2)]
        fresh = self.rows.vectors[len(self.live) : min(len(self.live) + 150, end)]
        self.index.append(fresh)
        self.live = np.concatenate([self.live, np.ones(len(fresh), np.bool_)])
        dead = self.rng.choice(len(self.live), 20)
        self.index.kill(dead)
        self.live[dead] = False
        self.moments[sequence] = self.live.copy()
        self.index.publish(sequence)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "metric", "storage", "quantization"), KINDS)
def test_readers_beside_a_writer_and_builds(kind, metric, storage, quantization, monkeypatch):
    """Every answer, at any moment, is right for the view that gave it, while pieces are handed over to
    the arena of a build, builds are cancelled, and indexes are swapped."""
    small_steps(monkeypatch)
    monkeypatch.setattr(index_module, "LEAST_FRESH_ROWS", 1_000)
    seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed)
    run = Run(kind, metric, storage, quantization, seed)
    threads = [run.guarded(lambda i=i: run.read(seed + i)) for i in range(2)]
    threads.append(run.guarded(run.builds))
    for thread in threads:
        thread.start()
    sequence, end = 0, time.monotonic() + 180
    try:
        while not run.failures and time.monotonic() < end:
            sequence += 1
            run.commit(sequence)
            if len(run.live) == len(run.rows.vectors) and len(run.marks) >= 3:
                break
            time.sleep(0.02)
    finally:
        run.done.set()
        for thread in threads:
            thread.join(60)
    assert not run.failures, run.failures[:3]
    assert run.index.view.main is not None
    assert len(run.marks) >= 3, "readers saw too few swaps"
    if (kind, storage, quantization) == ("hnsw", "float32", "none"):
        assert run.looks, "readers never searched a piece that looks at an arena"
    assert np.mean(run.usual) >= 0.95 - 3 * np.std(run.usual) / np.sqrt(len(run.usual))
    check_index(run.index, run.rows, run.live)


def test_old_views_answer_as_they_did():
    """Views kept over builds, hand-overs, growth and compaction give the answers they gave at first."""
    rows = Rows(6_000)
    with pytest.MonkeyPatch.context() as patch:
        small_steps(patch)
        index = make_index(rows)
        rng = np.random.default_rng(5)
        kept = []
        for step in range(1, 7):
            index.append(rows.vectors[1_000 * (step - 1) : 1_000 * step])
            index.kill(rng.choice(1_000 * step, 200, replace=False))
            index.publish(step)
            view = index.view
            mask = rng.random(view.n_rows) < 0.3
            options = {"exact": True, "allowed": selection(mask, as_list=step % 2 == 0)}
            kept.append((view, options, view.search(rows.queries, 10, **options)))
            built = build(index)
            if built is not None:
                index.install(built)
            for old, old_options, before in kept:
                again = old.search(rows.queries, 10, **old_options)
                np.testing.assert_array_equal(again.rows, before.rows)
                np.testing.assert_array_equal(again.distances, before.distances)
