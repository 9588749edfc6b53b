"""The tail: rows that no main index covers, as pieces that are searched exactly.

Full pieces are never written again. Behind them is one float32 buffer with spare room that the
writer fills in place: a view sees only the rows that were there when it was made.

An update leaves a dead row behind, so a small collection under steady updates would grow without
end; pieces that are mostly dead are copied down to their live rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..layout import vector_width
from ..memory import anonymous
from .blocks import BitBlock, Block, CodeBlock, FloatBlock
from .codes import own_code
from .distance import Floats, Rows
from .door import faiss_metric
from .rough import Rough

PIECE_BYTES = 32 << 20
MIN_PIECE_ROWS = 256
MAX_PIECE_ROWS = 16_384
"""Rows of a full piece. Fewer cost more calls a search (about 10 us each), more cost more when a
piece is cut or copied down; 16,384 x 384 takes 0.6 ms to search."""

_FIRST_ROWS = 256
_OWN_PAGES_BYTES = 1 << 16
"""A buffer of fewer bytes is the allocator's: its spare room is not worth pages of its own."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of the tail: `start` and on, or those in `rows` (ascending) once dead ones are gone."""

    block: Block
    start: int
    stop: int
    rows: Rows | None = None

    def row_numbers(self, positions: Rows) -> Rows:
        """Row numbers of positions in the block; -1 stays -1."""
        numbers = positions + self.start if self.rows is None else self.rows[positions]
        return np.where(positions < 0, -1, numbers)

    def pick(self, positions: Rows, start: int) -> Piece:
        """A piece with copies of these positions (ascending) only."""
        rows = positions + self.start if self.rows is None else self.rows[positions]
        return Piece(_picked(self.block, positions), start, self.stop, rows)


def _picked(block: Block, positions: Rows) -> Block:
    """A block with copies of these vectors."""
    if isinstance(block, CodeBlock):
        return block.pick(positions)
    if isinstance(block, BitBlock):
        return BitBlock(block.take(positions))
    assert isinstance(block, FloatBlock)
    rough = None if block.rough is None else Rough(block.vectors.shape[1], positions.size)
    return FloatBlock(block.take(positions), block.metric, rough=rough)


def trim(pieces: tuple[Piece, ...], row: int, cut: dict[int, Piece | None]) -> tuple[Piece, ...]:
    """`pieces` without rows below `row`. `cut` holds cut pieces by `id` of the whole one, and is
    added to, so that two lists of the same pieces share the cut ones."""
    kept = []
    for piece in pieces:
        left: Piece | None = piece
        if piece.start < row:
            if id(piece) not in cut:
                rows = np.arange(piece.start, piece.stop) if piece.rows is None else piece.rows
                positions = np.flatnonzero(rows >= row)
                cut[id(piece)] = piece.pick(positions, row) if positions.size else None
            left = cut[id(piece)]
        if left is not None:
            kept.append(left)
    return tuple(kept)


def replaced(pieces: tuple[Piece, ...], instead: dict[int, tuple[Piece, ...]]) -> tuple[Piece, ...]:
    """`pieces` with others in the place of those whose `id` is in `instead`."""
    return tuple(new for piece in pieces for new in instead.get(id(piece), (piece,)))


