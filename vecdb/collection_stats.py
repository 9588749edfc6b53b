"""Numbers about a collection, and the check that its structures agree."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice

from .builder import Builder
from .collection_files import folder_bytes
from .collection_info import shape_of
from .copies import Copies, copy_faults
from .core import Core
from .durability import synced_sequence
from .errors import Corrupted, VecdbError
from .field import Field
from .index import file_faults, side_faults
from .recall_audit import Audit
from .stopping import Interrupt, deadline, give_way
from .store import Reader, beside_faults, problems
from .types import AuditStats, CheckReport, CollectionStats, CurvePoint, IndexStats

log = logging.getLogger("vecdb")

_MAX_PROBLEMS = 100
_TRIES = 100
"""A writer in another process commits some thousand times a second at most, and to look at both takes some microseconds."""


def collection_stats(core: Core, builder: Builder, audit: Audit | None) -> CollectionStats:
    """See `Collection.stats`."""
    view = core.view
    used, limit = core.store.map_bytes()
    return CollectionStats(
        name=core.info.name,
        sequence=view.sequence,
        count=view.n_live,
        rows=view.n_rows,
        disk_bytes=folder_bytes(core.store.folder),
        map_used_bytes=used,
        map_limit_bytes=limit,
        fields=core.ready_columns().fields(),
        index=index_stats(core, builder, audit, core.field(None)),
        vectors={
            name: index_stats(core, builder, audit, field) for name, field in core.fields.items()
        },
        purged_rows=core.purged_rows,
        devices=() if core.devices is None else core.devices.stats(),
        durability="" if core.read_only else core.options["durability"],
        synced_sequence=synced_sequence(core, view.sequence),
        repairs=core.store.repairs,
    )


def index_stats(core: Core, builder: Builder, audit: Audit | None, field: Field) -> IndexStats:
    """State of the index of one vector field."""
    figures, record = field.index.stats(), field.record
    progress = builder.progress(core, field)
    return IndexStats(
        kind=figures.kind,
        device=figures.device,
        indexed_rows=figures.indexed_rows,
        tail_rows=figures.tail_rows,
        dead_rows=figures.dead_rows,
        building=progress is not None,
        build_progress=1.0 if progress is None else progress,
        memory_bytes=figures.memory_bytes,
        file_bytes=0 if record is None else record.file_bytes,
        target_recall=field.settings.target_recall,
        measured_recall=figures.measured_recall,
        last_error=field.last_error,
        quantization=figures.quantization,
        curve=tuple(
            CurvePoint(point.setting, point.recall_10, point.recall_100, point.cost_us)
            for point in figures.curve.points
        ),
        built_at_sequence=figures.built_at_sequence,
        age_s=figures.age_s,
        audit=AuditStats() if audit is None else audit.stats(field.name),
        device_bytes=figures.device_bytes,
        device_note=figures.device_note or core.assigned.note,
    )


def check(core: Core, timeout_s: float | None) -> CheckReport:
    """See `Collection.check`."""
    in_time = deadline(timeout_s)

    def interrupt() -> None:
        # A rest makes the transaction of the check last longer, and a map that is to grow waits for its end.
        if not core.store.is_awaited:
            give_way()
        in_time()

    found: list[str] = []
    try:
        for sentence in _store_faults(core, interrupt):
            found.append(sentence)
            if len(found) >= _MAX_PROBLEMS:
                break
    except Corrupted as error:
        found.append(error.message)
    try:
        found += _index_faults(core, interrupt)
        found += beside_faults(core.store.folder, shape_of, core.options)
    except VecdbError:
        raise  # DeadlineExceeded is an OSError
    except OSError as error:
        found.append(f"the files of {core.store.folder} cannot be looked at: {error}")
    return CheckReport(not found, core.view.n_live, tuple(found[:_MAX_PROBLEMS]))


def _store_faults(core: Core, interrupt: Interrupt) -> Iterator[str]:
    with _moment(core) as (copies, reader):
        sound = True
        for fault in problems(reader.alone(), interrupt):
            sound = False
            yield fault
        # Beside a store with faults, what memory has may be what is right: it stays, and is not measured by these.
        if not sound or copies is None:
            return
        found = list(islice(copy_faults(copies, reader, interrupt), _MAX_PROBLEMS))
    if found:
        log.error("collection %s: copies in memory are wrong, made anew: %s", core.info.name, found)
        core.drop_copies()
    yield from (f"in memory: {one}; all copies are made anew from the store" for one in found)


@contextmanager
def _moment(core: Core) -> Iterator[tuple[Copies | None, Reader]]:
    """The copies of a collection and its store at one moment; writers are kept out for some microseconds.

    None for the copies of a collection that another process writes, where that commits each time before both are
    there.
    """
    for tries_left in range(_TRIES, -1, -1):
        with ExitStack() as stack:
            with core.exclusive():
                core.mend()
                copies = Copies.of(core)
                reader = stack.enter_context(core.read())
            behind = core.read_only and copies.view.sequence != reader.state().sequence
            if not behind or not tries_left:
                yield (None if behind else copies), reader
                return


def _index_faults(core: Core, interrupt: Interrupt) -> list[str]:
    """What is wrong with saved indexes: files that fail their checksums, and those that could not be used."""
    found = []
    for field in core.all_fields:
        record = field.record
        faults = []
        if record is not None:
            faults = file_faults(record, core.store.folder, interrupt)
            faults += side_faults(core.store.folder, record.graph.name, interrupt)
        if field.record is not record:
            continue  # A build has put new files into the place of these, and has read them.
        if not faults and field.raw_record is not None and record is None:
            faults = [field.last_error]
        where = f"vector field {field.name!r}: " if field.name else ""
        found += [f"{where}{fault}; the index is made again from the store" for fault in faults]
    return found
