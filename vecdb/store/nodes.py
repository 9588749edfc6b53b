"""Nodes of LMDB's pages, read without LMDB: which pages are whole, and what their nodes say of themselves.

Pages are looked at some hundred at a time, so that the numbers about their nodes stay in the processor's cache: three
times as quick as all pages of a tree at once, and some MB in place of 100 for a million records.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..stopping import Interrupt

Numbers = NDArray[np.int64]
Bools = NDArray[np.bool_]

HEADER = struct.Struct("<QHHHH")
"""Of a page: its number, padding, flags, end of the pointers, begin of the nodes."""
BRANCH, LEAF, OVERFLOW, META = 1, 2, 4, 8
BIG, SUBTREE = 1, 2
"""Flags of a node: its value has pages of its own; its value is a tree."""
NODE_BYTES = 8
_KEY_HEAD_BYTES = 8
_SLICE_PAGES = 512
_AHEAD_PAGES = 8 * _SLICE_PAGES
"""Of a level of a tree, that are announced before they are read: some 16 MB, since a level may be larger than the memory."""
_HEADS = np.array([(1 << 8 * n) - 1 for n in range(_KEY_HEAD_BYTES + 1)], np.uint64)
"""The bits of the first 8 bytes that a key of 0 to 8 bytes has."""


class Entries(NamedTuple):
    """Entries of leaves, by where they lie in the file."""

    pages: Numbers
    flags: Numbers
    keys: Numbers
    key_sizes: Numbers
    values: Numbers
    sizes: Numbers

    def kept(self, which: Any) -> Entries:
        """Those of a mask, or of numbers."""
        return Entries(*(part[which] for part in self))

    @classmethod
    def joined(cls, parts: list[Entries]) -> Entries:
        if len(parts) == 1:
            return parts[0]
        none = [np.empty(0, np.int64)]
        return cls(
            *(np.concatenate([*none, *(p[n] for p in parts)]) for n in range(len(cls._fields)))
        )


class Nodes(NamedTuple):
    """Nodes of pages that were looked at, in the order of the pages."""

    whole: Bools
    """Of each page: whether it is a whole page of its kind. Only the nodes of those follow."""
    pages: Numbers
    at: Numbers
    """Where in the file the node begins."""
    heads: Numbers
    """Its first 8 bytes as a number: of a leaf size, flags, bytes of the key; of a branch the child in place of the
    first two."""


class NodeFile:
    """The bytes of a file as pages. One thread; nothing is written."""

    def __init__(self, raw: Any, page_size: int) -> None:
        """`raw` (bytes of the file,) uint8."""
        self.interrupt: Interrupt = lambda: None
        """Called between pieces of work; may raise."""
        self.raw = raw
        self.size = len(raw)
        self.page_size = page_size
        self.n_pages = self.size // page_size
        whole = raw[: self.n_pages * page_size]
        self._words: NDArray[np.uint16] = whole.view("<u2")
        self._quads: Numbers = whole.view("<i8")
        places = max(0, (self.size - 8) // 2 + 1)
        self._eights: Numbers = (
            np.ndarray((places,), "<i8", raw, strides=(2,)) if places else self._quads
        )
        """The 8 bytes from each second byte on: nodes and keys begin there."""

    def slices(self, level: Numbers) -> Iterator[Numbers]:
        """So few of these pages at a time that what is known of their nodes fits the cache."""
        asked = 0
        for start in range(0, len(level), _SLICE_PAGES):
            while asked < min(len(level), start + _AHEAD_PAGES):
                self.ahead(level[asked : asked + _AHEAD_PAGES])
                asked += _AHEAD_PAGES
            self.interrupt()
            yield level[start : start + _SLICE_PAGES]

    def ahead(self, pages: Numbers) -> None:
        """These pages are about to be read."""

    def fits(self, level: Numbers, kind: int) -> Bools:
        """Which of these pages are whole pages of a kind: header, and nodes within their bounds."""
        found = [self.nodes(part, kind).whole for part in self.slices(level)]
        return np.concatenate([np.empty(0, np.bool_), *found])

    def nodes(self, level: Numbers, kind: int) -> Nodes:
        """The nodes of some pages of the file, as far as these are whole pages of a kind."""
        size = self.page_size
        at = level * (size // 8)
        ends = self._quads.take(at + 1)
        lower, upper = ends >> 32 & 0xFFFF, ends >> 48 & 0xFFFF
        whole: Bools = (self._quads.take(at) == level) & (ends >> 16 & 0xFFFF == kind)
        least = 2 if kind == BRANCH else 1
        whole &= (lower % 2 == 0) & (lower >= HEADER.size + 2 * least)
        whole &= (lower <= upper) & (upper <= size)
        places = np.flatnonzero(whole)
        if not len(places):
            none = np.empty(0, np.int64)
            return Nodes(whole, none, none, none)
        if len(places) < len(level):
            level, lower, upper = level[places], lower[places], upper[places]
        counts = (lower - HEADER.size) // 2
        first = np.cumsum(counts) - counts
        pointers = np.repeat(level * (size // 2) + HEADER.size // 2 - first, counts)
        inside = self._words.take(pointers + np.arange(len(pointers))).astype(np.int64)
        begins = np.repeat(level * size, counts)
        bad = (inside < np.repeat(upper, counts)) | (inside > size - NODE_BYTES) | (inside % 2 != 0)
        if bad.any():
            # What is at the begin of the page is no node, but can be read.
            inside[bad] = 0
        nodes = begins + inside
        heads = self._eights[nodes >> 1]
        key_size = heads >> 48 & 0xFFFF
        length = NODE_BYTES + key_size
        if kind == LEAF:
            bad |= key_size == 0
            value = heads & 0xFFFFFFFF
            length += np.where(heads >> 32 & BIG, 8, value)
        bad |= inside + length > size
        # Nodes lie close together, so what they take says whether a size is wrong.
        good = np.add.reduceat(length + length % 2, first) == size - upper
        if bad.any():
            good &= ~np.logical_or.reduceat(bad, first)
        pages = np.repeat(level, counts)
        if not good.all():
            whole[places] = good
            held = np.repeat(good, counts)
            pages, nodes, heads = pages[held], nodes[held], heads[held]
        return Nodes(whole, pages, nodes, heads)

    def children(self, nodes: Nodes) -> Numbers:
        """The pages that the nodes of branches name."""
        return nodes.heads & 0xFFFFFFFFFFFF

    def key_sizes_at(self, nodes: Numbers) -> Numbers:
        """Bytes of the keys of nodes that begin there."""
        sizes: Numbers = self._eights[nodes >> 1] >> 48 & 0xFFFF
        return sizes

    def entries(self, nodes: Nodes) -> Entries:
        """The nodes of leaves. Values of their own are where their pages say."""
        heads = nodes.heads
        key_size, flags, sizes = heads >> 48 & 0xFFFF, heads >> 32 & 0xFFFF, heads & 0xFFFFFFFF
        keys = nodes.at + NODE_BYTES
        values = keys + key_size
        big = np.flatnonzero(flags & BIG)
        if len(big):
            # Their number is 8 bytes at any place, behind a key of any length.
            raw = self.raw[values[big][:, None] + np.arange(8)]
            number = raw.view("<u8").reshape(-1).astype(np.float64)
            near = np.where(number < self.n_pages, number, 0).astype(np.int64)
            values[big] = near * self.page_size + HEADER.size
        return Entries(nodes.pages, flags, keys, key_size, values, sizes)

    def key_heads(self, found: Entries, *, numbers: bool) -> NDArray[np.uint64]:
        """The first 8 bytes of each key as numbers that order them; those that are `numbers` are little-endian."""
        at = found.keys >> 1
        behind = np.flatnonzero(at >= len(self._eights))
        if len(behind):
            at[behind] = 0
        heads: NDArray[np.uint64] = self._eights[at].view(np.uint64)
        for n in behind.tolist():
            # A key that is among the last bytes of the file.
            key = self.raw[int(found.keys[n]) :][:_KEY_HEAD_BYTES].tobytes()
            heads[n] = int.from_bytes(key, "little")
        if len(found.key_sizes) and found.key_sizes.min() < _KEY_HEAD_BYTES:
            heads &= _HEADS[np.minimum(found.key_sizes, _KEY_HEAD_BYTES)]
        if not numbers:
            heads = heads.byteswap()
        return heads

    def pages_of(self, sizes: Numbers) -> Numbers:
        """How many pages values of their own take."""
        return (HEADER.size - 1 + sizes) // self.page_size + 1

    def fits_overflow(self, first: Numbers, count: Numbers) -> Bools:
        """Which of these are the first pages of values that take `count` pages."""
        ok: Bools = (first >= 2) & (first + count <= self.n_pages)
        at = np.where(ok, first, 0) * (self.page_size // 8)
        ends = self._quads.take(at + 1)
        ok &= (self._quads.take(at) == first) & (ends >> 16 & 0xFFFF == OVERFLOW)
        ok &= (ends >> 32 & 0xFFFFFFFF) == count
        return ok
