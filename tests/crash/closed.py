"""What the writer does with databases that nobody serves: its own, closed for a moment, and those that lie beside."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vecdb
from crash import damage, old, records
from crash.model import Model, Part

CLOSED = {
    "reopen": 1, "repair": 1, "beside": 0.7, "prune": 0.5, "upgrade": 0.7, "downgrade": 0.7,
}  # fmt: skip
"""Verb to its share: close and open again; damage what can be made again, and repair; restore into a new folder; remove
old backups; upgrade a database of the first format, and set it back."""


class ClosedVerbs:
    """See `work.Writer`, which has all of these."""

    _database: Any
    _model: Model
    _rng: random.Random
    _folder: Path | None
    _backups: Path
    _settings: dict[str, Any]
    _wanted: str
    _begin: Callable[..., None]
    _done: Callable[[Part], None]
    _one: Callable[[Part, Callable[[], object]], None]
    _there: Callable[[], list[str]]
    _backup: Callable[[], None]

    def _reopen(self) -> None:
        self._begin([])
        self._database.close()
        self._open()

    def _open(self) -> None:
        assert self._folder is not None
        self._database = vecdb.open(self._folder, **self._settings)

    def _repair(self) -> None:
        """Whoever is killed in the middle leaves it to `damage.mend`, before anybody opens it."""
        assert self._folder is not None
        name = self._rng.choice(sorted(self._model.names))
        made = self._database.get_collection(name)._core.store.folder
        part: Part = {"do": "repair"}
        self._begin([part])
        self._database.close()
        damage.plant(made, self._rng, by_commit=self._wanted.startswith("damage."))
        damage.mend(self._folder)
        self._open()
        self._done(part)

    def _restore_beside(self) -> None:
        found = self._there()
        if not found:
            self._backup()
            return
        assert self._folder is not None
        backup = self._rng.choice(found)
        beside = self._folder.with_name(records.BESIDE)
        name = next(one for n in itertools.count() if not (beside / (one := f"r{n}")).exists())
        self._one(
            {"do": "beside", "name": name, "from": backup},
            lambda: vecdb.restore(self._backups, beside / name, backup=backup, **old.SETTINGS),
        )

    def _prune(self) -> None:
        if self._backups.is_dir():
            self._begin([])
            keep = self._rng.choice([1, 2])
            vecdb.prune_backups(self._backups, keep=keep, incomplete_older_than_s=0)

    def _upgrade(self) -> None:
        """And, half of the time, a write behind it, which a downgrade takes back."""
        part: Part = {"do": "upgrade"}
        self._begin([part])
        with vecdb.open(self._old(), **old.SETTINGS) as database:
            for name in old.COLLECTIONS:
                database.get_collection(name)
            self._done(part)
            if self._rng.random() < 0.5:
                self._model.version += 1
                version = self._model.version
                self._one(
                    {"do": "write old", "v": version},
                    lambda: old.write(database, version),
                )

    def _downgrade(self) -> None:
        self._one({"do": "downgrade"}, lambda: vecdb.downgrade(self._old()))

    def _old(self) -> Path:
        assert self._folder is not None
        return self._folder.with_name(records.BESIDE) / records.OLD
