"""What a search can do beyond the nearest k, embedded and through both clients, against plain numpy;
and the care of a collection."""

from __future__ import annotations

import datetime as dt
import itertools

import numpy as np
import pytest
from conftest import ALL_BACKENDS, open_backend
from plain_search import expect, plain_distances, plain_groups, plain_mmr, plain_target

N, D = 500, 12
IDS = [f"r{i}" for i in range(N)]
METRICS = ("cosine", "l2", "ip")
DAY = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@pytest.fixture
def rng():
    return np.random.default_rng(20260101)


class Docs:
    """A collection whose records are in groups of several kinds, and what is in it."""

    def __init__(self, backend, rng, metric, **settings):
        self.metric = metric
        self.vectors = rng.standard_normal((N, D)).astype(np.float32)
        kinds = rng.integers(0, 40, N)
        self.kind = [[f"k{k}"] if k < 35 else [] for k in kinds.tolist()]
        self.tags = [sorted({int(t) for t in rng.integers(0, 9, size)}) for size in kinds % 4]
        self.day = [[DAY + dt.timedelta(days=int(k) % 6)] for k in kinds]
        metadata = [
            {
                "n": i,
                "of": {"kind": self.kind[i][0]} if self.kind[i] else {},
                "tags": self.tags[i],
                "day": self.day[i][0],
            }
            for i in range(N)
        ]
        self.verbs = backend.db.create_collection("docs", dimension=D, metric=metric, **settings)
        self.verbs.insert(IDS, self.vectors, metadata=metadata)

    def near(self, queries):
        return plain_distances(queries, self.vectors, self.metric)


@pytest.fixture(params=METRICS)
def docs(request, backend, rng):
    return Docs(backend, rng, request.param)


@pytest.fixture
def queries(rng):
    return rng.standard_normal((4, D)).astype(np.float32)


# --- groups


def test_groups_equal_numpy(docs, queries):
    """The best of each of the best k groups, complete, for texts, lists and moments."""
    fields = {"of.kind": docs.kind, "tags": docs.tags, "day": docs.day}
    for (path, values), size, k in itertools.product(fields.items(), (None, 1, 3), (1, 4, 60)):
        found = docs.verbs.query(queries, k=k, group_by=path, group_size=size)
        for i, near in enumerate(docs.near(queries)):
            wanted = plain_groups(near, values, k, size or 1)
            assert list(zip(found.ids[i], found.groups[i], strict=True)) == [
                (IDS[row], group) for row, group in wanted
            ]
            distances = found.distances[i, : len(wanted)]
            assert np.allclose(distances, near[[row for row, _ in wanted]], atol=1e-3)
            assert np.isnan(found.distances[i, len(wanted) :]).all()


def test_groups_under_a_filter(docs, queries):
    """Only records that match count, however few they are, and included parts follow the hits."""
    found = docs.verbs.query(
        queries,
        k=5,
        group_by="of.kind",
        group_size=2,
        filter={"n": {"$lt": 30}},
        include=["metadata"],
    )
    for i, near in enumerate(docs.near(queries)):
        near[30:] = np.inf
        wanted = plain_groups(near, docs.kind, 5, 2)
        assert found.ids[i] == [IDS[row] for row, _ in wanted]
        assert [entry["of"]["kind"] for entry in found.metadata[i]] == found.groups[i]
    assert found.hits(0)[0].group == found.groups[0][0]
    assert docs.verbs.query(queries, k=5, group_by="nowhere").ids == [[]] * 4
    assert docs.verbs.query(queries, k=5).groups is None


def test_groups_are_complete_where_one_is_crowded(backend, rng):
    """k groups are found although the nearest records are all in one."""
    vectors = rng.standard_normal((3_000, 8)).astype(np.float32)
    vectors[:2_900] *= 0.01
    docs = backend.db.create_collection("docs", dimension=8, metric="l2", index="hnsw")
    groups = [0] * 2_900 + list(range(1, 101))
    docs.insert([f"r{i}" for i in range(3_000)], vectors, metadata=[{"g": g} for g in groups])
    docs.build_index()
    found = docs.query(np.zeros((1, 8)), k=20, group_by="g")
    near = plain_distances(np.zeros((1, 8)), vectors, "l2")[0]
    wanted = plain_groups(near, [[g] for g in groups], 20, 1)
    assert found.groups[0] == [group for _, group in wanted]


