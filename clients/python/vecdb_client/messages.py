"""Results and settings to messages and back: collections, records, stats, checks. Query results are
in `answers.py`.

Used by client and server. Functions that take a result read only its attributes, so that the
dataclasses of the engine and the copies of the client serve alike; they are typed Any for that.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Collection as Names
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import json_text, wire
from .errors import InvalidQuery, InvalidSetting
from .repair_types import RepairStats
from .types import (
    INCLUDABLE,
    AuditStats,
    CheckReport,
    CollectionInfo,
    CollectionStats,
    CompactResult,
    Content,
    CurvePoint,
    DeviceStats,
    IndexStats,
    Records,
    VectorSettings,
)
from .v1 import vecdb_pb2 as pb

METRICS = {
    "cosine": pb.METRIC_COSINE,
    "l2": pb.METRIC_L2,
    "ip": pb.METRIC_IP,
    "hamming": pb.METRIC_HAMMING,
}
STORAGES = {
    "float32": pb.ELEMENT_TYPE_FLOAT32,
    "float16": pb.ELEMENT_TYPE_FLOAT16,
    "int8": pb.ELEMENT_TYPE_INT8,
    "uint8": pb.ELEMENT_TYPE_UINT8,
    "binary": pb.ELEMENT_TYPE_BINARY,
}
INDEX_KINDS = {
    "auto": pb.INDEX_KIND_AUTO,
    "exact": pb.INDEX_KIND_EXACT,
    "hnsw": pb.INDEX_KIND_HNSW,
    "ivf": pb.INDEX_KIND_IVF,
}
QUANTIZATIONS = {
    "auto": pb.QUANTIZATION_AUTO,
    "none": pb.QUANTIZATION_NONE,
    "float16": pb.QUANTIZATION_FLOAT16,
    "sq8": pb.QUANTIZATION_SQ8,
    "sq4": pb.QUANTIZATION_SQ4,
    "pq4": pb.QUANTIZATION_PQ4,
    "pq8": pb.QUANTIZATION_PQ8,
}
INCLUDES = {
    "vector": pb.INCLUDE_VECTOR,
    "metadata": pb.INCLUDE_METADATA,
    "document": pb.INCLUDE_DOCUMENT,
    "content": pb.INCLUDE_CONTENT,
    "uri": pb.INCLUDE_URI,
    "named_vectors": pb.INCLUDE_NAMED_VECTORS,
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


_MOST_INCLUDES = 64
"""So many entries are taken, some of them twice perhaps; 60 million fit into a message."""


def decode_includes(numbers: Sequence[int], what: str = "include") -> tuple[str, ...]:
    """Names of parts of a record; InvalidQuery for INCLUDE_UNSPECIFIED, unknown numbers, and far more than there are."""
    if not numbers:
        return ()  # of most queries; the rest takes 3 us
    names = {int(number): name for name, number in INCLUDES.items()}
    wanted = [int(number) for number in islice(numbers, _MOST_INCLUDES + 1)]
    if len(wanted) > _MOST_INCLUDES:
        raise InvalidQuery(f"{what} has more than {_MOST_INCLUDES} entries; name each part once")
    unknown = [number for number in wanted if number not in names]
    if unknown:
        raise InvalidQuery(f"{what} has the unknown number {unknown[0]}; known are {names}")
    return tuple(names[number] for number in wanted)


# --- collections ----------------------------------------------------------------------------------


def encode_info(info: Any) -> pb.Collection:
    """The message of a CollectionInfo. InvalidSetting for names that the contract lacks."""
    if info.error is not None:
        return pb.Collection(name=info.name, error=info.error)
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
        quantization=_number(QUANTIZATIONS, info.quantization, "quantization"),
        vectors=[encode_vector_field(name, field) for name, field in info.vectors.items()],
        device=info.device,
    )


def encode_vector_field(name: str, field: Any) -> pb.VectorField:
    """The message of the VectorSettings of a named vector field."""
    return pb.VectorField(
        name=name,
        dimension=field.dimension,
        metric=_number(METRICS, field.metric, "metric"),
        storage=_number(STORAGES, field.storage, "storage"),
        index=_number(INDEX_KINDS, field.index, "index"),
        target_recall=field.target_recall,
        quantization=_number(QUANTIZATIONS, field.quantization, "quantization"),
    )


def decode_info(message: pb.Collection) -> CollectionInfo:
    """The CollectionInfo of a message, defaults filled in.

    InvalidSetting for unknown enums and a vector field named twice.
    """
    if message.error:
        return CollectionInfo.unreadable(message.name, message.error)
    fields = {field.name: VectorSettings(**_search_settings(field)) for field in message.vectors}
    if len(fields) < len(message.vectors):
        raise InvalidSetting("a vector field is named more than once; give each a name of its own")
    return CollectionInfo(
        name=message.name,
        **_search_settings(message),
        schema=dict(message.schema),
        description=message.description,
        created_at=_EPOCH + message.created_at_us * _MICROSECOND,
        vectors=fields,
        device=message.device or "auto",
    )


def _search_settings(message: pb.Collection | pb.VectorField) -> dict[str, Any]:
    """What a collection and a named vector field have alike."""
    binary = message.storage == pb.ELEMENT_TYPE_BINARY
    return {
        "dimension": message.dimension,
        "metric": _name(METRICS, message.metric, "metric", "hamming" if binary else "cosine"),
        "storage": _name(STORAGES, message.storage, "storage", "float32"),
        "index": _name(INDEX_KINDS, message.index, "index", "auto"),
        "quantization": _name(QUANTIZATIONS, message.quantization, "quantization", "auto"),
        "target_recall": message.target_recall or 0.95,
    }


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
            contents=content_tuples(records.contents),
            uris=records.uris,
            named_vectors=named_columns(records.named_vectors, records.named_present),
        )
    )


def named_columns(
    vectors: Mapping[str, NDArray[Any]] | None, present: Mapping[str, NDArray[np.bool_]] | None
) -> dict[str, wire.Named] | None:
    """The named vectors of Records for the wire, without the rows of those that lack them."""
    if vectors is None:
        return None
    found = {}
    for name, rows in vectors.items():
        mask = None if present is None else present[name]
        whole = mask is None or mask.all()
        found[name] = wire.Named(rows) if whole else wire.Named(rows[mask], mask)
    return found


def named_arrays(
    named: Mapping[str, wire.Named], count: int
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.bool_]]]:
    """`named_vectors` and `named_present` of `count` Records."""
    vectors, present = {}, {}
    for name, one in named.items():
        if one.present is None:
            vectors[name] = _owned(one.rows)
            present[name] = np.ones(count, np.bool_)
            continue
        bits = one.rows.dtype == np.uint8
        shape = (count, one.rows.shape[1])
        vectors[name] = np.zeros(shape, np.uint8) if bits else np.full(shape, np.nan, np.float32)
        vectors[name][one.present] = one.rows
        present[name] = one.present
    return vectors, present


def _owned(vectors: NDArray[Any]) -> NDArray[Any]:
    """A copy of what an answer carries: float32, or uint8 where it is packed bits."""
    return vectors.copy() if vectors.dtype == np.uint8 else vectors.astype(np.float32)


def content_tuples(contents: Sequence[Any] | None) -> list[wire.ContentTuple | None] | None:
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
    `vectors` is a fresh float32 array, shape (n, dimension); packed bits stay uint8.
    """
    columns = wire.decode_columns(batch, math.inf)
    n = len(columns.ids)
    has = set(include)
    vectors = named = present = None
    if "vector" in has:
        vectors = _owned(
            np.empty((0, 0), np.float32) if columns.vectors is None else columns.vectors
        )
    if "named_vectors" in has:
        named, present = named_arrays(columns.named_vectors or {}, n)
    return Records(
        ids=columns.ids,
        vectors=vectors,
        metadata=json_text.decode_metadata(columns.metadata or [b""] * n)
        if "metadata" in has
        else None,
        documents=(columns.documents or [None] * n) if "document" in has else None,
        contents=_content_objects(columns.contents or [None] * n) if "content" in has else None,
        uris=(columns.uris or [None] * n) if "uri" in has else None,
        cursor=cursor or None,
        sequence=sequence,
        named_vectors=named,
        named_present=present,
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
    "quantization",
    "built_at_sequence",
    "age_s",
    "device_bytes",
    "device_note",
)
_CURVE_FIELDS = ("setting", "recall_at_10", "recall_at_100", "cost_us")
_AUDIT_FIELDS = ("queries", "recall", "low", "high")
_STATS_FIELDS = (
    "name",
    "sequence",
    "count",
    "rows",
    "disk_bytes",
    "map_used_bytes",
    "map_limit_bytes",
    "purged_rows",
    "durability",
    "synced_sequence",
)
_DEVICE_FIELDS = tuple(DeviceStats.__slots__)
_REPAIR_FIELDS = (
    "sequence",
    "lost_records",
    "lost_versions",
    "lost_commits",
    "history_dropped",
    "unverified_records",
    "undecided_records",
    "quarantine",
)
_REPAIR_TEXTS = ("lost", "unverified", "undecided", "doubts")
"""Lists of texts."""
_COMPACT_FIELDS = ("purged_rows", "bytes_before", "bytes_after")


