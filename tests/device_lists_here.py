"""Collections with lists of which a copy lies on a device, for tests."""

from __future__ import annotations

import numpy as np
import pytest
from on_devices import DIMENSION, SEED, filled, placed

from vecdb.index import chosen, plan

ROWS = 8_000
CALL = plan.DEVICE_CALL


@pytest.fixture(autouse=True)
def devices_are_asked(monkeypatch):
    """Sets are small here: neither a call of a device nor comparing few rows may look dear or cheap for it."""
    monkeypatch.setattr(chosen, "FEW_ROWS", 40)
    monkeypatch.setattr(plan, "DEVICE_CALL", 0.0)


def listed(database, metric="l2", code="none", n=ROWS, **settings):
    """A collection with lists of which a copy lies on gpu:0, and its vectors."""
    settings = {"index": "ivf", "quantization": code, **settings}
    # Not in one direction, where codes of a few bits tell no angles apart.
    vectors = np.random.default_rng(SEED).standard_normal((n, DIMENSION)).astype(np.float32)
    made, _ = filled(database, metric, n=n, vectors=vectors, **settings)
    made.build_index(wait=True)
    placed(made)
    return made, vectors


def queries_near(vectors, count=40, seed=3):
    rng = np.random.default_rng(seed)
    chosen_ = vectors[rng.integers(0, len(vectors), count)]
    return (chosen_ + 0.3 * rng.standard_normal(chosen_.shape)).astype(np.float32)


def of(part):
    return None if part is None else {"part": {"$lt": part}}


def recall(made, queries, k, part=None, live=None, on="gpu:0"):
    """Recall@k against exact answers, and the explanation; rows that are dead or not allowed must not come back."""
    found = made.query(queries, k=k, filter=of(part), explain=True)
    true = made.query(queries, k=k, filter=of(part), exact=True)
    for ids in found.ids:
        rows = np.array([int(one[1:]) for one in ids])
        assert len(set(ids)) == len(ids)
        assert part is None or (rows % 100 < part).all(), "a row that is not allowed came back"
        assert live is None or live[rows].all(), "a dead row came back"
    assert [len(ids) for ids in found.ids] == [len(ids) for ids in true.ids]
    if on is not None:
        assert found.explain.device == on, (found.explain.plan, found.explain.device_note)
    hits = [len(set(a) & set(b)) / max(1, len(b)) for a, b in zip(found.ids, true.ids, strict=True)]
    return float(np.mean(hits)), found.explain


def by_host(made, queries, k):
    """Rows and distances that the host's lists give for the same view."""
    index = made._core.field(None).index
    view = index._changed(index.view, device_main=None)
    return view.search(queries, k)
