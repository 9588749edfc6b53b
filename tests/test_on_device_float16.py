"""Vectors that lie on a device as float16: numbers that float16 rounds badly, or cannot hold, cost no answer."""

from __future__ import annotations

import numpy as np
import pytest
from on_devices import DIMENSION, ROWS, SEED, filled, opened, placed, using

from vecdb.index.served import LARGEST_HALF, Served

K = 10
_SMALL = int(0.9 * 4 * ROWS * DIMENSION)
"""Bytes of a device that holds the rows as float16, and not as float32."""


@pytest.fixture(params=["stand-in", pytest.param("no masks", marks=pytest.mark.long)])
def devices(request, monkeypatch):
    """Stand-ins that obey masks, and such that FAISS alone would be."""
    return using(request.param, monkeypatch)


def _near(queries, vectors, metric):
    """Keys by float64, the smaller the nearer."""
    x, y = queries.astype(np.float64), vectors.astype(np.float64)
    products = x @ y.T
    if metric == "ip":
        return -products
    return (x**2).sum(1)[:, None] - 2 * products + (y**2).sum(1)[None]


def _must_be_nearest(made, queries, vectors, metric):
    """The answers are those of the definition, but for what float32 rounds; which device answered."""
    found = made.query(queries, k=K, explain=True)
    near = _near(queries, vectors, metric)
    for ids, keys in zip(found.ids, near, strict=True):
        rows = np.array([int(i[1:]) for i in ids])
        last = np.sort(keys)[K - 1]
        size = np.abs(keys).max() if metric == "ip" else (np.sqrt(np.abs(keys).max()) ** 2)
        assert len(rows) == K
        assert (keys[rows] <= last + 1e-5 * size).all()
    return found.explain


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("scale", [1e-9, 1e-7, 1e-6, 1e-3, 1.0, 1e3, 2e4, 1e6])
def test_numbers_of_any_size_have_their_nearest(tmp_path, devices, metric, scale):
    """Numbers below float16's normal range lose most of their bits there, those beyond it all: who cannot be sure of an
    answer does not give it."""
    devices(size=_SMALL if scale < 1e4 else 2 * _SMALL)
    rng = np.random.default_rng(SEED)
    vectors = (scale * rng.standard_normal((ROWS, DIMENSION))).astype(np.float32)
    queries = (vectors[:50] + 0.3 * scale * rng.standard_normal((50, DIMENSION))).astype(np.float32)
    with opened(tmp_path, device="gpu") as database:
        made, _ = filled(database, metric, vectors=vectors, index="exact")
        placed(made)
        told = _must_be_nearest(made, queries, vectors, metric)
        if 1e-3 <= scale <= 1e3:
            assert told.device == "gpu:0"
        # A query alone whose numbers are of another size than those of the rows.
        for other in (1e-12, 1e-5, 1e5, 1e9):
            _must_be_nearest(made, (other * queries[:3]).astype(np.float32), vectors, metric)


def test_what_float16_cannot_hold_lies_there_as_float32(tmp_path, devices):
    """Where there is room for that, though not in half of the memory; else not at all, and the CPU answers."""
    rng = np.random.default_rng(SEED)
    vectors = (1e5 * rng.standard_normal((ROWS, DIMENSION))).astype(np.float32)
    raw = vectors.nbytes
    for size, there in ((int(1.5 * raw), True), (int(0.9 * raw), False)):
        devices(size=size)
        with opened(tmp_path / str(size), device="gpu") as database:
            made, _ = filled(database, vectors=vectors, index="exact")
            if there:
                placed(made)
                assert made.stats().index.device_bytes >= raw
            else:
                while made.stats().index.building:
                    pass
            told = _must_be_nearest(made, vectors[:20], vectors, "l2")
            assert told.device == ("gpu:0" if there else "cpu")


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("dimension", [1, 16, 384])
@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e-4, 1.0, 1e3])
def test_rounding_never_moves_a_row_beyond_the_bound(metric, dimension, scale):
    """No row has a true key below what its coded key allows, whichever of them would have been the last candidate."""
    print("seed", SEED)
    rng = np.random.default_rng(SEED)
    vectors = (scale * rng.standard_normal((500, dimension))).astype(np.float32)
    queries = (scale * rng.standard_normal((20, dimension))).astype(np.float32)
    served = Served.__new__(Served)
    served.metric = metric
    served.longest = float(np.linalg.norm(vectors, axis=1).max())
    half_x, half_y = queries.astype(np.float16), vectors.astype(np.float16)
    coded, true = _near(half_x, half_y, metric), _near(queries, vectors, metric)
    for row in range(len(vectors)):
        least = served._at_least(queries, coded[:, row].astype(np.float32))
        assert (least <= true[:, row] * (1 + 1e-6) + 1e-30).all() or (least <= 0).all()
        assert (least <= true[:, row] + 1e-6 * np.abs(true).max()).all()


@pytest.mark.parametrize("dimension", [2, 16, 384])
def test_rounding_never_moves_a_unit_vector_beyond_the_bound_of_l2(dimension):
    """The same of cosine where a device compares unit vectors by l2, as it does beneath graphs."""
    rng = np.random.default_rng(SEED)
    queries, vectors = (rng.standard_normal((n, dimension)).astype(np.float32) for n in (5, 300))
    queries[0] = vectors[0]  # the nearest there is
    queries, vectors = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, vectors))
    served = Served.__new__(Served)
    served.metric, served.longest, served._by_l2 = "cosine", 1.0, True
    halves = [x.astype(np.float16).astype(np.float64) for x in (queries, vectors)]
    coded = 0.5 * _near(*halves, "l2") - 1.0
    for row in range(len(vectors)):
        least = served._at_least(queries, coded[:, row].astype(np.float32))
        assert (least <= _near(queries, vectors, "ip")[:, row] + 1e-7).all()
    assert least.max() > -1.0


def test_nothing_is_sure_of_a_query_that_float16_cannot_hold():
    """Its code is infinite, and so is what it was compared by."""
    served = Served.__new__(Served)
    served.metric, served.longest = "l2", 1.0
    queries = np.array([[1.0, 2.0], [LARGEST_HALF * 1.01, 0.0], [0.0, -1e30]], np.float32)
    least = served._at_least(queries, np.full(3, 1e9, np.float32))
    assert np.isfinite(least[0])
    assert (least[1:] == -np.inf).all()


def test_a_query_that_float16_cannot_hold_is_answered_by_the_cpu(tmp_path, devices, monkeypatch):
    """Its products are no numbers there, so that a card may give nothing, which must not be taken for all that there is."""
    devices(size=_SMALL)
    rng = np.random.default_rng(SEED)
    vectors = rng.standard_normal((ROWS, DIMENSION)).astype(np.float32)
    vectors[:, 0] = 0
    queries = vectors[:40].copy()
    queries[3, 0] = 1.1 * LARGEST_HALF
    with opened(tmp_path, device="gpu") as database:
        made, _ = filled(database, "ip", vectors=vectors, index="exact")
        placed(made)
        search = made._core.index.on_device.placements.search

        def nothing(key, some, *given, **named):
            answer = search(key, some, *given, **named)
            none = np.abs(some).max(axis=1) > LARGEST_HALF
            answer[1][none] = -1
            return answer

        monkeypatch.setattr(made._core.index.on_device.placements, "search", nothing)
        told = _must_be_nearest(made, queries, vectors, "ip")
        assert told.device == "cpu"
        assert "float16" in told.device_note
        assert _must_be_nearest(made, queries[:3], vectors, "ip").device == "gpu:0"
