"""Results and settings to messages and back: collections, records, query results, stats, checks.

Used by client and server. Functions that take a result read only its attributes, so that the
dataclasses of the engine and the copies of the client serve alike; they are typed Any for that.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection as Names
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from . import json_text, wire
from .errors import Internal, InvalidQuery, InvalidSetting
from .types import (
    INCLUDABLE,
    CheckReport,
    CollectionInfo,
    CollectionStats,
    Content,
    IndexKind,
    IndexStats,
    Metric,
    QueryResult,
    Records,
    Storage,
)
from .v1 import vecdb_pb2 as pb

METRICS = {"cosine": pb.METRIC_COSINE, "l2": pb.METRIC_L2, "ip": pb.METRIC_IP}
STORAGES = {"float32": pb.ELEMENT_TYPE_FLOAT32, "float16": pb.ELEMENT_TYPE_FLOAT16}
INDEX_KINDS = {
    "auto": pb.INDEX_KIND_AUTO,
    "exact": pb.INDEX_KIND_EXACT,
    "hnsw": pb.INDEX_KIND_HNSW,
    "ivf": pb.INDEX_KIND_IVF,
}
INCLUDES = {
    "vector": pb.INCLUDE_VECTOR,
    "metadata": pb.INCLUDE_METADATA,
    "document": pb.INCLUDE_DOCUMENT,
    "content": pb.INCLUDE_CONTENT,
    "uri": pb.INCLUDE_URI,
}
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)


# --- enums ----------------------------------------------------------------------------------------


def _number(table: Mapping[str, Any], name: Any, what: str) -> Any:
    if not isinstance(name, str) or name not in table:
        raise InvalidSetting(f"{what} must be one of {', '.join(table)}, given {name!r}")
    return table[name]


def _name(table: Mapping[str, Any], number: int, what: str, unspecified: str | None) -> str:
    if number == 0 and unspecified is not None:
        return unspecified
    for name, known in table.items():
        if known == number:
            return name
    raise InvalidSetting(f"{what} {number} is unknown; known are {', '.join(table)}")


def encode_includes(names: Iterable[str], what: str = "include") -> list[Any]:
    """Parts of a record by name; InvalidQuery for a name that is none."""
    wanted = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in wanted if not isinstance(name, str) or name not in INCLUDES]
    if unknown:
        raise InvalidQuery(
            f"{what} takes names out of {', '.join(INCLUDABLE)}, given {unknown[0]!r}"
        )
    return [INCLUDES[name] for name in wanted]


def decode_includes(numbers: Iterable[int], what: str = "include") -> tuple[str, ...]:
    """Names of parts of a record; InvalidQuery for INCLUDE_UNSPECIFIED and unknown numbers."""
    names = {int(number): name for name, number in INCLUDES.items()}
    wanted = [int(number) for number in numbers]
    unknown = [number for number in wanted if number not in names]
    if unknown:
        raise InvalidQuery(f"{what} has the unknown number {unknown[0]}; known are {names}")
    return tuple(names[number] for number in wanted)


# --- collections ----------------------------------------------------------------------------------


def encode_info(info: Any) -> pb.Collection:
    """The message of a CollectionInfo. InvalidSetting for names that the contract lacks."""
    return pb.Collection(
        name=info.name,
        dimension=info.dimension,
        metric=_number(METRICS, info.metric, "metric"),
        storage=_number(STORAGES, info.storage, "storage"),
        index=_number(INDEX_KINDS, info.index, "index"),
        target_recall=info.target_recall,
        schema=dict(info.schema),
        description=info.description,
        created_at_us=(info.created_at - _EPOCH) // _MICROSECOND,
    )


def decode_info(message: pb.Collection) -> CollectionInfo:
    """The CollectionInfo of a message, defaults filled in. InvalidSetting for unknown enums."""
    return CollectionInfo(
        name=message.name,
        dimension=message.dimension,
        metric=cast("Metric", _name(METRICS, message.metric, "metric", "cosine")),
        storage=cast("Storage", _name(STORAGES, message.storage, "storage", "float32")),
        index=cast("IndexKind", _name(INDEX_KINDS, message.index, "index", "auto")),
        target_recall=message.target_recall or 0.95,
        schema=dict(message.schema),
        description=message.description,
        created_at=_EPOCH + message.created_at_us * _MICROSECOND,
    )


# --- records --------------------------------------------------------------------------------------


def encode_records(records: Any) -> pb.RecordBatch:
    """The columns of Records whose metadata is JSON bytes; a column that is None stays unset."""
    metadata = records.metadata
    return wire.encode_columns(
        wire.Columns(
            ids=records.ids,
            vectors=records.vectors,
            metadata=None if metadata is None else [entry or b"{}" for entry in metadata],
            documents=records.documents,
            contents=_content_tuples(records.contents),
            uris=records.uris,
        )
    )


def _content_tuples(contents: Sequence[Any] | None) -> list[wire.ContentTuple | None] | None:
    if contents is None:
        return None
    return [None if content is None else (content.data, content.media_type) for content in contents]


def _content_objects(contents: Sequence[wire.ContentTuple | None]) -> list[Content | None]:
    return [None if content is None else Content(*content) for content in contents]


def decode_records(
    batch: pb.RecordBatch, include: Names[str], cursor: str, sequence: int
) -> Records:
    """The Records of an answer to a read that asked for `include`.

    An answer without records cannot carry columns, so `include` says which are there, empty.
    `vectors` is a fresh float32 array, shape (n, dimension).
    """
    columns = wire.decode_columns(batch)
    n = len(columns.ids)
    vectors = columns.vectors
    if vectors is None:
        vectors = np.empty((0, 0), np.float32)
    has = set(include)
    return Records(
        ids=columns.ids,
        vectors=vectors.astype(np.float32) if "vector" in has else None,
        metadata=json_text.decode_metadata(columns.metadata or [b""] * n)
        if "metadata" in has
        else None,
        documents=(columns.documents or [None] * n) if "document" in has else None,
        contents=_content_objects(columns.contents or [None] * n) if "content" in has else None,
        uris=(columns.uris or [None] * n) if "uri" in has else None,
        cursor=cursor or None,
        sequence=sequence,
    )


# --- query results --------------------------------------------------------------------------------


def _flat(nested: Sequence[Sequence[Any]] | None) -> list[Any] | None:
    return None if nested is None else [entry for row in nested for entry in row]


def encode_query_result(result: Any) -> pb.QueryResponse:
    """The message of a QueryResult whose metadata is JSON bytes: all hits in one row of columns."""
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
        contents=_content_tuples(_flat(result.contents)),
        uris=_flat(result.uris),
    )
    return pb.QueryResponse(
        counts=counts.tolist(),
        distances=distances[filled].tobytes(),
        hits=wire.encode_columns(hits),
        sequence=result.sequence,
    )


def decode_query_result(
    message: pb.QueryResponse, include: Names[str], width: int | None
) -> QueryResult:
    """The QueryResult of a message, its distances `width` wide; None: as wide as the longest row."""
    counts = np.array(message.counts, np.int64)
    flat = np.frombuffer(message.distances, "<f4") if len(message.distances) % 4 == 0 else None
    page = decode_records(message.hits, include, "", message.sequence)
    total = int(counts.sum())
    longest = int(counts.max(initial=0))
    columns = longest if width is None else width
    if flat is None or len(flat) != total or len(page) != total or longest > columns:
        raise Internal(
            f"the answer of the server does not agree with itself: {total} hits counted, "
            f"{len(page)} ids, {len(message.distances)} bytes of distances, {columns} asked for"
        )
    distances = np.full((len(counts), columns), np.nan, np.float32)
    distances[np.arange(columns) < counts[:, None]] = flat
    ends = np.cumsum(counts).tolist()
    parts = [slice(end - count, end) for end, count in zip(ends, counts.tolist(), strict=True)]

    def nested(column: Any) -> Any:
        return None if column is None else [column[part] for part in parts]

    return QueryResult(
        ids=nested(page.ids),
        distances=distances,
        vectors=nested(page.vectors),
        metadata=nested(page.metadata),
        documents=nested(page.documents),
        contents=nested(page.contents),
        uris=nested(page.uris),
        sequence=message.sequence,
    )


# --- numbers about a collection -------------------------------------------------------------------

_INDEX_FIELDS = (
    "kind",
    "device",
    "indexed_rows",
    "tail_rows",
    "dead_rows",
    "building",
    "build_progress",
    "memory_bytes",
    "file_bytes",
    "target_recall",
    "measured_recall",
    "last_error",
)
_STATS_FIELDS = (
    "name",
    "sequence",
    "count",
    "rows",
    "disk_bytes",
    "map_used_bytes",
    "map_limit_bytes",
)


def encode_index_stats(stats: Any) -> pb.IndexStats:
    """The message of an IndexStats."""
    return pb.IndexStats(**{name: getattr(stats, name) for name in _INDEX_FIELDS})


def decode_index_stats(message: pb.IndexStats) -> IndexStats:
    """The IndexStats of a message."""
    return IndexStats(**{name: getattr(message, name) for name in _INDEX_FIELDS})


def encode_stats(stats: Any) -> pb.GetStatsResponse:
    """The message of a CollectionStats."""
    return pb.GetStatsResponse(
        **{name: getattr(stats, name) for name in _STATS_FIELDS},
        fields=dict(stats.fields),
        index=encode_index_stats(stats.index),
    )


def decode_stats(message: pb.GetStatsResponse) -> CollectionStats:
    """The CollectionStats of a message."""
    return CollectionStats(
        **{name: getattr(message, name) for name in _STATS_FIELDS},
        fields=dict(message.fields),
        index=decode_index_stats(message.index),
    )


def encode_check(report: Any) -> pb.CheckResponse:
    """The message of a CheckReport."""
    return pb.CheckResponse(ok=report.ok, records=report.records, problems=list(report.problems))


def decode_check(message: pb.CheckResponse) -> CheckReport:
    """The CheckReport of a message."""
    return CheckReport(ok=message.ok, records=message.records, problems=tuple(message.problems))
