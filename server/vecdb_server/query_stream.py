"""Queries on a stream: what a client sent together is searched together.

The commonest queries of one message that agree in all but the vector are one call of the engine: its
fixed cost, and that of the message, is shared among them. All others are answered one by one, after
these, and each is answered as soon as it is known. A failure is that of its query alone.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import vecdb
from vecdb.errors import DeadlineExceeded, InvalidQuery, LimitExceeded, PermissionDenied
from vecdb.search_lane import CORES
from vecdb_client import answers, messages, wire
from vecdb_client.v1 import vecdb_pb2 as pb

from .admission import Admission, Beside
from .fair_pool import this_client, waits_no_more
from .silence import Silences
from .status import encoded, failure_of, too_large

MOST_QUERIES = 256
"""Queries a message, at most: more would keep the stream's other callers waiting."""
MANY_QUERIES = 16
"""So many are searched by all cores where nothing else is under way. With 8, p99 of queries that came by chance was
a sixth higher (8.2 against 6.9 ms, 3,000 a second), and 8 callers who waited gained a tenth."""

_ENVELOPE_BYTES = 32
"""What an answer takes in its message beside itself, at most."""

Answer = Callable[[Any, float | None], Any]
"""Answers one QueryRequest within the seconds given."""

Search = Callable[[Any, Any, dict[str, Any]], Any]
"""Runs a query of a collection: the collection, the request, and the arguments of `Collection.query`."""
Told = Callable[[int, float, int], None]
"""Is told of answers: the number of their status, the seconds since their message came, how many they are."""
Traced = Callable[[Any, float, int], AbstractContextManager[Callable[[Exception], None]]]
"""Around queries that are answered together: the context of their stream, when they came, how many they are. What it gives
is told of a failure."""
_Traced = Callable[[float, int], AbstractContextManager[Callable[[Exception], None]]]
"""The same of a stream that is known."""
_UNTRACED: AbstractContextManager[Callable[[Exception], None]] = nullcontext(lambda _: None)
_WEIGHT = 0.05
"""Of the newest message in the mean of what a query costs."""

_RARE = frozenset(("ids", "positive", "negative", "max_distance", "vector_name", "group_by",
                   "group_size", "mmr_lambda", "mmr_candidates", "explain"))  # fmt: skip


