"""Copying in a process of its own, `vecdb/backup_worker.py`.

A thread that computes keeps the interpreter lock for up to 5 ms from those who ask for it: beside a thread
that copies, the p99 of queries was 5.6 ms instead of 0.8. A process has a lock of its own, and a lower
priority. It reads the store as any other process may, in short transactions; the pins of the engine keep what
it reads. It is told what to do by a line of JSON for each collection, asks for rows by another whenever it has
none left to copy, and says how far it has come by others; it ends when nobody writes or reads them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from ..errors import Unavailable, by_reason
from ..store import Shape
from .copying import Copied, Job, Read, Share, copy
from .sink import Sink
from .target import Target

_ROOT = str(Path(__file__).resolve().parents[2])
Came = Callable[[int, int], None]
"""(rows copied, bytes written so far) after each file."""


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
    shape: Shape
    options: dict[str, Any]
    """Settings of the engine."""


class Told(msgspec.Struct, frozen=True):
    """What the process is told."""

    order: Order
    where: Where
    job: Job
    history: bool


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the process: how far it is, that it asks for rows, or the end."""

    rows: int = 0
    bytes: int = 0
    asks: bool = False
    copied: Copied | None = None
    reason: str = ""
    message: str = ""
    details: dict[str, Any] = msgspec.field(default_factory=dict)


def copy_here(
    target: Target,
    order: Order,
    read: Read,
    job: Job,
    shares: Iterable[Share],
    came: Came,
    *,
    history: bool = True,
) -> Copied:
    """Copies in this thread."""
    rows = 0

    def copied(so_far: int) -> None:
        nonlocal rows
        rows = so_far

    sink = Sink(
        target,
        order.backup,
        number=order.number,
        verify=order.verify,
        limit_bytes_s=order.limit_bytes_s,
        done=lambda size: came(rows, size),
    )
    try:
        return copy(read, job, shares, sink, copied, history=history)
    finally:
        sink.close()


class Copier:
    """Copies in another process, which is started for the first job and kept for others, until `close`.

    One thread at a time, but for `stop`.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def copy(
        self,
        order: Order,
        where: Where,
        job: Job,
        shares: Iterable[Share],
        came: Came,
        *,
        history: bool = True,
    ) -> Copied:
        """Copies the rows of `shares`, each of which is asked for when those before are copied, then history.

        Raises what it raises there, what `shares` and `came` raise, and Unavailable when the process dies or cannot
        be started; it is ended then, and the next job has a new one.
        """
        process = self._process = self._process or _started()
        try:
            if self._stopped:
                raise Unavailable(f"copying collection {job.name!r} was stopped")
            return _copied(process, Told(order, where, job, history), iter(shares), came)
        except BaseException:
            self.close()
            raise

    def stop(self) -> None:
        """Ends the process for another thread that is in `copy`, which then raises."""
        # In this order: either this sees a process, or who has just started one sees that it is to stop.
        self._stopped = True
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Ends the process, whatever it does."""
        process, self._process, self._stopped = self._process, None, False
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        process.wait()


def _started() -> subprocess.Popen[bytes]:
    paths = [_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        return subprocess.Popen(
            # -P: a file called numpy.py in the current folder is not ours.
            [sys.executable, "-P", "-m", "vecdb.backup_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        )
    except OSError as error:
        raise Unavailable(f"the process that copies cannot be started: {error}") from error


def _copied(
    process: subprocess.Popen[bytes], told: Told, shares: Iterator[Share], came: Came
) -> Copied:
    assert process.stdout is not None
    _tell(process, told)
    for line in process.stdout:
        said = msgspec.json.decode(line, type=Said)
        if said.copied is not None:
            return said.copied
        if said.reason:
            raise by_reason(said.reason)(said.message, **said.details)
        if said.asks:
            _tell(process, next(shares, None))
        else:
            came(said.rows, said.bytes)
    raise Unavailable(
        f"the process that copied collection {told.job.name!r} died with exit code {process.wait()}; repeat "
        "the backup"
    )


def _tell(process: subprocess.Popen[bytes], what: Told | Share | None) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has died, which reading will tell
        process.stdin.write(msgspec.json.encode(what) + b"\n")
        process.stdin.flush()
