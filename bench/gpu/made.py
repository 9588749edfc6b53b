"""Lists and graphs as the engine makes, places and searches them, over rows in host memory: its makers and its card in one
process, with neither store nor worker between."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vecdb.index.build import Build
from vecdb.index.calibrate import Curve
from vecdb.index.codes import is_lossy
from vecdb.index.host_lists import serialized
from vecdb.index.joined import DEGREE, JoinedMaker
from vecdb.index.main import Main
from vecdb.index.makers import GraphMaker, ListsMaker
from vecdb.index.source import VectorSource, true_keys

from .answers import Floats, Rows
from .own import Own

Found = TypeVar("Found")
_METRIC = "cosine"
_numbers = itertools.count(1_000)
"""Handles; below them are those of `own.py`."""


class _Source:
    """Stored vectors, as indexes read them."""

    def __init__(self, vectors: Floats) -> None:
        self._vectors = vectors

    def range(self, start: int, stop: int) -> Floats:
        return self._vectors[start:stop]

    def rows(self, rows: Rows) -> Floats:
        return self._vectors[rows]

    def in_place(self, rows: Rows, work: Callable[[int, Rows], Found]) -> Found | None:
        return work(int(self._vectors.ctypes.data), rows)


class _Helper:
    """A card as `makers.Trainer` and `makers.Joining` want one."""

    room = 0
    joined, missed = 0, False

    def __init__(self, card: Any) -> None:
        self._card = card

    @property
    def joiner(self) -> _Helper:
        return self

    def kmeans(
        self,
        sample: Floats,
        lists: int,
        rounds: int,
        spherical: bool,
        seed: int,
        check: Callable[[], None],
    ) -> Floats:
        found: Floats = self._card.kmeans(sample, lists, rounds, spherical, seed)
        return found

    @contextmanager
    def nearest(self, centroids: Floats) -> Iterator[Callable[[Floats], Rows | None]]:
        handle = self._placed([centroids], len(centroids), "ip")
        try:
            yield lambda vectors: self._card.search(handle, vectors, 1, 0)[1][:, 0]
        finally:
            self._card.drop(handle)

    def takes(self, rows: int) -> bool:
        return True

    def links(
        self, rows: int, slices: Callable[[], Iterable[Floats]], check: Callable[[], None]
    ) -> NDArray[np.int32]:
        graph = self.graph(slices(), rows)
        try:
            links: NDArray[np.int32] = self._card.links(graph)
        finally:
            self._card.drop(graph)
        return links

    def graph(self, slices: Iterable[Floats], rows: int) -> int:
        """The handle of a graph over these vectors, which go with it."""
        flat, graph = self._placed(slices, rows, "l2"), next(_numbers)
        try:
            self._card.graph(graph, flat, DEGREE)
        finally:
            self._card.drop(flat)
        return graph

    def _placed(self, slices: Iterable[Floats], rows: int, metric: str) -> int:
        handle = next(_numbers)
        for number, part in enumerate(slices):
            if not number:
                self._card.flat(handle, part.shape[1], metric, "float32", rows)
            self._card.add(handle, np.ascontiguousarray(part))
        return handle


@dataclass(slots=True)
class _Job:
    """A collection of unit vectors without a store."""

    dimension: int
    source: VectorSource
    on_device: Any
    metric: str = _METRIC
    storage: str = "float32"
    target_recall: float = 0.95


@dataclass(slots=True)
class Made:
    """What can be asked: `kind` lists | graph | hnsw says what its setting is, `lists` how many there are."""

    kind: str
    rows: int
    search: Callable[[Floats, int, int], Rows]
    """(queries, k, setting) to rows (q, k), -1 for none."""
    lists: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """What making it took, by step."""
    drop: Callable[[], None] = lambda: None


class Maker:
    """Makes indexes of `vectors` (n, d), unit length."""

    def __init__(self, own: Own, vectors: Floats) -> None:
        self._card = own.card
        self._helper = _Helper(own.card)
        self._vectors = vectors
        self._source = _Source(vectors)

    def lists(self, code: str) -> tuple[Main, Made]:
        """Lists by `code`, trained and assigned by the card, and what searches them on the host."""
        build = self._build("ivf", code, self._helper)
        begun_s = time.perf_counter()
        maker = ListsMaker(build, None, self._rows)
        trained_s = time.perf_counter()
        main = self._grown(build, maker)
        seconds = {"train_s": trained_s - begun_s, "add_s": time.perf_counter() - trained_s}
        return main, _on_host(main, seconds)

    def graph(self, *, joined: bool) -> tuple[Main, Made]:
        """A graph over float32, as the engine walks it: its lowest level by the card where `joined`."""
        helper = self._helper if joined else None
        build = self._build("hnsw", "float32", helper)
        begun_s = time.perf_counter()
        maker = (
            JoinedMaker(build, self._rows, helper)
            if helper
            else GraphMaker(build, None, self._rows)
        )
        main = self._grown(build, maker)
        return main, _on_host(main, {"add_s": time.perf_counter() - begun_s})

    def lists_there(self, main: Main) -> Made:
        """A copy of lists on the card."""
        begun_s, handle = time.perf_counter(), next(_numbers)
        self._card.lists(handle, memoryview(serialized(main.index)), main.code)
        seconds = {"place_s": time.perf_counter() - begun_s}
        return self._there("lists", handle, seconds, int(main.index.nlist))

    def graph_there(self) -> Made:
        """A graph that the card makes and walks."""
        begun_s = time.perf_counter()
        handle = self._helper.graph([self._vectors], len(self._vectors))
        return self._there("graph", handle, {"add_s": time.perf_counter() - begun_s})

    def ranked(self, queries: Floats, candidates: Rows, k: int) -> Rows:
        """The k best (q, k) of candidates (q, c), -1 for none, by the vectors where they lie: as lossy codes are."""
        keys = true_keys(queries, self._source, candidates, _METRIC)
        order = np.argsort(keys, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(candidates, order, axis=1)

    @property
    def _rows(self) -> Rows:
        return np.arange(len(self._vectors))

    def _build(self, kind: str, code: str, helper: _Helper | None) -> Build:
        job = _Job(self._vectors.shape[1], self._source, helper)
        return Build(job, kind, code, 0, threading.Event(), lambda _: None, lambda *_: None)

    def _grown(self, build: Build, maker: Any) -> Main:
        rows, n = self._rows, len(self._vectors)
        build.each(rows, lambda at, part: maker.add(part, rows[at : at + len(part)], n))
        index, block = maker.serving()
        lossy = is_lossy(build.code, "float32", _METRIC)
        return Main(
            kind=build.kind, code=build.code, index=index, block=block, rows=rows, high_water=n,
            curve=Curve((), n, 0), lossy=lossy, error=0.0, arena=maker.arena,
        )  # fmt: skip

    def _there(self, kind: str, handle: int, seconds: dict[str, float], lists: int = 0) -> Made:
        card = self._card

        def find(queries: Floats, k: int, setting: int) -> Rows:
            rows: Rows = card.search(
                handle, queries, k, max(k, setting) if kind == "graph" else setting
            )[1]
            return rows

        return Made(kind, len(self._vectors), find, lists, seconds, lambda: card.drop(handle))


def _on_host(main: Main, seconds: dict[str, float]) -> Made:
    lists = int(main.index.nlist) if main.kind == "ivf" else 0
    kind = "lists" if main.kind == "ivf" else "hnsw"
    return Made(kind, main.n, lambda *asked: main.search(*asked)[1], lists, seconds)
