"""Whole groups of near rows are not allowed, or have died, and queries lie among just these: what answers is the farthest of
what a walk finds."""

from __future__ import annotations

import numpy as np
import pytest
from index_rows import Rows, build, filled, hits, plain, selection

K, ROWS, CLUSTERS, DIMENSION = 10, 16_000, 250, 24
SEED = 20_261_128


class Groups:
    """An index of clustered rows; `group` says of each row and query which half of the clusters it lies in: by its cluster's
    number, found by the nearest of the first rows."""

    def __init__(self, kind, metric, quantization):
        print("seed", SEED)
        self.metric = metric
        self.rows = Rows(ROWS, SEED, "float32", DIMENSION, clusters=CLUSTERS)
        self.index = filled(self.rows, kind, metric, quantization, target_recall=0.99)
        self.index.install(build(self.index))
        # The centres again, as the rows were made from them.
        centers = np.random.default_rng(SEED).standard_normal((CLUSTERS, DIMENSION))
        self.cluster = plain(self.rows.vectors, centers, metric).argmin(axis=1)
        self.near = plain(self.rows.queries, centers, metric).argmin(axis=1)
        self.truth = plain(self.rows.queries, self.rows.vectors, metric)

    def recall(self, view, barred, allowed=None, target=0.99):
        """Hits of each query that lies in a barred cluster."""
        right = []
        for i in np.flatnonzero(barred[self.near]):
            found = view.search(
                self.rows.queries[i : i + 1], K, allowed=allowed, target_recall=target
            )
            truth = np.where(barred[self.cluster], np.inf, self.truth[i])[None]
            assert np.isfinite(truth[0, found.rows[0]]).all(), "a row that is barred answers"
            right.append(hits(truth, found, K)[0])
        assert len(right) >= 50
        return np.array(right)


@pytest.fixture(
    scope="module",
    params=[
        ("hnsw", "l2", "none"),
        pytest.param(("hnsw", "cosine", "auto"), marks=pytest.mark.long),
        pytest.param(("ivf", "l2", "none"), marks=pytest.mark.long),
    ],
    ids="-".join,
)
def groups(request):
    return Groups(*request.param)


def _reaches(right, target):
    assert right.mean() >= target - 4 * right.std() / np.sqrt(len(right))
    assert right.mean() >= target - 0.005


@pytest.mark.parametrize("part", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("target", [0.95, 0.99])
def test_a_filter_that_bars_the_queries_own_clusters(groups, part, target):
    """Whatever share of the clusters is barred, recall@10 among the others is the target, for those who asked there."""
    barred = np.random.default_rng(SEED).random(CLUSTERS) < part
    allowed = selection(~barred[groups.cluster], as_list=False)
    _reaches(groups.recall(groups.index.view, barred, allowed, target), target)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_clusters_that_have_died(kind):
    """The same where a fifth of the clusters is deleted: nobody has said so in the query."""
    groups = Groups(kind, "l2", "none")
    barred = np.random.default_rng(SEED).random(CLUSTERS) < 0.2
    groups.index.kill(np.flatnonzero(barred[groups.cluster]))
    _reaches(groups.recall(groups.index.publish(2), barred), 0.99)
