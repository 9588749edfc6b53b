"""Diversity and examples against plain numpy: mmr_lambda, positive and negative."""

from __future__ import annotations

import numpy as np
import plain_query
import pytest

import vecdb
from vecdb import errors

N, D = 400, 12
METRICS = ["cosine", "l2", "ip", "hamming"]


@pytest.fixture
def rng():
    return np.random.default_rng(17)


def filled(db, metric, rng, **settings):
    """A collection of N records r0, r1, … in clusters, every third of them `third`."""
    if metric == "hamming":
        docs = db.create_collection("docs", dimension=64, metric=metric, storage="binary")
        vectors = rng.integers(0, 256, (N, 8), dtype=np.uint8)
    else:
        docs = db.create_collection("docs", dimension=D, metric=metric, **settings)
        centres = rng.standard_normal((20, D)) * 2
        vectors = (centres[rng.integers(0, 20, N)] + rng.standard_normal((N, D)) * 0.3).astype("f4")
    docs.insert(
        [f"r{i}" for i in range(N)], vectors, metadata=[{"third": i % 3 == 0} for i in range(N)]
    )
    return docs, vectors


def numbers(found, i=0):
    return [int(name[1:]) for name in found.ids[i]]


# -- maximal marginal relevance


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_mmr_equals_numpy(data_folder, metric, share, rng):
    """The picks, their order and their distances are those of the definition, with filters too."""
    with vecdb.open(data_folder) as db:
        docs, vectors = filled(db, metric, rng)
        docs.delete([f"r{i}" for i in range(40)])
        queries = vectors[[50, 60]]
        near = plain_query.distances(queries, vectors, metric)
        near[:, :40] = np.inf
        third = np.where(np.arange(N) % 3 == 0, near, np.inf)
        for where, truth in ((None, near), ({"third": True}, third)):
            found = docs.query(queries, k=12, filter=where, mmr_lambda=share, mmr_candidates=60)
            assert found.distances.shape == (2, 12)
            for i in range(2):
                expected = plain_query.most_relevant(truth[i], vectors, metric, 12, share, 60)
                assert np.allclose(found.distances[i], near[i, numbers(found, i)], atol=1e-3)
                if metric != "hamming":  # whole numbers tie, and any of a tie may be picked
                    assert numbers(found, i) == expected
                assert len(set(found.ids[i])) == 12


def test_mmr_of_one_is_plain_order(data_folder, rng):
    """mmr_lambda=1 gives what a plain query gives; the default number of candidates is 4 k or 50."""
    with vecdb.open(data_folder) as db:
        docs, vectors = filled(db, "l2", rng)
        plain = docs.query(vectors[:3] + 0.01, k=15)
        found = docs.query(vectors[:3] + 0.01, k=15, mmr_lambda=1)
        assert found.ids == plain.ids
        assert np.array_equal(found.distances, plain.distances)
        near = plain_query.distances(vectors[:1] + 0.01, vectors, "l2")[0]
        for k, candidates in ((5, 50), (20, 80)):
            found = docs.query(vectors[:1] + 0.01, k=k, mmr_lambda=0.2)
            assert numbers(found) == plain_query.most_relevant(
                near, vectors, "l2", k, 0.2, candidates
            )


def test_mmr_of_duplicates_prefers_what_differs(data_folder):
    """Of many copies of the nearest record only one is picked as long as others are to be had."""
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=2)
        vectors = [[1, 0]] * 10 + [[1, 0.5], [1, -0.5]]
        docs.insert([f"r{i}" for i in range(12)], vectors)
        assert sum(n < 10 for n in numbers(docs.query([[1, 0]], k=3))) == 3
        assert sum(n < 10 for n in numbers(docs.query([[1, 0]], k=3, mmr_lambda=0.4))) == 1


def test_mmr_with_bounds_ids_and_few_records(data_folder, rng):
    """A distance bound, a record queried by id and a k beyond the collection hold as elsewhere."""
    with vecdb.open(data_folder) as db:
        docs, vectors = filled(db, "l2", rng)
        near = plain_query.distances(vectors[7:8], vectors, "l2")
        near[0, 7] = np.inf
        bound = float(np.sort(near[0])[25:27].mean())
        found = docs.query(ids=["r7"], k=10, mmr_lambda=0.4, max_distance=bound)
        assert (found.distances[0] <= bound).all()
        within = np.where(near[0] <= bound, near[0], np.inf)
        assert numbers(found) == plain_query.most_relevant(within, vectors, "l2", 10, 0.4, 50)
        found = docs.query(ids=["r7"], max_distance=bound, mmr_lambda=0.4)
        assert sorted(numbers(found)) == np.flatnonzero(near[0] <= bound).tolist()
        assert len(docs.query(ids=["r7"], k=1_000, mmr_lambda=0.4).ids[0]) == N - 1
        assert "r7" not in docs.query(ids=["r7"], k=1_000, mmr_lambda=0.4).ids[0]
    with vecdb.open(data_folder) as db:
        empty = db.create_collection("empty", dimension=3)
        assert empty.query([[1, 2, 3]], k=2, mmr_lambda=0.5).ids == [[]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mmr_lambda": -0.1}, "mmr_lambda must be from 0.0 to 1.0"),
        ({"mmr_lambda": float("nan")}, "mmr_lambda must be from 0.0 to 1.0"),
        ({"mmr_lambda": "much"}, "mmr_lambda must be from 0.0 to 1.0"),
        ({"mmr_lambda": True}, "mmr_lambda must be from 0.0 to 1.0"),
        ({"mmr_lambda": 0.5, "k": 30, "mmr_candidates": 29}, "integer from 30 to 10000"),
        ({"mmr_lambda": 0.5, "mmr_candidates": 10_001}, "integer from 10 to 10000"),
        ({"mmr_candidates": 100}, "give both"),
    ],
)
def test_wrong_mmr_is_refused(data_folder, wrong, message):
    """Shares and candidates out of bounds are refused with the bounds."""
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=2)
        with pytest.raises(errors.InvalidQuery, match=message):
            docs.query([[1, 0]], **wrong)


