"""Care for collections in the background: builds of indexes, recalibrations, compaction."""

from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from . import compaction
from .build_jobs import PLACE, SIDE, TASKS, Job, Key
from .collection_files import folder_bytes
from .core import Core
from .errors import (
    Cancelled,
    Closed,
    DeadlineExceeded,
    DeviceLost,
    Internal,
    LimitExceeded,
    ReadOnly,
    VecdbError,
)
from .field import Field
from .out_of_memory import is_of_memory
from .stopping import stop_if_unwanted, watched
from .store import full_or_internal
from .types import CompactResult

log = logging.getLogger("vecdb")


_RETRY_S = 60.0
"""What failed is not tried again for so long, and a build not for as long as it took, unless someone asks for it."""
_SOON_S = 1.0
"""A placing whose device was lost is tried again so soon, once: another worker is on its way. Also how often is
looked whether that is up."""
_LOOK_S = 0.05
"""How often who waits for a job asks whether its caller still does."""


class Builder:
    """One thread that builds, saves, installs and compacts. Any thread may ask.

    One thing at a time, because a build uses every core and as much memory as the index it makes. A
    build that fails is noted in the `last_error` of its field, and tried again after a while.
    """

    def __init__(self, options: Mapping[str, Any], *, read_only: bool) -> None:
        self._auto_build = bool(options["auto_build"]) and not read_only
        self._compacts = not read_only
        self._lock = threading.Condition()
        self._queue: deque[Job] = deque()
        self._jobs: dict[Key, Job] = {}
        self._paused: dict[Key, float] = {}
        """Until when what failed is not tried again."""
        self._watched: dict[int, tuple[Core, float]] = {}
        self._unsettled: dict[int, tuple[Core, float]] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    # -- what is asked for

    def attend(self, core: Core) -> None:
        """Lets the filters that are asked often of a collection get graphs (`index/side.py`), and lets it be
        placed on devices, now and whenever it is found to be gone from there."""
        held = weakref.ref(core)

        def wake() -> None:
            asked = held()
            try:
                if asked is not None and asked.closed is None:
                    self.consider(asked)
            except (VecdbError, RuntimeError) as error:
                # Closed meanwhile, or no thread to be had: the query that called is answered all the same.
                log.debug("collection %s: no graph for a filter: %s", core_name, error)

        core_name = core.info.name
        for field in core.all_fields:
            if self._auto_build:
                field.index.sides.wake = wake
            if field.index.on_device is not None:
                field.index.on_device.wake = wake
        if core.assigned.names and not core.unasked:
            self.consider(core)

    def consider(self, core: Core) -> None:
        """Queues what the collection wants; called after each write, so it costs little. The log gets a warning where
        a device was asked for and can take no part of it."""
        for field in core.all_fields:
            view = field.index.view
            if view.reasons is not None and (why := view.reasons.unheard(view)):
                named = f", vectors {field.name}" * bool(field.name)
                log.warning("collection %s%s: %s; answered by the CPU", core.info.name, named, why)
            wants = [(PLACE, field.index.wants_placing())]
            if self._auto_build:
                wants.append(("build", field.index.wants_build()))
                wants.append((SIDE, field.index.sides.any_wanted))
            for task, wanted in wants:
                key = (id(core), task, field.number)
                if key in self._jobs or not wanted:
                    continue
                rest_s = self._rest_s(key)
                if rest_s <= 0:
                    self._enqueue(core, task, field.number)
                elif task == "build":
                    # Also where nobody writes meanwhile.
                    self._look_again(core, rest_s)
            if field.index.lacks_placing():
                # Nobody else may say so later: queries call only for what has lain there before.
                self._look_again(core)
        if self._compacts and id(core) not in self._watched and compaction.is_due(core):
            purge = (id(core), "purge", 0)
            if purge not in self._jobs:
                self._watch(core, self._rest_s(purge))

    def build(self, core: Core, *, wait: bool, timeout_s: float | None) -> None:
        """Queues a build of whatever is not indexed, in all fields, and waits for it if asked. Who waits ends
        with Cancelled once its caller has gone, and the build goes on."""
        _must_write(core)
        end = None if timeout_s is None else time.monotonic() + timeout_s
        target = core.view.n_rows
        for number in [field.number for field in core.all_fields]:
            while True:
                # A build that already runs may have begun before the newest rows: another follows.
                job = self._enqueue(core, "build", number)
                if not wait:
                    break
                _wait(job, end, timeout_s)
                if job.covered >= target and not core.numbered(number).index.unfinished():
                    break

    def recalibrate(self, core: Core, number: int, queries: NDArray[Any]) -> None:
        """Queues a new measurement of the recall curve of field `number` with these (q, width) queries.

        See `Index.recalibrate`; does nothing while one is queued or running.
        """
        self._enqueue(core, "recalibrate", number, queries)

    def rebuild(self, core: Core, number: int) -> None:
        """Queues a build of field `number` from scratch, whatever its index has."""
        self._enqueue(core, "rebuild", number)

    def compact(self, core: Core, *, wait: bool, timeout_s: float | None) -> CompactResult:
        """Gives back the space of dead rows, and of free pages; without `wait` it is only queued. Waits as `build`
        does."""
        _must_write(core)
        end = None if timeout_s is None else time.monotonic() + timeout_s
        core.check_open()
        before = folder_bytes(core.store.folder)
        job = self._enqueue(core, "compact", 0)
        if not wait:
            return CompactResult(0, before, before)
        _wait(job, end, timeout_s)
        return CompactResult(job.purged_rows, before, folder_bytes(core.store.folder))

    def progress(self, core: Core, field: Field | None = None) -> float | None:
        """Share done of a field's build, 0 to 1; None when none is queued or running."""
        number = 0 if field is None else field.number
        jobs = [self._jobs.get((id(core), task, number)) for task in ("build", "rebuild")]
        return next((job.progress for job in jobs if job is not None), None)

    def cancel_build(self, core: Core) -> bool:
        """Stops builds and recalibrations of a collection, queued and running; whether there were any.

        Returns when they have let go. The next one starts when asked for, or after a while.
        """
        _must_write(core)
        core.check_open()
        jobs = [job for job in self._of(core) if job.task not in ("compact", "purge")]
        for job in jobs:
            task = job.task if job.task in (SIDE, PLACE) else "build"
            self._paused[id(core), task, job.number] = time.monotonic() + _RETRY_S
            job.stopped = Cancelled("the build was cancelled")
        _stop(jobs)
        return bool(jobs)

    def cancel(self, core: Core) -> None:
        """Stops all work on a collection, and waits until it has let go of the store."""
        self._forget(core)
        _stop(self._of(core))
        # What failed meanwhile, too: another collection may get the same id.
        self._forget(core)

    def close(self, let_go: Callable[[], None] = lambda: None) -> None:
        """Cancels everything, calls `let_go`, which ends what the thread may wait for, and waits for the thread."""
        with self._lock:
            self._closed = True
            for job in self._jobs.values():
                job.cancel.set()
            self._lock.notify_all()
            thread = self._thread
        let_go()
        if thread is not None:
            thread.join()

    # -- the thread

    def _forget(self, core: Core) -> None:
        with self._lock:
            self._watched.pop(id(core), None)
            self._unsettled.pop(id(core), None)
            for key in [key for key in self._paused if key[0] == id(core)]:
                del self._paused[key]

    def _rest_s(self, key: Key) -> float:
        """How long it is not tried yet, 0 where it did not fail."""
        return max(0.0, self._paused.get(key, 0.0) - time.monotonic())

    def _of(self, core: Core) -> list[Job]:
        with self._lock:
            return [job for job in self._jobs.values() if job.core is core]

    def _enqueue(
        self, core: Core, task: str, number: int, queries: NDArray[Any] | None = None
    ) -> Job:
        with self._lock:
            if self._closed:
                raise Closed("the database is closed")
            key = (id(core), task, number)
            job = self._jobs.get(key)
            if job is None:
                if task != SIDE:
                    # What is only faster makes way; it is taken up again after what has to be done.
                    for other in self._jobs.values():
                        if other.task == SIDE and not other.cancel.is_set():
                            other.made_way = True
                            other.cancel.set()
                job = self._jobs[key] = Job(core, task, number)
                job.queries = queries
                self._queue.append(job)
                self._wake()
            return job

    def _watch(self, core: Core, in_s: float) -> None:
        """Has the thread look at a collection's dead rows, now or later."""
        with self._lock:
            if not self._closed and core.closed is None:
                self._watched[id(core)] = (core, time.monotonic() + in_s)
                self._wake()

    def _look_again(self, core: Core, in_s: float = _SOON_S) -> None:
        """Has the thread look again what a collection wants: whether it can be placed, or what failed be tried again."""
        at = time.monotonic() + in_s
        with self._lock:
            if not self._closed and core.closed is None:
                waiting = self._unsettled.get(id(core))
                self._unsettled[id(core)] = core, at if waiting is None else min(at, waiting[1])
                self._wake()

    def _wake(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="vecdb-build", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                # Who waits for it is told, also who closes the collection; whoever asks next tries again. Nobody who
                # has written is told, since the write stands.
                log.error("no thread for work in the background: %s", error)
                while self._queue:
                    job = self._queue.popleft()
                    job.error = _in_our_words(job, error)
                    del self._jobs[job.key]
                    job.done.set()
                return
            self._thread = thread
        self._lock.notify_all()

    def _run(self) -> None:
        for job in self._jobs_in_turn():
            self._finish(job)
            if not job.cancel.is_set() or job.made_way or isinstance(job.error, Cancelled):
                # Rows that arrived during the build may already call for the next one, or it is to be tried again.
                self._consider_behind(job.core)
            # Nothing is kept of what is closed while this waits for the next.
            del job

    def _consider_behind(self, core: Core) -> None:
        """`consider` in the thread, which lives on whatever that fails of; looks again after a while then."""
        try:
            if core.closed is None:
                self.consider(core)
        except VecdbError as error:
            log.debug("collection %s: not looked after: %s", core.info.name, error.message)
        except Exception:
            log.exception("collection %s: not looked after", core.info.name)
            self._look_again(core, _RETRY_S)

    def _jobs_in_turn(self) -> Iterator[Job]:
        """The queued jobs, and compactions of watched collections as their dead rows come of age."""
        while True:
            with self._lock:
                while not self._queue and not self._closed:
                    later = [*self._watched.values(), *self._unsettled.values()]
                    first = min((at for _, at in later), default=None)
                    left = None if first is None else first - time.monotonic()
                    if left is not None and left <= 0:
                        break
                    self._lock.wait(left)
                if self._closed and not self._queue:
                    return
                job = min(self._queue, key=lambda job: job.task == SIDE, default=None)
                if job is not None:
                    self._queue.remove(job)
            if job is not None:
                yield job
                job = None
            else:
                self._look()

    def _look(self) -> None:
        """Queues the compaction of watched collections that are ripe, and the placing of those that could not be
        placed before; looks later at the others."""
        now = time.monotonic()
        with self._lock:
            ripe = [core for core, at in self._watched.values() if at <= now]
            for core in ripe:
                del self._watched[id(core)]
            unsettled = [core for core, at in self._unsettled.values() if at <= now]
            for core in unsettled:
                del self._unsettled[id(core)]
        for core in unsettled:
            self._consider_behind(core)
        for core in ripe:
            try:
                if not compaction.is_due(core):
                    continue
                wait_s = compaction.due_in_s(core, rebuilds=self._auto_build)
                if wait_s > 0:
                    self._watch(core, wait_s)
                else:
                    self._enqueue(core, "purge", 0)
            except VecdbError as error:
                log.debug("collection %s: not compacted: %s", core.info.name, error.message)
            except Exception:
                # One that cannot be looked at must not keep all others from being looked after.
                log.exception("collection %s: not compacted", core.info.name)
                self._watch(core, _RETRY_S)

    def _finish(self, job: Job) -> None:
        core, started_s = job.core, time.monotonic()
        try:
            if not job.cancel.is_set():
                TASKS[job.task](job)
        except VecdbError as error:
            job.error = error
        except Exception as error:
            job.error = _in_our_words(job, error)
            if isinstance(job.error, Internal):
                log.exception("collection %s: %s failed", core.info.name, job.task)
        try:
            if job.cancel.is_set() and (job.error is None or isinstance(job.error, Closed)):
                job.error = job.stopped
            elif job.error is not None:
                self._note_failure(job, job.error, time.monotonic() - started_s)
        except Exception:
            log.exception("collection %s: the end of a %s", core.info.name, job.task)
        finally:
            # Whatever happened: who waits for it is told.
            with self._lock:
                del self._jobs[job.key]
            job.done.set()

    def _note_failure(self, job: Job, error: VecdbError, took_s: float) -> None:
        core = job.core
        if job.task in ("build", "rebuild"):
            core.numbered(job.number).last_error = error.message
        self._paused[job.key] = _paused_until(job, self._paused.get(job.key, -math.inf), took_s)
        level = logging.ERROR if _is_news(job) else logging.DEBUG
        log.log(level, "collection %s: %s", core.info.name, error.message)


def _in_our_words(job: Job, error: Exception) -> VecdbError:
    if isinstance(error, RuntimeError) and is_of_memory(error):
        return LimitExceeded(
            f"no thread to be had for the {job.task} ({error}); queries go on without it. Lift the limit of threads "
            "(ulimit -u) or of memory (ulimit -v), and ask again"
        )
    if is_of_memory(error):
        return LimitExceeded(
            f"not enough memory for the {job.task}; queries go on without it. Free some, lift the limit (ulimit -v), "
            "or choose a smaller quantization, and ask again"
        )
    if isinstance(error, OSError):
        told = full_or_internal(job.core.store.folder, str(error))
        if not isinstance(told, Internal):
            return told
    return Internal(f"{job.task} failed: {type(error).__name__}: {error}")


def _paused_until(job: Job, before: float, took_s: float) -> float:
    """Until when a job that failed is not tried again; `before` is until when it was not the last time."""
    now = time.monotonic()
    if isinstance(job.error, DeviceLost) and now - before > _RETRY_S:
        return now + _SOON_S
    return now + (max(_RETRY_S, took_s) if job.task in ("build", "rebuild") else _RETRY_S)


def _is_news(job: Job) -> bool:
    """Whether what a job failed of is to be told: a placing that fails is tried again and again."""
    there = job.core.numbered(job.number).index.on_device
    if job.task != PLACE or there is None or job.error is None:
        return True
    there.failed = job.error.message
    return there.is_news(there.failed)


def _must_write(core: Core) -> None:
    if core.read_only:
        raise ReadOnly(f"collection {core.info.name!r} was opened with read_only=True")


def _wait(job: Job, end: float | None, timeout_s: float | None) -> None:
    longest_s = _LOOK_S if watched() else None
    while True:
        left_s = None if end is None else max(0.0, end - time.monotonic())
        waits = [seconds for seconds in (left_s, longest_s) if seconds is not None]
        if job.done.wait(min(waits, default=None)):
            break
        stop_if_unwanted()
        if end is not None and time.monotonic() >= end:
            raise DeadlineExceeded(
                f"the {job.task} was not done within {timeout_s:g} s; it goes on"
            )
    if job.error is not None:
        raise job.error


def _stop(jobs: list[Job]) -> None:
    for job in jobs:
        job.made_way = False
        job.cancel.set()
    for job in jobs:
        job.done.wait()
