"""Writing rows of a backup into a new store under the numbers they had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..layout import (
    BITMAP_ROWS,
    DEFAULT_FIELD,
    ID_BLOCK_ROWS,
    KEYED,
    META_EPOCHS,
    META_HORIZON,
    META_KEYED,
    META_STATE,
    ROW,
    SEQUENCE,
    SEQUENCE_VALUE,
    STATE,
    SUMMED,
    id_keys,
    keys_of_rows,
    pack_bitmap,
    pack_id_texts,
    pack_ids,
    split_words,
    unpack_id_texts,
)
from .copying import TEXT_TABLES
from .epochs import begun
from .requests import REQUEST_BYTES
from .tables import Rows, State
from .vectors import mask_of
from .writer import EncodedRows, Writer

Mask = NDArray[np.bool_]


class Restorer(Writer):
    """One transaction of a restore. What is not live at the moment restored is as if it had been purged:
    only its number is left. So the store begins with a horizon at that moment and an empty log."""

    def append_restored(self, live: Mask, rows: EncodedRows, sums: NDArray[np.uint32]) -> None:
        """The next len(live) row numbers: `rows` and `sums` are those of the live ones, in order."""
        first, count = self.next_row, len(live)
        self._append_vectors(DEFAULT_FIELD, rows.vectors, live, first)
        for number, shape in enumerate(self._shape.named, 1):
            held, present = np.empty((0, shape.width), shape.dtype), np.zeros(count, np.bool_)
            if number in rows.named:
                vectors, there = rows.named[number]
                held = vectors[there]
                present[live] = there
            self._append_vectors(number, held, present, first)
            self._append_absent(number, live & ~present, first)
        self._append_live_ids(rows.ids, sums, live, first)
        self._append_purged(~live, first)
        keys = keys_of_rows(first + np.flatnonzero(live))
        columns = (rows.metadata, rows.documents, rows.contents, rows.uris)
        for table, column in zip(TEXT_TABLES, columns, strict=True):
            if column is not None:
                items = [(k, v) for k, v in zip(keys, column, strict=True) if v is not None]
                self._txn.cursor(db=self._env.table(table)).putmulti(items, append=True)
        self.next_row += count
        self.live += len(rows)

    def state_at(self, sequence: int) -> None:
        """Says that the store is at this commit, with the rows written so far, and in an epoch of its own: what the original
        commits from here on has the same numbers."""
        meta = self._env.table("meta")
        state = State(sequence, self.next_row, self.live)
        self._txn.put(META_STATE, STATE.pack(*state), db=meta)
        self._txn.put(META_EPOCHS, begun(None, sequence), db=meta)
        self._txn.put(META_HORIZON, SEQUENCE_VALUE.pack(sequence), db=meta)
        self.sums.renew(sequence)

    def state_as(self, sequence: int, live: int, horizon: int) -> None:
        """The same where some of the rows written so far are dead; moments behind `horizon` can be read."""
        meta = self._env.table("meta")
        self._txn.put(META_STATE, STATE.pack(sequence, self.next_row, live), db=meta)
        if horizon:
            self._txn.put(META_HORIZON, SEQUENCE_VALUE.pack(horizon), db=meta)
        self.sums.renew(sequence)

    def history(
        self, dead: Mapping[int, int], log: Mapping[int, bytes], requests: Mapping[bytes, Any]
    ) -> None:
        """Commits that rows died in by row, entries of the log by commit, and of `requests` by key."""
        for row in sorted(dead):
            value = SEQUENCE_VALUE.pack(dead[row])
            self._txn.put(ROW.pack(row), value, db=self._env.table("dead"))
        for sequence in sorted(log):
            self._txn.put(SEQUENCE.pack(sequence), log[sequence], db=self._env.table("log"))
        for key, value in requests.items():
            if len(key) == ROW.size and len(value) > REQUEST_BYTES:
                self._txn.put(key, bytes(value), db=self._env.table("requests"))

    def put_meta(self, key: bytes, value: bytes) -> None:
        """Writes an entry of `meta`; the state is written before."""
        if key in SUMMED:
            self.sums.put(key, value)
        else:
            self._txn.put(key, value, db=self._env.table("meta"))

    def key_ids(self, ids: Sequence[bytes], rows: Rows) -> int:
        """Points ids to their rows; how many of them were new. Best in the order of their keys."""
        pointers = zip(id_keys(ids), split_words(rows.astype("<u8")), strict=True)
        cursor = self._txn.cursor(db=self._env.table("keys"))
        return int(cursor.putmulti(pointers, overwrite=False)[1])

    def all_keyed(self) -> None:
        """Says that the table `keys` holds every row."""
        self.sums.put(META_KEYED, KEYED.pack(self.next_row, self.next_row))

    def _append_live_ids(
        self, ids: Sequence[bytes], sums: NDArray[np.uint32], live: Mask, first_row: int
    ) -> None:
        db = self._env.table("ids")
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        done = taken = 0
        while done < len(live):
            number, offset = divmod(first_row + done, ID_BLOCK_ROWS)
            stop = min(done + ID_BLOCK_ROWS - offset, len(live))
            part = slice(taken, taken + int(live[done:stop].sum()))
            block = lengths[part], sums[part], b"".join(ids[part])
            if offset:
                held = unpack_id_texts(self._get("ids", ROW.pack(number)) or pack_ids([], []))
                block = (
                    np.concatenate((held[0], block[0])),
                    np.concatenate((held[1], block[1])),
                    held[2] + block[2],
                )
            if len(block[0]):
                self._txn.put(ROW.pack(number), pack_id_texts(*block), db=db)
            done, taken = stop, part.stop

    def _append_purged(self, purged: Mask, first_row: int) -> None:
        db = self._env.table("purged")
        done = 0
        while done < len(purged):
            number, offset = divmod(first_row + done, BITMAP_ROWS)
            part = purged[done : done + BITMAP_ROWS - offset]
            if part.any():
                bits = self._bits("purged", b"", number * BITMAP_ROWS, offset) if offset else 0
                mask = np.concatenate((mask_of(bits, offset), part))
                self._txn.put(ROW.pack(number), pack_bitmap(mask), db=db)
            done += len(part)
