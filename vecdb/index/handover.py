"""Handing the tail's vectors over to an arena while a build fills it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .arena import Arena
from .blocks import FloatBlock
from .distance import Floats, Rows
from .door import give_memory_back
from .tail import Piece


class HandOver:
    """Called by a build with each part of an arena that it has filled, in order.

    Pieces of the tail become looks at the arena's memory, and their own is let go. A piece is replaced
    once all its live rows are in the arena but for those kept back for calibration, which get a small
    piece of their own.
    """

    def __init__(
        self,
        full: Callable[[], tuple[Piece, ...]],
        replace: Callable[[dict[int, tuple[Piece, ...]]], None],
    ) -> None:
        """`full()` gives the tail's full pieces, `replace` puts others in their place, by `id`."""
        self._full = full
        self._replace = replace
        self._given: list[tuple[Rows, int]] = []

    def __call__(self, rows: Rows, arena: Arena, start: int, through: int) -> None:
        """`rows` lie in the arena from `start` on now, and all live rows below `through` have been given,
        or kept back. One build gives parts of one arena."""
        self._given.append((rows, start))
        full = [
            piece
            for piece in self._full()
            if piece.stop <= through
            and isinstance(piece.block, FloatBlock)
            and not np.may_share_memory(piece.block.vectors, arena.vectors)
        ]
        if not full:
            return
        last = full[-1].stop
        every = np.concatenate([given for given, _ in self._given])
        instead = {}
        for piece in full:
            made = _looking_at(piece, every, arena.vectors[self._given[0][1] :])
            if made is not None:
                instead[id(piece)] = made
        self._replace(instead)
        del full
        instead.clear()
        give_memory_back()
        while self._given and int(self._given[0][0][-1]) < last:
            self._given.pop(0)


def _looking_at(piece: Piece, every: Rows, given: Floats) -> tuple[Piece, ...] | None:
    """`piece` as a look at the arena and a small copy of what is not there; None if nothing is.

    `given` is the arena from where the rows `every` lie in it, one behind the other.
    """
    low, high = np.searchsorted(every, [piece.start, piece.stop])
    inside = every[low:high]
    if not inside.size:
        return None
    assert isinstance(piece.block, FloatBlock)
    look = FloatBlock(given[int(low) : int(low) + inside.size], piece.block.metric)
    rows = np.arange(piece.start, piece.stop) if piece.rows is None else piece.rows
    rest = np.flatnonzero(~np.isin(rows, inside, assume_unique=True))
    pieces = [Piece(look, piece.start, piece.stop, inside)]
    if rest.size:
        pieces.append(piece.pick(rest, piece.start))
    return tuple(pieces)
