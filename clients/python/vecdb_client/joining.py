"""Queries that agree in all but the vector go as one request of several vectors, and their answer is taken apart.

What a request costs on both sides is then paid once: messages within messages, limits, the call of the engine.
A failure that one of them may have brought about sends them all as calls, where each meets its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from . import answers, errors
from .types import DEFAULT_K
from .v1 import vecdb_pb2 as pb

MOST_K = 1_000
"""Queries that ask for more go alone: their answers might not fit one message together."""
MOST_INCLUDED = 1_000
"""Hits of queries that go as one, at most, where parts of records are included: so that an answer is refused as too
large, and its queries are asked again one by one, only where each hit has some 60 KiB."""
_INCLUDED = frozenset((pb.INCLUDE_DOCUMENT, pb.INCLUDE_METADATA, pb.INCLUDE_URI))
"""Parts of records that a joined answer may have. Vectors and contents are too large to be worth it."""
_PLAIN_SQUARES = (1e-30, 1e30)
"""Vectors of other squared lengths go alone: a server may refuse them."""
_OF_ALL = (
    errors.NotFound,
    errors.ResourceExhausted,
    errors.Unavailable,
    errors.DeadlineExceeded,
    errors.Unauthenticated,
    errors.PermissionDenied,
)
"""What fails so fails for all alike, unless it was too much at once: a limit that names no setting of the server."""


def alike(requests: Sequence[pb.QueryRequest]) -> list[list[int]]:
    """Positions of requests, those together that may go as one. They are such as may travel on a stream."""
    if len(requests) == 1:
        return [[0]]
    groups: dict[Hashable, list[int]] = {}
    for position, request in enumerate(requests):
        groups.setdefault(_key(request) or position, []).append(position)
    found = []
    for positions in groups.values():
        rest = positions
        if len(positions) > 1:
            plain = _plain([requests[p] for p in positions])
            found += [[p] for p, fine in zip(positions, plain, strict=True) if not fine]
            rest = [p for p, fine in zip(positions, plain, strict=True) if fine]
        first = requests[positions[0]]
        most = MOST_INCLUDED // (first.k or DEFAULT_K) if first.include else len(rest)
        found += [rest[start : start + most] for start in range(0, len(rest), most or 1)]
    return found


def _key(request: pb.QueryRequest) -> Hashable:
    """Equal for requests that may go as one; None for one that goes alone."""
    vectors, include = request.vectors, tuple(request.include)
    if vectors.element_type != pb.ELEMENT_TYPE_FLOAT32 or request.k > MOST_K:
        return None
    if include and not _INCLUDED.issuperset(include):
        return None
    return (
        request.collection, request.k, request.filter, request.target_recall, vectors.dimension, include,
    )  # fmt: skip


def _plain(requests: Sequence[pb.QueryRequest]) -> list[bool]:
    data = b"".join([request.vectors.data for request in requests])
    matrix = np.frombuffer(data, "<f4").reshape(len(requests), -1)
    # NaN and infinity carry over; einsum overflows without a warning.
    squares = np.einsum("ij,ij->i", matrix, matrix)
    fine: list[bool] = ((squares > _PLAIN_SQUARES[0]) & (squares < _PLAIN_SQUARES[1])).tolist()
    return fine


def join(requests: Sequence[pb.QueryRequest], into: pb.QueryRequest) -> None:
    """Fills a request with what some that go as one ask."""
    into.CopyFrom(requests[0])
    if len(requests) > 1:
        into.vectors.data = b"".join([request.vectors.data for request in requests])
        into.vectors.count = len(requests)


def outcomes(
    outcome: pb.QueryResponse | errors.VecdbError, queries: int, include: Sequence[int] = ()
) -> list[pb.QueryResponse | answers.Part | errors.VecdbError | None]:
    """What became of each of the queries that went as one, asking for `include`; None: to be sent as a call.

    Internal when the answer is not one to so many.
    """
    if queries == 1:
        return [outcome]
    if not isinstance(outcome, errors.VecdbError):
        return [*answers.taken_apart(outcome, queries, include)]
    at_once = isinstance(outcome, errors.LimitExceeded) and "setting" not in outcome.details
    if at_once or not isinstance(outcome, _OF_ALL):
        return [None] * queries
    # One each: who raises an error writes into it.
    kind: type[errors.VecdbError] = type(outcome)
    return [kind(outcome.message, **outcome.details) for _ in range(queries)]
