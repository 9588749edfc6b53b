"""A graph that a device walks: CAGRA over the vectors of a main index that has a graph on the host.

The two graphs share positions, not links: the one on the device is made there, and has a curve of its own,
by itopk, which is what it keeps of candidates. The curve is measured while it is placed: a graph is made of all but
the last positions, these are its queries, and then one is made of all. The last positions are those that the host's
curve was measured on, or the newest rows. Exact answers come from the device too, which compares all vectors in
milliseconds: those that are beneath the graph, and lie there once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..device import Device, Limits, Placed, Placements
from ..device.card import MOST_ITOPK
from ..errors import Cancelled
from . import calibrate
from .blocks import as_keys
from .calibrate import Curve
from .device_main import DeviceMain, Unanswered
from .distance import Floats, Rows
from .door import INNER_PRODUCT
from .flat_there import scan_queries
from .joined import Attempts, joining_bytes
from .main import Main
from .served import Served
from .source import READ_ROWS, VectorSource, true_keys

SETTING_NAME = "itopk"
SETTINGS = (32, 64, 96, 128, 160, 192, 256, 320, 384, 512, 768, MOST_ITOPK)
"""A card rounds up to multiples of 32."""
_EXTRA = 64
"""Candidates beyond k that are compared again for an exact answer, by stored vectors: what a card compares is
rounded, to float16 where codes are lossy."""
_LIMITS = Limits(k=MOST_ITOPK, nprobe=MOST_ITOPK)
_MEASURED_TOGETHER = 128
"""Queries of a call while recall is measured. A card walks in another way for few queries than for many, and finds less so at
small settings (itopk 64 over 1,000 clusters: 0.968 and 0.975): a curve is to hold for both."""


class DeviceGraph(DeviceMain):
    """See above, and `DeviceMain`. Its settings are itopk."""

    def __init__(
        self,
        host: Main,
        placements: Placements,
        key: object,
        gone: Callable[[], None],
        curve: Curve,
        metric: str,
    ) -> None:
        super().__init__(host, placements, key, _LIMITS, gone, curve, SETTING_NAME)
        self._named = metric
        # Else it has what codes say of the vectors, which proves nothing.
        if not host.lossy or (metric == "cosine" and host.code == "float16"):
            self.beneath = Served(
                placements, key, host.rows, host.high_water, metric, code_on_device(host, metric), 1.0, gone,
                lies_as="ip" if metric == "ip" else "l2",
            )  # fmt: skip

    def of(self, host: Main) -> DeviceGraph:
        """The same copy for another main index with the same positions; its curve stays."""
        return self._with(host, self.curve)

    def with_device_curve(self, curve: Curve) -> DeviceGraph:
        """The same copy with another curve."""
        return self._with(self.host, curve)

    def _with(self, host: Main, curve: Curve) -> DeviceGraph:
        made = DeviceGraph(host, self.placements, self.key, self._gone, curve, self._named)
        made.beneath = self.beneath  # with the masks that lie on the device
        return made

    def setting(self, target_recall: float, k: int) -> int | None:
        """`Main.setting` by the device's curve; Unanswered where the graph of the host reaches what this one does
        not."""
        found = super().setting(target_recall, k)
        if found is None and self.host.setting(target_recall, k) is not None:
            raise Unanswered(
                f"the graph of {self.names or 'the device'} does not reach a recall of {target_recall:g} at k = {k:,}"
            )
        return found

    def _keys(self, scores: Floats, positions: Rows) -> tuple[Floats, Rows]:
        return keys_of(scores, positions, self._named, self._metric)


def keys_of(scores: Floats, positions: Rows, metric: str, faiss_metric: int) -> tuple[Floats, Rows]:
    """What a graph or flat vectors on a device say, as keys of the host."""
    if metric != "cosine":
        return as_keys(scores, positions, faiss_metric)
    # They lie there under l2, which has the same order: |x - y|^2 = 2 - 2 xy where both are of unit length.
    return as_keys(1.0 - 0.5 * scores, positions, INNER_PRODUCT)


def code_on_device(main: Main, metric: str) -> str:
    """How vectors lie there. float16 where every answer is ranked again, and vectors are short enough for it."""
    return "float16" if main.lossy and metric == "cosine" else "float32"


def graph_bytes_on_device(main: Main, metric: str, dimension: int) -> int:
    """Memory of a device that placing takes, estimated; about half of it stays in use."""
    return joining_bytes(main.n, dimension, code_on_device(main, metric))


def place_graph(
    main: Main,
    placements: Placements,
    names: tuple[str, ...],
    key: object,
    gone: Callable[[], None],
    metric: str,
    source: VectorSource,
    attempts: Attempts,
    cancel: threading.Event,
) -> DeviceGraph | None:
    """Makes a graph over the vectors of `main` on one of these devices, and measures it; None when cancelled.
    DeviceFull, DeviceLost."""
    work = _Placing(main, metric, source, attempts, cancel)
    needed = graph_bytes_on_device(main, metric, work.dimension)
    try:
        placements.place(key, needed, main.n, work.make, divisible=False, among=names)
    except Cancelled:
        return None
    return DeviceGraph(main, placements, key, gone, work.curve, metric)


class _Placing:
    def __init__(
        self,
        main: Main,
        metric: str,
        source: VectorSource,
        attempts: Attempts,
        cancel: threading.Event,
    ) -> None:
        self.main = main
        self.metric = metric
        self.source = source
        self.cancel = cancel
        self._attempts = attempts
        self.dimension = int(main.index.d)
        self.curve = Curve((), main.n, 0)
        held = min(calibrate.MAX_HELD_OUT, max(calibrate.LEAST_HELD_OUT, main.n // 10))
        self._first = max(0, main.n - held)
        """Where the positions begin that are held out."""

    def check(self) -> None:
        if self.cancel.is_set():
            raise Cancelled("placing on a device was cancelled")

    def make(self, device: Device, start: int, stop: int) -> Placed:
        n, first = self.main.n, self._first
        flat = device.place_flat(
            self.dimension,
            "ip" if self.metric == "ip" else "l2",
            code_on_device(self.main, self.metric),
            first,
            self._slices(0, first),
            self.check,
            room=n - first,
        )
        try:
            part = self._attempts.graph(device, flat)
            try:
                self.curve = self._measured(device, flat, part)
            finally:
                device.drop(part.handle, part.generation)
            device.append(flat, self._slices(first, n), self.check)
            return self._attempts.graph(device, flat, takes_over=True)
        except BaseException:
            device.drop(flat.handle, flat.generation)
            raise

    def _slices(self, start: int, stop: int) -> Iterator[Floats]:
        for at in range(start, stop, READ_ROWS):
            yield self.main.block.take(np.arange(at, min(stop, at + READ_ROWS)))

    def _measured(self, device: Device, flat: Placed, graph: Placed) -> Curve:
        main = self.main
        faiss_metric = int(main.index.metric_type)
        queries = main.block.take(np.arange(self._first, main.n))

        def rank(some: Any, positions: Rows) -> Floats:
            rows = np.where(positions < 0, -1, main.rows[positions])
            return true_keys(some, self.source, rows, self.metric)

        # So few are compared by differences; by more at once l2 loses digits, and the truth with them.
        together = scan_queries(queries.shape[1]) if self.metric == "l2" else len(queries)

        def exact(some: Any, k: int) -> Floats:
            width = min(self._first, k + _EXTRA)
            parts = [
                device.search(flat.handle, flat.generation, some[at : at + together], width, 0)[1]
                for at in range(0, len(some), together)
            ]
            return np.sort(rank(some, np.concatenate(parts)), axis=1)[:, :k]

        def search(some: Any, k: int, setting: int) -> tuple[Floats, Rows]:
            itopk = max(setting, k)
            parts = [
                device.search(
                    graph.handle, graph.generation, some[at : at + _MEASURED_TOGETHER], k, itopk
                )
                for at in range(0, len(some), _MEASURED_TOGETHER)
            ]
            found = [np.concatenate([part[i] for part in parts]) for i in (0, 1)]
            if main.lossy:
                return keys_of(found[0], found[1], self.metric, faiss_metric)
            # Both sides of a comparison are computed alike.
            keys = rank(some, found[1])
            order = np.argsort(keys, axis=1, kind="stable")
            return np.take_along_axis(keys, order, 1), np.take_along_axis(found[1], order, 1)

        curve = calibrate.measure(
            queries, self._first, SETTINGS, calibrate.LARGE_K, calibrate.LARGE_K, exact, search,
            rank if main.lossy else None, self.cancel, lambda _: None,
        )  # fmt: skip
        if curve is None:
            raise Cancelled("placing on a device was cancelled")
        return curve
