"""Which collections and aliases a database has: names to tokens of folders."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from .. import disk
from ..errors import (
    AliasNotFound,
    CollectionExists,
    CollectionNotFound,
    Corrupted,
    FormatMismatch,
    StorageFull,
)
from ..layout import (
    CATALOG_ASIDE,
    CATALOG_FILES,
    CATALOG_FOLDER,
    CATALOG_FORMAT,
    CATALOG_TABLES,
    DATA_FILE,
    LMDB_LOCK_FILE,
    LMDB_MAX_KEY_BYTES,
    META_CHANGES,
    META_FORMAT,
    format_number,
)
from . import catalog_sums, changes
from .changes import Change, Done
from .environment import Environment
from .open_file import PUT_BACK

Result = TypeVar("Result")
_BESIDE = "move it away: no catalog can be made beside it"

_WHAT = "catalog"
_MAP_BYTES = 1 << 28


class Names:
    """The names of a database; tokens name the folders of collections."""

    def __init__(self, collections: dict[str, str], aliases: dict[str, str]) -> None:
        self.collections = collections
        """Name to token, ordered by name."""
        self.of = {token: name for name, token in collections.items()}
        """Token to name of the collection."""
        self._tokens = {**aliases, **collections}
        self.aliases = {alias: self.of[t] for alias, t in aliases.items() if t in self.of}
        """Alias to name of the collection, ordered by alias."""

    def token(self, name: str) -> str | None:
        """Token of the collection with this name or alias."""
        token = self._tokens.get(name)
        return token if token in self.of else None


class Catalog:
    """Every change is one durable commit. Reads from any thread; changes from one at a time."""

    def __init__(self, root: Path, *, create: bool, read_only: bool) -> None:
        if create and not (root / CATALOG_FOLDER / DATA_FILE).is_file():
            make(root)
        self._env = _open(root / CATALOG_FOLDER, create=create, read_only=read_only)
        self._read_only = read_only
        self._lock = threading.Lock()
        self._last = -1
        self._names: Names | None = None
        try:
            if create:
                self._env.write(partial(_stamp, self._env), _WHAT)
            with self._env.read() as transaction:
                raw = transaction.get(META_FORMAT, db=self._env.table("meta"))
                text = b"0" if raw is None else bytes(raw)
            found = format_number(text)
            if found is None:
                raise Corrupted(
                    f"the catalog of {root} says that its format is {text!r:.80}; run check"
                )
            if found != CATALOG_FORMAT:
                raise FormatMismatch(
                    f"{root} has catalog format {found}, this version reads {CATALOG_FORMAT}; open it "
                    "with the version of vecdb that wrote it, or a later one",
                    given=found,
                    expected=CATALOG_FORMAT,
                )
            self._check_names(root)
        except BaseException:
            self._env.close()
            raise

    def _check_names(self, root: Path) -> None:
        """Corrupted when a name is not as it was written; adds checksums to a catalog that has none."""
        with self._env.read() as transaction:
            tables, meta = catalog_sums.read(self._env, transaction)
            known = catalog_sums.are_of(meta, [transaction.id()])
        faults = catalog_sums.faults(tables, meta) if known else []
        if faults:
            raise Corrupted(
                f"the catalog of {root} is damaged: {faults[0]}. Run `vecdb check --repair`, or restore a backup. "
                "Nothing was changed",
                faults=faults[:100],
            )
        if not known and not self._read_only:
            # Without room the next change makes them.
            with suppress(StorageFull):
                self._change(lambda _: None)

    def names(self) -> Names:
        """All names at this moment. Read from LMDB only after a change.

        The writer knows of every change, since they are its own; a reader has to look.
        """
        names = self._names
        if names is not None and not self._read_only:
            return names
        with self._lock:
            # Changes take the lock too, so that nothing older than the last one is kept. The number is
            # that of the snapshot: the newest commit may still be on its way to the disk.
            if self._names is None or self._env.last_transaction() != self._last:
                with self._env.read() as transaction:
                    self._last = transaction.id()
                    self._names = Names(
                        self._all(transaction, "collections"), self._all(transaction, "aliases")
                    )
            return self._names

    def was_done(self, change: Change | None) -> Done | None:
        """What is known of a change that its caller gave an id; None: it was not done, or not lately. InvalidArgument
        where its id came with another one. By whoever makes changes, before it makes one."""
        if change is None:
            return None
        with self._env.read() as transaction:
            raw = transaction.get(META_CHANGES, db=self._env.table("meta"))
            return changes.find(raw, change, time.time_ns() // 1_000)

    def _change(  # nosec B107 # a token names a folder
        self, work: Callable[[Any], Result], change: Change | None = None, token: str = ""
    ) -> Result:
        """One commit; `change` is remembered in it, with the token of what it makes."""

        def with_checksums(transaction: Any) -> Result:
            catalog_sums.begin_change(self._env, transaction)
            result = work(transaction)
            if change is not None:
                meta, now_us = self._env.table("meta"), time.time_ns() // 1_000
                raw = transaction.get(META_CHANGES, db=meta)
                transaction.put(META_CHANGES, changes.record(raw, change, token, now_us), db=meta)
            catalog_sums.end_change(self._env, transaction)
            return result

        with self._lock:
            # Where nothing can be written the names that are known stay known.
            self._env.hold()
            self._env.let_go()
            self._names = None
            return self._env.write(with_checksums, _WHAT)

    def add(self, name: str, token: str, change: Change | None = None) -> None:
        self.add_all({name: token}, {}, change)

    def add_all(
        self, tokens: Mapping[str, str], aliases: Mapping[str, str], change: Change | None = None
    ) -> None:
        """Names collections, and aliases by the name of their collection, all of them or none. `change` makes one."""

        def work(transaction: Any) -> None:
            for table, given in (
                ("collections", tokens),
                ("aliases", {alias: tokens[name] for alias, name in aliases.items()}),
            ):
                for name, token in given.items():
                    self._refuse_taken(transaction, name)
                    catalog_sums.put(self._env, transaction, table, name.encode(), token.encode())

        self._change(work, change, next(iter(tokens.values()), ""))

    def remove(self, name: str, change: Change | None = None) -> str:
        """Forgets a collection and its aliases; the token of the folder to delete."""

        _must_be_name(name)

        def work(transaction: Any) -> str:
            token = self._pop(transaction, name)
            aliases = self._env.table("aliases")
            stale = [key for key, held in transaction.cursor(db=aliases) if held == token]
            for key in stale:
                catalog_sums.pop(self._env, transaction, "aliases", bytes(key))
            return token.decode()

        return self._change(work, change)

    def rename(self, name: str, new_name: str, change: Change | None = None) -> None:
        _must_be_name(name)

        def work(transaction: Any) -> None:
            token = self._pop(transaction, name)
            if new_name != name:
                self._refuse_taken(transaction, new_name)
            catalog_sums.put(self._env, transaction, "collections", new_name.encode(), token)

        self._change(work, change)

    def set_alias(self, alias: str, name: str, change: Change | None = None) -> None:
        _must_be_name(name)

        def work(transaction: Any) -> None:
            collections = self._env.table("collections")
            token = transaction.get(name.encode(), db=collections)
            if token is None:
                raise not_found(name)
            if transaction.get(alias.encode(), db=collections) is not None:
                raise taken(alias)
            catalog_sums.put(self._env, transaction, "aliases", alias.encode(), bytes(token))

        self._change(work, change)

    def drop_alias(self, alias: str, change: Change | None = None) -> None:
        def work(transaction: Any) -> None:
            if not _is_name(alias) or not catalog_sums.pop(
                self._env, transaction, "aliases", alias.encode()
            ):
                raise AliasNotFound(
                    f"no alias {alias!r}; `list_aliases()` shows those there are", alias=str(alias)
                )

        self._change(work, change)

    def close(self) -> None:
        self._env.close()

    def _all(self, transaction: Any, table: str) -> dict[str, str]:
        cursor = transaction.cursor(db=self._env.table(table))
        return {bytes(k).decode(): bytes(v).decode() for k, v in cursor}

    def _pop(self, transaction: Any, name: str) -> bytes:
        token = catalog_sums.pop(self._env, transaction, "collections", name.encode())
        if token is None:
            raise not_found(name)
        return token

    def _refuse_taken(self, transaction: Any, name: str) -> None:
        for table in ("collections", "aliases"):
            if transaction.get(name.encode(), db=self._env.table(table)) is not None:
                raise taken(name)


def _open(folder: Path, *, create: bool, read_only: bool) -> Environment:
    return Environment(
        folder,
        CATALOG_TABLES,
        create=create,
        read_only=read_only,
        map_initial_bytes=_MAP_BYTES,
        map_limit_bytes=1 << 40,
    )


def is_there(root: Path) -> bool:
    """Whether a folder has a catalog. Corrupted where something else has its name."""
    return disk.must_be_folder(root / CATALOG_FOLDER, PUT_BACK) and disk.must_be_file(
        root / CATALOG_FOLDER / DATA_FILE, PUT_BACK
    )


def make(
    root: Path,
    tokens: Mapping[str, str] | None = None,
    aliases: Mapping[str, str] | None = None,
    done: bytes | None = None,
) -> None:
    """Makes a catalog, empty or with these names, under another name and renames it when it is durable.

    `tokens` are by name of a collection, `aliases` name a collection each, `done` is the record of changes that were
    done (`changes`), as one before had it. The one before is gone then.

    LMDB writes the first pages of a new file without a sync: a power cut might leave a file that it
    takes for a damaged one, and the folder could not be opened any more. At each moment the old file is
    there or the new one: without either, no collection has a name.
    """
    aside = root / CATALOG_ASIDE
    if (root / CATALOG_FOLDER).is_symlink() and not is_there(root):
        raise Corrupted(
            f"{root / CATALOG_FOLDER} is a link, and there is no catalog where it leads; put that back, or take the link away"
        )
    disk.must_be_folder(aside, _BESIDE)
    if others := disk.others_in(aside, CATALOG_FILES):
        raise Corrupted(f"{aside} holds {others[0]!r}, which no catalog has; {_BESIDE}")
    disk.remove_tree(aside, _WHAT)
    disk.make_folder(aside, _WHAT)
    made = _open(aside, create=True, read_only=False)
    try:
        made.write(partial(_fill, made, tokens or {}, aliases or {}, done), _WHAT)
    finally:
        made.close()
    disk.sync_folder(aside, _WHAT)
    target = root / CATALOG_FOLDER
    if target.is_dir():
        # What else somebody has put there stays. The locks first, see `vacuum.move_in`.
        for name in (LMDB_LOCK_FILE, DATA_FILE):
            disk.rename(aside / name, target / name, _WHAT)
        disk.sync_folder(target, _WHAT)
        disk.remove_folder(aside, _WHAT)
    else:
        disk.rename(aside, target, _WHAT)
    disk.sync_folder(root, _WHAT)


def _stamp(environment: Environment, transaction: Any) -> None:
    meta = environment.table("meta")
    if transaction.get(META_FORMAT, db=meta) is None:
        transaction.put(META_FORMAT, str(CATALOG_FORMAT).encode(), db=meta)


def _fill(
    environment: Environment,
    tokens: Mapping[str, str],
    aliases: Mapping[str, str],
    done: bytes | None,
    transaction: Any,
) -> None:
    _stamp(environment, transaction)
    for table, given in (
        ("collections", tokens),
        ("aliases", {alias: tokens[name] for alias, name in aliases.items()}),
    ):
        for name, token in given.items():
            catalog_sums.put(environment, transaction, table, name.encode(), token.encode())
    if done is not None:
        transaction.put(META_CHANGES, done, db=environment.table("meta"))
    catalog_sums.end_change(environment, transaction)


def _is_name(name: object) -> bool:
    """Whether it may be the key of a table; names are checked when they are made."""
    return isinstance(name, str) and 0 < len(name.encode(errors="replace")) <= LMDB_MAX_KEY_BYTES


def _must_be_name(name: object) -> None:
    if not _is_name(name):
        raise not_found(name)


def not_found(name: object) -> CollectionNotFound:
    return CollectionNotFound(
        f"no collection {name!r}; `list_collections()` shows those there are", collection=str(name)
    )


def taken(name: str, further: str = "") -> CollectionExists:
    """`further`: what else to do."""
    advice = ", ".join(filter(None, ("choose another or drop that first", further)))
    return CollectionExists(
        f"the name {name!r} is taken by a collection or an alias; {advice}", name=name
    )
