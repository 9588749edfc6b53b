"""A folder of collections: lock, create, open, drop, rename, alias."""

from __future__ import annotations

import dataclasses
import datetime as dt
import errno
import fcntl
import os
import re
import secrets
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import msgspec

from .builder import Builder
from .collection import Collection
from .core import Core
from .errors import (
    Closed,
    CollectionExists,
    Corrupted,
    DatabaseLocked,
    DatabaseNotFound,
    InvalidName,
    InvalidSetting,
    ReadOnly,
)
from .layout import CATALOG_FOLDER, COLLECTIONS_FOLDER, DATA_FILE, LOCK_FILE
from .metadata import check_schema
from .settings import ENGINE, resolve
from .store import Catalog, CollectionStore, Shape, not_found
from .types import INDEX_KINDS, MAX_DIMENSION, METRICS, STORAGES, CollectionInfo

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_MAX_DESCRIPTION_BYTES = 65_536
_open_here: dict[str, Database] = {}
_open_lock = threading.Lock()


def open(path: str | os.PathLike[str], *, read_only: bool = False, **settings: Any) -> Database:
    """Opens the database in folder `path`, making an empty one if the folder is missing or empty.

    One process may have it open for writing; others may open it with `read_only=True` beside it and
    follow its commits. Settings are those of README.md, section "Settings".
    Raises DatabaseLocked, DatabaseNotFound (read_only), FormatMismatch, InvalidSetting, and OSError
    when the folder cannot be made or written.
    """
    return Database(Path(path), read_only=read_only, settings=settings)


