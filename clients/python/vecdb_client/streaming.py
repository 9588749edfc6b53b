"""Queries on a stream: what the sync and the asyncio client share.

Whoever has a common query puts it down to wait. A stream that is free takes all that wait, sends them
as one message, and hands out the answers; meanwhile the next ones gather. So nobody waits for a message
to fill, but for the moment that callers who are known to be there need to come back, and messages are as
large as the load makes them. One caller alone gains by the shorter way of a
message on an open stream, many share the fixed cost of a message and of a search.

Whatever goes wrong with a stream, the queries on it are sent again as calls, which have their own way
with errors: a query only reads. A stream whose callers have all left before their time was over, cancelled or by
Ctrl-C, is ended, so that the server works no more for them; what comes next opens another.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Collection, Iterator
from typing import Protocol, TypeVar

import grpc

from . import answers, errors, joining
from .v1 import vecdb_pb2 as pb

MOST_STREAMS = 2
"""Streams that callers of a client share. While the server answers the queries of one, it takes those of the other."""
MOST_QUERIES = 64
MOST_BYTES = 1 << 20
"""Queries and bytes of a message, at most: its answers come late by what it holds."""
GATHER_S = 0.0006
"""Threads that had their answers from one message come back within so long, or are not waited for. Each has
to win the interpreter lock first, so that the first would else travel alone."""
TOGETHER_S = 0.003
"""Queries of threads that a server answers within so long travel in one message, which has one stream busy."""
_WEIGHT = 0.2
"""Of the newest message in the mean of what a query costs."""
FEW_QUERIES = 3
"""So many queries of a client are sent as calls: it may have no more."""
IDLE_S = 20.0
"""A stream that had nothing to do for so long is closed."""
SILENT_S = 5.0
"""A stream whose answer is late by so much is given up, when a caller leaves who waited for it or for its turn."""
PAUSE_S = 1.0
LONG_PAUSE_S = 30.0
"""No stream is opened for so long after one broke; after a server had no room, or knows no streams."""

_REFUSALS = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED)


class Waits(Protocol):
    """A query that waits: its request, its size, and the moment its caller gives up."""

    request: pb.QueryRequest
    end_s: float | None

    @property
    def given_up(self) -> bool:
        """Whether nobody waits for the answer any more."""


One = TypeVar("One", bound=Waits)
Outcome = pb.QueryResponse | answers.Part | errors.VecdbError | None
"""What becomes of a query: its answer, its error, or None where it is to be sent as a call."""


class Sharing:
    """How the queries of a client's threads are shared among its streams. Not for several threads at once.

    While all that are active would be answered in `TOGETHER_S`, they travel together: what a message costs,
    and what threads cost that meet, is then paid once. Else the streams have about as many each.
    """

    def __init__(self) -> None:
        self._under_way = 0
        """Queries that were sent and are not answered."""
        self._expected = 0
        """Callers that had their answer just now and may ask again, until `_expected_until_s`."""
        self._expected_until_s = 0.0
        self._sent_s = 0.0
        """When the newest message was made."""
        self._cost_s = 0.0
        """What a query adds to the time of those it travels with."""

    def asked(self) -> None:
        """A query waits."""
        self._expected -= self._expected > 0

    def sent(self, count: int, now_s: float) -> None:
        """A message was made of so many."""
        self._under_way += count
        self._sent_s = now_s

    def answered(self, count: int, sent_s: float, now_s: float) -> None:
        """The queries of a message have their answers."""
        # With those of the other streams they have shared the cores.
        own_s = (now_s - sent_s) / max(self._under_way, 1)
        self._cost_s += (own_s - self._cost_s) * (_WEIGHT if self._cost_s else 1.0)
        self._under_way -= count
        self._expected = count + (self._expected if now_s < self._expected_until_s else 0)
        self._expected_until_s = now_s + GATHER_S

    def broke(self, count: int) -> None:
        """A message has no answers."""
        self._under_way -= count

    def share(self, waiting: int, now_s: float) -> int:
        """How many of the queries that wait the next message should take; 0: it is not time for one."""
        if not waiting:
            return 0
        if now_s >= self._expected_until_s:
            self._expected = 0
        active = waiting + self._under_way + self._expected
        if active * self._cost_s > TOGETHER_S:
            most = -(-active // MOST_STREAMS)
            return most if waiting >= most or not self._expected else 0
        others = self._under_way >= 2 * waiting and now_s < self._sent_s + TOGETHER_S
        return 0 if self._expected or others else waiting

    def gather_s(self, waiting: int, now_s: float) -> float:
        """How long to wait for more until it is time whoever comes; 0: until somebody comes."""
        if not waiting and self._expected < 2:
            # The next one who comes is enough.
            return 0.0
        until_s = self._expected_until_s if self._expected else self._sent_s + TOGETHER_S
        return max(until_s - now_s, 0.0)


def take(waiting: deque[One], most: int = MOST_QUERIES) -> list[One]:
    """Takes the queries of the next message, at most `most` or `MOST_QUERIES`; those given up are dropped."""
    group: list[One] = []
    size = 0
    most = min(most, MOST_QUERIES)
    while waiting and len(group) < most and size < MOST_BYTES:
        asked = waiting.popleft()
        if not asked.given_up:
            group.append(asked)
            size += len(asked.request.vectors.data)
    return group


def parcels(group: list[One]) -> list[list[One]]:
    """The queries of a message, those together that go as one request."""
    alike = joining.alike([asked.request for asked in group])
    return [[group[position] for position in positions] for positions in alike]


def message_of(sent: list[list[One]]) -> pb.QueryStreamRequest:
    """The message of some parcels."""
    now_s = time.monotonic()
    message = pb.QueryStreamRequest()
    for parcel in sent:
        streamed = message.queries.add()
        joining.join([asked.request for asked in parcel], streamed.query)
        ends = [asked.end_s for asked in parcel if asked.end_s is not None]
        # The deadline of one must not end the search of others: the most patient decides.
        if len(ends) == len(parcel):
            streamed.timeout_s = max(max(ends) - now_s, 1e-3)
    return message


def answered(
    response: pb.QueryStreamResponse, sent: list[list[One]], left: set[int]
) -> Iterator[tuple[One, Outcome]]:
    """The queries that a message has answers to, each with its own; None: to be sent as a call. `left` are the
    parcels without an answer so far. Internal for answers to what was not asked."""
    for answer in response.answers:
        if answer.position not in left:
            raise errors.Internal("the server answered a query twice, or one that was not asked")
        left.remove(answer.position)
        yield from outcomes_of(answer, sent[answer.position])


def outcomes_of(answer: pb.StreamedAnswer, parcel: list[One]) -> Iterator[tuple[One, Outcome]]:
    """The queries of a parcel, each with its answer."""
    include = parcel[0].request.include
    return zip(parcel, joining.outcomes(outcome_of(answer), len(parcel), include), strict=True)


def outcome_of(answer: pb.StreamedAnswer) -> pb.QueryResponse | errors.VecdbError:
    """The answer to a query, or the error of the tree that it met."""
    if answer.WhichOneof("outcome") == "answer":
        return answer.answer
    try:
        found = json.loads(answer.error.error)
        return errors.by_reason(found["reason"])(found["message"], **found["details"])
    except (ValueError, KeyError, TypeError):
        return errors.Internal(f"the server refused a query with code {answer.error.code}")


def nobody_waits(group: Collection[Waits]) -> bool:
    """Whether all callers of a message have given up while the server may go on with it: when the time of the most patient
    is over, it ends by itself."""
    if not all(asked.given_up for asked in group):
        return False
    now_s = time.monotonic()
    return any(asked.end_s is None or asked.end_s > now_s for asked in group)


def late() -> errors.DeadlineExceeded:
    """The error of a query whose time is over."""
    return errors.DeadlineExceeded("not done in time; give a larger timeout_s")


def pause_after_s(error: BaseException) -> float:
    """How long to open no stream after `error` ended one."""
    code = getattr(error, "code", None)
    return LONG_PAUSE_S if callable(code) and code() in _REFUSALS else PAUSE_S
