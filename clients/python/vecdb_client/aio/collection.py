"""The verbs of one collection, for asyncio; described in `vecdb_client.collection`."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Iterable,
    Mapping,
    Sequence,
)
from typing import Any

import grpc
import grpc.aio

from .. import batches, calls, reads, transport
from ..errors import DeadlineExceeded, Internal, Unavailable
from ..reports import Meter
from ..types import (
    CheckReport,
    CollectionInfo,
    CollectionStats,
    CompactResult,
    IndexStats,
    QueryResult,
    Records,
    WriteResult,
)
from .connection import Connection
from .uploads import Ingest, following, messages_of


class Collection:
    """One collection of a server, with the verbs of `vecdb.Collection`.

    `timeout_s` is the deadline of the call in seconds; None takes the client's. Vectors may be
    numpy, lists, or anything with `__array__` or the buffer protocol; one vector counts as one row.
    """

    def __init__(self, connection: Connection, info: CollectionInfo) -> None:
        self._connection = connection
        self.info = info

    @property
    def name(self) -> str:
        return self.info.name

    def __repr__(self) -> str:
        return f"<Collection {self.name!r} at {self._connection.target}>"

    async def insert(
        self,
        ids: Sequence[str],
        vectors: Any,
        *,
        metadata: Sequence[Any] | None = None,
        documents: Sequence[str | None] | None = None,
        contents: Sequence[Any] | None = None,
        uris: Sequence[str | None] | None = None,
        named_vectors: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        progress: bool = False,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> WriteResult:
        """Adds records. RecordExists names ids that are stored already."""
        columns = await self._connection.aside.columns(
            batches.to_columns,
            ids, vectors, metadata, documents, contents, uris, named_vectors,
        )  # fmt: skip
        return await self._write("Insert", columns, batch_size, progress, request_id, timeout_s)

    async def upsert(
        self,
        ids: Sequence[str],
        vectors: Any,
        *,
        metadata: Sequence[Any] | None = None,
        documents: Sequence[str | None] | None = None,
        contents: Sequence[Any] | None = None,
        uris: Sequence[str | None] | None = None,
        named_vectors: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        progress: bool = False,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> WriteResult:
        """Adds records, replacing those whose ids are stored; otherwise as `insert`."""
        columns = await self._connection.aside.columns(
            batches.to_columns,
            ids, vectors, metadata, documents, contents, uris, named_vectors,
        )  # fmt: skip
        return await self._write("Upsert", columns, batch_size, progress, request_id, timeout_s)

    async def _write(
        self,
        rpc: str,
        columns: Any,
        batch_size: int | None,
        progress: bool,
        request_id: str | None,
        timeout_s: float | None,
    ) -> WriteResult:
        limit = self._connection.max_message_bytes
        steps = calls.write(rpc, self.name, columns, batch_size, limit, progress, request_id)
        return await self._connection.drive(steps, timeout_s)

    async def update(
        self,
        ids: Sequence[str],
        *,
        vectors: Any = None,
        metadata: Sequence[Any] | None = None,
        documents: Sequence[str | None] | None = None,
        contents: Sequence[Any] | None = None,
        uris: Sequence[str | None] | None = None,
        named_vectors: Mapping[str, Any] | None = None,
        clear: Iterable[str] = (),
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> WriteResult:
        """Changes parts of stored records, all or none. RecordNotFound names ids that are missing."""
        columns = await self._connection.aside.columns(
            batches.to_columns,
            ids, vectors, metadata, documents, contents, uris, named_vectors,
        )  # fmt: skip
        return await self._connection.run(
            calls.update(self.name, columns, clear, request_id), timeout_s
        )

    async def delete(
        self,
        ids: Sequence[str] | None = None,
        *,
        filter: Mapping[str, Any] | str | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> WriteResult:
        """Deletes by ids, by filter, or by both together; `count` says how many there were."""
        return await self._connection.run(
            calls.delete(self.name, ids, filter, request_id), timeout_s
        )

    async def ingest(
        self,
        batch_stream: Iterable[Any] | AsyncIterable[Any],
        upsert: bool = False,
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[WriteResult, None]:
        """Writes a stream of batches, from an iterable or an asynchronous one; yields each
        message's acknowledgement in order."""
        connection = self._connection
        meter = Meter("Ingest", connection.on_call)
        made = calls.IngestMessages(self.name, upsert, connection.max_message_bytes, request_id)
        upload = Ingest(connection, self.name, timeout_s, meter)
        messages = messages_of(connection, made, batch_stream)
        done = WriteResult(0, 0)
        try:
            message, failure = await following(messages)
            while message is not None:
                await upload.send(message)
                # Made while the server writes the one before.
                message, failure = await following(messages)
                ack = await upload.acknowledgement()
                done = WriteResult(ack.sequence, done.count + ack.count)
                yield WriteResult(ack.sequence, ack.count)
            await upload.finish()
        except (grpc.RpcError, Unavailable, DeadlineExceeded, Internal) as error:
            meter.failed(error)
            raise calls.acknowledged(connection.raised(error), done) from None
        except BaseException as error:
            connection.failed(meter, error)
            raise
        finally:
            await messages.aclose()
            upload.cancel()
            meter.report()
        if failure is not None:
            raise calls.acknowledged(failure, done)

    async def get(
        self,
        ids: Sequence[str] | None = None,
        *,
        filter: Mapping[str, Any] | str | None = None,
        order_by: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        include: Iterable[str] = ("metadata", "document"),
        min_sequence: int | None = None,
        timeout_s: float | None = None,
    ) -> Records:
        """Records by ids, in their order and without those not stored; or a page by filter.

        `limit`: records a page, 1 to 10,000; None: 100.
        """
        call = reads.get(self.name, ids, filter, order_by, limit, cursor, include, min_sequence)
        return await self._connection.run(call, timeout_s)

    async def query(
        self,
        vectors: Any = None,
        *,
        ids: Sequence[str] | None = None,
        positive: Sequence[Any] | None = None,
        negative: Sequence[Any] | None = None,
        vector_name: str | None = None,
        k: int | None = None,
        filter: Mapping[str, Any] | str | None = None,
        exact: bool = False,
        max_distance: float | None = None,
        target_recall: float | None = None,
        group_by: str | None = None,
        group_size: int | None = None,
        mmr_lambda: float | None = None,
        mmr_candidates: int | None = None,
        explain: bool = False,
        include: Iterable[str] = (),
        min_sequence: int | None = None,
        timeout_s: float | None = None,
    ) -> QueryResult:
        """The nearest records to each vector, or to each record named by `ids`."""
        call = reads.query(
            self.name, vectors, ids=ids, positive=positive, negative=negative,
            vector_name=vector_name, k=k, where=filter, exact=exact, max_distance=max_distance,
            target_recall=target_recall, group_by=group_by, group_size=group_size,
            mmr_lambda=mmr_lambda, mmr_candidates=mmr_candidates, explain=explain, include=include,
            min_sequence=min_sequence,
        )  # fmt: skip
        return await self._connection.run(call, timeout_s)

    async def count(
        self,
        filter: Mapping[str, Any] | str | None = None,
        *,
        min_sequence: int | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Number of live records that match; exact."""
        return await self._connection.run(reads.count(self.name, filter, min_sequence), timeout_s)

    def scan(
        self,
        *,
        filter: Mapping[str, Any] | str | None = None,
        include: Iterable[str] = ("vector", "metadata", "document"),
        batch_size: int = 1000,
        cursor: str | None = None,
        slice_index: int = 0,
        slices: int = 1,
        min_sequence: int | None = None,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Records, None]:
        """Every matching record in row order, as of the moment the scan began."""
        call = reads.scan(
            self.name, filter, include, batch_size, cursor, slice_index, slices, min_sequence
        )
        limit_s = transport.checked_timeout(timeout_s, None)
        return self._connection.scan(call, limit_s)

    async def stats(self, *, timeout_s: float | None = None) -> CollectionStats:
        """Numbers about the collection and its index."""
        return await self._connection.run(calls.stats(self.name), timeout_s)

    async def check(self, *, timeout_s: float | None = None) -> CheckReport:
        """Compares all stored structures with each other; seconds for each million records."""
        return await self._connection.run(calls.check(self.name), timeout_s)

    async def build_index(self, *, wait: bool = True, timeout_s: float | None = None) -> IndexStats:
        """Indexes what is not indexed yet. `wait` False: answers once the build is queued."""
        return await self._connection.run(calls.build_index(self.name, wait), timeout_s)

    async def cancel_build(self, *, timeout_s: float | None = None) -> bool:
        """Stops the build of the index that runs or is queued; False when there is none."""
        return await self._connection.run(calls.cancel_build(self.name), timeout_s)

    async def flush(self, *, timeout_s: float | None = None) -> int:
        """Returns when every write acknowledged so far is on the disk; the newest commit of them."""
        return await self._connection.run(calls.flush(self.name), timeout_s)

    async def compact(self, *, wait: bool = True, timeout_s: float | None = None) -> CompactResult:
        """Gives the space of dead rows back. `wait` False: answers once that is queued."""
        return await self._connection.run(calls.compact(self.name, wait), timeout_s)
