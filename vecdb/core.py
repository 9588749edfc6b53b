"""One open collection: the store and the copies of it in memory, kept in step.

The copies are the index (vectors), the ids, the columns (metadata), the deaths (which row died when)
and the results of recent filters. All of them follow from the store, so whatever goes wrong with a copy is
mended by reading the store again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import metadata as meta
from .columns import ColumnBatch, Columns
from .errors import Closed, Corrupted, DeadlineExceeded, InvalidQuery, ReadOnly, VecdbError
from .filters import Filter, evaluate
from .ids import Ids
from .index import BuiltIndex, Index, IndexRecord, View
from .lane import Applied, Lane, Write
from .layout import DATA_FILE, LMDB_LOCK_FILE
from .masks import Deaths, FilterMasks, Moment, StoredTexts
from .store import CollectionStore
from .types import CollectionInfo

log = logging.getLogger("vecdb")

Interrupt = Callable[[], None]

_LOAD_ROWS = 8_192
_LOAD_IDS = 1 << 18
_FOLLOW_S = 0.02


class Core:
    """Any thread may call. Reads take a `View`, one moment that never changes, and wait for nobody."""

    def __init__(
        self,
        info: CollectionInfo,
        store: CollectionStore,
        options: Mapping[str, Any],
        *,
        read_only: bool,
    ) -> None:
        self.info = info
        self.store = store
        self.options = options
        self.read_only = read_only
        self.masks = FilterMasks(options["filter_cache_entries"])
        self.closed: str | None = None
        self.last_error = ""
        self._lane = Lane(store, self._publish)
        self._news = threading.Condition()
        self._columns_lock = threading.Lock()
        self._stale = False
        with self._lane.exclusive():
            self._load()

    # -- the copies

    @property
    def view(self) -> View:
        """The newest published moment. A read-only collection looks for news of the writer first."""
        self.check_open()
        if self._stale or self.read_only:
            self._catch_up()
        return self.index.view

    def check_open(self) -> None:
        if self.closed is not None:
            raise Closed(self.closed)

    def _load(self) -> None:
        """Makes all copies anew from the store; called in the lane.

        The old ones serve until the new index stands, which is assigned last.
        """
        info = self.info
        index = Index(
            dimension=info.dimension,
            metric=info.metric,
            storage=info.storage,
            kind=info.index,
            target_recall=info.target_recall,
            settings=self.options,
        )
        with self.store.read() as reader:
            state, raw = reader.state(), reader.index_record()
            dead_rows, dead_sequences = reader.dead()
        ids = Ids()
        for start in range(0, state.next_row, _LOAD_IDS):
            with self.store.read() as reader:
                ids.append(reader.id_range(start, min(start + _LOAD_IDS, state.next_row)))
        record = self._install_saved(index, raw)
        first = 0 if record is None else record.high_water
        index.kill(dead_rows[dead_rows < first])
        for start in range(first, state.next_row, _LOAD_ROWS):
            stop = min(start + _LOAD_ROWS, state.next_row)
            index.append(self.vector_range(start, stop))
            low, high = np.searchsorted(dead_rows, [start, stop])
            index.kill(dead_rows[low:high])
            # Published slice by slice, so that rows which are mostly dead are let go on the way.
            index.publish(state.sequence)
        index.publish(state.sequence)
        self.record, self._raw_record = record, raw
        self.ids = ids
        self.deaths = Deaths(dead_rows, dead_sequences)
        self.columns = Columns(self.options["max_fields"])
        self._columns_ready = state.next_row == 0
        self.masks.clear()
        self.index = index
        self._stale = False

    def _install_saved(self, index: Index, raw: bytes | None) -> IndexRecord | None:
        if raw is None:
            return None
        try:
            record = IndexRecord.from_json(raw)
            index.install(index.load(record, self.store.folder, self.vector_range))
        except Corrupted as error:
            # An index is only a copy: search goes on exactly until it has been built again.
            self.last_error = f"saved index not used: {error.message}"
            log.warning(
                "collection %s: %s; it will be built again", self.info.name, self.last_error
            )
            return None
        return record

    def vector_range(self, start: int, stop: int) -> NDArray[Any]:
        """Stored vectors of rows [start, stop), in a read transaction of its own."""
        with self.store.read() as reader:
            return reader.vector_range(start, stop)

    def _catch_up(self) -> None:
        """Applies commits of the store that the copies have not seen; all anew after a fault."""
        with self._lane.exclusive():
            if self._stale:
                self._load()
                return
            view = self.index.view
            with self.store.read() as reader:
                state, raw = reader.state(), reader.index_record()
                if state.sequence == view.sequence:
                    return
                news = list(reader.log(view.sequence))
                vectors = reader.vector_range(view.n_rows, state.next_row)
                ids = reader.id_range(view.n_rows, state.next_row)
            if raw != self._raw_record:
                # The writer has a new index; its file holds rows that would be a long tail here.
                self._load()
                return
            # Interrupted from here on, the copies are of no moment at all and must be made anew.
            self._stale = True
            self.ids.append(ids)
            self.index.append(vectors)
            for commit in news:
                self.index.kill(commit.died)
                self.deaths.extend(commit.died, commit.sequence)
            if self._columns_ready:
                self._extend_columns(state.next_row)
            self.index.publish(state.sequence)
            self._stale = False

    def _publish(self, applied: Sequence[Applied], sequence: int) -> None:
        """Follows a commit with all copies; called in the lane.

        Raises nothing: the commit stands. After a fault the next call makes the copies anew.
        """
        if self._stale:
            return
        try:
            if sequence == self.index.view.sequence:
                return  # nothing changed
            self._stale = True
            for change in applied:
                if change.vectors is not None:
                    self.ids.append(change.ids)
                    self.index.append(change.vectors)
                    if self._columns_ready and change.columns is not None:
                        self.columns.extend(change.columns, self.columns.n_rows)
                self.index.kill(change.killed)
                self.deaths.extend(change.killed, sequence)
            self.index.publish(sequence)
            self._stale = False
        except Exception:
            log.exception(
                "collection %s: commit %d stands, but following it in memory failed; all copies are "
                "made anew",
                self.info.name,
                sequence,
            )
        with self._news:
            self._news.notify_all()

    # -- writing

    def write(self, write: Write) -> tuple[Applied, int]:
        """Commits a write through the lane; see `Lane.submit`."""
        if self.read_only:
            raise ReadOnly(
                f"collection {self.info.name!r} was opened with read_only=True; open the database "
                "for writing in the process that owns it"
            )
        self.check_open()
        if self._stale:
            self._catch_up()
        try:
            return self._lane.submit(write)
        except RuntimeError:
            self.check_open()  # closed in between: the lane takes nothing any more
            raise

    def exclusive(self) -> Any:
        """Keeps writers of this collection out, as a context manager."""
        return self._lane.exclusive()

    def install(self, built: BuiltIndex, record: IndexRecord) -> None:
        """Puts a saved build into service. The store names it first: a crash leaves litter at most."""
        with self._lane.exclusive():
            self.store.set_index_record(record.to_json())
            self.record, self._raw_record = record, record.to_json()
            self.index.install(built)
            self.last_error = ""

    def wait_for(self, sequence: int | None, timeout_s: float | None) -> View:
        """The first view that shows commit `sequence`. DeadlineExceeded after `timeout_s` (None: 30)."""
        view = self.view
        if sequence is None:
            return view
        if isinstance(sequence, bool) or not isinstance(sequence, int) or sequence < 0:
            raise InvalidQuery(f"min_sequence must be the number of a commit, given {sequence!r}")
        if view.sequence >= sequence:
            return view
        limit_s = 30.0 if timeout_s is None else max(0.0, timeout_s)
        end = time.monotonic() + limit_s
        while view.sequence < sequence:
            left = end - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded(
                    f"commit {sequence} did not become visible within {limit_s:g} s; collection "
                    f"{self.info.name!r} is at {view.sequence}",
                    sequence=view.sequence,
                )
            with self._news:
                # A reader in another process gets no notice and has to look.
                self._news.wait(min(left, _FOLLOW_S if self.read_only else left, 1.0))
            view = self.view
        return view

    # -- filters

    def ready_columns(self) -> Columns:
        """The columns of all published rows, built from the store at the first call.

        Costs about 3 us a row with metadata, once; writers are kept out only for the last rows.
        """
        if not self._columns_ready:
            with self._columns_lock:
                while not self._columns_ready:
                    if self.index.view.n_rows - self.columns.n_rows > _LOAD_ROWS:
                        self._extend_columns(self.columns.n_rows + _LOAD_ROWS)
                        continue
                    with self._lane.exclusive():
                        self._extend_columns(self.index.view.n_rows)
                        self._columns_ready = True
        return self.columns

    def warm(self) -> None:
        """Builds the columns ahead of the first filter. Who needs them meets a failure again."""
        try:
            self.ready_columns()
        except Closed:
            log.debug("collection %s: closed while its columns were built", self.info.name)
        except VecdbError as error:
            log.error("collection %s: columns not built: %s", self.info.name, error.message)

    def _extend_columns(self, stop: int) -> None:
        columns = self.columns
        while columns.n_rows < stop:
            first, end = columns.n_rows, min(columns.n_rows + _LOAD_ROWS, stop)
            values: list[dict[str, Any]] = [{}] * (end - first)
            with self.store.read() as reader:
                for row, raw in reader.metadata_range(first, end):
                    values[row - first] = meta.decode(raw)
            columns.extend(ColumnBatch.from_metadata(values), first)

    def matching(
        self, expression: Filter, moment: Moment, interrupt: Interrupt = lambda: None
    ) -> NDArray[np.bool_]:
        """Mask of `moment.n_rows` rows, right wherever `moment.live` is set. Read only.

        `interrupt` is called every few milliseconds of a long evaluation and may raise.
        """
        columns = self.ready_columns()
        source = StoredTexts(self.store, self.ids, moment)
        n_rows = moment.n_rows
        if expression.uses_id or expression.uses_document:
            return evaluate(
                expression, columns, source, 0, n_rows, moment.live, interrupt=interrupt
            )
        # Rows never change, so neither does whether a row matches: only new rows are evaluated.
        return self.masks.get(
            expression.text,
            n_rows,
            lambda start: evaluate(expression, columns, source, start, n_rows, interrupt=interrupt),
        )

    def moment(self, view: View) -> Moment:
        return Moment(view.sequence, view.n_rows, view.live_mask())

    def as_of(self, sequence: int, n_rows: int) -> Moment:
        """The moment right after commit `sequence`, when `n_rows` rows existed."""
        live = self.view.live_mask(0, n_rows)
        live[self.deaths.after(sequence, n_rows)] = True
        return Moment(sequence, n_rows, live)

    # -- the end

    def read(self) -> Any:
        """A read transaction of the store, as a context manager giving a `Reader`."""
        return self.store.read()

    def close(self, why: str) -> None:
        """Waits for the writer in the lane; later calls raise Closed with `why`."""
        with self._lane.exclusive():
            if self.closed is not None:
                return
            self.closed = why
            self.store.close()
        self._lane.close()
        with self._news:
            self._news.notify_all()


def deadline(timeout_s: float | None) -> Interrupt:
    """Raises DeadlineExceeded when called more than `timeout_s` from now; never for None."""
    if timeout_s is None:
        return lambda: None
    end = time.monotonic() + timeout_s

    def check() -> None:
        if time.monotonic() > end:
            raise DeadlineExceeded(
                f"not done within {timeout_s:g} s; give more time, ask for less at once, or put a "
                "cheaper condition beside the filter"
            )

    return check


def sweep_files(core: Core) -> None:
    """Removes index files that the store does not name: replaced ones, and what a crash left behind."""
    keep = {DATA_FILE, LMDB_LOCK_FILE, *(() if core.record is None else core.record.files())}
    for path in core.store.folder.iterdir():
        if path.name not in keep:
            path.unlink(missing_ok=True)


def folder_bytes(folder: Path) -> int:
    """Bytes that the files of a folder take on disk; sparse parts count nothing."""
    total = 0
    for path in folder.iterdir():
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue  # an index file may be replaced while we look
    return total


__all__ = ["Core", "Interrupt", "deadline", "folder_bytes", "sweep_files"]
