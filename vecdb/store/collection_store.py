"""The store of one collection: the truth that every index and column is a copy of."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from ..errors import FormatMismatch, StorageFull
from ..layout import (
    COLLECTION_FORMAT,
    COLLECTION_TABLES,
    DATA_FILE,
    DEFAULT_FIELD,
    KEYED,
    LATER_TABLES,
    META_FORMAT,
    META_KEYED,
    META_SETTINGS,
    OPTIONAL_TABLES,
    SEQUENCE,
)
from ..repair_types import RepairStats
from . import resident
from .awake import Awake
from .environment import Environment
from .fresh import FreshIds
from .kept import keep
from .losses import losses
from .mapped import MappedBlocks
from .meta_sums import Keeper, must_hold
from .purge import LEAST_STEP_BYTES, STEP_BYTES, Purger
from .read_ahead import ReadAhead
from .reader import Reader
from .requests import Requests
from .restoring import Restorer
from .shape import Shape
from .tables import Rows
from .upgrading import sum_up, upgrade
from .writer import Writer

log = logging.getLogger("vecdb")

Result = TypeVar("Result")


class CollectionStore:
    """Opens, reads and commits. Reads from any thread; commits from one thread at a time."""

    def __init__(
        self, folder: Path, shape: Shape, environment: Environment, settings: bytes
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.shape = shape
        self._env = environment
        self._fresh = FreshIds()
        self._newest_us = 0
        self._epoch_begun = False
        self._mapped: tuple[MappedBlocks, ...] = ()
        self._ahead = ReadAhead(folder / DATA_FILE)
        self._requests = Requests()
        self._requests_stand = True
        """Whether that is what the table holds; else it is read again before the next commit."""
        self.on_rest: Callable[[], None] = lambda: None
        """Called when its files are closed for a while, for copies that are soon made again."""
        environment.on_rest = self._rest
        if not environment.read_only:
            self._mapped = tuple(MappedBlocks(field) for field in shape.fields)
            environment.on_move = self._forget_blocks
        with environment.read() as transaction:
            reader = Reader(environment, transaction, shape)
            self.repairs: tuple[RepairStats, ...] = losses(reader.repairs())
            """What repairs could not keep, the oldest first. None can be made while this is open."""
            if not environment.read_only:
                self._requests = Requests(reader.items("requests"))

    @classmethod
    def create(
        cls, folder: Path, settings: bytes, shape: Shape, options: Mapping[str, Any]
    ) -> CollectionStore:
        """Makes a complete, durable, empty store in a folder that exists and is empty."""
        eager = {**options, "durability": "commit"}
        environment = _open(folder, eager, create=True, read_only=False)

        def describe(transaction: Any) -> None:
            meta = environment.table("meta")
            transaction.put(META_FORMAT, str(COLLECTION_FORMAT).encode(), db=meta)
            transaction.put(META_SETTINGS, settings, db=meta)
            transaction.put(META_KEYED, KEYED.pack(0, 0), db=meta)
            Keeper(environment, transaction, 0).finish()

        environment.write(describe, "create")
        return cls(folder, shape, environment, settings)

    @classmethod
    def open(
        cls,
        folder: Path,
        shape_of: Callable[[bytes], Shape],
        options: Mapping[str, Any],
        *,
        read_only: bool,
        awake: Awake | None = None,
    ) -> CollectionStore:
        """Opens an existing store. Raises FormatMismatch or Corrupted when it cannot be read.

        One of an older format is brought to the present one, unless it is opened read-only; a copy is kept
        before, see `kept`. With `awake` it rests when that says so, see `Environment`.
        """
        environment = _open(folder, options, create=False, read_only=read_only, awake=awake)
        try:
            with environment.read() as transaction:
                reader = Reader(environment, transaction, Shape(1, "float32"))
                if not 1 <= reader.format() <= COLLECTION_FORMAT:
                    raise FormatMismatch(
                        f"{folder} has collection format {reader.format()}, this version reads 1 to "
                        f"{COLLECTION_FORMAT}; open it with the version of vecdb that wrote it, or a later "
                        "one. If that one has upgraded it, its `vecdb downgrade` may go back",
                        given=reader.format(),
                        expected=COLLECTION_FORMAT,
                    )
                settings, older = reader.settings(), reader.format() < COLLECTION_FORMAT
                found = reader.format()
                must_hold(reader, environment)
            if older and not read_only:
                if options["keep_old_format"]:
                    keep(environment, found)
                upgrade(environment)
            if not read_only:
                environment.make_optional_tables()
                sum_up(environment)
            return cls(folder, shape_of(settings), environment, settings)
        except BaseException:
            environment.close()
            raise

    @contextmanager
    def read(self) -> Iterator[Reader]:
        """A short read transaction: one moment of the store. Do not keep it across other work."""
        if self._env.lacks_tables:
            self._look_for_tables()
        with self._env.read() as transaction:
            yield Reader(self._env, transaction, self.shape, self._fresh, self._mapped, self._ahead)

    def known_vectors(self, rows: Rows, field: int = DEFAULT_FIELD) -> NDArray[Any] | None:
        """Vectors (n, width) of rows (int64, not negative) in their order, where it is known where all of
        them lie; else None. Saves the transaction: 10 us for 16 rows of 384 float32, `read` takes 30."""
        if not self._mapped:
            return None
        self._env.hold()
        try:
            return self._mapped[field].known(rows)
        finally:
            self._env.let_go()

    def in_place(
        self, rows: Rows, work: Callable[[int, Rows], Result], field: int = DEFAULT_FIELD
    ) -> Result | None:
        """`work` on float32 vectors where they lie, if that is known of all; see `MappedBlocks.in_place`.

        The map stays where it is until `work` returns.
        """
        if not self._mapped:
            return None
        self._env.hold()
        try:
            return self._mapped[field].in_place(rows, work)
        finally:
            self._env.let_go()

    @property
    def read_only(self) -> bool:
        return self._env.read_only

    def moment(self) -> tuple[int, int]:
        """What is another value after each commit of any process; see `Environment.moment`."""
        return self._env.moment()

    def moment_of(self, reader: Reader) -> tuple[int, int]:
        """The same of what an open transaction shows."""
        return self._env.moment_of(reader.transaction_id)

    def forget_copies(self) -> None:
        """Lets go of what memory knows of ids and of where vectors lie; whoever asks next reads it anew. In the lane."""
        self._fresh = FreshIds()
        with self._env.read() as transaction:
            self._forget_blocks(transaction.id())

    def let_pages_go(self) -> None:
        """Takes the pages of the file that were read out of this process's memory; see `resident.let_go`.
        For after everything was read once. Any thread."""
        self._env.hold()
        try:
            resident.let_go(self.folder / DATA_FILE)
        finally:
            self._env.let_go()

    def _forget_blocks(self, transaction_id: int = 0) -> None:
        if not transaction_id:
            self._ahead.forget()  # its places are hints, which a purge leaves right for nearly all blocks
        for blocks in self._mapped:
            blocks.forget(transaction_id)

    def _rest(self) -> None:
        """Lets go of ids that are soon read again: of a small collection they are as much as all else it keeps."""
        if self._fresh.is_small:
            self._fresh = FreshIds()
        self.on_rest()

    def _look_for_tables(self) -> None:
        """Read-only at a file of an older format: the writer may have made the present one of it."""
        with self._env.read() as transaction:
            reader = Reader(self._env, transaction, self.shape, self._fresh)
            newer = reader.format() == COLLECTION_FORMAT
        if newer:
            self._env.reopen()

    def commit(
        self,
        work: Callable[[Writer, int], Result],
        written: Callable[[], None] = lambda: None,
        frees: bool = False,
    ) -> tuple[Result, int]:
        """Runs `work(writer, sequence)` and commits; (its result, newest sequence).

        The commit counts as `sequence` only if `work` changed rows; otherwise the number stays free
        and the returned one is that of the last commit. `work` may run twice (see Environment.write).
        `written()` is called each time that rows have been changed and only the disk is left to wait for,
        for which this thread gives up the interpreter lock. With `frees` it may take the room that is kept for what
        gives space back, see `Environment.reserve_bytes`.
        """

        def run(transaction: Any) -> tuple[Result, Writer, int]:
            if not self._requests_stand:
                reader = Reader(self._env, transaction, self.shape)
                self._requests, self._requests_stand = Requests(reader.items("requests")), True
            writer = self._writer(transaction)
            sequence = writer.before.sequence + 1
            result = work(writer, sequence)
            if not writer.changed:
                writer.seal()
                return result, writer, writer.before.sequence
            writer.finish(sequence, self._time_us(writer))
            if not self._epoch_begun:
                writer.begin_epoch(sequence)
            writer.seal()
            written()
            return result, writer, sequence

        result, writer, sequence = self._env.write(run, "rows", reserves=not frees)
        self._epoch_begun = self._epoch_begun or writer.changed
        with self._following():
            self._fresh.follow(writer.keyed_rows, writer.before.next_row, writer.appended)
            self._requests.follow(writer.remembered_now, writer.forgotten)
        return result, sequence

    @contextmanager
    def _following(self) -> Iterator[None]:
        """Around what follows a commit in memory. Raises nothing, since the commit stands: after a fault both copies
        are read anew, at their next use."""
        before, self._requests_stand = self._requests_stand, False
        try:
            yield
            self._requests_stand = before
        except Exception:
            self._fresh = FreshIds()
            log.exception("%s: a commit stands, but following it in memory failed", self.folder)

    def _time_us(self, writer: Writer) -> int:
        """Now by the wall clock, but never before the newest commit: a commit of a time is found by halving."""
        if not self._newest_us and writer.before.sequence:
            newest = next(writer.log(writer.before.sequence - 1), None)
            self._newest_us = 0 if newest is None else newest.time_us
        self._newest_us = max(self._newest_us, time.time_ns() // 1000)
        return self._newest_us

    def set_index_record(self, record: bytes | None, field: int = DEFAULT_FIELD) -> None:
        """Names the saved index of a field, durably; no commit of rows, so no sequence number."""
        self._env.write(
            lambda transaction: self._writer(transaction).set_index_record(record, field),
            "index",
        )
        # Files that the record before named are removed next.
        self._env.flush()

    def _writer(self, transaction: Any) -> Writer:
        return Writer(self._env, transaction, self.shape, self._fresh, self._requests)

    def purge(self, horizon: int, *, step_bytes: int = STEP_BYTES) -> Iterator[int]:
        """Takes back the space of the rows that died in commit `horizon` or before.

        Gives an iterator. Each step of it is one durable transaction of some milliseconds, for which
        the caller keeps writers out, and gives the number of rows purged; between steps writers may go
        on. Left in the middle, all is right and the rest can be purged another time. No moment before
        commit `horizon` may be read from the first step on. Rows keep their numbers; no commit, so no
        sequence number. LMDB uses the pages for later writes; `vacuum` gives them to the disk.
        """
        with self.read() as reader:
            sequence, n_rows, _ = reader.state()
            if horizon > sequence:
                raise ValueError(f"horizon {horizon} is behind commit {sequence}")
            rows, sequences = reader.dying()
            rows = rows[sequences <= horizon]
            logged = next((SEQUENCE.unpack(key)[0] for key, _ in reader.items("log")), horizon + 1)
        if not len(rows) and logged > horizon:
            return iter(())
        return self._purge_steps(rows, horizon, n_rows, step_bytes)

    def _purge_steps(self, rows: Rows, horizon: int, n_rows: int, step_bytes: int) -> Iterator[int]:
        # Those that replaced a row are keyed before it is purged: `keys` points to no purged row.
        while self._purge_step(partial(Purger.prepare, horizon=horizon)) < n_rows:
            yield 0
        while len(rows):
            try:
                done = self._purge_step(partial(Purger.purge, rows=rows, step_bytes=step_bytes))
            except StorageFull:
                # What a step writes anew takes room before the old is free.
                step_bytes //= 4
                if step_bytes < LEAST_STEP_BYTES:
                    raise
                continue
            rows = rows[done:]
            yield done
        while self._purge_step(Purger.truncate_log):
            yield 0
        yield 0

    def _purge_step(self, work: Callable[[Purger], Result]) -> Result:
        last = 0

        def run(transaction: Any) -> tuple[Result, Purger]:
            nonlocal last
            last = transaction.id()
            purger = Purger(self._env, transaction, self.shape, self._fresh)
            done = work(purger)
            purger.seal()
            return done, purger

        try:
            result, purger = self._env.write(run, "purge")
        finally:
            # Whatever became of it: blocks may lie elsewhere from this transaction on.
            self._forget_blocks(last)
        with self._following():
            self._fresh.follow(purger.keyed_rows, purger.next_row, ())
        return result

    def restore(self, work: Callable[[Restorer], Result]) -> Result:
        """Runs `work` in one durable transaction of a restore, on a store that nobody reads yet.

        It may run twice, see Environment.write.
        """

        def run(transaction: Any) -> Result:
            restorer = Restorer(self._env, transaction, self.shape, self._fresh)
            done = work(restorer)
            restorer.seal()
            return done

        return self._env.write(run, "restore", reserves=True)

    def vacuum(self) -> tuple[int, int]:
        """Rewrites the file without free pages; (bytes in use before, after). See Environment.vacuum.

        The caller keeps writers out; readers wait only for the exchange of the files. About 3 s a GB.
        """
        return self._env.vacuum()

    @property
    def row_bytes(self) -> int:
        """Bytes of the vectors of one row that has all of them."""
        return sum(field.row_bytes for field in self.shape.fields)

    def has_metadata(self) -> bool:
        with self.read() as reader:
            return reader.entries("metadata") > 0

    def flush(self) -> None:
        """Returns when every commit so far is on the disk; ReadOnly when one cannot be brought there."""
        self._env.flush()

    @property
    def synced_sequence(self) -> int | None:
        """The newest commit that is surely on the disk; None when all are, as always with `commit`."""
        return self._env.synced

    @property
    def is_awaited(self) -> bool:
        """Whether someone waits for the transactions that are open to end."""
        return self._env.is_awaited

    def map_bytes(self) -> tuple[int, int]:
        """(bytes of the LMDB map in use, bytes it may grow to)."""
        return self._env.map_bytes()

    def map_use(self) -> tuple[int, int, int, int]:
        """(bytes of the map in use, its size, reader slots taken, reader slots there are)."""
        return self._env.map_use()

    def open_elsewhere(self) -> bool:
        """Whether another process has it open; True where the system does not tell."""
        return self._env.open_elsewhere()

    def close(self) -> None:
        self._env.close()


def _open(
    folder: Path,
    options: Mapping[str, Any],
    *,
    create: bool,
    read_only: bool,
    awake: Awake | None = None,
) -> Environment:
    lazy = options["durability"] == "interval"
    environment = Environment(
        folder,
        COLLECTION_TABLES,
        create=create,
        read_only=read_only,
        later_tables=LATER_TABLES,
        optional_tables=OPTIONAL_TABLES,
        map_initial_bytes=options["map_initial_bytes"],
        map_limit_bytes=options["map_limit_bytes"],
        sync_interval_s=options["durability_interval_ms"] / 1_000 if lazy else None,
        awake=awake,
    )
    shape = Shape(1, "float32")
    environment.sequence_of = lambda seen: Reader(environment, seen, shape).state().sequence
    return environment
