"""`check` compares what an open collection holds in memory with its store: all of it, at one moment, beside writers."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import vecdb
from vecdb import copies
from vecdb.core import Core
from vecdb.index.live import Bits

ROWS = 6_000
WRITER = """
import sys, vecdb
with vecdb.open(sys.argv[1], auto_build=False) as db:
    docs = db.get_collection("docs")
    print("open", flush=True)
    for line in sys.stdin:
        print(docs.insert([line.strip()], [[1] * 40]).sequence - 1, flush=True)
"""
SETTINGS = {"auto_build": False, "device": "cpu", "history_s": 0.0, "compact_dead_share": 1.0}


def metadata(n: int) -> dict[str, object]:
    return {
        "n": n % 50,
        "x": n / 7,
        "word": f"w{n % 9}",
        "tags": [f"t{n % 3}", n % 4],
        "flag": n % 2 == 0,
        "deep": {"when": n} if n % 5 else {"when": None},
    }


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of all kinds: replaced, deleted, purged, keyed and fresh ones, with a named field and an index."""
    folder = tmp_path_factory.mktemp("copies") / "data"
    vectors = np.random.default_rng(3).random((ROWS, 40), np.float32)
    with vecdb.open(folder, **SETTINGS) as db:
        docs = db.create_collection(
            "docs", dimension=40, metric="l2", index="hnsw", vectors={"title": {"dimension": 2}}
        )
        docs.insert(
            [f"r{n}" for n in range(ROWS)],
            vectors,
            metadata=[metadata(n) for n in range(ROWS)],
            named_vectors={"title": [None if n % 3 else [n, 1.0] for n in range(ROWS)]},
        )
        docs.delete([f"r{n}" for n in range(100, 200)])
        docs.compact()
        docs.build_index()
    return folder


@pytest.fixture
def docs(stored: Path, data_folder: Path) -> Iterator[vecdb.Collection]:
    """The same, open, with all that an open collection may hold in memory."""
    shutil.copytree(stored, data_folder)
    with vecdb.open(data_folder, **SETTINGS) as db:
        docs = db.get_collection("docs")
        vectors = np.ones((300, 40), np.float32)
        docs.upsert(["r5", "r6"], vectors[:2], metadata=[{"n": 1}, {}])
        docs.delete(["r7", "r8"])
        docs.insert([f"s{n}" for n in range(300)], vectors, metadata=[{"word": "new"}] * 300)
        assert docs.count({"n": 3}) == 118
        core = docs._core
        for path in ("n", "word", "tags", "x"):
            core.columns.column(path).want_postings(core.view.n_rows - 50)
        core.columns.wait_sorted()
        docs.get([f"r{n}" for n in range(3_000)], include=["vector"])  # learns where blocks lie
        docs.query(vectors[:30], k=100)  # keeps texts of ids
        assert docs.stats().purged_rows == 100
        yield docs


