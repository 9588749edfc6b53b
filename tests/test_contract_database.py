"""Collections and aliases: the same promises embedded and through both clients."""

from __future__ import annotations

import datetime as dt

import pytest


def test_create_get_list_and_drop(backend):
    """A collection is there with its settings once made, and gone once dropped."""
    before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=5)
    made = backend.db.create_collection(
        "docs",
        dimension=3,
        metric="l2",
        storage="float16",
        index="hnsw",
        target_recall=0.9,
        schema={"year": "int", "tags": "string[]"},
        description="what it is for",
    )
    backend.db.create_collection("a-second", dimension=7)
    info = backend.db.get_collection("docs").info
    assert info == made.info
    assert (info.name, info.dimension, info.metric, info.storage) == ("docs", 3, "l2", "float16")
    assert (info.index, info.target_recall) == ("hnsw", 0.9)
    assert dict(info.schema) == {"year": "int", "tags": "string[]"}
    assert info.description == "what it is for"
    assert before <= info.created_at <= dt.datetime.now(dt.UTC) + dt.timedelta(seconds=5)
    assert [i.name for i in backend.db.list_collections()] == ["a-second", "docs"]
    second = backend.db.list_collections()[0]
    assert (second.metric, second.storage, second.index) == ("cosine", "float32", "auto")
    assert second.target_recall == 0.95
    backend.db.drop_collection("docs")
    assert [i.name for i in backend.db.list_collections()] == ["a-second"]
    with pytest.raises(backend.errors.CollectionNotFound, match="docs"):
        backend.db.get_collection("docs")


def test_a_dropped_collection_refuses_and_leaves_no_files(backend):
    """A handle to a dropped collection raises a typed error, and its folder is gone."""
    docs = backend.db.create_collection("docs", dimension=2)
    docs.insert(["a"], [[1, 2]])
    backend.db.drop_collection("docs")
    with pytest.raises((backend.errors.Closed, backend.errors.CollectionNotFound)):
        docs.count()
    assert list((backend.folder / "collections").iterdir()) == []


def test_a_name_can_be_used_again_after_a_drop(backend):
    """A new collection under an old name starts empty, with its own settings."""
    backend.db.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
    backend.db.drop_collection("docs")
    docs = backend.db.create_collection("docs", dimension=3)
    assert docs.count() == 0
    assert docs.insert(["a"], [[1, 2, 3]]).sequence == 1


def test_create_refuses_a_taken_name(backend):
    """A second collection of one name is an error, unless exist_ok and all settings agree."""
    db, errors = backend.db, backend.errors
    db.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
    db.set_alias("other", "docs")
    for name in ("docs", "other"):
        with pytest.raises(errors.CollectionExists, match=name):
            db.create_collection(name, dimension=2)
    assert db.create_collection("docs", dimension=2, exist_ok=True).count() == 1
    with pytest.raises(errors.CollectionExists, match="dimension"):
        db.create_collection("docs", dimension=3, exist_ok=True)


def test_rename(backend):
    """Records and aliases follow a rename; the old name is free; a taken name is refused."""
    db, errors = backend.db, backend.errors
    db.create_collection("old", dimension=2).insert(["a"], [[1, 2]])
    db.create_collection("taken", dimension=2)
    db.set_alias("current", "old")
    with pytest.raises(errors.CollectionExists, match="taken"):
        db.rename_collection("old", "taken")
    db.rename_collection("old", "new")
    assert db.get_collection("new").count() == 1
    assert db.get_collection("current").info.name == "new"
    assert db.list_aliases() == {"current": "new"}
    with pytest.raises(errors.CollectionNotFound, match="old"):
        db.get_collection("old")
    with pytest.raises(errors.CollectionNotFound, match="old"):
        db.rename_collection("old", "newer")
    with pytest.raises(errors.InvalidName):
        db.rename_collection("new", "no/slash")


def test_aliases(backend):
    """An alias stands for a collection in every verb, moves in one step, and ends with it."""
    db, errors = backend.db, backend.errors
    db.create_collection("one", dimension=2).insert(["a"], [[1, 2]])
    db.create_collection("two", dimension=2)
    db.set_alias("live", "one")
    assert db.get_collection("live").count() == 1
    db.set_alias("live", "two")
    assert db.get_collection("live").count() == 0
    with pytest.raises(errors.CollectionExists, match="one"):
        db.set_alias("one", "two")
    with pytest.raises(errors.CollectionNotFound, match="nowhere"):
        db.set_alias("live", "nowhere")
    with pytest.raises(errors.CollectionNotFound, match="live"):
        db.drop_collection("live")
    db.drop_collection("two")
    assert db.list_aliases() == {}
    with pytest.raises(errors.AliasNotFound, match="live"):
        db.drop_alias("live")


@pytest.mark.parametrize(
    "name", ["", ".hidden", "-dash", "a/b", "a b", "ä", "x" * 129, "a\0b", "../up"]
)
def test_bad_names_are_refused(backend, name):
    """A name outside the rule is refused wherever a name is made."""
    errors = backend.errors
    with pytest.raises(errors.InvalidName):
        backend.db.create_collection(name, dimension=2)
    backend.db.create_collection("docs", dimension=2)
    with pytest.raises(errors.InvalidName):
        backend.db.set_alias(name, "docs")
    assert [i.name for i in backend.db.list_collections()] == ["docs"]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("dimension", 0),
        ("dimension", 65_536),
        ("metric", "manhattan"),
        ("storage", "int4"),
        ("index", "btree"),
        ("target_recall", 0.2),
        ("target_recall", 1.5),
        ("schema", {"a": "decimal"}),
        ("schema", {"": "int"}),
        ("description", "x" * 70_000),
    ],
)
def test_bad_settings_are_refused(backend, setting, value):
    """A setting out of range is refused by name, and no collection is made."""
    settings = {"dimension": 2, setting: value}
    with pytest.raises(backend.errors.InvalidSetting):
        backend.db.create_collection("docs", **settings)
    assert backend.db.list_collections() == []


def test_extreme_dimensions_work(backend):
    """The smallest and the largest dimension store and find a vector."""
    for dimension in (1, 65_535):
        docs = backend.db.create_collection(f"d{dimension}", dimension=dimension, metric="l2")
        docs.insert(["a", "b"], [[0.0] * dimension, [1.0] * dimension])
        found = docs.query([[1.0] * dimension], k=2)
        assert found.ids == [["b", "a"]]
        assert found.distances[0].tolist() == [0.0, float(dimension)]
