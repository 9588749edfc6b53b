"""Data files that are cut off, removed or replaced behind a process that has them open: it lives and says so."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from seeds import RUN_SEED
from server_process import environment
from test_server_process_faults import serving

import vecdb
from vecdb.errors import Corrupted
from vecdb.index import mapped_file
from vecdb.store.watched_file import WatchedFile
from vecdb_client import errors

DIMENSION = 32
WORDS = "cut off while it was open"


def fill(db, name, first, count):
    docs = db.get_collection(name)
    ids = [f"r{n}" for n in range(first, first + count)]
    docs.insert(ids, np.random.default_rng(first).random((count, DIMENSION)), documents=ids)
    return docs


def make(db, *names):
    """Collections with an index and a tail; the data file of each is found by the time it was made."""
    for name in names:
        db.create_collection(name, dimension=DIMENSION, index="hnsw", quantization="float16")
        fill(db, name, 0, 1_500)
        db.get_collection(name).build_index()
        fill(db, name, 1_500, 300)


def data_files(folder):
    made = list((folder / "collections").iterdir())
    return [one / "data.mdb" for one in sorted(made, key=lambda one: one.stat().st_ino)]


def path_of(folder, names, name):
    return dict(zip(names, data_files(folder), strict=True))[name]


def verbs(docs):
    """Each way to read or write that comes to the store."""
    vector = np.ones(DIMENSION)
    return [
        lambda: docs.get(["r3"], include=["document", "vector"]),
        lambda: docs.query(vector, k=3, include=["document"]),
        lambda: list(docs.scan(include=["vector", "document"])),
        lambda: docs.insert(["new"], np.ones((1, DIMENSION))),
        lambda: docs.delete(["r1"]),
        docs.stats,
        docs.compact,
    ]


@pytest.mark.long
@pytest.mark.parametrize("durability", ["commit", "interval"])
@pytest.mark.parametrize("left", ["nothing", "a meta page", "a part", "all but a page"])
def test_a_server_whose_file_is_cut_off(tmp_path, durability, left):
    """Each verb of that collection is Corrupted in a sentence that names the file, before and after a write;
    other collections are read and written, the damaged one can be dropped, and the server stops in order."""
    print(f"seed {RUN_SEED}")
    rng = random.Random(f"{RUN_SEED} {durability} {left}")
    with serving(tmp_path / "db", "--durability", durability) as (_, db):
        make(db, "hurt")
        hurt = path_of(tmp_path / "db", ["hurt"], "hurt")
        make(db, "other")
        size = hurt.stat().st_size
        length = {"nothing": 0, "a meta page": 4_096, "all but a page": size - 4_096}.get(left)
        os.truncate(hurt, rng.randrange(8_192, size - 8_192) if length is None else length)
        docs = db.get_collection("hurt")
        for _ in range(2):
            for verb in verbs(docs):
                with pytest.raises(errors.Corrupted, match=WORDS) as raised:
                    verb()
                assert str(hurt) in str(raised.value)
            assert WORDS in docs.check().problems[0]
            # A hole in the place of what is gone changes nothing.
            os.truncate(hurt, size)
        other = fill(db, "other", 5_000, 10)
        assert other.count() == 1_810
        assert other.get(["r3"], include=["document"]).documents == ["r3"]
        assert other.query(np.ones(DIMENSION), k=3, include=["document"]).documents[0]
        assert other.check().ok
        db.drop_collection("hurt")
        assert not hurt.exists()
        make(db, "hurt")
        assert db.get_collection("hurt").check().ok


@pytest.mark.long
@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_server_whose_file_is_gone(tmp_path, how):
    """What is open can still be read and exported; a write, which nobody would find again, is Corrupted, and
    check says what has become of the file. Other collections go on."""
    with serving(tmp_path / "db") as (_, db):
        make(db, "hurt")
        hurt = path_of(tmp_path / "db", ["hurt"], "hurt")
        make(db, "other")
        if how == "replaced":
            shutil.copy(hurt, tmp_path / "copy")
            os.replace(tmp_path / "copy", hurt)
        else:
            hurt.unlink()
        docs = db.get_collection("hurt")
        for write in (
            lambda: docs.insert(["new"], np.ones((1, DIMENSION))),
            lambda: docs.delete(["r1"]),
            docs.build_index,
        ):
            with pytest.raises(errors.Corrupted, match=f"{how}.* nothing was written"):
                write()
        assert f"was {how}" in docs.check().problems[0]
        assert docs.count() == 1_800
        assert docs.get(["r3"], include=["document"]).documents == ["r3"]
        assert sum(len(batch.ids) for batch in docs.scan(include=["document"])) == 1_800
        assert fill(db, "other", 5_000, 10).check().ok


# Reads what it is told to, and says what came of it.
READER = """
    import sys, vecdb
    from vecdb.errors import VecdbError
    with vecdb.open(sys.argv[1], read_only=True) as db:
        docs = db.get_collection("docs")
        for _ in sys.stdin:
            try:
                found = docs.get(["r3"], include=["vector", "document"]).documents
                n = sum(len(batch.ids) for batch in docs.scan(include=["vector", "document"]))
                print(found, n, flush=True)
            except VecdbError as error:
                print(error.reason, error, flush=True)
