"""Indexes saved by earlier versions: each format of their records with each form of checksums of their files."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

import vecdb
from tools import save_database
from vecdb.index.file_sums import FORM
from vecdb.index.files import FORMAT

DATA = Path(__file__).parent / "data"
SAVED = sorted(DATA.glob("index-records-*.tar.gz"))
ROWS = save_database.INDEX_ROWS
VECTORS = save_database.record_vectors()
ASKED = [5, 500, ROWS - 1, ROWS]


def unpacked(path: Path, folder: Path) -> Path:
    with tarfile.open(path) as archive:
        # Python 3.11 has filters from 3.11.4 on; Debian 12 comes with 3.11.2.
        safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder, **safely)
    return folder / "data"


def records(db: vecdb.Database) -> dict[str, dict[str, Any]]:
    """The record of the index of each collection as it is stored."""
    found = {}
    for one in db.list_collections():
        with db.get_collection(one.name)._core.read() as reader:
            raw = reader.index_record(0)
            assert raw is not None
            found[one.name] = json.loads(raw)
    return found


def form(record: dict[str, Any]) -> tuple[int, str]:
    """(format of a record, how the checksums of its files were made)."""
    begins, there, _ = record["graph"]["checksum"].partition(":")
    return record["format"], begins.partition("/")[0] if there else "blake2b"


def named_by(path: Path) -> tuple[int, str]:
    _, _, number, sums = path.name.split(".")[0].split("-")
    return int(number), sums


def is_served(docs: vecdb.Collection) -> None:
    """Answers come from the saved index and are right."""
    kind = save_database.RECORDS[docs.info.name]["index"]
    stats = docs.stats().index
    assert (stats.kind, stats.indexed_rows, stats.dead_rows) == (kind, ROWS, 1)
    assert stats.last_error == ""
    assert docs.query(VECTORS[ASKED], k=1, target_recall=0.99).ids == [[f"i{n}"] for n in ASKED]
    assert docs.query(VECTORS[3], k=1).ids != [["i3"]]
    assert docs.query(VECTORS[15], k=1, filter={"n": 5}).ids == [["i15"]]
    assert docs.count({"n": 3}) == (ROWS + 2) // 10 - 1
    assert docs.check().problems == ()


def test_every_form_that_was_ever_written_is_saved(tmp_path: Path) -> None:
    """Each format of records that is read, with each form of checksums that its time had, is among the saved ones."""
    found = {named_by(path) for path in SAVED}
    for path in [*DATA.glob("indexes-*.tar.gz"), *DATA.glob("format-*.tar.gz")]:
        with vecdb.open(unpacked(path, tmp_path / path.name), read_only=True) as db:
            docs = "graph" if "indexes" in path.name else "docs"
            with db.get_collection(docs)._core.read() as reader:
                raw = reader.index_record(0)
            assert raw is not None
            one = form(json.loads(raw))
        if "indexes" in path.name:
            assert path.name == f"indexes-{one[0]}.tar.gz"
        found.add(one)
    assert found == {
        (1, "blake2b"), (2, "blake2b"), (3, "blake2b"), (3, "sha256"), (4, "sha256"), (5, "sha256"), (5, "crc32"),
    }  # fmt: skip
    assert {number for number, _ in found} == set(range(1, FORMAT + 1))
    assert (FORMAT, FORM.partition("/")[0]) in found


@pytest.mark.parametrize("read_only", [True, False], ids=["read-only", "written"])
@pytest.mark.parametrize("saved", SAVED, ids=lambda path: path.name.split(".")[0])
def test_a_saved_index_serves_as_it_is(saved: Path, read_only: bool, tmp_path: Path) -> None:
    """Opened, queried with and without a filter, and checked; nothing is written anew for it."""
    with vecdb.open(unpacked(saved, tmp_path), auto_build=False, read_only=read_only) as db:
        before = records(db)
        assert {form(one) for one in before.values()} == {named_by(saved)}
        assert set(before) == set(save_database.RECORDS)
        # Graphs over float32 that are walked over codes came with format 3.
        assert (before["graph"].get("codes") is not None) == (named_by(saved)[0] >= 3)
        for name in before:
            is_served(db.get_collection(name))
        assert records(db) == before


@pytest.mark.parametrize("saved", SAVED, ids=lambda path: path.name.split(".")[0])
def test_the_next_build_brings_an_index_to_the_present_format(saved: Path, tmp_path: Path) -> None:
    """Rows that come later grow the old index; what is saved then is of today, and the old files go."""
    folder = unpacked(saved, tmp_path)
    with vecdb.open(folder, auto_build=False) as db:
        old = {name: one["graph"]["name"] for name, one in records(db).items()}
        for name in old:
            docs = db.get_collection(name)
            docs.upsert(["i7", "later"], VECTORS[[8, 7]])
            docs.build_index()
            assert docs.check().problems == ()
        assert {form(one) for one in records(db).values()} == {(FORMAT, FORM.partition("/")[0])}
    assert not [path for name in old.values() for path in folder.rglob(name)]
    with vecdb.open(folder, auto_build=False) as db:
        for name in old:
            docs = db.get_collection(name)
            assert docs.stats().index.last_error == ""
            assert docs.stats().index.tail_rows == 0
            assert docs.query(VECTORS[7], k=1, target_recall=0.99).ids == [["later"]]
            assert docs.check().problems == ()


@pytest.mark.parametrize("part", ["graph", "numbers"])
@pytest.mark.parametrize("saved", SAVED, ids=lambda path: path.name.split(".")[0])
def test_a_flipped_bit_of_a_saved_index_is_found(saved: Path, part: str, tmp_path: Path) -> None:
    """Each form of checksums tells a changed file: check names it, the next opening compares all rows instead, and a
    build makes it anew."""
    folder = unpacked(saved, tmp_path)
    with vecdb.open(folder, auto_build=False, read_only=True) as db:
        name = records(db)["lists"][part]["name"]
        (path,) = folder.rglob(name)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
        (problem,) = db.get_collection("lists").check().problems
        assert name in problem
    with vecdb.open(folder, auto_build=False) as db:
        docs = db.get_collection("lists")
        assert name in docs.stats().index.last_error
        assert docs.stats().index.indexed_rows == 0
        assert docs.query(VECTORS[ASKED], k=1).ids == [[f"i{n}"] for n in ASKED]
        docs.build_index()
        assert docs.stats().index.last_error == ""
        assert docs.check().problems == ()