class QueryStreams:
    """The open streams of a server: which of them work, and which could go. Any thread may call."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.told: Told = lambda code, took_s, count: None
        """Told of queries that were answered."""
        self.traced: Traced = lambda context, came_s, count: _UNTRACED
        """Around queries that are answered."""
        self.under_way: Callable[[], int] = lambda: self._answering
        """How many calls and streams of the server have something to do."""
        self._under_way = 0
        """Queries of messages that are being answered."""
        self._of_client: Counter[str] = Counter()
        """The same by client."""
        self._cost_s = 0.0
        """How much longer each of them makes the others last."""
        self._guard = threading.Lock()
        self._silences = Silences()
        """Streams that wait for their next message."""
        self._answering = 0
        self._closing = False

    @property
    def answering(self) -> int:
        """Streams that have queries to answer."""
        return self._answering

    def close(self) -> None:
        """Ends each stream once it has answered what it has; the silent ones are gRPC's to end."""
        self._closing = True

    def make_room(self) -> bool:
        """Ends the stream that was silent longest; False if none was for a second. Its client opens another
        when it has something to ask."""
        return self._silences.make_room()

    def serve(
        self,
        requests: Iterator[Any],
        context: Any,
        database: Any,
        answer: Answer,
        max_message_bytes: int,
        search: Search,
    ) -> Iterator[Any]:
        """The answers to a stream of messages; `search` runs a query. InvalidQuery ends it for a message of none or too many."""
        waits_no_more()
        client = this_client()
        try:
            while not self._closing and (request := self._next(requests, context)) is not None:
                yield from self._message(
                    request.queries, database, answer, max_message_bytes, search,
                    partial(self.traced, context), client,
                )  # fmt: skip
        finally:
            self._silences.over(context)

    def _message(
        self,
        queries: Sequence[Any],
        database: Any,
        answer: Answer,
        max_message_bytes: int,
        search: Search,
        traced: _Traced = lambda came_s, count: _UNTRACED,
        client: str = "",
    ) -> Iterator[Any]:
        begun_s, refusal, unread_s = time.perf_counter(), None, 0.0
        vectors = [_count_of(streamed.query.vectors) for streamed in queries]
        count = left = sum(vectors)
        with self._guard:
            before = self._under_way
            beside = Beside(before, self._of_client[client], self._answering, self._cost_s)
            self._answering += 1
            self._count(client, count)
        # A search that shares its batch among threads waits for the last of them, which on busy cores takes
        # tens of milliseconds. So only a large one does that is alone; streams that work use all cores together.
        alone = count >= MANY_QUERIES and self.under_way() <= 1
        vecdb.limit_search_threads(CORES if alone else 1)
        try:
            if before:
                limits = [streamed.timeout_s for streamed in queries]
                left_s = max(limits, default=0.0) if all(limits) else None
                refusal = self._admission.refusal_beside(count, beside, left_s)
            if refusal is not None:
                responses = _packed(
                    range(len(queries)), [_failed(refusal) for _ in queries], max_message_bytes
                )
            else:
                responses = _answers(queries, database, answer, max_message_bytes, search, traced)
            for response in responses:
                took_s = time.perf_counter() - begun_s
                answered = sum([vectors[one.position] for one in response.answers])
                failed = 0
                for one in response.answers:
                    if one.HasField("error"):
                        self.told(one.error.code, took_s, vectors[one.position])
                        failed += vectors[one.position]
                self.told(0, took_s, answered - failed)
                # What is answered takes no core, however slowly its client reads.
                with self._guard:
                    self._count(client, -answered)
                left -= answered
                sent_s = time.perf_counter()
                try:
                    yield response
                finally:
                    unread_s += time.perf_counter() - sent_s
        finally:
            took_s = time.perf_counter() - begun_s - unread_s
            with self._guard:
                self._answering -= 1
                self._count(client, -left)
                if refusal is None and not left and count:
                    # With so many others it has shared the cores, at its start.
                    own_s = took_s / (before + count)
                    self._cost_s += _WEIGHT * (own_s - self._cost_s)

    def _count(self, client: str, more: int) -> None:
        """So many more queries of a client are under way. With the guard."""
        self._under_way += more
        self._of_client[client] += more
        if not self._of_client[client]:
            del self._of_client[client]  # clients that have gone are forgotten

    def _next(self, requests: Iterator[Any], context: Any) -> Any:
        self._silences.begin(context)
        try:
            return next(requests, None)
        finally:
            self._silences.over(context)


def _count_of(vectors: Any) -> int:
    """How many queries a request is: as many as it says, but no more than it has bytes, which cannot be made up."""
    return max(1, min(int(vectors.count), len(vectors.data)))


def _answers(
    queries: Sequence[Any],
    database: Any,
    answer: Answer,
    max_message_bytes: int,
    search: Search,
    traced: _Traced,
) -> Iterator[Any]:
    """Messages with the answers to one message."""
    arrived = time.monotonic()
    if not 0 < len(queries) <= MOST_QUERIES:
        raise InvalidQuery(
            f"a message of a query stream has {len(queries)} queries, 1 to {MOST_QUERIES} are taken"
        )
    for positions in _together(queries):
        if len(positions) > 1:
            try:
                group = [queries[p] for p in positions]
                with traced(arrived, len(group)) as failed:
                    try:
                        found = _searched(database, group, arrived, max_message_bytes, search)
                    except Exception as error:
                        if _is_of_all(error):
                            failed(error)
                        raise
            except Exception as error:
                # One of them may be the reason. Each meets its own failure, or none.
                found = [_failed(error) for _ in positions] if _is_of_all(error) else []
            if found:
                yield from _packed(positions, found, max_message_bytes)
                continue
        for position in positions:
            outcome = _alone(answer, queries[position], arrived, traced)
            yield from _packed([position], [outcome], max_message_bytes)


