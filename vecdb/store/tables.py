"""Access to the tables of a collection inside one transaction: values, counts and bitmaps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import Corrupted
from ..layout import (
    BITMAP_ROWS,
    COLLECTION_FORMAT,
    DATA_FILE,
    KEYED,
    META_FORMAT,
    META_HORIZON,
    META_KEYED,
    META_REPAIRS,
    META_SETTINGS,
    META_STATE,
    ROW,
    SEQUENCE_VALUE,
    STATE,
    format_number,
    index_key,
    keys_of_rows,
    unpack_bitmaps,
)
from ..stopping import Interrupt
from .environment import Environment
from .page_faults import file_faults
from .shape import Shape

Rows = NDArray[np.int64]

_NO_BITS = bytes(BITMAP_ROWS // 8)


class State(NamedTuple):
    """Where a collection stands; all zero when new."""

    sequence: int
    next_row: int
    live: int


class Keyed(NamedTuple):
    """How far the table `keys` has come; see `vecdb.layout`."""

    first: int
    """Rows below it are all in the table."""
    end: int
    """Where the round that is under way ends; `first` when there is none."""
    done: bytes
    """The ids of the round up to this one are in the table."""


class Tables:
    """The tables of one moment, valid while the transaction is open. One thread only."""

    def __init__(self, environment: Environment, transaction: Any, shape: Shape) -> None:
        self._env = environment
        self._txn = transaction
        self._shape = shape
        self._n_rows = -1

    @property
    def transaction_id(self) -> int:
        """Number of the newest commit that is seen here."""
        return int(self._txn.id())

    def map_bytes(self) -> int:
        """Bytes of the map in use."""
        return self._env.map_bytes()[0]

    def page_faults(self, interrupt: Interrupt = lambda: None) -> list[str]:
        """What is wrong with the pages of this moment, by a look at the file without LMDB. `interrupt` is called
        every few milliseconds and may raise."""
        gone = self._env.file_fault()
        if gone:
            # What stands in its place says nothing of what is open.
            return [gone]
        return file_faults(self._env.folder / DATA_FILE, self._txn.id(), interrupt)

    # -- what stands in `meta`

    def format(self) -> int:
        raw = self.meta_value(META_FORMAT)
        found = COLLECTION_FORMAT if raw is None else format_number(raw)
        if found is None:
            raise Corrupted(f"{self._env.folder} says that its format is {raw!r:.80}; run check")
        return found

    def settings(self) -> bytes:
        raw = self.meta_value(META_SETTINGS)
        if raw is None:
            raise Corrupted(f"{self._env.folder} holds no settings; restore a backup")
        return raw

    def state(self) -> State:
        raw = self.meta_value(META_STATE)
        return State(0, 0, 0) if raw is None else State(*STATE.unpack(raw))

    @property
    def n_rows(self) -> int:
        """Rows ever given out, those of this transaction included."""
        if self._n_rows < 0:
            self._n_rows = self.state().next_row
        return self._n_rows

    def horizon(self) -> int:
        """No moment before this commit can be read any more; the log is complete behind it."""
        raw = self.meta_value(META_HORIZON)
        return 0 if raw is None else int(SEQUENCE_VALUE.unpack(raw)[0])

    def keyed(self) -> Keyed:
        raw = self.meta_value(META_KEYED)
        if raw is None:
            return Keyed(self.n_rows, self.n_rows, b"")
        first, end = KEYED.unpack_from(raw)
        return Keyed(first, end, raw[KEYED.size :])

    def index_record(self, field: int = 0) -> bytes | None:
        """JSON of the saved index of a field; None while there is none."""
        return self.meta_value(index_key(field))

    def repairs(self) -> bytes:
        """JSON of what repairs have lost; empty while nothing was."""
        return self.meta_value(META_REPAIRS) or b""

    def meta_value(self, key: bytes) -> bytes | None:
        """An entry of `meta` as it is stored."""
        raw = self._get("meta", key)
        return None if raw is None else bytes(raw)

    # -- values

    def _get(self, table: str, key: bytes) -> Any:
        db = self._env.table(table)
        return None if db is None else self._txn.get(key, db=db)

    def _get_many(self, table: str, rows: Rows | Sequence[int]) -> list[Any]:
        get, db = self._txn.get, self._env.table(table)
        return [get(key, db=db) for key in keys_of_rows(rows)]

    def entries(self, table: str) -> int:
        db = self._env.table(table)
        return 0 if db is None else int(self._txn.stat(db)["entries"])

    def last_key(self, table: str) -> bytes | None:
        db = self._env.table(table)
        if db is None:
            return None
        cursor = self._txn.cursor(db=db)
        return bytes(cursor.key()) if cursor.last() else None

    def items(self, table: str, first: bytes = b"") -> Iterator[tuple[bytes, memoryview]]:
        """(key, value) of a table from key `first` on, in key order; values are buffers into the map."""
        db = self._env.table(table)
        if db is None:
            return
        cursor = self._txn.cursor(db=db)
        if cursor.set_range(first) if first else cursor.first():
            for key, value in cursor:
                yield bytes(key), value

    # -- bitmaps

    def purged(self) -> Rows:
        """Rows of which nothing is left but their number, ascending."""
        return np.flatnonzero(self.purged_mask(0, self.n_rows))

    def purged_mask(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Which of the rows [start, stop) are purged."""
        return self._mask("purged", b"", start, stop)

    def _mask(self, table: str, prefix: bytes, start: int, stop: int) -> NDArray[np.bool_]:
        """The bits of rows [start, stop) in a table of bitmaps whose keys begin with `prefix`."""
        first, last = start // BITMAP_ROWS, -(-stop // BITMAP_ROWS)
        size = BITMAP_ROWS // 8
        raw = bytearray(size * max(0, last - first))
        end = prefix + ROW.pack(last)
        for key, value in self.items(table, prefix + ROW.pack(first)):
            if key >= end:
                break
            at = size * (ROW.unpack(key[-ROW.size :])[0] - first)
            raw[at : at + size] = value
        skipped = first * BITMAP_ROWS
        return unpack_bitmaps(raw)[start - skipped : max(start, stop) - skipped]

    def _bits(self, table: str, prefix: bytes, first: int, count: int) -> int:
        """The same for few rows, as a number: bit n stands for row `first` + n."""
        numbers = range(first // BITMAP_ROWS, -(-(first + count) // BITMAP_ROWS))
        found = [self._get(table, prefix + ROW.pack(n)) for n in numbers]
        bits = int.from_bytes(b"".join(_NO_BITS if f is None else f for f in found), "little")
        return bits >> (first % BITMAP_ROWS) & ((1 << count) - 1)
