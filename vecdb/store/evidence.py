"""What the tables of a salvaged collection tell of its rows: where each may be found, and what is said of it."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import Counter
from typing import Any

import numpy as np

from ..layout import (
    BITMAP_ROWS,
    ID_BLOCK_ROWS,
    KEYED,
    LOG,
    META_KEYED,
    META_STATE,
    ROW,
    ROW_VALUE,
    SEQUENCE,
    SEQUENCE_VALUE,
    STATE,
    VECTOR_KEY,
    unpack_bitmaps,
)
from .salvage import Salvaged, looks_right
from .shape import Shape
from .sums import BY_ROW

Piece = bytes | memoryview
NEAR = (0, -1, 1)
"""By how many places a value may lie beside the one that follows the last that was found."""


class Evidence:
    """The tables as they were found; nothing is believed but what most of them say.

    Rows are asked for in ascending order: which vector of a block follows is remembered.
    """

    def __init__(self, found: Salvaged, shape: Shape, file_bytes: int) -> None:
        # An entry whose value has another size than it must have tells nothing.
        wrong = {t for t in ("keys", "dead") if any(len(v) != 8 for v in found.tables[t].values())}
        self.found, self.shape = found._replace(damaged=found.damaged | wrong), shape
        self.tables = found.tables
        self.limit = 8 * file_bytes
        self.log = self._sound_log()
        self._sequences = list(self.log)
        self._firsts = [LOG.unpack_from(value)[1] for value in self.log.values()]
        self.sequence, self.n_rows = self._where()
        self.keyed = self._keyed()
        self.row_of = {
            bytes(key): ROW_VALUE.unpack(value)[0]
            for key, value in self.tables["keys"].items()
            if len(value) == ROW_VALUE.size
        }
        self.key_of = {row: key for key, row in self.row_of.items()}
        self.dead = {
            ROW.unpack(key)[0]: SEQUENCE_VALUE.unpack(value)[0]
            for key, value in self.tables["dead"].items()
            if len(key) == ROW.size and len(value) == SEQUENCE_VALUE.size
        }
        self.purged = self._purged()
        self.absent = {f: self._bitmap("absent", VECTOR_KEY.pack(f, 0)[:2])
                       for f in range(1, len(shape.fields))}  # fmt: skip
        self.blocks: dict[int, tuple[int, Any, Any, bool]] = {}
        """By field: number, values and ranks of the block that was looked at last, and whether they fit."""
        self.follows: dict[int, int] = {}
        """By field: which vector of that block follows the last that was found."""

    # -- where the collection stands

    def _sound_log(self) -> dict[int, memoryview]:
        return {
            SEQUENCE.unpack(key)[0]: value
            for key, value in self.tables["log"].items()
            if len(key) == SEQUENCE.size and len(value) >= LOG.size and len(value) % 8 == 0
        }

    def contiguous(self) -> bool:
        """Whether each commit of the log begins where the one before it has ended."""
        row = -1
        for expected, (sequence, value) in enumerate(self.log.items(), next(iter(self.log), 0)):
            _, first, end = LOG.unpack_from(value)
            if sequence != expected or (row >= 0 and first != row) or end < first:
                return False
            row = end
        return True

    def _where(self) -> tuple[int, int]:
        """(newest commit, rows ever given out)."""
        raw = self.tables["meta"].get(META_STATE)
        state = STATE.unpack(raw) if raw is not None and len(raw) == STATE.size else None
        sequences, rows = [], []
        if state is not None:
            sequences.append(state[0])
            rows.append(state[1])
        if self.log:
            last = max(self.log)
            sequences.append(last)
            rows.append(LOG.unpack_from(self.log[last])[2])
            if self.contiguous() and "log" not in self.found.damaged:
                sequences.append(last)
        ids = [ROW.unpack(key)[0] for key in self.tables["ids"] if len(key) == ROW.size]
        if ids:
            rows.append(self._end_of_ids(max(ids)))
        rows = [row for row in rows if row <= self.limit]
        return _vote([s for s in sequences if s < 1 << 48]), _vote(rows)

    def _end_of_ids(self, number: int) -> int:
        raw = self.tables["ids"][ROW.pack(number)]
        held = int.from_bytes(raw[:4], "little")
        bits = self.tables["purged"].get(ROW.pack(number))
        gone = 0 if bits is None else int.from_bytes(bits, "little").bit_count()
        return number * ID_BLOCK_ROWS + min(held + gone, ID_BLOCK_ROWS)

    def _keyed(self) -> int:
        raw = self.tables["meta"].get(META_KEYED)
        if raw is None:
            return 0 if "meta" in self.found.damaged else self.n_rows
        first = KEYED.unpack_from(raw)[0] if len(raw) >= KEYED.size else 0
        return int(first) if first <= self.n_rows else 0

    def _purged(self) -> Any:
        """Which rows are purged: as the bitmaps say, unless as many ids are there as the other tables say.

        A row is live, and `keys` points to it unless it waits for that, or is marked dead, or is purged.
        """
        told = self._bitmap("purged", b"")
        derived = np.zeros(self.n_rows, np.bool_)
        derived[: self.keyed] = True
        known = [row for row in (*self.key_of, *self.dead) if row < self.n_rows]
        derived[np.array(known, np.int64)] = False
        for first in range(0, self.n_rows, ID_BLOCK_ROWS):
            part = slice(first, first + ID_BLOCK_ROWS)
            raw = self.tables["ids"].get(ROW.pack(first // ID_BLOCK_ROWS))
            if raw is None or len(raw) < 4:
                if "purged" in self.found.damaged:
                    told[part] = derived[part]
                continue
            held = int.from_bytes(raw[:4], "little")
            if (~told[part]).sum() != held and (~derived[part]).sum() == held:
                told[part] = derived[part]
        return told

    def may_be_of_other_tables(self, texts: dict[str, Piece]) -> bool:
        """Whether a text of a row may belong into another table, so that even its checksum does not tell: where both
        tables are damaged, their pages may have been exchanged."""
        damaged = self.found.damaged & {*BY_ROW}
        return len(damaged) > 1 and any(
            looks_right(other, b"", memoryview(texts[table]))
            for table in texts.keys() & damaged
            for other in damaged - texts.keys()
        )

    def written_in(self, row: int) -> int | None:
        """The commit that gave out a row, as the log tells; None where it does not."""
        at = bisect_right(self._firsts, row) - 1
        if at < 0:
            return None
        sequence = self._sequences[at]
        _, first, end = LOG.unpack_from(self.log[sequence])
        return sequence if first <= row < end else None

    def _bitmap(self, table: str, prefix: bytes) -> Any:
        mask = np.zeros(-(-self.n_rows // BITMAP_ROWS) * BITMAP_ROWS, np.bool_)
        for key, value in self.tables[table].items():
            if key[: len(prefix)] == prefix and len(key) == len(prefix) + 8 and len(value) == 32:
                at = ROW.unpack(key[-8:])[0] * BITMAP_ROWS
                if at < len(mask):
                    mask[at : at + BITMAP_ROWS] = unpack_bitmaps(bytes(value))
        return mask[: self.n_rows]

    def ids_of(self, number: int, count: int) -> tuple[list[bytes], list[int | None], bool]:
        """(ids, checksums, whether each stands where the bitmap of purged rows says) of a block."""
        raw = self.tables["ids"].get(ROW.pack(number))
        first = number * ID_BLOCK_ROWS
        expected = int(count - self.purged[first : first + count].sum())
        if raw is None or len(raw) < 4:
            return [], [], not expected
        n = int.from_bytes(raw[:4], "little")
        last = int.from_bytes(raw[8 * n : 8 * n + 4], "little") if 0 < n <= count else -1
        if n != expected and 4 + 8 * n + last != len(raw):
            n = expected  # The count itself was changed.
        if len(raw) < 4 + 8 * n:
            return [], [], False
        sums = np.frombuffer(raw, "<u4", n, 4).tolist()
        ends = [0, *np.frombuffer(raw, "<u4", n, 4 + 4 * n).tolist()]
        texts = bytes(raw[4 + 8 * n :])
        return (
            [texts[a:b] if a <= b else b"" for a, b in itertools.pairwise(ends)],
            sums,
            n == expected,
        )

    def block(self, f: int, number: int) -> tuple[Any, Any, bool]:
        """(values of a block, rank of each of its rows, whether they fit the bitmaps); asked in order."""
        if f not in self.blocks or self.blocks[f][0] != number:
            shape = self.shape.fields[f]
            part = slice(number * shape.rows_per_block, (number + 1) * shape.rows_per_block)
            held = ~self.purged[part]
            if f:
                held &= ~self.absent[f][part]
            raw = self.tables["vectors"].get(VECTOR_KEY.pack(f, number))
            size = 0 if raw is None else len(raw) // shape.row_bytes
            self.blocks[f] = number, raw, np.cumsum(held) - held, size == int(held.sum())
            self.follows[f] = 0
        return self.blocks[f][1:]

    def places(self, f: int, row: int) -> list[int | None]:
        """Which vector of its block a row may have, the likeliest first; None stands for none."""
        shape = self.shape.fields[f]
        number, offset = divmod(row, shape.rows_per_block)
        raw, ranks, fits = self.block(f, number)
        held = not f or not self.absent[f][row]
        if fits:
            return [int(ranks[offset]) if held else None]
        stored = 0 if raw is None else len(raw) // shape.row_bytes
        near = [at for by in NEAR if 0 <= (at := self.follows[f] + by) < stored]
        if not f:
            return list(near)
        return [*near[:1], None, *near[1:]] if held else [None, *near]

    def vector(self, f: int, at: int) -> Piece:
        width = self.shape.fields[f].row_bytes
        return self.blocks[f][1][at * width : (at + 1) * width]  # type: ignore[no-any-return]

    def pass_over(self, row: int) -> None:
        """What follows in the blocks of vectors when a row was not found."""
        for f in range(len(self.shape.fields)):
            if self.places(f, row)[:1] != [None]:
                self.follows[f] += 1

    def id_of(self, row: int) -> bytes | None:
        """The id that points to a row; None where none does, or only the hash of one."""
        key = self.key_of.get(row)
        return None if key is None or key[:1] == b"\0" else key


def _vote(numbers: list[int]) -> int:
    """What most of them say; the largest where no two agree."""
    counted = Counter(numbers).most_common()
    return max((n for n, times in counted if times == counted[0][1]), default=0)
