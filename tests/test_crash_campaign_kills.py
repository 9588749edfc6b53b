"""Kills of the crash campaign: where they strike, and that what each has left is compared before anybody opens it."""

from __future__ import annotations

import json
import random
import shlex
import textwrap
from collections import Counter
from pathlib import Path

from crash.aiming import LEFT_BY, MISSES, Aiming
from crash.apart import in_a_process
from crash.tally import Tally, table

ROOT = Path(__file__).resolve().parent.parent

SELDOM = (
    "catalog.remove.before", "catalog.remove.after", "catalog.rmdir.before", "catalog.rmdir.after",
    "sweep.rmdir.before", "sweep.rmdir.after", "sweep.sync-folder.before", "damage.commit.before",
)  # fmt: skip
"""Points that campaigns of an hour had reached and never struck."""


def test_points_that_were_never_struck_are(tmp_path):
    """Aimed at, each of them is: also those that only an opening reaches which finds what an earlier kill has left. What each kill
    leaves is compared. Counted kills, so that no clock has a say."""
    done = in_a_process(
        tmp_path, "-m", "crash", "--counted", "--seed", "3", "--kills", "32", "--way", "embedded",
        "--points", ",".join(SELDOM), "--folder", str(tmp_path), "--save", str(tmp_path / "tally"),
    )  # fmt: skip
    assert done.returncode == 0
    (run,) = json.loads((tmp_path / "tally").read_text())
    assert {*SELDOM} <= {*run["points"]}
    assert run["copies"] == sum(run["kills"].values()) == 32
    assert run["compared"] > run["copies"]


def test_a_server_is_struck_while_it_opens_what_a_kill_left(tmp_path):
    """Nobody has opened it before, so that a server comes to points which only a first opening reaches."""
    points = ["catalog.rmdir.before", "sweep.rmdir.after"]
    done = in_a_process(
        tmp_path, "-m", "crash", "--counted", "--seed", "1", "--kills", "12", "--way", "server",
        "--points", ",".join(points), "--folder", str(tmp_path), "--save", str(tmp_path / "tally"),
    )  # fmt: skip
    assert done.returncode == 0
    (run,) = json.loads((tmp_path / "tally").read_text())
    assert {*points} <= {*run["points"]}


LEFT = """
    import random, sys
    from pathlib import Path
    import vecdb
    from crash import child
    from crash.campaign import Campaign, Case, Failed
    folder = Path(sys.argv[1]) / "data"
    campaign = Campaign(folder, ("embedded",), 1.0, 0.0, counted=True)
    # No step is taken, so it dies at the end of the first collection's making, or in a drop.
    for seed, point in enumerate(["create.commit.after", "drop.remove.before"]):
        case = Case("embedded", seed, point, 1, steps=60)
        campaign.strike(case, random.Random(seed))
        assert case.died_at == point, case
        assert campaign.tally.copies == seed + 1
    def marked(root):
        return sorted(path.parent.name for path in root.glob("collections/*/unnamed"))
    print("left", len(marked(folder)), "in the copy", len(marked(folder.with_name("copy") / "data")))
    def elsewhere(send):
        with vecdb.open(folder, device="cpu") as database:
            database.create_collection("strange", dimension=2)
    process = child.Child(elsewhere)
    process.until()
    process.kill()
    process.close()
    try:
        campaign.finish()
    except Failed as error:
        print("found", "strange" in str(error))
"""


def test_what_a_kill_left_stays_as_it_is_while_a_copy_is_compared(tmp_path):
    """In a copy the folder of a drop that was cut short is gone after the comparison; what was left has it still, for the next who
    opens it. That one must find what the copy has shown, and nothing else."""
    done = in_a_process(tmp_path, "-c", textwrap.dedent(LEFT), str(tmp_path))
    assert done.stdout.splitlines() == ["left 1 in the copy 0", "found True"]


SERVER_CUT = """
    import random, sys
    from pathlib import Path
    from crash.campaign import Campaign, Case
    from crash.tally import SERVER_CUT
    for seed, point in enumerate(["create.sync-folder.before", "rows.commit.before", "rows.commit.after"]):
        campaign = Campaign(Path(sys.argv[1]) / str(seed) / "data", ("server",), 1.0, 1.0)
        for n in range(2):
            # The first two draw that no name stands which was not synced.
            case = Case("server", 10 * seed + 4 * n + 2, point, 1, True, steps=60)
            campaign.strike(case, random.Random(n))
            assert case.power_cut and case.died_at == point, case
        assert campaign.tally.kills == {SERVER_CUT: 2}
        assert campaign.tally.cut_points == {point: 2}
        campaign.finish()
        print(campaign.tally.acknowledged, campaign.tally.left_out_pages, campaign.tally.left_out_names)
"""


