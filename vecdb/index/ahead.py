"""Copies vectors into the tail while the commit that brings them is still under way.

The copy is a pass over memory that needs no interpreter lock, so it goes on beside the writing of the
same rows into the store and costs nothing where a core is free. It is a guess: the rows lie behind
those that count, where nobody looks, and a commit that fails or brings other rows writes over them.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from .codes import to_space
from .distance import Floats, lengths
from .tail import Tail


class Ahead:
    """Puts stored vectors into a tail. Called by one thread at a time, under the index's lock."""

    def __init__(self, tail: Tail, metric: str, storage: str) -> None:
        self._tail = tail
        self._metric = metric
        self._storage = storage
        self._copied: tuple[NDArray[Any], NDArray[Any], Floats | None] | None = None

    def copy(self, vectors: NDArray[Any] | None) -> None:
        """What `append` of the same array will do, as far as it can be undone by doing nothing; None lets go of it.

        The array must not be given twice with other numbers: it is known by identity. It is held until
        the next call of either kind.
        """
        if vectors is None:
            self._copied = None
            self._tail.let_go()
            return
        if self._copied is not None and self._copied[0] is vectors:
            return
        self._copied = (vectors, *self._ready(vectors))
        self._tail.ahead(*self._copied[1:])

    def append(self, vectors: NDArray[Any]) -> None:
        """Adds (n, width) vectors in stored dtype as the tail's next rows."""
        copied, self._copied = self._copied, None
        if copied is None or copied[0] is not vectors:
            copied = (vectors, *self._ready(vectors))
        self._tail.append(*copied[1:])

    def _ready(self, vectors: NDArray[Any]) -> tuple[NDArray[Any], Floats | None]:
        """(vectors, what to divide them by) in the index's space."""
        if self._metric == "cosine" and self._storage == "float32":
            # Divided on the way into the tail: half the passes over memory.
            norms = lengths(vectors)
            if norms is not None:
                return vectors, norms
        return to_space(vectors, self._metric, self._storage), None
