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
        groups = [
            group
            for group in _overlapping(self._full())
            if max(piece.stop for piece in group) <= through and _may_go(group, arena)
        ]
        if not groups:
            return
        last = max(piece.stop for piece in groups[-1])
        every = np.concatenate([given for given, _ in self._given])
        instead: dict[int, tuple[Piece, ...]] = {}
        for group in groups:
            made = _looking_at(group, every, arena.vectors[self._given[0][1] :])
            if made is not None:
                instead |= {id(piece): () for piece in group}
                instead[id(group[0])] = made
        self._replace(instead)
        groups.clear()
        del group
        instead.clear()
        give_memory_back()
        while self._given and int(self._given[0][0][-1]) < last:
            self._given.pop(0)


def _overlapping(pieces: tuple[Piece, ...]) -> list[list[Piece]]:
    """Neighbours whose rows lie among each other, as those that an earlier hand-over has made of one piece: a row from
    the first to the last of them is in one of them, or dead."""
    groups: list[list[Piece]] = []
    stop = -1
    for piece in pieces:
        if piece.start < stop:
            groups[-1].append(piece)
        else:
            groups.append([piece])
        stop = max(stop, piece.stop)
    return groups


def _may_go(group: list[Piece], arena: Arena) -> bool:
    """Whether all of it is memory of the tail's own, or of the arena of a build that was given up."""
    return all(
        isinstance(piece.block, FloatBlock)
        and not np.may_share_memory(piece.block.vectors, arena.vectors)
        for piece in group
    )


def _looking_at(group: list[Piece], every: Rows, given: Floats) -> tuple[Piece, ...] | None:
    """The pieces as a look at the arena and a small copy of what is not there; None if little of what lies there is theirs.

    `given` is the arena from where the rows `every` lie in it, one behind the other. A row is in the look or in the
    copy, never in both; what else is in the look is dead.
    """
    start, stop = group[0].start, max(piece.stop for piece in group)
    low, high = np.searchsorted(every, [start, stop])
    inside = every[low:high]
    own = [np.arange(p.start, p.stop) if p.rows is None else p.rows for p in group]
    left = [np.flatnonzero(~np.isin(rows, inside, assume_unique=True)) for rows in own]
    found = sum(map(len, own)) - sum(map(len, left))
    if 2 * found <= inside.size:
        return None
    first = group[0].block
    assert isinstance(first, FloatBlock)
    look = FloatBlock(given[int(low) : int(low) + inside.size], first.metric)
    rest = [piece.pick(part, start) for piece, part in zip(group, left, strict=True) if part.size]
    pieces = [Piece(look, start, stop, inside)]
    if rest:
        pieces.append(_together(rest, start, stop))
    return tuple(pieces)


def _together(pieces: list[Piece], start: int, stop: int) -> Piece:
    """One piece of several, its rows ascending."""
    rows = np.concatenate([piece.rows for piece in pieces if piece.rows is not None])
    order = np.argsort(rows)
    blocks = [piece.block for piece in pieces if isinstance(piece.block, FloatBlock)]
    vectors = np.concatenate([block.vectors for block in blocks])[order]
    return Piece(FloatBlock(vectors, blocks[0].metric), start, stop, rows[order])