def test_power_cuts_of_a_server(tmp_path):
    """A server's files are followed as those of a process that embeds the database, a cut takes of them what was not synced, and what
    its client was told is there afterwards."""
    done = in_a_process(tmp_path, "-c", textwrap.dedent(SERVER_CUT), str(tmp_path))
    assert done.returncode == 0
    found = [list(map(int, line.split())) for line in done.stdout.splitlines()]
    acknowledged, _, names = map(sum, zip(*found, strict=True))
    assert acknowledged > 0
    assert names > 0


FAILING = """
    import sys
    from crash import __main__, campaign
    from crash.wrong import Wrong
    real, seen = campaign.Campaign._compare, []
    def compare(self, folder, *, is_copy=False):
        seen.append(is_copy)
        if seen.count(True) == 3:
            raise campaign.Failed("planted")
        return real(self, folder, is_copy=is_copy)
    campaign.Campaign._compare = compare
    sys.exit(__main__.main())
"""


def test_a_failure_can_be_repeated(tmp_path):
    """The command that is printed names the kills as they were drawn, which are aimed alike when they are repeated, whatever points that
    run reaches; what was left, and its copy, are kept."""
    done = in_a_process(
        tmp_path, "-c", textwrap.dedent(FAILING), "--seed", "8", "--kills", "9", "--aim", "1",
        "--copiers", "0", "--folder", str(tmp_path / "first"),
    )  # fmt: skip
    assert done.returncode == 1
    assert "FAILED at kill 2" in done.stdout
    (kept,) = (tmp_path / "first").iterdir()
    assert {"data", "copy", "cases.json"} <= {path.name for path in kept.iterdir()}
    cases = json.loads((kept / "cases.json").read_text())
    assert len(cases) == 3
    (repeat,) = (
        line.removeprefix("repeat with: python ").partition(" (the same work")[0]
        for line in done.stdout.splitlines()
        if line.startswith("repeat with: ")
    )
    # Of these the clock has no say, and the run would draw others.
    for case in cases:
        case |= {
            "way": "embedded",
            "power_cut": False,
            "steps": 9,
            "point": "create.touch.before",
            "hit": 1,
        }
    (kept / "cases.json").write_text(json.dumps(cases))
    again = in_a_process(
        tmp_path, *shlex.split(repeat), "--folder", str(tmp_path), "--save", str(tmp_path / "tally")
    )
    assert again.returncode == 0
    (run,) = json.loads((tmp_path / "tally").read_text())
    assert sum(run["kills"].values()) == run["copies"] == 3
    assert run["points"] == {"create.touch.before": 3}


def drawn(tally, count, strikes, points):
    """What is aimed at, where those that `strikes` names are struck and others are not."""
    aiming = Aiming(
        tally, ("embedded",), 1.0, 0.0, points, copiers=0.0, counted=True, interval=False
    )
    rng, found = random.Random(4), []
    for _ in range(count):
        case = aiming.drawn(rng)
        found.append(case)
        if case.point in strikes:
            case.died_at = case.point
            tally.killed(case)
    return found


def test_what_was_struck_least_is_aimed_at():
    """A point that was not struck is tried more often than those that were, and one that cannot be takes no more than its share."""
    points = ("rows.commit.before", "index.sync.before", "drop.remove.before")
    tally = Tally()
    tally.points["rows.commit.before"] = 5
    cases = drawn(tally, 6, points, points)
    assert Counter(case.point for case in cases) == {points[1]: 3, points[2]: 3}
    cases = drawn(Tally(), 120, points[:2], points)
    tried = Counter(case.point for case in cases)
    assert MISSES * tried[points[0]] < tried[points[2]] < (MISSES + 2) * tried[points[0]]


def test_what_an_opening_reaches_is_aimed_at_after_a_kill_that_leaves_it():
    """The one before is a kill, not a cut, at a point that leaves it; where that one missed, nothing is left to strike."""
    points = ("sweep.rmdir.before",)
    first, second, third, _ = drawn(Tally(), 4, LEFT_BY["sweep.rmdir"], points)
    assert first.point in LEFT_BY["sweep.rmdir"]
    assert not first.opening
    assert (second.point, second.opening, second.way) == ("sweep.rmdir.before", True, first.way)
    assert third.point in LEFT_BY["sweep.rmdir"]
    missed = drawn(Tally(), 3, (), points)
    assert not any(case.opening for case in missed)


def test_a_table_says_that_each_kill_was_compared():
    """Kills and power cuts together, and copies that were compared; of tallies that were saved before there were any, none."""
    total = Tally()
    total.add({"kills": {"server": 3, "power cut of a server": 2}, "copies": 5, "compared": 6})
    total.add({"kills": {"embedded": 1}, "compared": 1})
    for line in (
        "| kills, power cut of a server | 2 |",
        "| kills and power cuts, all together | 6 |",
        "| of these compared with the journal, in a copy of what was left | 5 |",
        "| comparisons with the journal, these and later ones | 7 |",
    ):
        assert line in table(total)
