"""A database that is read beside its writer: indexes that are built there, collections that go."""

from __future__ import annotations

import os
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
