"""One vector field of an open collection: the record's own vector, or a named one."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .device import Placements
from .errors import Corrupted
from .index import BuiltIndex, Index, IndexRecord, OnDevice, View, saved_sides
from .lane import Applied
from .layout import VECTOR_DTYPES
from .selection import once
from .store import CollectionStore, Reader, State
from .vectors import Space, width_of

_LOAD_ROWS = 8_192

Rows = NDArray[np.int64]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class FieldState:
    """What one read transaction said of a field."""

    raw_record: bytes | None
    absent: Rows
    """Rows without a vector in this field, ascending."""

    @classmethod
    def read(cls, reader: Reader, number: int) -> FieldState:
        return cls(reader.index_record(number), reader.absent(number))


@dataclass(frozen=True, slots=True)
class StoredVectors:
    """The vectors of a field, each call in a read transaction of its own. Any thread may call.

    Rows that lack the vector or have been purged read as zeros.
    """

    store: CollectionStore
    number: int

    def range(self, start: int, stop: int) -> NDArray[Any]:
        """Vectors of rows [start, stop) in stored dtype."""
        with self.store.read() as reader:
            return reader.vector_range(start, stop, self.number)

    def rows(self, rows: Rows) -> NDArray[Any]:
        """Vectors of any rows in stored dtype, in their order."""
        known = self.store.known_vectors(rows, self.number)
        if known is not None:
            return known
        with self.store.read() as reader:
            return reader.vectors(rows, self.number)

    def in_place(self, rows: Rows, work: Callable[[int, Rows], Result]) -> Result | None:
        """`work(origin, places)` on float32 vectors where they lie; None where that is not known of all."""
        return self.store.in_place(rows, work, self.number)


class Field:
    """The index of a field and the record of its saved build, kept in step with the store.

    A row without a vector in the field is dead to its index from the start. Written in the lane;
    any thread may read.
    """

    def __init__(
        self,
        store: CollectionStore,
        number: int,
        name: str,
        settings: Space,
        options: Mapping[str, Any],
        before: Field | None,
        devices: tuple[Placements, tuple[str, ...], bool] | None = None,
    ) -> None:
        """`before` is the field that this one replaces. `devices`: those that may search it,
        and whether they were asked for."""
        self.number = number
        """0 for the record's own vector, named ones count from 1."""
        self.name = name
        """Empty for the record's own vector."""
        self.settings = settings
        self.index: Index = Index(
            dimension=settings.dimension,
            metric=settings.metric,
            storage=settings.storage,
            quantization=settings.quantization,
            kind=settings.index,
            target_recall=settings.target_recall,
            settings=options,
            source=StoredVectors(store, number),
            sides=None if before is None else before.index.sides,
            on_device=_on_device(settings, options, before, devices),
        )
        self.record: IndexRecord | None = None
        self.raw_record: bytes | None = None
        self.last_error = ""
        self._store = store
        self._views: list[weakref.ref[View]] = []
        if before is not None:
            self._views = [*before._views, weakref.ref(before.index.view)]

    # -- following the store

    def load(self, state: State, found: FieldState, dead: Rows) -> None:
        """Fills the new index with what is stored: the saved build, and all rows behind it.

        `dead` rows are ascending; they and those without a vector are not live.
        """
        index = self.index
        gone = once(np.sort(np.concatenate([dead, found.absent]))) if len(found.absent) else dead
        self._install_saved(found.raw_record)
        first = 0 if self.record is None else self.record.high_water
        index.kill(gone[gone < first])
        for start in range(first, state.next_row, _LOAD_ROWS):
            stop = min(start + _LOAD_ROWS, state.next_row)
            index.append(index.source.range(start, stop))
            low, high = np.searchsorted(gone, [start, stop])
            index.kill(gone[low:high])
            # Published slice by slice, so that rows which are mostly dead are let go on the way.
            index.publish(state.sequence)
        index.publish(state.sequence)
        if index.on_device is not None:
            index.on_device.keep_only(index.view.main)

    def _install_saved(self, raw: bytes | None) -> None:
        self.raw_record = raw
        if raw is None:
            return
        try:
            record = IndexRecord.from_json(raw)
            self.index.install(self.index.load(record, self._store.folder))
        except Corrupted as error:
            # An index is only a copy: search goes on exactly until it has been built again.
            self.last_error = f"saved index not used: {error.message}"
            return
        self.record = record
        self._know_sides(record)

    def _know_sides(self, record: IndexRecord) -> None:
        """Which graphs for filters are in files beside the saved index."""
        store = self._store
        self.index.sides.keep(
            saved_sides(store.folder, record.graph.name, read_only=store.read_only)
        )

    def append(self, change: Applied, first_row: int) -> None:
        """The rows that a write has added; not yet visible."""
        if not self.number:
            assert change.vectors is not None
            self.index.append(change.vectors)
            return
        n = len(change.ids)
        if self.number in change.named:
            vectors, there = change.named[self.number]
        else:
            dtype = VECTOR_DTYPES[self.settings.storage]
            vectors = np.zeros((n, width_of(self.settings)), dtype)
            there = np.zeros(n, np.bool_)
        self.index.append(vectors)
        self.index.kill(first_row + np.flatnonzero(~there))

    def follow(self, reader: Reader, stop: int) -> None:
        """The rows up to `stop` that another process has added; not yet visible."""
        start = self.index.view.n_rows
        self.index.append(reader.vector_range(start, stop, self.number))
        self.index.kill(reader.absent(self.number, start))

    def publish(self, sequence: int) -> None:
        self._remember()
        self.index.publish(sequence)

    def install(self, built: BuiltIndex, record: IndexRecord) -> None:
        """Puts a saved build into service. The store names it first: a crash leaves litter at most."""
        raw = record.to_json()
        self._store.set_index_record(raw, self.number)
        self.take(raw, (built, record), "")

    def take(self, raw: bytes, loaded: tuple[BuiltIndex, IndexRecord] | None, why_not: str) -> None:
        """Puts a build into service that the store names by `raw`; None: it is of no use, `why_not`."""
        self.raw_record, self.last_error = raw, why_not
        if loaded is None:
            return
        built, self.record = loaded
        self._remember()
        self.index.install(built)
        self._know_sides(self.record)

    # -- which views are in use

    def _remember(self) -> None:
        """Keeps a weak eye on the view that is about to be replaced."""
        self._views = [view for view in self._views if view() is not None]
        self._views.append(weakref.ref(self.index.view))

    def oldest_in_use(self) -> int:
        """Sequence of the oldest view that a read of this process may still hold."""
        # The newest first: once it is replaced it is among the others, where it must not be missed.
        newest = self.index.view.sequence
        held = [view() for view in self._views]
        return min([newest, *(view.sequence for view in held if view is not None)])


def any_cut_off(fields: tuple[Field, ...]) -> bool:
    """Whether a file behind one of their indexes is shorter than it was: then that must not be read. 0.9 us."""
    for field in fields:
        main = field.index.view.main
        if main is not None and not main.is_whole:
            return True
    return False


def _on_device(
    settings: Space,
    options: Mapping[str, Any],
    before: Field | None,
    devices: tuple[Placements, tuple[str, ...], bool] | None,
) -> OnDevice | None:
    if before is not None:
        # What lies there stays right: rows never change, and keep their numbers.
        return before.index.on_device
    if devices is None:
        return None
    return OnDevice(
        *devices,
        settings.dimension,
        settings.metric,
        settings.storage,
        options,
        settings.quantization,
    )
