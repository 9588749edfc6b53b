"""Objects in processes of their own, so that no system shares threads or memory with another.

`Child("bench.worker:Worker", source)` starts a process, makes the object there, and calls its methods; arguments
and results are pickled. The start imports nothing but the standard library before the process is pinned,
because libraries count the cores they may use when they are loaded.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SAMPLE_S = 0.05
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


class ChildFailed(Exception):
    """What a child raised, with its traceback as text."""


class Ended(ChildFailed):
    """The child is gone, or was given up: nothing more can be asked of it."""


class Missing(ChildFailed):
    """A package that the child needs is not installed."""


class Child:
    """One process with one object in it. One call at a time.

    `group`: with whatever it starts in a process group of its own, which ends as a whole: at once when a call was
    broken off, as by Ctrl-C, so that no server is left behind. A call that takes longer than `limit_s`, where that is
    set, is broken off as well.
    """

    def __init__(
        self, target: str, *arguments: Any, one_core: bool = False, group: bool = False
    ) -> None:
        here, there = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
        if one_core:
            environment.update(dict.fromkeys(_THREADS, "1"))
        words = [sys.executable, "-m", "bench.children", str(there.fileno())]
        self._process = subprocess.Popen(
            [*words, "one-core"] if one_core else words,
            env=environment,
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=2,
            start_new_session=group,
        )
        self._group, self._busy = group, False
        self.limit_s: float | None = None
        there.close()
        self._pipe = here
        self.pid = self._process.pid
        try:
            self._ask(target, arguments)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def call(self, method: str, *arguments: Any) -> Any:
        """The result of the object's method. Raises Missing or ChildFailed if it raised, Ended if it gave no answer."""
        return self._ask(method, arguments)

    def _ask(self, what: str, arguments: tuple[Any, ...]) -> Any:
        self._busy = True
        try:
            self._pipe.send_bytes(pickle.dumps((what, arguments)))
            if not self._pipe.poll(self.limit_s):
                raise Ended(f"no answer for {self.limit_s:g} s in {what}")
            outcome, value = pickle.loads(self._pipe.recv_bytes())
            self._busy = False
        except (EOFError, BrokenPipeError, ConnectionResetError):
            code = self._process.wait()
            raise Ended(f"the child ended with exit code {code} in {what}") from None
        if outcome == "missing":
            raise Missing(value)
        if outcome == "error":
            raise ChildFailed(value)
        return value

    def close(self) -> None:
        """Ends the process: kindly, after 60 s not."""
        self._pipe.close()
        if self._group and self._busy:
            self._kill()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._kill()
        if self._group:
            self._kill()
        self._process.wait()

    def _kill(self) -> None:
        if not self._group:
            self._process.kill()
            return
        # A server may have put its processes into groups of their own, as PostgreSQL does.
        left = members(self.pid)[1:]
        for kill, pid in ((os.killpg, self.pid), *((os.kill, one) for one in left)):
            try:
                kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


class Sampler:
    """Highest memory of a process while the context lasts, looked at every 50 ms from outside."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak = {"anonymous": 0, "file": 0, "total": 0}

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self._look()

    def _look(self) -> None:
        now = resident(self._pid)
        self.peak = {name: max(self.peak[name], now[name]) for name in self.peak}


def members(pid: int) -> list[int]:
    """The process and its descendants."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        for path in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                waiting.extend(int(word) for word in path.read_text().split())
            except OSError:
                continue
    return found


def resident(pid: int) -> dict[str, int]:
    """Resident bytes of a process by the kernel's own count: anonymous, backed by files, and both; of the latter those in
    memory that processes share by intent, as PostgreSQL's do."""
    found = {"RssAnon": 0, "RssFile": 0, "RssShmem": 0}
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name = line.partition(":")[0]
            if name in found:
                found[name] = int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return {"anonymous": 0, "file": 0, "shared": 0, "total": 0}
    backed = found["RssFile"] + found["RssShmem"]
    return {
        "anonymous": found["RssAnon"],
        "file": backed,
        "shared": found["RssShmem"],
        "total": found["RssAnon"] + backed,
    }


def settled(pid: int, wait_s: float) -> dict[str, int]:
    """As `resident`, `wait_s` later and from the page tables themselves: slow, so only at rest."""
    time.sleep(wait_s)
    found = {"Rss": 0, "Anonymous": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name = line.partition(":")[0]
        if name in found:
            found[name] = int(line.split()[1]) * 1024
    anonymous = found["Anonymous"]
    return {"anonymous": anonymous, "file": found["Rss"] - anonymous, "total": found["Rss"]}


def _serve(pipe: Connection) -> None:
    target, arguments = pickle.loads(pipe.recv_bytes())
    served: Any = None
    while True:
        try:
            if served is None:
                module, _, name = target.partition(":")
                served = getattr(importlib.import_module(module), name)(*arguments)
                reply: tuple[str, Any] = ("done", None)
            else:
                reply = ("done", getattr(served, target)(*arguments))
        except ModuleNotFoundError as error:
            reply = ("missing", f"{error.name} is not installed")
        except Exception:
            reply = ("error", traceback.format_exc())
        pipe.send_bytes(pickle.dumps(reply))
        try:
            target, arguments = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return


if __name__ == "__main__":
    if sys.argv[2:] == ["one-core"]:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    _serve(Connection(int(sys.argv[1])))
