"""Numbers about a collection, and the check that its structures agree."""

from __future__ import annotations

from collections.abc import Iterator

from .builder import Builder
from .collection_files import folder_bytes
from .core import Core
from .durability import synced_sequence
from .errors import Corrupted
from .field import Field
from .index import file_faults, side_faults
from .recall_audit import Audit
from .store import problems
from .types import AuditStats, CheckReport, CollectionStats, CurvePoint, IndexStats

_MAX_PROBLEMS = 100


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


def check(core: Core) -> CheckReport:
    """See `Collection.check`."""
    found: list[str] = []
    try:
        for sentence in _store_faults(core):
            found.append(sentence)
            if len(found) >= _MAX_PROBLEMS:
                break
    except Corrupted as error:
        found.append(error.message)
    found += _index_faults(core)
    return CheckReport(not found, core.view.n_live, tuple(found[:_MAX_PROBLEMS]))


def _store_faults(core: Core) -> Iterator[str]:
    with core.exclusive():
        view = core.view
        with core.read() as reader:
            state = reader.state()
    if (view.sequence, view.n_rows, view.n_live) != tuple(state):
        yield (
            f"the index is at commit {view.sequence} with {view.n_rows} rows and "
            f"{view.n_live} live ones, the store at {tuple(state)}"
        )
    with core.read() as reader:
        yield from problems(reader)


def _index_faults(core: Core) -> list[str]:
    """What is wrong with saved indexes: files that fail their checksums, and those that could not be used."""
    found = []
    for field in core.all_fields:
        record = field.record
        faults = []
        if record is not None:
            faults = file_faults(record, core.store.folder)
            faults += side_faults(core.store.folder, record.graph.name)
        if field.record is not record:
            continue  # A build has put new files into the place of these, and has read them.
        if not faults and field.raw_record is not None and record is None:
            faults = [field.last_error]
        where = f"vector field {field.name!r}: " if field.name else ""
        found += [f"{where}{fault}; the index is made again from the store" for fault in faults]
    return found