# --- unlike answers


def test_unlike_answers_equal_numpy(docs, queries):
    """Answers are picked one by one by maximal marginal relevance from the nearest."""
    for share in (0.0, 0.3, 0.7):
        found = docs.verbs.query(queries, k=6, mmr_lambda=share, mmr_candidates=40, exact=True)
        for i, near in enumerate(docs.near(queries)):
            wanted = plain_mmr(near, docs.vectors, docs.metric, 6, share, 40)
            assert found.ids[i] == [IDS[row] for row in wanted]
            assert np.allclose(found.distances[i], near[wanted], atol=1e-3)


def test_a_lambda_of_one_is_the_plain_order(docs, queries):
    """With all weight on nearness the answer is that of a plain query; filters hold."""
    plain = docs.verbs.query(queries, k=10, filter={"n": {"$lt": 200}}, include=["metadata"])
    chosen = docs.verbs.query(
        queries, k=10, filter={"n": {"$lt": 200}}, include=["metadata"], mmr_lambda=1
    )
    assert chosen.ids == plain.ids
    assert chosen.metadata == plain.metadata
    few = docs.verbs.query(queries, k=10, filter={"n": {"$lt": 3}}, mmr_lambda=0.5)
    assert [sorted(ids) for ids in few.ids] == [["r0", "r1", "r2"]] * 4


# --- examples


def test_examples_equal_numpy(docs, queries):
    """Twice the mean of the positive minus that of the negative, from ids and vectors alike."""
    vectors = docs.vectors
    for positive, negative in (
        (["r3"], None),
        (["r3", queries[0], "r5"], None),
        (list(queries), []),
        (["r3", queries[1]], ["r7", queries[2], "r8"]),
    ):

        def rows(examples):
            return [vectors[int(e[1:])] if isinstance(e, str) else e for e in examples or ()]

        target = plain_target(rows(positive), rows(negative), docs.metric)
        near = docs.near(target[None])
        for example in [*positive, *(negative or ())]:
            if isinstance(example, str):
                near[0, int(example[1:])] = np.inf
        found = docs.verbs.query(positive=positive, negative=negative, k=8)
        assert len(found) == 1
        expect(found, near, 8, 1e-3)


def test_examples_go_with_the_rest(docs):
    """Examples can be combined with filter, groups and unlike answers."""
    grouped = docs.verbs.query(positive=["r1", "r2"], k=4, group_by="of.kind")
    assert len(set(grouped.groups[0])) == 4
    assert not {"r1", "r2"} & set(grouped.ids[0])
    few = docs.verbs.query(positive=["r1"], k=9, filter={"n": {"$lt": 4}}, mmr_lambda=0.5)
    assert sorted(few.ids[0]) == ["r0", "r2", "r3"]


@pytest.mark.parametrize(
    "given",
    [
        {"vectors": [[1.0] * D], "group_size": 2},
        {"vectors": [[1.0] * D], "group_by": ""},
        {"vectors": [[1.0] * D], "group_by": "$n"},
        {"vectors": [[1.0] * D], "group_by": "n", "group_size": 0},
        {"vectors": [[1.0] * D], "group_by": "n", "group_size": 101},
        {"vectors": [[1.0] * D], "group_by": "n", "mmr_lambda": 0.5},
        {"vectors": [[1.0] * D], "mmr_lambda": 1.5},
        {"vectors": [[1.0] * D], "mmr_lambda": -0.1},
        {"vectors": [[1.0] * D], "mmr_lambda": float("nan")},
        {"vectors": [[1.0] * D], "mmr_candidates": 50},
        {"vectors": [[1.0] * D], "mmr_lambda": 0.5, "mmr_candidates": 3},
        {"vectors": [[1.0] * D], "mmr_lambda": 0.5, "mmr_candidates": 10_001},
        {"vectors": [[1.0] * D], "positive": ["r1"]},
        {"ids": ["r1"], "positive": ["r1"]},
        {"vectors": [[1.0] * D], "negative": ["r1"]},
        {"negative": ["r1"]},
        {"positive": []},
        {"positive": "r1"},
        {"vectors": [[1.0] * D], "vector_name": "nothing"},
        {},
    ],
    ids=repr,
)
def test_questions_that_make_no_sense(backend, given):
    """What contradicts itself, or is out of range, is InvalidQuery."""
    docs = backend.db.create_collection("docs", dimension=D)
    docs.insert(["r1"], [[1.0] * D])
    with pytest.raises(backend.errors.InvalidQuery):
        docs.query(**given)


