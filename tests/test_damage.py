"""Files whose bytes were changed: what is wrong is named, nobody dies, and no answer is wrong."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from seeds import RUN_SEED

import vecdb
from vecdb.errors import Corrupted, VecdbError
from vecdb.store import nodes
from vecdb.store.page_faults import file_faults
from vecdb.store.pages import MAIN, PageFile

FLIPS = 150


def make(folder):
    """A database with dead, purged and live records of every kind; what it holds, by id."""
    rng = np.random.default_rng(5)
    with vecdb.open(folder, history_s=0) as db:
        docs = db.create_collection("docs", dimension=16, vectors={"title": {"dimension": 4}})
        for batch in range(8):
            ids = [f"r{i}" for i in rng.choice(900, 150, replace=False)]
            titles = [rng.random(4).tolist() if rng.random() < 0.5 else None for _ in ids]
            docs.upsert(
                ids,
                rng.random((150, 16)),
                metadata=[{"batch": batch, "name": i} for i in ids],
                documents=[i * int(rng.integers(1, 90)) for i in ids],
                contents=[i.encode() * 1_500 if i.endswith("77") else None for i in ids],
                named_vectors={"title": titles},
            )
            docs.delete(ids[:20])
        docs.compact()
        docs.upsert(["last"], rng.random((1, 16)))
        docs.delete(["last"])
    return data_file(folder)


def data_file(folder):
    (collection,) = (folder / "collections").iterdir()
    return collection / "data.mdb"


# Opens, checks and reads everything, and only then says what came of it: once it has, the test changes the
# file again. Damage may end this process, not the test's.
READER = """
    import sys, vecdb
    from vecdb.errors import VecdbError
    for folder in sys.stdin:
        report, said = None, None
        try:
            with vecdb.open(folder.strip(), read_only=True) as db:
                docs = db.get_collection("docs")
                report = docs.check()
                if not report.ok:
                    said = "named " + report.problems[0]
                found = []
                for batch in docs.scan(include=["vector", "metadata", "document", "content", "named_vectors"]):
                    for n, i in enumerate(batch.ids):
                        title = batch.named_vectors["title"][n].tobytes()
                        content = batch.contents[n] and batch.contents[n].data
                        found.append((i, batch.vectors[n].tobytes(), title, str(batch.metadata[n]),
                                      batch.documents[n], content))
                if report.ok:
                    said = "ok " + hash_of(found)
        except VecdbError as error:
            # Whatever check has named, a scan may refuse to read.
            if report is None or report.ok:
                said = f"refused {error.reason} {error}"
        print(said, flush=True)
"""
HASH = """
    import hashlib
    def hash_of(found):
        return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()
