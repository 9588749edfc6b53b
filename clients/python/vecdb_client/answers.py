"""Query results to messages and back: all hits in one row of columns.

As in `messages.py`, a function that takes a result reads only its attributes.
"""

from __future__ import annotations

import math
from collections.abc import Collection as Names
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import json_text, wire
from .errors import Internal
from .messages import content_tuples, decode_records, named_columns
from .types import Explain, QueryResult
from .v1 import vecdb_pb2 as pb

_EXPLAIN_FIELDS = tuple(name for name in Explain.__slots__ if name != "times_us")


def _flat(nested: Sequence[Sequence[Any]] | None) -> list[Any] | None:
    return None if nested is None else [entry for row in nested for entry in row]


def encode_query_result(result: Any) -> pb.QueryResponse:
    """The message of a QueryResult whose metadata is JSON bytes."""
    # Not by a loop over names, which takes three times as long.
    if (
        result.vectors is None and result.metadata is None and result.documents is None
        and result.contents is None and result.uris is None and result.named_vectors is None
        and result.groups is None and result.explain is None
    ):  # fmt: skip
        return _encode_near(result)
    counts = np.fromiter((len(row) for row in result.ids), np.int64, len(result.ids))
    distances = np.asarray(result.distances, "<f4")
    filled = np.arange(distances.shape[1]) < counts[:, None]
    metadata = _flat(result.metadata)
    vectors = None
    if result.vectors is not None and counts.sum():
        vectors = np.concatenate([rows for rows in result.vectors if len(rows)])
    hits = wire.Columns(
        ids=_flat(result.ids) or [],
        vectors=vectors,
        metadata=None if metadata is None else [entry or b"{}" for entry in metadata],
        documents=_flat(result.documents),
        contents=content_tuples(_flat(result.contents)),
        uris=_flat(result.uris),
        named_vectors=None if result.named_vectors is None else _named(result),
    )
    response = pb.QueryResponse(
        counts=counts.tolist(),
        distances=distances[filled].tobytes(),
        hits=wire.encode_columns(hits),
        sequence=result.sequence,
    )
    if result.groups is not None:
        response.groups.extend(json_text.encode_values(_flat(result.groups) or ()))
    if result.explain is not None:
        response.explain.CopyFrom(encode_explain(result.explain))
    return response


def _encode_near(result: Any) -> pb.QueryResponse:
    """The message of ids and distances and nothing else, which most queries ask for."""
    near = np.asarray(result.distances, "<f4")
    counts = [len(ids) for ids in result.ids]
    if sum(counts) != near.size:
        near = near[np.arange(near.shape[1]) < np.array(counts)[:, None]]
    response = pb.QueryResponse(counts=counts, distances=near.tobytes(), sequence=result.sequence)
    response.hits.SetInParent()
    for ids in result.ids:
        response.hits.ids.extend(ids)
    return response


def one_by_one(result: Any) -> Iterator[QueryResult]:
    """The results of the single queries of a QueryResult, without groups and explain."""

    def own(column: Any, n: int) -> Any:
        return None if column is None else column[n : n + 1]

    def own_by_name(columns: Any, n: int) -> Any:
        return None if columns is None else {name: own(c, n) for name, c in columns.items()}

    for n, ids in enumerate(result.ids):
        yield QueryResult(
            ids=[ids],
            distances=result.distances[n : n + 1],
            vectors=own(result.vectors, n),
            metadata=own(result.metadata, n),
            documents=own(result.documents, n),
            contents=own(result.contents, n),
            uris=own(result.uris, n),
            sequence=result.sequence,
            named_vectors=own_by_name(result.named_vectors, n),
            named_present=own_by_name(result.named_present, n),
        )


def _named(result: Any) -> dict[str, wire.Named] | None:
    vectors = {name: np.concatenate(rows) for name, rows in result.named_vectors.items()}
    present = {name: np.concatenate(bits) for name, bits in result.named_present.items()}
    return named_columns(vectors, present)


class Part:
    """The hits of one query among those that an answer is to: ids, distances, and parts of records as they came."""

    __slots__ = ("_bytes", "_distances", "_documents", "_ids", "_metadata", "_sequence", "_uris")

    def __init__(
        self,
        ids: list[str],
        distances: NDArray[np.float32],
        sequence: int,
        part_bytes: int,
        metadata: list[bytes] | None = None,
        documents: list[str | None] | None = None,
        uris: list[str | None] | None = None,
    ) -> None:
        self._ids = ids
        self._distances = distances
        self._sequence = sequence
        self._bytes = part_bytes
        self._metadata = metadata
        self._documents = documents
        self._uris = uris

    def ByteSize(self) -> int:  # noqa: N802  (as of a message)
        """Its share of the bytes of the answer."""
        return self._bytes

    def result(self, width: int | None) -> QueryResult:
        """The QueryResult, its distances `width` wide; None: as wide as there are hits. Internal for more hits."""
        ids, count = self._ids, len(self._ids)
        if width is None or count == width:
            # A copy: who keeps it must not keep the answers to others.
            distances = self._distances.astype(np.float32)[None]
        else:
            if count > width:
                raise Internal(f"the server gave {count} hits, {width} were asked for")
            distances = np.full((1, width), np.nan, np.float32)
            distances[0, :count] = self._distances
        # Metadata is read here, by who asked: the stream has the next message to send.
        return QueryResult(
            [ids],
            distances,
            metadata=None
            if self._metadata is None
            else [json_text.decode_metadata(self._metadata)],
            documents=None if self._documents is None else [self._documents],
            uris=None if self._uris is None else [self._uris],
            sequence=self._sequence,
        )


