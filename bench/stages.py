"""Where the time goes: functions of a program that runs, timed from outside and as they are."""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter_ns
from typing import Any

_END = object()

Stage = tuple[str, str, str]
"""A name for the share, a module, and a function or method in it."""


class _Mine(threading.local):
    """What one thread has spent, and how much of it within the stage that runs."""

    def __init__(self, all_spent: list[Counter[str]], all_calls: list[Counter[str]]) -> None:
        self.inner_ns = 0
        self.spent_ns: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        all_spent.append(self.spent_ns)
        all_calls.append(self.calls)


class Stages:
    """Time spent in some functions, by name, each without those inside it; of a generator it is that of its
    steps. Some 0.5 us a call. Made once in a process, before the functions are used; any thread may run them.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.names = list(dict.fromkeys(name for name, *_ in stages))
        self.absent: list[str] = []
        """Functions that were not found."""
        self._spent: list[Counter[str]] = []
        self._calls: list[Counter[str]] = []
        self._mine = _Mine(self._spent, self._calls)
        for name, module, path in stages:
            if not self._wrap(name, importlib.import_module(module), path):
                self.absent.append(f"{module}.{path}")

    @property
    def taken_s(self) -> dict[str, float]:
        """Seconds by name, of all threads."""
        spent = sum(map(Counter, self._spent), Counter())
        return {name: spent[name] / 1e9 for name in self.names}

    @property
    def calls(self) -> dict[str, int]:
        """How often each was called."""
        calls = sum(map(Counter, self._calls), Counter())
        return {name: calls[name] for name in self.names}

    def reset(self) -> None:
        """Begins anew; while nothing of it runs."""
        for counter in (*self._spent, *self._calls):
            counter.clear()

    def _wrap(self, name: str, module: Any, path: str) -> bool:
        *owners, last = path.split(".")
        owner = module
        for one in owners:
            owner = getattr(owner, one, None)
        function = getattr(owner, last, None)
        if function is None:
            return False
        made = self._stepped if inspect.isgeneratorfunction(function) else self._timed
        timed = made(name, function)
        if owners:
            setattr(owner, last, timed)
            return True
        # Others have imported the function by name.
        for other in list(sys.modules.values()):
            if getattr(other, last, None) is function:
                setattr(other, last, timed)
        return True

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        mine = self._mine

        def run(*arguments: Any, **named: Any) -> Any:
            outside_ns, mine.inner_ns = mine.inner_ns, 0
            mine.calls[name] += 1
            started_ns = perf_counter_ns()
            try:
                return function(*arguments, **named)
            finally:
                taken_ns = perf_counter_ns() - started_ns
                mine.spent_ns[name] += taken_ns - mine.inner_ns
                mine.inner_ns = outside_ns + taken_ns

        return run

    def _stepped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        mine = self._mine
        step = self._timed(name, next)

        def run(*arguments: Any, **named: Any) -> Iterator[Any]:
            steps = function(*arguments, **named)
            try:
                while (item := step(steps, _END)) is not _END:
                    mine.calls[name] -= 1
                    yield item
            finally:
                steps.close()

        return run
