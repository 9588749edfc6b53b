"""Repair: after planted damage all that is whole is there, what is lost is named, and nothing else has changed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from quarantined import kept_in, rows_kept, wrongly_named
from seeds import RUN_SEED
from test_damage import data_file, flip, make, spoil

import vecdb
from vecdb import repairing
from vecdb.errors import DatabaseLocked, DatabaseNotFound, StorageFull
from vecdb.layout import CATALOG_FOLDER, DATA_FILE
from vecdb.store import sync_point
from vecdb.store.nodes import LEAF
from vecdb.store.pages import PageFile
from vecdb_server.__main__ import main

FLIPS = int(os.environ.get("REPAIR_FLIPS", "40"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A database, and its records by id."""
    folder = tmp_path_factory.mktemp("sound") / "db"
    make(folder)
    return folder, records(folder)


@pytest.fixture
def copy(sound, tmp_path):
    shutil.copytree(sound[0], tmp_path / "db")
    return tmp_path / "db"


def records(folder):
    found = {}
    with vecdb.open(folder, read_only=True) as db:
        for info in db.list_collections():
            docs = db.get_collection(info.name)
            include = ["vector", "metadata", "document", "content", "named_vectors"]
            for batch in docs.scan(include=include):
                for n, i in enumerate(batch.ids):
                    content = batch.contents[n] and batch.contents[n].data
                    title = [v[n].tobytes() for v in batch.named_vectors.values()]
                    found[i] = (batch.vectors[n].tobytes(), title, batch.metadata[n],
                                batch.documents[n], content)  # fmt: skip
            assert docs.count() == len(found)
    return found


def problems(checked):
    return [problem for one in checked for problem in one.problems]


def digests(folder):
    files = [
        p for p in folder.rglob("*") if p.is_file() and p.name not in ("lock.mdb", "vecdb.lock")
    ]
    return {p: hashlib.sha256(p.read_bytes()).digest() for p in files}


def repaired(folder, before, where):
    """Repairs, and compares with what was there; the repairs of files that were made."""
    assert problems(vecdb.check(folder)), where
    done = vecdb.check(folder, repair=True)
    assert not problems(vecdb.check(folder)), where
    now = records(folder)
    made = [one.repair for one in done if one.repair is not None]
    lost = set(before) - set(now)
    named = {i for one in made for i in one.lost}
    unverified = {i for one in made for i in one.unverified}
    rows = [row for one in made if one.quarantine for row in rows_kept(folder, one)]
    assert all(now[i] == before[i] for i in now.keys() & before.keys() - unverified), where
    undecided = {i for one in made for i in one.undecided}
    if not any(one.lost_commits for one in made):
        assert now.keys() - before.keys() <= undecided, where
        # An id that nothing confirms may be another than that of the record that is lost, which is said.
        unknown = sum(one.lost_unknown for one in made) + wrongly_named(rows, lost)
        assert len(lost - named) <= unknown, where
        assert not named & now.keys(), where
    assert not lost or any(one.quarantine for one in made), where
    for one in made:
        if one.quarantine:
            told = json.loads((kept_in(folder, one) / "repair.json").read_text())
            assert set(told["lost"]) == set(one.lost), where
    return made


def test_a_sound_database_is_not_touched(copy, sound):
    """Repair of a database without faults changes no byte of it."""
    before = digests(copy)
    assert not problems(vecdb.check(copy, repair=True))
    assert digests(copy) == before
    assert records(copy) == sound[1]


@pytest.mark.long
def test_a_flipped_bit_anywhere_is_repaired(tmp_path, sound):
    """After any flipped bit that check finds, repair keeps all other records and names those that are lost."""
    print(f"seed {RUN_SEED}")
    rng = random.Random(RUN_SEED)
    found = 0
    for _ in range(FLIPS):
        copy = tmp_path / "copy"
        shutil.copytree(sound[0], copy)
        path = data_file(copy)
        bit = rng.randrange(8 * path.stat().st_size)
        flip(path, bit)
        if problems(vecdb.check(copy)):
            found += 1
            repaired(copy, sound[1], (RUN_SEED, bit))
        else:
            assert records(copy) == sound[1], (RUN_SEED, bit)
        shutil.rmtree(copy)
    assert found


