"""Repair: what the damage campaign has found, each planted again in a small database.

The seed and the trial that found it stand in docs/durability.md.
"""

from __future__ import annotations

import lmdb
import numpy as np
import pytest
from quarantined import rows_kept
from test_damage import data_file, spoil
from test_damage import make as make_purged
from test_repair import problems, records
from test_repair_pages import pages_of_tables

import vecdb
from vecdb.layout import LOG, ROW_VALUE, SEQUENCE, id_key

PAGE = 4_096


def vectors(count, version=1):
    return (np.arange(count * 4).reshape(count, 4) + 1_000 * version).astype("<f4")


def make(folder, count=10, versions=1, *, keyed=False, **columns):
    """Records r0, r1, …, of which all versions but the last are dead; `keyed`: their ids are in the table `keys`."""
    with vecdb.open(folder, history_s=0 if keyed else 3_600) as db:
        docs = db.create_collection("docs", dimension=4)
        ids = [f"r{n}" for n in range(count)]
        for version in range(1, versions + 1):
            docs.upsert(ids, vectors(count, version), **columns)
        if keyed:
            docs.insert(["gone"], np.ones((1, 4)))
            docs.delete(["gone"])
            docs.compact()
    return data_file(folder)


def change_table(path, table, change):
    """What a disk or a program may have done to entries, on pages that are in order."""
    environment = lmdb.open(str(path.parent), max_dbs=20)
    with environment, environment.begin(write=True) as transaction:
        change(transaction, environment.open_db(table.encode(), txn=transaction, create=False))


def clear_pages(path, *tables):
    raw = bytearray(path.read_bytes())
    held = pages_of_tables(path)
    for table in tables:
        for page in held[table]:
            raw[PAGE * page : PAGE * (page + 1)] = bytes(PAGE)
    path.write_bytes(raw)


def repaired(folder):
    """What the repair of the one collection tells; the file is sound after it."""
    assert problems(vecdb.check(folder))
    made = vecdb.check(folder, repair=True)[1].repair
    assert not problems(vecdb.check(folder))
    return made


def test_a_key_that_is_there_twice(data_folder):
    """A flipped bit makes one id another's, so that the table of ids has that one twice and lacks its own: no record
    is taken for deleted by that."""
    path = make(data_folder, keyed=True)
    before = records(data_folder)
    raw = bytearray(path.read_bytes())
    wanted = id_key(b"r4") + ROW_VALUE.pack(4)
    assert wanted in raw
    path.write_bytes(raw.replace(wanted, id_key(b"r5") + ROW_VALUE.pack(4)))
    made = repaired(data_folder)
    assert records(data_folder) == before
    assert made.lost == ()


def test_an_id_that_was_damaged_itself(data_folder):
    """The id of a lost record that nothing confirms may be what was damaged: it is not told as certain."""
    path = make(data_folder)
    raw = path.read_bytes()
    at = raw.index(b"r0r1r2r3")
    while at >= 0:
        spoil(path, at + 6)
        at = raw.find(b"r0r1r2r3", at + 1)
    made = repaired(data_folder)
    assert set(records(data_folder)) == {f"r{n}" for n in range(10) if n != 3}
    assert any("may be wrong" in doubt for doubt in made.doubts)
    (row,) = rows_kept(data_folder, made)
    assert row["id"] == "t3"
    assert not row["id_certain"]


def test_deleted_records_without_a_witness(data_folder):
    """Where neither the log nor the table of the dead can be read, deleted records are there again, and each is named
    as one of which that is not known."""
    path = make(data_folder)
    with vecdb.open(data_folder) as db:
        db.get_collection("docs").delete(["r2", "r7"])
    before = records(data_folder)
    clear_pages(path, "log", "dead")
    made = repaired(data_folder)
    back = records(data_folder).keys() - before.keys()
    assert back == {"r2", "r7"}
    assert back <= {*made.undecided}


@pytest.mark.parametrize("keyed", [False, True])
def test_an_older_version_in_the_place_of_a_lost_one(data_folder, keyed):
    """Where nothing tells who died, and the newest version of a record is lost, the one before it is there, also where
    its id points to it: it is named among the undecided, and a doubt says that newer versions may be lost."""
    path = make(data_folder, keyed=keyed)
    with vecdb.open(data_folder) as db:
        db.get_collection("docs").upsert([f"r{n}" for n in range(10)], vectors(10, 2))
    before = records(data_folder)
    raw, newest = path.read_bytes(), vectors(10, 2)[4].tobytes()
    at = raw.index(newest)
    while at >= 0:
        spoil(path, at)
        at = raw.find(newest, at + 1)
    clear_pages(path, "log", "dead")
    made = repaired(data_folder)
    now = records(data_folder)
    assert [i for i in before if now[i] != before[i]] == ["r4"]
    assert now["r4"][0] == vectors(10, 1)[4].tobytes()
    assert "r4" in made.undecided
    assert {*made.undecided} <= now.keys()
    assert any("newer versions" in doubt for doubt in made.doubts)
    assert (made.lost, made.lost_unknown) == ((), 1)


