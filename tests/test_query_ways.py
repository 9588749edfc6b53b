"""Every way to ask, in every kind of index, over every storage, for own and named vectors."""

from __future__ import annotations

import numpy as np
import plain_query
import pytest
from index_rows import clustered

import vecdb
from vecdb.index import plan

N, D, K = 2_500, 32, 10
LEAST_ROWS = 100
"""Of the records the first so many are deleted, so every answer comes from behind them."""
FIELDS = {
    None: {"metric": "l2", "storage": "float32", "dimension": D},
    "half": {"metric": "ip", "storage": "float16", "dimension": D},
    "small": {"metric": "l2", "storage": "int8", "dimension": D},
    "bytes": {"metric": "cosine", "storage": "uint8", "dimension": D},
    "bits": {"metric": "hamming", "storage": "binary", "dimension": 2 * D},
}


def stored(rng, field):
    """Vectors (N, width) of a field in clusters, as the store keeps them."""
    raw = clustered(rng, N, field["dimension"], 30, 0.5)
    if field["storage"] == "binary":
        return np.packbits(raw > 0, axis=1)
    if field["storage"] in ("int8", "uint8"):
        return np.rint(20 * raw + (127 if field["storage"] == "uint8" else 0)).clip(
            *((-128, 127) if field["storage"] == "int8" else (0, 255))
        ).astype(field["storage"])  # fmt: skip
    return raw.astype(field["storage"])


