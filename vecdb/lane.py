"""The writer lane of a collection: writers that wait share the next commit.

LMDB has one writer, and a durable commit costs an fsync. Whoever comes while nobody leads commits for all
who wait, wakes them, and hands the lead to the first of those who have come meanwhile, who lets those back in that were
woken and ask again at once. So the rate of small writes grows with the number of writers, and nobody waits for longer
than one commit plus its own.

Ctrl-C reaches the main thread only, between any two steps of it. So the main thread never commits:
it hands its write to another thread and waits. Interrupted, it leaves; the write is still done
as a whole.
"""

from __future__ import annotations

import threading
import time
from _thread import get_ident
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .columns import ColumnBatch
from .errors import VecdbError
from .lane_threads import LaneThreads, settle
from .store import CollectionStore, Writer, no_thread
from .tally import SECONDS, SIZES, Tally
from .vectors import NamedColumn

_NO_ROWS = np.empty(0, np.int64)
_AHEAD_BYTES = 1 << 18
"""Vectors of fewer bytes are copied in 100 us, about what another thread costs. Metadata beside them
takes about as long as they do."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What one write did to the rows, for the copies of the store in memory.

    `killed` rows died; then rows with `ids`, `vectors` (n, dimension, stored dtype), `named` vectors
    by number of their field, and `columns` were appended. `vectors` is an array of this write's own,
    though not its numbers: it is known by identity.
    """

    count: int
    killed: NDArray[np.int64] = field(default_factory=lambda: _NO_ROWS)
    ids: Sequence[bytes] = ()
    vectors: NDArray[Any] | None = None
    columns: ColumnBatch | None = None
    named: Mapping[int, NamedColumn] = field(default_factory=dict)
    sequence: int | None = None
    """The commit that did it, where that was an earlier one."""


class Write(Protocol):
    """A prepared write. All that can be done outside the lane has been done."""

    @property
    def frees(self) -> bool:
        """Whether it only takes records away, so that it may use the room that is kept for that."""

    @property
    def adds(self) -> int:
        """How many rows it may add."""

    @property
    def looks(self) -> bool:
        """Whether it looks at the rows that earlier writes of its commit have added: it shares one with few of them."""

    @property
    def vectors(self) -> NDArray[Any] | None:
        """What will be `Applied.vectors`, the very array, where that is known before it is applied."""

    def apply(self, writer: Writer, sequence: int, before: Sequence[ColumnBatch]) -> Applied:
        """Writes into the open transaction, which shows what earlier writes of the commit have done; all commits before
        are published. Refuses with a VecdbError before its first change.

        `before` are the columns that earlier writes of the same commit have added.
        """


Prepare = Callable[["NDArray[Any] | None", ColumnBatch | None], None]

_ROWS_LOOKED_AT = 1_024
"""To look at one that is published nowhere yet takes some 3 us, in which all writers wait."""


def _closed_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(slots=True)
class _Entry:
    write: Write
    applied: Applied | None = None
    sequence: int = 0
    error: BaseException | None = None
    woken: threading.Lock = field(default_factory=_closed_lock)
    """Opened when it is done, or has to lead. Were all to wait for the lane itself, those whose work is done
    would stand in each other's way, and commits would be shared by few."""

    @property
    def done(self) -> bool:
        return self.applied is not None or self.error is not None


