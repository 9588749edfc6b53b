"""Every byte on the wire: arrays, texts and contents to messages and back.

Client and server both use this file, so that one side cannot drift from the other. The rules:

- Vectors are row-major little-endian float32 (`<f4`) or float16 (`<f2`), whatever the machine.
- A column that may miss values carries one presence bit a record, lowest bit of the first byte
  first; no bits at all means that every value is there.
- Metadata is one JSON object a record, see `json_text.py`; the server passes it through unread.
- A length that does not agree with the others is refused with InvalidBatch or InvalidVector.

Values are judged here only as far as they could not be written or read otherwise; whether a vector
is finite or a path allowed is the engine's to say. Everything is thread-safe: no state.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidBatch, InvalidId, InvalidMetadata, InvalidVector
from .v1 import vecdb_pb2 as pb

_DTYPES: dict[int, np.dtype[Any]] = {
    pb.ELEMENT_TYPE_UNSPECIFIED: np.dtype("<f4"),
    pb.ELEMENT_TYPE_FLOAT32: np.dtype("<f4"),
    pb.ELEMENT_TYPE_FLOAT16: np.dtype("<f2"),
}
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_DEFAULT_MEDIA_TYPE = "application/octet-stream"

ContentTuple = tuple[bytes, str]


@dataclass(frozen=True, slots=True)
class Columns:
    """Records as columns, ready for the wire. Every column that is not None has len(ids) entries.

    `vectors` is `<f4` or `<f2` of shape (n, dimension); `metadata` holds JSON, b"" for none;
    `contents` holds (data, media type).
    """

    ids: list[str]
    vectors: NDArray[Any] | None = None
    metadata: list[bytes] | None = None
    documents: list[str | None] | None = None
    contents: list[ContentTuple | None] | None = None
    uris: list[str | None] | None = None


# --- vectors --------------------------------------------------------------------------------------


def as_matrix(value: Any, ids: Sequence[str] = ()) -> NDArray[Any]:
    """`value` as an (n, d) array of `<f4` or `<f2`; one vector of shape (d,) becomes one row.

    Takes numpy, lists, and anything with `__array__` or the buffer protocol. float16 stays float16;
    integers and wider floats become float32. InvalidVector for ragged lists, other types, a finite
    number beyond the range of float32, and shapes that are not one or two deep. `ids` name the record in
    messages. Copies only when type or layout must change.
    """
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError, BufferError, OverflowError) as error:
        raise InvalidVector(
            "vectors must be an array of shape (n, dimension) or rows of equal length, "
            f"given {type(value).__name__} that numpy cannot read as one: {error}"
        ) from None
    if array.dtype.kind not in "fiu":
        raise InvalidVector(
            f"vectors must be numbers, given dtype {array.dtype}; "
            "convert them to float32 or float16 first"
        )
    if array.ndim not in (1, 2):
        raise InvalidVector(
            f"vectors must have shape (n, dimension) or (dimension,), given shape {array.shape}"
        )
    matrix = array.reshape(1, -1) if array.ndim == 1 else array
    if matrix.dtype.kind == "f" and matrix.dtype.itemsize == 2:
        return np.ascontiguousarray(matrix, dtype="<f2")
    if matrix.dtype.kind == "f" and matrix.dtype.itemsize > 4:
        too_large = np.isfinite(matrix) & (np.abs(matrix) > _FLOAT32_MAX)
        if too_large.any():
            row, column = (int(i) for i in np.argwhere(too_large)[0])
            vector = f"vector {row}"
            if row < len(ids):
                vector = f"record {ids[row]!r} (position {row} of the batch): vector"
            raise InvalidVector(
                f"{vector} has values too large for float32, "
                f"{float(matrix[row, column])!r} at dimension {column}; scale the vectors down",
                position=row,
            )
    return np.ascontiguousarray(matrix, dtype="<f4")


def encode_vectors(matrix: NDArray[Any]) -> pb.Vectors:
    """The message of an (n, d) array; dtypes other than float16 are sent as float32."""
    half = matrix.dtype.kind == "f" and matrix.dtype.itemsize == 2
    kind = pb.ELEMENT_TYPE_FLOAT16 if half else pb.ELEMENT_TYPE_FLOAT32
    return pb.Vectors(
        data=np.ascontiguousarray(matrix, dtype=_DTYPES[kind]).tobytes(),
        count=matrix.shape[0],
        dimension=matrix.shape[1],
        element_type=kind,
    )


def decode_vectors(message: pb.Vectors) -> NDArray[Any]:
    """The (count, dimension) array of a message: a read-only view of its bytes.

    InvalidVector when the length does not agree with count and dimension, or the type is unknown.
    """
    dtype = _DTYPES.get(message.element_type)
    if dtype is None:
        raise InvalidVector(
            f"unknown element type {int(message.element_type)}; known are float32 (1), float16 (2)"
        )
    expected = message.count * message.dimension * dtype.itemsize
    if len(message.data) != expected or message.dimension == 0:
        raise InvalidVector(
            f"{message.count} vectors of dimension {message.dimension} in {dtype.name} take "
            f"{expected} bytes and at least one number each, given {len(message.data)} bytes",
            expected_bytes=expected,
            given_bytes=len(message.data),
        )
    flat: NDArray[Any] = np.frombuffer(message.data, dtype)
    return flat.reshape(message.count, message.dimension)


# --- columns --------------------------------------------------------------------------------------


def _presence(values: Sequence[object]) -> bytes:
    if None not in values:
        return b""
    return np.packbits([value is not None for value in values], bitorder="little").tobytes()


def _absent(present: bytes, count: int, column: str) -> Iterable[int]:
    if not present:
        return ()
    if len(present) != (count + 7) // 8:
        raise InvalidBatch(
            f"column {column!r}: {count} records take {(count + 7) // 8} presence bytes, "
            f"given {len(present)}",
            column=column,
        )
    bits = np.unpackbits(np.frombuffer(present, np.uint8), count=count, bitorder="little")
    absent: list[int] = np.flatnonzero(bits == 0).tolist()
    return absent


def _check_length(given: int, count: int, column: str) -> None:
    if given != count:
        raise InvalidBatch(
            f"column {column!r} has {given} entries for {count} ids; give one entry for each id",
            column=column,
            given=given,
            expected=count,
        )


def encode_texts(values: Sequence[str | None]) -> pb.TextColumn:
    """The message of a column of texts, None where absent."""
    return pb.TextColumn(values=[value or "" for value in values], present=_presence(values))


def decode_texts(message: pb.TextColumn, count: int, column: str) -> list[str | None]:
    """The column of a message of `count` records; InvalidBatch when lengths do not agree."""
    _check_length(len(message.values), count, column)
    values: list[str | None] = list(message.values)
    for i in _absent(message.present, count, column):
        values[i] = None
    return values


def as_content(value: Any) -> ContentTuple | None:
    """(data, media type) of a Content, a (bytes, media type) pair, or bytes; None stays None."""
    if value is None:
        return None
    data: Any = value
    media_type: Any = _DEFAULT_MEDIA_TYPE
    if isinstance(value, tuple) and len(value) == 2:
        data, media_type = value
    elif not isinstance(value, (bytes, bytearray, memoryview)):
        data = getattr(value, "data", None)
        media_type = getattr(value, "media_type", None)
    if not isinstance(data, (bytes, bytearray, memoryview)) or not isinstance(media_type, str):
        raise InvalidMetadata(
            f"a content must be Content, bytes or (bytes, media type), given {type(value).__name__}"
        )
    return bytes(data), media_type


def encode_contents(values: Sequence[ContentTuple | None]) -> pb.ContentColumn:
    """The message of a column of (data, media type), None where absent."""
    return pb.ContentColumn(
        values=[b"" if value is None else value[0] for value in values],
        media_types=["" if value is None else value[1] for value in values],
        present=_presence(values),
    )


def decode_contents(message: pb.ContentColumn, count: int) -> list[ContentTuple | None]:
    """The column of a message of `count` records; InvalidBatch when lengths do not agree."""
    _check_length(len(message.values), count, "contents")
    _check_length(len(message.media_types), count, "contents")
    values: list[ContentTuple | None] = list(zip(message.values, message.media_types, strict=True))
    for i in _absent(message.present, count, "contents"):
        values[i] = None
    return values


def encode_columns(columns: Columns, start: int = 0, stop: int | None = None) -> pb.RecordBatch:
    """The message of records `start` to `stop`. InvalidId or InvalidMetadata for what is no UTF-8."""
    part = slice(start, stop)
    batch = pb.RecordBatch()
    try:
        batch.ids.extend(columns.ids[part])
    except (TypeError, ValueError) as error:
        raise InvalidId(f"record ids must be texts in UTF-8: {error}") from None
    if columns.vectors is not None:
        batch.vectors.CopyFrom(encode_vectors(columns.vectors[part]))
    try:
        if columns.metadata is not None:
            batch.metadata.extend(columns.metadata[part])
        if columns.documents is not None:
            batch.documents.CopyFrom(encode_texts(columns.documents[part]))
        if columns.contents is not None:
            batch.contents.CopyFrom(encode_contents(columns.contents[part]))
        if columns.uris is not None:
            batch.uris.CopyFrom(encode_texts(columns.uris[part]))
    except (TypeError, ValueError) as error:
        raise InvalidMetadata(
            f"documents, uris and media types must be texts in UTF-8: {error}"
        ) from None
    return batch


def decode_columns(batch: pb.RecordBatch) -> Columns:
    """The columns of a message; those that it does not carry are None.

    InvalidBatch when a column's length is not the number of ids, InvalidVector for named vectors.
    """
    count = len(batch.ids)
    if batch.named_vectors:
        raise InvalidVector(
            "this version stores one vector a record; named_vectors must be empty",
            given=[named.name for named in batch.named_vectors[:10]],
        )
    vectors = decode_vectors(batch.vectors) if batch.HasField("vectors") else None
    if vectors is not None:
        _check_length(vectors.shape[0], count, "vectors")
    if batch.metadata:
        _check_length(len(batch.metadata), count, "metadata")
    has = batch.HasField
    return Columns(
        ids=list(batch.ids),
        vectors=vectors,
        metadata=list(batch.metadata) if batch.metadata else None,
        documents=decode_texts(batch.documents, count, "documents") if has("documents") else None,
        contents=decode_contents(batch.contents, count) if has("contents") else None,
        uris=decode_texts(batch.uris, count, "uris") if has("uris") else None,
    )
