"""Checksums of stored rows: what they should be, what they are, and which records fail theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..crc import crc32
from ..errors import Corrupted
from ..layout import DEFAULT_FIELD, ID_BLOCK_ROWS
from .reader import Reader
from .tables import Rows

Views = Mapping[str, Sequence[memoryview | None]]
"""Values of rows, by table."""

BY_ROW = ("metadata", "documents", "contents", "uris")
"""The tables keyed by row, in the order in which a checksum goes over them."""


def stored_sums(reader: Reader, rows: Rows) -> list[int]:
    """The checksum stored with each of some rows, ascending int64; 0 where purged."""
    numbers, starts = np.unique(rows // ID_BLOCK_ROWS, return_index=True)
    found: list[int] = []
    for number, part in zip(numbers.tolist(), np.split(rows, starts[1:]), strict=True):
        found += reader.checksum_block(number)[part - number * ID_BLOCK_ROWS].tolist()
    return found


def sums_of(
    reader: Reader,
    rows: Rows,
    ids: Sequence[bytes],
    *,
    views: Views = MappingProxyType({}),
    vectors: NDArray[Any] | None = None,
) -> list[int]:
    """The checksum of what is stored of each of some rows, ascending; 0 where nothing is.

    `ids` are those of the rows, b"" where purged. What the caller has read already it gives: `views` by
    table, and the rows' own `vectors`.
    """
    sums = [crc32(i) for i in ids]
    held = np.fromiter(map(bool, ids), np.bool_, len(ids))
    sums = _with_vectors(reader, DEFAULT_FIELD, rows, sums, held, vectors)
    for table in BY_ROW:
        if reader.entries(table):
            values = views[table] if table in views else reader.views(table, rows)
            sums = [s if v is None else crc32(v, s) for v, s in zip(values, sums, strict=True)]
    for field in range(1, reader.n_fields):
        sums = _with_vectors(reader, field, rows, sums, held & reader.present(rows, field))
    return sums


def must_be_whole(
    reader: Reader,
    rows: Rows,
    ids: Sequence[bytes],
    views: Views = MappingProxyType({}),
    vectors: NDArray[Any] | None = None,
    advice: str = "Write it anew or delete it, or restore a backup",
) -> None:
    """Corrupted, with the ids of the records and what to do, when some rows, in any order, fail their checksums.

    `views` and `vectors` as in `sums_of`, in the order of the rows; about 2.5 us a row of 384 float32, 5 of rows that
    lie far from each other.
    """
    if not len(rows):
        return
    if (np.diff(rows) < 0).any():
        order = np.argsort(rows)
        places = order.tolist()
        rows, ids = rows[order], [ids[n] for n in places]
        views = {table: [found[n] for n in places] for table, found in views.items()}
        vectors = None if vectors is None else vectors[order]
    expected = stored_sums(reader, rows)
    found = sums_of(reader, rows, ids, views=views, vectors=vectors)
    if found != expected:
        bad = [n for n in range(len(rows)) if found[n] != expected[n]]
        names = [ids[n].decode(errors="replace") for n in bad]
        raise Corrupted(
            f"record {names[0]!r} (row {rows[bad[0]]}) fails its checksum"
            + (f", and so do {len(bad) - 1} beside it" if len(bad) > 1 else "")
            + f": its stored bytes were changed. {advice}; `check` names all such records",
            ids=names,
        )


def _with_vectors(
    reader: Reader,
    field: int,
    rows: Rows,
    sums: list[int],
    held: NDArray[np.bool_],
    vectors: NDArray[Any] | None = None,
) -> list[int]:
    start, stop = int(rows[0]), int(rows[-1]) + 1
    if vectors is None and stop - start == len(rows):
        vectors = reader.vector_range(start, stop, field)
    elif vectors is None:
        vectors = reader.vectors(rows, field)
    raw = np.ascontiguousarray(vectors).reshape(-1).view(np.uint8).data
    width = vectors[0].nbytes
    for n in np.flatnonzero(held).tolist():
        sums[n] = crc32(raw[n * width : (n + 1) * width], sums[n])
    return sums
