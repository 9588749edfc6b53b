"""Queries against plain numpy: the same answers embedded and through both clients."""

from __future__ import annotations

import array

import numpy as np
import pytest
from plain_query import best_groups, most_relevant
from plain_query import distances as plain_distances

N, D = 400, 16
RNG_SEED = 20260101


@pytest.fixture
def data():
    rng = np.random.default_rng(RNG_SEED)
    return rng.standard_normal((N, D), dtype=np.float32) * 3, rng.standard_normal(
        (7, D), dtype=np.float32
    )


@pytest.fixture(params=["cosine", "l2", "ip"])
def filled(request, backend, data):
    docs = backend.db.create_collection("docs", dimension=D, metric=request.param)
    ids = [f"r{i}" for i in range(N)]
    docs.insert(
        ids, data[0], metadata=[{"i": i, "third": i % 3 == 0} for i in range(N)], documents=ids
    )
    return docs


def expect(found, near, k, tolerance=1e-4):
    """`found` holds the k smallest of each row of `near`, in order, ties and rounding aside."""
    for i, row in enumerate(near):
        order = np.argsort(row, kind="stable")[:k]
        got = [int(name[1:]) for name in found.ids[i]]
        assert len(got) == len(order)
        assert len(set(got)) == len(got)
        scale = max(1.0, float(np.abs(row[np.isfinite(row)]).max()))
        assert np.allclose(row[got], row[order], atol=tolerance * scale)
        assert np.allclose(found.distances[i, : len(got)], row[order], atol=tolerance * scale)
        assert np.isnan(found.distances[i, len(got) :]).all()
        assert (np.diff(found.distances[i, : len(got)]) >= 0).all()


def test_answers_equal_numpy(filled, data):
    """Ids and distances are those of the definition of each metric."""
    vectors, queries = data
    found = filled.query(vectors=queries, k=10)
    assert found.distances.dtype == np.float32
    assert found.distances.shape == (7, 10)
    expect(found, plain_distances(queries, vectors, filled.info.metric), 10)


def test_fewer_matches_than_k_pad_with_nan(filled, data):
    """ids are not padded, distances are NaN behind the last answer, and every match is there."""
    vectors, queries = data
    near = plain_distances(queries, vectors, filled.info.metric)
    near[:, 5:] = np.inf
    found = filled.query(queries, k=20, filter={"i": {"$lt": 5}})
    assert found.distances.shape == (7, 20)
    assert [len(ids) for ids in found.ids] == [5] * 7
    expect(found, near, 5)
    nothing = filled.query(queries, k=3, filter={"i": -1})
    assert nothing.ids == [[]] * 7
    assert np.isnan(nothing.distances).all()


def test_filters_deletes_and_updates_hold(filled, data):
    """A row that was filtered out, deleted or replaced never comes back."""
    vectors, queries = data[0].copy(), data[1]
    filled.delete([f"r{i}" for i in range(60)])
    filled.update(["r99"], vectors=vectors[99:100] + 5)
    vectors[99] += 5
    near = plain_distances(queries, vectors, filled.info.metric)
    near[:, :60] = np.inf
    expect(filled.query(queries, k=15), near, 15)
    keep = np.arange(N) % 3 == 0
    expect(filled.query(queries, k=15, filter={"third": True}), np.where(keep, near, np.inf), 15)


def test_max_distance(filled, data):
    """A bound leaves out what is farther; without k it returns everything within."""
    vectors, queries = data
    near = plain_distances(queries, vectors, filled.info.metric)
    bound = float(np.median(near))
    within = np.where(near <= bound, near, np.inf)
    found = filled.query(queries, max_distance=bound)
    counts = np.isfinite(within).sum(axis=1)
    assert found.distances.shape == (7, max(len(ids) for ids in found.ids))
    for i, count in enumerate(counts):
        assert abs(len(found.ids[i]) - count) <= 1  # the bound itself may round either way
        assert (found.distances[i, : len(found.ids[i])] <= bound).all()
    few = filled.query(queries, k=4, max_distance=bound)
    assert list(few.ids) == [ids[:4] for ids in found.ids]
    assert few.distances.shape == (7, 4)


def test_query_by_stored_ids(backend, filled, data):
    """A record's neighbours are those of its vector, without the record itself."""
    vectors, _ = data
    near = plain_distances(vectors[[3, 77]], vectors, filled.info.metric)
    near[[0, 1], [3, 77]] = np.inf
    found = filled.query(ids=["r3", "r77"], k=10)
    expect(found, near, 10)
    assert "r3" not in filled.query(ids=["r3"], k=N).ids[0]
    with pytest.raises(backend.errors.RecordNotFound, match="nobody"):
        filled.query(ids=["r3", "nobody"], k=2)


