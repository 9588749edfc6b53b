"""Building a main index off to the side, anew or by growing what serves."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..layout import vector_width
from ..types import LISTS_ONLY
from . import calibrate
from .arena import Arena
from .blocks import Block, CodeBlock, FloatBlock
from .codes import (
    code_bytes,
    is_lossy,
    largest_error,
    to_space,
    vector_bytes,
)
from .device_graph import SETTINGS, DeviceGraph
from .device_main import Unanswered
from .distance import Floats, Merger, Rows
from .door import CORES, faiss_metric, limit_threads, use_threads
from .joined import graph_maker
from .main import EF_SETTINGS, Main
from .makers import (
    SEED,
    CodesMaker,
    Job,
    ListsMaker,
    Maker,
    graph_among,
    lists_for,
    sampled_rows,
)
from .plan import widest
from .side import SideGraph, Wanted
from .signed import LANES
from .source import READ_ROWS, scan, true_keys
from .walking import finder, refined

Made = TypeVar("Made")

ADD_ROWS = 4_096
"""Rows a FAISS call adds; cancelling and progress wait for at most one such call. Each call makes a lock for every row
of the graph anew, 33 ms at a million. More rows a call were no quicker all the same: 300,000 x 128 took 30 s, with
16,384 and 32,768 rows a call 31 and 32, on 2 cores."""

LOW_PRIORITY = 10
MIN_ROWS = 1_000
_CALIBRATION_SHARE = 0.08
_RECALIBRATE_GROWTH = 1.1
"""A graph that grew by less keeps its curve: at a fixed efSearch the recall falls with the logarithm of
the rows, so a tenth more of them costs less than the curve's own bound leaves."""
_SAMPLE_RUNS, _SAMPLE_ROWS = 16, 1_024


_MOST_TOO_FEW_LISTS = 1.5
"""Lists that a new index would have, as a multiple of those there are: an index that has grown to 2.25 times
the rows it was trained on is trained anew."""


def can_extend(old: Main, fresh: int) -> bool:
    """Whether growing `old` leaves it with a recall curve that still speaks for it, and with lists enough."""
    grown = old.n + fresh
    if old.kind == "flat":
        return False
    if old.kind == "ivf" and lists_for(grown) > _MOST_TOO_FEW_LISTS * int(old.index.nlist):
        return False
    enough = fresh >= 2 * calibrate.LEAST_HELD_OUT
    return enough or grown <= _RECALIBRATE_GROWTH * old.curve.rows


class Cancelled(Exception):
    """Raised inside a build to leave it; never reaches a caller."""


