"""Every byte on the wire: arrays, texts and contents to messages and back.

Client and server both use this file, so that one side cannot drift from the other. The rules:

- Vectors are row-major little-endian float32 (`<f4`), float16 (`<f2`), int8 or uint8, whatever the
  machine. Packed bits are uint8.
- Named vectors travel as the rows that are there, with one presence bit a record.
- A column that may miss values carries one presence bit a record, lowest bit of the first byte
  first; no bits at all means that every value is there.
- Metadata is one JSON object a record, see `json_text.py`; the server passes it through unread.
- A length that does not agree with the others is refused with InvalidBatch or InvalidVector.

What makes a message fills the one it is given, or a new one: a message that is put into another is copied.

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
from .types import MAX_BATCH_ROWS, MAX_VECTOR_FIELDS
from .v1 import vecdb_pb2 as pb

_DTYPES: dict[int, np.dtype[Any]] = {
    pb.ELEMENT_TYPE_UNSPECIFIED: np.dtype("<f4"),
    pb.ELEMENT_TYPE_FLOAT32: np.dtype("<f4"),
    pb.ELEMENT_TYPE_FLOAT16: np.dtype("<f2"),
    pb.ELEMENT_TYPE_INT8: np.dtype("i1"),
    pb.ELEMENT_TYPE_UINT8: np.dtype("u1"),
}
_ELEMENT_TYPES = {
    "f4": pb.ELEMENT_TYPE_FLOAT32,
    "f2": pb.ELEMENT_TYPE_FLOAT16,
    "i1": pb.ELEMENT_TYPE_INT8,
    "u1": pb.ELEMENT_TYPE_UINT8,
}
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_DEFAULT_MEDIA_TYPE = "application/octet-stream"

ContentTuple = tuple[bytes, str]


@dataclass(frozen=True, slots=True)
class Named:
    """A vector field of n records: `present` of shape (n,) says who has one, None for all, and
    `rows`, of shape (present.sum(), width), are theirs in order."""

    rows: NDArray[Any]
    present: NDArray[np.bool_] | None = None

    def part(self, start: int, stop: int | None) -> Named:
        """The field of records `start` to `stop`."""
        if self.present is None:
            return Named(self.rows[start:stop])
        some = self.present[start:stop]
        first = int(np.count_nonzero(self.present[:start]))
        return Named(self.rows[first : first + int(np.count_nonzero(some))], some)


@dataclass(frozen=True, slots=True)
class Columns:
    """Records as columns, ready for the wire. Every column that is not None has len(ids) entries.

    `vectors` is of shape (n, dimension) and of a dtype that `as_matrix` gives; `metadata` holds JSON,
    b"" for none; `contents` holds (data, media type); `named_vectors` maps names.
    """

    ids: list[str]
    vectors: NDArray[Any] | None = None
    metadata: list[bytes] | None = None
    documents: list[str | None] | None = None
    contents: list[ContentTuple | None] | None = None
    uris: list[str | None] | None = None
    named_vectors: dict[str, Named] | None = None


# --- vectors --------------------------------------------------------------------------------------


def as_matrix(value: Any, ids: Sequence[str] = ()) -> NDArray[Any]:
    """`value` as an (n, d) array of `<f4`, `<f2`, int8 or uint8; one vector (d,) becomes one row.

    Takes numpy, lists, and anything with `__array__` or the buffer protocol. float16, int8 and uint8
    stay; other integers and wider floats become float32. InvalidVector for ragged lists, other types,
    a finite number beyond the range of float32, and shapes that are not one or two deep. `ids` name
    the record in messages. Copies only when type or layout must change.
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
    if matrix.dtype.itemsize == 1:
        return np.ascontiguousarray(matrix)
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


def encode_vectors(matrix: NDArray[Any], message: pb.Vectors | None = None) -> pb.Vectors:
    """The message of an (n, d) array; float16, int8 and uint8 are sent so, others as float32."""
    kind = _ELEMENT_TYPES.get(matrix.dtype.str[1:], pb.ELEMENT_TYPE_FLOAT32)
    message = pb.Vectors() if message is None else message
    message.data = np.ascontiguousarray(matrix, dtype=_DTYPES[kind]).tobytes()
    message.count, message.dimension = matrix.shape
    message.element_type = kind
    return message


def decode_vectors(message: pb.Vectors) -> NDArray[Any]:
    """The (count, dimension) array of a message: a read-only view of its bytes.

    InvalidVector when the length does not agree with count and dimension, or the type is unknown.
    """
    dtype = _DTYPES.get(message.element_type)
    if dtype is None:
        raise InvalidVector(
            f"element type {int(message.element_type)} is none of float32 (1), float16 (2), int8 (3) and "
            "uint8 (4), which is also that of packed bits"
        )
    expected = message.count * message.dimension * dtype.itemsize
    data = message.data  # Each look at it is a copy.
    if len(data) != expected or message.dimension == 0:
        raise InvalidVector(
            f"{message.count} vectors of dimension {message.dimension} in {dtype.name} take "
            f"{expected} bytes and at least one number each, given {len(data)} bytes",
            expected_bytes=expected,
            given_bytes=len(data),
        )
    flat: NDArray[Any] = np.frombuffer(data, dtype)
    return flat.reshape(message.count, message.dimension)


