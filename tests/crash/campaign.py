"""Kills, one after the other, in the life of one database: each is followed by a comparison.

Children are forked from a process that has imported everything and opened nothing, which costs some
milliseconds instead of a second. One child opens the database, compares it with the journal, and writes
until it dies. Through the server it takes three: one that compares, a server, a client that writes.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vecdb
import vecdb_server.server  # noqa: F401  loaded before the forks
from crash import child as children
from crash import cut, damage, old, records, striking, work
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
RARE: dict[str, Any] = {"max_open_collections": 1, "history_s": 3_600.0}
"""Settings that each third case has: files are let go of and opened again; what is dead is kept."""
COUNTED: dict[str, Any] = {"auto_build": False, "compact_dead_share": 1.0}
"""Settings with which nothing is done but what the writer asks for."""
STEPS = 30
"""Operations of a counted case, at most."""
WAYS = ("embedded", "server")
FIRST = ("database.", "catalog.mkdir", "catalog.r", "catalog.sync-folder")
"""Points that are reached when a database is made: for these it is made anew."""
NOT_SERVED = (
    "repair.", "keep.", "upgrade.", "downgrade.", "restore.mkdir", "restore.touch", "restore.rename",
)  # fmt: skip
"""Points that no server reaches."""
COPIER_S = 8.0
"""A process that copies is there after half a second, unless the machine is busy."""
READERS = 0.1
"""Share of servers that have a process beside them that reads."""
LIVES = 60
"""Kills after which the database is made anew, so that its first steps are met too."""


class Campaign:
    """One database in `folder`, killed again and again; the model goes from child to child.

    `aim` is the share of kills that are aimed at a failpoint, the one with the fewest so far; `cuts` the
    share of the embedded ones that are power cuts, `copiers` the share of others in which backups are copied by processes of their
    own, five times that where it is aimed at a backup. `points` are those to aim at; none: all that were reached.

    `counted` aims every kill at a point and says at which passing of it, has the writer do one thing at a time, and ends after so
    many operations, not after so much time: then the same seed kills at the same steps, with the same writes
    acknowledged. Power cuts, processes that copy, and writers that meet are not among these. Without it a seed repeats
    what is done, but not the moments at which the clock strikes.
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
    ) -> None:
        self.folder = folder
        self.tally = Tally()
        self.journal: list[str] = []
        """What was begun, acknowledged and reached, in words that are the same in each run that did the same."""
        self._ways = ways
        self._aim = 1.0 if counted else aim
        self._cuts = 0.0 if counted else cuts
        self._copiers = copiers
        self._counted = counted
        self._settings = SETTINGS | (COUNTED if counted else {})
        self._model = Model()
        self._life = 0
        self._points = points
        self._tried: Counter[tuple[str, bool]] = Counter()
        """Kills aimed at each failpoint, by whether they were power cuts."""

    def run(self, number: int, seed: int) -> None:
        """Kill `number` of the campaign with this seed. Raises Failed."""
        rng = random.Random(f"{seed} {number}")
        case = self._drawn(rng)
        first = case.point.startswith(FIRST) and self._life
        if self._life >= LIVES or first:
            self.finish()
            self._life, self._model = 0, Model()
            for folder in (self.folder, self._beside(), self._backups()):
                remove(folder)
        self._life += 1
        self._tidy()
        (self._embedded if case.way == "embedded" else self._server)(case, rng)
        self.tally.killed(case)
        self._note("killed", [case.way, case.point, case.hit, case.died_at, case.verb])

    def _drawn(self, rng: random.Random) -> Case:
        """The next kill."""
        case = Case(rng.choice(self._ways), rng.randrange(1 << 30))
        case.power_cut = case.way == "embedded" and rng.random() < self._cuts
        if rng.random() < self._aim and (self._points or self.tally.hits):
            among = [
                name
                for name in self._points or self.tally.hits
                if case.way == "embedded" or not name.startswith(NOT_SERVED)
            ]
            case.point = self._fewest(among, case.power_cut, rng) if among else ""
            case.hit = 1 if case.point.startswith(FIRST) else rng.choice([1, 1, 1, 2, 3, 5])
        if self._counted:
            case.steps = rng.randrange(4, STEPS)
        elif not case.power_cut and SETTINGS.get("durability") != "interval":
            # What another process syncs, no simulated disk would know; nor would it know of boots that `_boot` pretends.
            case.copiers = rng.random() < self._copiers * (
                5 if case.point.startswith("backup") else 1
            )
        if not self._counted:
            case.settings = {name: at for name, at in RARE.items() if rng.random() < 0.3}
            if (
                case.way == "server"
                and SETTINGS.get("durability") != "interval"
                and rng.random() < READERS
            ):
                # At `interval` nobody opens a folder for writing while processes that read have not noticed the kill.
                case.settings["read_processes"] = 1
        if case.copiers and rng.random() < 0.7:
            case.copier_point = self._fewest([*striking.COPYING, ""], True, rng)
            case.copier_hit = rng.choice([1, 1, 1, 2])
            case.copier_after_s = 0.0 if case.copier_point else rng.uniform(0.1, 0.9)
        return case

    def _fewest(self, among: list[str], power_cut: bool, rng: random.Random) -> str:
        tried = self._tried
        found = min(sorted(among), key=lambda name: (tried[name, power_cut], rng.random()))
        tried[found, power_cut] += 1
        return found

    def _beside(self) -> Path:
        return self.folder.with_name(records.BESIDE)

    def _backups(self) -> Path:
        return self.folder.with_name(records.BACKUPS)

    def _tidy(self) -> None:
        """Removes what was restored beside and has been compared; the old database is put there."""
        self._beside().mkdir(exist_ok=True, parents=True)
        old.unpack(self._beside())
        pending = [part["name"] for part in self._model.pending if part["do"] == "beside"]
        for path in self._beside().iterdir():
            # What an interrupted restore has left is the next one's to remove.
            if (
                path.name not in (records.OLD, *self._model.beside, *pending)
                and "." not in path.name
            ):
                shutil.rmtree(path)

    def finish(self) -> None:
        """A comparison now, in a child that nobody kills. Raises Failed."""
        self._take(self._compare(), None)

    # -- embedded

    def _embedded(self, case: Case, rng: random.Random) -> None:
        model, folder = self._model, self.folder
        # The database comes last: where it is, all have been written.
        roots = (self._backups(), self._beside(), folder)
        cuts = [(one, one.with_name(one.name + "-cut")) for one in roots]

        def child(send: Callable[[Any], None]) -> None:
            disks = []
            if case.power_cut:
                lazy = SETTINGS.get("durability") == "interval"
                disks = [
                    (cut.Disk(root, case.seed, lazy=lazy and root == folder), aside)
                    for root, aside in cuts
                ]
            striking.arm(send, case, disks)
            settings = self._settings | case.settings
            database, took_s = self._opened(model, settings)
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
        self._let_run(process, lines, case, rng)
        if case.power_cut:
            if cuts[-1][1].exists():
                for root, aside in cuts:
                    _put_in_place(root, aside)
                self._boot()
            else:
                # The clock ran out first: a plain kill.
                case.power_cut = False

    def _opened(self, model: Model, settings: dict[str, Any]) -> tuple[vecdb.Database, float]:
        """The database, and how long it took to open and to count each collection. A repair that was cut short is
        done again before."""
        if damage.is_pending(model):
            damage.mend(self.folder)
        started = time.perf_counter()
        database = vecdb.open(self.folder, **settings)
        for info in database.list_collections():
            database.get_collection(info.name).count()
        return database, time.perf_counter() - started

    def _boot(self) -> None:
        """The machine is started again; what was not on the disk may be lost."""
        boot = f"boot {self.tally.kills['power cut']} {time.monotonic()}".encode()
        sync_point.boot_id = lambda: boot
        if SETTINGS.get("durability") == "interval":
            self._model.lost_s = SETTINGS["durability_interval_ms"] / 1_000
            self._model.done = []

    # -- through a server

    def _server(self, case: Case, rng: random.Random) -> None:
        if rng.random() < 0.8 or damage.is_pending(self._model):
            self._take(self._compare(), None)
        # Where a server opens it before anyone has compared, what is there is not known: nobody writes.
        self._serve(case, rng, None if self._model.pending else self._model)

    def _serve(self, case: Case, rng: random.Random, model: Model | None) -> None:
        folder = self.folder

        def server(send: Callable[[Any], None]) -> None:
            striking.arm(send, case, [])
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
        if address is None or model is None:
            self._let_run(serving, lines, case, rng)
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
        self._let_run(serving, lines, case, rng)
        told += writing.until()
        os.waitpid(writing.pid, 0)
        writing.close()
        self._take(told, case)

    def _compare(self) -> list[Any]:
        """Opens, compares and closes in a child that nobody kills."""
        model = self._model

        def child(send: Callable[[Any], None]) -> None:
            database, took_s = self._opened(model, self._settings)
            with database:
                send(["whole", _told(verify(database, model)), took_s])

        process = Child(child)
        lines = process.until()
        os.waitpid(process.pid, 0)
        process.close()
        if not any(line[0] == "whole" for line in lines):
            raise Failed(lines[-1][1] if lines else "the child that compares died")
        return lines

    # -- both

    def _let_run(self, process: Child, lines: list[Any], case: Case, rng: random.Random) -> None:
        """Lets it work until its failpoint or some moment, kills it, and takes what it told."""
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
        if case.power_cut and lines and lines[-1][0] == "dying":
            # It writes down what the cut leaves, and then kills itself.
            lines += process.until()
        process.kill()
        lines += process.until()
        process.close()
        self._take(lines, case)

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


def remove(root: Path) -> None:
    """Removes a folder. A process that copied or read, whose writer was killed, may be on its way to its end still, and
    put its lock file into it meanwhile."""
    end_s = time.monotonic() + children.PATIENCE_S
    while root.exists():
        shutil.rmtree(root, ignore_errors=time.monotonic() < end_s)
        time.sleep(0.05 * root.exists())


def _put_in_place(root: Path, aside: Path) -> None:
    remove(root)
    aside.rename(root)
