"""A card of numpy, for tests and for machines without a GPU: what it answers is right, and what it
refuses a GPU refuses.

It enforces what a GPU enforces: k and nprobe of at most 2048, masks for flat vectors alone (or none), no removal of
rows, a limit of memory, one thread. Lists and the links of graphs need FAISS, which only `vecdb/index/` may import: they
come in as `ListsReader` and `Joiner`, made in `vecdb/index/host_lists.py` and handed in by
`vecdb/gpu_worker.py`. Without them the stand-in refuses lists and links.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .card import (
    SCAN_DIMENSIONS,
    Bits,
    CardFull,
    CardInfo,
    CardRefused,
    Floats,
    Limits,
    Rows,
    check_graph,
    check_walk,
    padding,
)
from .merging import padded

GIB = 1 << 30
_STEP_SCALARS = 1 << 22
"""Scores computed at once."""


class Lists(Protocol):
    """Inverted lists that can be searched on the host."""

    metric: str
    dimension: int
    lists: int
    device_bytes: int

    def search(self, queries: Floats, k: int, nprobe: int) -> tuple[Floats, Rows]: ...


ListsReader = Callable[[memoryview, str], Lists]
"""From a serialised index and the engine's word for its code; CardRefused for what a GPU cannot hold."""
Joiner = Callable[[Floats, str, int], NDArray[np.int32]]
"""(vectors, metric, degree) -> links of a graph over them, see `Card.links`."""


