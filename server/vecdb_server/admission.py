"""Who may enter: which calls are taken when there are more than can be served, and when the others may come again.

A call that would wait too long is refused at once, before its request is read, and told when to come again.
So what is taken is answered in time, and a refusal costs little, however many come. The places to wait in
are shared: a client may take as many as are free after it (dynamic thresholds, Choudhury and Hahne, 1998),
so one alone gets half of them, and there is always room for the next.

Knows nothing of gRPC: whatever brings calls in asks here.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from vecdb.errors import ResourceExhausted

from .fair_pool import FairPool
from .fair_queue import Who

_SHORTEST_DELAY_S, _LONGEST_DELAY_S = 0.02, 5.0
_REST_SHARE = 4.0
"""A long call that finds queries waiting rests for so many times what its last step took."""
_LONGEST_REST_S = 0.25
_LOOK_S = 0.005

REASONS = ("concurrent", "wait", "share", "deadline", "threads")
"""Why calls are refused; the label of a metric."""


class Admission:
    """Any thread may call; the settings in `limits` may be changed while calls come."""

    def __init__(self, limits: Mapping[str, Any]) -> None:
        """Of `limits` `max_concurrent` and `max_wait_s` are read at each call."""
        self._limits = limits
        self._lock = threading.Lock()
        self._refused: Counter[str] = Counter()

    def refused(self) -> dict[str, int]:
        """Calls refused so far, by reason."""
        with self._lock:
            return {reason: self._refused[reason] for reason in REASONS}

    def refusal(
        self, pool: FairPool, who: Who, left_s: float | None, taken: int
    ) -> ResourceExhausted | None:
        """Why a call for `pool` must not enter, with `retry_after_ms` in its details; None if it may.

        `left_s` is what its caller will wait, None without end. `taken` calls are in, in all pools.
        """
        if taken >= self._limits["max_concurrent"]:
            return self._too_many(taken, pool.wait_s)
        longest_s, waiting = self._limits["max_wait_s"], pool.waiting
        places = max(2 * pool.size, longest_s * pool.size / pool.cost_s)
        if 2 * waiting < places and (left_s is None or waiting * pool.cost_s <= left_s * pool.size):
            # So few wait that it does not matter whose they are.
            return None
        mine = pool.of(who.client)[0]
        wait_s = pool.wait_for(mine)
        if left_s is not None and wait_s > left_s:
            return self._no(
                "deadline", wait_s, limit=left_s,
                why=f"it would wait for about {wait_s:.2g} s, and its deadline is in {left_s:.2g} s",
            )  # fmt: skip
        # Places are fewer at once when calls begin to take longer. Who has none yet must not suffer for those
        # who took them before.
        free = (places if mine else 2 * places) - pool.waiting
        if free <= 0:
            return self._no(
                "wait", pool.wait_s, limit=longest_s,
                why=f"it would wait for about {pool.wait_s:.2g} s, and this server lets calls wait for "
                f"{longest_s:g} s at most (max_wait_s)",
            )  # fmt: skip
        if mine and mine >= free:
            return self._no(
                "share", mine * pool.cost_s / pool.size, limit=int(free),
                why=f"{mine} calls of this client wait already, and the other places are for others",
            )  # fmt: skip
        return None

    def refusal_of_long(
        self, pool: FairPool, who: Who, taken: int, setting: str
    ) -> ResourceExhausted | None:
        """The same for a call that may last: it never waits, and no client gets the last quarter of the
        threads alone. `setting` says how many these are."""
        if taken >= self._limits["max_concurrent"]:
            return self._too_many(taken, 1.0)
        if pool.busy >= pool.size:
            return self._no(
                "threads", 1.0, limit=pool.size,
                why=f"all {pool.size} threads for such calls are busy ({setting})",
            )  # fmt: skip
        most = pool.size - pool.size // 4
        if sum(pool.of(who.client)) >= most:
            return self._no(
                "share", 1.0, limit=most,
                why=f"one client may have {most} such calls at once, of the {pool.size} that {setting} allows",
            )  # fmt: skip
        return None

    def refusal_beside(
        self, queries: int, under_way: int, cost_s: float, left_s: float | None
    ) -> ResourceExhausted | None:
        """The same for queries that share the cores with `under_way` others instead of waiting for them, as
        streams do, where each makes all of them last `cost_s` longer. `left_s` is of the most patient."""
        if not under_way:
            return None
        wait_s = cost_s * under_way
        if left_s is not None and wait_s > left_s:
            return self._no(
                "deadline", wait_s, limit=left_s,
                why=f"it would take about {wait_s:.2g} s, and its deadline is in {left_s:.2g} s",
            )  # fmt: skip
        longest_s = self._limits["max_wait_s"]
        if wait_s <= longest_s:
            return None
        return self._no(
            "wait", wait_s - longest_s, queries, limit=longest_s,
            why=f"{under_way} queries of streams are under way, which will take about {wait_s:.2g} s, and "
            f"this server lets queries wait for {longest_s:g} s at most (max_wait_s)",
        )  # fmt: skip

    def _too_many(self, taken: int, delay_s: float) -> ResourceExhausted:
        return self._no(
            "concurrent", delay_s, limit=self._limits["max_concurrent"],
            why=f"{taken} calls are under way or waiting, which is all that this server takes at once "
            "(max_concurrent)",
        )  # fmt: skip

    def _no(
        self, reason: str, delay_s: float, count: int = 1, *, limit: float, why: str
    ) -> ResourceExhausted:
        with self._lock:
            self._refused[reason] += count
        # Random, or those who were refused together would come back together.
        delay_s *= random.uniform(0.75, 1.5)  # nosec B311: no secret
        delay_s = min(_LONGEST_DELAY_S, max(_SHORTEST_DELAY_S, delay_s))
        return ResourceExhausted(
            f"the server is too busy for this call: {why}; nothing was done, try again in {delay_s:.2g} s",
            retry_after_ms=int(1000 * delay_s),
            refused=reason,
            limit=limit,
        )


def give_way(
    took_s: float, queries_wait: Callable[[], bool], wanted: Callable[[], bool] = lambda: True
) -> float:
    """Lets queries go first: returns when none waits, or after a rest that leaves a long call a fifth of the
    time at least. `took_s` is what its last step took; seconds rested."""
    begun_s = time.monotonic()
    end_s = begun_s + min(_LONGEST_REST_S, _REST_SHARE * took_s)
    while queries_wait() and wanted() and time.monotonic() < end_s:
        time.sleep(_LOOK_S)
    return time.monotonic() - begun_s
