"""Taking a backup of open collections while others read and write.

What is copied is fixed at the start: of each collection the rows and the deaths up to one commit. Rows
never change, so they are copied in many short transactions, and a pin keeps compaction from what is
still to come. Writers and readers wait for none of it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial

import msgspec

from ..backup_types import BackupInfo, BackupKind, BackupProgress, Progress
from ..core import Core
from ..errors import BackupNotFound, Closed, Corrupted, InvalidArgument, StorageFull, Unavailable
from ..store import Reader
from . import child, manifest
from .chains import Chain, complete, folders, load, lost_files, newest_of, part_before, remove
from .copying import Job
from .manifest import MANIFEST_FILE, Manifest, Parent, Part
from .side_by_side import Copiers
from .target import Target

SMALL_BYTES = 8 << 20
"""What is smaller is copied in this process: in less time than another takes to begin."""


@dataclass(frozen=True, slots=True)
class Source:
    """A collection to back up. `token` names it through renames, and no other ever; `gone` says whether it
    was dropped meanwhile."""

    name: str
    token: str
    core: Core
    gone: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class _Begun:
    """What is known of a collection before it is copied; `time_us` is that of its newest commit, if the
    backup before has it too, else 0."""

    source: Source
    job: Job
    live: int
    time_us: int


def take(
    target: Target,
    sources: Sequence[Source],
    aliases: Mapping[str, str],
    *,
    kind: BackupKind,
    verify: bool,
    limit_bytes_s: float | None,
    progress: Progress,
) -> BackupInfo:
    """Backs up the sources as of now. See `Database.backup`."""
    if kind not in ("auto", "full", "incremental"):
        raise InvalidArgument(f"kind must be auto, full or incremental, given {kind!r:.80}")
    if limit_bytes_s is not None and not limit_bytes_s > 0:
        raise InvalidArgument(f"limit_bytes_s must be above 0, given {limit_bytes_s!r:.80}")
    older = complete(target)
    before = None
    if kind != "full":
        before = newest_of(target, older, {source.token for source in sources})
    if before is None and kind == "incremental":
        raise BackupNotFound(
            f"{target.name} holds no backup of these collections that could be continued; take a full one"
        )
    now = in_order = _now()
    # Backups are ordered by the times in their ids, whatever happens to the clock.
    if older:
        in_order = max(now, manifest.begun_at(older[-1]) + dt.timedelta(microseconds=1))
    backup = manifest.new_id(in_order)
    doing = _Doing(target, backup, verify, limit_bytes_s, progress)
    chain = None if before is None else Chain(before, partial(load, target))
    with ExitStack() as pins, closing(Copiers()) as copiers:
        begun = []
        for source in sources:
            try:
                begun.append(_begin(source, chain, pins))
            except Closed:
                if not source.gone():
                    raise
        try:
            parts: list[Part] = []
            for one in begun:
                doing.begin(one.job, sum(len(manifest.files_of(part)) for part in parts))
                part = _copied(one, doing, copiers)
                if part is not None:
                    parts.append(part)
            held = {part.name for part in parts}
            whole = Manifest(
                manifest.FORMAT,
                backup,
                backup if before is None else before[0].chain,
                None if before is None else Parent(before[0].id, before[1]),
                manifest.microseconds(now),
                parts,
                {alias: name for alias, name in aliases.items() if name in held},
            )
            _finish(target, whole, verify=verify)
        except BaseException:
            with suppress(StorageFull, Unavailable):  # what is left is pruned later
                remove(target, backup)
            raise
    return manifest.describe(whole)


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class _Doing:
    """The backup under way: where it goes, and how far it has come."""

    def __init__(
        self,
        target: Target,
        backup: str,
        verify: bool,
        limit_bytes_s: float | None,
        progress: Progress,
    ) -> None:
        self.target = target
        self.order = child.Order("", backup, verify, limit_bytes_s, 0)
        self._progress = progress
        self._job = Job("", 0, 0, 0, 0, 0, 0)
        self._before = self._size = 0

    def begin(self, job: Job, files: int) -> None:
        """The next collection, behind so many files."""
        self._job = job
        self._before += self._size
        self._size = 0
        self.order = msgspec.structs.replace(self.order, number=files)

    def came(self, row: int, size: int) -> None:
        self._size = size
        job = self._job
        total = job.next_row - job.first_row
        done = min(max(0, row - job.first_row), total)
        self._progress(BackupProgress("copy", job.name, done, total, self._before + size))


def _finish(target: Target, whole: Manifest, *, verify: bool) -> None:
    """Writes the manifest, once all that it names is durable."""
    _must_be_there(folders(target), whole)
    data, _ = manifest.encode(whole)
    path = f"{whole.id}/{manifest.MANIFEST_FILE}"
    if any(manifest.files_of(part) for part in whole.collections):
        target.make_durable(whole.id)
    target.write(path, [data])
    target.make_durable(whole.id)
    if verify:
        target.read_back(path, [data])


def _must_be_there(found: Mapping[str, Mapping[str, int]], whole: Manifest) -> None:
    """Unavailable when files of a backup, or the one it continues, have gone while it was taken."""
    lost = [name for part in whole.collections for name in lost_files(found, whole.id, part)]
    if whole.parent is not None and MANIFEST_FILE not in found.get(whole.parent.id, {}):
        lost.append(f"{whole.parent.id}/{MANIFEST_FILE}")
    if lost:
        raise Unavailable(
            f"{lost[0]} was removed while the backup was taken, as prune does with backups that take too "
            "long; repeat the backup"
        )


def _begin(source: Source, chain: Chain | None, pins: ExitStack) -> _Begun:
    pin = pins.enter_context(source.core.pins.hold())
    part = None if chain is None else part_before(chain, source.token)
    with source.core.read() as reader:
        sequence, next_row, live = reader.state()
        if part is not None and not _continues(reader, part):
            part = None
    since, first_row = (0, 0) if part is None else (part.sequence, part.next_row)
    time_us = part.time_us if part is not None and part.sequence == sequence else 0
    pin.sequence = since
    job = Job(source.name, since, sequence, first_row, next_row, first_row, next_row)
    return _Begun(source, job, live, time_us)


def _continues(reader: Reader, part: Part) -> bool:
    """Whether the collection is still that of the backup, and has not been set back since, by a copy of
    its files, and gone another way."""
    sequence, next_row, _ = reader.state()
    if sequence < part.sequence or next_row < part.next_row:
        return False
    commit = next(reader.log(part.sequence - 1), None) if part.sequence else None
    if commit is None or commit.sequence != part.sequence or not part.time_us:
        return True
    return (commit.time_us, commit.end_row) == (part.time_us, part.next_row)


def _copied(begun: _Begun, doing: _Doing, copiers: Copiers) -> Part | None:
    """The files of one collection; None when it has been dropped meanwhile."""
    source, job = begun.source, begun.job
    store = source.core.store
    rows = job.next_row - job.first_row
    try:
        address = doing.target.address
        if address and rows * store.row_bytes > SMALL_BYTES:
            order = msgspec.structs.replace(doing.order, target=address)
            where = child.Where(str(store.folder), store.shape, dict(source.core.options))
            done = copiers.copy(order, where, job, doing.came)
        else:
            done = child.copy_here(doing.target, doing.order, source.core.read, job, doing.came)
    except (Closed, Corrupted, Unavailable):
        # The folder goes away under whoever reads it.
        if source.gone():
            return None
        raise
    return Part(
        source.name, source.token, store.settings.decode(), job.since, done.base_sequence, job.sequence,
        job.first_row, done.base_row, job.next_row, begun.live, done.time_us or begun.time_us,
        done.rows, done.history,
    )  # fmt: skip