def test_documents_and_uris_that_were_exchanged(data_folder):
    """Two pages in each other's place: a text has the same checksum in either table, so what may be of the other one is
    kept as unverified, not as sound."""
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=4)
        ids = [f"r{n}" for n in range(10)]
        docs.insert(ids[:5], vectors(5), documents=[f"words of {i}" for i in ids[:5]])
        docs.insert(ids[5:], vectors(5, 2), uris=[f"file:{i}" for i in ids[5:]])
    path = data_file(data_folder)
    held = pages_of_tables(path)
    (a,), (b,) = ([PAGE * page for page in held[table]] for table in ("documents", "uris"))
    raw = bytearray(path.read_bytes())
    raw[a : a + PAGE], raw[b : b + PAGE] = raw[b : b + PAGE], raw[a : a + PAGE]
    path.write_bytes(raw)
    made = repaired(data_folder)
    now = documents(data_folder)
    wrong = {i for i in now if now[i] != (f"words of {i}" if i in ids[:5] else None)}
    assert wrong <= {*made.unverified}
    assert {*made.lost, *now} == {*ids}


def documents(folder):
    with vecdb.open(folder, read_only=True) as db:
        found = list(db.get_collection("docs").scan(include=["document"]))
        return {
            i: text for batch in found for i, text in zip(batch.ids, batch.documents, strict=True)
        }


def test_a_row_in_the_log_beyond_all_rows(data_folder):
    """A number in the log that no row has ends nothing: the records are there, and what the log told is given up."""
    path = make(data_folder)
    with vecdb.open(data_folder) as db:
        db.get_collection("docs").delete(["r2"])
    before = records(data_folder)

    def change(transaction, log):
        key = SEQUENCE.pack(2)
        head = transaction.get(key, db=log)[: LOG.size]
        transaction.put(key, head + ROW_VALUE.pack(1 << 40), db=log)

    change_table(path, "log", change)
    made = repaired(data_folder)
    assert records(data_folder) == before
    assert made.history_dropped


@pytest.mark.parametrize("table", ["keys", "dead"])
def test_an_entry_of_another_size(data_folder, table):
    """A pointer or a dead mark of seven bytes is a fault that check names, and no record is lost by it."""
    path = make(data_folder, versions=2, keyed=table == "keys")
    before = records(data_folder)
    key = id_key(b"r4") if table == "keys" else None

    def change(transaction, entries):
        cursor = transaction.cursor(db=entries)
        assert cursor.set_key(key) if key else cursor.first()
        transaction.put(cursor.key(), cursor.value()[:7], db=entries)

    change_table(path, table, change)
    made = repaired(data_folder)
    assert records(data_folder) == before
    assert made.lost == ()


def test_an_id_is_told_of_one_lost_record(data_folder):
    """Where neither what is purged nor all of the ids' pointers can be read, ids may be told by a neighbour's place: one
    that surely belongs to a lost record is told as that one's only, and the other's id as not known."""
    path = make_purged(data_folder)
    before = records(data_folder)
    held = pages_of_tables(path)
    raw = bytearray(path.read_bytes())
    for page in (held["keys"][-1], *held["purged"]):
        raw[PAGE * page : PAGE * (page + 1)] = bytes(PAGE)
    path.write_bytes(raw)
    made = repaired(data_folder)
    lost = before.keys() - records(data_folder).keys()
    rows = [row for row in rows_kept(data_folder, made) if row["live"]]
    sure = {row["id"] for row in rows if row["id_certain"]}
    assert sure
    assert sure <= lost
    assert not sure & {row["id"] for row in rows if not row["id_certain"]}
    assert made.lost_unknown
    assert len(lost) <= len(made.lost) + made.lost_unknown


@pytest.mark.parametrize("left", [0, 5])
@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_a_damaged_index_of_few_rows(data_folder, kind, left):
    """Where so few rows are left that a build makes none, the damaged index is forgotten, which is said; it was named by
    each later check, and each repair said that it was built again."""
    count = 1_100
    named = {"title": vecdb.VectorSettings(dimension=4, index=kind)}
    with vecdb.open(data_folder, auto_build=False) as db:
        docs = db.create_collection("docs", dimension=4, index=kind, vectors=named)
        there = np.random.default_rng(5).random((count, 4), np.float32)
        ids = [f"r{n}" for n in range(count)]
        docs.insert(ids, there, named_vectors={"title": there})
        docs.build_index()
        docs.delete(ids[left:])
    folder = data_file(data_folder).parent
    files = list(folder.glob("*.faiss"))
    assert len(files) == 2
    for path in files:
        path.write_bytes(path.read_bytes()[:-1])
    assert problems(vecdb.check(data_folder))
    done = vecdb.check(data_folder, repair=True)[1]
    assert done.repaired
    assert ["gone" in one for one in done.done] == [True]
    assert not problems(vecdb.check(data_folder))
    assert not list(folder.glob("index*"))
    with vecdb.open(data_folder) as db:
        docs = db.get_collection("docs")
        assert docs.count() == left
        assert len(docs.query(there[0], k=9).ids[0]) == left
