"""What of a collection is on the disk, and waiting until all of it is."""

from __future__ import annotations

from .core import Core
from .errors import ReadOnly


def flush(core: Core) -> int:
    """See `Collection.flush`."""
    if core.read_only:
        raise ReadOnly(
            f"collection {core.info.name!r} was opened with read_only=True; call flush in the process "
            "that writes"
        )
    sequence = core.view.sequence
    core.store.flush()
    return sequence


def synced_sequence(core: Core, newest: int) -> int:
    """The newest commit up to `newest` that is known to be on the disk; 0 where only the writer knows."""
    if core.read_only:
        return 0
    synced = core.store.synced_sequence
    return newest if synced is None else min(newest, synced)
