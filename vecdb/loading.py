"""Which collections of a database are in memory: opened when they are first asked for, closed when they are dropped."""

from __future__ import annotations

import dataclasses
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import disk
from .builder import Builder
from .collection import Collection
from .collection_files import make_files, must_be_own, named_where_damaged, sweep_opened
from .collection_info import from_json, shape_of
from .core import Core
from .device.devices import Devices
from .errors import ReadOnly
from .lane_threads import LaneThreads
from .layout import COLLECTIONS_FOLDER, UNNAMED_FILE
from .store import (
    Awake,
    Catalog,
    CollectionStore,
    Names,
    not_found,
    sentence,
    system_in_our_words,
)
from .types import CollectionInfo

log = logging.getLogger("vecdb")


class Loading(ABC):
    """What `Database` does to have collections in memory. By token, the name of a collection's folder, which stays the same
    whatever the collection is called. For the order of locks see there."""

    path: Path
    read_only: bool
    others_read: bool
    devices: Devices | None
    _options: Mapping[str, Any]
    _catalog: Catalog
    _builder: Builder
    _lane_threads: LaneThreads
    _awake: Awake

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._collection_locks: dict[str, threading.Lock] = {}
        self._cores: dict[str, Core] = {}
        self._infos: dict[str, CollectionInfo] = {}
        self._names: Names | None = None

    @abstractmethod
    def _check_open(self) -> None:
        """Raises Closed."""

    def _collection_lock(self, token: str) -> threading.Lock:
        with self._lock:
            return self._collection_locks.setdefault(token, threading.Lock())

    def _is_named(self, token: str) -> bool:
        return token in self._catalog.names().of

    def _folder(self, token: str) -> Path:
        return self.path / COLLECTIONS_FOLDER / token

    def _make_folder(self, token: str, info: CollectionInfo) -> None:
        make_files(self._folder(token), info, self._options)

    def _remove(self, token: str, what: str) -> None:
        """Removes the folder of a collection, the mark last: stopped half-way, the rest is litter still."""
        disk.remove_tree(self._folder(token), what, last=UNNAMED_FILE)

    def _discard(self, token: str, why: str, what: str) -> None:
        """Closes a collection that nothing names, and removes its folder. In its lock."""
        with self._lock:
            core = self._cores.pop(token, None)
            self._infos.pop(token, None)
        if core is not None:
            self._builder.cancel(core)
            with suppress(ReadOnly):  # what could not be synced goes with it
                core.close(why)
        self._remove(token, what)

    def _open_store(self, name: str, token: str, *, making: bool = False) -> CollectionStore:
        """`making`: it has no name yet."""
        path = self._folder(token)
        if not making and token not in self._catalog.names().of:
            raise not_found(name)  # dropped since, though its folder may not be gone
        with named_where_damaged(name):
            must_be_own(path, name, self._catalog.names().of)
            return CollectionStore.open(
                path, shape_of, self._options, read_only=self.read_only, awake=self._awake
            )

    def _info(self, name: str, token: str) -> CollectionInfo:
        """Settings of a collection, without loading it."""
        info = self._infos.get(token)
        if info is None:
            with self._collection_lock(token):
                core = self._cores.get(token)
                if core is not None:
                    info = core.info
                else:
                    store = self._open_store(name, token)
                    store.close()
                    info = from_json(name, store.settings)
            self._infos[token] = info
        return info if info.name == name else dataclasses.replace(info, name=name)

    def _collection(self, name: str, token: str, *, making: bool = False) -> Collection:
        return Collection(self._core(name, token, making=making), self._builder)

    def _core(self, name: str, token: str, *, making: bool = False) -> Core:
        core = self._cores.get(token)
        if core is None:
            core = self._open_core(name, token, making=making)
        if core.info.name != name:
            # Renamed by the writer, and we read beside it.
            core.info = dataclasses.replace(core.info, name=name)
        return core

    def _open_core(self, name: str, token: str, *, making: bool) -> Core:
        """Loads a collection. Others go on meanwhile; those who want the same one wait for us."""
        with self._collection_lock(token), system_in_our_words(self._folder(token)):
            core = self._cores.get(token)
            if core is not None:
                return core
            store = self._open_store(name, token, making=making)
            try:
                info = from_json(name, store.settings)
                core = Core(
                    info,
                    store,
                    self._options,
                    self._lane_threads,
                    read_only=self.read_only,
                    devices=self.devices,
                    others_read=self.others_read,
                )
                if note := core.assigned.note:  # once an opening: each query tells by itself
                    log.warning("collection %s asks for device %s: %s", name, info.device, note)
                for repair in store.repairs:
                    log.warning("collection %s: %s", name, sentence(repair))
                if not (self.read_only or making):
                    sweep_opened(core)
                has_metadata = store.has_metadata()
                with self._lock:
                    self._check_open()
                    self._cores[token] = core
            except BaseException:
                store.close()
                raise
            self._builder.attend(core)
            if not core.unasked:
                self._builder.consider(core)
            if has_metadata:
                threading.Thread(target=core.warm, name="vecdb-columns", daemon=True).start()
            return core

    def _let_go_of_dropped(self) -> None:
        """Closes what another process has dropped, which would keep its memory and its files for ever."""
        with self._lock:
            # The newest names, asked for in the lock: by older ones a collection that is new would seem dropped.
            names = self._names = self._catalog.names()
            gone = {token: core for token, core in self._cores.items() if token not in names.of}
            for token in gone:
                del self._cores[token]
            for token in self._infos.keys() - names.of.keys():
                del self._infos[token]
        for core in gone.values():
            self._builder.cancel(core)
            core.close(f"collection {core.info.name!r} was dropped")
