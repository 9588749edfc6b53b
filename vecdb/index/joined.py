"""Graphs whose lowest level is joined by a device, and walked by the CPU.

All rows are in the lowest level, one in sixteen in the levels above, so nearly all of a build goes into the
lowest. CAGRA (Ootomo et al., ICDE 2024) makes a graph without levels that joins rows as HNSW's lowest level does. Here
a device makes that one, the CPU makes the levels above over the codes that it will walk over, and what comes of
it is an HNSW graph like any other: it is saved, grown and calibrated as such. FAISS has a class for it,
`IndexHNSWCagra`; that one brings the vectors along, and over float16 it has no upper levels and cannot grow.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..device import Device, Placed, Placements
from ..errors import DeviceFull, DeviceLost, FailedPrecondition
from .blocks import Block
from .codes import like, new_codes
from .distance import Floats, Rows
from .door import faiss
from .main import HNSW_M, Main, attach, empty_graph
from .makers import GraphMaker, Joining, Making
from .signed import as_added, between_bounds
from .source import READ_ROWS

log = logging.getLogger("vecdb")

DEGREE = 2 * HNSW_M
"""Links of a row: as many as HNSW's lowest level has room for."""
FREE = 4
"""Of these, links that are left free. Where all are taken, HNSW shortens the list of a row to a dozen when one is added beside
it: 11 % more rows then cost a twentieth of the recall (2,250 rows, efSearch 24: 0.971, then 0.921; with four
free 0.963, then 0.960), which no curve had seen."""
LEAST_ROWS = 20_000
"""Below it a graph takes the CPU a few seconds. A guess: how many rows a card must join to be quicker than 16 cores is not
measured."""
_MOST_LOST = 2
_SET_ROWS = 65_536
_numbers = itertools.count(1)


class Attempts:
    """Graphs that are made on devices, until that has killed two workers in a row: each takes along whatever lies
    on its device."""

    def __init__(self) -> None:
        self._lost = 0

    @property
    def spent(self) -> bool:
        """Whether it had better not be tried again."""
        return self._lost >= _MOST_LOST

    def graph(self, device: Device, flat: Placed, *, takes_over: bool = False) -> Placed:
        """`Device.place_graph` of degree DEGREE."""
        try:
            made = device.place_graph(flat, DEGREE, takes_over=takes_over)
        except DeviceLost:
            self._lost += 1
            raise
        self._lost = 0
        return made


class Joiner:
    """See `makers.Joining`: the devices that may join the rows of one index. Any thread may call."""

    def __init__(
        self, placements: Placements, names: tuple[str, ...], dimension: int, metric: str
    ) -> None:
        self._placements = placements
        self._names = names
        self._dimension = dimension
        self._metric = metric
        self._attempts = Attempts()
        self.joined = 0
        """Graphs whose links it gave."""
        self.missed = False
        """One of these did not reach the target: no other is joined."""

    def takes(self, rows: int) -> bool:
        """Whether a graph of so many rows is to be joined on a device: one that can is up and has a budget for
        it, and the rows are enough for that to be quicker; and no graph that was joined missed the target where the CPU's had to
        serve instead."""
        spent = self.missed or self._attempts.spent
        return rows >= LEAST_ROWS and not spent and self._code(rows) is not None

    def links(
        self, rows: int, slices: Callable[[], Iterable[Floats]], check: Callable[[], None]
    ) -> NDArray[np.int32]:
        """For each of so many rows those that it is joined to (rows, DEGREE), -1 where there are fewer.

        `slices()` gives their vectors (any, d) float32 in the index's space, in order; it may be called again.
        `check` is called now and then, but not while the device joins, and may raise. DeviceFull, DeviceLost,
        FailedPrecondition.
        """
        code = self._code(rows)
        if code is None:
            raise DeviceLost(f"no device is up that could join {rows:,} rows")
        key = ("to be joined", next(_numbers))

        def make(device: Device, start: int, stop: int) -> Placed:
            # The nearest by distance are those by inner product where all vectors are of one length.
            metric = "ip" if self._metric == "ip" else "l2"
            flat = device.place_flat(self._dimension, metric, code, rows, slices(), check)
            try:
                return self._attempts.graph(device, flat, takes_over=True)
            except BaseException:
                device.drop(flat.handle, flat.generation)
                raise

        needed = joining_bytes(rows, self._dimension, code)
        placement = self._placements.place(
            key, needed, rows, make, divisible=False, among=[d.name for d in self._devices()]
        )
        try:
            (shard,) = placement.shards
            found = shard.device.links(shard.placed, DEGREE, check)
        finally:
            self._placements.forget(key)
        if found.shape != (rows, DEGREE) or found.min() < -1 or found.max() >= rows:
            raise FailedPrecondition(f"{shard.device.name} gave no links of {rows:,} rows")
        self.joined += 1
        return found

    def _devices(self) -> list[Device]:
        return [d for d in self._placements.among(self._names) if d.info.graphs]

    def _code(self, rows: int) -> str | None:
        """The code that so many vectors lie in while they are joined; None where no device has the memory."""
        most = max((device.budget_bytes for device in self._devices()), default=0)
        # Vectors of any length may not fit float16, and graphs over inner products need float32.
        codes = ("float32", "float16") if self._metric == "cosine" else ("float32",)
        fitting = (c for c in codes if joining_bytes(rows, self._dimension, c) <= most)
        return next(fitting, None)