class Database:
    """An open database; a context manager. Any thread may use it. Not usable after a fork."""

    def __init__(self, path: Path, *, read_only: bool, settings: Mapping[str, Any]) -> None:
        self._options = resolve(ENGINE, settings)
        self.path = path.absolute()
        self.read_only = read_only
        self._lock = threading.RLock()
        self._cores: dict[str, Core] = {}
        self._closed = False
        self._key = str(path.resolve())
        with _open_lock:
            if self._key in _open_here:
                # LMDB must not map one file twice in a process.
                raise DatabaseLocked(
                    f"{self.path} is open in this process already; use that Database, or close it first"
                )
            new = _check_folder(self.path, read_only)
            self._lock_file = None if read_only else _take_lock(self.path)
            try:
                self._catalog = Catalog(self.path, create=new, read_only=read_only)
            except BaseException:
                self._release()
                raise
            _open_here[self._key] = self
        self._builder = Builder(auto_build=bool(self._options["auto_build"]) and not read_only)
        if not read_only:
            self._sweep()

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
        exist_ok: bool = False,
    ) -> Collection:
        """Makes an empty collection.

        `dimension` 1 to 65,535; `metric` cosine, l2 or ip; `storage` float32 or float16; `index`
        auto, exact, hnsw or ivf; `target_recall` 0.5 to 1.0, where 1.0 means exact; `schema` maps
        dotted metadata paths to string, int, float, bool, datetime, with [] behind it for lists.
        Raises CollectionExists if the name is taken, unless `exist_ok` is set and all settings are
        equal; InvalidName, InvalidSetting.
        """
        self._check_writable()
        info = _check_info(
            name, dimension, metric, storage, index, target_recall, schema, description
        )
        with self._lock:
            self._check_open()
            held = self._catalog.collections().get(name)
            if held is not None and exist_ok:
                return self._existing(name, held, info)
            token = secrets.token_hex(8)
            if held is None and name not in self._catalog.aliases():
                self._make_folder(token, info)
            self._catalog.add(name, token)
            return self._collection(name, token)

    def get_collection(self, name: str) -> Collection:
        """The collection with this name or alias. Raises CollectionNotFound."""
        with self._lock:
            self._check_open()
            token = self._catalog.token(name) if isinstance(name, str) else None
            if token is None:
                raise not_found(str(name))
            names = {t: n for n, t in self._catalog.collections().items()}
            return self._collection(names[token], token)

    def list_collections(self) -> list[CollectionInfo]:
        """Settings of all collections, ordered by name."""
        with self._lock:
            self._check_open()
            held = self._catalog.collections()
            return [self._collection(name, token).info for name, token in sorted(held.items())]

    def drop_collection(self, name: str) -> None:
        """Removes a collection, its records, and aliases that point to it; takes no alias."""
        self._check_writable()
        with self._lock:
            self._check_open()
            token = self._catalog.remove(name)
            core = self._cores.pop(token, None)
            if core is not None:
                self._builder.cancel(core)
                core.close(f"collection {name!r} was dropped")
            shutil.rmtree(self._folder(token), ignore_errors=True)

    def rename_collection(self, name: str, new_name: str) -> None:
        """Renames; aliases follow, open handles go on. Raises CollectionExists, CollectionNotFound."""
        self._check_writable()
        _check_name(new_name)
        with self._lock:
            self._check_open()
            self._catalog.rename(name, new_name)
            token = self._catalog.collections()[new_name]
            if token in self._cores:
                self._cores[token].info = dataclasses.replace(
                    self._cores[token].info, name=new_name
                )

    # -- aliases

    def set_alias(self, alias: str, collection: str) -> None:
        """Makes an alias, or points an existing one elsewhere in one step."""
        self._check_writable()
        _check_name(alias)
        with self._lock:
            self._check_open()
            self._catalog.set_alias(alias, collection)

    def drop_alias(self, alias: str) -> None:
        """Removes an alias. Raises AliasNotFound."""
        self._check_writable()
        with self._lock:
            self._check_open()
            self._catalog.drop_alias(alias)

    def list_aliases(self) -> dict[str, str]:
        """Alias to collection name, ordered by alias."""
        with self._lock:
            self._check_open()
            return self._catalog.aliases()

    # -- the end

    def close(self) -> None:
        """Stops builds, waits for running calls, releases the folder. May be called again."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._builder.close()
            for core in self._cores.values():
                core.close("the database is closed; open it again")
            self._catalog.close()
            self._release()

    def _release(self) -> None:
        _open_here.pop(self._key, None)
        if self._lock_file is not None:
            self._lock_file.close()

    # -- inside

    def _folder(self, token: str) -> Path:
        return self.path / COLLECTIONS_FOLDER / token

    def _make_folder(self, token: str, info: CollectionInfo) -> None:
        """A complete and durable collection folder that nothing points to yet."""
        folder = self._folder(token)
        folder.mkdir(parents=True)
        shape = Shape(info.dimension, info.storage)
        CollectionStore.create(folder, _settings_json(info), shape, self._options).close()
        for path in (folder, folder.parent, self.path):
            _sync_folder(path)

    def _collection(self, name: str, token: str) -> Collection:
        core = self._cores.get(token)
        if core is None:
            store = CollectionStore.open(
                self._folder(token), _shape_of, self._options, read_only=self.read_only
            )
            try:
                core = Core(
                    _info_of(name, store.settings), store, self._options, read_only=self.read_only
                )
            except BaseException:
                store.close()
                raise
            self._cores[token] = core
        elif core.info.name != name:
            core.info = dataclasses.replace(core.info, name=name)
        return Collection(core, self._builder)

    def _existing(self, name: str, token: str, wanted: CollectionInfo) -> Collection:
        found = self._collection(name, token)
        given, held = dataclasses.asdict(wanted), dataclasses.asdict(found.info)
        differing = [k for k in held if k != "created_at" and held[k] != given[k]]
        if differing:
            k = differing[0]
            raise CollectionExists(
                f"collection {name!r} exists with {k}={held[k]!r}, asked for {k}={given[k]!r}; drop it or "
                "choose another name",
                name=name,
                setting=k,
            )
        return found

    def _sweep(self) -> None:
        """Removes folders and files that a crash left behind and nothing points to."""
        root = self.path / COLLECTIONS_FOLDER
        known = set(self._catalog.collections().values())
        for folder in root.iterdir() if root.is_dir() else ():
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(f"the database {str(self.path)!r} is closed; open it again")

    def _check_writable(self) -> None:
        if self.read_only:
            raise ReadOnly("the database was opened with read_only=True; open it for writing")


def _check_folder(path: Path, read_only: bool) -> bool:
    """Whether a database must be made there."""
    if (path / CATALOG_FOLDER / DATA_FILE).is_file():
        return False
    if read_only:
        raise DatabaseNotFound(
            f"{path} holds no vecdb database; open it for writing once to make one"
        )
    path.mkdir(parents=True, exist_ok=True)
    # What an interrupted first opening leaves is ours too.
    strangers = {p.name for p in path.iterdir()} - {LOCK_FILE, CATALOG_FOLDER, COLLECTIONS_FOLDER}
    if strangers:
        raise Corrupted(
            f"{path} holds other files ({sorted(strangers)[0]!r}) and no vecdb database; give an empty "
            "folder or a new one"
        )
    (path / CATALOG_FOLDER).mkdir(exist_ok=True)
    return True


def _take_lock(path: Path) -> Any:
    file = (path / LOCK_FILE).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        raise DatabaseLocked(
            f"{path} is open for writing in process {holder}; stop that process, talk to its server, or "
            "open with read_only=True",
            pid=holder,
        ) from None
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()
    return file


def _sync_folder(path: Path) -> None:
    """Makes the names in a folder durable, not only what the files hold."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidName(
            f"name {name!r}; a name has 1 to 128 characters of A-Z a-z 0-9 _ . - and starts with a letter "
            "or digit"
        )


