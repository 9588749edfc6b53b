"""The verbs of a database that back it up and restore into it."""

from __future__ import annotations

import datetime as dt
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

from .backup import Source, fill, open_target, plan, take
from .backup_types import (
    BackupInfo,
    BackupKind,
    BackupTarget,
    Progress,
    RestoredCollection,
    RestoreResult,
    unwatched,
)
from .collection_files import unmark
from .core import Core
from .errors import CollectionNotFound, InvalidArgument
from .out_of_memory import tells_memory
from .store import Catalog, CollectionStore, not_found, taken
from .types import CollectionInfo


@tells_memory
class BackedUp(ABC):
    """What `Database` does with backups, on the names and folders that it keeps."""

    _catalog: Catalog
    _options: Mapping[str, Any]
    _closed: bool

    @abstractmethod
    def _check_open(self) -> None:
        """Raises Closed."""

    @abstractmethod
    def _change(self) -> AbstractContextManager[None]:
        """One change of names at a time, on a database that is open for writing."""

    @abstractmethod
    def _must_have_room(self, more: int) -> None:
        """LimitExceeded when so many more collections are more than `max_collections` allows."""

    @abstractmethod
    def _remove(self, token: str, what: str) -> None:
        """Removes the folder of a collection that nothing names."""

    @abstractmethod
    def _folder(self, token: str) -> Path:
        """Where the files of a collection lie."""

    @abstractmethod
    def _make_folder(self, token: str, info: CollectionInfo) -> None:
        """A complete and durable collection folder that nothing points to yet."""

    @abstractmethod
    def _open_store(self, name: str, token: str, *, making: bool = False) -> CollectionStore:
        """The store in it."""

    @abstractmethod
    def _core(self, name: str, token: str) -> Core:
        """The open collection, loaded when it was not."""

    def backup(
        self,
        target: BackupTarget,
        *,
        collections: Iterable[str] | None = None,
        kind: BackupKind = "auto",
        verify: bool = True,
        limit_bytes_s: float | None = None,
        progress: Progress = unwatched,
    ) -> BackupInfo:
        """Backs up collections (default: all), with aliases, as of now; others read and write meanwhile.

        `target`: a folder, made when it is missing; a URL such as `s3://bucket/path`, or a store of
        obstore (`pip install vecdb[backup]`). `kind` full copies everything; incremental what came since
        the newest backup there that holds any of the collections; auto the latter where there is one.
        With `verify` each file is read back. `limit_bytes_s` bounds the rate of writing. Compaction keeps
        what is still to be copied. An interrupted backup has no manifest and counts as none.
        Where something of the chain is missing, auto is full, which the log says. What is not on the disk yet
        (durability `interval`) is synced. Raises InvalidArgument, CollectionNotFound, BackupNotFound (incremental,
        and nothing to continue), BackupDamaged (incremental, and its chain is not whole), Corrupted (a row
        fails its checksum), ReadOnly (syncing failed), StorageFull, Unavailable, FormatMismatch, MissingDependency.
        """
        self._check_open()
        limit_bytes_s = _as_rate(limit_bytes_s)
        names = self._catalog.names()
        tokens = set(names.of)
        if collections is not None:
            given = [collections] if isinstance(collections, str) else collections
            tokens = {self._token(name) for name in given}
            if not tokens:
                raise InvalidArgument("collections must name at least one collection")
        sources = []
        for name, token in names.collections.items():
            gone = partial(self._is_gone, token)
            try:
                if token in tokens:
                    sources.append(Source(name, token, self._core(name, token), gone))
            except CollectionNotFound:
                if not gone():
                    raise
        return take(
            open_target(target), sources, names.aliases,
            kind=kind, verify=verify, limit_bytes_s=limit_bytes_s, progress=progress,
        )  # fmt: skip

    def _token(self, name: str) -> str:
        token = self._catalog.names().token(name) if isinstance(name, str) else None
        if token is None:
            raise not_found(name)
        return token

    def _is_gone(self, token: str) -> bool:
        return not self._closed and token not in self._catalog.names().of

    def restore(
        self,
        source: BackupTarget,
        *,
        backup: str | None = None,
        collections: Iterable[str] | Mapping[str, str] | None = None,
        at: dt.datetime | None = None,
        sequence: int | None = None,
        progress: Progress = unwatched,
    ) -> RestoreResult:
        """Makes collections from a backup; `collections` names some, or maps their names to new ones.

        `backup` is an id, default the newest, or with `at` the first taken since, for each collection the
        first that holds it. `at` (aware, or local time) restores each collection as it was then; `sequence`
        the one collection named, as it was right after that commit. Ids, row numbers and sequences are those
        of the original; indexes are built anew, and there is no history before the moment restored. Aliases
        come along when everything is restored. All of it appears at once, at the end, or nothing does.
        Raises CollectionExists, BackupNotFound (also for a moment that was compacted away), BackupDamaged,
        FormatMismatch, LimitExceeded (max_fields, max_collections), StorageFull, Unavailable, ReadOnly.
        """
        self._check_open()
        target = open_target(source)
        planned = plan(target, backup=backup, collections=collections, at=at, sequence=sequence)
        with self._change():  # refuses at once what it would refuse at the end
            self._must_have_room(len(planned.wanted))
            names = self._catalog.names()
            for name in (*(one.info.name for one in planned.wanted), *planned.aliases):
                if name in names.collections or name in names.aliases:
                    raise taken(name)
        tokens: dict[str, str] = {}
        made = []
        try:
            for one in planned.wanted:
                name, token = one.info.name, secrets.token_hex(8)
                tokens[name] = token
                self._make_folder(token, one.info)
                store = self._open_store(name, token, making=True)
                try:
                    reached, count = fill(
                        target, one, store, int(self._options["max_fields"]), progress
                    )
                finally:
                    store.close()
                made.append(RestoredCollection(name, one.source, reached, count))
            with self._change():
                self._must_have_room(len(tokens))
                self._catalog.add_all(tokens, planned.aliases)
                # Else a catalog of before, put in place of a lost one, would let them be swept away.
                for token in tokens.values():
                    unmark(self._folder(token), "restore")
        except BaseException:
            if self._closed or self._catalog.names().of.keys().isdisjoint(tokens.values()):
                for token in tokens.values():
                    self._remove(token, "restore")
            raise
        return RestoreResult(planned.backup, made, planned.aliases)


def _as_rate(limit_bytes_s: float | None) -> float | None:
    """Any kind of number as a float, which other processes can be told. InvalidArgument."""
    if limit_bytes_s is None:
        return None
    try:
        if isinstance(limit_bytes_s, Real) and not isinstance(limit_bytes_s, bool):
            return float(limit_bytes_s)
    except OverflowError:
        pass  # beyond float64, as only whole numbers are
    raise InvalidArgument(
        f"limit_bytes_s must be a number of bytes a second above 0, or None, given {limit_bytes_s!r:.80}"
    )
