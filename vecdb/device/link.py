"""A device as the engine sees it: a queue in front of a worker process, which is started again when it dies.

One thread, the *link*, starts workers and speaks to them, one request at a time; any other thread puts
requests into its queue and waits. Whatever waits when the link is free is the next batch (`queue.py`).

Long work (placing, k-means) is a row of short requests, each of which queues up anew, so searches
get between them. What cannot be cut is the copy of lists to the card, a round of k-means and the building of a graph: searches of
that device wait meanwhile, those that the host can answer as well for a quarter of a second at most (`turns.Wait`).

What a search costs beside the card's own call: 0.1 ms. Stand-in card, 64 vectors of 384 dimensions, k = 10, one
caller, 2 cores of an AMD EPYC (Zen 4), of which another program used one; tenth percentile of 3,000 searches (median): one
query 100 us (122), 32 queries 110 us (121 to 164), and 1,024 queries, which is 1.6 MB to copy, 0.37 ms (0.53). The
time goes into four changes of thread: caller, link, worker, link, caller.

When the worker dies (a fault of the card, SIGKILL, no answer in time) all requests that are in it or wait
fail with DeviceLost, placements are gone, `generation` grows, and another worker is started: after 0.1 s, and
twice as long after each further death, up to 30 s, until one has answered a search or taken a placement.
After `GIVE_UP_AFTER` deaths in a row the device stays down and `stats` says why.

A forked child must not use the link of its parent: every call there raises Closed.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence

import numpy as np

from ..errors import InvalidVector
from ..turns import PATIENT, Wait
from ..types import DeviceStats
from .card import Floats, Rows
from .life import GIVE_UP_AFTER, MEMORY_BYTES
from .placing import Placing
from .queue import Ask, Waiting

_DEFAULT_SHARE = 0.9


class Device(Placing):
    """Any thread may call. Must be closed; the end of the process ends the worker too."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str] = ("--card=faiss",),
        *,
        environment: dict[str, str] | None = None,
        budget_bytes: int = 0,
        queue_limit: int = 1_024,
        timeout_s: float = 30.0,
        memory_bytes: int = MEMORY_BYTES,
        give_up_after: int = GIVE_UP_AFTER,
    ) -> None:
        """Starts the worker and waits until it is ready; DeviceLost says why it is not.

        `arguments` and `environment` choose the card, see `choice.py`. `budget_bytes` may be placed; 0:
        0.9 of what is free at the start. `timeout_s` is `device_timeout_s`.
        """
        super().__init__(
            name,
            arguments,
            environment or {},
            queue_limit,
            timeout_s,
            memory_bytes,
            give_up_after,
        )
        self.budget_bytes = budget_bytes or int(_DEFAULT_SHARE * self.info.free_bytes)
        _DEVICES.add(self)

    def search(
        self,
        handle: int,
        generation: int,
        queries: Floats,
        k: int,
        setting: int,
        wait: Wait = PATIENT,
        mask: int = 0,
    ) -> tuple[Floats, Rows, int]:
        """The k nearest of each of `queries` (q, d) float32: scores and positions (q, k), as `Card` gives
        them, and how many queries shared the call (the most, where the batch was cut).

        `mask` is the number of one that was given to `mask`. LimitExceeded when the queue is full; what the `wait` says;
        DeviceLost, DeviceFull, Closed; FailedPrecondition for what the card refuses.
        """
        return collected(self.begin(handle, generation, queries, k, setting, wait, mask).result())

    def begin(
        self,
        handle: int,
        generation: int,
        queries: Floats,
        k: int,
        setting: int,
        wait: Wait = PATIENT,
        mask: int = 0,
    ) -> Waiting:
        """`search` without waiting: for one caller who asks several devices. See `collected`."""
        x = np.ascontiguousarray(queries, np.float32)
        if x.ndim != 2 or not x.size or k < 1:
            raise InvalidVector(
                f"queries have shape {x.shape} and k is {k}, expected (q, d) and k > 0"
            )
        step = self._fitting(x.shape[1], k)
        asks = [
            Ask(int(handle), generation, x[start : start + step], int(k), int(setting), mask)
            for start in range(0, len(x), step)
        ]
        return Waiting(asks, self._impatient(wait), self._put, self._queue.withdraw)

    def spent(self, handle: int) -> tuple[float, int, int]:
        """Seconds that searches of a placement have taken of the device, in how many calls, and for how many queries."""
        return self._spent.get(handle, (0.0, 0, 0))

    def stats(self) -> DeviceStats:
        with self._placed_lock:
            used, placements = sum(self._placed.values()), len(self._placed)
        return DeviceStats(
            self.name, self.info.name, self._state, self.info.total_bytes, self.budget_bytes, used,
            placements, len(self._queue), self._batches, self._queries, self._restarts,
            self._last_error, self.evictions,
        )  # fmt: skip


def collected(asks: list[Ask]) -> tuple[Floats, Rows, int]:
    """What `Waiting.result` gave, as the arrays of the whole batch and the largest call it was part of."""
    together = max(a.together for a in asks)
    parts = [a.found for a in asks if a.found is not None]
    if len(parts) == 1:
        return (*parts[0], together)
    return (
        np.concatenate([part[0] for part in parts]),
        np.concatenate([part[1] for part in parts]),
        together,
    )


_DEVICES: weakref.WeakSet[Device] = weakref.WeakSet()


def _after_fork() -> None:
    for device in list(_DEVICES):
        device._in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
