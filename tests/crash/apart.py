"""Campaigns in a process of their own, which tests start: it forks, and a process that has threads must not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def in_a_process(folder, *arguments):
    """What a Python process prints; it has forked nothing and opened nothing before."""
    path = [ROOT / "tests", ROOT, ROOT / "server", ROOT / "clients" / "python"]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environ, cwd=folder, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    print(done.stdout, done.stderr)
    return done
