"""A hypothesis state machine against a dict and numpy: whatever is done, both agree."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import vecdb
from vecdb import errors

DIMENSION = 4
FIELDS_OF_VECTORS = {
    "title": {"dimension": 2, "metric": "l2"},
    "bits": {"dimension": 16, "metric": "hamming", "storage": "binary", "index": "hnsw"},
}
IDS = st.sampled_from([f"r{i}" for i in range(25)] + ["x" * 600 + str(i) for i in range(3)])
VECTORS = st.tuples(*[st.integers(-8, 8)] * DIMENSION).filter(any)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.5, 1.0]),
    st.sampled_from("abc"),
)
FIELDS = st.sampled_from(["p", "q", "deep.r"])
METADATA = st.dictionaries(
    FIELDS, SCALARS | st.lists(SCALARS.filter(lambda v: v is not None), max_size=2), max_size=3
)
NAMED = st.fixed_dictionaries(
    {
        "title": st.none() | st.tuples(*[st.integers(-8, 8)] * 2),
        "bits": st.none() | st.tuples(*[st.integers(0, 255)] * 2),
    }
)
DOCUMENTS = st.none() | st.sampled_from(["", "red apple", "green apple", "pear"])


class Machine(RuleBasedStateMachine):
    """`self.model` maps id to (vector, metadata, document, named vectors) in row order: the newest
    version last."""

    @initialize(
        metric=st.sampled_from(["cosine", "l2", "ip"]),
        storage=st.sampled_from(["float32", "float16", "int8", "uint8", "binary"]),
        index=st.sampled_from(["auto", "exact", "hnsw"]),
        named=st.booleans(),
    )
    def create(self, metric, storage, index, named):
        self.folder = Path(tempfile.mkdtemp(prefix="vecdb-model-"))
        self.open()
        self.binary = storage == "binary"
        self.signed = storage not in ("uint8", "binary")
        self.docs = self.db.create_collection(
            "docs",
            dimension=8 * DIMENSION if self.binary else DIMENSION,
            metric="hamming" if self.binary else metric,
            storage=storage,
            index=index,
            vectors=FIELDS_OF_VECTORS if named else None,
        )
        self.model = {}
        self.sequence = 0

    def open(self):
        self.db = vecdb.open(self.folder, map_initial_bytes=1 << 20, history_s=0.0)

    def stored(self, vector):
        """A drawn vector as numbers that the storage takes."""
        return vector if self.signed else tuple(abs(x) for x in vector)

    def named(self, drawn):
        """Drawn named vectors of a record, without those that the collection has no field for."""
        return {name: v for name, v in drawn.items() if name in self.docs.info.vectors}

    def teardown(self):
        if hasattr(self, "db"):
            assert self.docs.check().problems == ()
            self.db.close()
            shutil.rmtree(self.folder)

    def committed(self, result, count, changed=True):
        self.sequence += bool(changed)
        assert (result.sequence, result.count) == (self.sequence, count)

    def store(self, batch):
        for record_id, vector, metadata, document, named in batch:
            self.model.pop(record_id, None)
            clean = dict(metadata.items())
            self.model[record_id] = (vector, clean, document, named)

    @rule(
        batch=st.lists(
            st.tuples(IDS, VECTORS, METADATA, DOCUMENTS, NAMED),
            min_size=1,
            max_size=8,
            unique_by=lambda r: r[0],
        ),
        upsert=st.booleans(),
    )
    def put(self, batch, upsert):
        batch = [(i, self.stored(v), m, d, self.named(n)) for i, v, m, d, n in batch]
        ids, vectors, metadata, documents, named = map(list, zip(*batch, strict=True))
        arguments = dict(metadata=metadata, documents=documents, named_vectors=columns(named))
        verb = self.docs.upsert if upsert else self.docs.insert
        held = [i for i in ids if i in self.model]
        if held and not upsert:
            with pytest.raises(errors.RecordExists) as caught:
                verb(ids, vectors, **arguments)
            assert caught.value.details["ids"] == held
            return
        self.committed(verb(ids, vectors, **arguments), len(ids))
        self.store(batch)

    @rule(
        ids=st.lists(IDS, min_size=1, max_size=4, unique=True),
        patch=METADATA,
        vector=st.none() | VECTORS,
        named=NAMED,
        clear=st.booleans(),
    )
    def update(self, ids, patch, vector, named, clear):
        n = len(ids)
        vector = None if vector is None else self.stored(vector)
        named = self.named(named)
        arguments = dict(
            metadata=[patch] * n,
            vectors=None if vector is None else [vector] * n,
            named_vectors=columns([named] * n),
            clear=["document"] if clear else [],
        )
        missing = [i for i in ids if i not in self.model]
        if missing:
            with pytest.raises(errors.RecordNotFound) as caught:
                self.docs.update(ids, **arguments)
            assert caught.value.details["ids"] == missing
            return
        self.committed(self.docs.update(ids, **arguments), n)
        batch = []
        for record_id in ids:
            old_vector, metadata, document, old_named = self.model[record_id]
            merged = {
                k: v for k, v in {**metadata, **patch}.items() if not (k in patch and v is None)
            }
            batch.append(
                (
                    record_id,
                    old_vector if vector is None else vector,
                    merged,
                    None if clear else document,
                    {
                        name: v if named[name] is None else named[name]
                        for name, v in old_named.items()
                    },
                )
            )
        self.store(batch)

    @rule(ids=st.lists(IDS, min_size=1, max_size=5, unique=True))
    def delete_ids(self, ids):
        held = [i for i in ids if self.model.pop(i, None)]
        self.committed(self.docs.delete(ids), len(held), held)

    @rule(field=FIELDS, value=SCALARS.filter(lambda v: v is not None))
    def delete_by_filter(self, field, value):
        doomed = [i for i, (_, m, *_) in self.model.items() if equal(m.get(field), value)]
        for record_id in doomed:
            del self.model[record_id]
        self.committed(self.docs.delete(filter={field: value}), len(doomed), doomed)

    @rule(query=VECTORS, k=st.integers(1, 12), exact=st.booleans())
    def query(self, query, k, exact):
        query = self.stored(query)
        self.compare(self.docs.query([query], k=k, exact=exact), query, list(self.model), k)

    @precondition(lambda self: self.docs.info.vectors)
    @rule(
        title=st.tuples(*[st.integers(-8, 8)] * 2),
        bits=st.tuples(*[st.integers(0, 255)] * 2),
        k=st.integers(1, 12),
    )
    def query_named(self, title, bits, k):
        for name, query in (("title", title), ("bits", bits)):
            having = [i for i, record in self.model.items() if record[3][name] is not None]
            found = self.docs.query([query], vector_name=name, k=k)
            self.compare(found, query, having, k, name)

    @rule(
        query=VECTORS,
        field=FIELDS,
        value=SCALARS.filter(lambda v: v is not None),
        negate=st.booleans(),
    )
    def query_filtered(self, query, field, value, negate):
        query = self.stored(query)
        wanted = [i for i, (_, m, *_) in self.model.items() if equal(m.get(field), value) != negate]
        found = self.docs.query([query], k=5, filter={field: {"$ne" if negate else "$eq": value}})
        self.compare(found, query, wanted, 5)
        assert self.docs.count({field: {"$ne" if negate else "$eq": value}}) == len(wanted)

    @rule(word=st.sampled_from(["apple", "pear", "red", "", "zzz"]))
    def documents(self, word):
        wanted = [i for i, (_, _, d, _) in self.model.items() if d is not None and word in d]
        assert self.docs.get(filter={"$document": {"$contains": word}}).ids == wanted

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def get_one(self, data):
        record_id = data.draw(st.sampled_from(list(self.model)))
        vector, metadata, document, named = self.model[record_id]
        include = ["vector", "metadata", "document", "named_vectors"]
        got = self.docs.get([record_id], include=include)
        assert got.vectors[0].tolist() == list(vector)
        assert got.metadata == [metadata]
        assert got.documents == [document]
        held = {name: tuple(v.tolist()) for name, v in next(iter(got)).named_vectors.items()}
        assert held == {name: v for name, v in named.items() if v is not None}

    @rule()
    def reopen(self):
        self.db.close()
        self.open()
        self.docs = self.db.get_collection("docs")

    @rule()
    def rest(self):
        """Its files are closed until something needs them, unless something does."""
        self.docs._core.store._env.rest()

    @rule()
    def build(self):
        self.docs.build_index()

    @rule()
    def compact(self):
        self.docs.compact()
        stats = self.docs.stats()
        assert stats.purged_rows == stats.rows - stats.count
        assert self.docs.check().problems == ()

    @invariant()
    def same_records(self):
        if hasattr(self, "docs"):
            assert self.docs.count() == len(self.model)
            assert self.docs.get(limit=100, include=()).ids == list(self.model)

    def compare(self, found, query, wanted, k, name=None):
        """`found` holds the k nearest of `wanted`, ties in any order, by their own or a named vector."""
        ids, distances = found.ids[0], found.distances[0]
        assert len(ids) == min(k, len(wanted))
        assert len(set(ids)) == len(ids)
        assert set(ids) <= set(wanted)
        if not wanted:
            return
        v = np.asarray([self.model[i][3][name] if name else self.model[i][0] for i in wanted])
        metric = self.docs.info.vectors[name].metric if name else self.docs.info.metric
        near = plain_distances(np.asarray(query), v, metric)
        place = {i: n for n, i in enumerate(wanted)}
        assert np.allclose(distances[: len(ids)], near[[place[i] for i in ids]], atol=1e-4)
        assert np.allclose(distances[: len(ids)], np.sort(near)[: len(ids)], atol=1e-4)


def plain_distances(q, v, metric):
    if metric == "hamming":
        return np.unpackbits((q ^ v).astype(np.uint8), axis=1).sum(axis=1)
    if metric == "l2":
        return ((v - q) ** 2).sum(axis=1)
    if metric == "ip":
        return 1 - v @ q
    return 1 - (v @ q) / np.linalg.norm(v, axis=1) / np.linalg.norm(q)


def columns(named):
    """Named vectors by record as columns by field; None where the collection has no fields."""
    return {name: [record[name] for record in named] for name in named[0]} or None


def equal(held, value):
    """The filter rule: types never mix except int and float; a list matches by any element."""
    if isinstance(held, list):
        return any(equal(h, value) for h in held)
    if isinstance(held, bool) or isinstance(value, bool):
        return held is value
    return held is not None and isinstance(held, str) == isinstance(value, str) and held == value


Machine.TestCase.settings = settings(suppress_health_check=list(HealthCheck))
test_model = Machine.TestCase
