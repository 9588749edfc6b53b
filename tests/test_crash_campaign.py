"""The crash campaign in short, and proof that it would find what it looks for."""

from __future__ import annotations

import os
import random
import textwrap
from pathlib import Path

import pytest
from crash import cut, records
from crash.apart import in_a_process
from crash.model import Model
from crash.verify import Wrong, verify
from crash.work import Writer
from seeds import RUN_SEED

import vecdb
from vecdb import layout

ROOT = Path(__file__).resolve().parent.parent
KILLS = 24

# Kills until a fault that is planted before them is found, at most some hundred.
FAULTY = """
    import sys
    from pathlib import Path
    from crash.campaign import SETTINGS, Campaign, Failed
    from vecdb import disk
    from vecdb.store import catalog, lazy_sync, writer
    real = disk.commit
    {fault}
    campaign = Campaign(Path(sys.argv[1]), ("{way}",), aim=0.5, cuts={cuts})
    try:
        for number in range(200):
            campaign.run(number, 5)
    except Failed as error:
        print("found", number, error)
"""

INTERVAL = "SETTINGS.update(durability='interval', durability_interval_ms=40.0); "


@pytest.mark.parametrize("durability", ["commit", pytest.param("interval", marks=pytest.mark.long)])
def test_a_short_campaign(tmp_path, durability):
    """Killed at random moments, at named points and by power cuts, embedded and through a server, a database
    keeps everything that was acknowledged and has nothing in part; with `interval` a power cut takes no more than the
    newest writes of one interval."""
    kills = KILLS if durability == "commit" else KILLS // 2
    arguments = ["--kills", str(kills), "--seed", str(RUN_SEED), "--folder", str(tmp_path)]
    # A process that copies takes half a second to start.
    arguments += ["--durability", durability, "--copiers", "0.03"]
    done = in_a_process(tmp_path, "-m", "crash", *arguments)
    assert done.returncode == 0
    assert "| failures | 0 |" in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("way", ["embedded", "server"])
@pytest.mark.parametrize(
    ("fault", "cuts"),
    [
        ("disk.sync_folder = lambda path, what: None", 1.0),
        # Known as that of the copy a vacuum makes, which syncs nothing.
        ("disk.commit = lambda t, folder, what: real(t, folder, 'vacuum')", 1.0),
        ("disk.commit = lambda t, folder, what: t.abort() if what == 'rows' else real(t, folder, what)", 0.0),
        ("writer.Writer.remembered = lambda self, request: None", 0.0),
        ("catalog.Catalog.was_done = lambda self, change: None", 0.0),
        (INTERVAL + "disk.sync_data = lambda file, path, what: None", 1.0),
        # Of a shorter interval more writes are too old to be missing.
        (INTERVAL.replace("40.0", "5.0") + "lazy_sync._PART = 1_000; lazy_sync.LazySync._is_late = lambda self: False", 1.0),
    ],
    ids=[
        "folders are not synced", "commits are not synced", "commits are not made", "requests are forgotten",
        "changes of names are forgotten", "points without a sync",
        "syncs that come late",
    ],
)  # fmt: skip
def test_a_planted_fault_is_found(tmp_path, way, fault, cuts):
    """A campaign fails where something was acknowledged that is not durable, or is not there at all, of a process that embeds the
    database and of a server."""
    code = textwrap.dedent(FAULTY).format(way=way, fault=fault, cuts=cuts)
    done = in_a_process(tmp_path, "-c", code, str(tmp_path / "data"))
    assert done.returncode == 0
    assert done.stdout.startswith("found")


