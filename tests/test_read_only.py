"""A database that is read beside its writer: indexes that are built there, collections that go."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import wait_until
from test_open import Writer

import vecdb
from vecdb import errors, following


def test_a_reader_follows_a_new_index(data_folder):
    """When the writer has built an index, the reader goes over to it."""
    with Writer(data_folder) as writer:
        writer.run("h = db.create_collection('h', dimension=2, index='hnsw')")
        writer.run("h.insert([str(i) for i in range(1500)], [[i, 1] for i in range(1500)])")
        with vecdb.open(data_folder, read_only=True) as db:
            docs = db.get_collection("h")
            assert docs.stats().index.kind == "exact"
            writer.run("h.build_index()")
            # Loaded behind: queries do not wait for it.
            wait_until(lambda: docs.stats().index.kind == "hnsw", "the index")
            writer.run("h.upsert(['7'], [[1, 0]])")
            assert docs.count(min_sequence=2) == 1500
            assert docs.stats().index.kind == "hnsw"
            assert docs.query([[1, 0]], k=1).ids == [["7"]]


@pytest.mark.parametrize("times", [2, 10**6])
def test_a_reader_that_gets_no_thread_tries_again(data_folder, monkeypatch, times):
    """Reads go on with the index before, closing is as ever, and no further commit is needed."""
    start, refused = threading.Thread.start, []

    def no_thread(thread):
        if thread.name == "vecdb-follow" and len(refused) < times:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(following, "_AGAIN_S", 0.05)
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with Writer(data_folder) as writer:
        writer.run("h = db.create_collection('h', dimension=2, index='hnsw', metric='l2')")
        writer.run("h.insert([str(i) for i in range(1500)], [[i, 1] for i in range(1500)])")
        with vecdb.open(data_folder, read_only=True) as db:
            docs = db.get_collection("h")
            assert docs.query([[7, 1]], k=1).ids == [["7"]]
            writer.run("h.build_index()")
            writer.run("h.upsert(['x'], [[-5, 0]])")
            wait_until(lambda: docs.query([[-5, 0]], k=1).ids == [["x"]], "the commit")
            wait_until(lambda: docs.count() == 1501 and len(refused) >= 2, "another try")
            if times == 2:
                wait_until(
                    lambda: docs.count() == 1501 and docs.stats().index.kind == "hnsw", "the index"
                )
            else:
                assert docs.stats().index.kind == "exact"


def test_a_reader_ends_with_the_newest_of_many_indexes(data_folder):
    """Indexes that follow each other faster than they are loaded: the last one serves in the end, answers are right
    all along."""
    with Writer(data_folder) as writer:
        writer.run("h = db.create_collection('h', dimension=2, index='hnsw', metric='l2')")
        writer.run("h.insert([str(i) for i in range(1500)], [[i, 1] for i in range(1500)])")
        with vecdb.open(data_folder, read_only=True) as db:
            docs = db.get_collection("h")
            for turn in range(1, 7):
                writer.run(
                    f"h.insert([f'n{turn}-{{i}}' for i in range(300)], [[-{turn}, i] for i in range(300)])"
                )
                writer.run("h.build_index()")
                assert docs.query([[-turn, 5]], k=1).ids == [[f"n{turn}-5"]]
            wait_until(
                lambda: docs.stats().index.indexed_rows == 1500 + 6 * 300, "the newest index"
            )
            assert docs.query([[700, 1]], k=1).ids == [["700"]]
            assert docs.check().ok


READS = """
import sys, threading
import numpy as np
import vecdb
from vecdb import fetching, paging, query_vectors, searching

folder, what, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
with vecdb.open(folder, read_only=True, device="cpu") as db:
    docs = db.get_collection("docs2")
    module, name = {"query": (searching, "_answer"), "ids": (query_vectors, "_stored"), "get": (paging, "_by_ids")}[what]
    call = getattr(module, name)

    def late(*given):
        global times
        if times:
            times -= 1
            print("waits", flush=True)
            sys.stdin.readline()
        return call(*given)

    setattr(module, name, late)
    include = ["metadata", "document", "vector"]
    try:
        if what == "get":
            found = docs.get(["x", "y"], include=include)
            print([found.ids, found.metadata, found.documents, np.asarray(found.vectors).tolist()], flush=True)
        else:
            asked = {"vectors": np.ones((1, 2), np.float32)} if what == "query" else {"ids": ["x"]}
            found = docs.query(**asked, k=2, include=include, exact=True)
            print([found.ids[0], found.metadata[0], found.documents[0], np.asarray(found.vectors[0]).tolist()], flush=True)
    except vecdb.errors.VecdbError as error:
        print(type(error).__name__, flush=True)
"""


@pytest.mark.parametrize("times", [1, 99])
@pytest.mark.parametrize("what", ["query", "ids", "get"])
def test_a_reader_shows_whole_records_or_none(data_folder, what, times):
    """Where the writer keeps no history it gives the space of replaced records back beside a read of another process: which
    is done again, of a newer moment, and refused where that happens each time."""
    with vecdb.open(data_folder, history_s=0.0, device="cpu", auto_build=False) as db:
        docs = db.create_collection("docs2", dimension=2, metric="l2")
        docs.insert(
            ["x", "y"], [[1, 1], [1, 2]], metadata=[{"n": 1}, {"n": 2}], documents=["old", "y"]
        )
        words = [sys.executable, "-c", READS, str(data_folder), what, str(times)]
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as reader:
            while (line := reader.stdout.readline()) == "waits\n":
                docs.upsert(["x"], [[1, 1]], metadata=[{"n": 10}], documents=["new"])
                docs.compact(timeout_s=60)
                reader.stdin.write("\n")
                reader.stdin.flush()
        assert docs.stats().purged_rows
        if times > 1:
            assert line == "Unavailable\n"
            return
        ids, metadata, documents, vectors = ast.literal_eval(line)
        records = dict(zip(ids, zip(metadata, documents, vectors, strict=True), strict=True))
        if what != "ids":
            assert records.pop("x") == ({"n": 10}, "new", [1.0, 1.0])
        assert records == {"y": ({"n": 2}, "y", [1.0, 2.0])}


def test_a_reader_lets_go_of_what_was_dropped(data_folder):
    """Memory and files of a collection go with it in every process, also where its name was given again."""
    with Writer(data_folder) as writer:
        writer.run("docs.insert(['a'], [[1, 0]])")
        with vecdb.open(data_folder, read_only=True) as db:
            docs, seen = db.get_collection("docs"), []
            assert docs.count() == 1
            for turn in range(3):
                writer.run("db.drop_collection('docs')")
                writer.run("docs = db.create_collection('docs', dimension=2)")
                writer.run(
                    f"docs.insert([str(i) for i in range({turn + 2})], [[1, 0]] * {turn + 2})"
                )
                assert db.get_collection("docs").count() == turn + 2
                seen.append(len(db._cores))
            assert seen == [1, 1, 1]
            with pytest.raises(errors.Closed, match="was dropped"):
                docs.count()
            open_files = [
                os.readlink(one) for one in Path("/proc/self/fd").iterdir() if one.exists()
            ]
            assert not [one for one in open_files if str(data_folder) in one and "deleted" in one]