def _check_info(
    name: str,
    dimension: int,
    metric: str,
    storage: str,
    index: str,
    target_recall: float,
    schema: Mapping[str, str] | None,
    description: str,
) -> CollectionInfo:
    _check_name(name)
    if (
        isinstance(dimension, bool)
        or not isinstance(dimension, int)
        or not 1 <= dimension <= MAX_DIMENSION
    ):
        raise InvalidSetting(
            f"dimension must be an integer from 1 to {MAX_DIMENSION}, given {dimension!r}"
        )
    for what, given, choices in (
        ("metric", metric, METRICS),
        ("storage", storage, STORAGES),
        ("index", index, INDEX_KINDS),
    ):
        if given not in choices:
            raise InvalidSetting(
                f"{what} must be one of {', '.join(choices)}, given {given!r}", setting=what
            )
    number = isinstance(target_recall, int | float) and not isinstance(target_recall, bool)
    if not number or not 0.5 <= target_recall <= 1.0:
        raise InvalidSetting(f"target_recall must be from 0.5 to 1.0, given {target_recall!r}")
    if not isinstance(description, str) or len(description.encode()) > _MAX_DESCRIPTION_BYTES:
        raise InvalidSetting(
            f"description must be a text of at most {_MAX_DESCRIPTION_BYTES} bytes"
        )
    return CollectionInfo(
        name,
        dimension,
        metric,  # type: ignore[arg-type]
        storage,  # type: ignore[arg-type]
        index,  # type: ignore[arg-type]
        float(target_recall),
        check_schema(schema or {}),
        description,
        dt.datetime.now(dt.UTC),
    )


def _settings_json(info: CollectionInfo) -> bytes:
    """The settings as stored; the name is the catalog's."""
    return msgspec.json.format(msgspec.json.encode(info))


def _info_of(name: str, settings: bytes) -> CollectionInfo:
    try:
        info = msgspec.json.decode(settings, type=CollectionInfo)
    except msgspec.MsgspecError as error:
        raise Corrupted(f"the settings of collection {name!r} cannot be read: {error}") from error
    return dataclasses.replace(info, name=name)


def _shape_of(settings: bytes) -> Shape:
    info = _info_of("", settings)
    return Shape(info.dimension, info.storage)
