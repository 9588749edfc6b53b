"""A folder of collections: create, open, drop, rename, alias."""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

from . import folder, open_here
from .backed_up import BackedUp
from .builder import Builder
from .collection import Collection
from .collection_files import (
    listed,
    marked,
    sweep_folders,
    unmark,
)
from .collection_info import check_info, made_of, must_agree
from .device.choice import parse as parse_device
from .device.devices import Devices, Source, must_be_there, open_devices
from .errors import Closed, DatabaseLocked, LimitExceeded, ReadOnly, VecdbError
from .index.card import count_gpus
from .lane_threads import LaneThreads
from .layout import COLLECTIONS_FOLDER
from .loading import Loading
from .naming import Naming, change_of
from .out_of_memory import tells_memory
from .settings import ENGINE, resolve
from .store import (
    Awake,
    Catalog,
    not_found,
    system_in_our_words,
    taken,
)
from .types import CollectionInfo, VectorSettings
from .watching import CollectionFigures, collection_figures

log = logging.getLogger("vecdb")


def open(path: str | os.PathLike[str], *, read_only: bool = False, **settings: Any) -> Database:
    """Opens the database in folder `path`, making an empty one if the folder is missing or empty.

    One process may have it open for writing; others may open it with `read_only=True` beside it and follow its commits. Settings are those of docs/reference.md. Raises DatabaseLocked, DatabaseNotFound (read_only, or where `path` is no folder), FormatMismatch, InvalidSetting, DeviceNotFound when
    the setting `device` names GPUs that are not there; ReadOnly when this process may not write the folder,
    StorageFull, LimitExceeded (open files, address space), Internal when the disk fails (EIO), and OSError when the folder cannot be made for another reason. Collections that ask for a GPU open without one too, see `create_collection`.
    """
    return Database(Path(path), read_only=read_only, settings=settings)