def test_included_parts_belong_to_their_hit(filled, data):
    """What a hit carries is that record's, nested as the ids are."""
    vectors, queries = data
    found = filled.query(queries, k=3, include=["vector", "metadata", "document", "uri", "content"])
    for i in range(7):
        rows = [int(name[1:]) for name in found.ids[i]]
        assert np.array_equal(found.vectors[i], vectors[rows])
        assert [m["i"] for m in found.metadata[i]] == rows
        assert found.documents[i] == found.ids[i]
        assert found.uris[i] == [None] * 3
        assert found.contents[i] == [None] * 3
        assert [h.id for h in found.hits(i)] == found.ids[i]
    bare = filled.query(queries, k=3)
    assert (bare.vectors, bare.metadata, bare.documents) == (None, None, None)


def test_k_beyond_the_collection_returns_everything(filled, data):
    """k may be larger than the collection, up to 10,000."""
    vectors, queries = data
    found = filled.query(queries[:1], k=10_000)
    assert found.distances.shape == (1, 10_000)
    expect(found, plain_distances(queries[:1], vectors, filled.info.metric), N)


@pytest.mark.parametrize(
    "form",
    [
        lambda q: q.tolist(),
        lambda q: q.astype(np.float64),
        lambda q: q.astype(np.float16),
        lambda q: np.asfortranarray(q),
        lambda q: q[:, ::-1][:, ::-1],
        lambda q: [array.array("f", row) for row in q.tolist()],
        lambda q: memoryview(np.ascontiguousarray(q)),
    ],
)
def test_query_vectors_in_any_form(backend, data, form):
    """Lists, other dtypes, other memory orders and buffers give the answer of the plain array."""
    vectors, queries = data
    docs = backend.db.create_collection("docs", dimension=D)
    docs.insert([f"r{i}" for i in range(N)], form(vectors))
    queries = queries.astype(np.float16).astype(np.float32)
    assert docs.query(form(queries), k=5).ids == docs.query(queries, k=5).ids
    assert docs.query(queries[0], k=5).ids == docs.query(queries[:1], k=5).ids
    assert docs.count() == N


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
@pytest.mark.parametrize("index", ["hnsw", "ivf"])
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_every_index_keeps_its_promises(backend, metric, index, storage):
    """With an index built, exact answers are exact, others reach the target, filters hold."""
    rng = np.random.default_rng(RNG_SEED)
    centres = rng.standard_normal((30, 24)) * 2
    n = 3_000
    vectors = (centres[rng.integers(0, 30, n)] + rng.standard_normal((n, 24))).astype(np.float32)
    queries = (centres[rng.integers(0, 30, 60)] + rng.standard_normal((60, 24))).astype(np.float32)
    docs = backend.db.create_collection(
        "docs", dimension=24, metric=metric, storage=storage, index=index
    )
    ids = [f"r{i}" for i in range(n)]
    docs.insert(ids, vectors, metadata=[{"i": i, "some": i % 20 == 0} for i in range(n)])
    stats = docs.build_index(wait=True)
    assert (stats.kind, stats.indexed_rows) == (index, n)
    docs.delete(ids[:100])
    docs.upsert(
        [*ids[100:110], "r3000"],
        vectors[:11],
        metadata=[{"i": i, "some": True} for i in range(100, 110)] + [{"i": 3000, "some": True}],
    )
    stored = np.concatenate([vectors, vectors[10:11]]).astype(storage).astype(np.float32)
    stored[100:110] = vectors[:10].astype(storage)
    near = plain_distances(queries, stored, metric)
    near[:, :100] = np.inf
    expect(docs.query(queries, k=10, exact=True), near, 10, 1e-3)
    some = np.arange(n + 1) % 20 == 0
    some[100:110] = some[3000] = True
    expect(
        docs.query(queries, k=10, exact=True, filter={"some": True}),
        np.where(some, near, np.inf),
        10,
        1e-3,
    )

    def recall(found, truth):
        kth = np.sort(truth, axis=1)[:, 9:10]
        kth = kth + 1e-3 * np.abs(kth) + 1e-3
        return np.mean(
            [(truth[i, [int(x[1:]) for x in found.ids[i]]] <= kth[i]).sum() / 10 for i in range(60)]
        )

    assert recall(docs.query(queries, k=10), near) >= 0.93
    found = docs.query(queries, k=10, filter={"some": True})
    assert recall(found, np.where(some, near, np.inf)) >= 0.93
    assert all(some[int(x[1:])] for ids_ in found.ids for x in ids_)
    assert docs.check().ok


def test_groups(filled, data):
    """group_by gives the best hits of the best groups, with their values, one after the other."""
    vectors, queries = data
    near = plain_distances(queries, vectors, filled.info.metric)
    values = [f"g{i % 40}" for i in range(N)]
    filled.update([f"r{i}" for i in range(N)], metadata=[{"g": value} for value in values])
    found = filled.query(queries, k=4, group_by="g", group_size=3, include=["metadata"])
    assert found.distances.shape == (7, 12)
    for i, row in enumerate(near):
        expected = best_groups(row, values, 4, 3)
        assert found.groups[i] == [value for value, own in expected for _ in own]
        rows = [r for _, own in expected for r in own]
        assert [int(name[1:]) for name in found.ids[i]] == rows
        assert np.allclose(found.distances[i], row[rows], atol=1e-3)
        assert [m["g"] for m in found.metadata[i]] == found.groups[i]
    assert [hit.group for hit in found.hits(2)] == found.groups[2]
    assert filled.query(queries, k=4).groups is None
    assert filled.query(queries[0], k=2, group_by="third", filter={"i": 1}).groups == [[False]]


