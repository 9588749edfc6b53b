"""Work that waits for a thread, in a fair order: by client first, then by collection of that client.

Whoever has had the least of the threads' time comes next, so one that sends a thousand calls, or costly
ones, delays itself and not the others. The time is what calls really took. A client that comes back after a
pause starts where the others are: what it did not use before is no credit.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")
_NOTHING_S = 1e-9
"""Less than any work takes: sums of floats are not exact."""
_LOOK_EVERY = 256
"""Settled pieces of work between two looks for members that can be forgotten."""


class Who(NamedTuple):
    """Whose a piece of work is. The collection is only a hint: a false one changes the order among the
    work of its own client, never among clients."""

    client: str
    collection: str


class _Member:
    """A client, or a collection of one."""

    __slots__ = ("jobs", "key", "parts", "running", "used_s", "waiting")

    def __init__(self, key: str, used_s: float) -> None:
        self.key = key
        self.used_s = used_s
        self.waiting = 0
        self.running = 0
        self.parts = _Turns()
        """Of a client: its collections."""
        self.jobs: deque[Any] = deque()
        """Of a collection: its work, oldest first."""


class _Turns:
    """Members, and which of those that wait has used the least."""

    __slots__ = ("_heap", "_members", "_number", "active", "clock_s")

    def __init__(self) -> None:
        self.clock_s = 0.0
        """What a member has used that always got its share; here newcomers begin. It goes on by the time that
        is used, divided among those who have work, so that no crowd of newcomers passes the others by."""
        self.active = 0
        """Members with work."""
        self._members: dict[str, _Member] = {}
        self._heap: list[tuple[float, int, _Member]] = []
        self._number = 0

    def __len__(self) -> int:
        return len(self._members)

    def get(self, key: str) -> _Member | None:
        return self._members.get(key)

    def join(self, key: str) -> _Member:
        """The member with this key, with one more piece of work."""
        member = self._members.get(key)
        if member is None:
            member = self._members[key] = _Member(key, self.clock_s)
        if not member.waiting and not member.running:
            self.active += 1
        member.waiting += 1
        if member.waiting == 1:
            member.used_s = max(member.used_s, self.clock_s)
            self._push(member)
        return member

    def first(self, cost_s: float) -> _Member:
        """The member whose turn it is, charged with what its work will probably take."""
        while True:
            used_s, _, member = heapq.heappop(self._heap)
            if not member.waiting:
                continue  # it was passed over the others
            if used_s < member.used_s:
                self._push(member)  # it was charged since
                continue
            self._begin(member, cost_s)
            if member.waiting:
                self._push(member)
            return member

    def first_idle(self, cost_s: float) -> _Member | None:
        """The same of those of whom nothing runs; None where there are none. Looks at all of them."""
        idle = [one for one in self._members.values() if one.waiting and not one.running]
        if not idle:
            return None
        member = min(idle, key=lambda one: one.used_s)
        self._begin(member, cost_s)
        return member

    def _begin(self, member: _Member, cost_s: float) -> None:
        member.used_s += cost_s
        member.waiting -= 1
        member.running += 1

    def settle(self, member: _Member, charged_s: float, took_s: float) -> None:
        member.used_s += took_s - charged_s
        member.running -= 1
        self.clock_s += took_s / self.active
        if not member.waiting and not member.running:
            self.active -= 1

    def forget_idle(self) -> None:
        """Drops members without work whose use is no more than everybody's."""
        for member in list(self._members.values()):
            if (
                not member.waiting
                and not member.running
                and member.used_s <= self.clock_s + _NOTHING_S
            ):
                del self._members[member.key]
            elif len(member.parts):
                member.parts.forget_idle()

    def _push(self, member: _Member) -> None:
        self._number += 1
        heapq.heappush(self._heap, (member.used_s, self._number, member))


class Ticket(NamedTuple):
    """Work that was taken out, for `FairQueue.settle`."""

    client: _Member
    collection: _Member
    charged_s: float


class FairQueue(Generic[T]):
    """Not for several threads: whoever uses it holds a lock. Each call takes some us, however many wait."""

    def __init__(self) -> None:
        self._clients = _Turns()
        self.waiting = 0
        """Pieces of work that wait."""
        self._settled = 0

    @property
    def active(self) -> int:
        """Clients with work."""
        return self._clients.active

    @property
    def clients(self) -> int:
        """Clients with work, or with a use that is not evened out yet."""
        return len(self._clients)

    def of(self, client: str) -> tuple[int, int]:
        """(pieces of work of a client that wait, that run)."""
        member = self._clients.get(client)
        return (0, 0) if member is None else (member.waiting, member.running)

    def put(self, who: Who, job: T) -> None:
        self._clients.join(who.client).parts.join(who.collection).jobs.append(job)
        self.waiting += 1

    def take(self, cost_s: float) -> tuple[T, Ticket]:
        """The next piece of work, which probably takes `cost_s`; IndexError when nothing waits."""
        client = self._clients.first(cost_s)
        collection = client.parts.first(cost_s)
        self.waiting -= 1
        return collection.jobs.popleft(), Ticket(client, collection, cost_s)

    def take_idle(self, cost_s: float) -> tuple[T, Ticket] | None:
        """The next piece of work of a client of whom none runs; None where there is none."""
        client = self._clients.first_idle(cost_s)
        if client is None:
            return None
        collection = client.parts.first(cost_s)
        self.waiting -= 1
        return collection.jobs.popleft(), Ticket(client, collection, cost_s)

    def settle(self, ticket: Ticket, took_s: float) -> None:
        """Charges what a piece of work has really taken."""
        ticket.client.parts.settle(ticket.collection, ticket.charged_s, took_s)
        self._clients.settle(ticket.client, ticket.charged_s, took_s)
        self._settled += 1
        if self._settled % _LOOK_EVERY == 0:
            self._clients.forget_idle()