@tells_memory
class Database(Loading, BackedUp, Naming):
    """An open database; a context manager. Any thread may use it. Not usable after a fork.

    Locks are taken in this order: `_changes` (one change of names at a time), then the lock of a collection (one thread opens or drops it), then `_lock` (the dicts in here, never for long).
    """

    def __init__(
        self,
        path: Path,
        *,
        read_only: bool,
        settings: Mapping[str, Any],
        lock: Any = None,
        devices: Source | None = None,
    ) -> None:
        """`lock`: what `folder.take_lock` gave to a caller who has the folder already, closed when this is. `devices`: where this
        database has them from, and no other of the process; None: the GPUs of this machine."""
        super().__init__()
        self._options = resolve(ENGINE, settings)
        parse_device(str(self._options["device"]))  # before anything is made
        self.path = path.absolute()
        self.read_only = read_only
        self.others_read = False
        """Whether a read here shows each commit that a process with `read_only=True` may have shown before it began.
        Else it may come a moment later, until it is acknowledged. For collections that are opened after it was set."""
        self._changes = threading.Lock()
        self._closed = False
        self._key = str(path.resolve())
        with open_here.lock, system_in_our_words(self.path):
            if open_here.has(self._key):
                # LMDB must not map one file twice in a process.
                raise DatabaseLocked(
                    f"{self.path} is open in this process already; use that Database, or close it first"
                )
            new = folder.prepare(self.path, read_only)
            self._lock_file = lock
            if lock is None and not read_only:
                self._lock_file = folder.take_lock(self.path)
            try:
                self._catalog = Catalog(self.path, create=new, read_only=read_only)
                if new:
                    folder.sync_catalog(self.path, self._lock_file)
            except BaseException:
                self._release()
                raise
            open_here.add(self._key, self)
        self.devices: Devices | None = None
        """The GPUs that the setting `device` has chosen; None where the CPU serves alone."""
        try:
            here = partial(open_devices, count=count_gpus)
            self.devices = (devices or here)(self._options)
            made, names = self.path / COLLECTIONS_FOLDER, self._catalog.names().of
            with system_in_our_words(made):
                self._builder = Builder(self._options, read_only=read_only)
                self._lane_threads = LaneThreads()
                self._awake = Awake(int(self._options["max_open_collections"]))
                if not read_only:
                    sweep_folders(made, names, self._remove)
        except BaseException:
            # No thread runs yet, and whoever tries again must not find the folder taken.
            if self.devices is not None:
                self.devices.close()
            self._catalog.close()
            self._release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<vecdb database {str(self.path)!r}>"

    # -- collections

    def create_collection(
        self,
        name: str,
        *,
        dimension: int,
        metric: str = "cosine",
        storage: str = "float32",
        index: str = "auto",
        target_recall: float = 0.95,
        schema: Mapping[str, str] | None = None,
        description: str = "",
        quantization: str = "auto",
        vectors: Mapping[str, VectorSettings | Mapping[str, Any]] | None = None,
        exist_ok: bool = False,
        device: str = "auto",
        request_id: str | None = None,
    ) -> Collection:
        """Makes an empty collection.

        `dimension` 1 to 65,535; `metric` cosine, l2 or ip; `storage` float32, float16, int8, uint8, or binary, where
        `dimension` counts bits, a multiple of 8, and `metric` is hamming; `index` auto, exact, hnsw or ivf; `target_recall`
        0.5 to 1.0, where 1.0 means exact; `schema` maps dotted metadata paths to string, int, float, bool, datetime, with []
        behind it for lists.
        `quantization` says how the index codes vectors, while the store keeps them whole: auto, none, float16, sq8, sq4,
        or pq4 or pq8 (lists); auto or none for int8, uint8 and binary. `vectors` maps names to the settings of up to 16
        further vectors a record may have.
        `device` is what searches it, its named vectors too: cpu; gpu, all that the database uses; gpu:0 or gpu:0,1, these
        of them; auto, GPUs where there are any. Such GPUs must be in use when the collection is made. A database that is
        opened later without them opens the collection all the same: what is stored must not depend on the machine, and the
        CPU answers the same. It is then served by those that are there, else by the CPU, and says so: one warning in the
        log, and `device_note` in `stats` and `explain`.
        Raises CollectionExists if the name is taken, unless `exist_ok` is set and all settings are equal; InvalidName,
        InvalidSetting, DeviceNotFound. `request_id` as in `Naming`: a repetition gives the collection that was made then,
        or raises CollectionNotFound when it has been dropped since.
        """
        info = check_info(
            name, dimension, metric, storage, index, target_recall, schema, description,
            quantization, vectors, device,
        )  # fmt: skip
        change = change_of(request_id, "create", name, made_of(info))
        with self._change():
            names = self._catalog.names()
            if (done := self._catalog.was_done(change)) is not None:
                if done.token not in names.of:
                    raise not_found(name)
                return self._collection(names.of[done.token], done.token)
            held = names.collections.get(name)
            if held is not None and exist_ok:
                must_agree(info, self._info(name, held))
                return self._collection(name, held)
            if held is not None:
                raise taken(name, "or open it with get_collection, or with exist_ok=True")
            if name in names.aliases:
                raise taken(name)
            self._must_have_room(1)
            must_be_there(name, info.device, self.devices, str(self._options["device"]))
            token = secrets.token_hex(8)
            try:
                self._make_folder(token, info)
                # Before the catalog names it: behind that nothing may fail, since what is refused is not done.
                made = self._collection(name, token, making=True)
                self._catalog.add(name, token, change)
            except BaseException:
                if token not in self._catalog.names().of:
                    with self._collection_lock(token):
                        self._discard(token, f"collection {name!r} could not be made", "create")
                raise
            unmark(self._folder(token), "create")
            return made

    def get_collection(self, name: str) -> Collection:
        """The collection with this name or alias. Raises CollectionNotFound."""
        self._check_open()
        names = self._catalog.names()
        if names is not self._names and self.read_only:
            self._let_go_of_dropped()
        token = names.token(name) if isinstance(name, str) else None
        if token is None:
            raise not_found(name)
        return self._collection(names.of[token], token)

    def own_name(self, name: str) -> str:
        """The name of the collection with this name or alias. Opens nothing. Raises CollectionNotFound."""
        self._check_open()
        return self._catalog.names().of.get(self._token(name), name)  # the latter: dropped just now

    def list_collections(self) -> list[CollectionInfo]:
        """Settings of all collections, ordered by name; one whose files cannot be opened has `error`. Loads none of them."""
        self._check_open()
        names = self._catalog.names().collections
        return [
            one for n, token in names.items() for one in listed(n, partial(self._info, n, token))
        ]

    def collection_names(self) -> list[str]:
        """Names of all collections, in order. Opens none of them."""
        self._check_open()
        return list(self._catalog.names().collections)

    def drop_collection(self, name: str, *, request_id: str | None = None) -> None:
        """Removes a collection, its records, and aliases that point to it; takes no alias. `request_id` as in `Naming`."""
        change = change_of(request_id, "drop", str(name))
        with self._change():
            if self._catalog.was_done(change):
                return
            token = self._catalog.names().collections.get(name)
            if token is None:
                raise not_found(name)
            # To the end: an opening would take the mark away, or open what is about to go.
            with self._collection_lock(token):
                with marked(self._folder(token), partial(self._is_named, token), "drop"):
                    self._catalog.remove(name, change)
                self._discard(token, f"collection {name!r} was dropped", "drop")

    # -- for operators

    def figures(self) -> list[CollectionFigures]:
        """Figures of the collections that are loaded, ordered by name. Loads none, waits for nobody."""
        self._check_open()
        with self._lock:
            cores = list(self._cores.values())
        return collection_figures(cores, self._builder)

    def is_loaded(self, name: str) -> bool:
        """Whether the collection with this name or alias is in memory, so that calls are answered at once.
        Raises CollectionNotFound."""
        self._check_open()
        core = self._cores.get(self._token(name))
        return core is not None and core.closed is None

    # -- the end

    def close(self) -> None:
        """Stops builds, waits for running calls, releases the folder. May be called again; done when the process ends.

        Raises ReadOnly, when all is closed, if the last commits of a collection could not be synced.
        """
        with self._changes:
            with self._lock:
                if self._closed:
                    return
                self._closed = True
                opening = list(self._collection_locks.values())
            for lock in opening:
                with lock:
                    pass  # whoever was opening a collection has seen that we are closed
            # A build that waits for a device that hangs would be waited for as long.
            self._builder.close(self._end_devices)
            failed: VecdbError | None = None
            for core in self._cores.values():
                try:
                    core.close("the database is closed; open it again")
                except VecdbError as error:
                    failed = error
            self._lane_threads.close()
            self._catalog.close()
            self._release()
            if failed is not None:
                raise failed

    def _end_devices(self) -> None:
        if self.devices is not None:
            self.devices.close()

    def _release(self) -> None:
        open_here.remove(self._key)
        if self._lock_file is not None:
            self._lock_file.close()

    # -- inside

    @contextmanager
    def _change(self) -> Iterator[None]:
        """One change of names at a time, on a database that is open for writing."""
        if self.read_only:
            raise ReadOnly("the database was opened with read_only=True; open it for writing")
        with self._changes, system_in_our_words(self.path):
            self._check_open()
            yield

    def _must_have_room(self, more: int) -> None:
        count, limit = len(self._catalog.names().collections), int(self._options["max_collections"])
        if count + more > limit:
            raise LimitExceeded(
                f"the database has {count:,} collections, at most {limit:,} are allowed; drop one, keep "
                "more than one kind of record in a collection, or raise the setting max_collections",
                limit=limit,
            )

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"the database {str(self.path)!r} is closed; open it again")
