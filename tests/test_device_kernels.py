"""Exact search by the engine's own kernels, as every card must answer it: masks, any k, many queries, ties."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from cards_here import KINDS, D, assert_nearest, some_card, vectors

from vecdb.device import CardRefused
from vecdb.index import products


@pytest.fixture(params=KINDS)
def card(request: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    return some_card(request.param, monkeypatch)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("code", ["float32", "float16"])
@pytest.mark.parametrize("d", [D, 7, 256])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.9])
def test_a_mask_lets_only_its_positions_answer(
    card: Any, metric: str, code: str, d: int, share: float
) -> None:
    """For one query and for many, exactly, with fewer answers than k where fewer are allowed, for k up to all."""
    if not card.info().masks:
        with pytest.raises(CardRefused):
            card.flat(1, d, metric, code, 10)
            card.mask(1, 7, np.zeros(2, np.uint8))
        return
    n = 3_001
    y = vectors(n, 3, d)
    card.flat(1, d, metric, code, n)
    card.add(1, y)
    flags = np.random.default_rng(5).random(n) < share
    card.mask(1, 7, np.packbits(flags, bitorder="little"))
    inside = np.flatnonzero(flags)
    stored = y[inside].astype(code).astype(np.float32)
    for queries, k in ((1, 10), (3, 1), (13, 300), (2, n)):
        x = vectors(queries, 4, d)
        scores, positions = card.search(1, x, k, 0, 7)
        width = min(k, inside.size)
        assert (positions[:, width:] == -1).all()
        assert flags[positions[:, :width]].all(), "a position that is not allowed came back"
        at = np.searchsorted(inside, positions)
        at[:, width:] = -1
        assert_nearest((scores, at), x, stored, k, metric, 2e-3 if code == "float32" else 2e-2)
    card.unmask(1, 7)
    card.unmask(1, 7)
    with pytest.raises(CardRefused, match="mask 7"):
        card.search(1, vectors(1, 1, d), 1, 0, 7)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("n", "queries", "k"), [(32_768, 5, 1), (33_001, 140, 10), (40_000, 33, 200)]
)
def test_many_queries_over_float16(card: Any, metric: str, masked: bool, n: int, queries: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Exactly the nearest by the rounded numbers, also where rows that are alike lie together, in parts too."""
    if not getattr(getattr(card, "_flats", None), "_products", None):
        pytest.skip("this card has no kernels of ours")
    monkeypatch.setattr(products, "_LEAST_SAMPLE", 2_048)
    centres = vectors(20, 1, 16)
    y = (np.repeat(centres, -(-n // 20), axis=0)[:n] + 0.3 * vectors(n, 2, 16)).astype(np.float16)
    x = (centres[np.arange(queries) % 20] + 0.3 * vectors(queries, 3, 16)).astype(np.float16)
    card.flat(1, 16, metric, "float16", n)
    card.add(1, y.astype(np.float32))
    flags, mask = np.ones(n, np.bool_), 0
    if masked and card.info().masks:
        flags, mask = np.random.default_rng(4).random(n) < 0.2, 3
        card.mask(1, mask, np.packbits(flags, bitorder="little"))
    inside = np.flatnonzero(flags)
    for expected in (512, 64):
        monkeypatch.setattr(products, "_EXPECTED", expected)
        scores, positions = card.search(1, x.astype(np.float32), k, 0, mask)
        assert flags[positions].all(), "a position that is not allowed came back"
        found = scores, np.searchsorted(inside, positions)
        assert_nearest(found, x, y[inside], k, metric, 5e-3)


def test_equal_vectors_are_told_apart(card: Any) -> None:
    """Thousands of rows at one distance give k different ones, however few or many are nearer."""
    n = 40_000
    y = np.ones((n, 8), np.float32)
    y[::10_000] = 0.0
    for handle, code in enumerate(("float32", "float16")):
        card.flat(handle, 8, "l2", code, n)
        card.add(handle, y)
    for handle, k, queries in itertools.product((0, 1), (1, 4, 5, 100, 2_000), (3, 9)):
        scores, positions = card.search(handle, np.zeros((queries, 8), np.float32), k, 0)
        assert all(len(set(row)) == k for row in positions.tolist())
        near = min(k, 4)
        assert (positions[:, :near] % 10_000 == 0).all()
        np.testing.assert_allclose(scores[:, :near], 0.0, atol=1e-5)
        np.testing.assert_allclose(scores[:, near:], 8.0, atol=1e-5)
