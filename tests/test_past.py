"""What a file and a backup say of the past: damage of it is named, by check and before a backup is written; and names and
clocks that have changed since give nobody the records of another."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seeds import RUN_SEED

import vecdb
from vecdb import collection_info, errors
from vecdb.store.nodes import BRANCH, NODE_BYTES
from vecdb.store.page_faults import file_faults
from vecdb.store.pages import MAIN, PageFile


@pytest.fixture
def folder(data_folder: Path) -> Path:
    """Four commits of two records, and one in which a record died."""
    with vecdb.open(data_folder, device="cpu", auto_build=False) as db:
        docs = db.create_collection("docs", dimension=4)
        for n in range(4):
            docs.insert([f"a{n}", f"b{n}"], np.ones((2, 4)))
        docs.delete(["a1"])
    return data_folder


def data_file(folder: Path) -> Path:
    (found,) = folder.glob("collections/*/data.mdb")
    return found


def flip(path: Path, at: int, bit: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at + bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)


def value_at(path: Path, table: str, number: int) -> int:
    """Where in the file the value of an entry of a table is."""
    file = PageFile(path)
    trees = file.subtrees(file.walk(file.metas()[0].main, MAIN).entries)
    return int(file.walk(trees[table], table).entries.values[number])


# Of the log: when the third commit was, its first row, and its last one; of a dead row: the commit it died in.
PLACES = [
    ("log", 2, 0),
    ("log", 2, 8),
    ("log", 2, 16),
    ("log", 0, 16),
    ("log", 4, 24),
    ("dead", 0, 0),
]


@pytest.mark.parametrize("bit", [0, 1, 4, 20])
@pytest.mark.parametrize(("table", "number", "byte"), PLACES)
def test_no_backup_is_written_of_a_past_that_is_damaged(
    folder: Path, tmp_path: Path, table: str, number: int, byte: int, bit: int
) -> None:
    """It would not be restorable, or restore another moment than it says, though no record is damaged."""
    path = data_file(folder)
    flip(path, value_at(path, table, number) + byte, bit)
    with vecdb.open(folder, device="cpu", auto_build=False) as db:
        assert db.get_collection("docs").check().problems
        with pytest.raises(errors.Corrupted, match="it would hide the loss"):
            db.backup(tmp_path / "backups")
    assert vecdb.list_backups(tmp_path / "backups") == []


def test_an_increment_looks_at_the_past_behind_the_backup_before(
    folder: Path, tmp_path: Path
) -> None:
    """Increments of a sound file are taken as ever, of a damaged one none."""
    with vecdb.open(folder, device="cpu", auto_build=False) as db:
        db.backup(tmp_path / "backups")
        docs = db.get_collection("docs")
        for n in range(3):
            docs.insert([f"c{n}"], np.ones((1, 4)))
        docs.delete(["c1"])
        assert db.backup(tmp_path / "backups").kind == "incremental"
    assert vecdb.verify_backups(tmp_path / "backups").ok
    with vecdb.open(folder, device="cpu", auto_build=False) as db:
        db.get_collection("docs").insert(["d"], np.ones((1, 4)))
    path = data_file(folder)
    flip(path, value_at(path, "log", 9) + 16, 0)
    with (
        vecdb.open(folder, device="cpu", auto_build=False) as db,
        pytest.raises(errors.Corrupted, match="it would hide the loss"),
    ):
        db.backup(tmp_path / "backups")
    assert len(vecdb.list_backups(tmp_path / "backups")) == 2


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a collection whose tables have branches."""
    folder = tmp_path_factory.mktemp("wide") / "data"
    with vecdb.open(folder, device="cpu", auto_build=False, history_s=3_600) as db:
        docs = db.create_collection("docs", dimension=4)
        ids = [f"document-number-{n:05}" for n in range(12_000)]
        for start in range(0, 12_000, 1_000):
            docs.insert(
                ids[start : start + 1_000],
                np.ones((1_000, 4)),
                metadata=[{"n": n} for n in range(1_000)],
                documents=["a text of some length"] * 1_000,
            )
        docs.delete(ids[:2_500:2])
    return data_file(folder).read_bytes()


