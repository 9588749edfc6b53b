"""Callers in processes of their own: several of them measure a server, and not the interpreter of one client.

What runs in the child is who hands out the work. It loads the packages and forks the callers, each of which opens a
connection of its own; it opens none itself, so that nothing of a connection is copied.
"""

from __future__ import annotations

import importlib
import multiprocessing
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from ..sources import Source
from . import mixture
from .asking import WARM_CALLS, Asked, Case, Pass
from .mixture import Mix, Played
from .plan import K

_AHEAD_S = 0.05
"""All begin at one moment so long after they were told."""


class Callers:
    """`module` has the adapter, whose `joined` a caller connects by."""

    def __init__(self, source: Source, module: str) -> None:
        self._source, self._module = source, module
        adapter = importlib.import_module(module).System
        for name in adapter.packages:
            importlib.import_module(name)
        self._queries = source.queries  # read once, for all that are forked
        self._pipes: list[Connection] = []

    def begin(self, count: int, link: Any, case: Case) -> None:
        """So many callers are connected and have asked some queries."""
        context = multiprocessing.get_context("fork")
        while len(self._pipes) < count:
            here, there = context.Pipe()
            others = [*self._pipes, here]
            given = (there, others, self._source, self._module)
            context.Process(target=_serve, args=given, daemon=True).start()
            there.close()
            self._pipes.append(here)
        self._all(count, [("begin", link, case)] * count)

    def ask(self, case: Case) -> tuple[Asked, float]:
        """One pass from all of `case.callers`, which have begun; and the CPU seconds they took."""
        begun_s = time.perf_counter() + _AHEAD_S
        words = [("ask", case, number, begun_s) for number in range(case.callers)]
        whole, used_s = Asked(), 0.0
        for one, ended_s, cpu_s in self._all(case.callers, words):
            whole.answers.update(one.answers)
            whole.taken_s.extend(one.taken_s)
            whole.took_s = max(whole.took_s, ended_s - begun_s)
            used_s += cpu_s
        return whole, used_s

    def mix(self, asked: Mix, callers: int, budget_s: float) -> tuple[list[Played], float, float]:
        """What each caller has played; seconds until the last had ended, and CPU seconds of all."""
        begun_s = time.perf_counter() + _AHEAD_S
        words = [("mix", asked, number, callers, begun_s, budget_s) for number in range(callers)]
        found = self._all(callers, words)
        took_s = max(ended_s for _, ended_s, _ in found) - begun_s
        return [one for one, _, _ in found], took_s, sum(cpu_s for _, _, cpu_s in found)

    def start(self, case: Case) -> None:
        """The first caller asks until `stop`."""
        self._pipes[0].send(("until", case))

    def stop(self) -> tuple[list[float], float]:
        """How long its calls took, and CPU seconds."""
        ((taken_s, _, cpu_s),) = self._all(1, [("stop",)])
        return taken_s, cpu_s

    def _all(self, count: int, words: Sequence[Any]) -> list[Any]:
        """Tells each and hears each. Raises RuntimeError with what the first that failed said; then none of the callers is
        asked again, and `begin` makes others."""
        for pipe, one in zip(self._pipes[:count], words, strict=True):
            try:
                pipe.send(one)
            except OSError:
                continue  # it has ended, which is heard next
        heard = [_heard(pipe) for pipe in self._pipes[:count]]
        for good, value in heard:
            if not good:
                for pipe in self._pipes:
                    pipe.close()
                self._pipes.clear()
                raise RuntimeError(value)
        return [value for _, value in heard]


def _heard(pipe: Connection) -> tuple[bool, Any]:
    try:
        good, value = pipe.recv()
    except (EOFError, OSError):
        return False, "a caller has ended"
    return good, value


def _serve(pipe: Connection, others: list[Connection], source: Source, module: str) -> None:
    """A caller: ends when who forked it is gone."""
    for one in others:
        one.close()  # ends that belong to who forked it
    caller = _Caller(pipe, source, importlib.import_module(module).System)
    while True:
        try:
            verb, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            reply: tuple[bool, Any] = True, getattr(caller, verb)(*arguments)
        except Exception as error:
            reply = False, f"{traceback.format_exc()}\n{type(error).__name__}: {error}"
        pipe.send(reply)


class _Caller:
    """One connection, and what is asked through it."""

    def __init__(self, pipe: Connection, source: Source, adapter: Any) -> None:
        self._pipe, self._source, self._adapter = pipe, source, adapter
        self._link: Any = None
        self._system: Any = None

    def begin(self, link: Any, case: Case) -> None:
        if self._system is None or link != self._link:
            if self._system is not None:
                self._system.close()
            self._system, self._link = self._adapter.joined(self._source, link), link
            self._natives = self._system.prepare(self._source.queries)
        call = self._call(case)
        for number in range(min(WARM_CALLS, len(self._natives))):
            call(number)

    def ask(self, case: Case, number: int, begun_s: float) -> tuple[Asked, float, float]:
        one_pass = Pass(len(self._natives), case)
        used_s = _begun(begun_s)
        one_pass.ask(self._call(case), number, begun_s)
        return one_pass.asked, time.perf_counter(), time.process_time() - used_s

    def mix(
        self, asked: Mix, number: int, callers: int, begun_s: float, budget_s: float
    ) -> tuple[Played, float, float]:
        used_s = _begun(begun_s)
        given = (self._system, self._source, self._natives, asked, number, callers)
        played = mixture.play(*given, begun_s + budget_s)
        return played, time.perf_counter(), time.process_time() - used_s

    def until(self, case: Case) -> tuple[list[float], float, float]:
        """Asks until something is said, which is that it should stop."""
        call = self._call(case)
        taken_s: list[float] = []
        used_s = time.process_time()
        while not self._pipe.poll():
            begun_s = time.perf_counter()
            call(len(taken_s) % len(self._natives))
            taken_s.append(time.perf_counter() - begun_s)
        self._pipe.recv()
        return taken_s, time.perf_counter(), time.process_time() - used_s

    def _call(self, case: Case) -> Any:
        system, natives = self._system, self._natives
        where = None if case.condition is None else system.where(case.condition)
        return lambda number: system.query(natives[number], K, where, case.setting)[0]


def _begun(at_s: float) -> float:
    """Waits for a moment of the clock that all processes share; the CPU seconds until then."""
    time.sleep(max(at_s - time.perf_counter(), 0.0))
    return time.process_time()