class Build:
    """One build. The work happens on a thread of its own, at low priority.

    `hand_over(rows, arena, where in it they begin, first row that is not through yet)` is called as an
    arena fills.
    """

    def __init__(
        self,
        job: Job,
        kind: str,
        code: str,
        threads: int,
        cancel: threading.Event,
        progress: Callable[[float], None],
        hand_over: Callable[[Rows, Arena, int, int], None],
    ) -> None:
        self.job = job
        self.kind = kind
        self.code = code
        self.lossy = is_lossy(code, job.storage, job.metric)
        self.threads = threads or CORES
        self.cancel = cancel
        self.progress = progress
        self.hand_over = hand_over
        self.rng = np.random.default_rng(SEED)
        self.error = 0.0

    def anew(self, rows: Rows, high_water: int, sequence: int) -> Main | None:
        """An index of these live rows (ascending); None when cancelled."""
        return self._on_own_thread(lambda: self._make(None, rows, high_water, sequence))

    def extend(self, old: Main, fresh: Rows, high_water: int, sequence: int) -> Main | None:
        """The index `old`, a graph or lists, grown by `fresh` rows (ascending); None when cancelled."""
        return self._on_own_thread(lambda: self._make(old, fresh, high_water, sequence))

    def curve_on(self, main: Main, queries: Any, live: Callable[[int, int], Any]) -> Main | None:
        """`main` with a curve measured on these (q, d) queries, which are in the index's space."""

        def work() -> Main:
            curve = self._measure(main.index, main.block, main.rows, queries, main.high_water, live)
            return main.with_curve(curve)

        return self._on_own_thread(work)

    def curve_of(
        self, copy: DeviceGraph, queries: Any, live: Callable[[int, int], Any]
    ) -> calibrate.Curve | None:
        """The curve of a graph on a device, measured on such queries; None when cancelled, and when the device
        does not answer."""

        def work() -> calibrate.Curve | None:
            try:
                return self._measure(
                    copy.index, copy.block, copy.rows, queries, copy.high_water, live, copy=copy
                )
            except Unanswered:
                return None

        return self._on_own_thread(work)

    def beside(self, wanted: Wanted) -> SideGraph | None:
        """A graph for a filter, its curve measured on queries of users; None when cancelled, and when no
        setting reaches the target recall, or the least that was asked of it."""
        main, positions = wanted.main, wanted.allowed.picked()

        def work() -> SideGraph:
            graph = graph_among(self, main, positions)
            among = np.zeros(main.high_water, np.bool_)
            among[main.rows[positions]] = True
            curve = self._measure(
                graph, main.block, main.rows, wanted.queries(), main.high_water,
                lambda start, stop: among[start:stop], positions,
            )  # fmt: skip
            return SideGraph(main, graph, positions, curve)

        made = self._on_own_thread(work)
        least = min(wanted.target_recall, self.job.target_recall)
        good = made is not None and made.setting(least, calibrate.SMALL_K)
        return made if good else None

    def _on_own_thread(self, work: Callable[[], Made]) -> Made | None:
        """Run `work` on a new thread with lowered priority and wait for it.

        The priority of a thread cannot be raised again, so the caller's own is left alone. OpenMP
        makes its threads when the new thread first needs them, and they inherit its priority: the
        threads that serve queries win against all of them.
        """
        outcome: list[Made] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                lower_priority()
                limit_threads(self.threads)
                outcome.append(work())
            except Cancelled:
                pass
            except BaseException as error:  # carried to the caller's thread, raised there
                failure.append(error)

        thread = threading.Thread(target=run, name="vecdb-index-build", daemon=True)
        thread.start()
        try:
            thread.join()
        except BaseException:
            self.cancel.set()
            raise
        if failure:
            raise failure[0]
        return outcome[0] if outcome else None

    def check(self) -> None:
        if self.cancel.is_set():
            raise Cancelled

    # -- reading

    def _read(self, start: int, stop: int) -> Any:
        job = self.job
        width = vector_width(job.dimension, job.storage)
        vectors = job.source.range(start, stop)
        if vectors.shape != (stop - start, width):
            raise ValueError(
                f"range({start}, {stop}) gave shape {vectors.shape}, expected "
                f"{(stop - start, width)}"
            )
        return to_space(vectors, job.metric, job.storage)

    def each(self, rows: Rows, use: Callable[[int, Any], None]) -> None:
        """Reads these rows (ascending) and calls use(index of the first one, vectors) in order."""
        done = 0
        while done < rows.size:
            self.check()
            start = int(rows[done])
            end = int(np.searchsorted(rows, start + READ_ROWS))
            vectors = self._read(start, int(rows[end - 1]) + 1)
            picked = np.ascontiguousarray(vectors[rows[done:end] - start])
            for at in range(0, len(picked), ADD_ROWS):
                self.check()
                use(done + at, picked[at : at + ADD_ROWS])
            done = end

    def gather(self, rows: Rows) -> Any:
        """A copy of these rows (ascending) in the index's space."""
        found: Any = None

        def put(at: int, part: Any) -> None:
            nonlocal found
            if found is None:
                # Not put together in the end: the parts and the whole would be there at once.
                found = np.empty((rows.size, part.shape[1]), part.dtype)
            found[at : at + len(part)] = part

        self.each(rows, put)
        return found

    def sample(self, rows: Rows) -> Floats:
        """Vectors from runs of rows all over `rows`, as many as training codes needs."""
        if rows.size > _SAMPLE_RUNS * _SAMPLE_ROWS:
            starts = np.linspace(0, rows.size - _SAMPLE_ROWS, _SAMPLE_RUNS).astype(np.int64)
            rows = rows[np.concatenate([np.arange(s, s + _SAMPLE_ROWS) for s in starts])]
        sample: Floats = self.gather(rows)
        return sample

    # -- making

    def _make(self, old: Main | None, fresh: Rows, high_water: int, sequence: int) -> Main:
        maker: Maker
        if self.kind == "hnsw":
            maker = graph_maker(self, old, fresh)
        elif self.kind == "ivf":
            maker = ListsMaker(self, old, fresh)
        else:
            maker = CodesMaker(self, fresh)
        before = np.empty(0, np.int64) if old is None else old.rows
        if old is not None:
            self.error = old.error
        curve = None
        if old is not None and old.n + fresh.size <= _RECALIBRATE_GROWTH * old.curve.rows:
            curve = old.curve
        back = np.empty(0, np.int64)
        if curve is None:
            back = calibrate.held_out(fresh.size, self.rng)
        is_back = np.zeros(fresh.size, np.bool_)
        is_back[back] = True
        kept_back: list[Any] = []
        base = maker.base
        share = 1.0 - base - _CALIBRATION_SHARE

        def use(at: int, part: Any) -> None:
            aside = is_back[at : at + len(part)]
            if aside.any():
                kept_back.append(part[aside])
                part = np.ascontiguousarray(part[~aside])
            stop = at + len(aside)
            self._note_error(maker, part)
            maker.add(
                part, fresh[at:stop][~aside], int(fresh[stop]) if stop < fresh.size else high_water
            )
            self.progress(base + share * stop / fresh.size)

        self.each(fresh, use)
        rows = np.concatenate([before, fresh[~is_back], fresh[is_back]])
        if curve is None:
            known = np.zeros(high_water, np.bool_)
            known[rows[: rows.size - back.size]] = True
            queries = np.concatenate(kept_back) if kept_back else np.empty((0, 1), np.float32)
            index, block = maker.serving()
            curve = self._measure(
                index, block, rows, queries, high_water, lambda start, stop: known[start:stop]
            )
            if old is not None:
                curve = curve.no_better_than(old.curve)
            use_threads(self.threads)
            if len(queries):
                self._note_error(maker, queries)
                maker.add(queries, np.empty(0, np.int64), -1)
        index, block = maker.serving()
        error = math.inf if self.code in LISTS_ONLY else self.error
        return Main(
            kind=self.kind, code=self.code, index=index, block=block, rows=rows,
            high_water=high_water, curve=curve, lossy=self.lossy, error=error, arena=maker.arena,
            sequence=sequence, built_at_s=time.time(),
        )  # fmt: skip

    def _note_error(self, maker: Maker, part: Any) -> None:
        if self.lossy and maker.quantizer is not None and len(part):
            self.error = max(self.error, largest_error(maker.quantizer, part))

    def _measure(
        self,
        index: Any,
        block: Any,
        rows: Rows,
        queries: Any,
        high_water: int,
        known: Callable[[int, int], NDArray[np.bool_]],
        among: Rows | None = None,
        copy: DeviceGraph | None = None,
    ) -> calibrate.Curve:
        """The curve on `queries`, among positions 0..block.n (or `among` these) with row numbers
        `rows`; that of `copy` where it is given."""
        job, kind, code = self.job, self.kind, self.code
        if not len(queries):
            return calibrate.Curve((), block.n, 0)
        settings: tuple[int, ...] = (1,)
        if kind == "ivf":
            lists = int(index.nlist)
            settings = tuple(dict.fromkeys([*(1 << i for i in range(lists.bit_length())), lists]))
        elif kind == "hnsw":
            settings = EF_SETTINGS
        if among is not None:
            settings = tuple(
                ef for ef in EF_SETTINGS if ef <= max(EF_SETTINGS[0], widest(among.size))
            )
        if copy is not None:
            settings = SETTINGS
        rank = None

        def exact(some: Any, k: int) -> Floats:
            if not self.lossy and among is not None:
                return self._exact_among(block, among, some, k)
            if not self.lossy:
                keys: Floats = block.search(some, k)[0]
                return keys
            found = scan(some, k, job.metric, job.source, high_water, known, self.check)
            return np.sort(found[0], axis=1)

        if self.lossy:

            def rank(some: Any, positions: Rows) -> Floats:
                found = np.where(positions < 0, -1, rows[positions])
                return true_keys(some, job.source, found, job.metric)

        start, both = 1.0 - _CALIBRATION_SHARE, refined(code, index, block)
        curve = calibrate.measure(
            queries,
            block.n if among is None else among.size,
            settings,
            calibrate.LARGE_K if kind == "hnsw" else 1,
            calibrate.LISTS_LARGE_K if kind == "ivf" else calibrate.LARGE_K,
            exact,
            finder(kind, code, index, both, alone=True) if copy is None else copy.search,
            rank,
            self.cancel,
            lambda share: self.progress(start + share * _CALIBRATION_SHARE),
            # Of a filter's graph, which few queries of users measure.
            unseen=0.0 if among is None else calibrate.UNSEEN,
            shares=both is None or copy is not None,
        )
        if curve is None:
            raise Cancelled
        return curve

    def _exact_among(self, block: Block, positions: Rows, queries: Floats, k: int) -> Floats:
        """Keys (q, k), ascending, of the nearest of these positions; in slices, to spare memory."""
        merger = Merger(k)
        for start in range(0, positions.size, READ_ROWS):
            self.check()
            part = positions[start : start + READ_ROWS]
            merger.add(
                *(
                    block.pick(part)
                    if isinstance(block, CodeBlock)
                    else FloatBlock(block.take(part), faiss_metric(self.job.metric))
                ).search(queries, k)
            )
        return np.sort(merger.best(len(queries))[0], axis=1)


