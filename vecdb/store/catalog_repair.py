"""A catalog from what can still be read of a damaged one, and from the folders of the collections."""

from __future__ import annotations

import re
import secrets
import time
from pathlib import Path

from .. import disk
from ..errors import Corrupted, FormatMismatch
from ..layout import (
    CATALOG_FOLDER,
    CATALOG_FORMAT,
    CATALOG_SUM_KEYS,
    CATALOG_TABLES,
    COLLECTIONS_FOLDER,
    DATA_FILE,
    META_FORMAT,
    QUARANTINE_FOLDER,
    UNNAMED_FILE,
)
from . import catalog_sums, pages
from .catalog import is_there, make
from .salvage import salvage

_WHAT = "repair"
_TOKEN = re.compile(r"[0-9a-f]{16}")
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
    faults = pages.file_faults(path)
    if faults:
        return [f"catalog: {fault}" for fault in faults]
    tables, meta = _read(path)
    collections, aliases = map(_texts, tables.values())
    newest = pages.PageFile(path).metas()[0].transaction
    known = catalog_sums.are_of(meta, [newest])
    found = [f"catalog: {one}" for one in catalog_sums.faults(tables, meta)] if known else []
    if meta.get(META_FORMAT) != _FORMAT:
        found.append(
            f"catalog: its format is {meta.get(META_FORMAT)!r}, this version reads {_FORMAT!r}"
        )
    found += [
        f"catalog: {name!r} cannot be a name"
        for name in (*collections, *aliases)
        if not _NAME.fullmatch(name)
    ]
    found += [
        f"catalog: collection {name!r} is in folder {token!r}, which does not exist"
        for name, token in collections.items()
        if token not in _folders(root)
    ]
    found += [
        f"catalog: alias {alias!r} points to folder {token!r}, which no collection has"
        for alias, token in aliases.items()
        if token not in collections.values()
    ]
    found += [
        f"catalog: the collection in folder {token!r} has no name"
        for token in _unnamed(root, collections)
    ]
    return found


def repair_catalog(root: Path) -> list[str]:
    """Puts a sound catalog in place; what has changed or is lost, one sentence each. May be done again.

    FormatMismatch when it is of a later format, Corrupted when what has its name is no file.
    """
    path = root / CATALOG_FOLDER / DATA_FILE
    tables, meta = _read(path) if is_there(root) else ({table: {} for table in _TABLES}, {})
    number = catalog_sums.right_format(meta) or _FORMAT
    if number.isdigit() and int(number) > CATALOG_FORMAT:
        raise FormatMismatch(
            f"{path} has catalog format {int(number)}, this version repairs {CATALOG_FORMAT}; repair it with the "
            "version of vecdb that wrote it, or a later one. Nothing was changed",
            given=int(number),
            expected=CATALOG_FORMAT,
        )
    told: list[str] = []
    if path.is_file() and catalog_sums.are_of(
        meta, [one.transaction for one in pages.PageFile(path).metas()]
    ):
        tokens = [token.encode() for token in _folders(root)]
        tables, told = catalog_sums.mend(tables, meta, tokens)
    collections, aliases = map(_texts, tables.values())
    if path.is_file() and salvage(path, CATALOG_TABLES).lost_commits:
        told.append("the newest change of names may be undone: its page cannot be read")
    known = {n: t for n, t in collections.items() if _NAME.fullmatch(n) and _TOKEN.fullmatch(t)}
    # A name whose folder is gone stays: that its records are lost must be seen.
    for name, token in collections.items():
        if name not in known:
            told.append(f"the name {name!r} of folder {token!r} is damaged")
    held: dict[str, str] = {}
    for name, token in sorted(known.items()):
        near = [
            t
            for t in _unnamed(root, known)
            if catalog_sums.changed_bits(t.encode(), token.encode()) == 1
        ]
        if token not in _folders(root) and len(near) == 1:
            told.append(f"collection {name!r} is in folder {near[0]!r}, not {token!r}")
            token = near[0]
        if token not in held.values():
            held[name] = token
        else:
            told.append(
                f"the name {name!r} of folder {token!r} is dropped: the folder has another name"
            )
    for token in _unnamed(root, held):
        name = RECOVERED.format(token)
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
    if path.is_file():
        told.append(f"the old catalog is in {_quarantine(root)}")
    make(root, held, kept)
    return told


def _read(path: Path) -> tuple[dict[str, catalog_sums.Names], dict[bytes, bytes]]:
    """(the names of each table, all of `meta`), as far as they can be read."""
    found = {
        table: {key: bytes(value) for key, value in entries.items()}
        for table, entries in salvage(path, CATALOG_TABLES).tables.items()
    }
    return {table: found[table] for table in _TABLES}, found["meta"]


def _texts(names: catalog_sums.Names) -> dict[str, str]:
    return {
        key.decode(errors="replace"): value.decode(errors="replace") for key, value in names.items()
    }


def _folders(root: Path) -> list[str]:
    made = root / COLLECTIONS_FOLDER
    found = made.iterdir() if made.is_dir() else ()
    return sorted(p.name for p in found if (p / DATA_FILE).is_file())


def _unnamed(root: Path, collections: dict[str, str]) -> list[str]:
    """Folders with a collection that has no name, and that are no litter of a crash."""
    named = set(collections.values())
    return [
        token
        for token in _folders(root)
        if token not in named and not (root / COLLECTIONS_FOLDER / token / UNNAMED_FILE).exists()
    ]


def _quarantine(root: Path) -> Path:
    name = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    kept = root / QUARANTINE_FOLDER / f"{CATALOG_FOLDER}-{name}-{secrets.token_hex(2)}"
    disk.make_folder(kept, _WHAT, parents=True, exist_ok=True)
    disk.link(root / CATALOG_FOLDER / DATA_FILE, kept / DATA_FILE, _WHAT)
    for made in (kept, kept.parent, root):
        disk.sync_folder(made, _WHAT)
    return kept
