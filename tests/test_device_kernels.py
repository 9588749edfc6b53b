"""Exact search by the engine's own kernels, as every card must answer it: masks, any k, many queries, ties."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
import pytest
from cards_here import KINDS, MEMORY, D, assert_nearest, some_card, vectors
from paper_gpu import PaperCuda

from vecdb.device import CardRefused, StandInCard
from vecdb.index import driver, products
from vecdb.index.card import count_gpus
from vecdb.index.driver import Driver
from vecdb.index.flat_there import scan_queries
from vecdb.index.products import Products
from vecdb.index.scan import Scanner


@pytest.fixture(params=KINDS)
def card(request: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    return some_card(request.param, monkeypatch)


@pytest.mark.long
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


@pytest.mark.long
@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("n", "queries", "k"), [(32_768, 5, 1), (33_001, 140, 10), (40_000, 33, 200)]
)
def test_many_queries_over_float16(card: Any, metric: str, masked: bool, n: int, queries: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Exactly the nearest by the rounded numbers, also where rows that are alike lie together, in parts too."""
    if isinstance(card, StandInCard) or not card.info().masks:
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


@pytest.mark.gpu
def test_the_gpu_takes_the_kernels() -> None:
    """None is left to FAISS, and an H100 or H200 has its own."""
    if not count_gpus():
        pytest.skip("FAISS sees no GPU here")
    card = Driver()
    if card.capability() < (8, 0):
        pytest.skip("this GPU has no tensor cores for these kernels")
    made = Products(card, Scanner(card).module)
    assert made._hopper == (card.capability() == (9, 0))


def test_rows_beyond_the_numbers_of_tiles_are_scanned() -> None:
    """The kernels of tensor cores take less than 2^31 rows: of more a Hopper would compare zeros."""
    card = Driver(0, PaperCuda(MEMORY))
    made = Products(card, Scanner(card).module)
    assert made.takes(8, 2**31 - 1, 32, 10)
    assert not made.takes(8, 2**31, 32, 10)


@pytest.mark.parametrize(("capability", "refused"), [(90, b""), (90, b"sm_90a"), (80, b"sm_90a")])
def test_kernels_for_one_card_are_left_out_in_the_open(
    capability: int, refused: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A card of capability 9.0 has its own; where the driver refuses them, those for every card answer and the log says so."""
    cuda = PaperCuda(MEMORY, capability=capability)
    cuda.refused = refused
    card = Driver(0, cuda)
    with caplog.at_level(logging.WARNING, "vecdb"):
        made = Products(card, Scanner(card).module)
    own = any(b".target sm_90a" in ptx for ptx in cuda.modules)
    assert own == (capability == 90 and not refused)
    assert ("the kernels for every card" in caplog.text) == (capability == 90 and bool(refused))
    y, x = vectors(40_000, 1, 16).astype(np.float16), vectors(9, 2, 16).astype(np.float16)
    held = card.allocate(y.nbytes)
    held.write(0, y)
    found = made.search(held, None, len(y), x.astype(np.float32), 10)
    assert found is not None
    assert_nearest(found, x, y, 10, "ip", 5e-3)


def test_waiting_is_asking_and_then_sleeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done is seen without a call that sleeps, what takes long is waited for, and what failed is an error."""
    monkeypatch.setattr(driver, "_POLLED_S", 0.001)
    cuda = PaperCuda(MEMORY)
    card = Driver(0, cuda)
    card.wait()
    assert cuda.synchronized == 0
    cuda.busy = True
    card.wait()
    assert cuda.synchronized == 1
    cuda.busy, cuda.broken = False, 700
    with pytest.raises(RuntimeError, match="700: an illegal memory access"):
        card.wait()


@pytest.mark.parametrize("k", [1, 2, 3, 10, 64, 256])
def test_what_a_sample_lets_through_has_room(k: int) -> None:
    """Rows as near as the k-th of a sample are about a gamma distribution: of a million queries none has too many."""
    seed = 7_000 + k
    print("seed", seed)
    drawn = np.random.default_rng(seed).gamma(k, products._expected(k) / k, 1_000_000)
    assert drawn.max() <= products._ROOM


@pytest.mark.parametrize("rows", [32_768, 1_000_000, 10_000_000, 2**32 - 1])
@pytest.mark.parametrize("k", [1, 10, 100, 256])
@pytest.mark.parametrize("most", [4_096, 131_072, 1 << 24])
def test_samples_fit_their_memory_and_say_enough(rows: int, k: int, most: int) -> None:
    """The first is no larger than its memory and than all, and lets no more of the second through than there is room for."""
    samples = products._samples(rows, k, most)
    assert 1 <= len(samples) <= 2
    assert k <= samples[0] <= min(rows, most)
    if len(samples) == 2:
        assert 4 * samples[0] <= samples[1] <= rows // 16
        assert samples[1] * k / samples[0] <= products._expected(k)


def test_the_wider_vectors_are_the_fewer_queries_read_them() -> None:
    """Whole readings for eight queries each, five at most and one at least, and fewer for more dimensions."""
    found = [scan_queries(d) for d in (8, 384, 768, 1_536, 12_288)]
    assert found == sorted(found, reverse=True)
    assert (found[0], found[1], found[3], found[-1]) == (40, 40, 16, 8)
