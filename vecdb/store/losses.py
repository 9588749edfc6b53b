"""What repairs of a collection have lost: kept in its file, told at each opening and in its numbers."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

from ..repair_types import RepairStats

_MOST_REPAIRS = 20
_MOST_IDS = 100
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


def entries(raw: bytes) -> list[dict[str, Any]]:
    """The stored entries, the oldest first; none where they cannot be read."""
    try:
        told = json.loads(raw) if raw else []
    except ValueError:
        return []
    return [one for one in told if isinstance(one, dict)] if isinstance(told, list) else []


def losses(raw: bytes) -> tuple[RepairStats, ...]:
    """What the newest of them tell."""
    return tuple(map(_stats, entries(raw)[-_MOST_REPAIRS:]))


def _stats(one: dict[str, Any]) -> RepairStats:
    def texts(name: str) -> tuple[str, ...]:
        found = one.get(name)
        return tuple(map(str, found[:_MOST_IDS])) if isinstance(found, list) else ()

    def count(name: str) -> int:
        found = one.get(name)
        return found if isinstance(found, int) and 0 <= found < 1 << 63 else 0

    return RepairStats(
        repaired_at=_time(str(one.get("time"))),
        sequence=count("sequence"),
        lost_records=count("lost_records"),
        lost=texts("lost"),
        lost_versions=count("lost_versions"),
        lost_commits=count("lost_commits"),
        history_dropped=bool(one.get("history_dropped")),
        unverified_records=count("unverified_records") or len(texts("unverified")),
        unverified=texts("unverified"),
        undecided_records=count("undecided_records") or len(texts("undecided")),
        undecided=texts("undecided"),
        doubts=texts("doubts"),
        # Where the database is now may not be where it was then.
        quarantine="/".join(str(one.get("quarantine", "")).split("/")[-2:]),
    )


def _time(text: str) -> dt.datetime:
    try:
        return dt.datetime.strptime(text, TIME_FORMAT).replace(tzinfo=dt.UTC)
    except ValueError:
        return dt.datetime.fromtimestamp(0, dt.UTC)


def sentence(repair: RepairStats) -> str:
    """What is told of a repair at each opening."""
    moments = ", nor moments before it" * repair.history_dropped
    return (
        f"a repair of {repair.repaired_at:{TIME_FORMAT}} could not keep {repair.lost_records} records and "
        f"{repair.lost_versions} earlier versions{moments}, lost up to {repair.lost_commits} commits of LMDB, and "
        f"kept {repair.unverified_records} records unverified; {''.join(f'{doubt}; ' for doubt in repair.doubts)}the file as it was is in {repair.quarantine}"
    )