class Case:
    """A collection whose fields all have an index of one kind, with deletes and updates behind it."""

    def __init__(self, db, kind):
        rng = np.random.default_rng(41)
        self.kind = kind
        settings = {
            # Bits have no lists.
            name: {**field, "index": "hnsw" if (kind, name) == ("ivf", "bits") else kind}
            for name, field in FIELDS.items()
        }
        own = settings.pop(None)
        self.docs = db.create_collection("docs", **own, vectors=settings)
        self.vectors = {name: stored(rng, field) for name, field in FIELDS.items()}
        self.has = {
            name: np.ones(N, np.bool_) if name is None else rng.random(N) < 0.9 for name in FIELDS
        }
        self.groups = [f"g{i}" for i in rng.integers(0, 60, N)]
        self.even = np.arange(N) % 2 == 0
        ids = [f"r{i}" for i in range(N)]
        self.docs.insert(
            ids, self.vectors[None], named_vectors=self._named(range(N)),
            metadata=[{"g": g, "even": bool(e)} for g, e in zip(self.groups, self.even, strict=True)],
        )  # fmt: skip
        self.docs.build_index()
        self.docs.delete(ids[:LEAST_ROWS])
        changed = np.arange(200, 260)
        for name in FIELDS:
            old = self.vectors[name][changed]
            self.vectors[name][changed] = -old if old.dtype.kind == "f" else ~old
        self.docs.update(
            [ids[i] for i in changed], vectors=self.vectors[None][changed],
            named_vectors=self._named(changed),
        )  # fmt: skip
        for name in FIELDS:
            self.has[name][:LEAST_ROWS] = False

    def _named(self, rows):
        return {
            name: [self.vectors[name][i] if self.has[name][i] else None for i in rows]
            for name in FIELDS
            if name is not None
        }

    def near(self, name, queries):
        """Distances (q, N) in float64; infinite to what may not answer."""
        found = plain_query.distances(queries, self.vectors[name], FIELDS[name]["metric"])
        return np.where(self.has[name], found, np.inf)

    def askers(self, name, count):
        """Numbers of records that have the field."""
        return np.flatnonzero(self.has[name])[300 :: N // (2 * count)][:count]


@pytest.fixture(scope="module", params=["exact", "hnsw", "ivf"])
def case(request, tmp_path_factory):
    with vecdb.open(tmp_path_factory.mktemp("ways"), audit_share=0.0, auto_build=False) as db:
        yield Case(db, request.param)


@pytest.fixture(autouse=True)
def _walks(monkeypatch):
    """However few the rows are, an index is walked where there is one."""
    monkeypatch.setattr(plan, "exact_cost", lambda *_: 1e9)


def numbers(found, i):
    return [int(one[1:]) for one in found.ids[i]]


def recall(found, near, k=K):
    """Mean share of right answers; each answer is live, allowed, told once, and as far as it says."""
    right = []
    for i, truth in enumerate(near):
        got, count = numbers(found, i), min(k, int(np.isfinite(truth).sum()))
        assert len(set(got)) == len(got) == count
        scale = 1e-3 * max(1.0, float(np.abs(truth[np.isfinite(truth)]).max()))
        assert np.isfinite(truth[got]).all()
        np.testing.assert_allclose(found.distances[i, :count], truth[got], atol=scale)
        right.append(
            (truth[got] <= np.sort(truth)[count - 1] + 1e-6 * scale).mean() if count else 1.0
        )
    return np.mean(right)


@pytest.mark.parametrize("name", FIELDS)
def test_ids(case, name):
    """Stored records are looked up in the field that is searched, and left out of their own answers."""
    asked = case.askers(name, 20)
    near = case.near(name, case.vectors[name][asked])
    near[np.arange(20), asked] = np.inf
    found = case.docs.query(ids=[f"r{i}" for i in asked], vector_name=name, k=K, explain=True)
    walked = found.explain.plan not in ("exact", "codes")
    assert walked == (case.kind != "exact"), found.explain.plan
    assert recall(found, near) >= 0.95
    near[:, ~case.even] = np.inf
    found = case.docs.query(
        ids=[f"r{i}" for i in asked], vector_name=name, k=K, filter={"even": True}
    )
    assert recall(found, near) >= 0.95


@pytest.mark.parametrize("name", FIELDS)
def test_range(case, name):
    """Without k all that lies within is there, with k no more than k, and nothing that lies beyond."""
    asked = case.askers(name, 5)
    queries = case.vectors[name][asked]
    near = case.near(name, queries)
    for place in (0, 7, 400):
        within = np.sort(near, axis=1)[0, place : place + 2]
        bound = float(within.mean())
        found = case.docs.query(queries, vector_name=name, max_distance=bound)
        few = case.docs.query(queries, vector_name=name, max_distance=bound, k=5)
        slack = 1e-5 * max(1.0, abs(bound))
        for i in range(5):
            sure, maybe = near[i] < bound - slack, near[i] <= bound + slack
            assert set(np.flatnonzero(sure)) <= set(numbers(found, i)) <= set(np.flatnonzero(maybe))
            assert set(numbers(few, i)) <= set(np.flatnonzero(maybe))
            assert len(few.ids[i]) <= 5


@pytest.mark.parametrize("name", FIELDS)
def test_groups(case, name):
    """The best hits of the best groups: k groups, each complete, and nearly all of the true best ones."""
    queries = case.vectors[name][case.askers(name, 10)]
    near = case.near(name, queries)
    found = case.docs.query(queries, vector_name=name, k=6, group_by="g", group_size=3)
    exact = case.docs.query(queries, vector_name=name, k=6, group_by="g", group_size=3, exact=True)
    shared = 0
    for i, row in enumerate(near):
        expected = plain_query.best_groups(row, case.groups, 6, 3)
        bests = [row[own[0]] for _, own in expected]
        for answer in (found, exact):
            shown = answer.groups[i]
            assert len(set(shown)) == 6
            assert [case.groups[r] for r in numbers(answer, i)] == shown
            every = dict(plain_query.best_groups(row, case.groups, 60, 3))
            assert [shown.count(g) for g in dict.fromkeys(shown)] == [
                len(every[g]) for g in dict.fromkeys(shown)
            ]
        firsts = [
            row[numbers(exact, i)[exact.groups[i].index(g)]] for g in dict.fromkeys(exact.groups[i])
        ]
        np.testing.assert_allclose(firsts, bests, rtol=1e-4, atol=1e-3)
        last = bests[-1] + 1e-3 * max(1.0, abs(bests[-1]))
        shared += sum(
            row[numbers(found, i)[found.groups[i].index(g)]] <= last for g in set(found.groups[i])
        )
    assert shared >= 0.95 * 60


@pytest.mark.parametrize("name", FIELDS)
def test_diversity(case, name):
    """Exactly, what the definition of maximal marginal relevance picks; by the index, nearly all of it."""
    queries = case.vectors[name][case.askers(name, 10)]
    near, metric = case.near(name, queries), FIELDS[name]["metric"]
    asked = {"vector_name": name, "k": 6, "mmr_lambda": 0.7, "mmr_candidates": 30}
    found, exact = case.docs.query(queries, **asked), case.docs.query(queries, exact=True, **asked)
    shared = 0
    for i, row in enumerate(near):
        some = np.argsort(row, kind="stable")[:200]
        picked = plain_query.most_relevant(row[some], case.vectors[name][some], metric, 6, 0.7, 30)
        assert len(set(found.ids[i])) == len(set(exact.ids[i])) == 6
        if metric != "hamming":  # whole numbers tie, and any of a tie may be picked
            assert numbers(exact, i) == some[picked].tolist()
        shared += len(set(found.ids[i]) & set(exact.ids[i]))
        np.testing.assert_allclose(
            found.distances[i],
            row[numbers(found, i)],
            rtol=1e-3,
            atol=1e-3 * np.abs(row[some]).max(),
        )
    assert shared >= 0.85 * 60


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "bits"])
def test_examples(case, name):
    """Records and vectors mixed make one query; the records named are left out of the answer."""
    rows, metric = case.askers(name, 24).reshape(8, 3), FIELDS[name]["metric"]
    means, answers = [], []
    for good, better, bad in rows.tolist():
        examples = case.vectors[name][[good, better, bad]].astype(np.float64)
        if metric == "cosine":
            examples /= np.linalg.norm(examples, axis=1, keepdims=True)
        means.append(examples[0] + examples[1] - examples[2])
        answers.append(
            case.docs.query(
                positive=[f"r{good}", case.vectors[name][better].astype(np.float32)],
                negative=[f"r{bad}"], vector_name=name, k=K,
            )
        )  # fmt: skip
    near = case.near(name, np.array(means))
    near[np.arange(8)[:, None], rows[:, [0, 2]]] = np.inf
    right = [recall(found, near[i : i + 1]) for i, found in enumerate(answers)]
    assert np.mean(right) >= 0.9
