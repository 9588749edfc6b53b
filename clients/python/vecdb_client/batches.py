"""What callers hand in as columns of records, and how a large batch is cut into messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from . import json_text, messages, wire
from .errors import InvalidBatch, InvalidId, InvalidMetadata, LimitExceeded

MESSAGE_ROWS = 2_000
MESSAGE_BYTES = 8 * 1024 * 1024
_ROW_OVERHEAD_BYTES = 48
"""Upper bound for tags and lengths of one record's fields."""
_FIELD_OVERHEAD_BYTES = 192
"""Upper bound for name, tags and lengths of one named vector field in a message."""
_COLUMNS = ("ids", "vectors", "metadata", "documents", "contents", "uris", "named_vectors")


def id_list(ids: Any) -> list[str]:
    """`ids` as a list of texts; InvalidBatch for a single text and for none, InvalidId for others."""
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise InvalidBatch(f"ids must be a list of texts, given {type(ids).__name__} {ids!r:.80}")
    found = list(ids)
    if not found:
        raise InvalidBatch("the batch is empty; give at least one id")
    for position, record_id in enumerate(found):
        if not isinstance(record_id, str):
            raise InvalidId(
                f"id at position {position} is {type(record_id).__name__} {record_id!r:.80}; "
                "ids are texts",
                position=position,
            )
        if not record_id.isascii():
            _check_utf8(record_id, position)
    return found


def _check_utf8(record_id: str, position: int) -> None:
    try:
        record_id.encode()
    except UnicodeEncodeError:
        raise InvalidId(
            f"id at position {position} holds a lone surrogate, which UTF-8 cannot express",
            position=position,
        ) from None


def _column(name: str, column: Any, count: int) -> list[Any] | None:
    if column is None:
        return None
    if isinstance(column, str | bytes | Mapping) or not isinstance(column, Iterable):
        raise InvalidBatch(
            f"{name} must be a list with one entry an id, given {type(column).__name__}"
        )
    entries = list(column)
    if len(entries) != count:
        raise InvalidBatch(f"{count} ids and {len(entries)} {name} were given; give one an id")
    return entries


def _texts(name: str, column: Any, ids: list[str]) -> list[str | None] | None:
    entries = _column(name, column, len(ids))
    for i, entry in enumerate(entries or ()):
        if entry is not None and not isinstance(entry, str):
            raise InvalidMetadata(
                f"record {ids[i]!r} (position {i} of the batch): {name} takes texts or None, "
                f"given {type(entry).__name__}",
                position=i,
            )
    return entries


def _named(given: Any, ids: list[str]) -> dict[str, wire.Named] | None:
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise InvalidBatch(
            "named_vectors must map names of vector fields to vectors, given "
            f"{type(given).__name__}"
        )
    found = {}
    for name, column in given.items():
        if not isinstance(name, str) or not name or not name.isascii():
            raise InvalidBatch(f"no vector field {name!r:.80}")
        if column is not None:
            found[name] = _field(name, column, ids)
    return found


def _field(name: str, column: Any, ids: list[str]) -> wire.Named:
    if isinstance(column, wire.Named):
        return column
    present = None
    if isinstance(column, list | tuple) and any(entry is None for entry in column):
        present = np.array([entry is not None for entry in column])
        column = [entry for entry in column if entry is not None]
    # Of a field that no record has the width is not known; the server asks for at least one.
    matrix = wire.as_matrix(column) if len(column) else np.zeros((0, 1), np.float32)
    n = len(matrix) if present is None else len(present)
    if n != len(ids) or (present is not None and present.sum() != len(matrix)):
        raise InvalidBatch(
            f"{len(ids)} ids and {n} vectors of field {name!r} were given; give one an id, or None "
            "for a record without",
            field=name,
        )
    return wire.Named(matrix, present)


def to_columns(
    ids: Any,
    vectors: Any,
    metadata: Any,
    documents: Any,
    contents: Any,
    uris: Any,
    named_vectors: Any = None,
) -> wire.Columns:
    """The columns of a batch, each of one length. Vectors None: none (the server may refuse it)."""
    names = id_list(ids)
    n = len(names)
    matrix = None if vectors is None else wire.as_matrix(vectors, names)
    if matrix is not None and len(matrix) != n:
        raise InvalidBatch(f"{n} ids and {len(matrix)} vectors were given; give one an id")
    entries = _column("metadata", metadata, n)
    pairs = _column("contents", contents, n)
    return wire.Columns(
        ids=names,
        vectors=matrix,
        metadata=None if entries is None else json_text.encode_metadata(entries, names),
        documents=_texts("documents", documents, names),
        contents=None if pairs is None else [wire.as_content(pair) for pair in pairs],
        uris=_texts("uris", uris, names),
        named_vectors=_named(named_vectors, names),
    )