# -- examples


def target_of(positive, negative, metric):
    """The mean that the examples make, as the definition reads."""

    def mean(vectors):
        vectors = np.asarray(vectors, np.float64)
        if metric == "cosine":
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors.mean(axis=0)

    target = mean(positive)
    return (2 * target - mean(negative) if len(negative) else target)[None, :]


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_examples_equal_numpy(data_folder, metric, storage, rng):
    """Ids and vectors mixed make one query, whose named records are left out of its answer."""
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=D, metric=metric, storage=storage)
        vectors = np.round(rng.standard_normal((N, D)) * 20).astype(np.float32)
        docs.insert([f"r{i}" for i in range(N)], vectors)
        given = rng.standard_normal(D).astype(np.float32) * 20
        for positive, negative in (
            ([3], []), ([3, 4, 5], []), ([3, given], [8, 9]), ([given], [given / 2, 7]), ([3, 3, 9], [9]),
        ):  # fmt: skip
            forms = [
                [f"r{e}" if isinstance(e, int) else e for e in side]
                for side in (positive, negative)
            ]
            plain = [
                [vectors[e] if isinstance(e, int) else e for e in side]
                for side in (positive, negative)
            ]
            found = docs.query(positive=forms[0], negative=forms[1] or None, k=20)
            near = plain_query.distances(target_of(*plain, metric), vectors, metric)[0]
            scale = max(1.0, float(np.abs(near).max()))
            near[[e for e in positive + negative if isinstance(e, int)]] = np.inf
            assert np.allclose(found.distances[0], np.sort(near)[:20], atol=1e-4 * scale)
            assert np.allclose(near[numbers(found)], found.distances[0], atol=1e-4 * scale)


def test_one_positive_example_is_a_query_by_id(data_folder, rng):
    """A single example is that record; matrices of examples and lists of numbers are taken too."""
    with vecdb.open(data_folder) as db:
        docs, vectors = filled(db, "cosine", rng)
        assert docs.query(positive=["r5"], k=9).ids == docs.query(ids=["r5"], k=9).ids
        assert (
            docs.query(positive=vectors[:4], k=9).ids
            == docs.query(positive=vectors[:4].tolist(), k=9).ids
        )
        docs.update(["r5"], vectors=-vectors[5:6])
        assert docs.query(positive=["r5"], k=1).ids[0] == docs.query(-vectors[5], k=2).ids[0][1:]


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"positive": []}, errors.InvalidQuery, "positive is empty"),
        ({"positive": "r1"}, errors.InvalidQuery, "list of record ids and vectors"),
        ({"positive": 3}, errors.InvalidQuery, "list of record ids and vectors"),
        ({"negative": ["r1"]}, errors.InvalidQuery, "one of the three"),
        ({"vectors": [[1, 0]], "negative": ["r1"]}, errors.InvalidQuery, "positive ones"),
        ({"positive": ["r1"], "ids": ["r1"]}, errors.InvalidQuery, "one of the three"),
        ({"positive": ["r1"], "vectors": [[1, 0]]}, errors.InvalidQuery, "one of the three"),
        ({"positive": ["r1", "nobody"]}, errors.RecordNotFound, "nobody"),
        ({"positive": ["r1"], "negative": ["nobody"]}, errors.RecordNotFound, "nobody"),
        ({"positive": [[1, 2, 3]]}, errors.InvalidVector, "positive example 0"),
        ({"positive": ["r1", [0, 0]]}, errors.InvalidVector, "positive example 1"),
        ({"positive": ["r1"], "negative": [[float("nan"), 0]]}, errors.InvalidVector, "negative example 0"),
        ({"positive": [1.0, 2.0]}, errors.InvalidVector, "positive example 0"),
        ({"positive": [[[1, 2], [3, 4]]]}, errors.InvalidQuery, "each example is one"),
        ({"positive": [[1, 0], [-1, 0]]}, errors.InvalidQuery, "cancel each other out"),
        ({"positive": ["r1"] * 10_001}, errors.InvalidQuery, "at most 10000"),
    ],
)  # fmt: skip
def test_wrong_examples_are_refused(data_folder, asked, error, message):
    """Each wrong example is named, and what was expected."""
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=2)
        docs.insert(["r1", "r2"], [[1, 0], [0, 1]])
        with pytest.raises(error, match=message):
            docs.query(k=1, **asked)


def test_examples_of_an_empty_collection(data_folder):
    """Vectors may be examples where there are no records; a k beyond the collection gives all."""
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=2)
        assert docs.query(positive=[[1, 0]], negative=[[0, 1]]).ids == [[]]
        docs.insert(["a", "b"], [[1, 0], [0, 1]])
        assert docs.query(positive=["a", [1, 1]], k=100).ids == [["b"]]


def test_bits_have_no_mean(data_folder):
    """Examples are refused where vectors are bits."""
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=8, metric="hamming", storage="binary")
        docs.insert(["r1"], np.array([[7]], np.uint8))
        with pytest.raises(errors.InvalidQuery, match="vectors are bits"):
            docs.query(positive=["r1"])
