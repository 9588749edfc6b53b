"""The command `make crash`: so many kills, a table of what was seen, and how to repeat what failed."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

from crash.campaign import SETTINGS, WAYS, Campaign
from crash.child import Failed
from crash.folders import remove
from crash.tally import save, summed, table


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
        "--copiers", type=float, default=0.1,
        help="share in which processes of their own copy for backups, and may be killed too",
    )  # fmt: skip
    parser.add_argument(
        "--durability", choices=["commit", "interval"], default="commit",
        help="level; at `interval` a power cut may take what was acknowledged in the last 40 ms",
    )  # fmt: skip
    parser.add_argument(
        "--counted", action="store_true",
        help="aim each kill at a point and a passing of it, so that the seed repeats it exactly; no power cuts",
    )  # fmt: skip
    parser.add_argument(
        "--journal", type=Path, help="write what was begun, acknowledged and reached to this file"
    )
    parser.add_argument(
        "--cases", type=Path,
        help="begin with the kills of this file, as a campaign that failed leaves one: aimed alike whatever points are reached",
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
    if asked.counted and asked.durability != "commit":
        parser.error(
            "--counted wants --durability commit: a thread that syncs by the clock counts nothing"
        )
    if asked.sum:
        print(table(summed(asked.sum)))
        return 0
    # What repairs and planted damage have to say is expected.
    logging.getLogger("vecdb").setLevel(logging.ERROR)
    SETTINGS["durability"] = asked.durability
    SETTINGS["durability_interval_ms"] = 40.0
    seed = int.from_bytes(os.urandom(4), "little") if asked.seed is None else asked.seed
    if asked.folder is not None:
        asked.folder.mkdir(parents=True, exist_ok=True)
    parent = Path(tempfile.mkdtemp(prefix="vecdb-crash-", dir=asked.folder))
    ways = WAYS if asked.way == "both" else (asked.way,)
    campaign = Campaign(
        parent / "data", ways, asked.aim, asked.cuts,
        tuple(filter(None, asked.points.split(","))), counted=asked.counted,
        copiers=asked.copiers, cases=json.loads(asked.cases.read_text()) if asked.cases else None,
    )  # fmt: skip
    repeat = (
        f"python -m crash --seed {seed} --way {asked.way} --aim {asked.aim} --cuts {asked.cuts} "
        f"--copiers {asked.copiers} --durability {asked.durability}"
        + f" --points {asked.points}" * bool(asked.points)
        + " --counted" * asked.counted
    )
    exactly = (
        "" if asked.counted else " (the same work; moments that the clock chose are not repeated)"
    )
    print(f"seed {seed}; repeat with: {repeat} --kills {asked.kills}{exactly}", flush=True)
    end = time.monotonic() + (asked.minutes * 60 or float("inf"))
    number = 0
    try:
        for number in range(asked.kills):
            if time.monotonic() > end:
                break
            campaign.run(number, seed)
        campaign.finish()
    except Failed as error:
        cases = parent / "cases.json"
        cases.write_text(json.dumps(campaign.cases, indent=1) + "\n")
        again = f"{repeat} --kills {number + 1}" + f" --cases {cases}" * (not asked.counted)
        campaign.tally.failures.append({"repeat": again, "said": str(error)})
        print(f"FAILED at kill {number}, {campaign.cases[-1:]}: {error}")
        print(f"kept in {parent}: the database, and in `copy` what was compared last")
        print(f"repeat with: {again}{exactly}", flush=True)
    else:
        remove(parent)
    if asked.journal:
        asked.journal.write_text("".join(f"{line}\n" for line in campaign.journal))
    if asked.save:
        save(asked.save, campaign.tally, f"{repeat} --kills {asked.kills}")
    print(table(campaign.tally))
    return int(bool(campaign.tally.failures))


if __name__ == "__main__":
    sys.exit(main())
