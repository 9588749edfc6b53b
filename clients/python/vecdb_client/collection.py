"""The verbs of one collection, synchronous."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

import grpc

from . import batches, calls, reads, transport
from .connection import Connection
from .errors import DeadlineExceeded, Internal
from .reports import Meter
from .types import (
    CheckReport,
    CollectionInfo,
    CollectionStats,
    CompactResult,
    IndexStats,
    QueryResult,
    Records,
    WriteResult,
)
from .uploads import Upload


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

    def insert(
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
        """Adds records. RecordExists names ids that are stored already.

        A large batch travels in several messages, of `batch_size` rows or else of at most 2,000
        rows and 8 MiB. Each message is atomic and has its own deadline; when one fails, those
        before it stay, and the error's details say how many records were `acknowledged`. Returns
        the last commit and the total count. `progress` draws a bar on standard error if that is a
        terminal. A message whose answer is lost is sent again and written once: the server knows it by
        a random id, or by `request_id` (1 to 52 bytes), with which you may repeat the whole call
        yourself, with the same records and `batch_size`, within the hour. `named_vectors` maps the collection's named vector fields to arrays of one row a
        record, or to lists with None for a record without.
        """
        columns = batches.to_columns(
            ids, vectors, metadata, documents, contents, uris, named_vectors
        )
        return self._write("Insert", columns, batch_size, progress, request_id, timeout_s)

    def upsert(
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
        columns = batches.to_columns(
            ids, vectors, metadata, documents, contents, uris, named_vectors
        )
        return self._write("Upsert", columns, batch_size, progress, request_id, timeout_s)

    def _write(
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
        return self._connection.drive(steps, timeout_s)

    def update(
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
        """Changes parts of stored records, all or none. RecordNotFound names ids that are missing.

        None in a column means no change; metadata is a merge patch (RFC 7396); `clear` removes
        metadata, document, content or uri before the rest applies.
        """
        columns = batches.to_columns(
            ids, vectors, metadata, documents, contents, uris, named_vectors
        )
        return self._connection.run(calls.update(self.name, columns, clear, request_id), timeout_s)

    def delete(
        self,
        ids: Sequence[str] | None = None,
        *,
        filter: Mapping[str, Any] | str | None = None,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> WriteResult:
        """Deletes by ids, by filter, or by both together; `count` says how many there were."""
        return self._connection.run(calls.delete(self.name, ids, filter, request_id), timeout_s)

    def ingest(
        self,
        batch_stream: Iterable[Any],
        upsert: bool = False,
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Generator[WriteResult, None, None]:
        """Writes a stream of batches; yields the acknowledgement of each message, in order.

        A batch is a mapping of columns, a tuple of columns in the order of `insert`, or Records.
        At most 4 messages are under way at once; batches are taken from the iterable, in the
        caller's thread, as acknowledgements come back. Nothing happens unless the result is
        iterated. Where the stream breaks, or the server has no room, messages without acknowledgement are sent
        again on a new one, as `retry_s` says, and each is done once. Any other failure ends the ingest;
        batches acknowledged before it stay, and its details count their records; a `position` counts from
        the first record of the stream. With a `request_id` of your own, 1 to 52 bytes, an ingest that ended early may be
        called again with the same batches: those that were done, within the last hour and 100,000 writes, are
        acknowledged as the first time and not done again.
        `timeout_s` is for the whole stream; None: no limit, but each acknowledgement comes within five times `idle_s` of `connect`.
        """
        connection = self._connection
        meter = Meter("Ingest", connection.on_call)
        made = calls.IngestMessages(self.name, upsert, connection.max_message_bytes, request_id)
        upload = Upload(connection, self.name, timeout_s, meter)
        messages = made.of(batch_stream)
        done = WriteResult(0, 0)
        under_way = 0
        failure: Exception | None = None
        try:
            while True:
                try:
                    message = next(messages, None)
                except Exception as error:
                    # A bad batch, or the caller's iterable: what is under way is still finished.
                    failure, message = error, None
                if message is None:
                    break
                upload.send(message)
                under_way += 1
                if under_way == calls.INGEST_WINDOW:
                    under_way -= 1
                    ack = upload.acknowledgement()
                    done = WriteResult(ack.sequence, done.count + ack.count)
                    yield WriteResult(ack.sequence, ack.count)
            upload.send(None)
            for _ in range(under_way):
                ack = upload.acknowledgement()
                done = WriteResult(ack.sequence, done.count + ack.count)
                yield WriteResult(ack.sequence, ack.count)
        except (grpc.RpcError, DeadlineExceeded, Internal) as error:
            meter.failed(error)
            raise calls.acknowledged(connection.raised(error), done) from None
        except BaseException as error:
            meter.failed(error)
            raise
        finally:
            upload.end()
            meter.report()
        if failure is not None:
            raise calls.acknowledged(failure, done)

    def get(
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
        return self._connection.run(call, timeout_s)

    def query(
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
        """The nearest records to each vector, to each record named by `ids`, or to examples.

        `k` None: 10, or 10,000 with `max_distance`. `distances` is float32 of shape (q, k), NaN
        where fewer match, and without `k` as wide as the longest answer; smaller is nearer.

        `positive` and `negative` hold ids and vectors, in any mixture, and make one query: twice the
        mean of `positive` minus the mean of `negative`. `vector_name` searches a named vector field.
        `group_by` gives the best `group_size` (1 to 100, default 1) of each of the `k` best groups by
        a metadata path. `mmr_lambda` (0 to 1, where 1 is the plain order) chooses unlike answers out
        of the `mmr_candidates` (default: the larger of 4 k and 50) nearest. `explain` says how the
        query was answered, in `explain` of the result.
        """
        call = reads.query(
            self.name, vectors, ids=ids, positive=positive, negative=negative,
            vector_name=vector_name, k=k, where=filter, exact=exact, max_distance=max_distance,
            target_recall=target_recall, group_by=group_by, group_size=group_size,
            mmr_lambda=mmr_lambda, mmr_candidates=mmr_candidates, explain=explain, include=include,
            min_sequence=min_sequence,
        )  # fmt: skip
        return self._connection.run(call, timeout_s)

    def count(
        self,
        filter: Mapping[str, Any] | str | None = None,
        *,
        min_sequence: int | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Number of live records that match; exact."""
        return self._connection.run(reads.count(self.name, filter, min_sequence), timeout_s)

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
    ) -> Generator[Records, None, None]:
        """Every matching record in row order, as of the moment the scan began.

        Batches hold `batch_size` records, fewer where a message would grow too large. `cursor` of
        a batch resumes behind it. `timeout_s` is for the whole scan; None: no limit, but each batch comes within `idle_s`
        of `connect`, else DeadlineExceeded. Closing the iterator ends the scan on the server.
        """
        call = reads.scan(
            self.name, filter, include, batch_size, cursor, slice_index, slices, min_sequence
        )
        limit_s = transport.checked_timeout(timeout_s, None)
        return self._connection.scan(call, limit_s)

    def stats(self, *, timeout_s: float | None = None) -> CollectionStats:
        """Numbers about the collection and its index."""
        return self._connection.run(calls.stats(self.name), timeout_s)

    def check(self, *, timeout_s: float | None = None) -> CheckReport:
        """Compares all stored structures with each other; seconds for each million records."""
        return self._connection.run(calls.check(self.name), timeout_s)

    def build_index(self, *, wait: bool = True, timeout_s: float | None = None) -> IndexStats:
        """Indexes what is not indexed yet. `wait` False: answers once the build is queued."""
        return self._connection.run(calls.build_index(self.name, wait), timeout_s)

    def cancel_build(self, *, timeout_s: float | None = None) -> bool:
        """Stops the build of the index that runs or is queued; False when there is none."""
        return self._connection.run(calls.cancel_build(self.name), timeout_s)

    def flush(self, *, timeout_s: float | None = None) -> int:
        """Returns when every write acknowledged so far is on the disk; the newest commit of them.

        With the server's durability `commit` that is so at once. Raises ReadOnly when its disk has failed.
        """
        return self._connection.run(calls.flush(self.name), timeout_s)

    def compact(self, *, wait: bool = True, timeout_s: float | None = None) -> CompactResult:
        """Gives the space of dead rows back. `wait` False: answers once that is queued."""
        return self._connection.run(calls.compact(self.name, wait), timeout_s)
