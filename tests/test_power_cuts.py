"""Power cuts in what the crash campaign's writer does not do: restores, upgrades, repairs, and backups that are removed.

What a cut leaves is what `crash.cut` says: of what was not synced any pages and any names.
"""

from __future__ import annotations

import itertools
import random
import shutil

import numpy as np
import pytest
from backup_rows import everything, two_collections
from crash import cut
from seeds import RUN_SEED
from test_damage import spoil
from test_format import SAVED, formats, unpacked
from test_repair import problems

import vecdb
from vecdb import failpoints

CUTS = 16

# The power also goes in threads of the engine.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class Cut(BaseException):
    """The power is gone."""


def cuts(work, root, sound, tmp_path, most=CUTS):
    """What each of some cuts leaves of `root`, which is a copy of `sound` when `work` begins."""
    print(f"seed {RUN_SEED}")
    before = failpoints.hook

    def run(number, strikes):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(sound, root)
        disk, left = cut.Disk(root, RUN_SEED + number), tmp_path / f"left-{number}"
        points, inside = itertools.count(), []

        def reached(name, path):
            if inside:
                if not (name.endswith(".commit.after") and path == inside[0]):
                    disk.reached(name, path)
                    return
            elif next(points) != strikes:
                disk.reached(name, path)
                return
            elif name.endswith(".commit.before"):
                inside.append(path)  # what it writes is known only afterwards
                return
            else:
                disk.reached(name, path)
            disk.cut(left)
            raise Cut

        failpoints.install(reached)
        try:
            work()
        except Cut:
            pass
        finally:
            failpoints.install(before)
        if not left.exists():
            disk.cut(left)  # it was done before
        disk.close()
        return left, next(points)

    _, count = run(0, -1)
    assert count > 4
    rng = random.Random(RUN_SEED)
    for number in range(1, most):
        # Half of them near the end, where what was made gets its name.
        strikes = rng.randrange(count if number % 2 else min(count, 8))
        strikes = strikes if number % 2 else count - 1 - strikes
        yield run(number, strikes)[0], (RUN_SEED, number, strikes, count)


@pytest.fixture
def made(tmp_path):
    """A database of two collections, a backup of it, and what it holds."""
    with vecdb.open(tmp_path / "db", auto_build=False) as db:
        held = two_collections(db, random.Random(RUN_SEED), 4)
        db.backup(tmp_path / "b", kind="full")
    return tmp_path / "db", tmp_path / "b", held


def holds(folder, held, *, only=True):
    with vecdb.open(folder, auto_build=False) as db:
        names = [info.name for info in db.list_collections()]
        assert not only or names == sorted(held)
        assert all(db.get_collection(name).check().ok for name in names)
        return {name: everything(db.get_collection(name)) for name in held} == held


@pytest.mark.parametrize("verb", ["backup", "prune"])
def test_backups_that_come_and_go(made, tmp_path, verb):
    """Whatever is left of a backup under way, or of one that is being removed, it is whole or counts as none, and those
    before it are as they were."""
    folder, target, held = made
    root = tmp_path / "target"
    with vecdb.open(folder, auto_build=False) as db:
        db.backup(target, kind="full")
        first, last = (info.id for info in vecdb.list_backups(target))
        work = {
            "backup": lambda: db.backup(root, kind="full"),
            "prune": lambda: vecdb.prune_backups(root, keep=1),
        }[verb]
        for left, where in cuts(work, root, target, tmp_path, 64):
            report = vecdb.verify_backups(left)
            assert report.ok, (where, report.problems)
            there = [info.id for info in vecdb.list_backups(left)]
            assert last in there, where
            assert verb == "prune" or there[:2] == [first, last], where
    vecdb.restore(left, tmp_path / "again")
    assert holds(tmp_path / "again", held)


def test_a_database_that_is_restored(made, tmp_path):
    """A database that was being restored is there as a whole or not at all, and can be restored again."""
    _, target, held = made
    root, empty = tmp_path / "root", tmp_path / "empty"
    empty.mkdir()
    there = 0
    for left, where in cuts(lambda: vecdb.restore(target, root / "new"), root, empty, tmp_path):
        if (left / "new").exists():
            there += 1
        else:
            vecdb.restore(target, left / "new")
        assert holds(left / "new", held), where
        assert [path.name for path in left.iterdir()] == ["new"]
    assert there < CUTS


def test_collections_that_are_restored(made, tmp_path):
    """Collections that were being restored are all there or none, and those beside them are as they were."""
    folder, target, held = made
    root = tmp_path / "root"

    def work():
        with vecdb.open(root, auto_build=False) as db:
            db.restore(target, collections={"docs": "d", "more": "m"})

    for left, where in cuts(work, root, folder, tmp_path):
        assert holds(left, held, only=False), where
        with vecdb.open(left, auto_build=False) as db:
            names = {info.name for info in db.list_collections()}
            assert names in ({"docs", "more"}, {"d", "docs", "m", "more"}), where
            assert len(list((left / "collections").iterdir())) == len(names), where
            assert "d" not in names or everything(db.get_collection("d")) == held["docs"], where


@pytest.mark.long
def test_an_upgrade_and_the_way_back(tmp_path):
    """An older database that was being upgraded, or set back, is there with all that it held, and can go both ways."""
    old, root = unpacked(SAVED[0], tmp_path / "saved"), tmp_path / "root"

    def content(folder):
        with vecdb.open(folder, auto_build=False) as db:
            return [
                (
                    info.name,
                    sorted(i for batch in db.get_collection(info.name).scan() for i in batch.ids),
                )
                for info in db.list_collections()
            ]

    shutil.copytree(old, tmp_path / "copy")
    before = content(tmp_path / "copy")

    def work():
        content(root)
        vecdb.downgrade(root)

    for left, where in cuts(work, root, old, tmp_path):
        assert content(left) == before, where
        assert formats(left) == {2}, where
        vecdb.downgrade(left)
        assert formats(left) == {1}, where


@pytest.mark.long
def test_a_repair(made, tmp_path):
    """A repair that was cut short can be done again: all that is whole is there, and what is lost is named and kept."""
    folder, _, held = made
    root = tmp_path / "root"
    with vecdb.open(folder, auto_build=False) as db:
        for name in held:
            db.get_collection(name).upsert(["hurt"], np.ones((1, 4)), documents=["hurt like that"])
    for path in (folder / "collections").glob("*/data.mdb"):
        raw, at = path.read_bytes(), -1
        while (at := raw.find(b"hurt like that", at + 1)) >= 0:
            spoil(path, at)
    for left, where in cuts(lambda: vecdb.check(root, repair=True), root, folder, tmp_path):
        vecdb.check(left, repair=True)
        assert not problems(vecdb.check(left)), where
        assert holds(left, held), where
        with vecdb.open(left, auto_build=False) as db:
            for name in held:
                (told,) = db.get_collection(name).stats().repairs
                assert list(told.lost) == ["hurt"], where
                assert (left / told.quarantine / "rows.jsonl").stat().st_size, where
                assert (left / told.quarantine / "data.mdb").stat().st_size, where
