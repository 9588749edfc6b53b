"""What kills a child: the failpoint that its case is aimed at, a power cut there, or the death of a process that copies."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crash import cut
from crash.tally import Case
from vecdb import failpoints
from vecdb.backup import child, side_by_side, taking

Send = Callable[[Any], None]

COPYING = (
    "backup.write.before", "backup.write.after", "backup.sync.before", "backup.sync.after",
    "backup.rename.before", "backup.rename.after",
)  # fmt: skip
"""Points that a process reaches which copies for a backup."""


def arm(send: Send, case: Case, disks: list[tuple[cut.Disk, Path]]) -> None:
    """Tells of each failpoint that is reached, and dies at the one that the case is aimed at.

    With `disks` by a power cut: what it leaves of each goes to the folder beside it here.
    """
    left = [case.hit]
    # A cut at a random moment falls at a point too: only there it is known what is durable.
    drawn = random.Random(case.seed)
    any_point = [drawn.randrange(1, 60) if disks and not case.point else 1 << 60]
    # Half of these fall inside a commit, where most is at stake.
    in_commit = drawn.random() < 0.5
    inside: list[Path] = []
    lock = threading.Lock()

    def reached(name: str, path: Path) -> None:
        with lock:  # by whoever dies here it is never given back
            send(["hit", name])
            any_point[0] -= 1
            left[0] -= name == case.point
            at_random = any_point[0] <= 0 and (not in_commit or name.endswith(".commit.before"))
            struck = (at_random and not inside) or (name == case.point and left[0] == 0)
            if struck:
                send(["dying", name])
            if not disks:
                if struck:
                    os.kill(os.getpid(), signal.SIGKILL)
                return
            if struck and name.endswith(".commit.before"):
                inside.append(path)
                return
            ended = inside and name.endswith(".commit.after") and path == inside[0]
            for disk, _ in disks if not ended else ():
                disk.reached(name, path)
            if struck or ended:
                for disk, aside in disks:
                    send(["left out", *disk.cut(aside)])
                os.kill(os.getpid(), signal.SIGKILL)

    failpoints.install(reached)
    if case.copiers:
        copy_beside(case)


def copy_beside(case: Case) -> None:
    """Has every backup of this process copied by two others, one of which the case may kill: at a point, since these arm what the
    environment says, or so long after its start."""
    taking.SMALL_BYTES = -1
    side_by_side.LARGE_BYTES = side_by_side.FILE_BYTES = 1
    side_by_side._places = lambda: (2, 0)
    if case.copier_after_s:
        real = child._started

        def started() -> Any:
            process = real()
            # Does nothing where it has ended.
            timer = threading.Timer(case.copier_after_s, process.kill)
            timer.daemon = True
            timer.start()
            return process

        child._started = started
    if case.copier_point:
        os.environ[failpoints.VARIABLE] = f"{case.copier_point}=kill@{case.copier_hit}"


def end(send: Send) -> None:
    """Dies where all operations have ended that the case has asked for."""
    send(["dying", ""])
    os.kill(os.getpid(), signal.SIGKILL)
