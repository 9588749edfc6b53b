"""8-bit codes with bounds that all dimensions share, as walks read them: signed bytes."""

import faiss
import numpy as np
import pytest
from index_rows import Rows, build, make_index

from vecdb.index import cells, signed
from vecdb.index.codes import coded, decoded, fine_codes, like, new_codes, typical_error
from vecdb.index.door import faiss_metric
from vecdb.index.main import new_ivf
from vecdb.index.walking import finder

ROWS = 3_000


def normal(dimension, rows=ROWS, seed=1):
    """Unit vectors (rows, dimension) in some clusters."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((20, dimension))
    some = centres[rng.integers(20, size=rows)] + 0.7 * rng.standard_normal((rows, dimension))
    some /= np.linalg.norm(some, axis=1, keepdims=True)
    return np.ascontiguousarray(some, np.float32)


def test_bounds_are_shared_where_that_loses_little():
    """Even dimensions share theirs; not those of which one reaches far, few dimensions, l2, nothing and what is no number
    of float32."""
    vectors = normal(96)
    assert signed.shared_scale(vectors, "cosine") == signed.shared_scale(vectors, "ip") is not None
    far = vectors.copy()
    far[:, 7] += 5.0
    assert signed.shared_scale(far, "ip") is None
    assert signed.shared_scale(vectors, "l2") is None
    assert signed.shared_scale(vectors[:, :64], "ip") is None
    assert signed.shared_scale(vectors[:0], "ip") is None
    assert signed.shared_scale(np.zeros((9, 96), np.float32), "ip") is None
    assert signed.shared_scale(vectors * np.float32(1e38), "ip") is not None
    assert signed.shared_scale(np.full((9, 96), 3.3e38, np.float32), "ip") is None
    assert signed.shared_scale(vectors * np.float32(1e-44), "ip") is None


@pytest.mark.parametrize("dimension", [65, 96, 100, 128, 384])
def test_both_looks_at_codes_say_the_same(dimension):
    """Signed bytes and codes between bounds are the same bytes, which stand for the same vectors, each number within half
    a step, and are added to by either."""
    vectors = normal(dimension)
    bounded = new_codes("sq8", dimension, "cosine", vectors)
    scale = signed.scale_between(bounded.sq)
    assert scale is not None
    assert signed.scale_between(like(bounded).sq) == scale
    walked = signed.emptied(bounded)
    assert signed.has_bytes(walked)
    assert not signed.has_bytes(bounded)
    walked.add(signed.as_added(walked, vectors))
    bounded.add(vectors)
    codes = faiss.vector_to_array(bounded.codes)
    differing = codes != faiss.vector_to_array(walked.codes)
    assert differing.mean() < 1e-4  # halves, which the two round by other steps
    ours = coded(walked, vectors)
    assert np.abs(ours - vectors).max() <= 0.5001 / scale
    assert np.allclose(ours, coded(bounded, vectors), atol=1.01 / scale)
    assert typical_error(walked, vectors) == pytest.approx(
        typical_error(bounded, vectors), rel=1e-3
    )
    look, back = signed.for_walks(bounded), signed.between_bounds(walked)
    some = codes.reshape(ROWS, dimension)[:50]
    assert np.allclose(decoded(look, some), decoded(bounded, some), atol=1e-6)
    assert signed.scale_between(back.sq) == pytest.approx(scale, rel=1e-6)
    assert np.allclose(back.reconstruct_n(0, 9), ours[:9], atol=1e-6)
    assert signed.between_bounds(bounded) is bounded


def test_numbers_beyond_the_bounds_are_kept_within():
    """Vectors that come later and reach farther have the largest byte, with their sign."""
    vectors = normal(128)
    walked = signed.emptied(new_codes("sq8", 128, "ip", vectors))
    far = np.full((1, 128), 9.0, np.float32)
    far[0, ::2] = -9.0
    assert set(signed.as_added(walked, far)[0].tolist()) == {-128.0, 127.0}
    assert set(np.sign(coded(walked, far)[0]).tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("code", ["float16", "sq4"])
def test_other_codes_are_left_as_they_are(code):
    """Nothing is scaled for them."""
    vectors = normal(96)
    codes = new_codes(code, 96, "ip", vectors)
    assert signed.for_walks(codes) is signed.emptied(codes) is signed.between_bounds(codes) is codes
    assert signed.as_added(codes, vectors) is vectors


def test_queries_are_rounded_each_by_its_own_step():
    """The largest number of each is 127 or -127, zeros stay, and times its step it is what it was to half a step."""
    queries = normal(96, 5) * np.array([[1e-20], [1.0], [1e20], [3.0], [0.0]], np.float32)
    found, step = signed.asked(queries)
    assert (np.abs(found).max(axis=1) == [127, 127, 127, 127, 0]).all()
    assert (np.abs(found * step - queries) <= 0.5001 * step).all()
    assert found.dtype == step.dtype == np.float32


@pytest.mark.parametrize("by_codes", [False, True])
@pytest.mark.parametrize("dimension", [96, 128])
def test_lists_answer_by_signed_bytes(dimension, by_codes, monkeypatch):
    """All lists probed, scores are those of the vectors to the rounding of codes and queries, in float32's units."""
    monkeypatch.setattr(cells, "LEAST_SCALARS", 1 if by_codes else 10**9)
    monkeypatch.setattr(cells, "_MOST_SHARE", 1)
    vectors = normal(dimension)
    lists = new_ivf(dimension, "ip", "sq8", vectors[:60].copy(), vectors)
    lists.add(vectors)
    cells.align_centroids(lists)
    assert signed.has_bytes(cells.probing(lists, 5, 1)[0])
    keys, positions = finder("ivf", "sq8", lists, None)(vectors[:20], 10, 60)
    assert (positions[:, 0] == np.arange(20)).all()
    true = -np.einsum("qd,qkd->qk", vectors[:20], vectors[positions])
    assert np.abs(keys - true).max() < 0.01
    assert lists.metric_type == faiss_metric("ip")


