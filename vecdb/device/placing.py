"""The long verbs of a device: placing, comparing with vectors that are not placed, k-means.

Each is a row of requests that queue up one by one. `check` is called between them and may raise, which
undoes what was begun.
"""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Closed, DeviceLost, Internal
from ..turns import PATIENT, Wait
from . import messages as m
from .card import Floats, Rows
from .life import Linked
from .merging import merged
from .queue import Order

STEP_BYTES = 8 << 20
"""Bytes that are copied to a worker in one request: about a millisecond, which a search may have to wait."""
_LEAST_RATE = 10e6
"""Bytes a second that what cannot be cut works through at least: lists on their way to the card, a graph being built, a round of
k-means. CAGRA over 1.5 GB took an H200 9 s."""
_LEAST_PATIENCE_S = 60.0
Check = Callable[[], None]


def _go_on() -> None:
    """The check of those who never want to stop."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Something on a device: `handle` is good for as long as the device has this `generation`. `bytes`
    is the memory it takes there."""

    handle: int
    generation: int
    bytes: int


class Placing(Linked):
    """The long verbs of `Device`."""

    _numbers = itertools.count(1)
    """Of handles, and of what is uploaded; shared by all devices, which does no harm."""

    @property
    def used_bytes(self) -> int:
        """Memory that placements of this generation take."""
        with self._placed_lock:
            return sum(self._placed.values())

    @property
    def tile_bytes(self) -> int:
        """Bytes of vectors that `compare` sends in one request."""
        return self._memory_bytes // 4

    def place_flat(
        self,
        dimension: int,
        metric: str,
        code: str,
        rows: int,
        slices: Iterable[Floats],
        check: Check = _go_on,
        *,
        room: int = 0,
    ) -> Placed:
        """Vectors that are compared one by one: `slices` (any, dimension) float32, `rows` in all, with room for
        `room` more that are appended later.

        `metric` "l2" or "ip", `code` "float32" or "float16". DeviceFull, DeviceLost; FailedPrecondition
        for what the card refuses.
        """
        handle, generation = next(self._numbers), self.generation
        try:
            request = m.Flat(handle, dimension, metric, code, rows + room)
            self._request(request, generation, self._timeout_s)
            given = self._add(handle, generation, slices, check)
            if given != rows:
                raise Internal(f"{rows} rows were to be placed, {given} were given")
            return self._keep(handle, generation)
        except BaseException:
            self.drop(handle, generation)
            raise

    def append(self, flat: Placed, slices: Iterable[Floats], check: Check = _go_on) -> int:
        """Appends (any, dimension) float32 to flat vectors that have the room; how many. What was made of them
        before does not know these."""
        return self._add(flat.handle, flat.generation, slices, check)

    def place_lists(self, data: Any, code: str, check: Check = _go_on) -> Placed:
        """Inverted lists: `data` holds the bytes of a FAISS IVF index, as `serialize_index` gives them.

        They are held twice in the memory of the worker while they are copied to the card.
        """
        handle, generation = next(self._numbers), self.generation
        try:
            given = np.frombuffer(data, np.uint8)
            self._upload(handle, generation, given, check)
            self._request(m.Lists(handle, code), generation, self._patience_s(given.nbytes))
            return self._keep(handle, generation)
        except BaseException:
            self._forget(handle, generation)
            self.drop(handle, generation)
            raise

    def place_graph(self, source: Placed, degree: int, *, takes_over: bool = False) -> Placed:
        """A CAGRA graph over flat vectors, which the card keeps for it even when they are dropped.

        `takes_over` drops them as a placement of their own: what they take is counted with the graph, and goes
        with it. It cannot be stopped, and searches wait until it is built.
        """
        handle = next(self._numbers)
        try:
            request = m.Graph(handle, source.handle, degree)
            self._request(request, source.generation, self._patience_s(source.bytes))
            if takes_over:
                self.drop(source.handle, source.generation)
            return self._keep(handle, source.generation)
        except BaseException:
            self.drop(handle, source.generation)
            raise

    def compare(
        self,
        queries: Floats,
        vectors: Floats,
        k: int,
        metric: str,
        check: Check = _go_on,
        wait: Wait = PATIENT,
    ) -> tuple[Floats, Rows]:
        """The k nearest of `vectors` (n, d) that are on the host: scores and positions (q, k), exactly.

        Both go through the shared memory in tiles of a quarter of it; the card holds one at a time. `check`
        raises when the time is over; how each request waits is up to `wait`.
        """
        x = np.ascontiguousarray(queries, np.float32)
        y = np.ascontiguousarray(vectors, np.float32)
        d, generation = x.shape[1], self.generation
        quarter = self.tile_bytes
        some = max(1, min(1_024, quarter // (4 * d), quarter // (12 * k)))
        tile = max(1, quarter // (4 * d))
        answers = []
        for first in range(0, len(x), some):
            asked = x[first : first + some]
            best: list[tuple[Floats, Rows]] = []
            for start in range(0, len(y), tile):
                check()
                part = y[start : start + tile]
                found = self._compare(asked, part, k, metric, generation, wait)
                found[1][found[1] >= 0] += start
                best = [merged([*best, found], k, metric)] if best else [found]
            answers.append(
                merged(best, k, metric) if best else merged([_nothing(asked)], k, metric)
            )
        scores, positions = zip(*answers, strict=True)
        return np.concatenate(scores), np.concatenate(positions)

    def kmeans(
        self,
        sample: Floats,
        lists: int,
        rounds: int,
        spherical: bool,
        seed: int,
        check: Check = _go_on,
    ) -> Floats:
        """Centroids (lists, d) of `sample` (n, d) float32, a request a round. Searches wait for a round."""
        number, generation = next(self._numbers), self.generation
        x = np.ascontiguousarray(sample, np.float32)
        d = x.shape[1]
        try:
            self._upload(number, generation, x.reshape(-1).view(np.uint8), check)
            for _ in range(max(1, rounds)):
                check()
                request = m.Kmeans(number, d, lists, spherical, seed)
                size = self._request(request, generation, self._patience_s(x.nbytes))
            return self._download(number, generation, size, check).view(np.float32).reshape(-1, d)
        finally:
            self._forget(number, generation)

    def links(self, graph: Placed, degree: int, check: Check = _go_on) -> NDArray[np.int32]:
        """The neighbours (n, degree) of each position of a graph; see `Card.links`."""
        number = next(self._numbers)
        try:
            request = m.Links(graph.handle, number)
            size = self._request(request, graph.generation, self._patience_s(graph.bytes))
            data = self._download(number, graph.generation, size, check)
            return data.view(np.int32).reshape(-1, degree)
        finally:
            self._forget(number, graph.generation)

    def mask(
        self, placed: Placed, number: int, bits: NDArray[np.uint8], wait: Wait = PATIENT
    ) -> None:
        """`Card.mask` for flat vectors, under a number of the caller's. Where it raises there may be one all the same, now or later."""
        request = m.Mask(placed.handle, number, bits.size)
        self._request(request, placed.generation, self._timeout_s, [(0, bits)], wait=wait)

    def unmask(self, placed: Placed, number: int) -> None:
        """Forgets a mask, without waiting."""
        self._later(m.Unmask(placed.handle, number), placed.generation)

    def drop(self, handle: int, generation: int) -> None:
        """Gives the memory of a placement back, without waiting: whatever is asked for after this comes
        after it. Nothing happens when it is gone already."""
        with self._placed_lock:
            if generation == self.generation:
                self._placed.pop(handle, None)
                self._spent.pop(handle, None)
        self._later(m.Drop(handle), generation)

    def _patience_s(self, size: int) -> float:
        """How long a request may take that cannot be cut and works through `size` bytes; then the worker is taken to hang."""
        return max(_LEAST_PATIENCE_S, self._timeout_s) + size / _LEAST_RATE

    def _add(self, handle: int, generation: int, slices: Iterable[Floats], check: Check) -> int:
        given = 0
        for piece in slices:
            vectors = np.ascontiguousarray(piece, np.float32)
            step = max(1, min(STEP_BYTES, self._memory_bytes // 2) // (4 * vectors.shape[1]))
            for start in range(0, len(vectors), step):
                check()
                part = vectors[start : start + step]
                request = m.Add(handle, *part.shape)
                self._request(request, generation, self._timeout_s, [(0, part)])
            given += len(vectors)
        return given

    def _keep(self, handle: int, generation: int) -> Placed:
        used = self._request(m.Used(handle), generation, self._timeout_s)
        with self._placed_lock:
            if generation == self.generation:
                self._placed[handle] = used
        return Placed(handle, generation, used)

    def _request(
        self,
        request: m.Request,
        generation: int,
        timeout_s: float,
        arrays: Any = (),
        read: Callable[[mmap.mmap, int], Any] | None = None,
        wait: Wait = PATIENT,
    ) -> Any:
        return self._run(Order(request, generation, timeout_s, arrays, read), wait)

    def _later(self, request: m.Request, generation: int) -> None:
        try:
            self._put(Order(request, generation, self._timeout_s))
        except (DeviceLost, Closed):
            pass  # with the worker everything is gone

    def _forget(self, number: int, generation: int) -> None:
        self._later(m.Forget(number), generation)

    def _upload(self, number: int, generation: int, data: NDArray[np.uint8], check: Check) -> None:
        step = min(STEP_BYTES, self._memory_bytes)
        for start in range(0, data.size, step):
            check()
            part = data[start : start + step]
            request = m.Upload(number, data.size, start, part.size)
            self._request(request, generation, self._timeout_s, [(0, part)])

    def _download(self, number: int, generation: int, size: int, check: Check) -> NDArray[np.uint8]:
        out = np.empty(size, np.uint8)
        step = min(STEP_BYTES, self._memory_bytes)
        for start in range(0, size, step):
            check()
            part = out[start : start + step]

            def read(memory: mmap.mmap, _: int, part: NDArray[np.uint8] = part) -> None:
                part[:] = m.array(memory, part.shape, np.uint8, 0)

            request = m.Download(number, start, part.size)
            self._request(request, generation, self._timeout_s, (), read)
        return out

    def _compare(
        self,
        queries: Floats,
        vectors: Floats,
        k: int,
        metric: str,
        generation: int,
        wait: Wait,
    ) -> tuple[Floats, Rows]:
        (q, d), n = queries.shape, len(vectors)
        vectors_at, scores_at, positions_at, _ = m.compare_layout(q, n, d, k)

        def read(memory: mmap.mmap, _: int) -> tuple[Floats, Rows]:
            scores = m.array(memory, (q, k), np.float32, scores_at)
            positions = m.array(memory, (q, k), np.int64, positions_at)
            return scores.copy(), positions.copy()

        arrays = [(0, queries), (vectors_at, vectors)]
        request = m.Compare(q, n, d, k, metric)
        found: tuple[Floats, Rows] = self._request(
            request, generation, self._timeout_s, arrays, read, wait
        )
        return found


def _nothing(queries: Floats) -> tuple[Floats, Rows]:
    return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
