"""Bad input: every refusal is typed, says what is wrong, and leaves nothing half written."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest

ONES = [[1.0, 1.0, 1.0]]
BAD_BATCHES = [
    ("InvalidBatch", dict(ids=[], vectors=np.empty((0, 3))), "empty"),
    ("InvalidBatch", dict(ids=["a", "b", "a"], vectors=np.ones((3, 3))), "'a'"),
    ("InvalidBatch", dict(ids=["a", "b"], vectors=ONES), "2 ids"),
    ("InvalidBatch", dict(ids="a", vectors=ONES), "list"),
    ("InvalidBatch", dict(ids=["a"], vectors=None), "vector"),
    ("InvalidBatch", dict(ids=["a"], vectors=ONES, metadata=[{}, {}]), "metadata"),
    ("InvalidBatch", dict(ids=["a"], vectors=ONES, metadata={"x": 1}), "metadata"),
    ("InvalidBatch", dict(ids=["a"], vectors=ONES, documents="text"), "documents"),
    ("InvalidId", dict(ids=[""], vectors=ONES), "1 to 1024"),
    ("InvalidId", dict(ids=["x" * 1025], vectors=ONES), "1025"),
    ("InvalidId", dict(ids=["ä" * 513], vectors=ONES), "1026"),
    ("InvalidId", dict(ids=["a\0b"], vectors=ONES), "NUL"),
    ("InvalidId", dict(ids=[7], vectors=ONES), "int"),
    ("InvalidId", dict(ids=["\ud800"], vectors=ONES), "surrogate"),
    ("InvalidVector", dict(ids=["a"], vectors=[[1.0, 2.0]]), "2 dimensions"),
    ("InvalidVector", dict(ids=["a", "b"], vectors=[[1.0, 2.0, 3.0], [1.0]]), ""),
    ("InvalidVector", dict(ids=["a", "bad"], vectors=[[1, 2, 3], [1, np.nan, 3]]), "'bad'.*NaN"),
    ("InvalidVector", dict(ids=["bad"], vectors=[[1, np.inf, 3]]), "'bad'.*infinity"),
    ("InvalidVector", dict(ids=["bad"], vectors=[[1e300, 1, 1]]), "large"),
    ("InvalidVector", dict(ids=["bad"], vectors=[[3e38, 3e38, 1]]), "'bad'.*large"),
    ("InvalidVector", dict(ids=["bad"], vectors=[[1.5e19, 0, 0]]), "'bad'.*large"),
    ("InvalidVector", dict(ids=["zero"], vectors=[[0, 0, 0]]), "'zero'.*zero"),
    ("InvalidVector", dict(ids=["a"], vectors=[["x", "y", "z"]]), ""),
    ("InvalidVector", dict(ids=["a"], vectors=[[1 + 2j, 0, 0]]), ""),
    ("InvalidVector", dict(ids=["a"], vectors=np.ones((1, 1, 3))), "shape"),
    ("InvalidMetadata", dict(ids=["a"], vectors=ONES, metadata=[{"x": b"bytes"}]), "x"),
    ("InvalidMetadata", dict(ids=["a"], vectors=ONES, metadata=[{"x": float("nan")}]), "x"),
    ("InvalidMetadata", dict(ids=["a"], vectors=ONES, metadata=[{"x": 2**63}]), "x"),
    ("InvalidMetadata", dict(ids=["a"], vectors=ONES, metadata=[{"x": [[1]]}]), "x"),
    ("InvalidMetadata", dict(ids=["a"], vectors=ONES, metadata=[{"x": [{"y": 1}]}]), "x"),
    ("InvalidMetadata", dict(ids=["a"], vectors=ONES, metadata=[{"x": {1, 2}}]), "x"),
    ("InvalidMetadata", dict(ids=["a"], vectors=ONES, metadata=[{"x": object()}]), "x"),
    ("InvalidMetadata", dict(ids=["a"], vectors=ONES, metadata=[{"id": 1}]), "id"),
    ("InvalidMetadata", dict(ids=["a"], vectors=ONES, metadata=[{"$x": 1}]), r"\$x"),
    ("InvalidMetadata", dict(ids=["a"], vectors=ONES, metadata=[{"": 1}]), ""),
    ("InvalidMetadata", dict(ids=["a"], vectors=ONES, metadata=[{"a.b": 1, "a": {"b": 2}}]), "a.b"),
    ("InvalidMetadata", dict(ids=["a"], vectors=ONES, metadata=[{"x": dt.datetime(2026, 1, 1)}]), "x"),
    ("InvalidMetadata", dict(ids=["a"], vectors=ONES, metadata=[{"x": "y" * 1_100_000}]), ""),
    ("InvalidMetadata", dict(ids=["a"], vectors=ONES, metadata=["text"]), ""),
    ("InvalidMetadata", dict(ids=["a"], vectors=ONES, documents=[5]), "documents"),
    ("InvalidMetadata", dict(ids=["a"], vectors=ONES, documents=["\ud800"]), ""),
    ("InvalidMetadata", dict(ids=["a"], vectors=ONES, uris=["u" * 9000]), "uris"),
    ("InvalidMetadata", dict(ids=["a"], vectors=ONES, contents=["text"]), "content"),
    ("InvalidMetadata", dict(ids=["a"], vectors=ONES, contents=[(b"", "m" * 300)]), "media"),
]  # fmt: skip

BAD_QUERIES = [
    ("InvalidQuery", dict(vectors=ONES, k=0), "k"),
    ("InvalidQuery", dict(vectors=ONES, k=-1), "k"),
    ("InvalidQuery", dict(vectors=ONES, k=10_001), "10000"),
    ("InvalidQuery", dict(vectors=ONES, k=2.5), "k"),
    ("InvalidQuery", dict(vectors=ONES, include=["vectors"]), "vectors"),
    ("InvalidQuery", dict(vectors=ONES, max_distance=10**400), "max_distance"),
    ("LimitExceeded", dict(vectors=np.ones((501, 3)), k=10_000), "5000000"),
    ("InvalidQuery", dict(vectors=ONES, target_recall=0.1), "target_recall"),
    ("InvalidQuery", dict(vectors=ONES, max_distance=float("nan")), "max_distance"),
    ("InvalidQuery", dict(), "vectors or ids"),
    ("InvalidQuery", dict(vectors=ONES, ids=["a"]), "vectors or ids"),
    ("InvalidVector", dict(vectors=[[1.0]]), "dimension"),
    ("InvalidVector", dict(vectors=[[np.nan, 1, 1]]), "NaN"),
    ("InvalidVector", dict(vectors=[[0, 0, 0]]), "zero"),
    ("InvalidFilter", dict(vectors=ONES, filter={"x": {"$near": 1}}), r"\$near"),
    ("InvalidFilter", dict(vectors=ONES, filter='{"x": '), ""),
]  # fmt: skip

BAD_READS = [
    ("InvalidQuery", "get", dict(limit=0), "limit"),
    ("InvalidQuery", "get", dict(limit=10_001), "limit"),
    ("InvalidQuery", "get", dict(include=["nothing"]), "nothing"),
    ("InvalidQuery", "get", dict(ids=["a"], limit=5), "ids"),
    ("InvalidQuery", "get", dict(ids=["a"], order_by="x"), "ids"),
    ("InvalidQuery", "get", dict(order_by="-"), "order_by"),
    ("InvalidQuery", "get", dict(order_by=5), "order_by"),
    ("InvalidQuery", "get", dict(min_sequence="a"), "min_sequence"),
    ("InvalidQuery", "count", dict(min_sequence=-1), "min_sequence"),
    ("InvalidFilter", "get", dict(filter={"$or": []}), r"\$or"),
    ("InvalidFilter", "get", dict(filter=""), "empty"),
    ("InvalidFilter", "query", dict(vectors=ONES, filter=" "), "empty"),
    ("InvalidFilter", "count", dict(filter="\n"), "empty"),
    ("InvalidFilter", "delete", dict(filter=""), "empty"),
    ("InvalidFilter", "delete", dict(filter=b""), "filter"),
    ("InvalidFilter", "delete", dict(ids=["a"], filter=""), "empty"),
    ("InvalidFilter", "count", dict(filter={"x": {"$in": 1}}), r"\$in"),
    ("InvalidFilter", "delete", dict(filter={"x": {"$regex": "("}}), r"\$regex"),
    ("InvalidBatch", "delete", dict(), "filter"),
    ("InvalidBatch", "delete", dict(ids=[]), "empty"),
    ("InvalidBatch", "get", dict(ids=[]), "empty"),
    ("InvalidBatch", "update", dict(ids=["a", "a"]), "'a'"),
    ("InvalidQuery", "update", dict(ids=["a"], clear=["vector"]), "vector"),
    ("InvalidVector", "update", dict(ids=["a"], vectors=[[1, 2]]), "dimension"),
]  # fmt: skip


@pytest.fixture
def docs(backend):
    made = backend.db.create_collection("docs", dimension=3)
    made.insert(["a", "kept"], [[1, 2, 3], [3, 2, 1]], metadata=[{"x": 1}, {"x": 2}])
    return made


def refused(backend, name, call, match):
    """`call` raises the error of that name, with a text that says something."""
    with pytest.raises(getattr(backend.errors, name), match=match or None) as caught:
        call()
    if name != "LimitExceeded":
        assert isinstance(caught.value, backend.errors.InvalidArgument)
        assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) > 20


def unchanged(docs):
    """The two records of the fixture, and nothing else."""
    got = docs.get(limit=10, include=["vector", "metadata"])
    assert got.ids == ["a", "kept"]
    assert got.vectors.tolist() == [[1, 2, 3], [3, 2, 1]]
    assert got.metadata == [{"x": 1}, {"x": 2}]
    assert docs.check().ok


@pytest.mark.parametrize("verb", ["insert", "upsert"])
def test_bad_batches_write_nothing(backend, docs, verb):
    """Each kind of bad batch is refused with its error, and the collection stays as it was."""
    for name, arguments, match in BAD_BATCHES:
        refused(backend, name, lambda a=arguments: getattr(docs, verb)(**a), match)
    unchanged(docs)


def test_bad_queries(backend, docs):
    """Each kind of bad query is refused with its error."""
    for name, arguments, match in BAD_QUERIES:
        refused(backend, name, lambda a=arguments: docs.query(**a), match)
    unchanged(docs)


def test_bad_reads_and_writes_by_id_or_filter(backend, docs):
    """Each kind of bad get, count, delete and update is refused with its error."""
    for name, verb, arguments, match in BAD_READS:
        refused(backend, name, lambda v=verb, a=arguments: getattr(docs, v)(**a), match)
    unchanged(docs)


def test_an_empty_mapping_matches_everything(backend, docs):
    """`{}` is a filter that all records match; an empty text is none, see above."""
    assert docs.count({}) == docs.count("{}") == 2
    assert docs.get(filter={}).ids == ["a", "kept"]
    assert docs.delete(filter={}).count == 2
    assert docs.count() == 0


@pytest.mark.parametrize(
    "arguments",
    [
        dict(batch_size=0),
        dict(slices=0),
        dict(slice_index=3, slices=3),
        dict(cursor="???"),
        dict(filter=[1]),
        dict(filter=""),
    ],
)
def test_bad_scans(backend, docs, arguments):
    """A bad scan is refused before its first batch."""
    with pytest.raises(backend.errors.InvalidArgument):
        list(docs.scan(**arguments))


def test_a_malformed_filter_names_the_path(backend, docs):
    """The error of a filter leads to the fault."""
    with pytest.raises(backend.errors.InvalidFilter) as caught:
        docs.count({"$and": [{"x": 1}, {"y": {"$in": [1, {"z": 2}]}}]})
    assert caught.value.details["path"] == "$.$and[1].y.$in[1]"


def test_values_that_break_the_schema_are_refused(backend):
    """A declared path takes its type only, in insert and in update."""
    docs = backend.db.create_collection(
        "typed", dimension=1, schema={"year": "int", "tags": "string[]"}
    )
    docs.insert(["a"], [[1.0]], metadata=[{"year": 2020, "tags": ["x"], "free": 1.5}])
    for bad in ({"year": "2020"}, {"year": 2020.5}, {"tags": "x"}, {"tags": [1]}):
        with pytest.raises(backend.errors.InvalidMetadata):
            docs.insert(["b"], [[1.0]], metadata=[bad])
        with pytest.raises(backend.errors.InvalidMetadata):
            docs.update(["a"], metadata=[bad])
    assert docs.get(["a", "b"]).metadata == [{"year": 2020, "tags": ["x"], "free": 1.5}]


def test_an_unknown_collection_is_named(backend):
    """A call for a collection that is not there says which one."""
    with pytest.raises(backend.errors.CollectionNotFound, match="nowhere"):
        backend.db.get_collection("nowhere")
    with pytest.raises(backend.errors.CollectionNotFound, match="nowhere"):
        backend.db.drop_collection("nowhere")
    assert issubclass(backend.errors.CollectionNotFound, LookupError)


def test_an_unknown_setting_is_refused(backend):
    """A keyword that is no setting is refused, not passed over."""
    with pytest.raises(TypeError):
        backend.db.create_collection("docs", dimension=3, shards=4)


def test_empty_and_wrong_names_are_not_found(backend, docs):
    """Names and ids that cannot exist are refused as unknown, never as a bug."""
    db, errors = backend.db, backend.errors
    wrong = (errors.CollectionNotFound, errors.InvalidName, errors.InvalidArgument)
    for name in ("", "x" * 600, "ä"):
        for call in (
            lambda n=name: db.get_collection(n),
            lambda n=name: db.drop_collection(n),
            lambda n=name: db.rename_collection(n, "y"),
            lambda n=name: db.set_alias("y", n),
        ):
            with pytest.raises(wrong):
                call()
        with pytest.raises((errors.AliasNotFound, errors.InvalidArgument)):
            db.drop_alias(name)
    assert docs.count({"id": ""}) == 0
    assert docs.count({"id": {"$in": ["", "a"]}}) == 1
    unchanged(docs)


def test_answers_to_many_wide_queries_stay_small(backend, docs):
    """A large k on a small collection costs what the collection holds."""
    found = docs.query(np.ones((500, 3)), k=10_000)
    assert [len(ids) for ids in found.ids] == [2] * 500
    assert found.distances.shape == (500, 10_000)


def test_an_exact_batch_ends_at_the_deadline(backend):
    """A large batch of exact queries is given up when the caller no longer waits."""
    big = backend.db.create_collection("big", dimension=128, index="exact")
    vectors = np.random.default_rng(2).standard_normal((8_000, 128), dtype=np.float32)
    big.insert([f"r{i}" for i in range(8_000)], vectors)
    with pytest.raises(backend.errors.DeadlineExceeded):
        big.query(vectors, k=10, exact=True, timeout_s=0.05)
    assert big.query(vectors[:1], k=1).ids == [["r0"]]