@pytest.mark.parametrize(
    ("server", "said"),
    [("return 3", "ended by itself, with code 3"), ("time.sleep(100)", "a child hung for 1.0 s")],
    ids=["ends", "hangs"],
)
def test_a_server_that_does_not_serve_is_found(tmp_path, server, said):
    """A campaign fails where a server refuses a folder after a kill, or hangs, instead of taking it for a kill."""
    code = f"""
        import random, sys, time
        from pathlib import Path
        from crash import campaign, child
        def main(arguments):
            {server}
        campaign.main, child.PATIENCE_S = main, 1.0
        try:
            campaign.Campaign(Path(sys.argv[1]), ("server",), 0.0, 0.0).run(0, 5)
        except campaign.Failed as error:
            print("found", error)
    """
    done = in_a_process(tmp_path, "-c", textwrap.dedent(code), str(tmp_path / "data"))
    assert done.stdout.startswith("found")
    assert said in done.stdout


def test_a_power_cut_in_the_first_commits_of_all(tmp_path):
    """Whatever a power cut leaves of the first pages of a catalog, the folder opens as an empty database."""
    code = """
        import random, sys
        from pathlib import Path
        from crash.campaign import Campaign, Case
        for seed in range(25):
            campaign = Campaign(Path(sys.argv[1]) / str(seed), ("embedded",), 1.0, 1.0)
            case = Case("embedded", seed, "tables.commit.before", 1, True)
            campaign._embedded(case, random.Random(seed))
            assert case.died_at, case
            campaign.finish()
    """
    done = in_a_process(tmp_path, "-c", textwrap.dedent(code), str(tmp_path))
    assert done.returncode == 0


def written(folder, seed=7, steps=40):
    """A database that a writer has worked on, with the model of it."""
    database = vecdb.open(folder, auto_build=False, device="cpu")
    writer = Writer(
        database, Model(), seed, lambda line: None, "", str(folder.with_name(records.BACKUPS))
    )
    for _ in range(steps):
        writer.step()
    model = writer._model
    model.pending = []
    return database, model


def test_a_comparison_finds_each_difference(data_folder):
    """One record too few, too many, or of another version, a name or an alias that should not be there, a
    backup that is not there: each is found."""
    database, model = written(data_folder)
    rng = random.Random(1)
    with database:
        verify(database, model)
        titled = {t: held for t, held in model.collections.items() if held.shape == "named"}
        token = max(titled, key=lambda t: len(titled[t].records))
        states = titled[token].records
        number = rng.choice([n for n in sorted(states) if states[n][1] > 0])

        def without(m):
            del m.collections[token].records[number]

        def more(m):
            m.collections[token].records[99_999] = (1, 1, 1, 1)

        def other(part):
            def change(m):
                state = [*m.collections[token].records[number]]
                state[part] += 1
                m.collections[token].records[number] = tuple(state)

            return change

        def renamed(m):
            m.names["other"] = m.names.pop(m.name_of(token))

        def another_alias(m):
            m.aliases["other"] = token

        def another_backup(m):
            m.backup = "20260101T000000.000000Z-00000000"

        def another_restore(m):
            m.beside["r9"] = "a backup"

        changes = (without, more, renamed, another_alias, another_backup, another_restore)
        for change in (*changes, *map(other, range(4))):
            changed = model.copy()
            change(changed)
            with pytest.raises(Wrong):
                verify(database, changed)


def test_half_of_what_was_under_way_is_found(data_folder):
    """A batch that is there in part, and a batch of a stream whose predecessor is missing, are found."""
    with vecdb.open(data_folder, auto_build=False, device="cpu") as database:
        database.create_collection("a", **records.SHAPES["graph"])
        database.get_collection("a").upsert(**records.columns([1, 2], 1, "graph"))
        model = Model()
        model.apply({"do": "create", "in": "t", "name": "a", "shape": "graph"})

        def part(*ids):
            return {"do": "put", "in": "t", "ids": [*ids], "v": 1, "titled": False}

        model.begin([part(1, 2)])
        assert verify(database, model).collections["t"].records == dict.fromkeys(
            [1, 2], (1, 0, 1, 1)
        )
        model.begin([part(1, 2, 3)])
        with pytest.raises(Wrong, match="in part"):
            verify(database, model)
        model.begin([part(5), part(1, 2)], in_order=True)
        with pytest.raises(Wrong, match="stream"):
            verify(database, model)
        model.begin([part(5), part(1, 2)])
        verify(database, model)


