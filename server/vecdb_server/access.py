"""Who may do what: the caller of the running call, and a database that asks before it acts.

Rights are granted on collections by their own names. An alias gives no right: what counts is the
collection that it stands for. Whoever may not read a collection is not told whether it exists.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import vecdb
from vecdb.errors import CollectionNotFound, PermissionDenied, VecdbError

from .keys import ROLES, Grant, Key

ROLE_OF = {
    "GetServerInfo": "",
    "GetMetrics": "admin",
    "ListCollections": "",
    "ListAliases": "",
    "GetCollection": "read",
    "Get": "read",
    "Query": "read",
    "QueryStream": "read",
    "Count": "read",
    "Scan": "read",
    "GetStats": "read",
    "Insert": "write",
    "Upsert": "write",
    "Update": "write",
    "Delete": "write",
    "Ingest": "write",
    "Flush": "write",
    "CreateCollection": "admin",
    "DropCollection": "admin",
    "RenameCollection": "admin",
    "SetAlias": "admin",
    "DropAlias": "admin",
    "Check": "admin",
    "BuildIndex": "admin",
    "CancelBuild": "admin",
    "Compact": "admin",
    "BackupDatabase": "admin",
    "ListBackups": "admin",
    "VerifyBackups": "admin",
    "RestoreBackup": "admin",
    "PruneBackups": "admin",
}
"""Role that a call needs on the collections it names; empty: any key, and it is shown what it may read."""


@dataclass(slots=True)
class Caller:
    """Who makes a call, and what it came to touch. Without a key where none is asked for."""

    method: str
    key: Key | None
    peer: str
    certificate: str = ""
    collection: str = ""

    def may(self, role: str, collection: str) -> bool:
        """Whether a grant of the key covers this role on this collection."""
        if self.key is None:
            return True
        wanted = ROLES.index(role)
        return any(
            ROLES.index(grant.role) >= wanted and grant.covers(collection)
            for grant in self.key.grants
        )

    def require(self, *collections: str, told: str = "") -> None:
        """PermissionDenied unless the role of the call is granted on all of these. It names `told`, what the caller
        has called them by: an alias must not give away what it stands for."""
        # What is not in the table is for nobody but those who may everything.
        role = ROLE_OF.get(self.method, "admin") or "read"
        for name in collections:
            if not self.may(role, name):
                assert self.key is not None
                raise PermissionDenied(
                    f"key {self.key.id} has no role {role!r} on collection {(told or name)[:128]!r}, which "
                    f"{self.method} needs; ask the operator for a grant",
                    key=self.key.id,
                    role=role,
                )

    def require_everything(self) -> None:
        """PermissionDenied unless the key is an admin's of all collections, those to come included."""
        if self.key is None or any(g == Grant("admin", "*") for g in self.key.grants):
            return
        raise PermissionDenied(
            f"key {self.key.id} is not an admin's of all collections, which {self.method} needs; ask the "
            "operator for the grant admin:*",
            key=self.key.id,
            role="admin",
        )


CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""The caller of the call that this thread works on."""


def require_everything() -> None:
    """For calls that concern the whole database: `Caller.require_everything` of this thread's caller."""
    caller = CALLER.get()
    if caller is not None:
        caller.require_everything()


class GuardedDatabase:
    """The verbs of `vecdb.Database` that handlers use, and no others, each asked of `CALLER` first.

    The right is checked on the very collection that is handed out, so an alias that moves meanwhile
    changes nothing. Without a caller everything is allowed: the embedded case, and no call's.
    """

    def __init__(self, database: vecdb.Database) -> None:
        self._database = database
        # What an alias stands for must not change between the question and the change.
        self._names = threading.Lock()

    def get_collection(self, name: str) -> vecdb.Collection:
        caller = CALLER.get()
        if caller is None:
            return self._database.get_collection(name)
        if caller.key is None:
            return self._found(name, caller)
        # Before it is opened: who may not read it makes nobody wait or be closed for it, and hears no error of it.
        try:
            caller.collection = self._database.own_name(name)
        except CollectionNotFound:
            caller.require(name)
            raise
        caller.require(caller.collection, told=name)
        collection = self._database.get_collection(name)
        if collection.name != caller.collection:
            # Its name, or what the alias stands for, has changed meanwhile.
            self.ask_again(collection, name)
        return collection

    def _found(self, name: str, caller: Caller) -> vecdb.Collection:
        """The collection for one who may everything."""
        try:
            collection = self._database.get_collection(name)
            caller.collection = collection.name
        except CollectionNotFound:
            raise
        except VecdbError:
            # The audit log has it by its own name, also where it cannot be opened.
            caller.collection = self._database.own_name(name)
            raise
        return collection

    def ask_again(self, collection: vecdb.Collection, name: str) -> None:
        """For a call that goes on with a collection: grants may have been taken away, and it may have got another name.
        About 1 us."""
        caller = CALLER.get()
        if caller is not None:
            caller.collection = collection.name
            caller.require(caller.collection, told=name)

    def list_collections(self) -> list[vecdb.CollectionInfo]:
        caller = CALLER.get()
        infos = self._database.list_collections()
        return infos if caller is None else [i for i in infos if caller.may("read", i.name)]

    def collection_names(self) -> list[str]:
        caller = CALLER.get()
        names = self._database.collection_names()
        return names if caller is None else [name for name in names if caller.may("read", name)]

    def list_aliases(self) -> dict[str, str]:
        caller = CALLER.get()
        aliases = self._database.list_aliases()
        if caller is None:
            return aliases
        return {alias: name for alias, name in aliases.items() if caller.may("read", name)}

    def create_collection(self, name: str, **given: Any) -> vecdb.Collection:
        self._require(name)
        return self._database.create_collection(name, **given)

    def drop_collection(self, name: str, **given: Any) -> None:
        self._require(name)
        self._database.drop_collection(name, **given)

    def rename_collection(self, name: str, new_name: str, **given: Any) -> None:
        with self._names:
            self._require(name, new_name)
            self._database.rename_collection(name, new_name, **given)

    def set_alias(self, alias: str, collection: str, **given: Any) -> None:
        with self._names:
            self._require(collection, alias)
            self._require_behind(alias)
            self._database.set_alias(alias, collection, **given)

    def drop_alias(self, alias: str, **given: Any) -> None:
        with self._names:
            self._require(alias)
            self._require_behind(alias)
            self._database.drop_alias(alias, **given)

    # These run in threads of their own, which have no caller: handlers ask `require_everything` before.

    def backup(self, target: str, **given: Any) -> vecdb.BackupInfo:
        return self._database.backup(target, **given)

    def restore(self, target: str, **given: Any) -> vecdb.RestoreResult:
        return self._database.restore(target, **given)

    def _require_behind(self, alias: str) -> None:
        """Asks for the collection that an alias stands for now, so that it can be taken from nobody else."""
        caller, held = CALLER.get(), self._database.list_aliases()
        if caller is not None and alias in held:
            caller.require(held[alias], told=alias)

    def _require(self, *names: str) -> None:
        caller = CALLER.get()
        if caller is not None:
            caller.collection = names[0]
            caller.require(*names)
