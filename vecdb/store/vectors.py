"""Reading vectors: blocks of rows, some of which may lack a vector or have been purged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Corrupted
from ..layout import BITMAP_ROWS, DEFAULT_FIELD, ROW, VECTOR_KEY
from ..selection import once
from .mapped import MappedBlocks
from .read_ahead import ReadAhead
from .tables import Rows, Tables

_PREFIX_BYTES = VECTOR_KEY.size - ROW.size


class VectorReader(Tables):
    """Vectors by row, for every field. What a row lacks reads as zeros."""

    _mapped: Sequence[MappedBlocks] = ()
    """Where blocks lie, by field; empty where that is not followed."""
    _ahead: ReadAhead | None = None

    def vectors(self, rows: Rows | Sequence[int], field: int = DEFAULT_FIELD) -> NDArray[Any]:
        """Vectors of any rows in stored dtype, shape (n, width of the field).

        About 20 us for 16 rows of 384 float32; 2 to 10 us more for each block that is asked for the first time, is purged in
        part or not yet whole. Read-only processes, whose blocks another one may move, take that time
        always. Zeros for rows that lack the vector or are purged. Corrupted when a block is missing or
        short.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if self._mapped and (known := self._mapped[field].known(rows)) is not None:
            return known
        if self._ahead is not None:
            numbers = rows // self._shape.fields[field].rows_per_block
            self._ahead.blocks(field, once(np.sort(numbers)))
        if not self._mapped:
            shape = self._shape.fields[field]
            out = np.empty((len(rows), shape.width), shape.dtype)
            self._read_into(out, field, rows, range(len(rows)))
            return out
        out, missing = self._mapped[field].take(
            rows, self._txn.id(), lambda number: self._block(field, number)
        )
        if missing.size:
            self._read_into(out, field, rows, missing.tolist())
        return out

    def _read_into(self, out: NDArray[Any], field: int, rows: Rows, places: Iterable[int]) -> None:
        """Puts the vectors of rows[places] into out[places]."""
        per_block = self._shape.fields[field].rows_per_block
        last, block, gaps = -1, out, 0
        numbers = rows.tolist()
        for i in places:
            row = numbers[i]
            number, offset = divmod(row, per_block)
            if number != last:
                last, (block, gaps) = number, self._block(field, number)
            if gaps:
                if gaps >> offset & 1:
                    out[i] = 0
                    continue
                offset -= (gaps & ((1 << offset) - 1)).bit_count()
            out[i] = block[offset]

    def vector_range(self, start: int, stop: int, field: int = DEFAULT_FIELD) -> NDArray[Any]:
        """Vectors of rows [start, stop) in stored dtype; 2 to 3 million rows/s at d = 384.

        Zeros for rows that lack the vector or are purged. Corrupted when a block is missing or short.
        """
        if stop > self.n_rows:
            raise Corrupted(f"row {stop - 1} was never given out in {self._env.folder}")
        shape = self._shape.fields[field]
        out = np.empty((max(0, stop - start), shape.width), shape.dtype)
        per_block = shape.rows_per_block
        if self._ahead is not None and stop > start:
            self._ahead.range(field, start // per_block, (stop - 1) // per_block)
        row = start
        while row < stop:
            number, offset = divmod(row, per_block)
            take = min(per_block - offset, stop - row)
            block, gaps = self._block(field, number)
            part = out[row - start : row - start + take]
            if gaps:
                held = ~mask_of(gaps, offset + take)
                skipped = int(held[:offset].sum())
                held = held[offset:]
                part[:] = 0
                part[held] = block[skipped : skipped + int(held.sum())]
            else:
                part[:] = block[offset : offset + take]
            row += take
        return out

    def present(self, rows: Rows | Sequence[int], field: int) -> NDArray[np.bool_]:
        """Which of the rows were given a vector in a named field; about 1 us a row."""
        rows = np.asarray(rows, dtype=np.int64)
        if not field:
            return np.ones(len(rows), np.bool_)
        last, bits = -1, 0
        found = []
        for row in rows.tolist():
            number, offset = divmod(row, BITMAP_ROWS)
            if number != last:
                last = number
                bits = self._bits("absent", _prefix(field), number * BITMAP_ROWS, BITMAP_ROWS)
            found.append(not bits >> offset & 1)
        return np.array(found, np.bool_)

    def absent(self, field: int, start: int = 0) -> Rows:
        """Rows from `start` on that lack the vector of a named field, ascending."""
        if not field:
            return np.empty(0, np.int64)
        return start + np.flatnonzero(self._mask("absent", _prefix(field), start, self.n_rows))

    @property
    def n_fields(self) -> int:
        """Vector fields, the record's own included."""
        return len(self._shape.fields)

    def absent_mask(self, field: int, start: int, stop: int) -> NDArray[np.bool_]:
        """Which of the rows [start, stop) lack the vector of a named field."""
        return self._mask("absent", _prefix(field), start, stop)

    def row_bytes(self, field: int) -> int:
        """Bytes that one vector takes."""
        return self._shape.fields[field].row_bytes

    def rows_per_block(self, field: int) -> int:
        return self._shape.fields[field].rows_per_block

    def _block(self, field: int, number: int) -> tuple[NDArray[Any], int]:
        """(the vectors a block holds, in the map; the rows it leaves out, bit n for its row n)."""
        shape = self._shape.fields[field]
        first = number * shape.rows_per_block
        count = min(shape.rows_per_block, self.n_rows - first)
        raw = self._get("vectors", VECTOR_KEY.pack(field, number))
        size = 0 if raw is None else len(raw)
        gaps = 0
        # A block that is whole is known by its size, which spares it the look at the bitmaps.
        if size != count * shape.row_bytes:
            gaps = self._gaps(field, first, count)
            if size != (count - gaps.bit_count()) * shape.row_bytes:
                what = "missing" if raw is None else f"{size} bytes long, which is wrong,"
                where = f" of field {field}" if field else ""
                raise Corrupted(f"block {number} of vectors{where} is {what} in {self._env.folder}")
        if not size:
            return np.empty((0, shape.width), shape.dtype), gaps
        return np.frombuffer(raw, shape.dtype).reshape(-1, shape.width), gaps

    def _gaps(self, field: int, first: int, count: int) -> int:
        """Which of `count` rows have no vector stored, bit n for row `first` + n."""
        bits = self._bits("purged", b"", first, count)
        return bits | self._bits("absent", _prefix(field), first, count) if field else bits


def _prefix(field: int) -> bytes:
    """How the keys of a field begin in tables keyed by VECTOR_KEY."""
    return VECTOR_KEY.pack(field, 0)[:_PREFIX_BYTES]


def mask_of(bits: int, count: int) -> NDArray[np.bool_]:
    """The lowest `count` bits of a number, the lowest first."""
    raw = (bits & ((1 << count) - 1)).to_bytes(-(-count // 8), "little")
    return np.unpackbits(np.frombuffer(raw, np.uint8), count=count, bitorder="little").view(
        np.bool_
    )
