"""Who may enter: which calls are taken when there are more than can be served, and when the others may come again.

A call that would wait too long is refused at once, before its request is read, and told when to come again.
So what is taken is answered in time, and a refusal costs little, however many come. The places to wait in
are shared: a client may take as many as are free after it (dynamic thresholds, Choudhury and Hahne, 1998),
so one alone gets half of them, and there is always room for the next.

Knows nothing of gRPC: whatever brings calls in asks here.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vecdb.errors import DeadlineExceeded, ResourceExhausted

from .fair_pool import FairPool
from .fair_queue import Who

_SHORTEST_DELAY_S, _LONGEST_DELAY_S = 0.02, 5.0
_REST_SHARE = 4.0
"""A long call that finds queries waiting rests for so many times what its last step took."""
_LONGEST_REST_S = 0.25
_LOOK_S = 0.005
_LEAST_BESIDE = 4
"""Places of queries on streams, however long each takes: so a client has two at once, one on each of its streams."""

REASONS = ("concurrent", "wait", "share", "deadline", "threads")
"""Why calls are refused; the label of a metric."""
UNSENT = ("room", "limit")
"""Why calls are ended whose request has not come: another needs the thread, max_request_s; the label of a metric."""


def retry_after_ms(delay_s: float) -> int:
    """When a call that was refused may come again, for the details of its error: after about `delay_s`, 20 ms to
    5 s."""
    # Random, or those who were refused together would come back together.
    delay_s *= random.uniform(0.75, 1.5)  # nosec B311 # no secret
    return int(1000 * min(_LONGEST_DELAY_S, max(_SHORTEST_DELAY_S, delay_s)))


class Beside(NamedTuple):
    """What a message of queries finds under way on streams."""

    under_way: int
    """Queries, of all clients."""
    mine: int
    """Those of its own client."""
    streams: int
    """Streams that they came by."""
    cost_s: float
    """How much longer each of them makes all others last."""


class Admission:
    """Any thread may call; the settings in `limits` may be changed while calls come."""

    def __init__(self, limits: Mapping[str, Any]) -> None:
        """Of `limits` `max_concurrent` and `max_wait_s` are read at each call."""
        self._limits = limits
        self._lock = threading.Lock()
        self._refused: Counter[str] = Counter()
        self._unsent: Counter[str] = Counter()

    @property
    def request_wait_s(self) -> float:
        """The setting, as it is now."""
        return float(self._limits["request_wait_s"])

    @property
    def max_request_s(self) -> float:
        """The setting, as it is now."""
        return float(self._limits["max_request_s"])

    def refused(self) -> dict[str, int]:
        """Calls refused so far, by reason."""
        with self._lock:
            return {reason: self._refused[reason] for reason in REASONS}

    def unsent(self) -> dict[str, int]:
        """Calls ended so far because their request had not come, by reason."""
        with self._lock:
            return {reason: self._unsent[reason] for reason in UNSENT}

    def end_of_unsent(self, reason: str, waited_s: float) -> DeadlineExceeded:
        """The error of a call whose request has not come, which is ended now; counts it."""
        with self._lock:
            self._unsent[reason] += 1
        setting = "request_wait_s" if reason == "room" else "max_request_s"
        why = (
            "other calls wait for the thread that it keeps"
            if reason == "room"
            else f"a server waits for no longer than {self.max_request_s:g} s"
        )
        return DeadlineExceeded(
            f"the message that this call is to send had not come after {waited_s:.2g} s, and {why} ({setting}); "
            "nothing was done with it. Send smaller messages, or try again when less is going on",
            waited_s=round(waited_s, 3),
            setting=setting,
        )

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
        # who took them before: where few clients wait its turn comes soon, however many calls they have there.
        if not mine and wait_s <= longest_s:
            return None
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

    def refusal_of_few(
        self, mine: int, taken: int, most: int, what: str
    ) -> ResourceExhausted | None:
        """The same for calls that have `most` places of their own, of which `taken` are, `mine` by this client."""
        if taken >= most:
            return self._no(
                "wait", 1.0, limit=most, why=f"all {most} places for {what} are taken"
            )  # fmt: skip
        if mine and mine >= most - taken:
            return self._no(
                "share", 1.0, limit=most,
                why=f"{mine} {what} of this client are in, and the other places are for others",
            )  # fmt: skip
        return None

    def refusal_beside(
        self, queries: int, beside: Beside, left_s: float | None
    ) -> ResourceExhausted | None:
        """The same for a message of queries of one client, which share the cores with others instead of waiting for
        them, as streams do. `left_s` is of the most patient."""
        if not beside.under_way:
            return None
        cost_s, longest_s = beside.cost_s, self._limits["max_wait_s"]
        # Until these are answered each of the other streams has had as much of the cores.
        wait_s = cost_s * min(beside.under_way, queries * beside.streams)
        if left_s is not None and wait_s > left_s:
            return self._no(
                "deadline", wait_s, queries, limit=left_s,
                why=f"it would take about {wait_s:.2g} s, and its deadline is in {left_s:.2g} s",
            )  # fmt: skip
        # As for calls: who has none under way must not suffer for the many of another.
        if not beside.mine and wait_s <= longest_s:
            return None
        places = max(_LEAST_BESIDE, longest_s / cost_s) if cost_s else math.inf
        free = (places if beside.mine else 2 * places) - beside.under_way
        all_s = cost_s * beside.under_way
        if free <= 0:
            return self._no(
                "wait", max(all_s - longest_s, 0.0), queries, limit=longest_s,
                why=f"{beside.under_way} queries of streams are under way, which will take about {all_s:.2g} s, and "
                f"this server lets queries wait for {longest_s:g} s at most (max_wait_s)",
            )  # fmt: skip
        if beside.mine >= free:
            return self._no(
                "share", cost_s * beside.mine, queries, limit=int(free),
                why=f"{beside.mine} queries of this client are under way on streams, and the other places are for "
                "others",
            )  # fmt: skip
        return None

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
        delay_ms = retry_after_ms(delay_s)
        return ResourceExhausted(
            f"the server is too busy for this call: {why}; nothing was done, try again in {delay_ms / 1000:.2g} s",
            retry_after_ms=delay_ms,
            refused=reason,
            limit=limit,
        )


class Rests:
    """The rests of one long call, from its begin on: called between its steps, it lets queries go first. One thread."""

    def __init__(
        self, queries_wait: Callable[[], bool], wanted: Callable[[], bool] = lambda: True
    ) -> None:
        self._queries_wait = queries_wait
        self._wanted = wanted
        self._since_s = time.monotonic()

    def __call__(self) -> float:
        """Seconds rested: for up to four times what was done since the last rest, see `give_way`."""
        took_s = time.monotonic() - self._since_s
        if took_s < _LOOK_S:
            # Who looks up more often than queries are looked for would rest more than work.
            return 0.0
        rested_s = give_way(took_s, self._queries_wait, self._wanted)
        self._since_s = time.monotonic()
        return rested_s


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
