"""One kill, what a campaign has seen of all of them, and the table of it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

OPENING = "while it opens"
"""In place of a verb: it was struck before the writer did anything."""
ANY_MOMENT = "at any moment"
CAME_OF_IT = ("died_at", "verb", "acknowledged")
SERVER_CUT = "power cut of a server"


@dataclass
class Case:
    """One kill: how, when, and what came of it."""

    way: str
    seed: int
    point: str = ""
    """The failpoint it was aimed at; "" for a random moment."""
    hit: int = 1
    power_cut: bool = False
    steps: int = 0
    """Operations after which it is killed, whatever it has reached; 0: the clock says when."""
    copiers: bool = False
    """Whether backups are copied by processes of their own, however small they are."""
    copier_point: str = ""
    """The failpoint at which a process that copies is killed; "" for none."""
    copier_hit: int = 1
    copier_after_s: float = 0.0
    """So long after its start; 0: never."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of this case alone."""
    opening: bool = False
    """Whether it is to strike while what the kill before has left is opened: nobody opens that before."""
    died_at: str = ""
    """The failpoint at which it died, "" when the clock ran out first."""
    verb: str = OPENING
    """What was under way, or had just ended."""
    acknowledged: int = 0

    def as_drawn(self) -> dict[str, Any]:
        """What `Case` takes, before anything came of it."""
        return {name: value for name, value in vars(self).items() if name not in CAME_OF_IT}

    @property
    def wanted(self) -> str:
        """The failpoint that the writer is to come to, or where its name begins."""
        return self.point or "backup" * self.copiers


@dataclass
class Tally:
    """What a campaign has seen."""

    kills: Counter[str] = field(default_factory=Counter)
    """By way, and `power cut` (of a process that embeds the database), and that of a server."""
    settings: Counter[str] = field(default_factory=Counter)
    """Kills and power cuts of cases that had this setting of their own."""
    verbs: Counter[str] = field(default_factory=Counter)
    """Kills and power cuts by what was under way."""
    points: Counter[str] = field(default_factory=Counter)
    """Kills at each failpoint."""
    hits: Counter[str] = field(default_factory=Counter)
    """How often each failpoint was reached."""
    cut_points: Counter[str] = field(default_factory=Counter)
    copier_points: Counter[str] = field(default_factory=Counter)
    """Kills of a process that copies for a backup, at each failpoint, or at `ANY_MOMENT`: the writer goes on."""
    done: Counter[str] = field(default_factory=Counter)
    """Operations that were begun, by verb."""
    acknowledged: int = 0
    compared: int = 0
    copies: int = 0
    """Comparisons of these that were of a copy of what a kill or a power cut had left, before anybody opened it."""
    left_out_pages: int = 0
    left_out_names: int = 0
    cuts_that_cost: int = 0
    """Comparisons that found acknowledged writes missing which `interval` may lose."""
    opened_s: list[float] = field(default_factory=list)
    """How long each opening after a kill took, to the first answer of every collection."""
    failures: list[dict[str, Any]] = field(default_factory=list)

    def killed(self, case: Case) -> None:
        cut = SERVER_CUT if case.way == "server" else "power cut"
        self.kills[cut if case.power_cut else case.way] += 1
        self.settings.update(f"{name} {value:g}" for name, value in case.settings.items())
        self.verbs[case.verb] += 1
        self.acknowledged += case.acknowledged
        if case.died_at:
            (self.cut_points if case.power_cut else self.points)[case.died_at] += 1

    def add(self, run: dict[str, Any]) -> None:
        """Another tally, as `vars` gives it; one that was saved earlier may lack some of it."""
        for name, mine in vars(self).items():
            if isinstance(mine, Counter):
                mine.update(run.get(name, {}))
            else:
                setattr(self, name, mine + run.get(name, type(mine)()))


def table(tally: Tally) -> str:
    """The tally in Markdown."""
    lines = [
        "| | |",
        "|---|---|",
        *(f"| kills, {way} | {n:,} |" for way, n in sorted(tally.kills.items())),
        f"| kills of a process that copies for a backup | {tally.copier_points.total():,} |",
        *(f"| of all these with {name} | {n:,} |" for name, n in sorted(tally.settings.items())),
        f"| writes acknowledged by those who were killed | {tally.acknowledged:,} |",
        f"| kills and power cuts, all together | {tally.kills.total():,} |",
        f"| of these compared with the journal, in a copy of what was left | {tally.copies:,} |",
        f"| comparisons with the journal, these and later ones | {tally.compared:,} |",
        f"| opened again after a kill: median, 99 %, longest | {_times(tally.opened_s)} |",
        f"| pages of 4 KiB lost in power cuts | {tally.left_out_pages:,} |",
        f"| comparisons after a cut at `interval` that found newest writes missing, as they may | {tally.cuts_that_cost:,} |",
        f"| names not as they were in power cuts | {tally.left_out_names:,} |",
        f"| failures | {len(tally.failures)} |",
        "",
        "| verb | begun | killed or cut off in it, or right after |",
        "|---|---|---|",
        *(
            f"| {verb} | {tally.done[verb]:,} | {tally.verbs[verb]} |"
            for verb in sorted({*tally.verbs, *tally.done})
        ),
        "",
        "| failpoint | reached | kills there | power cuts there | kills of a copying process there |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {tally.hits[name]:,} | {tally.points[name]} | {tally.cut_points[name]} | {tally.copier_points[name]} |"
            for name in sorted({*tally.hits, *tally.copier_points})
        ),
    ]
    return "\n".join(lines)


def _times(seconds: list[float]) -> str:
    if not seconds:
        return "none"
    median, late, last = np.percentile(seconds, [50, 99, 100]) * 1_000
    return f"{median:.0f}, {late:.0f}, {last:.0f} ms"


def summed(paths: list[Path]) -> Tally:
    """All runs of all files together."""
    total = Tally()
    for run in (run for path in paths for run in json.loads(path.read_text())):
        total.add(run)
    return total


def save(path: Path, tally: Tally, command: str) -> None:
    """Adds a run to a file."""
    runs = json.loads(path.read_text()) if path.exists() else []
    runs.append({"command": command, **vars(tally)})
    path.write_text(json.dumps(runs, indent=1) + "\n")
