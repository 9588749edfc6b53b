"""Which rows of a salvaged collection are whole, which are dead, and which are lost."""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..layout import (
    BITMAP_ROWS,
    ID_BLOCK_ROWS,
    KEYED,
    LOG,
    META_HORIZON,
    META_KEYED,
    META_STATE,
    ROW,
    ROW_VALUE,
    SEQUENCE,
    SEQUENCE_VALUE,
    STATE,
    VECTOR_KEY,
    id_key,
    unpack_bitmaps,
)
from .salvage import Salvaged
from .shape import Shape
from .sums import BY_ROW

Piece = bytes | memoryview
_NEAR = (0, -1, 1)
"""By how many places a value lies beside where a bitmap says, when one bit of that has changed."""


@dataclass(frozen=True, slots=True)
class WholeRow:
    """A row as it is stored."""

    record_id: bytes
    checksum: int
    vectors: dict[int, Piece]
    """By field; without those that it lacks."""
    texts: dict[str, Piece]
    """By table; without those that it lacks."""


@dataclass(slots=True)
class Verdict:
    """What is to be stored again."""

    sequence: int = 0
    n_rows: int = 0
    horizon: int = 0
    rows: dict[int, WholeRow] = field(default_factory=dict)
    dead: dict[int, int] = field(default_factory=dict)
    """Row to the commit that it died in, of rows that are whole."""
    log: dict[int, bytes] = field(default_factory=dict)
    """Values by commit."""
    lost: dict[int, bytes | None] = field(default_factory=dict)
    """Rows that were live, as far as is known, and cannot be stored again; with their ids, None where not known."""
    lost_history: int = 0
    """Dead rows that cannot be stored again: earlier versions, which nobody can ask for any more."""
    unverified: list[bytes] = field(default_factory=list)
    """Ids of records whose checksum was lost with its page: they are kept as they were found."""
    undecided: list[bytes] = field(default_factory=list)
    """Ids of records of which it is not known whether they were deleted: they are kept."""
    history_kept: bool = True
    lost_commits: int = 0
    """Newest commits whose deletions cannot be read any more: their records may be there again."""


def judge(found: Salvaged, shape: Shape, file_bytes: int) -> Verdict:
    """What the tables say, checksums and majorities deciding."""
    return _Judge(found, shape, file_bytes).verdict()


