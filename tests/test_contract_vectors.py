"""Vectors of more kinds: named ones beside the record's own, integers and bits."""

from __future__ import annotations

import numpy as np
import pytest

FIELDS = {
    "title": {"dimension": 2, "metric": "l2"},
    "bits": {"dimension": 16, "metric": "hamming", "storage": "binary"},
    "small": {"dimension": 3, "metric": "ip", "storage": "int8"},
}
ALL = ["vector", "named_vectors"]


@pytest.fixture
def docs(backend):
    return backend.db.create_collection("docs", dimension=3, metric="l2", vectors=FIELDS)


def named_of(records):
    """Name to list of vectors, None for a record without."""
    return {
        name: [
            row if there else None
            for row, there in zip(rows.tolist(), records.named_present[name].tolist(), strict=True)
        ]
        for name, rows in records.named_vectors.items()
    }


def test_settings_of_named_vectors_come_back(backend):
    """A collection tells the settings of each named vector field, those by default among them."""
    made = backend.db.create_collection(
        "docs",
        dimension=8,
        quantization="sq8",
        vectors={
            "a": backend.types.VectorSettings(4, metric="ip", index="ivf", quantization="pq4"),
            "b": {"dimension": 16, "storage": "binary", "metric": "hamming"},
        },
    )
    info = backend.db.get_collection("docs").info
    assert info == made.info
    assert info.quantization == "sq8"
    assert list(info.vectors) == ["a", "b"]
    first, second = info.vectors.values()
    assert (first.dimension, first.metric, first.storage) == (4, "ip", "float32")
    assert (first.index, first.quantization, first.target_recall) == ("ivf", "pq4", 0.95)
    assert (second.dimension, second.metric, second.storage) == (16, "hamming", "binary")
    again = dict(info.vectors)
    backend.db.create_collection(
        "docs", dimension=8, quantization="sq8", vectors=again, exist_ok=True
    )
    for change in (
        {"quantization": "none", "vectors": again},
        {"quantization": "sq8"},
        {"quantization": "sq8", "vectors": {"a": again["a"], "b": {"dimension": 4}}},
    ):
        with pytest.raises(backend.errors.CollectionExists, match=r"vectors|quantization"):
            backend.db.create_collection("docs", dimension=8, exist_ok=True, **change)


@pytest.mark.parametrize(
    "settings",
    [
        {"storage": "binary"},
        {"metric": "hamming"},
        {"storage": "binary", "metric": "hamming", "dimension": 12},
        {"storage": "int8", "quantization": "sq8"},
        {"storage": "binary", "metric": "hamming", "quantization": "float16"},
        {"quantization": "pq"},
        {"quantization": "pq4", "index": "hnsw"},
        {"quantization": "pq8", "index": "exact"},
        {"storage": "uint8", "quantization": "pq8", "index": "ivf"},
        {"vectors": {"a": {"dimension": 0}}},
        {"vectors": {"a": {"dimension": 3, "metric": "hamming"}}},
        {"vectors": {"vector": {"dimension": 3}}},
        {"vectors": {"a/b": {"dimension": 3}}},
        {"vectors": {f"f{i}": {"dimension": 3} for i in range(17)}},
    ],
)
def test_settings_that_do_not_fit_together_are_refused(backend, settings):
    """Bits go with hamming only, codes with numbers only; names of fields follow the rule of names."""
    with pytest.raises((backend.errors.InvalidSetting, backend.errors.InvalidName)):
        backend.db.create_collection("docs", **{"dimension": 16, **settings})
    assert backend.db.list_collections() == []


