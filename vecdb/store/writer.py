"""Writing a collection's tables inside one LMDB transaction."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Corrupted
from ..layout import (
    DEFAULT_FIELD,
    ID_BLOCK_ROWS,
    LOG,
    META_INDEX,
    META_STATE,
    ROW,
    SEQUENCE,
    SEQUENCE_VALUE,
    STATE,
    VECTOR_KEY,
    id_key,
    keys_of_rows,
    pack_ids,
    row_keys,
)
from .environment import Environment
from .reader import Reader, Rows, Shape, State

Column = Sequence[bytes | None] | None
"""One encoded value a row, None where the row has none; None for a column without any."""


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Rows ready to be stored; every column has one entry a row.

    `vectors` is (n, dimension) in stored dtype, C-contiguous. `ids` are UTF-8.
    """

    ids: Sequence[bytes]
    vectors: NDArray[Any]
    metadata: Column = None
    documents: Column = None
    contents: Column = None
    uris: Column = None

    def __len__(self) -> int:
        return len(self.ids)


def checksums(rows: EncodedRows) -> list[int]:
    """CRC-32 of each row over id, vector, metadata, document, content and uri, in this order."""
    crc32 = zlib.crc32
    vectors = rows.vectors.reshape(-1).view(np.uint8).data
    width = len(vectors) // max(1, len(rows))
    sums = [crc32(i) for i in rows.ids]
    sums = [crc32(vectors[n * width : (n + 1) * width], s) for n, s in enumerate(sums)]
    for column in (rows.metadata, rows.documents, rows.contents, rows.uris):
        if column is not None:
            sums = [s if v is None else crc32(v, s) for v, s in zip(column, sums, strict=True)]
    return sums


class Writer(Reader):
    """A Reader that sees its own writes. All of them become durable together, or none."""

    def __init__(self, environment: Environment, transaction: Any, shape: Shape) -> None:
        super().__init__(environment, transaction, shape)
        self.before = self.state()
        self.next_row = self.before.next_row
        self.live = self.before.live
        self.died: list[Rows] = []
        self.changes = 0
        """Calls so far that change something; counted before they begin."""

    @property
    def changed(self) -> bool:
        return self.next_row != self.before.next_row or bool(self.died)

    def append(self, rows: EncodedRows, sums: Sequence[int]) -> int:
        """Stores rows under the next row numbers and points their ids to them; the first number.

        An id that pointed elsewhere must have been given to `kill` before.
        """
        self.changes += 1
        first, count = self.next_row, len(rows)
        keys = row_keys(first, count)
        self._append_vectors(rows.vectors, first)
        self._append_ids(rows.ids, sums, first)
        for table, column in (
            ("metadata", rows.metadata),
            ("documents", rows.documents),
            ("contents", rows.contents),
            ("uris", rows.uris),
        ):
            if column is not None:
                self._put_many(
                    table, ((k, v) for k, v in zip(keys, column, strict=True) if v is not None)
                )
        values = np.arange(first, first + count, dtype="<u8").tobytes()
        pointers = [(id_key(i), values[8 * n : 8 * n + 8]) for n, i in enumerate(rows.ids)]
        # In key order neighbouring leaves are touched together: a third less time at random ids.
        pointers.sort()
        self._txn.cursor(db=self._env.table("keys")).putmulti(pointers)
        self.next_row += count
        self.live += count
        return first

    def kill(self, rows: Rows, sequence: int) -> None:
        """Marks live rows dead; `forget` removes their ids, or `append` points them elsewhere."""
        if not len(rows):
            return
        self.changes += 1
        value = SEQUENCE_VALUE.pack(sequence)
        put, db = self._txn.put, self._env.table("dead")
        for key in keys_of_rows(rows):
            put(key, value, db=db)
        self.died.append(np.asarray(rows, dtype=np.int64))
        self.live -= len(rows)

    def forget(self, ids: Sequence[bytes]) -> None:
        """Removes ids whose rows were killed and not replaced."""
        self.changes += 1
        delete, db = self._txn.delete, self._env.table("keys")
        for record_id in ids:
            delete(id_key(record_id), db=db)

    def finish(self, sequence: int, time_us: int) -> None:
        """Writes the log entry and the new state; the last call before the commit."""
        died = np.concatenate(self.died) if self.died else np.empty(0, np.int64)
        entry = (
            LOG.pack(time_us, self.before.next_row, self.next_row) + died.astype("<u8").tobytes()
        )
        self._txn.put(SEQUENCE.pack(sequence), entry, db=self._env.table("log"), append=True)
        state = State(sequence, self.next_row, self.live)
        self._txn.put(META_STATE, STATE.pack(*state), db=self._env.table("meta"))

    def set_index_record(self, record: bytes | None) -> None:
        if record is None:
            self._txn.delete(META_INDEX, db=self._env.table("meta"))
        else:
            self._txn.put(META_INDEX, record, db=self._env.table("meta"))

    def _append_vectors(self, vectors: NDArray[Any], first_row: int) -> None:
        per_block = self._shape.rows_per_block
        width = self._shape.dimension * self._shape.dtype.itemsize
        raw = vectors.reshape(-1).view(np.uint8).data
        db = self._env.table("vectors")
        done = 0
        while done < len(vectors):
            number, offset = divmod(first_row + done, per_block)
            take = min(per_block - offset, len(vectors) - done)
            key = VECTOR_KEY.pack(DEFAULT_FIELD, number)
            block: Any = raw[done * width : (done + take) * width]
            if offset:
                # The last block is short: written again with the new rows behind the old ones.
                held = self._txn.get(key, db=db)
                if held is None or len(held) < offset * width:
                    raise Corrupted(f"block {number} of vectors is short in {self._env.folder}")
                block = bytes(held[: offset * width]) + block
            self._txn.put(key, block, db=db, append=not offset)
            done += take

    def _append_ids(self, ids: Sequence[bytes], sums: Sequence[int], first_row: int) -> None:
        db = self._env.table("ids")
        done = 0
        while done < len(ids):
            number, offset = divmod(first_row + done, ID_BLOCK_ROWS)
            take = min(ID_BLOCK_ROWS - offset, len(ids) - done)
            block, block_sums = list(ids[done : done + take]), list(sums[done : done + take])
            if offset:
                held, held_sums = self.id_block(number)
                if len(held) < offset:
                    raise Corrupted(f"block {number} of ids is short in {self._env.folder}")
                block, block_sums = held[:offset] + block, held_sums[:offset] + block_sums
            value = pack_ids(block, block_sums)
            self._txn.put(ROW.pack(number), value, db=db, append=not offset)
            done += take

    def _put_many(self, table: str, items: Any) -> None:
        self._txn.cursor(db=self._env.table(table)).putmulti(items, append=True)
