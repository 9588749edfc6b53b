"""Building a main index off to the side, anew or by growing a copy of the one that serves."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from . import calibrate
from .blocks import ListBlock
from .distance import Floats, Rows, unit
from .door import CORES, faiss, limit_threads, use_threads
from .main import (
    EF_SETTINGS,
    Main,
    attach_storage,
    block_of,
    new_hnsw,
    new_ivf,
    search,
    storage_of,
)

ReadVectors = Callable[[int, int], NDArray[np.floating]]
"""read_vectors(start, stop) -> stored vectors (stop - start, d) of these rows, dead ones included
with any finite content. Called from the build's own thread."""

READ_ROWS = 8_192
ADD_ROWS = 4_096
"""Rows a FAISS call adds; cancelling and progress wait for at most one such call."""

LOW_PRIORITY = 10
MIN_ROWS = 1_000
_TRAIN_ROWS_A_LIST = 40
_TRAIN_ROUNDS = 10
_CALIBRATION_SHARE = 0.08
_RECALIBRATE_GROWTH = 1.1
_SEED = 7_700


def can_extend(old: Main, fresh: int) -> bool:
    """Whether growing `old` leaves it with a recall curve that still speaks for it."""
    grown = old.n + fresh
    enough = fresh >= 2 * calibrate.LEAST_HELD_OUT
    return old.kind == "hnsw" and (enough or grown <= _RECALIBRATE_GROWTH * old.curve.rows)


class Cancelled(Exception):
    """Raised inside a build to leave it; never reaches a caller."""


class Job(Protocol):
    """What a build needs to know about its collection."""

    dimension: int
    metric: str
    storage: str


