"""Writing and reading records: the same promises embedded and through both clients."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest

NOON = dt.datetime(2026, 1, 31, 12, 0, 0, 250, tzinfo=dt.UTC)
EVERYTHING = ("vector", "metadata", "document", "content", "uri")


@pytest.fixture
def docs(backend):
    return backend.db.create_collection("docs", dimension=3, metric="l2")


def test_a_record_comes_back_as_it_was_given(backend, docs):
    """Every part of a record survives the store, types included."""
    content = backend.types.Content(b"\x89PNG\x00\xff", "image/png")
    metadata = {
        "text": "grün \U0001f33f",
        "int": -(2**63),
        "whole float": 1.0,
        "float": 0.1,
        "yes": True,
        "none": None,
        "when": NOON,
        "list": ["a", 1, 2.5, False, NOON],
        "deep": {"er": {"still": [1]}},
        "empty": [],
    }
    docs.insert(
        ids=["full", "bare", "ünï/ cöde"],
        vectors=np.asarray([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32),
        metadata=[metadata, None, {}],
        documents=["text", None, ""],
        contents=[content, None, (b"", "text/plain")],
        uris=["file:///a", None, ""],
    )
    got = docs.get(["ünï/ cöde", "full", "bare"], include=EVERYTHING)
    assert got.ids == ["ünï/ cöde", "full", "bare"]
    assert got.vectors.dtype == np.float32
    assert got.vectors.tolist() == [[7, 8, 9], [1, 2, 3], [4, 5, 6]]
    assert got.metadata == [{}, metadata, {}]
    assert [type(v) for v in got.metadata[1]["list"]] == [str, int, float, bool, dt.datetime]
    assert type(got.metadata[1]["whole float"]) is float
    assert got.documents == ["", "text", None]
    assert got.contents == [backend.types.Content(b"", "text/plain"), content, None]
    assert got.uris == ["", "file:///a", None]
    assert [r.id for r in got] == got.ids
    assert docs.check().ok


def test_only_what_is_included_comes_back(docs):
    """Columns that were not asked for are None."""
    docs.insert(["a"], [[1, 2, 3]], metadata=[{"x": 1}], documents=["text"], uris=["u"])
    got = docs.get(["a"], include=())
    assert (got.ids, got.vectors, got.metadata, got.documents, got.uris) == (
        ["a"], None, None, None, None,
    )  # fmt: skip
    assert docs.get(["a"], include=["uri"]).uris == ["u"]


def test_acknowledgements_count_commits(docs):
    """Every write answers with the number of its commit and of its records."""
    first = docs.insert(["a", "b"], np.eye(3)[:2])
    assert (first.sequence, first.count) == (1, 2)
    second = docs.upsert(["b", "c"], np.eye(3)[:2])
    assert (second.sequence, second.count) == (2, 2)
    third = docs.update(["a"], metadata=[{"x": 1}])
    assert (third.sequence, third.count) == (3, 1)
    fourth = docs.delete(["a", "never there"])
    assert (fourth.sequence, fourth.count) == (4, 1)
    nothing = docs.delete(["a"])
    assert (nothing.sequence, nothing.count) == (4, 0)
    assert docs.count(min_sequence=4) == 2


def test_insert_of_a_stored_id_writes_nothing(backend, docs):
    """The error names the ids that exist; the others of the batch are not written."""
    docs.insert(["b", "d"], np.eye(3)[:2])
    with pytest.raises(backend.errors.RecordExists, match="'b'") as caught:
        docs.insert(["a", "b", "c", "d"], np.ones((4, 3)))
    assert caught.value.details["ids"] == ["b", "d"]
    assert docs.count() == 2
    assert docs.get(["b"], include=["vector"]).vectors.tolist() == [[1, 0, 0]]
    assert docs.insert(["a"], [[1, 1, 1]]).sequence == 2


def test_upsert_replaces_the_whole_record(docs):
    """What the new version does not have is gone."""
    docs.insert(["a"], [[1, 2, 3]], metadata=[{"x": 1}], documents=["old"], uris=["u"])
    docs.upsert(["a", "b"], [[3, 2, 1], [0, 0, 1]], metadata=[{"y": 2}, {}])
    got = docs.get(["a"], include=EVERYTHING)
    assert got.vectors.tolist() == [[3, 2, 1]]
    assert (got.metadata, got.documents, got.uris) == ([{"y": 2}], [None], [None])
    assert docs.count() == 2


def test_update_changes_only_what_is_given(backend, docs):
    """Metadata is merged, null removes a key, the other parts stay."""
    content = backend.types.Content(b"bytes", "audio/wav")
    docs.insert(
        ["a", "b"],
        [[1, 2, 3], [4, 5, 6]],
        metadata=[{"x": 1, "deep": {"p": 1, "q": 2}, "list": [1, 2]}, {"x": 5}],
        documents=["one", "two"],
        contents=[content, None],
        uris=["u", "v"],
    )
    docs.update(
        ["b", "a"],
        metadata=[None, {"x": None, "deep": {"q": None, "r": 3}, "list": [9]}],
        documents=["zwei", None],
    )
    got = docs.get(["a", "b"], include=EVERYTHING)
    assert got.metadata == [{"deep": {"p": 1, "r": 3}, "list": [9]}, {"x": 5}]
    assert got.documents == ["one", "zwei"]
    assert got.contents == [content, None]
    assert got.vectors.tolist() == [[1, 2, 3], [4, 5, 6]]
    docs.update(["a"], vectors=[[9, 9, 9]])
    assert docs.query([[9, 9, 9]], k=1).ids == [["a"]]
    docs.update(["a"], metadata=[{"only": True}], clear=["metadata", "document", "content", "uri"])
    got = docs.get(["a"], include=EVERYTHING)
    assert got.vectors.tolist() == [[9, 9, 9]]
    assert (got.metadata, got.documents, got.contents, got.uris) == (
        [{"only": True}], [None], [None], [None],
    )  # fmt: skip
    assert docs.check().ok


def test_update_of_a_missing_id_writes_nothing(backend, docs):
    """The error names the missing ids, and the ids that exist stay as they were."""
    docs.insert(["a"], [[1, 2, 3]], metadata=[{"x": 1}])
    with pytest.raises(backend.errors.RecordNotFound, match="'gone'") as caught:
        docs.update(["a", "gone"], metadata=[{"x": 2}, {"x": 2}])
    assert caught.value.details["ids"] == ["gone"]
    assert docs.get(["a"]).metadata == [{"x": 1}]


def test_delete_by_ids_filter_and_both(docs):
    """Deleted is what is in the ids and matches the filter; the count says how many."""
    docs.insert(
        [f"r{i}" for i in range(10)], np.ones((10, 3)), metadata=[{"i": i} for i in range(10)]
    )
    assert docs.delete(["r0", "r0x", "r1"]).count == 2
    assert docs.delete(filter={"i": {"$lt": 4}}).count == 2
    assert docs.delete(["r4", "r9"], filter={"i": {"$lte": 5}}).count == 1
    assert docs.get(limit=100).ids == ["r5", "r6", "r7", "r8", "r9"]
    assert docs.count() == 5
    assert docs.delete(filter={}).count == 5
    assert docs.count() == 0
    assert docs.query(np.ones(3), k=3).ids == [[]]
    docs.insert(["r0"], [[1, 1, 1]])
    assert docs.count() == 1
    assert docs.check().ok


def test_get_passes_over_missing_ids_and_applies_the_filter(docs):
    """get by ids keeps their order and leaves out what is not stored or does not match."""
    docs.insert(
        list("abcd"), np.ones((4, 3)), metadata=[{"i": i} for i in range(4)], documents=list("wxyz")
    )
    assert docs.get(["d", "q", "a"]).ids == ["d", "a"]
    assert docs.get(["d", "c", "a"], filter={"i": {"$gte": 2}}).ids == ["d", "c"]
    assert docs.get(["d", "c"], filter={"$document": {"$contains": "y"}}).ids == ["c"]
    assert docs.get(["d", "c"], filter={"id": {"$in": ["c", "z"]}}).ids == ["c"]


def test_pages_show_the_moment_of_the_first(docs):
    """A walk by cursor sees every record of its first moment once, whatever is written meanwhile."""
    docs.insert(
        [f"r{i:02}" for i in range(20)], np.ones((20, 3)), metadata=[{"i": i} for i in range(20)]
    )
    page = docs.get(limit=6, filter={"i": {"$gte": 2}})
    seen = list(page.ids)
    docs.delete(["r10", "r19"])
    docs.update(["r11", "r03"], metadata=[{"i": -1}, {"i": -1}])
    docs.insert(["new"], [[1, 1, 1]], metadata=[{"i": 99}])
    while page.cursor:
        page = docs.get(limit=6, filter={"i": {"$gte": 2}}, cursor=page.cursor)
        seen += page.ids
    assert seen == [f"r{i:02}" for i in range(2, 20)]
    assert page.sequence == 1
    fresh = docs.get(limit=100, filter={"i": {"$gte": 2}})
    assert fresh.ids == [f"r{i:02}" for i in range(2, 19) if i not in (3, 10, 11)] + ["new"]


def test_a_walk_by_id_filter_shows_its_moment(docs):
    """A filter on ids finds the versions of the walk's moment, not those of today."""
    docs.insert(list("abcdef"), np.ones((6, 3)))
    wanted = {"id": {"$in": [*list("bdf"), "zz"]}}
    page = docs.get(filter=wanted, limit=1)
    docs.upsert(["d"], [[2, 2, 2]])
    docs.delete(["f"])
    rest = docs.get(filter=wanted, limit=5, cursor=page.cursor, include=["vector"])
    assert page.ids + rest.ids == ["b", "d", "f"]
    assert rest.vectors.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_order_by(docs):
    """Ordered pages follow the field, by type, with missing last; ties follow row order."""
    values = [3, None, "b", 1.5, True, [1], 2**60 + 1, float(2**60), "a", NOON, False, 3]
    metadata = [{} if v is None else {"v": v} for v in values]
    ids = [f"r{i:02}" for i in range(len(values))]
    docs.insert(ids, np.ones((len(values), 3)), metadata=metadata)
    ordered = [10, 4, 3, 0, 11, 7, 6, 9, 8, 2]
    missing = [1, 5]
    assert docs.get(order_by="v").ids == [ids[i] for i in ordered + missing]
    backwards = [2, 8, 9, 6, 7, 0, 11, 3, 4, 10]
    assert docs.get(order_by="-v").ids == [ids[i] for i in backwards + missing]
    assert docs.get(order_by="-id", limit=2).ids == ["r11", "r10"]
    walked, cursor = [], None
    while True:
        page = docs.get(order_by="v", limit=5, cursor=cursor)
        walked += page.ids
        cursor = page.cursor
        if cursor is None:
            break
    assert walked == [ids[i] for i in ordered + missing]


