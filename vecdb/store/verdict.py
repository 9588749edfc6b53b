"""Which rows of a salvaged collection are whole, which are dead, and which are lost."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

from ..crc import crc32, flipped_bit
from ..layout import (
    DEFAULT_FIELD,
    ID_BLOCK_ROWS,
    LOG,
    META_HORIZON,
    META_STATE,
    ROW,
    ROW_VALUE,
    SEQUENCE_VALUE,
    id_key,
)
from ..types import MAX_ID_BYTES
from .evidence import NEAR, Evidence, Piece
from .salvage import Salvaged
from .shape import Shape
from .sums import BY_ROW

_MOST_PUT_RIGHT, _MOST_BYTES_PUT_RIGHT = 16, 1 << 20
"""Rows of a file in which a flipped bit is looked for, and their bytes; 2 us a byte."""
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
class TornRow:
    """A row that cannot be stored again, and what is left of it."""

    record_id: bytes | None
    """None where it is not known."""
    found_id: bytes | None
    """The bytes in the place of its id, which may be none of an id."""
    id_certain: bool
    """Whether `keys` has that id too: else it may be what was damaged."""
    fault: str
    """Which check it has failed, as a sentence."""
    checksum: int | None
    """The one that was stored with its id; None where that cannot be read."""
    vectors: dict[int, Piece]
    """By field, where they most likely are."""
    texts: dict[str, Piece]
    """By table."""
    certain: bool
    """Whether the vectors surely are those of this row."""
    written_in: int | None
    """The commit that wrote it; None where that is not known."""
    dead: bool = False
    died_in: int | None = None


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
    torn: dict[int, TornRow] = field(default_factory=dict)
    """All rows that cannot be stored again, those that were dead too, with what is left of them."""
    lost_history: int = 0
    """Dead rows that cannot be stored again: earlier versions, which nobody can ask for any more."""
    unverified: list[bytes] = field(default_factory=list)
    """Ids of records whose checksum was lost with its page: they are kept as they were found."""
    doubts: list[str] = field(default_factory=list)
    """What else was done or is not sure, a sentence each."""
    undecided: list[bytes] = field(default_factory=list)
    """Ids of records of which it is not known whether they were deleted or replaced: they are kept."""
    overtaken: list[bytes] = field(default_factory=list)
    """Those of them whose newer version may be among the lost rows."""
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
        self.told = Evidence(found, shape, file_bytes)
        self.out = Verdict(self.told.sequence, self.told.n_rows)

    # -- rows

    def _whole(self, row: int, record_id: bytes, checksum: int | None) -> WholeRow | None:
        """The row under this id, if its parts have this checksum; without one, as the bitmaps say."""
        key = ROW.pack(row)
        texts: dict[str, Piece] = {
            t: v for t in BY_ROW if (v := self.told.tables[t].get(key)) is not None
        }
        places = [self.told.places(f, row) for f in range(len(self.told.shape.fields))]
        if checksum is None and not all(fits for _, _, _, fits in self.told.blocks.values()):
            return None
        for chosen in itertools.islice(itertools.product(*places), _MOST_TRIED):
            vectors = {f: self.told.vector(f, at) for f, at in enumerate(chosen) if at is not None}
            if DEFAULT_FIELD not in vectors:
                continue
            made = checksum_of(record_id, vectors, texts)
            if checksum is None or made == checksum:
                self.told.follows |= {f: at + 1 for f, at in enumerate(chosen) if at is not None}
                return WholeRow(record_id, made, vectors, texts)
        return None

    def _judge_block(self, number: int) -> None:
        out, first = self.out, number * ID_BLOCK_ROWS
        count = min(ID_BLOCK_ROWS, out.n_rows - first)
        ids, sums, fits = self.told.ids_of(number, count)
        used: set[int] = set()
        open_rows: list[tuple[int, int]] = []
        left: dict[int, tuple[dict[int, Piece], dict[str, Piece], bool]] = {}
        follows = 0
        """Which id follows the last that was found."""
        for row in range(first, first + count):
            gone = bool(self.told.purged[row])
            if gone and fits:
                continue
            pointed = self.told.id_of(row)
            places = [follows] if fits else self._id_places(ids, follows, row, pointed)
            for at in places:
                if at in used or at >= len(ids):
                    continue
                names = [n for n in (ids[at], pointed) if n]
                made = next((m for n in names if (m := self._whole(row, n, sums[at]))), None)
                if made is not None:
                    out.rows[row] = made
                    if self.told.may_be_of_other_tables(made.texts):
                        out.unverified.append(made.record_id)
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
                    left[row] = self._left_of(row)
                    self.told.pass_over(row)
                follows += 1
        unplaced = len(ids) - len(used)
        for row, at in open_rows:
            if not unplaced and self._was_purged(row, bool(ids)):
                continue
            unplaced = max(0, unplaced - 1)
            name = ids[at] if at < len(ids) and at not in used else b""
            out.lost[row] = self.told.id_of(row) or (name if _may_be_id(name) else None)
            checksum = sums[at] if name else None
            made_of = out.lost[row] or name or None
            out.torn[row] = self._torn(row, out.lost[row], made_of, checksum, *left[row])

    def _left_of(self, row: int) -> tuple[dict[int, Piece], dict[str, Piece], bool]:
        """(vectors, texts, whether the vectors are surely its own) of a row that is not whole."""
        told, key = self.told, ROW.pack(row)
        vectors = {}
        for f in range(len(told.shape.fields)):
            at = next(iter(told.places(f, row)), None)
            if at is not None:
                vectors[f] = told.vector(f, at)
        certain = all(fits for _, _, _, fits in told.blocks.values())
        return (
            vectors,
            {t: v for t in BY_ROW if (v := told.tables[t].get(key)) is not None},
            certain,
        )

    def _torn(
        self, row: int, name: bytes | None, found: bytes | None, checksum: int | None, vectors: dict[int, Piece],
        texts: dict[str, Piece], certain: bool,
    ) -> TornRow:  # fmt: skip
        if DEFAULT_FIELD not in vectors:
            fault = "its vector cannot be read"
        elif checksum is None or name is None:
            fault = "its id or its checksum cannot be read"
        else:
            fault = f"its parts have the checksum {checksum_of(name, vectors, texts):08x}, {checksum:08x} was stored"
        known = name is not None and self.told.id_of(row) == name
        written = self.told.written_in(row)
        return TornRow(name, found, known, fault, checksum, vectors, texts, certain, written)

    def _put_right(self) -> None:
        """Flips back the one bit of a row, or of its checksum, that the checksum says was flipped.

        Of a few rows only: that damage in more places looks like one bit happens in one row of 300,000.
        """
        out = self.out
        for row, torn in list(out.torn.items()) if len(out.torn) <= _MOST_PUT_RIGHT else ():
            made = _with_a_bit_flipped(torn)
            if made is not None:
                del out.torn[row], out.lost[row]
                out.rows[row] = made
                name = made.record_id.decode()
                out.doubts.append(
                    f"one bit of row {row} of record {name!r} was put right, as its checksum tells"
                )

    def _id_places(
        self, ids: list[bytes], follows: int, row: int, pointed: bytes | None
    ) -> list[int]:
        """Which id of a block that does not fit its bitmap a row may have, the likeliest first."""
        near = [at for by in NEAR if 0 <= (at := follows + by) < len(ids)]
        if pointed is not None:
            return [*(at for at, name in enumerate(ids) if name == pointed), *near]
        block = row // ID_BLOCK_ROWS
        # Not one that belongs to another row of this block.
        return [
            at for at in near if self.told.row_of.get(id_key(ids[at]), -1) // ID_BLOCK_ROWS != block
        ]

    def _was_purged(self, row: int, ids_left: bool) -> bool:
        """Whether a row whose block has no id for it was purged, whatever the bitmap says."""
        damaged = self.told.found.damaged
        if ids_left and "ids" not in damaged:
            return True
        if damaged & {"keys", "dead"}:
            return False
        return row < self.told.keyed and row not in self.told.key_of and row not in self.told.dead

    # -- the dead

    def _judge_dead(self) -> None:
        out = self.out
        logged = {
            row: sequence
            for sequence, value in self.told.log.items()
            for row in np.frombuffer(value[LOG.size :], "<u8").tolist()
        }
        n_logged = sum(len(value) - LOG.size for value in self.told.log.values()) // ROW_VALUE.size
        damaged = self.told.found.damaged
        if len(logged) < n_logged or any(row >= out.n_rows for row in logged):
            out.history_kept = False  # It names rows that cannot have died, or some twice.
            damaged |= {"log"}
        known = {**out.lost, **{row: whole.record_id for row, whole in out.rows.items()}}
        newest: dict[bytes, int] = {}
        claimed: dict[bytes, int] = {}
        for row in sorted(known):
            name = known[row]
            # The id of a row that is lost may be what was damaged, unless something points from it.
            if name and (row in out.rows or row in self.told.key_of):
                newest[name] = row
            elif name:
                claimed[name] = row
        begin = min(self.told.log, default=out.sequence + 1)
        whole_keys = "keys" not in damaged
        # Of a row that no id points to, neither table could say that it is dead.
        unwitnessed = "dead" in damaged and (begin > 1 or "log" in damaged)
        for row, name in known.items():
            in_table, in_log = self.told.dead.get(row), logged.get(row)
            sound = [s for s in (in_log, in_table) if s is not None and 0 < s <= out.sequence]
            pointed = self.told.row_of.get(id_key(name)) if name else None
            # Nothing leads to it, neither from its id nor by its number.
            unkeyed = (
                whole_keys
                and row < self.told.keyed
                and pointed is None
                and row not in self.told.key_of
            )
            half = (in_log is None and "log" in damaged) or (in_table is None and "dead" in damaged)
            replaced = (row in out.rows or row in self.told.key_of) and newest.get(
                name or b"", row
            ) != row
            if replaced or len(sound) == 2:
                dead = True
            elif pointed == row:
                dead = False
            else:
                dead = unkeyed or bool(sound and (sound[0] < begin or half))
            if row in out.rows and name and not dead:
                # What replaced it may be a lost row that says it has this id, where nothing tells who died.
                if unwitnessed and claimed.get(name, -1) > row:
                    out.overtaken.append(name)
                    out.undecided.append(name)
                elif pointed != row and (
                    sound or (unwitnessed and (not whole_keys or row >= self.told.keyed))
                ):
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
        self._put_right()
        self._judge_dead()
        for row, torn in out.torn.items():
            torn.dead, torn.died_in = row in out.dead, out.dead.get(row) or None
        known = len(out.lost)
        out.lost = {row: name for row, name in out.lost.items() if row not in out.dead}
        out.lost_history = known - len(out.lost)
        out.dead = {row: s for row, s in out.dead.items() if row in out.rows}
        there = {whole.record_id for row, whole in out.rows.items() if row not in out.dead}
        sure = {name for row, name in out.lost.items() if out.torn[row].id_certain}
        # An id that is there, or surely that of another row, was not that of this one: its own is not known.
        out.lost = {
            row: None if name in there or (name in sure and not out.torn[row].id_certain) else name
            for row, name in out.lost.items()
        }
        unsure = 0
        for row, name in out.lost.items():
            torn = out.torn[row]
            torn.record_id, torn.id_certain = name, torn.id_certain and name is not None
            unsure += name is not None and not torn.id_certain
        if unsure:
            out.doubts.append(
                f"ids of {unsure} of the lost records are told by what was damaged and nothing else, and may be wrong"
            )
        if out.overtaken:
            out.doubts.append(
                f"{len(out.overtaken)} of the undecided records may be there as they were before: rows that are lost "
                "seem to be newer versions of them"
            )
        damaged = self.told.found.damaged
        if {"log", "dead"} <= damaged:
            out.lost_commits = max(0, out.sequence - max(self.told.log, default=0))
        if {"log", "meta"} <= damaged and META_STATE not in self.told.tables["meta"]:
            out.lost_commits = max(1, out.lost_commits)
        held = len(out.rows)
        raw = self.told.tables["meta"].get(META_HORIZON)
        horizon = SEQUENCE_VALUE.unpack(raw)[0] if raw is not None and len(raw) == 8 else 0
        begins = min(self.told.log, default=out.sequence + 1) - 1
        if not begins <= horizon <= out.sequence:
            horizon = begins
        was_purged = int(self.told.purged.sum())
        kept = (
            out.history_kept
            and not out.lost
            and not out.lost_history
            and held + was_purged == out.n_rows
            and not self.told.found.damaged & {"log", "dead", "purged"}
            and self.told.contiguous()
            and (horizon > 0 or not was_purged)
            and max(self.told.log, default=out.sequence) == out.sequence
        )
        out.history_kept = kept
        out.history_lost = not kept and (horizon < out.sequence or "log" in damaged)
        out.horizon = horizon if kept else out.sequence
        if kept:
            out.log = {s: bytes(v) for s, v in self.told.log.items()}
        out.dead = {row: s or out.horizon for row, s in out.dead.items()}
        return out


def checksum_of(record_id: bytes, vectors: dict[int, Piece], texts: dict[str, Piece]) -> int:
    """CRC-32 of a row as it is stored with its id; `vectors` and `texts` in the order of fields and of `BY_ROW`."""
    made = crc32(vectors[DEFAULT_FIELD], crc32(record_id))
    for piece in (*texts.values(), *(vector for f, vector in vectors.items() if f)):
        made = crc32(piece, made)
    return made


def _with_a_bit_flipped(torn: TornRow) -> WholeRow | None:
    """The row as it was before one bit was flipped; None where that is not all."""
    name, checksum = torn.found_id, torn.checksum
    if name is None or checksum is None or not torn.certain or DEFAULT_FIELD not in torn.vectors:
        return None
    named = [f for f in torn.vectors if f]
    pieces = [
        name,
        torn.vectors[DEFAULT_FIELD],
        *torn.texts.values(),
        *(torn.vectors[f] for f in named),
    ]
    if sum(map(len, pieces)) > _MOST_BYTES_PUT_RIGHT:
        return None
    data = bytearray(b"".join(pieces))
    wanted = crc32(data) ^ checksum
    if wanted & wanted - 1:
        bit = flipped_bit(data, checksum)
        if bit is None:
            return None
        data[bit // 8] ^= 1 << bit % 8
    else:
        checksum ^= wanted  # The bit of the checksum itself.
    ends = list(itertools.accumulate(map(len, pieces)))
    parts = [bytes(data[end - len(piece) : end]) for piece, end in zip(pieces, ends, strict=True)]
    texts: dict[str, Piece] = dict(zip(torn.texts, parts[2:], strict=False))
    vectors: dict[int, Piece] = {
        DEFAULT_FIELD: parts[1],
        **dict(zip(named, parts[2 + len(texts) :], strict=True)),
    }
    return WholeRow(parts[0], checksum, vectors, texts) if _may_be_id(parts[0]) else None


def _may_be_id(name: bytes) -> bool:
    try:
        return 0 < len(name) <= MAX_ID_BYTES and "\0" not in name.decode()
    except UnicodeDecodeError:
        return False
