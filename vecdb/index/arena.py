"""The arena: float32 vectors of a main index in one piece of memory that grows without moving.

Tail and main index look at the same memory: while a build fills the arena, the pieces of the tail are
replaced by looks at it and let go. So a build needs room for its codes and its graph, not for a second
copy of the vectors.
"""

from __future__ import annotations

from ..memory import aligned
from .distance import Floats

_HEADROOM = 4
"""Memory that is asked for as a multiple of what is needed now. Untouched memory takes no space; an
arena that is full is copied to a larger one, and for that moment there are two."""


class Arena:
    """Rows of vectors, filled from the front by one build at a time."""

    def __init__(self, dimension: int, rows: int) -> None:
        self.vectors = _room(dimension, rows)
        self.used = 0
        """Vectors that somebody may look at; what is behind them may be written."""

    def put(self, vectors: Floats) -> int:
        """Copy (n, d) vectors behind the used ones; where the first of them is."""
        start, stop = self.used, self.used + len(vectors)
        self.vectors[start:stop] = vectors
        self.used = stop
        return start

    def has_room(self, rows: int) -> bool:
        return self.used + rows <= len(self.vectors)


def _room(dimension: int, rows: int) -> Floats:
    """Memory for `rows` vectors, and for more of them where the system grants it."""
    for headroom in (_HEADROOM, 1.25):
        try:
            return aligned(int(rows * headroom) + 1_024, dimension)
        except MemoryError:
            continue
    return aligned(rows, dimension)