def separators(path: Path) -> Iterator[tuple[str, int, int, bytes, bytes]]:
    """(table, where a key of a branch is, its bytes, the last key before what it leads to, the first key there)."""
    file = PageFile(path)
    trees = file.subtrees(file.walk(file.metas()[0].main, MAIN).entries)
    for name, tree in trees.items():
        if tree.depth < 2:
            continue
        file.seen[:] = False
        entries = file.walk(tree, name).entries
        keys = [file.key(entries, n) for n in range(len(entries.keys))]
        first = {}
        for n, page in enumerate(entries.pages.tolist()):
            first.setdefault(page, n)
        level = np.array([tree.root])
        for _ in range(tree.depth - 2):
            level = file.children(file.nodes(level, BRANCH))
        nodes = file.nodes(level, BRANCH)
        owner = np.append(True, nodes.pages[1:] != nodes.pages[:-1])
        for at, child, is_first in zip(
            nodes.at.tolist(), file.children(nodes).tolist(), owner.tolist(), strict=True
        ):
            if not is_first:
                size = int.from_bytes(file.raw[at + 6 : at + 8].tobytes(), "little")
                n = first[child]
                yield name, at + NODE_BYTES, size, keys[n - 1], keys[n]


def test_each_key_of_a_branch_that_leads_elsewhere_is_named(wide: bytes, tmp_path: Path) -> None:
    """Bit by bit, of all tables: it is told of unless the key still parts its pages; who looks a row up would be led to
    the wrong page, and who writes would put it there."""
    path = tmp_path / "data.mdb"
    path.write_bytes(wide)
    assert file_faults(path) == []
    rng = np.random.default_rng(RUN_SEED)
    found = list(separators(path))
    assert {"dead", "documents", "keys", "metadata"} <= {name for name, *_ in found}
    told = 0
    for chosen in rng.permutation(len(found))[:120].tolist():
        name, at, size, before, behind = found[chosen]
        bit = int(rng.integers(8 * size))
        raw = bytearray(wide)
        raw[at + bit // 8] ^= 1 << bit % 8
        path.write_bytes(raw)
        key = bytes(raw[at : at + size])
        faults = file_faults(path)
        assert bool(faults) == (not before < key <= behind), (name, before, key, behind)
        if faults:
            told += 1
            assert f"(a branch of table {name}) has a key that does not part its pages" in faults[0]
    assert told > 30


def moment() -> dt.datetime:
    time.sleep(0.005)
    now = dt.datetime.now(dt.UTC)
    time.sleep(0.005)
    return now


def test_a_name_that_another_collection_has_got_gives_nobody_its_records(
    data_folder: Path, tmp_path: Path
) -> None:
    """Between two backups the names of two collections were exchanged: which had which at a time between is not known."""
    target = tmp_path / "backups"
    with vecdb.open(data_folder, device="cpu", auto_build=False) as db:
        db.create_collection("docs", dimension=1).insert(["old"], [[1]])
        db.create_collection("docs-new", dimension=1).insert(["new"], [[1]])
        first = db.backup(target)
        at = moment()
        db.rename_collection("docs", "docs-old")
        db.rename_collection("docs-new", "docs")
        second = db.backup(target)
        for chosen in (None, ["docs"], {"docs": "copy"}):
            with pytest.raises(errors.BackupNotFound, match="bore that name") as caught:
                vecdb.restore(target, tmp_path / "none", at=at, collections=chosen)
            assert first.id in caught.value.message
            assert second.id in caught.value.message
        assert not (tmp_path / "none").exists()
        vecdb.restore(target, tmp_path / "then", backup=second.id, at=at)
        vecdb.restore(target, tmp_path / "before", backup=first.id)
        db.restore(target, collections={"docs-old": "kept"}, at=at)
        assert db.get_collection("kept").get(["old", "new"]).ids == ["old"]
    for name, expected in (("then", "new"), ("before", "old")):
        with vecdb.open(tmp_path / name, device="cpu", read_only=True) as db:
            assert db.get_collection("docs").get(["old", "new"]).ids == [expected]


def test_a_clock_that_was_ahead_hides_no_collection(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was made by a clock that is put right since, and a backup before that time holds it."""

    class Ahead:
        UTC = dt.UTC

        class datetime:  # noqa: N801
            @staticmethod
            def now(zone: Any) -> dt.datetime:
                return dt.datetime.now(zone) + dt.timedelta(days=1)

    target = tmp_path / "backups"
    with vecdb.open(data_folder, device="cpu", auto_build=False) as db:
        with monkeypatch.context() as patched:
            patched.setattr(collection_info, "dt", Ahead)
            late = db.create_collection("late", dimension=1)
        assert late.info.created_at > dt.datetime.now(dt.UTC)
        late.insert(["acked"], [[1]])
        before = moment()
        db.backup(target)
        at = moment()
        db.create_collection("later", dimension=1)
        db.backup(target)
        vecdb.restore(target, tmp_path / "new", at=at)
        db.restore(target, collections={"late": "again"}, at=at)
        assert db.get_collection("again").get(["acked"]).ids == ["acked"]
        assert before < at
    with vecdb.open(tmp_path / "new", device="cpu", read_only=True) as db:
        assert db.collection_names() == ["late"]
        assert db.get_collection("late").get(["acked"]).ids == ["acked"]
