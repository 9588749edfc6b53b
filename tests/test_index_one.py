"""Single queries to a graph or lists with fresh rows beside, which have a way of their own; against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from index_rows import Rows, build, make_index, plain, selection
from seeds import RUN_SEED

from vecdb.index import one, plan

ROWS, FRESH, K = 2_000, 500, 10
DEAD = {"all live": (0, 0), "dead in the index": (90, 0), "dead in both": (90, 60)}


@pytest.mark.long
@pytest.mark.parametrize("dead", DEAD)
@pytest.mark.parametrize("filtered", [False, True], ids=["all", "filtered"])
@pytest.mark.parametrize(
    ("kind", "quantization", "metric"),
    [("hnsw", "none", "cosine"), ("hnsw", "none", "l2"), ("hnsw", "none", "ip"),
     ("hnsw", "sq8", "cosine"), ("ivf", "none", "l2"), ("ivf", "sq8", "cosine")],
)  # fmt: skip
def test_one_query_finds_indexed_and_fresh_rows(
    kind, quantization, metric, filtered, dead, monkeypatch
):
    """Whatever is dead or left out by a filter: k answers of the live and allowed, the fresh ones among them without
    loss, true distances in order and ties by row; and so often by the way that is meant that the test can fail."""
    monkeypatch.setattr(plan, "GRAPH_COST_A_CANDIDATE", 1.0)  # walks pay among few rows
    rng = np.random.default_rng(RUN_SEED)
    rows = Rows(ROWS + FRESH, int(rng.integers(1 << 30)), clusters=30)
    # Equal vectors, in the index and fresh: their order is that of the rows.
    rows.vectors[ROWS + 5 : ROWS + 15] = rows.vectors[100:110]
    index = make_index(rows, kind, metric, quantization)
    index.append(rows.vectors[:ROWS])
    index.publish(1)
    index.install(build(index))
    live = np.ones(ROWS + FRESH, np.bool_)
    old, new = DEAD[dead]
    gone = [rng.choice(ROWS, old, replace=False), ROWS + rng.choice(FRESH, new, replace=False)]
    live[np.concatenate(gone)] = False
    index.append(rows.vectors[ROWS:])
    index.kill(np.sort(np.concatenate(gone)))
    view = index.publish(2)
    assert view.pieces
    taken = []
    with_tail = one.with_tail
    monkeypatch.setattr(
        one, "with_tail", lambda *args: taken.append(1) or with_tail(*args)
    )  # fmt: skip
    mask = rng.random(ROWS + FRESH) < 0.6 if filtered else np.ones(ROWS + FRESH, np.bool_)
    wanted = live & mask
    allowed = selection(mask, as_list=False) if filtered else None
    queries = np.concatenate([rows.queries[:40], rows.vectors[100:110]]).astype(np.float32)
    truth = plain(queries, rows.vectors, metric)
    truth[:, ~wanted] = np.inf
    found_of_old = wanted_of_old = 0
    for query, far in zip(queries, truth, strict=True):
        found = view.search(query[None], K, allowed=allowed)
        near, at = found.distances[0], found.rows[0]
        assert wanted[at].all()
        assert len(set(at.tolist())) == K
        np.testing.assert_allclose(near, far[at], rtol=2e-5, atol=2e-4)
        assert (np.lexsort((at, near)) == np.arange(K)).all()
        bound = np.sort(far)[K - 1]
        slack = 1e-4 + 1e-5 * abs(bound)
        sure = np.flatnonzero(far < bound - slack)
        assert set(sure[sure >= ROWS].tolist()) <= set(at.tolist()), "a fresh row was missed"
        wanted_of_old += np.count_nonzero(sure < ROWS)
        found_of_old += np.isin(sure[sure < ROWS], at).sum()
    assert found_of_old >= 0.9 * wanted_of_old
    simple = quantization == "none" and kind == "hnsw"
    if not filtered and (simple or dead == "all live"):
        assert len(taken) == len(queries)
