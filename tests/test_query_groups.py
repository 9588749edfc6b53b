"""group_by against plain numpy: the best hits of the best groups, complete whatever the data."""

from __future__ import annotations

import datetime as dt

import numpy as np
import plain_query
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vecdb
from vecdb import errors

N, D = 600, 8
METRICS = ["cosine", "l2", "ip", "hamming"]


def made(db, metric, n, rng, name="docs", **settings):
    """A collection and n vectors for it."""
    if metric == "hamming":
        docs = db.create_collection(name, dimension=64, metric=metric, storage="binary", **settings)
        return docs, rng.integers(0, 256, (n, 8), dtype=np.uint8)
    docs = db.create_collection(name, dimension=D, metric=metric, **settings)
    return docs, rng.standard_normal((n, D)).astype(np.float32)


def expect(found, near, values, k, size, number=lambda name: int(name[1:])):
    """Each query's answer holds the best groups and their best hits, rounding and ties aside."""
    for i, row in enumerate(near):
        expected = plain_query.best_groups(row, values, k, size)
        got, at = [], 0
        shown = found.groups[i]
        while at < len(shown):
            end = at
            while end < len(shown) and plain_query.same(shown[end], shown[at]):
                end += 1
            got.append((shown[at], [number(name) for name in found.ids[i][at:end]], at))
            at = end
        assert len(got) == len(expected)
        assert not any(plain_query.same(a[0], b[0]) for n, a in enumerate(got) for b in got[:n])
        bests = [row[own[0]] for _, own in expected]
        assert np.allclose([row[own[0]] for _, own, _ in got], bests, atol=1e-4)
        everything = plain_query.best_groups(row, values, len(values) * 8, size)
        for value, own, start in got:
            truth = next(o for v, o in everything if plain_query.same(v, value))
            assert len(set(own)) == len(own) == len(truth)
            assert np.allclose(row[own], row[truth], atol=1e-4)
            stretch = found.distances[i, start : start + len(own)]
            assert np.allclose(stretch, row[own], atol=1e-4)
            assert all(
                any(plain_query.same(value, g) for g in plain_query.groups_of(values[r]))
                for r in own
            )
        assert np.isnan(found.distances[i, len(shown) :]).all()
        assert found.distances.shape[1] == k * size


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("k", "size"), [(3, 1), (5, 4), (20, 2), (500, 3)])
def test_groups_equal_numpy(data_folder, metric, k, size):
    """Best groups in the order of their best hits, each with its best hits, with and without filter."""
    rng = np.random.default_rng(3)
    with vecdb.open(data_folder) as db:
        docs, vectors = made(db, metric, N, rng)
        values = [None if i % 11 == 0 else f"g{i * i % 37}" for i in range(N)]
        docs.insert(
            [f"r{i}" for i in range(N)],
            vectors,
            metadata=[{"g": value, "even": i % 2 == 0} for i, value in enumerate(values)],
        )
        docs.delete([f"r{i}" for i in range(50)])
        queries = vectors[100:104]
        near = plain_query.distances(queries, vectors, metric)
        near[:, :50] = np.inf
        expect(docs.query(queries, k=k, group_by="g", group_size=size), near, values, k, size)
        some = np.where(np.arange(N) % 2 == 0, near, np.inf)
        for exact in (False, True):
            found = docs.query(
                queries, k=k, group_by="g", group_size=size, filter={"even": True}, exact=exact
            )
            expect(found, some, values, k, size)


def test_every_kind_of_value_is_a_group(data_folder):
    """Texts, whole and broken numbers, booleans, dates and elements of lists; 1 and 1.0 are one."""
    moment = dt.datetime(2024, 5, 6, 7, 8, 9, 125, tzinfo=dt.UTC)
    pool = ["a", "b", 1, 1.0, 2, 2.5, -7, True, False, moment, None, 2**53 + 1, float(2**53),
            ["a", "c"], ["c", "c", None], [1, 2.5, "1"], [], [True], [moment, 2**53 + 1]]  # fmt: skip
    rng = np.random.default_rng(8)
    with vecdb.open(data_folder) as db:
        docs, vectors = made(db, "l2", 200, rng)
        values = [pool[i % len(pool)] for i in range(200)]
        docs.insert(
            [f"r{i}" for i in range(200)], vectors, metadata=[{"x": {"g": v}} for v in values]
        )
        near = plain_query.distances(vectors[:5], vectors, "l2")
        for k, size in ((1, 1), (4, 3), (40, 100)):
            found = docs.query(vectors[:5], k=k, group_by="x.g", group_size=size)
            expect(found, near, values, k, size)
        shown = docs.query(vectors[:1], k=40, group_by="x.g").groups[0]
        for value in ("a", 2.5, True, moment, 2**53 + 1, float(2**53), "1"):
            assert sum(plain_query.same(value, one) for one in shown) == 1


VALUES = st.one_of(
    st.none(), st.sampled_from(["a", "b", 1, 1.0, 0, False, True]),
    st.lists(st.sampled_from(["a", "b", 1, 1.5, True, None]), max_size=3),
)  # fmt: skip


