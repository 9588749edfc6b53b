"""Several vectors of one call, of which nothing is asked but ids and distances, as a server sends them on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plain_search import plain_distances

import vecdb
from vecdb import errors


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
@pytest.mark.parametrize("index", ["exact", "hnsw"])
def test_each_is_answered_as_numpy_does(tmp_path: Path, metric: Any, index: Any) -> None:
    """Answers are the nearest live records, padded where there are fewer than k, whatever is asked together."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((600, 16)).astype(np.float32)
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection(
            "docs", dimension=16, metric=metric, index=index, target_recall=0.99
        )
        docs.insert([f"r{i}" for i in range(600)], vectors)
        docs.build_index(wait=True)
        docs.delete([f"r{i}" for i in range(0, 600, 3)])
        live = np.array([i for i in range(600) if i % 3])
        queries = rng.standard_normal((9, 16)).astype(np.float32)
        near = plain_distances(queries, vectors[live], metric)
        for k in (1, 10, 500):
            found = docs.query(queries, k=k)
            want = np.sort(near, axis=1)[:, :k]
            assert found.distances.shape == (9, k)
            assert [len(ids) for ids in found.ids] == [min(k, len(live))] * 9
            there = ~np.isnan(found.distances)
            if k == 500:
                assert there.sum() == 9 * len(live)
            for n, ids in enumerate(found.ids):
                place = {f"r{i}": near[n, p] for p, i in enumerate(live)}
                own = np.array([place[one] for one in ids])
                np.testing.assert_allclose(found.distances[n][: len(ids)], own, atol=1e-4)
                if index == "exact":
                    np.testing.assert_allclose(own, want[n][: len(ids)], atol=1e-4)
        hits = sum(len(set(docs.query(q, k=10).ids[0]) & set(ids))
                   for q, ids in zip(queries, docs.query(queries, k=10).ids, strict=True))  # fmt: skip
        assert hits >= 0.95 * 90


def test_one_that_is_wrong_is_named(tmp_path: Path) -> None:
    """A vector that is not finite, or zero under cosine, is refused by its place among the others."""
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", dimension=4, metric="cosine")
        docs.insert(["a"], np.ones((1, 4), np.float32))
        for value in (np.nan, np.inf, 0.0):
            queries = np.ones((3, 4), np.float32)
            queries[1] = value
            with pytest.raises(errors.InvalidVector, match="1"):
                docs.query(queries, k=1)
        with pytest.raises(errors.InvalidVector):
            docs.query(np.ones((3, 5), np.float32), k=1)
        assert docs.query(np.full((3, 4), 1e-16, np.float32), k=1).ids == [["a"]] * 3
