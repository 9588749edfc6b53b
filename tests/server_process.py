"""A server in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATHS = os.pathsep.join(str(ROOT / one) for one in (".", "server", "clients/python"))


def environment() -> dict[str, str]:
    """The environment of a process that finds our packages."""
    return {**os.environ, "PYTHONPATH": PATHS}


def spawn(folder: Path, *flags: str, port: int = 0) -> tuple[subprocess.Popen[str], str]:
    """A server process and its address, once it says that it serves."""
    command = [sys.executable, "-m", "vecdb_server", "serve", "--data", str(folder)]
    process = subprocess.Popen(
        [*command, "--port", str(port), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("vecdb "):
        process.kill()
        raise AssertionError(f"no address but {line!r}; {process.communicate()[1]}")
    return process, line.split()[-1]


def resident_bytes(process: subprocess.Popen[str]) -> int:
    """Memory of a process that is its own: without mapped files."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (line,) = [one for one in lines if one.startswith("RssAnon:")]
    return 1024 * int(line.split()[1])
