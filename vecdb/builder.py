"""Builds indexes in the background, one at a time for a database."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from .core import Core, sweep_files
from .errors import Closed, DeadlineExceeded, Internal, ReadOnly, VecdbError

log = logging.getLogger("vecdb")


_RETRY_S = 60.0
"""A build that failed is not tried again for so long, unless someone asks for it."""


class _Job:
    def __init__(self, core: Core) -> None:
        self.core = core
        self.progress = 0.0
        self.covered = 0
        self.cancel = threading.Event()
        self.done = threading.Event()
        self.error: VecdbError | None = None


class Builder:
    """One thread that builds, saves and installs. Any thread may ask.

    One at a time, because a build uses every core and as much memory as the index it makes. A build
    that fails is noted in `last_error`, and tried again after a while, at the next write.
    """

    def __init__(self, *, auto_build: bool) -> None:
        self._auto_build = auto_build
        self._lock = threading.Condition()
        self._queue: deque[_Job] = deque()
        self._jobs: dict[int, _Job] = {}
        self._failed: dict[int, float] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def consider(self, core: Core) -> None:
        """Queues a build if the collection wants one; called after each write, so it costs little."""
        if not self._auto_build or id(core) in self._jobs or not core.index.wants_build():
            return
        if time.monotonic() >= self._failed.get(id(core), 0.0) + _RETRY_S:
            self._enqueue(core)

    def build(self, core: Core, *, wait: bool, timeout_s: float | None) -> None:
        """Queues a build of whatever is not indexed, and waits for it if asked."""
        if core.read_only:
            raise ReadOnly(f"collection {core.info.name!r} was opened with read_only=True")
        end = None if timeout_s is None else time.monotonic() + timeout_s
        target = core.view.n_rows
        while True:
            # A build that already runs may have begun before the newest rows: then another follows.
            job = self._enqueue(core)
            if not wait:
                return
            if not job.done.wait(None if end is None else max(0.0, end - time.monotonic())):
                raise DeadlineExceeded(f"the build was not done within {timeout_s:g} s; it goes on")
            if job.error is not None:
                raise job.error
            if job.covered >= target:
                return

    def progress(self, core: Core) -> float | None:
        """Share done of the collection's build, 0 to 1; None when none is queued or running."""
        job = self._jobs.get(id(core))
        return None if job is None else job.progress

    def cancel(self, core: Core) -> None:
        """Stops a collection's build and waits until it has let go of the store."""
        job = self._jobs.get(id(core))
        if job is not None:
            job.cancel.set()
            job.done.wait()

    def close(self) -> None:
        """Cancels everything and waits for the thread."""
        with self._lock:
            self._closed = True
            for job in self._jobs.values():
                job.cancel.set()
            self._lock.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _enqueue(self, core: Core) -> _Job:
        with self._lock:
            if self._closed:
                raise Closed("the database is closed")
            job = self._jobs.get(id(core))
            if job is None:
                job = self._jobs[id(core)] = _Job(core)
                self._queue.append(job)
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._run, name="vecdb-build", daemon=True
                    )
                    self._thread.start()
                self._lock.notify_all()
            return job

    def _run(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                job = self._queue.popleft()
            self._finish(job)
            if not job.cancel.is_set():
                # Rows that arrived during the build may already call for the next one.
                try:
                    self.consider(job.core)
                except VecdbError:
                    continue  # closed meanwhile

    def _finish(self, job: _Job) -> None:
        core = job.core
        try:
            if not job.cancel.is_set():
                _build(job)
        except VecdbError as error:
            job.error = error
        except Exception as error:
            log.exception("collection %s: index build failed", core.info.name)
            job.error = Internal(f"index build failed: {type(error).__name__}: {error}")
        finally:
            if job.error is None and job.cancel.is_set():
                job.error = Closed("the build was cancelled")
            elif job.error is not None:
                core.last_error = job.error.message
                self._failed[id(core)] = time.monotonic()
                log.error("collection %s: %s", core.info.name, job.error.message)
            with self._lock:
                del self._jobs[id(core)]
            job.done.set()


def _build(job: _Job) -> None:
    core = job.core
    started = time.monotonic()

    def progress(share: float) -> None:
        job.progress = share

    view = core.view
    built = core.index.build(view, core.vector_range, cancel=job.cancel, progress=progress)
    if job.cancel.is_set():
        return
    job.covered = view.n_rows
    if built is None:
        return
    record = core.index.save(built, core.store.folder)
    core.install(built, record)
    sweep_files(core)
    figures = core.index.stats()
    log.info(
        "collection %s: %s index of %d rows built in %.1f s, recall@10 %.3f",
        core.info.name, figures.kind, figures.indexed_rows, time.monotonic() - started,
        figures.measured_recall,
    )  # fmt: skip