def _fields(source: Any, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names}


def encode_index_stats(stats: Any) -> pb.IndexStats:
    """The message of an IndexStats."""
    return pb.IndexStats(
        **_fields(stats, _INDEX_FIELDS),
        curve=[pb.CurvePoint(**_fields(point, _CURVE_FIELDS)) for point in stats.curve],
        audit=pb.AuditStats(**_fields(stats.audit, _AUDIT_FIELDS)),
    )


def decode_index_stats(message: pb.IndexStats) -> IndexStats:
    """The IndexStats of a message."""
    audited = message.HasField("audit")
    return IndexStats(
        **_fields(message, _INDEX_FIELDS),
        curve=tuple(CurvePoint(**_fields(point, _CURVE_FIELDS)) for point in message.curve),
        audit=AuditStats(**_fields(message.audit, _AUDIT_FIELDS)) if audited else AuditStats(),
    )


def encode_repair(repair: Any) -> pb.RepairStats:
    """The message of a RepairStats."""
    return pb.RepairStats(
        **_fields(repair, (*_REPAIR_FIELDS, *_REPAIR_TEXTS)),
        repaired_at_us=(repair.repaired_at - _EPOCH) // _MICROSECOND,
    )


def decode_repair(message: pb.RepairStats) -> RepairStats:
    """The RepairStats of a message."""
    texts: dict[str, Any] = {name: tuple(getattr(message, name)) for name in _REPAIR_TEXTS}
    return RepairStats(
        _EPOCH + message.repaired_at_us * _MICROSECOND,
        **_fields(message, _REPAIR_FIELDS),
        **texts,
    )


