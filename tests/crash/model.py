"""What a database must hold: everything that was acknowledged, and of what was under way any whole part.

The journal has two kinds of entries: an operation that begins, as a list of parts, and the acknowledgement
of a part. A part is done as a whole or not at all. Parts are plain JSON:

    {"do": "put", "in": token, "ids": [...], "v": version, "titled": bool}    insert, upsert, one batch of a stream
    {"do": "change", "in": token, "ids": [...], "v": version, "what": [...]}  update of some of `PARTS`
    {"do": "gone", "in": token, "ids": [...], "where": filter} delete by ids, or by that filter
    {"do": "create", "in": token, "name": n, "shape": s}       {"do": "drop", "name": n}
    {"do": "rename", "name": n, "to": m}
    {"do": "alias", "name": a, "to": n}                        {"do": "unalias", "name": a}
    {"do": "restore", "in": token, "name": n, "from": backup, "of": m}     under a new name
    {"do": "backup"}           {"do": "beside", "name": folder, "from": backup}     restored into a new folder
    {"do": "repair"}           of a database that was damaged, and not served since
    {"do": "upgrade"}          {"do": "downgrade"}             {"do": "write old", "v": version}

What has a "request" was sent with that id, and may be sent again. `token` is the model's own name of a collection, which a rename does not change. The last three are of a database of the
first format that lies beside.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from crash import records

Part = dict[str, Any]
State = tuple[int, int, int, int]
"""The versions of a record's vector, its vector `title` (0: it has none), its document and its metadata."""
Records = dict[int, State]

PARTS = ("vectors", "titles", "documents", "metadata")
"""What a change may be of, in the order of `State`."""
REPEATED = 6
"""Parts that are sent again after a kill, of those that were acknowledged."""
OF_RECORDS = ("put", "change", "gone")
OF_OLD = ("upgrade", "downgrade", "write old")
OF_NAMES = ("create", "drop", "rename", "alias", "unalias", "restore")


@dataclass
class Held:
    """One collection: its shape, and of each record what it holds."""

    shape: str
    records: Records = field(default_factory=dict)


@dataclass
class Old:
    """The database of the first format: the formats of its collections, and the records that were written since."""

    formats: dict[str, int] = field(default_factory=lambda: {"docs": 1, "half": 1})
    written: list[int] = field(default_factory=list)


@dataclass
class Recent:
    """A part of records that was acknowledged and may not be on the disk yet."""

    operation: int
    in_order: bool
    began_s: float
    acknowledged_s: float
    before: dict[int, State | None]
    """What the records held before it, None where they were not there."""


