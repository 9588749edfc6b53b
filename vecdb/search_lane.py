"""The search lane: hardly more searches at once than there are cores, and those who wait are searched together.

Whoever finds a core free searches at once, alone. Whoever arrives while all are busy waits; when a
search ends, the first who waits takes along all who ask the same of the same view, and searches for
them in one call. So nobody waits for a batch to fill, and batches are as large as the load makes
them. A large batch goes slice by slice and queues up again for each: small queries get in between.

Why it pays, though FAISS gives up the interpreter lock while it searches: a search is also some 20
calls of numpy, and each thread that comes back from FAISS has to win that lock again. With many more
threads than cores they take turns in no order at all, and some are passed over for tens of milliseconds.
In the lane no more threads want the lock than there are cores, turns go by arrival, and a batch calls
numpy once. Single queries of 100,000 x 384 (HNSW) on 2 cores that were busy with other work, with the lane
and without, so only the proportions tell: 8 callers 1,220 to 2,420 and 1,240 to 2,280 a second, p99 14 to
38 ms and 73 to 122; 32 callers 2,080 to 2,780 and 1,170 to 1,570, p99 42 to 98 ms and 168 to 218; 1 or 2
callers alike. `sys.setswitchinterval` was no remedy: who holds the lock enters FAISS long before the 5 ms
are over.

A search that waits for a device needs no core: it gives its place to another meanwhile (`search_away.py`), and has one again before it goes
on, ahead of all who have not begun. So any number of them waits for the device at once, where they are a batch.

Short searches, single queries to a graph or lists, get `_SPARE` places more: who comes back from FAISS waits
longer for that lock than such a search takes, and meanwhile a core would have nothing to do. 116,659 x 384 (HNSW),
2 quiet cores, queries a second with a place a core and with 4 more: 3 callers 7,710 and 9,190, 4 callers 5,910 and
7,830, 8 callers 5,320 and 6,490, 32 callers 5,090 and 6,060; p99 of 8 callers 4.0 and 3.6 ms. One caller reaches 6,600.
"""

from __future__ import annotations

import os
import threading
import time
from _thread import get_ident
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import Cancelled, DeadlineExceeded
from .index import Found, Trace, View
from .search_ask import Ask, is_over, left, too_late, until
from .search_away import Away
from .search_note import Note
from .selection import Selection
from .steps import HERE
from .stopping import stop_if_unwanted, watched
from .tally import SIZES, Tally
from .turns import Wait