"""


class Reading:
    """A process that reads damaged databases."""

    def __init__(self):
        code = textwrap.dedent(HASH) + textwrap.dedent(READER)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, folder):
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def close(self):
        self.process.stdin.close()
        return self.process.wait(60)


@pytest.fixture
def reading():
    child = Reading()
    yield child
    assert child.close() == 0


def test_a_sound_file_has_no_faults(tmp_path):
    """The pages of files that were written, compacted and reopened are found to be in order."""
    assert file_faults(make(tmp_path / "db")) == []
    assert file_faults(tmp_path / "db" / "catalog" / "data.mdb") == []


@pytest.mark.long
def test_a_flipped_bit_anywhere_in_a_collection(tmp_path, reading):
    """After one flipped bit the file is refused, or the damage is named, or every record is as before."""
    print(f"seed {RUN_SEED}")
    rng = random.Random(RUN_SEED)
    path = make(tmp_path / "db")
    before = reading.ask(tmp_path / "db")
    assert before.startswith("ok ")
    outcomes = {"ok": 0, "named": 0, "refused": 0}
    size = path.stat().st_size
    for _ in range(FLIPS):
        bit = rng.randrange(8 * size)
        flip(path, bit)
        found = reading.ask(tmp_path / "db")
        outcomes[found.partition(" ")[0]] += 1
        assert found == before or not found.startswith("ok"), (RUN_SEED, bit)
        flip(path, bit)
    assert reading.ask(tmp_path / "db") == before
    assert min(outcomes["named"], outcomes["refused"]) > 0, outcomes


def flip(path, bit):
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def spoil(path, at):
    """Two bits of a byte, which no checksum puts right."""
    flip(path, 8 * at + 1)
    flip(path, 8 * at + 2)


def test_a_file_cut_off_anywhere_is_refused(tmp_path, reading):
    """A data file of any shorter length is refused in words, whole or not: nobody dies of a missing page."""
    print(f"seed {RUN_SEED}")
    rng = random.Random(RUN_SEED)
    path = make(tmp_path / "db")
    whole = path.read_bytes()
    before = reading.ask(tmp_path / "db")
    lengths = [0, 1, 4_095, 4_096, 8_191, 8_192, *(rng.randrange(len(whole)) for _ in range(20))]
    for length in sorted(lengths, reverse=True):
        os.truncate(path, length)
        found = reading.ask(tmp_path / "db")
        assert found.startswith("refused") or found == before, (RUN_SEED, length, found)
        assert not found.startswith("ok") or length > len(whole) // 2, (RUN_SEED, length)
    path.write_bytes(whole)
    assert reading.ask(tmp_path / "db") == before


@pytest.mark.parametrize("kind", ["faiss", "rows", "missing", "pipe", "link"])
def test_a_damaged_index_file_is_named_and_made_again(data_folder, kind):
    """A changed or missing index file, or what is no file: check names it, answers stay right, and it is built again."""
    vectors = np.random.default_rng(3).random((3_000, 8), dtype=np.float32)
    with vecdb.open(data_folder, auto_build=False) as db:
        docs = db.create_collection("docs", dimension=8, index="hnsw")
        docs.insert([f"r{n}" for n in range(3_000)], vectors)
        docs.build_index()
        assert docs.check().ok
        folder = data_file(data_folder).parent
        (path,) = folder.glob("*.rows" if kind == "rows" else "*.faiss")
        if kind in ("faiss", "rows"):
            flip(path, 8 * (path.stat().st_size // 2))
        else:
            path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to(path.name)
        (problem,) = docs.check().problems
        assert path.name in problem
    with vecdb.open(data_folder) as db:
        docs = db.get_collection("docs")
        assert docs.query(vectors[7], k=1).ids == [["r7"]]
        docs.build_index()
        assert docs.check().ok


def test_a_damaged_page_is_named_where_it_is(tmp_path):
    """The error of a damaged page says which page of which table, and carries all of them as details."""
    path = make(tmp_path / "db")
    size = 4_096
    raw = bytearray(path.read_bytes())
    leaf = next(
        n for n in range(2, len(raw) // size)
        if raw[n * size + 10] == 2 and int.from_bytes(raw[n * size : n * size + 8], "little") == n
        and file_faults_with(path, raw, n * size + 14)
    )  # fmt: skip
    with (
        pytest.raises(VecdbError, match=f"page {leaf} ") as raised,
        vecdb.open(tmp_path / "db") as db,
    ):
        db.get_collection("docs")
    assert raised.value.reason == "CORRUPTED"
    assert raised.value.details["faults"]


def file_faults_with(path, raw, at):
    """Flips a bit at `at` in the file, and leaves it so if the page is in use."""
    changed = bytearray(raw)
    changed[at] ^= 1
    path.write_bytes(changed)
    if file_faults(path):
        return True
    path.write_bytes(raw)
    return False


def test_a_file_that_is_replaced_while_it_is_opened_is_one_of_both(tmp_path):
    """Compaction puts another file in the place of one: who looks it over then reads one of them, whole."""
    path, long, short = tmp_path / "data", tmp_path / "long", tmp_path / "short"
    stop = threading.Event()

    def replace():
        while not stop.is_set():
            for other, size in ((long, 9 * 4_096), (short, 4 * 4_096)):
                other.write_bytes(bytes(size))
                os.replace(other, path)

    path.write_bytes(bytes(4 * 4_096))
    writer = threading.Thread(target=replace)
    writer.start()
    try:
        sizes = {len(PageFile(path).raw) for _ in range(3_000)}
    finally:
        stop.set()
        writer.join()
    assert sizes == {9 * 4_096, 4 * 4_096}


def leaves_of_metadata(path):
    """The pages of that table's leaves, in the order of their keys."""
    file = PageFile(path)
    tree = file.subtrees(file.walk(file.metas()[0].main, MAIN).entries)["metadata"]
    return list(dict.fromkeys(file.walk(tree, "metadata").entries.pages.tolist()))


