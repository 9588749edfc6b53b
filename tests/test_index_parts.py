"""The parts of the index by themselves: distances, blocks, bitmap, tail, codes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from index_rows import Rows, as_stored, plain

from vecdb.index import distances, source
from vecdb.index.codes import (
    GPU_PARTS,
    code_bytes,
    code_of,
    decoded,
    is_fine,
    is_lossy,
    largest_error,
    like,
    new_codes,
    part_of,
    parts_of,
    to_space,
)
from vecdb.index.distance import Merger, at_a_line, unit, wide
from vecdb.index.live import LiveRows, is_set, unpack
from vecdb.index.tail import Tail
from vecdb.memory import aligned_row

SEED = 20_261_123
STORAGES = ("float32", "float16", "int8", "uint8", "binary")


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
def test_distances_follow_the_definitions(metric):
    """distances() gives the textbook values to float32 accuracy."""
    rng = np.random.default_rng(SEED)
    x, y = rng.standard_normal((3, 70)), rng.standard_normal((50, 70))
    found = distances(x.astype(np.float32), y.astype(np.float32), metric)
    assert found.dtype == np.float32
    assert found.shape == (3, 50)
    np.testing.assert_allclose(found, plain(x, y, metric), rtol=2e-6, atol=2e-6)


def test_l2_of_long_and_close_vectors_keeps_its_digits():
    """Vectors far from the origin and close to each other have exact squared distances."""
    base = np.full((1, 64), 10_000.0, np.float32)
    other = base + np.float32(0.25)
    assert distances(base, other, "l2")[0, 0] == 64 * 0.0625


def test_hamming_distances_count_bits():
    """distances() of packed bits is the number of bits that differ."""
    x = np.array([[0b1010_0001, 0]], np.uint8)
    y = np.array([[0b1010_0001, 0], [0b0101_1110, 0b1], [0b1010_0000, 0xFF]], np.uint8)
    assert distances(x, y, "hamming").tolist() == [[0.0, 9.0, 9.0]]


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
def test_a_distance_does_not_depend_on_the_rest_of_the_call(metric):
    """A pair has the same bits alone and among others."""
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal((40, 33)).astype(np.float32)
    y = rng.standard_normal((300, 33)).astype(np.float32)
    together = distances(x, y, metric)
    assert together[17, 123] == distances(x[17:18], y[123:124], metric)[0, 0]


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1.0, 1e12, 1e30])
def test_unit_vectors_of_any_magnitude(scale):
    """Normalising does not overflow or vanish for tiny and huge vectors."""
    vectors = np.array([[3.0, 4.0], [-1.0, 0.0]]) * scale
    np.testing.assert_allclose(
        unit(vectors.astype(np.float32)), [[0.6, 0.8], [-1.0, 0.0]], rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 1e-25])
def test_vectors_that_are_compared_begin_at_a_cache_line(count, scale):
    """What a copy holds is what was given, and each begins at a multiple of 64 bytes, wherever that lay."""
    rng = np.random.default_rng(11)
    for _ in range(20):
        given = (scale * rng.normal(size=(count, 48))).astype(np.float32)
        copy, made = at_a_line(given), unit(given)
        assert copy.tobytes() == given.tobytes()
        assert np.allclose(np.linalg.norm(made, axis=1), 1.0, atol=1e-6)
        for one in (copy, made):
            assert one.flags.c_contiguous
            assert one.ctypes.data % 64 == 0


@pytest.mark.parametrize("width", [1, 7, 16, 384])
def test_single_queries_made_at_once_share_no_memory(width):
    """Rows for single queries, though made many at a time, lie apart, each at a cache line; and a length that is known
    makes the same bits as one that is not, of contiguous and of strided vectors."""
    rng = np.random.default_rng(width)
    for step in (1, 2):
        given = [rng.standard_normal((1, step * width)).astype(np.float32) for _ in range(40)]
        given = [one[:, ::step] for one in given]
        known = [unit(one, float(one[0].dot(one[0]))) for one in given]
        before = [one.copy() for one in known]
        found = [unit(one) for one in given]
        for one, kept, other in zip(known, before, found, strict=True):
            assert one.ctypes.data % 64 == 0
            assert one.tobytes() == kept.tobytes() == other.tobytes()
    widths = [aligned_row(width + more) for more in range(40)]
    for number, row in enumerate(widths):
        row[:] = number
    assert all((row == number).all() for number, row in enumerate(widths))


def test_merger_keeps_the_best_in_order():
    """Many pieces merge to the k smallest, by distance and then row, padded behind the last."""
    rng = np.random.default_rng(SEED)
    merger = Merger(50)
    every = []
    for piece in range(200):
        keys = rng.integers(0, 1_000, (2, 40)).astype(np.float32)
        rows = np.tile(np.arange(piece * 40, piece * 40 + 40), (2, 1))
        merger.add(keys, rows)
        every.append(keys)
    near, rows = merger.result(2, "l2")
    np.testing.assert_array_equal(near, np.sort(np.concatenate(every, axis=1), axis=1)[:, :50])
    same = near[:, 1:] == near[:, :-1]
    assert (rows[:, 1:] > rows[:, :-1])[same].all()
    near, rows = Merger(3).result(2, "ip")
    assert np.isnan(near).all()
    assert (rows == -1).all()


@given(st.lists(st.tuples(st.integers(0, 70), st.lists(st.integers(0, 400))), max_size=12))
def test_live_rows_are_a_set_that_views_share(steps):
    """The bitmap follows a plain set, and what was shared never changes below its rows."""
    live, model, shared = LiveRows(), [], []
    for count, deaths in steps:
        live.append(count)
        model += [True] * count
        rows = sorted({row for row in deaths if row < len(model)})
        expected = [row for row in rows if model[row]]
        assert (
            live.kill(np.array(deaths, np.int64)[np.array(deaths, np.int64) < len(model)]).tolist()
            == expected
        )
        for row in rows:
            model[row] = False
        assert live.n_live == sum(model)
        assert live.mask().tolist() == model
        shared.append((live.share(), list(model)))
        for bits, then in shared:
            n = len(then)
            assert unpack(bits, 0, n).tolist() == then
            assert unpack(bits, n // 3, n).tolist() == then[n // 3 :]
            assert is_set(bits, np.arange(n)).tolist() == then


def of_tail(storage, n, seed=SEED):
    """Stored vectors (n, 8 dimensions) and the metric their tail is made for."""
    made = np.random.default_rng(seed).standard_normal((n, 8))
    return as_stored(made, storage), "hamming" if storage == "binary" else "l2"


@pytest.mark.parametrize("storage", STORAGES)
def test_tail_holds_every_row_in_pieces(storage):
    """Rows come back under their numbers over many pieces, before and after trimming."""
    vectors, metric = of_tail(storage, 777)
    assert Tail(65_000, metric, storage).piece_rows == 256
    tail = Tail(8, metric, storage, start=5)
    tail.piece_rows = 100
    for start in range(0, 777, 130):
        tail.append(to_space(vectors[start : start + 130], metric, storage))
    for first in (5, 38, 105, 106, 781):
        tail.trim(first)
        seen = []
        for piece in tail.pieces():
            positions = np.arange(piece.block.n)
            rows = piece.row_numbers(positions)
            np.testing.assert_array_equal(piece.block.take(positions), vectors[rows - 5])
            seen += rows.tolist()
        assert seen == list(range(first, 782))
    tail.trim(782)
    assert tail.pieces() == ()
    tail.append(to_space(vectors[:1], metric, storage))
    assert tail.pieces()[0].start == 782


@pytest.mark.parametrize("storage", STORAGES)
def test_what_was_copied_ahead_counts_only_when_it_is_appended(storage):
    """Whatever is copied ahead and whatever comes instead, the tail holds what was appended."""
    vectors, metric = of_tail(storage, 900)
    parts = [to_space(vectors[start : start + 90], metric, storage) for start in range(0, 900, 90)]
    tail = Tail(8, metric, storage)
    tail.piece_rows = 200
    for n, part in enumerate(parts):
        tail.ahead(parts[(n + n % 2) % 10])  # every other time another one comes
        assert tail.stop == 90 * n
        if n == 7:
            tail.trim(90 * n - 5)
        tail.append(part)
    seen = {}
    for piece in tail.pieces():
        positions = np.arange(piece.block.n)
        rows = piece.row_numbers(positions).tolist()
        seen |= dict(zip(rows, piece.block.take(positions), strict=True))
    assert sorted(seen) == list(range(90 * 7 - 5, 900))
    for row, held in seen.items():
        np.testing.assert_array_equal(held, vectors[row])


@pytest.mark.parametrize("storage", STORAGES)
def test_tail_under_steady_updates_stays_small(storage):
    """A few records updated for ever take bounded memory, and stay right."""
    vectors, metric = of_tail(storage, 9_000)
    tail, live = Tail(8, metric, storage), LiveRows()
    tail.piece_rows = 200
    current = np.empty(0, np.int64)
    for start in range(0, 9_000, 90):
        tail.append(to_space(vectors[start : start + 90], metric, storage))
        live.append(90)
        live.kill(current)
        current = np.arange(start, start + 90)
        tail.compact(live.mask())
    held = sum(piece.block.n for piece in tail.pieces())
    assert held <= 90 + 2 * 200
    alive = []
    for piece in tail.pieces():
        positions = np.arange(piece.block.n)
        rows = piece.row_numbers(positions)
        np.testing.assert_array_equal(piece.block.take(positions), vectors[rows])
        alive += rows[live.mask()[rows]].tolist()
    assert alive == current.tolist()


@pytest.mark.parametrize(
    ("storage", "metric", "quantization", "code", "lossy"),
    [
        ("float32", "cosine", "none", "float32", False),
        ("float32", "l2", "float16", "float16", True),
        ("float32", "ip", "sq8", "sq8", True),
        ("float16", "l2", "none", "float16", False),
        ("float16", "l2", "float16", "float16", False),
        ("float16", "cosine", "none", "float16", True),
        ("float16", "ip", "sq4", "sq4", True),
        ("int8", "l2", "none", "float16", False),
        ("int8", "cosine", "none", "float16", True),
        ("uint8", "ip", "none", "float16", False),
        ("binary", "hamming", "none", "binary", False),
    ],
)
def test_which_code_stands_for_a_vector(storage, metric, quantization, code, lossy):
    """The code follows from storage, metric and quantization, and so does whether it loses anything."""
    assert code_of(storage, metric, quantization) == code
    assert is_lossy(code, storage, metric) == lossy
    if not lossy and storage != "binary":
        vectors = as_stored(np.random.default_rng(SEED).standard_normal((50, 16)), storage)
        ready = to_space(vectors, metric, storage)
        assert ready.dtype == np.float32
        if code != "float32":
            codes = new_codes(code, 16, metric)
            assert largest_error(codes, ready) == 0.0


@pytest.mark.parametrize("code", ["float16", "sq8", "sq4"])
@pytest.mark.parametrize("dimension", [7, 8, 33])
def test_codes_are_as_large_and_as_wrong_as_said(code, dimension):
    """code_bytes is what FAISS takes, and no code is farther from its vector than largest_error."""
    vectors = np.random.default_rng(SEED).standard_normal((300, dimension)).astype(np.float32)
    index = new_codes(code, dimension, "l2", vectors[:200])
    assert int(index.code_size) == code_bytes(code, dimension)
    for same in (index, like(index)):
        codes = same.sa_encode(vectors)
        away = np.linalg.norm(decoded(same, codes) - vectors, axis=1)
        assert largest_error(same, vectors) == pytest.approx(away.max(), rel=1e-5)
        assert away.max() <= {"float16": 0.01, "sq8": 3.0, "sq4": 4.0}[code]


def test_codes_are_fine_where_neighbours_are_farther_than_their_error():
    """A graph is built over sq8 where vectors are spread, and not where they lie close together."""
    rng = np.random.default_rng(SEED)
    spread = rng.standard_normal((2_000, 16)).astype(np.float32)
    assert is_fine("sq8", spread, "l2")
    assert not is_fine("sq4", spread, "l2")
    assert not is_fine("sq8", spread[:500], "l2"), "too few to tell"
    crowds = np.repeat(spread[:20], 100, axis=0) + 1e-3 * spread
    assert not is_fine("sq8", crowds, "l2")


@pytest.mark.parametrize(
    ("dimension", "part", "size"),
    [(384, 4, 48), (1_536, 4, 192), (30, 5, 3), (6, 3, 1), (37, 1, 19), (1, 1, 1)],
)
def test_parts_of_product_quantization_divide_the_dimension(dimension, part, size):
    """Any dimension has parts, of 4 where it can be; two of them share a byte."""
    assert part_of(dimension) == part
    assert code_bytes("pq4", dimension) == size


@pytest.mark.parametrize(
    ("dimension", "size"),
    [(384, 48), (768, 48), (1_536, 48), (1_024, 32), (128, 32), (100, 20), (96, 24), (16, 4), (6, 2), (37, 1)],
)  # fmt: skip
def test_bytes_of_8_bits_are_those_that_a_gpu_can_hold(dimension, size):
    """About a quarter of the dimension, which they divide, and never more than float32 tables allow."""
    assert parts_of(dimension) == code_bytes("pq8", dimension) == size
    assert size in GPU_PARTS
    assert dimension % size == 0


def test_halves_become_the_same_floats():
    """Every finite half becomes the float32 that numpy makes of it, in any shape and order; what is float32 is not copied."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)].reshape(-1, 62)
    for halves in (every, every.T, every[::3, ::-1], every[:0], np.repeat(every, 5, axis=0)):
        found = wide(halves)
        assert found.flags.c_contiguous
        expected = np.ascontiguousarray(halves, np.float32)
        assert found.view(np.uint32).tolist() == expected.view(np.uint32).tolist()
    floats = every.astype(np.float32)
    assert wide(floats) is floats


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_unit_vectors_of_a_file_leave_the_file_as_it_was(dtype, tmp_path):
    """Vectors in a mapped file, or any other kind of array, are copied before they are scaled."""
    np.save(tmp_path / "some.npy", np.full((5, 8), 3, dtype))
    for mode in ("r", "r+"):
        mapped = np.load(tmp_path / "some.npy", mmap_mode=mode)
        np.testing.assert_allclose(np.linalg.norm(unit(mapped), axis=1), 1, rtol=1e-6)
        assert (mapped == 3).all()


