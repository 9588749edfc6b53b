"""What tests of the index share: rows to index, an index of them, and its check against numpy."""

from __future__ import annotations

import threading

import numpy as np

from vecdb.index import Index
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


def make_index(kind="hnsw", metric="l2", storage="float32", target_recall=0.95, **settings):
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


def check_index(index, rows, live, k=10):
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