class Tail:
    """The writer's side of the tail; one thread at a time."""

    def __init__(self, dimension: int, metric: str, storage: str, start: int = 0) -> None:
        """`dimension` counts bits for binary storage; vectors then have an eighth as many bytes."""
        self.metric = metric
        self.code = own_code(storage)
        self.start = start
        self._width = vector_width(dimension, storage)
        self._dtype: type[np.generic] = np.uint8 if storage == "binary" else np.float32
        fit = PIECE_BYTES // (4 * dimension)
        self.piece_rows = max(MIN_PIECE_ROWS, min(MAX_PIECE_ROWS, fit))
        self._full: tuple[Piece, ...] = ()
        self._buffer = self._empty(0)
        self._rough = self._new_rough(self.piece_rows)
        """Of the rows in the buffer, which may move to a larger one."""
        self._buffer_start = start
        self._filled = 0
        self._ahead: tuple[NDArray[np.generic], Floats, int, int] | None = None
        """Vectors, of which some stand already in this buffer: behind so many rows, so many of them."""

    @property
    def stop(self) -> int:
        return self._buffer_start + self._filled

    @property
    def nbytes(self) -> int:
        rough = 0 if self._rough is None else self._rough.nbytes
        return sum(piece.block.nbytes for piece in self._full) + self._buffer.nbytes + rough

    def _new_rough(self, rows: int) -> Rough | None:
        return None if self.code != "float32" else Rough(self._width, rows)

    def _empty(self, rows: int) -> Floats:
        count = rows * self._width
        size = count * np.dtype(self._dtype).itemsize
        if size < _OWN_PAGES_BYTES:
            return np.empty((rows, self._width), self._dtype)
        return np.frombuffer(anonymous(size), self._dtype).reshape(rows, self._width)

    def _block(self, vectors: Floats, *, sealed: bool, rough: Rough | None = None) -> Block:
        """A block over `vectors`; the code that needs fewest bytes once it is sealed."""
        if self.code == "binary":
            return BitBlock(vectors)  # type: ignore[arg-type]
        if sealed and self.code != "float32":
            return CodeBlock.of(vectors, self.code, self.metric)
        return FloatBlock(vectors, faiss_metric(self.metric), rough=rough)

    def append(self, vectors: NDArray[np.generic], lengths: Floats | None = None) -> None:
        """Add (n, d) vectors that are in the index's space, once divided by `lengths` (n,) if given."""
        done = self._found(vectors)
        self._filled += done
        while done < len(vectors):
            if self._filled == self.piece_rows:
                self._seal()
            done += (room := self._copy(vectors, lengths, done))
            self._filled += room

    def ahead(self, vectors: NDArray[np.generic], lengths: Floats | None = None) -> None:
        """Copies what `append` may be given next, the same array, up to the end of a piece."""
        copied = self._copy(vectors, lengths, 0)
        self._ahead = vectors, self._buffer, self._filled, copied

    def let_go(self) -> None:
        """What was copied ahead will not be appended."""
        self._ahead = None

    def _found(self, vectors: NDArray[np.generic]) -> int:
        """How many of the vectors stand already behind the rows that count."""
        found, self._ahead = self._ahead, None
        if found is None or found[0] is not vectors or found[1] is not self._buffer:
            return 0
        return found[3] if found[2] == self._filled else 0

    def _copy(self, vectors: NDArray[np.generic], lengths: Floats | None, first: int) -> int:
        """Copies from vector `first` on behind the rows that count; how many there was room for."""
        room = min(len(vectors) - first, self.piece_rows - self._filled)
        self._reserve(self._filled + room)
        target = self._buffer[self._filled : self._filled + room]
        part = slice(first, first + room)
        if lengths is None:
            target[:] = vectors[part]
        else:
            np.divide(vectors[part], lengths[part, None], out=target)
        return room

    def _reserve(self, rows: int) -> None:
        if rows <= len(self._buffer):
            return
        # In three steps, each copied to the next: untouched memory takes no space, and doubling copied
        # every vector once more.
        steps = (_FIRST_ROWS, 8 * _FIRST_ROWS, self.piece_rows)
        size = min(self.piece_rows, next(step for step in steps if step >= rows))
        try:
            larger = self._empty(size)
        except MemoryError:
            larger = self._empty(rows)
        larger[: self._filled] = self._buffer[: self._filled]
        self._buffer = larger

    def _seal(self) -> None:
        block = self._block(self._buffer, sealed=True, rough=self._rough)
        self._full = (*self._full, Piece(block, self._buffer_start, self.stop))
        self._rough = self._new_rough(self.piece_rows)
        self._buffer_start = self.stop
        self._filled = 0
        self._buffer = self._empty(0)

    def pieces(self) -> tuple[Piece, ...]:
        """All pieces at this moment; appending later does not change them."""
        if not self._filled:
            return self._full
        block = self._block(self._buffer[: self._filled], sealed=False, rough=self._rough)
        return (*self._full, Piece(block, self._buffer_start, self.stop))

    def trim(self, row: int) -> dict[int, Piece | None]:
        """Let go of rows below `row`, which the main index covers now.

        Returns the cut pieces by `id` of the whole ones, for `trim` of a view's pieces.
        """
        cut: dict[int, Piece | None] = {}
        self._full = trim(self._full, row, cut)
        gone = min(max(row - self._buffer_start, 0), self._filled)
        if gone:
            self._buffer = self._buffer[gone : self._filled].copy()
            self._rough = self._new_rough(self.piece_rows)
            self._buffer_start += gone
            self._filled -= gone
        if not self._filled:
            self._buffer_start = max(self._buffer_start, row)
        self.start = max(self.start, row)
        return cut

    def replace(self, instead: dict[int, tuple[Piece, ...]]) -> None:
        """Put other pieces with the same live rows in the place of full ones, named by `id`."""
        self._full = replaced(self._full, instead)

    @property
    def full(self) -> tuple[Piece, ...]:
        """The pieces that are never written again."""
        return self._full

    def compact(self, live: NDArray[np.bool_]) -> None:
        """Copy full pieces down whose rows are mostly dead; `live` is by row.

        Copies at most half a piece's rows for each piece that dies, so the cost is spread over the
        deletes that caused it. Neighbours that became small are put together.
        """
        kept: list[Piece] = []
        changed = False
        for piece in self._full:
            where = slice(piece.start, piece.stop) if piece.rows is None else piece.rows
            alive = np.flatnonzero(live[where])
            if alive.size * 2 > piece.block.n:
                kept.append(piece)
                continue
            changed = True
            if alive.size:
                kept.append(piece.pick(alive, piece.start))
        if changed:
            self._full = tuple(self._join(kept))

    def _join(self, pieces: list[Piece]) -> list[Piece]:
        out: list[Piece] = []
        group: list[Piece] = []

        def flush() -> None:
            if len(group) > 1:
                rows = np.concatenate([p.rows for p in group if p.rows is not None])
                vectors = np.concatenate([p.block.take(np.arange(p.block.n)) for p in group])
                # What a hand-over made of one piece are two, whose rows lie among each other.
                order = np.argsort(rows)
                rough = self._new_rough(len(order))
                block = self._block(vectors[order], sealed=True, rough=rough)
                stop = max(piece.stop for piece in group)
                out.append(Piece(block, group[0].start, stop, rows[order]))
            else:
                out.extend(group)
            group.clear()

        for piece in pieces:
            small = piece.rows is not None and piece.block.n * 2 <= self.piece_rows
            if not small:
                flush()
                out.append(piece)
                continue
            if sum(p.block.n for p in group) + piece.block.n > self.piece_rows:
                flush()
            group.append(piece)
        flush()
        return out
