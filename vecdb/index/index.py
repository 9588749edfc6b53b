"""The index of one collection: main + tail + live rows, and how they change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Internal
from . import files
from .build import MIN_ROWS, Build, ReadVectors, can_extend, to_space
from .distance import Rows
from .door import device, faiss_metric
from .files import IndexRecord
from .live import Bits, LiveRows, unpack
from .main import Main
from .tail import Piece, Tail, trim
from .view import MainMask, View

LEAST_FRESH_ROWS = 10_000
"""Fresh rows below which a main index is not worth growing: they are searched in under a ms."""


@dataclass(frozen=True, slots=True)
class BuiltIndex:
    """A main index that is ready to be saved and installed."""

    main: Main

    @property
    def kind(self) -> str:
        return self.main.kind

    @property
    def high_water(self) -> int:
        """Rows below this number are in the index, or were dead when it was built."""
        return self.main.high_water

    @property
    def rows(self) -> int:
        return self.main.n


@dataclass(frozen=True, slots=True)
class IndexFigures:
    """The numbers of an index, named as in `vecdb.types.IndexStats`."""

    kind: str
    device: str
    indexed_rows: int
    """Rows in the main index, live and dead."""
    tail_rows: int
    """Rows that are kept for exact search, live and dead."""
    dead_rows: int
    """Dead rows among these two."""
    memory_bytes: int
    measured_recall: float
    """Mean recall@10 on held-out rows at the setting in use; 1.0 where search is exact."""


class Index:
    """The index of one open collection.

    append, kill and publish belong to the collection's writer lane: one thread at a time. install
    may come from another thread. `view` and everything else may be used from any thread; a view is
    replaced by assignment and never changes.

    `settings` are the engine's (`vecdb.settings.ENGINE`): exact_max_scalars, index_tail_share,
    index_dead_share, build_threads.
    """

    def __init__(
        self,
        *,
        dimension: int,
        metric: str,
        storage: str,
        kind: str,
        target_recall: float,
        settings: Mapping[str, Any],
    ) -> None:
        self.dimension = dimension
        self.metric = metric
        self.storage = storage
        self.kind = kind
        self.target_recall = target_recall
        self.settings = settings
        self._lock = threading.Lock()
        self._half = storage == "float16"
        self._live = LiveRows()
        self._tail = self._new_tail(0)
        self._main: Main | None = None
        self._main_live = 0
        self._main_mask = MainMask()
        self._dead_in_tail = 0
        self._view = self._make_view(0)

    def _new_tail(self, start: int) -> Tail:
        return Tail(self.dimension, faiss_metric(self.metric), self._half, start)

    # -- writing -------------------------------------------------------------------------------

    def append(self, vectors: NDArray[np.floating]) -> None:
        """Take stored vectors (n, d), float32 or float16, for the next n rows; not yet visible.

        Copies them. Under cosine the copies get unit length; the store keeps what the user gave.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise Internal(f"vectors have shape {vectors.shape}, expected (n, {self.dimension})")
        if not len(vectors):
            return
        ready = to_space(vectors, self.metric, self.storage)
        with self._lock:
            self._tail.append(ready)
            self._live.append(len(vectors))

    def kill(self, rows: Rows) -> None:
        """Mark rows dead; not yet visible. Rows that are dead already are left so."""
        rows = np.asarray(rows, np.int64)
        if rows.size and not (rows.min() >= 0 and rows.max() < self._live.n_rows):
            raise Internal(f"rows to kill are not within 0 to {self._live.n_rows}")
        with self._lock:
            died = self._live.kill(rows)
            below = int(np.searchsorted(died, self._tail.start))
            if below:
                # All of them are in the main index: other rows below its mark were dead before.
                self._main_live -= below
                self._main_mask = MainMask()
            self._dead_in_tail += died.size - below

    def publish(self, sequence: int) -> View:
        """Make everything appended and killed visible, in one assignment; returns the new view."""
        with self._lock:
            if 2 * self._dead_in_tail >= self._tail.piece_rows:
                self._tail.compact(self._live.mask())
                self._dead_in_tail = 0
            self._view = self._make_view(sequence)
            return self._view

    def install(self, built: BuiltIndex, sequence: int | None = None) -> None:
        """Let `built` serve from now on, in one assignment; the tail it covers is let go.

        On an index without rows it sets the number of rows to the high-water mark; those that
        `built` holds are live. Then append the rows behind it, kill the dead ones, and publish.
        """
        main = built.main
        with self._lock:
            if self._main is not None and main.high_water < self._main.high_water:
                raise Internal(
                    f"an index up to row {main.high_water} cannot replace one up to row "
                    f"{self._main.high_water}"
                )
            fresh = self._live.n_rows == 0
            if not fresh and main.high_water > self._view.n_rows:
                raise Internal(
                    f"an index up to row {main.high_water} is ahead of the {self._view.n_rows} "
                    "published rows"
                )
            if fresh:
                # Rows below the mark that the index lacks were dead when it was built.
                self._live.append(main.high_water)
                self._live.kill(np.setdiff1d(np.arange(main.high_water), main.rows))
            cut = self._tail.trim(main.high_water)
            self._main = main
            self._main_live = _live_in(main, self._live.share())
            self._main_mask = MainMask()
            if not fresh:
                self._view = self._with_main(self._view, main, sequence, cut)

    def _make_view(self, sequence: int) -> View:
        return View(
            dimension=self.dimension,
            metric=self.metric,
            lossy=self._half and self.metric == "cosine",
            target_recall=self.target_recall,
            sequence=sequence,
            n_rows=self._live.n_rows,
            n_live=self._live.n_live,
            live=self._live.share(),
            main=self._main,
            main_live=self._main_live,
            main_mask=self._main_mask,
            pieces=self._tail.pieces(),
        )

    def _with_main(
        self, old: View, main: Main, sequence: int | None, cut: Mapping[int, Piece | None]
    ) -> View:
        """The published view with another main index; what is not published stays so.

        It gets a mask of its own: the writer's next view may already know of more dead rows.
        """
        return View(
            dimension=self.dimension,
            metric=self.metric,
            lossy=old.lossy,
            target_recall=self.target_recall,
            sequence=old.sequence if sequence is None else sequence,
            n_rows=old.n_rows,
            n_live=old.n_live,
            live=old.live,
            main=main,
            main_live=_live_in(main, old.live),
            main_mask=MainMask(),
            pieces=trim(old.pieces, main.high_water, dict(cut)),
        )

    # -- reading -------------------------------------------------------------------------------

    @property
    def view(self) -> View:
        """The latest published view."""
        return self._view

    def wants_build(self) -> bool:
        """Whether a build would pay now; a few comparisons, so it may be asked after each write."""
        view = self._view
        main = view.main
        if self._wanted_kind(view) is None:
            return False
        if main is None:
            return True
        fresh = view.n_live - view.main_live
        many = fresh >= LEAST_FRESH_ROWS and fresh > self.settings["index_tail_share"] * main.n
        return bool(many or self._dead_share(view) > self.settings["index_dead_share"])

    def _wanted_kind(self, view: View) -> str | None:
        """hnsw or ivf, None where exact search serves best."""
        if self.kind == "exact" or view.n_live < MIN_ROWS:
            return None
        if self.kind != "auto":
            return self.kind
        large = view.n_live * self.dimension > self.settings["exact_max_scalars"]
        # A collection that shrinks keeps its main index; switching to and fro would cost builds.
        return "hnsw" if large or view.main is not None else None

    @staticmethod
    def _dead_share(view: View) -> float:
        if view.main is None or not view.main.n:
            return 0.0
        return 1.0 - view.main_live / view.main.n

    def stats(self) -> IndexFigures:
        """The index's numbers at this moment."""
        view = self._view
        main = view.main
        tail = sum(piece.block.n for piece in view.pieces)
        indexed = 0 if main is None else main.n
        return IndexFigures(
            kind="exact" if main is None else main.kind,
            device=device(),
            indexed_rows=indexed,
            tail_rows=tail,
            dead_rows=indexed + tail - view.n_live,
            memory_bytes=self.memory_bytes(),
            measured_recall=1.0 if main is None else main.curve.measured(self.target_recall),
        )

    def memory_bytes(self) -> int:
        """Bytes of vectors, graph, row numbers and bitmap; mapped files count in full."""
        main = self._main
        return self._tail.nbytes + self._live.nbytes + (0 if main is None else main.nbytes)

    # -- building and files --------------------------------------------------------------------

    def build(
        self,
        view: View,
        read_vectors: ReadVectors,
        *,
        cancel: threading.Event,
        progress: Callable[[float], None],
    ) -> BuiltIndex | None:
        """A main index of the rows that are live in `view`; does not install it.

        Grows a copy of the HNSW index that serves when few of its rows are dead, else builds anew.
        None when cancelled (`cancel` is set then), and when there is nothing to build: the
        collection is to be searched exactly, or the index covers exactly the live rows already.
        `read_vectors` and `progress` are called from a thread of lower priority; the caller waits.
        An error of `read_vectors` is raised here.
        """
        kind = self._wanted_kind(view)
        main = view.main
        if kind is None:
            return None
        rows = np.flatnonzero(view.live_mask())
        first = 0 if main is None else int(np.searchsorted(rows, main.high_water))
        if main is not None and main.kind == kind and first == rows.size == main.n:
            return None
        threads = int(self.settings["build_threads"])
        build = Build(self, kind, read_vectors, threads, cancel, progress)
        grow = (
            main is not None
            and main.kind == kind
            and first < rows.size
            and self._dead_share(view) <= self.settings["index_dead_share"]
            and can_extend(main, rows.size - first)
        )
        made = (
            build.extend(main, rows[first:], view.n_rows)
            if grow and main is not None
            else build.anew(rows, view.n_rows)
        )
        return None if made is None else BuiltIndex(made)

    def save(self, built: BuiltIndex, folder: Path) -> IndexRecord:
        """Write `built` durably into `folder`; the record belongs into the next commit.

        Until a commit names them the files are litter that may be deleted. StorageFull when the
        disk is full; nothing is left behind then.
        """
        return files.save(self, built.main, folder)

    def load(self, record: IndexRecord, folder: Path, read_vectors: ReadVectors) -> BuiltIndex:
        """The saved index of `record`, verified and mapped; Corrupted when it cannot be used.

        The files must stay in place while the result is in use (deleting them is safe on POSIX).
        """
        return BuiltIndex(files.load(self, record, folder, read_vectors))


def _live_in(main: Main, bits: Bits) -> int:
    return int(np.count_nonzero(unpack(bits, 0, main.high_water)[main.rows]))
