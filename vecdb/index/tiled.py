"""Exact search on a device of rows that do not lie there: read from the store, and compared tile by tile.

What is no placement's business goes this way: a collection that does not fit even in float16, and a filter that
leaves a small share of many rows. Rows that are dead or not allowed are left out before anything is sent, so that no
answer has to be taken back. While a device compares one tile, the next ones are read.

A tile crosses the bus for one batch of queries only, so few queries never pay, and whether many do depends on
bus, card, store and host. That is measured and not guessed: a tile is compared by both, for so many queries and
answers, before the first such search, and each search that goes this way corrects what is known of it.

Answers are those of the stored vectors. Candidates that the device names are ranked again by these; a
squared distance, which it computes by expansion, counts only when no row outside the candidates can belong to the
answer, and the host reads all rows for a query without that proof.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..device import Device, Placements
from ..errors import Cancelled, DeviceFull, DeviceLost, FailedPrecondition
from ..selection import Selection
from ..turns import Wait, waits_here
from .blocks import FloatBlock
from .distance import Floats, Merger, Rows, padded, to_distances
from .door import CORES, faiss_metric
from .live import Bits, is_set
from .source import VectorSource, exact_space, scan, true_keys
from .trace import Trace

PLAN = "tiled"
MOST_TOGETHER = 1_024
"""Queries that share the way of a tile over the bus, at most."""
LEAST_QUERIES = 8
LEAST_PAIRS = 1 << 31
"""Numbers that are to be compared, at least: some 50 ms of two cores. Below that nothing is measured."""
_THREADS = max(2, min(8, CORES))
"""For each device: one waits for it, and the others read. A core of an AMD EPYC (Zen 4) that is busy with other work
too reads 16 MiB of 384 float32 in 2.4 ms where all rows are wanted, in 11 where they are picked, and in 10 to 19
where they get unit length as well: no faster than a bus takes them."""
_EXTRA = 16
_KEPT_S = 60.0
"""A measurement is made again after so long: by then the machine may do other things, or the store be in memory."""
_REST_S = 5.0
"""After a failure the host answers for so long, so that not every search begins in vain."""
_LOOK_S = 0.1
"""How often a search that waits for a tile asks whether it should go on."""
_DENSE = 4
"""Rows that are at least a fourth of their range are cut out of it, fewer are read one by one."""
_HOST_QUERIES = 128
"""So many are compared by the host with a tile to know its rate: it is the same for more."""
Check = Callable[[], None]


class Seen(Protocol):
    """What is asked of the view that is searched."""

    n_rows: int
    n_live: int
    live: Bits
    source: VectorSource

    def live_mask(self, start: int = 0, stop: int | None = None) -> NDArray[np.bool_]:
        """Whether rows are live."""


@dataclass(frozen=True, slots=True)
class _Rates:
    """Seconds for a number of a row that is compared with all queries, until `until_s`."""

    device_s: float
    host_s: float
    until_s: float


class Tiled:
    """Any thread may search. `names` are the devices that may be used."""

    def __init__(
        self, placements: Placements, names: tuple[str, ...], dimension: int, metric: str
    ) -> None:
        """`metric` is l2, cosine or ip."""
        self._placements = placements
        self._names = names
        self._dimension = dimension
        self._metric = metric
        self._lock = threading.Lock()
        self._rates: dict[tuple[int, int, bool], _Rates] = {}
        self._rest_until_s = 0.0
        self._note = ""

    def together(
        self, view: Seen, count: int, k: int, allowed: Selection | None, wait: Wait
    ) -> int:
        """How many of `count` queries should be searched in one call; 0 where the host is to answer. What the `wait` says."""
        most = min(count, MOST_TOGETHER)
        if time.monotonic() < self._rest_until_s or not self._is_much(view, most, allowed):
            return 0
        try:
            devices, rows = self._within(k), _wanted(view, allowed)
            paid = devices and rows.size and self._pays(view, most, k, rows, devices, wait)
        except (DeviceLost, DeviceFull, FailedPrecondition) as error:
            self._failed(error.message)
            return 0
        return most if paid else 0

    def answer(
        self,
        view: Seen,
        x: Floats,
        k: int,
        allowed: Selection | None,
        trace: Trace | None,
        check: Check,
        counted: bool = False,
    ) -> tuple[Floats, Rows] | None:
        """Distances and rows (q, k) of the nearest live and allowed rows, exact, nearest first, ties by row; NaN and
        -1 where there are fewer. None where the host had better answer, or must: then `trace` has a note.

        `x` (q, d) is in the index's space. `check` is called between tiles and may raise. `counted`: these queries are among
        `Placements.taken_over` already, since what lay on a device failed.
        """
        if not self._is_much(view, len(x), allowed):
            return None
        taken_over = 0 if counted else len(x)
        if time.monotonic() < self._rest_until_s:
            return self._told(trace, taken_over)
        devices = self._within(k)
        rows = _wanted(view, allowed)
        if not devices or not rows.size:
            if not self._placements.among(self._names):
                self._note = (
                    f"{', '.join(self._names)} {'is' if len(self._names) == 1 else 'are'} not up"
                )
                return self._told(trace, taken_over)
            return None
        try:
            if not self._pays(view, len(x), k, rows, devices, waits_here()):
                return None
            begun = time.perf_counter()
            keys, found = self._through(view.source, devices, x, _width(k), rows, check)
        except (DeviceLost, DeviceFull, FailedPrecondition) as error:
            self._failed(error.message)
            return self._told(trace, taken_over)
        self._note = ""
        out = self._ranked(view, x, k, keys, found, rows, allowed, trace, check)
        self._learn(len(x), k, rows, time.perf_counter() - begun)
        if trace is not None:
            numbers = sorted(int(one.name.removeprefix("gpu:")) for one in devices)
            trace.device = "gpu:" + ",".join(map(str, numbers))
            trace.device_note = ""  # of what lies there, which may have failed before
            trace.plan = PLAN
            trace.allowed_rows = trace.main_rows_compared = rows.size
            trace.candidates = found.shape[1]
        return out

    # -- whether

    def _is_much(self, view: Seen, queries: int, allowed: Selection | None) -> bool:
        if not self._placements.started:
            return False  # starting them takes longer than any search here
        count = view.n_live if allowed is None else min(view.n_live, allowed.count())
        return queries >= LEAST_QUERIES and queries * count * self._dimension >= LEAST_PAIRS

    def _within(self, k: int) -> list[Device]:
        """The devices that are up and give so many answers; none when one of them does not."""
        up = self._placements.among(self._names)
        return up if all(_width(k) <= one.info.limits.k for one in up) else []

    def _pays(
        self,
        view: Seen,
        queries: int,
        k: int,
        rows: Rows,
        devices: Sequence[Device],
        wait: Wait,
    ) -> bool:
        key = _key(queries, k, rows)
        known = self._rates.get(key)
        if known is None or time.monotonic() > known.until_s:
            known = self._measured(view.source, queries, k, rows, devices, wait)
            with self._lock:
                self._rates[key] = known
        return known.device_s < known.host_s

    def _measured(
        self,
        source: VectorSource,
        queries: int,
        k: int,
        rows: Rows,
        devices: Sequence[Device],
        wait: Wait,
    ) -> _Rates:
        """Both rates by the first tile of these rows, which costs that tile and a little of the host's time.

        The host's is that of float32 vectors in memory. Where the index holds codes it is slower, and goes on
        answering a little longer than it should.
        """
        one = devices[0]
        part = rows[: self._tile_rows(devices)]
        begun = time.perf_counter()
        vectors = self._read(source, part)
        read_s = time.perf_counter() - begun
        x = np.resize(vectors, (queries, self._dimension))
        # Whatever the first call prepares.
        one.compare(x[:1], vectors[:1], 1, self._scores, wait=wait)
        begun = time.perf_counter()
        one.compare(x, vectors, _width(k), self._scores, wait=wait)
        compare_s = time.perf_counter() - begun
        block, some = FloatBlock(vectors, faiss_metric(self._metric)), x[:_HOST_QUERIES]
        begun = time.perf_counter()
        block.search(some, k)
        host_s = (time.perf_counter() - begun) * queries / len(some)
        device_s = max(compare_s, read_s / (_THREADS - 1)) / len(devices)
        return _Rates(device_s / vectors.size, host_s / vectors.size, time.monotonic() + _KEPT_S)

    def _learn(self, queries: int, k: int, rows: Rows, took_s: float) -> None:
        """What a whole search took says more than one tile did."""
        with self._lock:
            known = self._rates.get(key := _key(queries, k, rows))
            if known is not None:
                seen_s = took_s / (rows.size * self._dimension)
                device_s = 0.5 * (known.device_s + seen_s)
                self._rates[key] = _Rates(device_s, known.host_s, known.until_s)

    def _failed(self, why: str) -> None:
        self._note = why
        self._rest_until_s = time.monotonic() + _REST_S

    def _told(self, trace: Trace | None, queries: int) -> tuple[Floats, Rows] | None:
        """None: the host answers although the device would have, and `trace` says why."""
        if queries:
            self._placements.taken_over.add(queries)
        if trace is not None and not trace.device_note:
            trace.device_note = f"{self._note}; answered by the CPU"
        return None

    # -- how

    @property
    def _scores(self) -> str:
        return "l2" if self._metric == "l2" else "ip"

    def _tile_rows(self, devices: Sequence[Device]) -> int:
        """Rows that a device takes in one request."""
        return max(1, min(one.tile_bytes for one in devices) // (4 * self._dimension))

    def _read(self, source: VectorSource, rows: Rows) -> Floats:
        """Stored vectors of ascending `rows` to be compared."""
        first, stop = int(rows[0]), int(rows[-1]) + 1
        if stop - first == rows.size:
            stored = source.range(first, stop)
        elif stop - first <= _DENSE * rows.size:
            stored = source.range(first, stop).take(rows - first, axis=0)
        else:
            stored = source.rows(rows)
        vectors: Floats = exact_space(stored, self._metric)
        return vectors

    def _through(
        self,
        source: VectorSource,
        devices: Sequence[Device],
        x: Floats,
        width: int,
        rows: Rows,
        check: Check,
    ) -> tuple[Floats, Rows]:
        """Keys, as the device computes them, and rows (q, <= width) of the nearest of `rows`, in no order."""
        step = self._tile_rows(devices)
        merger = Merger(width)
        ended = threading.Event()

        def stopped() -> None:
            if ended.is_set():
                raise Cancelled("the search has ended")

        wait = Wait(waits_here().end, stopped)

        def compare(device: Device, part: Rows) -> tuple[Floats, Rows]:
            stopped()
            vectors = self._read(source, part)
            most = min(width, len(part))
            scores, at = device.compare(x, vectors, most, self._scores, check, wait)
            keys = scores if self._metric == "l2" else -scores
            missing = at < 0
            return np.where(missing, np.float32(np.inf), keys), np.where(missing, -1, part[at])

        threads = _THREADS * len(devices)
        waiting: deque[Future[tuple[Floats, Rows]]] = deque()
        with ThreadPoolExecutor(threads, "vecdb-tiles") as pool:
            try:
                for number, start in enumerate(range(0, rows.size, step)):
                    check()
                    if len(waiting) == threads:
                        merger.add(*_answer(waiting.popleft(), check))
                    device = devices[number % len(devices)]
                    waiting.append(pool.submit(compare, device, rows[start : start + step]))
                while waiting:
                    merger.add(*_answer(waiting.popleft(), check))
            finally:
                ended.set()
        return merger.best(len(x))

    def _ranked(
        self,
        view: Seen,
        x: Floats,
        k: int,
        keys: Floats,
        found: Rows,
        rows: Rows,
        allowed: Selection | None,
        trace: Trace | None,
        check: Check,
    ) -> tuple[Floats, Rows]:
        """The k best candidates by the stored vectors, proven or read again by the host."""
        begun = time.perf_counter()
        true = true_keys(x, view.source, found, self._metric)
        near = np.where(found < 0, np.float32(np.nan), to_distances(true, self._metric))
        order = np.lexsort((found, near), axis=1)[:, :k]
        best = padded(np.take_along_axis(near, order, 1), k, np.nan)
        best_rows = padded(np.take_along_axis(found, order, 1), k, -1)
        open_ = np.flatnonzero(~self._certain(x, k, keys, true, found, rows))
        if open_.size:
            mask = None if allowed is None else allowed.mask()

            def wanted(start: int, stop: int) -> NDArray[np.bool_]:
                live = view.live_mask(start, stop)
                return live if mask is None else live & mask[start:stop]

            merger, some = Merger(k), np.ascontiguousarray(x[open_])
            merger.add(*scan(some, k, self._metric, view.source, view.n_rows, wanted, check))
            best[open_], best_rows[open_] = merger.result(open_.size, self._metric)
        if trace is not None:
            trace.rerank_us += 1e6 * (time.perf_counter() - begun)
        return best, best_rows

    def _certain(
        self, x: Floats, k: int, keys: Floats, true: Floats, found: Rows, rows: Rows
    ) -> NDArray[np.bool_]:
        """Which queries (q,) have all that belongs to their answer among the candidates.

        Inner products are as the host computes them. A squared distance by expansion is off by no more than
        in `FloatBlock`, where the bound is explained.
        """
        there: NDArray[np.bool_] = np.logical_and.reduce(found >= 0, axis=1)
        if found.shape[1] >= rows.size:
            return there
        there &= np.logical_and.reduce(np.isfinite(keys), axis=1)
        if self._metric != "l2":
            return there
        lengths = np.einsum("qd,qd->q", x, x)
        kth = np.partition(true, k - 1, axis=1)[:, k - 1]
        reach = np.sqrt(lengths) + np.sqrt(kth)
        scale = np.float32(2.0**-24 * (16.0 + 2.0 * np.sqrt(self._dimension)))
        there &= keys.max(axis=1) - scale * (lengths + reach * reach) > kth
        return there


def _answer(waiting: Future[tuple[Floats, Rows]], check: Check) -> tuple[Floats, Rows]:
    """The answer of a tile; `check` is called before and meanwhile, and may raise."""
    check()
    while not futures.wait([waiting], _LOOK_S).done:
        check()
    return waiting.result()


def _wanted(view: Seen, allowed: Selection | None) -> Rows:
    """Live and allowed rows, ascending."""
    if allowed is None:
        return np.flatnonzero(view.live_mask())
    if allowed.is_list:
        rows = allowed.rows()
        return rows[is_set(view.live, rows)]
    return np.flatnonzero(view.live_mask() & allowed.mask())


def _width(k: int) -> int:
    """Candidates that a device is asked for."""
    return k + _EXTRA + k // 8


def _key(queries: int, k: int, rows: Rows) -> tuple[int, int, bool]:
    """What rates depend on: queries and answers, to a factor of two, and how the rows are read."""
    dense = int(rows[-1]) + 1 - int(rows[0]) <= _DENSE * rows.size
    return queries.bit_length(), k.bit_length(), dense
