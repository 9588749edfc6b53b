"""Opening a folder: locks, readers beside the writer, strangers, other versions, litter."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import textwrap

import lmdb
import numpy as np
import pytest
from conftest import wait_until
from timing import once_below, seconds

import vecdb
from vecdb import database, errors, layout


def child(code, *arguments):
    """Starts Python on `code` in a process of its own, with pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


HOLD = """
    import sys, vecdb
    db = vecdb.open(sys.argv[1])
    docs = db.create_collection("docs", dimension=2, exist_ok=True)
    print("open", flush=True)
    for line in sys.stdin:
        exec(line)
        print("done", flush=True)
"""


class Writer:
    """A child process that has the folder open and runs lines of Python when told."""

    def __init__(self, folder):
        self.process = child(HOLD, folder)
        assert self.process.stdout.readline() == "open\n"

    def run(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def test_a_second_writer_is_refused_by_name(data_folder):
    """While one process writes, another gets DatabaseLocked with its pid, and reads still work."""
    with Writer(data_folder) as writer:
        with pytest.raises(errors.DatabaseLocked, match=str(writer.process.pid)):
            vecdb.open(data_folder)
        vecdb.open(data_folder, read_only=True).close()
    vecdb.open(data_folder).close()


def test_one_process_opens_a_folder_once(data_folder):
    """A second open in the same process is refused, under any spelling of the path, until closed."""
    with vecdb.open(data_folder):
        for again in (data_folder, str(data_folder) + "/.", os.path.relpath(data_folder)):
            with pytest.raises(errors.DatabaseLocked, match="this process"):
                vecdb.open(again, read_only=True)
    vecdb.open(data_folder).close()


@pytest.mark.parametrize("step", ["sweep_folders", "Builder"])
def test_an_opening_that_fails_lets_go_of_the_folder(data_folder, monkeypatch, step):
    """Whatever fails behind the lock is told in our words, and the next try finds the folder free."""
    vecdb.open(data_folder).close()

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "lost+found")

    with monkeypatch.context() as patched:
        patched.setattr(database, step, denied)
        for _ in range(2):
            with pytest.raises(errors.ReadOnly, match=r"lost\+found"):
                vecdb.open(data_folder)
    with Writer(data_folder):  # another process too
        pass
    vecdb.open(data_folder).close()


def test_a_reader_follows_the_writer(data_folder):
    """A read-only database beside the writer sees each commit, with exact counts and answers."""
    with Writer(data_folder) as writer:
        writer.run("docs.insert(['a', 'b'], [[1, 0], [0, 1]], metadata=[{'x': 1}, {'x': 2}])")
        with vecdb.open(data_folder, read_only=True) as db:
            docs = db.get_collection("docs")
            assert docs.count() == 2
            assert docs.count({"x": 2}) == 1
            writer.run("docs.upsert(['b', 'c'], [[5, 5], [1, 1]], metadata=[{'x': 1}, {'x': 1}])")
            assert docs.count(min_sequence=2) == 3
            assert docs.count({"x": 1}) == 3
            writer.run("docs.delete(['a'])")
            assert sorted(docs.query([[1, 0]], k=5, min_sequence=3).ids[0]) == ["b", "c"]
            writer.run("docs.insert([str(i) for i in range(2000)], [[i, 1] for i in range(2000)])")
            assert docs.count(min_sequence=4) == 2002
            assert docs.check().ok
            with pytest.raises(errors.DeadlineExceeded):
                docs.count(min_sequence=99, timeout_s=0.1)


def test_a_read_only_database_refuses_writes(data_folder):
    """Every verb that writes raises ReadOnly."""
    with vecdb.open(data_folder) as db:
        db.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
    with vecdb.open(data_folder, read_only=True) as db:
        docs = db.get_collection("docs")
        writes = [
            lambda: docs.insert(["b"], [[1, 2]]),
            lambda: docs.upsert(["b"], [[1, 2]]),
            lambda: docs.update(["a"], metadata=[{"x": 1}]),
            lambda: docs.delete(["a"]),
            lambda: docs.delete(filter={}),
            lambda: docs.build_index(),
            lambda: db.create_collection("more", dimension=2),
            lambda: db.drop_collection("docs"),
            lambda: db.rename_collection("docs", "more"),
            lambda: db.set_alias("more", "docs"),
            lambda: db.drop_alias("more"),
        ]
        for write in writes:
            with pytest.raises(errors.ReadOnly):
                write()
        assert docs.get(["a"]).ids == ["a"]


