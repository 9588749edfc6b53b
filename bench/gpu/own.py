"""Flat vectors as the engine searches them on a card, beside FAISS in the same process: the same calls, no worker between."""

from __future__ import annotations

from typing import Any

import numpy as np

from .answers import Flags, Floats, Rows
from .arrays import Arrays

_HANDLE, _MASK = 1, 1


class Own:
    """A card of the engine with one flat placement. `gpu` False: the stand-in, for dry runs."""

    def __init__(self, gpu: bool) -> None:
        # Here, since other parts do without the engine, which takes its time to load.
        self.card: Any
        if gpu:
            from vecdb.index.card import FaissCard

            self.card = FaissCard()
        else:
            from vecdb.device import StandInCard
            from vecdb.index.host_lists import joined, read_lists

            self.card = StandInCard(4 << 30, read_lists=read_lists, join=joined)

    @property
    def masks(self) -> bool:
        """Whether the driver took the engine's kernels; without them it searches as FAISS does."""
        return bool(self.card.info().masks)

    def place(self, arrays: Arrays, made: Any, code: str) -> None:
        """In the place of what was there before."""
        self.card.drop(_HANDLE)
        rows, dimension = made.shape
        self.card.flat(_HANDLE, dimension, "ip", code, rows)
        step = max(1, (256 << 20) // (4 * dimension))
        for start in range(0, rows, step):
            self.card.add(_HANDLE, arrays.host(made[start : start + step]))

    def search(self, queries: Floats, k: int, mask: int = 0) -> tuple[Floats, Rows]:
        found: tuple[Floats, Rows] = self.card.search(_HANDLE, queries, k, 0, mask)
        return found

    def allow(self, flags: Flags) -> int:
        """The mask of these rows, in the place of the one before."""
        self.card.unmask(_HANDLE, _MASK)
        self.card.mask(_HANDLE, _MASK, np.packbits(flags, bitorder="little"))
        return _MASK

    def close(self) -> None:
        """Gives the memory back."""
        self.card.drop(_HANDLE)
