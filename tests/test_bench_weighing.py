"""How the processes of a system are weighed and ended by `bench run`: each page counts once, and none is left."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import wait_until

from bench.children import Child, ChildFailed, members
from bench.peers import postgres
from bench.run import tree

SHARED_BYTES = 64 << 20
BUFFER = f"""
import mmap, os, signal
held = mmap.mmap(-1, {SHARED_BYTES})
def touch():
    for at in range(0, {SHARED_BYTES}, {mmap.PAGESIZE}):
        held[at] = 1
touch()
for _ in range(3):
    if os.fork() == 0:
        touch()
        os.write(1, b"touched\\n")
        signal.pause()
signal.pause()
"""


def test_memory_that_processes_share_by_intent_counts_once() -> None:
    """Four processes over one buffer weigh it once, as a server's with a process for each connection; each of them has
    all of it resident."""
    process = subprocess.Popen([sys.executable, "-c", BUFFER], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == "touched\n"
        everyone = members(process.pid)
        assert len(everyone) == 4
        # The kernel's counts of single processes may lag by some pages.
        assert all(tree.resident(pid)["shared"] > 0.9 * SHARED_BYTES for pid in everyone)
        total, anonymous = tree.memory(everyone)
        assert 0.9 * SHARED_BYTES < total < 2 * SHARED_BYTES
        assert anonymous < SHARED_BYTES
        alone, _ = tree.memory(everyone[:1])
        assert alone > 0.9 * SHARED_BYTES
    finally:
        for pid in reversed(members(process.pid)):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


class Starter:
    """Runs in a child: starts a process in a group of its own and never answers."""

    def start(self, place: Path) -> None:
        words = [sys.executable, "-c", "import time; time.sleep(600)"]
        started = subprocess.Popen(words, start_new_session=True)
        aside = place.with_suffix(".new")
        aside.write_text(str(started.pid))
        aside.rename(place)
        threading.Event().wait(600)


def test_a_call_that_is_broken_off_leaves_no_process_of_another_group(tmp_path: Path) -> None:
    """PostgreSQL's processes have groups of their own: they end with the child that started them."""
    place = tmp_path / "pid"
    child = Child("test_bench_weighing:Starter", group=True)
    try:
        child.limit_s = 1.0
        with pytest.raises(ChildFailed, match="no answer"):
            child.call("start", place)
        wait_until(place.exists, "it has started one")
        number = int(place.read_text())
    finally:
        child.close()
    wait_until(lambda: _ended(number), "the process has ended")


def _ended(pid: int) -> bool:
    """Gone, or waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_the_lock_of_a_killed_server_goes_and_of_a_running_one_stays(tmp_path: Path) -> None:
    """Who was killed and is not collected yet holds a cluster no longer; who runs does."""
    lock = tmp_path / "postmaster.pid"
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        lock.write_text(f"{process.pid}\n")
        postgres._unlock(tmp_path)
        assert lock.exists()
        process.kill()
        wait_until(lambda: _ended(process.pid), "the server was killed")
        postgres._unlock(tmp_path)
        assert not lock.exists()
    finally:
        process.kill()
        process.wait()
    postgres._unlock(tmp_path)
