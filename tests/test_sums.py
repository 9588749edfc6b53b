"""Flipped bits in what had no checksum of its own: settings, horizon, times of commits, requests, names."""

from __future__ import annotations

import json
import random
import shutil
import zlib

import lmdb
import numpy as np
import pytest
from seeds import RUN_SEED
from test_damage import data_file, flip
from test_format import SAVED, unpacked
from test_repair import problems

import vecdb
from vecdb import layout
from vecdb.crc import flipped_bit
from vecdb.errors import Corrupted
from vecdb.store import fresh, meta_sums
from vecdb.store.pages import MAIN, PageFile

BITS = 6
"""Of each entry that are flipped in turn."""
COMMITS = 700


def make(folder):
    """A collection with all that `meta` may hold: a log of several stretches whose beginning is purged, ids that
    wait for their table, writes with an id."""
    with vecdb.open(folder, history_s=0, auto_build=False) as db:
        docs = db.create_collection(
            "docs", dimension=4, metric="l2", description="what is said of it"
        )
        db.set_alias("words", "docs")
        db.create_collection("more", dimension=2)
        docs.insert([f"r{n}" for n in range(400)], np.arange(1_600.0).reshape(400, 4))
        for n in range(300):
            docs.upsert([f"r{n}"], np.full((1, 4), n + 0.5), documents=[f"text {n}"])
    with vecdb.open(folder, history_s=3_600, auto_build=False) as db:
        docs = db.get_collection("docs")
        for _ in docs._core.store.purge(290):
            pass
        for n in range(COMMITS - 301):
            docs.upsert([f"r{n % 400}"], np.full((1, 4), n + 0.25), request_id=f"request {n}")
        assert docs.check().ok


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A database, and what it holds."""
    folder = tmp_path_factory.mktemp("sound") / "db"
    least, fresh.LEAST_FRESH_ROWS = (
        fresh.LEAST_FRESH_ROWS,
        16,
    )  # so that `keys` holds some of the rows
    try:
        make(folder)
    finally:
        fresh.LEAST_FRESH_ROWS = least
    return folder, state_of(folder)


@pytest.fixture
def copy(sound, tmp_path):
    shutil.copytree(sound[0], tmp_path / "db")
    return tmp_path / "db"


def folder_of(folder, name="docs"):
    with vecdb.open(folder, read_only=True) as db:
        return db.get_collection(name)._core.store.folder


def state_of(folder):
    """All that `meta` and the log say, the records, and the names."""
    with vecdb.open(folder, read_only=True) as db:
        docs = db.get_collection("docs")
        with docs._core.read() as reader:
            values = {
                key: reader.meta_value(key) for key in layout.SUMMED if key != layout.META_KEYED
            }
            log = [bytes(value) for _, value in reader.items("log")]
            requests = [bytes(value) for _, value in reader.items("requests")]
        rows = sorted(
            (i, batch.vectors[n].tobytes(), batch.documents[n])
            for batch in docs.scan(include=["vector", "document"])
            for n, i in enumerate(batch.ids)
        )
        names = [one.name for one in db.list_collections()], dict(db.list_aliases())
    return values, log, requests, rows, names


def places(path, table):
    """(key, first byte, bytes) of the values of a table, and of its keys under the name of each with b"key "."""
    file = PageFile(path)
    main = file.walk(file.metas()[0].main, MAIN)
    entries = file.walk(file.subtrees(main.entries)[table], table).entries
    found = []
    for n in range(len(entries.keys)):
        key = file.key(entries, n)
        found.append((key, int(entries.values[n]), int(entries.sizes[n])))
        found.append((b"key " + key, int(entries.keys[n]), int(entries.key_sizes[n])))
    return found


def entries_of_meta(folder):
    path = folder_of(folder) / layout.DATA_FILE
    return path, {key: (at, size) for key, at, size in places(path, "meta")}


@pytest.mark.long
@pytest.mark.parametrize("key", [*layout.SUMMED[:-1], layout.META_SUMS, meta_sums.log_sum_key(1)])
def test_a_flipped_bit_in_an_entry_of_meta(sound, tmp_path, key):
    """Whichever bit of a value in `meta` is flipped, check names it, and repair makes the file what it was: nothing
    is lost, and nothing has to be kept in the quarantine."""
    print(f"seed {RUN_SEED}")
    rng = random.Random(f"{RUN_SEED} {key!r}")
    at, size = entries_of_meta(sound[0])[1][key]
    for bit in rng.sample(range(8 * size), min(BITS, 8 * size)):
        copy = tmp_path / "copy"
        shutil.copytree(sound[0], copy)
        flip(entries_of_meta(copy)[0], 8 * at + bit)
        where = (RUN_SEED, key, bit)
        assert problems(vecdb.check(copy)), where
        done = vecdb.check(copy, repair=True)
        assert not problems(vecdb.check(copy)), where
        (made,) = [one.repair for one in done if one.repair is not None]
        assert made.whole, (where, made)
        assert not (copy / "quarantine").exists(), where
        assert state_of(copy) == sound[1], where
        shutil.rmtree(copy)


@pytest.mark.long
def test_a_flipped_bit_in_the_log(sound, tmp_path):
    """Whichever bit of the time or the rows of a commit is flipped, check says among which commits, and repair
    puts it right: no moment is lost."""
    print(f"seed {RUN_SEED}")
    rng = random.Random(RUN_SEED)
    path = folder_of(sound[0]) / layout.DATA_FILE
    log = [one for one in places(path, "log") if not one[0].startswith(b"key ")]
    assert len(log) == COMMITS - 290
    for trial in range(2 * BITS):
        copy = tmp_path / "copy"
        shutil.copytree(sound[0], copy)
        key, at, _ = rng.choice(log)
        bit = rng.randrange(64) if trial % 2 else rng.randrange(8 * layout.LOG.size)
        flip(folder_of(copy) / layout.DATA_FILE, 8 * at + bit)
        where = (RUN_SEED, layout.SEQUENCE.unpack(key)[0], bit)
        assert any("log of commits" in one for one in problems(vecdb.check(copy))), where
        done = vecdb.check(copy, repair=True)
        (made,) = [one.repair for one in done if one.repair is not None]
        assert made.whole, (where, made)
        assert not problems(vecdb.check(copy)), where
        assert state_of(copy) == sound[1], where
        shutil.rmtree(copy)


def test_a_flipped_bit_in_the_requests(copy, sound):
    """An entry of a write with an id that was changed is named; repair forgets these entries, says what that means,
    and keeps the old file. Every record stays."""
    path = folder_of(copy) / layout.DATA_FILE
    rng = random.Random(RUN_SEED)
    key, at, size = rng.choice([one for one in places(path, "requests") if b"key " not in one[0]])
    flip(path, 8 * at + rng.randrange(8 * size))
    assert any("requests fails its checksum" in one for one in problems(vecdb.check(copy))), key
    done = vecdb.check(copy, repair=True)
    (made,) = [one.repair for one in done if one.repair is not None]
    assert "may be done again" in made.doubts[0]
    assert made.quarantine
    assert not problems(vecdb.check(copy))
    values, log, requests, rows, names = state_of(copy)
    assert not requests
    assert (log, rows, names) == (sound[1][1], sound[1][3], sound[1][4])
    with vecdb.open(copy) as db:
        (told,) = db.get_collection("docs").stats().repairs
    assert tuple(told.doubts) == made.doubts
    assert values[layout.META_HORIZON] == sound[1][0][layout.META_HORIZON]


@pytest.mark.parametrize("what", ["settings", "horizon", "keyed", "log"])
def test_more_than_a_bit(copy, sound, what):
    """Where several bits were changed no record is lost, what can be derived is, and the rest is a doubt or a lost
    history that is told; the old file is kept then."""
    path, entries = entries_of_meta(copy)
    if what == "log":
        at = places(path, "log")[200][1] + 3
    elif what == "settings":
        at = path.read_bytes().index(b"what is said", entries[layout.META_SETTINGS][0])
    else:
        at = entries[what.encode()][0]
    for bit in (1, 9, 18):
        flip(path, 8 * at + bit)
    assert problems(vecdb.check(copy))
    done = vecdb.check(copy, repair=True)
    (made,) = [one.repair for one in done if one.repair is not None]
    assert not problems(vecdb.check(copy))
    values, log, _, rows, _ = state_of(copy)
    assert rows == sound[1][3]
    assert not made.lost
    assert not made.lost_unknown
    if what == "keyed":
        assert made.whole
        assert (values, log) == sound[1][:2]
    else:
        assert made.doubts
        assert made.quarantine
        assert made.history_dropped == (what == "log")
    if what == "settings":
        assert json.loads(values[layout.META_SETTINGS])["description"] != "what is said of it"


def test_wrong_settings_are_not_opened(copy):
    """A collection whose settings, horizon or marks of keyed ids fail their checksum is Corrupted when it is
    opened, since answers depend on them; other collections can be read."""
    path, entries = entries_of_meta(copy)
    for key in meta_sums.BEFORE_READING:
        bit = 8 * entries[key][0] + 8 * 3 + 1
        flip(path, bit)
        for read_only in (True, False):
            with vecdb.open(copy, read_only=read_only) as db:
                with pytest.raises(Corrupted, match=f"'{key.decode()}' .* fails its checksum"):
                    db.get_collection("docs")
                assert db.get_collection("more").count() == 0
        flip(path, bit)
    with vecdb.open(copy) as db:
        assert db.get_collection("docs").check().ok


def test_a_write_takes_no_damage_for_right(copy):
    """What was changed while the collection is open is still named after writes and after a purge that keeps the
    damaged entry; one that would make its checksum anew is refused."""
    path, entries = entries_of_meta(copy)
    with vecdb.open(copy, auto_build=False) as db:
        docs = db.get_collection("docs")
        flip(path, 8 * entries[layout.META_SETTINGS][0] + 77)
        key, at, _ = places(path, "log")[60]
        flip(path, 8 * at + 5)
        sequence = layout.SEQUENCE.unpack(key)[0]
        for n in range(3):
            docs.upsert([f"r{n}"], np.ones((1, 4)))
        found = docs.check().problems
        assert any("'settings'" in one for one in found)
        assert any("log of commits" in one for one in found)
        with pytest.raises(Corrupted, match="log of commits"):
            for _ in docs._core.store.purge(sequence + 2):
                pass
        assert any("log of commits" in one for one in docs.check().problems)


def test_every_way_to_write_keeps_the_checksums(data_folder):
    """After commits, purges, a vacuum, a reopening, a restore, a repair and an upgrade there are checksums of all
    that stands in the file, and they hold."""
    with vecdb.open(data_folder, history_s=0, auto_build=False) as db:
        docs = db.create_collection("docs", dimension=4)
        holds(docs, 0)
        for n in range(600):
            docs.upsert([f"r{n % 50}"], np.full((1, 4), n + 1.0), request_id=f"q{n}")
        holds(docs, 600)
        for horizon in (10, 255, 256, 300, 511, 600):
            for _ in docs._core.store.purge(horizon):
                pass
            holds(docs, 600)
        docs.insert(["a"], np.ones((1, 4)))
        holds(docs, 601)
        docs.compact()
        holds(docs, 601)
        db.backup(data_folder.with_name("backup"))
    path = data_file(data_folder)
    places_of = {key: at for key, at, _ in places(path, "meta")}
    flip(path, 8 * places_of[layout.META_HORIZON] + 1)
    assert vecdb.check(data_folder, repair=True)[1].repaired
    old = unpacked(SAVED[0], data_folder.with_name("old"))
    with vecdb.open(old, auto_build=False) as db:
        docs = db.get_collection("docs")
        holds(docs, docs.stats().sequence)
    vecdb.restore(data_folder.with_name("backup"), data_folder.with_name("again"))
    for folder in (data_folder, data_folder.with_name("again")):
        with vecdb.open(folder, auto_build=False) as db:
            docs = db.get_collection("docs")
            holds(docs, 601)
            docs.delete(["a"])
            holds(docs, 602)


def holds(docs, sequence):
    assert docs.check().ok, docs.check().problems
    with docs._core.read() as reader:
        sums = meta_sums.sums_of_meta(reader)
        assert sums is not None
        assert sums.sequence == reader.state().sequence == sequence
        summed = sums.newest.count
        for key, raw in reader.items("meta", layout.META_LOG_SUM):
            if key.startswith(layout.META_LOG_SUM):
                summed += meta_sums.parse_log_sum(key, raw).count
        assert summed == reader.entries("log")
        assert sums.n_requests == reader.entries("requests")


def test_a_file_that_a_version_without_checksums_wrote(copy, sound):
    """Without a record of checksums, or with one that later commits have left behind, a file is taken as it is, and
    gets a record when it is opened for writing."""
    path = folder_of(copy)
    for stale in (False, True):
        with (
            lmdb.open(str(path), max_dbs=20, map_size=1 << 24) as env,
            env.begin(write=True) as txn,
        ):
            meta = env.open_db(b"meta", txn=txn)
            if stale:
                sums = meta_sums.Sums.parse(txn.get(layout.META_SUMS, db=meta))
                sums.sequence -= 1
                sums.values[1] ^= 1
                txn.put(layout.META_SUMS, sums.packed(), db=meta)
            else:
                txn.delete(layout.META_SUMS, db=meta)
        assert not problems(vecdb.check(copy))
        with (
            vecdb.open(copy, read_only=True) as db,
            db.get_collection("docs")._core.read() as reader,
        ):
            assert meta_sums.sums_of_meta(reader) is None
        with vecdb.open(copy) as db:
            holds(db.get_collection("docs"), COMMITS)
    assert state_of(copy) == sound[1]


@pytest.mark.long
def test_a_flipped_bit_in_the_catalog(sound, tmp_path):
    """Whichever bit of a name, a folder, an alias, the format or a checksum of one is flipped, check names it, no
    wrong name is served, and repair gives all names back."""
    print(f"seed {RUN_SEED}")
    rng = random.Random(RUN_SEED)
    relative = f"{layout.CATALOG_FOLDER}/{layout.DATA_FILE}"
    for table in layout.CATALOG_TABLES:
        for key, at, size in places(sound[0] / relative, table):
            for bit in rng.sample(range(8 * size), min(BITS, 8 * size)):
                copy = tmp_path / "copy"
                shutil.copytree(sound[0], copy)
                flip(copy / relative, 8 * at + bit)
                where = (RUN_SEED, table, key, bit)
                if key != b"key sums":
                    assert problems(vecdb.check(copy)), where
                    with pytest.raises(vecdb.VecdbError):
                        vecdb.open(copy).close()
                # Else there are no checksums any more, and nothing that would fail one.
                vecdb.check(copy, repair=True)
                assert not problems(vecdb.check(copy)), where
                with vecdb.open(copy) as db:
                    names = [one.name for one in db.list_collections()], dict(db.list_aliases())
                assert names == sound[1][-1], where
                shutil.rmtree(copy)


@pytest.mark.parametrize("knew", [False, True])
def test_names_without_checksums_get_them(copy, sound, knew):
    """A catalog that a version without checksums wrote, also after one with them, is read as it is, and has them once it was opened for
    writing; so has every name that comes and goes then."""
    path = copy / layout.CATALOG_FOLDER
    with lmdb.open(str(path), max_dbs=20, map_size=1 << 24) as env, env.begin(write=True) as txn:
        meta = env.open_db(b"meta", txn=txn)
        if not knew:
            for key in [bytes(k) for k, _ in txn.cursor(db=meta) if bytes(k).startswith(b"sum")]:
                txn.delete(key, db=meta)
        collections = env.open_db(b"collections", txn=txn)
        for name in (b"more", b"docs"):
            txn.put(name + b"_", txn.pop(name, db=collections), db=collections)
    with vecdb.open(copy, read_only=True) as db:
        assert [one.name for one in db.list_collections()] == ["docs_", "more_"]
    assert not problems(vecdb.check(copy))
    with vecdb.open(copy) as db:
        for name in ("docs", "more"):
            db.rename_collection(name + "_", name)
    assert state_of(copy) == sound[1]
    with vecdb.open(copy) as db:
        db.rename_collection("more", "other")
        db.set_alias("second", "other")
        db.drop_alias("words")
        db.drop_collection("other")
        db.create_collection("new", dimension=2)
    held = {key for key, _, _ in places(path / layout.DATA_FILE, "meta") if b"key " not in key}
    assert held == {b"format", b"sums", b"sum:c:docs", b"sum:c:new"}


def test_the_flipped_bit_is_found():
    """A checksum tells which bit of some bytes was flipped, and of two flipped ones that it was no single one."""
    rng = random.Random(RUN_SEED)
    for size in (1, 2, 24, 1_000, 6_144):
        raw = bytearray(rng.randbytes(size))
        expected = zlib.crc32(raw)
        assert flipped_bit(raw, expected) is None
        bit = rng.randrange(8 * size)
        raw[bit // 8] ^= 1 << bit % 8
        assert flipped_bit(raw, expected) == bit, (RUN_SEED, size)
        assert flipped_bit(raw, expected, size) is None
        other = (bit + 3) % (8 * size)
        raw[other // 8] ^= 1 << other % 8
        assert flipped_bit(raw, expected) is None, (RUN_SEED, size)
