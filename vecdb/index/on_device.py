"""What of an index lies on devices: when it is placed there, and when again."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from ..device import Device, Placed, Placements
from ..errors import Cancelled
from .distance import Rows
from .served import Served, slices
from .source import VectorSource
from .tiled import Tiled

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

    `names` are the devices that it may lie on.
    """

    def __init__(
        self,
        placements: Placements,
        names: tuple[str, ...],
        dimension: int,
        metric: str,
        storage: str,
        settings: Mapping[str, Any],
    ) -> None:
        self.placements = placements
        self.names = names
        self.served: Served | None = None
        self.tiled = None if storage == "binary" else Tiled(placements, names, dimension, metric)
        """Exact search of what does not lie there; None for bits, which no device compares."""
        self.wake: Callable[[], None] = lambda: None
        """Called by searches that found their vectors gone."""
        self._dimension = dimension
        self._metric = metric
        self._storage = storage
        self._settings = settings

    def takes(self, kind: str, n_rows: int) -> bool:
        """Whether an index of this kind over so many rows is to be searched on a device: `exact` and `auto`,
        from the size on that the CPU takes a millisecond for, as long as there are devices with that much room. A
        device whose worker has just died counts: another one is on its way. So do devices that nobody has needed
        yet, although their room is not known."""
        if kind not in ("exact", "auto") or self._storage == "binary":
            return False
        if n_rows * self._dimension <= self._settings["exact_max_scalars"]:
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
            lambda: self.wake(),
        )  # fmt: skip
        return self.served, before

    def leave(self) -> None:
        """Gives the memory of the devices back."""
        served, self.served = self.served, None
        if served is not None:
            served.leave()

    def _fits(self, n_rows: int) -> bool:
        return 2 * n_rows * self._dimension <= _ROOM * self._budget()

    def _budget(self) -> int:
        return sum(
            one.budget_bytes
            for one in self.placements.devices
            if one.name in self.names and not one.down
        )
