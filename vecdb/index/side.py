"""Graphs beside the main one, for filters that are asked again and again.

Between filters that leave a few thousand rows, which are compared, and those that most rows pass, which
the main graph answers with a few candidates more, lie those that cost three to seven times as much
as no filter at all. A graph of only the rows that such a filter allows answers as fast as the main one.
Rows never change, and neither does a main index: so which of its positions a filter allows never
changes either, only fewer and fewer of them are live. Fresh rows are in the tail as always.

When to build is the question of renting or buying skis: once queries of the filter have lost a share of
the time that it costs to build, for want of a graph, it is built; a share, since queries wait for what
they lose, and nobody for a build in the background.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..selection import Selection
from .blocks import Allowed, nearness
from .calibrate import SMALL_K, Curve, least_queries
from .distance import Floats, Rows
from .main import GRAPH_BYTES_A_ROW, Main

LEAST_ROWS, MOST_SHARE = 4_096, 0.5
"""Filters that allow fewer rows, or more of the main index than this share, are answered well without."""
WORTH = 0.1
"""Time lost, as a share of that of a build, from which on one is worth it: what is lost callers wait for, what
is built costs one core for some seconds at low priority, once for a filter and main index."""
LEAST_QUERIES, MEASURED, MOST_QUERIES = 128, 256, 500
"""Queries before a graph is thought of, how many distinct ones, the newest, its recall is measured on: while it is
built more of them come, and how many at most, where a target needs more (`calibrate.least_queries`): for one above 0.996 none
is built. To measure it on 512 took longer than to build a graph of 11,500 rows (1.4 s of 0.9)."""
LEAST_WALKS, MOST_WALKS = 16, 16
"""Queries that came one by one, from which on what they walked is believed; and of how many targets and k this is known."""
MEMORY_SHARE = 0.3
"""Of the main index: what all graphs beside it may take."""
MOST_DEAD = 0.2
"""Share of dead rows from which on a graph is let go."""
MOST_KEPT = 64
"""Filters that are watched, and whose graphs are kept in files. Queries of one are kept once half the time that its graph is worth is lost."""
PRICE_NEAR, PRICE_FAR, PRICE_ROWS = 0.3, 0.55, 100_000
"""Of a candidate in such a graph, as a multiple of one in the main graph (116,659 WordNet vectors, walked over sq8, 1.9 us at
efSearch 256): its vectors stay in the processor's caches, the better the nearer they lie, and more of a candidate's
neighbours were seen before. Rows in a run: 5,000 0.35, 11,500 0.41, 25,000 0.55, 50,000 0.82; scattered: 11,500 0.70,
25,000 0.7 to 0.95. In batches the same."""
_CALL_EVERY = 256


def build_seconds(rows: int, dimension: int) -> float:
    """Estimate of the time to build and calibrate a graph.

    Measured over sq8 codes of WordNet vectors of 384 dimensions by one thread of an AMD EPYC (Zen 4), with
    `EF_AMONG`: 80 us a row to build 19,707 of them, and about a third of that to calibrate.
    """
    return rows * (26e-6 + 0.21e-6 * dimension)


def graph_bytes(joined: int, rows: int) -> int:
    """Memory of a graph that joins so many of `rows` positions: links, and where those of each lie."""
    return joined * GRAPH_BYTES_A_ROW + 12 * rows


class SideGraph(Main):
    """A graph that joins only some positions of a main index; all else it shares with it.

    `n` is the number of these `positions` (n,), ascending. They were live and allowed when it was built, so in any
    later view those that are live and allowed are among them.
    """

    def __init__(self, main: Main, index: Any, positions: Rows, curve: Curve) -> None:
        super().__init__(
            kind=main.kind, code=main.code, index=index, block=main.block, rows=main.rows,
            high_water=main.high_water, curve=curve, lossy=main.lossy, error=main.error,
        )  # fmt: skip
        self.n = int(positions.size)
        near = nearness(positions)
        price = near * PRICE_NEAR + (1.0 - near) * PRICE_FAR + self.n / PRICE_ROWS
        self.price = min(1.0, price)

    def is_settled(self, target_recall: float) -> bool:
        """Whether it is trusted with a target, or was measured on as many queries as that takes."""
        if self.curve.setting(target_recall, SMALL_K) is not None:
            return True
        return self.curve.queries >= least_queries(target_recall)

    @property
    def nbytes(self) -> int:
        """Of the graph alone."""
        return graph_bytes(self.n, len(self.rows))


class Wanted(NamedTuple):
    """A graph that is worth building, or is in a file."""

    key: str
    main: Main
    allowed: Allowed
    queries: Callable[[], Floats]
    """(q, d) of users, no two alike, up to now."""
    target_recall: float
    """The least that they asked for."""
    path: Path | None
    """Its file."""


class _Note:
    """What is known of one filter."""

    __slots__ = (
        "asked", "graph", "lost_s", "queries", "refused", "targets", "used", "walks", "wanted",
    )  # fmt: skip

    def __init__(self) -> None:
        self.lost_s = 0.0
        """Time that its queries would have been spared by a graph, as estimated."""
        self.asked = 0
        self.queries: dict[bytes, Floats] = {}
        """The newest distinct ones of the queries asked, by their bytes, oldest first; all are counted from when they are kept."""
        self.targets = (1.0, 0.0)
        """The least and the largest recall that they asked for."""
        self.graph: SideGraph | None = None
        self.refused = False
        """No graph of this main index serves it."""
        self.wanted: tuple[Main, Allowed] | None = None
        """What a graph is wanted of."""
        self.used = 0
        self.walks: dict[tuple[float, int], tuple[float, int]] = {}
        """By target and k of queries without a graph that came one by one: the mean cost of the newest, in exact distances,
        and of how many."""

    def keep(self, queries: Floats, target_recall: float) -> None:
        """Keeps copies, as an array of the caller's may change."""
        self.asked += len(queries)
        self.targets = min(self.targets[0], target_recall), max(self.targets[1], target_recall)
        most = max(MEASURED, least_queries(self.targets[1]))
        for query in queries[-most:]:
            name = query.tobytes()
            kept = self.queries.pop(name, None)
            self.queries[name] = query.copy() if kept is None else kept
        while len(self.queries) > most:
            del self.queries[next(iter(self.queries))]

    def distinct(self, before: Floats | None = None) -> Floats:
        """The queries that are kept, (q, d); `before`, if those were more: they go where a filter is forgotten."""
        found = list(self.queries.values())
        if before is not None and len(before) > len(found):
            return before
        return np.stack(found) if found else np.empty((0, 0), np.float32)

    def walk(self, kind: tuple[float, int], cost: float) -> None:
        """Notes what a query that came alone has cost. One of two at the same instant may go uncounted."""
        mean, counted = self.walks.get(kind, (0.0, 0))
        if not counted and len(self.walks) >= MOST_WALKS:
            least = min(list(self.walks.items()), key=lambda item: item[1][1])
            self.walks.pop(least[0], None)
        counted = min(counted + 1, MEASURED)
        self.walks[kind] = mean + (cost - mean) / counted, counted

    def settle(self, graph: SideGraph | None) -> None:
        """Wants nothing more; the next graph is to be measured on queries of its own time."""
        self.graph, self.wanted, self.asked, self.targets = graph, None, 0, (1.0, 0.0)
        self.queries.clear()

    def forget(self) -> None:
        """Lets the graph go, which has to be earned again."""
        self.lost_s, self.refused = 0.0, False
        self.settle(None)


