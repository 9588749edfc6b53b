"""The command `make crash`: so many kills, a table of what was seen, and how to repeat what failed."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from crash.campaign import SETTINGS, WAYS, Campaign, Failed, Tally


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="default 200")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop earlier; default: do not")
    parser.add_argument("--seed", type=int, help="default: another one each time")
    parser.add_argument("--way", choices=[*WAYS, "both"], default="both")
    parser.add_argument("--aim", type=float, default=0.6, help="share aimed at failpoints")
    parser.add_argument(
        "--points", default="", help="aim at these, by commas; default: all reached"
    )
    parser.add_argument("--cuts", type=float, default=0.3, help="share that are power cuts")
    parser.add_argument(
        "--durability", choices=["commit", "interval"], default="commit",
        help="level; at `interval` a power cut may take what was acknowledged in the last 40 ms",
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, help="where the database lies; default: a new one")
    parser.add_argument("--save", type=Path, help="add the tally to this JSON file")
    parser.add_argument(
        "--sum",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="kill nothing: the table of saved tallies",
    )
    asked = parser.parse_args()
    if asked.sum:
        print(table(_summed(asked.sum)))
        return 0
    SETTINGS["durability"] = asked.durability
    SETTINGS["durability_interval_ms"] = 40.0
    seed = int.from_bytes(os.urandom(4), "little") if asked.seed is None else asked.seed
    parent = Path(tempfile.mkdtemp(prefix="vecdb-crash-", dir=asked.folder))
    ways = WAYS if asked.way == "both" else (asked.way,)
    campaign = Campaign(
        parent / "data", ways, asked.aim, asked.cuts, tuple(filter(None, asked.points.split(",")))
    )
    repeat = (
        f"python -m crash --seed {seed} --way {asked.way} --aim {asked.aim} --cuts {asked.cuts} "
        f"--durability {asked.durability}" + f" --points {asked.points}" * bool(asked.points)
    )
    print(f"seed {seed}; repeat with: {repeat} --kills {asked.kills}", flush=True)
    end = time.monotonic() + (asked.minutes * 60 or float("inf"))
    number = 0
    try:
        for number in range(asked.kills):
            if time.monotonic() > end:
                break
            campaign.run(number, seed)
        campaign.finish()
    except Failed as error:
        campaign.tally.failures.append(
            {"repeat": f"{repeat} --kills {number + 1}", "said": str(error)}
        )
        print(f"FAILED at kill {number}: {error}\nthe database is kept in {parent}")
        print(f"repeat with: {repeat} --kills {number + 1}", flush=True)
    else:
        shutil.rmtree(parent)
    if asked.save:
        _add(asked.save, campaign.tally, f"{repeat} --kills {asked.kills}")
    print(table(campaign.tally))
    return int(bool(campaign.tally.failures))


def table(tally: Tally) -> str:
    """The tally in Markdown."""
    lines = [
        "| | |",
        "|---|---|",
        *(f"| kills, {way} | {n:,} |" for way, n in sorted(tally.kills.items())),
        f"| writes acknowledged by those who were killed | {tally.acknowledged:,} |",
        f"| comparisons with the journal | {tally.compared:,} |",
        f"| pages of 4 KiB lost in power cuts | {tally.left_out_pages:,} |",
        f"| comparisons after a cut at `interval` that found newest writes missing, as they may | {tally.cuts_that_cost:,} |",
        f"| names not as they were in power cuts | {tally.left_out_names:,} |",
        f"| failures | {len(tally.failures)} |",
        "",
        "| failpoint | reached | kills there | power cuts there |",
        "|---|---|---|---|",
    ]
    for name in sorted(tally.hits):
        lines.append(
            f"| {name} | {tally.hits[name]:,} | {tally.points[name]} | {tally.cut_points[name]} |"
        )
    return "\n".join(lines)


def _summed(paths: list[Path]) -> Tally:
    """All runs of all files together."""
    total = Tally()
    for run in (run for path in paths for run in json.loads(path.read_text())):
        for name in ("kills", "points", "hits", "cut_points"):
            getattr(total, name).update(run[name])
        for name in (
            "acknowledged", "compared", "left_out_pages", "left_out_names", "cuts_that_cost",
        ):  # fmt: skip
            setattr(total, name, getattr(total, name) + run.get(name, 0))
        total.failures += run["failures"]
    return total


def _add(path: Path, tally: Tally, command: str) -> None:
    runs = json.loads(path.read_text()) if path.exists() else []
    runs.append({"command": command, **vars(tally)})
    path.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
