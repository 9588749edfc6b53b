"""Graphs for filters outlive the process that has built them, and cost nobody an answer when their files are bad."""

from __future__ import annotations

import os

import numpy as np
import pytest
from conftest import wait_until
from index_rows import Rows, soon_worth_it

import vecdb
from vecdb.index import plan, side, side_files

N, K = 3_000, 10
ASKED = 128
FILTER = {"third": True}


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    soon_worth_it(monkeypatch, ASKED)


@pytest.fixture
def rows():
    return Rows(N)


def fill(path, rows, metric="l2", quantization="none"):
    """A collection of 3,000 records with an index, closed."""
    with vecdb.open(path) as db:
        made = db.create_collection(
            "docs", dimension=rows.dimension, metric=metric, index="hnsw", quantization=quantization
        )
        made.insert(
            [f"r{i}" for i in range(N)],
            rows.vectors,
            metadata=[
                {"third": i % 10 < 3, "tenth": i % 10 == 5, "other": i % 10 > 6} for i in range(N)
            ],
        )
        made.build_index()


def plan_of(made, rows, expression=FILTER):
    return made.query(rows.queries[0], filter=expression, explain=True).explain.plan


def files(path):
    return sorted((path / "collections").glob("*/index-*.filter-*"))


def earn(path, rows, expression=FILTER):
    """Asks a filter until a graph serves it, and its file is there."""
    with vecdb.open(path, audit_share=0.0) as db:
        made = db.get_collection("docs")
        before = len(files(path))
        for query in rows.queries[:ASKED]:
            made.query(query, filter=expression)
        wait_until(lambda: plan_of(made, rows, expression) == plan.SIDE, "a graph serves")
        wait_until(lambda: len(files(path)) > before, "it is in a file")


def recall(made, rows, expression=FILTER):
    right = 0
    for query in rows.queries[200:260]:
        got = made.query(query, k=K, filter=expression).ids[0]
        true = made.query(query, k=K, filter=expression, exact=True).ids[0]
        right += len(set(got) & set(true))
    return right / (60 * K)


@pytest.mark.long
@pytest.mark.parametrize("quantization", ["none", "sq8"])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_a_graph_serves_again_after_a_restart(tmp_path, rows, metric, quantization, monkeypatch):
    """The first query of its filter brings it back, in another process as it were, without one query lost to
    earn it; it answers as well as before, also with dead and fresh rows, and is removed with its main index."""
    fill(tmp_path / "db", rows, metric, quantization)
    earn(tmp_path / "db", rows)
    (kept,) = files(tmp_path / "db")
    monkeypatch.setattr(side, "LEAST_QUERIES", 10**9)
    with vecdb.open(tmp_path / "db", audit_share=0.0) as db:
        made = db.get_collection("docs")
        wait_until(lambda: plan_of(made, rows) == plan.SIDE, "the kept graph serves")
        assert recall(made, rows) >= 0.93
        assert plan_of(made, rows, {"tenth": True}) != plan.SIDE
        made.delete([f"r{i}" for i in range(300)])
        made.insert(["new"], rows.queries[:1], metadata=[{"third": True}])
        assert made.check().ok
    with vecdb.open(tmp_path / "db", audit_share=0.0) as db:
        made = db.get_collection("docs")
        wait_until(lambda: plan_of(made, rows) == plan.SIDE, "the kept graph serves")
        assert made.query(rows.queries[0], k=1, filter=FILTER).ids == [["new"]]
        assert recall(made, rows) >= 0.93
        made.delete([f"r{i}" for i in range(300, 2_000)])
        made.compact()
        assert kept not in files(tmp_path / "db"), "it is of an index that is gone"
        assert plan_of(made, rows) != plan.SIDE


