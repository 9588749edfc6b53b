"""One open collection: the store and the copies of it in memory, kept in step.

The copies are the index (vectors), the ids, the columns (metadata), the deaths (which row died when)
and the results of recent filters. All of them follow from the store, so whatever goes wrong with a copy is
mended by reading the store again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ages import Ages
from .behind import Behind
from .columns import ColumnBatch, ColumnMoment, Columns
from .device.devices import Devices, asked_for, assigned
from .errors import Closed, InvalidQuery, ReadOnly, VecdbError
from .fetching import must_be_readable
from .field import Field, FieldState, any_cut_off
from .filters import Filter, evaluate, select
from .following import Following
from .ids import Ids
from .index import BuiltIndex, IndexRecord, View
from .lane import Applied, Lane, Write
from .lane_threads import LaneThreads
from .masks import Deaths, FilterMasks, Moment, StoredTexts, rows_at
from .news import News
from .pins import Pins
from .selection import Selection
from .stopping import Interrupt
from .store import CollectionStore, Reader, State
from .stored_columns import SLICE_ROWS, StoredColumns
from .types import CollectionInfo
from .vectors import Space

log = logging.getLogger("vecdb")

Rows = NDArray[np.int64]
_Matched = tuple[Filter | None, FilterMasks, Selection | None]

_LOAD_IDS = 1 << 18


class Core:
    """Any thread may call. Reads take a `View`, one moment that never changes, and wait for nobody."""

    def __init__(
        self,
        info: CollectionInfo,
        store: CollectionStore,
        options: Mapping[str, Any],
        threads: LaneThreads,
        *,
        read_only: bool,
        devices: Devices | None = None,
        others_read: bool = False,
    ) -> None:
        """`threads` and `devices` are those of the database, and so is `others_read`."""
        self.info = info
        self.store = store
        self.options = options
        self.read_only = read_only
        self.others_read = others_read
        self.pins = Pins()
        self.devices = devices
        """Those of the database; None where the CPU serves alone."""
        self.assigned = assigned(info.device, devices)
        # No query came yet: a process that only reads lets nothing be placed on devices before.
        self.unasked = read_only
        self.ages = Ages(float(options["history_s"]))
        self.masks = FilterMasks(options["filter_cache_entries"])
        self._matched: _Matched = (None, self.masks, None)
        self.closed: str | None = None
        store.on_rest = self._let_go
        publish = self._publish, self._fell_behind
        self._lane = Lane(store, *publish, threads, self._prepare, others_read=others_read)
        self.commits, self.groups = self._lane.commits, self._lane.groups
        self._news = News(info.name, follows=read_only)
        self._columns_lock = threading.Lock()
        self._stale = False
        self._following = Following(info.name, store, self._take_index)
        self.all_fields: tuple[Field, ...] = ()
        self._behind = Behind(info.name, (), store)
        with self._lane.exclusive():
            self._load()

    # -- the copies

    @property
    def view(self) -> View:
        """The newest published moment. A read-only collection looks for news of the writer first."""
        self.mend()
        if self._lane.landing is not None:
            self._lane.wait_landed()
        return self.index.view

    def mend(self) -> None:
        """Makes copies anew that have fallen behind, or whose index files were cut off: these are built again, where
        that is done by itself, and until then the store is searched exactly. Closed where it is closed."""
        self.check_open()
        cut_off = any_cut_off(self.all_fields)
        if self._stale or cut_off or (self.read_only and self._following.has_news()):
            self._catch_up()
            if cut_off and self.index.sides.wake is not None:
                self.index.sides.wake()

    def check_open(self) -> None:
        if self.closed is not None:
            raise Closed(self.closed)

    def _load(self) -> None:
        """Makes all copies anew from the store; called in the lane.

        The old fields serve until the new ones stand, which are assigned last.
        """
        before = {field.number: field for field in self.all_fields}
        settings: dict[str, Space] = {**self.info.vectors, "": self.info}
        numbers = [*range(1, len(settings)), 0]
        placements = None if self.devices is None else self.devices.placements
        names = self.assigned.names
        asked = asked_for(self.info.device, str(self.options["device"]))
        on_devices = (placements, names, asked) if placements is not None and names else None
        store, options = self.store, self.options
        fields = tuple(
            Field(store, number, name, settings[name], options, before.get(number), on_devices)
            for number, name in zip(numbers, settings, strict=True)
        )
        with self.store.read() as reader:
            state = reader.state()
            dead_rows, dead_sequences = reader.dead()
            self._purged_rows = len(reader.purged())
            found = [FieldState.read(reader, field.number) for field in fields]
            self._following.saw(reader)
        ids = Ids(state.next_row)
        for start in range(0, state.next_row, _LOAD_IDS):
            with self.store.read() as reader:
                ids.append_packed(*reader.packed_ids(start, min(start + _LOAD_IDS, state.next_row)))
        for field, stored in zip(fields, found, strict=True):
            field.load(state, stored, dead_rows)
            if field.last_error:
                words = "collection %s: %s; it will be built again"
                log.warning(words, self.info.name, field.last_error)
        self.ids = ids
        self.deaths = Deaths(dead_rows, dead_sequences)
        # In this order: who finds the flag set holds columns that are whole, see `ready_columns`.
        self._columns_ready = False
        self.columns = Columns(self.options["max_fields"])
        self._columns_ready = state.next_row == 0
        self.masks = FilterMasks(self.options["filter_cache_entries"])
        self.all_fields = fields
        self.fields = {field.name: field for field in fields if field.number}
        self.default = fields[-1]
        self.index = self.default.index
        self._stale = False
        if state.next_row >= SLICE_ROWS:
            # Each vector was read once; without this the map would count beside the copies.
            self.store.let_pages_go()
        self._behind = self._behind.followed_by(Behind(self.info.name, fields, self.store))

    def _let_go(self) -> None:
        """While nobody reads or writes the store: lets go of vectors that were read for filters."""
        for field in self.all_fields:
            field.index.view.let_go()

    def field(self, name: str | None) -> Field:
        """The named vector field, for None that of the record's own vector."""
        if name is None:
            return self.default
        held = self.fields.get(name) if isinstance(name, str) else None
        if held is None:
            raise InvalidQuery(
                f"no vector field {name!r:.80}; collection {self.info.name!r} has: "
                f"{', '.join(self.fields) or 'none'}",
                field=str(name)[:80],
            )
        return held

    def numbered(self, number: int) -> Field:
        """The vector field with this number in the store."""
        return self.all_fields[number - 1]

    @property
    def purged_rows(self) -> int:
        """Dead rows whose space was given back; a read-only collection has to look, some ms a million rows."""
        if self.read_only:
            with self.store.read() as reader:
                return len(reader.purged())
        return self._purged_rows

    def count_purged(self, rows: int) -> None:
        """So many rows more have been purged; called in the lane."""
        self._purged_rows += rows

    def _catch_up(self) -> None:
        """Applies commits of the store that the copies have not seen; all anew after a fault."""
        with self._lane.exclusive():
            if self._stale or any_cut_off(self.all_fields):
                self._load()
                return
            view = self.index.view
            with self.store.read() as reader:
                state = reader.state()
                # Where rows were purged of which the log would have told, or an index is gone, all is made anew.
                same = reader.horizon() <= view.sequence and self._following.takes_up(
                    reader, self.all_fields
                )
                if same and state.sequence != view.sequence:
                    # Interrupted from here on, the copies are of no moment at all.
                    self._stale = True
                    self._follow(reader, view, state)
                if same:
                    self._following.saw(reader)
            if not same:
                self._load()
                return
            if state.sequence == view.sequence:
                return
            if self._columns_ready:
                StoredColumns().extend(self.columns, self.store, state.next_row)
            for field in self.all_fields:
                field.publish(state.sequence)
            self._stale = False

    def _take_index(
        self, field: Field, raw: bytes, loaded: tuple[BuiltIndex, IndexRecord] | None, why_not: str
    ) -> None:
        """What `Following` has loaded; forgotten where all was made anew meanwhile."""
        with self._lane.exclusive():
            newest = self._following.is_newest(field, raw)
            if self.closed is not None or field not in self.all_fields or not newest:
                return
            field.take(raw, loaded, why_not)
            self._behind = self._behind.followed_by(
                Behind(self.info.name, self.all_fields, self.store)
            )

    def _follow(self, reader: Reader, view: View, state: State) -> None:
        self.ids.append_packed(*reader.packed_ids(view.n_rows, state.next_row))
        for field in self.all_fields:
            field.follow(reader, state.next_row)
        for commit in reader.log(view.sequence):
            for field in self.all_fields:
                field.index.kill(commit.died)
            self.deaths.extend(commit.died, commit.sequence)

    def _prepare(self, vectors: NDArray[Any] | None, columns: ColumnBatch | None) -> None:
        """What `_publish` of a write with these can be spared; beside its commit, in a thread the lane waits for."""
        if not self._stale:
            self.index.ahead(vectors)
            if self._columns_ready and columns is not None:
                self.columns.prepare(columns)

    def _publish(self, applied: Sequence[Applied], sequence: int) -> None:
        """Follows a commit with all copies; called in the lane. What it raises ends in `_fell_behind`."""
        now = self.index.view.sequence
        if self._stale or sequence == now:
            return  # all is made anew, or nothing changed
        if sequence != now + 1:
            raise RuntimeError(f"commit {now + 1} was never followed")
        for change in applied:
            if change.vectors is not None:
                first_row = self.ids.n_rows
                self.ids.append(change.ids)
                for field in self.all_fields:
                    field.append(change, first_row)
                if self._columns_ready and change.columns is not None:
                    self.columns.extend(change.columns, self.columns.n_rows)
            for field in self.all_fields:
                field.index.kill(change.killed)
            self.deaths.extend(change.killed, sequence)
        # That of the record's own vector comes last: it is what readers wait for.
        for field in self.all_fields:
            field.publish(sequence)
        self.ages.saw(sequence)
        self._news.tell()

    def _fell_behind(self, sequence: int) -> None:
        """After `_publish` raised: the commit stands, and the next call makes the copies anew. Not sooner: whoever reads
        meanwhile reads the moment before, and waits for nobody."""
        self._stale = True
        log.exception(
            "collection %s: commit %d stands, but following it in memory failed; all copies are made anew",
            self.info.name, sequence,
        )  # fmt: skip
        self._news.tell()

    def drop_copies(self) -> None:
        """Has the next call make all copies anew from the store; until then reads go on with what is there."""
        with self._lane.exclusive():
            self.store.forget_copies()
            self._stale = True

    # -- writing

    def write(self, write: Write) -> tuple[Applied, int]:
        """Commits a write through the lane; see `Lane.submit`."""
        if self.read_only:
            raise ReadOnly(
                f"collection {self.info.name!r} was opened with read_only=True; open the database for writing in the process that owns it"
            )
        self.check_open()
        if self._stale:
            self._catch_up()
        try:
            return self._lane.submit(write)
        except (Closed, RuntimeError):
            self.check_open()  # closed in between, and this says why
            raise

    def exclusive(self) -> AbstractContextManager[None]:
        """Keeps writers of this collection out."""
        return self._lane.exclusive()

    def install(self, number: int, built: BuiltIndex, record: IndexRecord) -> None:
        """Puts a saved build of field `number` into service."""
        with self._lane.exclusive():
            self.numbered(number).install(built, record)

    def drop_index(self, number: int) -> None:
        """Takes the index of field `number` out of service: its rows are searched exactly."""
        with self._lane.exclusive():
            self.store.set_index_record(None, number)
            self._load()

    def wait_for(self, sequence: int | None, timeout_s: float | None) -> View:
        """The first view that shows commit `sequence`, see `News.wait`."""
        return self._news.wait(lambda: self.view, sequence, timeout_s)

    def rows_shown(self, reader: Reader, view: View, names: Sequence[bytes]) -> Rows:
        """The row that bore each id at the moment of `view`, -1 where none did; about 1 us an id.

        A commit is in the store a little before it is published, so `reader` may know later ones.
        """
        return rows_at(reader, self.ids, names, view.sequence, view.n_rows)

    # -- filters

    def ready_columns(self) -> Columns:
        """The columns of all published rows, built from the store at the first call.

        Costs about 3 us a row with metadata, once; writers are kept out only for the last rows.
        """
        columns = self.columns
        if not self._columns_ready:
            with self._columns_lock:
                stored = StoredColumns()
                while not self._columns_ready:
                    if self.columns.broken:  # out of memory, or Ctrl-C, in the middle of a slice
                        self.columns = Columns(self.options["max_fields"])
                    known = self.columns.n_rows
                    if self.index.view.n_rows - known > SLICE_ROWS:
                        stored.extend(self.columns, self.store, known + SLICE_ROWS)
                        continue
                    with self._lane.exclusive():
                        stored.extend(self.columns, self.store, self.index.view.n_rows)
                        columns, self._columns_ready = self.columns, True
        return columns

    def warm(self) -> None:
        """Builds the columns ahead of the first filter. Who needs them meets a failure again."""
        try:
            self.ready_columns()
        except Closed:
            log.debug("collection %s: closed while its columns were built", self.info.name)
        except VecdbError as error:
            log.error("collection %s: columns not built: %s", self.info.name, error.message)

    def columns_if_ready(self) -> tuple[Columns, dict[str, ColumnMoment]] | None:
        """The columns with what changes of them, in the lane; None before they are built."""
        return (self.columns, self.columns.moment()) if self._columns_ready else None

    def matching(
        self, expression: Filter, moment: Moment, interrupt: Interrupt = lambda: None
    ) -> Selection:
        """The rows of the moment that match, right wherever they are live: dead ones may be among them.

        A filter on metadata alone that was asked lately takes 1 us, and gives the same object as long as
        no row has come; see `FilterMasks.get`, and `filters.select` for what others take. `interrupt` is
        called every few milliseconds of a long evaluation and may raise.
        """
        columns = self.ready_columns()
        n_rows = moment.n_rows
        source = StoredTexts(self.store, self.ids, moment)
        if expression.uses_id or expression.uses_document:
            return select(expression, columns, source, n_rows, moment, interrupt=interrupt)
        # Rows never change, so neither does whether a row matches: only new rows are evaluated.
        masks = self.masks
        found = masks.get(
            expression.text,
            n_rows,
            lambda: select(expression, columns, source, n_rows, interrupt=interrupt),
            lambda start: evaluate(
                expression, columns, source, range(start, n_rows), interrupt=interrupt
            ),
        )
        if self.options["filter_cache_entries"]:
            self._matched = expression, masks, found
        return found

    def matched(self, expression: Filter, n_rows: int) -> Selection | None:
        """What `matching` found last, where it was this very filter among as many rows; 0.2 us."""
        asked, masks, found = self._matched
        if found is None or asked is not expression or masks is not self.masks:
            return None
        return found if found.n_rows == n_rows else None

    def moment(self, view: View) -> Moment:
        """What a view shows."""
        return Moment(view.sequence, view.n_rows, view, None)

    def as_of(self, sequence: int, n_rows: int) -> Moment:
        """The moment right after commit `sequence`, when `n_rows` rows existed.

        InvalidCursor when a compaction has taken rows that it shows.
        """
        with self.store.read() as reader:
            must_be_readable(reader, sequence)
        # The view first: what it does not know to be dead yet is no harm among the later deaths.
        return Moment(sequence, n_rows, self.view, self.deaths)

    # -- the end

    def read(self) -> AbstractContextManager[Reader]:
        """A read transaction of the store."""
        return self.store.read()

    def close(self, why: str) -> None:
        """Waits for the writer in the lane; later calls raise Closed with `why`.

        Raises ReadOnly, when all is closed, if the last commits could not be synced.
        """
        try:
            with self._lane.exclusive():
                if self.closed is not None:
                    return
                self.closed = why
                self.store.close()
        finally:
            self._following.stop()
            self._behind.stop(wait=True)
            for field in self.all_fields:
                if (there := field.index.on_device) is not None:
                    there.leave()
            self._news.tell()