def test_a_missing_database(data_folder):
    """Read-only never makes one; writing makes the folder and its parents."""
    with pytest.raises(errors.DatabaseNotFound, match="data"):
        vecdb.open(data_folder, read_only=True)
    assert not data_folder.exists()
    vecdb.open(data_folder / "deep" / "er").close()


def test_a_folder_of_something_else_is_left_alone(data_folder):
    """A folder with other files in it is refused, and nothing is added to it."""
    data_folder.mkdir()
    (data_folder / "thesis.txt").write_text("do not touch")
    with pytest.raises(errors.VecdbError, match="thesis"):
        vecdb.open(data_folder)
    assert [p.name for p in data_folder.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("which", ["catalog", "collection"])
def test_another_version_of_the_format_is_refused(data_folder, which):
    """Files of another format version are refused with both numbers, and not changed."""
    with vecdb.open(data_folder) as db:
        db.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
    folder = data_folder / layout.CATALOG_FOLDER
    if which == "collection":
        folder = next((data_folder / layout.COLLECTIONS_FOLDER).iterdir())
    with lmdb.open(str(folder), max_dbs=10, map_size=1 << 24) as env, env.begin(write=True) as txn:
        txn.put(layout.META_FORMAT, b"99", db=env.open_db(b"meta", txn=txn))
    with pytest.raises(errors.FormatMismatch, match="99") as caught, vecdb.open(data_folder) as db:
        db.get_collection("docs")
    expected = {"catalog": layout.CATALOG_FORMAT, "collection": layout.COLLECTION_FORMAT}[which]
    assert caught.value.details == {"given": 99, "expected": expected}


def test_a_file_that_is_no_database_is_refused(data_folder):
    """Garbage in the place of the LMDB file is a typed error, and closing works after it."""
    with vecdb.open(data_folder) as db:
        db.create_collection("docs", dimension=2)
    folder = next((data_folder / layout.COLLECTIONS_FOLDER).iterdir())
    (folder / layout.DATA_FILE).write_bytes(b"\x07garbage" * 4096)
    with vecdb.open(data_folder) as db:
        with pytest.raises((errors.FormatMismatch, errors.Corrupted)):
            db.get_collection("docs")
        assert db.create_collection("other", dimension=2).count() == 0


def test_litter_of_a_crash_is_swept(data_folder):
    """A folder marked as unnamed is removed at the next open; named ones and unknown data stay."""
    with vecdb.open(data_folder) as db:
        db.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
    root = data_folder / layout.COLLECTIONS_FOLDER
    (named,) = root.iterdir()
    litter, unknown, started = (root / f"{n}123456789abcdef" for n in "0f5")
    for folder in (litter, unknown, started):
        folder.mkdir()
    for folder in (litter, unknown):
        (folder / layout.DATA_FILE).write_bytes(b"something")
    for folder in (litter, named):
        (folder / layout.UNNAMED_FILE).touch()
    with vecdb.open(data_folder) as db:
        assert {p.name for p in root.iterdir()} == {named.name, unknown.name}
        assert db.get_collection("docs").count() == 1
        assert not (named / layout.UNNAMED_FILE).exists()


def test_a_missing_catalog_is_refused_and_nothing_is_deleted(data_folder):
    """Collections without a catalog are not taken for litter."""
    with vecdb.open(data_folder) as db:
        db.create_collection("docs", dimension=2).insert(["a"], [[1, 2]])
    catalog = data_folder / layout.CATALOG_FOLDER / layout.DATA_FILE
    kept = catalog.read_bytes()
    catalog.unlink()
    with pytest.raises(errors.Corrupted, match="catalog is missing"):
        vecdb.open(data_folder)
    catalog.write_bytes(kept)
    with vecdb.open(data_folder) as db:
        assert db.get_collection("docs").count() == 1


@pytest.mark.parametrize("tables", [0, 1, 2, 3])
def test_an_interrupted_first_open_is_finished(data_folder, tables):
    """A folder in which the making of the database was cut short opens as an empty database."""
    catalog = data_folder / layout.CATALOG_FOLDER
    catalog.mkdir(parents=True)
    (data_folder / layout.LOCK_FILE).write_text("12345")
    if tables:
        with lmdb.open(str(catalog), max_dbs=3) as env:
            for name in layout.CATALOG_TABLES[:tables]:
                env.open_db(name.encode())
    with vecdb.open(data_folder) as db:
        assert db.list_collections() == []
        db.create_collection("docs", dimension=2)
    with vecdb.open(data_folder) as db:
        assert [i.name for i in db.list_collections()] == ["docs"]


def test_a_reader_follows_names(data_folder):
    """A read-only database sees each collection and alias as soon as the writer has made it."""
    with Writer(data_folder) as writer, vecdb.open(data_folder, read_only=True) as db:
        for n in range(20):
            writer.run(f"db.create_collection('n{n}', dimension=2).insert(['a'], [[1, 2]])")
            assert db.get_collection(f"n{n}").count() == 1
            writer.run(f"db.set_alias('alias', 'n{n}')")
            assert db.get_collection("alias").name == f"n{n}"
            writer.run(f"db.rename_collection('n{n}', 'm{n}')")
            assert db.get_collection("alias").name == f"m{n}"


def test_a_reader_follows_through_its_rests(data_folder):
    """A read-only database closes the files of collections not used lately, and sees all that the writer has done when
    it opens them again, also in a file that was put in the place of the old one."""
    with Writer(data_folder) as writer:
        writer.run("other = db.create_collection('other', dimension=2)")
        writer.run("docs.insert(['a', 'b'], [[1, 0], [0, 1]], documents=['A', 'B'])")
        with vecdb.open(data_folder, read_only=True, max_open_collections=1) as db:
            docs, other = db.get_collection("docs"), db.get_collection("other")
            for n in range(5):
                assert other.count() == n
                assert docs._core.store._env._env is None
                writer.run(f"other.insert(['{n}'], [[1, 2]])")
                writer.run(f"docs.upsert(['a'], [[1, 0]], documents=['A{n}'])")
                if n == 3:
                    writer.run("docs.compact()")
                found = docs.query([[1, 0]], k=1, include=["document"])
                assert found.documents == [[f"A{n}"]]
            assert len(db._awake) == 1
            assert docs.check().ok
            assert other.count() == 5
            writer.run("db.drop_collection('docs')")
            with pytest.raises(errors.Closed, match="has gone"):
                docs.get(["a"])


def test_a_reader_interrupted_while_it_follows(data_folder, monkeypatch):
    """A reader whose catching up is interrupted makes its copies anew and answers right."""
    with Writer(data_folder) as writer:
        writer.run("docs.insert(['a'], [[1, 0]])")
        with vecdb.open(data_folder, read_only=True) as db:
            docs = db.get_collection("docs")
            assert docs.count() == 1
            writer.run("docs.insert(['b', 'c'], [[0, 1], [1, 1]], documents=['B', 'C'])")

            def interrupted(*_):
                raise KeyboardInterrupt

            with monkeypatch.context() as patch:
                patch.setattr(type(docs._core.index), "publish", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    docs.count()
            found = docs.query([[0, 1]], k=5, include=["document"])
            assert (found.ids, found.documents) == ([["b", "c", "a"]], [["B", "C", None]])
            assert docs.count() == 3
            assert docs.check().ok


def test_slots_of_killed_readers_are_taken_back(data_folder):
    """A reader that was killed inside a transaction keeps its slot only until the writer looks."""
    code = """
        import sys, time, vecdb
        core = vecdb.open(sys.argv[1], read_only=True).get_collection("docs")._core
        with core.read() as reader:
            reader.state()
            print("reading", flush=True)
            time.sleep(60)
    """
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 2]])
        process = child(code, data_folder)
        assert process.stdout.readline() == "reading\n"
        assert str(process.pid) in docs._core.store._env._env.readers()
        process.kill()
        process.wait()
        for _ in range(300):
            docs.upsert(["a"], [[1, 2]])
        assert str(process.pid) not in docs._core.store._env._env.readers()