def test_groups_of_any_records(data_folder):
    """Whatever the values, k, size, filter and deletes: complete and in order, ties included."""
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=2, metric="l2")

        @given(data=st.data())
        def check(data):
            values = data.draw(st.lists(VALUES, min_size=1, max_size=40))
            n = len(values)
            points = data.draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n))
            k, size = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
            dead = sorted(data.draw(st.sets(st.integers(0, n - 1))))
            bound = data.draw(st.none() | st.integers(0, 9))
            even = data.draw(st.booleans())
            vectors = np.array(points, np.float32)[:, None] * np.ones((1, 2), np.float32)
            docs.delete(filter={})
            metadata = [{"g": v, "even": i % 2 == 0} for i, v in enumerate(values)]
            docs.insert([f"r{i}" for i in range(n)], vectors, metadata=metadata)
            if dead:
                docs.delete([f"r{i}" for i in dead])
            found = docs.query(
                [[0, 0]], k=k, group_by="g", group_size=size, max_distance=bound,
                filter={"even": True} if even else None,
            )  # fmt: skip
            near = plain_query.distances(np.zeros((1, 2)), vectors, "l2")
            near[:, dead] = np.inf
            if even:
                near[:, 1::2] = np.inf
            if bound is not None:
                near[near > bound] = np.inf
            expect(found, near, values, k, size)

        check()


def test_rare_groups_behind_a_crowd_are_found(data_folder):
    """Groups far behind thousands of records of one group are there, at any k, also with an index."""
    rng = np.random.default_rng(4)
    n = 2_000
    vectors = rng.standard_normal((n, D)).astype(np.float32) * 0.1
    vectors[-30:] += 5
    values = ["crowd"] * (n - 30) + [f"rare{i % 10}" for i in range(30)]
    values[10] = ["crowd", "rare3"]
    for kind in ("exact", "hnsw", "ivf"):
        with vecdb.open(data_folder) as db:
            docs = db.create_collection(kind, dimension=D, metric="l2", index=kind)
            docs.insert([f"r{i}" for i in range(n)], vectors, metadata=[{"g": v} for v in values])
            docs.build_index()
            near = plain_query.distances(vectors[:2] * 0, vectors, "l2")
            for k, size in ((11, 1), (11, 3), (4, 2), (50, 100)):
                found = docs.query(vectors[:2] * 0, k=k, group_by="g", group_size=size, exact=True)
                expect(found, near, values, k, size)
                found = docs.query(vectors[:2] * 0, k=k, group_by="g", group_size=size)
                assert len(set(map(str, found.groups[0]))) == min(k, 11)
                assert len(found.ids[0]) == len(
                    [r for _, own in plain_query.best_groups(near[0], values, k, size) for r in own]
                )


def test_groups_by_ids_leave_the_record_out(data_folder):
    """A record queried by id, and examples, are in no group; included parts follow the hits."""
    rng = np.random.default_rng(5)
    with vecdb.open(data_folder) as db:
        docs, vectors = made(db, "cosine", 300, rng)
        values = [i % 7 for i in range(300)]
        docs.insert([f"r{i}" for i in range(300)], vectors, metadata=[{"g": v} for v in values])
        near = plain_query.distances(vectors[[5, 9]], vectors, "cosine")
        near[0, 5] = near[1, 9] = np.inf
        found = docs.query(ids=["r5", "r9"], k=5, group_by="g", group_size=3, include=["metadata"])
        expect(found, near, values, 5, 3)
        assert [[m["g"] for m in held] for held in found.metadata] == found.groups
        assert [hit.group for hit in found.hits(1)] == found.groups[1]
        found = docs.query(positive=["r5"], negative=["r9"], k=7, group_by="g", group_size=100)
        assert len(found.ids[0]) == 298


def test_an_unknown_field_and_an_empty_collection_have_no_groups(data_folder):
    """No record has the field, or there are none: no hits, and NaN distances."""
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=2)
        assert docs.query([[1, 0]], k=2, group_by="g").groups == [[]]
        docs.insert(["a"], [[1, 0]], metadata=[{"h": 1}])
        found = docs.query([[1, 0]], k=2, group_by="g")
        assert (found.ids, found.groups) == ([[]], [[]])
        assert np.isnan(found.distances).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"group_by": ""}, "group_by takes the dotted path"),
        ({"group_by": 3}, "group_by takes the dotted path"),
        ({"group_by": "$document"}, "group_by takes the dotted path"),
        ({"group_by": "id"}, "ids differ"),
        ({"group_by": "g", "group_size": 0}, "group_size must be an integer from 1 to 100"),
        ({"group_by": "g", "group_size": 101}, "group_size must be an integer from 1 to 100"),
        ({"group_by": "g", "group_size": True}, "group_size must be an integer from 1 to 100"),
        ({"group_size": 3}, "give group_by with it"),
        ({"group_by": "g", "mmr_lambda": 0.5}, "give one of them"),
    ],
)
def test_wrong_groups_are_refused(data_folder, wrong, message):
    """What cannot be a group is said in words, with the bounds."""
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 0]])
        with pytest.raises(errors.InvalidQuery, match=message):
            docs.query([[1, 0]], **wrong)


def test_too_many_answers_are_refused(data_folder):
    """Queries times groups times hits are bounded as queries times k are."""
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 0]])
        with pytest.raises(errors.LimitExceeded, match="at most 5000000"):
            docs.query(np.ones((6, 2)), k=10_000, group_by="g", group_size=100)