"""


@pytest.mark.parametrize("where", ["what the reader knew", "what was written since"])
def test_a_reader_beside_the_writer(data_folder, where):
    """A process that reads beside the writer lives on too, whether pages are gone that it has seen before or
    such as the writer has added since."""
    with vecdb.open(data_folder, auto_build=False) as db:
        db.create_collection("docs", dimension=DIMENSION)
        docs = fill(db, "docs", 0, 500)
        (path,) = data_files(data_folder)
        seen = path.stat().st_size
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(READER), str(data_folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip

        def ask():
            child.stdin.write("\n")
            child.stdin.flush()
            return child.stdout.readline().strip()

        try:
            assert ask() == "['r3'] 500"
            fill(db, "docs", 500, 3_000)
            assert path.stat().st_size > 2 * seen
            os.truncate(path, seen - 4_096 if where == "what the reader knew" else seen + 4_096)
            assert ask().startswith("CORRUPTED")
            assert ask().startswith("CORRUPTED")
            with pytest.raises(Corrupted, match=WORDS):
                docs.get(["r3"], include=["document"])
            child.stdin.close()
            assert child.wait(60) == 0
        finally:
            child.kill()
            child.wait()


def test_the_catalog_cut_off(tmp_path):
    """Where the file of the names is cut off, changes of names are refused in words, and collections that are
    open are read and written."""
    with serving(tmp_path / "db") as (_, db):
        make(db, "docs")
        os.truncate(tmp_path / "db" / "catalog" / "data.mdb", 4_096)
        for change in (
            lambda: db.create_collection("more", dimension=2),
            lambda: db.set_alias("alias", "docs"),
            lambda: db.drop_collection("docs"),
        ):
            with pytest.raises(errors.Corrupted, match=WORDS):
                change()
        assert fill(db, "docs", 5_000, 10).count() == 1_810


def test_pages_that_were_never_written_are_not_missed(data_folder):
    """A file is taken for cut off only when it is shorter than it was: LMDB may count pages at its end that it
    never wrote."""
    with vecdb.open(data_folder, auto_build=False) as db:
        docs = db.create_collection("docs", dimension=DIMENSION)
        (path,) = data_files(data_folder)
        fill(db, "docs", 0, 50)
        watched = WatchedFile(path, 1 << 20)  # pages so large that the file can never hold them all
        environment = docs._core.store._env
        with environment.read() as transaction:
            watched.must_hold(environment._env, transaction)
        watched.must_be_whole()
        watched.close()


@pytest.mark.parametrize("how", ["cut off", "emptied", "replaced"])
def test_a_file_that_rests(data_folder, how):
    """A collection whose file rests, and is cut off, emptied or replaced meanwhile, is Corrupted at the next call;
    LMDB makes no new file of an empty one."""
    with vecdb.open(data_folder, auto_build=False) as db:
        db.create_collection("docs", dimension=DIMENSION)
        docs = fill(db, "docs", 0, 500)
        (path,) = data_files(data_folder)
        assert docs._core.store._env.rest()
        if how == "replaced":
            shutil.copy(path, data_folder / "copy")
            os.replace(data_folder / "copy", path)
        else:
            os.truncate(path, 0 if how == "emptied" else path.stat().st_size - 4_096)
        size = path.stat().st_size
        for _ in range(2):
            with pytest.raises(Corrupted, match="replaced" if how == "replaced" else WORDS):
                docs.get(["r3"], include=["document"])
            with pytest.raises(Corrupted):
                docs.delete(["r1"])
        assert path.stat().st_size == size


KINDS = {
    "a graph over vectors": {"dimension": DIMENSION, "index": "hnsw", "quantization": "none"},
    "a graph over codes": {"dimension": 64, "index": "hnsw", "quantization": "auto"},
    "a graph of float16": {"dimension": DIMENSION, "index": "hnsw", "quantization": "float16"},
    "lists": {"dimension": DIMENSION, "index": "ivf", "quantization": "none"},
}


@pytest.fixture(scope="module", params=KINDS)
def built(request, tmp_path_factory):
    """A folder in which a server has built an index of one kind, and the vectors in it."""
    settings = KINDS[request.param]
    folder = tmp_path_factory.mktemp("built") / "db"
    vectors = np.random.default_rng(3).random((3_000, settings["dimension"]), np.float32)
    with serving(folder) as (_, db):
        docs = db.create_collection("docs", **settings)
        docs.insert(
            [f"r{n}" for n in range(3_000)], vectors, metadata=[{"n": n % 2} for n in range(3_000)]
        )
        docs.build_index()
    return folder, vectors


@pytest.mark.long
@pytest.mark.parametrize("left", ["nothing", "half"])
def test_index_files_cut_off(tmp_path, built, left):
    """A server whose index files are all cut off goes on: queries, with a filter and without, are answered exactly at
    once, records are written, and the index is built again by itself."""
    folder, vectors = built
    # Where an index was built it is in memory; a server that is started again maps the files.
    shutil.copytree(folder, tmp_path / "db")
    with serving(tmp_path / "db") as (_, db):
        docs = db.get_collection("docs")
        assert docs.stats().index.indexed_rows == 3_000
        assert docs.query(vectors[7], k=1).ids == [["r7"]]
        files = list(data_files(tmp_path / "db")[0].parent.glob("index-*"))
        assert files
        for path in files:
            os.truncate(path, 0 if left == "nothing" else path.stat().st_size // 2)
        for number in (7, 8, 2_000):
            assert docs.query(vectors[number], k=1).ids == [[f"r{number}"]]
            found = docs.query(vectors[number : number + 20], k=5, filter={"n": 1})
            assert all(int(i[1:]) % 2 for ids in found.ids for i in ids)
        docs.insert(["new"], vectors[:1] + 5)
        assert docs.query(vectors[0] + 5, k=1).ids == [["new"]]
        end = time.monotonic() + 60
        while not docs.stats().index.indexed_rows:
            assert time.monotonic() < end, docs.stats().index
            time.sleep(0.05)
        docs.build_index()
        assert docs.check().ok
        assert docs.stats().index.last_error == ""


def test_named_vectors_whose_index_is_cut_off(data_folder):
    """The index of one field is taken out of service whichever field is asked."""
    vectors = np.random.default_rng(4).random((1_500, 8), np.float32)
    with vecdb.open(data_folder, auto_build=False) as db:
        docs = db.create_collection(
            "docs", dimension=2, index="exact", vectors={"title": {"dimension": 8, "index": "hnsw"}}
        )
        docs.insert(
            [f"r{n}" for n in range(1_500)], np.ones((1_500, 2)), named_vectors={"title": vectors}
        )
        docs.build_index()
    with vecdb.open(data_folder, auto_build=False) as db:
        docs = db.get_collection("docs")
        assert docs.stats().vectors["title"].indexed_rows == 1_500
        for path in data_files(data_folder)[0].parent.glob("index-*"):
            os.truncate(path, 100)
        assert docs.query(vectors[9], k=1, vector_name="title").ids == [["r9"]]
        assert "100 bytes" in docs.stats().vectors["title"].last_error


def test_a_reader_of_an_index_that_is_cut_off(data_folder):
    """A process that only reads answers exactly too, though it can build nothing; one with an index that was removed
    goes on with what it has mapped."""
    vectors = np.random.default_rng(4).random((1_500, 8), np.float32)
    with vecdb.open(data_folder, auto_build=False) as db:
        docs = db.create_collection("docs", dimension=8, index="hnsw")
        docs.insert([f"r{n}" for n in range(1_500)], vectors)
        docs.build_index()
    for cut in (False, True):
        with vecdb.open(data_folder, read_only=True) as db:
            docs = db.get_collection("docs")
            held = {
                path: path.read_bytes()
                for path in data_files(data_folder)[0].parent.glob("index-*")
            }
            for path in held:
                if cut:
                    os.truncate(path, 100)
                else:
                    path.unlink()
            assert docs.query(vectors[9], k=1).ids == [["r9"]]
            assert bool(docs.stats().index.indexed_rows) != cut
            for path, content in held.items():
                path.write_bytes(content)


def test_more_files_than_are_watched_by_descriptors(tmp_path, monkeypatch):
    """Beyond so many descriptors files are looked at by name: what is cut off is seen all the same, and what was
    removed is still there behind its map."""
    monkeypatch.setattr(mapped_file, "_MOST_DESCRIPTORS", 0)
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    mapped = mapped_file.MappedFile(path)
    assert mapped.is_whole
    os.truncate(path, 99)
    assert not mapped.is_whole
    path.unlink()
    assert mapped.is_whole


@pytest.mark.long
@pytest.mark.parametrize("durability", ["commit", "interval"])
@pytest.mark.parametrize("left", [0, 4_096])
def test_a_lock_file_cut_off(tmp_path, durability, left):
    """A server whose LMDB lock file is cut off says so from each verb of that collection, serves others, and stops in
    order; the next one finds every record."""
    with serving(tmp_path / "db", "--durability", durability) as (_, db):
        make(db, "hurt")
        hurt = path_of(tmp_path / "db", ["hurt"], "hurt")
        make(db, "other")
        db.get_collection("hurt").get(["r3"])
        os.truncate(hurt.with_name("lock.mdb"), left)
        for _ in range(2):
            for verb in verbs(db.get_collection("hurt")):
                with pytest.raises(errors.Corrupted, match=r"lock\.mdb was cut off"):
                    verb()
        assert fill(db, "other", 5_000, 10).count() == 1_810
    with serving(tmp_path / "db") as (_, db):
        docs = db.get_collection("hurt")
        assert docs.count() == 1_800
        assert docs.check().ok
        fill(db, "hurt", 5_000, 10)


# Cuts the files off after they were looked at, and before they are read.
IN_BETWEEN = """
    import os, sys
    from pathlib import Path
    import numpy as np, vecdb
    from vecdb.index.mapped_file import MappedFile
    folder, which = sys.argv[1:]
    made = next(Path(folder).glob("collections/*/index-*")).parent
    with vecdb.open(folder, auto_build=False) as db:
        docs = db.get_collection("docs")
        if which == "index":
            looked = MappedFile.is_whole.fget
            def cut(self):
                found = looked(self)
                for path in made.glob("index-*"):
                    os.truncate(path, 0)
                return found
            MappedFile.is_whole = property(cut)
            docs.query(np.ones(8), k=3)
        else:
            with docs._core.read() as reader:
                os.truncate(made / "data.mdb", 8_192)
                reader.id_range(0, 100)
    print("lives")
