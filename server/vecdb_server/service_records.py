# ruff: noqa: N802  (gRPC calls handlers by the names of the contract)
"""Handlers of records: check, call, answer. Errors go up to the border, `status.py`.

Metadata passes as JSON bytes in both directions; no handler reads it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import vecdb
from vecdb.errors import InvalidArgument, InvalidBatch, InvalidQuery, Unavailable
from vecdb.stopping import resting
from vecdb.types import MAX_BATCH_ROWS, MAX_K
from vecdb_client import answers, messages, wire
from vecdb_client.v1 import vecdb_pb2 as pb

from .access import GuardedDatabase
from .admission import Rests, give_way, retry_after_ms
from .ahead import one_ahead
from .observing import Observing
from .pools import Pools
from .query_stream import QueryStreams
from .scans import scan_messages
from .service_backups import BackupHandlers
from .service_collections import CollectionHandlers
from .status import remaining_s

_ROOM = nullcontext()
_DELETE_S = 0.05
"""What a delete by filter is taken to last, for how long it lets queries go first."""


def _columns(batch: Any) -> dict[str, Any]:
    """Keyword arguments of insert, upsert and update. Absent columns are None."""
    columns = wire.decode_columns(batch)
    found = {name: getattr(columns, name) for name in columns.__slots__}
    if columns.named_vectors is not None:
        found["named_vectors"] = {
            name: named.rows if named.present is None else _spread(named.rows, named.present)
            for name, named in columns.named_vectors.items()
        }
    return found


def _ids(given: Any) -> list[str] | None:
    """The ids of a request. InvalidBatch for more than any call takes, before each becomes a text of Python's."""
    if len(given) > MAX_BATCH_ROWS:
        raise InvalidBatch(
            f"{len(given):,} ids are given, at most {MAX_BATCH_ROWS:,} are taken; split the call"
        )
    return list(given) or None


def _once(request: Any) -> dict[str, Any]:
    """Keyword arguments of a write that its caller has given an id."""
    return {"request_id": request.request_id} if request.request_id else {}


def _spread(rows: Any, present: Any) -> list[Any]:
    """A vector a record, None for those that lack it."""
    following = iter(rows)
    return [next(following) if there else None for there in present.tolist()]


def _examples(message: Any) -> list[Any]:
    """Ids, then vectors. InvalidQuery for more of them than any query takes, before they are spread."""
    given = len(message.ids) + message.vectors.count
    if given > MAX_K:
        raise InvalidQuery(f"{given} examples are given, at most {MAX_K} are taken", limit=MAX_K)
    vectors = wire.decode_vectors(message.vectors) if message.HasField("vectors") else ()
    return [*message.ids, *vectors]


def _rarely_asked(request: Any) -> dict[str, Any]:
    """Keyword arguments of a query that most queries leave out."""
    has = request.HasField
    found: dict[str, Any] = {}
    if has("positive"):
        found["positive"] = _examples(request.positive)
    if has("negative"):
        found["negative"] = _examples(request.negative)
    if has("mmr_lambda"):
        found["mmr_lambda"] = request.mmr_lambda
    for name in ("vector_name", "group_by", "group_size", "mmr_candidates", "explain"):
        if value := getattr(request, name):
            found[name] = value
    return found


