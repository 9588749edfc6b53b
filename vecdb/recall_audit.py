"""The recall audit: some live queries are answered again exactly, to see what recall they had.

A query is sampled with probability `audit_share` when its answer was approximate, and its vector, view
and filter are put into a short queue; a thread of low priority answers it again exactly and counts how
many of the true neighbours the user got. When the queue is full the sample is dropped: a busy machine
audits less, no query waits. In memory are at most 17 samples (16 wait, one is being answered), each with
the view and the filter result of its query, and of each vector field the hits of the last 1,000 audits and
the last 512 query vectors.

When the 95 % interval of a field lies below its target recall as a whole, the log says so and the
curve is measured again, with those users' queries; when the recall stays below, the index is built
anew. The interval is looked at every 64 audits, since a look after each would cry wolf.
"""

from __future__ import annotations

import logging
import math
import os
import random
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary, ref

import numpy as np
from numpy.typing import NDArray

from .core import Core
from .errors import VecdbError
from .index import View
from .search_lane import LANE
from .selection import Selection
from .types import AuditStats

log = logging.getLogger("vecdb")

WINDOW = 1_000
"""Newest audits of a field that its figures are made of."""
_QUEUE = 16
_VECTORS = 512
LOOK_EVERY = 64
"""Audits between two looks; a measurement takes as many queries at least."""
_LEAST_QUERIES = 30
"""Audits below which the spread of recall between queries is not trusted."""
_Z = 1.96
_PATIENCE_S = 600.0
"""For a new recall curve, before the next step is taken without it."""
_LOW_PRIORITY = 10
_SPARE_S = 1.0
"""How long a sample waits for a moment in which nobody searches; on a busy machine it goes on then."""
_REST, _LONGEST_REST_S, _QUIET_S = 200.0, 10.0, 0.05
"""An audit takes a core and the bandwidth of the memory from queries that come meanwhile. So unless none came for
`_QUIET_S`, the next one waits for 200 times as long as the last one took: they then meet one query in 200, which p99 does
not see. (116,659 x 384, 3,000 queries a second by chance over gRPC on 2 cores: p99 8.1 ms with three audits a second
instead of 4.4 without.) 10 s at most: the recall of a large collection must be known some time."""


class Care(Protocol):
    """Who can mend an index; see `Builder`."""

    def recalibrate(self, core: Core, number: int, queries: NDArray[Any]) -> None: ...

    def rebuild(self, core: Core, number: int) -> None: ...


class _Sample(NamedTuple):
    field: str
    view: View
    query: NDArray[Any]
    k: int
    allowed: Selection | None
    near: NDArray[np.float32]
    """Distances that the user got, padded with NaN."""


class _Window:
    """What the audits of one vector field have shown."""

    def __init__(self) -> None:
        self.audited = 0
        self.pairs: deque[tuple[int, int]] = deque(maxlen=WINDOW)
        """(hits, true neighbours) of each query."""
        self.queries: deque[NDArray[Any]] = deque(maxlen=_VECTORS)
        self.index: Any = None
        """(rows, high-water mark) of the main index, and its curve: a new one starts a new window."""
        self.mended = ""
        """What was asked for this index already: recalibrated, rebuilt."""
        self.mended_index: Any = None
        self.mended_s = 0.0

    def add(self, sample: _Sample, hits: int, wanted: int) -> None:
        main = sample.view.main
        index = None if main is None else (main.n, main.high_water, main.curve)
        if index != self.index:
            if index is None or self.index is None or index[:2] != self.index[:2]:
                self.mended = ""
            self.index = index
            self.pairs.clear()
        self.pairs.append((hits, wanted))
        self.queries.append(sample.query)
        self.audited += 1

    def stats(self) -> AuditStats:
        # A copy in one step: the audit thread may be appending.
        return AuditStats(self.audited, *interval(list(self.pairs)))