def build_bytes(kind: str, code: str, dimension: int, held: int, fresh: int, replaced: int) -> int:
    """Memory that a build needs beyond what is there when it begins, estimated in bytes.

    `held` rows are in the index that grows, `fresh` ones are added; `replaced` of these are in an index
    that serves until the new one does. Vectors that the tail lets go of as the arena fills are not
    counted.

    Lists take most where their centroids are trained, on a sample that `makers.ListsMaker` keeps with a quarter of it,
    or, where they grow, while the old ones are copied through bytes. Beside all that are slices of vectors, and
    what calibration holds; 100,000 x 128 as pq4 took 139 MB where its codes are 3.
    """
    total = held + fresh
    copied = replaced if code == "float32" and kind == "hnsw" else total
    serving = code_bytes(code, dimension) * copied
    walk = 0
    if kind == "hnsw" and code in ("float32", "sq4"):
        over = "float32" if code == "float32" and dimension % LANES else "sq8"
        walk = code_bytes(over, dimension) * total
    graph = 160 * total * (2 if held else 1) if kind == "hnsw" else 16 * total
    made, vector = serving + walk + graph, vector_bytes(code, dimension)
    if kind == "ivf" and held:
        made *= 2
    elif kind == "ivf":
        made = max(made, sampled_rows(total) * vector * 5 // 4)
    slice_rows, held_out = min(total, READ_ROWS), min(total, calibrate.MAX_HELD_OUT)
    reading = slice_rows * 3 * vector  # as stored, as compared, and those of them that are wanted
    measuring = held_out * (2 * vector + 4 * slice_rows)
    ranking = min(calibrate.FOUND_PAIRS, held_out * total) * calibrate.PAIR_BYTES
    sample = 2 * min(total, _SAMPLE_RUNS * _SAMPLE_ROWS) * vector
    return made + max(reading + measuring + ranking, reading + sample)


def lower_priority() -> None:
    """Lower the calling thread's priority where the system knows priorities of threads (Linux)."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOW_PRIORITY)
    except (OSError, AttributeError):
        return  # only a matter of latency; the build is right without it
