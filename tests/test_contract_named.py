"""Vectors of every kind, embedded and through both clients: integers, packed bits, named fields,
and how the index codes them."""

from __future__ import annotations

import numpy as np
import pytest
from plain_search import expect, plain_distances

N, D = 300, 16
IDS = [f"r{i}" for i in range(N)]


@pytest.fixture
def rng():
    return np.random.default_rng(20260101)


# --- integers and bits


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
@pytest.mark.parametrize("storage", ["int8", "uint8"])
def test_small_integers_are_searched_as_numbers(backend, rng, storage, metric):
    """int8 and uint8 vectors come back as they were, and queries may be any numbers."""
    bounds = np.iinfo(storage)
    vectors = rng.integers(bounds.min, bounds.max + 1, (N, D)).astype(storage)
    docs = backend.db.create_collection("docs", dimension=D, metric=metric, storage=storage)
    assert docs.info.storage == storage
    docs.insert(IDS, vectors)
    got = docs.get(IDS, include=["vector"]).vectors
    assert got.dtype == np.float32
    assert np.array_equal(got, vectors)
    for queries in (rng.standard_normal((5, D)).astype(np.float32) * 50, vectors[:5]):
        expect(docs.query(queries, k=7), plain_distances(queries, vectors, metric), 7)
    near = plain_distances(vectors[3:4], vectors, metric)
    near[0, 3] = np.inf
    expect(docs.query(ids=["r3"], k=2), near, 2)


@pytest.mark.parametrize("storage", ["int8", "uint8"])
def test_forms_of_small_integers(backend, storage):
    """Lists, floats with whole values and other integer types are stored; the rest is refused."""
    docs = backend.db.create_collection("docs", dimension=2, metric="l2", storage=storage)
    for i, given in enumerate(([1, 2], np.array([1.0, 2.0]), np.array([1, 2], np.int64))):
        docs.insert([f"r{i}"], [given])
    assert docs.query([1, 2], k=3).distances.tolist() == [[0, 0, 0]]
    high = np.iinfo(storage).max
    for wrong in ([high + 1, 0], [np.iinfo(storage).min - 1, 0], [0.5, 0], [np.nan, 0], [1e30, 0]):
        with pytest.raises(backend.errors.InvalidVector, match="r9"):
            docs.upsert(["r9"], [wrong])
        with pytest.raises(backend.errors.InvalidVector):
            docs.update(["r0"], vectors=[wrong])
    docs.update(["r0"], vectors=[[high, 0]])
    assert docs.get(["r0"], include=["vector"]).vectors.tolist() == [[high, 0]]
    assert docs.count() == 3


def test_packed_bits_are_searched_by_hamming(backend, rng):
    """Binary vectors are packed bits both ways, and distances are numbers of bits that differ."""
    vectors = rng.integers(0, 256, (N, D), dtype=np.uint8)
    docs = backend.db.create_collection("docs", dimension=8 * D, metric="hamming", storage="binary")
    docs.insert(IDS, vectors)
    got = docs.get(["r5", "r2"], include=["vector"]).vectors
    assert got.dtype == np.uint8
    assert np.array_equal(got, vectors[[5, 2]])
    queries = rng.integers(0, 256, (5, D), dtype=np.uint8)
    near = plain_distances(queries, vectors, "hamming")
    found = docs.query(queries, k=9, include=["vector"])
    expect(found, near, 9, tolerance=0)
    assert found.distances.dtype == np.float32
    for i, rows in enumerate(found.vectors):
        assert rows.dtype == np.uint8
        assert np.array_equal(rows, vectors[[int(name[1:]) for name in found.ids[i]]])
    within = docs.query(queries[:1], max_distance=60)
    assert set(within.ids[0]) == {IDS[row] for row in np.flatnonzero(near[0] <= 60)}
    bits = np.unpackbits(vectors[0])
    assert docs.query(np.packbits(bits), k=1).ids == [["r0"]]
    pages = list(docs.scan(include=["vector"], batch_size=100))
    assert np.array_equal(np.concatenate([page.vectors for page in pages]), vectors)