@dataclass
class Model:
    """The acknowledged state, and the parts of the operation that was under way."""

    collections: dict[str, Held] = field(default_factory=dict)
    """By token."""
    names: dict[str, str] = field(default_factory=dict)
    """Name to token."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Alias to token."""
    pending: list[Part] = field(default_factory=list)
    in_order: bool = False
    """Whether a pending part may be there only if those before it are: a stream."""
    version: int = 0
    """The highest that was given out."""
    backup: str = ""
    """Id of the newest backup that was acknowledged."""
    backups: dict[str, dict[str, Held]] = field(default_factory=dict)
    """What each backup holds, by id and name. Never changed, so copies share it."""
    beside: dict[str, str] = field(default_factory=dict)
    """Folders that were restored into, with the backup."""
    old: Old = field(default_factory=Old)
    old_touched: bool = True
    """Whether anything was done to it since it was compared."""
    recent: dict[str, list[Recent]] = field(default_factory=dict)
    """By token, in the order of the acknowledgements; since the last comparison."""
    operation: int = 0
    began_s: float = 0.0
    lost_s: float = 0.0
    """How much acknowledged time a power cut may take; 0 where nothing may be lost."""
    done: list[Part] = field(default_factory=list)
    """The last that have an id of their request and are done: sent again, they must change nothing."""
    under_way: list[Part] = field(default_factory=list)
    """Parts of records with such an id that were under way when it was killed; they may be done or not."""
    lost_parts: int = 0
    """Collections of which the last comparison found that a power cut took something."""

    def begin(
        self, parts: Iterable[Part], *, in_order: bool = False, at_s: float | None = None
    ) -> None:
        """An operation begins; the one before has ended, whatever of it was acknowledged."""
        self.operation += 1
        # Sent again behind other writes they would be others (--seed 9301, kill 307: an insert of what was there by then).
        self.under_way = []
        self.began_s = time.monotonic() if at_s is None else at_s
        self.pending = list(parts)
        self.in_order = in_order
        if any(part["do"] == "repair" for part in self.pending):
            # Of damage it may forget which requests were done; it says so then.
            self.done = []
        self.old_touched |= any(part["do"] in OF_OLD for part in self.pending)
        self.version = max([self.version, *(part.get("v", 0) for part in self.pending)])

    def acknowledge(self, part: Part, at_s: float | None = None) -> None:
        self.pending.remove(part)
        self.is_done(part)
        if part["do"] in OF_RECORDS:
            held = self.collections[part["in"]].records
            now = time.monotonic() if at_s is None else at_s
            before = {n: held.get(n) for n in part["ids"]}
            made = Recent(self.operation, self.in_order, self.began_s, now, before)
            self.recent.setdefault(part["in"], []).append(made)
        self.apply(part)

    def is_done(self, part: Part) -> None:
        """Remembers it as one that may be sent again."""
        if "request" in part:
            self.done = [*self.done, part][-REPEATED:]

    def without_newest(self, token: str) -> Iterator[Records]:
        """What a power cut may leave of a collection: its records as they were before the newest parts, of which none
        was acknowledged more than `lost_s` before the last operation began that was acknowledged. Parts of one
        operation that are not in order may be there in any choice, since they were under way together."""
        recent = self.recent.get(token, [])
        state = dict(self.collections[token].records)
        if not recent or not self.lost_s:
            return
        first_s = recent[-1].began_s - self.lost_s
        operations = [
            list(parts) for _, parts in itertools.groupby(recent, lambda one: one.operation)
        ]
        for parts in reversed(operations):
            if parts[0].in_order:
                chosen = [parts[n:] for n in range(len(parts) - 1, -1, -1)]
            else:
                sizes = range(1, len(parts) + 1)
                chosen = [list(c) for n in sizes for c in itertools.combinations(parts, n)]
            for gone in chosen:
                if min(part.acknowledged_s for part in gone) >= first_s:
                    yield _undone(state, gone)
            if min(part.acknowledged_s for part in parts) < first_s:
                return
            state = _undone(state, parts)

    def apply(self, part: Part) -> None:
        verb = part["do"]
        if verb in OF_RECORDS:
            held = self.collections[part["in"]].records
            held.update(after(held, part))
            for number in part["ids"] if verb == "gone" else ():
                held.pop(number, None)
        elif verb in OF_NAMES:
            self._apply_to_names(part)
        elif verb == "beside":
            self.beside[part["name"]] = part["from"]
        elif verb == "write old":
            self.old.written.append(part["v"])
        elif verb in ("upgrade", "downgrade"):
            self.old.formats = dict.fromkeys(self.old.formats, 2 if verb == "upgrade" else 1)
            self.old.written = self.old.written if verb == "upgrade" else []

    def _apply_to_names(self, part: Part) -> None:
        verb = part["do"]
        if verb == "create":
            self.collections[part["in"]] = Held(part["shape"])
            self.names[part["name"]] = part["in"]
        elif verb == "restore":
            held = self.backups[part["from"]][part["of"]]
            self.collections[part["in"]] = Held(held.shape, dict(held.records))
            self.names[part["name"]] = part["in"]
        elif verb == "drop":
            token = self.names.pop(part["name"])
            del self.collections[token]
            self.aliases = {a: t for a, t in self.aliases.items() if t != token}
        elif verb == "rename":
            self.names[part["to"]] = self.names.pop(part["name"])
        elif verb == "alias":
            self.aliases[part["name"]] = self.names[part["to"]]
        else:
            del self.aliases[part["name"]]

    def backed_up(self, backup: str) -> None:
        """A backup of what is acknowledged now."""
        self.backup = backup
        self.backups[backup] = self.snapshot()

    def snapshot(self) -> dict[str, Held]:
        """What a backup of this moment holds."""
        return {
            name: Held(self.collections[token].shape, dict(self.collections[token].records))
            for name, token in self.names.items()
        }

    def name_of(self, token: str) -> str:
        return next(name for name, held in self.names.items() if held == token)

    def alias_names(self) -> dict[str, str]:
        """Alias to the name of its collection."""
        return {alias: self.name_of(token) for alias, token in self.aliases.items()}

    def copy(self) -> Model:
        made = copy.copy(self)
        made.collections = {
            token: Held(held.shape, dict(held.records)) for token, held in self.collections.items()
        }
        made.names, made.aliases = dict(self.names), dict(self.aliases)
        made.backups, made.beside = dict(self.backups), dict(self.beside)
        made.old = Old(dict(self.old.formats), list(self.old.written))
        made.pending, made.done = list(self.pending), list(self.done)
        made.under_way = list(self.under_way)
        made.recent = {token: list(parts) for token, parts in self.recent.items()}
        return made


def _undone(state: Mapping[int, State], parts: list[Recent]) -> Records:
    """The records before these parts, the newest of which is the last."""
    made: dict[int, State | None] = dict(state)
    for part in reversed(parts):
        made.update(part.before)
    return {n: versions for n, versions in made.items() if versions is not None}


def after(held: Mapping[int, State], part: Part) -> Records:
    """What a put or a change leaves of the records that it is about."""
    if part["do"] == "put":
        v = part["v"]
        return {
            n: (v, v if part["titled"] and records.is_titled(n, v) else 0, v, v)
            for n in part["ids"]
        }
    if part["do"] == "change":
        return {n: _changed(n, held[n], part) for n in part["ids"]}
    return {}


def _changed(number: int, state: State, part: Part) -> State:
    v, what = part["v"], part["what"]
    # A vector that is not given stays.
    made = [v if one in what else was for one, was in zip(PARTS, state, strict=True)]
    made[1] = made[1] if records.is_titled(number, v) else state[1]
    vector, title, document, metadata = made
    return vector, title, document, metadata