def test_a_pointer_that_leads_out_of_its_page(tmp_path):
    """Whatever pointer of a leaf is changed so that it leads into another page, as sound as what is there may look,
    the page is named."""
    print(f"seed {RUN_SEED}")
    rng, size = random.Random(RUN_SEED), 4_096
    path = make(tmp_path / "db")
    raw = path.read_bytes()
    leaves = leaves_of_metadata(path)
    assert len(leaves) > 2
    for page in leaves:
        start = page * size
        count = (int.from_bytes(raw[start + 12 : start + 14], "little") - 16) // 2
        at = start + 16 + 2 * rng.randrange(count)
        changed = bytearray(raw)
        away = int.from_bytes(raw[at : at + 2], "little") + size * rng.randrange(1, 15)
        changed[at : at + 2] = away.to_bytes(2, "little")
        path.write_bytes(changed)
        assert f"page {page} (a leaf of table metadata) is damaged" in file_faults(path)
    path.write_bytes(raw)
    assert file_faults(path) == []


def test_pages_are_judged_alike_whichever_are_looked_at_with_them(tmp_path, monkeypatch):
    """However few pages are looked at in one go, the same faults are named, and entries across pages are compared."""
    print(f"seed {RUN_SEED}")
    rng, size = random.Random(RUN_SEED), 4_096
    path = make(tmp_path / "db")
    raw = path.read_bytes()
    leaves = leaves_of_metadata(path)
    # Two whole leaves in each other's place: only the order of their keys tells.
    first, second = (n * size for n in leaves[1:3])
    swapped = bytearray(raw)
    swapped[first + 8 : first + size] = raw[second + 8 : second + size]
    swapped[second + 8 : second + size] = raw[first + 8 : first + size]
    damaged = [bytes(swapped)]
    for _ in range(20):
        changed = bytearray(raw)
        for _ in range(3):
            changed[rng.randrange(2 * size, len(raw))] ^= 1 << rng.randrange(8)
        damaged.append(bytes(changed))
    for one in damaged:
        path.write_bytes(one)
        found = []
        for pages in (1, 3, 1 << 20):
            monkeypatch.setattr(nodes, "_SLICE_PAGES", pages)
            found.append(file_faults(path))
        assert found[0] == found[1] == found[2]
    path.write_bytes(damaged[0])
    assert any("keys out of order" in fault for fault in file_faults(path))


@pytest.mark.parametrize("how", ["file", "folder", "cut off"])
def test_a_collection_that_is_gone_or_damaged_is_named_and_can_be_dropped(data_folder, how):
    """Whatever is left of its files, the error says which collection it is, its neighbours serve, and after it was
    dropped, its name is free and nothing of it is left."""
    with vecdb.open(data_folder) as db:
        for name in ("hurt", "other"):
            db.create_collection(name, dimension=2).insert(["a"], [[1.0, 2.0]])
        db.set_alias("alias", "hurt")
        (hurt,) = (
            one for one in (data_folder / "collections").iterdir()
            if one.name == db._catalog.names().collections["hurt"]
        )  # fmt: skip
    if how == "folder":
        shutil.rmtree(hurt)
    elif how == "file":
        (hurt / "data.mdb").unlink()
    else:
        os.truncate(hurt / "data.mdb", 5_000)
    with vecdb.open(data_folder) as db:
        with pytest.raises(Corrupted, match="collection 'hurt'") as raised:
            db.get_collection("alias")
        assert raised.value.details["collection"] == "hurt"
        assert db.get_collection("other").count() == 1
        db.drop_collection("hurt")
        assert [info.name for info in db.list_collections()] == ["other"]
        assert db.list_aliases() == {}
        assert len(list((data_folder / "collections").iterdir())) == 1
        db.create_collection("hurt", dimension=2).insert(["b"], [[1.0, 2.0]])
    assert all(one.ok for one in vecdb.check(data_folder))
