"""What fails after a commit stands: the write is acknowledged, done once, and all answers are right at once."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from conftest import wait_until

import vecdb
from vecdb import failpoints, lane
from vecdb.layout import ROW
from vecdb.masks import Deaths
from vecdb.store.fresh import FreshIds, _Span
from vecdb.store.requests import Requests
from vecdb.store.watched_file import WatchedFile

SETTINGS = {"auto_build": False, "device": "cpu", "history_s": 0.0, "compact_dead_share": 1.0}
PLACES = {
    "ids": (FreshIds, "follow"),
    "requests": (Requests, "follow"),
    "size": (WatchedFile, "note_size"),
    "settle": (lane, "settle"),
    "publish": (Deaths, "extend"),
    "point": None,
}


@pytest.fixture
def breaks(monkeypatch):
    """`breaks(place)`: the next step there fails, once, and the list that is given says how often it has."""

    def arm(place):
        hits = []

        def reached(name, path):
            if name == "rows.commit.after" and not hits:
                hits.append(name)
                raise OSError(5, "Input/output error", str(path))

        if PLACES[place] is None:
            monkeypatch.setattr(failpoints, "hook", reached)
            return hits
        holder, name = PLACES[place]
        real = getattr(holder, name)
        # The lane settles once before it waits for the disk.
        calls, passed = [], 1 if place == "settle" else 0

        def broken(*given):
            if not hits and len(calls) == passed:
                hits.append(name)
                calls.clear()
                raise MemoryError("no memory")
            if not hits:
                calls.append(name)
            return real(*given)

        monkeypatch.setattr(holder, name, broken)
        return hits

    return arm


def holds(docs, held):
    """Ids with their documents and vectors are those of `held`, by every way to read them."""
    report = docs.check()
    assert report.ok, report.problems
    assert docs.count() == len(held)
    found = {
        i: d
        for b in docs.scan(include=["document"])
        for i, d in zip(b.ids, b.documents, strict=True)
    }
    assert found == {i: f"doc {i}" for i in held}
    for record_id, vector in held.items():
        got = docs.query([vector], k=1, include=["vector", "document"])
        assert got.ids == [[record_id]]
        assert got.documents == [[f"doc {record_id}"]]
        np.testing.assert_array_equal(got.vectors[0], [vector])


def put(docs, held, record_id, vector, **more):
    docs.insert([record_id], [vector], documents=[f"doc {record_id}"], **more)
    held[record_id] = vector


@pytest.mark.parametrize("durability", ["commit", "interval"])
@pytest.mark.parametrize("place", PLACES)
def test_a_write_whose_commit_stands_is_acknowledged(data_folder, breaks, place, durability):
    """An insert, and a delete, behind whose commit something fails: neither is refused, and what comes next is right."""
    held = {}
    with vecdb.open(data_folder, durability=durability, **SETTINGS) as db:
        docs = db.create_collection("docs", dimension=2, metric="l2")
        for n in range(6):
            put(docs, held, f"r{n}", [n, n])
        hits = breaks(place)
        put(docs, held, "after", [20, 20])
        assert len(hits) == 1
        put(docs, held, "next", [30, 30])
        holds(docs, held)
        hits.clear()
        assert docs.delete(["r1", "after"]).count == 2
        assert len(hits) == 1
        assert docs.delete(["r1", "after", "r2"]).count == 1
        for record_id in ("r1", "after", "r2"):
            del held[record_id]
        holds(docs, held)
    with vecdb.open(data_folder, **SETTINGS) as db:
        holds(db.get_collection("docs"), held)


@pytest.mark.parametrize("place", ["ids", "requests", "point", "settle", "publish"])
def test_a_shared_commit_is_made_once(data_folder, monkeypatch, breaks, place):
    """Writers who shared a commit behind which something failed: none of them is done a second time."""
    failures = []
    with vecdb.open(data_folder, **SETTINGS) as db:
        docs = db.create_collection("docs", dimension=2, metric="l2")
        held, waits = docs._core._lane, []
        commit = docs._core.store.commit

        def first_waits(*given):
            if not waits:
                waits.append(True)
                wait_until(lambda: len(held._waiting) == 4, "four wait")
                return commit(*given)
            if len(waits) == 1:
                waits.append(True)
                hits.append(breaks(place))
            return commit(*given)

        hits = []
        monkeypatch.setattr(docs._core.store, "commit", first_waits)

        def write(n):
            try:
                docs.insert([f"r{n}"], [[n, n]], documents=[f"doc r{n}"])
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(n,)) for n in range(5)]
        threads[0].start()
        wait_until(lambda: waits, "one commits")
        for thread in threads[1:]:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not failures
        assert len(hits[0]) == 1
        assert docs.stats().sequence == 2
        holds(docs, {f"r{n}": [n, n] for n in range(5)})


@pytest.mark.parametrize("place", ["requests", "ids"])
def test_a_write_with_an_id_is_remembered_all_the_same(data_folder, breaks, place):
    """Its repetition is answered and not done, though its entry was not followed in memory; so is the one after it."""
    with vecdb.open(data_folder, **SETTINGS) as db:
        docs = db.create_collection("docs", dimension=2, metric="l2")
        held = {}
        breaks(place)
        for n in range(3):
            put(docs, held, f"r{n}", [n, n], request_id=f"request {n}")
        for n in range(3):
            put(docs, held, f"r{n}", [n, n], request_id=f"request {n}")
        holds(docs, held)
        with docs._core.store.read() as reader:
            assert [ROW.unpack(key)[0] for key, _ in reader.items("requests")] == [0, 1, 2]


def test_a_purge_whose_commit_stands(data_folder, breaks):
    """A compaction behind one of whose commits following fails goes on, and counts what it has purged."""
    held = {}
    with vecdb.open(data_folder, **SETTINGS) as db:
        docs = db.create_collection("docs", dimension=2, metric="l2")
        for n in range(6):
            put(docs, held, f"r{n}", [n, n])
        docs.delete(["r0", "r3"])
        del held["r0"], held["r3"]
        hits = breaks("ids")
        assert docs.compact().purged_rows == 2
        assert len(hits) == 1
        assert docs._core.purged_rows == 2
        put(docs, held, "next", [30, 30])
        holds(docs, held)


def test_ids_that_were_taken_up_by_half_are_taken_up_again():
    """A span that broke in the middle of a batch, with an id that is twice in it, finds the newest row and ends."""
    span = _Span(0)
    span.extend([b"a", b"b"])
    ids = [b"c", b"a", b"c"]
    span.rows.update({b"c": 4, b"a": 3})  # what a broken call may leave
    span.before.update({3: 0, 4: 2})
    span.extend(ids)
    assert all(before < row for row, before in span.before.items())
    assert [span.newest(i, 5) for i in (b"a", b"b", b"c")] == [3, 1, 4]
    assert [span.newest(i, 4) for i in (b"a", b"b", b"c")] == [3, 1, 2]
    assert [span.newest(i, 2) for i in (b"a", b"b", b"c")] == [0, 1, -1]