def test_examples_that_are_not_there(backend):
    """Ids that are not stored are RecordNotFound, vectors of another width InvalidVector."""
    docs = backend.db.create_collection("docs", dimension=D)
    docs.insert(["r1"], [[1.0] * D])
    with pytest.raises(backend.errors.RecordNotFound, match="nobody"):
        docs.query(positive=["r1", "nobody"])
    with pytest.raises(backend.errors.RecordNotFound, match="nobody"):
        docs.query(positive=["r1"], negative=["nobody"])
    with pytest.raises(backend.errors.InvalidVector):
        docs.query(positive=["r1", [1.0, 2.0]])


# --- explanations and numbers


def test_an_exact_search_explains_itself(docs, queries):
    """The explanation of an exact search has the numbers of the collection and of its filter."""
    assert docs.verbs.query(queries, k=3).explain is None
    found = docs.verbs.query(queries[:1], k=3, filter={"n": {"$lt": 50}}, exact=True, explain=True)
    explain = found.explain
    assert (explain.rows, explain.allowed_rows) == (N, 50)
    assert explain.rows_compared >= 50
    assert explain.expected_recall == 1.0
    assert (explain.setting, explain.index_sequence, explain.indexed_rows) == (0, 0, 0)
    assert explain.tail_rows == N
    assert explain.sequence == found.sequence == 1
    assert explain.batch >= 1
    assert set(explain.times_us) == {"wait", "filter", "search", "rerank", "fetch", "total"}
    assert all(time >= 0 for time in explain.times_us.values())
    assert explain.times_us["total"] >= explain.times_us["search"] > 0
    assert found.ids == docs.verbs.query(queries[:1], k=3, filter={"n": {"$lt": 50}}).ids


@pytest.mark.parametrize("index", ["hnsw", "ivf"])
def test_an_index_explains_itself_and_has_a_curve(backend, rng, index):
    """After a build, stats hold the calibration, and an explanation the setting that it chose."""
    vectors = rng.standard_normal((6_000, 16)).astype(np.float32)
    docs = backend.db.create_collection("docs", dimension=16, metric="l2", index=index)
    ids = [f"r{i}" for i in range(6_000)]
    written = docs.insert(ids[:5_900], vectors[:5_900])
    built = docs.build_index()
    docs.insert(ids[5_900:], vectors[5_900:])
    stats = docs.stats().index
    assert built.built_at_sequence == stats.built_at_sequence == written.sequence
    assert stats.age_s >= 0
    assert stats.quantization in backend.types.QUANTIZATIONS
    assert [point.setting for point in stats.curve] == sorted(p.setting for p in stats.curve)
    assert all(0 <= p.recall_at_10 <= 1 and 0 <= p.recall_at_100 <= 1 for p in stats.curve)
    assert all(point.cost_us > 0 for point in stats.curve)
    assert stats.audit.queries >= 0
    explain = docs.query(vectors[:1], k=10, explain=True).explain
    assert (explain.kind, explain.indexed_rows, explain.tail_rows) == (index, 5_900, 100)
    assert (explain.index_sequence, explain.rows_since_index) == (written.sequence, 100)
    walk = "efSearch" if explain.device == "cpu" else "itopk"
    assert explain.setting_name == {"hnsw": walk, "ivf": "nprobe"}[index]
    assert explain.setting >= 1
    assert explain.target_recall == 0.95
    assert explain.expected_recall >= 0.9
    assert explain.rows_compared >= 100
    assert explain.quantization == stats.quantization