@pytest.mark.parametrize("place", ["head", "middle", "seal", "cut"])
def test_a_damaged_file_is_found_and_given_up(tmp_path, rows, place):
    """Check names it; queries are right all the while, the file is removed, and the filter earns a graph anew."""
    fill(tmp_path / "db", rows)
    earn(tmp_path / "db", rows)
    (kept,) = files(tmp_path / "db")
    raw = bytearray(kept.read_bytes())
    at = {"head": 3, "middle": len(raw) // 2, "seal": len(raw) - 5, "cut": 0}[place]
    if place == "cut":
        os.truncate(kept, len(raw) - 100)
    else:
        raw[at] ^= 4
        kept.write_bytes(raw)
    with vecdb.open(tmp_path / "db", audit_share=0.0) as db:
        made = db.get_collection("docs")
        if place != "head":  # that is seen when it is opened
            assert any(kept.name in problem for problem in made.check().problems)
        made.query(rows.queries[0], filter=FILTER)
        wait_until(lambda: not kept.exists(), "the file is removed")
        assert made.check().ok
        assert recall(made, rows) >= 0.93
    earn(tmp_path / "db", rows)
    assert files(tmp_path / "db") == [kept]


def test_a_graph_that_does_not_serve_any_more_is_given_up(tmp_path, rows):
    """One of which more than a fifth of the rows have died is removed when it is asked for, and answers stay
    right."""
    fill(tmp_path / "db", rows)
    earn(tmp_path / "db", rows)
    with vecdb.open(tmp_path / "db", audit_share=0.0, index_dead_share=0.9) as db:
        made = db.get_collection("docs")
        made.delete([f"r{i}" for i in range(N) if i % 10 == 1])
        made.query(rows.queries[0], filter=FILTER)
        wait_until(lambda: not files(tmp_path / "db"), "the file is removed")
        assert recall(made, rows) >= 0.93


def test_files_fit_one_filter_and_one_index(tmp_path, rows):
    """A file says which filter it is of, and is not taken for another one, nor for an index of other rows."""
    fill(tmp_path / "db", rows)
    earn(tmp_path / "db", rows)
    (path,) = files(tmp_path / "db")
    main_file = path.name.partition(".filter-")[0]
    (key,) = side_files.known(path.parent, main_file, read_only=True)
    with vecdb.open(tmp_path / "db", audit_share=0.0) as db:
        view = db.get_collection("docs")._core.index.view
        main, third = view.main, np.arange(N) % 10 < 3

        def allowed(mask):
            return side.Allowed(main.n, mask=mask[main.rows])

        assert side_files.load(path, key, main, allowed(third)).n == third.sum()
        assert side_files.load(path, key + " ", main, allowed(third)) is None
        more = third.copy()
        more[5] = True
        assert side_files.load(path, key, main, allowed(more)) is None
        most = third & (np.arange(N) > 100)
        assert side_files.load(path, key, main, allowed(most)).n == third.sum()
        assert side_files.load(path, key, main, allowed(third & (np.arange(N) > 900))) is None


def test_who_only_reads_removes_nothing(tmp_path, rows):
    """A process that reads beside the writer leaves a damaged file where it is, and answers right without it."""
    fill(tmp_path / "db", rows)
    earn(tmp_path / "db", rows)
    (kept,) = files(tmp_path / "db")
    raw = bytearray(kept.read_bytes())
    raw[3] ^= 4
    kept.write_bytes(raw)
    with vecdb.open(tmp_path / "db", read_only=True) as db:
        assert recall(db.get_collection("docs"), rows) >= 0.93
    assert kept.read_bytes() == raw


def test_files_are_few(tmp_path, rows, monkeypatch):
    """Beyond the number of filters that are watched the oldest go; who has been earned last stays."""
    monkeypatch.setattr(side_files, "MOST_KEPT", 1)
    fill(tmp_path / "db", rows)
    earn(tmp_path / "db", rows)
    (first,) = files(tmp_path / "db")
    with vecdb.open(tmp_path / "db", audit_share=0.0) as db:
        made = db.get_collection("docs")
        for query in rows.queries[:ASKED]:
            made.query(query, filter={"other": True})
        wait_until(lambda: files(tmp_path / "db") not in ([first], []), "another is kept")
        wait_until(lambda: not first.exists(), "the older one goes")
        assert len(files(tmp_path / "db")) == 1
