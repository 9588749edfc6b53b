"""What one piece of care in the background does: a build, a placing, a recalibration, a compaction."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from . import compaction
from .collection_files import sweep_files
from .core import Core
from .errors import Closed, VecdbError
from .index import give_memory_back, of_same_files

log = logging.getLogger("vecdb")

SIDE = "side graph"
"""The task of least precedence."""
PLACE = "placing on a device"
Key = tuple[int, str, int]
"""Collection (by identity), task, number of the vector field."""


class Job:
    """A task for field `number` of a collection, queued or running."""

    def __init__(self, core: Core, task: str, number: int) -> None:
        self.core = core
        self.task = task
        self.number = number
        self.progress = 0.0
        self.covered = 0
        self.purged_rows = 0
        self.queries: NDArray[Any] | None = None
        self.cancel = threading.Event()
        self.done = threading.Event()
        self.error: VecdbError | None = None
        self.made_way = False
        """Whether it was cancelled for the sake of another job only."""
        self.stopped: VecdbError = Closed(f"the {task} was cancelled: the collection is closed")

    @property
    def key(self) -> Key:
        return id(self.core), self.task, self.number

    def report(self, share: float) -> None:
        self.progress = share


def _build(job: Job, *, anew: bool = False) -> bool:
    """Whether there is a new index."""
    core = job.core
    core.mend()
    started = time.monotonic()
    field = core.numbered(job.number)
    n_rows = field.index.view.n_rows
    built = field.index.build(cancel=job.cancel, progress=job.report, anew=anew)
    if job.cancel.is_set():
        return False
    job.covered = n_rows if built is None else built.high_water
    if built is None:
        return False
    held = field.record if field.index.holds(built) else None
    if held is None:
        record = field.index.save(built, core.store.folder)
    else:
        record = of_same_files(held, built)
    core.install(job.number, built, record)
    sweep_files(core)
    # The tail that the index covers now is free, unless a view of it is still searched.
    give_memory_back()
    core.store.let_pages_go()
    figures = field.index.stats()
    log.info(
        "collection %s%s: %s index of %d rows built in %.1f s, recall@10 %.3f",
        core.info.name, f", vectors {field.name}" * bool(field.name), figures.kind,
        figures.indexed_rows, time.monotonic() - started, figures.measured_recall,
    )  # fmt: skip
    return True


def _recalibrate(job: Job) -> None:
    core = job.core
    core.mend()
    field = core.numbered(job.number)
    record = field.record
    assert job.queries is not None
    built = field.index.recalibrate(job.queries, cancel=job.cancel, progress=job.report)
    if built is not None and record is not None:
        core.install(job.number, built, of_same_files(record, built))


def _side(job: Job) -> None:
    core = job.core
    core.mend()
    field = core.numbered(job.number)
    index = field.index
    while index.sides.any_wanted and not job.cancel.is_set():
        started = time.monotonic()
        record = field.record
        beside = (None, "") if record is None else (core.store.folder, record.graph.name)
        rows = index.build_side(cancel=job.cancel, folder=beside[0], main_file=beside[1])
        if rows:
            log.info(
                "collection %s: a graph of %d rows serves a filter after %.1f s",
                core.info.name, rows, time.monotonic() - started,
            )  # fmt: skip


def _place(job: Job) -> None:
    """Copies what serves a field to a device, until what lies there is what there is."""
    core = job.core
    core.mend()
    field = core.numbered(job.number)
    while field.index.wants_placing() and not job.cancel.is_set():
        started = time.monotonic()
        rows = field.index.place(cancel=job.cancel)
        if rows:
            if (there := field.index.on_device) is not None:
                there.failed = ""
            log.info(
                "collection %s%s: %d rows placed on %s in %.1f s",
                core.info.name, f", vectors {field.name}" * bool(field.name), rows,
                field.index.stats().device, time.monotonic() - started,
            )  # fmt: skip


def _compact(job: Job, *, thorough: bool) -> None:
    """Gives back what is ripe. `thorough` builds indexes anew that hold it, and shrinks the file."""
    core = job.core
    core.check_open()
    if thorough or core.options["auto_build"]:
        for number in compaction.fields_in_the_way(core):
            rebuild = Job(core, "rebuild", number)
            rebuild.cancel = job.cancel
            if not _build(rebuild, anew=True) and not job.cancel.is_set():
                # Too few rows are left for an index.
                core.drop_index(number)
                sweep_files(core)
    job.purged_rows = compaction.purge(core, job.cancel, hurried=thorough)
    if thorough and not job.cancel.is_set():
        compaction.vacuum(core)


TASKS: dict[str, Callable[[Job], object]] = {
    "build": _build,
    "rebuild": lambda job: _build(job, anew=True),
    "recalibrate": _recalibrate,
    SIDE: _side,
    PLACE: _place,
    "compact": lambda job: _compact(job, thorough=True),
    "purge": lambda job: _compact(job, thorough=False),
}