STORED = ["float32", "float16", "int8", "uint8"]


@pytest.mark.parametrize(
    ("metric", "storage", "scale"),
    [
        *((metric, storage, 1.0) for metric in ("cosine", "l2", "ip") for storage in STORED),
        ("hamming", "binary", 1.0),
        ("cosine", "float32", 1e-25),
    ],
)
def test_keys_of_copied_vectors(metric, storage, scale, monkeypatch):
    """Vectors that are read to be compared have the keys that the definitions say, slice by slice; -1 is at infinity."""
    monkeypatch.setattr(source, "_SLICE_SCALARS", 2_000)
    rows = Rows(300, storage=storage)
    monkeypatch.setattr(rows, "in_place", lambda *_: None)
    if scale < 1:
        rows.vectors = (rows.vectors * scale).astype(np.float32)
    wanted = np.random.default_rng(7).integers(-1, 300, (40, 9))
    queries = rows.queries[:40]
    asked = unit(queries) if metric == "cosine" else queries
    keys = source.true_keys(asked, rows, wanted, metric)
    truth = plain(queries, rows.vectors, metric)[np.arange(40)[:, None], wanted]
    if metric in ("cosine", "ip"):
        truth -= 1
    there = wanted >= 0
    assert np.isinf(keys[~there]).all()
    np.testing.assert_allclose(
        keys[there], truth[there], rtol=1e-4, atol=1e-4 * np.abs(truth).max()
    )
    assert source.true_keys(asked[:0], rows, wanted[:0], metric).shape == (0, 9)