def test_bad_cursors_are_refused(backend, docs):
    """A cursor that is damaged or of another call is refused, not guessed at."""
    docs.insert(list("abcd"), np.ones((4, 3)))
    cursor = docs.get(limit=2).cursor
    broken = cursor[:-3] + ("AAA" if cursor[-3:] != "AAA" else "BBB")
    for bad, keywords in (
        ("nonsense", {}),
        (broken, {}),
        (cursor, {"filter": {"x": 1}}),
        (cursor, {"order_by": "x"}),
    ):
        with pytest.raises(backend.errors.InvalidCursor):
            docs.get(limit=2, cursor=bad, **keywords)
    with pytest.raises(backend.errors.InvalidCursor):
        list(docs.scan(cursor=cursor))


def test_scan_streams_everything_once_in_row_order(docs):
    """A scan gives each live record once, resumes anywhere, and its slices are a partition."""
    n = 1_000
    vectors = np.arange(3 * n, dtype=np.float32).reshape(n, 3)
    docs.insert([f"r{i:04}" for i in range(n)], vectors, metadata=[{"i": i} for i in range(n)])
    docs.delete([f"r{i:04}" for i in range(0, n, 10)])
    live = [i for i in range(n) if i % 10]
    batches = list(docs.scan(batch_size=128, include=["vector", "metadata"]))
    assert [len(b) for b in batches][:-1] == [128] * 7
    assert [i for b in batches for i in b.ids] == [f"r{i:04}" for i in live]
    assert np.array_equal(np.concatenate([b.vectors for b in batches]), vectors[live])
    assert [m["i"] for b in batches for m in b.metadata] == live
    assert batches[-1].cursor is None
    resumed = [i for b in docs.scan(cursor=batches[2].cursor, batch_size=500) for i in b.ids]
    assert resumed == [f"r{i:04}" for i in live[3 * 128 :]]
    slices = [
        [i for b in docs.scan(slice_index=s, slices=3, batch_size=77, include=()) for i in b.ids]
        for s in range(3)
    ]
    assert all(slices)
    assert sorted(i for s in slices for i in s) == [f"r{i:04}" for i in live]
    filtered = [i for b in docs.scan(filter={"i": {"$lt": 5}}) for i in b.ids]
    assert filtered == ["r0001", "r0002", "r0003", "r0004"]