# --- columns --------------------------------------------------------------------------------------


def _presence(values: Sequence[object]) -> bytes:
    if None not in values:
        return b""
    return np.packbits([value is not None for value in values], bitorder="little").tobytes()


def _bits(present: bytes, count: int, column: str) -> NDArray[np.bool_]:
    if len(present) != (count + 7) // 8:
        raise InvalidBatch(
            f"column {column!r}: {count} records take {(count + 7) // 8} presence bytes, "
            f"given {len(present)}",
            column=column,
        )
    bits = np.unpackbits(np.frombuffer(present, np.uint8), count=count, bitorder="little")
    return bits.astype(np.bool_)


def _absent(present: bytes, count: int, column: str) -> Iterable[int]:
    if not present:
        return ()
    absent: list[int] = np.flatnonzero(~_bits(present, count, column)).tolist()
    return absent


def _check_length(given: int, count: int, column: str) -> None:
    if given != count:
        raise InvalidBatch(
            f"column {column!r} has {given} entries for {count} ids; give one entry for each id",
            column=column,
            given=given,
            expected=count,
        )


def encode_texts(
    values: Sequence[str | None], message: pb.TextColumn | None = None
) -> pb.TextColumn:
    """The message of a column of texts, None where absent."""
    message = pb.TextColumn() if message is None else message
    message.values.extend([value or "" for value in values])
    message.present = _presence(values)
    return message


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


def encode_named(name: str, named: Named, message: pb.NamedVectors) -> None:
    """Fills the message of a vector field of some records."""
    message.name = name
    encode_vectors(named.rows, message.vectors)
    if named.present is not None:
        message.present = np.packbits(named.present, bitorder="little").tobytes()


def decode_named(message: pb.NamedVectors, count: int) -> Named:
    """The vector field of a message of `count` records.

    InvalidBatch when rows and presence bits do not agree with `count`, InvalidVector as
    `decode_vectors`.
    """
    column = f"named_vectors.{message.name}"
    rows = decode_vectors(message.vectors)
    if not message.present:
        _check_length(rows.shape[0], count, column)
        return Named(rows)
    present = _bits(message.present, count, column)
    _check_length(rows.shape[0], int(np.count_nonzero(present)), column)
    return Named(rows, present)


def encode_columns(
    columns: Columns,
    start: int = 0,
    stop: int | None = None,
    message: pb.RecordBatch | None = None,
) -> pb.RecordBatch:
    """The message of records `start` to `stop`. InvalidId or InvalidMetadata for what is no UTF-8."""
    part = slice(start, stop)
    batch = pb.RecordBatch() if message is None else message
    try:
        batch.ids.extend(columns.ids[part])
    except (TypeError, ValueError) as error:
        raise InvalidId(f"record ids must be texts in UTF-8: {error}") from None
    if columns.vectors is not None:
        encode_vectors(columns.vectors[part], batch.vectors)
    for name, named in (columns.named_vectors or {}).items():
        encode_named(name, named.part(start, stop), batch.named_vectors.add())
    try:
        if columns.metadata is not None:
            batch.metadata.extend(columns.metadata[part])
        if columns.documents is not None:
            batch.documents.SetInParent()
            encode_texts(columns.documents[part], batch.documents)
        if columns.contents is not None:
            batch.contents.CopyFrom(encode_contents(columns.contents[part]))
        if columns.uris is not None:
            batch.uris.SetInParent()
            encode_texts(columns.uris[part], batch.uris)
    except (TypeError, ValueError) as error:
        raise InvalidMetadata(
            f"documents, uris and media types must be texts in UTF-8: {error}"
        ) from None
    return batch


def decode_columns(batch: pb.RecordBatch, most_rows: float = MAX_BATCH_ROWS) -> Columns:
    """The columns of a message; those that it does not carry are None.

    InvalidBatch when a column's length is not the number of ids, a named vector is given twice, or there
    are more than `most_rows` records, or more named vectors than a batch may have: each costs memory beyond its bytes.
    An answer has as many as were asked for.
    """
    count = len(batch.ids)
    if count > most_rows or len(batch.named_vectors) > MAX_VECTOR_FIELDS:
        raise InvalidBatch(
            f"the batch has {count} records and {len(batch.named_vectors)} named vectors a record, at most "
            f"{most_rows} and {MAX_VECTOR_FIELDS} are taken; split it"
        )
    named: dict[str, Named] | None = None
    if batch.named_vectors:
        named = {one.name: decode_named(one, count) for one in batch.named_vectors}
        if len(named) < len(batch.named_vectors):
            raise InvalidBatch("a named vector field is given more than once; give each name once")
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
        named_vectors=named,
    )