@pytest.mark.long
@pytest.mark.parametrize("kind", ["meta", "branch", "leaf", "value"])
def test_a_flipped_bit_in_each_kind_of_page(tmp_path, sound, kind):
    """The heads of all kinds of pages are damaged one by one: repair ends clean each time."""
    print(f"seed {RUN_SEED}")
    rng = random.Random(RUN_SEED)
    file = PageFile(data_file(sound[0]))
    flags = np.array([int.from_bytes(file.raw[4_096 * n + 10 : 4_096 * n + 12].tobytes(), "little")
                      for n in range(file.n_pages)])  # fmt: skip
    flag = {"meta": 8, "branch": 1, "leaf": LEAF, "value": 4}[kind]
    pages = np.flatnonzero(flags == flag).tolist()
    # Nobody reads the two bytes after the number, and of a meta page the bounds of its nodes.
    bits = [*range(64), *range(80, 96 if kind == "meta" else 128)]
    made = 0
    for page in rng.sample(pages, len(pages)):  # some are not in use any more
        if made == 6:
            break
        copy = tmp_path / "copy"
        shutil.copytree(sound[0], copy)
        bit = 8 * (4_096 * page) + rng.choice(bits)
        flip(data_file(copy), bit)
        if problems(vecdb.check(copy)):
            made += 1
            repaired(copy, sound[1], (RUN_SEED, kind, bit))
        shutil.rmtree(copy)
    assert made


def test_after_a_power_cut_the_synced_commit_is_there(data_folder, monkeypatch):
    """With `interval`, meta pages that a power cut has torn are put back from the sync point, not given up."""
    with vecdb.open(data_folder, durability="interval", durability_interval_ms=1_000) as db:
        docs = db.create_collection("docs", dimension=4)
        docs.insert(["synced"], np.ones((1, 4)))
        docs.flush()
        docs.insert(["later"], np.ones((1, 4)))
        torn = data_folder.with_name("torn")
        shutil.copytree(data_folder, torn)
    path = data_file(torn)
    raw = bytearray(path.read_bytes())
    for page in (0, 1):
        raw[4_096 * page : 4_096 * page + 512] = bytes(512)
    path.write_bytes(raw)
    monkeypatch.setattr(sync_point, "boot_id", lambda: b"another")
    vecdb.check(torn, repair=True)
    assert not problems(vecdb.check(torn))
    assert "synced" in records(torn)


def test_nobody_writes_before_the_repair_has_ended(copy, monkeypatch):
    """The folder is locked from the first look at a file to the last at an index."""
    flip(data_file(copy), 8 * 10)
    tried = []

    def index_too(one, *_):
        code = "import sys, vecdb\nvecdb.open(sys.argv[1])"
        done = subprocess.run(
            [sys.executable, "-c", code, str(copy)], capture_output=True, text=True
        )
        tried.append(done.stderr)
        return one

    monkeypatch.setattr(repairing, "_with_indexes", index_too)
    opened = repairing.Database

    def opens(path, **given):
        index_too(None)
        return opened(path, **given)

    monkeypatch.setattr(repairing, "Database", opens)
    vecdb.check(copy, repair=True)
    assert len(tried) == 2
    assert all("DatabaseLocked" in one for one in tried)


def test_what_was_lost_is_told_whatever_fails_next(copy, monkeypatch):
    """A repair whose look at the indexes fails still says what the repair of the file has lost."""
    flip(data_file(copy), 8 * 10)

    def fails(*_, **__):
        raise StorageFull("no space left")

    monkeypatch.setattr(repairing, "Database", fails)
    first, docs = vecdb.check(copy, repair=True)
    assert "no space left" in first.problems[-1]
    assert not first.repaired
    assert docs.repair is not None
    with pytest.raises(StorageFull):
        vecdb.check(copy)  # Nothing to tell yet.


