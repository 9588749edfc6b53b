"""Writing a collection's tables inside one LMDB transaction."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..crc import crc32
from ..errors import Corrupted
from ..layout import (
    BITMAP_ROWS,
    DEFAULT_FIELD,
    ID_BLOCK_ROWS,
    KEYED,
    LOG,
    META_EPOCHS,
    META_KEYED,
    META_STATE,
    ROW,
    SEQUENCE,
    SEQUENCE_VALUE,
    STATE,
    VECTOR_KEY,
    id_key,
    id_keys,
    index_key,
    keys_of_rows,
    pack_bitmap,
    pack_id_texts,
    row_keys,
    split_words,
    unpack_bitmaps,
    unpack_id_texts,
)
from .environment import Environment
from .epochs import begun
from .fresh import FreshIds, fresh_limit
from .meta_sums import Keeper
from .reader import Reader
from .requests import Remembered, Requests
from .shape import Shape
from .tables import Keyed, Rows, State

Column = Sequence[bytes | None] | None
"""One encoded value a row, None where the row has none; None for a column without any."""

_ROUND_STEP_ROWS = 256
"""How many rows must have come before the round of the table `keys` goes on."""


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
    named: Mapping[int, tuple[NDArray[Any], NDArray[np.bool_]]] = field(default_factory=dict)
    """By number of a named field: vectors as above, one a row, and which of the rows have one. Rows
    have none in a field that is left out."""

    def __len__(self) -> int:
        return len(self.ids)


def checksums(rows: EncodedRows) -> list[int]:
    """CRC-32 of each row over what it holds, in the order that `vecdb.layout` states; 0.5 us a row of
    384 float32 with metadata and a document, 1.2 us where `isal` is not installed."""
    given = (rows.metadata, rows.documents, rows.contents, rows.uris)
    columns = [column for column in given if column is not None]
    lengths = {len(rows), len(rows.vectors), *map(len, columns)}
    if len(lengths) > 1:
        raise ValueError(f"columns of one batch have {sorted(lengths)} rows")
    # A vector is summed up where it lies: joined with the rest it would be copied twice.
    sums = map(crc32, _each(rows.vectors), map(crc32, rows.ids))
    if columns:
        # Joining these takes less than a call for each piece.
        found: Iterable[Any] = zip(*columns, strict=True)
        if not all(map(all, columns)):
            found = (filter(None, pieces) for pieces in found)
        sums = map(crc32, map(b"".join, found), sums)
    every = list(sums)
    for number in sorted(rows.named):
        vectors, present = rows.named[number]
        each = _each(vectors)
        for n in np.flatnonzero(present).tolist():
            every[n] = crc32(each[n], every[n])
    return every


def _each(vectors: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of each vector, a row each; nothing is copied."""
    return np.ascontiguousarray(vectors).view(np.uint8)