def test_a_scan_keeps_to_its_moment(docs):
    """Writes during a scan change nothing of what it shows."""
    docs.insert([f"r{i}" for i in range(50)], np.ones((50, 3)), metadata=[{"v": 0}] * 50)
    scanning = docs.scan(batch_size=10)
    first = next(iter(scanning))
    docs.update([f"r{i}" for i in range(50)], metadata=[{"v": 1}] * 50)
    docs.delete(["r45"])
    rest = list(scanning)
    assert [i for b in [first, *rest] for i in b.ids] == [f"r{i}" for i in range(50)]
    resumed = list(docs.scan(batch_size=50, cursor=first.cursor))
    assert [i for b in resumed for i in b.ids] == [f"r{i}" for i in range(10, 50)]
    assert {m["v"] for b in resumed for m in b.metadata} == {0}


def test_scan_of_nothing(docs):
    """A scan of an empty collection ends with one empty batch."""
    batches = list(docs.scan())
    assert [len(b) for b in batches] == [0]
    assert batches[0].cursor is None


def test_count_is_exact_at_all_times(docs):
    """count follows every write, with and without a filter."""
    docs.insert(
        [f"r{i}" for i in range(100)],
        np.ones((100, 3)),
        metadata=[{"i": i % 4} for i in range(100)],
    )
    assert (docs.count(), docs.count({"i": 1})) == (100, 25)
    docs.upsert(["r0", "r1", "extra"], np.ones((3, 3)), metadata=[{"i": 1}] * 3)
    assert (docs.count(), docs.count({"i": 1}), docs.count({"i": 0})) == (101, 27, 24)
    docs.delete(filter={"i": 1})
    assert (docs.count(), docs.count({"i": 1})) == (74, 0)
    assert docs.count({}) == 74


