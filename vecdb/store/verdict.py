"""Which rows of a salvaged collection are whole, which are dead, and which are lost."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..layout import (
    BITMAP_ROWS,
    DEFAULT_FIELD,
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
from .crc import crc32
from .salvage import Salvaged
from .shape import Shape
from .sums import BY_ROW

Piece = bytes | memoryview
_NEAR = (0, -1, 1)
"""By how many places a value may lie beside the one that follows the last that was found."""
_MOST_TRIED = 4_096
"""Ways to put a row together, where the bitmaps do not say which vectors it has."""


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
    history_lost: bool = False
    """Whether moments could be read that cannot be read any more."""
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
        self.told_dead = {
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
            return 0 if "meta" in self.found.damaged else self.out.n_rows
        first = KEYED.unpack_from(raw)[0] if len(raw) >= KEYED.size else 0
        return int(first) if first <= self.out.n_rows else 0

    def _purged(self) -> Any:
        """Which rows are purged: as the bitmaps say, unless as many ids are there as the other tables say.

        A row is live, and `keys` points to it unless it waits for that, or is marked dead, or is purged.
        """
        told = self._bitmap("purged", b"")
        derived = np.zeros(self.out.n_rows, np.bool_)
        derived[: self.keyed] = True
        known = [row for row in (*self.key_of, *self.told_dead) if row < self.out.n_rows]
        derived[np.array(known, np.int64)] = False
        for first in range(0, self.out.n_rows, ID_BLOCK_ROWS):
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

    def _places(self, f: int, row: int) -> list[int | None]:
        """Which vector of its block a row may have, the likeliest first; None stands for none."""
        shape = self.shape.fields[f]
        number, offset = divmod(row, shape.rows_per_block)
        raw, ranks, fits = self._block(f, number)
        held = not f or not self.absent[f][row]
        if fits:
            return [int(ranks[offset]) if held else None]
        stored = 0 if raw is None else len(raw) // shape.row_bytes
        near = [at for by in _NEAR if 0 <= (at := self.follows[f] + by) < stored]
        if not f:
            return list(near)
        return [*near[:1], None, *near[1:]] if held else [None, *near]

    def _whole(self, row: int, record_id: bytes, checksum: int | None) -> WholeRow | None:
        """The row under this id, if its parts have this checksum; without one, as the bitmaps say."""
        key = ROW.pack(row)
        texts: dict[str, Piece] = {
            t: v for t in BY_ROW if (v := self.tables[t].get(key)) is not None
        }
        places = [self._places(f, row) for f in range(len(self.shape.fields))]
        if checksum is None and not all(fits for _, _, _, fits in self.blocks.values()):
            return None
        for chosen in itertools.islice(itertools.product(*places), _MOST_TRIED):
            vectors = {f: self._vector(f, at) for f, at in enumerate(chosen) if at is not None}
            if DEFAULT_FIELD not in vectors:
                continue
            made = crc32(vectors[DEFAULT_FIELD], crc32(record_id))
            for piece in (*texts.values(), *(vector for f, vector in vectors.items() if f)):
                made = crc32(piece, made)
            if checksum is None or made == checksum:
                self.follows |= {f: at + 1 for f, at in enumerate(chosen) if at is not None}
                return WholeRow(record_id, made, vectors, texts)
        return None

    def _vector(self, f: int, at: int) -> Piece:
        width = self.shape.fields[f].row_bytes
        return self.blocks[f][1][at * width : (at + 1) * width]  # type: ignore[no-any-return]

    def _pass_over(self, row: int) -> None:
        """What follows in the blocks of vectors when a row was not found."""
        for f in range(len(self.shape.fields)):
            if self._places(f, row)[:1] != [None]:
                self.follows[f] += 1

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
        follows = 0
        """Which id follows the last that was found."""
        for row in range(first, first + count):
            gone = bool(self.purged[row])
            if gone and fits:
                continue
            pointed = self._id_of(row)
            places = [follows] if fits else self._id_places(ids, follows, row, pointed)
            for at in places:
                if at in used or at >= len(ids):
                    continue
                names = [n for n in (ids[at], pointed) if n]
                made = next((m for n in names if (m := self._whole(row, n, sums[at]))), None)
                if made is not None:
                    out.rows[row] = made
                    used.add(at)
                    follows = at + 1
                    break
            else:
                if gone:
                    continue
                made = None
                if pointed is not None and follows >= len(ids):
                    made = self._whole(row, pointed, None)
                if made is not None:
                    out.rows[row] = made
                    out.unverified.append(pointed or b"")
                else:
                    open_rows.append((row, follows))
                    self._pass_over(row)
                follows += 1
        unplaced = len(ids) - len(used)
        for row, at in open_rows:
            if not unplaced and self._was_purged(row, bool(ids)):
                continue
            unplaced = max(0, unplaced - 1)
            name = ids[at] if at < len(ids) and at not in used else b""
            out.lost[row] = self._id_of(row) or (name if _may_be_id(name) else None)

    def _id_places(
        self, ids: list[bytes], follows: int, row: int, pointed: bytes | None
    ) -> list[int]:
        """Which id of a block that does not fit its bitmap a row may have, the likeliest first."""
        near = [at for by in _NEAR if 0 <= (at := follows + by) < len(ids)]
        if pointed is not None:
            return [*(at for at, name in enumerate(ids) if name == pointed), *near]
        block = row // ID_BLOCK_ROWS
        # Not one that belongs to another row of this block.
        return [at for at in near if self.row_of.get(id_key(ids[at]), -1) // ID_BLOCK_ROWS != block]

    def _was_purged(self, row: int, ids_left: bool) -> bool:
        """Whether a row whose block has no id for it was purged, whatever the bitmap says."""
        damaged = self.found.damaged
        if ids_left and "ids" not in damaged:
            return True
        if damaged & {"keys", "dead"}:
            return False
        return row < self.keyed and row not in self.key_of and row not in self.told_dead

    # -- the dead

    def _judge_dead(self) -> None:
        out = self.out
        logged = {
            row: sequence
            for sequence, value in self.log.items()
            for row in np.frombuffer(value[LOG.size :], "<u8").tolist()
        }
        known = {**out.lost, **{row: whole.record_id for row, whole in out.rows.items()}}
        newest: dict[bytes, int] = {}
        for row in sorted(known):
            name = known[row]
            # The id of a row that is lost may be what was damaged, unless something points from it.
            if name and (row in out.rows or row in self.key_of):
                newest[name] = row
        begin = min(self.log, default=out.sequence + 1)
        whole_keys = "keys" not in self.found.damaged
        for row, name in known.items():
            in_table, in_log = self.told_dead.get(row), logged.get(row)
            sound = [s for s in (in_log, in_table) if s is not None and 0 < s <= out.sequence]
            pointed = self.row_of.get(id_key(name)) if name else None
            # Nothing leads to it, neither from its id nor by its number.
            unkeyed = whole_keys and row < self.keyed and pointed is None and row not in self.key_of
            half = (in_log is None and "log" in self.found.damaged) or (
                in_table is None and "dead" in self.found.damaged
            )
            replaced = (row in out.rows or row in self.key_of) and newest.get(
                name or b"", row
            ) != row
            if replaced or len(sound) == 2:
                dead = True
            elif pointed == row:
                dead = False
            else:
                dead = unkeyed or bool(sound and (sound[0] < begin or half))
                told = sound or ({"dead", "keys"} <= self.found.damaged and begin > 1)
                if told and name and not dead:
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
        known = len(out.lost)
        out.lost = {row: name for row, name in out.lost.items() if row not in out.dead}
        out.lost_history = known - len(out.lost)
        out.dead = {row: s for row, s in out.dead.items() if row in out.rows}
        there = {whole.record_id for row, whole in out.rows.items() if row not in out.dead}
        # An id that is there was not that of the row, which has another one that is not known.
        out.lost = {row: None if name in there else name for row, name in out.lost.items()}
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
        out.history_lost = not kept and (horizon < out.sequence or "log" in damaged)
        out.horizon = horizon if kept else out.sequence
        if kept:
            out.log = {s: bytes(v) for s, v in self.log.items()}
        out.dead = {row: s or out.horizon for row, s in out.dead.items()}
        return out


def _may_be_id(name: bytes) -> bool:
    try:
        return bool(name) and "\0" not in name.decode()
    except UnicodeDecodeError:
        return False


def _vote(numbers: list[int]) -> int:
    """What most of them say; the largest where no two agree."""
    counted = Counter(numbers).most_common()
    return max((n for n, times in counted if times == counted[0][1]), default=0)