def _together(queries: Sequence[Any]) -> list[list[int]]:
    """Positions of queries that one call of the engine can answer; those of several first."""
    if len(queries) == 1:
        return [[0]]
    groups: dict[Any, list[int]] = {}
    for position, streamed in enumerate(queries):
        groups.setdefault(_key(streamed.query) or position, []).append(position)
    return sorted(groups.values(), key=len, reverse=True)


def _key(query: Any) -> Any:
    """Equal for queries that differ in their one vector only; None where a query goes alone."""
    vectors = query.vectors
    if vectors.count != 1 or query.min_sequence or len(query.include) > 16 or _has_rare(query):
        return None
    return (
        query.collection, query.k, query.filter, query.exact, query.target_recall,
        tuple(query.include), vectors.dimension, vectors.element_type, len(vectors.data),
    )  # fmt: skip


def _has_rare(query: Any) -> bool:
    # One call of C says which fields are set; asking for each costs as much as the search.
    return any(field.name in _RARE for field, _ in query.ListFields())


def _alone(answer: Answer, streamed: Any, arrived: float, traced: _Traced) -> Any:
    with traced(arrived, 1) as failed:
        try:
            if streamed.query.min_sequence:
                raise InvalidQuery("min_sequence is for Query: on a stream others would wait too")
            return pb.StreamedAnswer(
                answer=answer(streamed.query, _left_s(streamed.timeout_s, arrived))
            )
        except PermissionDenied as error:
            # It ends the stream, so that the audit log has it as it has that of a call.
            failed(error)
            raise
        except Exception as error:
            failed(error)
            return _failed(error)


def _failed(error: Exception) -> Any:
    code, known = failure_of("QueryStream", error)
    return pb.StreamedAnswer(error=pb.StreamedError(code=code.value[0], error=encoded(known)))


def _is_of_all(error: Exception) -> bool:
    """Whether queries that agree in all but the vector would all fail so: they have exceeded a limit of the server that
    has a name, as to how long their filter may take. To have each try alone would take as long for each."""
    return isinstance(error, LimitExceeded) and "setting" in error.details


def _left_s(timeout_s: float, arrived: float) -> float | None:
    """What is left of a caller's patience."""
    if not timeout_s:
        return None
    left = timeout_s - (time.monotonic() - arrived)
    if not left > 0:
        raise DeadlineExceeded("the time of this query was over before it could start")
    return left


def _searched(
    database: Any, group: Sequence[Any], arrived: float, max_bytes: int, search: Search
) -> list[Any]:
    """The answers to queries that agree in everything but the vector, by one call of the engine."""
    first = group[0].query
    # The deadline of one must not end the search of others: the most patient decides.
    limits = [streamed.timeout_s for streamed in group]
    joined = pb.Vectors(
        data=b"".join([streamed.query.vectors.data for streamed in group]),
        count=len(group),
        dimension=first.vectors.dimension,
        element_type=first.vectors.element_type,
    )
    given = {
        "vectors": wire.decode_vectors(joined),
        "k": first.k or None,
        "filter": first.filter or None,
        "exact": first.exact,
        "target_recall": first.target_recall or None,
        "include": messages.decode_includes(first.include),
        "timeout_s": _left_s(0.0 if 0.0 in limits else max(limits), arrived),
        "raw_metadata": True,
        "max_bytes": max_bytes,
    }
    result = search(database.get_collection(first.collection), first, given)
    return [
        pb.StreamedAnswer(answer=answers.encode_query_result(one))
        for one in answers.one_by_one(result)
    ]


def _packed(
    positions: Sequence[int], outcomes: Sequence[Any], max_message_bytes: int
) -> Iterator[Any]:
    """As few messages of answers as the limit of a message allows."""
    message, size = pb.QueryStreamResponse(), 0
    for position, outcome in zip(positions, outcomes, strict=True):
        own = outcome.ByteSize() + _ENVELOPE_BYTES
        if own > max_message_bytes:
            outcome = _failed(too_large(own, max_message_bytes))
            own = outcome.ByteSize() + _ENVELOPE_BYTES
        if size and size + own > max_message_bytes:
            yield message
            message, size = pb.QueryStreamResponse(), 0
        size += own
        outcome.position = position
        message.answers.append(outcome)
    yield message
