"""Pages of an LMDB file, read without LMDB: what is damaged is named before LMDB meets it.

LMDB trusts its pages: a wrong number in one ends the process, or reads what is elsewhere. So nothing
here follows a number that it has not compared with the file. Every page of a level is looked at in one
go, by numpy: about 0.1 s for the 50,000 pages of a million records.

The format is that of LMDB 0.9 on little-endian machines of 64 bits (`mdb.c`, MDB_page, MDB_node,
MDB_meta, MDB_db). Values that fill pages of their own are not looked into.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]

HEADER = struct.Struct("<QHHHH")
"""Of a page: its number, padding, flags, end of the pointers, begin of the nodes."""
_META = struct.Struct("<IIQQ")
"""Magic, version, address, size of the map."""
_TREE = struct.Struct("<IHHQQQQQ")
_LAST = struct.Struct("<QQ")
"""Last page, number of the transaction."""
TREE_BYTES = _TREE.size

BRANCH, LEAF, OVERFLOW, META = 1, 2, 4, 8
BIG, SUBTREE = 1, 2
"""Flags of a node: its value has pages of its own; its value is a tree."""
NODE_BYTES = 8
MAGIC, _VERSION, _INTEGER_KEYS = 0xBEEFC0DE, 1, 8
_NOWHERE = (1 << 64) - 1
_MOST_DEPTH = 32
_LOOKS = 3
_MOST_NAMED = 20
"""Faults of one kind that are named one by one."""


class Tree(NamedTuple):
    """What is stored about a tree of pages."""

    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int | None
    """None when the tree is empty."""

    @classmethod
    def parse(cls, raw: Any, at: int = 0) -> tuple[Tree, int]:
        """(the tree, the number that stands before it: of the free pages' tree the size of a page)."""
        pad, flags, depth, branches, leaves, overflows, entries, root = _TREE.unpack_from(raw, at)
        where = None if root == _NOWHERE else root
        return cls(flags, depth, branches, leaves, overflows, entries, where), pad


class Meta(NamedTuple):
    """One of the two pages that a file begins with: where a transaction has left the trees."""

    number: int
    page_size: int
    map_size: int
    free: Tree
    main: Tree
    last_page: int
    transaction: int
    faults: tuple[str, ...]


class Entries(NamedTuple):
    """Entries of leaves, by where they lie in the file."""

    pages: Numbers
    flags: Numbers
    keys: Numbers
    key_sizes: Numbers
    values: Numbers
    sizes: Numbers


class Walk(NamedTuple):
    """A tree that was walked through."""

    entries: Entries
    faults: list[str]


_NONE = Entries(*[np.empty(0, np.int64)] * 6)


class PageFile:
    """The file as it was when it was opened. One thread; nothing is written."""

    def __init__(self, path: Path) -> None:
        """OSError when it cannot be read."""
        self.size = path.stat().st_size
        # As a plain array: each part of a memmap that is looked at costs some us more.
        self.raw: Any = (
            np.memmap(path, np.uint8, "r", shape=(self.size,)).view(np.ndarray)
            if self.size
            else np.empty(0, np.uint8)
        )
        self.page_size = self._find_page_size()
        self.n_pages = self.size // self.page_size
        whole = self.raw[: self.n_pages * self.page_size]
        self._words: NDArray[np.uint16] = whole.view("<u2")
        self.seen = np.zeros(self.n_pages, np.bool_)
        """Pages that a walk has come to, so that none is in two places."""

    def _find_page_size(self) -> int:
        """As both metas say; 4 KiB where they are too short or say nothing that can be."""
        for at in (0, 4_096, 16_384, 65_536):
            end = at + HEADER.size + _META.size + TREE_BYTES
            if end <= self.size:
                pad = Tree.parse(self.raw, at + HEADER.size + _META.size)[1]
                if 512 <= pad <= 65_536 and pad & (pad - 1) == 0 and at in (0, pad):
                    return pad
        return 4_096

    # -- the two metas

    def metas(self) -> list[Meta]:
        """Those that the file has room for, the newer one first."""
        found = [self._meta(n) for n in range(min(2, self.n_pages))]
        return sorted(found, key=lambda meta: -meta.transaction)

    def _meta(self, number: int) -> Meta:
        at = number * self.page_size
        page, _, flags, _, _ = HEADER.unpack_from(self.raw, at)
        magic, version, address, map_size = _META.unpack_from(self.raw, at + HEADER.size)
        at += HEADER.size + _META.size
        free, pad = Tree.parse(self.raw, at)
        main, _ = Tree.parse(self.raw, at + TREE_BYTES)
        last_page, transaction = _LAST.unpack_from(self.raw, at + 2 * TREE_BYTES)
        faults = []
        if (page, flags, magic, version) != (number, META, MAGIC, _VERSION):
            faults.append("is no meta page of LMDB")
        if pad != self.page_size:
            faults.append(f"says that pages have {pad} bytes, not {self.page_size}")
        if free.flags != _INTEGER_KEYS or main.flags or address:
            faults.append("has flags that vecdb never sets")
        if map_size >= 1 << 48 or last_page >= 1 << 36:
            faults.append("has impossible sizes")
        return Meta(number, pad, map_size, free, main, last_page, transaction, tuple(faults))

    def meta_faults(self) -> list[str]:
        """What is wrong with the metas, the bounds that they state included; reads nothing else."""
        if self.n_pages < 2:
            return [f"the file has {self.size} bytes: it was cut off, or never was one of LMDB"]
        metas = self.metas()
        faults = [f"page {m.number} (meta) {fault}" for m in metas for fault in m.faults]
        first, second = (m.transaction for m in metas)
        # They are written in turns; both are of one transaction in a new file, and after `sync_point.recover`.
        if not faults and first != second:
            faults += [
                f"page {m.number} (meta) is of transaction {m.transaction}, which belongs into the other"
                for m in metas
                if m.transaction % 2 != m.number
            ]
        if not faults and first - second > 1:
            faults.append(
                f"the metas are of transactions {second} and {first}, which do not follow"
            )
        return faults

    # -- trees

    def walk(self, tree: Tree, name: str) -> Walk:
        """All entries of a tree, in the order of their keys, as far as its pages are sound."""
        faults: list[str] = []
        if tree.root is None:
            if tree.entries:
                faults.append(f"table {name} should have {tree.entries} entries and has no pages")
            return Walk(_NONE, faults)
        level = np.array([tree.root if tree.root < self.n_pages else -1], np.int64)
        overflow_pages = branches = 0
        for depth in range(min(tree.depth, _MOST_DEPTH)):
            leaf = depth == tree.depth - 1
            level = self._sound(level, LEAF if leaf else BRANCH, name, faults)
            if leaf:
                entries, overflow_pages = self._leaves(level, name, faults)
                break
            branches += len(level)
            level = self._children(level)
        else:
            faults.append(f"table {name} is said to have {tree.depth} levels")
            return Walk(_NONE, faults)
        found = Tree(tree.flags, tree.depth, branches, len(level), overflow_pages,
                     len(entries.keys), tree.root)  # fmt: skip
        if not faults and found != tree:
            faults.append(f"table {name} has {_counts(found)}, and is said to have {_counts(tree)}")
        return Walk(entries, faults)

    def _sound(self, level: Numbers, kind: int, name: str, faults: list[str]) -> Numbers:
        """The pages that can be read as what they should be, in their order."""
        where = f"a {'leaf' if kind == LEAF else 'branch'} of table {name}"
        bad = (level < 2) | (level >= self.n_pages)
        _tell(level, bad, f"which should be {where}, is behind the end of the file", faults)
        level = level[~bad]
        twice = self.seen[level]
        twice |= np.isin(np.arange(len(level)), np.unique(level, return_index=True)[1], invert=True)
        _tell(level, twice, f"({where}) is in two places", faults)
        level = level[~twice]
        self.seen[level] = True
        bad = ~self.fits(level, kind)
        _tell(level, bad, f"({where}) is damaged", faults)
        return level[~bad]

    def fits(self, level: Numbers, kind: int) -> NDArray[np.bool_]:
        """Which of these pages are whole pages of a kind: header, and nodes within their bounds."""
        size, words = self.page_size, self._words
        at = level * (size // 2)
        number = sum(words[at + n].astype(np.int64) << 16 * n for n in range(4))
        lower, upper = words[at + 6].astype(np.int64), words[at + 7].astype(np.int64)
        ok: NDArray[np.bool_] = (number == level) & (words[at + 5] == kind)
        least = 2 if kind == BRANCH else 1
        ok &= (lower % 2 == 0) & (lower >= HEADER.size + 2 * least)
        ok &= (lower <= upper) & (upper <= size)
        if not ok.any():
            return ok
        places = np.flatnonzero(ok)
        owner, nodes = self._nodes(level[places], lower[places])
        inside = nodes % size
        good = (inside >= upper[places][owner]) & (inside <= size - NODE_BYTES)
        good &= nodes % 2 == 0
        safe = np.where(good, nodes, level[places][owner] * size)
        key_size, value = self._node_sizes(safe, kind)
        length = NODE_BYTES + key_size + value
        good &= inside + length <= size
        if kind == LEAF:
            good &= key_size > 0
        ok[places] &= np.bincount(owner, ~good, len(places)) == 0
        # Nodes lie close together, so what they take says whether a size is wrong.
        used = np.bincount(owner, length + length % 2, len(places))
        ok[places] &= used == size - upper[places]
        return ok

    def _nodes(self, level: Numbers, lower: Numbers) -> tuple[Numbers, Numbers]:
        """(which of the pages, where in the file) for each node."""
        counts = (lower - HEADER.size) // 2
        owner = np.repeat(np.arange(len(level)), counts)
        index = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        at = level[owner] * (self.page_size // 2) + HEADER.size // 2 + index
        return owner, level[owner] * self.page_size + self._words[at].astype(np.int64)

    def _node_sizes(self, nodes: Numbers, kind: int) -> tuple[Numbers, Numbers]:
        """(bytes of the key, bytes of the value in the page) of each node."""
        words, at = self._words, nodes // 2
        key_size = words[at + 3].astype(np.int64)
        if kind == BRANCH:
            return key_size, np.zeros_like(key_size)
        value = words[at].astype(np.int64) | words[at + 1].astype(np.int64) << 16
        return key_size, np.where(words[at + 2] & BIG, 8, value)

    def _children(self, level: Numbers) -> Numbers:
        lower = self._words[level * (self.page_size // 2) + 6].astype(np.int64)
        _, nodes = self._nodes(level, lower)
        words, at = self._words, nodes // 2
        child = sum(words[at + n].astype(np.int64) << 16 * n for n in range(3))
        return np.asarray(child, np.int64)

    def _leaves(self, level: Numbers, name: str, faults: list[str]) -> tuple[Entries, int]:
        """(entries of whole leaves, pages that values of their own take)."""
        lower = self._words[level * (self.page_size // 2) + 6].astype(np.int64)
        owner, nodes = self._nodes(level, lower)
        found = self.entries_at(level[owner], nodes)
        big = np.flatnonzero(found.flags & BIG)
        first, count = found.values[big] // self.page_size, self._pages_of(found.sizes[big])
        ok = self.fits_overflow(first, count)
        _tell(first, ~ok, f"(a value of table {name}) is damaged", faults)
        if not ok.all():
            keep = np.ones(len(nodes), np.bool_)
            keep[big[~ok]] = False
            found = Entries(*(part[keep] for part in found))
        first, count = first[ok], count[ok]
        pages = np.repeat(first - np.cumsum(count) + count, count) + np.arange(int(count.sum()))
        twice = self.seen[pages]
        _tell(pages, twice, f"(a value of table {name}) is in two places", faults)
        self.seen[pages] = True
        self._order(found, name, faults)
        return found, len(pages)

    def entries_at(self, pages: Numbers, nodes: Numbers) -> Entries:
        """Nodes of leaves whose bounds were looked at. Values of their own are where their pages say."""
        words, at = self._words, nodes // 2
        key_size, _ = self._node_sizes(nodes, LEAF)
        flags = words[at + 2].astype(np.int64)
        size = words[at].astype(np.int64) | words[at + 1].astype(np.int64) << 16
        value = nodes + NODE_BYTES + key_size
        big = np.flatnonzero(flags & BIG)
        # Their number is 8 bytes at any place, behind a key of any length.
        raw = self.raw[value[big][:, None] + np.arange(8)]
        number = raw.view("<u8").reshape(-1).astype(np.float64)
        near = np.where(number < self.n_pages, number, 0).astype(np.int64)
        value[big] = near * self.page_size + HEADER.size
        return Entries(pages, flags, nodes + NODE_BYTES, key_size, value, size)

    def _pages_of(self, sizes: Numbers) -> Numbers:
        return (HEADER.size - 1 + sizes) // self.page_size + 1

    def fits_overflow(self, first: Numbers, count: Numbers) -> NDArray[np.bool_]:
        ok = (first >= 2) & (first + count <= self.n_pages)
        at = np.where(ok, first, 0) * (self.page_size // 2)
        words = self._words
        number = sum(words[at + n].astype(np.int64) << 16 * n for n in range(4))
        said = words[at + 6].astype(np.int64) | words[at + 7].astype(np.int64) << 16
        fitting: NDArray[np.bool_] = (
            ok & (number == first) & (words[at + 5] == OVERFLOW) & (said == count)
        )
        return fitting

    def _order(self, found: Entries, name: str, faults: list[str]) -> None:
        """Keys ascend, as far as their first 8 bytes tell; those of the free pages are numbers."""
        if len(found.keys) < 2:
            return
        heads = self.raw[np.minimum(found.keys[:, None] + np.arange(8), self.size - 1)]
        heads[np.arange(8) >= found.key_sizes[:, None]] = 0
        order = heads.view("<u8" if name == FREE else ">u8").reshape(-1)
        wrong = np.flatnonzero(order[1:] < order[:-1])
        faults += [
            f"page {page} (a leaf of table {name}) has keys out of order"
            for page in found.pages[wrong[:_MOST_NAMED] + 1].tolist()
        ]

    # -- what is stored

    def key(self, entries: Entries, n: int) -> bytes:
        at = int(entries.keys[n])
        return bytes(self.raw[at : at + int(entries.key_sizes[n])])

    def value(self, entries: Entries, n: int) -> memoryview:
        """The bytes of a value, in the map of the file."""
        at = int(entries.values[n])
        return memoryview(self.raw[at : at + int(entries.sizes[n])])

    def items(self, entries: Entries) -> Iterator[tuple[bytes, memoryview]]:
        for n in range(len(entries.keys)):
            yield self.key(entries, n), self.value(entries, n)

    def subtrees(self, entries: Entries) -> dict[str, Tree]:
        """The tables that the main tree names."""
        found = {}
        for n in range(len(entries.keys)):
            if entries.flags[n] == SUBTREE and entries.sizes[n] == TREE_BYTES:
                name = self.key(entries, n).decode(errors="replace")
                found[name] = Tree.parse(self.value(entries, n))[0]
        return found

    def free_pages(self, entries: Entries) -> tuple[Numbers, list[str]]:
        """(pages that may be used again, what is wrong with the lists of them)."""
        lists, faults = [np.empty(0, np.int64)], []
        for key, value in self.items(entries):
            words = np.frombuffer(value[: len(value) // 8 * 8], "<u8")
            # A list may end before its value does.
            count = int(words[0]) if len(words) else 1 << 32
            pages = words[1 : 1 + min(count, len(words))].astype(np.int64)
            if (
                count >= len(words)
                or len(key) != 8
                or (pages < 2).any()
                or (np.diff(pages) >= 0).any()
            ):
                faults.append("a list of free pages is damaged")
                continue
            lists.append(pages)
        return np.concatenate(lists), faults


FREE = "(free pages)"
MAIN = "(tables)"


def _counts(tree: Tree) -> str:
    return (
        f"{tree.entries} entries on {tree.branch_pages} + {tree.leaf_pages} + {tree.overflow_pages} "
        f"pages with flags {tree.flags}"
    )


def _tell(pages: Numbers, bad: NDArray[np.bool_], what: str, faults: list[str]) -> None:
    wrong = pages[bad].tolist()
    faults += [f"page {page} {what}" for page in wrong[:_MOST_NAMED]]
    if len(wrong) > _MOST_NAMED:
        faults.append(f"{len(wrong) - _MOST_NAMED} more such pages: {what}")


def bounds_faults(path: Path) -> list[str]:
    """What is wrong with the two pages that a file begins with; reads nothing else, so it is quick.

    Beside a process that writes, both are looked at again before anything is said.
    """
    for _ in range(_LOOKS):
        faults = PageFile(path).meta_faults()
        if not faults:
            break
    return faults


def file_faults(path: Path, transaction: int | None = None) -> list[str]:
    """One sentence for each page of a file that cannot be trusted; empty when all can.

    Of the moment that commit `transaction` has left, which the caller keeps open, else of the newest.
    Values are not looked into: that is for whoever knows them. OSError when it cannot be read.
    """
    faults = bounds_faults(path)
    if faults:
        return faults
    file = PageFile(path)
    metas = [m for m in file.metas() if transaction is None or m.transaction == transaction]
    if not metas:
        return []  # Whoever writes beside us has gone on twice; the next look is at another moment.
    meta = metas[0]
    free = file.walk(meta.free, FREE)
    main = file.walk(meta.main, MAIN)
    faults += free.faults + main.faults
    trees = file.subtrees(main.entries)
    for name, tree in trees.items():
        if tree.flags:
            faults.append(f"table {name} has flags that vecdb never sets")
        faults += file.walk(tree, name).faults
    pages, wrong = file.free_pages(free.entries)
    faults += wrong
    if (pages > meta.last_page).any():
        faults.append("a list of free pages names pages that there are not")
    used = pages[(pages < file.n_pages)]
    if file.seen[used].any():
        faults.append(f"page {used[file.seen[used]][0]} is in use, and listed as free")
    known = np.flatnonzero(file.seen)
    if len(known) and known[-1] > meta.last_page:
        faults.append(f"page {known[-1]} is behind page {meta.last_page}, the last one there is")
    return faults
