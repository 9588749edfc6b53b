"""What repairs of a collection have lost: kept in its file, told at each opening."""

from __future__ import annotations

import json
from typing import Any


def entries(raw: bytes) -> list[dict[str, Any]]:
    """The stored entries, the oldest first; none where they cannot be read."""
    try:
        told = json.loads(raw) if raw else []
    except ValueError:
        return []
    return [one for one in told if isinstance(one, dict)] if isinstance(told, list) else []


def losses(raw: bytes) -> list[str]:
    """One sentence for each."""
    return [
        f"a repair of {one.get('time')} could not keep {one.get('lost_records')} records and "
        f"{one.get('lost_versions')} earlier versions{', nor moments before it' * bool(one.get('history_dropped'))}, lost up to {one.get('lost_commits')} commits of LMDB, and kept "
        f"{len(one.get('unverified', ()))} records unverified; the file as it was is in {one.get('quarantine')}"
        for one in entries(raw)
    ]
