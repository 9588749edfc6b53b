"""Copying in a process of its own, `vecdb/backup_worker.py`.

A thread that computes keeps the interpreter lock for up to 5 ms from those who ask for it: beside a thread
that copies, the p99 of queries was 5.6 ms instead of 0.8. A process has a lock of its own, and a lower
priority. It reads the store as any other process may, in short transactions; the pins of the engine keep what
it reads. It is told what to do by one line of JSON, and says how far it has come by others; it ends when
nobody reads them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from ..errors import Unavailable, by_reason
from .copying import Copied, Job, Read, copy
from .sink import Sink
from .target import Target

_ROOT = str(Path(__file__).resolve().parents[2])
_PACKAGES = ("vecdb", "vecdb.backup")
_START = f"""
import sys, types
for name in {_PACKAGES!r}:
    sys.modules[name] = package = types.ModuleType(name)
    package.__path__ = ["/".join([{_ROOT!r}, *name.split(".")])]
from vecdb.backup_worker import main
sys.exit(main())
"""
"""What the process runs. Packages without their `__init__`: those import the whole engine, which takes as long
again as all that the process needs."""

Came = Callable[[int, int], None]
"""(row, bytes written so far) after each file."""


class Order(msgspec.Struct, frozen=True):
    """Which backup to write, its first file behind `number` others. `target` is the address of the target."""

    target: str
    backup: str
    verify: bool
    limit_bytes_s: float | None
    number: int


class Where(msgspec.Struct, frozen=True):
    """The store to read."""

    folder: str
    options: dict[str, Any]
    """Settings of the engine."""


class Told(msgspec.Struct, frozen=True):
    """What the process is told."""

    order: Order
    where: Where
    job: Job


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the process: how far it is, or the end."""

    row: int = 0
    bytes: int = 0
    copied: Copied | None = None
    reason: str = ""
    message: str = ""
    details: dict[str, Any] = msgspec.field(default_factory=dict)


def copy_here(target: Target, order: Order, read: Read, job: Job, came: Came) -> Copied:
    """Copies in this thread."""
    row = job.first_row

    def at_row(reached: int) -> None:
        nonlocal row
        row = reached

    sink = Sink(
        target,
        order.backup,
        number=order.number,
        verify=order.verify,
        limit_bytes_s=order.limit_bytes_s,
        done=lambda size: came(row, size),
    )
    try:
        return copy(read, job, sink, at_row)
    finally:
        sink.close()


def copy_there(order: Order, where: Where, job: Job, came: Came) -> Copied:
    """Copies in another process, which is ended when `came` raises. Raises what it raises there, and
    Unavailable when it dies or cannot be started."""
    paths = [_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        process = subprocess.Popen(
            # -P: a file called numpy.py in the current folder is not ours.
            [sys.executable, "-P", "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )
    except OSError as error:
        raise Unavailable(f"the process that copies cannot be started: {error}") from error
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with suppress(BrokenPipeError):
            process.stdin.write(msgspec.json.encode(Told(order, where, job)) + b"\n")
            process.stdin.close()
        for line in process.stdout:
            said = msgspec.json.decode(line, type=Said)
            if said.copied is not None:
                return said.copied
            if said.reason:
                raise by_reason(said.reason)(said.message, **said.details)
            came(said.row, said.bytes)
        raise Unavailable(
            f"the process that copied collection {job.name!r} died with exit code {process.wait()}; repeat "
            "the backup"
        )
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
