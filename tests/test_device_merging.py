"""Answers of several parts put together are the answers of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecdb.device.merging import merged, padded
from vecdb.device.stand_in import nearest


@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    k=st.integers(1, 30),
    metric=st.sampled_from(["l2", "ip"]),
    values=st.sampled_from([2, 1_000]),
)
def test_shards_answer_as_the_whole(
    seed: int, sizes: list[int], k: int, metric: str, values: int
) -> None:
    """The best scores win, ties by the lower position, also where there are many of them or few rows."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, values, (sum(sizes), 3)).astype(np.float32)
    x = rng.integers(0, values, (4, 3)).astype(np.float32)
    parts, start = [], 0
    for size in sizes:
        scores, positions = nearest(x, y[start : start + size], k, metric, "float32")
        positions[positions >= 0] += start
        parts.append((scores, positions))
        start += size
    scores, positions = merged(parts, k, metric)
    wanted = nearest(x, y, k, metric, "float32")
    assert (scores.dtype, positions.dtype) == (np.float32, np.int64)
    assert (scores == wanted[0]).all()
    assert (positions == wanted[1]).all()


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_padding_comes_last(metric: str) -> None:
    """Missing answers stand behind real ones, even when their scores look better, or real ones overflow."""
    good, inf = np.float32(5.0), np.float32(np.inf if metric == "l2" else -np.inf)
    scores = np.array([[0.0, good, inf]], np.float32)
    positions = np.array([[-1, 4, 2]], np.int64)
    found = merged([(scores, positions)], 4, metric)
    assert found[1].tolist() == [[4, 2, -1, -1]]
    assert found[0].tolist() == [[good, inf, inf, inf]]


def test_padding_widens() -> None:
    """Answers that are wide enough are passed on as they are."""
    scores, positions = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.int64)
    assert padded(scores, positions, 3, "l2")[0] is scores
    wide = padded(scores, positions, 5, "ip")
    assert wide[0].shape == wide[1].shape == (2, 5)
    assert (wide[0][:, 3:] == -np.inf).all()
