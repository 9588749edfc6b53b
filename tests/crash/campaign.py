"""Kills, one after the other, in the life of one database: each is followed by a comparison.

Children are forked from a process that has imported everything and opened nothing, which costs some
milliseconds instead of a second. One child opens the database, compares it with the journal, and writes
until it dies. Through the server it takes two: a server, and a client that writes.

What each has left is copied before anybody opens it, and the copy is opened and compared. The next child opens what was
left as it is, so that a kill also comes while that is recovered; and since the copy has told what became of that which was under way,
whoever compares what was left must find the same.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vecdb
import vecdb_server.server  # noqa: F401  loaded before the forks
from crash import child as children
from crash import cut, damage, folders, old, records, striking, work
from crash.aiming import FIRST, Aiming
from crash.child import Child, Failed
from crash.model import Held, Model, Old
from crash.tally import ANY_MOMENT, Case, Tally
from crash.verify import verify
from vecdb.store import sync_point
from vecdb_client import connect
from vecdb_server.__main__ import main

SETTINGS: dict[str, Any] = {
    # Small maps grow often; nothing is kept for cursors, so that compaction purges all that is dead.
    "map_initial_bytes": 1 << 20, "history_s": 0.0, "compact_dead_share": 0.1, "device": "cpu",
    "build_threads": 1,
}  # fmt: skip
COUNTED: dict[str, Any] = {"auto_build": False, "compact_dead_share": 1.0}
"""Settings with which nothing is done but what the writer asks for."""
WAYS = ("embedded", "server")
COPIER_S = 8.0
"""A process that copies is there after half a second, unless the machine is busy."""
SEEN_TO = 0.2
"""Share of servers that open what somebody has opened, compared and closed since the kill."""
LIVES = 60
"""Kills after which the database is made anew, so that its first steps are met too."""
COPY = "copy"
"""Name of the folder, beside that of the database, of the copy of what the last kill has left."""


class Campaign:
    """One database in `folder`, killed again and again; the model goes from child to child.

    `aim` is the share of kills that are aimed at a failpoint, the one that was struck least so far; `cuts` the
    share that are power cuts, `copiers` the share of others in which backups are copied by processes of their
    own, five times that where it is aimed at a backup. `points` are those to aim at; none: all that were reached.

    `counted` aims every kill at a point and says at which passing of it, has the writer do one thing at a time, and ends after so
    many operations, not after so much time: then the same seed kills at the same steps, with the same writes
    acknowledged. Power cuts, processes that copy, and writers that meet are not among these. Without it a seed repeats
    what is done, but not the moments at which the clock strikes. `cases` are kills that were drawn before, which come first.
    """

    def __init__(
        self,
        folder: Path,
        ways: tuple[str, ...],
        aim: float,
        cuts: float,
        points: tuple[str, ...] = (),
        *,
        copiers: float = 0.1,
        counted: bool = False,
        cases: list[dict[str, Any]] | None = None,
    ) -> None:
        self.folder = folder
        self.tally = Tally()
        self.journal: list[str] = []
        """What was begun, acknowledged and reached, in words that are the same in each run that did the same."""
        self.cases: list[dict[str, Any]] = []
        """Each kill as it was drawn."""
        self._drawn_before = cases or []
        self._counted = counted
        self._settings = SETTINGS | (COUNTED if counted else {})
        self._model = Model()
        self._life = 0
        self._aiming = Aiming(
            self.tally, ways, aim, cuts, points,
            copiers=copiers, counted=counted, interval=SETTINGS.get("durability") == "interval",
        )  # fmt: skip

    def run(self, number: int, seed: int) -> None:
        """Kill `number` of the campaign with this seed, and the comparison of what it left. Raises Failed."""
        if number < len(self._drawn_before):
            case = Case(**self._drawn_before[number])
        else:
            case = self._aiming.drawn(random.Random(f"{seed} {number}"))
        self.cases.append(case.as_drawn())
        self.strike(case, random.Random(f"{seed} {number} moments"))

    def strike(self, case: Case, moments: random.Random) -> None:
        """This kill, and the comparison of what it left. Raises Failed."""
        first = case.point.startswith(FIRST) and self._life
        if not case.opening and (self._life >= LIVES or first):
            self.finish()
            self._life, self._model = 0, Model()
            for folder in self._roots():
                folders.remove(folder)
        self._life += 1
        self._tidy()
        (self._embedded if case.way == "embedded" else self._server)(case, moments)
        self.tally.killed(case)
        self._note("killed", [case.way, case.point, case.hit, case.died_at, case.verb])
        self._compare_copy()

    def _beside(self) -> Path:
        return self.folder.with_name(records.BESIDE)

    def _backups(self) -> Path:
        return self.folder.with_name(records.BACKUPS)

    def _roots(self) -> tuple[Path, ...]:
        """All folders that belong together. The database comes last: where a power cut has written that, it has written all."""
        return self._backups(), self._beside(), self.folder

    def _tidy(self) -> None:
        """Removes what was restored beside and has been compared; the old database is put there."""
        self._beside().mkdir(exist_ok=True, parents=True)
        old.unpack(self._beside())
        for path in self._beside().iterdir():
            # What an interrupted restore has left is the next one's to remove.
            if path.name != records.OLD and "." not in path.name:
                shutil.rmtree(path)

    def finish(self) -> None:
        """A comparison now, in a child that nobody kills. Raises Failed."""
        self._take(self._compare(self.folder), None)

    def _compare_copy(self) -> None:
        """Compares a copy of what a kill has left, and takes what that holds for what was done. What was left stays as it is."""
        made = self.folder.with_name(COPY)
        folders.copy([*self._roots()], made)
        broken = [part for part in self._model.pending if part["do"] == "repair"]
        self._take(self._compare(made / self.folder.name, is_copy=True), None)
        self.tally.copies += 1
        # Only the copy has been repaired.
        self._model.pending = broken

    # -- embedded

    def _embedded(self, case: Case, rng: random.Random) -> None:
        model, folder = self._model, self.folder

        def child(send: Callable[[Any], None]) -> None:
            striking.arm(send, case, self._disks(case))
            settings = self._settings | case.settings
            database, took_s = self._opened(folder, model, settings)
            found = verify(database, model)
            send(["whole", _told(found), took_s])
            writer = work.Writer(
                database, found, case.seed, send, case.wanted,
                str(self._backups()), folder=folder, settings=settings, counted=self._counted,
            )  # fmt: skip
            work.run(writer, case.steps)
            striking.end(send)

        process = Child(child)
        lines = []
        if rng.random() < 0.9:
            # Otherwise it may be struck while it opens the database.
            lines = process.until("whole", "dying")
        lines = self._let_run(process, lines, case, rng)
        self._cut(case, lines)

    def _disks(self, case: Case) -> list[tuple[cut.Disk, Path]]:
        """What follows the files, so that a power cut can be simulated; none for a plain kill."""
        if not case.power_cut:
            return []
        lazy = SETTINGS.get("durability") == "interval"
        return [
            (cut.Disk(root, case.seed, lazy=lazy and root == self.folder), _cut_of(root))
            for root in self._roots()
        ]

    def _cut(self, case: Case, lines: list[Any]) -> None:
        """Puts in place what a power cut has left, if the process told so; its journal has been followed to the end."""
        if not case.power_cut:
            return
        # Where the clock ran out first, it may have been killed before all was written down: then it was a plain kill.
        case.power_cut = sum(line[0] == "left out" for line in lines) == len(self._roots())
        for root in self._roots():
            if case.power_cut:
                folders.put_in_place(root, _cut_of(root))
            else:
                folders.remove(_cut_of(root))
        if case.power_cut:
            self._boot()

    def _opened(
        self, folder: Path, model: Model, settings: dict[str, Any]
    ) -> tuple[vecdb.Database, float]:
        """The database, and how long it took to open and to count each collection. A repair that was cut short is
        done again before."""
        if damage.is_pending(model):
            damage.mend(folder)
        started = time.perf_counter()
        database = vecdb.open(folder, **settings)
        for info in database.list_collections():
            database.get_collection(info.name).count()
        return database, time.perf_counter() - started

    def _boot(self) -> None:
        """The machine is started again; what was not on the disk may be lost."""
        boot = f"boot {self.tally.kills.total()} {time.monotonic()}".encode()
        sync_point.boot_id = lambda: boot
        if SETTINGS.get("durability") == "interval":
            self._model.lost_s = SETTINGS["durability_interval_ms"] / 1_000
            self._model.done = []

    # -- through a server

    def _server(self, case: Case, rng: random.Random) -> None:
        untouched = case.opening or self._life == 1
        if damage.is_pending(self._model) or (rng.random() < SEEN_TO and not untouched):
            self._take(self._compare(self.folder), None)
        model = self._model
        folder = self.folder

        def server(send: Callable[[Any], None]) -> None:
            striking.arm(send, case, self._disks(case))
            reading, writing = os.pipe()
            os.dup2(writing, 1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            if not os.fork():
                # Passes the address on: only the server itself must not write to our pipe meanwhile.
                os.close(writing)
                os.close(1)
                line = os.fdopen(reading).readline()
                send(["address", line.split()[-1]] if line else ["silent"])
                os._exit(0)
            settings = self._settings | case.settings
            flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
            flags += [f"--data={folder}", f"--backup-root={folder.parent}", "--log-level=error"]
            code = main(["serve", "--port=0", *flags])
            raise AssertionError(f"the server ended by itself, with code {code}")

        serving = Child(server)
        lines = serving.until("address")
        address = lines[-1][1] if lines and lines[-1][0] == "address" else None
        if address is None:
            self._cut(case, self._let_run(serving, lines, case, rng))
            return

        def client(send: Callable[[Any], None]) -> None:
            with connect(address, timeout_s=children.PATIENCE_S, retry_s=0) as database:
                writer = work.Writer(
                    database, model.copy(), case.seed, send, case.wanted,
                    records.BACKUPS, backups=self._backups(), counted=self._counted,
                )  # fmt: skip
                work.run(writer, case.steps)

        writing = Child(client)
        told = writing.until() if case.steps else self._until_copier_dies(writing, case)
        lines = self._let_run(serving, lines, case, rng)
        told += writing.until()
        os.waitpid(writing.pid, 0)
        writing.close()
        self._take(told, case)
        self._cut(case, lines)

    def _compare(self, folder: Path, *, is_copy: bool = False) -> list[Any]:
        """Opens, compares and closes in a child that nobody kills."""
        model = self._model

        def child(send: Callable[[Any], None]) -> None:
            database, took_s = self._opened(folder, model, self._settings)
            with database:
                send(["whole", _told(verify(database, model, prune=not is_copy)), took_s])

        process = Child(child)
        lines = process.until()
        os.waitpid(process.pid, 0)
        process.close()
        if not any(line[0] == "whole" for line in lines):
            raise Failed(lines[-1][1] if lines else "the child that compares died")
        return lines

    # -- both

    def _let_run(
        self, process: Child, lines: list[Any], case: Case, rng: random.Random
    ) -> list[Any]:
        """Lets it work until its failpoint or some moment, kills it, and takes what it told, which is all of `lines` and the answer."""
        limit_s = rng.uniform(0.6, 1.4) if case.point else rng.uniform(0.0, 0.3)
        if not case.point and case.power_cut:
            limit_s = 1.5
        if case.copiers:
            # Which begins with the start of a process.
            limit_s += rng.uniform(0.5, 2.5)
        if case.way == "embedded":
            lines += self._until_copier_dies(process, case)
        if case.steps and case.way == "embedded":
            lines += process.until("dying")
        elif not case.steps and not (lines and lines[-1][0] == "dying"):
            lines += process.lines(time.monotonic() + limit_s, lambda line: line[0] == "dying")
        if case.power_cut and any(line[0] == "dying" for line in lines):
            # It writes down what the cut leaves, and then kills itself.
            lines += process.until()
        process.kill()
        lines += process.until()
        process.close()
        self._take(lines, case)
        return lines

    @staticmethod
    def _until_copier_dies(process: Child, case: Case) -> list[Any]:
        """What a writer tells until a process that copies was killed, or it is clear that none will be."""
        if not (case.copier_point or case.copier_after_s):
            return []
        end = time.monotonic() + COPIER_S
        return process.lines(end, lambda line: line[0] in ("copier killed", "dying", "failed"))

    def _take(self, lines: list[Any], case: Case | None) -> None:
        """Follows the journal of a child."""
        for verb, *told in lines:
            if verb == "failed":
                raise Failed(told[0])
            if verb == "whole":
                self._model = _model_of(told[0], self._model)
                self.tally.compared += 1
                self.tally.opened_s.append(told[1])
                self.tally.cuts_that_cost += bool(told[0]["lost_parts"])
            elif verb == "begin":
                self._model.begin(told[0], in_order=told[1], at_s=told[2])
                self._note(verb, told[0])
            elif verb == "done":
                self._model.acknowledge(told[0], told[1])
                self._note(verb, told[0])
                if case is not None:
                    case.acknowledged += 1
            elif verb == "backed up":
                self._model.backed_up(told[0])
            elif verb == "hit":
                self.tally.hits[told[0]] += 1
                self._note(verb, told[0])
            elif verb == "left out":
                self.tally.left_out_pages += told[0]
                self.tally.left_out_names += told[1]
            elif case is not None:
                self._take_of(case, verb, *told)

    def _take_of(self, case: Case, verb: str, *told: Any) -> None:
        """What a child tells of itself."""
        if verb == "verb":
            case.verb = told[0]
            self.tally.done[told[0]] += 1
            self._note(verb, told[0])
        elif verb == "copier killed":
            self.tally.copier_points[case.copier_point or ANY_MOMENT] += 1
        elif verb == "dying":
            case.died_at = told[0]

    def _note(self, verb: str, what: Any) -> None:
        self.journal.append(json.dumps([verb, _without_ids(what)]))


def _without_ids(what: Any) -> Any:
    """The same without ids of backups, which differ from run to run."""
    if isinstance(what, list):
        return [_without_ids(one) for one in what]
    return what | {"from": ""} if isinstance(what, dict) and "from" in what else what


def _told(model: Model) -> Any:
    return {
        "collections": {
            token: [held.shape, [[n, *v] for n, v in held.records.items()]]
            for token, held in model.collections.items()
        },
        "names": model.names,
        "aliases": model.aliases,
        "version": model.version,
        "backup": model.backup,
        "backups": [*model.backups],
        "old": [model.old.formats, model.old.written],
        "done": model.done,
        "under_way": model.under_way,
        "lost_parts": model.lost_parts,
    }


def _model_of(told: Any, before: Model) -> Model:
    """The model that a comparison tells, which was made of `before`. What backups hold is known here."""
    taken = before.snapshot()
    return Model(
        {
            token: Held(shape, {n: (v, t, d, m) for n, v, t, d, m in rows})
            for token, (shape, rows) in told["collections"].items()
        },
        told["names"],
        told["aliases"],
        version=told["version"],
        backup=told["backup"],
        backups={one: before.backups.get(one, taken) for one in told["backups"]},
        old=Old(*told["old"]),
        done=told["done"],
        under_way=told["under_way"],
        old_touched=False,
    )


def _cut_of(root: Path) -> Path:
    """Where a power cut writes what it leaves of a folder."""
    return root.with_name(root.name + "-cut")