class Sides:
    """The filters asked of an index, and the graphs of some of them. Any thread may call.

    Numbers are noted without a lock, until queries are kept: of two at the same instant one may go uncounted.
    Keys mean the same as long as the index lives; see `vecdb.selection`.
    """

    def __init__(self) -> None:
        self.wake: Callable[[], None] | None = None
        """Called, at once and now and then, when a graph is wanted; it must not raise. Without it, there
        is nobody to build, and nothing is noted."""
        self._lock = threading.Lock()
        self._notes: dict[str, _Note] = {}
        self._saved: dict[str, Path] = {}
        """Graphs of this main index in files, by key."""
        self._rows: Rows | None = None
        self._clock = 0

    # -- asked by searches

    def asked(self, allowed: Selection | None, answers: int) -> Asked | None:
        """Which filter it is, where it may be asked again."""
        return None if allowed is None or allowed.key is None else Asked(self, allowed.key, answers)

    def graph(self, key: str, main: Main, count: int) -> SideGraph | None:
        """The graph of a filter that allows `count` live positions of `main`."""
        note = self._notes.get(key)
        graph = None if note is None else note.graph
        if note is None or graph is None or graph.rows is not main.rows or count > graph.n:
            # More are live in views that are older than the graph.
            return None
        if count < (1.0 - MOST_DEAD) * graph.n:
            with self._lock:
                note.forget()
            return None
        self._clock += 1
        note.used = self._clock
        return graph

    def walked(self, key: str, target_recall: float, k: int) -> float:
        """Mean cost of queries of a filter, target and k that came one by one, in the main graph and exact distances; 0 where
        few did."""
        note = self._notes.get(key)
        mean, counted = (0.0, 0) if note is None else note.walks.get((target_recall, k), (0.0, 0))
        return mean if counted >= LEAST_WALKS else 0.0

    def note(
        self,
        key: str,
        main: Main,
        allowed: Allowed,
        queries: Floats,
        k: int,
        lost_s: float,
        target_recall: float,
        cost: float | None = None,
    ) -> None:
        """Queries (q, d) that had no graph, the time that one would have spared them, the recall below 1 that they asked for
        among k, and what they cost, in exact distances, where that is known. About 1 us; 3 us each once they are kept."""
        needed = least_queries(target_recall)
        if self.wake is None or needed > MOST_QUERIES:
            return
        if not LEAST_ROWS <= allowed.count <= MOST_SHARE * main.n:
            return
        note = self._notes.get(key)
        if note is None:
            note = self._watch(key)
        if main.kind != "hnsw" or main.code == "binary":
            return
        if cost is not None:
            note.walk((target_recall, k), cost)
        if note.refused or (note.graph is not None and note.graph.is_settled(target_recall)):
            return
        self._clock += 1
        note.used = self._clock
        if key in self._saved and note.graph is None:
            with self._lock:
                is_new = note.wanted is None and note.graph is None and key in self._saved
                if is_new:
                    note.wanted = (main, allowed)
            if is_new:
                self.wake()
            return
        note.lost_s += lost_s
        worth_s = WORTH * build_seconds(allowed.count, queries.shape[1])
        if note.lost_s < 0.5 * worth_s:
            return
        with self._lock:
            before = note.asked
            note.keep(queries, target_recall)
            # A few queries asked over and over say nothing about the next one.
            if len(note.queries) < needed or note.asked < LEAST_QUERIES or note.lost_s < worth_s:
                return
            is_new = note.wanted is None or note.asked // _CALL_EVERY > before // _CALL_EVERY
            if is_new:
                note.wanted = (main, allowed)
        if is_new:
            self.wake()

    def _watch(self, key: str) -> _Note:
        with self._lock:
            while len(self._notes) >= MOST_KEPT:
                del self._notes[min(self._notes, key=lambda held: self._notes[held].used)]
            return self._notes.setdefault(key, _Note())

    # -- asked by who builds

    @property
    def any_wanted(self) -> bool:
        return any(note.wanted is not None for note in list(self._notes.values()))

    def wanted(self) -> Wanted | None:
        """The next graph to build."""
        with self._lock:
            for key, note in self._notes.items():
                asked = note.wanted
                if asked is None:
                    continue
                main, allowed = asked
                path = self._saved.get(key) if note.graph is None else None
                few = not note.queries or len(note.queries) < least_queries(note.targets[0])
                if main.rows is not self._rows or (path is None and few):
                    note.wanted = None
                elif graph_bytes(allowed.count, main.n) > MEMORY_SHARE * main.nbytes:
                    note.settle(note.graph)
                    note.refused = True
                else:
                    queries = partial(note.distinct, note.distinct())
                    return Wanted(key, main, allowed, queries, note.targets[0], path)
        return None

    def put(self, wanted: Wanted, graph: SideGraph | None) -> None:
        """Takes a graph into service, and others out of it that were not used for longest where memory
        is short. None: there is none that serves this filter better than what it has, and none is built for this main index.
        """
        with self._lock:
            note = self._notes.get(wanted.key)
            if note is None or wanted.main.rows is not self._rows:
                return
            note.settle(graph or note.graph)
            note.refused = graph is None
            # One that is measured anew has to be earned anew.
            note.lost_s = 0.0
            held = [other for other in self._notes.values() if other.graph and other is not note]
            held.sort(key=lambda other: other.used)
            room = MEMORY_SHARE * wanted.main.nbytes
            while held and self.nbytes > room:
                held.pop(0).forget()

    def keep(self, saved: dict[str, Path]) -> None:
        """Graphs of the main index that serves are in these files, by the keys of their filters."""
        with self._lock:
            self._saved = saved

    def saved(self, key: str, path: Path) -> None:
        """This graph is in a file now."""
        with self._lock:
            self._saved[key] = path

    def unsaved(self, key: str) -> None:
        """The file of this graph is of no use; it has to be earned again."""
        with self._lock:
            self._saved.pop(key, None)
            note = self._notes.get(key)
            if note is not None:
                note.settle(None)

    def serve(self, main: Main | None) -> None:
        """From now on `main` is searched. Graphs of another are let go; what was lost for want of them stays
        known, so that a filter which is still asked gets one again after a few queries."""
        with self._lock:
            rows = None if main is None else main.rows
            if rows is self._rows:
                return
            self._rows, self._saved = rows, {}
            for note in self._notes.values():
                if note.graph is not None:
                    note.lost_s = math.inf
                note.wanted, note.graph, note.refused = None, None, False

    # -- numbers

    @property
    def count(self) -> int:
        """Graphs in service."""
        return sum(note.graph is not None for note in list(self._notes.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of the graphs."""
        graphs = [note.graph for note in list(self._notes.values())]
        return sum(graph.nbytes for graph in graphs if graph is not None)


class Asked(NamedTuple):
    """A filter by its key, and where filters are known."""

    sides: Sides
    key: str
    answers: int
    """Wanted in truth; lossy codes give more candidates."""

    def graph(self, main: Main, count: int) -> SideGraph | None:
        """See `Sides.graph`."""
        return self.sides.graph(self.key, main, count)