def test_unknown_and_bad_engine_settings(data_folder):
    """A setting of the engine that is unknown or out of range is refused before a folder is made."""
    with pytest.raises(errors.InvalidSetting, match="cache_size"):
        vecdb.open(data_folder, cache_size=5)
    with pytest.raises(errors.InvalidSetting, match="build_threads"):
        vecdb.open(data_folder, build_threads=-1)
    assert not data_folder.exists()


def test_everything_raises_closed_after_close(data_folder):
    """A closed database and its collections raise Closed, and closing twice is fine."""
    db = vecdb.open(data_folder)
    docs = db.create_collection("docs", dimension=2)
    db.close()
    db.close()
    for call in (
        docs.count,
        docs.stats,
        docs.check,
        db.list_collections,
        lambda: docs.insert(["a"], [[1, 2]]),
    ):
        with pytest.raises(errors.Closed):
            call()


def test_a_fork_is_refused(data_folder):
    """A forked child gets a typed error instead of a damaged map."""
    code = """
        import os, sys, warnings, vecdb
        warnings.simplefilter("ignore")
        docs = vecdb.open(sys.argv[1]).create_collection("docs", dimension=2)
        docs.insert(["a"], [[1, 2]])
        if os.fork() == 0:
            try:
                docs.get(["a"])
            except vecdb.errors.Closed as error:
                print("refused:", "fork" in str(error), flush=True)
            os._exit(0)
        os.wait()
        print(docs.count())
    """
    process = child(code, data_folder)
    assert process.communicate(timeout=60)[0] == "refused: True\n1\n"