@dataclass(frozen=True, slots=True)
class Faults:
    """What a stand-in does wrong on purpose; numbers count calls from 1, 0 is never. Tests only."""

    die_at_search: int = 0
    hang_at_search: int = 0
    full_at_search: int = 0
    die_at_add: int = 0
    die_at_graph: int = 0
    die_at_start: int = 0
    """Any number but 0: the worker dies before it is ready."""
    search_s: float = 0.0
    """Each search takes this much longer."""
    once: str = ""
    """A path: the first fault of all workers makes this file, and where it exists no other follows."""

    @classmethod
    def parse(cls, text: str) -> Faults:
        """From "die_at_search=3,search_s=0.01"; ValueError for words that are not known."""
        given: dict[str, int | float | str] = {}
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            if name not in cls.__dataclass_fields__:
                raise ValueError(f"unknown fault {name!r}")
            given[name] = (
                value if name == "once" else float(value) if name == "search_s" else int(value)
            )
        return cls(**given)  # type: ignore[arg-type]

    def strike(self) -> bool:
        """Whether a fault that is due happens."""
        if not self.once:
            return True
        try:
            os.close(os.open(self.once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


class _Flat:
    def __init__(self, dimension: int, metric: str, code: str, rows: int) -> None:
        self.dimension = dimension
        self.metric = metric
        self.code = code
        self.masks: dict[int, NDArray[np.bool_]] = {}
        self.used = 0
        self.held: NDArray[np.floating] = np.empty(
            (rows, dimension), np.float16 if code == "float16" else np.float32
        )

    @property
    def device_bytes(self) -> int:
        return self.held.nbytes + (4 * len(self.held) if self.metric == "l2" else 0)

    def vectors(self) -> NDArray[np.floating]:
        return self.held[: self.used]


class _Graph:
    """Exact search stands for the walk; what a real one would refuse is refused."""

    def __init__(self, source: _Flat, degree: int) -> None:
        self.source = source
        self.rows = source.used
        self.dimension = source.dimension
        self.degree = degree

    @property
    def device_bytes(self) -> int:
        return 4 * self.degree * self.rows

    def vectors(self) -> NDArray[np.floating]:
        return self.source.held[: self.rows]


class StandInCard:
    """See `Card`. `memory_bytes` is the size of the pretended device, `graphs` whether it has CAGRA."""

    def __init__(
        self,
        memory_bytes: int = GIB,
        *,
        graphs: bool = True,
        masks: bool = True,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        faults: Faults = Faults(),
        read_lists: ListsReader | None = None,
        join: Joiner | None = None,
    ) -> None:
        self._memory_bytes = memory_bytes
        self._graphs = graphs
        self._masks = masks
        self._limits = limits
        self._faults = faults
        self._read_lists = read_lists
        self._join = join
        self._placed: dict[int, _Flat | _Graph | Lists] = {}
        self._searches = 0
        self._adds = 0
        self._joins = 0
        self._thread: int | None = None
        if faults.die_at_start and faults.strike():
            os.abort()

    def info(self) -> CardInfo:
        return CardInfo(
            "stand-in", self._memory_bytes, self._free(), self._limits, self._graphs, self._masks
        )

    def flat(self, handle: int, dimension: int, metric: str, code: str, rows: int) -> None:
        self._own_thread()
        if metric not in ("l2", "ip") or code not in ("float32", "float16"):
            raise CardRefused(
                f"flat vectors are l2 or ip in float32 or float16, not {metric} {code}"
            )
        width = 2 if code == "float16" else 4
        self._keep(rows * (dimension * width + (4 if metric == "l2" else 0)))
        self._placed[handle] = _Flat(dimension, metric, code, rows)

    def add(self, handle: int, vectors: Floats) -> None:
        self._own_thread()
        self._adds += 1
        if self._adds == self._faults.die_at_add and self._faults.strike():
            os.abort()
        flat = self._flat(handle)
        _check_width(vectors, flat.dimension)
        if flat.used + len(vectors) > len(flat.held):
            raise CardRefused(f"placement {handle} has room for {len(flat.held)} rows")
        flat.held[flat.used : flat.used + len(vectors)] = vectors
        flat.used += len(vectors)

    def lists(self, handle: int, data: memoryview, code: str) -> None:
        self._own_thread()
        if self._read_lists is None:
            raise CardRefused("this stand-in was made without a reader of lists")
        made = self._read_lists(data, code)
        self._keep(made.device_bytes)
        self._placed[handle] = made

    def graph(self, handle: int, source: int, degree: int) -> None:
        self._own_thread()
        if not self._graphs:
            raise CardRefused("graphs need the faiss-gpu-cuvs wheel")
        flat = self._flat(source)
        check_graph(flat.metric, flat.code, flat.used, degree)
        self._joins += 1
        if self._joins == self._faults.die_at_graph and self._faults.strike():
            os.abort()
        made = _Graph(flat, degree)
        self._keep(made.device_bytes)
        self._placed[handle] = made

    def mask(self, handle: int, number: int, bits: Bits) -> None:
        self._own_thread()
        flat = self._beneath(handle)
        if not self._masks:
            raise CardRefused("this stand-in was made without masks")
        rows = len(flat.held)
        if bits.size != -(-rows // 8):
            raise CardRefused(f"a mask of {rows} rows has {bits.size} bytes")
        flat.masks[number] = np.unpackbits(bits, count=rows, bitorder="little").view(np.bool_)

    def unmask(self, handle: int, number: int) -> None:
        placed = self._placed.get(handle)
        if isinstance(placed, _Graph):
            placed = placed.source
        if isinstance(placed, _Flat):
            placed.masks.pop(number, None)

    def search(
        self, handle: int, queries: Floats, k: int, setting: int, mask: int = 0
    ) -> tuple[Floats, Rows]:
        self._own_thread()
        self._searches += 1
        self._misbehave(self._searches)
        placed = self._placed.get(handle)
        if placed is None:
            raise CardRefused(f"placement {handle} is not known")
        _check_width(queries, placed.dimension)
        if isinstance(placed, _Graph) and setting == 0:
            placed = self._beneath(handle)
        if isinstance(placed, _Flat):
            return self._search_flat(placed, queries, k, mask)
        if mask:
            raise CardRefused("only flat vectors are searched under a mask")
        self._within(k)
        if isinstance(placed, _Graph):
            check_walk(k, setting)
            source = placed.source
            return nearest(queries, placed.vectors(), k, source.metric, source.code)
        if not 1 <= setting <= self._limits.nprobe:
            raise CardRefused(f"nprobe must be from 1 to {self._limits.nprobe}, given {setting}")
        return placed.search(queries, k, min(setting, placed.lists))

    def _search_flat(self, flat: _Flat, queries: Floats, k: int, mask: int) -> tuple[Floats, Rows]:
        most = self._limits.scan_k if self._masks else self._limits.k
        if not 1 <= k <= most:
            raise CardRefused(f"k must be from 1 to {most}, given {k}")
        if flat.dimension > SCAN_DIMENSIONS and (mask or k > self._limits.k):
            raise CardRefused(f"such a search takes at most {SCAN_DIMENSIONS} dimensions")
        if not mask:
            return nearest(queries, flat.vectors(), k, flat.metric, flat.code)
        if mask not in flat.masks:
            raise CardRefused(f"mask {mask} is not known")
        inside = np.flatnonzero(flat.masks[mask][: flat.used])
        scores, at = nearest(queries, flat.vectors()[inside], k, flat.metric, flat.code)
        return scores, np.where(at < 0, -1, inside[at] if inside.size else -1)

    def compare(self, queries: Floats, vectors: Floats, k: int, metric: str) -> tuple[Floats, Rows]:
        self._own_thread()
        self._within(k)
        _check_width(queries, vectors.shape[1])
        return nearest(queries, vectors, k, metric, "float32")

    def kmeans(
        self,
        sample: Floats,
        lists: int,
        rounds: int,
        spherical: bool,
        seed: int,
        start: Floats | None = None,
    ) -> Floats:
        self._own_thread()
        if not 1 <= lists <= len(sample):
            raise CardRefused(f"{len(sample)} rows make no {lists} lists")
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(sample), lists, replace=False)
        centroids = np.array(sample[chosen] if start is None else start, np.float32)
        for _ in range(rounds):
            metric = "ip" if spherical else "l2"
            near = nearest(sample, centroids, 1, metric, "float32")[1][:, 0]
            sums = np.zeros_like(centroids)
            np.add.at(sums, near, sample)
            counts = np.bincount(near, minlength=lists)
            full = counts > 0
            centroids[full] = sums[full] / counts[full, None]
            if spherical:
                lengths = np.linalg.norm(centroids, axis=1, keepdims=True)
                centroids /= np.where(lengths > 0, lengths, 1.0)
        return centroids

    def links(self, handle: int) -> NDArray[np.int32]:
        self._own_thread()
        graph = self._placed.get(handle)
        if not isinstance(graph, _Graph) or self._join is None:
            raise CardRefused(f"placement {handle} is no graph whose links are known")
        vectors = np.ascontiguousarray(graph.vectors(), np.float32)
        return self._join(vectors, graph.source.metric, graph.degree)

    def drop(self, handle: int) -> None:
        self._own_thread()
        self._placed.pop(handle, None)

    def used_bytes(self, handle: int) -> int:
        placed = self._placed.get(handle)
        return 0 if placed is None else placed.device_bytes + self._kept(placed)

    def _own_thread(self) -> None:
        mine = threading.get_ident()
        if self._thread is None:
            self._thread = mine
        if self._thread != mine:
            raise RuntimeError("a card was called from two threads")

    def _flat(self, handle: int) -> _Flat:
        placed = self._placed.get(handle)
        if not isinstance(placed, _Flat):
            raise CardRefused(f"placement {handle} is not one of flat vectors")
        return placed

    def _beneath(self, handle: int) -> _Flat:
        """Flat vectors, or those of a graph, which must know all that are there."""
        placed = self._placed.get(handle)
        if not isinstance(placed, _Graph):
            return self._flat(handle)
        if placed.rows != placed.source.used:
            raise CardRefused(f"vectors came after graph {handle} was made")
        return placed.source

    def _kept(self, placed: _Flat | _Graph | Lists) -> int:
        """What a graph keeps that was dropped."""
        if isinstance(placed, _Graph) and placed.source not in self._placed.values():
            return placed.source.device_bytes
        return 0

    def _free(self) -> int:
        held = self._placed.values()
        return self._memory_bytes - sum(one.device_bytes + self._kept(one) for one in held)

    def _keep(self, wanted: int) -> None:
        free = self._free()
        if wanted > free:
            raise CardFull(f"{wanted} bytes are wanted, {free} of {self._memory_bytes} are free")

    def _within(self, k: int) -> None:
        if not 1 <= k <= self._limits.k:
            raise CardRefused(f"k must be from 1 to {self._limits.k}, given {k}")

    def _misbehave(self, number: int) -> None:
        faults = self._faults
        if faults.search_s:
            time.sleep(faults.search_s)
        if number == faults.die_at_search and faults.strike():
            os.abort()
        if number == faults.hang_at_search and faults.strike():
            time.sleep(3_600)
        if number == faults.full_at_search and faults.strike():
            raise CardFull("out of memory, on purpose")


def _check_width(vectors: Floats, dimension: int) -> None:
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise CardRefused(f"vectors have shape {vectors.shape}, expected (n, {dimension})")


def nearest(
    queries: Floats, vectors: NDArray[np.floating], k: int, metric: str, code: str
) -> tuple[Floats, Rows]:
    """The k nearest of `vectors` (n, d) by numpy, ties by the lower position; as a card answers.

    float16 vectors are met by queries rounded to float16, as on a GPU; sums are float32.
    """
    if code == "float16":
        queries = queries.astype(np.float16).astype(np.float32)
    step = max(1, _STEP_SCALARS // max(1, len(queries)))
    keys = np.empty((len(queries), len(vectors)), np.float32)
    lengths = np.einsum("qd,qd->q", queries, queries)[:, None]
    for start in range(0, len(vectors), step):
        part = np.asarray(vectors[start : start + step], np.float32)
        products = queries @ part.T
        if metric == "l2":
            products = np.maximum(lengths - 2.0 * products + np.einsum("nd,nd->n", part, part), 0.0)
        else:
            np.negative(products, out=products)
        keys[:, start : start + step] = products
    width = min(k, len(vectors))
    if not width:
        nothing = np.full((len(queries), k), padding(metric), np.float32)
        return nothing, np.full((len(queries), k), -1, np.int64)
    if width * 8 < len(vectors):
        # All that tie at the border stay, for the lower position to win.
        border = np.partition(keys, width - 1, axis=1)[:, width - 1 : width]
        kept = min(len(vectors), max(width, int((keys <= border).sum(axis=1).max())))
        near = np.sort(np.argpartition(keys, kept - 1, axis=1)[:, :kept], axis=1)
        order = np.argsort(np.take_along_axis(keys, near, axis=1), axis=1, kind="stable")
        positions = np.take_along_axis(near, order, axis=1)[:, :width]
    else:
        positions = np.argsort(keys, axis=1, kind="stable")[:, :width]
    scores = np.take_along_axis(keys, positions, axis=1)
    return padded(scores if metric == "l2" else -scores, positions.astype(np.int64), k, metric)
