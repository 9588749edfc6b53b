"""What backups are called. By itself, since processes that only copy files import nothing heavy."""

from __future__ import annotations

import re

_ID = re.compile(r"[0-9]{8}T[0-9]{6}\.[0-9]{6}Z-[0-9a-f]{8}")
_END_OF_IDS = "9999"


def is_id(text: object) -> bool:
    """Whether a folder may be a backup, by its name. None is of the year 9999: later ones sort behind it."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None and text < _END_OF_IDS
