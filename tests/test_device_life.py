"""Workers that die, hang, fail to start; parents that die; forks; what a worker prints."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from device_here import ask, assert_same, device, place, until, vectors
from timing import once_below, seconds

import vecdb
from vecdb.device import Device
from vecdb.errors import Closed, DeviceLost, FailedPrecondition, LimitExceeded, Unavailable

pytestmark = pytest.mark.long

ROOT = Path(vecdb.__file__).resolve().parent.parent


def worker_of(one: Device) -> int:
    assert one._worker is not None
    return one._worker.pid


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def test_a_worker_killed_in_mid_search() -> None:
    """SIGKILL while a search runs and others wait: all get DeviceLost at once, another worker comes up, the
    old placement is refused and a new one is searched."""
    with closing(device("search_s=30")) as one:
        placed = place(one, vectors(5))
        first = worker_of(one)
        results: list[Any] = []

        def work(k: int) -> None:
            with pytest.raises(DeviceLost) as caught:
                ask(one, placed, vectors(1), k)
            results.append(caught.value)

        threads = [threading.Thread(target=work, args=(k,)) for k in (1, 1, 2, 3)]
        for thread in threads:
            thread.start()
        until(lambda: one.stats().queued >= 2)
        started = time.monotonic()
        os.kill(first, signal.SIGKILL)
        for thread in threads:
            thread.join()
        assert time.monotonic() - started < 5
        assert len(results) == 4
        assert all(isinstance(r, Unavailable) and r.reason == "DEVICE_LOST" for r in results)
        until(lambda: one.up)
        assert worker_of(one) != first
        assert one.generation > placed.generation
        with pytest.raises(DeviceLost, match="started anew"):
            ask(one, placed, vectors(1))
        stats = one.stats()
        assert (stats.restarts, stats.used_bytes, stats.placements) == (1, 0, 0)
        assert "ended during Search" in stats.last_error
        again = place(one, vectors(5))
        assert again.generation == one.generation
        assert not is_alive(first)


def test_answers_after_a_crash(tmp_path: Path) -> None:
    """A card that aborts at its second search costs that search; what is placed anew answers rightly."""
    with closing(device(f"die_at_search=2,once={tmp_path / 'x'}")) as one:
        y, x = vectors(40), vectors(3, 2)
        placed = place(one, y)
        assert_same(ask(one, placed, x)[:2], x, y, 3)
        with pytest.raises(DeviceLost):
            ask(one, placed, x)
        until(lambda: one.up)
        placed = place(one, y)
        for _ in range(3):
            assert_same(ask(one, placed, x)[:2], x, y, 3)


def test_a_death_while_idle_is_noticed() -> None:
    """A worker that dies when nobody asks is replaced without waiting for somebody who does."""
    with closing(device()) as one:
        first = worker_of(one)
        os.kill(first, signal.SIGKILL)
        until(lambda: one.stats().restarts == 1 and one.up, 20)
        assert worker_of(one) != first


def test_a_worker_that_hangs_is_ended(tmp_path: Path) -> None:
    """No answer within `device_timeout_s` counts as death."""
    with closing(device(f"hang_at_search=1,once={tmp_path / 'x'}", timeout_s=0.5)) as one:
        placed, first = place(one, vectors(5)), worker_of(one)
        with pytest.raises(DeviceLost, match=r"no answer to Search within 0\.5 s"):
            ask(one, placed, vectors(1))
        assert not is_alive(first)
        until(lambda: one.up)
        ask(one, place(one, vectors(5)), vectors(1))


def test_a_stopped_worker_fails_its_ping() -> None:
    """A worker that does not answer while idle is ended too."""
    with closing(device(timeout_s=0.5)) as one:
        first = worker_of(one)
        os.kill(first, signal.SIGSTOP)
        until(lambda: one.stats().restarts >= 1 and one.up)
        assert "no answer to Ping" in one.stats().last_error
        assert not is_alive(first)


def test_a_worker_that_dies_again_and_again_stays_down() -> None:
    """After some deaths without anything done between the device is down, says so, and fails at once."""
    with closing(device("die_at_add=1", give_up_after=3)) as one:
        deaths = 0
        while one.stats().state != "down":
            until(lambda: one.up or one.stats().state == "down")
            if one.up:
                with pytest.raises(DeviceLost):
                    place(one, vectors(5))
                deaths += 1
        assert deaths == 3

        def refused() -> None:
            with pytest.raises(DeviceLost, match="is down"):
                place(one, vectors(5))

        once_below(1, lambda: seconds(refused))
        assert one.stats().restarts == 2


def test_pauses_grow_with_each_death() -> None:
    """The fourth start comes later than the first."""

    def first_to_fourth() -> float:
        with closing(device("die_at_add=1", give_up_after=9)) as one:
            took = []
            for _ in range(4):
                with pytest.raises(DeviceLost):
                    place(one, vectors(5))
                took.append(seconds(lambda: until(lambda: one.up)))
        assert took[3] > 0.8
        return took[0] - took[3]

    # By their pauses alone, 0.1 and 0.8 s, they are 0.7 s apart.
    once_below(-0.35, first_to_fourth)


def test_a_worker_that_cannot_start() -> None:
    """The constructor says why, and leaves no thread and no process."""
    before = threading.active_count()
    with pytest.raises(DeviceLost, match="did not start"):
        device("die_at_start=1")
    with pytest.raises(DeviceLost, match="unknown fault"):
        device("explode=1")
    until(lambda: threading.active_count() <= before)


def test_without_a_driver_the_real_card_does_not_start() -> None:
    """Where there is no NVIDIA driver the worker ends with an error that names the library."""
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("there is a driver here")
    with pytest.raises(DeviceLost, match=r"libcuda|StandardGpuResources"):
        Device("gpu:0")


def test_closing_while_it_restarts() -> None:
    """A device whose worker is gone closes at once, also in a long pause."""
    one = device("die_at_add=1")
    with pytest.raises(DeviceLost):
        place(one, vectors(5))
    started = time.monotonic()
    one.close()
    assert time.monotonic() - started < 5
    with pytest.raises(Closed):
        place(one, vectors(5))


CHILD = """
import sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from device_here import device, place, vectors
one = device()
place(one, vectors(5))
print(one._worker.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_worker_dies_with_its_parent(number: int) -> None:
    """However the engine ends, its worker ends too."""
    code = CHILD.format(root=str(ROOT), tests=str(ROOT / "tests"))
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, parent.stdout:
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.send_signal(number)
        until(lambda: not is_alive(pid), 20)


def test_a_process_that_ends_without_closing() -> None:
    """A program that never closes its device ends, and its worker with it."""
    code = CHILD.format(root=str(ROOT), tests=str(ROOT / "tests")).replace("time.sleep(600)", "")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    until(lambda: not is_alive(int(done.stdout)), 20)


def test_signals_that_are_meant_for_the_engine() -> None:
    """Ctrl-C and a polite end do not reach a worker: the engine decides."""
    with closing(device()) as one:
        placed, pid = place(one, vectors(5)), worker_of(one)
        assert os.getsid(pid) != os.getsid(0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
        time.sleep(0.2)
        ask(one, placed, vectors(1))
        assert worker_of(one) == pid


def test_a_forked_child_cannot_use_it() -> None:
    """In a child of a fork every call raises Closed at once; the parent's device goes on, even when the
    child ends by itself."""
    with closing(device()) as one:
        placed = place(one, vectors(5))
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                try:
                    ask(one, placed, vectors(1))
                except Closed as error:
                    status = 0 if "forked" in str(error) else 2
                one.close()
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert ask(one, placed, vectors(1))[1].shape == (1, 3)


def test_what_a_worker_prints_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Lines on its standard error and output go to the logger "vecdb", with the name of the device."""
    with caplog.at_level(logging.WARNING, logger="vecdb"), pytest.raises(DeviceLost):
        device("explode=1", name="gpu:7")
    assert any(
        r.name == "vecdb" and r.getMessage().startswith("gpu:7: ") and "explode" in r.getMessage()
        for r in caplog.records
    )


def test_a_bug_of_the_link_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the link itself fails, who waits is told, and the device comes up again."""
    with closing(device()) as one:
        placed = place(one, vectors(5))
        with monkeypatch.context() as patch:
            patch.setattr(one, "_searches", lambda worker, group: 1 / 0)
            with pytest.raises(DeviceLost, match="ZeroDivisionError"):
                ask(one, placed, vectors(1))
        until(lambda: one.up)
        assert ask(one, place(one, vectors(5)), vectors(1))[1].shape == (1, 3)


def test_the_end_of_the_link_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the link's thread ends, calls fail at once."""
    one = device()
    placed = place(one, vectors(5))
    monkeypatch.setattr(one, "_serve", lambda: 1 / 0)
    until(lambda: not one._thread.is_alive())
    with pytest.raises(Closed):
        ask(one, placed, vectors(1))
    one.close()


def test_interrupting_the_one_who_waits() -> None:
    """Ctrl-C in a thread that waits for an answer leaves the device as it was."""
    with closing(device("search_s=1")) as one:
        placed = place(one, vectors(5))
        main = threading.get_ident()
        threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            ask(one, placed, vectors(1))
        assert ask(one, placed, vectors(1))[1].shape == (1, 3)
        assert one.stats().restarts == 0


def test_many_callers_while_workers_die(tmp_path: Path) -> None:
    """Under load with kills every call ends, rightly or by an error that says what happened."""
    with closing(device(timeout_s=20)) as one:
        y = vectors(200)
        stop = time.monotonic() + 4
        outcomes: list[str] = []

        def work(i: int) -> None:
            x = vectors(1 + i, i)
            placed = None
            while time.monotonic() < stop:
                try:
                    if placed is None:
                        placed = place(one, y)
                    assert_same(ask(one, placed, x)[:2], x, y, 3)
                    outcomes.append("ok")
                except (DeviceLost, LimitExceeded):
                    placed = None
                    outcomes.append("lost")
                    time.sleep(0.05)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        while time.monotonic() < stop - 1:
            time.sleep(0.8)
            if one.up:
                os.kill(worker_of(one), signal.SIGKILL)
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert outcomes.count("ok") > 10
        assert "lost" in outcomes


def test_refusals_do_not_end_a_worker() -> None:
    """A card that refuses a hundred times is still the same."""
    with closing(device()) as one:
        placed, pid = place(one, vectors(5)), worker_of(one)
        for _ in range(100):
            with pytest.raises(FailedPrecondition):
                ask(one, placed, vectors(1), 50_000)
        assert worker_of(one) == pid
