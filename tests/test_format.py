"""Databases saved by each version of the format are opened in every test run, for ever."""

from __future__ import annotations

import datetime as dt
import tarfile
from pathlib import Path

import numpy as np
import pytest

import vecdb
from vecdb import layout

SAVED = sorted((Path(__file__).parent / "data").glob("format-*.tar.gz"))


def test_every_format_has_a_saved_database():
    """The present format and all before it are under tests/data."""
    numbers = {int(path.name.split("-")[1].split(".")[0]) for path in SAVED}
    assert numbers == set(range(1, layout.COLLECTION_FORMAT + 1))


@pytest.mark.parametrize("path", SAVED, ids=lambda path: path.name)
def test_a_saved_database_opens_and_holds_what_was_stored(path, tmp_path):
    """Records, settings, aliases, dead rows and the index of an older database are all there."""
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    vectors = (np.sin(np.arange(4_800, dtype=np.float64).reshape(1_200, 4)) * 10).astype(np.float32)
    with vecdb.open(tmp_path / "data", auto_build=False) as db:
        assert [i.name for i in db.list_collections()] == ["docs", "half"]
        assert db.list_aliases() == {"alias": "docs"}
        docs = db.get_collection("alias")
        assert (docs.info.metric, docs.info.index, dict(docs.info.schema)) == (
            "l2",
            "hnsw",
            {"n": "int"},
        )
        assert docs.count() == 1_199
        assert docs.count({"n": {"$gte": 600}}) == 600
        stats = docs.stats()
        assert (stats.sequence, stats.rows) == (4, 1_202)
        assert (stats.index.kind, stats.index.indexed_rows) == ("hnsw", 1_200)
        found = docs.query(vectors[500:510], k=1)
        assert found.ids == [[f"r{n}"] for n in range(500, 510)]
        assert docs.query(vectors[0], k=1).ids != [["r0"]]
        got = docs.get(
            ["x" * 1_000, "r2"], include=["vector", "metadata", "document", "content", "uri"]
        )
        assert got.metadata == [
            {"when": dt.datetime(2026, 1, 31, tzinfo=dt.UTC), "tags": ["a", 1], "d": {"e": 1.5}},
            {"new": True},
        ]
        assert (got.documents, got.uris) == (["grün", None], ["file:///x", None])
        assert got.contents == [vecdb.Content(b"\x00\xff", "image/png"), None]
        assert np.array_equal(got.vectors, [[1, 2, 3, 4], vectors[2]])
        assert docs.check().ok
        assert db.get_collection("half").query([[1, 2, 3, 4]], k=1).ids == [["a"]]
        assert docs.upsert(["r0"], [[0, 0, 0, 0]]).sequence == 5
        assert docs.check().ok
