"""From row numbers to what the caller asked for, in one read transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import metadata as meta
from .collection_info import from_json
from .errors import InvalidCursor, InvalidQuery, LimitExceeded, Unavailable
from .layout import unpack_content
from .store import Reader, must_be_whole
from .types import INCLUDABLE, CollectionInfo, Content
from .vectors import Space, width_of

_TABLES = {"metadata": "metadata", "document": "documents", "content": "contents", "uri": "uris"}

_COMPARED_BYTES = 256 * 1024 * 1024
_TRIES = 5
Read = TypeVar("Read")
"""Contents that are read for their checksums in one go: some tenths of a second in which LMDB keeps old pages."""
_COMPACTED = (
    "and the collection was compacted since. Start again without a cursor, or keep more history with "
    "the setting history_s"
)


@dataclass(frozen=True, slots=True)
class Fetched:
    """Columns of n records; a column that was not included is None."""

    ids: list[str]
    vectors: NDArray[Any] | None
    """float32, for storage binary uint8."""
    metadata: list[Any] | None
    documents: list[str | None] | None
    contents: list[Content | None] | None
    uris: list[str | None] | None
    named_vectors: dict[str, NDArray[Any]] | None = None
    """Each (n, width); the rows of records without one are NaN (binary: zeros)."""
    named_present: dict[str, NDArray[np.bool_]] | None = None


def check_include(include: Iterable[str]) -> frozenset[str]:
    if isinstance(include, str) or not isinstance(include, Iterable):
        raise InvalidQuery(f"include takes a list of {', '.join(INCLUDABLE)}; given {include!r}")
    wanted = list(include)
    unknown = [part for part in wanted if part not in INCLUDABLE]
    if unknown:
        raise InvalidQuery(
            f"include takes {', '.join(INCLUDABLE)}; given {unknown[0]!r}", include=str(unknown[0])
        )
    return frozenset(wanted)


def fetch(
    reader: Reader,
    rows: NDArray[np.int64],
    ids: list[str],
    include: frozenset[str],
    *,
    raw_metadata: bool,
    max_bytes: int | None = None,
    cut: bool = False,
) -> Fetched:
    """The included columns of rows whose ids are known. With `raw_metadata` metadata stays JSON.

    About 0.7 us a row and column, and 1.5 us for vectors. When the included parts have more than
    `max_bytes` together, nothing is copied: LimitExceeded, or with `cut` only the first rows that fit,
    at least one. With `cut` the rows may be of a moment that is past: InvalidCursor when a
    compaction has taken any of them since; and their checksums are compared when anything is included:
    Corrupted names the records.

    A checksum takes all that is stored of a record, so contents that were not asked for are read too, where they lie.
    A scan of 20,000 rows of 384 float32 with metadata, a document and a content of 10 KB, all in the file cache, takes 12 us
    a row so, and took 6 when such contents kept checksums from being compared. In one transaction no more than
    `_COMPARED_BYTES` of them are read, or one.
    """
    if cut:
        _must_be_there(reader, rows)
    held = {part: reader.views(table, rows) for part, table in _TABLES.items() if part in include}
    if max_bytes is not None and include:
        fitting = _fitting(held, len(rows), _vector_bytes(reader, include), max_bytes)
        if fitting < len(rows) and not cut:
            raise LimitExceeded(
                f"the included parts of {len(rows)} answers have more than {max_bytes} bytes together; "
                "ask for fewer records, or include less",
                limit=max_bytes,
            )
        fitting = max(1, fitting)
        rows, ids = rows[:fitting], ids[:fitting]
        held = {part: views[:fitting] for part, views in held.items()}
    vectors, named, present = None, None, None
    views = {_TABLES[part]: found for part, found in held.items()}
    if cut and include and "content" not in include and reader.entries("contents"):
        unasked = {"contents": reader.views("contents", rows)}
        fitting = max(1, _fitting(unasked, len(rows), 0, _COMPARED_BYTES))
        rows, ids = rows[:fitting], ids[:fitting]
        held = {part: found[:fitting] for part, found in held.items()}
        views = {table: found[:fitting] for table, found in (views | unasked).items()}
    stored = reader.vectors(rows) if "vector" in include else None
    if cut and include:
        must_be_whole(reader, rows, [i.encode() for i in ids], views, stored)
    if stored is not None:
        vectors = _readable(stored, info_of(reader).storage)
    if "named_vectors" in include:
        named, present = _named(reader, rows)
    metadata: list[Any] | None = None
    if raw_metadata and "metadata" in held:
        metadata = [b"" if v is None else bytes(v) for v in held["metadata"]]
    elif "metadata" in held:
        metadata = [{} if v is None else meta.decode(v) for v in held["metadata"]]
    return Fetched(
        ids,
        vectors,
        metadata,
        _texts(held.get("document")),
        _contents(held.get("content")),
        _texts(held.get("uri")),
        named,
        present,
    )


class MomentGone(Exception):
    """Of the moment that is read, a process that writes has taken rows meanwhile."""


def must_show(reader: Reader, sequence: int) -> None:
    """MomentGone when a compaction has taken rows that the moment after `sequence` shows: the process that does it knows
    only who reads within itself, and what `history_s` keeps. 0.5 us."""
    if sequence < reader.horizon():
        raise MomentGone


def while_there(read: Callable[[], Read]) -> Read:
    """What `read` gives of one moment, or of a newer one where that has gone; Unavailable where they all go too soon."""
    for _ in range(_TRIES):
        try:
            return read()
        except MomentGone:
            continue
    raise Unavailable(
        f"the process that writes gives the space of replaced and deleted records back sooner than this read takes, {_TRIES} "
        "times; repeat it, or give that process a larger history_s",
        retry_after_ms=100,
    )


def must_be_readable(reader: Reader, sequence: int) -> None:
    """InvalidCursor when a compaction has taken rows that the moment after `sequence` shows; 0.5 us."""
    horizon = reader.horizon()
    if sequence < horizon:
        raise InvalidCursor(
            f"the cursor is of commit {sequence}, {_COMPACTED}",
            sequence=sequence,
            horizon=horizon,
        )


def _must_be_there(reader: Reader, rows: NDArray[np.int64]) -> None:
    if not len(rows) or not reader.horizon():
        return
    first, last = int(rows.min()), int(rows.max())
    if reader.purged_mask(first, last + 1)[rows - first].any():
        raise InvalidCursor(f"some of these records are of a moment that is gone, {_COMPACTED}")


def info_of(reader: Reader) -> CollectionInfo:
    """The settings of the collection that `reader` reads, without its name; about 1 us."""
    return _parsed(reader.settings())


@lru_cache(maxsize=256)
def _parsed(settings: bytes) -> CollectionInfo:
    return from_json("", settings)


def _readable(stored: NDArray[Any], storage: str) -> NDArray[Any]:
    return stored if storage == "binary" else stored.astype(np.float32, copy=False)


def _named(
    reader: Reader, rows: NDArray[np.int64]
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.bool_]]]:
    vectors, present = {}, {}
    for number, (name, settings) in enumerate(info_of(reader).vectors.items(), 1):
        there = present[name] = reader.present(rows, number)
        found = _readable(reader.vectors(rows, number), settings.storage)
        if found.dtype.kind == "f":
            found[~there] = np.nan
        vectors[name] = found
    return vectors, present


def _vector_bytes(reader: Reader, include: frozenset[str]) -> int:
    """Bytes that the included vectors of one record take where they are read."""
    spaces: list[Space] = []
    if "vector" in include:
        spaces.append(info_of(reader))
    if "named_vectors" in include:
        spaces += info_of(reader).vectors.values()
    return sum(width_of(s) if s.storage == "binary" else 4 * s.dimension for s in spaces)


def _fitting(
    held: Mapping[str, Sequence[memoryview | None]], n_rows: int, vector_bytes: int, max_bytes: int
) -> int:
    """How many of the first rows have at most `max_bytes` together."""
    sizes = np.full(n_rows, vector_bytes, np.int64)
    for views in held.values():
        sizes += np.fromiter((0 if v is None else len(v) for v in views), np.int64, n_rows)
    return int(np.searchsorted(np.cumsum(sizes), max_bytes, side="right"))


def _texts(views: Sequence[memoryview | None] | None) -> list[str | None] | None:
    return None if views is None else [None if v is None else str(v, "utf-8") for v in views]


def _contents(views: Sequence[memoryview | None] | None) -> list[Content | None] | None:
    if views is None:
        return None
    unpacked = [None if v is None else unpack_content(bytes(v)) for v in views]
    return [None if u is None else Content(u[1], u[0]) for u in unpacked]
