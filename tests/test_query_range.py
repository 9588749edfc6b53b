"""Range search at size: everything within a distance, with filters, ids and named vector fields."""

from __future__ import annotations

import numpy as np
import plain_query
import pytest

import vecdb
from vecdb import errors

N, D = 20_000, 16


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """20,000 records in clusters, in three fields of three metrics, with an index, deletes and updates."""
    rng = np.random.default_rng(23)
    centres = rng.standard_normal((40, D)) * 2
    vectors = (centres[rng.integers(0, 40, N)] + rng.standard_normal((N, D)) * 0.5).astype("f4")
    body = (centres[rng.integers(0, 40, N)] + rng.standard_normal((N, D)) * 0.5).astype("f4")
    bits = rng.integers(0, 256, (N, 8), dtype=np.uint8)
    has_body = np.arange(N) % 4 != 0
    with vecdb.open(tmp_path_factory.mktemp("range")) as db:
        docs = db.create_collection(
            "docs", dimension=D, metric="l2", index="hnsw",
            vectors={
                "body": {"dimension": D, "metric": "cosine", "index": "ivf"},
                "bits": {"dimension": 64, "metric": "hamming", "storage": "binary"},
            },
        )  # fmt: skip
        for start in range(0, N, 5_000):
            part = slice(start, start + 5_000)
            docs.insert(
                [f"r{i}" for i in range(N)[part]],
                vectors[part],
                metadata=[{"tenth": i % 10 == 0} for i in range(N)[part]],
                named_vectors={
                    "body": [v if there else None for v, there in zip(body[part], has_body[part], strict=True)],
                    "bits": bits[part],
                },
            )  # fmt: skip
        docs.build_index()
        docs.delete([f"r{i}" for i in range(500)])
        vectors[500:600] += 1
        docs.update([f"r{i}" for i in range(500, 600)], vectors=vectors[500:600])
        live = np.arange(N) >= 500
        yield docs, {None: vectors, "body": body, "bits": bits}, live, live & has_body


METRICS = {None: "l2", "body": "cosine", "bits": "hamming"}


@pytest.mark.parametrize("field", [None, "body", "bits"])
@pytest.mark.parametrize("filtered", [False, True])
def test_all_within_a_distance(many, field, filtered):
    """Exactly the records within, whether there are none, some, or thousands, in every field."""
    docs, vectors, live, with_body = many
    queries = vectors[field][[1_000, 2_001, 3_002]]
    near = plain_query.distances(queries, vectors[field], METRICS[field])
    near[:, ~(with_body if field == "body" else live)] = np.inf
    if filtered:
        near[:, np.arange(N) % 10 != 0] = np.inf
    for place in (0, 3, 200, 300, 4_000, 9_000):
        nearest = np.sort(near[0])
        if not np.isfinite(nearest[place + 1]):
            continue
        bound = float(nearest[place : place + 2].mean())
        found = docs.query(
            queries, vector_name=field, max_distance=bound, filter={"tenth": True} if filtered else None
        )  # fmt: skip
        for i in range(3):
            got = [int(name[1:]) for name in found.ids[i]]
            assert len(set(got)) == len(got)
            sure = near[i] < bound - 1e-4
            maybe = near[i] <= bound + 1e-4
            assert set(np.flatnonzero(sure)) <= set(got) <= set(np.flatnonzero(maybe))
            distances = found.distances[i, : len(got)]
            assert np.allclose(distances, near[i, got], atol=1e-3)
            assert (np.diff(distances) >= 0).all()
            assert np.isnan(found.distances[i, len(got) :]).all()
        assert found.distances.shape[1] == max(len(ids) for ids in found.ids)


def test_no_more_than_ten_thousand(many):
    """Of more than 10,000 records within the distance the nearest 10,000 are given."""
    docs, vectors, live, _ = many
    found = docs.query(vectors[None][1_000], max_distance=1e9)
    near = plain_query.distances(vectors[None][1_000:1_001], vectors[None], "l2")[0][live]
    assert len(found.ids[0]) == 10_000
    assert np.allclose(found.distances[0], np.sort(near)[:10_000], rtol=1e-3)


def test_a_bound_and_ids(many):
    """Queried by id a record is not within its own distance; k and a bound hold both."""
    docs, vectors, _, with_body = many
    near = plain_query.distances(vectors["body"][[1_001]], vectors["body"], "cosine")
    near[:, ~with_body] = np.inf
    near[0, 1_001] = np.inf
    bound = float(np.sort(near[0])[30:32].mean())
    found = docs.query(ids=["r1001"], vector_name="body", max_distance=bound)
    assert sorted(int(n[1:]) for n in found.ids[0]) == np.flatnonzero(near[0] <= bound).tolist()
    few = docs.query(ids=["r1001"], vector_name="body", max_distance=bound, k=5, exact=True)
    assert few.ids[0] == found.ids[0][:5]
    many_wanted = docs.query(
        ids=["r1001"], vector_name="body", max_distance=bound, k=50, exact=True
    )
    assert many_wanted.ids == found.ids
    assert many_wanted.distances.shape == (1, 50)


def test_records_without_a_vector_never_answer(many):
    """A field that a record lacks is no way to find it, and it cannot be queried by there."""
    docs, vectors, _, with_body = many
    found = docs.query(vectors["body"][[1_000]], vector_name="body", k=10_000, exact=True)
    assert all(with_body[int(name[1:])] for name in found.ids[0])
    with pytest.raises(errors.InvalidQuery, match="'r1000' has no vector in field 'body'"):
        docs.query(ids=["r1000"], vector_name="body")
    with pytest.raises(errors.InvalidQuery, match="'r1000' has no vector in field 'body'"):
        docs.query(positive=["r1001", "r1000"], vector_name="body")


def test_a_field_that_is_not_there_is_refused(many):
    """An unknown vector field is named, with those that exist."""
    docs, vectors, _, _ = many
    for name in ("title", "", 7):
        with pytest.raises(errors.InvalidQuery, match="has: body, bits"):
            docs.query(vectors[None][:1], vector_name=name)
    with pytest.raises(errors.InvalidVector, match="8 in each byte"):
        docs.query(np.zeros((1, 9), np.uint8), vector_name="bits")
