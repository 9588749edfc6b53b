"""Collections that lie on devices, and what they must answer, for tests."""

from __future__ import annotations

import time

import numpy as np
import pytest

import vecdb
from vecdb.index.card import count_gpus, has_graphs

SEED = 20_261_124
ROWS, DIMENSION = 3_000, 16
SETTINGS = {"exact_max_scalars": 1_000, "audit_share": 0.0, "device_timeout_s": 20.0}


def using(kind, monkeypatch):
    """A function that says how many devices are used; called before a database is opened, gives whether flat vectors
    there are searched under masks. `graphs` says that they must have graphs, or must not. `kind` is stand-in, no masks (a stand-in without them), or gpu, which is one, with
    all its memory."""

    def use(count=1, size=1 << 30, faults="", graphs=None):
        if kind == "gpu":
            if not count_gpus():
                pytest.skip("FAISS sees no GPU here")
            if graphs is not None and graphs is not has_graphs():
                pytest.skip("this FAISS has cuVS, or lacks it")
            if count > 1 or size < 1 << 30 or faults:
                pytest.skip("needs several devices, small ones, or such that fail when asked to")
            return True
        monkeypatch.setenv("VECDB_STAND_IN_MASKS", str(int(kind == "stand-in")))
        monkeypatch.setenv("VECDB_STAND_IN_DEVICES", str(count))
        monkeypatch.setenv("VECDB_STAND_IN_BYTES", str(size))
        monkeypatch.setenv("VECDB_STAND_IN_GRAPHS", str(int(graphs is not False)))
        if faults:
            monkeypatch.setenv("VECDB_STAND_IN_FAULTS", faults)
        return kind == "stand-in"

    return use


def wait_for(what, timeout_s=60.0):
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)


def rows_of(metric, storage, rng, n=ROWS):
    vectors = rng.standard_normal((n, DIMENSION)) + 3 * rng.integers(0, 4, (n, 1))
    if storage == "int8":
        return np.clip(np.rint(8 * vectors), -128, 127).astype(np.int8)
    return vectors.astype(storage)


def plain(queries, vectors, metric):
    x, y = queries.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        return (x**2).sum(1)[:, None] - 2 * x @ y.T + (y**2).sum(1)[None]
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        y = y / np.linalg.norm(y, axis=1, keepdims=True)
    return 1 - x @ y.T


def opened(tmp_path, **settings):
    return vecdb.open(tmp_path / "db", **{**SETTINGS, **settings})


def filled(database, metric="l2", storage="float32", n=ROWS, vectors=None, **settings):
    """A collection of n rows with a field `part` of 0 to 99, and its vectors."""
    print("seed", SEED)
    if vectors is None:
        vectors = rows_of(metric, storage, np.random.default_rng(SEED), n)
    made = database.create_collection(
        "docs", dimension=DIMENSION, metric=metric, storage=storage, **settings
    )
    ids = [f"r{i}" for i in range(n)]
    made.insert(ids, vectors, metadata=[{"part": i % 100} for i in range(n)])
    return made, vectors


def placed(made):
    wait_for(lambda: made.stats().index.device != "cpu")


def check(made, queries, live, vectors, metric, k=10, part=None, on="gpu:0", **asked):
    """Answers are the nearest of the live and allowed rows."""
    found = made.query(
        queries,
        k=k,
        explain=True,
        filter=None if part is None else {"part": {"$lt": part}},
        **asked,
    )
    allowed = live.copy()
    if part is not None:
        allowed &= np.arange(len(live)) % 100 < part
    truth = plain(queries, vectors, metric)
    truth[:, ~allowed] = np.inf
    want = min(k, int(allowed.sum()))
    best = np.sort(truth, axis=1)[:, :want]
    scale = max(1.0, float(np.abs(best).max(initial=1.0)))
    for i, ids in enumerate(found.ids):
        assert len(ids) == len(set(ids)) == want
        rows = np.array([int(one[1:]) for one in ids])
        assert allowed[rows].all(), "a row that is dead or not allowed came back"
        np.testing.assert_allclose(truth[i, rows], best[i], atol=2e-5 * scale)
        np.testing.assert_allclose(found.distances[i, :want], best[i], atol=2e-5 * scale)
    if on is not None:
        assert found.explain.device == on
    return found.explain


QUERIES = np.random.default_rng(SEED + 1).standard_normal((7, DIMENSION)).astype(np.float32) + 3