@pytest.mark.parametrize(
    ("kind", "quantization"), [("hnsw", "none"), ("hnsw", "sq8"), ("ivf", "sq8")]
)
def test_what_is_saved_is_between_bounds_and_walked_as_bytes(kind, quantization, tmp_path):
    """Files hold the codes in the form that versions before knew, and answers after opening are those of before."""
    rows = Rows(ROWS + 600, dimension=96)
    index = make_index(rows, kind, "cosine", quantization)
    index.append(rows.vectors[:ROWS])
    index.publish(1)
    built = build(index)
    record = index.save(built, tmp_path)
    held = faiss.read_index(str(tmp_path / (record.codes or record.graph).name))
    assert int(held.sq.qtype) == faiss.ScalarQuantizer.QT_8bit
    assert signed.scale_between(held.sq) is not None
    loaded = make_index(rows, kind, "cosine", quantization).load(record, tmp_path)
    queries = rows.queries[:30] / np.linalg.norm(rows.queries[:30], axis=1, keepdims=True)
    found = []
    for main in (built.main, loaded.main):
        searched = (
            cells.probing(main.index, 1, 1)[0]
            if kind == "ivf"
            else main.index.referenced_objects[0]
        )
        assert signed.has_bytes(searched)
        found.append(main.search(queries.astype(np.float32), 10, 64))
    assert (found[0][1] == found[1][1]).all()
    assert np.allclose(found[0][0], found[1][0], atol=1e-6)
    index.install(built)
    index.append(rows.vectors[ROWS:])
    index.publish(2)
    grown = build(index).main
    assert grown.n == ROWS + 600
    assert signed.has_bytes(
        cells.probing(grown.index, 1, 1)[0] if kind == "ivf" else grown.index.referenced_objects[0]
    )


def test_a_graph_is_built_over_bounds_of_each_dimension_where_shared_ones_are_too_coarse():
    """Neighbours that only the finer bounds tell apart are told apart by these."""
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((300, 96))
    reach = np.where(np.arange(96) < 48, 1.0, 0.02)
    vectors = (centres * reach)[rng.integers(300, size=6_000)] + 0.04 * rng.standard_normal(
        (6_000, 96)
    )
    vectors = vectors.astype(np.float32)
    assert signed.shared_scale(vectors, "ip") is not None
    fine = fine_codes("sq8", vectors, "ip")
    assert fine is not None
    assert signed.scale_between(fine.sq) is None
    even = normal(96, 6_000)
    assert signed.scale_between(fine_codes("sq8", even, "ip").sq) is not None
    assert fine_codes("sq8", even[:500], "ip") is None