def flip_live(core: Core, row: int, field: int = -1) -> None:
    bits: Bits = core.all_fields[field].index.view.live
    raw = bits.copy() if not bits.flags.writeable else bits
    raw[row // 8] ^= 1 << row % 8
    core.all_fields[field].index.view.live = raw


def swapped_ids(core: Core) -> None:
    start = int(core.ids._ends[9])
    core.ids._texts[start : start + 2] = b"zz"


def swapped_order(core: Core) -> None:
    positions = core.columns.column("n")._postings.rows.positions
    positions[[10, 11]] = positions[[11, 10]]


PLANTED: dict[str, tuple[Callable[[Core], object], str]] = {
    "live": (lambda core: flip_live(core, 30), "row 30 is held as dead and is live"),
    "dead": (
        lambda core: flip_live(core, 7),
        "row 7 is held as dead and is live, or the other way",
    ),
    "named": (lambda core: flip_live(core, 33, 0), "vector field 'title': row 33"),
    "count": (
        lambda core: setattr(core.index.view, "n_live", 5),
        "the index counts 5 live rows, the store has 6198",
    ),
    "main": (
        lambda core: core.index.view.main.rows.__setitem__(3, 4),
        "live, but the index lacks its vector",
    ),
    "tail": (
        lambda core: setattr(core.index.view, "pieces", ()),
        "row 6000 is live, but the index lacks its vector, 302 such rows",
    ),
    "ids": (swapped_ids, "row 9 is held with another id"),
    "texts": (
        lambda core: core.ids._kept.texts.__setitem__(
            core.ids._kept.there.nonzero()[0][0], "other"
        ),
        "is held with another text of its id",
    ),
    "fresh": (
        lambda core: core.store._fresh._spans.newer.rows.__setitem__(b"s7", 6_100),
        "id b's7' is held with another row",
    ),
    "ghost": (
        lambda core: core.store._fresh._spans.newer.rows.__setitem__(b"ghost", 6_100),
        "id b'ghost' is held with another row",
    ),
    "place": (
        lambda core: core.store._mapped[0]._known.starts.__setitem__(1, 3),
        "block 1 of the vectors of field 0 does not lie where",
    ),
    "death": (
        lambda core: core.deaths._rows.__setitem__(core.deaths._n - 1, 77),
        "row 77 is held as dead and is not",
    ),
    "died": (
        lambda core: core.deaths._sequences.__setitem__(core.deaths._n - 1, 99),
        "row 8 is held as dead since another commit",
    ),
    "purged": (
        lambda core: core.deaths._sequences.__setitem__(0, 99),
        "row 100 is purged, but held as dead since a commit behind the horizon",
    ),
    "int": (
        lambda core: core.columns.column("n")._rows.data.__setitem__(40, 7),
        "metadata 'n' of row 40 is held with another value",
    ),
    "type": (
        lambda core: core.columns.column("x")._rows.tags.__setitem__(41, 3),
        "metadata 'x' of row 41 is held with another value",
    ),
    "string": (
        lambda core: core.columns.column("word")._strings.__setitem__(2, "wx"),
        "metadata 'word' of row 2 and 655 more",
    ),
    "code": (
        lambda core: core.columns.column("word")._codes.__setitem__("w4", 2),
        "metadata 'word' of row 4 and",
    ),
    "element": (
        lambda core: core.columns.column("tags")._elements.data.__setitem__(21, 9),
        "metadata 'tags' of row 10 is held",
    ),
    "owner": (
        lambda core: core.columns.column("tags")._element_rows.__setitem__(21, 11),
        "metadata 'tags' of row 10 and 1 more",
    ),
    "missing": (
        lambda core: core.columns.column("deep.when")._rows.tags.__setitem__(5, 3),
        "metadata 'deep.when' of row 5 is held",
    ),
    "values": (
        lambda core: core.columns.column("flag")._rows.counts.__setitem__(1, 0),
        "metadata 'flag': 2950 values are counted by type",
    ),
    "path": (
        lambda core: core.columns._columns.pop("flag"),
        "metadata 'flag' of row 0 is not held",
    ),
    "order": (swapped_order, "metadata 'n': the sorted order of its values"),
    "orders": (
        lambda core: core.columns.column("tags")._postings.elements.starts.__setitem__(4, 1),
        "metadata 'tags': the sorted order of its elements of lists",
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_copy_that_is_not_as_stored_is_named_and_made_anew(
    docs: vecdb.Collection, planted: str
) -> None:
    """One wrong bit of any copy in memory is named by check, which then lets go of the copies: they follow from the store."""
    plant, words = PLANTED[planted]
    plant(docs._core)
    report = docs.check()
    assert not report.ok
    assert [one for one in report.problems if words in one], report.problems
    assert all("made anew from the store" in one for one in report.problems)
    assert docs.check().problems == ()
    assert docs.count({"n": 3}) == 118
    assert docs.query([[0] * 40], k=1, exact=True).ids[0]


def test_copies_stay_where_the_store_has_faults(
    docs: vecdb.Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What memory holds is not measured by a damaged store, nor thrown away for it: it may be what is right."""
    swapped_ids(docs._core)
    held = docs._core.ids
    with monkeypatch.context() as patch:
        patch.setattr("vecdb.collection_stats.problems", lambda reader, interrupt: iter(["torn"]))
        assert docs.check().problems == ("torn",)
    assert docs._core.ids is held
    assert len(docs.check().problems) == 1


def test_writers_go_on_while_copies_are_compared(
    docs: vecdb.Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lane is kept for the moment only: what others write, delete and compact meanwhile is no fault, and waits for nothing."""
    done: list[int] = []
    compared = copies._ids

    def slow(*given: object) -> Iterator[str]:
        def write() -> None:
            docs.insert(["late"], [[1] * 40], metadata=[{"word": "late", "brand": "new"}])
            docs.delete([f"r{n}" for n in range(1_000, 1_100)])
            docs.delete(filter={"n": 3})
            with docs._core.exclusive():
                done.append(sum(docs._core.store.purge(docs._core.view.sequence)))

        writer = threading.Thread(target=write)
        writer.start()
        writer.join(30)
        yield from compared(*given)

    with monkeypatch.context() as patch:
        patch.setattr(copies, "_ids", slow)
        assert docs.check().problems == ()
    assert len(done) == 1
    assert docs.count({"n": 3}) == 0
    assert docs.check().problems == ()


def test_a_reader_beside_a_writer_compares_its_own_moment(
    stored: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only process that is behind its writer by a commit has no fault; a wrong copy of it is named all the same."""
    shutil.copytree(stored, data_folder)
    with (
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(data_folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as writer,
        vecdb.open(data_folder, read_only=True, **SETTINGS) as db,
    ):  # fmt: skip
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        beside = db.get_collection("docs")
        assert beside.count({"n": 3}) == 118
        of, written = copies.Copies.of, []

        def late(core: Core) -> copies.Copies:
            held = of(core)
            if len(written) < 3:
                print(f"late{len(written)}", file=writer.stdin, flush=True)
                written.append(writer.stdout.readline())
            return held

        monkeypatch.setattr(copies.Copies, "of", late)
        assert beside.check().problems == ()
        assert written == ["2\n", "3\n", "4\n"]
        swapped_ids(beside._core)
        assert ["row 9 is held" in one for one in beside.check().problems] == [True]
        assert beside.check().problems == ()
        writer.stdin.close()


def test_comparing_takes_blocks_not_the_collection(
    docs: vecdb.Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the copies there are blocks and some bytes a row, whatever ids and columns take."""
    core = docs._core
    monkeypatch.setattr(copies, "_BLOCK_ROWS", 256)
    with core.exclusive(), core.read() as reader:
        now = copies.Copies.of(core)
        tracemalloc.start()
        try:
            assert [*copies.copy_faults(now, reader, lambda: None)] == []
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert most < 100 * core.view.n_rows


def test_what_is_not_in_memory_is_not_built_for_a_check(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns that no filter has asked for yet are made of the store when one does: check does not make them."""
    with vecdb.open(data_folder, **SETTINGS) as db:
        db.create_collection("docs", dimension=2).insert(["a"], [[1, 2]], metadata=[{"n": 1}])
    monkeypatch.setattr(Core, "warm", lambda self: None)
    with vecdb.open(data_folder, **SETTINGS) as db:
        docs = db.get_collection("docs")
        assert docs._core.columns_if_ready() is None
        assert docs.check().ok
        assert docs._core.columns_if_ready() is None
