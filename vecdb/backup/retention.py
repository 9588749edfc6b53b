"""Removing backups that are not wanted any more, and what interrupted ones have left."""

from __future__ import annotations

import datetime as dt
from contextlib import suppress

from ..backup_types import BackupTarget
from ..errors import BackupNotFound, InvalidArgument
from ..out_of_memory import memory_told
from . import manifest
from .chains import complete, incomplete, load, remove
from .target import Target, open_target

DAY_S = 86_400.0


@memory_told
def prune_backups(
    target: BackupTarget, *, keep: int, incomplete_older_than_s: float = DAY_S
) -> list[str]:
    """Removes all but the newest `keep` chains, each a full backup and those that continue it; ids removed.

    Backups without a manifest were interrupted, or are still under way: those begun more than
    `incomplete_older_than_s` ago are removed too. A target is best given to one database. Raises
    InvalidArgument when `keep` is below 1, BackupDamaged and FormatMismatch when a manifest cannot be read: then nothing of
    what is complete is removed, or nothing more where it has come meanwhile.
    """
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
        raise InvalidArgument(
            f"keep must be the number of chains to keep, at least 1, given {keep!r:.80}"
        )
    if not incomplete_older_than_s >= 0:
        raise InvalidArgument(
            f"incomplete_older_than_s must not be negative, given {incomplete_older_than_s!r:.80}"
        )
    opened = open_target(target)
    chains: dict[str, list[str]] = {}
    known = complete(opened)
    for backup in known:
        held = load(opened, backup)[0]
        chains.setdefault(held.chain, []).append(backup)
    # By their newest backup: an old chain may still be continued.
    ordered = sorted(chains.items(), key=lambda chain: chain[1][-1])
    removed = []
    for chain, ids in ordered[: max(0, len(ordered) - keep)]:
        # A chain takes a while to remove, and another may have been continued meanwhile: it is the newest then.
        later = set(complete(opened)).difference(known)
        if any(_chain_of(opened, backup) == chain for backup in later):
            continue
        # The newest first: what is left in the middle of it is a chain that ends earlier.
        for backup in ids[::-1]:
            remove(opened, backup)
            removed.append(backup)
    now = dt.datetime.now(dt.UTC)
    for backup in incomplete(opened):
        # In seconds: no calendar goes back as far as somebody may ask.
        if (now - manifest.begun_at(backup)).total_seconds() >= incomplete_older_than_s:
            opened.delete_folder(backup)
            removed.append(backup)
    return sorted(removed)


def _chain_of(target: Target, backup: str) -> str | None:
    """That of a backup taken just now; None where it is gone again."""
    with suppress(BackupNotFound):
        return load(target, backup)[0].chain
    return None