class Writer(Reader):
    """A Reader that sees its own writes. All of them become durable together, or none."""

    def __init__(
        self,
        environment: Environment,
        transaction: Any,
        shape: Shape,
        fresh: FreshIds | None = None,
        requests: Requests | None = None,
    ) -> None:
        super().__init__(environment, transaction, shape, fresh)
        self._requests = Requests() if requests is None else requests
        self.remembered_now: dict[bytes, Remembered] = {}
        """Writes with an id that this transaction has done."""
        self.forgotten = 0
        """How many of the oldest entries of `requests` it has removed."""
        self.before = self.state()
        self.next_row = self.before.next_row
        self.live = self.before.live
        self.died: list[Rows] = []
        self.changes = 0
        """Calls so far that change something; counted before they begin."""
        self.appended: list[bytes] = []
        """Ids of the rows that this transaction has added."""
        self.keyed_rows = self.keyed().first
        """Rows below it are all in the table `keys`."""
        self._own: dict[bytes, int] = {}
        """The newest row of each of the first ids of `appended`; `fresh_rows` adds what is missing."""
        self._owned = 0
        self._keeper: Keeper | None = None

    @property
    def sums(self) -> Keeper:
        """The checksums of what has none of its own; first asked before the state is written."""
        if self._keeper is None:
            self._keeper = Keeper(self._env, self._txn, self.before.sequence)
        return self._keeper

    @property
    def n_rows(self) -> int:
        return self.next_row

    @property
    def changed(self) -> bool:
        return self.next_row != self.before.next_row or bool(self.died)

    def append(self, rows: EncodedRows, sums: Sequence[int]) -> int:
        """Stores rows under the next row numbers and points their ids to them; the first number.

        An id that pointed elsewhere must have been given to `kill` before.
        """
        self.changes += 1
        first, count = self.next_row, len(rows)
        self._append_vectors(DEFAULT_FIELD, rows.vectors, None, first)
        for number, shape in enumerate(self._shape.named, 1):
            held, present = np.empty((0, shape.width), shape.dtype), np.zeros(count, np.bool_)
            if number in rows.named:
                vectors, present = rows.named[number]
                held = vectors[present]
            self._append_vectors(number, held, present, first)
            self._append_absent(number, ~present, first)
        self._append_ids(rows.ids, sums, first)
        keys = row_keys(first, count)
        for table, column in (
            ("metadata", rows.metadata),
            ("documents", rows.documents),
            ("contents", rows.contents),
            ("uris", rows.uris),
        ):
            if column is not None:
                items: Iterable[tuple[bytes, bytes | None]] = zip(keys, column, strict=True)
                if not all(column):
                    items = ((k, v) for k, v in items if v is not None)
                self._txn.cursor(db=self._env.table(table)).putmulti(items, append=True)
        self.appended += rows.ids
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
        """Removes ids whose rows were killed and not replaced, whether `keys` holds them or not."""
        self.changes += 1
        delete, db = self._txn.delete, self._env.table("keys")
        for record_id in ids:
            delete(id_key(record_id), db=db)

    def remembered(self, request_id: bytes) -> Remembered | None:
        """What a write of this id was answered, if it was done lately, here or in an earlier commit."""
        return self.remembered_now.get(request_id) or self._requests.find(request_id)

    def remember(
        self, request_id: bytes, sequence: int, count: int, time_us: int, fingerprint: int
    ) -> None:
        """Keeps the answer of a write under its id; durable with the write itself."""
        db = self._env.table("requests")
        entry = Remembered(sequence, count, time_us, fingerprint)
        old = self._requests.too_old(time_us, self.forgotten)
        for key in row_keys(self._requests.first + self.forgotten, old):
            gone = self._txn.pop(key, db=db)
            if gone is not None:
                self.sums.request(key, gone, added=False)
        self.forgotten += old
        number = self._requests.next + len(self.remembered_now)
        key, value = ROW.pack(number), entry.packed(request_id)
        self._txn.put(key, value, db=db, append=True)
        self.sums.request(key, value, added=True)
        self.remembered_now[request_id] = entry

    def fresh_rows(self, ids: Sequence[bytes]) -> list[int]:
        first, stop = self.keyed_rows, self.before.next_row
        found = [-1] * len(ids)
        if first < stop:
            found = self._fresh.rows(ids, first, stop, self.id_range)
        if self.appended:
            own, done = self._own, self._owned
            own.update(zip(self.appended[done:], range(stop + done, self.next_row), strict=True))
            self._owned = len(self.appended)
            found = [own.get(i, row) for i, row in zip(ids, found, strict=True)]
        return found

    def seal(self) -> None:
        """Writes the checksums of what has none of its own; the last call before every commit."""
        if self._keeper is not None:
            self._keeper.finish()

    def finish(self, sequence: int, time_us: int) -> None:
        """Writes the log entry and the new state."""
        sums = self.sums
        steps = self.next_row // _ROUND_STEP_ROWS - self.before.next_row // _ROUND_STEP_ROWS
        if steps:
            self.key_rows(steps * _ROUND_STEP_ROWS, fresh_limit(self.next_row))
        died = np.concatenate(self.died) if self.died else np.empty(0, np.int64)
        entry = (
            LOG.pack(time_us, self.before.next_row, self.next_row) + died.astype("<u8").tobytes()
        )
        self._txn.put(SEQUENCE.pack(sequence), entry, db=self._env.table("log"), append=True)
        sums.commit(sequence, entry)
        state = State(sequence, self.next_row, self.live)
        self._txn.put(META_STATE, STATE.pack(*state), db=self._env.table("meta"))

    def begin_epoch(self, sequence: int) -> None:
        """Says that commit `sequence` is the first of this opening, see `epochs`."""
        record = begun(self.meta_value(META_EPOCHS), sequence)
        self._txn.put(META_EPOCHS, record, db=self._env.table("meta"))

    def key_rows(self, count: int, limit: int) -> None:
        """Puts `count` more ids of fresh rows into the table `keys`, in the order of the ids.

        Begins a round when more than `limit` committed rows wait and none is under way.
        """
        first, end, done = self.keyed()
        if first == end:
            end, done = self.before.next_row, b""
            if end - first <= limit:
                return
        ids, all_rows = self._fresh.in_order(first, end, self.id_range)
        at = bisect_right(ids, done)
        part, rows = ids[at : at + count], all_rows[at : at + count]
        keys = id_keys(part)
        pointers = list(zip(keys, split_words(rows.astype("<u8")), strict=True))
        dead, _ = next(self.items("dead", ROW.pack(first)), (b"", b""))
        if dead and dead < ROW.pack(end):
            # Deleted since, or written again, and then the next round has them.
            held = self._get_many("dead", rows)
            pointers = [p for p, value in zip(pointers, held, strict=True) if value is None]
        if keys is not part:
            pointers.sort()  # Those of long ids are hashes.
        self._txn.cursor(db=self._env.table("keys")).putmulti(pointers)
        over = at + len(part) == len(ids)
        keyed = Keyed(end, end, b"") if over else Keyed(first, end, part[-1])
        self.sums.put(META_KEYED, KEYED.pack(keyed.first, keyed.end) + keyed.done)
        self.keyed_rows = keyed.first

    def set_index_record(self, record: bytes | None, field: int = DEFAULT_FIELD) -> None:
        """Names the saved index of a field; None takes it away."""
        meta = self._env.table("meta")
        if record is None:
            self._txn.delete(index_key(field), db=meta)
        else:
            self._txn.put(index_key(field), record, db=meta)

    def _append_vectors(
        self, field: int, held: NDArray[Any], present: NDArray[np.bool_] | None, first_row: int
    ) -> None:
        """Stores the vectors `held` of those of the new rows that are `present` (None: of all)."""
        shape = self._shape.fields[field]
        raw = np.ascontiguousarray(held).reshape(-1).view(np.uint8).data
        width, db = shape.row_bytes, self._env.table("vectors")
        count = len(held) if present is None else len(present)
        # Keys of one field only can be appended; those of several lie between each other.
        append = not self._shape.named
        done = stored = 0
        while done < count:
            number, offset = divmod(first_row + done, shape.rows_per_block)
            take = min(shape.rows_per_block - offset, count - done)
            given = take if present is None else int(present[done : done + take].sum())
            block: Any = raw[stored * width : (stored + given) * width]
            if offset and given:
                # The last block is short: written again with the new rows behind the old ones.
                block = self._held(field, number, offset) + block
            if given:
                key = VECTOR_KEY.pack(field, number)
                self._txn.put(key, block, db=db, append=append and not offset)
            done, stored = done + take, stored + given

    def _held(self, field: int, number: int, offset: int) -> bytes:
        """The vectors that the first `offset` rows of the last block have stored."""
        shape = self._shape.fields[field]
        held = self._get("vectors", VECTOR_KEY.pack(field, number))
        found = b"" if held is None else bytes(held)
        if len(found) == offset * shape.row_bytes:
            return found
        gaps = self._gaps(field, number * shape.rows_per_block, offset)
        if len(found) != (offset - gaps.bit_count()) * shape.row_bytes:
            raise Corrupted(f"block {number} of vectors is short in {self._env.folder}")
        return found

    def _append_absent(self, field: int, absent: NDArray[np.bool_], first_row: int) -> None:
        db = self._env.table("absent")
        done = 0
        while done < len(absent):
            number, offset = divmod(first_row + done, BITMAP_ROWS)
            part = absent[done : done + BITMAP_ROWS - offset]
            if part.any():
                mask = np.zeros(BITMAP_ROWS, np.bool_)
                mask[offset : offset + len(part)] = part
                key = VECTOR_KEY.pack(field, number)
                held = self._txn.get(key, db=db)
                if held is not None:
                    mask |= unpack_bitmaps(held)
                self._txn.put(key, pack_bitmap(mask), db=db)
            done += len(part)

    def _append_ids(self, ids: Sequence[bytes], sums: Sequence[int], first_row: int) -> None:
        db = self._env.table("ids")
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        checks = np.array(sums, np.uint32)
        done = 0
        while done < len(ids):
            number, offset = divmod(first_row + done, ID_BLOCK_ROWS)
            part = slice(done, min(done + ID_BLOCK_ROWS - offset, len(ids)))
            block = lengths[part], checks[part], b"".join(ids[part])
            if offset:
                raw, _ = self._id_value(number)
                with self._id_faults(number):
                    held = unpack_id_texts(raw)
                block = (
                    np.concatenate((held[0], block[0])),
                    np.concatenate((held[1], block[1])),
                    held[2] + block[2],
                )
            self._txn.put(ROW.pack(number), pack_id_texts(*block), db=db, append=not offset)
            done = part.stop