def test_min_sequence_waits_and_times_out(backend, docs):
    """A read may ask for a commit; one that does not come is a DeadlineExceeded, not a stale read."""
    sequence = docs.insert(["a"], [[1, 2, 3]]).sequence
    assert docs.get(["a"], min_sequence=sequence).sequence >= sequence
    assert docs.query([[1, 2, 3]], min_sequence=sequence).sequence >= sequence
    with pytest.raises(backend.errors.DeadlineExceeded):
        docs.count(min_sequence=sequence + 1, timeout_s=0.3)


def test_large_contents_survive(backend, docs):
    """A content of 16 MiB is stored and read; one byte more is refused."""
    limit = 16 * 1024 * 1024
    data = np.random.default_rng(5).bytes(limit)
    docs.insert(["big"], [[1, 2, 3]], contents=[(data, "image/tiff")])
    assert docs.get(["big"], include=["content"]).contents[0].data == data
    with pytest.raises(backend.errors.InvalidMetadata, match="content"):
        docs.insert(["bigger"], [[1, 2, 3]], contents=[data + b"x"])
    assert docs.count() == 1


def test_stats_and_check(docs):
    """stats tells what is stored, check agrees that it is sound."""
    docs.insert(
        [f"r{i}" for i in range(10)],
        np.ones((10, 3)),
        metadata=[{"a": i, "b": {"c": 1}} for i in range(10)],
    )
    docs.delete(["r0"])
    docs.update(["r1"], metadata=[{"a": None}])
    stats = docs.stats()
    assert (stats.name, stats.count, stats.rows, stats.sequence) == ("docs", 9, 11, 3)
    assert dict(stats.fields) == {"a": 10, "b.c": 11}
    assert stats.index.kind == "exact"
    assert stats.disk_bytes > 0
    report = docs.check()
    assert (report.ok, report.records, list(report.problems)) == (True, 9, [])


def test_a_costly_filter_ends_at_the_deadline(backend):
    """A filter that would take longer than the caller waits is given up, and others go on."""
    docs = backend.db.create_collection("texts", dimension=1, metric="l2")
    text = "abcdefghij" * 2_000
    docs.insert(
        [f"r{i}" for i in range(3_000)],
        np.ones((3_000, 1)),
        metadata=[{"t": f"{i}{text[:600]}"} for i in range(3_000)],
    )
    slow = {"$and": [{"t": {"$regex": f"(a.*?){{60}}{i}z"}} for i in range(30)]}
    slow = {"$or": slow["$and"]}
    with pytest.raises(backend.errors.DeadlineExceeded):
        docs.count(slow, timeout_s=0.05)
    assert docs.count({"t": {"$contains": "7a"}}, timeout_s=10) > 0
