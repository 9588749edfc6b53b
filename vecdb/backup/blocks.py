"""The memory in which a file of a backup is put together: blocks that the disk can be written from directly."""

from __future__ import annotations

import mmap
from typing import Any

BLOCK_BYTES = 4 << 20
"""Aligned to a page, and a multiple of the sectors of any disk."""


class Blocks:
    """Blocks to use again: memory that is new costs more than the copy into it. Any thread may call."""

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    def take(self) -> memoryview:
        """A writable block of BLOCK_BYTES, whatever is in it."""
        try:
            return self._free.pop()
        except IndexError:
            return memoryview(mmap.mmap(-1, BLOCK_BYTES))

    def give(self, blocks: list[memoryview]) -> None:
        """Takes back blocks that nobody looks at any more, and leaves the list empty."""
        self._free += blocks
        blocks.clear()


class Filling:
    """Bytes that are put one behind the other into blocks. One thread at a time."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._held: list[memoryview] = []
        self.bytes = 0

    def add(self, part: Any) -> None:
        """Copies a buffer behind what is there."""
        view = memoryview(part).cast("B")
        while view.nbytes:
            room = len(self._held) * BLOCK_BYTES - self.bytes
            if not room:
                self._held.append(self._blocks.take())
                room = BLOCK_BYTES
            some = view[:room]
            at = BLOCK_BYTES - room
            self._held[-1][at : at + some.nbytes] = some
            self.bytes += some.nbytes
            view = view[some.nbytes :]

    def parts(self) -> list[memoryview]:
        """What was added, in place; all but the last are whole blocks."""
        over = len(self._held) * BLOCK_BYTES - self.bytes
        return [*self._held[:-1], *(block[: BLOCK_BYTES - over] for block in self._held[-1:])]

    def free(self) -> None:
        """Gives the memory back. What `parts` gave must not be looked at any more."""
        self._blocks.give(self._held)
        self.bytes = 0