# --- care


@pytest.mark.parametrize("name", ALL_BACKENDS)
def test_compaction_gives_space_back_and_changes_no_answer(name, data_folder, rng):
    """Deleted and replaced records leave the files; what is stored is as it was."""
    vectors = rng.standard_normal((4_000, 64)).astype(np.float32)
    ids = [f"r{i}" for i in range(4_000)]
    settings = {"history_s": 0.0, "compact_dead_share": 1.0, "auto_build": False}
    with open_backend(name, data_folder, **settings) as backend:
        docs = backend.db.create_collection(
            "docs", dimension=64, metric="l2", vectors={"title": {"dimension": 8}}
        )
        title = vectors[:, :8]
        docs.insert(ids, vectors, documents=["x" * 500] * 4_000, named_vectors={"title": title})
        docs.delete(ids[:3_000])
        docs.upsert(ids[3_000:3_100], vectors[3_000:3_100], named_vectors={"title": title[:100]})
        before = docs.query(vectors[3_500:3_503], k=5, include=["document"])
        result = docs.compact()
        assert result.purged_rows == 3_100
        assert result.bytes_after < 0.6 * result.bytes_before
        stats = docs.stats()
        assert (stats.purged_rows, stats.count, stats.rows) == (3_100, 1_000, 4_100)
        after = docs.query(vectors[3_500:3_503], k=5, include=["document"])
        assert (after.ids, after.documents) == (before.ids, before.documents)
        near = plain_distances(vectors[3_200:3_201], vectors, "l2")
        near[:, :3_000] = np.inf
        expect(docs.query(vectors[3_200:3_201], k=20), near, 20)
        assert docs.get(ids[:10]).ids == []
        assert docs.check().ok
        assert docs.compact().purged_rows == 0


@pytest.mark.parametrize("name", ALL_BACKENDS)
def test_young_history_is_kept(name, data_folder):
    """Rows that died a moment ago keep their content, so that a scan that runs reads them."""
    with open_backend(name, data_folder) as backend:
        docs = backend.db.create_collection("docs", dimension=2)
        docs.insert(IDS, np.ones((N, 2)), documents=IDS)
        pages = docs.scan(batch_size=100)
        first = next(pages)
        docs.delete(filter={})
        assert docs.compact().purged_rows == 0
        rest = [document for page in pages for document in page.documents]
        assert first.documents + rest == IDS


def test_a_build_can_be_cancelled(backend, rng):
    """cancel_build says whether it stopped one; queries and later builds are as right as ever."""
    docs = backend.db.create_collection("docs", dimension=32, metric="l2", index="hnsw")
    vectors = rng.standard_normal((5_000, 32)).astype(np.float32)
    assert docs.cancel_build() is False
    ids = [f"r{i}" for i in range(5_000)]
    docs.insert(ids, vectors)
    docs.build_index(wait=False)
    cancelled = docs.cancel_build()
    assert isinstance(cancelled, bool)
    if cancelled:
        assert docs.stats().index.indexed_rows == 0
    expect(docs.query(vectors[:2], k=5, exact=True), plain_distances(vectors[:2], vectors, "l2"), 5)
    assert docs.build_index().indexed_rows == 5_000
    docs.cancel_build()  # what comes after a build, such as placing on a GPU
    assert docs.cancel_build() is False


@pytest.mark.parametrize("level", ["commit", "interval"])
@pytest.mark.parametrize("name", ALL_BACKENDS)
def test_flush_answers_when_all_is_on_the_disk(name, level, data_folder):
    """flush names the newest commit, stats the level and what is on the disk; both after any write."""
    with open_backend(
        name, data_folder, durability=level, durability_interval_ms=60_000.0
    ) as backend:
        docs = backend.db.create_collection("docs", dimension=2)
        assert docs.flush() == 0
        docs.insert(IDS, np.ones((N, 2)))
        docs.delete(IDS[:3])
        before = docs.stats()
        assert (before.durability, before.sequence) == (level, 2)
        assert before.synced_sequence == (2 if level == "commit" else 0)
        assert docs.flush() == 2
        assert docs.stats().synced_sequence == 2
