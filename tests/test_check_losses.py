"""A check of a collection with damaged pages names the records that cannot be read, before anything is repaired."""

from __future__ import annotations

import json
import random
import shutil

import pytest
from seeds import RUN_SEED
from test_damage import data_file, make
from test_repair import digests, problems
from test_repair_pages import pages_of_tables

import vecdb
from vecdb import errors, repairing
from vecdb.repairing import lost_in
from vecdb_server.__main__ import main

PAGE = 4_096


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A database that is sound."""
    folder = tmp_path_factory.mktemp("sound") / "db"
    make(folder)
    return folder


@pytest.fixture
def damaged(sound, tmp_path):
    """Makes a copy in which a page of a table is gone, or the second half of them."""

    def damage(table, *, half=False):
        print(f"seed {RUN_SEED}")
        shutil.copytree(sound, tmp_path / "db")
        path = data_file(tmp_path / "db")
        raw = bytearray(path.read_bytes())
        pages = pages_of_tables(path)[table]
        for page in pages[len(pages) // 2 :] if half else [random.Random(RUN_SEED).choice(pages)]:
            raw[PAGE * page : PAGE * (page + 1)] = bytes(PAGE)
        path.write_bytes(raw)
        return tmp_path / "db"

    return damage


def about(found, words):
    """The sentences that have these words."""
    return [one for one in found if words in one]


@pytest.mark.parametrize(
    "table", ["vectors", "ids", "metadata", "documents", "contents", "keys", "log"]
)
def test_what_a_repair_loses_is_named_before_it(damaged, capsys, table):
    """The check says how many records cannot be read and names the first by id, by the command and in Python; a repair then
    loses just these. Where the page is none that LMDB walks by, each record is named as ever. Nothing is changed by a check."""
    folder = damaged(table)
    before = digests(folder)
    found, told = problems(vecdb.check(folder)), lost_in(folder, "docs")
    assert main(["check", "--data", str(folder), "--json"]) == 4
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(told) <= set(found)
    assert printed.get("losses", []) == told
    assert digests(folder) == before
    report = vecdb.check(folder, repair=True)[1]
    made = report.repair
    if made is None:  # no row is left whose checksum fits: refused, nothing is changed
        assert told == list(report.done)
        assert digests(folder) == before
        return
    if not told:
        assert all(about(found, repr(name)) for name in made.lost)
    elif made.whole:
        assert told == [f"all {made.records:,} records can be read; a repair would lose nothing"]
    else:
        count = len(made.lost) + made.lost_unknown
        first = "".join(about(told, "records cannot be read, a repair would keep"))
        kept = f"{count:,} records cannot be read, a repair would keep the other {made.records:,}: "
        assert first.startswith(kept) if count else not first
        assert all(repr(name) in first for name in made.lost[:20])
        assert (f"{len(made.lost) - 20:,} more" in first) == (len(made.lost) > 20)
        assert (f"{made.lost_unknown:,} whose ids" in first) == (made.lost_unknown > 0)
        assert all(about(told, doubt) for doubt in made.doubts)
    assert lost_in(folder, "docs") == []


def test_records_are_lost_where_their_page_is(damaged):
    """What the other test compares is something: without metadata that was on the page records cannot be read."""
    found = problems(vecdb.check(damaged("metadata", half=True)))
    assert about(found, "records cannot be read, a repair would keep the other")
    assert about(found, "'r")


def test_while_somebody_writes_nothing_is_said_of_losses(damaged, sound, capsys, monkeypatch):
    """A file that changes while it is read by hand would look damaged: it is refused, and the command leaves it out."""
    folder = damaged("metadata", half=True)
    with vecdb.open(folder, auto_build=False), pytest.raises(errors.DatabaseLocked):
        lost_in(folder, "docs")

    def written(*_):
        raise errors.DatabaseLocked("another process writes")

    with monkeypatch.context() as patch:
        patch.setattr(repairing, "lost_in", written)
        assert main(["check", "--data", str(folder)]) == 4
    assert "cannot be read, a repair" not in capsys.readouterr().out
    assert main(["check", "--data", str(folder)]) == 4
    assert "docs, what a repair would find:\n  " in capsys.readouterr().out
    assert lost_in(sound, "docs") == lost_in(sound, "other") == []
