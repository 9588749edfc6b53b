"""Cards for tests, and what they must answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from paper_gpu import PaperCuda, PaperFaiss

from vecdb.device import Limits, StandInCard
from vecdb.index import card as card_module
from vecdb.index import flat_there
from vecdb.index.card import FaissCard, count_gpus
from vecdb.index.driver import Driver
from vecdb.index.host_lists import joined, read_lists

D = 24
MEMORY = 64 << 20
KINDS = [
    "stand-in",
    "paper",
    "other paper",
    "old paper",
    pytest.param("gpu", marks=pytest.mark.gpu),
]


def some_card(kind: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One of `KINDS`: the stand-in, FAISS's GPU classes and our kernels over a GPU on paper, the same with a GPU that has
    no kernels of its own (compute capability 8.0), with a driver that is too old for the kernels, or the GPU."""
    if kind == "stand-in":
        limits = Limits(scan_k=32_768)
        return StandInCard(MEMORY, limits=limits, read_lists=read_lists, join=joined)
    if kind.endswith("paper"):
        paper = PaperFaiss()
        monkeypatch.setattr(card_module, "faiss", paper)
        monkeypatch.setattr(flat_there, "faiss", paper)
        capability = 80 if kind == "other paper" else 90
        cuda = PaperCuda(MEMORY, old=kind == "old paper", capability=capability)
        return FaissCard(Driver(0, cuda))
    if not count_gpus():
        pytest.skip("FAISS sees no GPU here")
    return FaissCard()


def vectors(n: int, seed: int = 1, d: int = D) -> Any:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def plain(x: Any, y: Any, k: int, metric: str) -> Any:
    """Scores (q, k) in double precision, best first, and all scores."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    scores = x @ y.T
    if metric == "l2":
        scores = (x**2).sum(axis=1)[:, None] - 2 * scores + (y**2).sum(axis=1)
        return np.sort(scores, axis=1)[:, :k], scores
    return -np.sort(-scores, axis=1)[:, :k], scores


def assert_nearest(found: Any, x: Any, y: Any, k: int, metric: str, tolerance: float) -> None:
    scores, positions = found
    wanted, everything = plain(x, y, k, metric)
    assert scores.dtype == np.float32
    assert positions.dtype == np.int64
    assert scores.shape == positions.shape == (len(x), k)
    width = min(k, len(y))
    np.testing.assert_allclose(scores[:, :width], wanted[:, :width], atol=tolerance, rtol=tolerance)
    own = np.take_along_axis(everything, positions[:, :width], axis=1)
    np.testing.assert_allclose(own, scores[:, :width], atol=tolerance, rtol=tolerance)
    assert all(len(set(row)) == width for row in positions[:, :width].tolist())
    assert (positions[:, width:] == -1).all()
    assert np.isinf(scores[:, width:]).all()
    assert ((scores[:, width:] > 0) == (metric == "l2")).all()