def test_what_bits_are_not(backend):
    """A width, metric, storage or dimension that does not fit bits is a typed error."""
    errors, create = backend.errors, backend.db.create_collection
    for settings in (
        {"dimension": 12, "metric": "hamming", "storage": "binary"},
        {"dimension": 16, "metric": "cosine", "storage": "binary"},
        {"dimension": 16, "metric": "hamming"},
        {"dimension": 16, "metric": "hamming", "storage": "binary", "quantization": "sq8"},
        {"dimension": 16, "storage": "int8", "quantization": "pq4"},
    ):
        with pytest.raises(errors.InvalidSetting):
            create("docs", **settings)
    docs = create("docs", dimension=16, metric="hamming", storage="binary")
    for wrong in ([[1, 2, 3]], [[1] * 16], [[256, 0]], [[-1, 0]], [[0.5, 0]]):
        with pytest.raises(errors.InvalidVector):
            docs.insert(["a"], wrong)
        with pytest.raises(errors.InvalidVector):
            docs.query(wrong)
    docs.insert(["a", "b"], [[1, 2], [255, 0]])
    with pytest.raises(errors.InvalidQuery):
        docs.query(positive=["a"])
    assert docs.query([1, 2], k=1).distances.tolist() == [[0]]


# --- how the index codes vectors


def test_quantization_is_a_setting(backend, rng):
    """Each way to code vectors can be chosen, is told back, and changes no stored vector."""
    vectors = rng.standard_normal((50, D)).astype(np.float32)
    for name in backend.types.QUANTIZATIONS:
        index = "ivf" if name in backend.types.LISTS_ONLY else "hnsw"
        docs = backend.db.create_collection(name, dimension=D, index=index, quantization=name)
        assert docs.info.quantization == name
        docs.insert(IDS[:50], vectors)
        assert np.array_equal(docs.get(IDS[:50], include=["vector"]).vectors, vectors)
        expect(docs.query(vectors[:3], k=5), plain_distances(vectors[:3], vectors, "cosine"), 5)
    told = {info.name: info.quantization for info in backend.db.list_collections()}
    assert told == {name: name for name in backend.types.QUANTIZATIONS}
    for wrong in ({"quantization": "sq2"}, {"quantization": "pq4", "index": "hnsw"},
                  {"quantization": "pq8", "index": "exact"}):  # fmt: skip
        with pytest.raises(backend.errors.InvalidSetting):
            backend.db.create_collection("docs", dimension=D, **wrong)


# --- named vectors

FIELDS = {
    "title": {"dimension": 8, "metric": "l2"},
    "body": {"dimension": 24, "metric": "ip", "storage": "float16"},
    "print": {"dimension": 32, "metric": "hamming", "storage": "binary"},
    "tally": {"dimension": 4, "metric": "cosine", "storage": "int8"},
}


class Named:
    """A collection with four vector fields, what is in it, and who has which."""

    def __init__(self, backend, rng):
        self.backend = backend
        self.vectors = {
            "title": rng.standard_normal((N, 8)).astype(np.float32),
            "body": rng.standard_normal((N, 24)).astype(np.float16),
            "print": rng.integers(0, 256, (N, 4), dtype=np.uint8),
            "tally": rng.integers(1, 100, (N, 4), dtype=np.int8),
        }
        self.present = {name: rng.random(N) < 0.6 for name in FIELDS}
        self.present["title"][:] = True
        self.own = rng.standard_normal((N, D)).astype(np.float32)
        self.docs = backend.db.create_collection("docs", dimension=D, vectors=FIELDS)
        self.docs.insert(
            IDS,
            self.own,
            metadata=[{"n": i} for i in range(N)],
            named_vectors={name: self.column(name) for name in FIELDS},
        )

    def column(self, name):
        """An array where every record has one, otherwise a list with None."""
        if self.present[name].all():
            return self.vectors[name]
        pairs = zip(self.vectors[name], self.present[name], strict=True)
        return [row if there else None for row, there in pairs]

    def near(self, name, queries):
        found = plain_distances(queries, self.vectors[name], FIELDS[name]["metric"])
        found[:, ~self.present[name]] = np.inf
        return found

    def expect_columns(self, records, rows):
        """Named vectors of `records` are those of `rows`; NaN, or zeros, where there are none."""
        assert set(records.named_vectors) == set(records.named_present) == set(FIELDS)
        for name in FIELDS:
            there, got = self.present[name][rows], records.named_vectors[name]
            assert got.dtype == (np.uint8 if name == "print" else np.float32)
            assert np.array_equal(records.named_present[name], there)
            assert np.array_equal(got[there], self.vectors[name][rows][there])
            absent = got[~there]
            assert (absent == 0).all() if name == "print" else np.isnan(absent).all()


@pytest.fixture
def named(backend, rng):
    return Named(backend, rng)


def test_settings_of_vector_fields(backend, named):
    """The fields of a collection keep their names, order, settings and defaults."""
    settings = backend.types.VectorSettings
    fields = backend.db.get_collection("docs").info.vectors
    assert list(fields) == list(FIELDS)
    assert dict(fields) == {name: settings(**given) for name, given in FIELDS.items()}
    stored = named.docs.stats().vectors
    assert {name: stats.target_recall for name, stats in stored.items()} == dict.fromkeys(
        FIELDS, 0.95
    )
    again = backend.db.create_collection(
        "docs", dimension=D, exist_ok=True, vectors={n: settings(**s) for n, s in FIELDS.items()}
    )
    assert again.info == named.docs.info
    with pytest.raises(backend.errors.CollectionExists):
        backend.db.create_collection("docs", dimension=D, exist_ok=True)


