"""Checks what a caller hands in and turns it into columns of bytes: the one place of validation.

Embedded use, the server and imports all come through here. Nothing below checks again, and nothing
above needs to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import metadata as meta
from .errors import InvalidBatch, InvalidId, InvalidMetadata
from .layout import pack_content
from .types import (
    MAX_BATCH_ROWS,
    MAX_CONTENT_BYTES,
    MAX_DOCUMENT_BYTES,
    MAX_ID_BYTES,
    MAX_MEDIA_TYPE_BYTES,
    MAX_REQUEST_ID_BYTES,
    MAX_URI_BYTES,
    CollectionInfo,
    Content,
)
from .vectors import NamedColumn, check_named, check_vectors

__all__ = [
    "CheckedBatch",
    "check_columns",
    "check_ids",
    "check_patch",
    "where",
]


@dataclass(frozen=True, slots=True)
class CheckedBatch:
    """What a caller gave for n ids, checked and encoded; a column not given is None.

    `vectors` is (n, dimension) in the collection's stored dtype, C-contiguous (binary: n rows of
    dimension / 8 bytes). `metadata` are JSON texts beside `metadata_values`, the same as mappings.
    `metadata_columns` are the same values by key, if `metadata.encode_all` gave them. None inside a
    column means: not given. `named` holds the named vector fields that any of the
    records has, by their number.
    """

    ids: list[bytes]
    vectors: NDArray[Any] | None
    metadata: list[bytes | None] | None
    metadata_values: list[dict[str, Any]] | None
    metadata_columns: dict[str, list[Any]] | None
    documents: list[bytes | None] | None
    contents: list[bytes | None] | None
    uris: list[bytes | None] | None
    named: dict[int, NamedColumn] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


def check_columns(
    info: CollectionInfo,
    ids: Iterable[str],
    vectors: Any,
    metadata: Any,
    documents: Any,
    contents: Any,
    uris: Any,
    named_vectors: Any = None,
) -> CheckedBatch:
    """Checks a batch for insert and upsert, vectors included. About 6 us a record with metadata."""
    checked = check_ids(ids)
    n = len(checked)
    if vectors is None:
        raise InvalidBatch(f"{n} ids were given without vectors; give one vector an id")
    texts: list[bytes | None] | None = None
    values: list[dict[str, Any]] | None = None
    columns: dict[str, list[Any]] | None = None
    if metadata is not None:
        encoded = meta.encode_all(_column("metadata", metadata, n), lambda i: where(checked, i))
        texts, values, columns = [text or None for text in encoded.texts], *encoded[1:]
        if info.schema:
            schema = dict(info.schema)
            for i, value in enumerate(values):
                meta.conform(value, schema, where(checked, i))
    return CheckedBatch(
        checked,
        _own(check_vectors(info, vectors, n, lambda i: where(checked, i)), vectors),
        texts,
        values,
        columns,
        _texts("documents", documents, checked, MAX_DOCUMENT_BYTES),
        _contents(contents, checked),
        _texts("uris", uris, checked, MAX_URI_BYTES),
        _own_named(
            info,
            named_vectors,
            check_named(info.vectors, named_vectors, n, lambda i: where(checked, i)),
        ),
    )


def _own(checked: NDArray[Any], given: Any) -> NDArray[Any]:
    """A copy of what is the caller's own memory: it may be filled with other numbers before these are stored, where a write
    is interrupted, or prepared long before it is made. Then they would not be what their checksums are of."""
    if isinstance(given, np.ndarray):
        root = given
        while isinstance(root.base, np.ndarray):
            root = root.base
        if not root.flags.writeable or not np.may_share_memory(checked, given):
            return checked
    elif not hasattr(given, "__array__"):
        return checked
    return checked.copy()


def _own_named(
    info: CollectionInfo, given: Any, checked: dict[int, NamedColumn]
) -> dict[int, NamedColumn]:
    names = list(info.vectors)
    return {
        number: (_own(vectors, given[names[number - 1]]), present)
        for number, (vectors, present) in checked.items()
    }


def check_patch(
    info: CollectionInfo,
    ids: Iterable[str],
    vectors: Any,
    metadata: Any,
    documents: Any,
    contents: Any,
    uris: Any,
    named_vectors: Any = None,
) -> CheckedBatch:
    """Checks a batch for update: every column may be missing, and so may its entries."""
    checked = check_ids(ids)
    n = len(checked)
    patches: list[dict[str, Any]] | None = None
    if metadata is not None:
        patches = []
        for i, entry in enumerate(_column("metadata", metadata, n)):
            patches.append({} if entry is None else meta.check(entry, where(checked, i)))
    return CheckedBatch(
        checked,
        None
        if vectors is None
        else _own(check_vectors(info, vectors, n, lambda i: where(checked, i)), vectors),
        None,
        patches,
        None,
        _texts("documents", documents, checked, MAX_DOCUMENT_BYTES),
        _contents(contents, checked),
        _texts("uris", uris, checked, MAX_URI_BYTES),
        _own_named(
            info,
            named_vectors,
            check_named(info.vectors, named_vectors, n, lambda i: where(checked, i)),
        ),
    )


def where(ids: Sequence[bytes], position: int) -> str:
    return f"record {ids[position].decode()!r} (position {position} of the batch)"


def check_ids(ids: Iterable[str]) -> list[bytes]:
    """Ids as UTF-8; refuses an empty batch, a wrong type, a bad id, and an id given twice."""
    if isinstance(ids, str | bytes):
        raise InvalidBatch(f"ids must be a list of texts, given the single text {ids!r}")
    given = list(ids)
    if not given:
        raise InvalidBatch("the batch is empty; give at least one id")
    if len(given) > MAX_BATCH_ROWS:
        raise InvalidBatch(
            f"the batch has {len(given)} records, at most {MAX_BATCH_ROWS} are taken; split it",
            given=len(given),
            limit=MAX_BATCH_ROWS,
        )
    try:
        checked = [i.encode() for i in given]
        lengths = set(map(len, checked))
        fine = min(lengths) > 0 and max(lengths) <= MAX_ID_BYTES and 0 not in b"".join(checked)
    except (AttributeError, UnicodeEncodeError, TypeError):
        fine = False
    if not fine:
        for position, record_id in enumerate(given):
            _check_id(record_id, position)
    if len(set(checked)) != len(checked):
        seen: set[bytes] = set()
        twice = sorted({i.decode() for i in checked if i in seen or seen.add(i)})  # type: ignore[func-returns-value]
        raise InvalidBatch(
            f"id {twice[0]!r} is given more than once in the batch ({len(twice)} such ids); an id may "
            "stand once in a batch",
            ids=twice[:100],
        )
    return checked


def _check_id(record_id: Any, position: int) -> None:
    if not isinstance(record_id, str):
        raise InvalidId(
            f"id at position {position} is {type(record_id).__name__} {record_id!r}; ids are texts",
            position=position,
        )
    try:
        size = len(record_id.encode())
    except UnicodeEncodeError:
        raise InvalidId(
            f"id at position {position} holds a lone surrogate, which UTF-8 cannot express",
            position=position,
        ) from None
    if not 0 < size <= MAX_ID_BYTES or "\0" in record_id:
        shown = record_id if len(record_id) < 80 else record_id[:77] + "..."
        raise InvalidId(
            f"id {shown!r} at position {position} has {size} bytes; an id has 1 to {MAX_ID_BYTES} "
            "bytes of UTF-8 without NUL",
            position=position,
        )


def _column(name: str, column: Any, n: int) -> list[Any]:
    if isinstance(column, str | bytes | Mapping) or not isinstance(column, Iterable):
        raise InvalidBatch(
            f"{name} must be a list with one entry an id, given {type(column).__name__}"
        )
    entries = list(column)
    if len(entries) != n:
        raise InvalidBatch(f"{n} ids and {len(entries)} {name} were given; give one an id")
    return entries


def _texts(
    name: str, column: Any, ids: Sequence[bytes], limit_bytes: int
) -> list[bytes | None] | None:
    if column is None:
        return None
    entries = _column(name, column, len(ids))
    plain = _plain_texts(entries, limit_bytes)
    if plain is not None:
        return plain
    encoded: list[bytes | None] = []
    for i, text in enumerate(entries):
        if text is None:
            encoded.append(None)
            continue
        if not isinstance(text, str):
            raise InvalidMetadata(
                f"{where(ids, i)}: {name} takes texts or None, given {type(text).__name__}"
            )
        try:
            value = text.encode()
        except UnicodeEncodeError:
            raise InvalidMetadata(
                f"{where(ids, i)}: {name} holds a lone surrogate, which UTF-8 cannot express"
            ) from None
        if len(value) > limit_bytes:
            raise InvalidMetadata(
                f"{where(ids, i)}: {name} has {len(value)} bytes, at most {limit_bytes} are taken",
                given=len(value),
                limit=limit_bytes,
            )
        encoded.append(value)
    return encoded


def _plain_texts(entries: list[Any], limit_bytes: int) -> list[bytes | None] | None:
    """The entries as UTF-8 if all of them are texts that are taken; 0.1 us each, half the long way."""
    if set(map(type, entries)) != {str}:
        return None
    try:
        encoded = [text.encode() for text in entries]
    except UnicodeEncodeError:
        return None
    return [*encoded] if max(map(len, encoded)) <= limit_bytes else None


def _contents(column: Any, ids: Sequence[bytes]) -> list[bytes | None] | None:
    if column is None:
        return None
    encoded: list[bytes | None] = []
    for i, entry in enumerate(_column("contents", column, len(ids))):
        if entry is None:
            encoded.append(None)
            continue
        if isinstance(entry, bytes | bytearray | memoryview):
            entry = Content(bytes(entry))
        elif isinstance(entry, tuple) and len(entry) == 2:
            entry = Content(*entry)
        if not isinstance(entry, Content) or not isinstance(entry.data, bytes):
            raise InvalidMetadata(
                f"{where(ids, i)}: contents takes Content, (bytes, media type) or bytes, given "
                f"{type(entry).__name__}"
            )
        if not isinstance(entry.media_type, str):
            raise InvalidMetadata(
                f"{where(ids, i)}: a media type is a text such as image/png, given "
                f"{type(entry.media_type).__name__}"
            )
        media_type = entry.media_type.encode(errors="replace")
        if len(entry.data) > MAX_CONTENT_BYTES or len(media_type) > MAX_MEDIA_TYPE_BYTES:
            raise InvalidMetadata(
                f"{where(ids, i)}: content has {len(entry.data)} bytes and a media type of "
                f"{len(media_type)}; at most {MAX_CONTENT_BYTES} and {MAX_MEDIA_TYPE_BYTES} are taken",
                given=len(entry.data),
                limit=MAX_CONTENT_BYTES,
            )
        encoded.append(pack_content(media_type, entry.data))
    return encoded


def check_request_id(given: Any) -> bytes:
    """The id that a caller gives a write, as UTF-8. InvalidBatch."""
    raw = given.encode(errors="replace") if isinstance(given, str) else b""
    if not 0 < len(raw) <= MAX_REQUEST_ID_BYTES:
        raise InvalidBatch(
            f"a request_id is a text of 1 to {MAX_REQUEST_ID_BYTES} bytes, given {given!r:.80}; take a "
            "random one, such as uuid.uuid4().hex"
        )
    return raw