class _Judge:
    def __init__(self, found: Salvaged, shape: Shape, file_bytes: int) -> None:
        self.found, self.shape = found, shape
        self.tables = found.tables
        self.limit = 8 * file_bytes
        self.out = Verdict()
        self.log = self._sound_log()
        self.out.sequence, self.out.n_rows = self._where()
        self.keyed = self._keyed()
        self.row_of = {
            bytes(key): ROW_VALUE.unpack(value)[0]
            for key, value in self.tables["keys"].items()
            if len(value) == ROW_VALUE.size
        }
        self.key_of = {row: key for key, row in self.row_of.items()}
        self.purged = self._bitmap("purged", b"")
        self.absent = {f: self._bitmap("absent", VECTOR_KEY.pack(f, 0)[:2])
                       for f in range(1, len(shape.fields))}  # fmt: skip
        self.blocks: dict[tuple[int, int], tuple[Any, Any, bool]] = {}

    # -- where the collection stands

    def _sound_log(self) -> dict[int, memoryview]:
        return {
            SEQUENCE.unpack(key)[0]: value
            for key, value in self.tables["log"].items()
            if len(key) == SEQUENCE.size and len(value) >= LOG.size and len(value) % 8 == 0
        }

    def _contiguous(self) -> bool:
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
            if self._contiguous() and "log" not in self.found.damaged:
                sequences.append(last)
        ids = [ROW.unpack(key)[0] for key in self.tables["ids"] if len(key) == ROW.size]
        if ids:
            rows.append(self._end_of_ids(max(ids)))
        return _vote([s for s in sequences if s < 1 << 48]), _vote(
            [r for r in rows if r <= self.limit]
        )

    def _end_of_ids(self, number: int) -> int:
        raw = self.tables["ids"][ROW.pack(number)]
        held = int.from_bytes(raw[:4], "little")
        bits = self.tables["purged"].get(ROW.pack(number))
        gone = 0 if bits is None else int.from_bytes(bits, "little").bit_count()
        return number * ID_BLOCK_ROWS + min(held + gone, ID_BLOCK_ROWS)

    def _keyed(self) -> int:
        raw = self.tables["meta"].get(META_KEYED)
        if raw is None:
            return 0 if "meta" in self.found.damaged else self.out.n_rows
        first = KEYED.unpack_from(raw)[0] if len(raw) >= KEYED.size else 0
        return int(first) if first <= self.out.n_rows else 0

    def _bitmap(self, table: str, prefix: bytes) -> Any:
        mask = np.zeros(-(-self.out.n_rows // BITMAP_ROWS) * BITMAP_ROWS, np.bool_)
        for key, value in self.tables[table].items():
            if key[: len(prefix)] == prefix and len(key) == len(prefix) + 8 and len(value) == 32:
                at = ROW.unpack(key[-8:])[0] * BITMAP_ROWS
                if at < len(mask):
                    mask[at : at + BITMAP_ROWS] = unpack_bitmaps(bytes(value))
        return mask[: self.out.n_rows]

    # -- rows

    def _ids_of(self, number: int, count: int) -> tuple[list[bytes], list[int | None], bool]:
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

    def _block(self, f: int, number: int) -> tuple[Any, Any, bool]:
        """(values of a block, rank of each of its rows, whether they fit the bitmaps)."""
        key = (f, number)
        if key not in self.blocks:
            if len(self.blocks) > 4 * len(self.shape.fields):
                self.blocks.clear()
            shape = self.shape.fields[f]
            part = slice(number * shape.rows_per_block, (number + 1) * shape.rows_per_block)
            held = ~self.purged[part]
            if f:
                held &= ~self.absent[f][part]
            raw = self.tables["vectors"].get(VECTOR_KEY.pack(f, number))
            size = 0 if raw is None else len(raw) // shape.row_bytes
            self.blocks[key] = raw, np.cumsum(held) - held, size == int(held.sum())
        return self.blocks[key]

    def _vectors(self, f: int, row: int) -> list[Piece | None]:
        """What the vector of a row may be, the likeliest first; None stands for none."""
        shape = self.shape.fields[f]
        number, offset = divmod(row, shape.rows_per_block)
        raw, ranks, fits = self._block(f, number)
        held = not f or not self.absent[f][row]
        found: list[Piece | None] = []
        for by in (0,) if fits else _NEAR:
            at = (int(ranks[offset]) + by) * shape.row_bytes
            if raw is not None and 0 <= at <= len(raw) - shape.row_bytes:
                found.append(raw[at : at + shape.row_bytes])
        if not f:
            return found
        if fits:
            return found[:1] if held else [None]
        return [*found, None] if held else [None, *found]

    def _whole(self, row: int, record_id: bytes, checksum: int | None) -> WholeRow | None:
        """The row under this id, if its parts have this checksum; without one, as it is found."""
        texts: dict[str, Piece] = {
            t: v for t in BY_ROW if (v := self.tables[t].get(ROW.pack(row))) is not None
        }
        choices = [self._vectors(f, row) for f in range(len(self.shape.fields))]
        for chosen in itertools.islice(itertools.product(*choices), 64):
            own, *named = chosen
            if own is None:
                continue
            made = zlib.crc32(own, zlib.crc32(record_id))
            for piece in (*texts.values(), *named):
                if piece is not None:
                    made = zlib.crc32(piece, made)
            if checksum is None or made == checksum:
                vectors = {f: v for f, v in enumerate(chosen) if v is not None}
                return WholeRow(record_id, made, vectors, texts)
        return None

    def _id_of(self, row: int) -> bytes | None:
        """The id that points to a row; None where none does, or only the hash of one."""
        key = self.key_of.get(row)
        return None if key is None or key[:1] == b"\0" else key

    def _judge_block(self, number: int) -> None:
        out, first = self.out, number * ID_BLOCK_ROWS
        count = min(ID_BLOCK_ROWS, out.n_rows - first)
        ids, sums, fits = self._ids_of(number, count)
        used: set[int] = set()
        open_rows: list[tuple[int, int]] = []
        rank = 0
        for row in range(first, first + count):
            gone = bool(self.purged[row])
            near = (0,) if fits else _NEAR
            if not gone or not fits:
                pointed = self._id_of(row)
                for at in sorted((rank + by for by in near), key=lambda a: abs(a - rank)):
                    if not 0 <= at < len(ids) or at in used:
                        continue
                    names = [n for n in (ids[at], pointed) if n]
                    if not fits and pointed is not None and ids[at] != pointed:
                        continue
                    made = next((m for n in names if (m := self._whole(row, n, sums[at]))), None)
                    if made is not None:
                        out.rows[row] = made
                        used.add(at)
                        break
                else:
                    if not ids and pointed is not None and not gone:
                        made = self._whole(row, pointed, None)
                        if made is not None:
                            out.rows[row] = made
                            out.unverified.append(pointed)
                    if row not in out.rows and not gone:
                        open_rows.append((row, rank))
            rank += not gone
        unplaced = len(ids) - len(used)
        for row, at in open_rows:
            if ids and not unplaced:
                break  # Every id has its row: what is left was purged, whatever the bitmap says.
            unplaced -= 1
            name = ids[at] if at < len(ids) and at not in used else b""
            out.lost[row] = self._id_of(row) or name or None

    # -- the dead

    def _judge_dead(self) -> None:
        out = self.out
        told = {
            ROW.unpack(key)[0]: SEQUENCE_VALUE.unpack(value)[0]
            for key, value in self.tables["dead"].items()
            if len(key) == ROW.size and len(value) == SEQUENCE_VALUE.size
        }
        logged = {
            row: sequence
            for sequence, value in self.log.items()
            for row in np.frombuffer(value[LOG.size :], "<u8").tolist()
        }
        known = {**out.lost, **{row: whole.record_id for row, whole in out.rows.items()}}
        newest: dict[bytes, int] = {}
        for row in sorted(known):
            name = known[row]
            if name:
                newest[name] = row
        begin = min(self.log, default=out.sequence + 1)
        whole_keys = "keys" not in self.found.damaged
        for row, name in known.items():
            in_table, in_log = told.get(row), logged.get(row)
            sound = [s for s in (in_log, in_table) if s is not None and 0 < s <= out.sequence]
            pointed = self.row_of.get(id_key(name)) if name else None
            # Nothing leads to it, neither from its id nor by its number.
            unkeyed = whole_keys and row < self.keyed and pointed is None and row not in self.key_of
            half = (in_log is None and "log" in self.found.damaged) or (
                in_table is None and "dead" in self.found.damaged
            )
            if (name and newest[name] != row) or len(sound) == 2:
                dead = True
            elif pointed == row:
                dead = False
            else:
                dead = unkeyed or bool(sound and (sound[0] < begin or half))
                if sound and name and not dead:
                    out.undecided.append(name)
            if dead:
                out.dead[row] = sound[0] if sound else 0
                if not sound or (in_table != in_log and sound[0] >= begin):
                    out.history_kept = out.history_kept and bool(in_log)
            elif in_log is not None:
                out.history_kept = False

    def verdict(self) -> Verdict:
        out = self.out
        for number in range(-(-out.n_rows // ID_BLOCK_ROWS)):
            self._judge_block(number)
        self._judge_dead()
        for row in [row for row in out.lost if row in out.dead]:
            del out.lost[row]
            out.lost_history += 1
        out.dead = {row: s for row, s in out.dead.items() if row in out.rows}
        damaged = self.found.damaged
        if {"log", "dead"} <= damaged:
            out.lost_commits = max(0, out.sequence - max(self.log, default=0))
        if {"log", "meta"} <= damaged and META_STATE not in self.tables["meta"]:
            out.lost_commits = max(1, out.lost_commits)
        held = len(out.rows)
        raw = self.tables["meta"].get(META_HORIZON)
        horizon = SEQUENCE_VALUE.unpack(raw)[0] if raw is not None and len(raw) == 8 else 0
        begins = min(self.log, default=out.sequence + 1) - 1
        if not begins <= horizon <= out.sequence:
            horizon = begins
        was_purged = int(self.purged.sum())
        kept = (
            out.history_kept
            and not out.lost
            and not out.lost_history
            and held + was_purged == out.n_rows
            and not self.found.damaged & {"log", "dead", "purged"}
            and self._contiguous()
            and (horizon > 0 or not was_purged)
            and max(self.log, default=out.sequence) == out.sequence
        )
        out.history_kept = kept
        out.horizon = horizon if kept else out.sequence
        if kept:
            out.log = {s: bytes(v) for s, v in self.log.items()}
        out.dead = {row: s or out.horizon for row, s in out.dead.items()}
        return out


def _vote(numbers: list[int]) -> int:
    """What most of them say; the largest where no two agree."""
    counted = Counter(numbers).most_common()
    return max((n for n, times in counted if times == counted[0][1]), default=0)