def joining_bytes(rows: int, dimension: int, code: str) -> int:
    """Memory of a device that joining takes, estimated: vectors and their lengths, links, and what cuVS works
    with, which are the vectors once more as float16, twice as many links, and lists of 32 candidates with distances."""
    a_vector = (2 if code == "float16" else 4) * dimension + 4
    return rows * (a_vector + 2 * dimension + 3 * 4 * DEGREE + 4 * 32 * 4)


class JoinedMaker(GraphMaker):
    """A graph made anew, joined by a device; by the CPU after all when that fails.

    While rows are added only the upper levels are made. The first call of `serving` has the lowest one
    joined, and what is added after it is added to all levels.
    """

    def __init__(self, build: Making, fresh: Rows, joiner: Joining) -> None:
        super().__init__(build, None, fresh)
        self._joiner: Joining | None = joiner
        self.graph.init_level0 = False

    def serving(self) -> tuple[Any, Block]:
        joiner, self._joiner = self._joiner, None
        if joiner is not None:
            self._join(joiner)
        return super().serving()

    def _join(self, joiner: Joining) -> None:
        rows = int(self.walk.ntotal)
        try:
            links = joiner.links(rows, self._slices, self.build.check)
        except (DeviceFull, DeviceLost, FailedPrecondition) as error:
            log.warning("a graph of %d rows is built by the CPU: %s", rows, error.message)
            self._by_cpu()
            return
        set_links(self.graph, links)
        self.graph.init_level0 = True

    def _slices(self) -> Iterable[Floats]:
        """The vectors of all rows, as the serving index knows them."""
        if self.arena is not None:
            return [self.arena.vectors[: self.arena.used]]
        walk, rows = self.walk, int(self.walk.ntotal)
        starts = range(0, rows, READ_ROWS)
        look = between_bounds(walk)
        return (look.reconstruct_n(start, min(READ_ROWS, rows - start)) for start in starts)

    def _by_cpu(self) -> None:
        job, old, slices = self.build.job, self.walk, self._slices()
        same = self.codes is old
        if isinstance(old, faiss.IndexScalarQuantizer):
            self.walk = like(old)
        else:
            self.walk = new_codes("float32", job.dimension, job.metric)
        if same:
            self.codes = self.walk
            if self.quantizer is old:
                self.quantizer = self.walk
        self.graph = empty_graph(job.dimension, job.metric)
        attach(self.graph, self.walk)
        for part in slices:
            for start in range(0, len(part), READ_ROWS):
                self.build.check()
                self.graph.add(as_added(self.walk, part[start : start + READ_ROWS]))


def set_links(graph: Any, links: NDArray[np.int32]) -> None:
    """Makes `links` (n, DEGREE) the lowest level of an HNSW graph of n rows, but for the last FREE of each row."""
    hnsw = graph.hnsw
    everything = faiss.rev_swig_ptr(hnsw.neighbors.data(), hnsw.neighbors.size())
    starts = faiss.vector_to_array(hnsw.offsets)[:-1].astype(np.int64)
    for first in range(0, len(links), _SET_ROWS):
        some = slice(first, first + _SET_ROWS)
        everything[starts[some, None] + np.arange(DEGREE - FREE)] = links[some, : DEGREE - FREE]


def graph_maker(build: Making, old: Main | None, fresh: Rows) -> GraphMaker:
    """What makes a graph of `fresh` rows, or grows `old` by them."""
    device = build.job.on_device
    joiner = None if device is None else device.joiner
    if old is None and build.code != "binary" and joiner is not None and joiner.takes(fresh.size):
        return JoinedMaker(build, fresh, joiner)
    return GraphMaker(build, old, fresh)
