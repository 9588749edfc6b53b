"""The process that copies a collection for a backup, started by the engine, never by people.

See `vecdb/backup/child.py` for why, and for what is said between the two."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from .backup.child import Said, Told, copy_here
from .backup.copying import Copied, Share
from .backup.target import open_target
from .errors import Closed, VecdbError
from .store import CollectionStore

_LOW_PRIORITY = 19
_SWITCH_S = 0.0002
"""How long a thread that computes may keep the interpreter: those who hash, write and read back ask for it
after each piece, and wait up to the usual 5 ms each time."""


def main() -> int:
    """The process: for each order that it reads it copies and says what became of it; 1 after one that failed."""
    os.nice(_LOW_PRIORITY)
    sys.setswitchinterval(_SWITCH_S)
    # Nothing here makes cycles, and the thousands of buffers of a piece have the collector run all the time.
    gc.disable()
    try:
        return _answered()
    except BrokenPipeError:
        # Whoever wanted the copy is gone; what was to be said to it must not be tried again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _answered() -> int:
    """All that is asked for has been copied, 0, or something failed, 1."""
    for line in sys.stdin.buffer:
        try:
            said = Said(copied=_copy(msgspec.json.decode(line, type=Told)))
        except VecdbError as error:
            said = Said(reason=error.reason, message=error.message, details=dict(error.details))
        except FileNotFoundError as error:
            said = Said(reason=Closed.reason, message=f"the collection was dropped: {error}")
        _say(said)
        if said.reason:
            return 1
    return 0


def _copy(told: Told) -> Copied:
    # One that only reads syncs nothing.
    options = {**told.where.options, "durability": "commit"}
    folder, shape = Path(told.where.folder), told.where.shape
    store = CollectionStore.open(folder, lambda _: shape, options, read_only=True)
    try:
        return copy_here(
            open_target(told.order.target),
            told.order,
            store.read,
            told.job,
            _shares(),
            lambda rows, size: _say(Said(rows=rows, bytes=size)),
            history=told.history,
        )
    finally:
        store.close()


def _shares() -> Iterator[Share]:
    """Rows to copy, until there are no more."""
    while True:
        _say(Said(asks=True))
        line = sys.stdin.buffer.readline()
        if not line:
            raise BrokenPipeError  # who wanted the copy is gone
        share = msgspec.json.decode(line, type=Share | None)
        if share is None:
            return
        yield share


def _say(said: Said) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
