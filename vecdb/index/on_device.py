"""What of an index lies on devices, all live vectors or a copy of its main index: when it is placed there,
and when again."""

from __future__ import annotations

import itertools
import logging
import re
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
from .main import Main, copied
from .served import LARGEST_HALF, Extent, Served, slices
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
        quantization: str,
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
        self._beyond_float16 = False
        """Whether numbers were met that float16 cannot hold."""
        self.wake: Callable[[], None] = lambda: None
        """Called by searches that found their vectors gone."""
        self.asked_for = asked_for
        self.failed = ""
        """Why the last placing failed; empty where it did not."""
        self._told: set[str] = set()
        self._dimension = dimension
        self._metric = metric
        self._storage = storage
        self._coded = quantization not in ("auto", "none")
        """Codes were asked for: vectors lie there as float16, the smallest that a device compares one by one."""
        self._settings = settings

    def takes(self, kind: str, n_rows: int) -> bool:
        """Whether an index of this kind over so many rows is to be searched on a device: `exact` and `auto`,
        from the size on that the CPU takes a millisecond for, as long as there are devices with that much room; `auto`
        only as long as that does not keep them too busy, see `load.py`. A
        device whose worker has just died counts: another one is on its way. So do devices that nobody has needed
        yet, although their room is not known."""
        if kind not in ("exact", "auto") or self._storage == "binary":
            return False
        if not self.is_large(n_rows):
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
        if not self._enough_up(self.names, self._code_and_bytes(view.n_live)[1]):
            return False
        served = self.served
        if served is None or not served.there:
            return True
        lie, fresh = served.rows.size, view.n_rows - served.high_water
        if not self._many(lie, fresh, fresh, view.n_live, least_fresh):
            return False
        # Rows that never had this vector are among them: they are neither fresh nor dead.
        live = int(np.count_nonzero(view.live_mask(served.high_water, view.n_rows)))
        return self._many(lie, live, live, view.n_live, least_fresh)

    def _many(self, lie: int, fresh: int, behind: int, live: int, least_fresh: int) -> bool:
        """Whether much is new or dead, where of the `live` rows at most `behind` lie nowhere yet."""
        many = fresh >= least_fresh and fresh > self._settings["index_tail_share"] * lie
        dead = lie + behind - live
        return bool(many or dead > self._settings["index_dead_share"] * lie)

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
        code, needed = self._code_and_bytes(rows.size)
        extent = Extent()

        def check() -> None:
            if cancel.is_set():
                raise Cancelled("placing on a device was cancelled")

        def make(device: Device, start: int, stop: int) -> Placed:
            return device.place_flat(
                self._dimension,
                "l2" if self._metric == "l2" else "ip",
                code,
                stop - start,
                slices(source, rows[start:stop], self._metric, self._storage, extent),
                check,
            )

        key = ("vectors", next(_numbers))
        try:
            self.placements.place(key, needed, rows.size, make, among=self.names)
        except Cancelled:
            return None
        if code == "float16" and extent.largest > LARGEST_HALF:
            log.info("numbers up to %.3g do not lie on a device as float16", extent.largest)
            self.placements.forget(key)
            self._beyond_float16 = True
            return self.place(view, source, cancel)
        before = self.served
        self.served = Served(
            self.placements, key, rows, view.n_rows, self._metric, code, extent.longest,
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
        return self.is_large(main.n) and not self.cannot(main)

    def wants_main(self, main: Main) -> bool:
        """Whether placing `main` now would pay: a device is up, and no copy of it lies there."""
        copy = self.copy
        if copy is not None and copy.host.index is main.index and copy.there:
            return False
        whole = main.kind == "hnsw"
        up = self._enough_up(self._names_for(main), self._bytes(main), whole)
        return up and self.takes_main(main)

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

    @property
    def is_binary(self) -> bool:
        """Whether the vectors are bits, which no device compares."""
        return self._storage == "binary"

    @property
    def too_busy(self) -> bool:
        """Whether exact search takes so much of the devices that `auto` builds an index instead."""
        return self._load.high

    def is_large(self, n_rows: int) -> bool:
        """Whether so many rows take the CPU a millisecond and more to compare."""
        return bool(n_rows * self._dimension > self._settings["exact_max_scalars"])

    def is_news(self, why: str) -> bool:
        """Whether this reason for not using a device, whatever the numbers in it, has not been told before."""
        words = re.sub(r"[\d,]+", "", why)
        if words in self._told:
            return False
        self._told.add(words)
        return True

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
            self._tell_of_none("trains lists")
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
        if device is None:
            self._tell_of_none("assigns rows to lists")
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

    def _tell_of_none(self, what: str) -> None:
        if self.asked_for:
            log.warning("the CPU %s, as %s is not up", what, ", ".join(self.names))

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
        served = self.served
        if served is None or main is None:
            return
        if copied(main) is not None or served.high_water < main.high_water:
            self.served = None
            served.leave()

    def leave(self) -> None:
        """Gives the memory of the devices back."""
        served, self.served = self.served, None
        copy, self.copy = self.copy, None
        for one in (served, copy):
            if one is not None:
                one.leave()

    def least_bytes(self, n_rows: int) -> int:
        """What the vectors of so many rows take on a device at least: as float16, if that can hold their numbers."""
        return (4 if self._beyond_float16 else 2) * n_rows * self._dimension

    def _code_and_bytes(self, n_rows: int) -> tuple[str, int]:
        """How the vectors of so many rows are to lie there, and what they take."""
        size = 4 * n_rows * self._dimension
        roomy = self._storage == "float32" and not self._coded
        roomy = roomy and size <= _ROOM_FOR_FLOAT32 * self._budget()
        return ("float32", size) if roomy or self._beyond_float16 else ("float16", size // 2)

    def _enough_up(self, names: tuple[str, ...], needed: int, whole: bool = False) -> bool:
        """Whether a device is up, and those that are have room for so many bytes (one of them, for what is placed `whole`),
        unless no other is on its way."""
        known = [d for d in self.placements.devices if d.name in names and not d.down]
        rooms = [d.budget_bytes for d in known if d.up]
        if not rooms:
            return False
        return len(rooms) == len(known) or needed <= (max(rooms) if whole else sum(rooms))

    def _fits(self, n_rows: int) -> bool:
        return self.least_bytes(n_rows) <= _ROOM * self._budget()

    def _names_for(self, main: Main) -> tuple[str, ...]:
        """The devices that can search `main`."""
        if main.kind != "hnsw":
            return self.names
        known = self.placements.devices
        return tuple(d.name for d in known if d.name in self.names and d.info.graphs)

    def cannot(self, main: Main) -> str:
        """What devices cannot search of `main`, as they are; empty where one can. Starts them."""
        graphs = any(d.info.graphs for d in self.placements.devices if d.name in self.names)
        what = why_not(main, graphs)
        if what:
            return what
        if self._attempts[0] is main.index and self._attempts[1].spent:
            return "a graph that killed its worker again and again"
        size = self._bytes(main)
        if main.kind == "hnsw":
            return f"a graph of {size:,} bytes" if size > self._largest_room else ""
        return f"lists of {size:,} bytes" if size > self.room else ""

    def _bytes(self, main: Main) -> int:
        """Memory that placing `main` takes on a device, estimated."""
        if main.kind == "hnsw":
            return graph_bytes_on_device(main, self._metric, self._dimension)
        return device_bytes(main.index)

    def _budget(self) -> int:
        return sum(self._budgets())

    @property
    def room(self) -> int:
        """Bytes that lists may take, which are divided among devices where none has room for all."""
        return int(_ROOM * self._budget())

    @property
    def _largest_room(self) -> int:
        """Bytes that what lies in one piece may take."""
        return int(_ROOM * max(self._budgets(), default=0))

    def _budgets(self) -> list[int]:
        return [
            one.budget_bytes
            for one in self.placements.devices
            if one.name in self.names and not one.down
        ]
