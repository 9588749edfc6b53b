# A copy of vecdb/repair_types.py, made by tools/generate.py: change it there.
"""What the numbers of a collection tell of its repairs, the same embedded and over the wire.

The file stands alone on purpose: the client ships a copy of it, and `make check` compares the two.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RepairStats:
    """What a repair of the collection's file could not keep."""

    repaired_at: dt.datetime
    """In UTC."""
    sequence: int
    """Commit that the collection was left at."""
    lost_records: int = 0
    """Live records that are not there any more."""
    lost: Sequence[str] = ()
    """Ids of the first 100 of them whose ids are known; `repair.json` in the quarantine names all."""
    lost_versions: int = 0
    """Earlier versions of records, kept for moments in the past, that are lost."""
    lost_commits: int = 0
    """Newest commits of LMDB that could not be read: what they wrote is not there, what they deleted is there again."""
    history_dropped: bool = False
    """Moments before the repair could be read, and cannot be read any more."""
    unverified_records: int = 0
    """Records that were kept as they were found, since their checksums are lost."""
    unverified: Sequence[str] = ()
    """Ids of the first 100 of them."""
    undecided_records: int = 0
    """Records that were kept though they may have been deleted, or replaced by a version that is lost."""
    undecided: Sequence[str] = ()
    """Ids of the first 100 of them."""
    doubts: Sequence[str] = ()
    """What else is lost or may be wrong, one sentence each."""
    quarantine: str = ""
    """Folder with the file as it was, below that of the database."""