@pytest.mark.parametrize(
    ("vectors", "error"),
    [
        ({"a": {"dimension": 0}}, "InvalidSetting"),
        ({"a": {"dimension": 3, "metric": "hamming"}}, "InvalidSetting"),
        ({"a": {"dimension": 3, "colour": 1}}, "InvalidSetting"),
        ({"a": 3}, "InvalidSetting"),
        ([3], "InvalidSetting"),
        ({"no way": {"dimension": 3}}, "InvalidName"),
        ({"": {"dimension": 3}}, "InvalidName"),
        ({f"f{i}": {"dimension": 3} for i in range(17)}, "InvalidSetting"),
    ],
)
def test_vector_fields_that_are_refused(backend, vectors, error):
    """Names and settings that a field cannot have are typed errors; nothing is made."""
    with pytest.raises(getattr(backend.errors, error)):
        backend.db.create_collection("docs", dimension=3, vectors=vectors)
    assert backend.db.list_collections() == []


def test_named_vectors_are_read_back(named):
    """get, a page, scan and query give every named vector, and who lacks one."""
    rows = np.array([250, 3, 77])
    named.expect_columns(named.docs.get([IDS[r] for r in rows], include=["named_vectors"]), rows)
    page = named.docs.get(limit=40, order_by="-n", include=["named_vectors", "vector"])
    named.expect_columns(page, np.arange(N - 1, N - 41, -1))
    assert np.array_equal(page.vectors, named.own[::-1][:40])
    pages = list(named.docs.scan(include=["named_vectors"], batch_size=128))
    for page, start in zip(pages, (0, 128, 256), strict=True):
        named.expect_columns(page, np.arange(start, start + len(page)))
    first = next(iter(pages[0]))
    assert set(first.named_vectors) == {name for name in FIELDS if named.present[name][0]}
    found = named.docs.query(named.own[:3], k=6, include=["named_vectors"])
    for i in range(3):
        columns = {
            "named_vectors": {name: rows[i] for name, rows in found.named_vectors.items()},
            "named_present": {name: rows[i] for name, rows in found.named_present.items()},
        }
        rows = np.array([int(name[1:]) for name in found.ids[i]])
        named.expect_columns(type("Columns", (), columns), rows)
    hit = found.hits(0)[0]
    assert set(hit.named_vectors) == {name for name in FIELDS if named.present[name][0]}
    assert named.docs.get(IDS[:1]).named_vectors is None
    empty = named.docs.get(filter={"n": -1}, include=["named_vectors"])
    assert {name: rows.shape[0] for name, rows in empty.named_vectors.items()} == dict.fromkeys(
        FIELDS, 0
    )


@pytest.mark.parametrize("name", FIELDS)
def test_searches_of_a_named_field_equal_numpy(named, rng, name):
    """A field is searched by its own metric among the records that have it, with and without filter."""
    docs = named.docs
    queries = named.vectors[name][[5, 9]]
    expect(docs.query(queries, vector_name=name, k=8), named.near(name, queries), 8, 2e-3)
    near = named.near(name, queries)
    near[:, 40:] = np.inf
    found = docs.query(queries, vector_name=name, k=100, filter={"n": {"$lt": 40}})
    expect(found, near, 100, 2e-3)
    exact = docs.query(queries, vector_name=name, k=8, exact=True)
    expect(exact, named.near(name, queries), 8, 2e-3)


def test_query_by_ids_in_a_named_field(named):
    """Stored records are looked up in the field that is searched, and left out of their answers."""
    found = named.docs.query(ids=["r4", "r8"], vector_name="title", k=5)
    near = named.near("title", named.vectors["title"][[4, 8]])
    near[[0, 1], [4, 8]] = np.inf
    expect(found, near, 5)


