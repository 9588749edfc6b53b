"""Taking a backup of open collections while others read and write.

What is copied is fixed at the start: of each collection the rows and the deaths up to one commit. Rows
never change, so they are copied in many short transactions, and a pin keeps compaction from what is
still to come. Writers and readers wait for none of it.
"""

from __future__ import annotations

import datetime as dt
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import partial

import msgspec

from ..backup_types import BackupInfo, BackupKind, BackupProgress, Progress
from ..core import Core
from ..errors import (
    BackupDamaged,
    BackupNotFound,
    Closed,
    Corrupted,
    InvalidArgument,
    ReadOnly,
    StorageFull,
    Unavailable,
)
from ..store import Reader, epoch_of
from . import child, manifest
from .chains import Walked, complete, folders, load, lost_files, newest_of, remove, walk
from .copying import Job
from .manifest import Manifest, Parent, Part
from .side_by_side import Copiers
from .target import Target

log = logging.getLogger("vecdb")

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
    backup before has it too, else 0, `epoch` that of this commit."""

    source: Source
    job: Job
    live: int
    time_us: int
    epoch: str


@dataclass(frozen=True, slots=True)
class _Before:
    """The backup that is continued, and what its chain holds; without arguments none."""

    parent: Parent | None = None
    chain: str = ""
    walked: Walked = field(default_factory=lambda: Walked({}, []))


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
    before = _Before() if kind == "full" else _to_continue(target, older, sources, kind)
    now = in_order = _now()
    # Backups are ordered by the times in their ids, whatever happens to the clock.
    if older:
        in_order = max(now, manifest.begun_at(older[-1]) + dt.timedelta(microseconds=1))
    backup = manifest.new_id(in_order)
    doing = _Doing(target, backup, verify, limit_bytes_s, progress)
    with ExitStack() as pins, closing(Copiers()) as copiers:
        begun = []
        for source in sources:
            try:
                begun.append(_begin(source, before, pins))
            except Closed:
                if not source.gone():
                    raise
        for one in begun:
            _must_last(one.source)
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
                before.chain or backup,
                before.parent,
                manifest.microseconds(now),
                parts,
                {alias: name for alias, name in aliases.items() if name in held},
            )
            _finish(target, whole, before, verify=verify)
        except BaseException as error:
            # A manifest that may come yet is to find its files; they count as nothing until then.
            if not (
                isinstance(error, Unavailable)
                and error.details.get("unanswered") == _manifest_of(backup)
            ):
                with suppress(StorageFull, Unavailable):  # what is left is pruned later
                    remove(target, backup)
            raise
    return manifest.describe(whole)


def _to_continue(
    target: Target, older: Sequence[str], sources: Sequence[Source], kind: BackupKind
) -> _Before:
    """The newest backup that holds any of the collections, and all that it goes back to, if all of it is there."""
    tokens = {source.token for source in sources}
    try:
        kept = newest_of(target, older, tokens)
        if kept is not None:
            walked = walk(kept, partial(load, target), tokens)
            if lost := walked.lost(folders(target)):
                raise BackupDamaged(
                    f"{lost[0]} is not there, no plain file or of another size than its manifest says",
                    backup=lost[0].partition("/")[0],
                )
            return _Before(Parent(kept[0].id, kept[1]), kept[0].chain, walked)
    except (BackupDamaged, BackupNotFound) as error:
        if kind == "incremental":
            raise BackupDamaged(
                f"{target.name} holds no whole chain that could be continued: {error.message}. Put back what is "
                "missing, or take a full backup, which begins a new chain",
                **error.details,
            ) from error
        log.warning(
            "%s holds no whole chain that could be continued, so a full backup is taken: %s. A backup that is damaged keeps "
            "others from being pruned until its folder is removed",
            target.name,
            error.message,
        )
        return _Before()
    if kind == "incremental":
        raise BackupNotFound(
            f"{target.name} holds no backup of these collections that could be continued; take a full one"
        )
    return _Before()


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
        self._job = Job("", 0, 0, 0, 0)
        self._before = self._size = 0

    def begin(self, job: Job, files: int) -> None:
        """The next collection, behind so many files."""
        self._job = job
        self._before += self._size
        self._size = 0
        self.order = msgspec.structs.replace(self.order, number=files)

    def came(self, rows: int, size: int) -> None:
        self._size = size
        job = self._job
        total = job.next_row - job.first_row
        done = min(rows, total)
        self._progress(BackupProgress("copy", job.name, done, total, self._before + size))


def _finish(target: Target, whole: Manifest, before: _Before, *, verify: bool) -> None:
    """Writes the manifest, once all that it names is durable."""
    _must_be_there(folders(target), whole, before)
    data, _ = manifest.encode(whole)
    path = _manifest_of(whole.id)
    if any(manifest.files_of(part) for part in whole.collections):
        target.make_durable(whole.id)
    target.write(path, [data])
    target.make_durable(whole.id)
    if verify:
        target.read_back(path, [data])
    # Who prunes meanwhile has not seen the manifest, so may have taken what it continues.
    _must_be_there(folders(target), whole, before)


def _manifest_of(backup: str) -> str:
    return f"{backup}/{manifest.MANIFEST_FILE}"


def _must_be_there(
    found: Mapping[str, Mapping[str, int]], whole: Manifest, before: _Before
) -> None:
    """Unavailable when files of a backup, or of those it goes back to, have gone while it was taken."""
    lost = [name for part in whole.collections for name in lost_files(found, whole.id, part)]
    lost += before.walked.lost(found)
    if lost:
        raise Unavailable(
            f"{lost[0]} was removed while the backup was taken, as prune does with backups that take too "
            "long, or the target does not list what it holds; repeat the backup"
        )


def _begin(source: Source, before: _Before, pins: ExitStack) -> _Begun:
    pin = pins.enter_context(source.core.pins.hold())
    part, taken_us = before.walked.last.get(source.token, (None, 0))
    with source.core.read() as reader:
        sequence, next_row, live = reader.state()
        epoch = epoch_of(reader, sequence)
        if part is not None and not _continues(source.core, reader, part, taken_us):
            part = None
    since, first_row = (0, 0) if part is None else (part.sequence, part.next_row)
    time_us = part.time_us if part is not None and part.sequence == sequence else 0
    pin.sequence = since
    job = Job(source.name, since, sequence, first_row, next_row)
    return _Begun(source, job, live, time_us, epoch)


def _continues(core: Core, reader: Reader, part: Part, taken_us: int) -> bool:
    """Whether the newest commit of the backup, taken at `taken_us`, is one of the collection's, and all before it
    are the same: its files may have been set back since and gone another way, or been repaired."""
    state = reader.state()
    if state.sequence < part.sequence or state.next_row < part.next_row:
        return False
    if state.sequence == part.sequence and state != (part.sequence, part.next_row, part.live):
        return False
    commit = next(reader.log(part.sequence - 1), None) if part.sequence else None
    logged = commit is not None and commit.sequence == part.sequence
    if commit and logged and (commit.time_us, commit.end_row) != (part.time_us, part.next_row):
        return False
    epoch = epoch_of(reader, part.sequence)
    if part.epoch:
        # Told by the log or not: times of commits are equal while the clock is behind them.
        return epoch == part.epoch
    # An earlier version took it, or nothing had been committed since an upgrade or a repair. Nor has anything since:
    # whoever knows epochs, and had set it back and written again, would have begun one.
    unchanged = state.sequence == part.sequence and not epoch
    second = taken_us // 1_000_000
    repaired = any(one.repaired_at.timestamp() >= second for one in core.store.repairs)
    return not repaired and (logged or not part.sequence or unchanged)


def _must_last(source: Source) -> None:
    """Brings all that was committed so far to the disk: a backup of what a power cut takes away would show what
    never was. A process that only reads cannot do that."""
    if source.core.read_only:
        return
    try:
        source.core.store.flush()
    except (Closed, ReadOnly):
        if not source.gone():
            raise


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
            # Whoever only reads has others beside that write, and may answer.
            core = source.core
            alone = not (core.read_only or core.others_read or store.open_elsewhere())
            done = copiers.copy(order, where, job, doing.came, alone=alone)
        else:
            done = child.copy_here(
                doing.target, doing.order, source.core.read, job, [(job.first_row, job.next_row)], doing.came
            )  # fmt: skip
    except (Closed, Corrupted, Unavailable):
        # The folder goes away under whoever reads it.
        if source.gone():
            return None
        raise
    return Part(
        source.name, source.token, store.settings.decode(), job.since, done.base_sequence, job.sequence,
        job.first_row, done.base_row, job.next_row, begun.live, done.time_us or begun.time_us,
        done.rows, done.history, begun.epoch,
    )  # fmt: skip
