"""Stores whose process is killed while it compacts."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time

import pytest
import store_rows
from seeds import RUN_SEED
from store_rows import ask, child, files, filled, reader_beside

from vecdb import failpoints, layout
from vecdb.store import vacuum


def vacuum_until(folder, steps):
    """A vacuum in a process that kills itself before the given step; whether it came to its end.

    Steps are the failpoints before and after each change of a name, each sync, and each commit of the copy.
    """
    process = os.fork()
    if process:
        status = os.waitpid(process, 0)[1]
        assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, status
        return status == 0
    left = [steps]

    def deadly(name, path):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        store = store_rows.reopen(folder)
        failpoints.install(deadly)
        store.vacuum()
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.long
def test_killed_at_any_step_the_file_is_whole(tmp_path, monkeypatch):
    """SIGKILL before each step of a vacuum: the store opens, is sound, has no litter, and who reads
    beside since before that follows what is written then."""
    monkeypatch.setattr(vacuum, "_CHUNK_BYTES", 10_000)
    store, model = filled(tmp_path / "saved")
    store.close()
    beside = reader_beside(tmp_path / "saved")
    done, step = False, 0
    while not done:
        folder = tmp_path / str(step)
        shutil.copytree(tmp_path / "saved", folder)
        done = vacuum_until(folder, step)
        beside.stdin.write(f"open {folder}\n")
        assert ask(beside, "r1", "after") == ["2", "7", "x-"]
        store = store_rows.reopen(folder)
        store_rows.assert_holds(store, model)
        assert files(folder) == {layout.DATA_FILE, layout.LMDB_LOCK_FILE}
        store_rows.put(store, {"after": step})
        assert ask(beside, "r1", "after") == ["2", "8", "xx"]
        store_rows.assert_holds(store, model | {"after": step})
        store.vacuum()
        assert ask(beside, "r1", "after") == ["2", "8", "xx"]
        store.close()
        step += 1
    assert step > 40
    beside.communicate()


# Writes, purges and vacuums without end; a line after each commit.
WRITER = """
    rng = random.Random(int(sys.argv[2]))
    store = store_rows.reopen(folder)
    with store.read() as reader:
        version = 1_000 * reader.state().sequence
    print("ready", flush=True)
    while True:
        verb = rng.choice(["put"] * 6 + ["delete"] * 3 + ["purge"] * 2 + ["vacuum"])
        ids = sorted({f"r{rng.randrange(900)}" for _ in range(rng.choice([1, 5, 80]))})
        if verb == "put":
            version += 1
            sequence = store_rows.put(store, dict.fromkeys(ids, version))
            print("put", sequence, version, *ids, flush=True)
        elif verb == "delete":
            print("delete", store_rows.delete(store, ids), 0, *ids, flush=True)
        elif verb == "purge":
            steps = rng.randrange(1, 12)
            with store.read() as reader:
                horizon = reader.state().sequence
            for _ in store.purge(horizon, step_bytes=rng.choice([1_000, 20_000])):
                steps -= 1
                if not steps:
                    break
        else:
            store.vacuum()
"""


def applied(model, line):
    """What a line of WRITER makes of the records."""
    verb, _, version, *ids = line.split()
    if verb == "put":
        return model | dict.fromkeys(ids, int(version))
    return {i: v for i, v in model.items() if i not in set(ids)}


@pytest.mark.parametrize("seed", [RUN_SEED])
def test_killed_at_any_moment_nothing_acknowledged_is_lost(tmp_path, seed):
    """SIGKILL among writes, purges and vacuums: every commit is there whole, and the store is sound."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    folder = tmp_path / "store"
    store, model = filled(folder, 1_200)
    store.close()
    sequence = 13
    for round_ in range(9):
        process = child(WRITER, folder, seed + round_)
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.6))
        process.kill()
        # Not by communicate, which passes over what readline has taken from the pipe beyond its line.
        output = process.stdout.read()
        process.wait()
        for line in output.splitlines(keepends=True):
            if line.endswith("\n"):
                model, sequence = applied(model, line), int(line.split()[1])
        store = store_rows.reopen(folder)
        with store.read() as reader:
            problems = [*store_rows.problems(reader)]
            found = reader.state().sequence
        assert problems == [], (seed, round_)
        # The kill may come between a commit and its line: at most one commit more.
        assert found in (sequence, sequence + 1), (seed, round_)
        assert files(folder) == {layout.DATA_FILE, layout.LMDB_LOCK_FILE}
        if found == sequence:
            store_rows.assert_holds(store, model)
        else:
            store.close()
            shutil.rmtree(folder)
            store, model = filled(folder, 1_200)
            sequence = 13
        store.close()
