"""Which backups a target holds, which one continues which, and which moment they can give back."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass

from ..backup_types import BackupInfo, BackupTarget
from ..errors import BackupDamaged, BackupNotFound
from . import manifest
from .manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, Part
from .target import Target, open_target

Kept = tuple[Manifest, str]
"""A manifest and its SHA-256."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one backup of a chain holds of a collection."""

    backup: str
    part: Part


def list_backups(target: BackupTarget) -> list[BackupInfo]:
    """The complete backups of a target, oldest first; none where the target does not exist yet.

    Reads their manifests only. Raises BackupDamaged when one cannot be read, Unavailable.
    """
    opened = open_target(target)
    return [manifest.describe(load(opened, backup)[0]) for backup in complete(opened)]


def complete(target: Target) -> list[str]:
    """Ids of the backups that have a manifest, oldest first."""
    return sorted(name for name, files in _folders(target).items() if MANIFEST_FILE in files)


def incomplete(target: Target) -> list[str]:
    """Ids of those that have none: under way, or interrupted."""
    return sorted(name for name, files in _folders(target).items() if MANIFEST_FILE not in files)


def _folders(target: Target) -> dict[str, dict[str, int]]:
    try:
        return {k: v for k, v in target.backups().items() if manifest.is_id(k)}
    except BackupNotFound:
        return {}


def load(target: Target, backup: str) -> Kept:
    """The manifest of a backup and its SHA-256. BackupNotFound, BackupDamaged, FormatMismatch."""
    if not manifest.is_id(backup):
        raise BackupNotFound(
            f"{backup!r:.80} is no id of a backup; list_backups shows those there are"
        )
    data = target.read(f"{backup}/{MANIFEST_FILE}", MAX_MANIFEST_BYTES)
    return manifest.decode(data, backup)


def ancestors(target: Target, start: Kept) -> Iterator[Kept]:
    """A backup and those it goes back to, newest first; BackupDamaged where one is missing or another."""
    found = start
    while True:
        yield found
        parent = found[0].parent
        if parent is None:
            return
        if parent.id >= found[0].id:
            raise BackupDamaged(f"backup {found[0].id} continues {parent.id}, which is not older")
        try:
            before = load(target, parent.id)
        except BackupNotFound:
            raise BackupDamaged(
                f"backup {found[0].id} continues {parent.id}, which is not in {target.name}",
                backup=parent.id,
            ) from None
        if before[1] != parent.sha256 or before[0].chain != found[0].chain:
            raise BackupDamaged(
                f"backup {found[0].id} does not continue the {parent.id} that is in {target.name}; one of "
                "them was changed or comes from elsewhere",
                backup=parent.id,
            )
        found = before


def newest_of(target: Target, tokens: set[str]) -> Kept | None:
    """The newest backup that holds any of these collections."""
    for backup in reversed(complete(target)):
        found = load(target, backup)
        if any(part.token in tokens for part in found[0].collections):
            return found
    return None


def part_before(target: Target, newest: Manifest, token: str) -> Part | None:
    """What the newest backup of a chain that holds a collection has of it."""
    data = manifest.encode(newest)[1]
    for held, _ in ancestors(target, (newest, data)):
        for part in held.collections:
            if part.token == token:
                return part
    return None


def steps_to(target: Target, kept: Kept, token: str) -> list[Step]:
    """All that has to be put together for a collection as a backup shows it, oldest first.

    BackupDamaged when anything between them is missing.
    """
    steps: list[Step] = []
    for held, _ in ancestors(target, kept):
        part = next((part for part in held.collections if part.token == token), None)
        if part is None:
            continue
        if steps:
            after = steps[-1].part
            if (part.sequence, part.next_row) != (after.since, after.first_row):
                raise BackupDamaged(
                    f"backup {steps[-1].backup} continues collection {after.name!r} from commit "
                    f"{after.since}, backup {held.id} ends at {part.sequence}",
                    backup=held.id,
                )
            if part.settings != after.settings:
                raise BackupDamaged(
                    f"collection {after.name!r} has other settings in backup {held.id}"
                )
        steps.append(Step(held.id, part))
        if not part.since:
            return steps[::-1]
    raise BackupDamaged(
        f"backup {kept[0].id} holds only the end of a collection, and what comes before is missing"
    )


def first_at(target: Target, at: dt.datetime) -> Kept:
    """The first backup that was taken at this moment, which is aware, or later."""
    for backup in complete(target):
        found = load(target, backup)
        if manifest.moment(found[0].taken_us) >= at:
            return found
    raise BackupNotFound(
        f"{target.name} holds no backup taken at {at.isoformat()} or later, so what happened until then is "
        "not known; leave the time out for the newest backup"
    )


def newest(target: Target) -> Kept:
    """The newest backup. BackupNotFound when there is none."""
    backups = complete(target)
    if not backups:
        raise BackupNotFound(f"{target.name} holds no complete backup")
    return load(target, backups[-1])
