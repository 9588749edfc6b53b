"""Kills, one after the other, in the life of one database: each is followed by a comparison.

Children are forked from a process that has imported everything and opened nothing, which costs some
milliseconds instead of a second. One child opens the database, compares it with the journal, and writes
until it dies. Through the server it takes three: one that compares, a server, a client that writes.
"""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vecdb
import vecdb_server.server  # noqa: F401  loaded before the forks
from crash import cut, records, work
from crash.model import Held, Model
from crash.verify import verify
from vecdb import failpoints
from vecdb.store import sync_point
from vecdb_client import connect
from vecdb_server.__main__ import main

SETTINGS: dict[str, Any] = {
    # Small maps grow often; nothing is kept for cursors, so that compaction purges all that is dead.
    "map_initial_bytes": 1 << 20, "history_s": 0.0, "compact_dead_share": 0.1, "device": "cpu",
    "build_threads": 1,
}  # fmt: skip
WAYS = ("embedded", "server")
PATIENCE_S = 60.0
FIRST = ("database.", "catalog.mkdir", "catalog.r", "catalog.sync-folder")
"""Points that are reached when a database is made: for these it is made anew."""
LIVES = 60
"""Kills after which the database is made anew, so that its first steps are met too."""


@dataclass
class Case:
    """One kill: how, when, and what came of it."""

    way: str
    seed: int
    point: str = ""
    """The failpoint it was aimed at; "" for a random moment."""
    hit: int = 1
    power_cut: bool = False
    died_at: str = ""
    """The failpoint at which it died, "" when the clock ran out first."""
    acknowledged: int = 0


@dataclass
class Tally:
    """What a campaign has seen."""

    kills: Counter[str] = field(default_factory=Counter)
    """By way, and `power cut`."""
    points: Counter[str] = field(default_factory=Counter)
    """Kills at each failpoint."""
    hits: Counter[str] = field(default_factory=Counter)
    """How often each failpoint was reached."""
    cut_points: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    compared: int = 0
    left_out_pages: int = 0
    left_out_names: int = 0
    cuts_that_cost: int = 0
    """Comparisons that found acknowledged writes missing which `interval` may lose."""
    failures: list[dict[str, Any]] = field(default_factory=list)


class Failed(Exception):
    """A child has found the database wrong, or broke."""