def of_any(batch: Any) -> wire.Columns:
    """The columns of one batch of an ingest: a mapping of columns, a tuple of them in the order
    ids, vectors, metadata, documents, contents, uris, named_vectors, or Records of a scan."""
    if isinstance(batch, Mapping):
        unknown = [name for name in batch if name not in _COLUMNS]
        if unknown:
            raise InvalidBatch(
                f"a batch has the unknown column {unknown[0]!r}; known are {', '.join(_COLUMNS)}"
            )
        return to_columns(*(batch.get(name) for name in _COLUMNS))
    if isinstance(batch, tuple) and 2 <= len(batch) <= len(_COLUMNS):
        return to_columns(*batch, *[None] * (len(_COLUMNS) - len(batch)))
    if hasattr(batch, "ids") and hasattr(batch, "vectors"):
        columns = {name: getattr(batch, name) for name in _COLUMNS}
        named = messages.named_columns(batch.named_vectors, batch.named_present)
        return to_columns(**{**columns, "named_vectors": named})
    raise InvalidBatch(
        "a batch of an ingest is a mapping of columns, a tuple of 2 to 7 columns, or Records, "
        f"given {type(batch).__name__}; ingest takes an iterable of batches: of one, [batch]"
    )


def stream_of(given: Any, kinds: tuple[type, ...] = (Iterable,)) -> Any:
    """What an ingest was given, if it can be an iterable of batches. InvalidBatch, which tells one batch from others."""
    one = isinstance(given, Mapping) or (hasattr(given, "ids") and hasattr(given, "vectors"))
    if one:
        raise InvalidBatch(
            f"ingest takes an iterable of batches, given one batch ({type(given).__name__}); give [batch], or use insert"
        )
    if isinstance(given, str | bytes) or not isinstance(given, kinds):
        hint = "; asynchronous ones are for vecdb_client.aio" if hasattr(given, "__aiter__") else ""
        raise InvalidBatch(
            f"ingest takes an iterable of batches, given {type(given).__name__}{hint}"
        )
    return given


def refuse_twice(ids: list[str]) -> None:
    """InvalidBatch for an id given twice; the server sees it only within one message."""
    if len(set(ids)) == len(ids):
        return
    seen: set[str] = set()
    twice = []
    for record_id in ids:
        if record_id in seen:
            twice.append(record_id)
        seen.add(record_id)
    raise InvalidBatch(
        f"id {twice[0]!r} is given more than once in the batch ({len(twice)} such entries); an id "
        "may stand once in a batch",
        ids=sorted(set(twice))[:100],
    )


def _size(text: str | None) -> int:
    if text is None:
        return 0
    # isascii is answered without looking at the characters.
    return len(text) if text.isascii() else len(text.encode(errors="replace"))


def row_bytes(columns: wire.Columns) -> Any:
    """Bytes that each record takes at most in a message: an int64 array of shape (n,)."""
    n = len(columns.ids)
    sizes = np.fromiter(map(_size, columns.ids), np.int64, n) + _ROW_OVERHEAD_BYTES
    if columns.vectors is not None:
        sizes += columns.vectors.shape[1] * columns.vectors.dtype.itemsize
    if columns.metadata is not None:
        sizes += np.fromiter(map(len, columns.metadata), np.int64, n)
    for texts in (columns.documents, columns.uris):
        if texts is not None:
            sizes += np.fromiter(map(_size, texts), np.int64, n)
    if columns.contents is not None:
        pairs = (0 if pair is None else len(pair[0]) + _size(pair[1]) for pair in columns.contents)
        sizes += np.fromiter(pairs, np.int64, n)
    for named in (columns.named_vectors or {}).values():
        there: Any = slice(None) if named.present is None else named.present
        sizes[there] += named.rows.shape[1] * named.rows.dtype.itemsize
    return sizes


def cut(
    columns: wire.Columns, batch_size: int | None, max_message_bytes: int
) -> list[tuple[int, int]]:
    """(start, stop) of each message: at most 2,000 rows and 8 MiB, or `batch_size` rows.

    LimitExceeded, before anything is sent, when one record alone is too large for a message.
    """
    sizes = row_bytes(columns)
    room = max_message_bytes - 1024 - _FIELD_OVERHEAD_BYTES * len(columns.named_vectors or ())
    if sizes.max(initial=0) > room:
        row = int(sizes.argmax())
        raise LimitExceeded(
            f"record {columns.ids[row]!r} takes {int(sizes[row])} bytes, a message at most "
            f"{max_message_bytes}; raise max_message_bytes of client and server",
            id=columns.ids[row],
            given_bytes=int(sizes[row]),
            limit_bytes=max_message_bytes,
        )
    rows = MESSAGE_ROWS if batch_size is None else batch_size
    target = room if batch_size is not None else min(MESSAGE_BYTES, room)
    ends = np.cumsum(sizes)
    parts, start, sent = [], 0, 0
    while start < len(sizes):
        by_bytes = int(np.searchsorted(ends, sent + target, side="right"))
        stop = max(start + 1, min(by_bytes, start + rows))
        parts.append((start, stop))
        start, sent = stop, int(ends[stop - 1])
    return parts