"""


@pytest.mark.parametrize("which", ["index", "data"])
def test_a_read_that_is_running_when_its_file_is_cut_off(data_folder, which):
    """What the documentation says of it: the process is ended by SIGBUS, as by a kill. Then other collections have all
    that was acknowledged, an index is built again, and a data file is named as damaged."""
    vectors = np.random.default_rng(4).random((1_500, 8), np.float32)
    with vecdb.open(data_folder, auto_build=False) as db:
        docs = db.create_collection("docs", dimension=8, index="hnsw")
        docs.insert([f"r{n}" for n in range(1_500)], vectors)
        docs.build_index()
        db.create_collection("other", dimension=8).insert(["a"], np.ones((1, 8)))
    command = [sys.executable, "-c", textwrap.dedent(IN_BETWEEN), str(data_folder), which]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, ""), done.stderr
    with vecdb.open(data_folder, auto_build=False) as db:
        assert db.get_collection("other").check().ok
        assert db.get_collection("other").count() == 1
        if which == "data":
            with pytest.raises(Corrupted, match="is damaged"):
                db.get_collection("docs")
            return
        docs = db.get_collection("docs")
        assert docs.query(vectors[9], k=1).ids == [["r9"]]
        assert docs.build_index().indexed_rows == 1_500
        assert docs.check().ok