def test_named_vectors_come_back_as_they_were_given(docs):
    """A record has any of the named vectors or none; arrays and lists with None say which."""
    bits = np.packbits(np.arange(32).reshape(2, 16) % 3 == 0, axis=1)
    docs.insert(
        ["a", "b"],
        np.eye(3)[:2],
        named_vectors={
            "title": [[1.5, 2], None],
            "bits": bits,
            "small": [None, [-128, 0, 127]],
        },
    )
    docs.insert(["c"], [[0, 0, 1]])
    got = docs.get(["c", "b", "a"], include=ALL)
    assert got.vectors.tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert named_of(got) == {
        "title": [None, None, [1.5, 2]],
        "bits": [None, bits[1].tolist(), bits[0].tolist()],
        "small": [None, [-128, 0, 127], None],
    }
    assert got.named_vectors["title"].dtype == np.float32
    assert np.isnan(got.named_vectors["title"][:2]).all()
    assert got.named_vectors["bits"].dtype == np.uint8
    assert got.named_vectors["small"].dtype == np.float32
    assert [sorted(record.named_vectors) for record in got] == [
        [], ["bits", "small"], ["bits", "title"],
    ]  # fmt: skip
    assert docs.get(["a"], include=["vector"]).named_vectors is None
    scanned = next(iter(docs.scan(include=ALL)))
    assert named_of(scanned)["title"] == [[1.5, 2], None, None]
    assert docs.check().ok


def test_update_leaves_named_vectors_that_are_not_given(docs):
    """update replaces the named vectors it is given; None and fields not named stay as they were."""
    docs.insert(
        ["a", "b"],
        np.ones((2, 3)),
        named_vectors={"title": [[1, 1], [2, 2]], "small": [[1, 2, 3], None]},
    )
    docs.update(["a", "b"], named_vectors={"title": [None, [9, 9]], "bits": [[1, 2], None]})
    docs.update(["b"], metadata=[{"x": 1}])
    got = docs.get(["a", "b"], include=["named_vectors", "vector", "metadata"])
    assert named_of(got) == {
        "title": [[1, 1], [9, 9]],
        "bits": [[1, 2], None],
        "small": [[1, 2, 3], None],
    }
    assert (got.vectors.tolist(), got.metadata) == ([[1, 1, 1]] * 2, [{}, {"x": 1}])
    docs.upsert(["a"], [[1, 1, 1]])
    assert named_of(docs.get(["a"], include=ALL)) == {
        "title": [None], "bits": [None], "small": [None],
    }  # fmt: skip


def test_a_named_field_is_searched_by_its_name(backend, docs):
    """A query by a field finds the nearest records that have it, after updates and deletes too."""
    docs.insert(
        list("abcd"),
        np.ones((4, 3)),
        metadata=[{"n": n} for n in range(4)],
        named_vectors={
            "title": [[0, 0], None, [2, 0], [5, 0]],
            "bits": [[0, 0], [255, 0], [255, 255], None],
        },
    )
    found = docs.query([[4, 0]], vector_name="title", k=10)
    assert found.ids == [["d", "c", "a"]]
    assert found.distances[0, :3].tolist() == [1, 4, 16]
    assert docs.query([[15, 0]], vector_name="bits", k=2).distances.tolist() == [[4, 4]]
    assert docs.query([[4, 0]], vector_name="title", k=2, filter={"n": {"$lt": 3}}).ids == [
        ["c", "a"]
    ]
    assert docs.query(ids=["c"], vector_name="bits", k=3).ids == [["b", "a"]]
    docs.update(["b"], named_vectors={"title": [[4, 0]]})
    docs.delete(["d"])
    docs.upsert(["a"], [[1, 1, 1]])
    assert docs.query([[4, 0]], vector_name="title", k=10).ids == [["b", "c"]]
    assert docs.query([[1, 1, 1]], k=10).ids[0] != []
    assert docs.count() == 3
    for call in (
        lambda: docs.query([[1, 2]], vector_name="nothing"),
        lambda: docs.query([[1, 2, 3]], vector_name="title"),
        lambda: docs.query(ids=["a"], vector_name="title"),
    ):
        with pytest.raises(backend.errors.InvalidArgument):
            call()


