"""Which backups a target holds, which one continues which, and which moment they can give back."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..backup_types import BackupInfo, BackupTarget
from ..errors import BackupDamaged, BackupNotFound
from ..out_of_memory import memory_told
from . import manifest
from .ids import is_id
from .manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, Part
from .target import Target, open_target

Kept = tuple[Manifest, str]
"""A manifest and its SHA-256."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one backup of a chain holds of a collection, and when it was taken."""

    backup: str
    part: Part
    taken_us: int


@memory_told
def list_backups(target: BackupTarget) -> list[BackupInfo]:
    """The complete backups of a target, oldest first; none where the target does not exist yet.

    Reads their manifests only. Raises BackupDamaged when one cannot be read, FormatMismatch when a later version
    wrote it, Unavailable.
    """
    opened = open_target(target)
    return [manifest.describe(load(opened, backup)[0]) for backup in complete(opened)]


def complete(target: Target) -> list[str]:
    """Ids of the backups that have a manifest, oldest first."""
    return complete_of(folders(target))


def complete_of(found: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The same of what `folders` has said."""
    return sorted(name for name, files in found.items() if MANIFEST_FILE in files)


def incomplete(target: Target) -> list[str]:
    """Ids of those that have none: under way, or interrupted."""
    return sorted(name for name, files in folders(target).items() if MANIFEST_FILE not in files)


def folders(target: Target) -> dict[str, dict[str, int]]:
    """Ids of all backups, those without a manifest too, to their files and bytes; none without a target."""
    try:
        return {k: v for k, v in target.backups().items() if is_id(k)}
    except BackupNotFound:
        return {}


def lost_files(found: Mapping[str, Mapping[str, int]], backup: str, part: Part) -> list[str]:
    """Files of a part that are not there, or not with their bytes. `found` must be what `folders` says after
    the manifest was read: files are there before it."""
    held = found.get(backup, {})
    files = manifest.files_of(part)
    return [f"{backup}/{file.name}" for file in files if held.get(file.name) != file.bytes]


def must_be_there(found: Mapping[str, Mapping[str, int]], steps: Iterable[Step]) -> None:
    """BackupDamaged unless all files are there in their sizes. So no manifest makes a reader ask for more
    memory than its files account for, and a restore does not find out at its end."""
    for step in steps:
        if lost := lost_files(found, step.backup, step.part):
            raise BackupDamaged(
                f"{lost[0]} is not there, no plain file or of another size than its manifest says; take a "
                "new full backup",
                backup=step.backup,
            )


def load(target: Target, backup: str) -> Kept:
    """The manifest of a backup and its SHA-256. BackupNotFound, BackupDamaged, FormatMismatch."""
    if not is_id(backup):
        raise BackupNotFound(
            f"{backup!r:.80} is no id of a backup; list_backups shows those there are"
        )
    data = target.read(f"{backup}/{MANIFEST_FILE}", MAX_MANIFEST_BYTES)
    return manifest.decode(data, backup)


class Chain:
    """A backup and those that it goes back to, newest first. Each is read when it is first wanted, once.

    BackupDamaged where one is missing or another.
    """

    def __init__(self, start: Kept, load: Callable[[str], Kept]) -> None:
        self.start = start
        self._load = load
        self._read = [start]

    def __iter__(self) -> Iterator[Kept]:
        for n in itertools.count():
            if n == len(self._read):
                before = _before(self._read[-1][0], self._load)
                if before is None:
                    return
                self._read.append(before)
            yield self._read[n]


def _before(held: Manifest, load: Callable[[str], Kept]) -> Kept | None:
    """The backup that this one continues, None for a full one. BackupDamaged where it is missing or another."""
    parent = held.parent
    if parent is None:
        return None
    if parent.id >= held.id:
        raise BackupDamaged(f"backup {held.id} continues {parent.id}, which is not older")
    try:
        before = load(parent.id)
    except BackupNotFound:
        raise BackupDamaged(
            f"backup {held.id} continues {parent.id}, which is not there", backup=parent.id
        ) from None
    if before[1] != parent.sha256 or before[0].chain != held.chain:
        raise BackupDamaged(
            f"backup {held.id} does not continue the {parent.id} that is there; one of them was changed "
            "or comes from elsewhere",
            backup=parent.id,
        )
    return before


def newest_of(target: Target, backups: Sequence[str], tokens: set[str]) -> Kept | None:
    """The newest of these backups, oldest first, that holds any of these collections."""
    for backup in reversed(backups):
        found = load(target, backup)
        if any(part.token in tokens for part in found[0].collections):
            return found
    return None


@dataclass(frozen=True, slots=True)
class Walked:
    """What a chain has of some collections: of each, by token, the newest that it holds and when the backup of that
    was taken, in microseconds since 1970; and all files that they and the chain are made of."""

    last: dict[str, tuple[Part, int]]
    files: list[tuple[str, str, int]]
    """Backup, file and bytes, -1 for those of a manifest."""

    def lost(self, found: Mapping[str, Mapping[str, int]]) -> list[str]:
        """Those of the files that are not there, or not with their bytes."""
        lost = []
        for backup, name, size in self.files:
            held = found.get(backup, {}).get(name)
            if held is None or size not in (-1, held):
                lost.append(f"{backup}/{name}")
        return lost


def walk(start: Kept, load: Callable[[str], Kept], tokens: set[str]) -> Walked:
    """Reads the manifests of a chain, from its newest down to the full one, and keeps none of them.

    BackupDamaged when one is missing or another, or anything between what they hold of these collections.
    """
    walked = Walked({}, [])
    after: dict[str, tuple[str, Part]] = {}
    now: Kept | None = start
    while now is not None:
        held = now[0]
        walked.files.append((held.id, MANIFEST_FILE, -1))
        for part in held.collections:
            if part.token not in tokens:
                continue
            if part.token not in walked.last:
                walked.last[part.token] = part, held.taken_us
            elif part.token in after:
                _must_lead_to(held.id, part, *after.pop(part.token))
            else:
                continue  # a later backup holds all of it
            files = manifest.files_of(part)
            walked.files.extend((held.id, file.name, file.bytes) for file in files)
            if part.since:
                after[part.token] = held.id, part
        now = _before(held, load)
    if after:
        raise _only_the_end(start[0].id)
    return walked


def _must_lead_to(backup: str, part: Part, later: str, after: Part) -> None:
    """BackupDamaged unless what a later backup holds of a collection goes on where this one ends."""
    if (part.sequence, part.next_row) != (after.since, after.first_row):
        raise BackupDamaged(
            f"backup {later} continues collection {after.name!r} from commit {after.since}, backup {backup} "
            f"ends at {part.sequence}",
            backup=backup,
        )
    if part.settings != after.settings:
        raise BackupDamaged(f"collection {after.name!r} has other settings in backup {backup}")


def _only_the_end(backup: str) -> BackupDamaged:
    return BackupDamaged(
        f"backup {backup} holds only the end of a collection, and what comes before is missing"
    )


def steps_to(chain: Chain, token: str) -> list[Step]:
    """All that has to be put together for a collection as the newest of a chain shows it, oldest first.

    BackupDamaged when anything between them is missing.
    """
    steps: list[Step] = []
    for held, _ in chain:
        part = next((part for part in held.collections if part.token == token), None)
        if part is None:
            continue
        if steps:
            _must_lead_to(held.id, part, steps[-1].backup, steps[-1].part)
        steps.append(Step(held.id, part, held.taken_us))
        if not part.since:
            return steps[::-1]
    raise _only_the_end(chain.start[0].id)


def remove(target: Target, backup: str) -> None:
    """Removes a backup, its manifest first: stopped half-way, the rest is litter."""
    target.delete(f"{backup}/{MANIFEST_FILE}")
    target.delete_folder(backup)


def first_at(target: Target, at: dt.datetime) -> tuple[Kept, dict[str, Kept]]:
    """The first backup that was taken at this moment, which is aware, or later; and by their tokens all collections that it
    does not hold but a later one does, with the first that does.

    One that bears a later time than a backup after it was taken while the clock was wrong, or that one was: nothing
    tells which, so it is passed over. A later one holds all that it does, but for what was
    dropped since.
    """
    found: Kept | None = None
    later: dict[str, Kept] = {}
    least: int | None = None
    for backup in reversed(complete(target)):
        held = load(target, backup)
        if least is None or held[0].taken_us <= least:
            least = held[0].taken_us
            if manifest.moment(least) < at:
                break
            found = held
            later.update({part.token: held for part in held[0].collections})
    if found is None:
        raise BackupNotFound(
            f"{target.name} holds no backup taken at {at.isoformat()} or later, so what happened until then is "
            "not known; leave the time out for the newest backup"
        )
    return found, {token: held for token, held in later.items() if held is not found}


def newest(target: Target) -> Kept:
    """The newest backup. BackupNotFound when there is none."""
    backups = complete(target)
    if not backups:
        raise BackupNotFound(f"{target.name} holds no complete backup")
    return load(target, backups[-1])
