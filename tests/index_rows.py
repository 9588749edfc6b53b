"""What tests of the index share: clustered rows to index, indexes of them, and their check against numpy."""

from __future__ import annotations

import threading

import numpy as np

from vecdb.index import Index, filling, makers, plan, side, source, tail
from vecdb.index import build as _build_module
from vecdb.selection import Selection
from vecdb.settings import ENGINE, resolve

SEED = 20_261_125
DIMENSION = 24


def plain(queries, vectors, metric):
    """Distances in float64, by the definitions."""
    if metric == "hamming":
        return np.stack([np.bitwise_count(vectors ^ q).sum(axis=1) for q in queries]).astype(float)
    x, y = np.asarray(queries, np.float64), np.asarray(vectors, np.float64)
    if metric == "l2":
        return (x**2).sum(1)[:, None] - 2 * x @ y.T + (y**2).sum(1)[None]
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        y = y / np.linalg.norm(y, axis=1, keepdims=True)
    return 1 - x @ y.T


def as_stored(vectors, storage):
    """Vectors of about unit variance in the form a store keeps them in."""
    if storage == "binary":
        return np.packbits(vectors > 0, axis=1)
    if storage in ("int8", "uint8"):
        low, high = np.iinfo(storage).min, np.iinfo(storage).max
        return np.clip(np.rint(24 * vectors + (low + high) / 2), low, high).astype(storage)
    return vectors.astype(storage)


def as_queries(vectors, storage):
    """Queries like the stored vectors, but not rounded as they are; binary ones are bits, too."""
    if storage == "binary":
        return np.packbits(vectors > 0, axis=1)
    if storage in ("int8", "uint8"):
        vectors = 24 * vectors + (0 if storage == "int8" else 128)
    return vectors.astype(np.float32)


def clustered(rng, n, dimension, clusters, spread=0.4):
    """Vectors (n, dimension) around normally distributed centres."""
    centers = rng.standard_normal((clusters, dimension))
    return centers[rng.integers(0, clusters, n)] + spread * rng.standard_normal((n, dimension))


class Rows:
    """Stored vectors, as the store gives them, with a log of what was read in ranges."""

    def __init__(self, n, seed=SEED, storage="float32", dimension=DIMENSION, clusters=50):
        made = clustered(np.random.default_rng(seed), n + 300, dimension, clusters)
        self.storage, self.dimension = storage, dimension
        self.vectors = as_stored(made[:n], storage)
        self.queries = as_queries(made[n:], storage)
        self.reads: list[tuple[int, int]] = []
        self.before_read = lambda start, stop: None

    def range(self, start, stop):
        self.reads.append((start, stop))
        self.before_read(start, stop)
        return self.vectors[start:stop]

    def rows(self, rows):
        return self.vectors[rows]

    def in_place(self, rows, work):
        """Vectors are one matrix here, so that places are row numbers."""
        if self.vectors.dtype != np.float32 or not self.vectors.flags.c_contiguous:
            return None
        return work(self.vectors.__array_interface__["data"][0], np.ascontiguousarray(rows))


def make_index(rows, kind="hnsw", metric="l2", quantization="auto", target_recall=0.95, **settings):
    """An index without rows, whose source is `rows`."""
    return Index(
        dimension=rows.dimension,
        metric=metric,
        storage=rows.storage,
        quantization=quantization,
        kind=kind,
        target_recall=target_recall,
        settings=resolve(ENGINE, {"build_threads": 2, **settings}),
        source=rows,
    )


def filled(rows, *args, **options):
    """An index of all rows, published as commit 1, without a main index."""
    index = make_index(rows, *args, **options)
    index.append(rows.vectors)
    index.publish(1)
    return index


def build(index, cancel=None, progress=None):
    return index.build(
        cancel=cancel or threading.Event(), progress=progress or (lambda share: None)
    )


class Stop:
    """Progress that cancels the build when a share of it is done."""

    def __init__(self, share):
        self.share, self.cancel, self.shares = share, threading.Event(), []

    def __call__(self, share):
        self.shares.append(share)
        if share >= self.share:
            self.cancel.set()


def small_steps(monkeypatch, piece_rows=256, step_rows=256):
    """Pieces of the tail and steps of builds so small that a few thousand rows make many of them."""
    monkeypatch.setattr(tail, "MAX_PIECE_ROWS", piece_rows)
    monkeypatch.setattr(_build_module, "ADD_ROWS", step_rows)
    for module in (_build_module, makers, source, filling):
        monkeypatch.setattr(module, "READ_ROWS", 2 * step_rows)


def soon_worth_it(monkeypatch, queries):
    """Filters get graphs after few queries for few rows, and walks look cheap beside comparing so few."""
    monkeypatch.setattr(side, "LEAST_ROWS", 200)
    monkeypatch.setattr(side, "LEAST_QUERIES", queries)
    monkeypatch.setattr(side, "MEMORY_SHARE", 1.0)
    monkeypatch.setattr(side, "build_seconds", lambda rows, dimension: 0.0)
    monkeypatch.setattr(plan, "GRAPH_COST_A_CANDIDATE", 1.0)


def selection(mask, as_list):
    """A filter's result in one of its two forms."""
    if as_list:
        return Selection(len(mask), rows=np.flatnonzero(mask))
    return Selection(len(mask), mask=mask)


def hits(truth, found, k):
    """Share of right answers (q,) by true distances (q, n), inf where a row may not answer.

    Right is what is as near as the k-th: of rows at equal distance any may answer.
    """
    count = int(np.isfinite(truth[0]).sum())
    wanted = min(k, count)
    kth = np.partition(truth, wanted - 1, axis=1)[:, wanted - 1]
    own = np.take_along_axis(truth, found.rows[:, :wanted], axis=1)
    right = own <= (kth + 1e-5 * np.maximum(1.0, np.abs(kth)))[:, None]
    return (right & (found.rows[:, :wanted] >= 0)).mean(axis=1)


def each_once(view, live):
    """Every live row stands in one piece of the tail at most."""
    held = [np.arange(p.start, p.stop) if p.rows is None else p.rows for p in view.pieces]
    rows = np.concatenate(held) if held else np.empty(0, np.int64)
    rows = rows[live[rows]]
    assert len(np.unique(rows)) == len(rows), f"{len(rows) - len(np.unique(rows))} rows too many"


def check_index(index, rows, live, k=10):
    """Exact answers of the current view are those of numpy over the live rows, none of them twice."""
    view = index.view
    assert view.n_live == live.sum()
    each_once(view, live)
    truth = np.where(
        live, plain(rows.queries[:30], rows.vectors[: len(live)], index.metric), np.inf
    )
    for exact in (True, False):
        found = view.search(rows.queries[:30], k, exact=exact)
        assert (found.rows >= 0).all()
        assert (np.diff(np.sort(found.rows, axis=1), axis=1) > 0).all(), "a row answers once"
        assert np.isfinite(np.take_along_axis(truth, found.rows, axis=1)).all()
        right = hits(truth, found, k)
        assert (right == 1.0).all() if exact else right.mean() >= 0.9