MAX_TOGETHER = 64
"""Queries that are searched in one call for several callers, at most."""
_FIRST_SLICE, _SMALLEST_SLICE, _LARGEST_SLICE = 128, 8, 256
_PATIENT_S, _HURRIED_S = 0.5, 0.02
"""What a slice of a large batch should take: while no small query waits, and while one does."""
_SPARE, _SHORT_TAIL = 4, 4_096
"""Places beside one a core for short searches, which compare no more fresh rows than this one by one."""

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class SearchLane(Away):
    """Any thread may call. A search that finds a core free costs 0.3 us more than without the lane."""

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self.batches = Tally(SIZES)
        """Queries that were searched in one call."""
        self.clear()

    def clear(self) -> None:
        """Forgets all searches: those that a forked process does not have."""
        self._running: dict[int, Sequence[Ask]] = {}
        """Threads that search, each with those it searches for. Two may take the last place at once, which does no harm."""
        self._waiting: deque[Ask] = deque()
        self._mutex = threading.Lock()
        self._nobody_is_away()

    def search(
        self,
        view: View,
        queries: NDArray[Any],
        k: int,
        allowed: Selection | None = None,
        exact: bool = False,
        target_recall: float | None = None,
        end: float | None = None,
        note: Note | None = None,
        *,
        alone: bool = False,
        square: float | None = None,
    ) -> Found:
        """`view.search` in turn, for a few queries. DeadlineExceeded when `end` passes meanwhile.

        `end` is a time of `time.monotonic`. `alone` shares no call: for slices of a large batch. `square` is the
        squared length of a single query, where it is known.
        """
        busy = len(self._running)
        if (
            self._waiting or self._returning or note is not None or len(queries) >= view.asks_devices_from
            or (busy >= self._cores and busy >= self._places(view, queries, exact))
        ):  # fmt: skip
            ask = Ask(self, view, queries, k, allowed, exact, target_recall, end, note, alone)
            return self._in_turn(ask)
        key = get_ident()
        try:
            self._running[key] = ()
            self.batches.add(len(queries))
            if end is None and not watched():
                return view.search(
                    queries, k, allowed=allowed, exact=exact, target_recall=target_recall,
                    square=square,
                )  # fmt: skip
            return view.search(
                queries, k, allowed=allowed, exact=exact, target_recall=target_recall,
                check=until(end), square=square,
            )  # fmt: skip
        finally:
            self._running.pop(key, None)
            if self._waiting or self._returning:
                self._call_next()

    def slices(
        self,
        view: View,
        queries: NDArray[Any],
        k: int,
        allowed: Selection | None = None,
        exact: bool = False,
        target_recall: float | None = None,
        end: float | None = None,
        note: Note | None = None,
    ) -> Iterator[Found]:
        """The answers to a large batch, slice by slice, in order."""
        together = view.together(len(queries), k, allowed, exact, Wait(end, stop_if_unwanted))
        start, size = 0, together or _FIRST_SLICE
        if len(queries) <= size:
            # One slice has no pace to be found out, and a search that notes nothing is a shorter one.
            yield self.search(
                view, queries, k, allowed, exact, target_recall, end, note, alone=True
            )
            return
        note = note or Note()
        while start < len(queries):
            stop_if_unwanted()
            if is_over(end):
                raise too_late()
            before = note.search_s
            part = queries[start : start + size]
            yield self.search(view, part, k, allowed, exact, target_recall, end, note, alone=True)
            start += len(part)
            if together:
                continue  # the whole batch shares one way over the bus, so a part of it takes as long
            a_query_s = max(1e-9, (note.search_s - before) / len(part))
            with self._mutex:
                hurried = any(not a.alone for a in self._waiting)
            pace_s = _HURRIED_S if hurried else _PATIENT_S
            size = min(_LARGEST_SLICE, max(_SMALLEST_SLICE, int(pace_s / a_query_s)))

    @property
    def idle(self) -> bool:
        """Whether nobody searches."""
        return not self._running and not self._away

    @property
    def waiting(self) -> int:
        """Searches that wait for their turn."""
        return len(self._waiting)

    def _in_turn(self, ask: Ask) -> Found:
        arrived, end = time.monotonic(), ask.end
        try:
            with self._mutex:
                self._waiting.append(ask)
            # Again after queueing up: who ended before that did not see us wait.
            if len(self._running) < self._places(ask.view, ask.queries, ask.exact):
                self._call_next()
            while not ask.wake.acquire(timeout=left(end)):
                stop_if_unwanted()
                if is_over(end):
                    if self._given_up(ask):
                        raise too_late()
                    end = None  # its turn has come after all, or its answer
                if self._is_served(ask):
                    break
            begun = time.monotonic()
            if ask.note is not None:
                ask.note.wait_s += begun - arrived
            if HERE.now is not None:
                HERE.now.wait_s += begun - arrived
            if ask.found is None:
                self._search_group(ask, begun)
            assert ask.found is not None
            return ask.found
        finally:
            self._settle(ask)

    def _search_group(self, ask: Ask, begun: float) -> None:
        """Our turn: searches for all of the group, and hands their answers to the others."""
        group = ask.group
        noted = [a for a in group if a.note is not None]
        trace = Trace() if noted else None
        queries = ask.queries if len(group) == 1 else np.concatenate([a.queries for a in group])
        self.batches.add(len(queries))
        try:
            found = ask.search(queries, trace)
        except (DeadlineExceeded, Cancelled):
            raise  # ours alone: another of the group searches for the rest
        except Exception:
            if len(group) == 1:
                raise
            # One of the others may be the reason. So each is searched alone, and meets its own failure.
            with self._mutex:
                for other in group:
                    other.alone = True
                self._again(group[1:])
                ask.group = self._running[ask.key] = group[:1]
            self._search_group(ask, begun)
            return
        took_s = time.monotonic() - begun
        for a in noted:
            assert a.note is not None
            assert trace is not None
            a.note.add(trace, len(a.queries), len(queries), took_s)
        start = 0
        for a in group:
            stop = start + len(a.queries)
            a.found = found if len(group) == 1 else _part(found, start, stop)
            if a is not ask:
                a.wake.release()
            start = stop

    def _call_next(self) -> None:
        """Lets those go on who come back, and those who wait first search, as long as a core is free."""
        with self._mutex:
            self._go_on()
            waiting = self._waiting
            # Short searches wait too: while they have the places beside one a core, nobody would ever come back.
            while waiting and not self._returning:
                first = waiting[0]
                if len(self._running) >= self._places(first.view, first.queries, first.exact):
                    return
                waiting.popleft()
                group, room = [first], MAX_TOGETHER - len(first.queries)
                for _ in range(len(waiting)):
                    other = waiting.popleft()
                    if len(other.queries) <= room and first.agrees(other):
                        group.append(other)
                        room -= len(other.queries)
                    else:
                        waiting.append(other)
                self._running[first.key] = first.group = group
                first.wake.release()

    def _places(self, view: View, queries: NDArray[Any], exact: bool) -> int:
        """How many may search at once for another such search to join them."""
        short = len(queries) == 1 and not exact and view.is_simple and view.tail_rows <= _SHORT_TAIL
        return self._cores + _SPARE if short else self._cores

    def _is_served(self, ask: Ask) -> bool:
        """Whether its turn came unnoticed; if not, sees to it that it will. Only Ctrl-C in the few steps in which another
        thread calls the next ones makes that necessary."""
        with self._mutex:
            if ask.found is not None or ask.group:
                return True
            if self._running.get(ask.key):
                ask.group = list(self._running[ask.key])
                return True
            taken = any(ask in group for group in [*self._running.values(), *self._away.values()])
            if not taken and ask not in self._waiting:
                self._waiting.append(ask)
        if len(self._running) < self._places(ask.view, ask.queries, ask.exact):
            self._call_next()
        return False

    def _given_up(self, ask: Ask) -> bool:
        """Takes a search out of the queue, or away from whoever searches for it; False if it is its own turn, or has its answer."""
        with self._mutex:
            if ask.group or ask.found is not None:
                return False
            ask.gone = True
            if ask in self._waiting:
                self._waiting.remove(ask)
            return True

    def _again(self, asks: Sequence[Ask]) -> None:
        """Puts searches first that have no answer and are still wanted. Under the mutex."""
        wanted = [a for a in asks if a.found is None and not a.gone]
        self._waiting.extendleft(reversed(wanted))

    def _settle(self, ask: Ask) -> None:
        """However a search ended, by an answer, an error or Ctrl-C: no place lost, no one forgotten."""
        if ask.found is not None and not ask.group:
            return
        with self._mutex:
            ask.gone = True
            if ask.group:
                # Where our search failed, each of the others meets its own failure, or none.
                self._again(ask.group[1:])
                self._running.pop(ask.key, None)
                self._away.pop(ask.key, None)
            for queue in (self._waiting, self._returning):
                if ask in queue:
                    queue.remove(ask)
        if self._waiting or self._returning:
            self._call_next()


def _part(found: Found, start: int, stop: int) -> Found:
    # Copies: the caller may keep the distances for long, and they would keep the whole batch.
    near, rows = found.distances[start:stop].copy(), found.rows[start:stop].copy()
    return Found(near, rows, found.exact, found.plan)


LANE = SearchLane(CORES)
"""The lane of this process: cores are shared by all databases that it has open."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=LANE.clear)
