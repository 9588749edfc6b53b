"""Ways to a collection for histories: threads, or many clients of a server process; and what disturbs them.

`python tests/history_ways.py --help` plays histories for as long as one likes.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from conftest import _aio_connected, event_loop_thread
from history import Report
from history_traffic import Plan, Run

import vecdb
import vecdb_client
from vecdb_client import aio

ALIAS = "live"
"""By which clients name the collection, because it is renamed under their hands."""
SMALL = {"dimension": 2}

_BUSY = "while True: sum(range(10_000))"
_WRITER = """
    import os, sys
    file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
    while True:
        for at in range(0, 32 << 20, 1 << 20):
            os.pwrite(file, os.urandom(1 << 20), at)
            os.fsync(file)
"""


@contextmanager
def stress(folder: Path, busy: int = 2, writers: int = 1) -> Iterator[None]:
    """Processes that take the cores, and that write and sync a file on the same disk."""
    folder.mkdir(exist_ok=True)
    code = [[_BUSY]] * busy
    code += [[textwrap.dedent(_WRITER), str(folder / f"noise{n}")] for n in range(writers)]
    processes = [subprocess.Popen([sys.executable, "-c", *words]) for words in code]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def server(folder: Path, **settings: Any) -> Iterator[str]:
    """A server in a process of its own; its address. It must stop in order."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "vecdb_server", "serve", "--data", str(folder), "--port", "0",
         "--log-level", "error", *flags],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield next(word for word in line.split() if word.count(":") == 1 and word[-1].isdigit())
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    assert code == 0


def change_names(db: Any, run: Run) -> Callable[[], None]:
    """Renames the collection without pause, and makes, fills and drops others beside it."""

    def work() -> None:
        rng = random.Random(run.seed)
        name = "docs"
        for number in itertools.count():
            if not run.go_on():
                break
            new = f"docs{number}"
            db.rename_collection(name, new)
            name = new
            other = db.create_collection(f"other{number % 3}", **SMALL)
            other.insert(["a", "b"], [[1, 1], [1, 2]])
            assert other.count() == 2
            assert [info.name for info in db.list_collections()] == sorted([name, other.name])
            assert db.list_aliases() == {ALIAS: name}
            db.drop_collection(other.name)
            time.sleep(rng.uniform(0.01, 0.2))
        if name != "docs":
            db.rename_collection(name, "docs")

    return work


def _by_alias(db: Any) -> Any:
    """The collection of a client, which calls it by its alias ever after."""
    collection = db.get_collection(ALIAS)
    held = getattr(collection, "_target", collection)
    held.info = dataclasses.replace(held.info, name=ALIAS)
    return collection


def embedded(run: Run, folder: Path, around: Any) -> Report:
    """Plays in threads of this process, closes, opens again, reads once more, and judges all of it."""
    plan = run.plan
    with around, vecdb.open(folder, **plan.settings) as db:
        docs = plan.create(db)
        db.set_alias(ALIAS, "docs")
        run.play(docs, also=[change_names(db, run)] if plan.renames else ())
        assert docs.check().problems == ()
    return _again(run, folder)


def served(run: Run, folder: Path, around: Any, **more: Any) -> Report:
    """The same by clients of a server process: each reader and writer has one of its own, half of them
    asyncio ones, which share a loop. `more` settings of the server."""
    with ExitStack() as stack:
        stack.enter_context(around)
        address = stack.enter_context(server(folder, **run.plan.settings, **more))
        loop = stack.enter_context(event_loop_thread())
        db = stack.enter_context(vecdb_client.connect(address))
        run.plan.create(db)
        db.set_alias(ALIAS, "docs")
        numbers = itertools.count()

        @contextmanager
        def reach() -> Iterator[Any]:
            if next(numbers) % 2:
                with vecdb_client.connect(address) as own:
                    yield _by_alias(own)
            else:
                with _aio_connected(aio, address, loop) as own:
                    yield _by_alias(own)

        also = [change_names(db, run)] if run.plan.renames else ()
        docs = _by_alias(db)
        run.play(docs, reach, also)
        assert list(docs.check().problems) == []
    return _again(run, folder)


def _again(run: Run, folder: Path) -> Report:
    with vecdb.open(folder) as db:
        run.look(db.get_collection("docs"), "reopened")
        assert db.get_collection("docs").check().problems == ()
    return run.judge()


WAYS: dict[str, Callable[[Run, Path, Any], Report]] = {
    "embedded": embedded,
    "served": served,
    "readers": partial(served, read_processes=2),
}


def chosen(rng: random.Random, seconds: float) -> Plan:
    """A plan of any kind."""
    collection = rng.choice(
        [
            {"metric": "l2", "index": "hnsw"},
            {"metric": "cosine", "index": "hnsw", "quantization": "sq8"},
            {"metric": "l2", "index": "hnsw", "storage": "int8"},
            {"metric": "l2", "index": "ivf"},
            {"metric": "cosine", "index": "auto"},
        ]
    )
    compacts = rng.random() < 0.5
    settings: dict[str, Any] = {"durability": rng.choice(["commit", "interval"])}
    if collection["index"] == "auto":
        settings["exact_max_scalars"] = 20_000
    return Plan(
        collection,
        named=rng.random() < 0.3,
        seconds=seconds,
        compacts=compacts,
        renames=rng.random() < 0.5,
        writers=rng.choice([2, 4, 6]),
        readers=rng.choice([2, 6, 10]),
        settings=settings | ({"history_s": 0.0} if compacts else {}),
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make histories", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="all together (default 60)")
    parser.add_argument(
        "--each", type=float, default=4.0, help="of traffic in a history (default 4)"
    )
    parser.add_argument(
        "--seed", type=int, help="of the first history; the next ones count on from it"
    )
    parser.add_argument("--way", choices=[*WAYS, "both"], default="both")
    args = parser.parse_args(arguments)
    seed = int.from_bytes(os.urandom(3), "little") if args.seed is None else args.seed
    end = time.monotonic() + args.seconds
    played = calls = commits = 0
    for number in itertools.count(seed):
        if time.monotonic() > end and played:
            break
        rng = random.Random(number)
        way = rng.choice([*WAYS])
        if args.way != "both":
            way = args.way
        run = Run(chosen(rng, args.each), str(number))
        print(f"seed {number}: {way}, {run.plan}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            # Three processes that serve take the cores by themselves: builds, at low priority, came to no end beside
            # others.
            stressed = rng.random() < 0.7 and way != "readers"
            around = stress(Path(folder) / "noise") if stressed else nullcontext()
            report = WAYS[way](run, Path(folder) / "data", around)
        played, calls, commits = played + 1, calls + len(run.calls), commits + report.commits
        print(
            f"  {len(run.calls)} calls, {report.commits} commits of {report.writes} writes (up to"
            f" {report.most_shared} in one), {report.refusals} refusals, {run.builds} builds,"
            f" {run.compactions} compactions: one after another",
            flush=True,
        )
    print(f"{played} histories, {calls} calls, {commits} commits: no violation")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
