"""What can still be read of a damaged LMDB file, table by table, without LMDB.

Where a page cannot be read as it should, its entries are taken one by one as long as they lie within it.
What a damaged branch has led to is found again: LMDB lists every page that is free, so a page that is neither
free nor in use is one that a damaged page should name. Entries that are still missing are taken from the
commit before, whose pages LMDB has not written to yet. Nothing here is believed because it was found: the
checksums of the rows decide.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..layout import (
    CATALOG_SUM_KEYS,
    ID_BLOCK_ROWS,
    LATER_TABLES,
    LOG,
    META_FORMAT,
    META_SETTINGS,
    META_STATE,
    OPTIONAL_TABLES,
    STATE,
    VECTOR_KEY,
    id_lengths,
)
from .nodes import BIG, BRANCH, HEADER, LEAF, NODE_BYTES, SUBTREE
from .pages import FREE, MAIN, TREE_BYTES, Meta, PageFile, Tree
from .roots import metas_from_all_pages
from .sums import BY_ROW

Table = dict[bytes, memoryview]
"""Values by key, in the order of the keys; buffers into the map of the file."""

_TYPE_AND_SUBTYPE = re.compile(rb"[\w.+!#$&^-]+/[\w.+!#$&^-]+(\s*;.*)?", re.ASCII | re.DOTALL)
"""A media type as RFC 6838 has it, with parameters or without. Prose has slashes too, but spaces before them."""
_NUMBER_BYTES = 8
_MOST_DEPTH = 32
_MOST_READ = 4
"""Commits that are read where pages of many are found: the newest, and some for what it lacks."""


class Salvaged(NamedTuple):
    """What a file holds, as far as it can be read."""

    tables: dict[str, Table]
    faults: list[str]
    """What is wrong with its pages."""
    damaged: frozenset[str]
    """Tables of which a page could not be read as it should."""
    lost_commits: int
    """How many newer commits there may have been that cannot be read."""
    searched: bool = False
    """Whether neither meta page led to the tables, so that they were looked for on all pages."""
    maps: tuple[Any, ...] = ()
    """The bytes of the file, (n,) uint8, as often as it was mapped: the values lie within one of them."""


def salvage(path: Path, names: tuple[str, ...]) -> Salvaged:
    """Reads the named tables of the newest commit that can be read. OSError when the file cannot be."""
    file = PageFile(path)
    meta_faults = file.meta_faults()
    faults = list(meta_faults)
    metas = [m for m in file.metas() if not m.faults or m.main.root is not None]
    empty = Salvaged({name: {} for name in names}, faults, frozenset(names), 1)
    if not metas:
        return _search(path, names, faults) or empty
    reads = [_Moment(PageFile(path), meta, names) for meta in metas]
    if meta_faults:
        # The numbers of the commits are not believed: what they hold tells which is the newer one.
        for read in reads:
            read.read()
    # A commit that names no table cannot be read; one that names all is the newest there is.
    best = max(reads, key=_Moment.rank)
    if not best.trees:
        return _search(path, names, faults) or empty
    best.read()
    faults += best.faults
    if meta_faults:
        # Of a meta page that cannot be read nobody knows which commit it was of.
        sure = len(reads) == 2 and all(r.walked and r.sequence >= 0 for r in reads)
        lost_commits = int(not sure)
    else:
        lost_commits = max(r.meta.transaction for r in reads) - best.meta.transaction
    stated = META_STATE in best.tables.get("meta", {})
    for other in reads:
        if other is not best and best.damaged:
            other.read()
            for name in best.damaged & other.tables.keys():
                _fill(best.tables.setdefault(name, {}), other.tables[name])
            if "meta" in best.damaged - other.damaged:
                # They never change, so those of a page that is whole are right.
                kept = {META_SETTINGS, META_FORMAT} & other.tables["meta"].keys()
                best.tables["meta"] |= {key: other.tables["meta"][key] for key in kept}
    if not stated and META_STATE in best.tables.get("meta", {}):
        # Where the newest commit has left the collection is not known, so what is there is of the one before.
        lost_commits = max(1, lost_commits)
    tables = {name: dict(sorted(best.tables.get(name, {}).items())) for name in names}
    maps = tuple(read.file.raw for read in reads)
    return Salvaged(tables, faults, frozenset(best.damaged), lost_commits, maps=maps)


def _search(path: Path, names: tuple[str, ...], faults: list[str]) -> Salvaged | None:
    """The newest commit whose tables are named by any page; None where there is none, or none says of which
    commit it is."""
    needed = set(names) - set(LATER_TABLES) - set(OPTIONAL_TABLES)
    file = PageFile(path)
    # What a page left from long ago names may lie anywhere by now: only few are read in full.
    found = [(_sequence_of(file, meta), meta) for meta in metas_from_all_pages(file, needed)]
    newest = sorted((one for one in found if one[0] >= 0), key=lambda one: one[0])[-_MOST_READ:]
    reads = [_Moment(PageFile(path), meta, names) for _, meta in newest]
    for read in reads:
        read.read()
    if not reads:
        return None
    best, *others = sorted(reads, key=lambda r: (r.sequence, -len(r.damaged)), reverse=True)
    for other in others:
        for name in best.damaged & other.tables.keys():
            _fill(best.tables.setdefault(name, {}), other.tables[name])
    told = f"neither meta page leads to the tables; page {best.meta.number} names those of commit {best.sequence}"
    tables = {name: dict(sorted(best.tables.get(name, {}).items())) for name in names}
    # Whether a page named those of a newer commit, nobody can tell.
    maps = tuple(read.file.raw for read in reads)
    return Salvaged(tables, [*faults, told, *best.faults], frozenset(best.damaged), 1, True, maps)


def _sequence_of(file: PageFile, meta: Meta) -> int:
    """The commit of rows that the tables of a meta are of; -1 where they do not say."""
    file.seen[:] = False
    tree = file.subtrees(file.walk(meta.main, MAIN).entries).get("meta")
    entries = {} if tree is None else dict(file.items(file.walk(tree, "meta").entries))
    raw = entries.get(META_STATE, b"")
    return int(STATE.unpack(raw)[0]) if len(raw) == STATE.size else -1


def _fill(held: Table, older: Table) -> None:
    """Adds entries of the commit before that are missing."""
    for key, value in older.items():
        held.setdefault(key, value)


class _Moment:
    """One commit of a file."""

    def __init__(self, file: PageFile, meta: Meta, names: tuple[str, ...]) -> None:
        self.file, self.meta, self.names = file, meta, names
        self.faults: list[str] = []
        self.damaged: set[str] = set()
        self.tables: dict[str, Table] = {}
        walked = file.walk(meta.main, MAIN)
        self.walked = not walked.faults
        self._read = False
        self.faults += walked.faults
        self.trees = {k: t for k, t in file.subtrees(walked.entries).items() if k in names}
        if walked.faults:
            seen = _Seen(file)
            for key, value, flags in seen.gather(meta.main):
                name = key.decode(errors="replace")
                if flags & SUBTREE and len(value) == TREE_BYTES and name in names:
                    self.trees.setdefault(name, Tree.parse(value)[0])
            file.seen |= seen.visited

    @property
    def sequence(self) -> int:
        """The newest commit of rows, as far as its tables were read and tell; -1 otherwise."""
        raw = self.tables.get("meta", {}).get(META_STATE, b"")
        return int(STATE.unpack(raw)[0]) if len(raw) == STATE.size else -1

    def rank(self) -> tuple[int, bool, int, int]:
        """The higher, the better it can be read, and the newer it is."""
        return len(self.trees), self.walked, self.sequence, self.meta.transaction

    def read(self) -> None:
        """Reads the tables, once."""
        if self._read:
            return
        self._read = True
        file = self.file
        free = file.walk(self.meta.free, FREE)
        self.faults += free.faults
        pages, wrong = file.free_pages(free.entries)
        self.faults += wrong
        lost: set[str] = set()
        for name in self.names:
            tree = self.trees.get(name)
            if tree is None:
                self.damaged.add(name)
                lost.add(name)
                continue
            before = file.seen.copy()
            walked = file.walk(tree, name)
            if not walked.faults:
                entries = list(file.items(walked.entries))
                self.tables[name] = dict(entries)
                if len(self.tables[name]) < len(entries):
                    # A key that is there twice was another one: what it stood for is missing.
                    self.damaged.add(name)
                continue
            self.faults += walked.faults
            self.damaged.add(name)
            file.seen[:] = before
            seen = _Seen(file)
            found = [
                (key, value)
                for key, value, _ in seen.gather(tree)
                # What stands in the place of a page may be one of another table.
                if name not in BY_ROW or looks_right(name, key, value)
            ]
            self.tables[name] = _in_order(found, name)
            file.seen |= seen.visited
            lost.add(name)
        # A meta that was made up does not know which pages are free.
        if lost and not free.faults and not wrong and self.meta.number < 2:
            self._adopt(lost, pages)

    def _adopt(self, lost: set[str], free: Any) -> None:
        """Gives leaves that nothing leads to any more to the table whose entries they look like."""
        file = self.file
        stray = ~file.seen
        stray[:2] = False
        stray[free[free < file.n_pages]] = False
        stray[self.meta.last_page + 1 :] = False
        numbers = np.flatnonzero(stray)
        numbers = numbers[file.fits(numbers, LEAF)] if len(numbers) else numbers
        for page in numbers.tolist():
            seen = _Seen(file)
            entries = [(key, value) for key, value, _ in seen.leaf(page)]
            fitting = [
                name
                for name in self.names
                if name in lost
                and all(looks_right(name, k, v) for k, v in entries)
                and not any(k in self.tables.get(name, {}) for k, _ in entries)
            ]
            if entries and fitting:
                # Of two that it may be, the rows' checksums find out: a value in the wrong table fails.
                self.tables.setdefault(fitting[0], {}).update(entries)


class _Seen:
    """Pages taken as they are, each once."""

    def __init__(self, file: PageFile) -> None:
        self.file = file
        self.visited = np.zeros(file.n_pages, np.bool_)

    def gather(self, tree: Tree) -> Iterator[tuple[bytes, memoryview, int]]:
        """(key, value, flags of the node) of all that the pages below the root still tell."""
        if tree.root is not None:
            yield from self._below(tree.root, min(max(tree.depth, 1), _MOST_DEPTH))

    def _below(self, page: int, depth: int) -> Iterator[tuple[bytes, memoryview, int]]:
        file = self.file
        if not 2 <= page < file.n_pages or self.visited[page] or depth < 0:
            return
        self.visited[page] = True
        number, _, flags, _, _ = HEADER.unpack_from(file.raw, page * file.page_size)
        told = number == page and flags in (BRANCH, LEAF)
        if (flags == LEAF) if told else depth <= 1:
            yield from self.leaf(page)
            return
        for at in self._nodes(page):
            low, middle, high = np.frombuffer(file.raw[at : at + 6], "<u2").tolist()
            yield from self._below(low | middle << 16 | high << 32, depth - 1)

    def _nodes(self, page: int) -> Iterator[int]:
        """Where the nodes of a page begin, as long as its pointers stay within it."""
        file, start = self.file, page * self.file.page_size
        lower = HEADER.unpack_from(file.raw, start)[3]
        if lower % 2 or not HEADER.size <= lower <= file.page_size:
            lower = file.page_size
        for at in range(HEADER.size, lower, 2):
            node = int.from_bytes(file.raw[start + at : start + at + 2].tobytes(), "little")
            if node % 2 or not at + 2 <= node <= file.page_size - NODE_BYTES:
                if lower == file.page_size:
                    return
                continue
            yield start + node

    def leaf(self, page: int) -> Iterator[tuple[bytes, memoryview, int]]:
        file, end = self.file, (page + 1) * self.file.page_size
        self.visited[page] = True
        for at in self._nodes(page):
            low, high, flags, key_size = np.frombuffer(file.raw[at : at + 8], "<u2").tolist()
            size, value = low | high << 16, at + NODE_BYTES + key_size
            if not key_size or value > end:
                continue
            key = file.raw[at + NODE_BYTES : value].tobytes()
            if flags & BIG:
                if value + 8 > end:
                    continue
                first = int.from_bytes(file.raw[value : value + 8].tobytes(), "little")
                value = first * file.page_size + HEADER.size
                if not 2 <= first < file.n_pages or value + size > file.size:
                    continue
                self.visited[first : first + (HEADER.size - 1 + size) // file.page_size + 1] = True
            elif value + size > end:
                continue
            yield key, memoryview(file.raw[value : value + size]), flags


def _in_order(found: list[tuple[bytes, memoryview]], name: str) -> Table:
    """Entries by key. Numbered ones that stand out of order have a changed key: where one number alone fits
    between those beside it, it is that."""
    if name in ("meta", "keys", *CATALOG_SUM_KEYS):
        return dict(found)
    width = VECTOR_KEY.size if name in ("vectors", "absent") else _NUMBER_BYTES
    right = _ascending([key if len(key) == width else b"" for key, _ in found])
    made = {found[n][0]: found[n][1] for n in right}
    for low, high in itertools.pairwise(right):
        before = int.from_bytes(found[low][0], "big")
        if high == low + 2 and int.from_bytes(found[high][0], "big") == before + 2:
            made[(before + 1).to_bytes(width, "big")] = found[low + 1][1]
    return made


def _ascending(keys: list[bytes]) -> list[int]:
    """Places of the longest run of ascending keys, others left out; empty keys never belong to it."""
    ends: list[bytes] = []
    places: list[int] = []
    back = [-1] * len(keys)
    for n, key in enumerate(keys):
        if not key:
            continue
        at = bisect_left(ends, key)
        back[n] = places[at - 1] if at else -1
        ends[at : at + 1], places[at : at + 1] = [key], [n]
    found, n = [], places[-1] if places else -1
    while n >= 0:
        found.append(n)
        n = back[n]
    return found[::-1]


def looks_right(name: str, key: bytes, value: memoryview) -> bool:
    """Whether an entry may be one of this table; without a `key` its value is looked at alone."""
    if name in ("vectors", "absent"):
        return (
            len(key) == VECTOR_KEY.size
            and int.from_bytes(key[:2], "big") < 64
            and (name == "vectors" or len(value) == 32)
        )
    if name == "keys":
        return len(value) == _NUMBER_BYTES
    if name == "meta":
        return len(key) < 32 and key.isascii()
    if key and (len(key) != _NUMBER_BYTES or int.from_bytes(key, "big") >= 1 << 48):
        return False
    if name == "dead":
        return len(value) == _NUMBER_BYTES
    if name == "purged":
        return len(value) == 32
    if name == "log":
        return len(value) >= LOG.size and len(value) % 8 == 0
    if name == "ids":
        try:
            return 0 < len(id_lengths(value)[0]) <= ID_BLOCK_ROWS
        except (ValueError, IndexError):
            return False
    if name == "metadata":
        return bytes(value[:1]) == b"{" and bytes(value[-1:]) == b"}"
    if name == "contents":
        return _media_type(value) is not None
    if name in ("documents", "uris"):
        return _is_text(value) and not _TYPE_AND_SUBTYPE.fullmatch(_media_type(value) or b"")
    return True


def _media_type(value: memoryview) -> bytes | None:
    """That of a content; None where the value cannot be one."""
    size = value[0] if len(value) else 1
    found = bytes(value[1 : 1 + size])
    return found if len(found) == size and found.isascii() else None


def _is_text(value: memoryview) -> bool:
    try:
        return bool(str(value, "utf-8")) or not len(value)
    except UnicodeDecodeError:
        return False
