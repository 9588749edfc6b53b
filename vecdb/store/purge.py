"""Taking back the space of dead rows, in transactions of a few milliseconds each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..layout import (
    BITMAP_ROWS,
    ID_BLOCK_ROWS,
    META_HORIZON,
    ROW,
    SEQUENCE,
    SEQUENCE_VALUE,
    VECTOR_KEY,
    keys_of_rows,
    pack_bitmap,
    pack_ids,
)
from .tables import Rows
from .vectors import mask_of
from .writer import Writer

STEP_BYTES = 2 << 20
"""Blocks that one step may write again: some 5 ms of a writer's waiting."""
LEAST_STEP_BYTES = 1 << 14
"""Of a step where there is hardly any room: a block or two."""
_KEYS_A_STEP = 8_192
_LOG_ENTRIES_A_STEP = 2_048
_MOST_ROWS_A_STEP = 4_096
_ID_BLOCK_BYTES = 8_192


class Purger(Writer):
    """One step: what it changes becomes durable together. Rows keep their numbers."""

    def prepare(self, horizon: int) -> int:
        """Moves the horizon, never back, and keys waiting rows; those below the result are keyed.

        A row that waits for the table `keys` is found by its id, which purging takes away.
        """
        if horizon > self.horizon():
            self.sums.put(META_HORIZON, SEQUENCE_VALUE.pack(horizon))
        self.key_rows(_KEYS_A_STEP, 0)
        return self.keyed_rows

    def purge(self, rows: Rows, step_bytes: int = STEP_BYTES) -> int:
        """Leaves nothing of the first rows but their numbers; how many of them, at least one.

        `rows` are ascending, died at or before the horizon, and do not wait for the table `keys`.
        """
        rows = rows[: self._fitting(rows[:_MOST_ROWS_A_STEP], step_bytes)]
        # Blocks first: what they leave out so far is read from the bitmaps.
        for field in range(self.n_fields):
            self._thin_vectors(field, rows)
        self._thin_ids(rows)
        self._set_bits(rows)
        keys = keys_of_rows(rows)
        for table in ("metadata", "documents", "contents", "uris", "dead"):
            if self.entries(table):
                delete, db = self._txn.delete, self._env.table(table)
                for key in keys:
                    delete(key, db=db)
        return len(rows)

    def truncate_log(self) -> bool:
        """Removes the oldest entries up to the horizon; whether there are more of them."""
        horizon = self.horizon()
        cursor = self._txn.cursor(db=self._env.table("log"))
        oldest = SEQUENCE.unpack(cursor.key())[0] if cursor.first() else horizon + 1
        if oldest > horizon:
            return False
        first_left = min(horizon + 1, oldest + _LOG_ENTRIES_A_STEP)
        self.sums.before_cutting(first_left)
        end = SEQUENCE.pack(first_left)
        more = True
        while more and cursor.key() < end:
            more = cursor.delete()
        self.sums.cut(first_left)
        return bool(more and first_left <= horizon)

    def _fitting(self, rows: Rows, step_bytes: int) -> int:
        """How many of the first rows one step takes."""
        cost = np.zeros(len(rows), np.int64)
        for shape in self._shape.fields:
            cost += _begins(rows // shape.rows_per_block) * shape.rows_per_block * shape.row_bytes
        cost += _begins(rows // ID_BLOCK_ROWS) * _ID_BLOCK_BYTES
        if self.entries("contents"):
            # These are not written again, but the list of their pages is.
            cost += [0 if v is None else len(v) // 8 for v in self.views("contents", rows)]
        return max(1, int(np.searchsorted(np.cumsum(cost), step_bytes, side="right")))

    def _thin_vectors(self, field: int, rows: Rows) -> None:
        db, per_block = self._env.table("vectors"), self.rows_per_block(field)
        for number, dying in _by_block(rows, per_block):
            block, gaps = self._block(field, number)
            count = min(per_block, self.n_rows - number * per_block)
            held = ~mask_of(gaps, count)
            keep = held.copy()
            keep[dying] = False
            kept = block[keep[held]]
            key = VECTOR_KEY.pack(field, number)
            if not len(kept):
                self._txn.delete(key, db=db)
            elif len(kept) < len(block):
                self._txn.put(key, kept.reshape(-1).view(np.uint8).data, db=db)

    def _thin_ids(self, rows: Rows) -> None:
        db = self._env.table("ids")
        for number, dying in _by_block(rows, ID_BLOCK_ROWS):
            ids, sums = self.id_block(number)
            for offset in dying.tolist():
                ids[offset] = b""
            kept = [(i, s) for i, s in zip(ids, sums, strict=True) if i]
            key = ROW.pack(number)
            if kept:
                self._txn.put(key, pack_ids([i for i, _ in kept], [s for _, s in kept]), db=db)
            else:
                self._txn.delete(key, db=db)

    def _set_bits(self, rows: Rows) -> None:
        db = self._env.table("purged")
        for number, offsets in _by_block(rows, BITMAP_ROWS):
            first = number * BITMAP_ROWS
            mask = self.purged_mask(first, first + BITMAP_ROWS)
            mask[offsets] = True
            self._txn.put(ROW.pack(number), pack_bitmap(mask), db=db)


def _begins(numbers: Rows) -> NDArray[np.int64]:
    """1 where a number differs from the one before it, 0 elsewhere."""
    return np.array(np.diff(numbers, prepend=-1) != 0, np.int64)


def _by_block(rows: Rows, rows_per_block: int) -> list[tuple[int, Rows]]:
    """(number of a block, offsets of the rows in it) for each block that ascending rows lie in."""
    numbers = rows // rows_per_block
    starts = np.flatnonzero(_begins(numbers))
    parts = np.split(rows - numbers * rows_per_block, starts[1:])
    return list(zip(numbers[starts].tolist(), parts, strict=True))