def test_the_settings_in_the_store_explain_it(data_folder):
    """The LMDB file alone says what it holds, as JSON."""
    with vecdb.open(data_folder) as db:
        db.create_collection(
            "docs", dimension=5, metric="ip", description="tea", schema={"a": "int"}
        )
    folder = next((data_folder / layout.COLLECTIONS_FOLDER).iterdir())
    with lmdb.open(str(folder), max_dbs=10, map_size=1 << 24) as env, env.begin() as txn:
        held = json.loads(txn.get(layout.META_SETTINGS, db=env.open_db(b"meta", txn=txn)))
    assert (held["dimension"], held["metric"], held["description"]) == (5, "ip", "tea")
    assert held["schema"] == {"a": "int"}


def test_opening_is_quick(data_folder, tmp_path):
    """Opening 20,000 records and answering takes well under a second."""
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=64, index="exact")
        vectors = np.random.default_rng(1).standard_normal((20_000, 64), dtype=np.float32)
        docs.insert([str(i) for i in range(20_000)], vectors)
    copies = itertools.count()

    def first_answer_s():
        copy = shutil.copytree(data_folder, tmp_path / f"copy-{next(copies)}")

        def opened():
            with vecdb.open(copy) as db:
                assert db.get_collection("docs").query(vectors[77], k=1).ids == [["77"]]

        return seconds(opened)

    once_below(1, first_answer_s)


def test_settings_of_an_older_version_are_read(data_folder):
    """A collection whose settings lack what came later opens with the defaults of the rest."""
    with vecdb.open(data_folder) as db:
        db.create_collection("docs", dimension=2, metric="l2").insert(["a"], [[1, 2]])
    folder = next((data_folder / layout.COLLECTIONS_FOLDER).iterdir())
    with lmdb.open(str(folder), max_dbs=20, map_size=1 << 24) as env, env.begin(write=True) as txn:
        meta = env.open_db(b"meta", txn=txn)
        held = json.loads(txn.get(layout.META_SETTINGS, db=meta))
        for later in ("quantization", "vectors"):
            del held[later]
        txn.put(layout.META_SETTINGS, json.dumps(held).encode(), db=meta)
        txn.delete(layout.META_SUMS, db=meta)  # nor had it checksums of them
    with vecdb.open(data_folder) as db:
        docs = db.get_collection("docs")
        assert (docs.info.quantization, dict(docs.info.vectors)) == ("auto", {})
        assert docs.get(["a"], include=["vector"]).vectors.tolist() == [[1, 2]]
        db.create_collection("docs", dimension=2, metric="l2", exist_ok=True).insert(
            ["b"], [[3, 4]]
        )


def test_a_reader_follows_named_vectors(data_folder):
    """A read-only database sees each commit's named vectors, their updates and their indexes."""
    with Writer(data_folder) as writer:
        writer.run(
            "n = db.create_collection('n', dimension=1, metric='l2', vectors={'t': dict("
            "dimension=2, metric='l2', index='hnsw')})"
        )
        writer.run("n.insert(['a', 'b'], [[1], [2]], named_vectors={'t': [[1, 0], None]})")
        with vecdb.open(data_folder, read_only=True) as db:
            docs = db.get_collection("n")
            assert docs.query([[1, 0]], vector_name="t").ids == [["a"]]
            writer.run("n.update(['b'], named_vectors={'t': [[5, 0]]})")
            writer.run("n.insert(['c'], [[3]])")
            found = docs.query([[4, 0]], vector_name="t", min_sequence=3)
            assert (found.ids, found.distances[0, :2].tolist()) == ([["b", "a"]], [1, 9])
            writer.run(
                "n.insert([f'r{i}' for i in range(1500)], [[1]] * 1500, named_vectors={'t': "
                "[[10 + i, 1] for i in range(1500)]})"
            )
            writer.run("n.build_index()")
            writer.run("n.delete(['a'])")
            assert docs.query([[0, 0]], vector_name="t", k=1, min_sequence=5).ids == [["b"]]
            wait_until(lambda: docs.stats().vectors["t"].kind == "hnsw", "the index")
            assert docs.stats().vectors["t"].indexed_rows == 1502
            assert docs.check().ok
