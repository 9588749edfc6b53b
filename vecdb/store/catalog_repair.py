"""A catalog from what can still be read of a damaged one, and from the folders of the collections."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .. import disk
from ..errors import Corrupted, FormatMismatch
from ..layout import (
    CATALOG_FOLDER,
    CATALOG_FORMAT,
    CATALOG_SUM_KEYS,
    CATALOG_TABLES,
    COLLECTIONS_FOLDER,
    DATA_FILE,
    META_CHANGES,
    META_FORMAT,
    META_SETTINGS,
    META_STATE,
    QUARANTINE_FOLDER,
    STATE,
    TOKEN,
    UNNAMED_FILE,
    format_number,
)
from . import catalog_sums, changes, page_faults, pages, quarantine
from .catalog import is_there, make
from .salvage import salvage

_WHAT = "repair"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
RECOVERED = "recovered-{}"
_FORMAT = str(CATALOG_FORMAT).encode()
_TABLES = tuple(CATALOG_SUM_KEYS)


def catalog_problems(root: Path) -> list[str]:
    """What is wrong with the catalog and the folders that it names; LMDB reads it only if its pages are sound."""
    path = root / CATALOG_FOLDER / DATA_FILE
    try:
        if not is_there(root):
            return [f"{path} is missing"]
    except Corrupted as error:
        return [error.message]
    faults = page_faults.file_faults(path)
    if faults:
        return [f"catalog: {fault}" for fault in faults]
    read = _read(path)
    tables, meta = read.tables, read.meta
    if read is _NOTHING:
        return [f"catalog: {path} is the file of a collection"]
    collections, aliases = map(_texts, tables.values())
    found = [f"catalog: {one}" for one in _sum_faults(path, read)]
    if meta.get(META_FORMAT) != _FORMAT:
        found.append(
            f"catalog: its format is {meta.get(META_FORMAT)!r:.80}, this version reads {_FORMAT!r}"
        )
    if META_CHANGES in meta and not changes.is_whole(meta[META_CHANGES]):
        found.append("catalog: the record of changes that were done fails its checksum")
    found += [
        f"catalog: {name!r} cannot be a name"
        for name in (*collections, *aliases)
        if not _NAME.fullmatch(name)
    ]
    folders = _Folders(root)
    found += [
        f"catalog: collection {name!r} is in folder {token!r}, which {_lacking(root, token)}"
        for name, token in collections.items()
        if token not in folders.there
    ]
    found += [
        f"catalog: alias {alias!r} points to folder {token!r}, which no collection has"
        for alias, token in aliases.items()
        if token not in collections.values()
    ]
    found += [
        f"catalog: the collection in folder {token!r} has no name"
        for token in folders.unnamed(collections.values())
    ]
    found += [
        f"catalog: folder {token!r} has no name, and may not be looked into: {why}"
        for token, why in folders.closed.items()
        if token not in collections.values()
    ]
    return found


def _sum_faults(path: Path, read: _Read) -> list[str]:
    """What fails its checksum, where those that are there hold for the newest commit of a file whose pages are sound."""
    newest = pages.PageFile(path).metas()[0].transaction
    known = catalog_sums.are_of(read.meta, [newest])
    return catalog_sums.faults(read.tables, read.meta) if known else []


def _lacking(root: Path, token: str) -> str:
    there = (root / COLLECTIONS_FOLDER / token).is_dir()
    return f"has no {DATA_FILE}" if there else "does not exist"


def repair_catalog(root: Path) -> list[str]:
    """Puts a sound catalog in place; what has changed or is lost, one sentence each. May be done again. What is sound, and
    has no fault that can be mended, is left as it is.

    Where names may be missing, a folder that is marked as litter and has records is moved to the quarantine: it may be
    what a drop has left, or a collection whose drop failed.

    FormatMismatch when it is of a later format, Corrupted when what has its name is no file.
    """
    path = root / CATALOG_FOLDER / DATA_FILE
    read = _read(path) if is_there(root) else _NOTHING
    tables, meta = read.tables, read.meta
    number = format_number(catalog_sums.right_format(meta) or _FORMAT)
    if number is not None and number > CATALOG_FORMAT:
        raise FormatMismatch(
            f"{path} has catalog format {number}, this version repairs {CATALOG_FORMAT}; repair it with the "
            "version of vecdb that wrote it, or a later one. Nothing was changed",
            given=number,
            expected=CATALOG_FORMAT,
        )
    told: list[str] = []
    all_told = False  # whether it is known which names there were
    sound = path.is_file() and read is not _NOTHING
    sound = sound and not page_faults.file_faults(path) and not _sum_faults(path, read)
    folders = _Folders(root)
    written = [one.transaction for one in pages.PageFile(path).metas()] if path.is_file() else []
    if written and catalog_sums.are_of(meta, written):
        tokens = [token.encode() for token in folders.there]
        # Of a table whose pages are damaged, what is missing was taken from the change before.
        all_told = read.meta_whole and catalog_sums.are_whole(meta, written[0])
        older = read.damaged if all_told else ()
        tables, told = catalog_sums.mend(tables, meta, tokens, older=older)
    collections, aliases = map(_texts, tables.values())
    if path.is_file() and read.lost_commits:
        told.append("the newest change of names may be undone: its page cannot be read")
    known = {n: t for n, t in collections.items() if _is_right(n, t)}
    # A name whose folder is gone stays: that its records are lost must be seen.
    for name, token in collections.items():
        if name not in known:
            told.append(f"the name {name!r} of folder {token!r} is damaged")
    held: dict[str, str] = {}
    free = folders.unnamed(known.values())
    for name, token in sorted(known.items()):
        near = [t for t in free if catalog_sums.changed_bits(t.encode(), token.encode()) == 1]
        if token not in folders.there and len(near) == 1:
            told.append(f"collection {name!r} is in folder {near[0]!r}, not {token!r}")
            token = near[0]
        if token not in held.values():
            held[name] = token
        else:
            told.append(
                f"the name {name!r} of folder {token!r} is dropped: the folder has another name"
            )
    for token in folders.unnamed(held.values()):
        name = _free_name(RECOVERED.format(token), {**held, **aliases})
        held[name] = token
        told.append(
            f"the collection in folder {token!r} has no name that can be read: it is {name!r} now"
        )
    by_token = {token: name for name, token in held.items()}
    kept = {}
    for alias, token in aliases.items():
        if _NAME.fullmatch(alias) and token in by_token and alias not in held:
            kept[alias] = by_token[token]
        else:
            told.append(f"alias {alias!r} of folder {token!r} is lost")
    if not all_told and ("aliases" in read.damaged or read is _NOTHING):
        told.append("aliases may be lost, nobody can tell which: set again those that are missing")
    # Also one that was sound may have a name that is wrong, where it has no checksums.
    if not sound or known != collections or not {*held.values()} <= {*folders.there}:
        doubtful = folders.marked(held.values())
        told += [_set_aside(root, token, n) for token in doubtful if (n := _records(root, token))]
    done = meta.get(META_CHANGES)
    if (done is None and not read.meta_whole) or not (done is None or changes.is_whole(done)):
        done = None
        told.append(
            "which changes of names were done lately cannot be read: one that is repeated from before the repair, such "
            "as a drop, may be done again"
        )
    names = held, {alias: held[name] for alias, name in kept.items()}
    stands = done == meta.get(META_CHANGES) and meta.get(META_FORMAT) == _FORMAT
    if sound and stands and names == (collections, aliases):
        return told  # else each repair would put one more copy of it aside
    if path.is_file():
        told.append(f"the old catalog is in {_quarantine(root)}")
    make(root, held, kept, done)
    return told


class _Read(NamedTuple):
    """A catalog, as far as it can be read."""

    tables: dict[str, catalog_sums.Names]
    """The names of each table."""
    meta: dict[bytes, bytes]
    """All of `meta`."""
    meta_whole: bool
    """Whether each page of `meta` was read, so that what is not there never was."""
    lost_commits: int
    """How many newer commits there may have been that cannot be read."""
    damaged: frozenset[str]
    """Tables that are not whole in the newest commit."""


_NOTHING = _Read({table: {} for table in _TABLES}, {}, False, 0, frozenset())
"""No file, or that of a collection: then nobody knows what the catalog was."""


def _read(path: Path) -> _Read:
    read = salvage(path, CATALOG_TABLES)
    found = {
        table: {key: bytes(value) for key, value in entries.items()}
        for table, entries in read.tables.items()
    }
    tables = {table: found[table] for table in _TABLES}
    # Leaves of other tables may have been taken for names.
    names = [one for table in tables.values() for one in _texts(table).items()]
    if META_SETTINGS in found["meta"] and not any(_is_right(*one) for one in names):
        return _NOTHING
    meta_whole = "meta" not in read.damaged
    return _Read(tables, found["meta"], meta_whole, read.lost_commits, read.damaged)


def _is_right(name: str, token: str) -> bool:
    return bool(_NAME.fullmatch(name) and TOKEN.fullmatch(token))


def _texts(names: catalog_sums.Names) -> dict[str, str]:
    return {
        key.decode(errors="replace"): value.decode(errors="replace") for key, value in names.items()
    }


class _Folders:
    """The folders that have a collection, in order."""

    def __init__(self, root: Path) -> None:
        made = root / COLLECTIONS_FOLDER
        found = sorted(made.iterdir()) if made.is_dir() else ()
        self.closed: dict[str, str] = {}
        """Those that may not be looked into, and why; they count as having one."""
        self.there = [p.name for p in found if self._has_data(p)]
        self._marked = {t for t in self.there if os.path.lexists(made / t / UNNAMED_FILE)}

    def unnamed(self, named: Iterable[str]) -> list[str]:
        """Those that may be looked into, have no name, and are no litter of a crash; `named` are the tokens that have one."""
        held = set(named)
        open_ones = (t for t in self.there if t not in held and t not in self.closed)
        return [t for t in open_ones if t not in self._marked]

    def _has_data(self, folder: Path) -> bool:
        try:
            return (folder / DATA_FILE).is_file()
        except OSError as error:
            if not TOKEN.fullmatch(folder.name):
                return False  # none of ours, as `lost+found`
            self.closed[folder.name] = error.strerror or str(error)
            return True

    def marked(self, named: Iterable[str]) -> list[str]:
        """Those that have no name, and are litter if all names are known."""
        held = set(named)
        return [t for t in self.there if t not in held and t in self._marked]


def _free_name(wanted: str, held: Collection[str]) -> str:
    name, n = wanted, 1
    while name in held:
        n += 1
        name = f"{wanted}-{n}"
    return name


def _records(root: Path, token: str) -> int:
    """How many live records a collection says that it has; -1 where it cannot be read."""
    path = root / COLLECTIONS_FOLDER / token / DATA_FILE
    read = salvage(path, ("meta",))
    raw = read.tables["meta"].get(META_STATE)
    if raw is None:
        return -1 if read.damaged else 0  # nothing was ever written
    return int(STATE.unpack(raw)[2]) if len(raw) == STATE.size else -1


def _set_aside(root: Path, token: str, records: int) -> str:
    """Moves the folder of a collection to the quarantine; the sentence that tells it."""
    made, kept = root / COLLECTIONS_FOLDER / token, _kept(root, token)
    # The mark first: who moves it back wants it, and it would be removed with it. Killed in between, it is a collection
    # without a name for the next repair.
    with suppress(IsADirectoryError):
        disk.remove(made / UNNAMED_FILE, _WHAT)
    disk.sync_folder(made, _WHAT)
    disk.make_folder(kept.parent, _WHAT, parents=True, exist_ok=True)
    disk.rename(made, kept, _WHAT)
    for changed in (kept.parent, made.parent, root):
        disk.sync_folder(changed, _WHAT)
    held = f"{records:,} records" if records > 1 else "one record"
    held = held if records > 0 else "a number of records that cannot be read"
    return (
        f"the folder {token!r}, a collection with {held}, was marked as one to remove, and whether it still had a name "
        f"cannot be read: it is in {kept} now. If it was not dropped, move it back to {made} and repair again; else remove it"
    )


def _kept(root: Path, what: str) -> Path:
    """A name in the quarantine. Corrupted where that is no folder."""
    quarantine.must_be_possible(root)
    name = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    return root / QUARANTINE_FOLDER / f"{what}-{name}-{secrets.token_hex(2)}"


def _quarantine(root: Path) -> Path:
    kept = _kept(root, CATALOG_FOLDER)
    disk.make_folder(kept, _WHAT, parents=True, exist_ok=True)
    quarantine.keep_file(root / CATALOG_FOLDER / DATA_FILE, kept / DATA_FILE)
    for made in (kept, kept.parent, root):
        disk.sync_folder(made, _WHAT)
    return kept
