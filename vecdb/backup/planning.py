"""What a restore will make: which collections, each from which backups, as of which moment; from manifests, and where
these do not say whether a collection was there, from its history."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from ..collection_info import check_name
from ..errors import (
    BackupDamaged,
    BackupNotFound,
    FormatMismatch,
    InvalidArgument,
    InvalidQuery,
)
from ..types import CollectionInfo
from . import manifest
from .chains import (
    Chain,
    Kept,
    Step,
    complete_of,
    first_at,
    folders,
    load,
    must_be_there,
    newest,
    steps_to,
)
from .manifest import Part
from .reading import History
from .target import Target


@dataclass(frozen=True, slots=True)
class Wanted:
    """A collection to make: from `steps`, oldest first, as of `sequence` or `time_us`, or their end."""

    source: str
    info: CollectionInfo
    """Its settings, under its new name."""
    steps: list[Step]
    sequence: int | None
    time_us: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a restore will make. `backup` is the newest that it takes a collection from."""

    backup: str
    wanted: list[Wanted]
    aliases: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Held:
    """A collection, and the backup that it is taken from."""

    part: Part
    info: CollectionInfo
    kept: Kept

    @property
    def backup(self) -> str:
        return self.kept[0].id


def plan(
    target: Target,
    *,
    backup: str | None,
    collections: Iterable[str] | Mapping[str, str] | None,
    at: dt.datetime | None,
    sequence: int | None,
) -> Plan:
    """What is to be restored. See `Database.restore`."""
    if isinstance(collections, str):
        collections = [collections]
    renamed = None if collections is None else _names(collections)
    if at is not None:
        at = _aware(at)
    if sequence is not None:
        _check_sequence(sequence, renamed, at)
    first, later = _start(target, backup, at)
    held = [_as_held(part, first) for part in first[0].collections]
    held += _in_order(later)
    read = functools.cache(functools.partial(load, target))
    found = folders(target)
    before = [one for one in complete_of(found) if one < first[0].id]

    @functools.cache
    def earlier() -> set[str]:
        """Tokens of all collections of backups before the first."""
        return {part.token for one in before for part in load(target, one)[0].collections}

    @functools.cache
    def at_hand() -> set[str]:
        """Tokens of the collections of the last backup that was taken by that time, as far as it can be read."""
        for one in reversed(before):
            with suppress(BackupDamaged, BackupNotFound, FormatMismatch):
                kept = load(target, one)[0]
                if at is not None and manifest.moment(kept.taken_us) <= at:
                    return {part.token for part in kept.collections}
        return set()

    def may_be(one: _Held) -> bool:
        # A clock that was ahead may have made one that is younger than what is in it.
        return at is None or one.info.created_at <= at or one.part.token in at_hand()

    if renamed is None:
        chosen = [one for one in held if may_be(one)]
    else:
        chosen = [_named(held, name, first[0].id, at, may_be) for name in renamed]
    if at is not None and backup is None and before:
        _must_be_called_so(chosen, held, load(target, before[-1])[0], first[0].id)
    chains: dict[str, Chain] = {}
    wanted, taken = [], []
    for one in chosen:
        chain = chains.setdefault(one.backup, Chain(one.kept, read))
        steps, time_us = _cut(steps_to(chain, one.part.token), sequence), None
        if at is not None:
            time_us = manifest.microseconds(at)
            steps = _cut_at(steps, time_us)
            in_doubt = renamed is None and one.kept is not first
            if in_doubt:
                must_be_there(found, steps)
                if not _was_there(target, steps, time_us, earlier):
                    continue
        name = one.part.name if renamed is None else renamed[one.part.name]
        info = dataclasses.replace(one.info, name=name)
        wanted.append(Wanted(one.part.name, info, steps, sequence, time_us))
        taken.append(one)
    _must_differ(taken)
    for each in wanted:
        must_be_there(found, each.steps)
    newest_read = max((one.backup for one in taken), default=first[0].id)
    return Plan(newest_read, wanted, _aliases(taken) if renamed is None else {})


def _names(collections: Iterable[str] | Mapping[str, str]) -> dict[str, str]:
    renamed = (
        dict(collections)
        if isinstance(collections, Mapping)
        else {name: name for name in collections}
    )
    for name in (*renamed, *renamed.values()):
        check_name(name)
    if not renamed or len(set(renamed.values())) != len(renamed):
        raise InvalidArgument(
            "collections must name at least one collection, each under its own name"
        )
    return renamed


def _check_sequence(sequence: object, renamed: object, at: object) -> None:
    if isinstance(sequence, bool) or not isinstance(sequence, int) or sequence < 0:
        raise InvalidQuery(f"sequence must be the number of a commit, given {sequence!r:.80}")
    if not isinstance(renamed, dict) or len(renamed) != 1 or at is not None:
        raise InvalidQuery(
            "sequence counts the commits of one collection: name that one, and give no time beside it"
        )


def _aware(at: object) -> dt.datetime:
    if isinstance(at, dt.datetime):
        try:
            return at.astimezone(dt.UTC)
        except (OverflowError, ValueError, OSError):
            pass  # local times of the years 1 and 9999 may have none in UTC
    raise InvalidQuery(f"at takes a datetime, given {at!r:.80}")


# -- which collections


