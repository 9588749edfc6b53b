"""The folders of a campaign: taken away, put in the place of others, and copied as a kill left them."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from crash import child as children
from crash.child import Failed


def remove(root: Path) -> None:
    """Removes a folder. A process that copied or read, whose writer was killed, may be on its way to its end still, and
    put its lock file into it meanwhile."""
    end_s = time.monotonic() + children.PATIENCE_S
    while root.exists():
        shutil.rmtree(root, ignore_errors=time.monotonic() < end_s)
        time.sleep(0.05 * root.exists())


def put_in_place(root: Path, aside: Path) -> None:
    """Has the folder `aside` take the place of `root`."""
    remove(root)
    aside.rename(root)


def copy(roots: list[Path], target: Path) -> None:
    """Copies folders beside each other into `target`, which is made anew: every byte, with times and with the links that
    files have among each other, and nothing shared with what is copied. Failed where that does not work.

    The process that wrote there is dead. One that copied for a backup may take a file away that it was about
    to write, which no backup has yet: then all is copied again.
    """
    end_s = time.monotonic() + children.PATIENCE_S
    found = [str(root) for root in roots if root.exists()]
    while True:
        remove(target)
        target.mkdir()
        done = subprocess.run(
            ["cp", "--archive", "--reflink=never", "--", *found, str(target)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if not done.returncode:
            return
        if time.monotonic() > end_s:
            raise Failed(f"what was left cannot be copied: {done.stderr}")
        time.sleep(0.05)
