"""The process that copies a collection for a backup, started by the engine, never by people.

See `vecdb/backup/child.py` for why, and for what is said between the two."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from .backup.child import Said, Told, copy_here
from .backup.copying import Copied
from .backup.target import open_target
from .collection_info import shape_of
from .errors import Closed, VecdbError
from .store import CollectionStore

_LOW_PRIORITY = 19
_SWITCH_S = 0.0002
"""How long a thread that computes may keep the interpreter: those who hash, write and read back ask for it
after each piece, and wait up to the usual 5 ms each time."""


def main() -> int:
    """The process: reads its order, copies, says what became of it."""
    told = msgspec.json.decode(sys.stdin.buffer.readline(), type=Told)
    os.nice(_LOW_PRIORITY)
    sys.setswitchinterval(_SWITCH_S)
    try:
        copied = _copy(told)
    except BrokenPipeError:
        return 1
    except VecdbError as error:
        _say(Said(reason=error.reason, message=error.message, details=dict(error.details)))
        return 1
    except FileNotFoundError as error:
        _say(Said(reason=Closed.reason, message=f"the collection was dropped: {error}"))
        return 1
    _say(Said(copied=copied))
    return 0


def _copy(told: Told) -> Copied:
    # One that only reads syncs nothing.
    options = {**told.where.options, "durability": "commit"}
    store = CollectionStore.open(Path(told.where.folder), shape_of, options, read_only=True)
    try:
        return copy_here(
            open_target(told.order.target),
            told.order,
            store.read,
            told.job,
            lambda row, size: _say(Said(row=row, bytes=size)),
        )
    finally:
        store.close()


def _say(said: Said) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
