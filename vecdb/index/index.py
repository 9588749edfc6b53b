"""The index of one vector field: main + tail + live rows, and how they change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Internal
from ..layout import vector_width
from ..types import LISTS_ONLY
from . import files, side_build
from .ahead import Ahead
from .build import MIN_ROWS, Build
from .chosen import MainMask
from .codes import is_lossy, own_code
from .device_main import DeviceMain
from .distance import Rows
from .door import give_memory_back
from .fews import Lasting
from .figures import IndexFigures, figures_of
from .files import IndexRecord
from .filling import LateBlock
from .handover import HandOver
from .live import Bits, LiveRows, unpack
from .main import BuiltIndex, Main, copied
from .on_device import OnDevice
from .reasons import Reasons
from .side import Sides
from .source import VectorSource, exact_space
from .step import Missed, Step
from .tail import Piece, Tail, replaced, trim
from .view import View

LEAST_FRESH_ROWS = 10_000
"""Fresh rows below which a main index is not grown. Why not fewer: ARCHITECTURE.md, "The life of an index"."""


class Index:
    """The index of one vector field of an open collection.

    append, kill and publish belong to the collection's writer lane: one thread at a time. install
    may come from another thread, and so may one build at a time. `view` and everything else may be
    used from any thread; a view is replaced by assignment and never changes.

    `quantization` is auto, none, float16, sq8, sq4, or pq4 or pq8 (kinds ivf and auto). `source` reads stored vectors.
    `settings` are the engine's (`vecdb.settings.ENGINE`): exact_max_scalars, index_tail_share,
    index_dead_share, build_threads, build_memory_bytes, index_memory_bytes.
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
        source: VectorSource,
        quantization: str = "auto",
        sides: Sides | None = None,
        on_device: OnDevice | None = None,
    ) -> None:
        self.dimension = dimension
        self.metric = metric
        self.storage = storage
        self.kind = kind
        self.quantization = quantization
        self.target_recall = target_recall
        self.settings = settings
        self.source = source
        self._lock = threading.Lock()
        self._live = LiveRows()
        self._tail = Tail(dimension, metric, storage)
        self._ahead = Ahead(self._tail, metric, storage)
        self._main: Main | None = None
        self._main_live = self._dead_in_tail = 0
        self._main_mask = MainMask()
        self.on_device = on_device
        """What of it lies on devices; None where the CPU is to search."""
        self._reasons: Reasons | None = None
        if on_device is not None and on_device.asked_for:
            self._reasons = Reasons(on_device, kind, quantization)
        self.sides = sides or Sides()
        self._lasting = Lasting()
        self.sides.serve(None)
        self.missed: Missed | None = None
        self._view = self._make_view(0)

    # -- writing -------------------------------------------------------------------------------

    def append(self, vectors: NDArray[Any]) -> None:
        """Take stored vectors (n, width) in stored dtype for the next n rows; not yet visible.

        Copies them. Under cosine the copies get unit length; the store keeps what the user gave.
        """
        width = vector_width(self.dimension, self.storage)
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise Internal(f"vectors have shape {vectors.shape}, expected (n, {width})")
        if not len(vectors):
            return
        with self._lock:
            self._ahead.append(vectors)
            self._live.append(len(vectors))

    def ahead(self, vectors: NDArray[Any] | None) -> None:
        """Copies what `append` may be given next, the same array, None: it will not be; nothing changes if it is not."""
        with self._lock:
            self._ahead.copy(vectors)

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
                known = np.zeros(main.high_water, np.bool_)
                known[main.rows] = True
                self._live.kill(np.flatnonzero(~known))
            cut = self._tail.trim(main.high_water)
            self._main = main
            self.sides.serve(main)
            self._main_live = _live_in(main, self._live.share())
            self._main_mask = MainMask()
            if self.on_device is not None:
                self.on_device.keep_only(main)
            if not fresh:
                self._view = self._with_main(self._view, main, sequence, cut)

    def _make_view(self, sequence: int) -> View:
        return View(
            dimension=self.dimension,
            metric=self.metric,
            storage=self.storage,
            source=self.source,
            lossy_tail=is_lossy(own_code(self.storage), self.storage, self.metric),
            target_recall=self.target_recall,
            sequence=sequence,
            n_rows=self._live.n_rows,
            n_live=self._live.n_live,
            live=self._live.share(),
            main=self._main,
            main_live=self._main_live,
            main_mask=self._main_mask,
            sides=self.sides,
            lasting=self._lasting,
            served=None if self.on_device is None else self.on_device.served,
            device_main=self._copy_of(self._main),
            reasons=self._reasons,
            tiled=None if self.on_device is None else self.on_device.tiled,
            pieces=self._tail.pieces(),
        )

    def _with_main(
        self, old: View, main: Main, sequence: int | None, cut: Mapping[int, Piece | None]
    ) -> View:
        """The published view with another main index; what is not published stays so.

        It gets a mask of its own: the writer's next view may already know of more dead rows.
        """
        return self._changed(
            old,
            main=main,
            main_live=_live_in(main, old.live),
            main_mask=MainMask(),
            served=None if self.on_device is None else self.on_device.served,
            device_main=self._copy_of(main),
            pieces=trim(old.pieces, main.high_water, dict(cut)),
            sequence=old.sequence if sequence is None else sequence,
        )

    def _copy_of(self, main: Main | None) -> DeviceMain | None:
        return None if self.on_device is None else self.on_device.copy_of(main)

    @staticmethod
    def _changed(old: View, **changes: Any) -> View:
        kept = {
            name: getattr(old, name)
            for name in (
                "dimension", "metric", "storage", "source", "lossy_tail", "target_recall",
                "sequence", "n_rows", "n_live", "live", "main", "main_live", "sides", "served",
                "lasting", "device_main", "reasons", "tiled", "pieces",
            )
        }  # fmt: skip
        return View(**{"main_mask": old.main_mask, **kept, **changes})

    def _replace(self, instead: dict[int, tuple[Piece, ...]]) -> None:
        """Other pieces with the same live rows for full ones of the tail, by `id`; visible at once."""
        with self._lock:
            self._tail.replace(instead)
            self._view = self._changed(self._view, pieces=replaced(self._view.pieces, instead))

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
        if main is None or self.unfinished():
            return True
        fresh = view.n_live - view.main_live
        many = fresh >= LEAST_FRESH_ROWS and fresh > self.settings["index_tail_share"] * main.n
        return bool(many or self._dead_share(view) > self.settings["index_dead_share"])

    def _wanted_kind(self, view: View) -> str | None:
        """hnsw, ivf, flat, or auto: a graph or lists, see `choice.kind_and_code`. None where the tail serves best."""
        if view.n_live < MIN_ROWS:
            return None
        if self.kind == "exact":
            coded = self.quantization not in ("auto", "none")
            return "flat" if coded and view.n_live >= LEAST_FRESH_ROWS else None
        if self.kind != "auto":
            return self.kind
        if self._compared_on_device(view):
            return None
        large = view.n_live * self.dimension > self.settings["exact_max_scalars"]
        # A collection that shrinks keeps its main index; switching to and fro would cost builds.
        if not large and view.main is None:
            return None
        return "auto"

    def _compared_on_device(self, view: View) -> bool:
        """Whether all vectors are to lie on a device and to be compared there."""
        on_device = self.on_device
        listed = self.quantization in LISTS_ONLY
        return on_device is not None and not listed and on_device.takes(self.kind, view.n_live)

    @staticmethod
    def _dead_share(view: View) -> float:
        if view.main is None or not view.main.n:
            return 0.0
        return 1.0 - view.main_live / view.main.n

    def stats(self) -> IndexFigures:
        """The index's numbers at this moment."""
        return figures_of(self._view, self.target_recall, self.memory_bytes(), self.sides.count)

    def memory_bytes(self) -> int:
        """Bytes of vectors, graphs, row numbers and bitmap; mapped files count in full."""
        main = 0 if self._main is None else self._main.nbytes
        return self._tail.nbytes + self._live.nbytes + main + self.sides.nbytes

    # -- building and files --------------------------------------------------------------------

    def build(
        self,
        *,
        cancel: threading.Event,
        progress: Callable[[float], None],
        anew: bool = False,
    ) -> BuiltIndex | None:
        """A main index of the rows that are live in the newest view; does not install it.

        Grows the graph or lists that serve when few of their rows are dead and their codes are still those
        to use, else (and with `anew`) builds a new one; see `step.py`. None when cancelled (`cancel` is set
        then), and when there is nothing to build: the collection is to be searched exactly, or the index
        covers exactly the live rows already.
        Vectors are read and `progress` is called from a thread of lower priority; the caller waits.
        LimitExceeded when it would need more than `build_memory_bytes`. An error of the source is
        raised here. Whoever holds a view meanwhile also holds the tail's memory of that moment.
        """
        view = self._view
        kind = self._wanted_kind(view)
        if kind is None or not self.fill(cancel):
            return None
        step = Step(
            self, kind, view.main, np.flatnonzero(view.live_mask()), view.n_rows, view.sequence,
            cancel, progress, HandOver(lambda: self._tail.full, self._replace),
        )  # fmt: skip
        spent = self._dead_share(view) > self.settings["index_dead_share"]
        del view  # its pieces are let go of while the build takes their vectors over
        made = step.made(anew=anew, spent=spent)
        del step
        give_memory_back()
        return None if made is None else BuiltIndex(made)

    @property
    def is_late(self) -> bool:
        """Whether the vectors of the main index are yet to be read by `fill`; it serves meanwhile."""
        return self._view.main is not None and self._view.main.is_late

    def fill(self, stop: threading.Event) -> bool:
        """Reads the vectors that the main index lacks, if there are any; False when stopped. See `LateBlock.fill`."""
        block = None if self._view.main is None else self._view.main.block
        return not isinstance(block, LateBlock) or block.fill(stop)

    def unfinished(self) -> bool:
        """Whether lists serve that are yet to be compared with a graph."""
        main = self._view.main
        return main is not None and main.provisional and self._wanted_kind(self._view) == "auto"

    def holds(self, built: BuiltIndex) -> bool:
        """Whether the files of what serves are those of `built`."""
        main = self._view.main
        return main is not None and main.index is built.main.index

    def wants_placing(self) -> bool:
        """Whether vectors, or a copy of the main index, are to be placed on a device now."""
        view, on_device = self._view, self.on_device
        if on_device is None:
            return False
        if (main := copied(view.main)) is not None:
            return on_device.wants_main(main)
        return self._compared_on_device(view) and on_device.wants(view, LEAST_FRESH_ROWS)

    def lacks_placing(self) -> bool:
        """Whether what serves has never lain on a device that it is to lie on, up or not. What had to go for others
        is no lack: who asks for it has it placed again."""
        view, on_device = self._view, self.on_device
        if on_device is None:
            return False
        if (main := copied(view.main)) is not None:
            return on_device.copy_of(main) is None and on_device.takes_main(main)
        return on_device.served is None and self._compared_on_device(view)

    def place(self, *, cancel: threading.Event) -> int:
        """Copies the main index, or else the live vectors, to devices, and lets searches be answered there; how many rows, 0 when
        cancelled. DeviceFull, DeviceLost: searches go on where they went before."""
        on_device, main = self.on_device, copied(self._view.main)
        assert on_device is not None
        if main is not None:
            try:
                copy = on_device.place_main(main, self.source, cancel)
            finally:
                with self._lock:
                    on_device.keep_only(self._main)
                    there = on_device.copy_of(self._view.main)
                    self._view = self._changed(self._view, served=None, device_main=there)
            return 0 if copy is None else copy.n
        placed = on_device.place(self._view, self.source, cancel)
        if placed is None:
            return 0
        served, before = placed
        with self._lock:
            self._view = self._changed(self._view, served=served)
        if before is not None:
            before.leave()
        return int(served.rows.size)

    def recalibrate(
        self,
        queries: NDArray[Any],
        *,
        cancel: threading.Event,
        progress: Callable[[float], None],
    ) -> BuiltIndex | None:
        """The main index with a recall curve measured on `queries` (q, width) of users.

        None when cancelled, without a main index, or with fewer than 64 queries. Costs as much as the
        calibration of a build, twice that where a device has a graph, whose curve is measured too; nothing else
        of the index changes.
        """
        main = self._view.main
        if main is None or len(queries) < 64 or not self.fill(cancel):
            return None
        x = exact_space(queries, self.metric)
        threads = int(self.settings["build_threads"])
        build = Build(self, main.kind, main.code, threads, cancel, progress, lambda *_: None)
        known = np.zeros(main.high_water, np.bool_)
        known[main.rows] = True

        def live(start: int, stop: int) -> NDArray[np.bool_]:
            return known[start:stop]

        made = build.curve_on(main, x, live)
        if made is not None and self.on_device is not None:
            # Served from the moment on that the other one is installed.
            self.on_device.measure_again(main, lambda copy: build.curve_of(copy, x, live))
        return None if made is None else BuiltIndex(made)

    def build_side(
        self, *, cancel: threading.Event, folder: Path | None = None, main_file: str = ""
    ) -> int:
        """Lets a graph serve a filter that is asked often, see `side.py`; returns its rows, 0 for none.

        It is read where it is in a file, else built, and then written into `folder`, beside the `main_file` of the
        main index. Whatever goes wrong, it is not built again for the same main index.
        """
        if not self.fill(cancel):
            return 0
        return side_build.serve_next(self, self.sides, cancel, folder, main_file)

    def save(self, built: BuiltIndex, folder: Path) -> IndexRecord:
        """Write `built` durably into `folder`; the record belongs into the next commit.

        Until a commit names them the files are litter. StorageFull leaves nothing behind.
        """
        return files.save(self, built.main, folder)

    def load(self, record: IndexRecord, folder: Path) -> BuiltIndex:
        """The saved index of `record`, verified and mapped; Corrupted when it cannot be used. Its files may be
        deleted meanwhile, but not written."""
        return BuiltIndex(files.load(self, record, folder, behind=self.on_device is None))


def _live_in(main: Main, bits: Bits) -> int:
    return int(np.count_nonzero(unpack(bits, 0, main.high_water)[main.rows]))
