"""Repair of files of which whole pages are gone, and of files of other formats."""

from __future__ import annotations

import json
import os
import random
import shutil

import lmdb
import numpy as np
import pytest
from seeds import RUN_SEED
from test_damage import data_file, flip, make
from test_format import SAVED, unpacked
from test_repair import problems, records

import vecdb
from vecdb import errors
from vecdb.layout import (
    CATALOG_FOLDER,
    COLLECTION_TABLES,
    DATA_FILE,
    META_FORMAT,
    META_SETTINGS,
    META_SUMS,
    SUMMED,
)
from vecdb.store.meta_sums import Sums, value_sum
from vecdb.store.pages import MAIN, PageFile
from vecdb_server.__main__ import main

PAGES = int(os.environ.get("REPAIR_PAGES", "6"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A database, and its records by id."""
    folder = tmp_path_factory.mktemp("sound") / "db"
    make(folder)
    return folder, records(folder)


def pages_of_tables(path):
    """The pages of each table of a sound file; those that a file begins with under the name "metas"."""
    file = PageFile(path)
    meta = file.metas()[0]
    held = {"metas": [0, 1]}

    def walk(tree, name):
        before = file.seen.copy()
        walked = file.walk(tree, name)
        held[name] = np.flatnonzero(file.seen & ~before).tolist()
        return walked

    for name, tree in file.subtrees(walk(meta.main, MAIN).entries).items():
        walk(tree, name)
    return held


ALL_TABLES = ("metas", MAIN, *COLLECTION_TABLES)
WITH_RECORDS = ("vectors", "ids", "metadata", "documents", "contents", "uris")


@pytest.mark.long
@pytest.mark.parametrize("table", ALL_TABLES)
def test_a_page_that_is_gone(tmp_path, sound, table):
    """Of whatever table a whole page, half of one or a sector was overwritten: what is lost is counted, nothing
    that was deleted comes back unsaid, and where the page held no part of a record, none is lost."""
    print(f"seed {RUN_SEED}")
    rng = random.Random(f"{RUN_SEED} {table}")
    before = sound[1]
    held = pages_of_tables(data_file(sound[0]))
    if not held.get(table):
        return  # An empty table has none.
    for trial in range(PAGES):
        copy = tmp_path / "copy"
        shutil.copytree(sound[0], copy)
        raw = bytearray(data_file(copy).read_bytes())
        size = rng.choice([512, 2_048, 4_096])
        at = 4_096 * rng.choice(held[table]) + size * rng.randrange(4_096 // size)
        raw[at : at + size] = rng.choice([bytes(size), rng.randbytes(size)])
        data_file(copy).write_bytes(raw)
        where = (RUN_SEED, table, trial, at, size)
        if problems(vecdb.check(copy)):
            done = vecdb.check(copy, repair=True)
            if problems(vecdb.check(copy)):
                assert (
                    "Nothing was changed" in done[1].done[0] or "cannot be read" in done[1].done[0]
                )
                # What a repair is refused for: the settings are gone, or nothing leads to any vector.
                assert table in ("meta", "vectors"), where
            else:
                (made,) = [one.repair for one in done if one.repair]
                now = records(copy)
                lost, back = before.keys() - now.keys(), now.keys() - before.keys()
                same = now.keys() & before.keys() - set(made.unverified)
                assert all(now[i] == before[i] for i in same), where
                assert not set(made.lost) & now.keys(), where
                if not made.lost_commits:
                    assert len(lost) <= len(made.lost) + made.lost_unknown, where
                    assert back <= set(made.undecided), where
                    assert not lost or table in WITH_RECORDS, where
                assert len(lost) <= 1 or table in WITH_RECORDS, where
                assert not made.whole or not (lost or back), where
        else:
            assert records(copy) == before, where
        shutil.rmtree(copy)


def test_moments_that_are_lost_are_told(data_folder, capsys):
    """Where only the log is lost every record is there, and that no moment before can be read is a loss: it is
    said, and the old file is kept."""
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=4)
        for n in range(5):
            docs.upsert(["a", f"r{n}"], np.full((2, 4), n + 1.0))
    before = records(data_folder)
    path = data_file(data_folder)
    (page,) = pages_of_tables(path)["log"]
    raw = bytearray(path.read_bytes())
    raw[4_096 * page : 4_096 * (page + 1)] = bytes(4_096)
    path.write_bytes(raw)
    assert main(["check", "--data", str(data_folder), "--repair"]) == 4
    assert "all moments before now" in capsys.readouterr().out
    assert records(data_folder) == before
    (kept,) = (data_folder / "quarantine").glob("*/repair.json")
    assert json.loads(kept.read_text())["history_dropped"] is True


def test_a_file_of_format_1_keeps_its_records_and_moments(tmp_path):
    """Damage of a file that was never upgraded costs what the damage costs, not more, and never its format."""
    folder = unpacked(SAVED[0], tmp_path)
    before = records_of(folder)
    made = 0
    for path in sorted((folder / "collections").glob("*/data.mdb")):
        pages = pages_of_tables(path)["keys"]
        raw = bytearray(path.read_bytes())
        raw[4_096 * pages[0] : 4_096 * (pages[0] + 1)] = bytes(4_096)
        path.write_bytes(raw)
        made += 1
    done = vecdb.check(folder, repair=True)
    assert not problems(vecdb.check(folder))
    assert records_of(folder) == before
    repairs = [one.repair for one in done if one.repair is not None]
    assert len(repairs) == made
    assert all(one.whole for one in repairs), repairs


def records_of(folder):
    with vecdb.open(folder, read_only=True) as db:
        return {
            (info.name, i, batch.vectors[n].tobytes(), batch.documents[n])
            for info in db.list_collections()
            for batch in db.get_collection(info.name).scan(include=["vector", "document"])
            for n, i in enumerate(batch.ids)
        }


def test_a_file_of_a_later_format_is_not_repaired(sound, tmp_path):
    """It may have tables that this version does not know, so it is refused and stays as it is; so are the
    settings that no row fits. Other collections are repaired all the same."""
    copy = tmp_path / "db"
    shutil.copytree(sound[0], copy)
    with vecdb.open(copy) as db:
        db.create_collection("other", dimension=2).insert(["a"], [[1.0, 2.0]])
        token = next(t for t, name in db._catalog.names().of.items() if name == "other")
    other = copy / "collections" / token / DATA_FILE
    (mine,) = (p for p in (copy / "collections").glob("*/data.mdb") if p != other)
    for key, old, new, words in (
        (META_SETTINGS, b'"dimension": 16', b'"dimension": 19', "its settings"),
        (META_FORMAT, b"2", b"3", "later one"),
    ):
        with lmdb.open(str(mine.parent), max_dbs=20) as env, env.begin(write=True) as txn:
            meta = env.open_db(b"meta", txn=txn)
            raw = txn.get(key, db=meta)
            assert old in raw
            txn.put(key, raw.replace(old, new), db=meta)
            if key == META_FORMAT:  # as a later version would have written it
                sums = Sums.parse(txn.get(META_SUMS, db=meta))
                sums.values[SUMMED.index(key)] = value_sum(key, new)
                txn.put(META_SUMS, sums.packed(), db=meta)
        flip(other, 8 * 10)
        changed = mine.read_bytes()
        checked = {one.collection: one for one in vecdb.check(copy, repair=True)}
        assert not checked["docs"].repaired
        assert words in checked["docs"].done[0]
        assert mine.read_bytes() == changed
        assert checked["other"].ok or checked["other"].repaired


@pytest.mark.long
@pytest.mark.parametrize("how", ["zeros", "noise", "noise, and more"])
def test_both_meta_pages_are_gone(tmp_path, sound, how):
    """Where neither meta page leads to the tables these are found on the other pages: every record is there, and
    none that was deleted; with further damage what is lost is named. It is said that this was done."""
    print(f"seed {RUN_SEED}")
    rng = random.Random(f"{RUN_SEED} {how}")
    for trial in range(PAGES):
        copy = tmp_path / "copy"
        shutil.copytree(sound[0], copy)
        raw = bytearray(data_file(copy).read_bytes())
        raw[: 2 * 4_096] = bytes(2 * 4_096) if how == "zeros" else rng.randbytes(2 * 4_096)
        if how.endswith("more"):
            for page in rng.sample(range(2, len(raw) // 4_096), 3):
                raw[4_096 * page : 4_096 * page + 512] = rng.randbytes(512)
        data_file(copy).write_bytes(raw)
        where = (RUN_SEED, how, trial)
        with pytest.raises(vecdb.VecdbError), vecdb.open(copy) as db:
            db.get_collection("docs")
        assert problems(vecdb.check(copy)), where
        done = vecdb.check(copy, repair=True)
        if how.endswith("more") and problems(vecdb.check(copy)):
            assert "Nothing was changed" in done[1].done[0] or "cannot be read" in done[1].done[0]
        else:
            assert not problems(vecdb.check(copy)), (where, done)
            (made,) = [one.repair for one in done if one.repair]
            now = records(copy)
            assert "looked for on all pages" in made.doubts[0], where
            assert made.quarantine
            if how.endswith("more"):
                same = now.keys() & sound[1].keys() - set(made.unverified)
                assert all(now[i] == sound[1][i] for i in same), where
                assert not set(made.lost) & now.keys(), where
            else:
                assert now == sound[1], where
                assert not made.lost, where
        shutil.rmtree(copy)


@pytest.mark.parametrize("what", ["collection", "catalog"])
def test_a_format_of_too_many_digits(tmp_path, what):
    """More digits than any number of a format has are damage as any other: told by opening, checking and going back,
    and put right by a repair."""
    folder = tmp_path / "d"
    with vecdb.open(folder, auto_build=False) as db:
        db.create_collection("docs", dimension=2).insert(["a"], [[1, 1]])
        held = db.get_collection("docs")._core.store.folder
    env = lmdb.open(str(held if what == "collection" else folder / CATALOG_FOLDER), max_dbs=20)
    with env, env.begin(write=True) as txn:
        txn.put(META_FORMAT, b"9" * 5_000, db=env.open_db(b"meta", txn=txn))

    def read():
        with vecdb.open(folder, read_only=True) as db:
            db.get_collection("docs")

    for call in (read, lambda: vecdb.downgrade(folder)):
        with pytest.raises(errors.Corrupted, match="its format is b'999") as caught:
            call()
        assert len(caught.value.message) < 1_000
    problems = [one for part in vecdb.check(folder) for one in part.problems]
    assert any("format" in one for one in problems)
    assert max(map(len, problems)) < 1_000
    vecdb.check(folder, repair=True)
    with vecdb.open(folder, read_only=True) as db:
        assert db.get_collection("docs").get(["a"]).ids == ["a"]