class Child:
    """A forked process with a pipe of JSON lines to us."""

    def __init__(self, run: Callable[[Callable[[Any], None]], None]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        reading, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(reading)
            code = 1
            try:
                run(lambda line: _send(writing, line))
                code = 0
            except BaseException:
                _send(writing, ["failed", traceback.format_exc()])
            finally:
                os._exit(code)
        os.close(writing)
        self._pipe = reading
        # `select` knows no file beyond the 1,023rd, and a process of tests may have more open.
        self._told = select.poll()
        self._told.register(reading, select.POLLIN)
        self._rest = b""
        self._ended = False

    def lines(self, until: float, stop: Callable[[Any], bool] = lambda _: False) -> list[Any]:
        """Lines that come before the moment `until` or the end of the process, up to one that stops."""
        found: list[Any] = []
        while True:
            while b"\n" in self._rest:
                line, _, self._rest = self._rest.partition(b"\n")
                found.append(json.loads(line))
                if stop(found[-1]):
                    return found
            left = until - time.monotonic()
            if left <= 0 or not self._told.poll(1000 * left):
                return found
            data = os.read(self._pipe, 1 << 20)
            if not data:
                self._ended = True
                return found
            self._rest += data

    def until(self, *verbs: str) -> list[Any]:
        """Lines up to one of these verbs, or to the end of the process. Raises Failed where neither comes."""
        found = self.lines(time.monotonic() + PATIENCE_S, lambda line: line[0] in verbs)
        if not self._ended and not (found and found[-1][0] in verbs):
            self.kill()
            self.close()
            raise Failed(f"a child hung for {PATIENCE_S} s; it told {found[-4:]}")
        return found

    def kill(self) -> int:
        """Kills it, unless it has ended; the wait status."""
        os.kill(self.pid, signal.SIGKILL)
        return os.waitpid(self.pid, 0)[1]

    def close(self) -> None:
        os.close(self._pipe)


_sending = threading.Lock()


def _send(pipe: int, line: Any) -> None:
    data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
    with _sending:
        while data:
            data = data[os.write(pipe, data) :]


class Campaign:
    """One database in `folder`, killed again and again; the model goes from child to child.

    `aim` is the share of kills that are aimed at a failpoint, the one with the fewest so far; `cuts` the
    share of the embedded ones that are power cuts. `points` are those to aim at; none: all that were reached.
    """

    def __init__(
        self,
        folder: Path,
        ways: tuple[str, ...],
        aim: float,
        cuts: float,
        points: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.tally = Tally()
        self._ways = ways
        self._aim = aim
        self._cuts = cuts
        self._model = Model()
        self._life = 0
        self._points = points
        self._tried: Counter[tuple[str, bool]] = Counter()
        """Kills aimed at each failpoint, by whether they were power cuts."""

    def run(self, number: int, seed: int) -> None:
        """Kill `number` of the campaign with this seed. Raises Failed."""
        rng = random.Random(f"{seed} {number}")
        case = Case(rng.choice(self._ways), rng.randrange(1 << 30))
        case.power_cut = case.way == "embedded" and rng.random() < self._cuts
        if rng.random() < self._aim and (self._points or self.tally.hits):
            tried = self._tried
            case.point = min(
                sorted(self._points or self.tally.hits),
                key=lambda name: (tried[name, case.power_cut], rng.random()),
            )
            tried[case.point, case.power_cut] += 1
            case.hit = 1 if case.point.startswith(FIRST) else rng.choice([1, 1, 1, 2, 3, 5])
        first = case.point.startswith(FIRST) and self._life
        if self._life >= LIVES or first:
            self.finish()
            self._life, self._model = 0, Model()
            shutil.rmtree(self.folder)
            shutil.rmtree(self.folder.with_name(records.BACKUPS), ignore_errors=True)
        self._life += 1
        (self._embedded if case.way == "embedded" else self._server)(case, rng)
        self.tally.kills["power cut" if case.power_cut else case.way] += 1
        points = self.tally.cut_points if case.power_cut else self.tally.points
        if case.died_at:
            points[case.died_at] += 1
        self.tally.acknowledged += case.acknowledged

    def finish(self) -> None:
        """A comparison now, in a child that nobody kills. Raises Failed."""
        self._take(self._compare(), None)

    # -- embedded

    def _embedded(self, case: Case, rng: random.Random) -> None:
        model, folder = self._model, self.folder
        backups = folder.with_name(records.BACKUPS)
        # The database comes last: where it is, both have been written.
        cuts = [(one, one.with_name(one.name + "-cut")) for one in (backups, folder)]

        def child(send: Callable[[Any], None]) -> None:
            lazy = SETTINGS.get("durability") == "interval"
            simulated = [(cut.Disk(root, case.seed, lazy=lazy), aside) for root, aside in cuts]
            _arm(send, case, simulated if case.power_cut else [])
            database = vecdb.open(folder, **SETTINGS)
            found = verify(database, model)
            send(["whole", _told(found)])
            work.run(work.Writer(database, found, case.seed, send, case.point, str(backups)))

        process = Child(child)
        lines = []
        if rng.random() < 0.9:
            # Otherwise it may be struck while it opens the database.
            lines = process.until("whole", "dying")
        self._let_run(process, lines, case, rng)
        if case.power_cut:
            if cuts[-1][1].exists():
                for root, aside in cuts:
                    shutil.rmtree(root, ignore_errors=True)
                    aside.rename(root)
                self._boot()
            else:
                # The clock ran out first: a plain kill.
                case.power_cut = False

    def _boot(self) -> None:
        """The machine is started again; what was not on the disk may be lost."""
        boot = f"boot {self.tally.kills['power cut']} {time.monotonic()}".encode()
        sync_point.boot_id = lambda: boot
        if SETTINGS.get("durability") == "interval":
            self._model.lost_s = SETTINGS["durability_interval_ms"] / 1_000

    # -- through a server

    def _server(self, case: Case, rng: random.Random) -> None:
        if rng.random() < 0.8:
            self._take(self._compare(), None)
        # Where a server opens it before anyone has compared, what is there is not known: nobody writes.
        self._serve(case, rng, None if self._model.pending else self._model)

    def _serve(self, case: Case, rng: random.Random, model: Model | None) -> None:
        folder = self.folder

        def server(send: Callable[[Any], None]) -> None:
            _arm(send, case, [])
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
            flags = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
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
            with connect(address, timeout_s=PATIENCE_S, retry_s=0) as database:
                writer = work.Writer(
                    database, model.copy(), case.seed, send, case.point, records.BACKUPS
                )
                work.run(writer)

        writing = Child(client)
        self._let_run(serving, lines, case, rng)
        told = writing.until()
        os.waitpid(writing.pid, 0)
        writing.close()
        self._take(told, case)

    def _compare(self) -> list[Any]:
        """Opens, compares and closes in a child that nobody kills."""
        model, folder = self._model, self.folder

        def child(send: Callable[[Any], None]) -> None:
            with vecdb.open(folder, **SETTINGS) as database:
                send(["whole", _told(verify(database, model))])

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
        if not (lines and lines[-1][0] == "dying"):
            lines += process.lines(time.monotonic() + limit_s, lambda line: line[0] == "dying")
        if case.power_cut and lines and lines[-1][0] == "dying":
            # It writes down what the cut leaves, and then kills itself.
            lines += process.until()
        process.kill()
        lines += process.until()
        process.close()
        self._take(lines, case)

    def _take(self, lines: list[Any], case: Case | None) -> None:
        """Follows the journal of a child."""
        for verb, *told in lines:
            if verb == "failed":
                raise Failed(told[0])
            if verb == "whole":
                self._model = _model_of(told[0])
                self.tally.compared += 1
                self.tally.cuts_that_cost += bool(told[0]["lost_parts"])
            elif verb == "begin":
                self._model.begin(told[0], in_order=told[1], at_s=told[2])
            elif verb == "done":
                self._model.acknowledge(told[0], told[1])
                if case is not None:
                    case.acknowledged += 1
            elif verb == "backed up":
                self._model.backup = told[0]
            elif verb == "hit":
                self.tally.hits[told[0]] += 1
            elif verb == "dying" and case is not None:
                case.died_at = told[0]
            elif verb == "left out":
                self.tally.left_out_pages += told[0]
                self.tally.left_out_names += told[1]


def _arm(send: Callable[[Any], None], case: Case, disks: list[tuple[cut.Disk, Path]]) -> None:
    """Tells of each failpoint that is reached, and dies at the one that the case is aimed at.

    With `disks` by a power cut: what it leaves of each goes to the folder beside it here.
    """
    left = [case.hit]
    # A cut at a random moment falls at a point too: only there it is known what is durable.
    drawn = random.Random(case.seed)
    any_point = [drawn.randrange(1, 60) if disks and not case.point else 1 << 60]
    # Half of these fall inside a commit, where most is at stake.
    in_commit = drawn.random() < 0.5
    inside: list[Path] = []
    lock = threading.Lock()

    def reached(name: str, path: Path) -> None:
        with lock:  # by whoever dies here it is never given back
            send(["hit", name])
            any_point[0] -= 1
            left[0] -= name == case.point
            at_random = any_point[0] <= 0 and (not in_commit or name.endswith(".commit.before"))
            struck = (at_random and not inside) or (name == case.point and left[0] == 0)
            if struck:
                send(["dying", name])
            if not disks:
                if struck:
                    os.kill(os.getpid(), signal.SIGKILL)
                return
            if struck and name.endswith(".commit.before"):
                inside.append(path)
                return
            ended = inside and name.endswith(".commit.after") and path == inside[0]
            for disk, _ in disks if not ended else ():
                disk.reached(name, path)
            if struck or ended:
                for disk, aside in disks:
                    send(["left out", *disk.cut(aside)])
                os.kill(os.getpid(), signal.SIGKILL)

    failpoints.install(reached)


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
        "lost_parts": model.lost_parts,
    }


def _model_of(told: Any) -> Model:
    return Model(
        {
            token: Held(shape, {n: (v, m) for n, v, m in rows})
            for token, (shape, rows) in told["collections"].items()
        },
        told["names"],
        told["aliases"],
        version=told["version"],
        backup=told["backup"],
    )