def test_updates_deletes_and_upserts_of_named_vectors(named, rng):
    """update changes the fields that are given, upsert replaces the record, delete takes all."""
    docs, vectors, present = named.docs, named.vectors, named.present
    vectors["title"][7] = 9
    body_of_8 = np.full(24, 2, np.float16)
    docs.update(
        ["r7", "r8"],
        named_vectors={"title": [vectors["title"][7], None], "body": [None, body_of_8]},
    )
    vectors["body"][8], present["body"][8] = body_of_8, True
    docs.upsert(["r9"], named.own[9:10])
    docs.upsert(["r10"], named.own[10:11], named_vectors={"print": vectors["print"][10:11]})
    for name in FIELDS:
        present[name][9] = False
        present[name][10] = name == "print"
    docs.delete(["r11"])
    for name in FIELDS:
        present[name][11] = False
    rows = np.array([6, 7, 8, 9, 10, 12])
    named.expect_columns(docs.get([IDS[r] for r in rows], include=["named_vectors"]), rows)
    for name in FIELDS:
        queries = vectors[name][[7, 8, 10]]
        expect(docs.query(queries, vector_name=name, k=12), named.near(name, queries), 12, 2e-3)
    assert docs.check().ok


def test_named_vectors_that_are_refused(backend, named):
    """Unknown fields, wrong widths, wrong counts and bad numbers are typed errors; nothing is written."""
    errors, own = backend.errors, named.own[:2]
    fine = np.ones((2, 8), np.float32)
    for given, error in (
        ({"other": fine}, errors.InvalidBatch),
        ({"title": fine[:1]}, errors.InvalidBatch),
        ({"title": [fine[0], None, None]}, errors.InvalidBatch),
        ({"title": np.ones((2, 9))}, errors.InvalidVector),
        ({"title": [fine[0], np.full(8, np.nan)]}, errors.InvalidVector),
        ({"tally": np.full((2, 4), 200)}, errors.InvalidVector),
        ({"tally": np.zeros((2, 4), np.int8)}, errors.InvalidVector),
        ([fine], errors.InvalidBatch),
    ):
        with pytest.raises(error):
            named.docs.insert(["new", "newer"], own, named_vectors=given)
        with pytest.raises(error):
            named.docs.update(["r0", "r1"], named_vectors=given)
    for name in ("other", "", 3):
        with pytest.raises(errors.InvalidQuery):
            named.docs.query(fine, vector_name=name)
    with pytest.raises(errors.InvalidVector):
        named.docs.query(named.own[:1], vector_name="title")
    assert named.docs.count() == N


def test_a_collection_without_fields_has_no_named_vectors(backend):
    """Where no field is named, the column is there when asked for, and empty."""
    docs = backend.db.create_collection("docs", dimension=2)
    docs.insert(["a"], [[1, 2]])
    got = docs.get(["a"], include=["named_vectors"])
    assert (got.named_vectors, got.named_present) == ({}, {})
    assert docs.query([1, 2], k=1, include=["named_vectors"]).named_vectors == {}
    assert dict(docs.info.vectors) == {}
    assert dict(docs.stats().vectors) == {}


def test_an_index_for_each_field(backend, rng):
    """Every field gets an index of its own kind, and reaches its recall."""
    own = rng.standard_normal((4_000, 8)).astype(np.float32)
    title = rng.standard_normal((4_000, 12)).astype(np.float32)
    docs = backend.db.create_collection(
        "docs",
        dimension=8,
        index="hnsw",
        vectors={"title": {"dimension": 12, "index": "ivf", "metric": "l2"}},
    )
    ids = [f"r{i}" for i in range(4_000)]
    docs.insert(ids, own, named_vectors={"title": title})
    docs.build_index()
    stats = docs.stats()
    assert (stats.index.kind, stats.vectors["title"].kind) == ("hnsw", "ivf")
    assert stats.vectors["title"].indexed_rows == 4_000
    near = plain_distances(title[:50], title, "l2")
    found = docs.query(title[:50], vector_name="title", k=10)
    wanted = [{ids[row] for row in np.argsort(row)[:10]} for row in near]
    shared = [len(want & set(got)) for want, got in zip(wanted, found.ids, strict=True)]
    assert sum(shared) >= 0.9 * 500


def test_ingest_carries_named_vectors(backend, named):
    """What a scan gives can be written into another collection as it is."""
    if backend.name == "embedded":
        pytest.skip("ingest is a verb of the clients")
    copy = backend.db.create_collection("copy", dimension=D, vectors=FIELDS)
    pages = list(named.docs.scan(include=["vector", "metadata", "named_vectors"], batch_size=70))
    assert sum(ack.count for ack in copy.ingest(pages)) == N
    named.expect_columns(copy.get(IDS, include=["named_vectors"]), np.arange(N))


def test_a_cut_batch_keeps_named_vectors_beside_their_records(backend, named):
    """A batch that travels in many messages keeps its gaps where they are."""
    if backend.name == "embedded":
        pytest.skip("batches are cut by the clients")
    columns = {name: named.column(name) for name in FIELDS}
    named.docs.upsert(IDS, named.own, named_vectors=columns, batch_size=7)
    named.expect_columns(named.docs.get(IDS, include=["named_vectors"]), np.arange(N))
