"""Pages of an LMDB file, read without LMDB: what is damaged is named before LMDB meets it.

LMDB trusts its pages: a wrong number in one ends the process, or reads what is elsewhere. So nothing
here follows a number that it has not compared with the file. Pages are looked at by the hundred, by numpy
(`nodes.py`): 0.2 s for the 50,000 pages of a million records.

The format is that of LMDB 0.9 on little-endian machines of 64 bits (`mdb.c`, MDB_page, MDB_node,
MDB_meta, MDB_db). Values that fill pages of their own are not looked into.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..stopping import asking
from .nodes import (
    BIG,
    BRANCH,
    HEADER,
    LEAF,
    META,
    NODE_BYTES,
    SUBTREE,
    Entries,
    NodeFile,
    Numbers,
)

_META = struct.Struct("<IIQQ")
"""Magic, version, address, size of the map."""
_TREE = struct.Struct("<IHHQQQQQ")
_LAST = struct.Struct("<QQ")
"""Last page, number of the transaction."""
TREE_BYTES = _TREE.size

MAGIC, _VERSION, _INTEGER_KEYS = 0xBEEFC0DE, 1, 8
_NOWHERE = (1 << 64) - 1
_MOST_DEPTH = 32
_RANDOM: int | None = getattr(mmap, "MADV_RANDOM", None)
_WILL_NEED: int | None = getattr(mmap, "MADV_WILLNEED", None)
_GAP_PAGES = 16
"""Pages nearer to each other are read in one go, with those between them."""
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


def meta_of(raw: bytes) -> Meta:
    """What a meta page says behind its header."""
    free, page_size = Tree.parse(raw, _META.size)
    main, _ = Tree.parse(raw, _META.size + TREE_BYTES)
    last_page, transaction = _LAST.unpack_from(raw, _META.size + 2 * TREE_BYTES)
    return Meta(transaction & 1, page_size, 0, free, main, last_page, transaction, ())


class Walk(NamedTuple):
    """A tree that was walked through."""

    entries: Entries
    faults: list[str]


class _Leaves(NamedTuple):
    """What the leaves of a tree hold."""

    entries: Entries
    pages: int
    n_entries: int
    """Of the entries, also where these are not kept."""
    overflow_pages: int
    firsts: Entries
    """The first entry of each leaf, and the last."""
    lasts: Entries


_NO_NUMBERS = np.empty(0, np.int64)
_NONE = Entries(*[np.empty(0, np.int64)] * 6)
_NO_PAGES = np.empty(0, np.bool_)


class PageFile(NodeFile):
    """The file as it was when it was opened. One thread; nothing is written."""

    def __init__(self, path: Path, page_size: int = 0) -> None:
        """`page_size` in bytes; 0 for what the file says itself. OSError when it cannot be read."""
        # Opened once: compaction may put a shorter file in its place meanwhile.
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            # As a plain array: each part of a memmap that is looked at costs some us more.
            held = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
            raw: Any = np.frombuffer(held, np.uint8)
        self._map = held if isinstance(held, mmap.mmap) else None
        self._advise(_RANDOM)
        super().__init__(raw, page_size or _page_size_of(raw))
        self.seen = np.zeros(self.n_pages, np.bool_)
        """Pages that a walk has come to, so that none is in two places."""

    # -- reading ahead

    def ahead(self, pages: Numbers) -> None:
        """Has the kernel read these pages, in any order, while other work goes on.

        Left to itself it reads some 128 KiB around each page that is touched, and has the reader wait: of a file of
        vectors nearly all of it. 219 MB (116,659 x 384) that no cache held: 0.21 s, with this 0.06; cached 0.04.
        """
        pages = np.sort(pages[(pages >= 0) & (pages < self.n_pages)])
        if self._map is None or not len(pages):
            return
        breaks = np.flatnonzero(pages[1:] - pages[:-1] > _GAP_PAGES)
        firsts, lasts = pages[np.append(0, breaks + 1)], pages[np.append(breaks, len(pages) - 1)]
        starts = firsts * self.page_size // mmap.PAGESIZE * mmap.PAGESIZE
        lengths = (lasts + 1) * self.page_size - starts
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            self._advise(_WILL_NEED, start, length)

    def _advise(self, advice: int | None, *part: int) -> None:
        if self._map is not None and advice is not None:
            try:
                self._map.madvise(advice, *part)
            except OSError:
                self._map = None  # a file system without: pages are read as they are touched

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

    def walk(self, tree: Tree, name: str, *, keep: bool = True) -> Walk:
        """All entries of a tree, in the order of their keys, as far as its pages are sound; without `keep` only
        what is wrong with it."""
        faults: list[str] = []
        if tree.root is None:
            if tree.entries:
                faults.append(f"table {name} should have {tree.entries} entries and has no pages")
            return Walk(_NONE, faults)
        level = np.array([tree.root if tree.root < self.n_pages else -1], np.int64)
        bounds = np.zeros(1, np.int64)
        branches = 0
        for depth in range(min(tree.depth, _MOST_DEPTH)):
            leaf = depth == tree.depth - 1
            level = self._once(level, _kind(leaf, name), faults)
            if leaf:
                break
            level, bounds, found = self._below(level, bounds, name, faults)
            branches += found
        else:
            faults.append(f"table {name} is said to have {tree.depth} levels")
            return Walk(_NONE, faults)
        leaves = self._leaves(level, name, faults, keep=keep)
        if not faults:
            faults += self._parted(bounds, leaves, name)
        seen = Tree(tree.flags, tree.depth, branches, leaves.pages, leaves.overflow_pages,
                    leaves.n_entries, tree.root)  # fmt: skip
        if not faults and seen != tree:
            faults.append(f"table {name} has {_counts(seen)}, and is said to have {_counts(tree)}")
        return Walk(leaves.entries, faults)

    def entries_of(self, tree: Tree) -> Entries:
        """All entries of a tree, of whose pages those that are damaged are passed over, and values are not touched."""
        level = np.array([-1 if tree.root is None else tree.root], np.int64)
        for _ in range(min(tree.depth, _MOST_DEPTH) - 1):
            level = level[(level >= 2) & (level < self.n_pages)]
            found = [self.children(self.nodes(part, BRANCH)) for part in self.slices(level)]
            level = np.concatenate([np.empty(0, np.int64), *found])
        level = level[(level >= 2) & (level < self.n_pages)]
        return Entries.joined([self.entries(self.nodes(part, LEAF)) for part in self.slices(level)])

    def _once(self, level: Numbers, where: str, faults: list[str]) -> Numbers:
        """The pages that are in the file and were not seen before, in their order; now they are seen."""
        bad = (level < 2) | (level >= self.n_pages)
        if bad.any():
            _tell(level, bad, f"which should be {where}, is behind the end of the file", faults)
            level = level[~bad]
        twice = self.seen[level]
        ordered = np.sort(level)
        if (ordered[1:] == ordered[:-1]).any():
            first = np.unique(level, return_index=True)[1]
            twice |= np.isin(np.arange(len(level)), first, invert=True)
        if twice.any():
            _tell(level, twice, f"({where}) is in two places", faults)
            level = level[~twice]
        self.seen[level] = True
        return level

    def _below(
        self, level: Numbers, bounds: Numbers, name: str, faults: list[str]
    ) -> tuple[Numbers, Numbers, int]:
        """(the pages that these branches name, the nodes whose keys are their least ones, how many branches are whole).

        `bounds` are such nodes of the branches themselves, 0 where there is none. The first node of a branch has no key
        that counts (`mdb_node_search`): what is below it has the bound of the branch."""
        found = [self.nodes(part, BRANCH) for part in self.slices(level)]
        whole = np.concatenate([_NO_PAGES, *(nodes.whole for nodes in found)])
        _tell(level, ~whole, f"({_kind(False, name)}) is damaged", faults)
        children = [self.children(nodes) for nodes in found]
        pages = np.concatenate([_NO_NUMBERS, *(nodes.pages for nodes in found)])
        own = np.concatenate([_NO_NUMBERS, *(nodes.at for nodes in found)])
        if len(pages) and whole.all() and len(bounds) == len(level):
            first = np.append(True, pages[1:] != pages[:-1])
            own[first] = bounds
        return np.concatenate([_NO_NUMBERS, *children]), own, int(whole.sum())

    def _parted(self, bounds: Numbers, leaves: _Leaves, name: str) -> list[str]:
        """Keys of branches that do not part the leaves at their sides: who looks a key up is led elsewhere by them, and
        who writes one puts it there. 1 us a leaf where the first 8 bytes of keys do not say it."""
        at = np.flatnonzero(bounds)
        if len(bounds) != len(leaves.firsts.keys) or not len(at):
            return []
        nodes, numbers = bounds[at], name == FREE
        sizes = self.key_sizes_at(nodes)
        keys = Entries(nodes, nodes, nodes + NODE_BYTES, sizes, nodes, nodes)
        before, behind = leaves.lasts.kept(at - 1), leaves.firsts.kept(at)
        heads, last, first = (
            self.key_heads(one, numbers=numbers) for one in (keys, before, behind)
        )
        wrong = (last > heads) | (heads > first)
        # Of keys of 8 bytes, as row numbers are, heads say all.
        whole = (sizes == 8) & (before.key_sizes == 8) & (behind.key_sizes == 8)
        wrong |= whole & (last == heads)
        doubt = ~wrong & ~whole & ((last == heads) | (heads == first))
        for n in asking(np.flatnonzero(doubt).tolist(), self.interrupt):
            own = self.key(keys, n)
            wrong[n] = not self.key(before, n) < own <= self.key(behind, n)
        found: list[str] = []
        pages = np.unique(nodes[wrong] // self.page_size)
        what = f"({_kind(False, name)}) has a key that does not part its pages"
        _tell(pages, np.ones(len(pages), np.bool_), what, found)
        return found

    def _leaves(self, level: Numbers, name: str, faults: list[str], *, keep: bool) -> _Leaves:
        """What the whole ones of these leaves hold, and what is wrong with them and their values."""
        whole, values_of_own, kept = [_NO_PAGES], [], []
        n_leaves = n_entries = n_overflow = 0
        last = np.empty(0, np.uint64)
        unordered: list[int] = []
        firsts, lasts = [], []
        for part in self.slices(level):
            nodes = self.nodes(part, LEAF)
            whole.append(nodes.whole)
            n_leaves += int(nodes.whole.sum())
            found = self.entries(nodes)
            big = np.flatnonzero(found.flags & BIG)
            if len(big):
                first, count = found.values[big] // self.page_size, self.pages_of(found.sizes[big])
                self.ahead(first)
                ok = self.fits_overflow(first, count)
                values_of_own.append((first, count, ok))
                if not ok.all():
                    found = found.kept(np.delete(np.arange(len(found.keys)), big[~ok]))
            n_entries += len(found.keys)
            # Keys ascend, as far as their first 8 bytes tell; those of the free pages are numbers.
            order = np.concatenate([last, self.key_heads(found, numbers=name == FREE)])
            wrong = np.flatnonzero(order[1:] < order[:-1])
            unordered += found.pages[wrong[:_MOST_NAMED] + 1 - len(last)].tolist()
            last = order[-1:]
            begins = np.flatnonzero(np.append(True, found.pages[1:] != found.pages[:-1]))
            if len(found.keys):
                firsts.append(found.kept(begins))
                lasts.append(found.kept(np.append(begins[1:], len(found.keys)) - 1))
            if keep:
                kept.append(found)
        _tell(level, ~np.concatenate(whole), f"({_kind(True, name)}) is damaged", faults)
        if values_of_own:
            first, count, ok = (np.concatenate(parts) for parts in zip(*values_of_own, strict=True))
            _tell(first, ~ok, f"(a value of table {name}) is damaged", faults)
            n_overflow = self._see_values(first[ok], count[ok], name, faults)
        faults += [
            f"page {page} (a leaf of table {name}) has keys out of order"
            for page in unordered[:_MOST_NAMED]
        ]
        return _Leaves(
            Entries.joined(kept), n_leaves, n_entries, n_overflow,
            Entries.joined(firsts), Entries.joined(lasts),
        )  # fmt: skip

    def _see_values(self, first: Numbers, count: Numbers, name: str, faults: list[str]) -> int:
        """How many pages these values take, each of which is seen only once."""
        pages = np.repeat(first - np.cumsum(count) + count, count) + np.arange(int(count.sum()))
        twice = self.seen[pages]
        _tell(pages, twice, f"(a value of table {name}) is in two places", faults)
        self.seen[pages] = True
        return len(pages)

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


def _page_size_of(raw: Any) -> int:
    """As both metas say; 4 KiB where they are too short or say nothing that can be."""
    for at in (0, 4_096, 16_384, 65_536):
        end = at + HEADER.size + _META.size + TREE_BYTES
        if end <= len(raw):
            pad = Tree.parse(raw, at + HEADER.size + _META.size)[1]
            if 512 <= pad <= 65_536 and pad & (pad - 1) == 0 and at in (0, pad):
                return pad
    return 4_096


def _kind(leaf: bool, name: str) -> str:
    return f"a {'leaf' if leaf else 'branch'} of table {name}"


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