def test_bad_named_vectors_write_nothing(backend, docs):
    """Each kind of bad named vector is refused with the record and the field in the message."""
    docs.insert(["kept"], [[1, 2, 3]], named_vectors={"title": [[1, 2]]})
    ones = np.ones((2, 3))
    for name, named, match in (
        ("InvalidBatch", {"nothing": [[1, 2], [3, 4]]}, "nothing"),
        ("InvalidBatch", {"title": [[1, 2]]}, "title"),
        ("InvalidVector", {"title": [[1, 2], [1, 2, 3]]}, ""),
        ("InvalidVector", {"title": [None, [1, 2, 3]]}, "'b'.*title"),
        ("InvalidVector", {"title": [[1, 2], [1, np.nan]]}, "'b'.*title.*NaN"),
        ("InvalidVector", {"small": [[1, 2, 3], [1, 2, 128]]}, "'b'.*small.*127"),
        ("InvalidVector", {"bits": [None, [1] * 16]}, "'b'.*bits.*packbits"),
    ):
        for verb in (docs.insert, docs.upsert):
            with pytest.raises(getattr(backend.errors, name), match=match or None):
                verb(["a", "b"], ones, named_vectors=named)
    with pytest.raises(backend.errors.InvalidVector):
        docs.update(["kept"], named_vectors={"title": [[1]]})
    assert docs.get(limit=10).ids == ["kept"]
    assert docs.stats().sequence == 1


@pytest.mark.parametrize(("storage", "low", "high"), [("int8", -128, 127), ("uint8", 0, 255)])
def test_whole_numbers_are_kept_exactly(backend, storage, low, high):
    """int8 and uint8 take whole numbers within range, given as integers or floats, and no others."""
    docs = backend.db.create_collection("whole", dimension=2, metric="l2", storage=storage)
    docs.insert(["a", "b"], [[low, high], [1.0, 2.0]])
    docs.insert(["c"], np.array([[3, 4]], np.int64))
    got = docs.get(["a", "b", "c"], include=["vector"])
    assert got.vectors.dtype == np.float32
    assert got.vectors.tolist() == [[low, high], [1, 2], [3, 4]]
    found = docs.query([[1.5, 2.0]], k=3)
    assert found.ids[0][:2] == ["b", "c"]
    assert found.distances[0, :2].tolist() == [0.25, 6.25]
    for bad in ([[low - 1, 0]], [[0, high + 1]], [[0.5, 0]], [[np.nan, 0]], [[0, 1e30]]):
        with pytest.raises(backend.errors.InvalidVector, match="'bad'"):
            docs.insert(["bad"], bad)
    assert docs.count() == 3


def test_bits_are_compared_by_hamming_distance(backend):
    """Packed bits come back as bytes, and distances are the numbers of bits that differ."""
    docs = backend.db.create_collection("bits", dimension=64, metric="hamming", storage="binary")
    bits = np.random.default_rng(3).integers(0, 2, (50, 64), np.uint8)
    packed = np.packbits(bits, axis=1)
    docs.insert([f"r{i}" for i in range(50)], packed)
    got = docs.get(["r7", "r3"], include=["vector"])
    assert got.vectors.dtype == np.uint8
    assert got.vectors.tolist() == packed[[7, 3]].tolist()
    found = docs.query(packed[:5], k=50, include=["vector"])
    assert found.vectors[0].dtype == np.uint8
    for i in range(5):
        truth = (bits != bits[i]).sum(axis=1)
        assert found.distances[i].tolist() == sorted(truth.tolist())
        assert [truth[int(r[1:])] for r in found.ids[i]] == found.distances[i].tolist()
    for bad in (bits[:1], np.ones((1, 64)), [[256] + [0] * 7], [[0.5] + [0] * 7]):
        with pytest.raises(backend.errors.InvalidVector):
            docs.insert(["bad"], bad)
    with pytest.raises(backend.errors.InvalidQuery):
        docs.query(positive=["r1"])
    assert docs.count() == 50
