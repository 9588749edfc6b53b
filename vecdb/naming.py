"""The verbs of a database that change names alone: renaming, and aliases."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

from .batch import check_request_id
from .collection_info import check_name
from .core import Core
from .out_of_memory import tells_memory
from .store import Catalog, Change


def change_of(request_id: str | None, *what: str) -> Change | None:
    """The change that a caller gave an id, told from others by `what`; None where it gave none. InvalidBatch for what is no id."""
    if request_id is None:
        return None
    return Change(check_request_id(request_id), "\0".join(what).encode(errors="replace"))


@tells_memory
class Naming(ABC):
    """What `Database` does with names. With a `request_id`, a text of 1 to 64 bytes that no other change has, a repetition
    within an hour is answered and not done again; 512 are remembered. InvalidArgument when the id came with another change.
    """

    _catalog: Catalog
    _cores: dict[str, Core]

    @abstractmethod
    def _check_open(self) -> None:
        """Raises Closed."""

    @abstractmethod
    def _change(self) -> AbstractContextManager[None]:
        """One change of names at a time, on a database that is open for writing."""

    def rename_collection(self, name: str, new_name: str, *, request_id: str | None = None) -> None:
        """Renames; aliases follow, open handles go on. Raises CollectionExists, CollectionNotFound."""
        check_name(new_name)
        change = change_of(request_id, "rename", str(name), new_name)
        with self._change():
            if self._catalog.was_done(change):
                return
            self._catalog.rename(name, new_name, change)
            core = self._cores.get(self._catalog.names().collections[new_name])
            if core is not None:
                core.info = dataclasses.replace(core.info, name=new_name)

    def set_alias(self, alias: str, collection: str, *, request_id: str | None = None) -> None:
        """Makes an alias, or points an existing one elsewhere in one step."""
        check_name(alias)
        change = change_of(request_id, "set alias", alias, str(collection))
        with self._change():
            if not self._catalog.was_done(change):
                self._catalog.set_alias(alias, collection, change)

    def drop_alias(self, alias: str, *, request_id: str | None = None) -> None:
        """Removes an alias. Raises AliasNotFound."""
        change = change_of(request_id, "drop alias", str(alias))
        with self._change():
            if not self._catalog.was_done(change):
                self._catalog.drop_alias(alias, change)

    def list_aliases(self) -> dict[str, str]:
        """Alias to collection name, ordered by alias."""
        self._check_open()
        return dict(self._catalog.names().aliases)
