"""What an operator watches of an open database: figures that cost little and load nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .builder import Builder
from .collection_files import folder_bytes
from .collection_stats import index_stats
from .core import Core
from .errors import VecdbError
from .recall_audit import audit_of
from .search_lane import LANE
from .tally import Counted
from .types import IndexStats


@dataclass(frozen=True, slots=True)
class CollectionFigures:
    """One collection that is loaded, at one moment."""

    name: str
    sequence: int
    live_rows: int
    rows: int
    purged_rows: int
    disk_bytes: int
    map_used_bytes: int
    map_size_bytes: int
    map_limit_bytes: int
    readers: int
    """Slots of LMDB readers that are taken: threads that have read, of all processes."""
    max_readers: int
    commit_s: Counted
    """Seconds of commits, by `tally.SECONDS`."""
    commit_writes: Counted
    """Writes that shared a commit, by `tally.SIZES`."""
    indexes: Mapping[str, IndexStats]
    """By name of the vector field; that of the records' own vectors has the name ""."""


@dataclass(frozen=True, slots=True)
class SearchFigures:
    """The search lane of this process, which all databases share."""

    batch_queries: Counted
    """Queries searched in one call, by `tally.SIZES`."""
    waiting: int


def search_figures() -> SearchFigures:
    """Takes some us."""
    return SearchFigures(LANE.batches.read(), LANE.waiting)


def collection_figures(cores: Iterable[Core], builder: Builder) -> list[CollectionFigures]:
    """One for each, ordered by name; 0.1 ms each. A collection that is closed meanwhile is left out."""
    found = []
    for core in cores:
        try:
            found.append(_figures(core, builder))
        except VecdbError:
            continue
    return sorted(found, key=lambda one: one.name)


def _figures(core: Core, builder: Builder) -> CollectionFigures:
    core.check_open()
    view = core.index.view
    used, size, readers, max_readers = core.store.map_use()
    audit = audit_of(core, builder)
    return CollectionFigures(
        name=core.info.name,
        sequence=view.sequence,
        live_rows=view.n_live,
        rows=view.n_rows,
        purged_rows=core.purged_rows,
        disk_bytes=folder_bytes(core.store.folder),
        map_used_bytes=used,
        map_size_bytes=size,
        map_limit_bytes=core.store.map_bytes()[1],
        readers=readers,
        max_readers=max_readers,
        commit_s=core.commits.read(),
        commit_writes=core.groups.read(),
        indexes={field.name: index_stats(core, builder, audit, field) for field in core.all_fields},
    )
