"""Which opening of the file each commit was made in: so a backup knows whether a file goes on where it left off.

A file may go back: a copy is put in its place, a power cut takes commits that were not synced yet, an upgrade is
undone. The numbers of the commits that are lost are then given out once more, and compaction takes the log that
would show it. But nothing goes back while the file is open for writing. So the first commit of each opening says
that commits are of another epoch from it on, under a random name: the same commit number in the same epoch is the
same commit, and all before it are the same. A repair leaves the record out, since it may change what was.
"""

from __future__ import annotations

import secrets
import struct
from bisect import bisect_right
from typing import Any

from ..layout import EPOCH, META_EPOCHS
from .meta_sums import sealed, unsealed
from .tables import Tables

MOST = 4_096
"""Newest openings that are remembered: 64 KiB."""


def epoch_of(tables: Tables, sequence: int) -> str:
    """The name of the epoch of a commit, 16 hex digits; empty where it is not known."""
    found = _parsed(tables.meta_value(META_EPOCHS))
    at = bisect_right([first for first, _ in found], sequence)
    return found[at - 1][1].hex() if at else ""


def begun(raw: Any, sequence: int) -> bytes:
    """The record behind which a new epoch begins with this commit; `raw` is the one before, None for none."""
    held = [*_parsed(raw), (sequence, secrets.token_bytes(8))]
    return sealed(META_EPOCHS, b"".join(EPOCH.pack(*one) for one in held[-MOST:]))


def _parsed(raw: Any) -> list[tuple[int, bytes]]:
    """(first commit, name) of each epoch, the oldest first; none where the record is damaged: then a backup in
    full is all that it costs."""
    try:
        return [] if raw is None else list(EPOCH.iter_unpack(unsealed(META_EPOCHS, raw)))
    except (ValueError, struct.error):
        return []
