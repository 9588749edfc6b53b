"""The writer: operations of every verb, drawn by a seed, through a database or through a client of a server."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import vecdb
import vecdb_client
from crash import records
from crash.model import Model, Part

NAMES = ("a", "b", "c")
ALIASES = ("x", "y")
NUMBERS = 2_500
"""Records a collection may have."""

INDEXED = 1_300
"""Records that are enough for an index."""

VERBS = {
    "upsert": 6, "insert": 3, "tag": 3, "delete": 3, "filter": 2, "burst": 3, "stream": 3, "build": 2,
    "compact": 2, "backup": 1, "create": 1, "drop": 0.5, "rename": 1, "alias": 1, "unalias": 0.5,
}  # fmt: skip
"""Verb to its share."""

REACHED_BY = {
    "rows": ("upsert", "burst", "filter"), "index": ("build",), "purge": ("compact",),
    "vacuum": ("compact",), "create": ("create", "drop"), "drop": ("drop", "create"),
    "catalog": ("rename", "alias"), "sweep": ("build",), "backup": ("backup",),
}  # fmt: skip
"""Which verbs reach the failpoints whose names begin so."""


class Writer:
    """Does operations on `database`, a `vecdb.Database` or a client, and tells `journal` of each.

    The journal is told before an operation begins and after each part that is acknowledged: it gets
    ("begin", parts, in_order, moment) and ("done", part, moment), of a backup ("backed up", id). `wanted` names the failpoint
    that is to be reached, `target` where backups go.
    """

    def __init__(
        self,
        database: Any,
        model: Model,
        seed: int,
        journal: Callable[[Any], None],
        wanted: str,
        target: str,
    ) -> None:
        self._database = database
        self._target = target
        self._model = model
        self._rng = random.Random(seed)
        self._journal = journal
        self._lock = threading.Lock()
        self._shares = dict(VERBS)
        for verb in REACHED_BY.get(wanted.partition(".")[0], ()):
            self._shares[verb] += 25

    def step(self) -> None:
        """One operation."""
        model, rng = self._model, self._rng
        if not model.names:
            self._create()
            return
        (verb,) = rng.choices([*self._shares], [*self._shares.values()])
        name = rng.choice(sorted(model.names))
        {
            "create": self._create, "drop": self._drop, "rename": self._rename,
            "alias": self._alias, "unalias": self._unalias, "backup": self._backup,
        }.get(verb, lambda: self._on_records(verb, name))()  # fmt: skip

    # -- names

    def _one(self, part: Part, work: Callable[[], object]) -> None:
        self._begin([part])
        work()
        self._done(part)

    def _create(self) -> None:
        free = sorted({*NAMES} - {*self._model.names})
        if not free:
            return
        name, shape = self._rng.choice(free), self._rng.choice(sorted(records.SHAPES))
        self._model.version += 1
        part = {"do": "create", "in": f"c{self._model.version}", "name": name, "shape": shape}
        self._one(
            part | {"v": self._model.version},
            lambda: self._database.create_collection(name, **records.SHAPES[shape]),
        )

    def _drop(self) -> None:
        name = self._rng.choice(sorted(self._model.names))
        self._one({"do": "drop", "name": name}, lambda: self._database.drop_collection(name))

    def _rename(self) -> None:
        free = sorted({*NAMES} - {*self._model.names})
        if not free:
            return
        name, new = self._rng.choice(sorted(self._model.names)), self._rng.choice(free)
        part = {"do": "rename", "name": name, "to": new}
        self._one(part, lambda: self._database.rename_collection(name, new))

    def _alias(self) -> None:
        alias, name = self._rng.choice(ALIASES), self._rng.choice(sorted(self._model.names))
        part = {"do": "alias", "name": alias, "to": name}
        self._one(part, lambda: self._database.set_alias(alias, name))

    def _unalias(self) -> None:
        if self._model.aliases:
            alias = self._rng.choice(sorted(self._model.aliases))
            self._one({"do": "unalias", "name": alias}, lambda: self._database.drop_alias(alias))

    def _backup(self) -> None:
        self._begin([])
        info = self._database.backup(self._target, kind=self._rng.choice(["auto", "full"]))
        self._journal(("backed up", info.id))

    # -- records

    def _on_records(self, verb: str, name: str) -> None:
        rng, model = self._rng, self._model
        token = model.names[name]
        held = model.collections[token].records
        docs = self._database.get_collection(name)
        if verb == "build" and len(held) < INDEXED:
            ids = self._rng.sample(range(NUMBERS), INDEXED)
            self._put(docs, "upsert", [self._part("put", token, ids)])
        if verb in ("build", "compact"):
            self._begin([])
            # Beside a later write: without waiting, most of the time.
            wait = rng.random() < 0.4
            (docs.build_index if verb == "build" else docs.compact)(wait=wait)
        elif verb in ("upsert", "insert"):
            ids = self._numbers(range(NUMBERS) if verb == "upsert" else {*range(NUMBERS)} - {*held})
            self._put(docs, verb, [self._part("put", token, ids)])
        elif verb == "burst":
            ids = self._numbers(range(NUMBERS), least=8)
            self._burst(docs, [self._part("put", token, ids[n::4]) for n in range(4)])
        elif verb == "stream":
            ids = self._numbers(range(NUMBERS), least=8)
            self._stream(docs, [self._part("put", token, ids[n::6]) for n in range(6)])
        elif verb == "tag":
            part = self._part("tag", token, self._numbers(held))
            tags = [{"v": part["v"]}] * len(part["ids"])
            if part["ids"]:
                ids = records.names(part["ids"])
                self._one(part, lambda: docs.update(ids, metadata=tags))
        elif verb == "delete":
            ids = self._numbers(range(NUMBERS), most=200)
            self._delete(part_of(token, ids), lambda: docs.delete(records.names(ids)))
        else:
            least = rng.randrange(1, 7)
            ids = [n for n in held if n % 7 == least]
            self._delete(part_of(token, ids), lambda: docs.delete(filter={"n": least}))

    def _numbers(self, among: Any, least: int = 1, most: int = 500) -> list[int]:
        among = sorted(among)
        wanted = self._rng.choice([least, 8, 60, most])
        return self._rng.sample(among, min(wanted, len(among)))

    def _part(self, verb: str, token: str, ids: list[int]) -> Part:
        self._model.version += 1
        return {"do": verb, "in": token, "ids": ids, "v": self._model.version}

    def _columns(self, part: Part) -> dict[str, Any]:
        shape = self._model.collections[part["in"]].shape
        return records.columns(part["ids"], part["v"], shape)

    def _put(self, docs: Any, verb: str, parts: list[Part]) -> None:
        if parts[0]["ids"]:
            self._one(parts[0], lambda: getattr(docs, verb)(**self._columns(parts[0])))

    def _delete(self, part: Part, work: Callable[[], Any]) -> None:
        held = self._model.collections[part["in"]].records
        expected = sum(n in held for n in part["ids"])
        self._begin([part])
        count = work().count
        if count != expected:
            raise AssertionError(f"a delete of {expected} records counted {count}")
        self._done(part)

    def _burst(self, docs: Any, parts: list[Part]) -> None:
        """Several writers at once: they share commits."""
        self._begin(parts)

        def put(part: Part) -> None:
            docs.upsert(**self._columns(part))
            self._done(part)

        with ThreadPoolExecutor(len(parts)) as threads:
            list(threads.map(put, parts))

    def _stream(self, docs: Any, parts: list[Part]) -> None:
        """Many batches under way; without a server, one after the other."""
        self._begin(parts, in_order=True)
        if hasattr(docs, "ingest"):
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


def part_of(token: str, ids: list[int]) -> Part:
    return {"do": "gone", "in": token, "ids": ids}


def run(writer: Writer) -> None:
    """Operations without end; of a client, until the server is gone."""
    while True:
        try:
            writer.step()
        except (vecdb.errors.VecdbError, vecdb_client.errors.VecdbError) as error:
            # A build that is waited for ends when its collection is dropped or compacted.
            if error.reason == "UNAVAILABLE":
                return
            if error.reason != "CANCELLED":
                raise
