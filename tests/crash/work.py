"""The writer: operations of every verb, drawn by a seed, through a database or through a client of a server."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import vecdb
import vecdb_client
from crash import records
from crash.closed import CLOSED, ClosedVerbs
from crash.model import PARTS, Model, Part
from crash.sending import send, state
from crash.wrong import Wrong

NAMES = ("a", "b", "c")
ALIASES = ("x", "y")
NUMBERS = 2_500
"""Records a collection may have."""

INDEXED = 1_300
"""Records that are enough for an index."""

VERBS = {
    "upsert": 6, "insert": 3, "change": 4, "delete": 3, "filter": 2, "burst": 3, "stream": 3, "build": 2,
    "cancel": 1, "compact": 2, "backup": 1, "restore": 1, "create": 1, "drop": 0.5, "rename": 1, "alias": 1, "unalias": 0.5,
}  # fmt: skip
"""Verb to its share. Where no server stands between, those of `CLOSED` too."""

REACHED_BY = {
    "rows": ("upsert", "burst", "filter"), "index": ("build",), "purge": ("compact",),
    "vacuum": ("compact", "repair"), "create": ("create", "drop", "restore"), "drop": ("drop", "create"),
    "catalog": ("rename", "alias"), "sweep": ("build",), "backup": ("backup", "prune"),
    "restore": ("backup", "restore", "beside"), "repair": ("repair",), "keep": ("upgrade", "downgrade"),
    "upgrade": ("upgrade", "downgrade"), "downgrade": ("upgrade", "downgrade"),
    "tables": ("reopen", "create"), "damage": ("repair",),
}  # fmt: skip
"""Which verbs reach the failpoints whose names begin so."""


class Writer(ClosedVerbs):
    """Does operations on `database`, a `vecdb.Database` or a client, and tells `journal` of each.

    The journal is told before an operation begins and after each part that is acknowledged: it gets
    ("verb", name), ("begin", parts, in_order, moment) and ("done", part, moment), of a backup ("backed up", id), and
    ("copier killed",) where it failed of that. `wanted` names the failpoint
    that is to be reached, `target` where backups go, `backups` the same as a folder. `folder` and `settings` are those of an
    embedded database, which is closed and opened again at times. `counted`: one thing at a time, so that the same
    failpoints are reached in the same order whatever the machine does.
    """

    def __init__(
        self,
        database: Any,
        model: Model,
        seed: int,
        journal: Callable[[Any], None],
        wanted: str,
        target: str,
        *,
        backups: Path | None = None,
        folder: Path | None = None,
        settings: dict[str, Any] | None = None,
        counted: bool = False,
    ) -> None:
        self._database = database
        self._target = target
        self._backups = backups or Path(target)
        self._folder = folder
        self._settings = settings or {}
        self._counted = counted
        self._wanted = wanted
        self._model = model
        self._rng = random.Random(seed)
        self._journal = journal
        self._lock = threading.Lock()
        self._shares = VERBS | (CLOSED if folder else {})
        for verb in REACHED_BY.get(wanted.partition(".")[0], ()):
            if verb in self._shares:
                self._shares[verb] += 25

    def first(self) -> None:
        """The first operation after a kill."""
        if self._rng.random() < 0.5:
            self.repeat()
        self.step()

    def step(self) -> None:
        """One operation."""
        model, rng = self._model, self._rng
        if not model.names:
            self._journal(("verb", "create"))
            self._create()
            return
        (verb,) = rng.choices([*self._shares], [*self._shares.values()])
        name = rng.choice(sorted(model.names))
        self._journal(("verb", verb))
        {
            "create": self._create, "drop": self._drop, "rename": self._rename, "alias": self._alias,
            "unalias": self._unalias, "backup": self._backup, "restore": self._restore, "prune": self._prune,
            "reopen": self._reopen, "repair": self._repair, "beside": self._restore_beside,
            "upgrade": self._upgrade, "downgrade": self._downgrade,
        }.get(verb, lambda: self._on_records(verb, name))()  # fmt: skip

    # -- names

    def repeat(self) -> None:
        """Sends again what was acknowledged last before a kill, or found to be done, which must change nothing; and what was
        under way, which is done then, whether or not it was before."""
        model = self._model
        for part in model.done:
            if part.get("in", "") in {*model.collections, ""}:
                before = state(self._database)
                self._journal(("verb", "again"))
                send(self._database, model, part)
                if state(self._database) != before:
                    raise Wrong(
                        f"{part} was sent again and done again: {before} before it, then {state(self._database)}"
                    )
        for part in model.under_way:
            if part["in"] in model.collections:
                self._journal(("verb", "again"))
                self._one(part, lambda part=part: send(self._database, model, part))  # type: ignore[misc]

    def _one(self, part: Part, work: Callable[[], object]) -> None:
        self._begin([part])
        work()
        self._done(part)

    def _send(self, part: Part) -> None:
        """A part with an id, by which it can be sent again after a kill."""
        self._model.version += 1
        part |= {"v": self._model.version} if "v" not in part else {}
        part["request"] = f"q{part['v']}"
        self._one(part, lambda: send(self._database, self._model, part))

    def _create(self) -> None:
        free = sorted({*NAMES} - {*self._model.names})
        if not free:
            return
        name, shape = self._rng.choice(free), self._rng.choice(sorted(records.SHAPES))
        self._model.version += 1
        token = f"c{self._model.version}"
        self._send({"do": "create", "in": token, "name": name, "shape": shape})

    def _drop(self) -> None:
        name = self._rng.choice(sorted(self._model.names))
        self._send({"do": "drop", "name": name})

    def _rename(self) -> None:
        free = sorted({*NAMES} - {*self._model.names})
        if not free:
            return
        name, new = self._rng.choice(sorted(self._model.names)), self._rng.choice(free)
        self._send({"do": "rename", "name": name, "to": new})

    def _alias(self) -> None:
        alias, name = self._rng.choice(ALIASES), self._rng.choice(sorted(self._model.names))
        self._send({"do": "alias", "name": alias, "to": name})

    def _unalias(self) -> None:
        if self._model.aliases:
            alias = self._rng.choice(sorted(self._model.aliases))
            self._send({"do": "unalias", "name": alias})

    def _backup(self) -> None:
        part = {"do": "backup"}
        self._begin([part])
        try:
            info = self._database.backup(self._target, kind=self._rng.choice(["auto", "full"]))
        except (vecdb.errors.Unavailable, vecdb_client.errors.Unavailable) as error:
            if "exit code -9" not in str(error):
                raise
            # The process that copied was killed, as the case wanted; this one goes on.
            self._journal(("copier killed",))
            return
        self._model.backed_up(info.id)
        self._journal(("backed up", info.id))
        self._done(part)

    def _restore(self) -> None:
        """A collection from a backup, under a name that is free."""
        found = [one for one in self._there() if self._model.backups[one]]
        if not found:
            self._backup()
            return
        free = sorted({*NAMES} - {*self._model.names})
        if not free:
            self._drop()
            free = sorted({*NAMES} - {*self._model.names})
        backup, name = self._rng.choice(found), self._rng.choice(free)
        source = self._rng.choice(sorted(self._model.backups[backup]))
        self._model.version += 1
        token = f"c{self._model.version}"
        part = {"do": "restore", "in": token, "name": name, "from": backup, "of": source}
        self._one(
            part | {"v": self._model.version},
            lambda: self._database.restore(self._target, backup=backup, collections={source: name}),
        )

    def _there(self) -> list[str]:
        """Backups that are there and whose content is known, the newest last."""
        if not self._backups.is_dir():
            return []
        there = [info.id for info in vecdb.list_backups(self._backups)]
        return [one for one in there if one in self._model.backups]

    # -- records

    def _on_records(self, verb: str, name: str) -> None:
        rng, model = self._rng, self._model
        token = model.names[name]
        held = model.collections[token].records
        docs = self._database.get_collection(name)
        if verb == "build" and len(held) < INDEXED:
            ids = self._rng.sample(range(NUMBERS), INDEXED)
            self._send(self._part("put", token, ids))
        if verb == "cancel":
            self._begin([])
            docs.build_index(wait=False)
            docs.cancel_build()
        elif verb in ("build", "compact"):
            self._begin([])
            # Beside a later write: without waiting, most of the time.
            wait = rng.random() < 0.4 or self._counted
            (docs.build_index if verb == "build" else docs.compact)(wait=wait)
        elif verb in ("upsert", "insert"):
            ids = self._numbers(range(NUMBERS) if verb == "upsert" else {*range(NUMBERS)} - {*held})
            if ids:
                self._send(self._part("put", token, ids) | {"new": verb == "insert"})
        elif verb == "burst":
            ids = self._numbers(range(NUMBERS), least=8)
            self._burst([self._part("put", token, ids[n::4]) for n in range(4)])
        elif verb == "stream":
            ids = self._numbers(range(NUMBERS), least=8)
            self._stream(docs, [self._part("put", token, ids[n::6]) for n in range(6)])
        elif verb == "change":
            self._change(token)
        elif verb == "delete":
            ids = self._numbers(range(NUMBERS), most=200)
            self._delete({"do": "gone", "in": token, "ids": ids})
        else:
            least = rng.randrange(1, 7)
            ids = [n for n in held if n % 7 == least]
            self._delete({"do": "gone", "in": token, "ids": ids, "where": {"n": least}})

    def _change(self, token: str) -> None:
        """Some parts of some records; all but these stay."""
        held = self._model.collections[token]
        parts = [one for one in PARTS if one != "titles" or self._titled(token)]
        what = sorted(self._rng.sample(parts, self._rng.randrange(1, len(parts) + 1)))
        part = self._part("change", token, self._numbers(held.records)) | {"what": what}
        if part["ids"]:
            self._send(part)

    def _titled(self, token: str) -> bool:
        return "vectors" in records.SHAPES[self._model.collections[token].shape]

    def _numbers(self, among: Any, least: int = 1, most: int = 500) -> list[int]:
        among = sorted(among)
        wanted = self._rng.choice([least, 8, 60, most])
        return self._rng.sample(among, min(wanted, len(among)))

    def _part(self, verb: str, token: str, ids: list[int]) -> Part:
        self._model.version += 1
        part: Part = {"do": verb, "in": token, "ids": ids, "v": self._model.version}
        return part | {"titled": self._titled(token)} if verb == "put" else part

    def _columns(self, part: Part) -> dict[str, Any]:
        shape = self._model.collections[part["in"]].shape
        return records.columns(part["ids"], part["v"], shape)

    def _delete(self, part: Part) -> None:
        held = self._model.collections[part["in"]].records
        expected = sum(n in held for n in part["ids"])
        self._model.version += 1
        part |= {"v": self._model.version, "request": f"q{self._model.version}"}
        self._begin([part])
        count = send(self._database, self._model, part)
        if count != expected:
            raise Wrong(f"a delete of {expected} records counted {count}")
        self._done(part)

    def _burst(self, parts: list[Part]) -> None:
        """Several writers at once: they share commits."""
        for part in parts:
            part["request"] = f"q{part['v']}"
        self._begin(parts)

        def put(part: Part) -> None:
            send(self._database, self._model, part)
            self._done(part)

        with ThreadPoolExecutor(1 if self._counted else len(parts)) as threads:
            list(threads.map(put, parts))

    def _stream(self, docs: Any, parts: list[Part]) -> None:
        """Many batches under way; without a server, one after the other."""
        self._begin(parts, in_order=True)
        if hasattr(docs, "ingest") and not self._counted:
            batches = [self._columns(part) for part in parts]
            for part, _ in zip(parts, docs.ingest(batches, upsert=True), strict=True):
                self._done(part)
        else:
            for part in parts:
                docs.upsert(**self._columns(part))
                self._done(part)

    # -- the journal

    def _begin(self, parts: list[Part], *, in_order: bool = False) -> None:
        self._model.begin(parts, in_order=in_order)
        self._journal(("begin", parts, in_order, self._model.began_s))

    def _done(self, part: Part) -> None:
        with self._lock:
            now_s = time.monotonic()
            self._model.acknowledge(part, now_s)
            self._journal(("done", part, now_s))


def run(writer: Writer, steps: int = 0) -> None:
    """Repeats what it is to repeat, then so many operations, 0: without end; of a client, until the server is gone."""
    for step in range(steps) if steps else itertools.count():
        try:
            (writer.step if step else writer.first)()
        except (vecdb.errors.VecdbError, vecdb_client.errors.VecdbError) as error:
            # A build that is waited for ends when its collection is dropped or compacted.
            if error.reason == "UNAVAILABLE":
                return
            if error.reason != "CANCELLED":
                raise
