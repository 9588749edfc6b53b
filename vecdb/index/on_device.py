"""What of an index lies on devices, all live vectors or a copy of its main index: when it is placed there,
and when again."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from ..device import Device, Placed, Placements
from ..errors import Cancelled, LimitExceeded, VecdbError
from .calibrate import Curve
from .device_graph import DeviceGraph, graph_bytes_on_device, place_graph
from .device_main import DeviceMain, place_lists, why_not
from .distance import Floats, Rows
from .host_lists import device_bytes
from .joined import Attempts, Joiner
from .load import Load
from .main import Main
from .served import Served, slices
from .source import VectorSource
from .tiled import Tiled

log = logging.getLogger("vecdb")

_ROOM_FOR_FLOAT32 = 0.5
"""Share of the devices' budgets that one collection may take in float32; a larger one lies there in float16,
which takes half, is read twice as fast, and has each answer ranked again by the host."""
_ROOM = 0.9
_numbers = itertools.count(1)


class Moment(Protocol):
    """What is asked of a view."""

    n_rows: int
    n_live: int

    def live_mask(self, start: int = 0, stop: int | None = None) -> Any:
        """Whether rows are live."""


class OnDevice:
    """The placement of one index. One thread at a time places; any thread may ask.

    `names` are the devices that it may lie on; `asked_for` says that they were asked for, and not found by `auto`.
    """

    def __init__(
        self,
        placements: Placements,
        names: tuple[str, ...],
        asked_for: bool,
        dimension: int,
        metric: str,
        storage: str,
        settings: Mapping[str, Any],
    ) -> None:
        self.placements = placements
        self.names = names
        self.served: Served | None = None
        self.copy: DeviceMain | None = None
        self.tiled = None if storage == "binary" else Tiled(placements, names, dimension, metric)
        """Exact search of what does not lie there; None for bits, which no device compares."""
        self.joiner: Joiner | None = None
        """What joins the rows of graphs."""
        if storage != "binary":
            self.joiner = Joiner(placements, names, dimension, metric)
        self._attempts: tuple[Any, Attempts] = (None, Attempts())
        """A graph that was to be made on a device, and what came of that."""
        self._load = Load()
        self.wake: Callable[[], None] = lambda: None
        """Called by searches that found their vectors gone."""
        self._asked_for = asked_for
        self._dimension = dimension
        self._metric = metric
        self._storage = storage
        self._settings = settings

    def takes(self, kind: str, n_rows: int) -> bool:
        """Whether an index of this kind over so many rows is to be searched on a device: `exact` and `auto`,
        from the size on that the CPU takes a millisecond for, as long as there are devices with that much room; `auto`
        only as long as that does not keep them too busy, see `load.py`. A
        device whose worker has just died counts: another one is on its way. So do devices that nobody has needed
        yet, although their room is not known."""
        if kind not in ("exact", "auto") or self._storage == "binary":
            return False
        if n_rows * self._dimension <= self._settings["exact_max_scalars"]:
            return False
        if kind == "auto" and self._load.high:
            return False
        if not self.placements.started:
            return True
        return self._fits(n_rows)

    def wants(self, view: Moment, least_fresh: int) -> bool:
        """Whether placing now would pay: a device is up, and nothing lies there, or much is new or dead."""
        if not self.placements.started:
            return True
        if not self.placements.among(self.names):
            return False
        served = self.served
        if served is None or not served.there:
            return True
        fresh = view.n_rows - served.high_water
        many = (
            fresh >= least_fresh and fresh > self._settings["index_tail_share"] * served.rows.size
        )
        dead = served.rows.size + fresh - view.n_live
        return bool(many or dead > self._settings["index_dead_share"] * served.rows.size)

    def place(
        self, view: Moment, source: VectorSource, cancel: threading.Event
    ) -> tuple[Served, Served | None] | None:
        """Copies the live vectors of `view` to devices; what serves now, and what served before, which the
        caller lets go of. None when cancelled, and where they turn out to have no room. DeviceFull, DeviceLost.

        Starts devices that were not needed before, which takes seconds."""
        if not self._fits(view.n_live):
            return None
        rows: Rows = np.flatnonzero(view.live_mask())
        if not rows.size:
            return None
        size = 4 * rows.size * self._dimension
        code = "float16"
        if self._storage == "float32" and size <= _ROOM_FOR_FLOAT32 * self._budget():
            code = "float32"
        longest = [0.0]

        def check() -> None:
            if cancel.is_set():
                raise Cancelled("placing on a device was cancelled")

        def make(device: Device, start: int, stop: int) -> Placed:
            return device.place_flat(
                self._dimension,
                "l2" if self._metric == "l2" else "ip",
                code,
                stop - start,
                slices(source, rows[start:stop], self._metric, self._storage, longest),
                check,
            )

        key = ("vectors", next(_numbers))
        needed = size if code == "float32" else size // 2
        try:
            self.placements.place(key, needed, rows.size, make, among=self.names)
        except Cancelled:
            return None
        before = self.served
        self.served = Served(
            self.placements, key, rows, view.n_rows, self._metric, code, longest[0],
            lambda: self.wake(), self._note_load,
        )  # fmt: skip
        return self.served, before

    def _note_load(self, busy_s: float, batches: int, queries: int) -> None:
        if self._load.note(busy_s, batches, queries):
            log.info("exact search keeps %s too busy: auto builds an index", ", ".join(self.names))
            self.wake()

    def takes_main(self, main: Main) -> bool:
        """Whether a copy of `main` is to be searched on a device: a graph, or lists in a code that a card has, of
        rows that take the CPU a millisecond to compare, where one device has room for it."""
        large = main.n * self._dimension > self._settings["exact_max_scalars"]
        return large and not self._why_not(main)

    def wants_main(self, main: Main) -> bool:
        """Whether placing `main` now would pay: a device is up, and no copy of it lies there."""
        copy = self.copy
        if copy is not None and copy.host.index is main.index and copy.there:
            return False
        up = self.placements.among(self._names_for(main))
        return bool(up) and self.takes_main(main)

    def place_main(
        self, main: Main, source: VectorSource, cancel: threading.Event
    ) -> DeviceMain | None:
        """Copies `main` to a device, or makes a graph there that stands for it, instead of what lay there; None
        when cancelled. DeviceFull, DeviceLost."""
        self.leave()
        names, number = self._names_for(main), next(_numbers)

        def gone() -> None:
            self.wake()

        if main.kind == "hnsw":
            if self._attempts[0] is not main.index:
                self._attempts = main.index, Attempts()
            self.copy = place_graph(
                main, self.placements, names, ("graph", number), gone, self._metric, source,
                self._attempts[1], cancel,
            )  # fmt: skip
        else:
            self.copy = place_lists(main, self.placements, names, ("lists", number), gone, cancel)
        return self.copy

    def copy_of(self, main: Main | None) -> DeviceMain | None:
        """What lies on a device of this very main index, never of an older one."""
        copy = self.copy
        if copy is None or main is None or copy.host.index is not main.index:
            return None
        if copy.host is not main:
            copy = self.copy = copy.of(main)
        return copy

    def measure_again(self, main: Main, measure: Callable[[DeviceGraph], Curve | None]) -> None:
        """Gives the graph on a device that stands for `main`, where there is one, the curve that `measure` finds."""
        copy = self.copy_of(main)
        if isinstance(copy, DeviceGraph):
            curve = measure(copy)
            if curve is not None:
                self.copy = copy.with_device_curve(curve)

    def note_of(self, main: Main | None) -> str:
        """Why a device that was asked for cannot search `main`; empty where it can, and where none was asked for."""
        if main is None or not self._asked_for:
            return ""
        what = self._why_not(main)
        return f"{', '.join(self.names)} cannot search {what}" if what else ""

    def kmeans(
        self,
        sample: Floats,
        lists: int,
        rounds: int,
        spherical: bool,
        seed: int,
        check: Callable[[], None],
    ) -> Floats | None:
        """Centroids (lists, d) float32 of `sample` (n, d) float32 by the device with most room; None where none is
        up, or it fails in the middle. `check` is called between rounds, and may raise."""
        device = self._roomiest()
        if device is None:
            return None
        try:
            return device.kmeans(sample, lists, rounds, spherical, seed, check)
        except VecdbError as error:
            log.warning("the CPU trains %d lists, as a device did not: %s", lists, error.message)
            return None

    @contextmanager
    def nearest(self, centroids: Floats) -> Iterator[Callable[[Floats], Rows | None]]:
        """A function that says which of `centroids` (lists, d) float32 is nearest to each of (n, d) vectors; None where no
        device is up or it cannot say, then the CPU has to. They lie on the device with most room meanwhile."""
        device, placed = self._roomiest(), None
        metric = "l2" if self._metric == "l2" else "ip"
        try:
            if device is not None:
                rows, dimension = centroids.shape
                placed = device.place_flat(dimension, metric, "float32", rows, [centroids])
        except VecdbError as error:
            log.warning("the CPU assigns rows to lists, as a device did not: %s", error.message)

        def ask(vectors: Floats) -> Rows | None:
            nonlocal placed
            if device is None or placed is None:
                return None
            try:
                found = device.search(placed.handle, placed.generation, vectors, 1, 0)[1][:, 0]
            except LimitExceeded:
                return None  # many queries wait just now
            except VecdbError as error:
                log.warning("the CPU assigns rows to lists, as a device did not: %s", error.message)
                placed = None
                return None
            return found if (found >= 0).all() else None

        try:
            yield ask
        finally:
            if device is not None and placed is not None:
                device.drop(placed.handle, placed.generation)

    def _roomiest(self) -> Device | None:
        """The device with most room of those that are up."""
        up = self.placements.among(self.names)
        return max(up, key=self.placements.room) if up else None

    def keep_only(self, main: Main | None) -> None:
        """Gives the memory back of all that is not of this main index."""
        if self.copy_of(main) is None:
            copy, self.copy = self.copy, None
            if copy is not None:
                copy.leave()
        if main is not None:
            served, self.served = self.served, None
            if served is not None:
                served.leave()

    def leave(self) -> None:
        """Gives the memory of the devices back."""
        served, self.served = self.served, None
        copy, self.copy = self.copy, None
        for one in (served, copy):
            if one is not None:
                one.leave()

    def _fits(self, n_rows: int) -> bool:
        return 2 * n_rows * self._dimension <= _ROOM * self._budget()

    def _names_for(self, main: Main) -> tuple[str, ...]:
        """The devices that can search `main`."""
        if main.kind != "hnsw":
            return self.names
        known = self.placements.devices
        return tuple(d.name for d in known if d.name in self.names and d.info.graphs)

    def _why_not(self, main: Main) -> str:
        """What devices cannot search of `main`, as they are; empty where one can."""
        graphs = any(d.info.graphs for d in self.placements.devices if d.name in self.names)
        what = why_not(main, graphs)
        if what:
            return what
        if self._attempts[0] is main.index and self._attempts[1].spent:
            return "a graph that killed its worker again and again"
        name, size = "a graph" if main.kind == "hnsw" else "lists", self._bytes(main)
        return f"{name} of {size:,} bytes" if size > self.room else ""

    def _bytes(self, main: Main) -> int:
        """Memory that placing `main` takes on a device, estimated."""
        if main.kind == "hnsw":
            return graph_bytes_on_device(main, self._metric, self._dimension)
        return device_bytes(main.index)

    def _budget(self) -> int:
        return sum(self._budgets())

    @property
    def room(self) -> int:
        """Bytes that what lies in one piece may take."""
        return int(_ROOM * max(self._budgets(), default=0))

    def _budgets(self) -> list[int]:
        return [
            one.budget_bytes
            for one in self.placements.devices
            if one.name in self.names and not one.down
        ]
