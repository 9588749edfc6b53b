"""What repairs could not keep is in the numbers of a collection, wherever these are asked for."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import shutil

import pytest
from conftest import serving
from test_damage import data_file, flip, make, spoil
from test_sums import places

import vecdb
import vecdb_client
from vecdb.layout import META_SETTINGS
from vecdb.repair_types import RepairStats
from vecdb.store.losses import losses
from vecdb_client import aio
from vecdb_server.__main__ import main


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "db"
    make(folder)
    return folder


@pytest.fixture
def copy(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "db")
    return tmp_path / "db"


def lose_one(folder):
    """Damages the text of one record that is in use, and repairs; the repair."""
    path = data_file(folder)
    at = path.read_bytes().index(b'"name":"r')
    spoil(path, at)
    while not vecdb.check(folder)[1].problems:
        at = path.read_bytes().index(b'"name":"r', at + 1)
        spoil(path, at)
    return vecdb.check(folder, repair=True)[1].repair


def of(repair):
    """A RepairStats of either package, to compare."""
    return {name: getattr(repair, name) for name in RepairStats.__slots__}


def test_a_repair_is_in_the_numbers(copy, capsys):
    """Embedded, from a server to both clients, and on the command line, `stats` tells when which records were lost
    and where the old file is; after a second loss there are two entries, and compaction keeps them."""
    before = dt.datetime.now(dt.UTC).replace(microsecond=0)
    made = lose_one(copy)
    with vecdb.open(copy) as db:
        (told,) = db.get_collection("docs").stats().repairs
        assert told.lost_records == len(made.lost) + made.lost_unknown
        assert tuple(told.lost) == made.lost
        assert (told.sequence, told.lost_versions) == (made.sequence, made.lost_versions)
        assert told.lost_records + told.lost_versions > 0
        assert before <= told.repaired_at <= dt.datetime.now(dt.UTC)
        assert (copy / told.quarantine / "data.mdb").is_file()
        assert made.quarantine.endswith(told.quarantine)
    with serving(copy) as address:
        with vecdb_client.connect(address) as client:
            (received,) = client.get_collection("docs").stats().repairs
            assert of(received) == of(told)

        async def ask():
            async with aio.connect(address) as client:
                docs = await client.get_collection("docs")
                return (await docs.stats()).repairs

        assert [of(one) for one in asyncio.run(ask())] == [of(told)]
    assert main(["stats", "docs", "--data", str(copy)]) == 0
    assert told.quarantine in capsys.readouterr().out
    assert main(["stats", "docs", "--data", str(copy), "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)["repairs"]
    assert shown["lost_records"] == told.lost_records
    lose_one(copy)
    with vecdb.open(copy) as db:
        docs = db.get_collection("docs")
        docs.compact()
        first, second = docs.stats().repairs
        assert first == told
        assert second.quarantine != first.quarantine


def test_a_repair_without_loss_is_not_in_the_numbers(data_folder):
    """A collection that was never repaired, or lost nothing by it, has no entry."""
    with vecdb.open(data_folder) as db:
        docs = db.create_collection("docs", dimension=4)
        docs.insert([f"r{n}" for n in range(20)], [[float(n), 1, 2, 3] for n in range(20)])
        assert docs.stats().repairs == ()
    path = data_file(data_folder)
    held = {key: at for key, at, _ in places(path, "meta")}
    flip(path, 8 * held[META_SETTINGS] + 77)
    assert vecdb.check(data_folder, repair=True)[1].repaired
    with vecdb.open(data_folder) as db:
        docs = db.get_collection("docs")
        assert docs.count() == 20
        assert docs.stats().repairs == ()


def test_strange_entries_are_told_as_far_as_they_can_be_read():
    """Entries of an earlier version, or with values of other kinds, give what they hold and no error."""
    told = [
        {
            "time": "2026-11-27T10:00:00Z",
            "lost": ["a"],
            "lost_records": 1,
            "unverified": ["b", "c"],
        },
        {"time": 7, "lost": 3, "lost_records": "x", "quarantine": None, "sequence": -1},
        "nothing",
    ]
    first, second = losses(json.dumps(told).encode())
    assert first.repaired_at == dt.datetime(2026, 11, 27, 10, tzinfo=dt.UTC)
    assert (first.lost, first.lost_records, first.unverified_records) == (("a",), 1, 2)
    assert (second.lost, second.lost_records, second.sequence) == ((), 0, 0)
    assert losses(b"{") == losses(b"") == ()
    assert len(losses(json.dumps([told[0]] * 30).encode())) == 20
