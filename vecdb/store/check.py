"""Compares the tables of a collection with each other, row by row."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..errors import Corrupted
from ..layout import (
    BITMAP_ROWS,
    ID_BLOCK_ROWS,
    ROW_VALUE,
    VECTOR_KEY,
    id_key,
    keys_of_rows,
    unpack_content,
)
from ..stopping import Interrupt, asking
from . import meta_sums
from .past import mask_of, past_faults
from .reader import Reader
from .sums import BY_ROW, sums_of

Mask = NDArray[np.bool_]

_SLICE_ROWS, _SLICE_BYTES = 4_096, 64 * 1024 * 1024
"""Rows that are compared at once, fewer where they are large: whole blocks of ids."""


def problems(reader: Reader, interrupt: Interrupt = lambda: None) -> Iterator[str]:
    """One sentence for each fault, in no promised order; about 3 us a record.

    The pages come first, read without LMDB; where one is damaged nothing else is looked at, which is the last sentence.
    Checks that every live row has an id that points back to it, that every checksum holds, that
    counts and row numbers agree, that no value belongs to a row that does not exist or is purged, and
    that the log has no gap behind the horizon. `interrupt` is called between pieces of some ten
    milliseconds, and may raise.
    """
    try:
        yield from _problems(reader, interrupt)
    except (struct.error, ValueError, IndexError) as error:
        yield f"a value of another size than it must have keeps the check from going on: {error}"


def _problems(reader: Reader, interrupt: Interrupt) -> Iterator[str]:
    damaged = reader.page_faults(interrupt)
    if damaged:
        # LMDB must not read such pages: what it would do is not known.
        yield from damaged
        yield (
            "records were not compared, since pages are damaged; while no process writes to the folder, "
            "`vecdb check --data` names those that cannot be read, and a repair keeps the others"
        )
        return
    yield from meta_sums.faults(reader, interrupt)
    yield from past_faults(reader, interrupt)
    n_rows = reader.state().next_row
    dying = reader.dying()[0]
    purged, dead = mask_of(reader.purged(), n_rows), mask_of(dying[dying < n_rows], n_rows)
    dead |= purged
    claims = Claims(n_rows)
    yield from claims.read(reader, interrupt)
    yield from _orphans(reader, n_rows, purged)
    step = _slice_rows(reader, n_rows)
    for start in range(0, n_rows, step):
        interrupt()
        stop = min(start + step, n_rows)
        yield from _rows(reader, start, stop, dead, purged, claims)


def _slice_rows(reader: Reader, n_rows: int) -> int:
    each = reader.map_bytes() // max(1, n_rows) + 1
    blocks = min(_SLICE_ROWS, _SLICE_BYTES // each) // ID_BLOCK_ROWS
    return max(1, blocks) * ID_BLOCK_ROWS


class Claims:
    """Which rows the table `keys` points to, each with a checksum of the key."""

    def __init__(self, n_rows: int) -> None:
        self.made = np.zeros(n_rows, np.bool_)
        self._sums = np.zeros(n_rows, np.uint32)

    def read(self, reader: Reader, interrupt: Interrupt) -> Iterator[str]:
        keyed = reader.keyed()
        n_rows = len(self.made)
        if not keyed.first <= keyed.end <= n_rows:
            yield f"ids are keyed up to rows {keyed.first} and {keyed.end} of {n_rows}"
        for key, value in asking(reader.items("keys"), interrupt):
            row = ROW_VALUE.unpack(value)[0] if len(value) == ROW_VALUE.size else n_rows
            if row >= n_rows:
                yield f"id {key!r} points to row {row}, which was never given out"
            elif self.made[row]:
                yield f"id {key!r} points to row {row}, and so does another"
            else:
                self.made[row] = True
                self._sums[row] = zlib.crc32(key)

    def fits(self, row: int, record_id: bytes) -> bool:
        return int(self._sums[row]) == zlib.crc32(id_key(record_id))


def _rows(
    reader: Reader, start: int, stop: int, dead: Mask, purged: Mask, claims: Claims
) -> Iterator[str]:
    rows = np.arange(start, stop)
    try:
        sums = _stored_sums(reader, start, stop)
        found = sums_of(reader, rows, [record_id for record_id, _ in sums])
    except Corrupted as error:
        yield error.message
        return
    live_ids, live_rows, stale_ids, stale_rows = [], [], [], []
    for n, row in enumerate(rows.tolist()):
        record_id, expected = sums[n]
        if purged[row]:
            if (record_id, expected, found[n]) != (b"", 0, 0) or claims.made[row]:
                yield f"row {row} is purged, but something is left of it"
            continue
        if not record_id:
            yield f"row {row} has no id"
            continue
        if found[n] != expected:
            yield f"record {record_id.decode(errors='replace')!r} (row {row}) fails its checksum"
        if claims.made[row]:
            if not claims.fits(row, record_id):
                yield f"an id points to row {row}, whose id is {record_id!r}"
            elif dead[row]:
                stale_ids.append(record_id)
                stale_rows.append(row)
        if not dead[row]:
            live_ids.append(record_id)
            live_rows.append(row)
    for n, content in enumerate(reader.raw("contents", rows)):
        if content is not None and not _readable(content):
            yield f"row {start + n} holds a content without a readable media type"
    yield from _pointers(reader, live_ids, live_rows)
    # In `keys` an id may point to a dead row until its newest row, which waits in memory, is put there.
    for row, newest in zip(stale_rows, reader.fresh_rows(stale_ids), strict=True):
        if newest <= row:
            yield f"an id points to row {row}, which is dead"


def _pointers(reader: Reader, ids: list[bytes], rows: list[int]) -> Iterator[str]:
    found = reader.rows_of_ids(ids)
    for n in np.flatnonzero(found != np.asarray(rows, np.int64)).tolist():
        yield f"row {rows[n]} is live, but its id {ids[n]!r} points to row {found[n]}"


def _stored_sums(reader: Reader, start: int, stop: int) -> list[tuple[bytes, int]]:
    """(id, checksum) of each row of whole blocks of ids."""
    known: list[tuple[bytes, int]] = []
    for number in range(start // ID_BLOCK_ROWS, -(-stop // ID_BLOCK_ROWS)):
        known += zip(*reader.id_block(number), strict=True)
    return known


def _readable(content: bytes) -> bool:
    try:
        unpack_content(content)
    except (IndexError, UnicodeDecodeError):
        return False
    return True


def _orphans(reader: Reader, n_rows: int, purged: Mask) -> Iterator[str]:
    """Values of rows that do not exist, and blocks that should not be there or are not."""
    limit = keys_of_rows([n_rows])[0]
    for table in BY_ROW:
        last = reader.last_key(table)
        if last is not None and last >= limit:
            yield f"table {table} holds row {int.from_bytes(last, 'big')}, which was never given out"
    blocks = _blocks(~purged, ID_BLOCK_ROWS)
    if reader.entries("ids") != blocks:
        yield f"{reader.entries('ids')} blocks of ids are stored, {blocks} belong to {n_rows} rows"
    last = reader.last_key("purged")
    if last is not None and int.from_bytes(last, "big") * BITMAP_ROWS >= n_rows:
        yield f"rows are purged that were never given out, of {n_rows}"
    if purged.any() and not reader.horizon():
        yield "rows are purged, but the horizon was never moved"
    expected = 0
    for field in range(reader.n_fields):
        held = ~purged
        held[reader.absent(field)] = False
        expected += _blocks(held, reader.rows_per_block(field))
    if reader.entries("vectors") != expected:
        yield f"{reader.entries('vectors')} blocks of vectors are stored, {expected} belong to the rows"
    for key, _ in reader.items("absent"):
        field, number = VECTOR_KEY.unpack(key)
        if not 0 < field < reader.n_fields or number * BITMAP_ROWS >= n_rows:
            yield f"vectors are absent from block {number} of field {field}, which does not exist"


def _blocks(held: Mask, rows_per_block: int) -> int:
    """Blocks that hold anything."""
    if not len(held):
        return 0
    return int(np.logical_or.reduceat(held, np.arange(0, len(held), rows_per_block)).sum())