class Audit:
    """The audit of one open collection, which it does not keep alive. Any thread may call."""

    def __init__(self, core: Core, care: Care, share: float, seed: int | None = None) -> None:
        self._core = ref(core)
        self._care = care
        self._share = share
        self._random = random.Random(seed).random  # nosec B311 # a sample, no secret
        self._queue: deque[_Sample] = deque()
        self._windows: dict[str, _Window] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        # Of the thread alone: until when it rests, and when queries were last seen to come.
        self._rest_until_s = 0.0
        self._searched = -1.0
        self._searched_s = 0.0

    def offer(
        self,
        field: str,
        view: View,
        queries: NDArray[Any],
        k: int,
        allowed: Selection | None,
        near: NDArray[np.float32],
    ) -> None:
        """Takes each of these approximately answered queries with the settled probability.

        Costs 0.1 us for one query that is not taken. `near` (q, >= k) are the distances given.
        """
        if len(queries) == 1:
            if self._random() < self._share:
                self._take([0], field, view, queries, k, allowed, near)
            return
        taken = [i for i in range(len(queries)) if self._random() < self._share]
        if taken:
            self._take(taken, field, view, queries, k, allowed, near)

    def stats(self, field: str) -> AuditStats:
        """The running recall of a vector field, empty for the record's own."""
        window = self._windows.get(field)
        return AuditStats() if window is None else window.stats()

    def wait(self) -> None:
        """Returns when no sample waits any more; for tests."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _take(
        self,
        taken: list[int],
        field: str,
        view: View,
        queries: NDArray[Any],
        k: int,
        allowed: Selection | None,
        near: NDArray[np.float32],
    ) -> None:
        with self._lock:
            for i in taken[: _QUEUE - len(self._queue)]:
                # Copies: an array of the caller's may change, and a row would keep its whole batch.
                self._queue.append(
                    _Sample(field, view, queries[i : i + 1].copy(), k, allowed, near[i, :k].copy())
                )
            if self._queue and self._thread is None:
                thread = threading.Thread(target=self._run, name="vecdb-audit", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no thread to be had: the query was answered all the same
                    self._queue.clear()
                    return
                self._thread = thread

    def _run(self) -> None:
        """Answers what is queued, and ends: so nothing is left to stop when the collection closes."""
        _lower_priority()
        while True:
            core = self._core()
            with self._lock:
                if core is None or core.closed is not None:
                    self._queue.clear()
                if core is None or not self._queue:
                    self._thread = None
                    return
                sample = self._queue.popleft()
            try:
                self._answer_again(core, sample)
            except VecdbError as error:
                log.debug("collection %s: not audited: %s", core.info.name, error.message)
            except Exception:
                log.exception("collection %s: the recall audit failed", core.info.name)
            del core, sample  # a view keeps its index in memory

    def _answer_again(self, core: Core, sample: _Sample) -> None:
        if not self._wait_for_spare_time(core):
            # Others will come, and each that waits keeps the index of its moment in memory.
            with self._lock:
                self._queue.clear()
        core.check_open()
        if sample.view.main is not None and not sample.view.main.is_whole:
            return  # A file behind it was cut off meanwhile.
        begun_s = time.monotonic()
        exact = sample.view.search(sample.query, sample.k, allowed=sample.allowed, exact=True)
        now_s = time.monotonic()
        self._rest_until_s = now_s + min(_REST * (now_s - begun_s), _LONGEST_REST_S)
        hits, wanted = hits_of(sample.near, exact.distances[0], sample.view.metric)
        if not wanted:
            return
        window = self._windows.get(sample.field)
        if window is None:
            window = self._windows[sample.field] = _Window()
        window.add(sample, hits, wanted)
        if window.audited % LOOK_EVERY == 0 and len(window.pairs) >= LOOK_EVERY:
            self._judge(core, sample.field, window)

    def _wait_for_spare_time(self, core: Core) -> bool:
        """Returns True when nobody searches; False when the rest is over, or `_SPARE_S`, and somebody does."""
        begun_s = time.monotonic()
        end_s = max(begun_s + _SPARE_S, self._rest_until_s)
        rests = self._rest_until_s > begun_s
        while core.closed is None and (now_s := time.monotonic()) < end_s:
            searched = LANE.batches.read().total
            if searched != self._searched:
                self._searched, self._searched_s = searched, now_s
            if LANE.idle and (not rests or now_s >= self._searched_s + _QUIET_S):
                return True
            time.sleep(0.01 if rests else 0.005)
        return False

    def _judge(self, core: Core, name: str, window: _Window) -> None:
        field = core.field(name or None)
        target, found = field.settings.target_recall, window.stats()
        if found.high >= target or window.mended == "rebuilt" or core.read_only:
            return
        unchanged = window.mended and window.index == window.mended_index
        if unchanged and time.monotonic() < window.mended_s + _PATIENCE_S:
            return  # what was asked for has not come yet: these are answers by the old curve
        again = window.mended == "recalibrated"
        step = "its index is built anew" if again else "its recall curve is measured again"
        log.warning(
            "collection %s%s: recall of the last %d audited queries is %.3f (95 %% interval %.3f to "
            "%.3f), below the target of %.3f: %s",
            core.info.name, f", vectors {name}" * bool(name), len(window.pairs), found.recall,
            found.low, found.high, target, step,
        )  # fmt: skip
        window.pairs.clear()
        window.mended_index, window.mended_s = window.index, time.monotonic()
        if again:
            window.mended = "rebuilt"
            self._care.rebuild(core, field.number)
        else:
            window.mended = "recalibrated"
            self._care.recalibrate(core, field.number, np.concatenate(list(window.queries)))


def hits_of(near: NDArray[np.float32], exact: NDArray[np.float32], metric: str) -> tuple[int, int]:
    """(answers as near as a true neighbour, true neighbours); ties at the last place count.

    Distances of cosine and ip are 1 - x, rounded where 1 is; those of others may be as small as the vectors are."""
    exact = exact[~np.isnan(exact)]
    if not len(exact):
        return 0, 0
    last = float(exact[-1])
    slack = 1e-6 * (max(1.0, abs(last)) if metric in ("cosine", "ip") else abs(last))
    return min(int(np.count_nonzero(near <= last + slack)), len(exact)), len(exact)


def interval(pairs: Iterable[tuple[int, int]]) -> tuple[float, float, float]:
    """Mean recall of queries given as (hits, true neighbours), and its 95 % interval.

    Hits of one query stand and fall together, so they are no independent trials: queries are. This is
    Wilson's interval for the effective number of trials, which is the number of neighbours divided
    by the design effect (Kish, Survey Sampling, 1965), the variance of a mean over clusters in units of
    that of independent trials; so recommended for clustered proportions near 1 by Korn and Graubard
    (Survey Methodology 24, 1998) and by Dean and Pagano (J. Survey Statistics and Methodology 3,
    2015). It is never taken below the number of queries, which is the worst case: a number between 0
    and 1 with mean p cannot vary more than p (1 - p). That is also used where the spread between
    queries says nothing: for few queries, and where all are alike.
    """
    counts = np.array(list(pairs), np.float64).reshape(-1, 2)
    n = len(counts)
    if not n:
        return 1.0, 0.0, 1.0
    hits, wanted = counts[:, 0], counts[:, 1]
    total = float(wanted.sum())
    mean = float(hits.sum()) / total
    trials = float(n)
    if n >= _LEAST_QUERIES:
        spread = float(((hits - mean * wanted) ** 2).sum()) * n / (n - 1) / total**2
        if spread > 0.0:
            trials = min(total, max(n, mean * (1.0 - mean) / spread))
    square = _Z * _Z
    centre = (mean + square / (2 * trials)) / (1 + square / trials)
    half = _Z / (1 + square / trials)
    half *= math.sqrt(mean * (1 - mean) / trials + square / (4 * trials * trials))
    return mean, max(0.0, centre - half), min(1.0, centre + half)


_audits: WeakKeyDictionary[Core, Audit] = WeakKeyDictionary()
_audits_lock = threading.Lock()


def audit_of(core: Core, care: Care) -> Audit | None:
    """The audit that all handles of an open collection share; None when `audit_share` is 0."""
    share = float(core.options["audit_share"])
    if share == 0.0:
        return None
    with _audits_lock:
        audit = _audits.get(core)
        if audit is None:
            audit = _audits[core] = Audit(core, care, share)
        return audit


def _lower_priority() -> None:
    """Of the calling thread, where the system knows priorities of threads (Linux) and it is not lower already."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOW_PRIORITY)