@pytest.mark.parametrize(("k", "queries"), [(10, 80), (70, 80), (70, 20), (900, 65)])
@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("spread", [0.3, 30.0], ids=["clusters", "everywhere"])
def test_a_scan_keeps_the_nearest_of_all_slices(monkeypatch, k, queries, metric, spread):
    """Few and many answers are those of the definitions, under a mask, from slices of which one holds nothing."""
    monkeypatch.setattr(source, "READ_ROWS", 1_000)
    rows = Rows(5_500, SEED, dimension=24, clusters=3)
    rng = np.random.default_rng(SEED)
    rows.vectors += (spread * rng.standard_normal(rows.vectors.shape)).astype(np.float32)
    rows.vectors[2_000:2_100] = rows.vectors[0]
    asked = rows.queries[:queries]
    asked = unit(asked) if metric == "cosine" else asked
    mask = rng.random(5_500) < 0.7
    mask[3_000:4_000] = False
    keys, found = source.scan(asked, k, metric, rows, 5_500, lambda a, b: mask[a:b])
    truth = plain(asked, rows.vectors, metric)
    truth[:, ~mask] = np.inf
    assert keys.shape == found.shape == (queries, k)
    assert all(len(set(row)) == k for row in found.tolist())
    own = np.take_along_axis(truth, found, axis=1)
    best = np.sort(truth, axis=1)[:, :k]
    np.testing.assert_allclose(np.sort(own, axis=1), best, rtol=1e-5, atol=1e-5)
    offset = 0.0 if metric == "l2" else 1.0
    np.testing.assert_allclose(keys + offset, own, rtol=1e-4, atol=1e-4)
