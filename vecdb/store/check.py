"""Compares the tables of a collection with each other, row by row."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from ..errors import Corrupted
from ..layout import ID_BLOCK_ROWS, LOG, ROW_VALUE, SEQUENCE, keys_of_rows, unpack_content
from .reader import Reader, Rows

_SLICE_ROWS = 4_096
_BY_ROW = ("metadata", "documents", "contents", "uris")


def problems(reader: Reader) -> Iterator[str]:
    """One sentence for each fault, in no promised order; about 3 us a record.

    Checks that every live row has an id that points back to it, that every checksum holds, that
    counts and row numbers agree, that no value belongs to a row that does not exist, and that the
    log has no gap.
    """
    state = reader.state()
    dead_rows, dead_sequences = reader.dead()
    dead = np.zeros(state.next_row, np.bool_)
    if len(dead_rows) and dead_rows[-1] >= state.next_row:
        yield f"row {dead_rows[-1]} is marked dead, but only {state.next_row} rows were ever given out"
        dead_rows = dead_rows[dead_rows < state.next_row]
    dead[dead_rows] = True
    if (dead_sequences > state.sequence).any():
        yield f"a row died in commit {dead_sequences.max()}, the newest is {state.sequence}"
    live = int(state.next_row - dead.sum())
    if live != state.live:
        yield f"the state counts {state.live} live records, the rows {live}"
    if reader.entries("keys") != live:
        yield f"{reader.entries('keys')} ids point to rows, but {live} rows are live"
    yield from _orphans(reader, state.next_row)
    for start in range(0, state.next_row, _SLICE_ROWS):
        yield from _rows(reader, start, min(start + _SLICE_ROWS, state.next_row), dead)
    yield from _log(reader, dead_rows, dead_sequences)


def _rows(reader: Reader, start: int, stop: int, dead: np.ndarray) -> Iterator[str]:
    rows = np.arange(start, stop)
    try:
        vectors = reader.vector_range(start, stop).reshape(-1).view(np.uint8).data
    except Corrupted as error:
        yield error.message
        return
    width = len(vectors) // (stop - start)
    known: list[tuple[bytes, int]] = []
    for number in range(start // ID_BLOCK_ROWS, -(-stop // ID_BLOCK_ROWS)):
        try:
            known += zip(*reader.id_block(number), strict=True)
        except Corrupted as error:
            yield error.message
            return
    columns = [reader.raw(table, rows) for table in _BY_ROW]
    live_ids, live_rows = [], []
    for n, row in enumerate(range(start, stop)):
        if n >= len(known):
            yield f"row {row} has no id"
            continue
        record_id, expected = known[n]
        crc = zlib.crc32(vectors[n * width : (n + 1) * width], zlib.crc32(record_id))
        for column in columns:
            value = column[n]
            if value is not None:
                crc = zlib.crc32(value, crc)
        if crc != expected:
            yield f"record {record_id.decode(errors='replace')!r} (row {row}) fails its checksum"
        content = columns[2][n]
        if content is not None and not _readable(content):
            yield f"row {row} holds a content without a readable media type"
        if not dead[row]:
            live_ids.append(record_id)
            live_rows.append(row)
    found = reader.rows_of_ids(live_ids)
    for n in np.flatnonzero(found != np.asarray(live_rows, np.int64)).tolist():
        yield f"row {live_rows[n]} is live, but its id {live_ids[n]!r} points to row {found[n]}"


def _readable(content: bytes) -> bool:
    try:
        unpack_content(content)
    except (IndexError, UnicodeDecodeError):
        return False
    return True


def _orphans(reader: Reader, next_row: int) -> Iterator[str]:
    limit = keys_of_rows([next_row])[0]
    blocks = -(-next_row // ID_BLOCK_ROWS)
    if reader.entries("ids") != blocks:
        yield f"{reader.entries('ids')} blocks of ids are stored, {blocks} belong to {next_row} rows"
    for table in _BY_ROW:
        last = reader.last_key(table)
        if last is not None and last >= limit:
            yield f"table {table} holds row {int.from_bytes(last, 'big')}, which was never given out"
    for key, value in reader.items("keys"):
        row = ROW_VALUE.unpack(value)[0]
        if row >= next_row:
            yield f"id {key!r} points to row {row}, which was never given out"


def _log(reader: Reader, dead_rows: Rows, dead_sequences: Rows) -> Iterator[str]:
    state = reader.state()
    row, expected = 0, 1
    died_in: dict[int, int] = {}
    for key, value in reader.items("log"):
        sequence = SEQUENCE.unpack(key)[0]
        if sequence != expected:
            yield f"the log jumps from commit {expected - 1} to {sequence}"
        _, first_row, end_row = LOG.unpack_from(value)
        if first_row != row:
            yield f"commit {sequence} starts at row {first_row}, the one before it ended at {row}"
        row, expected = end_row, sequence + 1
        for dead in np.frombuffer(value[LOG.size :], "<u8").tolist():
            died_in[dead] = sequence
    if expected - 1 != state.sequence:
        yield f"the log ends at commit {expected - 1}, the state is at {state.sequence}"
    if row != state.next_row:
        yield f"the log ends at row {row}, the state at {state.next_row}"
    if died_in != dict(zip(dead_rows.tolist(), dead_sequences.tolist(), strict=True)):
        yield "the dead rows of the log and of the table differ"