class Lane:
    """Any thread may call. `publish(applied, sequence)` runs in the lane, after each commit; when it raises,
    `fell_behind(sequence)` does in the `except` of it, and the write is acknowledged all the same: its commit stands.

    `prepare(vectors, columns)` runs in a thread of its own, which the lane waits for, if the first write of a commit has many
    vectors: with these while it is applied, and with its columns too while the commit waits for the disk; (None, None) says that
    they will not come. It does what publishing needs as far as that can be undone by doing nothing: the write may be
    refused, the commit may fail. What it raises is of no account.
    """

    def __init__(
        self,
        store: CollectionStore,
        publish: Callable[[Sequence[Applied], int], None],
        fell_behind: Callable[[int], None],
        threads: LaneThreads,
        prepare: Prepare = lambda *_: None,
        *,
        others_read: bool = False,
    ) -> None:
        """`others_read`: `landing` says what processes that read beside this one may show already."""
        self._store = store
        self._publish = publish
        self._fell_behind = fell_behind
        self._prepare = prepare
        self._lane = threading.RLock()
        self._mutex = threading.Lock()
        self._waiting: list[_Entry] = []
        self.commits = Tally(SECONDS)
        """Seconds of each commit, from its first write until it is published."""
        self.groups = Tally(SIZES)
        """Writes that shared a commit."""
        self._led = False
        """Whether a thread commits for those who wait."""
        self._let_go = 0
        """Other writers than its leader that shared the last commit."""
        self._threads = threads
        self._others_read = others_read
        self.landing: tuple[int, int] | None = None
        """What `CollectionStore.moment` was before the commit that is on its way; None where all that others may see
        is published here."""
        self._leader = 0
        self._landed = threading.Condition()

    def submit(self, write: Write) -> tuple[Applied, int]:
        """Commits a write, with others or alone; (what it did, sequence of its commit).

        Returns when it is durable and published. Raises what the write raised; then nothing of it
        was written. Costs the main thread some 50 us more than others.
        """
        entry = _Entry(write)
        if threading.current_thread() is threading.main_thread():
            self._hand_over(entry)
        else:
            self._finish(entry)
        if entry.error is not None:
            raise entry.error
        assert entry.applied is not None
        return entry.applied, entry.sequence

    def _hand_over(self, entry: _Entry) -> None:
        def finish() -> None:
            try:
                self._finish(entry)
            except BaseException as error:
                entry.error = entry.error or error

        try:
            self._threads.for_main.run(finish)
        except RuntimeError as error:
            raise no_thread(error) from error

    def wait_landed(self) -> None:
        """Returns when what other processes may see by now is published here too. It waits only between the two, some
        100 us, and not for the disk. Any thread; within the lane it does nothing."""
        before = self.landing
        if before is None or self._leader == get_ident() or self._store.moment() == before:
            return
        with self._landed:
            self._landed.wait_for(lambda: self.landing is not before)

    @contextmanager
    def _on_its_way(self) -> Iterator[None]:
        """Around a commit and what publishes it, where other processes read."""
        if not self._others_read:
            yield
            return
        self._leader, self.landing = get_ident(), self._store.moment()
        try:
            yield
        finally:
            with self._landed:
                self.landing = None
                self._landed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keeps writers out, for changes of the copies in memory. Re-entrant."""
        with self._lane:
            yield

    def _finish(self, entry: _Entry) -> None:
        if entry.done:
            return
        with self._mutex:
            self._waiting.append(entry)
            leads, self._led = not self._led, True
        if not leads:
            entry.woken.acquire()
            if entry.done:
                return
        try:
            while not entry.done:
                with self._lane:
                    group = self._take_group()
                    try:
                        with self._on_its_way():
                            self._commit(group)
                    except BaseException as error:
                        # Not one may wait for ever. Those whose commit stands are done.
                        for each in group:
                            each.error = each.error or (None if each.done else error)
                for other in group:
                    if other is not entry:
                        other.woken.release()
        finally:
            with self._mutex:
                after = self._waiting[0] if self._waiting else None
                self._led = after is not None
            if after is not None:
                after.woken.release()

    def _let_back_in(self) -> None:
        """Gives up the interpreter lock to those that the last commit has let go, as long as each time somebody
        comes: their next writes share this commit. Else half of the writers wait while the other half commits.

        It waits for nobody: where no thread wants to run it takes 1 us, where none of them writes it ends. A
        writer that was alone in its commit does not even ask.
        """
        for _ in range(self._let_go):
            there = len(self._waiting)
            time.sleep(0)
            if len(self._waiting) == there:
                return

    def _take_group(self) -> list[_Entry]:
        self._let_back_in()
        with self._mutex:
            end, added = len(self._waiting), 0
            for n, entry in enumerate(self._waiting):
                if entry.write.looks and added > _ROWS_LOOKED_AT:
                    end = n
                    break
                added += entry.write.adds
            group, self._waiting = self._waiting[:end], self._waiting[end:]
        self._let_go = len(group) - 1
        return group

    def _ahead(
        self, vectors: NDArray[Any] | None, columns: ColumnBatch | None
    ) -> list[Future[None]]:
        """What prepares these in another thread; nothing for few vectors."""
        if vectors is None or vectors.nbytes < _AHEAD_BYTES:
            return []
        wanted = [(vectors, columns)]

        def each() -> None:
            for one in wanted:
                self._prepare(*one)

        try:
            return [self._threads.ahead.submit(each)]
        except RuntimeError:
            # No thread to be had: publishing does it. What lies in the queue must not run later.
            wanted.clear()
            return []

    def _settle(self, preparing: list[Future[None]], comes: bool) -> None:
        settle(preparing)
        if preparing and not comes:
            # Or vectors of a write that was refused would stay in memory until the next one.
            self._prepare(None, None)

    def _commit(self, group: list[_Entry]) -> None:
        outcomes: list[Applied | VecdbError] = []
        done: list[Applied] = []
        copying = self._ahead(group[0].write.vectors, None)
        preparing: list[Future[None]] = []

        def work(writer: Writer, sequence: int) -> None:
            outcomes.clear()
            columns: list[ColumnBatch] = []
            for entry in group:
                changes = writer.changes
                try:
                    applied = entry.write.apply(writer, sequence, columns)
                except VecdbError as refusal:
                    if writer.changes != changes:
                        raise  # not refused but broken in the middle: nothing of it may stay
                    outcomes.append(refusal)
                    continue
                outcomes.append(applied)
                if applied.columns is not None:
                    columns.append(applied.columns)
            done[:] = [o for o in outcomes if isinstance(o, Applied)]

        def beside_the_disk() -> None:
            settle(preparing)  # of an attempt for which the map was too small
            first = next(iter(done), None)
            if first is not None:
                preparing[:] = self._ahead(first.vectors, first.columns)

        begun_s = time.perf_counter()
        try:
            frees = all(entry.write.frees for entry in group)
            _, sequence = self._store.commit(work, beside_the_disk, frees)
        except BaseException as error:
            self._settle(copying + preparing, comes=False)
            if not isinstance(error, Exception):
                raise
            if len(group) > 1:
                # One write took the commit down, by a fault or by its size; the others may fit.
                for entry in group:
                    self._commit([entry])
            else:
                group[0].error = error
            return
        # It stands. Whatever fails from here on, none of them may be told that it was not done, or be done again.
        for entry, outcome in zip(group, outcomes, strict=True):
            earlier = getattr(outcome, "sequence", None)
            entry.sequence = sequence if earlier is None else earlier
            if isinstance(outcome, VecdbError):
                entry.error = outcome
            else:
                entry.applied = outcome
        try:
            comes = any(one.vectors is not None for one in done)
            self._settle(copying + preparing, comes=comes)
            self._publish(done, sequence)
        except Exception:
            self._fell_behind(sequence)
        self.commits.add(time.perf_counter() - begun_s)
        self.groups.add(len(group))