def taken_apart(message: pb.QueryResponse, queries: int, include: Sequence[int] = ()) -> list[Part]:
    """The parts of an answer to so many queries that asked for ids, distances and `include`: documents, metadata and
    URIs at most. Internal when they do not agree."""
    counts, ids, data = list(message.counts), list(message.hits.ids), message.distances
    if len(counts) != queries or 4 * len(ids) != len(data) or sum(counts) != len(ids):
        raise Internal(
            f"the answer of the server does not agree with itself: {queries} queries, {len(counts)} counts "
            f"of {sum(counts)} hits, {len(ids)} ids, {len(data)} bytes of distances"
        )
    columns = _included(message.hits, include) if include else ()
    flat = np.frombuffer(data, "<f4")
    share, sequence, parts, start = message.ByteSize() // queries, message.sequence, [], 0
    for count in counts:
        stop = start + count
        own = [None if column is None else column[start:stop] for column in columns]
        parts.append(Part(ids[start:stop], flat[start:stop], sequence, share, *own))
        start = stop
    return parts


def _included(hits: pb.RecordBatch, include: Sequence[int]) -> tuple[list[Any] | None, ...]:
    """Columns of metadata, documents and URIs; None for those that were not asked for."""
    columns = wire.decode_columns(hits, math.inf)
    nothing: list[Any] = [None] * len(columns.ids)
    return (
        (columns.metadata or [b""] * len(nothing)) if pb.INCLUDE_METADATA in include else None,
        (columns.documents or nothing) if pb.INCLUDE_DOCUMENT in include else None,
        (columns.uris or nothing) if pb.INCLUDE_URI in include else None,
    )


def decode_query_result(
    message: pb.QueryResponse | Part,
    include: Names[str],
    width: int | None,
    *,
    grouped: bool = False,
) -> QueryResult:
    """The QueryResult of a message, its distances `width` wide; None: as wide as the longest row.

    `grouped`: the query asked for groups. Internal when the parts of the message do not agree.
    """
    if isinstance(message, Part):
        return message.result(width)
    if len(message.counts) == 1 and not include and not grouped and not message.HasField("explain"):
        return taken_apart(message, 1)[0].result(width)
    counts = list(message.counts)
    flat = np.frombuffer(message.distances, "<f4") if len(message.distances) % 4 == 0 else None
    page = decode_records(message.hits, include, "", message.sequence)
    total = sum(counts)
    longest = max(counts, default=0)
    columns = longest if width is None else width
    if flat is None or len(flat) != total or len(page) != total or longest > columns:
        raise Internal(
            f"the answer of the server does not agree with itself: {total} hits counted, "
            f"{len(page)} ids, {len(message.distances)} bytes of distances, {columns} asked for"
        )
    if grouped and len(message.groups) != total:
        raise Internal(f"the server gave {total} hits and {len(message.groups)} groups of them")
    if total == len(counts) * columns:
        distances = flat.reshape(len(counts), columns).astype(np.float32)
    else:
        distances = np.full((len(counts), columns), np.nan, np.float32)
        distances[np.arange(columns) < np.array(counts, np.int64)[:, None]] = flat
    parts = [slice(end - count, end) for end, count in zip(accumulate(counts), counts, strict=True)]

    def nested(column: Any) -> Any:
        return None if column is None else [column[part] for part in parts]

    def nested_by_name(columns: Any) -> Any:
        return None if columns is None else {name: nested(rows) for name, rows in columns.items()}

    return QueryResult(
        ids=nested(page.ids),
        distances=distances,
        vectors=nested(page.vectors),
        metadata=nested(page.metadata),
        documents=nested(page.documents),
        contents=nested(page.contents),
        uris=nested(page.uris),
        sequence=message.sequence,
        named_vectors=nested_by_name(page.named_vectors),
        named_present=nested_by_name(page.named_present),
        groups=nested(json_text.decode_values(message.groups)) if grouped else None,
        explain=decode_explain(message.explain) if message.HasField("explain") else None,
    )


def encode_explain(explain: Any) -> pb.Explain:
    """The message of an Explain."""
    return pb.Explain(
        **{name: getattr(explain, name) for name in _EXPLAIN_FIELDS},
        times_us=dict(explain.times_us),
    )


def decode_explain(message: pb.Explain) -> Explain:
    """The Explain of a message."""
    return Explain(
        **{name: getattr(message, name) for name in _EXPLAIN_FIELDS},
        times_us=dict(message.times_us),
    )