class Service(CollectionHandlers, BackupHandlers):
    """The whole service: what the other handlers have, and the verbs of records."""

    def __init__(
        self,
        database: vecdb.Database | GuardedDatabase,
        max_message_bytes: int,
        pools: Pools,
        observing: Observing,
        streams: QueryStreams,
    ) -> None:
        super().__init__(database, max_message_bytes, observing.metrics, pools.queries_wait)
        self._pools = pools
        self._queries = observing.queries
        self._streams = streams
        # One thread is always left for reads that need not wait.
        self._may_wait = threading.BoundedSemaphore(max(1, pools.read_threads - 1))

    def _room_to_wait(
        self, collection: vecdb.Collection, min_sequence: int
    ) -> AbstractContextManager[None]:
        """Lets only some reads wait for a commit to come, or they would take every thread."""
        if not min_sequence or collection.count_at()[1] >= min_sequence:
            return _ROOM
        return self._waiting(collection, min_sequence)

    @contextmanager
    def _waiting(self, collection: vecdb.Collection, min_sequence: int) -> Iterator[None]:
        if not self._may_wait.acquire(blocking=False):
            raise Unavailable(
                f"commit {min_sequence} of collection {collection.name!r} does not exist yet, and "
                "too many reads are waiting for such commits; try again later",
                retry_after_ms=retry_after_ms(0.2),
            )
        try:
            yield
        finally:
            self._may_wait.release()

    # -- writes

    def Insert(self, request: Any, context: Any) -> Any:
        collection = self._database.get_collection(request.collection)
        result = collection.insert(**_columns(request.records), **_once(request))
        return pb.InsertResponse(sequence=result.sequence, count=result.count)

    def Upsert(self, request: Any, context: Any) -> Any:
        collection = self._database.get_collection(request.collection)
        result = collection.upsert(**_columns(request.records), **_once(request))
        return pb.UpsertResponse(sequence=result.sequence, count=result.count)

    def Update(self, request: Any, context: Any) -> Any:
        collection = self._database.get_collection(request.collection)
        clear = messages.decode_includes(request.clear, "clear")
        result = collection.update(**_columns(request.records), clear=clear, **_once(request))
        return pb.UpdateResponse(sequence=result.sequence, count=result.count)

    def Delete(self, request: Any, context: Any) -> Any:
        collection = self._database.get_collection(request.collection)
        if request.filter:
            # It compares all rows, beside queries.
            give_way(_DELETE_S, self._pools.queries_wait, context.is_active)
        with resting(Rests(self._pools.queries_wait, context.is_active)):
            result = collection.delete(
                _ids(request.ids),
                filter=request.filter or None,
                timeout_s=remaining_s(context),
                **_once(request),
            )
        return pb.DeleteResponse(sequence=result.sequence, count=result.count)

    def Ingest(self, requests: Any, context: Any) -> Iterator[Any]:
        # One message is read and prepared while the one before is committed; what comes after these is held
        # back by gRPC's flow control.
        collection, name = None, ""

        def prepared(request: Any) -> Any:
            nonlocal collection, name
            if collection is None:
                name = request.collection
                collection = self._database.get_collection(name)
            elif request.collection not in ("", name):
                raise InvalidArgument(
                    f"an ingest writes into one collection, {name!r}; given {request.collection!r}"
                )
            else:
                self._database.ask_again(collection, name)
            columns = _columns(request.records)
            return collection.prepare_put(**columns, replace=request.upsert, **_once(request))

        for commit in one_ahead(requests, prepared):
            result = commit()
            yield pb.IngestResponse(sequence=result.sequence, count=result.count)
            if not context.is_active():
                return

    # -- reads

    def Get(self, request: Any, context: Any) -> Any:
        collection = self._database.get_collection(request.collection)
        with self._room_to_wait(collection, request.min_sequence):
            records = collection.get(
                _ids(request.ids),
                filter=request.filter or None,
                order_by=request.order_by or None,
                limit=request.limit or None,
                cursor=request.cursor or None,
                include=messages.decode_includes(request.include),
                min_sequence=request.min_sequence or None,
                timeout_s=remaining_s(context),
                raw_metadata=True,
                max_bytes=self._max_message_bytes,
            )
        return pb.GetResponse(
            records=messages.encode_records(records),
            cursor=records.cursor or "",
            sequence=records.sequence,
        )

    def Query(self, request: Any, context: Any) -> Any:
        return self._answer(request, remaining_s(context))

    def QueryStream(self, requests: Any, context: Any) -> Iterator[Any]:
        return self._streams.serve(
            requests, context, self._database, self._answer, self._max_message_bytes,
            self._queries.query,
        )  # fmt: skip

    def _answer(self, request: Any, timeout_s: float | None) -> Any:
        collection = self._database.get_collection(request.collection)
        has = request.HasField
        with self._room_to_wait(collection, request.min_sequence):
            given = {
                "vectors": wire.decode_vectors(request.vectors) if has("vectors") else None,
                "ids": _ids(request.ids),
                "k": request.k or None,
                "filter": request.filter or None,
                "exact": request.exact,
                "max_distance": request.max_distance if has("max_distance") else None,
                "target_recall": request.target_recall or None,
                "include": messages.decode_includes(request.include),
                "min_sequence": request.min_sequence or None,
                "timeout_s": timeout_s,
                "raw_metadata": True,
                "max_bytes": self._max_message_bytes,
                **_rarely_asked(request),
            }
            result = self._queries.query(collection, request, given)
        return answers.encode_query_result(result)

    def Count(self, request: Any, context: Any) -> Any:
        collection = self._database.get_collection(request.collection)
        with self._room_to_wait(collection, request.min_sequence):
            count, sequence = collection.count_at(
                request.filter or None,
                min_sequence=request.min_sequence or None,
                timeout_s=remaining_s(context),
            )
        return pb.CountResponse(count=count, sequence=sequence)

    def Scan(self, request: Any, context: Any) -> Iterator[Any]:
        collection = self._database.get_collection(request.collection)
        return scan_messages(
            collection, request, context, self._max_message_bytes, self._pools.queries_wait
        )