class Build:
    """One build. `run` happens on a thread of its own, at low priority."""

    def __init__(
        self,
        job: Job,
        kind: str,
        read_vectors: ReadVectors,
        threads: int,
        cancel: threading.Event,
        progress: Callable[[float], None],
    ) -> None:
        self.job = job
        self.kind = kind
        self.read_vectors = read_vectors
        self.threads = threads or CORES
        self.cancel = cancel
        self.progress = progress
        self.rng = np.random.default_rng(_SEED)

    def anew(self, rows: Rows, high_water: int) -> Main | None:
        """An index of these live rows (ascending); None when cancelled."""
        return self._on_own_thread(lambda: self._anew(rows, high_water))

    def extend(self, old: Main, fresh: Rows, high_water: int) -> Main | None:
        """A copy of the HNSW index `old` with `fresh` rows (ascending); None when cancelled."""
        return self._on_own_thread(lambda: self._extend(old, fresh, high_water))

    def _on_own_thread(self, work: Callable[[], Main]) -> Main | None:
        """Run `work` on a new thread with lowered priority and wait for it.

        The priority of a thread cannot be raised again, so the caller's own is left alone. OpenMP
        makes its threads when the new thread first needs them, and they inherit its priority: the
        threads that serve queries win against all of them.
        """
        outcome: list[Main] = []
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

    def _check(self) -> None:
        if self.cancel.is_set():
            raise Cancelled

    def _read(self, start: int, stop: int) -> Floats:
        vectors = self.read_vectors(start, stop)
        if vectors.shape != (stop - start, self.job.dimension):
            raise ValueError(
                f"read_vectors({start}, {stop}) gave shape {vectors.shape}, expected "
                f"{(stop - start, self.job.dimension)}"
            )
        return to_space(vectors, self.job.metric, self.job.storage)

    def _each(self, rows: Rows, use: Callable[[int, Floats], None]) -> None:
        """Read these rows (ascending) and call use(index of the first one, vectors) in order."""
        done = 0
        while done < rows.size:
            self._check()
            start = int(rows[done])
            end = int(np.searchsorted(rows, start + READ_ROWS))
            vectors = self._read(start, int(rows[end - 1]) + 1)
            picked = np.ascontiguousarray(vectors[rows[done:end] - start])
            for at in range(0, len(picked), ADD_ROWS):
                self._check()
                use(done + at, picked[at : at + ADD_ROWS])
            done = end

    def _gather(self, rows: Rows) -> Floats:
        """A float32 copy of these rows (ascending)."""
        out = np.empty((rows.size, self.job.dimension), np.float32)

        def use(at: int, part: Floats) -> None:
            out[at : at + len(part)] = part

        self._each(rows, use)
        return out

    def _anew(self, rows: Rows, high_water: int) -> Main:
        base = 0.0
        if self.kind == "ivf":
            index = self._train(rows)
            base = 0.4
        else:
            index = new_hnsw(self.job.dimension, self.job.metric, self.job.storage)
        return self._fill(index, np.empty(0, np.int64), rows, high_water, None, base)

    def _extend(self, old: Main, fresh: Rows, high_water: int) -> Main:
        # A graph that is mapped from a file must not be added to (FAISS aborts), and a clone of it
        # is a view of the same map: a copy through bytes owns its memory whatever the source is.
        graph = faiss.deserialize_index(
            faiss.serialize_index(old.index, faiss.IO_FLAG_SKIP_STORAGE)
        )
        vectors, look = storage_of(old.n, self.job.dimension, self.job.metric, self.job.storage)
        for start in range(0, old.n, READ_ROWS):
            self._check()
            stop = min(old.n, start + READ_ROWS)
            look[start:stop] = old.block.take(np.arange(start, stop))
        attach_storage(graph, vectors)
        grown = old.n + fresh.size
        curve = old.curve if grown <= _RECALIBRATE_GROWTH * old.curve.rows else None
        return self._fill(graph, old.rows, fresh, high_water, curve, 0.02)

    def _fill(
        self,
        index: Any,
        before: Rows,
        fresh: Rows,
        high_water: int,
        curve: calibrate.Curve | None,
        base: float,
    ) -> Main:
        """Add `fresh` to an index that holds `before`, measuring the curve unless one is given."""
        back = np.empty(0, np.int64)
        if curve is None:
            back = calibrate.held_out(fresh.size, self.rng)
        is_back = np.zeros(fresh.size, np.bool_)
        is_back[back] = True
        kept_back = np.empty((back.size, self.job.dimension), np.float32)
        kept = 0
        share = 1.0 - base - _CALIBRATION_SHARE

        def use(at: int, part: Floats) -> None:
            nonlocal kept
            aside = is_back[at : at + len(part)]
            count = int(np.count_nonzero(aside))
            kept_back[kept : kept + count] = part[aside]
            kept += count
            index.add(part[~aside] if count else part)
            self.progress(base + share * (at + len(part)) / fresh.size)

        self._each(fresh, use)
        if curve is None:
            curve = self._measure(index, kept_back)
            use_threads(self.threads)
            index.add(kept_back)
        if self.kind == "ivf":
            index.make_direct_map(True)
        rows = np.concatenate([before, fresh[~is_back], fresh[is_back]])
        block = block_of(self.kind, index, self.job.storage)
        return Main(self.kind, index, block, rows, high_water, curve)

    def _measure(self, index: Any, queries: Floats) -> calibrate.Curve:
        if not len(queries):
            return calibrate.Curve((), int(index.ntotal), 0)
        block = (
            ListBlock(index) if self.kind == "ivf" else block_of("hnsw", index, self.job.storage)
        )
        if self.kind == "ivf":
            settings = tuple(
                dict.fromkeys([*(1 << i for i in range(index.nlist.bit_length())), index.nlist])
            )
        else:
            settings = EF_SETTINGS
        start = 1.0 - _CALIBRATION_SHARE
        curve = calibrate.measure(
            queries,
            block.n,
            settings,
            calibrate.CALIBRATED_K[1] if self.kind == "hnsw" else 1,
            lambda some, k: block.search(some, k)[0],
            lambda some, k, setting: search(self.kind, index, some, k, setting)[0],
            self.cancel,
            lambda share: self.progress(start + share * _CALIBRATION_SHARE),
        )
        if curve is None:
            raise Cancelled
        return curve

    def _train(self, rows: Rows) -> Any:
        """Lists around k-means centroids of a sample. A call a round, so that it can be cancelled."""
        lists = max(1, min(int(4 * math.sqrt(rows.size)), rows.size // _TRAIN_ROWS_A_LIST))
        size = min(rows.size, lists * _TRAIN_ROWS_A_LIST)
        sample = self._gather(np.sort(self.rng.choice(rows, size, replace=False)))
        centroids = sample[self.rng.choice(size, lists, replace=False)].copy()
        for done in range(_TRAIN_ROUNDS):
            self._check()
            kmeans = faiss.Kmeans(
                self.job.dimension,
                lists,
                niter=1,
                seed=_SEED,
                spherical=self.job.metric == "cosine",
                min_points_per_centroid=1,
                max_points_per_centroid=size,
            )
            kmeans.train(sample, init_centroids=centroids)
            centroids = np.array(kmeans.centroids, np.float32)
            self.progress(0.4 * (done + 1) / _TRAIN_ROUNDS)
        return new_ivf(self.job.dimension, self.job.metric, self.job.storage, centroids)


def to_space(vectors: NDArray[np.floating], metric: str, storage: str) -> Floats:
    """Stored vectors as the index holds them: unit length for cosine, rounded for float16."""
    floats = unit(vectors) if metric == "cosine" else np.ascontiguousarray(vectors, np.float32)
    if storage == "float16" and (metric == "cosine" or vectors.dtype != np.float16):
        floats = floats.astype(np.float16).astype(np.float32)
    return floats


def lower_priority() -> None:
    """Lower the calling thread's priority where the system knows priorities of threads (Linux)."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOW_PRIORITY)
    except (OSError, AttributeError):
        return  # only a matter of latency; the build is right without it