def test_a_file_that_was_cut_off(tmp_path, sound):
    """Of a file of any shorter length all that is there is kept and what is missing is named, or the repair is
    refused in words, because nothing leads to the tables any more, and changes nothing."""
    whole = data_file(sound[0]).stat().st_size
    kept = refused = 0
    for pages in (1, 3, 10, 40, whole // 8_192, whole // 4_096 - 1):
        copy = tmp_path / "copy"
        shutil.copytree(sound[0], copy)
        os.truncate(data_file(copy), whole - 4_096 * pages)
        if problems(vecdb.check(copy)):
            before = digests(copy)
            done = vecdb.check(copy, repair=True)
            if problems(vecdb.check(copy)):
                refused += 1
                assert "restore a backup" in done[1].done[0]
                assert digests(copy) == before
            else:
                kept += 1
                now, (made,) = records(copy), [one.repair for one in done if one.repair]
                # The newest commit has deleted a record, which is there again where that commit is lost.
                assert made.lost_commits or not now.keys() - sound[1].keys()
                same = now.keys() & sound[1].keys() - set(made.unverified)
                assert all(now[i] == sound[1][i] for i in same)
                assert len(now) == made.records
                assert (
                    made.lost_commits
                    or len(sound[1]) - len(now) <= len(made.lost) + made.lost_unknown
                )
        shutil.rmtree(copy)
    assert kept + refused


def test_a_catalog_that_is_missing_or_damaged(copy, sound):
    """Collections whose names cannot be read are there under recovered names; an intact catalog keeps them."""
    token = data_file(copy).parent.name
    (copy / CATALOG_FOLDER / DATA_FILE).unlink()
    assert "missing" in vecdb.check(copy)[0].problems[0]
    checked = vecdb.check(copy, repair=True)
    assert checked[0].repaired
    assert f"recovered-{token}" in checked[0].done[0]
    assert records(copy) == sound[1]
    assert not problems(vecdb.check(copy))
    with vecdb.open(copy) as db:
        db.rename_collection(f"recovered-{token}", "docs")
        db.set_alias("words", "docs")
    path = copy / CATALOG_FOLDER / DATA_FILE
    for page in (0, 1):
        whole = path.read_bytes()
        flip(path, 8 * (page * 4_096 + 16) + 3)
        assert problems(vecdb.check(copy))
        vecdb.check(copy, repair=True)
        assert not problems(vecdb.check(copy))
        assert records(copy) == sound[1]
        path.write_bytes(whole)


@pytest.mark.parametrize("kind", ["faiss", "rows", "missing"])
def test_an_index_is_built_again(data_folder, kind):
    """A damaged index file is named, and repair builds the index again; no record is touched."""
    vectors = np.random.default_rng(3).random((2_000, 8), dtype=np.float32)
    with vecdb.open(data_folder, auto_build=False) as db:
        docs = db.create_collection("docs", dimension=8, index="hnsw")
        docs.insert([f"r{n}" for n in range(2_000)], vectors)
        docs.build_index()
    (path,) = data_file(data_folder).parent.glob("*.rows" if kind == "rows" else "*.faiss")
    if kind == "missing":
        path.unlink()
    else:
        flip(path, 8 * (path.stat().st_size // 2))
    assert path.name in problems(vecdb.check(data_folder))[0]
    done = vecdb.check(data_folder, repair=True)
    assert done[1].repaired
    assert done[1].repair is None
    assert not problems(vecdb.check(data_folder))
    with vecdb.open(data_folder) as db:
        docs = db.get_collection("docs")
        assert docs.stats().index.kind == "hnsw"
        assert docs.query(vectors[7], k=1).ids == [["r7"]]


def test_a_loss_is_told_at_each_opening(copy, sound, caplog):
    """A collection that a repair has taken records from says so in the log whenever it is opened."""
    path = data_file(copy)
    raw = path.read_bytes()
    at = raw.index(b'"name":"r')
    spoil(path, at)
    while not problems(vecdb.check(copy)):
        at = raw.index(b'"name":"r', at + 1)
        spoil(path, at)
    (made,) = repaired(copy, sound[1], "text")
    assert made.lost or made.lost_versions
    with caplog.at_level("WARNING", "vecdb"), vecdb.open(copy) as db:
        db.get_collection("docs")
    assert "/".join(made.quarantine.split("/")[-2:]) in caplog.text


def test_nobody_repairs_what_is_open(copy):
    """A database that is open for writing is refused, and so is a folder without one."""
    with vecdb.open(copy), pytest.raises(DatabaseLocked):
        vecdb.check(copy, repair=True)
    with pytest.raises(DatabaseNotFound):
        vecdb.check(copy / "nothing", repair=True)


def test_a_folder_that_may_not_be_written_is_refused(copy):
    """Before anything is written, in a child process that obeys the modes of files."""
    flip(data_file(copy), 8 * 10)
    before = digests(copy)
    for path in (copy, data_file(copy).parent):
        path.chmod(0o555)
    code = (
        "import sys; sys.path.insert(0, 'tests')\nfrom faults import obey_modes\nimport vecdb\n"
        "from vecdb.errors import ReadOnly\nobey_modes()\ntry:\n    vecdb.check(sys.argv[1], repair=True)\n"
        "except ReadOnly as error:\n    print('refused', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(copy)], capture_output=True, text=True)
    for path in (copy, data_file(copy).parent):
        path.chmod(0o755)
    assert done.stdout.startswith("refused"), done.stderr
    assert digests(copy) == before


# A process that has imported and opened nothing else repairs in a child for each line that it reads.
REPAIRER = """
import os, sys
import vecdb
from vecdb import failpoints
for line in sys.stdin:
    folder, points = line.rstrip().split("\\t")
    child = os.fork()
    if not child:
        try:
            failpoints.arm(points)
            vecdb.check(folder, repair=True)
            os._exit(0)
        finally:
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def repair():
    """Repairs a folder in a process of its own, with failpoints armed; its exit code."""
    command, pipe = [sys.executable, "-c", REPAIRER], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:

        def run(folder, points):
            process.stdin.write(f"{folder}\t{points}\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield run


@pytest.mark.long
def test_a_repair_that_is_killed_can_be_run_again(tmp_path, copy, sound, repair):
    """Killed at each named point, the repair is done by the next run as if nothing had been."""
    path = data_file(copy)
    raw = path.read_bytes()
    at = -1
    while not problems(vecdb.check(copy)):
        at = raw.index(b'"name":"r', at + 1)
        spoil(path, at)
    points = tmp_path / "points"
    trial = tmp_path / "trial"
    shutil.copytree(copy, trial)
    assert repair(trial, f"*=record:{points}") == 0
    names = sorted({n for n in points.read_text().split() if n.startswith(("repair.", "vacuum."))})
    assert "vacuum.rename.before" in names
    for name in names:
        shutil.rmtree(trial)
        shutil.copytree(copy, trial)
        assert repair(trial, f"{name}=kill") == -9, name
        vecdb.check(trial, repair=True)
        assert not problems(vecdb.check(trial)), name
        now = records(trial)
        assert all(now[i] == sound[1][i] for i in now), name
        assert not list(data_file(trial).parent.glob("compact*")), name


@pytest.mark.long
def test_a_catalog_whose_repair_is_killed_keeps_its_names(tmp_path, copy, sound, repair):
    """Killed at each named point of it, the names are there after the next repair."""
    flip(copy / CATALOG_FOLDER / DATA_FILE, 8 * (4_096 + 16) + 3)
    points, trial = tmp_path / "points", tmp_path / "trial"
    shutil.copytree(copy, trial)
    repair(trial, f"*=record:{points}")
    names = sorted({n for n in points.read_text().split() if n.startswith("catalog.")})
    assert "catalog.rename.before" in names
    for name in names:
        shutil.rmtree(trial)
        shutil.copytree(copy, trial)
        assert repair(trial, f"{name}=kill") == -9, name
        vecdb.check(trial, repair=True)
        with vecdb.open(trial) as db:
            assert [info.name for info in db.list_collections()] == ["docs"], name
        assert records(trial) == sound[1], name


def test_the_command_names_what_is_lost(copy, capsys):
    """`vecdb check --repair` says what it has done: exit 4 where something was lost, then 0 as all is well."""
    path = data_file(copy)
    raw = path.read_bytes()
    at = -1
    while not problems(vecdb.check(copy)):
        at = raw.index(b'"name":"r', at + 1)
        spoil(path, at)
    assert main(["check", "--data", str(copy), "--repair"]) == 4
    told = capsys.readouterr().out
    assert "docs: repaired" in told
    assert "the old file, and what is left of each row, are in" in told
    assert main(["check", "--data", str(copy), "--repair"]) == 0
    assert "docs: ok" in capsys.readouterr().out