def test_what_a_power_cut_leaves(tmp_path):
    """What was synced is always there; of what was not, each page and each name is there at times."""
    seen = set()
    for seed in range(60):
        root = tmp_path / str(seed)
        root.mkdir()
        old, new, data = root / "old", root / "new", root / layout.DATA_FILE
        old.write_bytes(b"o" * 8192)
        data.write_bytes(b"m" * 16_384)
        simulated = cut.Disk(root, seed)
        with open(new, "wb", buffering=0) as file:
            file.write(b"n" * 4096)
            simulated.reached("x.sync.before", new)
            os.fsync(file.fileno())
            simulated.reached("x.sync.after", new)
            file.write(b"u" * 4096)
        os.replace(new, old)
        data.write_bytes(b"M" * 4096 + b"m" * 4096 + b"d" * 8192)
        simulated.cut(tmp_path / "left")
        simulated.close()
        left = tmp_path / "left"
        content = (left / "old").read_bytes()
        # A file replaced by a rename that is not durable: the old one, or the new one with what was synced.
        assert content == b"o" * 8192 or content[:4096] == b"n" * 4096
        assert not (left / "new").exists()
        pages = (left / layout.DATA_FILE).read_bytes()
        # The meta page is never newer than a page of data.
        assert pages[:1] == b"m" or pages[8192:] == b"d" * 8192
        seen.add((content[:1], content[4096:4097]))
        seen.add(pages[::4096])
        left.rename(tmp_path / f"left-{seed}")
    assert {(b"o", b"o"), (b"n", b"u"), (b"n", b"")} <= seen
    assert {b"mmmm", b"mmdm", b"mmmd", b"mmdd", b"Mmdd"} <= seen


def test_a_commit_that_waits_for_the_disk_is_in_order_at_interval_too(tmp_path):
    """Damage is planted by one, which a cut may fall into: its meta page never comes without its pages (`--durability interval
    --seed 9403`, kill 265). Of a commit that does not wait any page may be missing, as ever."""
    seen = {"damage": set(), "rows": set()}
    for seed in range(60):
        for what, found in seen.items():
            root = tmp_path / f"{what}-{seed}"
            root.mkdir()
            data = root / layout.DATA_FILE
            data.write_bytes(b"m" * 16_384)
            simulated = cut.Disk(root, seed, lazy=True)
            simulated.reached(f"{what}.commit.before", root)
            data.write_bytes(b"M" * 4096 + b"m" * 4096 + b"d" * 8192)
            simulated.cut(root / "left")
            simulated.close()
            found.add((root / "left" / layout.DATA_FILE).read_bytes()[::4096])
    ordered = {b"mmmm", b"mmdm", b"mmmd", b"mmdd", b"Mmdd"}
    assert seen["damage"] == ordered
    assert {page[:1] for page in seen["rows"] - ordered} == {b"M"}


def test_names_are_durable_once_their_folder_is_synced(tmp_path):
    """After an fsync of the folder a rename stands in every cut, also from one folder to another."""
    for seed in range(30):
        root = tmp_path / str(seed)
        (root / "from").mkdir(parents=True)
        (root / "from" / "a").write_bytes(b"content")
        simulated = cut.Disk(root, seed)
        os.replace(root / "from" / "a", root / "b")
        (root / "from" / "unsynced").touch()
        simulated.reached("x.sync-folder.after", root)
        simulated.cut(tmp_path / "left")
        simulated.close()
        left = tmp_path / "left"
        assert (left / "b").read_bytes() == b"content"
        assert not (left / "from" / "a").exists()
        left.rename(tmp_path / f"left-{seed}")
