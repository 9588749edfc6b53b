"""A catalog from what can still be read of a damaged one, and from the folders of the collections."""

from __future__ import annotations

import re
import secrets
import time
from pathlib import Path

from .. import disk
from ..layout import (
    CATALOG_FOLDER,
    CATALOG_TABLES,
    COLLECTIONS_FOLDER,
    DATA_FILE,
    QUARANTINE_FOLDER,
    UNNAMED_FILE,
)
from . import pages
from .catalog import make
from .salvage import salvage

_WHAT = "repair"
_TOKEN = re.compile(r"[0-9a-f]{16}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
RECOVERED = "recovered-{}"


def catalog_problems(root: Path) -> list[str]:
    """What is wrong with the catalog and the folders that it names; LMDB reads it only if its pages are sound."""
    path = root / CATALOG_FOLDER / DATA_FILE
    if not path.is_file():
        return [f"{path} is missing"]
    faults = pages.file_faults(path)
    if faults:
        return [f"catalog: {fault}" for fault in faults]
    collections, aliases = _entries(path)
    found = [
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
    """Puts a sound catalog in place; what has changed or is lost, one sentence each. May be done again."""
    path = root / CATALOG_FOLDER / DATA_FILE
    collections, aliases = _entries(path) if path.is_file() else ({}, {})
    told = []
    if path.is_file() and salvage(path, CATALOG_TABLES).lost_commits:
        told.append("the newest change of names may be undone: its page cannot be read")
    known = {n: t for n, t in collections.items() if _NAME.fullmatch(n) and _TOKEN.fullmatch(t)}
    # A name whose folder is gone stays: that its records are lost must be seen.
    for name, token in collections.items():
        if name not in known:
            told.append(f"the name {name!r} of folder {token!r} is damaged")
    held: dict[str, str] = {}
    for name, token in sorted(known.items()):
        near = [t for t in _unnamed(root, known) if _changed_bits(t, token) == 1]
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


def _entries(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    read = salvage(path, CATALOG_TABLES).tables
    return tuple(  # type: ignore[return-value]
        {
            bytes(key).decode(errors="replace"): bytes(value).decode(errors="replace")
            for key, value in read[table].items()
        }
        for table in ("collections", "aliases")
    )


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


def _changed_bits(one: str, other: str) -> int:
    if len(one) != len(other):
        return -1
    pairs = zip(one.encode(), other.encode(errors="replace"), strict=False)
    return sum((a ^ b).bit_count() for a, b in pairs)


def _quarantine(root: Path) -> Path:
    name = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    kept = root / QUARANTINE_FOLDER / f"{CATALOG_FOLDER}-{name}-{secrets.token_hex(2)}"
    disk.make_folder(kept, _WHAT, parents=True, exist_ok=True)
    disk.link(root / CATALOG_FOLDER / DATA_FILE, kept / DATA_FILE, _WHAT)
    for made in (kept, kept.parent, root):
        disk.sync_folder(made, _WHAT)
    return kept
