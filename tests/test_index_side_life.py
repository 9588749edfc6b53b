"""Graphs for filters in a collection: who builds them, when, and for whom they make way."""

from __future__ import annotations

import threading

import pytest
from conftest import wait_until
from index_rows import Rows, soon_worth_it

import vecdb
from vecdb.index import plan

N, K = 3_000, 10
ASKED = 128


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    soon_worth_it(monkeypatch, ASKED)


@pytest.fixture
def opened(tmp_path):
    """A collection of 3,000 records, indexed; its rows."""
    rows = Rows(N)
    with vecdb.open(tmp_path / "db", audit_share=0.0) as db:
        made = db.create_collection("docs", dimension=rows.dimension, metric="l2", index="hnsw")
        made.insert(
            [f"r{i}" for i in range(N)],
            rows.vectors,
            metadata=[{"third": i % 10 < 3, "tenth": i % 10 == 5} for i in range(N)],
        )
        made.build_index()
        yield db, made, rows


def planned(made, rows, expression):
    return made.query(rows.queries[0], filter=expression, explain=True).explain.plan


def test_the_builder_builds_what_is_asked_often(opened):
    """Single queries earn a graph in the background; it serves the same filter however it is written."""
    _, made, rows = opened
    for query in rows.queries[:ASKED]:
        made.query(query, filter={"third": True})
    wait_until(lambda: planned(made, rows, {"third": {"$eq": True}}) == plan.SIDE, "a graph serves")
    assert planned(made, rows, {"tenth": True}) != plan.SIDE
    assert made.stats().index.memory_bytes > 0
    made.delete([f"r{i}" for i in range(300)])
    made.insert(["new"], rows.queries[:1], metadata=[{"third": True}])
    got = made.query(rows.queries[0], k=5, filter={"third": True}, explain=True)
    assert got.explain.plan == plan.SIDE
    assert got.ids[0][0] == "new"
    right = 0
    for query in rows.queries[200:260]:
        got = made.query(query, k=K, filter={"third": True}).ids[0]
        assert len(got) == K
        assert all(i == "new" or (int(i[1:]) >= 300 and int(i[1:]) % 10 < 3) for i in got)
        true = made.query(query, k=K, filter={"third": True}, exact=True).ids[0]
        right += len(set(got) & set(true))
    assert right / (60 * K) >= 0.93


def test_other_work_goes_first(opened, monkeypatch):
    """A build that is asked for stops a graph that is being built; it is taken up again afterwards."""
    _, made, rows = opened
    begun, index = threading.Event(), made._core.index
    usual = type(index).build_side

    def slow(self, *, cancel, **place):
        if not begun.is_set():
            begun.set()
            assert cancel.wait(10), "not stopped"
            return 0
        return usual(self, cancel=cancel, **place)

    monkeypatch.setattr(type(index), "build_side", slow)
    for query in rows.queries[:ASKED]:
        made.query(query, filter={"third": True})
    assert begun.wait(10)
    made.insert(["new"], rows.queries[:1])
    made.build_index(timeout_s=30)
    for query in rows.queries[:2]:
        made.query(query, filter={"third": True})
    wait_until(lambda: planned(made, rows, {"third": True}) == plan.SIDE, "a graph serves")


def test_cancel_build_stops_it(opened, monkeypatch):
    """`cancel_build` ends the work on a graph, too, and it is not taken up at once."""
    _, made, rows = opened
    begun, index = threading.Event(), made._core.index

    def slow(self, *, cancel, **place):
        begun.set()
        assert cancel.wait(10), "not stopped"
        return 0

    monkeypatch.setattr(type(index), "build_side", slow)
    for query in rows.queries[:ASKED]:
        made.query(query, filter={"third": True})
    assert begun.wait(10)
    assert made.cancel_build()
    begun.clear()
    made.query(rows.queries[:100], filter={"third": True})
    assert not begun.wait(0.1)
    assert len(made.query(rows.queries[0], filter={"third": True}).ids[0]) == K


def test_without_a_builder_nothing_is_noted(opened, tmp_path):
    """With `auto_build` off, or read only, no graph is built."""
    db, _, rows = opened
    db.close()
    for options in ({"auto_build": False}, {"read_only": True}):
        with vecdb.open(tmp_path / "db", **options) as again:
            made = again.get_collection("docs")
            made.query(rows.queries[:200], filter={"third": True})
            assert made._core.index.sides._notes == {}
