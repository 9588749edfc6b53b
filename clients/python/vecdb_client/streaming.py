"""Queries on a stream: what the sync and the asyncio client share.

Whoever has a common query puts it down to wait. A stream that is free takes all that wait, sends them
as one message, and hands out the answers; meanwhile the next ones gather. So nobody waits for a message
to fill, but for the moment that callers who are known to be there need to come back, and messages are as
large as the load makes them. One caller alone gains by the shorter way of a
message on an open stream, many share the fixed cost of a message and of a search.

Whatever goes wrong with a stream, the queries on it are sent again as calls, which have their own way
with errors: a query only reads.
"""

from __future__ import annotations

import json
import time
from collections import deque
from typing import Protocol, TypeVar

import grpc

from . import errors
from .v1 import vecdb_pb2 as pb

MOST_STREAMS = 2
"""Streams a client opens. While the server answers the queries of one, it takes those of the other."""
MOST_QUERIES = 64
MOST_BYTES = 1 << 20
"""Queries and bytes of a message, at most: its answers come late by what it holds."""
GATHER_S = 0.0003
"""Threads that had their answers from one message come back within so long, or are not waited for. Each has
to win the interpreter lock first, so that the first would else travel alone."""
FEW_QUERIES = 3
"""So many queries of a client are sent as calls: it may have no more."""
IDLE_S = 20.0
"""A stream that had nothing to do for so long is closed."""
SILENT_S = 5.0
"""A stream whose answer is late by so much is given up."""
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


def share(active: int) -> int:
    """Queries of a message when the streams share those of `active` callers."""
    return -(-active // MOST_STREAMS)


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


def message_of(group: list[One]) -> pb.QueryStreamRequest:
    """The message of some queries."""
    now_s = time.monotonic()
    message = pb.QueryStreamRequest()
    for asked in group:
        left_s = 0.0 if asked.end_s is None else max(asked.end_s - now_s, 1e-3)
        message.queries.add(query=asked.request, timeout_s=left_s)
    return message


def outcome_of(answer: pb.StreamedAnswer) -> pb.QueryResponse | errors.VecdbError:
    """The answer to a query, or the error of the tree that it met."""
    if answer.WhichOneof("outcome") == "answer":
        return answer.answer
    try:
        found = json.loads(answer.error.error)
        return errors.by_reason(found["reason"])(found["message"], **found["details"])
    except (ValueError, KeyError, TypeError):
        return errors.Internal(f"the server refused a query with code {answer.error.code}")


def late() -> errors.DeadlineExceeded:
    """The error of a query whose time is over."""
    return errors.DeadlineExceeded("not done in time; give a larger timeout_s")


def pause_after_s(error: BaseException) -> float:
    """How long to open no stream after `error` ended one."""
    code = getattr(error, "code", None)
    return LONG_PAUSE_S if callable(code) and code() in _REFUSALS else PAUSE_S