def _start(
    target: Target, backup: str | None, at: dt.datetime | None
) -> tuple[Kept, dict[str, Kept]]:
    """The backup to restore from, and for collections that it does not hold, by their tokens, the first one after it that
    does: it may be one of some collections only."""
    if backup is None:
        return (newest(target), {}) if at is None else first_at(target, at)
    kept = load(target, backup)
    taken_at = manifest.moment(kept[0].taken_us)
    if at is not None and at > taken_at:
        raise BackupNotFound(
            f"backup {backup} was taken at {taken_at.isoformat()}, so it does not know what was at "
            f"{at.isoformat()}; name a later one, or none for the first one since"
        )
    return kept, {}


def _in_order(later: Mapping[str, Kept]) -> list[_Held]:
    """Collections of later backups, those of the oldest first."""
    found = []
    for token, kept in sorted(later.items(), key=lambda item: item[1][0].id):
        part = next(part for part in kept[0].collections if part.token == token)
        found.append(_as_held(part, kept))
    return found


def _as_held(part: Part, kept: Kept) -> _Held:
    return _Held(part, manifest.settings_of(part), kept)


def _named(
    held: list[_Held],
    name: str,
    backup: str,
    at: dt.datetime | None,
    may_be: Callable[[_Held], bool],
) -> _Held:
    """The one of a name: that of the oldest backup, which is the nearest to the moment."""
    called = [one for one in held if one.part.name == name]
    if not called:
        others = ", ".join(sorted({one.part.name for one in held})) or "none"
        where = f"backup {backup} holds"
        if at is not None:
            where = (
                f"backup {backup}, the one to restore from at that time, and those after it hold"
            )
        raise BackupNotFound(
            f"{where} no collection {name!r:.130}; there is {others}. One that was dropped comes back from the "
            "last backup that has it, by `backup`",
            collection=name,
        )
    for one in called:
        if may_be(one):
            return one
    raise BackupNotFound(f"collection {name!r} was made after {at and at.isoformat()}")


def _was_there(
    target: Target, steps: list[Step], time_us: int, earlier: Callable[[], set[str]]
) -> bool:
    """Whether a collection that the first backup since a time does not hold, but a later one does, was there at that time.
    It may have been left out of the first, or come later: a restore makes one that says it is as old as the
    one that it was made from. `earlier` says which collections the backups before the first hold."""
    if len(steps) > 1 and steps[0].taken_us <= time_us:
        return True
    try:
        History(target, steps).sequence_at(time_us)
    except BackupNotFound:
        # Either it was there and that moment is lost, which the restore will say, or it came later.
        return steps[-1].part.token in earlier()
    return True


def _must_be_called_so(
    chosen: list[_Held], held: list[_Held], before: manifest.Manifest, backup: str
) -> None:
    """BackupNotFound when a name was another collection's at the backup before a time, and that one is there too: which of
    the two bore it at that time nobody knows."""
    names = {one.part.token: one.part.name for one in held}
    was = {part.name: part.token for part in before.collections}
    for one in chosen:
        token = was.get(one.part.name, one.part.token)
        if token != one.part.token and names.get(token, one.part.name) != one.part.name:
            raise BackupNotFound(
                f"collection {one.part.name!r} of backup {before.id} is called {names[token]!r} in backup {backup}, where "
                f"{one.part.name!r} is another one; which of them bore that name at the time between is not known. Say "
                f"whose names count: restore with backup={backup!r} and the time, or with backup={before.id!r} as that was",
                collection=one.part.name,
            )


def _must_differ(taken: list[_Held]) -> None:
    """BackupNotFound when two collections bear one name, in backups of different times."""
    by_name: dict[str, _Held] = {}
    for one in taken:
        other = by_name.setdefault(one.part.name, one)
        if other is not one:
            raise BackupNotFound(
                f"collection {one.part.name!r} of backup {other.backup} and that of backup {one.backup} are two, and "
                "both were there at that time, one under another name; restore them one after the other, by `collections` "
                "with another name for each: the first by the time alone, the second by `backup` and the time",
                collection=one.part.name,
            )


def _aliases(taken: list[_Held]) -> dict[str, str]:
    """Aliases of the collections that are made, each as the oldest backup has it."""
    names = {one.part.name for one in taken}
    found: dict[str, str] = {}
    for one in taken:
        for alias, name in one.kept[0].aliases.items():
            if name == one.part.name and alias not in names:
                found.setdefault(alias, name)
    return found


# -- which moment


def _cut(steps: list[Step], sequence: int | None) -> list[Step]:
    """The steps up to the first that reaches a commit. BackupNotFound when it cannot be restored."""
    if sequence is None:
        return steps
    for n, step in enumerate(steps):
        part = step.part
        if part.sequence < sequence:
            continue
        if sequence < part.base_sequence:
            raise BackupNotFound(
                f"commit {sequence} of collection {part.name!r} had been compacted away when backup "
                f"{step.backup} was taken; it holds those from {part.base_sequence} to {part.sequence}, and "
                f"the one before it ends at {part.since}",
                sequence=part.base_sequence,
            )
        return steps[: n + 1]
    raise BackupNotFound(
        f"the backup ends at commit {steps[-1].part.sequence} of collection {steps[-1].part.name!r}, before "
        f"{sequence}",
        sequence=steps[-1].part.sequence,
    )


def _cut_at(steps: list[Step], time_us: int) -> list[Step]:
    """The steps up to the first that ends behind a time, or may: when its last commit came is not known any more, only
    that it came before the backup, which was taken behind that time. Else all.

    It may be one before the backup of that time: a backup reads each collection a little after the
    moment that it is said to be taken at.
    """
    for n, step in enumerate(steps):
        part = step.part
        unknown = not part.time_us and part.sequence > part.since and step.taken_us >= time_us
        if part.time_us > time_us or unknown:
            return steps[: n + 1]
    return steps
