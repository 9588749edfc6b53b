"""Reading a collection's tables inside one LMDB transaction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Corrupted
from ..layout import (
    ID_BLOCK_ROWS,
    LOG,
    ROW,
    SEQUENCE,
    id_count,
    id_head_bytes,
    id_keys,
    id_lengths,
    keys_of_rows,
    lengths_of_heads,
    pack_ids,
    unpack_ids,
)
from ..stopping import Interrupt, asking
from .environment import Environment
from .fresh import FreshIds
from .mapped import MappedBlocks
from .read_ahead import ReadAhead
from .shape import Shape
from .tables import Rows
from .vectors import VectorReader, mask_of

_BLOCKS_TOGETHER = 64
"""Blocks of ids that are taken apart in one go."""
_TOGETHER = 4_096
"""Rows whose metadata are looked up in one go."""


@dataclass(frozen=True, slots=True)
class Commit:
    """An entry of the log: what one commit did."""

    sequence: int
    time_us: int
    first_row: int
    end_row: int
    died: Rows


class Reader(VectorReader):
    """Typed access to the tables, valid while its transaction is open. One thread only.

    Methods that take rows give one entry a row, in the order given, and None (or -1, or b"") where
    the store has none. Copies everything it returns unless it says otherwise.
    """

    def __init__(
        self,
        environment: Environment,
        transaction: Any,
        shape: Shape,
        fresh: FreshIds | None = None,
        mapped: Sequence[MappedBlocks] = (),
        ahead: ReadAhead | None = None,
    ) -> None:
        super().__init__(environment, transaction, shape)
        self._fresh = fresh or FreshIds()
        self._mapped = mapped
        self._ahead = ahead

    # -- ids

    def rows_of_ids(self, ids: Sequence[bytes]) -> Rows:
        """Live row of each id, -1 where there is none; about 1 us an id that is there, 0.1 another."""
        found = self.fresh_rows(ids)
        if max(found, default=-1) >= 0:
            rows = np.array(found, np.int64)
            fresh = np.flatnonzero(rows >= 0)
            # Which of them are live is asked of this moment; an id whose newest row is dead is gone.
            dead = [value is not None for value in self._get_many("dead", rows[fresh])]
            keyed = np.flatnonzero(rows < 0)
            rows[fresh[dead]] = -1
            rows[keyed] = self._keyed_rows([ids[n] for n in keyed.tolist()])
        else:
            rows = self._keyed_rows(ids)
        return rows

    def _keyed_rows(self, ids: Sequence[bytes]) -> Rows:
        keys = id_keys(ids)
        # LMDB refuses the empty key.
        asked = keys if all(keys) else list(filter(None, keys))
        # One call for all: ids that are not there, as on inserts, cost 0.06 us each instead of 0.3.
        found = self._txn.cursor(db=self._env.table("keys")).getmulti(asked)
        if not found:
            return np.full(len(ids), -1, np.int64)
        if len(found) == len(ids):
            values = [value for _, value in found]
        else:
            held = {bytes(key): value for key, value in found}
            none = b"\xff" * 8  # -1
            values = [held.get(key, none) for key in keys]
        raw = b"".join(values)
        if len(raw) != 8 * len(ids):
            raise Corrupted(
                f"an id among {len(ids)} points to no row in {self._env.folder}; run `vecdb check --repair`"
            )
        return np.frombuffer(raw, dtype="<i8").astype(np.int64)

    def fresh_rows(self, ids: Sequence[bytes]) -> list[int]:
        """The newest row of each id among those that the table `keys` does not hold yet, or -1."""
        first = self.keyed().first
        if first == self.n_rows:
            return [-1] * len(ids)
        return self._fresh.rows(ids, first, self.n_rows, self.id_range)

    def alone(self) -> Reader:
        """The same transaction read without what memory knows of the store."""
        return Reader(self._env, self._txn, self._shape)

    def memory_faults(self, interrupt: Interrupt) -> Iterator[str]:
        """What memory has wrong of the store: ids that the table `keys` does not hold yet, 0.5 us each, and where
        blocks of vectors lie, some us each."""
        interrupt()
        yield from self._fresh.faults(self.keyed().first, self.n_rows, self.id_range, interrupt)
        for field, blocks in enumerate(self._mapped):
            locate = partial(self._block, field)
            for number in asking(blocks.faults(self.n_rows, self._txn.id(), locate), interrupt):
                yield f"block {number} of the vectors of field {field} does not lie where it is held to"

    def id_range(self, start: int, stop: int) -> list[bytes]:
        """Ids of rows [start, stop), live or dead, as UTF-8, b"" where purged; about 0.2 us a row.

        Raises Corrupted when a block is missing, short or damaged.
        """
        found: list[bytes] = []
        for number in range(start // ID_BLOCK_ROWS, -(-stop // ID_BLOCK_ROWS)):
            first = number * ID_BLOCK_ROWS
            found += self.id_block(number)[0][max(0, start - first) : stop - first]
        return found

    def packed_ids(self, start: int, stop: int) -> tuple[NDArray[np.int64], bytes]:
        """The same as (bytes of each id, the ids one behind the other); about 0.02 us a row where
        none is purged."""
        lengths: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        texts: list[bytes | memoryview] = []
        number, last = start // ID_BLOCK_ROWS, -(-stop // ID_BLOCK_ROWS)
        while number < last:
            first = number * ID_BLOCK_ROWS
            if first >= start and first + ID_BLOCK_ROWS * _BLOCKS_TOGETHER <= stop:
                whole = self._whole_id_blocks(number)
                if whole is not None:
                    lengths.append(whole[0])
                    texts += whole[1]
                    number += _BLOCKS_TOGETHER
                    continue
            first = number * ID_BLOCK_ROWS
            low, high = max(0, start - first), min(stop - first, ID_BLOCK_ROWS)
            raw, purged = self._id_value(number)
            with self._id_faults(number):
                found, at = id_lengths(raw)
            if purged:
                held = ~mask_of(purged, min(ID_BLOCK_ROWS, self.n_rows - first))
                full = np.zeros(len(held), np.int64)
                full[held] = found
                found = full
            at += int(found[:low].sum())
            lengths.append(found[low:high])
            texts.append(bytes(raw[at : at + int(lengths[-1].sum())]))
            number += 1
        return np.concatenate(lengths), b"".join(texts)

    def _whole_id_blocks(self, number: int) -> tuple[NDArray[np.int64], list[memoryview]] | None:
        """(bytes of each id, the ids of each block) of some blocks of which none lacks a row; None where one does, or
        is not as it should be."""
        rows, values = self.table_range("ids", number, number + _BLOCKS_TOGETHER)
        size = id_head_bytes(ID_BLOCK_ROWS)
        if len(rows) != _BLOCKS_TOGETHER or min(map(len, values)) < size:
            return None
        lengths = lengths_of_heads(
            b"".join([value[:size] for value in values]), [len(value) - size for value in values]
        )
        return None if lengths is None else (lengths, [value[size:] for value in values])

    def id_block(self, number: int) -> tuple[list[bytes], list[int]]:
        """(ids, checksums) of the rows of one block, b"" and 0 where purged; else as `id_range`."""
        raw, purged = self._id_value(number)
        with self._id_faults(number):
            ids, sums = unpack_ids(raw)
        if not purged:
            return ids, sums
        kept = zip(ids, sums, strict=True)
        count = min(ID_BLOCK_ROWS, self.n_rows - number * ID_BLOCK_ROWS)
        rows = [(b"", 0) if purged >> n & 1 else next(kept) for n in range(count)]
        return [i for i, _ in rows], [s for _, s in rows]

    def checksum_block(self, number: int) -> NDArray[np.uint32]:
        """The checksums of `id_block` alone; 10 us a block that nothing was purged from."""
        raw, purged = self._id_value(number)
        if purged:
            return np.array(self.id_block(number)[1], np.uint32)
        with self._id_faults(number):
            return np.frombuffer(raw, "<u4", id_count(raw), 4)

    def _id_value(self, number: int) -> tuple[Any, int]:
        """(a block of ids as stored, the rows it leaves out, bit n for its row n)."""
        raw = self._get("ids", ROW.pack(number))
        first = number * ID_BLOCK_ROWS
        count = min(ID_BLOCK_ROWS, self.n_rows - first)
        with self._id_faults(number):
            held = 0 if raw is None else id_count(raw)
        purged = 0
        if held != count:
            purged = self._bits("purged", b"", first, count)
            if held != count - purged.bit_count():
                what = "missing" if raw is None else f"short, of {held} ids,"
                raise Corrupted(f"block {number} of ids is {what} in {self._env.folder}")
        return pack_ids([], []) if raw is None else raw, purged

    @contextmanager
    def _id_faults(self, number: int) -> Iterator[None]:
        try:
            yield
        except (ValueError, IndexError) as error:
            raise Corrupted(f"block {number} of ids in {self._env.folder}: {error}") from error

    # -- what else a record holds

    def metadata(self, rows: Rows | Sequence[int]) -> list[bytes]:
        """JSON of each row's metadata, b"" where it has none."""
        return [b"" if v is None else bytes(v) for v in self._get_many("metadata", rows)]

    def metadata_range(self, start: int, stop: int) -> Iterator[tuple[int, memoryview]]:
        """(row, JSON) of the rows in [start, stop) that have metadata; buffers into the map."""
        for first in range(start, stop, _TOGETHER):
            rows, values = self.table_range("metadata", first, min(first + _TOGETHER, stop))
            yield from zip(rows.tolist(), values, strict=True)

    def documents(self, rows: Rows | Sequence[int]) -> list[str | None]:
        return [None if v is None else str(v, "utf-8") for v in self._get_many("documents", rows)]

    def views(self, table: str, rows: Rows | Sequence[int]) -> list[memoryview | None]:
        """Values of one of the tables keyed by row: buffers into the map, nothing is copied."""
        return self._get_many(table, rows)

    def raw(self, table: str, rows: Rows | Sequence[int]) -> list[bytes | None]:
        """Values of one of the tables keyed by row, undecoded copies."""
        return [None if v is None else bytes(v) for v in self._get_many(table, rows)]

    # -- history

    def dying(self) -> tuple[Rows, Rows]:
        """(dead rows that are not purged, sequences of the commits they died in), ordered by row."""
        rows, sequences = bytearray(), bytearray()
        for key, value in self._txn.cursor(db=self._env.table("dead")):
            rows += key
            sequences += value
        return (
            np.frombuffer(rows, ">u8").astype(np.int64),
            np.frombuffer(sequences, "<u8").astype(np.int64),
        )

    def dead(self) -> tuple[Rows, Rows]:
        """(rows, sequences of the commits they died in), ordered by row.

        A purged row counts as having died at the horizon, when it was dead at the latest.
        """
        rows, sequences = self.dying()
        purged = self.purged()
        if not len(purged):
            return rows, sequences
        rows = np.concatenate([rows, purged])
        sequences = np.concatenate([sequences, np.full(len(purged), self.horizon())])
        order = np.argsort(rows, kind="stable")
        return rows[order], sequences[order]

    def log(self, after: int) -> Iterator[Commit]:
        """Commits with a sequence above `after`, oldest first; all of them if `after` >= `horizon()`."""
        cursor = self._txn.cursor(db=self._env.table("log"))
        if not cursor.set_range(SEQUENCE.pack(after + 1)):
            return
        for key, value in cursor:
            time_us, first_row, end_row = LOG.unpack_from(value)
            died = np.frombuffer(value[LOG.size :], "<u8").astype(np.int64)
            yield Commit(SEQUENCE.unpack(key)[0], time_us, first_row, end_row, died)

    def table_range(
        self, table: str, start: int, stop: int
    ) -> tuple[NDArray[np.int64], list[memoryview]]:
        """(rows, values) of the rows in [start, stop) that one of the tables keyed by row holds, ascending;
        buffers into the map. About 0.2 us a row where each has a value, twice that elsewhere."""
        cursor = self._txn.cursor(db=self._env.table(table))
        first, last = keys_of_rows([start, max(start, stop - 1)])
        if stop <= start or not cursor.set_range(first):
            return np.empty(0, np.int64), []
        whole = cursor.key() == first
        values = list(islice(cursor.iternext(keys=False), stop - start))
        # So many entries that end with the last row: no other is between them, and no key need be read.
        if whole and len(values) == stop - start and cursor.key() == last:
            return np.arange(start, stop), values
        cursor.set_range(first)
        keys = b"".join(islice(cursor.iternext(values=False), len(values)))
        rows = np.frombuffer(keys, ">u8").astype(np.int64)
        there = int(np.searchsorted(rows, stop))
        return rows[:there], values[:there]