def test_diversity(filled, data):
    """mmr_lambda picks as the definition of maximal marginal relevance does."""
    vectors, queries = data
    near = plain_distances(queries, vectors, filled.info.metric)
    found = filled.query(queries, k=6, mmr_lambda=0.5, mmr_candidates=40)
    for i, row in enumerate(near):
        expected = most_relevant(row, vectors, filled.info.metric, 6, 0.5, 40)
        assert [int(name[1:]) for name in found.ids[i]] == expected


def test_examples(backend, filled, data):
    """Examples are ids and vectors mixed; their mean, away from the negative ones, is the query."""
    vectors, queries = data
    positive, negative = [vectors[3], vectors[5], queries[0]], [vectors[8], queries[1]]
    if filled.info.metric == "cosine":
        positive = [v / np.linalg.norm(v) for v in positive]
        negative = [v / np.linalg.norm(v) for v in negative]
    target = 2 * np.mean(positive, axis=0) - np.mean(negative, axis=0)
    near = plain_distances(target[None], vectors, filled.info.metric)
    near[0, [3, 5, 8]] = np.inf
    found = filled.query(positive=["r3", "r5", queries[0]], negative=["r8", queries[1]], k=12)
    expect(found, near, 12, 1e-3)
    near = plain_distances(vectors[3:4], vectors, filled.info.metric)
    near[0, 3] = np.inf
    expect(filled.query(positive=["r3"], k=5), near, 5)
    with pytest.raises(backend.errors.RecordNotFound, match="nobody"):
        filled.query(positive=["nobody"])
    with pytest.raises(backend.errors.InvalidQuery):
        filled.query(positive=["r3"], ids=["r3"])


def test_named_vector_fields(backend, data):
    """vector_name searches another vector of the records; those without it never answer."""
    vectors, queries = data
    docs = backend.db.create_collection(
        "docs", dimension=2, metric="l2",
        vectors={"deep": {"dimension": D, "metric": "ip", "storage": "float16"},
                 "bits": {"dimension": 16, "metric": "hamming", "storage": "binary"}},
    )  # fmt: skip
    bits = np.packbits(vectors > 0, axis=1)
    has = np.arange(N) % 3 != 0
    docs.insert(
        [f"r{i}" for i in range(N)],
        np.arange(2 * N).reshape(N, 2),
        named_vectors={"deep": [v if t else None for v, t in zip(vectors, has, strict=True)], "bits": bits},
    )  # fmt: skip
    stored = vectors.astype(np.float16)
    near = np.where(has, plain_distances(queries, stored, "ip"), np.inf)
    expect(docs.query(queries, vector_name="deep", k=9), near, 9, 1e-3)
    near = plain_distances(stored[[4, 5]], stored, "ip")
    near[[0, 1], [4, 5]] = np.inf
    expect(
        docs.query(ids=["r4", "r5"], vector_name="deep", k=9), np.where(has, near, np.inf), 9, 1e-3
    )
    found = docs.query(bits[:3], vector_name="bits", k=9, include=["named_vectors"])
    expect(found, plain_distances(bits[:3], bits, "hamming"), 9)
    for i in range(3):
        rows = [int(name[1:]) for name in found.ids[i]]
        assert np.array_equal(found.named_vectors["bits"][i], bits[rows])
        assert found.named_present["deep"][i].tolist() == has[rows].tolist()
        assert np.array_equal(np.isnan(found.named_vectors["deep"][i]).all(axis=1), ~has[rows])
    with pytest.raises(backend.errors.InvalidQuery, match="deep, bits"):
        docs.query(queries, vector_name="shallow")


def test_explanations(filled, data):
    """explain comes with the answer, wherever it was asked for."""
    queries = data[1]
    told = filled.query(queries, k=3, explain=True, filter={"third": True}).explain
    assert (told.plan, told.kind, told.rows, told.allowed_rows) == ("exact", "exact", N, 134)
    assert told.sequence == filled.stats().sequence
    assert told.times_us["total"] >= told.times_us["search"] > 0
    assert filled.query(queries, k=3).explain is None


def test_compaction_and_builds(backend, data):
    """compact gives numbers, cancel_build says whether a build was running."""
    docs = backend.db.create_collection("docs", dimension=D)
    docs.insert([f"r{i}" for i in range(N)], data[0])
    docs.delete([f"r{i}" for i in range(100)])
    done = docs.compact()
    assert done.purged_rows >= 0
    assert done.bytes_after > 0
    assert docs.cancel_build() is False
    assert docs.count() == N - 100