def encode_stats(stats: Any) -> pb.GetStatsResponse:
    """The message of a CollectionStats."""
    return pb.GetStatsResponse(
        **_fields(stats, _STATS_FIELDS),
        fields=dict(stats.fields),
        index=encode_index_stats(stats.index),
        vectors={name: encode_index_stats(one) for name, one in stats.vectors.items()},
        devices=[pb.DeviceStats(**_fields(one, _DEVICE_FIELDS)) for one in stats.devices],
        repairs=map(encode_repair, stats.repairs),
    )


def decode_stats(message: pb.GetStatsResponse) -> CollectionStats:
    """The CollectionStats of a message."""
    return CollectionStats(
        **_fields(message, _STATS_FIELDS),
        fields=dict(message.fields),
        index=decode_index_stats(message.index),
        vectors={name: decode_index_stats(one) for name, one in message.vectors.items()},
        devices=tuple(DeviceStats(**_fields(one, _DEVICE_FIELDS)) for one in message.devices),
        repairs=tuple(map(decode_repair, message.repairs)),
    )


def encode_check(report: Any) -> pb.CheckResponse:
    """The message of a CheckReport."""
    return pb.CheckResponse(ok=report.ok, records=report.records, problems=list(report.problems))


def decode_check(message: pb.CheckResponse) -> CheckReport:
    """The CheckReport of a message."""
    return CheckReport(ok=message.ok, records=message.records, problems=tuple(message.problems))


def encode_compaction(result: Any) -> pb.CompactResponse:
    """The message of a CompactResult."""
    return pb.CompactResponse(**_fields(result, _COMPACT_FIELDS))


def decode_compaction(message: pb.CompactResponse) -> CompactResult:
    """The CompactResult of a message."""
    return CompactResult(**_fields(message, _COMPACT_FIELDS))
