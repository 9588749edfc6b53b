"""Rows and history as they are stored, read in pieces for a backup.

Each function reads a bounded piece inside the caller's transaction, so that none is open for long: rows
never change, so pieces of different moments fit together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Corrupted
from ..layout import ID_BLOCK_ROWS, LOG, ROW, SEQUENCE
from .reader import Reader
from .tables import Rows
from .writer import Column, EncodedRows, checksums

Mask = NDArray[np.bool_]

TEXT_TABLES = ("metadata", "documents", "contents", "uris")
"""The tables of texts and bytes, in the order of `EncodedRows`."""
NO_VALUE = 0xFFFF_FFFF
"""Length that stands for a row without a value."""


@dataclass(frozen=True, slots=True)
class StoredRows:
    """What the store has of rows [first, end): `held` says which are not purged, shape (end - first,).

    `rows` and `sums` (uint32), the stored checksums, have one entry a held row.
    """

    first: int
    end: int
    held: Mask
    rows: EncodedRows
    sums: NDArray[np.uint32]

    def damaged(self) -> Rows:
        """Rows whose content does not have its checksum, ascending; about 0.5 us a row."""
        found = np.array(checksums(self.rows), np.uint32)
        rows: Rows = (self.first + np.flatnonzero(self.held))[found != self.sums]
        return rows


@dataclass(frozen=True, slots=True)
class LogPiece:
    """Consecutive commits from `sequence` on: times in microseconds since 1970, rows given out before the
    first and after each of them."""

    sequence: int
    first_row: int
    times_us: NDArray[np.int64]
    end_rows: Rows
    died: Rows
    """Rows that died in them, and the commit of each."""
    died_in: Rows


def copy_rows(reader: Reader, first: int, end: int, budget_bytes: int) -> StoredRows:
    """The first rows of [first, end), as many as fit, at least one: vectors into `budget_bytes`, all else
    into as many again. Metadata, documents, contents and uris are buffers into the map, valid while the
    transaction is open.

    Raises Corrupted when a block is missing or damaged; checksums are the caller's to compare.
    """
    per_row = sum(reader.row_bytes(field) for field in range(reader.n_fields)) + 64
    end = _whole_blocks(first, min(end, first + max(1, budget_bytes // per_row)))
    texts, end = _texts(reader, first, end, budget_bytes)
    held = ~reader.purged_mask(first, end)
    ids, sums = _ids(reader, first, end, held)
    kept = first + np.flatnonzero(held)
    whole = len(kept) == end - first

    def column(name: str) -> Column:
        rows, values = texts[name]
        if not len(rows):
            return None
        if len(rows) == len(kept):  # a purged row has none
            return values
        found = dict(zip(rows.tolist(), values, strict=True))
        return [found.get(row) for row in kept.tolist()]

    def vectors(field: int) -> NDArray[np.generic]:
        found = reader.vector_range(first, end, field)
        return found if whole else found[held]

    named = {}
    for field in range(1, reader.n_fields):
        present = ~reader.absent_mask(field, first, end)[held]
        if present.any():
            named[field] = (vectors(field), present)
    rows = EncodedRows(
        ids, vectors(0), column("metadata"), column("documents"), column("contents"),
        column("uris"), named=named,
    )  # fmt: skip
    return StoredRows(first, end, held, rows, sums)


def _whole_blocks(first: int, end: int) -> int:
    """`end`, or where the last block of ids before it ends: a block is read as a whole."""
    whole = end - end % ID_BLOCK_ROWS
    return whole if whole > first else end


def _texts(
    reader: Reader, first: int, end: int, room: int
) -> tuple[dict[str, tuple[Rows, list[Any]]], int]:
    """Rows and values by table, and where the rows end that fit into `room` bytes, at least one.

    Values are looked up, not read: what does not fit costs nothing.
    """
    found: dict[str, tuple[Rows, list[Any]]] = {}
    spent = np.zeros(end - first, np.int64)
    for name in TEXT_TABLES:
        none: tuple[Rows, list[Any]] = (np.empty(0, np.int64), [])
        rows, values = reader.table_range(name, first, end) if reader.entries(name) else none
        found[name] = rows, values
        spent[rows - first] += np.fromiter(map(len, values), np.int64, len(values))
    fits = int(np.searchsorted(np.cumsum(spent), room, side="right"))
    if fits < end - first:
        end = _whole_blocks(first, first + max(1, fits))
    for name, (rows, values) in found.items():
        there = int(np.searchsorted(rows, end))
        found[name] = rows[:there], values[:there]
    return found, end


def _ids(
    reader: Reader, first: int, end: int, held: Mask
) -> tuple[list[bytes], NDArray[np.uint32]]:
    """(ids, checksums) of the held rows."""
    ids: list[bytes] = []
    sums: list[int] = []
    for number in range(first // ID_BLOCK_ROWS, -(-end // ID_BLOCK_ROWS)):
        start = number * ID_BLOCK_ROWS
        part = slice(max(0, first - start), end - start)
        block_ids, block_sums = reader.id_block(number)
        ids += block_ids[part]
        sums += block_sums[part]
    checks = np.array(sums, np.uint32)
    if held.all():
        return ids, checks
    return [i for i, keep in zip(ids, held.tolist(), strict=True) if keep], checks[held]


def copy_deaths(reader: Reader, start: int, count: int) -> tuple[Rows, Rows, int]:
    """(rows, sequences of the commits they died in) of up to `count` dead rows from row `start` on that
    are not purged, and the row to go on from, -1 when there are no more."""
    rows, sequences = bytearray(), bytearray()
    following = -1
    for n, (key, value) in enumerate(reader.items("dead", ROW.pack(start))):
        if n == count:
            following = ROW.unpack(key)[0]
            break
        rows += key
        sequences += value
    return (
        np.frombuffer(rows, ">u8").astype(np.int64),
        np.frombuffer(sequences, "<u8").astype(np.int64),
        following,
    )


def copy_log(reader: Reader, after: int, until: int, count: int) -> LogPiece | None:
    """Up to `count` commits with sequences in (after, until]; None when the log has none of them. Corrupted where one does
    not begin with the row at which the one before it ends."""
    heads: list[bytes] = []
    died: list[Rows] = []
    died_in: list[int] = []
    sequence = expected = 0
    for key, value in reader.items("log", SEQUENCE.pack(after + 1)):
        at = SEQUENCE.unpack(key)[0]
        if at > until or len(heads) == count:
            break
        sequence = sequence or at
        if at != (expected or at):
            raise Corrupted(f"the log jumps from commit {expected - 1} to {at}; run check")
        expected = at + 1
        heads.append(bytes(value[: LOG.size]))
        if len(value) > LOG.size:
            died.append(np.frombuffer(value[LOG.size :], "<u8").astype(np.int64))
            died_in += [at] * len(died[-1])
    if not heads:
        return None
    entries = np.frombuffer(b"".join(heads), "<i8").reshape(-1, 3)
    apart = np.flatnonzero(entries[1:, 1] != entries[:-1, 2])
    if len(apart):
        raise Corrupted(
            f"commit {sequence + int(apart[0]) + 1} starts at row {entries[apart[0] + 1, 1]}, the one before it ended at "
            f"{entries[apart[0], 2]}; run check"
        )
    return LogPiece(
        sequence, int(entries[0, 1]), entries[:, 0].copy(), entries[:, 2].copy(),
        np.concatenate([np.empty(0, np.int64), *died]), np.array(died_in, np.int64),
    )  # fmt: skip
